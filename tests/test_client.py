# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What a client asks for and gets when the queue is opened in it."""
import datetime as dt
import json
import logging
from contextlib import contextmanager
from email.message import EmailMessage
from operator import itemgetter
from xml.etree import ElementTree

from trytond import backend
from trytond.pool import Pool
from trytond.pyson import PYSONDecoder

from .jsonrpc import STATES, RPCError, RPCTestCase
from .smtpd import Server
from .tools import configured

ATTENTION = "Needs Attention"
TABS = [
    ATTENTION, "Outbox", "Sending", "Failed", "Sent", "Cancelled", "All"]
# The columns that the list shows at first
COLUMNS = [
    'state', 'to_addrs', 'title', 'outcome', 'sent_or_due', 'sent_or_due',
    'create_date']


@contextmanager
def statements(case):
    "Collect the SQL statements that are executed"
    logger = logging.getLogger(backend.Database.__module__)
    with case.assertLogs(logger, logging.DEBUG) as logs:
        statements = logs.output
        if backend.name != 'sqlite':
            yield statements
            return
        # A connection logs its statements only if it was opened so
        with case.transaction(readonly=True) as transaction:
            connection = transaction.connection
        connection.set_trace_callback(logger.debug)
        try:
            yield statements
        finally:
            connection.set_trace_callback(None)


class WebClientTestCase(RPCTestCase):
    "Test the client"

    def action(self):
        "Return the action of the menu as the client loads it"
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
                    if name not in {ATTENTION, "All"}:
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
        "Test the views show all that they must and let nobody edit"
        views = self.views()
        self.assertEqual(list(views), ['tree', 'form'])
        for type_, (view, root) in views.items():
            with self.subTest(type=type_):
                self.assertEqual(root.tag, type_)
                self.assertEqual(root.get('creatable'), '0')
                names = {e.get('name') for e in root.iter('field')}
                self.assertLessEqual(
                    {'from_addr', 'to_addrs', 'title', 'state', 'attempts',
                        'error'},
                    names)
                self.assertLessEqual(names, view['fields'].keys())
                for name in names:
                    self.assertTrue(view['fields'][name]['readonly'])
                self.assertEqual(
                    {b.get('name') for b in root.iter('button')},
                    {'send_now', 'retry', 'cancel', 'send_again'}
                    | ({'send_to'} if type_ == 'form' else set()))
        view, root = views['tree']
        for button in root.iter('button'):
            self.assertEqual(button.get('multiple'), '1')

    def test_buttons(self):
        "Test each button is visible in the states in which it works"
        shown = {
            'send_now': {'outbox'},
            'retry': {'failed', 'cancelled'},
            'cancel': {'outbox', 'failed'},
            'send_again': {'sent'},
            'send_to': {'failed'},
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
        "Test only the colour of the state shows what needs attention"
        _, root = self.views()['tree']
        column = root.find('field[@name="state"]')
        now = dt.datetime.now()
        for state, uncertain, suspect_since, visual in [
                ('outbox', False, None, ''),
                ('outbox', True, None, 'warning'),
                ('outbox', False, now, 'warning'),
                ('sending', False, None, ''),
                ('sending', True, None, ''),
                ('failed', False, None, 'danger'),
                ('failed', True, None, 'danger'),
                ('sent', False, None, ''),
                ('sent', True, None, ''),
                ('cancelled', True, now, ''),
                ]:
            with self.subTest(
                    state=state, uncertain=uncertain,
                    suspect_since=suspect_since):
                decoder = PYSONDecoder({
                        'state': state,
                        'uncertain': uncertain,
                        'suspect_since': suspect_since,
                        })
                self.assertEqual(decoder.decode(column.get('visual')), visual)
                self.assertEqual(
                    decoder.decode(root.get('visual')),
                    'muted' if state == 'cancelled' else '')

    def test_attention(self):
        """Test the tab Needs Attention, with emails that need attention and
        others
        """
        now = dt.datetime.now()
        shown = set()
        for state in STATES:
            for values, needs in [
                    ({}, state == 'failed'),
                    ({'uncertain': True}, state in {'outbox', 'failed'}),
                    ({'suspect_since': now}, state in {'outbox', 'failed'}),
                    ({'error': "451 later"}, state == 'failed'),
                    ]:
                id_ = self.queue()
                self.write(id_, state=state, **values)
                if needs:
                    shown.add(id_)
        name, domain, _ = self.action()['domains'][0]
        self.assertEqual(name, ATTENTION)
        domain = PYSONDecoder({}).decode(domain)
        self.assertEqual(
            set(self.postmaster.queue('search', domain, 0, None, None)),
            shown)

    def test_empty(self):
        "Test the form hides the fields that are empty"
        view, _ = self.views()['form']
        for name in [
                'resource', 'expires_at', 'first_attempt', 'sent_at',
                'uncertain', 'crashes', 'error', 'outcome', 'text', 'html',
                'attachments',
                'mail_options', 'rcpt_options']:
            states = view['fields'][name]['states']
            for value in [None, 1]:
                with self.subTest(field=name, value=value):
                    decoder = PYSONDecoder({name: value})
                    self.assertEqual(
                        decoder.decode(states)['invisible'], not value)

    def test_timestamps(self):
        "Test the views show times in the form in which they are read"
        # A client takes a time that it rounds for a change, and wants to save
        # it
        id_ = self.queue()
        now = dt.datetime(2026, 11, 25, 10, 30, 59, 999999)
        self.write(
            id_, first_attempt=now, sent_at=now, expires_at=now,
            bounced_at=now, suspect_since=now)
        for view, _ in self.views().values():
            names = [
                name for name, definition in view['fields'].items()
                if definition['type'] == 'timestamp']
            email, = self.postmaster.queue('read', [id_], names)
            for name in names:
                with self.subTest(type=view['type'], field=name):
                    self.assertEqual(
                        json.loads(view['fields'][name]['format']),
                        '%H:%M:%S')
                    self.assertEqual(email[name].microsecond, 0)
        self.assertEqual(email['sent_at'], now.replace(microsecond=0))
        self.assertEqual(self.read(id_, 'sent_at'), now)

    def test_list_without_body(self):
        "Test opening the list loads no message"
        self.queue_each_state()
        view, root = self.views()['tree']
        names = [*view['fields'], 'rec_name', '_timestamp', '_write']
        self.assertFalse({'headers', 'text', 'html'} & {*names})
        self.assertNotIn('msg', names)
        with statements(self) as executed:
            ids = self.postmaster.queue('search', [], 0, 100, None)
            emails = self.postmaster.queue('read', ids, names)
            self.assertEqual(
                len(self.postmaster.queue(
                        'search_read', [], 0, 100, None, names)),
                len(STATES))
        self.assertEqual(len(emails), len(STATES))
        emails = [s for s in executed if '"email_queue"' in s]
        self.assertTrue(emails)
        self.assertFalse([s for s in emails if '"msg"' in s])

        # A statement that reads a message would have been noticed
        with statements(self) as executed:
            self.postmaster.queue('read', ids, ['msg'])
        self.assertTrue([s for s in executed if '"msg"' in s])

    def test_confirm(self):
        "Test the client asks before it does what cannot be undone"
        for type_, (_, root) in self.views().items():
            for button in root.iter('button'):
                with self.subTest(type=type_, button=button.get('name')):
                    self.assertEqual(
                        bool(button.get('confirm')),
                        button.get('name') in {
                            'retry', 'cancel', 'send_again'})

    def test_columns(self):
        "Test the columns that are visible at first, and the optional columns"
        _, root = self.views()['tree']
        fields = list(root.iter('field'))
        self.assertEqual(
            [e.get('name') for e in fields if not e.get('optional')], COLUMNS)
        self.assertEqual(
            {e.get('optional') for e in fields}, {None, '1'})
        self.assertLessEqual(
            {'from_addr', 'attempts', 'priority', 'size', 'server',
                'message_id', 'resource', 'create_uid', 'uncertain',
                'expires_at'},
            {e.get('name') for e in fields})

    def test_widgets(self):
        "Test the desktop client can show every column"
        view, root = self.views()['tree']
        for element in root.iter('field'):
            name = element.get('name')
            if view['fields'][name]['type'] in {'timestamp', 'datetime'}:
                with self.subTest(field=name):
                    self.assertIn(element.get('widget'), {'date', 'time'})

    def test_labels(self):
        "Test no two columns have the same label for the filter"
        view, root = self.views()['tree']
        labels = {}
        for element in root.iter('field'):
            name = element.get('name')
            labels.setdefault(
                name, element.get('string') or view['fields'][name]['string'])
        self.assertEqual(len(set(labels.values())), len(labels))
        self.assertEqual(labels['to_addrs'], "Recipients")
        self.assertEqual(labels['create_date'], "Date")

    def test_no_subject(self):
        "Test an empty subject is shown as such, and subjects are found"
        ids = {
            self.queue(msg=f'Subject: {subject}\r\n\r\n'.encode()): shown
            for subject, shown in [
                ("Order", "Order"), ("", "(no subject)")]}
        for email in self.postmaster.queue('read', list(ids), ['title']):
            self.assertEqual(email['title'], ids[email['id']])
        order, empty = ids
        for clause, found in [
                (('title', 'ilike', '%order%'), [order]),
                (('title', '=', None), [empty])]:
            self.assertEqual(
                self.postmaster.queue('search', [clause], 0, None, None),
                found)
        self.assertEqual(
            self.postmaster.queue(
                'search', [('title', '!=', None)], 0, None,
                [('title', 'ASC')]), [order])

    def test_outcome(self):
        "Test one line says what became of an email, and is found"
        now = dt.datetime.now()
        words = "550 5.1.1 no\nsuch user"
        line = "550 5.1.1 no such user"
        for values, outcome in [
                ({}, None),
                ({'reason': 'deferred', 'error': words},
                    f"Refused for now: {line}"),
                ({'reason': 'suspect', 'error': words, 'suspect_since': now},
                    f"The server may refuse everything: {line}"),
                ({'reason': 'uncertain', 'error': words, 'uncertain': True},
                    f"May have arrived: {line}"),
                ({'reason': 'deferred', 'error': words, 'uncertain': True},
                    f"May have arrived. Refused for now: {line}"),
                ({'uncertain': True}, "May have arrived"),
                ({'reason': 'not_recorded', 'uncertain': True},
                    "May have arrived, but could not be recorded"),
                ({'state': 'failed', 'error': words}, line),
                ({'state': 'failed', 'reason': 'bounced', 'error': words},
                    f"Came back: {line}"),
                ({'state': 'failed', 'reason': 'died'}, "Its senders died"),
                ({'state': 'failed', 'reason': 'died',
                    'refused': f'jane@example.com {line}'},
                    f"Its senders died: {line}"),
                ({'state': 'sending', 'reason': 'trouble', 'error': words},
                    f"The server is in trouble: {line}"),
                ({'state': 'sent', 'error': words, 'uncertain': True}, None),
                ({'state': 'cancelled', 'reason': 'refused', 'error': words},
                    None),
                ({'state': 'cancelled', 'to_addrs': 'a@x.test, b@x.test',
                    'accepted': 'a@x.test'},
                    "Delivered to 1 of 2 recipients"),
                ]:
            with self.subTest(values=values):
                id_ = self.queue()
                self.write(id_, **values)
                email, = self.postmaster.queue('read', [id_], ['outcome'])
                self.assertEqual(email['outcome'], outcome)
                self.assertEqual(
                    id_ in self.postmaster.queue(
                        'search', [('outcome', 'ilike', '%no_such%')], 0,
                        None, None),
                    values.get('error') == words)

    def test_outcome_of_what_waits(self):
        "Test the sentence says what a waiting email waits for"
        at = dt.datetime.now() + dt.timedelta(days=30)
        time = r'\d+/\d+/\d+\s\d\d:\d\d UTC$'
        for values, expected in [
                ({}, "Scheduled for " + time),
                ({'reason': 'deferred', 'error': "450 later."},
                    "Refused for now: 450 later; next attempt at " + time),
                ({'crashes': 3},
                    "Its senders died 3 times, so it is sent alone, after all "
                    "other emails; next attempt at " + time),
                ({'state': 'failed', 'reason': 'refused', 'error': "550 no"},
                    "Refused: 550 no$"),
                ]:
            id_ = self.queue()
            self.write(id_, **{'scheduled_at': at, **values})
            with self.subTest(**values):
                email, = self.postmaster.queue('read', [id_], ['outcome'])
                self.assertRegex(email['outcome'], f'^{expected}')

    def test_search_outcome(self):
        """Test an email is found by the label of its reason in the user's
        language
        """
        refused, deferred, plain = self.queue(), self.queue(), self.queue()
        self.write(refused, reason='refused', error="550 no")
        self.write(deferred, reason='deferred', error="451 no")
        for clause, ids in [
                (('outcome', 'ilike', '%refused%'), [refused, deferred]),
                (('outcome', 'ilike', '%for now%'), [deferred]),
                (('outcome', 'ilike', '%550%'), [refused]),
                (('outcome', 'not ilike', '%for now%'), [refused, plain]),
                (('reason', '=', 'refused'), [refused]),
                (('reason', 'in', ['refused', 'expired']), [refused]),
                (('reason', '=', None), [plain]),
                ]:
            with self.subTest(clause):
                self.assertEqual(
                    self.postmaster.queue(
                        'search', [clause], 0, None, [('id', 'ASC')]), ids)

    def test_sent_or_due(self):
        """Test the time when an email was sent or goes next is read, found and
        sorted
        """
        day = dt.timedelta(days=1)
        noon = dt.datetime(2026, 11, 25, 12)
        ids = {}
        for number, state in enumerate(STATES):
            ids[state] = self.queue()
            self.write(
                ids[state], state=state, scheduled_at=noon + number * day,
                sent_at=noon - day if state == 'sent' else None)
        shown = {
            ids['outbox']: noon,
            ids['sending']: noon + day,
            ids['sent']: noon - day,
            ids['failed']: None,
            ids['cancelled']: None,
            }
        for email in self.postmaster.queue(
                'read', list(shown), ['sent_or_due']):
            self.assertEqual(email['sent_or_due'], shown[email['id']])
        for domain in [
                [('sent_or_due', '=', noon)],
                [('sent_or_due', '>=', noon)],
                [('sent_or_due', '<', noon)],
                [('sent_or_due', '=', None)],
                [('sent_or_due', '!=', None)],
                ]:
            (_, operator, value), = domain
            with self.subTest(domain=domain):
                found = self.postmaster.queue('search', domain, 0, None, None)
                self.assertEqual(
                    set(found),
                    {id_ for id_, at in shown.items()
                        if (operator == '=' and at == value)
                        or (operator == '!=' and at != value)
                        or (operator == '>=' and at and at >= value)
                        or (operator == '<' and at and at < value)})
        found = self.postmaster.queue(
            'search', [('sent_or_due', '!=', None)], 0, None,
            [('sent_or_due', 'ASC')])
        self.assertEqual(
            found, [ids['sent'], ids['outbox'], ids['sending']])

    def test_search(self):
        "Test an email is found by each field that is searched"
        id_ = self.queue(
            from_addr='shop@example.com', to_addrs='jane@example.com',
            msg=b'Subject: Order SO-1\r\nMessage-ID: <1@example.com>\r\n\r\n',
            resource=f'res.user,{self.clerk.id}')
        now = dt.datetime.now()
        self.queue(
            from_addr='other@example.com', to_addrs='john@example.com',
            msg=b'Subject: Invoice\r\n\r\n')
        for domain in [
                [('rec_name', 'ilike', '%so-1%')],
                [('rec_name', 'ilike', '%shop@%')],
                [('rec_name', 'ilike', '%JANE@%')],
                [('rec_name', '=', '<1@example.com>')],
                [('rec_name', 'not ilike', '%john%'),
                    ('rec_name', 'not ilike', '%Invoice%')],
                [('from_addr', 'ilike', '%shop%')],
                [('to_addrs', 'ilike', '%jane%')],
                [('subject', 'ilike', '%order%')],
                [('message_id', '=', '<1@example.com>')],
                [('state', '=', 'outbox'), ('create_date', '<=', now)],
                [('resource', '=', f'res.user,{self.clerk.id}')],
                [('resource.login', '=', 'clerk', 'res.user')],
                ]:
            with self.subTest(domain=domain):
                self.assertEqual(
                    self.postmaster.queue('search', domain, 0, 10, None),
                    [id_])
        view, root = self.views()['tree']
        # The client searches by the fields of the list
        self.assertLessEqual(
            {'from_addr', 'to_addrs', 'title', 'message_id', 'state',
                'create_date', 'create_uid', 'resource', 'outcome', 'error',
                'server', 'uncertain', 'sent_at', 'sent_or_due', 'expires_at',
                'bounced_at', 'suspect_since', 'scheduled_at', 'priority',
                'attempts', 'size', 'reason'},
            view['fields'].keys())
        for name in view['fields'].keys() - {'to_count'}:
            with self.subTest(field=name):
                self.assertTrue(view['fields'][name].get('searchable', True))

    def test_contents(self):
        "Test what is read of the message"
        msg = EmailMessage()
        msg['Subject'] = "Größe"
        msg.set_content("Hello")
        msg.add_alternative("<p>Hello <b>HTML</b></p>", subtype='html')
        msg.add_attachment(
            b'x' * 2048, maintype='application', subtype='pdf',
            filename='order.pdf')
        msg.add_attachment(b'x', maintype='image', subtype='png')
        ids = [self.queue(msg=msg), self.queue(msg=b'')]
        names = ['headers', 'text', 'html', 'msg', 'size']
        email, empty = sorted(self.postmaster.queue(
                'read', ids, names, context={'email.queue.msg': 'size'}),
            key=itemgetter('id'))
        self.assertEqual(email['msg'], email['size'])
        self.assertIn("\nSubject: Größe", email['headers'])
        self.assertEqual(email['text'], "Hello")
        self.assertEqual(email['html'], "<div>Hello <b>HTML</b></div>")
        self.assertEqual([empty['text'], empty['html']], [None, None])

    def test_html_only(self):
        "Test an email without plain text shows the text of its HTML"
        msg = EmailMessage()
        msg.set_content("<p>Hello</p>", subtype='html')
        email, = self.postmaster.queue(
            'read', [self.queue(msg=msg)], ['text', 'html'])
        self.assertEqual(
            [email['text'], email['html']], ["Hello", "<div>Hello</div>"])

    def test_contents_one_by_one(self):
        "Test the messages of many records are not in memory at once"
        ids = [self.queue() for _ in range(5)]
        with statements(self) as executed:
            self.postmaster.queue('read', ids, ['text'])
        executed = [
            s for s in executed if '"email_queue"' in s and '"msg"' in s]
        self.assertEqual(len(executed), len(ids))

    def test_waiting(self):
        "Test the recipients who still have to get the email"
        id_ = self.queue(
            to_addrs=['a@example.com', 'b@example.com', 'c@example.com'])
        self.write(
            id_, accepted='a@example.com', refused='b@example.com 550 no')
        for state in STATES:
            self.write(id_, state=state)
            with self.subTest(state=state):
                email, = self.postmaster.queue('read', [id_], ['waiting'])
                self.assertEqual(
                    email['waiting'],
                    'c@example.com' if state in {'outbox', 'sending'}
                    else None)

    def test_form_without_body(self):
        "Test the form asks only for the size of the message"
        id_ = self.queue()
        view, _ = self.views()['form']
        email, = self.postmaster.queue(
            'read', [id_], [*view['fields'], 'size'],
            context={'email.queue.msg': 'size'})
        self.assertEqual(email['msg'], email['size'])

    def test_filename(self):
        "Test the name of the file makes a mail program open it"
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
        "Test only models that the user may read are offered as records"
        for session in self.sessions:
            with self.subTest(user=session.login):
                models = dict(session.queue('get_resources'))
                self.assertIn('res.user', models)
                self.assertEqual(
                    'email.queue' in models, session in self.readers)

    def test_resource_names(self):
        "Test records that the user may not read do not break the list"
        with self.transaction():
            pool = Pool()
            Lang = pool.get('ir.lang')
            RuleGroup = pool.get('ir.rule.group')
            Search = pool.get('ir.ui.view_search')
            lang, = Lang.search([('code', '=', 'en')])
            no_access = Search(name="Test", model='res.user', domain='[]')
            no_access.save()
            rules, = RuleGroup.create([{
                        'name': "Test",
                        'model': 'ir.calendar.day',
                        'global_p': True,
                        'rules': [
                            ('create', [{'domain': '[["id", "<", 0]]'}])],
                        }])
            no_rule, = pool.get('ir.calendar.day').search([], limit=1)
        self.addCleanup(self.delete, rules)
        deleted = 'ir.lang,999999'
        names = {
            str(lang): "English",
            str(no_access): f'({no_access.id})',
            str(no_rule): f'({no_rule.id})',
            deleted: None,
            '': None,
            }
        if self.has_bypass:
            self.assertTrue(self.administrator.queue('read', [
                        self.queue(resource=str(no_access))],
                    ['resource.rec_name'])[0]['resource.']['rec_name'])
        ids = {self.queue(resource=r or None): r for r in names}
        fields = ['resource', 'resource.rec_name', 'subject']
        for emails in [
                self.postmaster.queue('read', list(ids), fields),
                self.postmaster.queue(
                    'search_read', [('id', 'in', list(ids))], 0, None, None,
                    fields),
                ]:
            self.assertEqual(len(emails), len(names))
            for email in emails:
                resource = ids[email['id']]
                with self.subTest(resource=resource):
                    self.assertEqual(
                        (email['resource.'] or {}).get('rec_name'),
                        names[resource])
                    self.assertEqual(
                        email['resource'],
                        resource if names[resource] else None)

    def delete(self, *records):
        with self.transaction():
            for record in records:
                Model = Pool().get(record.__name__)
                Model.delete([Model(record.id)])


class TestEmailTestCase(RPCTestCase):
    "Test the wizard that queues a test email"

    def setUp(self):
        super().setUp()
        self.set_email(self.postmaster, 'postmaster@example.com')

    def set_email(self, session, email):
        with self.transaction():
            User = Pool().get('res.user')
            User.write([User(session.id)], {'email': email})

    def start(self, session, context=None):
        name = 'wizard.email.queue.test'
        context = context or {'active_model': 'email.queue'}
        id_, start, end = session(f'{name}.create', context)
        self.addCleanup(session, f'{name}.delete', id_, {})

        def execute(state, **values):
            return session(
                f'{name}.execute', id_, {'start': values}, state, context)

        return execute, execute(start)

    def test_queue(self):
        "Test the email is queued to the user, sent and opened"
        execute, result = self.start(self.postmaster)
        self.assertEqual(result['view']['defaults'], {
                'from_addr': 'tryton@example.com',
                'to_addr': 'postmaster@example.com',
                'server': None,
                })
        self.assertFalse(self.rows())
        result = execute('queue_email')
        (action, data), = result['actions']
        id_, = data['res_id']
        self.assertEqual(action['res_model'], 'email.queue')
        self.assertEqual(action['views'][0][1], 'form')
        self.assertEqual(
            self.read(id_, 'from_addr', 'to_addrs', 'state'),
            ['tryton@example.com', 'postmaster@example.com', 'outbox'])
        self.assertEqual(self.read(id_, 'create_uid'), self.postmaster.id)
        self.send_all()
        mail, = self.server.received
        self.assertEqual(mail.to_addrs, ('postmaster@example.com',))
        self.assertEqual(self.server.violations, [])

    def test_chosen(self):
        "Test the email goes to another address by another server"
        with Server() as server, configured(uri_marketing=server.uri):
            execute, result = self.start(self.postmaster)
            names = result['view']['fields_view']['fields']['server']
            self.assertEqual(names['selection'], 'get_servers')
            self.assertEqual(
                self.postmaster.call('email.queue.test.start', 'get_servers'),
                [[None, ''], ['marketing', 'marketing']])
            execute(
                'queue_email', to_addr='jane@example.com', server='marketing')
            self.send_all()
            mail, = server.received
        self.assertEqual(mail.to_addrs, ('jane@example.com',))
        self.assertFalse(self.server.received)

    def test_errors(self):
        "Test the wizard says what is missing"
        self.set_email(self.postmaster, None)
        execute, _ = self.start(self.postmaster)
        with self.assertRaisesRegex(
                RPCError, '"postmaster" must have an email address'):
            execute('queue_email')
        for to_addr in ['nobody', 'a@example.com\nBcc: b@example.com', 'ü@']:
            with self.assertRaisesRegex(RPCError, 'to_addrs'):
                execute('queue_email', to_addr=to_addr)
        with self.assertRaisesRegex(RPCError, '"server" is "nobody"'):
            execute(
                'queue_email', to_addr='a@example.com', server='nobody')
        self.set_email(self.postmaster, 'postmaster@example.com')
        with configured('email', **{'from': None}):
            with self.assertRaisesRegex(RPCError, 'set "from"'):
                self.start(self.postmaster)
        self.assertFalse(self.rows())

    def test_access(self):
        "Test only users who look after the queue may use the wizard"
        for session in self.strangers:
            self.set_email(session, 'user@example.com')
            with self.subTest(user=session.login):
                with self.assertRaises(RPCError):
                    self.start(session)
        self.assertFalse(self.rows())

    def test_toolbar(self):
        "Test the list offers the wizard"
        actions = self.postmaster.queue('view_toolbar_get')['action']
        self.assertIn("Queue a Test Email", [a['name'] for a in actions])

    def test_menu(self):
        "Test the menu has the wizard, because an empty list offers nothing"
        with self.transaction(readonly=True):
            menu = Pool().get('ir.model.data').get_id(
                'email_queue.menu_queue_test')
        action, = self.postmaster.call(
            'ir.action.keyword', 'get_keyword', 'tree_open',
            ['ir.ui.menu', menu])
        self.assertEqual(action['wiz_name'], 'email.queue.test')
        execute, _ = self.start(self.postmaster, {
                'active_model': 'ir.ui.menu',
                'active_id': menu,
                'active_ids': [menu],
                'action_id': action['id'],
                })
        execute('queue_email')
        self.assertEqual(len(self.rows()), 1)
