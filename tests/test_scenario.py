# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
import unittest

from trytond.tests.test_tryton import drop_db, load_doc_tests


class ScenarioTestCase(unittest.TestCase):
    "Test the scenarios by a method each, because pytest ignores load_tests"

    def setUp(self):
        super().setUp()
        # A cached database is restored only if there is no database
        drop_db()


def add_scenarios(cls):
    scenarios = load_doc_tests(
        __name__, __file__, unittest.TestLoader(), unittest.TestSuite(), None)
    for number, scenario in enumerate(sorted(scenarios, key=str)):

        def test(self, scenario=scenario):
            result = unittest.TestResult()
            scenario.run(result)
            for _, message in result.errors + result.failures:
                self.fail(message)
            for _, reason in result.skipped:
                self.skipTest(reason)

        name = scenario.id().split('_rst')[0].split('.rst')[0]
        # A scenario with a json file is run once for each item of the file
        while hasattr(cls, f'test_{name}'):
            name += f'_{number}'
        setattr(cls, f'test_{name}', test)


add_scenarios(ScenarioTestCase)
