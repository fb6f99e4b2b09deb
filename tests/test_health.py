# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The health of the queue: numbers, route, command, and notifications."""
import datetime as dt
import json
import os
import socket
import subprocess
import sys
import time
import unittest
import unittest.mock
from pathlib import Path
from tempfile import NamedTemporaryFile
from unittest.mock import patch
from urllib.parse import quote

from werkzeug.test import Client

from trytond import backend
from trytond.pool import Pool
from trytond.protocols.wrappers import Response
from trytond.tests.test_tryton import DB_NAME
from trytond.wsgi import app

from .. import metrics
from ..exceptions import EmailQueueError
from ..health import Numbers
from .jsonrpc import RPCError, RPCTestCase
from .postgresql import free_port
from .tools import QueueTestCase, configured

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / 'bin' / 'trytond-email-queue-health'
MINUTE, DAY = dt.timedelta(minutes=1), dt.timedelta(days=1)


class Ages:
    "Emails that have been due for some time"

    def put(self, due_for, state='outbox', **keywords):
        "Queue an email that became due so long ago and return its id"
        id_ = self.queue(**keywords)
        self.write(
            id_, state=state, scheduled_at=dt.datetime.now() - due_for)
        return id_

    def measure(self):
        with self.transaction(readonly=True):
            return Pool().get('email.queue.health').measure()


class NumbersTestCase(Ages, QueueTestCase):
    "Test the numbers"

    def test_empty(self):
        self.assertEqual(self.measure(), Numbers(0, 0, 0, 0, 900, 0))

    def test_states(self):
        "Test each state, due and not"
        for state in ['outbox', 'sending', 'sent', 'failed', 'cancelled']:
            for due_for in [MINUTE, -DAY]:
                self.put(due_for, state)
        numbers = self.measure()
        self.assertEqual(numbers[:3], (2, 4, 2))
        self.assertGreaterEqual(numbers.age, 60)
        self.assertLess(numbers.age, 600)

    def test_reasons(self):
        "Test emails with a reason are counted by their reason, in each state"
        for state, reason, count in [
                ('failed', 'expired', 2), ('failed', 'refused', 1),
                ('outbox', 'deferred', 2), ('sending', 'deferred', 1),
                ('cancelled', 'refused', 1), ('sent', None, 1)]:
            for _ in range(count):
                id_ = self.put(MINUTE, state)
                self.write(id_, reason=reason)
        self.assertEqual(self.measure().reasons, {
                'failed': {'expired': 2, 'refused': 1},
                'waiting': {'deferred': 3}})

    def test_oldest(self):
        "Test the oldest email is found, whatever its priority and state are"
        self.put(20 * DAY, 'sent')
        self.put(20 * DAY, 'failed')
        self.put(-DAY, priority='urgent')
        oldest = MINUTE
        for values in [
                {'priority': 'urgent'}, {'priority': 'bulk'},
                {'priority': 'normal'}, {'state': 'sending'}]:
            with self.subTest(**values):
                oldest *= 2
                self.put(oldest, **values)
                age = self.measure().age
                self.assertGreaterEqual(age, oldest.total_seconds())
                self.assertLess(age, oldest.total_seconds() + 60)

    def test_limits(self):
        "Test when the queue is healthy, at and beyond the limits"
        for values, healthy in [
                ((0, 0, 0, 0, 900, 0), True),
                ((1, 1, 9, 900, 900, 0), True),
                ((1, 1, 0, 901, 900, 0), False),
                ((0, 0, 1, 0, 900, 2), True),
                ((0, 0, 2, 0, 900, 2), False),
                ]:
            with self.subTest(values=values):
                self.assertEqual(Numbers(*values).healthy, healthy)

    def test_configuration(self):
        self.put(10 * MINUTE)
        self.put(MINUTE, 'failed')
        self.assertTrue(self.measure().healthy)
        for option, value in [('health_age', 300), ('health_failed', 1)]:
            with self.subTest(option=option), configured(**{option: value}):
                self.assertFalse(self.measure().healthy)
        for option in ['health_age', 'health_failed']:
            with self.subTest(option=option), configured(**{option: -1}):
                with self.assertRaises(EmailQueueError):
                    self.measure()

    @unittest.skipUnless(backend.name == 'postgresql', "it has no settings")
    def test_session(self):
        "Test the connection of the caller keeps its settings"
        names = [
            'statement_timeout', 'lock_timeout',
            'default_transaction_isolation', 'tcp_keepalives_idle']

        def settings(transaction):
            cursor = transaction.connection.cursor()
            for name in names:
                cursor.execute(f'SHOW {name}')
                yield cursor.fetchone()[0]

        with self.transaction() as transaction:
            before = list(settings(transaction))
            Pool().get('email.queue.health').watch()
            self.assertEqual(list(settings(transaction)), before)

    @unittest.skipUnless(backend.name == 'postgresql', "it has other plans")
    def test_indexes(self):
        "Test no number reads the whole table"
        with self.transaction() as transaction:
            cursor = transaction.connection.cursor()
            cursor.execute("""
                INSERT INTO email_queue (from_addr, to_addrs, size, priority,
                    scheduled_at, attempts, crashes, state, subject)
                SELECT 'a', 'b', 1, '20', now() AT TIME ZONE 'UTC', 0, 0,
                    CASE WHEN i % 50 = 0 THEN 'outbox' ELSE 'sent' END,
                    repeat('x', 500)
                FROM generate_series(1, 50000) AS i""")
        with self.transaction() as transaction:
            connection = transaction.connection
            connection.cursor().execute('ANALYZE email_queue')
            plans = []
            execute = type(connection.cursor()).execute

            def explained(cursor, query, params=None, **keywords):
                if 'email_queue' in query:
                    other = connection.cursor()
                    execute(other, f'EXPLAIN {query}', params)
                    plans.append('\n'.join(row[0] for row in other))
                return execute(cursor, query, params, **keywords)

            with unittest.mock.patch.object(
                    type(connection.cursor()), 'execute', explained):
                numbers = Pool().get('email.queue.health').measure()
        self.assertEqual(numbers.waiting, 1000)
        self.assertEqual(len(plans), 11)
        for plan in plans:
            self.assertNotIn('Seq Scan', plan)


class HealthRouteTestCase(Ages, RPCTestCase):
    "Test what the server answers"

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.url = f'/{quote(DB_NAME)}/email_queue/health'

    def key(self, user, application='email_queue', state='validated'):
        with self.transaction():
            Application = Pool().get('res.user.application')
            record, = Application.create([{
                        'user': user.id,
                        'application': application,
                        'state': state,
                        }])
            return record.key

    def get(self, key=None, url=None):
        headers = {'Authorization': f'Bearer {key}'} if key else {}
        return Client(app, Response).get(url or self.url, headers=headers)

    def test_healthy(self):
        self.put(MINUTE)
        self.put(-DAY)
        response = self.get(self.key(self.postmaster))
        self.assertEqual(response.status_code, 200)
        self.assertEqual(response.mimetype, 'application/json')
        self.assertEqual(response.headers['Cache-Control'], 'no-store')
        values = json.loads(response.data)
        self.assertIn(values.pop('age'), range(60, 120))
        del values['servers']
        self.assertEqual(values, {
                'healthy': True,
                'due': 1,
                'waiting': 2,
                'failed': 0,
                'reasons': {'failed': {}, 'waiting': {}},
                'limits': {'age': 900, 'failed': None},
                })

    def test_servers(self):
        "Test the numbers of each server are those for Prometheus"
        self.enter_here(configured(uri_second=self.server.uri))
        self.put(MINUTE, server='second')
        self.put(MINUTE, 'failed')
        key = self.key(self.postmaster)
        servers = json.loads(self.get(key).data)['servers']
        self.assertEqual(servers.keys(), {'', 'second'})
        self.assertEqual(
            [(s['due'], s['failed']) for s in servers.values()],
            [(0, 1), (1, 0)])
        age = servers['second'].pop('oldest_due_seconds')
        self.assertIn(age, range(60, 120))
        with self.transaction(readonly=True):
            measured = metrics.measure()
        del measured['second']['oldest_due_seconds']
        self.assertEqual(servers, measured)

    def test_late(self):
        self.put(16 * MINUTE)
        response = self.get(self.key(self.postmaster))
        self.assertEqual(response.status_code, 503)
        self.assertEqual(json.loads(response.data)['healthy'], False)

    def test_failed(self):
        self.put(MINUTE, 'failed')
        key = self.key(self.postmaster)
        self.assertEqual(self.get(key).status_code, 200)
        with configured(health_failed=1):
            response = self.get(key)
        self.assertEqual(response.status_code, 503)
        self.assertEqual(
            json.loads(response.data)['limits'], {'age': 900, 'failed': 1})

    def test_without_key(self):
        for name, key in [
                ('none', None),
                ('unknown', '0' * 128),
                ('other application', self.key(self.postmaster, 'rest')),
                ('requested', self.key(self.postmaster, state='requested')),
                ('cancelled', self.key(self.postmaster, state='cancelled')),
                ]:
            with self.subTest(name):
                response = self.get(key)
                self.assertEqual(response.status_code, 401)
                self.assertNotIn(b'healthy', response.data)

    def test_members_only(self):
        for user in [self.clerk, self.administrator]:
            with self.subTest(user=user.login):
                response = self.get(self.key(user))
                self.assertEqual(response.status_code, 403)
                self.assertNotIn(b'healthy', response.data)

    def test_inactive_member(self):
        with self.transaction():
            # In a test of its own, because a deactivated user has no session
            # any more
            user, = Pool().get('res.user').create([{
                        'name': "Leaving",
                        'login': 'leaving',
                        'groups': [('add', [self.group()])],
                        }])
        key = self.key(user)
        self.assertEqual(self.get(key).status_code, 200)
        self.set_user(user, active=False)
        self.assertEqual(self.get(key).status_code, 403)

    def group(self):
        return Pool().get('ir.model.data').get_id(
            'email_queue.group_email_queue')

    def test_group_inherits(self):
        "Test the users of a group below the group are members, too"
        with self.transaction():
            Group = Pool().get('res.group')
            group, = Group.create([
                    {'name': "Night Shift", 'parent': self.group()}])
        self.addCleanup(self.delete, 'res.group', group.id)
        self.set_user(self.clerk, groups=[('add', [group.id])])
        self.addCleanup(
            self.set_user, self.clerk, groups=[('remove', [group.id])])
        self.assertEqual(self.get(self.key(self.clerk)).status_code, 200)

    def set_user(self, session, **values):
        with self.transaction():
            User = Pool().get('res.user')
            User.write([User(session.id)], values)

    def delete(self, model, id_):
        with self.transaction():
            Model = Pool().get(model)
            Model.delete([Model(id_)])

    def test_unknown_database(self):
        self.assertEqual(
            self.get(url='/nowhere/email_queue/health').status_code, 404)

    def test_key_by_client(self):
        "Test a member makes the key in the preferences of the client"
        self.assertIn(
            ['email_queue', "Email Queue"],
            [list(choice) for choice in self.postmaster.call(
                    'res.user.application', 'fields_get', ['application']
                    )['application']['selection']])
        id_, = self.postmaster.call('res.user.application', 'create', [{
                    'user': self.postmaster.id,
                    'application': 'email_queue',
                    }])
        row, = self.postmaster.call(
            'res.user.application', 'read', [id_], ['key', 'state'])
        self.assertEqual(self.get(row['key']).status_code, 200)

    def test_memory_is_out_of_reach(self):
        "Test no client reads or writes what the server remembers"
        for session in self.sessions:
            for method, *params in [
                    ('read', [1], ['create_date']),
                    ('delete', [1]),
                    ('watch',),
                    ]:
                with self.subTest(user=session.login, method=method):
                    with self.assertRaises(RPCError):
                        session.call('email.queue.health', method, *params)


class WatchTestCase(Ages, RPCTestCase):
    "Test who is notified that the queue is late, and how often"

    def setUp(self):
        super().setUp()
        self.addCleanup(self.forget)
        self.forget()

    def forget(self):
        with self.transaction() as transaction:
            cursor = transaction.connection.cursor()
            for table in ['email_queue_health', 'res_notification']:
                cursor.execute(f'DELETE FROM {table}')

    def watch(self):
        with self.transaction():
            Pool().get('email.queue.health').watch()

    def told(self):
        "Return the logins of the notified users, and the texts"
        with self.transaction(readonly=True):
            return [
                (n.user.login, n.label, n.description)
                for n in Pool().get('res.notification').search(
                    [], order=[('id', 'ASC')])]

    def test_on_time(self):
        self.put(14 * MINUTE)
        self.put(DAY, 'failed')
        self.put(DAY, 'sent')
        self.watch()
        self.assertEqual(self.told(), [])

    def test_hold(self):
        "Test the queue is not late while nothing is to be sent"
        self.put(20 * MINUTE)
        with configured(hold=True):
            self.watch()
        self.assertEqual(self.told(), [])
        self.watch()
        self.assertTrue(self.told())

    def test_scheduled(self):
        "Test emails that are deferred on purpose do not make the queue late"
        id_ = self.put(-MINUTE)
        with self.transaction() as transaction:
            t = Pool().get('email.queue').__table__()
            transaction.connection.cursor().execute(*t.update(
                    [t.create_date], [dt.datetime.now() - DAY],
                    where=t.id == id_))
        self.watch()
        self.assertEqual(self.told(), [])

    def test_late(self):
        self.put(20 * MINUTE)
        self.put(16 * MINUTE)
        self.watch()
        self.assertEqual(self.told(), [(
                    'postmaster', "The email queue is late",
                    "2 emails are due, the oldest for 20 minutes now.")])

    def test_once_until_recovered(self):
        id_ = self.put(16 * MINUTE)
        for _ in range(3):
            self.watch()
        self.put(30 * MINUTE)
        self.watch()
        self.assertEqual(len(self.told()), 1)
        self.write(id_, state='sent')
        self.watch()
        self.assertEqual(len(self.told()), 1)
        self.send_all()
        self.watch()
        self.watch()
        self.assertEqual(len(self.told()), 1)
        self.put(16 * MINUTE)
        self.watch()
        self.watch()
        self.assertEqual(len(self.told()), 2)

    def test_limit(self):
        self.put(10 * MINUTE)
        with configured(health_age=540):
            self.watch()
        self.assertEqual(len(self.told()), 1)

    def test_nobody_to_tell(self):
        "Test administrators are notified while nobody is in the group"
        def set_groups(action):
            with self.transaction():
                User = Pool().get('res.user')
                group = Pool().get('ir.model.data').get_id(
                    'email_queue.group_email_queue')
                User.write(
                    [User(self.postmaster.id)],
                    {'groups': [(action, [group])]})

        self.addCleanup(set_groups, 'add')
        set_groups('remove')
        self.put(16 * MINUTE)
        self.watch()
        self.assertEqual([user for user, *_ in self.told()], ['admin'])
        set_groups('add')
        self.watch()
        self.assertEqual(len(self.told()), 1)

    def test_scheduled_action(self):
        "Test the scheduler notifies while the server takes nothing"
        with self.transaction():
            Cron = Pool().get('ir.cron')
            crons = Cron.search([
                    ('method', 'in', [
                            'email.queue|send_all',
                            'email.queue.health|watch']),
                    ])
            self.assertEqual(
                {(c.method, c.interval_number, c.interval_type)
                    for c in crons},
                {('email.queue|send_all', 1, 'minutes'),
                    ('email.queue.health|watch', 5, 'minutes')})
            Cron.write(crons, {'next_call': None})
            Cron.write(
                Cron.search([('id', 'not in', [c.id for c in crons])]),
                {'next_call': dt.datetime.now() + DAY})
        self.server.script['greeting'] = '554 5.3.2 no'
        self.addCleanup(self.server.script.clear)
        self.put(16 * MINUTE)
        Pool(DB_NAME).get('ir.cron').run(DB_NAME)
        self.assertEqual(len(self.told()), 1)
        self.assertEqual(self.measure().due, 1)

    def test_by_hand(self):
        "Test an administrator runs the action"
        self.put(16 * MINUTE)
        cron, = self.administrator.call('ir.cron', 'search', [
                ('method', '=', 'email.queue.health|watch')])
        self.administrator.call('ir.cron', 'run_once', [cron])
        self.assertEqual([login for login, *_ in self.told()], ['postmaster'])


@unittest.skipUnless(SCRIPT.exists(), "the script is not beside the tests")
@unittest.skipIf(DB_NAME == ':memory:', "no other process sees the database")
class HealthCommandTestCase(Ages, QueueTestCase):
    "Test the command"

    def run_script(self, *args, **options):
        environ = {**os.environ, **{
                f'TRYTOND_EMAIL_QUEUE__{name.upper()}': str(value)
                for name, value in options.items()}}
        process = subprocess.run(
            [sys.executable, SCRIPT, *args], env=environ, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return process.returncode, process.stdout

    def test_status(self):
        self.put(-DAY)
        self.put(MINUTE, 'failed')
        status, output = self.run_script('-d', DB_NAME, '-t', '60')
        self.assertEqual((status, output), (0,
                "EMAIL QUEUE OK: 0 due, the oldest for 0 s, 1 waiting, "
                "1 failed | due=0 age=0s;;900 waiting=1 failed=1\n"))
        status, output = self.run_script(
            '-d', DB_NAME, '-t', '60', health_failed=1)
        self.assertEqual(status, 2)
        self.put(16 * MINUTE)
        status, output = self.run_script('-d', DB_NAME, '-t', '60')
        self.assertEqual(status, 2)
        self.assertRegex(
            output, r'^EMAIL QUEUE CRITICAL: 1 due, the oldest for 96\d s, ')

    def assertUnknown(self, *args, **options):
        started = time.monotonic()
        status, output = self.run_script(*args, **options)
        self.assertEqual(status, 3)
        self.assertRegex(output, r'\AEMAIL QUEUE UNKNOWN: .+\n\Z')
        # The start of the interpreter takes additional time
        self.assertLess(time.monotonic() - started, 5 + 5)
        return output

    def test_unknown(self):
        with NamedTemporaryFile('w', suffix='.conf') as broken:
            broken.write('[email]\nsecret of the user\n')
            broken.flush()
            for args in [
                    [], ['-d'], ['-d', DB_NAME, '--nonsense'],
                    ['-d', DB_NAME, 'more'],
                    ['-d', DB_NAME, '-t', 'x'], ['-d', DB_NAME, '-t', 'nan'],
                    ['-d', DB_NAME, '-c', '/nowhere/trytond.conf'],
                    ['-d', DB_NAME, '-c', '/'],
                    ['-d', DB_NAME, '-c', broken.name],
                    ['-d', 'nowhere', '-t', '1'],
                    ]:
                with self.subTest(args=args):
                    self.assertNotIn('secret', self.assertUnknown(*args))
        self.assertUnknown('-d', DB_NAME, health_age='x')
        for uri in [
                'postgresql://user:secret', 'user:secret[@localhost']:
            with self.subTest(uri), \
                    patch.dict(os.environ, TRYTOND_DATABASE__URI=uri):
                self.assertNotIn(
                    'secret', self.assertUnknown('-d', 'x', '-t', '2'))

    def test_no_answer(self):
        "Test a server that refuses, a server that is silent, and a lock"
        with socket.socket() as silent:
            silent.bind(('127.0.0.1', 0))
            silent.listen()
            port = silent.getsockname()[1]
            for uri in [
                    f'postgresql://x:secret@127.0.0.1:{free_port()}/',
                    f'postgresql://x:secret@127.0.0.1:{port}/']:
                with self.subTest(uri), \
                        patch.dict(os.environ, TRYTOND_DATABASE__URI=uri):
                    self.assertNotIn(
                        'secret', self.assertUnknown('-d', 'x', '-t', '1'))
        if backend.name == 'postgresql':
            with self.transaction() as transaction:
                transaction.connection.cursor().execute(
                    'LOCK TABLE email_queue IN ACCESS EXCLUSIVE MODE')
                self.assertUnknown('-d', DB_NAME, '-t', '2')

    def test_help(self):
        self.assertEqual(self.run_script('--help')[0], 0)

    def test_configuration_file(self):
        "Test the database is the database that the file names"
        environ = {
            name: value for name, value in os.environ.items()
            if not name.startswith('TRYTOND_DATABASE')}
        with NamedTemporaryFile('w', suffix='.conf') as conf:
            conf.write(
                '[database]\n'
                f'uri = {os.environ["TRYTOND_DATABASE__URI"]}\n')
            conf.flush()
            process = subprocess.run(
                [sys.executable, SCRIPT, '-c', conf.name, '-d', DB_NAME],
                env=environ, text=True, stdout=subprocess.PIPE)
        self.assertEqual(process.returncode, 0, process.stdout)


del QueueTestCase, RPCTestCase
