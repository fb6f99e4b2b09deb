# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The catalogues of translations against the code."""
import re

import polib

from trytond.tests.test_tryton import (
    TestCase, activate_module, with_transaction)

from .catalogue import LOCALE, MODULES, key, template

PLACEHOLDER = re.compile(r'%(?:\(\w+\))?[a-z%]')


class LocaleTestCase(TestCase):
    "Test the translations"

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        activate_module(MODULES)

    @with_transaction()
    def test_catalogues(self):
        "Test no catalogue has a missing, fuzzy or obsolete entry"
        keys = {key(entry) for entry in template()}
        paths = sorted(LOCALE.glob('*.po'))
        self.assertEqual([p.stem for p in paths], ['de', 'es', 'fr'])
        for path in paths:
            with self.subTest(path.name):
                catalogue = polib.pofile(path)
                self.assertEqual({key(entry) for entry in catalogue}, keys)
                self.assertEqual(catalogue.untranslated_entries(), [])
                self.assertEqual(catalogue.fuzzy_entries(), [])
                self.assertEqual(catalogue.obsolete_entries(), [])

    @with_transaction()
    def test_other_modules(self):
        "Test the catalogues have what the models of other modules gain"
        contexts = {entry.msgctxt for entry in template()}
        self.assertLessEqual({
                'field:party.contact_mechanism,dead_since:',
                'help:party.contact_mechanism,dead_since:',
                'selection:inbound.email.rule,action:',
                }, contexts)

    def test_placeholders(self):
        "Test the translations have the placeholders of the original"
        for path in LOCALE.glob('*.po'):
            for entry in polib.pofile(path):
                with self.subTest(path.name, entry=key(entry)):
                    for text in (
                            entry.msgstr_plural.values() or [entry.msgstr]):
                        self.assertEqual(
                            sorted(PLACEHOLDER.findall(text)),
                            sorted(PLACEHOLDER.findall(entry.msgid)))
