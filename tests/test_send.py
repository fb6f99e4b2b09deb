# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What becomes of the rows: the queue and a real server, one run at a time."""
import datetime as dt
import os
import shutil
import smtplib
import tempfile
import unittest
from unittest.mock import patch

from trytond.exceptions import UserError
from trytond.pool import Pool
from trytond.tests.test_tryton import DB_NAME
from trytond.transaction import Transaction

from ..exceptions import EmailQueueError
from ..replies import SERVER
from .smtpd import Server, make_certificates
from .tools import MESSAGE, QueueTestCase, configured

# recipients, state, attempts, what is accepted, whose words are in the error
OUTCOMES = [
    ('jane', 'sent', 1, ['jane'], None),
    ('rcpt-550', 'failed', 1, [], '^550 5.1.1 '),
    ('rcpt-550-unknown-user', 'failed', 1, [], '^550 unknown user'),
    # Suspects, because nothing was accepted since
    ('rcpt-554-5.7.1-denied', 'outbox', 0, [], '^554 5.7.1 '),
    ('data-554', 'outbox', 0, [], '^554 5.7.1 '),
    ('dot-554', 'outbox', 0, [], '^554 5.7.1 '),
    ('rcpt-450', 'outbox', 1, [], '^450 4.7.1 '),
    ('data-451', 'outbox', 1, [], '^451 4.7.1 '),
    ('dot-451', 'outbox', 1, [], '^451 4.7.1 '),
    ('jane rcpt-550', 'failed', 1, ['jane'],
        '^rcpt-550@example.com 550 '),
    ('jane rcpt-450', 'outbox', 1, ['jane'], '^rcpt-450@example.com 450 '),
    ('jane rcpt-550 rcpt-450', 'outbox', 1, ['jane'],
        '^rcpt-450@example.com 450 '),
    ('rcpt-550 rcpt-553', 'failed', 1, [],
        '^rcpt-550@example.com 550 .*\nrcpt-553@example.com 553 '),
    ('rcpt-421', 'outbox', 0, [], '^421 '),
    ('dot-421', 'outbox', 0, [], '^421 '),
    ('rcpt-451-4.7.500', 'outbox', 0, [], '^451 4.7.500'),
    ('rcpt-550-5.4.5', 'outbox', 0, [], '^550 5.4.5'),
    ('dot-452-4.3.1', 'outbox', 0, [], '^452 4.3.1'),
    ('data-close', 'outbox', 1, [], 'closed'),
    ('rcpt-hang', 'outbox', 1, [], 'timed out'),
    ('dot-close', 'outbox', 1, [], 'closed$'),
    ('dot-garbage', 'outbox', 1, [], '^not an answer'),
    ]
SENDERS = [
    ('mail-550', 'outbox', 0, '^550 '),
    ('mail-451', 'outbox', 0, '^451 '),
    ('mail-530', 'outbox', 0, '^530 '),
    ]


def addresses(names):
    return [f'{name}@example.com' for name in names.split()]


class OutcomesTestCase(QueueTestCase):
    "Test every row of the table of outcomes, by a server with PIPELINING"
    timeout = 2

    def test_recipients(self):
        for names, state, attempts, accepted, error in OUTCOMES:
            with self.subTest(recipients=names):
                self.clear()
                id_ = self.queue(addresses(names))
                self.run_in_peace()
                self.check(id_, state, attempts, error)
                self.assertEqual(
                    [m.to_addrs for m in self.server.received],
                    [tuple(addresses(a)) for a in accepted])
                self.assertEqual(self.server.violations, [])

    def test_senders(self):
        for name, state, attempts, error in SENDERS:
            with self.subTest(sender=name):
                self.clear()
                id_ = self.queue(from_addr=f'{name}@example.com')
                self.run_in_peace()
                self.check(id_, state, attempts, error)
                self.assertFalse(self.server.received)

    def run_in_peace(self):
        try:
            self.send_all()
        except EmailQueueError:
            pass

    def check(self, id_, state, attempts, error):
        found = self.read(
            id_, 'state', 'attempts', 'error', 'first_attempt',
            'suspect_since')
        self.assertEqual(found[:2], [state, attempts])
        if error:
            self.assertRegex(found[2], error)
        else:
            self.assertIsNone(found[2])
        self.assertEqual(bool(found[3]), bool(attempts or found[4]))


class StepByStepTestCase(OutcomesTestCase):
    "Test the same by a server without PIPELINING"
    server_options = {'pipelining': False}


class SendTestCase(QueueTestCase):
    timeout = 2

    def test_one_bad_message_stops_no_other(self):
        bad = [
            self.queue(f'{name}@example.com') for name in [
                'rcpt-550', 'dot-554', 'dot-close', 'rcpt-hang',
                'data-garbage']]
        broken = self.queue()
        self.write(broken, msg=None)
        injected = self.queue()
        self.write(injected, to_addrs='a@example.com>\x01 RCPT')
        good = self.queue()
        self.send_all()
        self.assertEqual(self.read(good, 'state'), 'sent')
        self.assertEqual(
            [self.read(i, 'state') for i in [broken, injected]],
            ['failed', 'failed'])
        self.assertEqual(
            {self.read(i, 'state') for i in bad}, {'outbox', 'failed'})
        self.assertEqual(len(self.server.received), 1)

    def test_sent(self):
        before = dt.datetime.now()
        id_ = self.queue()
        self.send_all()
        state, sent_at, attempts, sender = self.read(
            id_, 'state', 'sent_at', 'attempts', 'slot')
        self.assertEqual((state, attempts, sender), ('sent', 1, None))
        self.assertTrue(before <= sent_at <= dt.datetime.now())
        self.send_all()
        self.assertEqual(len(self.server.received), 1)

    def test_some_accepted_some_refused_some_deferred(self):
        id_ = self.queue(addresses('jane rcpt-550 rcpt-450x1 john'))
        self.send_all()
        self.assertEqual(
            self.read(id_, 'state', 'accepted', 'refused'), [
                'outbox', 'jane@example.com\njohn@example.com',
                'rcpt-550@example.com 550 5.1.1 <rcpt-550@example.com> '
                'no such user'])
        self.write(id_, scheduled_at=dt.datetime.now())
        self.send_all()
        state, error, attempts = self.read(
            id_, 'state', 'error', 'attempts')
        self.assertEqual((state, attempts), ('failed', 2))
        self.assertRegex(error, '^rcpt-550@example.com 550 ')
        self.assertRegex(
            self.read(id_, 'outcome'),
            "^Refused, delivered to 3 of 4 recipients: rcpt-550")
        self.assertEqual(
            [m.to_addrs for m in self.server.received],
            [('jane@example.com', 'john@example.com'),
                ('rcpt-450x1@example.com',)])
        first, second = self.server.received
        self.assertEqual(first.message_id, second.message_id)

    def test_retry_goes_to_the_refused_only(self):
        id_ = self.queue(addresses('jane rcpt-550x1'))
        self.send_all()
        self.assertEqual(self.read(id_, 'state'), 'failed')
        self.press('retry', id_)
        self.send_all()
        self.assertEqual(
            self.read(id_, 'state', 'attempts'), ['sent', 1])
        self.assertEqual(
            [m.to_addrs for m in self.server.received],
            [('jane@example.com',), ('rcpt-550x1@example.com',)])

    def test_back_off(self):
        id_ = self.queue('rcpt-450@example.com')
        for attempt, minutes in enumerate([1, 2, 4], 1):
            before = dt.datetime.now()
            self.write(id_, scheduled_at=before)
            self.send_all()
            attempts, due = self.read(id_, 'attempts', 'scheduled_at')
            self.assertEqual(attempts, attempt)
            delay = (due - before).total_seconds() / 60
            self.assertTrue(minutes * .74 < delay < minutes * 1.3, delay)

    def test_gives_up(self):
        id_ = self.queue('rcpt-450@example.com')
        with configured(max_attempts=1):
            self.send_all()
        self.assertEqual(self.read(id_, 'state'), 'failed')
        self.assertRegex(self.read(id_, 'outcome'), "^Given up: 450 ")

    def test_expired(self):
        id_ = self.queue()
        self.write(
            id_, expires_at=dt.datetime.now() - dt.timedelta(seconds=1))
        self.send_all()
        self.assertEqual(
            self.read(id_, 'state', 'reason', 'error', 'attempts'),
            ['failed', 'expired', None, 0])
        self.assertFalse(self.server.received)

    def test_uncertain_twice_fails(self):
        id_ = self.queue('dot-close@example.com')
        self.send_all()
        due, uncertain = self.read(id_, 'scheduled_at', 'uncertain')
        self.assertTrue(uncertain)
        self.assertGreater(
            due, dt.datetime.now() + dt.timedelta(minutes=14))
        self.write(id_, scheduled_at=dt.datetime.now())
        self.send_all()
        self.assertEqual(
            self.read(id_, 'state', 'uncertain'), ['failed', True])

    def test_uncertain_hold(self):
        id_ = self.queue('dot-close@example.com')
        with configured(uncertain='fail'):
            self.send_all()
        self.assertEqual(
            self.read(id_, 'state', 'reason'), ['failed', 'uncertain'])

    def test_many_recipients(self):
        names = [f'r{i}@example.com' for i in range(120)]
        self.queue(names)
        self.send_all()
        self.assertEqual(
            [len(m.to_addrs) for m in self.server.received], [50, 50, 20])

    def test_a_message_that_its_senders_died_with(self):
        killer, good, dead = self.queue(), self.queue(), self.queue()
        self.write(killer, crashes=3)
        self.write(dead, crashes=9, state='sending', slot=99,
            write_date=dt.datetime.now() - dt.timedelta(minutes=5))
        with self.transaction():
            # The ORM itself does not write the date
            t = Pool().get('email.queue').__table__()
            Transaction().connection.cursor().execute(*t.update(
                    [t.write_date],
                    [dt.datetime.now() - dt.timedelta(minutes=5)]))
        self.send_all()
        self.assertEqual(
            self.read(dead, 'state', 'reason', 'error', 'crashes'),
            ['failed', 'died', None, 10])
        self.assertEqual(
            [self.read(i, 'state') for i in [killer, good]],
            ['sent', 'sent'])
        self.assertEqual(
            [self.read(i, 'message_id') for i in [good, killer]],
            [m.message_id for m in self.server.received])

    def test_ten_alike_are_the_servers_fault(self):
        ids = [
            self.queue(f'rcpt-554-5.7.1.{i}@example.com') for i in range(12)]
        with self.assertRaisesRegex(EmailQueueError, '554 5.7.1'):
            self.send_all()
        for id_ in ids:
            self.assertEqual(
                self.read(id_, 'state', 'attempts'), ['outbox', 0])

    def test_alike_among_good_ones_are_their_own(self):
        self.queue()
        ids = [
            self.queue(f'rcpt-554-5.7.1.{i}@example.com') for i in range(9)]
        good = self.queue()
        with configured(connections=1):
            self.send_all()
        self.assertEqual(self.read(good, 'state'), 'sent')
        self.assertEqual({self.read(i, 'state') for i in ids}, {'failed'})

    def test_a_limit_that_refuses_all_is_the_servers_fault(self):
        ids = [self.queue(f'r{i}@example.com') for i in range(12)]
        with patch.object(self.server, 'size', 100), \
                self.assertRaisesRegex(
                    EmailQueueError,
                    "Larger than the server takes: SIZE 100"):
            self.send_all()
        self.assertEqual(
            {tuple(self.read(i, 'state', 'attempts', 'refused')) for i in ids},
            {('outbox', 0, None)})
        self.assertFalse(self.server.received)

    def test_a_limit_that_refuses_one_is_its_own(self):
        self.queue()
        large = [
            self.queue(msg=MESSAGE + b'x' * 3000) for _ in range(9)]
        good = self.queue()
        with patch.object(self.server, 'size', 2000), \
                configured(connections=1):
            self.send_all()
        self.assertEqual(self.read(good, 'state'), 'sent')
        self.assertEqual({self.read(i, 'state') for i in large}, {'failed'})

    def test_unknown_users_are_never_the_servers_fault(self):
        ids = [self.queue(f'rcpt-550.{i}@example.com') for i in range(30)]
        self.send_all()
        self.assertEqual({self.read(i, 'state') for i in ids}, {'failed'})

    def test_finished_hook(self):
        EmailQueue = Pool(DB_NAME).get('email.queue')
        seen = []

        def finished(emails):
            seen.extend((e.id, e.state) for e in emails)
            raise Exception("The hook is broken")

        id_ = self.queue()
        finished_, EmailQueue.finished = EmailQueue.finished, finished
        try:
            with self.assertLogs(level='ERROR'):
                self.send_all()
        finally:
            EmailQueue.finished = finished_
        self.assertEqual(seen, [(id_, 'sent')])
        self.assertEqual(self.read(id_, 'state'), 'sent')

    def test_verdict_can_be_extended(self):
        EmailQueue = Pool(DB_NAME).get('email.queue')
        verdict = EmailQueue.verdict
        EmailQueue.verdict = lambda step, reply: SERVER
        try:
            id_ = self.queue('rcpt-550@example.com')
            with self.assertRaises(EmailQueueError):
                self.send_all()
        finally:
            EmailQueue.verdict = verdict
        self.assertEqual(
            self.read(id_, 'state', 'attempts'), ['outbox', 0])

    def test_settings(self):
        self.queue()
        for name, value in [
                ('senders', 'many'), ('senders', '0'), ('connections', '-1'),
                ('uncertain', 'maybe'), ('rate', 'nan')]:
            with self.subTest(name=name, value=value), \
                    configured(**{name: value}), \
                    self.assertRaisesRegex(UserError, f'{value}.*{name}'):
                self.send_all()

    def press(self, button, *ids):
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            getattr(EmailQueue, button)(EmailQueue.browse(ids))


class SendOneTestCase(QueueTestCase):
    "EmailQueue.send"

    def send(self, id_, *args):
        with self.transaction():
            Pool().get('email.queue')(id_).send(*args)

    def test_now_whatever_the_time(self):
        id_ = self.queue(scheduled_at=dt.timedelta(days=1))
        self.send(id_)
        self.assertEqual(self.read(id_, 'state', 'attempts'), ['sent', 1])

    def test_by_a_server(self):
        id_ = self.queue()
        with Server() as other:
            with smtplib.SMTP('127.0.0.1', other.port) as server:
                self.send(id_, server)
                server.noop()
            self.assertEqual(len(other.received), 1)
        self.assertEqual(self.read(id_, 'state'), 'sent')

    def test_refused(self):
        id_ = self.queue('rcpt-550@example.com')
        with self.assertRaisesRegex(EmailQueueError, '550 5.1.1'):
            self.send(id_)
        self.assertEqual(self.read(id_, 'state'), 'failed')

    def test_expired(self):
        id_ = self.queue(expires_at=dt.timedelta(days=1))
        self.write(id_, expires_at=dt.datetime(2020, 1, 1))
        with self.assertRaisesRegex(EmailQueueError, 'Expired'):
            self.send(id_)

    def test_not_in_the_outbox(self):
        id_ = self.queue()
        self.send(id_)
        with self.assertRaisesRegex(EmailQueueError, 'outbox'):
            self.send(id_)
        self.assertEqual(len(self.server.received), 1)

    def test_not_committed(self):
        if DB_NAME == ':memory:':
            self.skipTest("all transactions share one connection")
        with self.transaction() as transaction:
            email, = Pool().get('email.queue').queue_mail(
                'shop@example.com', 'jane@example.com', MESSAGE)
            with self.assertRaisesRegex(EmailQueueError, 'committed'):
                email.send()
            transaction.rollback()

    def test_the_record_is_read_anew(self):
        id_ = self.queue()
        with self.transaction():
            email = Pool().get('email.queue')(id_)
            self.assertEqual(email.state, 'outbox')
            if DB_NAME == ':memory:':
                email.send()
                self.assertEqual(Pool().get('email.queue')(id_).state, 'sent')


class SendTroubleTestCase(QueueTestCase):
    "Trouble with the server, through the scheduled job"
    timeout = 2

    def errors(self):
        with self.transaction(readonly=True):
            Error = Pool().get('ir.error')
            return [(e.state, e.message) for e in Error.search([])]

    def troubled(self, heal, words, count=12, server=None):
        server = server or self.server
        ids = self.queue_many(count)
        for _ in range(4):
            self.write(*ids, scheduled_at=dt.datetime.now())
            self.run_cron()
        self.assertEqual(
            self.rows('state', 'attempts', 'crashes'),
            [('outbox', 0, 0)] * count)
        (state, message), = self.errors()
        self.assertEqual(state, 'open')
        self.assertRegex(message, words)
        heal()
        self.write(*ids, scheduled_at=dt.datetime.now())
        self.run_cron()
        self.assertEqual(self.states(), {'sent': count})
        self.assertEqual(len(server.received), count)

    def test_unreachable(self):
        self.server.stop()
        try:
            self.troubled(self.server.start, "Connection refused")
        except BaseException:
            self.server.start()
            raise

    def test_script(self):
        for script, words in [
                ({'greeting': '554 5.3.2 no'}, '554 5.3.2'),
                ({'greeting': '421 4.3.2 no'}, '421 4.3.2'),
                ({'greeting': 'close'}, 'closed'),
                ({'greeting': 'hang'}, 'timed out'),
                ({'ehlo': '421 4.3.2 no'}, '421 4.3.2 no'),
                ({'mail': '530 5.7.0 Authentication required'}, '530'),
                ({'rcpt': '554 5.7.1 Relay access denied'}, '554 5.7.1'),
                ({'dot': '550 5.7.1 blocked'}, '550 5.7.1'),
                ({'dot': '554 No thanks'}, 'No thanks'),
                ({'rcpt': '451 4.7.1 Greylisted'}, '451 4.7.1 Greylisted'),
                ({'data': 'close'}, 'closed'),
                ]:
            with self.subTest(script=script):
                self.clear()
                self.server.script.update(script)
                try:
                    self.troubled(self.server.script.clear, words)
                finally:
                    self.server.script.clear()

    def test_pause(self):
        for script, words in [
                ({'mail': '451 4.3.0 database down'}, '451 4.3.0'),
                ({'dot': '451 4.7.500 server busy'}, '451 4.7.500'),
                ]:
            with self.subTest(script=script), configured(run_time=1):
                self.clear()
                self.server.script.update(script)
                try:
                    self.troubled(self.server.script.clear, words, count=1)
                finally:
                    self.server.script.clear()

    def test_login_fails(self):
        with Server(auth=('jane', 'secret')) as server:
            good = f'smtp://jane:secret@127.0.0.1:{server.port}'
            bad = f'smtp://jane:s3cr3t@127.0.0.1:{server.port}'
            id_ = self.queue()
            with configured('email', uri=bad):
                for _ in range(4):
                    with self.assertLogs(level='DEBUG') as logs:
                        self.run_cron()
                    self.assertNotIn('s3cr3t', '\n'.join(logs.output))
            self.assertEqual(
                self.read(id_, 'state', 'attempts'), ['outbox', 0])
            (_, message), = self.errors()
            self.assertRegex(message, '535')
            self.assertNotIn('s3cr3t', message)
            with configured('email', uri=good):
                self.run_cron()
            self.assertEqual(self.read(id_, 'state'), 'sent')

    def test_login_fails_after_good_messages(self):
        self.queue_many(105)
        with Server(
                auth=('jane', 'secret'),
                fail_after={100: {'auth': '535 5.7.8 no'}}) as server, \
                configured('email', uri=server.uri), \
                configured(connections=1, messages_per_connection=100):
            for _ in range(4):
                self.run_cron()
                self.assertEqual(
                    self.rows('state', 'attempts'),
                    [('sent', 1)] * 100 + [('outbox', 0)] * 5)
            (_, message), = self.errors()
            self.assertRegex(message, '535')
            server.script.clear()
            self.end_wait_for_login()
            self.run_cron()
            self.assertEqual(self.states(), {'sent': 105})
            self.assertEqual(len(server.received), 105)

    @unittest.skipUnless(shutil.which('openssl'), "it makes the certificates")
    def test_certificate(self):
        def heal():
            server.stop()
            server.certfile, server.keyfile = certificates.good
            server.start()

        with tempfile.TemporaryDirectory() as directory:
            certificates = make_certificates(directory)
            certfile, keyfile = certificates.expired
            for tls in ['starttls', 'smtps']:
                with self.subTest(tls=tls), \
                        patch.dict(
                            os.environ, SSL_CERT_FILE=certificates.ca), \
                        Server(
                            tls=tls, auth=('jane', 's3cr3t'),
                            certfile=certfile, keyfile=keyfile) as server, \
                        configured('email', uri=server.uri):
                    self.clear()
                    self.troubled(heal, "expired", server=server)


del QueueTestCase
