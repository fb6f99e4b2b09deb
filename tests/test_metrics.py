# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What Prometheus reads."""
import datetime as dt
import re
import unittest
from pathlib import Path
from urllib.parse import quote

from werkzeug.test import Client

from trytond import backend
from trytond.pool import Pool
from trytond.protocols.wrappers import Response
from trytond.tests.test_tryton import DB_NAME
from trytond.wsgi import app

from .. import metrics, run
from ..exceptions import EmailQueueError
from .jsonrpc import RPCTestCase
from .test_health import Ages
from .tools import QueueTestCase, configured

DOC = Path(__file__).resolve().parent.parent / 'doc'
MINUTE, HOUR = dt.timedelta(minutes=1), dt.timedelta(hours=1)
SAMPLE = re.compile(
    r'(?P<name>[a-z_]+)\{server="(?P<server>(?:\\[\\"n]|[^\\"\n])*)"\} '
    r'(?P<value>\d+)')


class MeasureTestCase(Ages, QueueTestCase):
    "Test the numbers of each server"

    def setUp(self):
        super().setUp()
        self.enter_here(configured(uri_second=self.server.uri))

    def measure(self):
        with self.transaction(readonly=True):
            return metrics.measure()

    def test_empty(self):
        zero = dict.fromkeys(metrics.GAUGES, 0)
        self.assertEqual(self.measure(), {'': zero, 'second': zero})

    def test_numbers(self):
        "Test each number, for each server"
        for server, count in [(None, 1), ('second', 2)]:
            for _ in range(count):
                for state in ['outbox', 'sending']:
                    self.put(10 * count * MINUTE, state, server=server)
                    self.put(-HOUR, state, server=server)
                for state in ['sent', 'failed']:
                    for ago in [MINUTE, 2 * HOUR]:
                        id_ = self.put(MINUTE, state, server=server)
                        self.write_by_sql(id_, ago)
                self.put(-HOUR, 'cancelled', server=server)
                suspect = self.put(-HOUR, server=server)
                self.write(suspect, suspect='rcpt no')
        measured = self.measure()
        self.assertEqual(measured.keys(), {'', 'second'})
        for server, count in [('', 1), ('second', 2)]:
            numbers = measured[server]
            self.assertIn(
                numbers.pop('oldest_due_seconds'),
                range(600 * count, 600 * count + 300))
            self.assertEqual(numbers, {
                    'due': 2 * count,
                    'waiting': 5 * count,
                    'failed': 2 * count,
                    'suspect': count,
                    'sent_last_hour': count,
                    'failed_last_hour': count,
                    'server_in_trouble': 0,
                    })

    def write_by_sql(self, id_, ago):
        at = dt.datetime.now() - ago
        with self.transaction() as transaction:
            t = Pool().get('email.queue').__table__()
            transaction.connection.cursor().execute(*t.update(
                    [t.sent_at, t.write_date], [at, at], where=t.id == id_))

    def test_trouble(self):
        "Test a server in trouble, until it has taken an email"
        self.queue(server='second')
        with configured(uri_second='smtp://127.0.0.1:1'):
            with self.assertRaises(EmailQueueError):
                self.send_all()
        self.assertEqual(
            {s: n['server_in_trouble'] for s, n in self.measure().items()},
            {'': 0, 'second': 1})
        self.forget_trouble()
        self.send_all()
        self.assertEqual(self.states(), {'sent': 1})
        numbers = self.measure()['second']
        self.assertEqual(
            (numbers['server_in_trouble'], numbers['sent_last_hour']), (0, 1))

    def forget_trouble(self):
        "Let the time be over for which the email waits"
        run._troubled_at.clear()
        with self.transaction() as transaction:
            transaction.connection.cursor().execute(
                "UPDATE email_queue SET scheduled_at = create_date")

    def test_gone_server(self):
        """Test a server that is no longer configured is listed while it has
        emails
        """
        self.queue(server='second')
        with configured(uri_second=''):
            self.assertEqual(self.measure()['second']['due'], 1)

    def test_escaped(self):
        "Test no name of a server breaks a line of the text"
        id_ = self.queue()
        name = 'a"b\\c}\u2028 1'
        self.write(id_, server=name)
        with self.transaction(readonly=True):
            text = metrics.text()
        self.assertIn(
            'email_queue_due{server="a\\"b\\\\c}\u2028 1"} 1\n', text)

    @unittest.skipUnless(backend.name == 'postgresql', "it has other plans")
    def test_indexes(self):
        "Test emails that were sent long ago cost nothing"
        with self.transaction() as transaction:
            transaction.connection.cursor().execute("""
                INSERT INTO email_queue (from_addr, to_addrs, size, priority,
                    scheduled_at, attempts, crashes, state, sent_at, subject)
                SELECT 'a', 'b', 1, '20', now() AT TIME ZONE 'UTC', 0, 0,
                    CASE WHEN i % 50 = 0 THEN 'outbox' ELSE 'sent' END,
                    now() AT TIME ZONE 'UTC' - i * interval '1 minute',
                    repeat('x', 500)
                FROM generate_series(1, 20000) AS i""")
        with self.transaction() as transaction:
            cursor = transaction.connection.cursor()
            cursor.execute('ANALYZE email_queue')
            cursor.execute(
                "SELECT seq_scan FROM pg_stat_xact_user_tables "
                "WHERE relname = 'email_queue'")
            before = cursor.fetchone()
            self.assertEqual(metrics.measure()['']['waiting'], 400)
            cursor.execute(
                "SELECT seq_scan FROM pg_stat_xact_user_tables "
                "WHERE relname = 'email_queue'")
            self.assertEqual(cursor.fetchone(), before)


class MetricsRouteTestCase(Ages, RPCTestCase):
    "Test what the server answers"

    def get(self, key=None, database=DB_NAME):
        headers = {'Authorization': f'Bearer {key}'} if key else {}
        return Client(app, Response).get(
            f'/{quote(database)}/email_queue/metrics', headers=headers)

    def key(self, user, application='email_queue'):
        with self.transaction():
            record, = Pool().get('res.user.application').create([{
                        'user': user.id,
                        'application': application,
                        'state': 'validated',
                        }])
            return record.key

    def test_text(self):
        "Test the text has each gauge once, with its help, in the right format"
        self.put(20 * MINUTE)
        response = self.get(self.key(self.postmaster))
        # Prometheus would drop the numbers of an answer that is not 200
        self.assertEqual(response.status_code, 200)
        self.assertEqual(
            response.headers['Content-Type'],
            'text/plain; version=0.0.4; charset=utf-8')
        self.assertEqual(response.headers['Cache-Control'], 'no-store')
        text = response.get_data(as_text=True)
        self.assertTrue(text.endswith('\n'))
        lines = text.splitlines()
        names = [f'email_queue_{gauge}' for gauge in metrics.GAUGES]
        self.assertEqual(
            [line.split()[2:] for line in lines if line.startswith('# TYPE')],
            [[name, 'gauge'] for name in names])
        samples = [
            SAMPLE.fullmatch(line) for line in lines
            if not line.startswith('#')]
        self.assertTrue(all(samples))
        self.assertEqual([s['name'] for s in samples], names)
        self.assertIn('email_queue_due{server=""} 1', lines)

    def test_access(self):
        self.queue()
        for key, status in [
                (None, 401), ('0' * 128, 401),
                (self.key(self.postmaster, 'rest'), 401),
                (self.key(self.clerk), 403),
                (self.key(self.administrator), 403),
                ]:
            with self.subTest(status=status):
                response = self.get(key)
                self.assertEqual(response.status_code, status)
                self.assertNotIn(b'email_queue_due', response.data)
        self.assertEqual(self.get(database='nowhere').status_code, 404)


@unittest.skipUnless(DOC.exists(), "the documentation is not installed")
class MetricsDocTestCase(unittest.TestCase):

    def test_names(self):
        "Test the documentation names each gauge and no other"
        text = (DOC / 'usage' / 'operating.rst').read_text('utf-8')
        start = text.index('.. _Metrics:')
        end = text.index('\n.. _', start + 1)
        found = re.findall(r'\bemail_queue_([a-z_]+)', text[start:end])
        self.assertEqual(set(found), set(metrics.GAUGES))
