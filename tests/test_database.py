# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What users and operators do with the database, and how sending goes on."""
import datetime as dt
import shutil
import subprocess
import tempfile
import threading
import time
import unittest
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import trytond.config as config
from trytond import backend
from trytond.pool import Pool
from trytond.tests.test_tryton import DB_NAME
from trytond.transaction import Transaction

from .. import email_queue, sender, store, tools
from ..exceptions import EmailQueueError, PoolerError
from ..policy import TROUBLE_DELAY, UNCERTAIN_DELAY
from ..store import Store
from ..tools import database_time
from .postgresql import free_port
from .tools import QueueTestCase, configured

has_locks = backend.name == 'postgresql'
MUCH = 10 ** 9
HOUR = dt.timedelta(hours=1)


@unittest.skipUnless(has_locks, "it locks no rows")
class LockTestCase(QueueTestCase):
    "A transaction that somebody has left open"

    @contextmanager
    def locked(self, *ids):
        database = backend.Database(DB_NAME)
        connection = database.get_connection()
        try:
            connection.cursor().execute(
                'SELECT id FROM email_queue WHERE id = ANY(%s) FOR UPDATE',
                [list(ids)])
            yield
        finally:
            connection.rollback()
            database.put_connection(connection)

    def run_beside(self):
        "Run in a thread, and return the errors of the run"
        errors = []

        def run():
            try:
                self.send_all()
            except EmailQueueError as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(20)
        self.assertFalse(thread.is_alive(), "the lock holds it up")
        return errors

    def test_server_missing(self):
        with configured(uri_x=self.server.uri):
            held, other = self.queue(server='x'), self.queue(server='x')
        id_ = self.queue()
        with self.locked(held):
            error, = self.run_beside()
        self.assertIn('uri_x', str(error))
        self.assertEqual(self.read(id_, 'state'), 'sent')
        self.assertIn('x', self.read(other, 'error'))
        self.assertIsNone(self.read(held, 'error'))

    def test_sending(self):
        "Test only the locked rows of a dead sender wait"
        held, other, id_ = [self.queue() for _ in range(3)]
        with self.transaction() as transaction:
            transaction.connection.cursor().execute(
                "UPDATE email_queue SET state = 'sending', slot = 77 "
                "WHERE id IN (%s, %s)", [held, other])
        with self.locked(held):
            self.assertEqual(self.run_beside(), [])
            self.assertEqual(
                [self.read(i, 'state') for i in [held, other, id_]],
                ['sending', 'sent', 'sent'])
        self.assertEqual(self.run_beside(), [])
        self.assertEqual(self.read(held, 'state'), 'sent')

    def test_outbox(self):
        held, id_ = self.queue(), self.queue()
        with self.locked(held):
            self.assertEqual(self.run_beside(), [])
            self.assertEqual(self.read(id_, 'state'), 'sent')


class Lent:
    "A connection to a pooler that gives each statement another session"

    def __init__(self, connections):
        self.connections = connections
        self._turns = cycle(connections)
        # A pooler has a connection of its own
        info = connections[0].info
        self.info = SimpleNamespace(
            backend_pid=0, transaction_status=info.transaction_status,
            pipeline_status=info.pipeline_status)

    def cursor(self, *args, **kwargs):
        return next(self._turns).cursor(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self.connections[0], name)


@unittest.skipUnless(has_locks, "it has no sessions")
class PoolerTestCase(QueueTestCase):

    @contextmanager
    def lending(self):
        Database = backend.Database
        get, put = Database.get_connection, Database.put_connection

        def get_connection(database, autocommit=False, **kwargs):
            if not autocommit:
                return get(database, **kwargs)
            return Lent([
                    get(database, autocommit=True, **kwargs)
                    for _ in range(2)])

        def put_connection(database, connection):
            for each in getattr(connection, 'connections', [connection]):
                put(database, each)

        with patch.object(Database, 'get_connection', get_connection), \
                patch.object(Database, 'put_connection', put_connection):
            yield

    @contextmanager
    def bouncer(self, mode):
        "Connections to the database through a PgBouncer"
        import psycopg

        from trytond.backend.postgresql.database import LoggingCursor

        uri = config.parse_uri(config.get('database', 'uri'))
        port = free_port()
        directory = Path(tempfile.mkdtemp(prefix='pgbouncer-'))
        self.addCleanup(shutil.rmtree, directory)
        ini = directory / 'pgbouncer.ini'
        ini.write_text(
            f"[databases]\n* = host={uri.hostname} port={uri.port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
            "unix_socket_dir =\nauth_type = any\n"
            f"pool_mode = {mode}\n".replace(
                '* =', f'{DB_NAME} =').replace(
                f'port={uri.port}\n',
                f'port={uri.port} user={uri.username}\n'))
        directory.chmod(0o755)
        process = subprocess.Popen(
            ['runuser', '-u', 'postgres', '--', 'pgbouncer', ini],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(process.wait)
        self.addCleanup(process.terminate)

        def get_connection(database, autocommit=False, **kwargs):
            return psycopg.connect(
                host='127.0.0.1', port=port, dbname=DB_NAME,
                user=uri.username, autocommit=autocommit,
                cursor_factory=LoggingCursor)

        def put_connection(database, connection):
            connection.close()

        end = time.monotonic() + 10
        while True:
            try:
                get_connection(None).close()
                break
            except psycopg.OperationalError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
        Database = backend.Database
        with patch.object(Database, 'get_connection', get_connection), \
                patch.object(Database, 'put_connection', put_connection):
            yield

    def check_refused(self):
        ids = [self.queue() for _ in range(3)]
        for run in [self.send_all, lambda: self.send(ids[0])]:
            with self.subTest(run=run):
                with self.assertRaisesRegex(PoolerError, "session"):
                    run()
        self.assertEqual(
            {self.read(id_, 'state') for id_ in ids}, {'outbox'})
        self.assertEqual(self.server.received, [])

    def send(self, id_):
        with self.transaction():
            Pool().get('email.queue')(id_).send()

    def test_lent(self):
        "Test nothing is sent, and an error says why"
        with self.lending():
            self.check_refused()

    def test_lent_later(self):
        "Test a claim in another session claims nothing"
        id_ = self.queue()
        with self.transaction(), \
                Transaction().new_transaction(autocommit=True):
            mine = Store(Pool().get('email.queue'))
            self.assertTrue(mine.slot.take([1]))
            own = mine.slot.connection
            with Transaction().new_transaction(autocommit=True) as other:
                mine.slot.connection = other.connection
                for claim in [
                        lambda: mine.claim(1, MUCH), mine.claim_alone,
                        lambda: mine.claim_record(id_)]:
                    with self.assertRaises(EmailQueueError):
                        claim()
            mine.slot.connection = own
            self.assertEqual(len(mine.claim(1, MUCH)), 1)
            mine.recover()
            mine.slot.give_back()

    def test_session_is_taken(self):
        "Test two senders that get the same session do not both send"
        with self.transaction(), \
                Transaction().new_transaction(autocommit=True) as transaction:
            Model = Pool().get('email.queue')
            first = Store(Model)
            second = Store(Model)
            second.slot.connection = SimpleNamespace(
                cursor=transaction.connection.cursor,
                info=SimpleNamespace(backend_pid=0))
            self.assertTrue(first.slot.take([1]))
            with self.assertRaises(EmailQueueError):
                second.slot.take([1])
            first.slot.give_back()
            self.assertTrue(second.slot.take([1]))
            second.slot.give_back()

    @unittest.skipUnless(
        shutil.which('pgbouncer') and shutil.which('runuser'),
        "PgBouncer is not installed")
    def test_pgbouncer(self):
        with self.bouncer('transaction'):
            self.check_refused()

    @unittest.skipUnless(
        shutil.which('pgbouncer') and shutil.which('runuser'),
        "PgBouncer is not installed")
    def test_pgbouncer_session(self):
        with self.bouncer('session'):
            ids = [self.queue() for _ in range(3)]
            self.send_all()
            self.assertEqual(
                {self.read(id_, 'state') for id_ in ids}, {'sent'})


@unittest.skipUnless(has_locks, "it sends to one server after another")
class ConnectionsTestCase(QueueTestCase):

    def test_too_few(self):
        uri = self.server.uri
        before = config.get('database', 'maxconn', default='64')
        self.addCleanup(config.set, 'database', 'maxconn', before)
        config.set('database', 'maxconn', '5')
        with configured(uri_x=uri, uri_y=uri):
            ids = [self.queue(server=name) for name in [None, 'x', 'y']]
            with self.assertLogs(
                    'trytond.modules.email_queue.run', 'WARNING') as logs:
                self.send_all()
        self.assertIn('maxconn is 5', logs.output[0])
        self.assertEqual({self.read(id_, 'state') for id_ in ids}, {'sent'})


@unittest.skipUnless(has_locks, "its clock is the one of the host")
class HostClockTestCase(QueueTestCase):
    "Test a host whose clock is an hour slow or fast"

    @contextmanager
    def clock(self, error):
        """Let the clock of this host be wrong, but not the clock of the
        database
        """
        class Time(dt.datetime):

            @classmethod
            def now(cls, tz=None):
                return dt.datetime.now(tz) + error

        fake = SimpleNamespace(**{**vars(dt), 'datetime': Time})
        with patch.object(email_queue, 'dt', fake), \
                patch.object(sender, 'dt', fake), \
                patch.object(store, 'dt', fake), \
                patch.object(tools, 'dt', fake):
            yield

    def each_clock(self):
        for error in [-HOUR, HOUR]:
            # If two emails are refused alike, the server is at fault
            self.clear()
            with self.subTest(error=error), self.clock(error):
                yield

    def check_due(self, id_, earliest, latest):
        with self.transaction():
            now = database_time()
        scheduled_at = self.read(id_, 'scheduled_at')
        self.assertGreater(scheduled_at, now + earliest)
        self.assertLess(scheduled_at, now + latest)

    def test_now(self):
        with self.transaction():
            mine = Store(Pool().get('email.queue'))
            self.assertLess(
                abs(mine.now() - database_time()),
                dt.timedelta(seconds=5))

    def test_retry(self):
        for _ in self.each_clock():
            id_ = self.queue('rcpt-450@example.com')
            self.send_all()
            self.assertEqual(self.read(id_, 'attempts'), 1)
            self.check_due(
                id_, 0.6 * TROUBLE_DELAY, 1.3 * TROUBLE_DELAY)

    def test_uncertain(self):
        for _ in self.each_clock():
            id_ = self.queue('dot-hang@example.com')
            try:
                self.send_all()
            except EmailQueueError:
                pass
            self.assertTrue(self.read(id_, 'uncertain'))
            self.check_due(
                id_, 0.9 * UNCERTAIN_DELAY, 1.01 * UNCERTAIN_DELAY)

    def test_expired(self):
        for _ in self.each_clock():
            id_ = self.queue(expires_at=HOUR / 2)
            self.send_all()
            self.assertEqual(self.read(id_, 'state'), 'sent')

    def test_timedelta(self):
        for _ in self.each_clock():
            id_ = self.queue(scheduled_at=HOUR, expires_at=2 * HOUR)
            self.check_due(id_, 0.9 * HOUR, 1.1 * HOUR)


del QueueTestCase
