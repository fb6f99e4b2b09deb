# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Which users are notified that emails have failed."""
import json
from unittest.mock import patch

from trytond.exceptions import UserError
from trytond.pool import Pool
from trytond.tests.test_tryton import DB_NAME
from trytond.transaction import Transaction

from .. import notification
from .jsonrpc import RPCTestCase

BAD = 'rcpt-550-5.1.1-no@example.com'


class NotificationTestCase(RPCTestCase):
    "Test the notifications"

    def setUp(self):
        super().setUp()
        self.clear_notifications()
        self.addCleanup(self.clear_notifications)

    def clear_notifications(self):
        with self.transaction() as transaction:
            cursor = transaction.connection.cursor()
            cursor.execute('DELETE FROM res_notification')
            cursor.execute('DELETE FROM ir_email')

    def queue_as(self, user, to_addrs=BAD, **keywords):
        keywords.setdefault('msg', b'Subject: Order\r\n\r\nHello\r\n')
        keywords.setdefault('from_addr', 'shop@example.com')
        with self.transaction(user):
            email, = Pool().get('email.queue').queue_mail(
                to_addrs=to_addrs, **keywords)
            return email.id

    def notified(self, user=None):
        "Return the notifications: user, label, description, model and ids"
        with self.transaction(readonly=True):
            Notification = Pool().get('res.notification')
            notifications = Notification.search(
                [('user', '=', user)] if user else [], order=[('id', 'ASC')])
            return [
                (n.user.id, n.label, n.description, n.model,
                    json.loads(n.records or 'null'))
                for n in notifications]

    def test_record(self):
        "Test the user who queued the email is notified once and can open it"
        resource = f'res.user,{self.clerk.id}'
        id_ = self.queue_as(self.clerk.id, resource=resource)
        self.send_all()
        self.send_all()
        (user, label, description, model, ids), = self.notified()
        self.assertEqual(user, self.clerk.id)
        self.assertEqual(label, "Email not delivered")
        self.assertIn('"Order"', description)
        self.assertIn(BAD, description)
        self.assertIn('550', description)
        self.assertEqual((model, ids), ('email.queue.own', [id_]))

    def test_client(self):
        "Test the client gets the notification"
        id_ = self.queue_as(
            self.clerk.id, resource=f'res.user,{self.clerk.id}')
        self.send_all()
        found, = self.clerk.call('res.notification', 'get')
        self.assertEqual(found['model'], 'email.queue.own')
        self.assertEqual(found['records'], [id_])
        email, = self.clerk.call(
            found['model'], 'read', found['records'], ['to_addrs', 'error'])
        self.assertEqual(email['to_addrs'], BAD)
        self.assertIn('550', email['error'])

    def test_email(self):
        "Test a user who reads the queue can open an email without record"
        id_ = self.queue_as(self.postmaster.id)
        self.send_all()
        (_, _, _, model, ids), = self.notified()
        self.assertEqual((model, ids), ('email.queue', [id_]))

    def test_several(self):
        "Test another user opens only their own failed emails"
        self.queue_as(self.clerk.id, 'jane@example.com')
        expected = [
            self.queue_as(self.clerk.id),
            self.queue_as(
                self.clerk.id, resource=f'res.user,{self.clerk.id}')]
        self.queue_as(self.postmaster.id)
        self.send_all()
        (_, _, description, model, ids), = self.notified(self.clerk.id)
        self.assertEqual((model, ids), ('email.queue.own', expected))
        self.assertEqual(
            description, "2 emails were not delivered: Order, Order")

    def test_users(self):
        "Test each user is notified of their own emails"
        for user in [self.clerk.id, self.postmaster.id, self.clerk.id]:
            self.queue_as(user)
        self.queue_as(self.clerk.id, to_addrs='jane@example.com')
        self.send_all()
        self.assertEqual(
            sorted((u, d.split(':')[0]) for u, _, d, _, _ in self.notified()),
            sorted([
                    (self.clerk.id, "2 emails were not delivered"),
                    (self.postmaster.id, f'"Order" to {BAD}'),
                    ]))

    def test_many(self):
        "Test many emails are told by their number"
        for user in [self.clerk.id, self.postmaster.id]:
            for count in [notification.EMAILS, notification.EMAILS + 1]:
                self.clear()
                self.clear_notifications()
                ids = [self.queue_as(user) for _ in range(count)]
                self.send_all()
                (_, label, description, model, records), = self.notified()
                self.assertEqual(label, "Emails not delivered")
                self.assertTrue(
                    description.startswith(f"{count} emails were not"))
                if count > notification.EMAILS:
                    self.assertTrue(description.endswith("delivered."))
                self.assertEqual(
                    model, 'email.queue' if user == self.postmaster.id
                    else 'email.queue.own')
                self.assertEqual(records, ids)

    def test_nobody(self):
        "Test no notification is made that could cause the next failure"
        about = self.queue_as(0, to_addrs='jane@example.com')
        self.queue_as(self.clerk.id, from_addr='<>')
        self.queue_as(self.clerk.id, resource=f'email.queue,{about}')
        self.queue_as(0)
        self.queue_as(self.clerk.id, to_addrs='rcpt-450@example.com')
        self.queue_as(self.clerk.id, to_addrs='jane@example.com')
        self.send_all()
        self.assertEqual(self.notified(), [])

    def test_inactive(self):
        "Test only active users that exist are notified"
        with self.transaction():
            User = Pool().get('res.user')
            user, = User.create([{'name': "Gone", 'login': 'gone'}])
        self.queue_as(user.id)
        missing = self.queue_as(self.clerk.id)
        self.queue_as(self.postmaster.id)
        with self.transaction() as transaction:
            User = Pool().get('res.user')
            User.write([User(user.id)], {'active': False})
            t = Pool().get('email.queue').__table__()
            transaction.connection.cursor().execute(*t.update(
                    [t.create_uid], [999_999], where=t.id == missing))
        self.send_all()
        self.assertEqual(
            [n[0] for n in self.notified()], [self.postmaster.id])

    def test_language(self):
        "Test a user is notified in their language"
        self.queue_as(self.clerk.id)
        with self.transaction():
            pool = Pool()
            Lang = pool.get('ir.lang')
            lang, = Lang.search([('code', '=', 'fr')])
            Lang.write([lang], {'translatable': True})
            User = pool.get('res.user')
            User.write([User(self.clerk.id)], {'language': lang})
        languages = []
        ngettext = notification.ngettext

        def spy(*args, **kwargs):
            languages.append(Transaction().language)
            return ngettext(*args, **kwargs)

        self.addCleanup(self.without_language)
        with patch.object(notification, 'ngettext', spy):
            self.send_all()
        self.assertEqual(languages, ['fr'])

    def without_language(self):
        with self.transaction():
            User = Pool().get('res.user')
            User.write([User(self.clerk.id)], {'language': None})

    def test_subscription(self):
        "Test users who look after the queue can subscribe to the job"
        method = 'email.queue|send_all'
        for session in self.sessions:
            with self.transaction(session.id, readonly=True) as transaction:
                with transaction.set_context(_check_access=True):
                    methods = dict(Pool().get('ir.cron').notifications())
                self.assertEqual(
                    method in methods, session in self.readers)
        with self.transaction():
            User = Pool().get('res.user')
            User.write(
                [User(self.postmaster.id)], {'notifications': [method]})
        self.addCleanup(self.unsubscribe)
        self.queue_as(self.clerk.id)
        self.queue_as(0)
        self.queue_as(0, from_addr='<>')
        self.send_all()
        (_, label, description, _, _), = self.notified(self.postmaster.id)
        self.assertEqual(label, "Send Queued Emails")
        self.assertEqual(description, "3 emails were not delivered.")
        self.assertEqual(len(self.notified()), 2)

    def unsubscribe(self):
        with self.transaction():
            User = Pool().get('res.user')
            User.write([User(self.postmaster.id)], {'notifications': None})

    def test_trouble(self):
        "Test users are notified even if the run ends in an error"
        self.queue_as(self.clerk.id)
        self.queue_as(self.clerk.id, from_addr='mail-421@example.com')
        try:
            self.send_all()
        except UserError:
            pass
        self.assertEqual(len(self.notified()), 1)

    def test_error(self):
        "Test an error of the notification changes nothing else"
        id_ = self.queue_as(self.clerk.id)
        EmailQueue = Pool(DB_NAME).get('email.queue')
        with patch.object(
                EmailQueue, 'run_finished', side_effect=KeyError('test')), \
                self.assertLogs('trytond.modules.email_queue.run', 'ERROR'):
            self.send_all()
        self.assertEqual(self.read(id_, 'state'), 'failed')
