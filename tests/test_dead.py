# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Addresses that do not work: how they are learned, used and forgotten."""
import datetime as dt
import itertools
import unittest
from unittest.mock import patch

from trytond.modules.email_queue.dead import DeadAddress, gone
from trytond.pool import Pool

from .jsonrpc import RPCError, RPCTestCase
from .test_notices import NoticesTestCase, about
from .tools import configured

JANE, JOHN = 'jane@example.com', 'john@example.com'
PAST = dt.datetime(2026, 1, 1)
_numbers = itertools.count()


class WordsOfGoneTestCase(unittest.TestCase):

    def test_gone(self):
        for words, expected in [
                ('550 5.1.1 no', True),
                ('550 5.1.10 no', True),
                ('550 5.2.1 closed', True),
                ('550 5.2.2 full', False),
                ('550 5.7.1 denied', False),
                ('450 4.1.1 later', False),
                ('550 no such user', False),
                ('550 15.1.1 no', False),
                ('552 5.2.2 full (5.1.1)', False),
                ]:
            with self.subTest(words):
                self.assertEqual(bool(gone({JANE: words})), expected)


class DeadTestCase(NoticesTestCase):

    def setUp(self):
        super().setUp()
        self.dead = self.new_address()

    def new_address(self):
        "Return an address that the server refuses the first time"
        return f'rcpt-550x1-5.1.1-no.{next(_numbers)}@example.com'

    def known(self):
        "Return what is known of each address"
        with self.transaction(readonly=True):
            return {
                a.address: (bool(a.refused), a.bounces, bool(a.accepted_at))
                for a in Pool().get('email.queue.address').search([])}

    def bounce(self, address, words='550 5.1.1 no', status='5.1.1'):
        "Send an email, and let a notice say that it came back"
        self.clear_emails()
        self.queue_sent(address)
        self.receive(about(address, **{
                    'Status': status, 'Diagnostic-Code': f'smtp; {words}'}))

    def clear_emails(self):
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            EmailQueue.delete(EmailQueue.search([]))


class LearnTestCase(DeadTestCase):
    "Test when an address counts as one that does not work"

    def test_refused(self):
        "Test one refusal by the mail server itself is enough"
        id_ = self.queue([JANE, self.dead.replace('@example', '@EXAMPLE')])
        self.queue('rcpt-550-5.2.2-full@example.com')
        self.queue('rcpt-450-4.1.1-later@example.com')
        self.send_all()
        self.assertEqual(self.known(), {self.dead: (True, 0, False)})
        with self.transaction(readonly=True):
            address, = Pool().get('email.queue.address').search([])
            self.assertEqual(address.email.id, id_)
            self.assertIn('5.1.1', address.words)

    def test_bounced(self):
        "Test two notices are needed"
        for count in [1, 2]:
            self.bounce(JANE)
            self.assertEqual(self.known(), {JANE: (False, count, False)})
            self.clear_emails()
            self.queue(JANE, priority='bulk')
            self.send_all()
            self.assertEqual(
                self.states(), {'sent': 1} if count == 1 else {'failed': 1})

    def test_other_bounces(self):
        "Test other refusals, which may pass, do not count"
        for words, status in [
                ('552 5.2.2 full', '5.2.2'), ('550 5.7.1 spam', '5.7.1'),
                ('451 4.4.1 gave up', '4.4.1')]:
            self.bounce(JANE, words, status)
        self.receive(about(JANE, Action='delayed'))
        self.assertEqual(self.known(), {})

    def test_same_notice_twice(self):
        self.bounce(JANE)
        self.receive(about(JANE))
        self.assertEqual(self.known(), {JANE: (False, 1, False)})

    def test_redirected(self):
        "Test nothing is learned with a redirection"
        with configured(redirect=self.dead):
            self.queue(JANE)
            self.send_all()
        self.assertEqual(self.known(), {})

    def test_trouble(self):
        "Test emails are sent even if nothing can be learned or known"
        self.queue(self.dead)
        self.queue(JANE)
        for name in ['is_used', 'find', 'learn', 'works']:
            with self.subTest(name):
                with self.transaction() as transaction:
                    error = transaction.connection.Error
                with patch.object(DeadAddress, name, side_effect=error):
                    self.queue(JOHN, priority='bulk')
                    self.send_all()
                self.assertEqual(
                    set(self.states()) - {'sent', 'failed'}, set())


class UseTestCase(DeadTestCase):
    "Test what happens to emails to an address that does not work"

    def setUp(self):
        super().setUp()
        self.queue(self.dead)
        self.send_all()
        self.clear_emails()
        self.server.received.clear()

    def test_bulk(self):
        "Test bulk emails are refused, with a reason"
        alone = self.queue(self.dead, priority='bulk')
        both = self.queue([JANE, self.dead], priority='bulk')
        self.send_all()
        mail, = self.server.received
        self.assertEqual(mail.to_addrs, (JANE,))
        for id_, count in [(alone, 0), (both, 1)]:
            state, reason, refused, error, outcome = self.read(
                id_, 'state', 'reason', 'refused', 'error', 'outcome')
            self.assertEqual((state, reason), ('failed', 'dead'))
            self.assertIn(f'{self.dead} 550 5.1.1 no', refused)
            self.assertIn('550 5.1.1 no', error)
            self.assertTrue(outcome.startswith(
                    "Not tried, because the address does not work"))
            self.assertEqual("delivered to 1 of 2" in outcome, bool(count))
            (kind, recipients, _, _), = self.history(id_)
            self.assertEqual((kind, recipients), ('refused', self.dead))
        self.assertEqual(self.known(), {self.dead: (True, 0, False)})

    def test_others(self):
        "Test other emails are tried, and remove an address that works"
        for priority in ['normal', 'urgent']:
            with self.subTest(priority):
                id_ = self.queue(self.dead, priority=priority)
                self.send_all()
                self.assertEqual(self.read(id_, 'state'), 'sent')
                self.assertEqual(self.known(), {})
            self.dead = self.new_address()
            self.queue(self.dead)
            self.send_all()
            self.assertEqual(len(self.known()), 1)

    def test_send_now(self):
        "Test Send Now sends a bulk email, too"
        id_ = self.queue(self.dead, priority='bulk')
        self.press('send_now', id_)
        self.send_all()
        self.assertEqual(self.read(id_, 'state'), 'sent')

    def test_in_trouble(self):
        "Test nothing is refused while the server takes nothing"
        id_ = self.queue([JANE, self.dead], priority='bulk')
        self.server.script['mail'] = '421 4.3.2 later'
        self.addCleanup(self.server.script.clear)
        with configured(run_time=.2):
            with self.assertRaises(Exception):
                self.send_all()
        self.assertEqual(
            self.read(id_, 'state', 'refused', 'attempts'),
            ['outbox', None, 0])

    def test_case(self):
        id_ = self.queue(
            self.dead.replace('@example', '@EXAMPLE'), priority='bulk')
        self.send_all()
        self.assertEqual(self.read(id_, 'state'), 'failed')


class LetGoTestCase(DeadTestCase):
    "Test how an address counts as working again"

    def update(self, **values):
        with self.transaction() as transaction:
            t = Pool().get('email.queue.address').__table__()
            transaction.connection.cursor().execute(*t.update(
                    [getattr(t, n) for n in values], list(values.values())))

    def clean(self):
        with self.transaction():
            Pool().get('email.queue').clean()

    def test_time(self):
        "Test an email that has not bounced for a week removes the address"
        for _ in range(2):
            self.bounce(JANE)
        self.queue(JANE)
        self.send_all()
        self.assertEqual(self.known(), {JANE: (False, 2, True)})
        self.clean()
        self.assertEqual(self.known(), {JANE: (False, 2, True)})
        self.update(accepted_at=PAST)
        self.clean()
        self.assertEqual(self.known(), {})

    def test_bounces_again(self):
        for _ in range(2):
            self.bounce(JANE)
        self.bounce(JANE)
        self.assertEqual(self.known(), {JANE: (False, 3, False)})
        self.update(since=PAST)
        self.clean()
        self.assertEqual(self.known(), {JANE: (False, 3, False)})

    def test_email_deleted(self):
        self.bounce(JANE)
        self.clear_emails()
        with self.transaction(readonly=True):
            address, = Pool().get('email.queue.address').search([])
            self.assertIsNone(address.email)

    def test_erased(self):
        self.bounce(JANE)
        self.bounce(JOHN, words=f'550 5.1.1 as {JANE}')
        with self.transaction():
            Pool().get('email.queue').erase_address(JANE)
        self.assertEqual(self.known(), {JOHN: (False, 1, False)})
        with self.transaction(readonly=True):
            address, = Pool().get('email.queue.address').search([])
            self.assertEqual(address.words, '550 5.1.1 as ***')


class DeadAccessTestCase(RPCTestCase, DeadTestCase):
    "Test who reads the addresses and removes them"
    contexts = [
        {}, {'_check_access': False}, {'_user': 0, 'user': 0},
        {'groups': [1, 2, 3]}, {'action_id': 1}]

    def setUp(self):
        super().setUp()
        self.queue(self.dead)
        self.send_all()
        with self.transaction(readonly=True):
            self.id = Pool().get('email.queue.address').search([])[0].id

    def call(self, session, method, *params, context=None):
        return session.call(
            'email.queue.address', method, *params, context=context)

    def test_readers(self):
        for session in self.readers:
            with self.subTest(user=session.login):
                row, = self.call(session, 'read', [self.id], ['address'])
                self.assertEqual(row['address'], self.dead)

    def test_delete(self):
        "Test a user who looks after the queue removes an address"
        for session in self.readers:
            with self.subTest(user=session.login):
                self.queue(self.dead.replace('x1', ''))
                self.send_all()
                ids = self.call(session, 'search', [], 0, None, None)
                self.call(session, 'delete', ids)
                self.assertEqual(self.known(), {})

    def test_strangers(self):
        for session in self.strangers:
            for context in self.contexts:
                for method, *params in [
                        ('read', [self.id], ['address']),
                        ('search', [], 0, None, None),
                        ('search_count', []),
                        ('delete', [self.id]),
                        ]:
                    with self.subTest(
                            user=session.login, method=method,
                            context=context):
                        with self.assertRaises(RPCError):
                            self.call(
                                session, method, *params, context=context)
        self.assertEqual(len(self.known()), 1)

    def test_modify(self):
        for session in self.sessions:
            for method, *params in [
                    ('create', [{'address': JANE}]),
                    ('write', [self.id], {'address': JANE}),
                    ('copy', [self.id], {}),
                    ('learn', {JANE: ['x', 1]}, True),
                    ('works', [self.dead]),
                    ('clean',),
                    ]:
                with self.subTest(user=session.login, method=method):
                    with self.assertRaises(RPCError) as cm:
                        self.call(session, method, *params)
                    self.assertEqual(cm.exception.name, 'FORBIDDEN')
        self.assertEqual(set(self.known()), {self.dead})


del RPCTestCase, NoticesTestCase
