# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Who may press what, whatever a client puts into its calls."""
import unittest

from werkzeug.test import Client

from trytond.pool import Pool
from trytond.protocols.wrappers import Response
from trytond.tests.test_tryton import DB_NAME
from trytond.transaction import Transaction
from trytond.wizard import StateView, Wizard
from trytond.wsgi import app

from ..access import QueueWizard
from .jsonrpc import PASSWORD, RPCError, RPCTestCase, Session

MODULE = 'trytond.modules.email_queue.'
REFUSED = {'UserError', 'FORBIDDEN', 'NOT_FOUND', 'UNPROCESSABLE_ENTITY'}
# Methods that tell a client nothing about any email
HARMLESS = {
    'autocomplete', 'default_get', 'fields_get', 'fields_view_get',
    'history_revisions', 'on_change', 'on_change_notify', 'on_change_with',
    'on_scan_code', 'pre_validate', 'resources', 'view_toolbar_get',
    'get_refused', 'get_resources'}


def classes(type_):
    "Yield the classes of the pool whose code is in this module"
    for name, cls in Pool().iterobject(type=type_):
        if any(c.__module__.startswith(MODULE) and '__name__' in vars(c)
                and vars(c)['__name__'] == name
                and name.startswith('email.queue')
                for c in cls.__mro__):
            yield cls


class BorderTestCase(RPCTestCase):
    "Tests with a further user, whose group has nothing to do with the queue"

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        with Transaction().start(DB_NAME, 0):
            User = Pool().get('res.user')
            if not User.search([('login', '=', 'portal')]):
                group, = Pool().get('res.group').create([{'name': "Portal"}])
                User.create([{
                            'name': 'portal', 'login': 'portal',
                            'password': PASSWORD,
                            'groups': [('add', [group.id])]}])
        cls.sessions = [*cls.sessions, Session('portal')]

    def setUp(self):
        super().setUp()
        self.ids = self.queue_each_state()
        with self.transaction():
            User = Pool().get('res.user')
            User.write(
                [User(s.id) for s in self.sessions],
                {'email': 'user@example.com'})
        self.before = self.everything()

    def everything(self):
        "Return everything that a stranger could have changed"
        with self.transaction(readonly=True) as transaction:
            cursor = transaction.connection.cursor()
            cursor.execute('SELECT id, identity FROM email_queue_identity')
            identity = cursor.fetchall()
        return self.rows(), identity

    def contexts(self):
        "Yield what a client can put into the context of a call"
        with self.transaction(readonly=True):
            pool = Pool()
            actions = [
                a.action.id for a in pool.get('ir.action.wizard').search([])]
            window, = pool.get('ir.action.act_window').search([], limit=1)
            actions.insert(0, window.action.id)
            user = pool.get('res.user').search(
                [('login', '=', 'clerk')])[0].id
        yield {}
        for action in [None, 999999, *actions[:3]]:
            yield {'action_id': action}
            for model, id_ in [
                    ('res.user', user), ('email.queue', self.ids['outbox'])]:
                yield {
                    'action_id': action, 'active_model': model,
                    'active_id': id_, 'active_ids': [id_]}
        yield {'_check_access': False, '_groups': [1], 'groups': [1]}
        yield {'user': 0, '_user': 0, 'administrator': True}

    def refused(self, session, method, *params):
        with self.assertRaises(RPCError) as cm:
            session(method, *params)
        self.assertIn(cm.exception.name, REFUSED)


class WizardsTestCase(BorderTestCase):
    "Test every wizard, in each of its states"

    def wizards(self):
        with self.transaction(readonly=True):
            found = {
                cls.__name__: (cls.states, cls.start_state, cls.end_state)
                for cls in classes('wizard')}
        self.assertGreaterEqual(len(found), 3)
        return found.items()

    def test_kind(self):
        "Test each wizard checks by itself who the user is"
        with self.transaction(readonly=True):
            for cls in classes('wizard'):
                with self.subTest(cls.__name__):
                    self.assertTrue(issubclass(cls, QueueWizard))
                    self.assertTrue(issubclass(cls, Wizard))

    def test_strangers(self):
        "Test nobody else begins, continues or ends a wizard"
        for name, (states, start, end) in self.wizards():
            foreign, *_ = self.postmaster(f'wizard.{name}.create', {})
            self.addCleanup(
                self.postmaster, f'wizard.{name}.delete', foreign, {})
            data = {
                state_name: {'id': -1, **dict.fromkeys(
                        {'address', 'to_addr'} & set(self.fields(state)),
                        'jane@example.com')}
                for state_name, state in states.items()
                if isinstance(state, StateView)}
            for session in self.strangers:
                for context in self.contexts():
                    with self.subTest(
                            name, user=session.login, context=context):
                        self.refused(
                            session, f'wizard.{name}.create', context)
                        for state in states.keys() | {start, end}:
                            self.refused(
                                session, f'wizard.{name}.execute', foreign,
                                data, state, context)
                        self.refused(
                            session, f'wizard.{name}.delete', foreign, context)
        self.assertEqual(self.everything(), self.before)

    def fields(self, state):
        with self.transaction(readonly=True):
            return list(Pool().get(state.model_name)._fields)

    def test_readers(self):
        "Test everyone who looks after the queue can begin each wizard"
        for name, (_, start, _) in self.wizards():
            for session in self.readers:
                for context in [{}, {'action_id': 999999}]:
                    with self.subTest(
                            name, user=session.login, context=context):
                        id_, *_ = session(f'wizard.{name}.create', context)
                        result = session(
                            f'wizard.{name}.execute', id_, {}, start, context)
                        self.assertTrue(result['view'])
                        session(f'wizard.{name}.delete', id_, context)


class ModelsTestCase(BorderTestCase):
    "Test every method of every model that a client can call"

    def methods(self):
        with self.transaction(readonly=True):
            return [
                (cls.__name__, sorted(cls.__rpc__),
                    set(getattr(cls, '_buttons', ())))
                for cls in classes('model')]

    def params(self, method, buttons):
        ids = list(self.ids.values())
        if method in buttons:
            yield [ids]
            yield [[]]
        else:
            yield from {
                'read': [[ids, ['msg', 'file_id', 'subject']]],
                'search': [[[], 0, None, None]],
                'search_count': [[[]]],
                'search_read': [[[], 0, None, None, ['msg']]],
                'export_data': [[ids, ['msg', 'file_id']]],
                'export_data_domain': [[[], ['msg'], 0, None, None]],
                'create': [[[{'from_addr': 'a@example.com'}]]],
                'write': [[ids, {'state': 'sent'}]],
                'delete': [[ids]],
                'copy': [[ids]],
                'import_data': [[['subject'], [['x']]]],
                }.get(method, [[ids], [], [[]]])

    def test_strangers(self):
        "Test nobody else reads or changes anything"
        called = set()
        contexts = list(self.contexts())
        for name, methods, buttons in self.methods():
            for method in methods:
                if method in HARMLESS and method not in buttons:
                    continue
                called.add(method)
                for session in self.strangers:
                    for context in contexts:
                        for params in self.params(method, buttons):
                            with self.subTest(
                                    f'{name}.{method}', params=params,
                                    user=session.login, context=context):
                                self.is_told_nothing(
                                    session, f'model.{name}.{method}',
                                    *params, context)
        self.assertLessEqual({'send_now', 'read', 'search'}, called)
        self.assertEqual(self.everything(), self.before)

    def is_told_nothing(self, session, method, *params):
        try:
            result = session(method, *params)
        except RPCError:
            return
        self.assertFalse(result)

    def test_sensitive(self):
        "Test not even a member of the group learns a secret"
        secrets = [
            self.queue(
                msg=b'Subject: Reset\r\n\r\nsecret\r\n', sensitive=True)
            for _ in range(2)]
        orders = []
        for files in [('a-secret', 'z-secret'), ('z-secret', 'a-secret')]:
            with self.transaction() as transaction:
                for id_, file_id in zip(secrets, files):
                    transaction.connection.cursor().execute(
                        f"UPDATE email_queue SET file_id = '{file_id}' "
                        f"WHERE id = {id_}")
            for session in self.readers:
                with self.subTest(user=session.login, files=files):
                    self.knows_nothing(session, secrets)
                    orders.append(session.queue(
                            'search', [('id', 'in', secrets)], 0, None,
                            [('file_id', 'ASC'), ('id', 'ASC')]))
        self.assertEqual(orders, [secrets] * len(orders))

    def knows_nothing(self, session, secrets):
        for name in ['file_id', 'msg']:
            for row in session.queue('read', secrets, [name]):
                self.assertIsNone(row[name])
            self.assertNotIn('secret', str(session.queue(
                        'export_data', secrets, [name])))
            for domain in [
                    [(name, '!=', None)],
                    [('rec_name', '!=', 'x'), (name, '!=', None)],
                    [('file_id', 'like', '%secret')],
                    ]:
                self.assertFalse(set(secrets) & set(session.queue(
                            'search', domain, 0, None, None)))


class ReportsTestCase(BorderTestCase):
    "Test every report"

    def test_none(self):
        "Test there is no report that a client could execute"
        with self.transaction(readonly=True):
            self.assertFalse(list(classes('report')))


class URLsTestCase(BorderTestCase):
    "Test every URL"

    def setUp(self):
        super().setUp()
        with self.transaction():
            Application = Pool().get('res.user.application')
            self.keys = {
                s: Application.create([{
                            'user': s.id, 'application': 'email_queue',
                            'state': 'validated'}])[0].key
                for s in self.sessions}

    def urls(self):
        """Yield the method and the path of all URLs whose code is in this
        module
        """
        for rule in app.url_map.iter_rules():
            module = getattr(rule.endpoint, '__module__', '')
            if module.startswith(MODULE):
                _, url = rule.build({'database_name': DB_NAME})
                yield from ((m, url) for m in rule.methods)

    def test_users(self):
        "Test only a member gets an answer, whatever comes with the request"
        urls = list(self.urls())
        self.assertTrue(urls)
        client = Client(app, Response)
        members = {self.postmaster}
        for session in [None, *self.sessions]:
            headers = {}
            if session:
                headers['Authorization'] = f'Bearer {self.keys[session]}'
            for method, url in urls:
                for query in [
                        {}, {'action_id': 999999}, {'user': 0},
                        {'active_model': 'res.user', 'active_id': 1}]:
                    with self.subTest(
                            user=session and session.login, url=url,
                            method=method, query=query):
                        status = client.open(
                            url, method=method, headers=headers,
                            query_string=query).status_code
                        if session in members:
                            self.assertEqual(status, 200)
                        else:
                            self.assertIn(status, {401, 403})
        self.assertEqual(self.everything(), self.before)


del RPCTestCase, BorderTestCase


if __name__ == '__main__':
    unittest.main()
