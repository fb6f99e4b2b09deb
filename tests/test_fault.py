# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Whose fault a refusal is, remembered over runs, processes and sessions."""
import datetime as dt
import time

from sql import Column, Table

from trytond.pool import Pool
from trytond.transaction import Transaction

from .. import policy
from ..exceptions import EmailQueueError
from .processes import ProcessTestCase, Senders
from .smtpd import Server
from .tools import QueueTestCase, configured

DENIED = {'rcpt': '554 5.7.1 Relay access denied'}
QUOTA = {
    'dot': '554 5.2.0 STOREDRV.Submission.Exception:'
    'SubmissionQuotaExceededException; 10000 in 24 hours'}
TIMES = {
    'email_queue': [
        'scheduled_at', 'first_attempt', 'suspect_since', 'sent_at'],
    'email_queue_server': ['next_login', 'more_sessions', 'accepted_at'],
    }


class FaultTestCase(QueueTestCase):

    def setUp(self):
        super().setUp()
        self.addCleanup(self.server.script.clear)

    def later(self, minutes):
        "Let so much time pass for everything that is stored"
        delta = dt.timedelta(minutes=minutes)
        for table, names in TIMES.items():
            t = Table(table)
            columns = [Column(t, name) for name in names]
            with self.transaction() as transaction:
                cursor = transaction.connection.cursor()
                cursor.execute(*t.select(t.id, *columns))
                for id_, *times in cursor.fetchall():
                    cursor.execute(*t.update(
                            columns, [at and at - delta for at in times],
                            where=t.id == id_))

    def run_in_trouble(self, words):
        with self.assertRaisesRegex(EmailQueueError, words):
            self.send_all()

    def errors(self):
        with self.transaction(readonly=True):
            return [e.message for e in Pool().get('ir.error').search([])]

    def due_in(self, id_):
        "Return in how many minutes an email is due"
        due = self.read(id_, 'scheduled_at') - dt.datetime.now()
        return round(due.total_seconds() / 60)


class SuspectTestCase(FaultTestCase):
    "A site with few emails: one run a minute or an hour"

    def test_three_and_nothing_accepted(self):
        for script, words in [
                (DENIED, '554 5.7.1 Relay access denied'),
                ({'mail': '550 5.7.1 Sender rejected'}, '550 5.7.1'),
                ({'data': '554 5.7.1 no'}, '554 5.7.1 no'),
                ({'dot': '550 5.7.1 blocked'}, 'blocked'),
                ({'dot': '451 4.7.1 come later'}, '451 4.7.1 come later'),
                (QUOTA, 'SubmissionQuotaExceeded'),
                ]:
            for count in [3, 60] if script is DENIED else [3]:
                with self.subTest(script=script, count=count):
                    self.clear()
                    self.server.script.update(script)
                    self.queue_many(count)
                    for _ in range(8):
                        self.run_cron()
                        self.later(12)
                    self.assertEqual(self.states(), {'outbox': count})
                    self.assertEqual(
                        {a for a, in self.rows('attempts')}, {0})
                    message, = self.errors()
                    self.assertIn(words, message)
                    self.server.script.clear()
                    self.later(60)
                    self.run_cron()
                    self.assertEqual(self.states(), {'sent': count})
                    self.assertEqual(len(self.server.received), count)

    def test_one_an_hour_through_the_quota_of_a_day(self):
        self.server.script.update(QUOTA)
        for _ in range(24):
            self.queue()
            self.run_cron()
            self.later(60)
        self.assertEqual(self.states(), {'outbox': 24})
        message, = self.errors()
        self.assertIn('10000 in 24 hours', message)
        self.server.script.clear()
        self.run_cron()
        self.assertEqual(self.states(), {'sent': 24})

    def test_alone(self):
        "Test the waits of a suspect, and its end after an hour"
        self.server.script.update(DENIED)
        id_ = self.queue()
        for minutes in [5, 10, 20, 40]:
            self.send_all()
            self.assertEqual(
                self.read(id_, 'state', 'attempts', 'error'),
                ['outbox', 0, '554 5.7.1 Relay access denied'])
            self.assertTrue(self.read(id_, 'first_attempt'))
            self.assertEqual(self.due_in(id_), minutes)
            self.later(minutes + .1)
        self.send_all()
        self.assertEqual(
            self.read(id_, 'state', 'attempts', 'error', 'suspect'),
            ['failed', 1, '554 5.7.1 Relay access denied', None])

    def test_accepted_in_another_run(self):
        self.server.script.update(DENIED)
        bad = self.queue()
        self.send_all()
        self.server.script.clear()
        self.queue()
        self.send_all()
        self.later(5)
        self.server.script.update(DENIED)
        self.send_all()
        self.assertEqual(
            self.read(bad, 'state', 'attempts'), ['failed', 1])
        self.assertFalse(self.errors())

    def test_accepted_before_is_not_since(self):
        self.queue()
        self.send_all()
        self.later(1)
        self.server.script.update(DENIED)
        bad = self.queue()
        self.send_all()
        self.later(5)
        self.send_all()
        self.assertEqual(
            self.read(bad, 'state', 'attempts'), ['outbox', 0])

    def test_accepted_for_some(self):
        "Test that an email accepted for only one recipient counts, too"
        bad = self.queue('rcpt-554-5.7.1-denied@example.com')
        self.send_all()
        self.queue('jane@example.com, rcpt-550-5.1.1@example.com')
        self.send_all()
        self.later(5)
        self.send_all()
        self.assertEqual(self.read(bad, 'state'), 'failed')

    def test_accepted_for_another_server(self):
        with Server() as other, configured(uri_other=other.uri):
            self.server.script.update(DENIED)
            bad = self.queue()
            self.send_all()
            self.queue(server='other')
            self.send_all()
            self.later(5)
            self.send_all()
            self.assertEqual(self.read(bad, 'state'), 'outbox')

    def test_settled_by_the_next(self):
        "Test that no second try is needed if the next email is accepted"
        bad = self.queue('rcpt-554-5.7.1-denied@example.com')
        good = self.queue()
        with configured(connections=1):
            self.send_all()
        self.assertEqual(
            [self.read(i, 'state', 'attempts') for i in [bad, good]],
            [['failed', 1], ['sent', 1]])

    def test_alike_in_two_runs(self):
        first = self.queue('rcpt-554-5.7.1-denied.1@example.com')
        self.send_all()
        self.later(1)
        second = self.queue('rcpt-554-5.7.1-denied.2@example.com')
        self.run_in_trouble('554 5.7.1 denied')
        for id_ in [first, second]:
            self.assertEqual(
                self.read(id_, 'state', 'attempts'), ['outbox', 0])

    def test_refused_in_other_words(self):
        for i in range(4):
            self.queue(f'rcpt-554-5.7.{i}-no@example.com')
        self.send_all()
        self.assertEqual(self.states(), {'outbox': 4})

    def test_gives_up(self):
        self.server.script.update(DENIED)
        self.queue_many(2)
        self.run_in_trouble('denied')
        self.later(5 * 24 * 60)
        self.run_in_trouble('denied')
        self.assertEqual(
            self.rows('state', 'reason', 'error'),
            [('failed', 'gave_up', '554 5.7.1 Relay access denied')] * 2)

    def test_deferred_alone(self):
        "Test that an email that is refused for now does not fail as a suspect"
        self.server.script['rcpt'] = '451 4.7.1 Greylisted'
        id_ = self.queue()
        for attempts in [1, 2, 3]:
            self.send_all()
            self.assertEqual(
                self.read(id_, 'state', 'attempts'), ['outbox', attempts])
            self.later(60)

    def test_deferred_alike_in_two_runs(self):
        self.server.script['rcpt'] = '451 4.7.1 down'
        self.queue()
        self.send_all()
        second = self.queue()
        self.run_in_trouble('451 4.7.1 down')
        self.assertEqual(
            self.read(second, 'state', 'attempts'), ['outbox', 0])

    def test_dead_addresses_without_status(self):
        self.server.enhanced = False
        self.addCleanup(setattr, self.server, 'enhanced', True)
        for words in [
                'Unknown user', 'No such user here', 'Unrouteable address',
                'sorry, no mailbox here by that name. (#5.1.1)',
                'Requested action not taken: mailbox unavailable']:
            with self.subTest(words):
                self.clear()
                self.server.script['rcpt'] = f'550 {words}'
                self.queue_many(12)
                self.send_all()
                self.assertEqual(self.states(), {'failed': 12})

    def test_retry(self):
        "Test that Retry by a person starts from the beginning"
        self.server.script.update(DENIED)
        id_ = self.queue()
        self.send_all()
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            EmailQueue.cancel([EmailQueue(id_)])
            EmailQueue.retry([EmailQueue(id_)])
        self.assertEqual(
            self.read(id_, 'suspect', 'suspect_since'), [None, None])

    def test_send(self):
        "Test the rule for one email that is sent by itself"
        self.server.script.update(DENIED)
        ids = self.queue_many(2)
        for id_ in ids:
            with self.assertRaisesRegex(EmailQueueError, 'denied'), \
                    self.transaction():
                Pool().get('email.queue')(id_).send()
        self.assertEqual(self.states(), {'outbox': 2})
        self.server.script.clear()
        self.queue()
        self.send_all()
        self.server.script.update(DENIED)
        with self.assertRaisesRegex(EmailQueueError, 'denied'), \
                self.transaction():
            Pool().get('email.queue')(ids[0]).send()
        self.assertEqual(self.read(ids[0], 'state'), 'failed')

    def test_words_are_shown_whole_and_once(self):
        numbers = iter(range(10000, 20000))
        self.server.script['rcpt'] = lambda session: (
            f'554 5.7.1 AADSTS7000222 denied, queue {next(numbers)}')
        self.queue_many(8)
        for _ in range(6):
            self.run_cron()
        message, = self.errors()
        self.assertIn('554 5.7.1 AADSTS7000222 denied, queue 10', message)

    def test_message_removed(self):
        "Test that what the server did not decide is the email's own fault"
        self.queue_many(3)
        t = Table('email_queue')
        with self.transaction() as transaction:
            transaction.connection.cursor().execute(
                *t.update([t.msg], [None]))
        self.send_all()
        self.assertEqual(
            self.rows('state', 'reason', 'error'),
            [('failed', 'no_message', None)] * 3)

    def test_erase(self):
        """Test that an erased address is also erased from what is known of the
        server
        """
        address = 'jane@example.com'
        self.server.script['rcpt'] = f'554 5.7.1 <{address}>: denied'
        self.queue_many(2)
        self.run_cron()
        message, = self.errors()
        self.assertIn(address, message)
        with self.transaction():
            Pool().get('email.queue').erase_address(address)
        message, = self.errors()
        self.assertNotIn(address, message)
        self.assertIn('554 5.7.1', message)
        with self.transaction(readonly=True) as transaction:
            cursor = transaction.connection.cursor()
            cursor.execute('SELECT trouble FROM email_queue_server')
            (trouble,), = cursor.fetchall()
        self.assertNotIn(address, trouble)


class BusyTestCase(FaultTestCase):
    "A run that has many emails to send"

    def test_bad_ones_among_good_ones(self):
        "Test that a few bad emails after each other do not end a run"
        for i in range(200):
            if i % 20 in {7, 8, 9}:
                self.queue(f'dot-554-5.7.1-spam.{i}@example.com')
            else:
                self.queue(f'r{i}@example.com')
        self.send_all()
        self.assertEqual(self.states(), {'sent': 170, 'failed': 30})
        self.assertFalse(self.errors())

    def test_refuses_all_after_some(self):
        self.server.fail_after = {20: DENIED}
        self.server.count = 0
        self.addCleanup(setattr, self.server, 'fail_after', {})
        self.queue_many(60)
        with configured(connections=1):
            self.run_in_trouble('denied')
        self.assertEqual(self.states(), {'sent': 20, 'outbox': 40})
        self.assertEqual(
            {a for a, s in self.rows('attempts', 'state') if s == 'outbox'},
            {0})


class RecipientsTestCase(FaultTestCase):

    def test_too_many(self):
        "Test that recipients who were too many follow at once"
        for reply in [
                '452 4.5.3 Too many recipients', '550 5.5.3 no more',
                '554 5.5.3 no more', '451 4.5.3 no more', '452 enough',
                '550 Too many recipients', '450 too many recipients',
                '552 Too many recipients']:
            with self.subTest(reply):
                self.clear()
                self.server.script = lambda session, step: (
                    reply if step == 'rcpt' and len(session.recipients) >= 3
                    else None)
                self.addCleanup(setattr, self.server, 'script', {})
                id_ = self.queue([f'r{i}@example.com' for i in range(10)])
                self.send_all()
                self.assertEqual(
                    self.read(id_, 'state', 'attempts', 'error'),
                    ['sent', 1, None])
                self.assertEqual(
                    sorted(len(m.to_addrs) for m in self.server.received),
                    [1, 3, 3, 3])

    def test_none_taken(self):
        "Test that a server that takes not even one recipient causes no loop"
        self.server.script['rcpt'] = '550 5.5.3 Too many recipients'
        id_ = self.queue(['a@example.com', 'b@example.com'])
        self.send_all()
        self.assertEqual(self.read(id_, 'state', 'attempts'), ['outbox', 0])


class FaultSessionTestCase(FaultTestCase):

    def only(self, count, step, reply):
        "Let the server grant so many sessions at once"
        def script(session, at):
            if at != step:
                return None
            if session.messages or session in granted:
                return None
            granted.intersection_update(self.server._live)
            if len(granted) < count:
                granted.add(session)
                return None
            self.refused += 1
            return reply

        granted = set()
        self.refused = 0
        self.server.script = script
        self.addCleanup(setattr, self.server, 'script', {})

    def test_fewer_than_configured(self):
        for step, reply in [
                ('greeting', '421 4.7.0 too many connections'),
                ('greeting', '554 5.7.0 only one'),
                ('greeting', 'close'),
                ('ehlo', '421 4.3.2 too many concurrent sessions'),
                ('mail', '421 4.7.0 too many sessions'),
                ('mail', '451 4.7.1 too many concurrent connections'),
                ]:
            for connections in [2, 4]:
                with self.subTest(
                        step=step, reply=reply, connections=connections), \
                        configured(
                            connections=connections,
                            messages_per_connection=10):
                    self.clear()
                    self.only(1, step, reply)
                    self.queue_many(70)
                    self.send_all()
                    self.assertEqual(self.states(), {'sent': 70})
                    self.assertEqual(
                        set(self.rows('attempts', 'error')), {(1, None)})
                    self.assertEqual(len(self.server.received), 70)
                    self.assertLess(self.refused, connections)
                    # The next run knows the number
                    self.only(1, step, reply)
                    self.queue_many(10)
                    self.send_all()
                    self.assertEqual(self.states(), {'sent': 80})
                    self.assertEqual(self.refused, 0)

    def test_more_are_tried_later(self):
        self.only(1, 'greeting', '421 4.7.0 too many connections')
        self.queue_many(20)
        self.send_all()
        (sessions,), = self.known('sessions')
        self.assertEqual(sessions, 1)
        self.only(4, 'greeting', '421 4.7.0 too many connections')
        self.later(policy.SESSION_SECONDS / 60 + 1)
        self.server.delay = {'dot': .01}
        self.addCleanup(setattr, self.server, 'delay', 0)
        self.queue_many(100)
        self.server.max_open = 0
        self.send_all()
        self.assertEqual(self.server.max_open, 2)
        (sessions,), = self.known('sessions')
        self.assertIsNone(sessions)

    def known(self, *names):
        with self.transaction(readonly=True) as transaction:
            cursor = transaction.connection.cursor()
            cursor.execute(
                f"SELECT {', '.join(names)} FROM email_queue_server")
            return cursor.fetchall()

    def test_no_session_at_all(self):
        self.server.script['greeting'] = '421 4.7.0 too many connections'
        self.queue_many(20)
        self.run_in_trouble('421 4.7.0 too many')
        self.assertEqual(self.states(), {'outbox': 20})

    def test_ended_session(self):
        "Test all ways in which a server says that a session has ended"
        for reply in [
                '451 4.4.2 Timeout', '452 4.4.5 enough',
                '452 4.4.5 Maximum number of messages per session exceeded',
                '450 too many messages in this connection',
                '550 maximum of messages per connection exceeded',
                '554 5.4.2 session limit', '421 4.7.0 bye']:
            for step in ['mail', 'rcpt', 'data', 'dot']:
                if step == 'dot' and reply[:3] == '421':
                    # This answer does not say so
                    continue
                for pipelining in [True] + [False] * (reply[:5] == '451 4'):
                    with self.subTest(
                            reply=reply, step=step, pipelining=pipelining):
                        self.clear()
                        self.server.pipelining = pipelining
                        self.addCleanup(
                            setattr, self.server, 'pipelining', True)
                        self.server.script = lambda session, at: (
                            reply if at == step and session.messages >= 3
                            else None)
                        self.addCleanup(setattr, self.server, 'script', {})
                        self.queue_many(5)
                        with configured(connections=1):
                            self.send_all()
                        self.assertEqual(
                            set(self.rows('state', 'attempts', 'error')),
                            {('sent', 1, None)})
                        self.assertEqual(len(self.server.received), 5)

    def test_the_new_session_says_so_too(self):
        for step in ['mail', 'rcpt', 'data', 'dot']:
            with self.subTest(step):
                self.clear()
                self.server.script = {step: '452 4.4.5 enough per session'}
                self.addCleanup(setattr, self.server, 'script', {})
                self.queue()
                with configured(run_time=1):
                    self.run_in_trouble('452 4.4.5')
                self.assertEqual(
                    self.rows('state', 'attempts'), [('outbox', 0)])

    def test_refused_ehlo(self):
        "Test that the error has the words about the client's name"
        words = '550 5.7.1 localhost is no name for a host'
        for script in [
                {'ehlo': words, 'helo': '503 5.5.1 what?'},
                {'ehlo': words, 'helo': 'close'},
                {'ehlo': '550-5.7.1-localhost-is-no-name-for-a-host-close'}]:
            with self.subTest(script):
                self.clear()
                self.server.script = script
                self.addCleanup(setattr, self.server, 'script', {})
                self.queue()
                self.run_in_trouble('no name for a host')


class FaultThrottleTestCase(FaultTestCase):
    "A server that takes so many messages a second"

    def limit(self, reply, count, seconds=1):
        taken = []
        self.refused = 0

        def script(session, step):
            if step != 'dot':
                return None
            now = time.monotonic()
            taken[:] = [t for t in taken if t > now - seconds]
            if len(taken) < count:
                taken.append(now)
                return None
            self.refused += 1
            return reply

        self.server.script = script
        self.addCleanup(setattr, self.server, 'script', {})

    def test_too_fast(self):
        for reply in [
                '454 Throttling failure: Maximum sending rate exceeded.',
                '432 4.3.2 Concurrent connections limit exceeded',
                '451 4.7.500 Server busy', '450 4.7.1 rate limited']:
            with self.subTest(reply):
                self.clear()
                self.limit(reply, 20)
                self.queue_many(40)
                sessions = self.server.sessions
                self.send_all()
                self.assertEqual(
                    set(self.rows('state', 'attempts', 'error')),
                    {('sent', 1, None)})
                self.assertEqual(len(self.server.received), 40)
                self.assertLessEqual(self.server.sessions - sessions, 2)
                # The rate was found, not tried again and again
                self.assertLess(self.refused, 15)

    def test_remembered(self):
        self.limit('454 4.7.0 too fast', 20)
        self.queue_many(60)
        self.send_all()
        with self.transaction(readonly=True) as transaction:
            cursor = transaction.connection.cursor()
            cursor.execute('SELECT rate FROM email_queue_server')
            (rate,), = cursor.fetchall()
        # A minute: half and about the rate that the server takes in a second
        self.assertGreater(rate, 200)
        self.assertLess(rate, 3000)

    def test_one_message_that_is_never_taken(self):
        """Test that a message that is never taken does not hold up the others
        for long
        """
        self.queue('dot-454-4.7.0-slowly@example.com')
        self.queue_many(100)
        with configured(run_time=20):
            self.send_all()
        self.assertEqual(self.states(), {'sent': 100, 'outbox': 1})

    def test_nothing_taken(self):
        self.server.script['dot'] = '454 4.7.0 Throttling failure'
        self.queue_many(3)
        with configured(run_time=1):
            self.run_in_trouble('454 4.7.0 Throttling')
        self.assertEqual(set(self.rows('state', 'attempts')), {('outbox', 0)})


class LoginTestCase(FaultTestCase):
    server_options = {'auth': ('jane', 'secret')}

    def setUp(self):
        super().setUp()
        self.sessions = set()
        bad = f'smtp://jane:s3cr3t@127.0.0.1:{self.server.port}'
        self.enter_here(configured('email', uri=bad))
        self.server.script = self.count
        self.addCleanup(setattr, self.server, 'script', {})

    def count(self, session, step):
        if step == 'auth':
            # smtplib tries each mechanism
            self.sessions.add(session)

    @property
    def logins(self):
        return len(self.sessions)

    def test_waits(self):
        self.queue_many(20)
        waits = []
        for _ in range(32):
            before = self.logins
            self.run_cron()
            waits.append(self.logins - before)
            self.later(1)
        # As many logins as sessions at first, then one
        self.assertLessEqual(waits[0], 2)
        self.assertEqual(
            [n for n, tried in enumerate(waits) if tried],
            [0, 1, 3, 7, 15, 30])
        self.assertEqual(set(waits[1:]), {0, 1})
        self.assertEqual(len(self.errors()), 1)
        self.assertEqual(self.states(), {'outbox': 20})
        self.assertEqual({a for a, in self.rows('attempts')}, {0})

    def test_another_password_ends_the_wait(self):
        self.queue_many(20)
        for _ in range(3):
            self.run_cron()
        with configured('email', uri=self.server.uri):
            self.run_cron()
        self.assertEqual(self.states(), {'sent': 20})

    def test_person_need_not_wait(self):
        self.queue()
        self.run_in_trouble('535')
        before = self.logins
        self.run_in_trouble('535')
        self.assertEqual(self.logins, before)
        with self.transaction() as transaction, \
                transaction.set_context(email_queue_by_hand=True), \
                self.assertRaisesRegex(EmailQueueError, '535'):
            Pool().get('email.queue').send_all()
        self.assertEqual(self.logins, before + 1)

    def test_healed(self):
        self.queue_many(5)
        self.run_in_trouble('535')
        self.later(1)
        self.server.auth = ('jane', 's3cr3t')
        self.addCleanup(setattr, self.server, 'auth', ('jane', 'secret'))
        self.send_all()
        self.assertEqual(self.states(), {'sent': 5})
        self.server.auth = ('jane', 'secret')
        self.queue_many(1)
        self.run_in_trouble('535')
        self.later(1.1)
        before = self.logins
        self.run_in_trouble('535')
        self.assertEqual(self.logins, before + 1)

    def test_no_secret_is_stored(self):
        self.queue()
        self.run_in_trouble('535')
        with self.transaction(readonly=True) as transaction:
            cursor = transaction.connection.cursor()
            cursor.execute('SELECT * FROM email_queue_server')
            row, = cursor.fetchall()
        self.assertNotIn('s3cr3t', str(row))

    def test_temporary_failure(self):
        self.server.script = {'auth': '454 4.7.0 Temporary failure'}
        self.queue()
        self.run_in_trouble('454')
        self.server.script = {}
        with configured('email', uri=self.server.uri):
            self.send_all()
        self.assertEqual(self.states(), {'sent': 1})


class FaultErrorTestCase(FaultTestCase):
    "What is said about an email that some recipients have got"

    to_addrs = [
        'jane@example.com', 'rcpt-550-5.1.1-gone@example.com',
        'rcpt-451-4.2.1-full@example.com']
    told = [
        'rcpt-550-5.1.1-gone@example.com 550 5.1.1 gone',
        'rcpt-451-4.2.1-full@example.com 451 4.2.1 full']

    def check(self, id_, reason, label, *lines):
        self.assertEqual(
            self.read(id_, 'state', 'reason', 'error', 'outcome'),
            ['failed', reason, '\n'.join(lines),
                f"{label}, delivered to 1 of 3 recipients: "
                + ' '.join(lines)])

    def test_gave_up(self):
        id_ = self.queue(self.to_addrs)
        with configured(max_attempts=1):
            self.send_all()
        self.check(id_, 'gave_up', "Given up", *self.told)

    def test_expired(self):
        id_ = self.queue(self.to_addrs, expires_at=dt.timedelta(hours=1))
        self.send_all()
        self.write(id_, expires_at=dt.datetime(2020, 1, 1))
        self.later(60)
        self.send_all()
        self.check(id_, 'expired', "Expired", *self.told)

    def test_uncertain(self):
        id_ = self.queue(
            [*self.to_addrs[:2], 'rcpt-451x1-4.2.1-soon@example.com'])
        self.send_all()
        self.server.script['dot'] = 'close'
        with configured(uncertain='fail'):
            self.later(60)
            self.send_all()
        self.check(
            id_, 'uncertain', "May have arrived", self.told[0],
            'rcpt-451x1-4.2.1-soon@example.com the connection was closed')

    def test_refused_after_all(self):
        id_ = self.queue([*self.to_addrs[:2], 'rcpt-451x1-4.2.1@example.com'])
        self.send_all()
        self.server.script['rcpt'] = '550 5.1.1 no'
        self.later(60)
        self.send_all()
        self.check(
            id_, 'refused', "Refused", self.told[0],
            'rcpt-451x1-4.2.1@example.com 550 5.1.1 no')


class FaultProcessesTestCase(ProcessTestCase):
    "What one process has learned is known to the others"

    def setUp(self):
        super().setUp()
        self.addCleanup(self.server.script.clear)

    def run_one(self, **options):
        options = {'timeout': 10, 'data_timeout': 10, **options}
        with Senders(self.database, **options) as senders:
            senders.join(*senders.start())

    def make_due(self):
        t = Table('email_queue')
        with Transaction().start(self.database, 0) as transaction:
            transaction.connection.cursor().execute(*t.update(
                    [t.scheduled_at], [dt.datetime(2020, 1, 1)]))

    def test_accepted_by_another(self):
        bad = 'rcpt-554-5.7.1-denied@example.com'
        self.queue(bad)
        self.queue_many(1, scheduled_at=dt.timedelta(hours=1))
        self.run_one()
        self.assertEqual(self.states(), {'outbox': 2})
        t = Table('email_queue')
        with Transaction().start(self.database, 0) as transaction:
            transaction.connection.cursor().execute(*t.update(
                    [t.scheduled_at], [dt.datetime(2020, 1, 1)],
                    where=t.to_addrs != bad))
        self.run_one()
        self.assertEqual(self.states(), {'outbox': 1, 'sent': 1})
        self.make_due()
        self.run_one()
        self.assertEqual(self.states(), {'failed': 1, 'sent': 1})

    def test_refused_alike_by_another(self):
        self.queue('rcpt-554-5.7.1-denied.1@example.com')
        self.queue_many(
            1, scheduled_at=dt.timedelta(hours=1),
            from_addr='mail-554@example.com')
        self.run_one()
        self.server.script['rcpt'] = '554 5.7.1 denied'
        t = Table('email_queue')
        with Transaction().start(self.database, 0) as transaction:
            cursor = transaction.connection.cursor()
            cursor.execute(*t.update(
                    [t.suspect_since], [dt.datetime(2020, 1, 1)],
                    where=t.suspect != ''))
            cursor.execute(*t.update(
                    [t.from_addr, t.scheduled_at],
                    ['shop@example.com', dt.datetime(2020, 1, 1)],
                    where=t.suspect == None))  # noqa: E711
        self.run_one()
        # The email would have failed if it were the only suspect
        self.make_due()
        self.run_one()
        self.assertEqual(self.states(), {'outbox': 2})
        self.assertEqual({a for a, in self.rows('attempts')}, {0})

    def test_login(self):
        logins = set()
        with Server(auth=('jane', 'secret')) as server:
            server.script = lambda session, step: (
                logins.add(session) if step == 'auth' else None)
            bad = f'smtp://jane:s3cr3t@127.0.0.1:{server.port}'
            with configured('email', uri=bad):
                self.queue_many(5)
                for _ in range(4):
                    self.run_one()
            self.assertLessEqual(len(logins), 2)
            with configured('email', uri=server.uri):
                self.run_one()
            self.assertEqual(self.states(), {'sent': 5})


del QueueTestCase, ProcessTestCase, FaultTestCase
