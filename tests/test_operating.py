# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The page for who is called at night: its steps, and its commands as written.
"""
import datetime as dt
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from contextlib import contextmanager
from pathlib import Path

from trytond import backend
from trytond.pool import Pool
from trytond.tests.test_tryton import DB_NAME

from .jsonrpc import RPCTestCase
from .postgresql import free_port

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / 'doc' / 'usage' / 'operating.rst'
SECONDS = 60
HEALTH = 'trytond-email-queue-health -c trytond.conf -d DB'
COMMAND = re.compile(r'^ +((?:trytond-|curl ).*)$', re.M)


@unittest.skipUnless(PAGE.exists(), "the documentation is not installed")
@unittest.skipIf(DB_NAME == ':memory:', "no other process sees the database")
class OperatingTestCase(RPCTestCase):
    "Test the steps of the page"

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.directory = Path(cls.enter(tempfile.TemporaryDirectory()))
        cls.port = free_port()
        # All other options are in the environment
        cls.conf = cls.directory / 'trytond.conf'
        cls.configure(cls.server.uri)
        cls.commands = set(COMMAND.findall(PAGE.read_text('utf-8')))

    def setUp(self):
        super().setUp()
        self.configure(self.server.uri)
        with self.transaction() as transaction:
            cursor = transaction.connection.cursor()
            for table in ['email_queue_health', 'res_notification']:
                cursor.execute(f'DELETE FROM {table}')
            # Whatever other tests have done with the actions
            cursor.execute('UPDATE ir_cron SET next_call = NULL')

    @classmethod
    def configure(cls, uri):
        cls.conf.write_text(
            '[email]\n'
            f'uri = {uri}\n'
            'from = erp@example.com\n'
            '[web]\n'
            f'listen = 127.0.0.1:{cls.port}\n')

    def command(self, start, **replaced):
        "Return the words of the page's command that begins in this way"
        command, = ({c for c in self.commands if c == start}
            or {c for c in self.commands if c.startswith(start)})
        for name, value in {
                'trytond.conf': str(self.conf), '-d DB': f'-d {DB_NAME}',
                **replaced}.items():
            command = command.replace(name, value)
        return command

    def environ(self):
        environ = {
            name: value for name, value in os.environ.items()
            if not name.startswith('TRYTOND_EMAIL')}
        bins = [str(Path(sys.executable).parent), str(ROOT / 'bin')]
        environ['PATH'] = os.pathsep.join([*bins, environ['PATH']])
        return environ

    def run_command(self, start, **replaced):
        "Run a command of the page and return its status and output"
        process = subprocess.run(
            ['bash', '-c', self.command(start, **replaced)],
            env=self.environ(), text=True, timeout=SECONDS,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return process.returncode, process.stdout

    @contextmanager
    def running(self, command):
        process = subprocess.Popen(
            ['bash', '-c', f'exec {command}'], env=self.environ(),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def wait_for(self, condition):
        deadline = time.monotonic() + SECONDS
        while not condition():
            self.assertLess(time.monotonic(), deadline, "it took too long")
            time.sleep(0.1)

    def action(self, method):
        id_, = self.administrator.call('ir.cron', 'search', [
                ('method', '=', method)])
        return id_

    def run_once(self):
        self.administrator.call(
            'ir.cron', 'run_once', [self.action('email.queue|send_all')])

    def find(self, text, domain=()):
        "Return the ids that a text in the search box finds"
        return self.postmaster.queue(
            'search', [['rec_name', 'ilike', f'%{text}%'], *domain])

    def test_first_look(self):
        status, output = self.run_command(HEALTH)
        self.assertEqual(status, 0, output)
        self.assertRegex(output, r'^EMAIL QUEUE OK: 0 due')

    def test_server_is_down(self):
        id_ = self.queue()
        port = free_port()
        self.configure(f'smtp://127.0.0.1:{port}')
        scheduler = self.command('trytond-cron')
        # 2. See which step it does not take
        status, output = self.run_command(f'{HEALTH} --check')
        self.assertEqual(status, 2, output)
        self.assertIn('refused', output)
        test_email = 'trytond-admin -c trytond.conf --test-email'
        status, output = self.run_command(test_email)
        self.assertIn('refused', output)
        # What the page says is seen
        with self.running(scheduler):
            self.wait_for(self.open_errors)
        (error,) = self.open_errors()
        self.assertIn('refused', error['message'])
        # 3. Every email stays
        self.assertEqual(self.read(id_, 'state', 'attempts'), ['outbox', 0])
        # 4. By another server meanwhile
        self.configure(self.server.uri)
        status, output = self.run_command(f'{HEALTH} --check')
        self.assertEqual(status, 0, output)
        status, output = self.run_command(test_email)
        self.assertEqual((status, output), (0, ''))
        self.again()
        with self.running(scheduler):
            self.wait_for(lambda: self.read(id_, 'state') == 'sent')
        # 5. Process and Solve, which also runs the job
        id_ = self.queue()
        for button in ['process', 'solve']:
            self.administrator.call('ir.error', button, [error['id']])
        self.assertEqual(self.open_errors(), [])
        self.assertEqual(self.read(id_, 'state'), 'sent')

    def open_errors(self):
        return self.administrator.call('ir.error', 'search_read', [
                ('state', '!=', 'solved')], 0, None, None, ['message'])

    def again(self):
        "Let the scheduler run the action without waiting for the next minute"
        with self.transaction() as transaction:
            transaction.connection.cursor().execute(
                'UPDATE ir_cron SET next_call = NULL')

    def late(self):
        id_ = self.queue()
        self.write(
            id_, scheduled_at=dt.datetime.now() - dt.timedelta(minutes=20))
        return id_

    def test_queue_grows(self):
        id_ = self.late()
        status, output = self.run_command(HEALTH)
        self.assertEqual(status, 2, output)
        # The notification
        self.administrator.call('ir.cron', 'run_once', [
                self.action('email.queue.health|watch')])
        notification, = self.postmaster.call('res.notification', 'get')
        self.assertEqual(notification['label'], "The email queue is late")
        # 2. Somebody has stopped the action
        action = self.action('email.queue|send_all')
        self.administrator.call('ir.cron', 'write', [action], {
                'active': False})
        self.administrator.call('ir.cron', 'write', [action], {
                'active': True})
        self.run_once()
        self.assertEqual(self.read(id_, 'state'), 'sent')
        # The scheduler is started again
        id_ = self.late()
        self.again()
        with self.running(self.command('trytond-cron')):
            self.wait_for(lambda: self.read(id_, 'state') == 'sent')
            self.wait_for(lambda: self.administrator.call(
                    'ir.cron', 'read', [action], ['logs'])[0]['logs'])
        # 3. What cannot wait, and what is not wanted
        urgent, unwanted = self.late(), self.late()
        self.postmaster.queue('send_now', [urgent])
        self.postmaster.queue('cancel', [unwanted])
        self.run_once()
        self.assertEqual(self.read(urgent, 'state'), 'sent')
        self.assertEqual(self.read(unwanted, 'state'), 'cancelled')
        # 5. The queue has recovered
        status, output = self.run_command(HEALTH)
        self.assertEqual(status, 0, output)

    def test_sent_twice(self):
        id_ = self.queue(
            msg=b'Message-ID: <1.2@shop.example.com>\r\n\r\nHello\r\n')
        self.assertEqual(self.find('1.2@shop.example.com'), [id_])
        row, = self.postmaster.queue(
            'read', [id_], ['uncertain', 'crashes', 'create_date', 'resource'])
        self.assertEqual((row['uncertain'], row['crashes']), (False, 0))

    def test_customer_got_nothing(self):
        ids = {
            to: self.queue(f'{to}@example.com')
            for to in ['waiting', 'rcpt-550-5.1.1-jane', 'cancelled']}
        self.postmaster.queue('cancel', [ids['cancelled']])
        self.assertEqual(self.find('nobody@example.com'), [])
        self.assertEqual(
            self.find('waiting@example.com'), [ids['waiting']])
        self.postmaster.queue('send_now', [ids['waiting']])
        self.run_once()
        self.assertEqual(
            [self.read(i, 'state') for i in ids.values()],
            ['sent', 'failed', 'cancelled'])
        failed = ids['rcpt-550-5.1.1-jane']
        self.assertTrue(self.read(failed, 'error').startswith('550'))
        self.postmaster.queue('retry', [failed])
        self.postmaster.queue('retry', [ids['cancelled']])
        self.run_once()
        self.assertEqual(self.read(ids['cancelled'], 'state'), 'sent')

    @unittest.skipUnless(shutil.which('curl'), "curl is not installed")
    def test_ask_by_http(self):
        # 1. A user with nothing but the group
        group, = self.administrator.call('res.group', 'search', [
                ('name', '=', "Email Queue Administration")])
        user, = self.administrator.call('res.user', 'create', [{
                    'name': "Monitor",
                    'login': 'monitor',
                    'groups': [['add', [group]]],
                    }])
        # 2. On the tab Applications of the user
        self.administrator.call('res.user', 'write', [user], {
                'applications': [['create', [{'application': 'email_queue'}]]],
                })
        application, = self.administrator.call(
            'res.user.application', 'search_read', [('user', '=', user)],
            0, None, None, ['key', 'state'])
        self.assertEqual(application['state'], 'validated')
        replaced = {
            'https://erp.example.com': f'http://127.0.0.1:{self.port}',
            '/DB/': f'/{DB_NAME}/',
            'KEY': application['key'],
            }
        server = f'trytond -c {self.conf} -d {DB_NAME}'
        with self.running(server):
            self.wait_for(self.listens)
            status, output = self.run_command('curl', **replaced)
            self.assertEqual(status, 0, output)
            self.assertEqual(
                json.loads(output), self.answer())
            self.late()
            status, output = self.run_command('curl', **replaced)
            self.assertNotEqual(status, 0)
            self.assertIn('503', output)

    def answer(self):
        "Return what the page says, for an empty queue with one server"
        text = PAGE.read_text('utf-8')
        answer = json.loads(re.search(
                r'code-block:: json\n\n((?: +.*\n)+)', text)[1])
        answer.update(
            waiting=0, failed=0, reasons=dict.fromkeys(answer['reasons'], {}),
            servers={'': dict.fromkeys(answer['servers'][''], 0)})
        return answer

    def listens(self):
        try:
            socket.create_connection(('127.0.0.1', self.port)).close()
        except ConnectionRefusedError:
            return False
        return True

    def test_test_email(self):
        with self.transaction():
            User = Pool().get('res.user')
            User.write(
                [User(self.postmaster.id)], {'email': 'me@example.com'})
        session, _, _ = self.postmaster('wizard.email.queue.test.create', {})
        self.postmaster(
            'wizard.email.queue.test.execute', session,
            {'start': {}}, 'queue_email', {})
        self.assertTrue(self.find('me@example.com'))

    def test_search_a_large_queue(self):
        self.execute('CREATE EXTENSION pg_trgm')
        try:
            status, output = self.update_indexes()
            self.assertEqual(status, 0, output)
            indexed = self.execute(
                "SELECT indexdef FROM pg_indexes "
                "WHERE tablename = 'email_queue' AND indexdef LIKE '%gin%'")
            self.assertEqual(len(indexed), 4)
        finally:
            self.execute('DROP EXTENSION pg_trgm CASCADE')
            self.update_indexes()

    def update_indexes(self):
        # The database remembers which extensions there are
        backend.Database.clear_cache()
        return self.run_command('trytond-admin -c trytond.conf -d')

    def execute(self, query):
        with self.transaction() as transaction:
            cursor = transaction.connection.cursor()
            cursor.execute(query)
            return cursor.fetchall() if cursor.description else []

    def test_commands(self):
        "Test every command of the page is one that is run here"
        self.assertEqual(
            {c.split()[0] for c in self.commands},
            {'trytond-email-queue-health', 'trytond-admin', 'trytond-cron',
                'curl'})
        self.assertEqual(len(self.commands), 6)


del RPCTestCase
