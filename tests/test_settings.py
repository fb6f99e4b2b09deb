# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What the configuration says, and that only one file reads it."""
import re
import unittest
from pathlib import Path
from unittest.mock import patch

from trytond.modules.email_queue import settings
from trytond.modules.email_queue.exceptions import EmailQueueError
from trytond.modules.email_queue.settings import Settings, at_start

from .tools import configured

ROOT = Path(__file__).resolve().parent.parent


class SettingsTestCase(unittest.TestCase):
    "Test reading the configuration"

    def setUp(self):
        super().setUp()
        patcher = patch.object(
            settings, 'gettext',
            lambda message, **values: f'{message} {values}')
        patcher.start()
        self.addCleanup(patcher.stop)

    def read(self, **values):
        with configured(**{
                    **dict.fromkeys(Settings._fields), **values}):
            return Settings.read()

    def test_default(self):
        self.assertEqual(self.read(), Settings())
        self.assertEqual(Settings(), Settings(
                senders=1, connections=2, rate=0, messages_per_connection=100,
                recipients=50, run_time=50, timeout=60, data_timeout=600,
                uncertain='retry', retry_delay=60, give_up=5, max_attempts=0,
                clean_days=30, clean_body_days=7))

    def test_values(self):
        for name, text, value in [
                ('senders', '8', 8),
                ('connections', '16', 16),
                ('rate', '0', 0),
                ('rate', '0.5', .5),
                ('rate', '600', 600),
                ('messages_per_connection', '1', 1),
                ('recipients', '1000', 1000),
                ('run_time', '0.1', .1),
                ('timeout', '5', 5),
                ('data_timeout', ' 30 ', 30),
                ('uncertain', 'fail', 'fail'),
                # The value of version 8.2.0
                ('uncertain', 'hold', 'fail'),
                ('uncertain', 'retry', 'retry'),
                ('retry_delay', '0.25', .25),
                ('give_up', '1e3', 1000),
                ('max_attempts', '0', 0),
                ('max_attempts', '7', 7),
                ('clean_days', '0', 0),
                ('clean_body_days', '0', 0),
                ('clean_body_days', '0.5', .5),
                ]:
            with self.subTest(f'{name} = {text}'):
                self.assertEqual(
                    self.read(**{name: text}), Settings(**{name: value}))

    def test_all_values(self):
        values = Settings(
            senders=2, connections=3, rate=4, messages_per_connection=5,
            recipients=6, run_time=7, timeout=8, data_timeout=9,
            uncertain='fail', retry_delay=10, give_up=11, max_attempts=12,
            clean_days=13, clean_body_days=14)
        self.assertEqual(self.read(**values._asdict()), values)

    def test_invalid(self):
        for name, text in [
                ('senders', '0'),
                ('senders', '-1'),
                ('senders', '1.5'),
                ('senders', 'many'),
                ('connections', '0'),
                ('rate', '-1'),
                ('rate', 'nan'),
                ('rate', 'inf'),
                ('rate', 'fast'),
                ('messages_per_connection', '0'),
                ('recipients', '0'),
                ('run_time', '0'),
                ('timeout', '0'),
                ('timeout', 'None'),
                ('data_timeout', '-600'),
                ('uncertain', 'Retry'),
                ('uncertain', 'drop'),
                ('retry_delay', '0'),
                ('retry_delay', '1 minute'),
                ('give_up', '0'),
                ('give_up', '1e9'),
                ('max_attempts', '-1'),
                ('clean_days', '-1'),
                ('clean_body_days', 'week'),
                ('max_attempts', '10000000000'),
                ]:
            with self.subTest(f'{name} = {text}'):
                with self.assertRaises(EmailQueueError) as raised:
                    self.read(**{name: text})
                self.assertIn(repr(name), str(raised.exception))
                self.assertIn(repr(text), str(raised.exception))

    def test_at_start(self):
        "Test the options that are read when the module is imported"
        for name, text, value in [
                ('capture', '', False),
                ('capture', 'True', True),
                ('filestore', 'on', True),
                ('store_prefix', '', None),
                ('store_prefix', 'emails', 'emails'),
                ]:
            with self.subTest(f'{name} = {text}'), configured(**{name: text}):
                self.assertEqual(at_start(name), value)
        with configured(capture='perhaps'), self.assertRaisesRegex(
                ValueError, r'\[email_queue\] capture = perhaps'):
            at_start('capture')

    def test_one_reader(self):
        "Test that no other file of the module reads the section"
        reads = re.compile(r"config\.\w+\(\s*(?:'email_queue'|SECTION)")
        self.assertTrue(reads.search((ROOT / 'settings.py').read_text()))
        for path in ROOT.glob('*.py'):
            if path.name != 'settings.py':
                with self.subTest(path.name):
                    self.assertIsNone(reads.search(path.read_text('utf-8')))
