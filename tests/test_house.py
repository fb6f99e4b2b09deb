# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The names that each file gives to others are in its ``__all__``."""
import ast
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREES = {
    path.stem: ast.parse(path.read_text('utf-8'))
    for path in ROOT.glob('*.py') if path.stem not in {'__init__', 'setup'}}


def listed(tree):
    "Return the names in __all__, None where there is none"
    for node in tree.body:
        if (isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and node.targets[0].id == '__all__'):
            return set(ast.literal_eval(node.value))


def used(tree):
    "Yield pairs of a module of the package and a name used from it"
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            for alias in node.names:
                if node.module:
                    yield node.module, alias.name
                else:
                    modules[alias.asname or alias.name] = alias.name
    for node in ast.walk(tree):
        if (isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in modules):
            yield modules[node.value.id], node.attr


def defined(tree):
    "Yield the names that a module defines or imports"
    for node in tree.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name):
                        yield name.id
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                yield alias.asname or alias.name
        elif hasattr(node, 'name'):
            yield node.name


class AllTestCase(unittest.TestCase):

    def test_used(self):
        "Test names that other files use are in __all__, if a file has it"
        found = 0
        for stem, tree in TREES.items():
            for module, name in used(tree):
                names = listed(TREES[module])
                if names is not None:
                    found += 1
                    with self.subTest(f'{stem} uses {module}.{name}'):
                        self.assertIn(name, names)
        self.assertGreater(found, 100)

    def test_defined(self):
        for stem, tree in TREES.items():
            with self.subTest(stem):
                self.assertLessEqual(listed(tree) or set(), set(defined(tree)))

    def test_ground(self):
        "Test the files on the ground floor use no other file"
        for stem in ['tools', 'exceptions', 'words']:
            with self.subTest(stem):
                self.assertEqual(list(used(TREES[stem])), [])
