# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The texts of older versions, which are reasons now."""
import datetime as dt
import unittest

from trytond.modules.email_queue.reasons import (
    REASONS, Old, convert, convert_events, converted)
from trytond.modules.email_queue.tools import forget
from trytond.pool import Pool
from trytond.transaction import Transaction

from .tools import QueueTestCase

A, B, C = 'a@x.test', 'b@x.test', 'c@x.test'
LARGE = (
    "The message of 9000 bytes is larger than the server's limit of 5000 "
    "bytes.")
# The values of an older row, and its reason, error and refused after the
# conversion
BEFORE = [
    ({'error': "expired"}, ('expired', None, None)),
    ({'error': "expired: 451 later"}, ('expired', "451 later", None)),
    ({'error': "gave up: 451 later"}, ('gave_up', "451 later", None)),
    ({'error': "gave up: 554 later: now", 'suspect_since': 1},
        ('gave_up', "554 later: now", None)),
    ({'error': "550 5.1.1 no", 'refused': f"{A} 550 5.1.1 no"},
        ('refused', "550 5.1.1 no", f"{A} 550 5.1.1 no")),
    ({'error': "550 no", 'refused': f"{A} 550 no", 'bounced_at': 1},
        ('bounced', "550 no", f"{A} 550 no")),
    ({'to_addrs': f'{A}, {B}, {C}', 'accepted': A,
        'refused': f"{B} 550 no",
        'error': "delivered to 1 of 3 recipients\nexpired\n"
        f"{B} 550 no\n{C} 451 later"},
        ('expired', f"{B} 550 no\n{C} 451 later", f"{B} 550 no")),
    ({'to_addrs': f'{A}, {B}', 'accepted': A, 'refused': f"{B} 550 no",
        'error': f"delivered to 1 of 2 recipients\n{B} 550 no"},
        ('refused', f"{B} 550 no", f"{B} 550 no")),
    ({'to_addrs': f'{A}, {B}', 'attempts': 9,
        'error': f"gave up\n{A} 451 later\n{B} 450 later"},
        ('gave_up', f"{A} 451 later\n{B} 450 later", None)),
    ({'error': "no recipient", 'to_addrs': ','},
        ('no_recipient', None, None)),
    ({'error': "timed out: the message may have arrived", 'attempts': 2},
        ('uncertain', "timed out", None)),
    ({'to_addrs': f'{A}, {B}, {C}', 'accepted': A, 'refused': f"{B} 550 no",
        'error': f"delivered to 1 of 3 recipients\n{B} 550 no\n"
        f"{C} timed out: the message may have arrived"},
        ('uncertain', f"{B} 550 no\n{C} timed out", f"{B} 550 no")),
    ({'error': "its senders died"}, ('died', None, None)),
    ({'error': "the outcome could not be recorded: "
        "the message may have arrived"}, ('not_recorded', None, None)),
    ({'error': LARGE, 'refused': f"{A} {LARGE}"},
        ('too_large', "SIZE 5000", f"{A} SIZE 5000")),
    ({'to_addrs': f'{A}, {B}', 'refused': f"{A} {LARGE}\n{B} {LARGE}",
        'error': f"{A} {LARGE}\n{B} {LARGE}"},
        ('too_large', f"{A} SIZE 5000\n{B} SIZE 5000",
            f"{A} SIZE 5000\n{B} SIZE 5000")),
    ({'error': "The server does not offer SMTPUTF8.",
        'refused': f"{A} The server does not offer SMTPUTF8."},
        ('no_smtputf8', "SMTPUTF8", f"{A} SMTPUTF8")),
    ({'error': "the message has been removed",
        'refused': f"{A} the message has been removed"},
        ('no_message', None, A)),
    ({'state': 'outbox', 'error': "the message is not in the filestore",
        'attempts': 1}, ('not_in_filestore', None, None)),
    ({'error': "gave up: the message is not in the filestore",
        'attempts': 9}, ('not_in_filestore', None, None)),
    ({'state': 'outbox', 'error': 'The server "x y" is not configured.'},
        ('no_server', 'x y', None)),
    ({'error': "not tried, because it does not work since 2026-11-01: 550 "
        "5.1.1 no", 'refused': f"{A} not tried, because it does not work "
        "since 2026-11-01: 550 5.1.1 no"},
        ('dead', "550 5.1.1 no", f"{A} 550 5.1.1 no")),
    ({'to_addrs': f'{A}, {B}', 'refused': f"{A} 550 no\n"
        f"{B} not tried, because it does not work since 2026-11-01: 550 no",
        'error': f"{A} 550 no\n{B} not tried, because it does not work since "
        "2026-11-01: 550 no"},
        ('refused', f"{A} 550 no\n{B} 550 no", f"{A} 550 no\n{B} 550 no")),
    ({'error': "ValueError: a b", 'refused': f"{A} ValueError: a b",
        'attempts': 1},
        ('unsendable', "ValueError: a b", f"{A} ValueError: a b")),
    ({'error': "waited since 2026-11-01 10:00:00 before the update"},
        ('waited', None, None)),
    ({'error': "failed before the update"}, ('failed_before', None, None)),
    ({'error': "its state was draft"}, ('no_state', 'draft', None)),
    ({'error': "its state was None"}, ('no_state', None, None)),
    ({'error': "there is no message"}, ('no_message', None, None)),
    ({'error': "it had no state"}, ('no_state', None, None)),
    ({'error': "it had no sender"}, ('no_sender', None, None)),
    ({'error': "it had no recipient"}, ('no_recipient', None, None)),
    ({'error': "a b is not a valid email address", 'to_addrs': 'a b'},
        ('no_recipient', None, None)),
    ({'error': "shop is not a valid email address", 'from_addr': 'shop'},
        ('no_sender', None, None)),
    ({'to_addrs': f'{A}, no address', 'accepted': A,
        'refused': "no address is not a valid email address",
        'error': "delivered to 1 of 2 recipients\n"
        "no address is not a valid email address"},
        ('refused', "no address", "no address")),
    # Captured emails
    ({'error': '"x@" de "to_addrs" no es válida.'},
        ('not_queued', '"x@" de "to_addrs" no es válida.', None)),
    ({}, ('not_queued', None, None)),
    # Waiting emails
    ({'state': 'outbox', 'error': "451 later", 'attempts': 1},
        ('deferred', "451 later", None)),
    ({'state': 'outbox', 'error': "554 no", 'suspect_since': 1},
        ('suspect', "554 no", None)),
    ({'state': 'sending', 'error': "421 busy"},
        ('trouble', "421 busy", None)),
    ({'state': 'outbox', 'to_addrs': f'{A}, {B}', 'error': "421 busy"},
        ('trouble', "421 busy", None)),
    ({'state': 'cancelled', 'error': "gave up: 451 later"},
        ('gave_up', "451 later", None)),
    ]


def old(**values):
    return Old(**{
            **dict.fromkeys(Old._fields), 'id': 1, 'state': 'failed',
            'from_addr': 'shop@x.test', 'to_addrs': A, 'attempts': 0,
            **values})


class BeforeTestCase(unittest.TestCase):
    "Test the texts that the module wrote before it had reasons"

    def test_converted(self):
        for values, expected in BEFORE:
            with self.subTest(**values):
                new = converted(old(**values))
                self.assertEqual(tuple(new), expected)
                self.assertIn(new.reason, dict(REASONS))

    def test_again(self):
        "Test a second conversion does not change words of servers"
        for values, _ in BEFORE:
            with self.subTest(**values):
                new = converted(old(**values))
                again = converted(old(**{
                            **values, 'error': new.error,
                            'refused': new.refused}))
                self.assertEqual(again[1:], new[1:])


# The recipients and words of an older event, and its reason and words after
# the conversion
EVENTS = [
    ('gave_up', A, "expired", 'expired', None),
    ('gave_up', A, "gave up: 451 later", 'gave_up', "451 later"),
    ('gave_up', C, f"delivered to 2 of 3 recipients\ngave up\n{C} 451 later",
        'gave_up', f"{C} 451 later"),
    ('gave_up', A, "550 no", 'gave_up', "550 no"),
    ('uncertain', None, "the outcome could not be recorded: the message may "
        "have arrived", 'not_recorded', None),
    ('uncertain', A, "timed out", None, "timed out"),
    ('refused', A, "550 no", None, "550 no"),
    ]


class ConvertTestCase(QueueTestCase):
    "Test the rows of a table"

    def test_events(self):
        id_ = self.queue()
        with self.transaction():
            Event = Pool().get('email.queue.event')
            events = Event.create([{
                        'email': id_, 'at': dt.datetime(2026, 11, 27),
                        'kind': kind, 'recipients': recipients,
                        'words': words} for kind, recipients, words, *_
                    in EVENTS])
            for _ in range(2):
                convert_events(Event)
            forget(Transaction())
            for event, (*_, words, reason, new) in zip(events, EVENTS):
                with self.subTest(words):
                    event = Event(event.id)
                    self.assertEqual(
                        (event.reason, event.words), (reason, new))

    def test_table(self):
        ids = [self.queue() for _ in BEFORE]
        names = [n for n in Old._fields if n != 'id']
        with self.transaction() as transaction:
            cursor = transaction.connection.cursor()
            t = Pool().get('email.queue').__table__()
            for id_, (values, _) in zip(ids, BEFORE):
                row = old(**values)._replace(
                    suspect_since=None, bounced_at=None)
                cursor.execute(*t.update(
                        [getattr(t, n) for n in names],
                        [getattr(row, n) for n in names],
                        where=t.id == id_))
        sent = self.queue()
        self.write(sent, state='sent')
        with self.transaction():
            convert(Pool().get('email.queue'))
        found = self.rows('reason', 'error', 'refused')
        for (values, expected), new in zip(BEFORE, found):
            if not ({'suspect_since', 'bounced_at'} & values.keys()):
                with self.subTest(**values):
                    self.assertEqual(new, expected)
        self.assertEqual(found[-1], (None, None, None))
        with self.transaction():
            convert(Pool().get('email.queue'))
        self.assertEqual(self.rows('reason', 'error', 'refused'), found)
