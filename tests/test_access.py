# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Who may do what over JSON-RPC, as clients do it, and over REST."""
import datetime as dt
import json
import threading
import unittest
from http import HTTPStatus
from unittest.mock import patch

from werkzeug.test import Client

from trytond import backend
from trytond.exceptions import UserError
from trytond.model.exceptions import AccessError
from trytond.modules.email_queue.exceptions import EmailQueueError
from trytond.pool import Pool
from trytond.protocols.wrappers import Response
from trytond.tests.test_tryton import DB_NAME
from trytond.transaction import Transaction, check_access
from trytond.wsgi import app

from .jsonrpc import RPCError, RPCTestCase
from .tools import configured

SECRET = b'Your secret is 42.'
BUTTONS = {
    'send_now': {'outbox'},
    'retry': {'failed', 'cancelled'},
    'cancel': {'outbox', 'failed'},
    'send_again': {'sent'},
    'send_to': {'failed'},
    }
# Everything that a client may call
CALLABLE = BUTTONS.keys() | {
    'autocomplete', 'default_get', 'export_data', 'export_data_domain',
    'fields_get', 'fields_view_get', 'get_resources', 'history_revisions',
    'on_change', 'on_change_notify', 'on_change_with', 'on_scan_code',
    'pre_validate', 'read', 'resources', 'search', 'search_count',
    'search_read', 'view_toolbar_get'}


class AccessReadTestCase(RPCTestCase):
    "Test who reads the queue"

    def reads(self):
        "Yield the ways in which a client reads something of an email"
        id_ = self.queue(
            msg=b'Subject: Reset\r\n\r\n' + SECRET + b'\r\n')
        body = [('msg', '!=', None)]
        yield 'read', [id_], ['msg', 'subject', 'rec_name']
        yield 'search', [], 0, None, None
        yield 'search', body, 0, None, None
        yield 'search', [], 0, None, [('msg', 'ASC')]
        yield 'search', ['OR', [('id', '=', -1)], body], 0, None, None
        yield 'search_count', []
        yield 'search_count', body
        yield 'search_read', [], 0, None, None, ['msg']
        yield 'search_read', body, 0, None, None, ['id']
        yield 'export_data', [id_], ['msg', 'rec_name']
        yield 'export_data_domain', body, ['msg'], 0, None, None
        yield 'autocomplete', 'Reset'

    def test_readers(self):
        "Test the queue's administrators read the queue"
        for method, *params in self.reads():
            for session in self.readers:
                with self.subTest(
                        user=session.login, method=method, params=params):
                    self.assertTrue(session.queue(method, *params))

    def test_body(self):
        "Test the message that is read is the message that was queued"
        id_ = self.queue(msg=b'Subject: Reset\r\n\r\n' + SECRET + b'\r\n')
        row, = self.postmaster.queue('read', [id_], ['msg'])
        self.assertIn(SECRET, row['msg'])

    def test_strangers(self):
        "Test nobody else reads anything of an email"
        for method, *params in self.reads():
            for session in self.strangers:
                with self.subTest(
                        user=session.login, method=method, params=params):
                    with self.assertRaises(RPCError) as cm:
                        session.queue(method, *params)
                    self.assertEqual(cm.exception.name, 'UserError')
                    self.assertIn('not allowed', str(cm.exception))

    def test_context(self):
        "Test a client cannot switch off the check of access"
        self.queue()
        for context in [
                {'_check_access': False},
                {'_user': 0},
                {'user': 0},
                ]:
            with self.subTest(context=context):
                with self.assertRaises(RPCError):
                    self.clerk.queue(
                        'search', [], 0, None, None, context=context)

    def test_relation(self):
        "Test nobody else searches emails by another model"
        self.queue()
        for session in self.sessions:
            domain = [
                # In 8.2 a search must name a resource
                ('resource', '=', f'res.user,{session.id}'),
                ('resource.msg', '!=', None, 'email.queue'),
                ]
            with self.subTest(user=session.login):
                if session in self.readers:
                    session.call('ir.email', 'search_count', domain)
                    continue
                with self.assertRaises(RPCError) as cm:
                    session.call('ir.email', 'search_count', domain)
                self.assertIn('"Email Queue"', str(cm.exception))

    def test_global_search(self):
        "Test the global search of the client does not find emails"
        self.queue(msg=b'Subject: Reset\r\n\r\nHello\r\n')
        self.assertFalse(list(self.clerk.call(
                    'ir.model', 'global_search', 'Reset', 10, 'ir.ui.menu')))

    def test_anonymous(self):
        "Test nobody reads an email without a session"
        client = Client(app, Response)
        response = client.post(
            f'/{DB_NAME}/rpc/', content_type='application/json',
            data=json.dumps({
                    'id': 1,
                    'method': 'model.email.queue.search',
                    'params': [[], 0, None, None, {}],
                    }))
        self.assertEqual(response.status_code, HTTPStatus.UNAUTHORIZED)


class ModifyTestCase(RPCTestCase):
    "Test nobody changes the queue except by its buttons"

    def modifications(self, id_):
        values = {
            'from_addr': 'shop@example.com',
            'to_addrs': 'jane@example.com',
            'msg': b'Subject: Forged\r\n\r\n',
            'size': 19,
            'scheduled_at': dt.datetime(2026, 1, 1),
            'state': 'outbox',
            }
        yield 'create', [values]
        yield 'write', [id_], {'to_addrs': 'thief@example.com'}
        yield 'write', [id_], {'state': 'sent'}
        yield 'write', [id_], {}
        yield 'copy', [id_], {}
        yield 'delete', [id_]
        yield 'import_data', list(values), [list(map(str, values.values()))]

    def test_rpc(self):
        "Test no user creates, writes, copies, deletes or imports"
        id_ = self.queue()
        before = self.rows()
        for method, *params in self.modifications(id_):
            for session in self.sessions:
                with self.subTest(
                        user=session.login, method=method, params=params):
                    with self.assertRaises(RPCError) as cm:
                        session.queue(method, *params)
                    self.assertEqual(cm.exception.name, 'FORBIDDEN')
        self.assertEqual(self.rows(), before)

    def test_model(self):
        "Test the model refuses all users, whatever rights they are given"
        id_ = self.queue()
        before = self.rows()
        for method, *params in self.modifications(id_):
            if method == 'import_data':
                # A copy creates a record
                continue
            for session in self.sessions:
                with self.subTest(
                        user=session.login, method=method, params=params):
                    # In 8.2 a copy fails before, because it lacks required
                    # values
                    with self.assertRaises(
                            UserError if method == 'copy' else AccessError):
                        self.modify(session, method, *params)
        self.assertEqual(self.rows(), before)

    def modify(self, session, method, *params):
        with self.transaction() as transaction:
            pool = Pool()
            Access = pool.get('ir.model.access')
            EmailQueue = pool.get('email.queue')
            Access.write(
                Access.search([('model', '=', 'email.queue')]),
                dict.fromkeys(
                    ['perm_read', 'perm_write', 'perm_create', 'perm_delete'],
                    True))
            with transaction.set_user(session.id), check_access():
                if method != 'create':
                    ids, *params = params
                    params = [EmailQueue.browse(ids), *params]
                getattr(EmailQueue, method)(*params)

    def test_methods(self):
        "Test a client can call no other methods than those it needs"
        id_ = self.queue()
        before = self.rows()
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            self.assertEqual(EmailQueue.__rpc__.keys(), CALLABLE)
            names = {
                n for n in dir(EmailQueue)
                if callable(getattr(EmailQueue, n))}
        self.assertLess(
            {'queue_mail', 'queue_mails', 'queue_message', 'send_all',
                'send', 'finished', 'verdict', 'check_modification', 'create',
                'write', 'delete', 'copy', 'import_data', 'restore_history'},
            names)
        for name in sorted(names - CALLABLE):
            with self.subTest(method=name):
                with self.assertRaises(RPCError) as cm:
                    self.administrator.queue(name, [id_])
                self.assertEqual(cm.exception.name, 'FORBIDDEN')
        self.assertEqual(self.rows(), before)
        self.assertFalse(self.server.received)

    def test_queue(self):
        "Test no client queues or sends"
        self.queue()
        for session in self.sessions:
            for method, *params in [
                    ('queue_mail', 'shop@example.com', ['jane@example.com'],
                        'Subject: Forged\r\n\r\n'),
                    ('queue_mails', [['shop@example.com', 'jane@example.com',
                                'Subject: Forged\r\n\r\n']]),
                    ('queue_message', 'To: jane@example.com\r\n\r\n'),
                    ('send_all',),
                    ('send', [1]),
                    ]:
                with self.subTest(user=session.login, method=method):
                    with self.assertRaises(RPCError) as cm:
                        session.queue(method, *params)
                    self.assertEqual(cm.exception.name, 'FORBIDDEN')
        self.assertEqual(len(self.rows()), 1)
        self.assertFalse(self.server.received)


class ButtonTestCase(RPCTestCase):
    "Test the buttons"

    def test_states(self):
        "Test each button works only in its states and only for its users"
        for button, states in BUTTONS.items():
            for session in self.sessions:
                self.clear()
                for state, id_ in self.queue_each_state().items():
                    with self.subTest(
                            button=button, user=session.login, state=state):
                        if session in self.readers and state in states:
                            session.queue(button, [id_])
                            continue
                        before = self.rows()
                        with self.assertRaises(RPCError) as cm:
                            session.queue(button, [id_])
                        self.assertEqual(cm.exception.name, 'UserError')
                        self.assertEqual(self.rows(), before)

    def test_retry(self):
        "Test an email that is retried is like a new email"
        for state in sorted(BUTTONS['retry']):
            id_ = self.queue(to_addrs=['jane@example.com', 'john@example.com'])
            self.write(
                id_, state=state, attempts=7, crashes=3, uncertain=True,
                error="550 no", accepted='jane@example.com',
                refused='john@example.com 550 no')
            self.insist('retry', id_)
            self.assertEqual(
                self.read(
                    id_, 'state', 'attempts', 'crashes', 'uncertain',
                    'expires_at', 'first_attempt', 'error', 'refused'),
                ['outbox', 0, 0, False, None, None, None, None])
            # These recipients have the email already
            self.assertEqual(self.read(id_, 'accepted'), 'jane@example.com')
            self.assertEqual(
                self.read(id_, 'write_uid'), self.postmaster.id)

    def insist(self, button, *ids):
        "Press a button that warns first"
        before = self.rows()
        with self.assertRaises(RPCError) as cm:
            self.postmaster.queue(button, ids)
        name, (key, text, _), *_ = cm.exception.args
        self.assertEqual(name, 'UserWarning')
        self.assertIn("twice", text)
        self.assertEqual(self.rows(), before)
        self.postmaster.call('res.user.warning', 'skip', key, False)
        self.postmaster.queue(button, ids)

    def test_retry_uncertain(self):
        "Test the warning names only emails that may have arrived"
        ids = [self.queue(msg=f'Subject: {n}'.encode()) for n in range(8)]
        self.write(*ids, state='failed')
        self.write(*ids[1:], uncertain=True)
        self.postmaster.queue('retry', ids[:1])
        with self.assertRaises(RPCError) as cm:
            self.postmaster.queue('retry', ids[1:])
        _, (_, _, names), *_ = cm.exception.args
        self.assertEqual(names.splitlines(), [
                *(f'{n} (jane@example.com)' for n in range(1, 6)), '…'])
        self.insist('retry', *ids[1:])
        self.assertEqual({self.read(i, 'state') for i in ids}, {'outbox'})

    def test_send_now(self):
        "Test an email after Send Now overtakes the others"
        late = self.queue(
            scheduled_at=dt.timedelta(days=1), priority='bulk')
        self.queue(to_addrs='john@example.com')
        self.postmaster.queue('send_now', [late])
        self.assertEqual(
            self.read(late, 'priority', 'state'), ['10', 'outbox'])
        with configured(connections=1):
            self.send_all()
        self.assertEqual(
            [m.to_addrs for m in self.server.received],
            [('jane@example.com',), ('john@example.com',)])

    def test_worker(self):
        "Test a worker sends at once what Send Now has made due"
        with configured('queue', worker=True):
            for button, state in [('send_now', 'outbox'), ('retry', 'failed')]:
                id_ = self.queue(scheduled_at=dt.timedelta(days=1))
                self.write(id_, state=state)
                with self.subTest(button=button):
                    self.postmaster.queue(button, [id_])
                    with self.transaction() as transaction:
                        cursor = transaction.connection.cursor()
                        cursor.execute('SELECT name FROM ir_queue')
                        self.assertEqual(
                            cursor.fetchall(), [('email_queue',)])
                        cursor.execute('DELETE FROM ir_queue')

    def test_cancel(self):
        "Test a cancelled email is not sent"
        id_ = self.queue()
        self.postmaster.queue('cancel', [id_])
        self.send_all()
        self.assertEqual(self.read(id_, 'state'), 'cancelled')
        self.assertFalse(self.server.received)

    def test_several(self):
        "Test a button works on several emails of the list"
        ids = [self.queue(), self.queue()]
        self.postmaster.queue('cancel', ids)
        self.assertEqual(
            {self.read(i, 'state') for i in ids}, {'cancelled'})
        self.postmaster.queue('retry', ids)
        self.assertEqual({self.read(i, 'state') for i in ids}, {'outbox'})

    def test_several_one_changed(self):
        "Test no email is changed if one of several cannot be"
        ids = [self.queue(), self.queue()]
        self.write(ids[1], state='sent')
        before = self.rows()
        with self.assertRaises(RPCError):
            self.postmaster.queue('cancel', ids)
        self.assertEqual(self.rows(), before)

    def test_changed(self):
        """Test an email that a sender has claimed in the meantime is not
        changed
        """
        for button, states in BUTTONS.items():
            self.clear()
            for state, id_ in self.queue_each_state().items():
                # The wizard that this button opens has a test of its own
                if state in states or button == 'send_to':
                    continue
                before = self.rows()
                with self.subTest(button=button, state=state):
                    with self.assertRaisesRegex(EmailQueueError, "changed"):
                        # Without checks of access, as they are after those of
                        # the button
                        with self.transaction(self.postmaster.id):
                            EmailQueue = Pool().get('email.queue')
                            getattr(EmailQueue, button)([EmailQueue(id_)])
                self.assertEqual(self.rows(), before)

    @unittest.skipIf(
        backend.name == 'sqlite', "a thread has no other connection")
    def test_race(self):
        """Test the sender wins if it claims at the moment when a button is
        pressed
        """
        id_ = self.queue()
        EmailQueue = Pool(DB_NAME).get('email.queue')
        hold = EmailQueue._keep_from_senders

        def claimed(*args):
            claim = threading.Thread(
                target=self.write, args=[id_], kwargs={'state': 'sending'})
            claim.start()
            claim.join()
            patcher.stop()
            return hold(*args)

        patcher = patch.object(
            EmailQueue, '_keep_from_senders', claimed)
        patcher.start()
        with self.assertRaises(RPCError) as cm:
            self.postmaster.queue('cancel', [id_])
        self.assertEqual(cm.exception.name, 'UserError')
        self.assertEqual(self.read(id_, 'state'), 'sending')

    def test_log(self):
        "Test the log shows who has pressed which button"
        id_ = self.queue()
        self.postmaster.queue('cancel', [id_])
        self.postmaster.queue('retry', [id_])
        with self.assertRaises(RPCError):
            self.postmaster.queue('retry', [id_])
        logs = self.postmaster.call(
            'ir.model.log', 'search_read',
            [('resource', '=', f'email.queue,{id_}')], 0, None,
            [('id', 'ASC')], ['user', 'event', 'target', 'action'])
        self.assertEqual(
            [(l['user'], l['event'], l['target'], l['action']) for l in logs],
            [
                (self.postmaster.id, 'button', 'cancel', "Cancel"),
                (self.postmaster.id, 'transition', 'state:cancelled',
                    "State : Cancelled"),
                (self.postmaster.id, 'button', 'retry', "Retry"),
                (self.postmaster.id, 'transition', 'state:outbox',
                    "State : Outbox"),
                ])


class RESTTestCase(RPCTestCase):
    "Test applications that have the key of a user"

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.keys = {}
        with Transaction().start(DB_NAME, 0):
            Application = Pool().get('res.user.application')
            for session in cls.sessions:
                application, = Application.create([{
                            'user': session.id,
                            'application': 'rest',
                            'state': 'validated',
                            }])
                cls.keys[session] = application.key

    def open(self, session, method, path='', data=None):
        response = Client(app, Response).open(
            f'/{DB_NAME}/rest/model/email.queue{path}', method=method,
            headers={'Authorization': f'bearer {self.keys[session]}'},
            json=data)
        return response.status_code

    def test_modify(self):
        "Test no application changes the queue"
        id_ = self.queue()
        before = self.rows()
        for session in self.sessions:
            for method, path, data in [
                    ('POST', '', {'from_addr': 'shop@example.com'}),
                    ('PUT', f'/{id_}', {'state': 'sent'}),
                    ('DELETE', f'/{id_}', None),
                    ('POST', '/queue_mail', {}),
                    ('POST', '/send_all', {}),
                    ('POST', f'/{id_}/send', {}),
                    ('POST', f'/{id_}/copy', {}),
                    ]:
                with self.subTest(
                        user=session.login, method=method, path=path):
                    self.assertIn(
                        self.open(session, method, path, data),
                        {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN})
        self.assertEqual(self.rows(), before)
        self.assertFalse(self.server.received)

    def test_read(self):
        "Test an application reads what its user reads"
        id_ = self.queue()
        for session in self.sessions:
            for path in ['?f=msg', f'/{id_}?f=msg']:
                with self.subTest(user=session.login, path=path):
                    self.assertEqual(
                        self.open(session, 'GET', path) == HTTPStatus.OK,
                        session in self.readers)


class CronTestCase(RPCTestCase):
    "Test the scheduled job, as an administrator sees it"

    def cron(self):
        crons = self.administrator.call(
            'ir.cron', 'search_read', [
                ('method', '=', 'email.queue|send_all'),
                ('active', 'in', [True, False]),
                ], 0, None, None, [
                'interval_number', 'interval_type', 'active', 'running',
                'rec_name', 'method:string'])
        self.assertEqual(len(crons), 1)
        return crons[0]

    def test_cron(self):
        "Test the job runs every minute"
        cron = self.cron()
        self.assertEqual(
            (cron['interval_number'], cron['interval_type']), (1, 'minutes'))
        self.assertTrue(cron['active'])
        self.assertFalse(cron['running'])
        self.assertEqual(cron['method:string'], "Send Queued Emails")

    def test_run_once(self):
        "Test an administrator runs the job by Run Once"
        id_ = self.queue()
        self.administrator.call('ir.cron', 'run_once', [self.cron()['id']])
        self.assertEqual(self.read(id_, 'state'), 'sent')
        self.assertEqual(len(self.server.received), 1)

    def test_run_once_others(self):
        "Test nobody else runs the job"
        id_ = self.queue()
        for session in [self.postmaster, self.clerk]:
            with self.assertRaises(RPCError):
                session.call('ir.cron', 'run_once', [self.cron()['id']])
        self.assertEqual(self.read(id_, 'state'), 'outbox')

    def test_run_once_trouble(self):
        "Test an administrator is shown what is wrong with the server"
        id_ = self.queue()
        self.server.stop()
        try:
            with self.assertRaises(RPCError) as cm:
                self.administrator.call(
                    'ir.cron', 'run_once', [self.cron()['id']])
        finally:
            self.server.start()
        self.assertEqual(cm.exception.name, 'UserError')
        self.assertIn("does not take emails", str(cm.exception))
        self.assertEqual(
            self.read(id_, 'state', 'attempts'), ['outbox', 0])

    def test_upgrade(self):
        "Test an upgrade keeps changes that an administrator has made"
        cron = self.cron()
        changed = {'interval_number': 3, 'interval_type': 'hours'}

        def write(values):
            self.administrator.call('ir.cron', 'write', [cron['id']], values)

        self.addCleanup(write, {n: cron[n] for n in changed})
        self.addCleanup(write, {'active': True})
        write(changed)
        write({'active': False})
        Pool(DB_NAME).init(update=['email_queue'])

        cron = self.cron()
        self.assertEqual({n: cron[n] for n in changed}, changed)
        self.assertFalse(cron['active'])
