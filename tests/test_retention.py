# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""When old emails, their messages and everything about an address go."""
import base64
import datetime as dt
import json
import threading
import unittest
from email.message import EmailMessage
from unittest.mock import patch

from werkzeug.test import Client

from trytond import backend
from trytond.modules.email_queue import retention, store
from trytond.modules.email_queue.exceptions import EmailQueueError
from trytond.pool import Pool
from trytond.protocols.wrappers import Response
from trytond.tests.test_tryton import DB_NAME
from trytond.transaction import Transaction
from trytond.wsgi import app

from .jsonrpc import RPCError, RPCTestCase
from .tools import QueueTestCase, configured

SECRET = b'Your secret is 42.'
RESET = b'Subject: Reset\r\n\r\n' + SECRET + b'\r\n'
JANE, JOHN = 'jane@example.com', 'john@example.com'
STATES = ['outbox', 'sending', 'sent', 'failed', 'cancelled']


def ago(**delta):
    return dt.datetime.now() - dt.timedelta(**delta)


class RetentionTestCase(QueueTestCase):

    def update(self, *ids, **values):
        "Write columns that the ORM does not write, such as a write date"
        with self.transaction() as transaction:
            t = Pool().get('email.queue').__table__()
            transaction.connection.cursor().execute(*t.update(
                    [getattr(t, name) for name in values],
                    list(values.values()), where=t.id.in_(ids)))

    def queue_sent(self, sent_at=None, **keywords):
        id_ = self.queue(**keywords)
        self.update(
            id_, state='sent', sent_at=sent_at or dt.datetime.now())
        return id_

    def ids(self):
        with self.transaction(readonly=True):
            return {e.id for e in Pool().get('email.queue').search([])}

    def stored(self, id_):
        "Return the stored bytes, also of a sensitive email"
        with self.transaction(readonly=True):
            return Pool().get('email.queue')._message(id_)

    def clean(self):
        with self.transaction():
            Pool().get('email.queue').clean()


class CleanTestCase(RetentionTestCase):
    "Test the daily job"

    def test_deleted(self):
        "Test sent and cancelled emails are deleted after clean_days"
        kept, gone = set(), set()
        for state in STATES:
            for days in [0, 29, 31, 400]:
                id_ = self.queue()
                then = ago(days=days)
                self.update(
                    id_, state=state, create_date=ago(days=500),
                    write_date=then,
                    sent_at=then if state == 'sent' else None)
                old = days > 30 and state in {'sent', 'cancelled'}
                (gone if old else kept).add(id_)
        self.clean()
        self.assertEqual(self.ids(), kept)
        self.assertEqual(len(gone), 4)

    def test_never_written(self):
        id_ = self.queue()
        self.update(
            id_, state='cancelled', create_date=ago(days=31), write_date=None)
        self.clean()
        self.assertEqual(self.ids(), set())

    def test_days(self):
        "Test the numbers of days come from the configuration"
        id_ = self.queue_sent(ago(days=5))
        with configured(clean_days=0, clean_body_days=0):
            self.clean()
        self.assertTrue(self.stored(id_))
        with configured(clean_days=6, clean_body_days=4.5):
            self.clean()
        self.assertEqual(self.ids(), {id_})
        self.assertFalse(self.stored(id_))
        with configured(clean_days=999999999, clean_body_days=999999999):
            self.clean()
        with configured(clean_days=4.5):
            self.clean()
        self.assertEqual(self.ids(), set())

    def test_messages(self):
        "Test only messages of sent emails are removed, before the emails"
        old = {s: self.queue() for s in STATES}
        for state, id_ in old.items():
            self.update(
                id_, state=state, create_date=ago(days=8),
                write_date=ago(days=8),
                sent_at=ago(days=8) if state == 'sent' else None)
        new = self.queue_sent(ago(days=6))
        before = self.read(old['sent'], 'size', 'subject', 'message_id')
        self.clean()
        self.assertEqual(
            {s for s, id_ in old.items() if not self.stored(id_)}, {'sent'})
        self.assertTrue(self.stored(new))
        self.assertEqual(
            self.read(old['sent'], 'size', 'subject', 'message_id'), before)
        self.assertEqual(
            self.read(
                old['sent'], 'content', 'msg', 'text', 'headers', 'state'),
            ['removed', None, None, None, 'sent'])
        self.assertEqual(
            self.read(new, 'content', 'text'), [None, "Hello"])

    def test_batches(self):
        "Test each batch is committed, and each email is handled once"
        ids = [self.queue_sent(ago(days=40 + n)) for n in range(10)]
        delete = Pool(DB_NAME).get('email.queue')._delete
        batches = []

        def fail(batch):
            batches.append(set(batch))
            if len(batches) == 3:
                raise ValueError
            delete(batch)

        with patch.object(retention, 'BATCH', 3):
            with patch.object(
                    Pool(DB_NAME).get('email.queue'), '_delete', fail):
                with self.assertRaises(ValueError):
                    self.clean()
            self.assertEqual(
                batches, [set(ids[7:]), set(ids[4:7]), set(ids[1:4])])
            self.assertEqual(self.ids(), set(ids[:4]))
            self.clean()
        self.assertEqual(self.ids(), set())

    @unittest.skipIf(
        backend.name == 'sqlite', "a thread has no other connection")
    def test_locked(self):
        "Test a locked email is left out without a wait"
        ids = [self.queue_sent(ago(days=40)) for _ in range(3)]
        with self.transaction() as transaction:
            t = Pool().get('email.queue').__table__()
            transaction.connection.cursor().execute(*t.update(
                    [t.subject], ["Locked"], where=t.id == ids[1]))
            job = threading.Thread(target=self.clean)
            job.start()
            job.join(60)
            self.assertFalse(job.is_alive())
        self.assertEqual(self.ids(), {ids[1]})
        self.clean()
        self.assertEqual(self.ids(), set())

    @unittest.skipIf(
        backend.name == 'sqlite', "a thread has no other connection")
    def test_sender(self):
        "Test emails are sent while a batch is being deleted"
        self.queue_sent(ago(days=40))
        waiting = self.queue()
        EmailQueue = Pool(DB_NAME).get('email.queue')
        delete, states = EmailQueue._delete, []

        def send():
            self.send_all()
            states.append(self.read(waiting, 'state'))

        def delete_and_send(ids):
            delete(ids)
            sender = threading.Thread(target=send)
            sender.start()
            sender.join(60)
            self.assertFalse(sender.is_alive())

        with patch.object(EmailQueue, '_delete', delete_and_send):
            self.clean()
        self.assertEqual(states, ['sent'])
        self.assertEqual(self.ids(), {waiting})

    def test_cron(self):
        "Test the action of the scheduler runs the job once a day"
        self.queue_sent(ago(days=40))
        with self.transaction():
            cron, = Pool().get('ir.cron').search(
                [('method', '=', 'email.queue|clean')])
            self.assertEqual(
                (cron.interval_number, cron.interval_type), (1, 'days'))
            Pool().get('ir.cron').run_once([cron])
        self.assertEqual(self.ids(), set())

    def test_failed(self):
        "Test a person decides about a failed email by cancelling it"
        id_ = self.queue()
        self.update(id_, state='failed', write_date=ago(days=400))
        self.clean()
        self.assertEqual(self.ids(), {id_})
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            EmailQueue.cancel([EmailQueue(id_)])
        self.clean()
        self.assertEqual(self.read(id_, 'state'), 'cancelled')
        self.update(id_, write_date=ago(days=31))
        self.clean()
        self.assertEqual(self.ids(), set())

    def test_retry(self):
        "Test an email without its message is not sent again"
        id_, other = self.queue(), self.queue()
        self.update(id_, other, state='failed')
        self.update(id_, msg=None)
        with self.assertRaisesRegex(EmailQueueError, "has been removed"):
            with self.transaction():
                EmailQueue = Pool().get('email.queue')
                EmailQueue.retry(EmailQueue.browse([other, id_]))
        self.assertEqual(
            [self.read(i, 'state') for i in [id_, other]],
            ['failed', 'failed'])

    def test_send(self):
        "Test a sender says that the message is gone"
        id_, other = self.queue(), self.queue()
        self.update(id_, msg=None)
        self.send_all()
        self.assertEqual(
            self.read(id_, 'state', 'reason', 'error'),
            ['failed', 'no_message', None])
        self.assertEqual(self.read(other, 'state'), 'sent')


class SensitiveTestCase(RPCTestCase, RetentionTestCase):
    "Test messages that hold secrets"

    def test_sent(self):
        "Test the message is removed when the email is sent, and not before"
        for count in [1, 3]:
            ids = [
                self.queue(msg=RESET, sensitive=True) for _ in range(count)]
            other = self.queue(msg=RESET)
            for id_ in ids:
                self.assertIn(SECRET, self.stored(id_))
            self.server.received.clear()
            self.send_all()
            self.assertEqual(
                [SECRET in m.data for m in self.server.received],
                [True] * (count + 1))
            for id_ in ids:
                self.assertFalse(self.stored(id_))
                self.assertEqual(
                    self.read(id_, 'state', 'content'), ['sent', 'removed'])
                self.assertTrue(self.read(id_, 'size'))
            self.assertIn(SECRET, self.stored(other))

    def test_one_statement(self):
        "Test one statement makes the email sent and removes the message"
        for count in [1, 3]:
            for _ in range(count):
                self.queue(msg=RESET, sensitive=True)
            execute, statements = store.Store.execute, []

            def collect(self, query):
                if 'UPDATE' in str(query) and 'sent' in query.params:
                    statements.append(str(query))
                return execute(self, query)

            with patch.object(store.Store, 'execute', collect):
                self.send_all()
            self.assertTrue(statements)
            for statement in statements:
                self.assertIn('"msg"', statement)
            if count > 1:
                # Rows with equal values are recorded together
                self.assertLess(len(statements), count + 1)

    def test_not_sent(self):
        "Test an email that is not sent keeps its message, hidden"
        for to in ['rcpt-450@example.com', 'rcpt-550@example.com']:
            id_ = self.queue(to, msg=RESET, sensitive=True)
            self.send_all()
            self.assertIn(SECRET, self.stored(id_))
            self.assertEqual(self.read(id_, 'content', 'msg'), [
                    'hidden', None])

    def test_send_one(self):
        id_ = self.queue(msg=RESET, sensitive=True)
        with self.transaction():
            Pool().get('email.queue')(id_).send()
        self.assertFalse(self.stored(id_))

    def test_some(self):
        "Test the message stays until all recipients have it"
        id_ = self.queue([JANE, 'rcpt-450@example.com'], sensitive=True)
        self.send_all()
        self.assertEqual(self.read(id_, 'state'), 'outbox')
        self.assertTrue(self.stored(id_))

    def test_hidden(self):
        "Test no call reads the message, and no search leaks its content"
        names = [
            'msg', 'text', 'html', 'headers', 'attachments', 'content',
            'filename', 'rec_name', 'size']
        for state in STATES:
            id_ = self.queue(msg=RESET, sensitive=True)
            self.update(id_, state=state)
            body = [('id', '=', id_), ('msg', '!=', None)]
            same = [('id', '=', id_), ('msg', '=', self.stored(id_))]
            size = {'email.queue.msg': 'size'}
            for session in self.readers:
                answers = [
                    session.queue('read', [id_], names),
                    session.queue(
                        'search_read', [], 0, None, [('msg', 'ASC')], names),
                    session.queue('export_data', [id_], names),
                    session.queue(
                        'export_data_domain', [], names, 0, None, None),
                    ]
                with self.subTest(state=state, user=session.login):
                    self.assertNotIn('secret', repr(answers))
                    self.assertFalse(answers[0][0]['msg'])
                    self.assertEqual(answers[0][0]['content'], 'hidden')
                    for domain in [body, same]:
                        self.assertEqual(
                            session.queue('search', domain, 0, None, None),
                            [])
                    row, = session.queue(
                        'read', [id_], ['msg'], context=size)
                    self.assertFalse(row['msg'])

    def test_rest(self):
        "Test an application does not read the message either"
        id_ = self.queue(msg=RESET, sensitive=True)
        with Transaction().start(DB_NAME, 0):
            application, = Pool().get('res.user.application').create([{
                        'user': self.postmaster.id,
                        'application': 'rest',
                        'state': 'validated',
                        }])
            key = application.key
        response = Client(app, Response).get(
            f'/{DB_NAME}/rest/model/email.queue/{id_}?f=msg&f=text&f=subject',
            headers={'Authorization': f'bearer {key}'})
        self.assertIn(b'Reset', response.data)
        self.assertNotIn(base64.b64encode(SECRET)[:8], response.data)
        self.assertFalse(json.loads(response.data).get('msg'))

    def test_captured(self):
        "Test captured password resets are sensitive, also one that fails"
        EmailQueue = Pool(DB_NAME).get('email.queue')
        with self.transaction() as transaction:
            user = Pool().get('res.user')(self.clerk.id)
            user.email = 'clerk@example.com'
            user.password_reset = 'secret'
            user.password_reset_expire = ago(days=-1)
            user.save()
            msg, _ = user.get_email_reset_password()
            msg['From'], msg['To'] = 'shop@example.com', 'clerk@example.com'
            for to_addrs in ['clerk@example.com', 'nobody']:
                EmailQueue.queue_captured(
                    [('shop@example.com', to_addrs, msg)])
            emails = EmailQueue.search([], order=[('id', 'ASC')])
            self.assertEqual(
                [(e.state, e.sensitive, e.msg) for e in emails],
                [('outbox', True, None), ('failed', True, None)])
            self.assertTrue(all(EmailQueue._message(e.id) for e in emails))
            transaction.rollback()


class EraseTestCase(RPCTestCase, RetentionTestCase):
    "Test everything about an address is erased"

    def erase(self, address=JANE):
        with self.transaction():
            return tuple(Pool().get('email.queue').erase_address(address))

    def assertErased(self, *addresses):
        with self.transaction(readonly=True) as transaction:
            t = Pool().get('email.queue').__table__()
            cursor = transaction.connection.cursor()
            cursor.execute(*t.select(where=t.state != 'outbox'))
            text = repr([
                    bytes(v) if isinstance(v, memoryview) else v
                    for row in cursor for v in row])
        for address in addresses or [JANE]:
            self.assertNotIn(address, text.lower())

    def test_alone(self):
        "Test emails only to the address are deleted, so that none is sent"
        kept = self.queue(JOHN)
        for state in STATES:
            self.update(self.queue("Jane@example.com"), state=state)
        self.assertEqual(self.erase(), (4, 0, 1))
        self.assertEqual(len(self.ids()), 2)
        self.update(*self.ids() - {kept}, state='sent')
        self.assertEqual(self.erase("Jane Doe <jane@example.com>"), (1, 0, 0))
        self.assertEqual(self.ids(), {kept})
        self.send_all()
        self.assertEqual(
            [m.to_addrs for m in self.server.received], [(JOHN,)])

    def test_sent_to_several(self):
        "Test emails to others, too, lose the address and the message"
        for state in ['sent', 'failed', 'cancelled']:
            with self.subTest(state=state):
                id_ = self.queue([JANE, JOHN, 'x@example.com'])
                self.update(
                    id_, state=state, accepted=f'{JANE}\n{JOHN}',
                    refused=f'{JANE} 550 no\nx@example.com 550 no JANE'
                    '@example.com', subject=f"For {JANE}",
                    error=f"{JANE} 550 no",
                    rcpt_options=f'NOTIFY=NEVER ORCPT=rfc822;{JANE}')
                self.assertEqual(self.erase(), (0, 1, 0))
                self.assertErased()
                self.assertEqual(
                    self.read(
                        id_, 'to_addrs', 'accepted', 'refused', 'subject',
                        'error', 'rcpt_options', 'content', 'state'),
                    [f'{JOHN}, x@example.com', JOHN,
                        'x@example.com 550 no ***', "For ***",
                        "*** 550 no", 'NOTIFY=NEVER',
                        'removed', state])
                self.assertEqual(self.erase(), (0, 0, 0))

    def test_waiting_for_several(self):
        """Test others still get a waiting email, and then its message is
        removed
        """
        msg = f'Subject: Hello\r\nTo: {JANE}, {JOHN}\r\n\r\nHi\r\n'.encode()
        id_ = self.queue([JANE, JOHN], msg=msg)
        self.assertEqual(self.erase(), (0, 1, 0))
        self.assertEqual(
            self.read(id_, 'state', 'to_addrs', 'content'),
            ['outbox', JOHN, 'hidden'])
        self.send_all()
        mail, = self.server.received
        self.assertEqual(mail.to_addrs, (JOHN,))
        self.assertEqual(self.read(id_, 'state'), 'sent')
        self.assertErased()

    def test_waiting_for_nobody_else(self):
        "Test an email that waits for nobody else is not sent"
        for values, state in [
                ({'accepted': JOHN}, 'sent'),
                ({'refused': f'{JOHN} 550 no'}, 'failed')]:
            id_ = self.queue([JANE, JOHN])
            self.update(id_, **values)
            self.erase()
            self.assertEqual(
                self.read(id_, 'state', 'content'), [state, 'removed'])
            self.assertErased()

    def test_sender(self):
        "Test emails from the address, one of which waits and is cancelled"
        ids = {s: self.queue(JOHN, from_addr=JANE) for s in STATES}
        for state, id_ in ids.items():
            self.update(id_, state=state)
        self.assertEqual(self.erase(), (0, 4, 1))
        for state, id_ in ids.items():
            if state != 'sending':
                self.assertEqual(
                    self.read(id_, 'from_addr', 'content', 'state'),
                    ['<>', 'removed',
                        'cancelled' if state == 'outbox' else state])
        self.update(ids['sending'], state='sent')
        self.erase()
        self.assertErased()

    def test_mentioned(self):
        "Test emails of others that have the address in their message"
        html = EmailMessage()
        html['Subject'], html['To'] = "Order", JOHN
        html.set_content("Hello")
        html.add_alternative(
            f'<a href="https://example.com/?m=jane%40example.com">x</a>{JANE}',
            subtype='html', cte='base64')
        mentioned = [
            self.queue(JOHN, msg=html),
            self.queue(JOHN, msg=f'Subject: x\r\n\r\n<{JANE}>.'.encode()),
            self.queue(JOHN, msg=f'Subject: x\r\nCc: {JANE}\r\n\r\n'.encode()),
            self.queue(
                JOHN, sensitive=True, msg=(
                    'Subject: x\r\nContent-Transfer-Encoding: '
                    'quoted-printable\r\n\r\n'
                    'by jane@exa=\r\nmple.com').encode()),
            ]
        others = [
            self.queue(JOHN, msg=f'Subject: x\r\n\r\n{text}'.encode())
            for text in [
                'maryjane@example.com', 'mary.jane@example.com',
                'jane@example.com.au', 'jane@example.community', 'jane']]
        self.update(*mentioned, *others, state='sent')
        self.assertEqual(self.erase(), (0, 4, 0))
        for id_ in mentioned:
            self.assertFalse(self.stored(id_))
        for id_ in others:
            self.assertTrue(self.stored(id_))

    def test_alike(self):
        "Test other addresses are not changed"
        others = [
            'maryjane@example.com', 'jane@example.com.au', 'jan_@example.com']
        for to_addr in others:
            self.queue([to_addr, JOHN])
        self.assertEqual(self.erase(), (0, 0, 0))
        self.assertEqual(self.erase('%@example.com'), (0, 0, 0))

    def test_domain(self):
        "Test a domain is found as it is stored and as it was given"
        self.queue('jane@straße.de')
        text = 'Subject: x\r\n\r\nfor jane@straße.de'.encode()
        id_ = self.queue(JOHN, msg=text)
        self.update(id_, state='sent')
        self.assertEqual(self.erase('jane@straße.de'), (1, 1, 0))
        self.assertFalse(self.stored(id_))

    def test_invalid(self):
        id_ = self.queue()
        for address in ['', 'jane', '@', f'{JANE}, {JOHN}', None, 'a\n@b.c']:
            with self.subTest(address=address):
                with self.assertRaises(EmailQueueError):
                    self.erase(address)
        self.assertEqual(self.ids(), {id_})

    def test_rollback(self):
        "Test an erasure is part of the caller's transaction"
        id_ = self.queue()
        with self.transaction() as transaction:
            Pool().get('email.queue').erase_address(JANE)
            transaction.rollback()
        if backend.name != 'sqlite':
            self.assertEqual(self.ids(), {id_})

    def test_count(self):
        "Test the count returns what an erasure does, and changes nothing"
        self.queue(JANE)
        self.queue([JANE, 'john@example.com'])
        self.write(self.queue(JANE), state='sending')
        before = self.ids()
        with self.transaction(readonly=True):
            count = tuple(Pool().get('email.queue').count_address(JANE))
        self.assertEqual(count, (1, 1, 1))
        self.assertEqual(self.ids(), before)
        self.assertEqual(self.erase(), count)

    def test_wizard_asks(self):
        "Test the wizard shows the numbers before it does anything"
        self.queue(JANE)
        before = self.ids()
        result = self.wizard(self.postmaster, state='count')
        shown = result['view']['defaults']
        self.assertEqual(
            [shown[n] for n in ['address', 'deleted', 'changed', 'busy']],
            [JANE, 1, 0, 0])
        self.assertIn("cannot be undone", shown['warning'])
        self.assertEqual(
            [b['state'] for b in result['view']['buttons'] if b['default']],
            ['end'])
        self.assertEqual(self.ids(), before)

    def wizard(self, session, address=JANE, state='erase', context=None):
        name = 'wizard.email.queue.erase_address'
        id_, *_ = session(f'{name}.create', {})
        context = {'action_id': self.action, **(context or {})}
        return session(
            f'{name}.execute', id_, {'start': {'address': address}}, state,
            context)

    @property
    def action(self):
        with self.transaction(readonly=True):
            return Pool().get('ir.model.data').get_id(
                'email_queue', 'wizard_erase_address')

    def test_wizard(self):
        for session in self.readers:
            self.queue()
            result = self.wizard(session)
            self.assertEqual(
                {n: result['view']['defaults'][n]
                    for n in ['deleted', 'changed', 'busy']},
                {'deleted': 1, 'changed': 0, 'busy': 0})
            self.assertEqual(self.ids(), set())

    def test_wizard_from_the_menu(self):
        "Test the menu opens the wizard, also after an update"
        with self.transaction():
            pool = Pool()
            menu = pool.get('ir.model.data').get_id(
                'email_queue', 'menu_erase_address')
            Action = pool.get('ir.action.wizard')
            action, = Action.search([
                    ('wiz_name', '=', 'email.queue.erase_address')])
            self.assertIsNone(action.model)
        self.queue(JANE)
        result = self.wizard(self.postmaster, state='count', context={
                'active_model': 'ir.ui.menu', 'active_id': menu,
                'active_ids': [menu]})
        self.assertEqual(result['view']['defaults']['deleted'], 1)

    def test_wizard_strangers(self):
        id_ = self.queue()
        for session in self.strangers:
            for state in ['count', 'erase']:
                with self.subTest(user=session.login, state=state):
                    with self.assertRaises(RPCError):
                        self.wizard(session, state=state)
        self.assertEqual(self.ids(), {id_})


del QueueTestCase, RPCTestCase
