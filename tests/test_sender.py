# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""One run of a sender: what ends it early, how much it holds and what it logs.
"""
import logging
import threading
import unittest
from collections import Counter
from unittest.mock import patch

from trytond import backend
from trytond.pool import Pool

from .. import handover, policy, recorder, run, sender
from ..exceptions import EmailQueueError
from ..slot import Slot
from ..store import Store
from .smtpd import Server
from .tools import QueueTestCase, configured

has_locks = backend.name != 'sqlite'


class Interrupt(BaseException):
    "An interrupt, as by a person at the keyboard"


class EndTestCase(QueueTestCase):
    "What ends a run: sent emails are recorded, the others are given back"
    server_options = {'delay': .005}

    def raising(self, method, error):
        """Return a method that raises the error once, when ten emails have
        arrived
        """
        def wrapper(store, *args):
            if errors and len(self.server.received) >= 10:
                raise errors.pop()
            return method(store, *args)

        errors = [error]
        return wrapper

    def test_error(self):
        for class_, name in [
                (Store, 'claim'), (Store, 'record'), (Slot, 'beat')]:
            for error in [RuntimeError("broken"), Interrupt()]:
                with self.subTest(name, error=error):
                    self.clear()
                    self.queue_many(60)
                    threads = threading.active_count()
                    method = self.raising(getattr(class_, name), error)
                    with patch.object(class_, name, method), \
                            self.assertRaises(type(error)):
                        self.send_all()
                    self.assertEqual(threading.active_count(), threads)
                    self.check(60)

    def test_identity(self):
        "Test that rows that are claimed just before an error are given back"
        self.queue_many(60)
        with patch.object(
                sender.identity, 'remember', side_effect=RuntimeError), \
                self.assertRaises(RuntimeError):
            self.send_all()
        self.assertEqual(
            self.states(), Counter(
                sent=len(self.server.received),
                outbox=60 - len(self.server.received)))
        self.assertEqual({c for c, in self.rows('crashes')}, {0})

    def test_run_time(self):
        """Test that a run claims nothing after its time, and the next run goes
        on
        """
        self.queue_many(300)
        with configured(run_time=.3):
            self.send_all()
        self.check(300, least=1)

    def check(self, count, least=10):
        sent = len(self.server.received)
        self.assertGreaterEqual(sent, least)
        self.assertLess(sent, count)
        self.assertEqual(
            self.states(), {'sent': sent, 'outbox': count - sent})
        self.assertEqual(
            set(self.rows('state', 'attempts', 'crashes', 'slot')),
            {('sent', 1, 0, None), ('outbox', 0, 0, None)})
        self.send_all()
        self.assertEqual(self.states(), {'sent': count})
        self.assertEqual(len(self.server.received), count)

    @unittest.skipUnless(has_locks, "it has no connection to lose")
    def test_connection_lost(self):
        "Test that another connection records what was accepted meanwhile"
        def lost(store, rows):
            if number and len(self.server.received) >= 10:
                number.clear()
                store.slot.connection.close()
            record(store, rows)

        self.queue_many(60)
        record, number = Store.record, [1]
        with patch.object(Store, 'record', lost), \
                self.assertRaises(backend.DatabaseOperationalError):
            self.send_all()
        self.check(60)

    def test_record_again(self):
        "Test the same if the database did not answer for a while"
        def failing(store, rows):
            if len(self.server.received) >= 10 and len(failed) < 2:
                failed.append(rows)
                raise backend.DatabaseOperationalError("locked")
            record(store, rows)

        self.queue_many(60)
        record, failed = Store.record, []
        with patch.object(Store, 'record', failing), \
                self.assertLogs(recorder.__name__, 'WARNING'):
            self.send_all()
        self.assertEqual(self.states(), {'sent': 60})
        self.assertEqual(len(self.server.received), 60)

    def test_thread(self):
        "Test that a run does not wait for a dead thread"
        def dying(client, row, redirect):
            if row.to_addrs == 'r3@example.com':
                raise Interrupt
            return deliver(client, row, redirect)

        self.queue_many(20)
        deliver = sender.hand_over
        with patch.object(sender, 'hand_over', dying), \
                patch.object(threading, 'excepthook'), \
                self.assertRaisesRegex(RuntimeError, "thread"):
            self.send_all()
        # As if the sender had died, which the next run finds out
        self.assertEqual(self.states(), {'sent': 19, 'sending': 1})

    def test_thread_that_can_not_start(self):
        def failing(thread):
            if thread._target.__name__ == '_serve' and started:
                raise RuntimeError("can't start new thread")
            started.append(thread)
            start(thread)

        self.queue_many(1)
        start, started = threading.Thread.start, []
        with patch.object(threading.Thread, 'start', failing), \
                self.assertRaisesRegex(RuntimeError, "can't start"):
            self.send_all()
        self.assertFalse([t for t in started if t.is_alive()])

    def test_fence(self):
        "Test that nothing is handed over while the database does not answer"
        self.queue_many(5)
        with configured(run_time=1), patch.object(sender, 'FENCE_SECONDS', 0):
            self.send_all()
        self.assertEqual(len(self.server.received), 0)
        self.assertEqual(
            set(self.rows('state', 'attempts', 'crashes', 'slot')),
            {('outbox', 0, 0, None)})

    @unittest.skipUnless(has_locks, "there one writes at a time")
    def test_locked(self):
        "Test that a run does not try a locked row over and over"
        locked, *_ = self.queue_many(3)
        with self.transaction() as transaction, \
                patch.object(run, '_with_slot', wraps=run._with_slot) as runs:
            transaction.connection.cursor().execute(
                f'SELECT id FROM email_queue WHERE id = {locked} FOR UPDATE')
            Pool().get('email.queue').send_all()
            self.assertLess(runs.call_count, 5)
        self.assertEqual(self.states(), {'sent': 2, 'outbox': 1})
        self.send_all()
        self.assertEqual(self.states(), {'sent': 3})


class HeldRowsTestCase(QueueTestCase):
    "How many rows a run holds at once"

    def held(self):
        "Send all and return how many emails were claimed, from time to time"
        def settle(sender_, pairs):
            held.append(len(sender_._held))
            settle_(sender_, pairs)

        held, settle_ = [], sender.Sender._settle
        with patch.object(sender.Sender, '_settle', settle):
            self.send_all()
        return held

    def test_a_second_of_work(self):
        self.server.delay = {'dot': .05}
        self.addCleanup(setattr, self.server, 'delay', 0)
        self.queue_many(150)
        # Two sessions of twenty emails a second each
        held = self.held()
        self.assertLess(max(held), 60)
        self.assertGreater(max(held), 4)
        self.assertEqual(self.states(), {'sent': 150})

    def test_size(self):
        self.queue_many(12, msg=b'Subject: Large\r\n\r\n' + b'x' * 100000)
        with patch.object(policy.Pace, 'rows', lambda pace: 100), \
                patch.object(sender, 'HELD_SIZE', 250000):
            # The third email is claimed, because there is room for its first
            # bytes
            self.assertEqual(max(self.held()), 3)
        self.assertEqual(self.states(), {'sent': 12})


class LogTestCase(QueueTestCase):
    "What a run logs, on one line each"
    secret = 's3cr3t'

    def setUp(self):
        super().setUp()
        self.records = []
        handler = logging.Handler()
        handler.emit = self.records.append
        logger = logging.getLogger('trytond.modules.email_queue')
        self.addCleanup(logger.setLevel, logger.level)
        self.addCleanup(logger.removeHandler, handler)
        logger.setLevel(logging.DEBUG)
        logger.addHandler(handler)

    def lines(self, level=logging.INFO):
        formatter = logging.Formatter()
        return [
            formatter.format(r) for r in self.records if r.levelno >= level]

    def test_lines(self):
        self.server.replies['rcpt', 550] = '5.1.1 no\x1b[1m such\tuser'
        self.addCleanup(self.server.replies.clear)
        self.queue()
        failed = self.queue('rcpt-550@example.com')
        deferred = self.queue('rcpt-451-4.2.0-try-later@example.com')
        expired = self.queue('old@example.com')
        with self.transaction() as transaction:
            transaction.connection.cursor().execute(
                "UPDATE email_queue SET expires_at = scheduled_at "
                f"WHERE id = {expired}")
        partly = self.queue([
                'jane@example.com', 'rcpt-553-5.7.1-not-you@example.com',
                'rcpt-550@example.com'])
        self.send_all()
        *emails, run = self.lines()
        self.assertRegex(
            run, r'^sender \S+: 1 sent, 3 failed, 1 deferred in \d+\.\d s, '
            r'\d+\.\d messages/s$')
        self.assertEqual(len(emails), 4)
        for id_, words in [
                (failed, r'failed: refused \| 550 5\.1\.1 no \[1m such user$'),
                (deferred, r'deferred until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d: '
                    r'deferred \| 451 4\.2\.0 try later$'),
                (expired, 'failed: expired$'),
                (partly, r'failed: refused \| '
                    r'delivered to 1 of 3 recipients \| '
                    r'rcpt-553-\S+ 553 5\.7\.1 not you \| '
                    r'rcpt-550@example.com 550 5\.1\.1 no \[1m such user$'),
                ]:
            with self.subTest(words):
                line, = [e for e in emails if e.startswith(f'email {id_} ')]
                self.assertRegex(line, words)
        for line in self.lines(logging.DEBUG):
            self.assertTrue(line.isprintable(), line)
            self.assertNotIn('Hello', line)

    def test_nothing_to_do(self):
        self.send_all()
        self.assertEqual(self.lines(), [])

    def test_error_of_a_row(self):
        "Test that recorded texts can be stored by any database"
        def failing(row):
            if row.id == id_:
                raise ValueError("a\0b\ud800\nc")
            return mail(row)

        mail = handover._mail
        id_, good = self.queue(), self.queue('b@example.com')
        with patch.object(handover, '_mail', failing):
            self.send_all()
        self.assertEqual(
            self.read(id_, 'state', 'error'), ['failed', "ValueError: a b? c"])
        self.assertEqual(self.read(good, 'state'), 'sent')

    def test_credentials(self):
        "Test that neither log nor error nor row has the login, at any level"
        with Server(auth=('jane', 'another')) as refusing, \
                Server(auth=('jane', self.secret)) as good:
            for port, script, words in [
                    (refusing.port, {}, "535"),
                    (good.port, {'greeting': 'close'}, "closed"),
                    (good.port, {'auth': '535 5.7.8 no'}, "535"),
                    (good.port, {'mail': '530 5.7.0 no'}, "530"),
                    (good.port, {'rcpt': '554 5.7.1 denied'}, "554"),
                    (f'{good.port}?timeout={self.secret}', {}, "ValueError"),
                    ('no-port', {}, "ValueError"),
                    ]:
                uri = f'smtp://jane:{self.secret}@127.0.0.1:{port}'
                with self.subTest(port=port, script=script), \
                        configured('email', uri=uri):
                    self.clear()
                    self.records.clear()
                    self.queue_many(12)
                    good.script.clear()
                    good.script.update(script)
                    with self.assertRaisesRegex(
                            EmailQueueError, words) as raised:
                        self.send_all()
                    self.assertEqual(self.states(), {'outbox': 12})
                    self.assertTrue(self.records)
                    for text in [
                            str(raised.exception), str(self.rows('error')),
                            *self.lines(logging.DEBUG)]:
                        self.assertNotIn(self.secret, text)


del QueueTestCase
