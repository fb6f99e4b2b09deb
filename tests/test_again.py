# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Sending once more: Send Again, Send to…, Retry, Send Now, and own emails."""
import datetime as dt
import email as email_
import unittest
from email.policy import default

from trytond.modules.email_queue.again import _corrected, _renamed
from trytond.modules.email_queue.exceptions import EmailQueueError
from trytond.pool import Pool
from trytond.tests.test_tryton import DB_NAME
from trytond.transaction import Transaction

from .jsonrpc import RPCError, RPCTestCase
from .test_history import HistoryTestCase
from .tools import configured

JANE, JOHN = 'jane@example.com', 'john@example.com'
BAD = 'rcpt-550-5.1.1-no@example.com'
MESSAGE = (
    b'From: shop@example.com\r\nTo: Jane <jane@example.com>,\r\n'
    b' "Bad, B." <rcpt-550-5.1.1-no@example.com>\r\n'
    b'Message-ID: <1@shop.example.com>\r\nSubject: Invoice\r\n'
    b'Date: Fri, 27 Nov 2026 12:00:00 +0000\r\n'
    b'\r\nrcpt-550-5.1.1-no@example.com, pay.\r\n')
HOUR = dt.timedelta(hours=1)
PAST, FUTURE = dt.datetime(2026, 1, 1), dt.datetime(2099, 1, 1)
CONTEXTS = [
    {}, {'_check_access': False}, {'_user': 0, 'user': 0},
    {'action_id': None}, {'action_id': 999999}, {'groups': [1, 2, 3]}]


class CorrectedBytesTestCase(unittest.TestCase):
    "Test how the bytes are changed for a corrected address"

    def test_renamed(self):
        data = _renamed(MESSAGE)
        self.assertNotIn(b'<1@shop.example.com>', data)
        before, after = (
            email_.message_from_bytes(d, policy=default)
            for d in [MESSAGE, data])
        self.assertTrue(after['Message-ID'])
        self.assertEqual(after.get_content(), before.get_content())
        self.assertEqual(
            [f for f in after.items() if f[0] != 'Message-ID'],
            [f for f in before.items() if f[0] != 'Message-ID'])

    def test_corrected(self):
        for field, wrong, right, expected in [
                ('To: a@x.test', 'a@x.test', 'b@x.test', 'To: b@x.test'),
                ('To: A <A@X.Test>', 'a@x.test', 'b@x.test',
                    'To: A <b@x.test>'),
                ('Cc: c@x.test,\r\n a@x.test', 'a@x.test', 'b@x.test',
                    'Cc: c@x.test,\r\n b@x.test'),
                ('To: aa@x.test, a@x.test.org', 'a@x.test', 'b@x.test',
                    'To: aa@x.test, a@x.test.org'),
                ('To: a@xn--strae-oqa.de', 'a@straße.de', 'b@straße.de',
                    'To: b@xn--strae-oqa.de'),
                ('Subject: a@x.test', 'a@x.test', 'b@x.test',
                    'Subject: a@x.test'),
                ('To: ü <a@x.test>', 'a@x.test', r'\1@x.test',
                    r'To: ü <\1@x.test>'),
                ]:
            with self.subTest(field):
                data = f'{field}\r\n\r\na@x.test\r\n'.encode()
                self.assertEqual(
                    _corrected(data, wrong, right),
                    f'{expected}\r\n\r\na@x.test\r\n'.encode())


class AgainTestCase(RPCTestCase, HistoryTestCase):

    def queue_as(self, session, to_addrs=JANE, msg=MESSAGE, **keywords):
        with self.transaction(session.id):
            email, = Pool().get('email.queue').queue_mail(
                'shop@example.com', to_addrs, msg, **keywords)
            return email.id

    def ids(self):
        with self.transaction(readonly=True):
            return [e.id for e in Pool().get('email.queue').search(
                    [], order=[('id', 'ASC')])]

    def warned(self, session, button, *ids):
        "Press a button that warns, and return the name of the warning"
        before = self.rows()
        with self.assertRaises(RPCError) as cm:
            session.queue(button, list(ids))
        name, (key, text, _), *_ = cm.exception.args
        self.assertEqual(name, 'UserWarning')
        self.assertEqual(self.rows(), before)
        session.call('res.user.warning', 'skip', key, False)
        session.queue(button, list(ids))
        return text


class SendAgainTestCase(AgainTestCase):
    "Test Send Again"

    def test_again(self):
        id_ = self.queue(
            [JANE, JOHN], MESSAGE, priority='bulk',
            mail_options=['RET=HDRS'], rcpt_options=['NOTIFY=FAILURE'],
            resource=f'res.user,{self.clerk.id}')
        self.send_all()
        self.postmaster.queue('send_again', [id_])
        _, again = self.ids()
        names = ['from_addr', 'to_addrs', 'priority', 'mail_options',
            'rcpt_options', 'subject', 'resource', 'server']
        self.assertEqual(self.read(again, *names), self.read(id_, *names))
        self.assertEqual(
            self.read(again, 'state', 'attempts', 'accepted', 'error'),
            ['outbox', 0, None, None])
        self.assertNotEqual(
            self.read(again, 'message_id'), self.read(id_, 'message_id'))
        self.assertEqual(
            self.read(again, 'create_uid'), self.postmaster.id)
        # Each of the two emails names the other
        row, = self.postmaster.queue('read', [id_], ['again'])
        self.assertEqual(list(row['again']), [again])
        row, = self.postmaster.queue('read', [again], ['again_of'])
        self.assertEqual(row['again_of'], id_)
        self.assertEqual(self.history(id_), [(
                    'sent_again', f'{JANE}\n{JOHN}',
                    self.read(again, 'message_id'), 'postmaster')])
        self.send_all()
        first, second = self.server.received
        self.assertEqual(second.to_addrs, first.to_addrs)
        self.assertEqual(
            second.message_id, self.read(again, 'message_id'))

    def test_not_again(self):
        "Test an email without message, or with a secret, is not sent again"
        for values in [{'sensitive': True}, {}]:
            id_ = self.queue(JANE, MESSAGE, **values)
            self.send_all()
            if not values:
                self.write(id_, msg=None)
            before = self.rows()
            with self.assertRaises(RPCError) as cm:
                self.postmaster.queue('send_again', [id_])
            self.assertIn("message", str(cm.exception))
            self.assertEqual(self.rows(), before)

    def test_sensitive(self):
        "Test code cannot send a secret again either"
        id_ = self.queue(JANE, MESSAGE, sensitive=True)
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            with self.assertRaises(EmailQueueError):
                EmailQueue.queue_again(EmailQueue(id_))

    def test_deleted(self):
        "Test one email stays when the other is deleted"
        id_ = self.queue()
        self.send_all()
        self.postmaster.queue('send_again', [id_])
        _, again = self.ids()
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            EmailQueue.delete([EmailQueue(id_)])
        self.assertIsNone(self.read(again, 'again_of'))

    def test_no_client(self):
        "Test a client cannot call the methods behind the buttons"
        id_ = self.queue()
        for session in self.sessions:
            for method in ['queue_again', 'queue_to']:
                with self.subTest(user=session.login, method=method):
                    with self.assertRaises(RPCError) as cm:
                        session.queue(method, [id_])
                    self.assertEqual(cm.exception.name, 'FORBIDDEN')


class ArchiveTestCase(AgainTestCase):
    "Test Send Again of the Email Archives"

    def archive(self, session, message_id='<1@shop.example.com>'):
        with self.transaction(session.id):
            archived, = Pool().get('ir.email').create([{
                        'message_id': message_id, 'subject': "Invoice",
                        'recipients': JANE,
                        'resource': f'res.user,{session.id}',
                        }])
            return archived.id

    def clear(self):
        super().clear()
        with self.transaction() as transaction:
            transaction.connection.cursor().execute('DELETE FROM ir_email')

    def press(self, session, archived, context=None):
        name = 'wizard.ir.email.send_again'
        context = {
            'active_model': 'ir.email', 'active_id': archived,
            'active_ids': [archived], **(context or {})}
        wizard, *_ = session(f'{name}.create', context)
        session(f'{name}.execute', wizard, {}, 'start', context)
        session(f'{name}.execute', wizard, {'start': {}}, 'send', context)
        session(f'{name}.delete', wizard, context)

    def test_author(self):
        self.queue_as(self.clerk)
        archived = self.archive(self.clerk)
        self.send_all()
        self.press(self.clerk, archived)
        _, again = self.ids()
        message_id = self.read(again, 'message_id')
        with self.transaction(readonly=True):
            emails = Pool().get('ir.email').search(
                [], order=[('id', 'ASC')])
            self.assertEqual(
                [(e.message_id, e.recipients, e.delivery) for e in emails], [
                    ('<1@shop.example.com>', JANE, 'sent'),
                    (message_id, JANE, 'waiting')])

    def test_group(self):
        self.queue_as(self.clerk)
        archived = self.archive(self.postmaster)
        self.send_all()
        self.press(self.postmaster, archived)
        self.assertEqual(len(self.ids()), 2)

    def test_others(self):
        "Test nobody sends an email of somebody else again"
        for author in [self.postmaster, None]:
            self.clear()
            if author:
                self.queue_as(author)
            else:
                self.queue(JANE, MESSAGE)
            archived = self.archive(self.clerk)
            self.send_all()
            for context in CONTEXTS:
                with self.subTest(context=context):
                    with self.assertRaises(RPCError) as cm:
                        self.press(self.clerk, archived, context)
                    self.assertEqual(cm.exception.name, 'UserError')
            self.assertEqual(len(self.ids()), 1)

    def test_unreadable(self):
        "Test nobody copies an archived email that they may not read"
        id_ = self.queue_as(self.clerk)
        with self.transaction(self.clerk.id):
            archived, = Pool().get('ir.email').create([{
                        'message_id': '<1@shop.example.com>',
                        'resource': f'email.queue,{id_}'}])
        self.send_all()
        for context in CONTEXTS:
            with self.subTest(context=context):
                with self.assertRaises(RPCError):
                    self.press(self.clerk, archived.id, context)
        self.assertEqual(len(self.ids()), 1)

    def test_nothing_chosen(self):
        for context in [
                {'active_ids': []}, {'active_ids': None},
                {'active_model': 'res.user'}, {'active_model': None}]:
            with self.subTest(context=context):
                with self.assertRaises(RPCError):
                    self.press(self.clerk, 1, context)

    def test_state(self):
        "Test only sent emails are sent again"
        self.queue_as(self.clerk, scheduled_at=HOUR)
        for message_id in ['<1@shop.example.com>', '<x@x>', None]:
            with self.subTest(message_id):
                archived = self.archive(self.clerk, message_id)
                with self.assertRaises(RPCError):
                    self.press(self.clerk, archived)
        self.assertEqual(len(self.ids()), 1)


class SendToTestCase(AgainTestCase):
    "Test Send to…"

    def wizard(self, session, id_, address=JOHN, refused=BAD, context=None):
        name = 'wizard.email.queue.send_to'
        context = {
            'active_model': 'email.queue', 'active_id': id_,
            'active_ids': [id_], **(context or {})}
        wizard, *_ = session(f'{name}.create', context)
        session(f'{name}.execute', wizard, {}, 'start', context)
        result = session(f'{name}.execute', wizard, {
                'start': {'refused': refused, 'address': address},
                }, 'send', context)
        session(f'{name}.delete', wizard, context)
        return result

    def failed(self, **keywords):
        id_ = self.queue([JANE, BAD], MESSAGE, **keywords)
        self.send_all()
        self.assertEqual(self.read(id_, 'state'), 'failed')
        self.server.received.clear()
        return id_

    def test_corrected(self):
        "Test the new email goes to the right address only and names it"
        id_ = self.failed()
        result = self.wizard(self.postmaster, id_)
        _, again = self.ids()
        (_, data), = result['actions']
        self.assertEqual(data['res_id'], [again])
        self.assertEqual(self.read(again, 'to_addrs'), JOHN)
        self.send_all()
        mail, = self.server.received
        self.assertEqual(mail.to_addrs, (JOHN,))
        message = email_.message_from_bytes(mail.data, policy=default)
        self.assertEqual(
            [a.addr_spec for a in message['To'].addresses], [JANE, JOHN])
        self.assertEqual(message['To'].addresses[1].display_name, "Bad, B.")
        self.assertIn(BAD, message.get_content())
        self.assertEqual(self.read(id_, 'state'), 'failed')
        self.assertEqual(
            [(k, r, u) for k, r, _, u in self.history(id_)],
            [('refused', BAD, None), ('sent_again', JOHN, 'postmaster')])

    def test_start(self):
        "Test the wizard offers the refused addresses"
        id_ = self.failed()
        context = {'active_model': 'email.queue', 'active_id': id_}
        name = 'wizard.email.queue.send_to'
        wizard, *_ = self.postmaster(f'{name}.create', context)
        result = self.postmaster(
            f'{name}.execute', wizard, {}, 'start', context)
        values = result['view']['defaults']
        self.assertEqual(values['refused'], BAD)
        self.assertEqual(values['addresses'], BAD)

    def test_refused(self):
        "Test the wizard refuses what is not possible"
        id_, sent = self.failed(), self.queue(JANE)
        secret = self.failed(sensitive=True)
        self.send_all()
        before = self.rows()
        for values in [
                {'address': 'nobody'},
                {'address': f'{JOHN}, {JANE}'},
                {'address': ''},
                {'address': 'a@x.test\r\nBcc: b@x.test'},
                {'refused': JANE},
                {'refused': None},
                {'id_': sent},
                {'id_': secret},
                {'id_': 0},
                {'context': {'active_model': 'res.user'}},
                {'context': {'active_id': None}},
                {'context': {'active_id': 'x'}},
                ]:
            with self.subTest(values=values):
                with self.assertRaises(RPCError):
                    self.wizard(self.postmaster, **{'id_': id_, **values})
                self.assertEqual(self.rows(), before)

    def test_strangers(self):
        id_ = self.failed()
        for session in self.strangers:
            for context in CONTEXTS:
                with self.subTest(user=session.login, context=context):
                    with self.assertRaises(RPCError):
                        self.wizard(session, id_, context=context)
        self.assertEqual(len(self.ids()), 1)


class RetryTestCase(AgainTestCase):
    "Test Retry and Send Now"

    def test_expired(self):
        "Test Retry asks before it sends an expired email"
        for state in ['failed', 'cancelled']:
            with self.subTest(state=state):
                id_ = self.queue(JANE)
                self.write(id_, state=state, expires_at=PAST)
                text = self.warned(self.postmaster, 'retry', id_)
                self.assertIn("expired", text)
                self.assertEqual(
                    self.read(id_, 'state', 'expires_at'), ['outbox', None])
                self.clear()

    def test_cancelled(self):
        "Test Retry of a cancelled email keeps its times"
        id_ = self.queue(JANE)
        self.write(
            id_, state='cancelled', scheduled_at=FUTURE - HOUR,
            expires_at=FUTURE)
        failed = self.queue(JOHN)
        self.write(
            failed, state='failed', scheduled_at=FUTURE - HOUR,
            expires_at=FUTURE)
        self.postmaster.queue('retry', [id_, failed])
        self.assertEqual(
            self.read(id_, 'state', 'scheduled_at', 'expires_at'),
            ['outbox', FUTURE - HOUR, FUTURE])
        state, scheduled_at, expires_at = self.read(
            failed, 'state', 'scheduled_at', 'expires_at')
        self.assertEqual((state, expires_at), ('outbox', None))
        self.assertLess(scheduled_at, FUTURE - HOUR)

    def test_send_now_asks(self):
        "Test Send Now asks before it makes several emails urgent"
        ids = self.queue_many(3, priority='bulk')
        self.postmaster.queue('send_now', ids[:1])
        text = self.warned(self.postmaster, 'send_now', *ids[1:])
        self.assertIn('2', text)
        self.assertEqual(set(self.rows_of('priority')), {'10'})

    def rows_of(self, name):
        with self.transaction(readonly=True):
            return [
                getattr(e, name) for e in Pool().get('email.queue').search(
                    [], order=[('id', 'ASC')])]

    def test_send_now_for_good(self):
        "Test a bulk email is urgent only until its next attempt"
        for to, priority in [
                ('dot-451-4.2.0-later@example.com', '30'),
                ('dot-close@example.com', '30'),
                (JANE, '30'),
                ]:
            with self.subTest(to):
                id_ = self.queue(to, priority='bulk')
                for _ in range(2):
                    self.postmaster.queue('send_now', [id_])
                self.assertEqual(
                    self.read(id_, 'priority', 'own_priority'), ['10', '30'])
                self.send_all()
                self.assertEqual(
                    self.read(id_, 'priority', 'own_priority'),
                    [priority, None])
                self.clear()

    def test_send_now_together(self):
        "Test emails that become urgent together get their own priorities back"
        ids = [
            self.queue(f'r{i}@example.com', priority=p)
            for i in range(10) for p in ['bulk', 'normal']]
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            with Transaction().set_context(_skip_warnings=True):
                EmailQueue.send_now(EmailQueue.browse(ids))
        self.send_all()
        self.assertEqual(set(self.rows_of('state')), {'sent'})
        self.assertEqual(self.rows_of('priority'), ['30', '20'] * 10)
        self.assertEqual(self.rows_of('own_priority'), [None] * 20)

    def test_send_now_in_trouble(self):
        "Test an email stays urgent while the server takes nothing"
        id_ = self.queue(JANE, priority='bulk')
        self.postmaster.queue('send_now', [id_])
        self.server.script['mail'] = '421 4.3.2 later'
        self.addCleanup(self.server.script.clear)
        with configured(run_time=.2):
            with self.assertRaises(EmailQueueError):
                self.send_all()
        self.assertEqual(
            self.read(id_, 'priority', 'own_priority'), ['10', '30'])


class OwnTestCase(AgainTestCase):
    "Test every user reads their own emails, and no others"
    names = [
        'from_addr', 'to_addrs', 'subject', 'state', 'reason', 'error',
        'outcome', 'refused',
        'accepted', 'rec_name', 'create_date', 'scheduled_at', 'queue_id']

    def setUp(self):
        super().setUp()
        secret = b'Subject: Reset\r\n\r\nYour secret is 42.\r\n'
        self.mine = [
            self.queue_as(self.clerk, [JANE, BAD]),
            self.queue_as(self.clerk, BAD, secret, sensitive=True)]
        self.others = [
            self.queue_as(self.postmaster, BAD), self.queue(BAD)]
        self.send_all()

    def call(self, model, method, *params, context=None):
        return self.clerk.call(model, method, *params, context=context)

    def test_own(self):
        rows = sorted(
            self.call(
                'email.queue.own', 'read', self.mine, [*self.names, 'events']),
            key=lambda row: row['id'])
        self.assertEqual({r['state'] for r in rows}, {'failed'})
        self.assertEqual(
            (rows[0]['reason'], rows[0]['error'], rows[0]['outcome']),
            ('refused', f'{BAD} 550 5.1.1 no',
                "Refused, delivered to 1 of 2 recipients: "
                f"{BAD} 550 5.1.1 no"))
        self.assertEqual(rows[0]['scheduled_at'].microsecond, 0)
        events = [id_ for r in rows for id_ in r['events']]
        self.assertEqual(
            [(e['kind'], e['recipients'], e['words']) for e in self.call(
                    'email.queue.own.event', 'read', events,
                    ['kind', 'recipients', 'words'])],
            [('refused', BAD, '550 5.1.1 no')] * 2)

    def test_views(self):
        "Test the client gets views that let nobody edit and show no message"
        for model in ['email.queue.own', 'email.queue.own.event']:
            for type_ in ['tree', 'form']:
                with self.subTest(model, type=type_):
                    view = self.call(model, 'fields_view_get', None, type_)
                    for name, field in view['fields'].items():
                        self.assertTrue(field['readonly'], name)
                    self.assertFalse(
                        {'msg', 'text', 'html', 'headers', 'attachments',
                            'file_id'} & set(view['fields']))

    def test_others(self):
        "Test emails of others are not there, whatever the context says"
        with self.transaction(readonly=True):
            events = [
                e.id for e in Pool().get('email.queue.event').search(
                    [('email', 'in', self.others)])]
            mine = [
                e.id for e in Pool().get('email.queue.event').search(
                    [('email', 'in', self.mine)])]
        self.assertEqual((len(events), len(mine)), (2, 2))
        for model, ids, others, names in [
                ('email.queue.own', self.mine, self.others, self.names),
                ('email.queue.own.event', mine, events,
                    ['words', 'recipients', 'email.error']),
                ]:
            for context in CONTEXTS:
                with self.subTest(model, context=context):
                    self.assertEqual(
                        set(self.call(
                                model, 'search', [], 0, None, None,
                                context=context)),
                        set(ids))
                    for id_ in others:
                        for method in ['read', 'export_data']:
                            with self.assertRaises(RPCError):
                                self.call(
                                    model, method, [id_], names,
                                    context=context)
                    self.assertEqual(
                        self.call(
                            model, 'search_count', [('id', 'in', others)],
                            context=context), 0)

    def test_body(self):
        "Test there is no way to a message"
        for name in ['msg', 'text', 'headers', 'file_id']:
            with self.subTest(name):
                with self.assertRaises(RPCError):
                    self.call('email.queue.own', 'read', self.mine, [name])
                with self.assertRaises(RPCError):
                    self.call(
                        'email.queue.own', 'search', [(name, '!=', None)],
                        0, None, None)

    def test_modify(self):
        for session in self.sessions:
            for method, *params in [
                    ('create', [{'subject': 'x'}]),
                    ('write', self.mine, {'state': 'outbox'}),
                    ('delete', self.mine),
                    ('copy', self.mine),
                    ]:
                with self.subTest(user=session.login, method=method):
                    with self.assertRaises(RPCError) as cm:
                        session.call('email.queue.own', method, *params)
                    self.assertEqual(cm.exception.name, 'FORBIDDEN')

    def test_server(self):
        "Test the server itself reads the emails that no user has queued"
        with Transaction().start(DB_NAME, 0, readonly=True):
            own = Pool().get('email.queue.own').search([])
            self.assertEqual([e.id for e in own], [self.others[1]])


del RPCTestCase, AgainTestCase
