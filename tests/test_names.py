# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The names of tests say where each test is."""
import ast
import unittest
from collections import defaultdict
from pathlib import Path


class NamesTestCase(unittest.TestCase):

    def test_classes(self):
        "No two classes of tests have the same name"
        places = defaultdict(list)
        for path in Path(__file__).parent.glob('test_*.py'):
            for node in ast.parse(path.read_text('utf-8')).body:
                if isinstance(node, ast.ClassDef):
                    places[node.name].append(path.name)
        self.assertIn('NamesTestCase', places)
        self.assertEqual(
            {n: files for n, files in places.items() if len(files) > 1}, {})
