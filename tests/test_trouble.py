# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What list and form show while a server takes no emails."""
import datetime as dt

from sql import Table

from .. import known
from ..exceptions import EmailQueueError
from .jsonrpc import STATES, RPCError, RPCTestCase
from .smtpd import Server
from .tools import configured

DOWN = '421 4.7.0 too many connections'


class TroubleTestCase(RPCTestCase):
    "Test what is shown about a server in trouble"

    def setUp(self):
        super().setUp()
        self.addCleanup(self.server.script.clear)

    def run_in_trouble(self):
        "Let a run end in the trouble of the server"
        self.server.script['greeting'] = DOWN
        with self.assertRaisesRegex(EmailQueueError, DOWN):
            self.send_all()

    def troubled_at(self, at):
        with self.transaction() as transaction:
            t = Table('email_queue_server')
            transaction.connection.cursor().execute(
                *t.update([t.troubled_at], [at]))

    def shown(self, id_, session=None):
        email, = (session or self.postmaster).queue(
            'read', [id_], ['notice', 'outcome'])
        return email['notice'], email['outcome']

    def test_told_until_it_recovers(self):
        "Test the trouble is shown from a failed run until a run that is good"
        id_ = self.queue()
        self.assertEqual(self.shown(id_), (None, None))
        self.run_in_trouble()
        for session in self.readers:
            with self.subTest(user=session.login):
                for text in self.shown(id_, session):
                    self.assertRegex(
                        text, r'^The server 127.0.0.1:\d+ takes no emails '
                        rf'since (\S+ )?\d\d:\d\d UTC: .*{DOWN}')
        self.server.script.clear()
        self.send_all()
        self.assertEqual(self.shown(id_), (None, None))
        self.assertEqual(self.shown(self.queue()), (None, None))

    def test_states(self):
        "Test only emails that wait for the server show its trouble"
        self.queue()
        self.run_in_trouble()
        later = dt.datetime.now() + dt.timedelta(days=1)
        for state in STATES:
            id_ = self.queue()
            self.write(id_, state=state)
            with self.subTest(state=state):
                notice, outcome = self.shown(id_)
                self.assertEqual(
                    bool(notice), state in {'outbox', 'sending'})
                self.assertEqual(bool(outcome), state == 'outbox')
        id_ = self.queue()
        self.write(id_, scheduled_at=later)
        notice, outcome = self.shown(id_)
        self.assertTrue(notice)
        self.assertRegex(outcome, r'^Scheduled for .*\d\d:\d\d UTC$')

    def test_other_server(self):
        "Test emails for another server show nothing about it"
        with Server() as server, configured(uri_marketing=server.uri):
            default, marketing = self.queue(), self.queue(server='marketing')
            self.run_in_trouble()
            self.assertTrue(all(self.shown(default)))
            self.assertEqual(self.shown(marketing), (None, None))
            self.server.script.clear()
            self.send_all()
            server.script['greeting'] = DOWN
            default, marketing = self.queue(), self.queue(server='marketing')
            with self.assertRaisesRegex(EmailQueueError, 'marketing'):
                self.send_all()
            notice, outcome = self.shown(marketing)
            self.assertEqual(notice, outcome)
            self.assertRegex(
                notice, r'^The server marketing \(127.0.0.1:\d+\) takes no')
            self.assertEqual(self.shown(default), (None, None))
            self.queue(server='marketing')
        # The server is no longer configured
        self.assertRegex(
            self.shown(marketing)[0], '^The server marketing takes no')

    def test_since(self):
        "Test the day is shown if it is not today"
        now = dt.datetime(2026, 11, 27, 17, 5)
        self.queue()
        self.run_in_trouble()
        for at, since in [
                (now - dt.timedelta(hours=1), '16:05 UTC'),
                (now - dt.timedelta(days=1), '11/26/2026 17:05 UTC')]:
            self.troubled_at(at)
            with self.subTest(at=at), self.transaction(readonly=True):
                (words,) = known.troubles(now).values()
                self.assertIn(
                    f' since {since}: ', words.replace('\xa0', ' '))

    def test_no_secret(self):
        "Test nobody is shown the login of the server"
        id_ = self.queue()
        host = self.server.uri.split('//')[1]
        with configured('email', uri=f'smtp://jane:s3cr3t@{host}'):
            self.run_in_trouble()
            notice, _ = self.shown(id_)
        self.assertNotIn('jane', notice)
        self.assertNotIn('s3cr3t', notice)
        for session in self.strangers:
            with self.subTest(user=session.login):
                with self.assertRaises(RPCError):
                    self.shown(id_, session)

    def test_one_query(self):
        "Test the troubles are read once for a list of emails"
        ids = [self.queue() for _ in range(5)]
        self.run_in_trouble()
        asked = []
        before = known.troubles

        def troubles(now):
            asked.append(now)
            return before(now)

        known.troubles = troubles
        self.addCleanup(setattr, known, 'troubles', before)
        self.postmaster.queue('read', ids, ['outcome'])
        self.assertEqual(len(asked), 1)


del RPCTestCase
