# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Copies of a database, and options that keep emails from their recipients."""
import datetime as dt
import os
import shutil
import smtplib
import subprocess
import sys
import unittest
from email import message_from_bytes
from pathlib import Path

import trytond.config as config
from trytond import backend
from trytond.pool import Pool
from trytond.tests.test_tryton import DB_NAME
from trytond.transaction import Transaction

from .. import identity, mime
from ..exceptions import EmailQueueError
from .jsonrpc import RPCError, RPCTestCase
from .postgresql import PostgreSQL, bin_directory
from .processes import ProcessTestCase, Senders
from .tools import MESSAGE, QueueTestCase, configured

RUN = 'trytond.modules.email_queue.run'
WIZARD = 'wizard.email.queue.copy'
ANOTHER = 'another database'


class CopyTestCase(RPCTestCase):
    "Test a database that looks like a copy"

    def move(self):
        "Let the database look like a copy"
        self.queue('first@example.com')
        self.send_all()
        self.server.received.clear()
        with self.transaction() as transaction:
            cursor = transaction.connection.cursor()
            cursor.execute(
                f"UPDATE email_queue_identity SET identity = '{ANOTHER}'")
            self.assertEqual(cursor.rowcount, 1)

    def stored(self):
        with self.transaction(readonly=True) as transaction:
            cursor = transaction.connection.cursor()
            cursor.execute('SELECT identity FROM email_queue_identity')
            return cursor.fetchall()

    def errors(self):
        "Return what the administrator sees after another run"
        self.run_cron()
        with self.transaction(readonly=True):
            return [
                (e.message, e.description)
                for e in Pool().get('ir.error').search([])]

    def test_first_send(self):
        """Test the first email that is sent stores the identity, an empty run
        does not
        """
        self.send_all()
        self.assertEqual(self.stored(), [])
        self.queue()
        self.send_all()
        with self.transaction(readonly=True):
            current = identity.current()
        self.assertEqual(self.stored(), [(current,)])
        self.queue()
        self.send_all()
        self.assertEqual(len(self.server.received), 2)

    def test_record(self):
        "Test sending one record stores the identity, too"
        id_ = self.queue()
        with self.transaction():
            Pool().get('email.queue')(id_).send()
        self.assertEqual(len(self.stored()), 1)

    def test_send_all(self):
        "Test a copy sends nothing and reports it once"
        self.move()
        id_ = self.queue()
        with self.assertLogs(RUN.replace('run', 'identity')) as logs:
            errors = self.errors()
        self.assertIn('1 emails wait', logs.output[0])
        self.queue()
        self.assertEqual(self.errors(), errors)
        (text, description), = errors
        self.assertIn("looks like a copy", text)
        self.assertIn("Emails of a Copied Database", description)
        self.assertFalse(self.server.received)
        self.assertEqual(self.read(id_, 'state'), 'outbox')

    def test_send(self):
        "Test neither send nor the task of a worker sends"
        self.move()
        id_ = self.queue()
        with self.transaction():
            email = Pool().get('email.queue')(id_)
            with self.assertRaisesRegex(EmailQueueError, "copy"):
                email.send()
            email.send_queued([email])
        self.assertFalse(self.server.received)
        self.assertEqual(self.read(id_, 'state'), 'outbox')

    def test_notice(self):
        "Test the notice is shown to users"
        self.assertIsNone(self.read(self.queue(), 'notice'))
        self.move()
        self.assertIn("copy", self.read(self.queue(), 'notice'))

    def decide(self, session, state):
        id_, *_ = session(f'{WIZARD}.create', {})
        try:
            shown = session(f'{WIZARD}.execute', id_, {}, 'start', {})
            session(
                f'{WIZARD}.execute', id_, {'start': {}}, state, {})
        finally:
            session(f'{WIZARD}.delete', id_, {})
        return shown['view']['defaults']

    def test_send_them(self):
        self.move()
        self.queue()
        shown = self.decide(self.postmaster, 'send_emails')
        self.assertEqual(shown['waiting'], 1)
        self.assertEqual(shown['sent_from'], ANOTHER)
        self.assertIn("copy", shown['notice'])
        self.assertIn("Waiting emails: 1.", shown['notice'])
        self.assertTrue(shown['is_copy'])
        self.send_all()
        self.assertEqual(len(self.server.received), 1)

    def test_cancel_them(self):
        self.move()
        ids = self.queue_each_state()
        self.decide(self.postmaster, 'cancel_emails')
        self.assertEqual(
            {s: self.read(i, 'state') for s, i in ids.items()}, {
                'outbox': 'cancelled', 'sending': 'cancelled',
                'sent': 'sent', 'failed': 'failed',
                'cancelled': 'cancelled'})
        self.queue('new@example.com')
        self.send_all()
        self.assertEqual(
            [m.to_addrs for m in self.server.received],
            [('new@example.com',)])

    def test_original(self):
        "Test the wizard does not cancel the emails of an original"
        id_ = self.queue()
        with self.assertRaisesRegex(RPCError, "does not look like a copy"):
            self.decide(self.postmaster, 'cancel_emails')
        self.assertEqual(self.read(id_, 'state'), 'outbox')

    def test_access(self):
        "Test only the group decides, and no client sees the identity"
        self.move()
        before = self.rows(), self.stored()
        for state in ['send_emails', 'cancel_emails']:
            with self.assertRaises(RPCError):
                self.decide(self.clerk, state)
        for method in ['read', 'search', 'write', 'delete', 'create']:
            for session in self.sessions:
                with self.assertRaises(RPCError) as cm:
                    session.call('email.queue.identity', method, [1])
                self.assertEqual(cm.exception.name, 'FORBIDDEN')
        self.assertEqual((self.rows(), self.stored()), before)


class HoldSettingTestCase(QueueTestCase):
    "Test hold"

    def test_hold(self):
        id_ = self.queue()
        with configured(hold='True'), self.assertLogs(RUN) as logs:
            self.send_all()
            with self.transaction():
                email = Pool().get('email.queue')(id_)
                email.send_queued([email])
                with self.assertRaisesRegex(EmailQueueError, "hold"):
                    email.send()
            self.assertIn("hold", self.read(id_, 'notice'))
        self.assertEqual(
            [r.getMessage() for r in logs.records],
            ["hold is set: nothing is sent"] * 2)
        self.assertFalse(self.server.received)
        with configured(hold='no'):
            self.send_all()
        self.assertEqual(self.read(id_, 'state'), 'sent')

    def test_invalid(self):
        "Test nothing is sent while the value is not valid"
        id_ = self.queue()
        for values in [
                {'hold': 'maybe'}, {'redirect': 'me'},
                {'redirect': 'a@example.com, b@example.com'}]:
            (name, value), = values.items()
            with configured(**values), \
                    self.assertRaisesRegex(
                        EmailQueueError, f'"{value}".*"{name}"'):
                self.send_all()
            with configured(**values):
                self.assertIn(name, self.read(id_, 'notice'))
        self.assertFalse(self.server.received)


class RedirectTestCase(QueueTestCase):
    "Test redirect"
    recipients = ['a@example.com', 'b@example.com', 'c@example.com']

    def redirected(self, address, to_addrs=None, **keywords):
        id_ = self.queue(to_addrs or self.recipients, **keywords)
        with configured(redirect=address), self.assertLogs(RUN) as logs:
            self.send_all()
            self.assertIn(address, self.read(id_, 'notice'))
        self.assertIn(f"everything is sent to {address}", logs.output[0])
        return id_

    def test_accepted(self):
        id_ = self.redirected('me@example.com')
        received, = self.server.received
        self.assertEqual(received.to_addrs, ('me@example.com',))
        self.assertEqual(
            received.data,
            b'X-Original-To: a@example.com,\r\n b@example.com,\r\n'
            b' c@example.com\r\n' + self.read(id_, 'msg'))
        self.assertNotIn(b'X-Original-To', self.read(id_, 'msg'))
        self.assertEqual(
            self.read(id_, 'to_addrs'), ', '.join(self.recipients))
        self.assertEqual(self.read(id_, 'state', 'refused'), ['sent', None])

    def test_refused(self):
        id_ = self.redirected('rcpt-550@example.com')
        state, refused = self.read(id_, 'state', 'refused')
        self.assertEqual(state, 'failed')
        self.assertEqual(
            [line.split()[:2] for line in refused.splitlines()],
            [[a, '550'] for a in self.recipients])
        self.assertFalse(self.server.received)

    def test_deferred(self):
        id_ = self.redirected('rcpt-450@example.com')
        state, error = self.read(id_, 'state', 'error')
        self.assertEqual(state, 'outbox')
        self.assertEqual(
            [line.split()[:2] for line in error.splitlines()],
            [[a, '450'] for a in self.recipients])

    def test_partly_accepted(self):
        "Test recipients who have the email already are left out"
        id_ = self.queue(['a@example.com', 'rcpt-450@example.com'])
        self.send_all()
        self.assertEqual(self.read(id_, 'accepted'), 'a@example.com')
        self.write(id_, scheduled_at=dt.datetime.now())
        with configured(redirect='me@example.com'):
            self.send_all()
        received = self.server.received[-1]
        self.assertEqual(received.to_addrs, ('me@example.com',))
        self.assertTrue(received.data.startswith(
                b'X-Original-To: rcpt-450@example.com\r\n'))
        self.assertEqual(self.read(id_, 'state'), 'sent')

    def test_uncertain(self):
        self.server.script['dot'] = 'close-taken'
        self.addCleanup(self.server.script.clear)
        id_ = self.redirected('me@example.com')
        self.assertEqual(
            self.read(id_, 'state', 'uncertain', 'accepted', 'refused'),
            ['outbox', True, None, None])

    def test_one_record(self):
        "Test send with the caller's session sends to this address, too"
        id_ = self.queue(self.recipients)
        with configured(redirect='me@example.com'), self.transaction(), \
                smtplib.SMTP('127.0.0.1', self.server.port) as session:
            Pool().get('email.queue')(id_).send(session)
        received, = self.server.received
        self.assertEqual(received.to_addrs, ('me@example.com',))

    def test_field(self):
        "Test the field has short lines of ASCII, whatever the recipients are"
        many = [f'r{i}@example.com' for i in range(1000)]
        for addresses in [
                many, ['jö@example.com'], ['x' * 900],
                ['a@example.com\r\nBcc: b@example.com\r\n\r\nBody'],
                ['ö\r\nBcc: b@example.com'], [' ']]:
            with self.subTest(address=addresses[0]):
                field = mime.original_to(addresses)
                self.assertTrue(field.isascii())
                self.assertLessEqual(
                    max(map(len, field.split(b'\r\n'))), 998)
                parsed = message_from_bytes(field + MESSAGE)
                self.assertEqual(
                    parsed.keys(), ['X-Original-To', 'Subject'])


@unittest.skipUnless(backend.name == 'sqlite', "of a file")
class SQLiteTestCase(ProcessTestCase):
    "Test the file of a database"

    def test_file(self):
        self.queue('r@example.com')
        self.copy()
        with Senders(self.database) as senders:
            senders.join(*senders.start())
        self.assertEqual(self.states(), {'sent': 1})
        original = self.database
        path = Path(config.get('database', 'path'))
        self.database = f'{original}copy'
        copy = path / f'{self.database}.sqlite'
        shutil.copy(path / f'{original}.sqlite', copy)
        self.addCleanup(copy.unlink)
        with Transaction().start(self.database, 0) as transaction:
            cursor = transaction.connection.cursor()
            cursor.execute("UPDATE email_queue SET state = 'outbox'")
        for database, state in [
                (self.database, 'outbox'), (original, 'sent')]:
            self.database = database
            with Senders(database) as senders:
                senders.join(*senders.start())
            self.assertEqual(self.states(), {state: 1})
        self.assertEqual(len(self.server.received), 1)


@unittest.skipIf(backend.name == 'sqlite', "of a server")
class PostgreSQLTestCase(ProcessTestCase):
    "Test copies that an administrator makes"

    def test_copies(self):
        self.queue('first@example.com')
        with PostgreSQL() as postgresql:
            # The database that is copied here has sent nothing
            self.move_to(postgresql)
            self.assertEqual(self.sends(postgresql, DB_NAME), ['sent'])
            self.assertEqual(self.resend(postgresql, DB_NAME), ['sent'])
            self.dump(postgresql, DB_NAME, 'restored')
            postgresql.createdb('cloned', '-T', DB_NAME)
            for name in ['restored', 'cloned']:
                with self.subTest(name=name):
                    self.assertEqual(
                        self.resend(postgresql, name), ['outbox'])
            postgresql.restart('fast')
            self.assertEqual(self.resend(postgresql, DB_NAME), ['sent'])
            self.upgrade(postgresql, DB_NAME)
            self.assertEqual(self.resend(postgresql, DB_NAME), ['sent'])
            with PostgreSQL() as other:
                other.createdb(DB_NAME)
                self.restore(
                    self.dumped(postgresql, DB_NAME), other, DB_NAME)
                self.assertEqual(self.resend(other, DB_NAME), ['outbox'])
            self.psql(
                postgresql, 'template1',
                f'ALTER DATABASE {DB_NAME} RENAME TO renamed')
            self.assertEqual(self.resend(postgresql, 'renamed'), ['outbox'])
        self.assertEqual(len(self.server.received), 4)

    def test_forbidden(self):
        "Test the identity if a hosted database forbids the function"
        with self.transaction() as transaction:
            cursor = transaction.connection.cursor()
            allowed = identity.current()
            for statement in [
                    'CREATE ROLE email_queue_plain',
                    'REVOKE EXECUTE ON FUNCTION pg_control_system() '
                    'FROM PUBLIC',
                    'SET LOCAL ROLE email_queue_plain']:
                cursor.execute(statement)
            forbidden = identity.current()
            transaction.rollback()
        _, oid, name = allowed.split()
        self.assertEqual(forbidden.split(), [oid, name])
        self.assertEqual(name, DB_NAME)

    def sends(self, postgresql, name):
        "Return the states after a run"
        with Senders(name, uri=postgresql.uri) as senders:
            senders.join(*senders.start())
        return self.psql(
            postgresql, name, 'SELECT state FROM email_queue').split()

    def resend(self, postgresql, name):
        self.psql(
            postgresql, name, "UPDATE email_queue SET state = 'outbox'")
        return self.sends(postgresql, name)

    def psql(self, postgresql, name, query):
        return self.program(
            'psql', '-qtAc', query, f'{postgresql.uri}{name}').decode()

    def dump(self, postgresql, source, target):
        postgresql.createdb(target)
        self.restore(self.dumped(postgresql, source), postgresql, target)

    def dumped(self, postgresql, name):
        return self.program('pg_dump', '-Fc', f'{postgresql.uri}{name}')

    def restore(self, dump, postgresql, name):
        self.program(
            'pg_restore', '-d', f'{postgresql.uri}{name}', input=dump)

    def program(self, name, *args, **options):
        return subprocess.run(
            [bin_directory() / name, *args], check=True,
            stdout=subprocess.PIPE, **options).stdout

    def upgrade(self, postgresql, name):
        subprocess.run([
                Path(sys.executable).with_name('trytond-admin'),
                '-d', name, '-u', 'email_queue'],
            env={**os.environ, 'TRYTOND_DATABASE__URI': postgresql.uri},
            check=True)


del ProcessTestCase, QueueTestCase, RPCTestCase
