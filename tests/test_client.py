# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What a client asks for, and gets, when the queue is opened in it."""
import json
import logging
from contextlib import contextmanager
from xml.etree import ElementTree

from trytond import backend
from trytond.pool import Pool
from trytond.pyson import PYSONDecoder

from .jsonrpc import STATES, RPCTestCase

TABS = ["Outbox", "Sending", "Failed", "Sent", "Cancelled", "All"]


class ClientTestCase(RPCTestCase):
    "Test the client"

    @contextmanager
    def statements(self):
        "Collect the SQL statements that are executed"
        logger = logging.getLogger(backend.Database.__module__)
        with self.assertLogs(logger, logging.DEBUG) as logs:
            statements = logs.output
            if backend.name != 'sqlite':
                yield statements
                return
            # A connection logs only if it was opened so
            with self.transaction(readonly=True) as transaction:
                connection = transaction.connection
            connection.set_trace_callback(logger.debug)
            try:
                yield statements
            finally:
                connection.set_trace_callback(None)

    def action(self):
        "Return the action of the menu, as the client loads it"
        with self.transaction(readonly=True):
            menu = Pool().get('ir.model.data').get_id(
                'email_queue.menu_email_queue')
        action, = self.postmaster.call(
            'ir.action.keyword', 'get_keyword', 'tree_open',
            ['ir.ui.menu', menu])
        return action

    def views(self):
        "Return the views of the action by type, with their elements"
        views = {}
        for view_id, type_ in self.action()['views']:
            view = self.postmaster.queue('fields_view_get', view_id, type_)
            views[type_] = view, ElementTree.fromstring(view['arch'])
        return views

    def test_menu(self):
        "Test the menu is under Administration, for the group"
        with self.transaction():
            pool = Pool()
            Menu = pool.get('ir.ui.menu')
            ModelData = pool.get('ir.model.data')
            User = pool.get('res.user')
            menu = Menu(ModelData.get_id('email_queue.menu_email_queue'))
            group = ModelData.get_id('email_queue.group_email_queue')
            administrator = User(self.administrator.id)

            self.assertEqual(menu.rec_name, "Administration / Email Queue")
            self.assertEqual([g.id for g in menu.groups], [group])

            administrator.groups = [*administrator.groups, group]
            administrator.save()
        self.addCleanup(self.leave, group)
        domain = [('name', '=', "Email Queue")]
        self.assertTrue(
            self.administrator.call('ir.ui.menu', 'search_count', domain))
        self.assertFalse(
            self.clerk.call('ir.ui.menu', 'search_count', domain))
        self.leave(group)
        self.assertEqual(
            self.administrator.call('ir.ui.menu', 'search_count', domain),
            self.has_bypass)

    def leave(self, group):
        with self.transaction():
            User = Pool().get('res.user')
            User.write(
                [User(self.administrator.id)],
                {'groups': [('remove', [group])]})

    def test_tabs(self):
        "Test each state has a tab that counts its emails"
        self.queue_each_state()
        action = self.action()
        self.assertEqual(action['res_model'], 'email.queue')
        self.assertEqual([name for name, _, _ in action['domains']], TABS)
        for name, domain, count in action['domains']:
            with self.subTest(tab=name):
                self.assertTrue(count)
                domain = PYSONDecoder({}).decode(domain)
                self.assertEqual(
                    self.postmaster.queue('search_count', domain),
                    len(STATES) if name == "All" else 1)
                for email in self.postmaster.queue(
                        'search_read', domain, 0, None, None,
                        ['state:string']):
                    if name != "All":
                        self.assertEqual(email['state:string'], name)

    def test_order(self):
        "Test the newest email is the first"
        ids = [
            self.queue(priority=p) for p in ['urgent', 'bulk', 'normal']]
        action = self.action()
        order = PYSONDecoder({}).decode(action.get('pyson_order') or 'null')
        self.assertEqual(
            self.postmaster.queue('search', [], 0, None, order), ids[::-1])

    def test_views(self):
        "Test the views show what they must and let nobody edit"
        views = self.views()
        self.assertEqual(list(views), ['tree', 'form'])
        for type_, (view, root) in views.items():
            with self.subTest(type=type_):
                self.assertEqual(root.tag, type_)
                self.assertEqual(root.get('creatable'), '0')
                names = {e.get('name') for e in root.iter('field')}
                self.assertLessEqual(
                    {'from_addr', 'to_addrs', 'subject', 'state', 'attempts',
                        'error'},
                    names)
                self.assertLessEqual(names, view['fields'].keys())
                for name in names:
                    self.assertTrue(view['fields'][name]['readonly'])
                self.assertEqual(
                    {b.get('name') for b in root.iter('button')},
                    {'retry', 'cancel'})
        view, root = views['tree']
        for button in root.iter('button'):
            self.assertEqual(button.get('multiple'), '1')

    def test_buttons(self):
        "Test each button is shown in the states in which it works"
        shown = {
            'retry': {'failed', 'cancelled'},
            'cancel': {'outbox'},
            }
        for type_, (_, root) in self.views().items():
            for button in root.iter('button'):
                invisible = json.loads(button.get('states'))['invisible']
                for state in STATES:
                    with self.subTest(
                            type=type_, button=button.get('name'),
                            state=state):
                        decoder = PYSONDecoder({'state': state})
                        self.assertEqual(
                            not decoder.decode(json.dumps(invisible)),
                            state in shown[button.get('name')])

    def test_visual(self):
        "Test the list tells by colours what needs attention"
        _, root = self.views()['tree']
        for state, error, visual in [
                ('outbox', None, ''),
                ('outbox', "451 try again later", 'warning'),
                ('sending', None, ''),
                ('failed', "550 no such user", 'danger'),
                ('sent', None, 'muted'),
                ('cancelled', None, 'muted'),
                ]:
            with self.subTest(state=state, error=error):
                decoder = PYSONDecoder({'state': state, 'error': error})
                self.assertEqual(decoder.decode(root.get('visual')), visual)

    def test_empty(self):
        "Test the form hides what an email does not have"
        view, _ = self.views()['form']
        for name in [
                'resource', 'expires_at', 'first_attempt', 'sent_at',
                'uncertain', 'crashes', 'error', 'accepted', 'refused',
                'mail_options', 'rcpt_options']:
            states = view['fields'][name]['states']
            for value in [None, 1]:
                with self.subTest(field=name, value=value):
                    decoder = PYSONDecoder({name: value})
                    self.assertEqual(
                        decoder.decode(states)['invisible'], not value)

    def test_timestamps(self):
        "Test the form shows times as they are stored"
        # The client takes what it rounds for a change, and wants to save it
        view, _ = self.views()['form']
        for name, definition in view['fields'].items():
            if definition['type'] == 'timestamp':
                with self.subTest(field=name):
                    self.assertIn('%f', definition['format'])

    def test_list_without_body(self):
        "Test the list opens without loading a body"
        self.queue_each_state()
        view, root = self.views()['tree']
        names = [*view['fields'], 'rec_name', '_timestamp', '_write']
        self.assertNotIn('msg', names)
        with self.statements() as statements:
            ids = self.postmaster.queue('search', [], 0, 100, None)
            emails = self.postmaster.queue('read', ids, names)
            self.assertEqual(
                len(self.postmaster.queue(
                        'search_read', [], 0, 100, None, names)),
                len(STATES))
        self.assertEqual(len(emails), len(STATES))
        emails = [s for s in statements if '"email_queue"' in s]
        self.assertTrue(emails)
        self.assertFalse([s for s in emails if '"msg"' in s])

        # The net has no hole
        with self.statements() as statements:
            self.postmaster.queue('read', ids, ['msg'])
        self.assertTrue([s for s in statements if '"msg"' in s])

    def test_form_without_body(self):
        "Test the form asks for the size of the message only"
        id_ = self.queue()
        view, _ = self.views()['form']
        email, = self.postmaster.queue(
            'read', [id_], [*view['fields'], 'size'],
            context={'email.queue.msg': 'size'})
        self.assertEqual(email['msg'], email['size'])

    def test_filename(self):
        "Test the message is saved as a file that a mail program opens"
        for subject, filename in [
                ("Order SO-1", 'Order-SO-1.eml'),
                ("../../etc/passwd", 'etcpasswd.eml'),
                ("Grüße", 'Gruße.eml'),
                ("訂單", '訂單.eml'),
                ("", None),
                ("...", None),
                ]:
            with self.subTest(subject=subject):
                id_ = self.queue(
                    msg=f'Subject: {subject}\r\n\r\n'.encode())
                email, = self.postmaster.queue('read', [id_], ['filename'])
                self.assertEqual(
                    email['filename'], filename or f'{id_}.eml')

    def test_rec_name(self):
        "Test an email without subject has a name"
        id_ = self.queue(msg=b'Message-ID: <1@example.com>\r\n\r\n')
        email, = self.postmaster.queue('read', [id_], ['rec_name'])
        self.assertEqual(email['rec_name'], '<1@example.com>')

    def test_resource(self):
        "Test the record that an email is about"
        id_ = self.queue(resource=f'res.user,{self.clerk.id}')
        email, = self.postmaster.queue(
            'read', [id_], ['resource', 'resource.rec_name'])
        self.assertEqual(email['resource'], f'res.user,{self.clerk.id}')
        self.assertEqual(email['resource.']['rec_name'], 'clerk')

    def test_resource_models(self):
        "Test only models that the user reads are offered as records"
        for session in self.sessions:
            with self.subTest(user=session.login):
                models = dict(session.queue('get_resources'))
                self.assertIn('res.user', models)
                self.assertEqual(
                    'email.queue' in models, session in self.readers)
