# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Databases and callers of the module for Tryton 3.4 of the same name."""
import datetime as dt
import os
import re
import sqlite3
import subprocess
import tempfile
import threading
from contextlib import ExitStack, closing, contextmanager
from email.mime.text import MIMEText
from email.utils import formatdate
from pathlib import Path

from sql import Table

import trytond.config as config
from trytond import backend
from trytond.pool import Pool
from trytond.sendmail import get_smtp_server
from trytond.tests.test_tryton import DB_NAME, create_db, drop_db
from trytond.transaction import Transaction

from ..exceptions import EmailQueueError
from ..incomplete import REQUIRED
from ..original import BYTES, Row, _batches, values_of
from .test_upgrade import ADMIN, insert, remember
from .tools import MESSAGE, QueueTestCase, configured

# The table as Tryton 3.4 made it
TABLE = """
CREATE TABLE email_queue (
    id {id},
    create_date TIMESTAMP{precise},
    write_date TIMESTAMP{precise},
    create_uid INTEGER,
    write_uid INTEGER,
    from_addr VARCHAR NOT NULL,
    to_addrs VARCHAR NOT NULL,
    msg TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    state VARCHAR NOT NULL)
"""
BASE = 'email_queue_original_base'
MORE = {
    'postgresql': """
ALTER TABLE email_queue
    ADD CONSTRAINT email_queue_create_uid_fkey
        FOREIGN KEY (create_uid) REFERENCES res_user (id) ON DELETE SET NULL,
    ADD CONSTRAINT email_queue_write_uid_fkey
        FOREIGN KEY (write_uid) REFERENCES res_user (id) ON DELETE SET NULL
""",
    'sqlite': "CREATE INDEX email_queue_state_index ON email_queue (state)",
    }
TYPES = {
    'postgresql': {
        'id': 'SERIAL PRIMARY KEY', 'precise': '(0)'},
    'sqlite': {
        'id': 'INTEGER PRIMARY KEY AUTOINCREMENT', 'precise': ''},
    }
# The table as the update of version 8.2.0 left it
COLUMNS = {
    'accepted': 'TEXT', 'crashes': 'INTEGER', 'error': 'TEXT',
    'expires_at': 'TIMESTAMP', 'file_id': 'VARCHAR',
    'first_attempt': 'TIMESTAMP', 'mail_options': 'VARCHAR',
    'message_id': 'VARCHAR', 'priority': 'VARCHAR',
    'rcpt_options': 'VARCHAR', 'refused': 'TEXT', 'resource': 'VARCHAR',
    'scheduled_at': 'TIMESTAMP', 'sender': 'INTEGER', 'sensitive': 'BOOLEAN',
    'sent_at': 'TIMESTAMP', 'server': 'VARCHAR', 'size': 'INTEGER',
    'subject': 'VARCHAR', 'uncertain': 'BOOLEAN'}
NOW = dt.datetime.now().replace(microsecond=0)
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)
RECENT, OLD = NOW - HOUR, NOW - 3 * DAY
LARGE = 8 * 1024 * 1024
COMMON = {
    'from_addr': 'shop@example.com',
    'to_addrs': 'jane@example.com',
    'msg': 'Subject: Order\n\nThank you.',
    'attempts': 0,
    'state': 'outbox',
    'create_date': RECENT,
    'write_date': None,
    'create_uid': 1,
    'write_uid': None,
    }
# The row, its state after the update, its reason, and what the server gets:
# the recipients and the message without Message-ID and Date
CASES = {
    'plain': ({}, 'outbox', None,
        ['jane'], b'Subject: Order\r\n\r\nThank you.\r\n'),
    'tried': ({'attempts': 2, 'write_date': NOW}, 'outbox', None,
        ['jane'], b'Subject: Order\r\n\r\nThank you.\r\n'),
    'dead sender': ({'state': 'sending', 'write_date': NOW}, 'outbox', None,
        ['jane'], b'Subject: Order\r\n\r\nThank you.\r\n'),
    'several': ({'to_addrs': 'jane@example.com,joe@example.com'},
        'outbox', None,
        ['jane', 'joe'], b'Subject: Order\r\n\r\nThank you.\r\n'),
    'names': ({
            'from_addr': 'The Shop <shop@example.com>',
            'to_addrs': '"Doe, Jane" <jane@example.com>,joe@example.com'},
        'outbox', None,
        ['jane', 'joe'], b'Subject: Order\r\n\r\nThank you.\r\n'),
    'crlf': ({'msg': 'Subject: A\r\n\r\nB\r\n.\r\nC\r\n'}, 'outbox', None,
        ['jane'], b'Subject: A\r\n\r\nB\r\n.\r\nC\r\n'),
    'no header': ({'msg': 'Thank you.\nBye.'}, 'outbox', None,
        ['jane'], b'\r\nThank you.\r\nBye.\r\n'),
    'empty': ({'msg': ''}, 'outbox', None, ['jane'], b'\r\n'),
    'eight bit': ({'msg': 'Subject: Grüße\n\nÄÖÜ €'}, 'outbox', None,
        ['jane'], 'Subject: Grüße\r\n\r\nÄÖÜ €\r\n'.encode()),
    'bcc': ({'msg': 'To: jane@example.com\nBcc: joe@example.com,\n'
            ' ann@example.com\nSubject: A\n\nB\n'}, 'outbox', None,
        ['jane'], b'To: jane@example.com\r\nSubject: A\r\n\r\nB\r\n'),
    'from line': ({'msg': 'From shop Thu Nov  5 10:00:00 2026\n'
            'Subject: A\n\nB\n'}, 'outbox', None,
        ['jane'], b'Subject: A\r\n\r\nB\r\n'),
    'large': ({'msg': 'Subject: A\n\n' + 'x' * 69 + '\n' + (
                'y' * 69 + '\n') * (LARGE // 70)}, 'outbox', None,
        ['jane'], b'Subject: A\r\n\r\n' + b'x' * 69 + b'\r\n' + (
            b'y' * 69 + b'\r\n') * (LARGE // 70)),
    'one wrong': ({'to_addrs': 'jane@example.com,no address'},
        'outbox', None,
        ['jane'], b'Subject: Order\r\n\r\nThank you.\r\n'),
    'all wrong': ({'to_addrs': 'jane,joe@@example.com'}, 'failed',
        'no_recipient', None, None),
    'wrong sender': ({'from_addr': 'the shop'}, 'failed',
        'no_sender', None, None),
    'old': ({'create_date': OLD}, 'failed', 'waited', None, None),
    'old dead sender': ({'create_date': OLD, 'state': 'sending'},
        'failed', 'waited', None, None),
    'failed': ({'create_date': OLD, 'state': 'failed', 'attempts': 3,
            'write_date': OLD + HOUR}, 'failed',
        'failed_before', None, None),
    'sent': ({'create_date': OLD, 'state': 'sent', 'attempts': 1,
            'write_date': OLD + HOUR}, 'sent', None, None, None),
    'sent wrong': ({'state': 'sent', 'attempts': 1, 'to_addrs': 'jane@'},
        'sent', None, None, None),
    'other': ({'state': 'draft'}, 'failed', 'no_state', None, None),
    }
IDS = {name: id_ for id_, name in enumerate(CASES, 11)}
OWN = re.compile(
    rb'\A(?:Message-ID: (<[^>]+>)\r\n)?(?:Date: ([^\r]+)\r\n)?')


def addresses(names):
    return tuple(f'{name}@example.com' for name in names)


def catalogue(name):
    "Return the columns, constraints and indexes of a database's table"
    with Transaction().start(name, 0) as transaction:
        cursor = transaction.connection.cursor()
        if backend.name == 'sqlite':
            cursor.execute('PRAGMA table_info(email_queue)')
            columns = [row[1:] for row in cursor.fetchall()]
            cursor.execute(
                "SELECT name, sql FROM sqlite_master "
                "WHERE tbl_name = 'email_queue' AND type <> 'table'")
            return sorted(columns), sorted(cursor.fetchall()), []
        cursor.execute(
            "SELECT column_name, data_type, character_maximum_length, "
            "datetime_precision, is_nullable, column_default, is_identity, "
            "identity_generation, identity_maximum "
            "FROM information_schema.columns "
            "WHERE table_name = 'email_queue' ORDER BY column_name")
        columns = cursor.fetchall()
        cursor.execute(
            "SELECT indexname, indexdef FROM pg_indexes "
            "WHERE tablename = 'email_queue' ORDER BY indexname")
        indexes = cursor.fetchall()
        cursor.execute(
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE conrelid = 'email_queue'::regclass ORDER BY conname")
        constraints = cursor.fetchall()
        cursor.execute(
            "SELECT pg_get_serial_sequence('email_queue', 'id')")
        return columns, indexes, [*constraints, *cursor.fetchall()]


# The objects that the module has made
_made = ExitStack()


def setUpModule():
    "Make a database without the module, which the other databases copy"
    # If a database is a file
    path = _made.enter_context(tempfile.TemporaryDirectory())
    _made.enter_context(configured('database', path=path))
    create_db(BASE)
    _made.callback(drop_db, BASE)
    Pool.stop(BASE)
    backend.Database(BASE).close()


def tearDownModule():
    _made.close()


def copy_db(name):
    if backend.name == 'sqlite':
        # Not by copying the file, because there may be a journal beside it
        path = Path(config.get('database', 'path'))
        with closing(sqlite3.connect(path / f'{BASE}.sqlite')) as base, \
                closing(sqlite3.connect(path / f'{name}.sqlite')) as copy:
            base.backup(copy)
        return
    database = backend.Database().connect()
    connection = database.get_connection(autocommit=True)
    try:
        connection.cursor().execute(
            f'CREATE DATABASE "{name}" TEMPLATE "{BASE}"')
    finally:
        database.put_connection(connection)
        database.close()


class OriginalDatabase(QueueTestCase):
    "A database of the original, and its update in a process"
    name = 'email_queue_original'
    module_state = 'activated'

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        copy_db(cls.name)
        cls.addClassCleanup(drop_db, cls.name)
        Pool(cls.name).init()
        with cls.previous() as cursor:
            cls.make(cursor)
        Pool.stop(cls.name)
        cls.log = cls.update()
        Pool(cls.name).init()

    @classmethod
    @contextmanager
    def previous(cls):
        with Transaction().start(cls.name, 0) as transaction:
            yield transaction.connection.cursor()

    @classmethod
    def make(cls, cursor):
        cursor.execute(TABLE.format(**TYPES[backend.name]))
        cursor.execute(MORE[backend.name])
        cls.make_rows(cursor)
        module = Table('ir_module')
        cursor.execute(*module.update(
                [module.state], [cls.module_state],
                where=module.name == 'email_queue'))
        user, = Pool().get('res.user').create([{
                    'name': "Email Sender", 'login': 'email_sender',
                    'active': False}])
        remember(cursor, 'email_sender', 'res.user', user.id, ['login'])
        cls.cron = insert(cursor, 'ir_cron', method='email.queue|send_all',
            interval_number=7, interval_type='minutes', active=True)
        remember(
            cursor, 'send_mail_cron', 'ir.cron', cls.cron,
            ['interval_number', 'interval_type', 'method'])

    @classmethod
    def make_rows(cls, cursor):
        pass

    @classmethod
    def update(cls):
        process = subprocess.run(
            [ADMIN, '-d', cls.name, '-u', 'email_queue', '-vv'],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, 'TRYTOND_DATABASE__PATH': config.get(
                    'database', 'path', default='')})
        assert not process.returncode, process.stderr
        return process.stderr

    def select(self, table, *names, **where):
        t = Table(table)
        query = t.select(*(getattr(t, name) for name in names))
        for name, value in where.items():
            condition = getattr(t, name) == value
            query.where = (
                query.where & condition if query.where else condition)
        query.order_by = [t.id]
        with self.previous() as cursor:
            cursor.execute(*query)
            return cursor.fetchall()

    def row(self, name, *names):
        (values,) = self.select('email_queue', *names, id=IDS[name])
        return values[0] if len(names) == 1 else values


class OriginalTestCase(OriginalDatabase):
    "Test the update of a database of the original"

    @classmethod
    def make_rows(cls, cursor):
        for name, (values, *_) in CASES.items():
            insert(
                cursor, 'email_queue', id=IDS[name], **{**COMMON, **values})
        if backend.name == 'postgresql':
            cursor.execute("SELECT setval('email_queue_id_seq', 1000)")

    def test_rows(self):
        "Test the values of each row"
        for name, (values, state, reason, *_) in CASES.items():
            values = {**COMMON, **values}
            with self.subTest(name):
                sent_at = None
                if state == 'sent':
                    sent_at = values['write_date'] or values['create_date']
                self.assertEqual(
                    self.row(
                        name, 'state', 'reason', 'attempts', 'priority',
                        'scheduled_at', 'create_date', 'write_date',
                        'sent_at', 'crashes', 'server'),
                    (state, reason, values['attempts'], '20',
                        values['create_date'], values['create_date'],
                        values['write_date'], sent_at, 0, None))

    def test_messages(self):
        "Test the message of each row, and what is read of it"
        for name, (values, *_, expected) in CASES.items():
            values = {**COMMON, **values}
            with self.subTest(name):
                msg, size, message_id, subject = self.row(
                    name, 'msg', 'size', 'message_id', 'subject')
                msg = bytes(msg)
                own = OWN.match(msg)
                self.assertEqual(len(msg), size)
                self.assertEqual(own[1].decode(), message_id)
                self.assertEqual(
                    own[2].decode(),
                    formatdate(values['create_date'].replace(
                            tzinfo=dt.timezone.utc).timestamp()))
                if expected is None:
                    expected = b'Subject: Order\r\n\r\nThank you.\r\n'
                self.assertEqual(msg[own.end():], expected)
                subject_ = re.search(rb'^Subject: (.*)\r', expected, re.M)
                self.assertEqual(
                    subject, subject_[1].decode() if subject_ else '')

    def test_addresses(self):
        "Test the addresses are as queue_mail stores them, or as they were"
        for name, from_addr, to_addrs, refused in [
                ('plain', 'shop@example.com', 'jane@example.com', None),
                ('names', 'shop@example.com',
                    'jane@example.com, joe@example.com', None),
                ('one wrong', 'shop@example.com',
                    'jane@example.com, no address',
                    "no address"),
                ('all wrong', 'shop@example.com', 'jane,joe@@example.com',
                    None),
                ('wrong sender', 'the shop', 'jane@example.com', None),
                ('sent wrong', 'shop@example.com', 'jane@', None),
                ]:
            with self.subTest(name):
                self.assertEqual(
                    self.row(name, 'from_addr', 'to_addrs', 'refused'),
                    (from_addr, to_addrs, refused))

    def test_catalogue(self):
        "Test the table is like a new table"
        for converted, new in zip(catalogue(self.name), catalogue(DB_NAME)):
            self.assertEqual(converted, new)
            self.assertTrue(new or backend.name == 'sqlite')

    def test_settings(self):
        "Test there is one action, with its former interval, and no user"
        self.assertEqual(
            self.select(
                'ir_cron', 'id', 'interval_number', 'interval_type', 'active',
                method='email.queue|send_all'),
            [(self.cron, 7, 'minutes', True)])
        self.assertEqual(
            self.select('res_user', 'active', login='email_sender'),
            [(False,)])
        for fs_id in ['send_mail_cron', 'email_sender']:
            self.assertEqual(
                self.select('ir_model_data', 'id', fs_id=fs_id), [])

    def test_log(self):
        "Test the log counts the rows, and has no warning"
        count = len(CASES)
        self.assertIn(
            f"{count} of {count} emails of the original module are converted",
            self.log)
        self.assertNotRegex(self.log, 'WARNING|ERROR|CRITICAL')

    def test_again(self):
        "Test another update changes nothing"
        def read():
            return self.select(
                'email_queue', 'id', 'msg', 'state', 'error', 'scheduled_at')

        before, settings = read(), self.select('ir_cron', 'id', 'method')
        log = self.update()
        self.assertEqual(read(), before)
        self.assertEqual(self.select('ir_cron', 'id', 'method'), settings)
        self.assertNotIn('converted', log)
        self.assertNotRegex(log, 'WARNING|ERROR|CRITICAL')

    def test_z_use(self):
        """Test the job sends each email once, and a person decides about the
        rest
        """
        with Transaction().start(self.name, 0):
            Pool().get('email.queue').send_all()
        expected = [
            (addresses(to), data)
            for *_, to, data in CASES.values() if to]
        self.assertEqual(
            sorted((m.to_addrs, OWN.sub(b'', m.data))
                for m in self.server.received),
            sorted(expected))
        self.assertEqual(
            {m.from_addr for m in self.server.received},
            {'shop@example.com'})
        self.assertEqual(self.server.violations, [])
        stored = {bytes(m) for m, in self.select('email_queue', 'msg')}
        self.assertLessEqual({m.data for m in self.server.received}, stored)
        self.assertEqual(
            self.row('one wrong', 'state', 'reason', 'error'),
            ('failed', 'refused', "no address"))
        self.decide()
        self.tell()

    def decide(self):
        """Find all emails that are held back, by their reason, and press the
        buttons
        """
        self.server.received.clear()
        held = [IDS['old'], IDS['old dead sender']]
        for button, state in [
                ('cancel', 'cancelled'), ('retry', 'outbox')]:
            with Transaction().start(self.name, 1):
                EmailQueue = Pool().get('email.queue')
                emails = EmailQueue.search(
                    [('reason', '=', 'waited')],
                    order=[('id', 'ASC')])
                self.assertEqual([e.id for e in emails], held)
                getattr(EmailQueue, button)(emails)
            self.assertEqual(
                {self.row(name, 'state')
                    for name in ['old', 'old dead sender']}, {state})
        with Transaction().start(self.name, 0):
            Pool().get('email.queue').send_all()
        self.assertEqual(len(self.server.received), 2)

    def tell(self):
        "Test the administrators are notified once, with the number"
        for _ in range(2):
            with Transaction().start(self.name, 0):
                Pool().get('email.queue.health').watch()
            (words, user), = [
                row for row in self.select(
                    'res_notification', 'description', 'user')
                if 'had waited' in row[0]]
            self.assertEqual(user, 1)
            self.assertRegex(
                words, '^2 emails had .* Reason: "Waited for long before')


class DeactivatedTestCase(OriginalDatabase):
    "Test a database in which the module was not active any more"
    name = 'email_queue_deactivated'
    module_state = 'not activated'

    def test_settings(self):
        "Test there is one action, with its former interval"
        self.assertEqual(
            self.select(
                'ir_cron', 'id', 'interval_number', 'interval_type', 'active',
                method='email.queue|send_all'),
            [(self.cron, 7, 'minutes', True)])

    def test_again(self):
        self.assertNotRegex(self.update(), 'WARNING|ERROR|CRITICAL')
        self.test_settings()

    def test_nothing_to_tell(self):
        with Transaction().start(self.name, 0):
            Pool().get('email.queue.health').watch()
        self.assertEqual(self.select('res_notification', 'id'), [])

    def test_twice(self):
        "Test one of two threads that send the same email gets an error"
        with self.previous():
            email, = Pool().get('email.queue').queue_mail(
                'shop@example.com', 'jane@example.com', "Hello")
        results, barrier = [], threading.Barrier(2)

        def send():
            with self.previous():
                mail = Pool().get('email.queue')(email.id)
                server = get_smtp_server()
                barrier.wait()
                try:
                    mail.send(server)
                except EmailQueueError as error:
                    results.append(error)
                else:
                    results.append('sent')
                server.quit()

        threads = [threading.Thread(target=send) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(results), 2)
        self.assertEqual(results.count('sent'), 1)
        self.assertEqual(len(self.server.received), 1)
        self.assertEqual(
            self.select('email_queue', 'state', 'attempts'), [('sent', 1)])


class HalfUpdatedTestCase(OriginalDatabase):
    "Test the update after a version that did not convert the table"
    name = 'email_queue_half'

    @classmethod
    def make_rows(cls, cursor):
        for name, type_ in COLUMNS.items():
            cursor.execute(
                f'ALTER TABLE email_queue ADD COLUMN {name} {type_}')
        for id_, created in [(11, RECENT), (12, OLD)]:
            insert(cursor, 'email_queue', id=id_, priority='20', crashes=0,
                **{**COMMON, 'create_date': created})
        if backend.name == 'sqlite':
            # PostgreSQL does not take bytes as a text
            insert(cursor, 'email_queue', id=13, priority='10', crashes=0,
                size=len(MESSAGE), scheduled_at=OLD,
                **{**COMMON, 'msg': MESSAGE, 'create_date': OLD})

    def test_rows(self):
        rows = self.select(
            'email_queue', 'state', 'reason', 'priority', 'scheduled_at')
        self.assertEqual(rows, [
                ('outbox', None, '20', RECENT),
                ('failed', 'waited', '20', OLD),
                ('outbox', None, '10', OLD),
                ][:len(rows)])
        messages = [
            bytes(m) for m, in self.select('email_queue', 'msg')]
        for message in messages[:2]:
            self.assertTrue(message.endswith(
                    b'Subject: Order\r\n\r\nThank you.\r\n'))
        self.assertEqual(
            messages[2:], [MESSAGE] if backend.name == 'sqlite' else [])

    def test_catalogue(self):
        for converted, new in zip(catalogue(self.name), catalogue(DB_NAME)):
            self.assertEqual(converted, new)


class InterruptedTestCase(OriginalDatabase):
    "Test the update after an interrupted update"
    name = 'email_queue_interrupted'

    @classmethod
    def make_rows(cls, cursor):
        for name, type_ in COLUMNS.items():
            cursor.execute(
                f'ALTER TABLE email_queue ADD COLUMN {name} {type_}')
        for id_ in [11, 12]:
            insert(cursor, 'email_queue', id=id_, **COMMON)
        cursor.execute(
            'ALTER TABLE email_queue RENAME COLUMN msg TO msg_original')
        binary = {'postgresql': 'BYTEA', 'sqlite': 'BLOB'}[backend.name]
        cursor.execute(f'ALTER TABLE email_queue ADD COLUMN msg {binary}')
        t = Table('email_queue')
        cursor.execute(*t.update(
                [t.msg, t.size, t.scheduled_at, t.priority, t.crashes],
                [MESSAGE, len(MESSAGE), RECENT, '20', 0], where=t.id == 11))

    def test_rows(self):
        "Test converted rows stay, and the other rows are converted"
        self.assertEqual(
            self.select('email_queue', 'state', 'scheduled_at'),
            [('outbox', RECENT)] * 2)
        first, second = [
            bytes(m) for m, in self.select('email_queue', 'msg')]
        self.assertEqual(first, MESSAGE)
        self.assertTrue(second.endswith(
                b'Subject: Order\r\n\r\nThank you.\r\n'))
        self.assertIn('1 of 1 emails', self.log)

    def test_catalogue(self):
        for converted, new in zip(catalogue(self.name), catalogue(DB_NAME)):
            self.assertEqual(converted, new)


class ConversionTestCase(QueueTestCase):
    "Test the conversion of rows that no table should have"

    def test_null(self):
        "Test columns that are NULL"
        def convert(row, text):
            with self.transaction():
                return values_of(Pool().get('email.queue'), row, text, NOW)

        row = Row(1, None, None, None, None, None, None)
        values = convert(row, None)
        self.assertEqual(
            (values['state'], values['reason'], values['msg'],
                values['size'], values['scheduled_at']),
            ('failed', 'no_state', None, 0, NOW))
        values = convert(row._replace(state='outbox'), b'x')
        self.assertEqual(
            (values['state'], values['reason']), ('failed', 'no_sender'))
        row = Row(1, 'a@example.com', 'b@example.com', 0, 'outbox', NOW, None)
        values = convert(row, None)
        self.assertEqual(
            (values['state'], values['reason']), ('failed', 'no_message'))

    def test_batches(self):
        "Test a batch has no more bytes than allowed, but at least one row"
        rows = [(i, size) for i, size in enumerate(
                [0, BYTES, 1, 1, BYTES - 2, 3 * BYTES, 5])]
        self.assertEqual(
            list(_batches(rows)), [[0, 1], [2, 3, 4], [5], [6]])


class IncompleteTestCase(QueueTestCase):
    "Test rows that lack what a sender needs, whatever has written them"

    def setUp(self):
        super().setUp()
        if backend.name == 'postgresql':
            # As if an update had found rows with NULL
            self.alter('DROP')
            self.addCleanup(self.alter, 'SET')

    def alter(self, action):
        self.clear()
        with self.transaction() as transaction:
            for name in REQUIRED:
                transaction.connection.cursor().execute(
                    f'ALTER TABLE email_queue '
                    f'ALTER COLUMN {name} {action} NOT NULL')

    def put(self, **values):
        values = {
            'from_addr': 'shop@example.com', 'to_addrs': 'jane@example.com',
            'msg': MESSAGE, 'size': len(MESSAGE), 'priority': '20',
            'scheduled_at': RECENT, 'attempts': 0, 'crashes': 0,
            'state': 'outbox', 'create_date': RECENT, **values}
        with self.transaction() as transaction:
            return insert(
                transaction.connection.cursor(), 'email_queue', **values)

    def test_required(self):
        "Test the columns are those that the model requires"
        with self.transaction():
            fields = Pool().get('email.queue')._fields
        self.assertEqual(REQUIRED, sorted(
                name for name, field in fields.items()
                if field.required and name != 'id'))

    def test_sent(self):
        "Test each row is sent, or has failed with a reason"
        for name, reason in {
                'attempts': None, 'crashes': None, 'priority': None,
                'scheduled_at': None, 'size': None,
                'from_addr': 'no_sender',
                'state': 'no_state',
                'to_addrs': 'no_recipient'}.items():
            with self.subTest(name):
                self.clear()
                id_ = self.put(**{name: None})
                self.send_all()
                self.assertEqual(
                    self.read(id_, 'state', 'reason'),
                    ['failed' if reason else 'sent', reason])
                self.assertEqual(len(self.server.received), not reason)

    def test_nothing_but_addresses(self):
        id_ = self.put(**dict.fromkeys([
                    'size', 'priority', 'scheduled_at', 'attempts', 'crashes',
                    'create_date']))
        self.send_all()
        self.assertEqual(self.read(id_, 'state'), 'sent')
        self.assertEqual(self.server.received[0].data, MESSAGE)

    def test_other_states(self):
        "Test rows that do not wait keep their state"
        for state in ['sent', 'failed', 'cancelled']:
            id_ = self.put(
                state=state, scheduled_at=None, from_addr=None, attempts=None)
            self.send_all()
            self.assertEqual(
                self.read(id_, 'state', 'error', 'from_addr', 'attempts'),
                [state, None, '?', 0])

    def test_sending(self):
        "Test a row in the state sending without a slot goes back"
        id_ = self.put(state='sending')
        self.send_all()
        self.assertEqual(self.read(id_, 'state', 'crashes'), ['sent', 1])

    def test_health(self):
        "Test the health counts such rows before and after they are completed"
        def measure():
            with self.transaction(readonly=True):
                return Pool().get('email.queue.health').measure()

        for values, counts in [
                ({'scheduled_at': None}, (1, 1, 0)),
                ({'priority': None}, (1, 1, 0)),
                ({'size': None, 'crashes': None}, (1, 1, 0)),
                ({'state': None}, (0, 0, 1)),
                ]:
            with self.subTest(**values):
                self.clear()
                self.put(**values)
                numbers = measure()
                self.assertEqual(numbers[:3], counts)
                self.assertEqual(numbers.age > 3000, bool(counts[0]))
                # Whatever job sends
                with self.transaction():
                    Pool().get('email.queue.health').watch()
                self.assertEqual(measure()[:3], counts)
                for row in self.rows(*REQUIRED):
                    self.assertNotIn(None, row)

    def test_busy(self):
        "Test a row that a sender holds stays as it is"
        id_ = self.put(state='sending', slot=1, attempts=None)
        with self.transaction():
            Pool().get('email.queue.health').watch()
        self.assertEqual(self.read(id_, 'attempts'), None)


class CallersTestCase(QueueTestCase):
    "Test code that calls the original module works"

    def test_queue_mail(self):
        "Test a queued email is stored as it was given, and is sent"
        message = MIMEText("Hello")
        message['Subject'] = "Greeting"
        for to_addrs in [
                'jane@example.com,joe@example.com',
                ['jane@example.com', 'joe@example.com'],
                ('jane@example.com', 'joe@example.com')]:
            for msg in [message, message.as_string(), "Hello"]:
                with self.subTest(to_addrs=to_addrs, msg=type(msg)):
                    self.clear()
                    with self.transaction():
                        email, = Pool().get('email.queue').queue_mail(
                            'shop@example.com', to_addrs, msg)
                        self.assertEqual(
                            (email.state, email.attempts, email.from_addr,
                                email.to_addrs),
                            ('outbox', 0, 'shop@example.com',
                                'jane@example.com, joe@example.com'))
                    self.send_all()
                    self.assertEqual(
                        self.read(email.id, 'state', 'attempts'),
                        ['sent', 1])
                    mail, = self.server.received
                    self.assertEqual(mail.to_addrs, addresses(['jane', 'joe']))
                    self.assertTrue(mail.data.endswith(b'\r\n\r\nHello\r\n'))

    def test_send_all(self):
        "Test a job that sends one email after another in its own session"
        def send_all(cls):
            server = get_smtp_server()
            for mail in cls.search([('state', '=', 'outbox')]):
                mail.send(server)
            server.quit()

        ids = self.queue_many(5)
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            Replaced = type('email.queue', (EmailQueue,), {
                    'send_all': classmethod(send_all)})
            Replaced.send_all()
        self.assertEqual(self.states(), {'sent': 5})
        self.assertEqual({m.session for m in self.server.received}, {
                self.server.received[0].session})
        self.assertEqual(len(self.server.received), len(ids))

    def test_send_all_refused(self):
        "Test a refused email ends such a job with an error"
        id_ = self.queue('rcpt-550@example.com')
        with self.transaction():
            server = get_smtp_server()
            with self.assertRaises(EmailQueueError):
                Pool().get('email.queue')(id_).send(server)
            server.quit()
        self.assertEqual(self.read(id_, 'state', 'attempts'), ['failed', 1])


del OriginalDatabase, QueueTestCase
