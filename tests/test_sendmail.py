# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Core's own emails, with and without capture."""
import datetime as dt
from email.message import EmailMessage
from unittest.mock import patch

from trytond.pool import Pool
from trytond.sendmail import (
    SMTPDataManager, send_message_transactional, sendmail_transactional)
from trytond.tests.test_tryton import USER
from trytond.transaction import Transaction

from .. import sendmail
from ..exceptions import EmailQueueError
from ..sendmail import QueueDataManager, set_options
from .tools import QueueTestCase


def message(to='jane@example.com', subject="Test", **headers):
    msg = EmailMessage()
    msg['From'] = 'shop@example.com'
    msg['To'] = to
    msg['Subject'] = subject
    for name, value in headers.items():
        msg[name.replace('_', '-')] = value
    msg.set_content("Hello")
    return msg


class SendmailTestCase(QueueTestCase):

    def rows(self, *names):
        with self.transaction(readonly=True):
            emails = Pool().get('email.queue').search(
                [], order=[('id', 'ASC')])
            return [tuple(getattr(e, n) for n in names) for e in emails]


class ManagerTestCase(SendmailTestCase):
    "The public data manager"

    def test_commit(self):
        with self.transaction() as transaction:
            send_message_transactional(
                message(), datamanager=QueueDataManager())
            send_message_transactional(
                message(), 'a@example.com', ['b@example.com'],
                datamanager=QueueDataManager())
            self.assertEqual(len(transaction._datamanagers), 1)
        self.assertEqual(self.rows('from_addr', 'to_addrs', 'state'), [
                ('shop@example.com', 'jane@example.com', 'outbox'),
                ('a@example.com', 'b@example.com', 'outbox'),
                ])
        self.assertEqual(self.server.sessions, 0)

    def test_rollback(self):
        with self.transaction() as transaction:
            send_message_transactional(
                message(), datamanager=QueueDataManager())
            transaction.rollback()
        self.assertEqual(self.rows('id'), [])

    def test_two_commits(self):
        with self.transaction() as transaction:
            send_message_transactional(
                message(), datamanager=QueueDataManager())
            transaction.commit()
        self.assertEqual(len(self.rows('id')), 1)

    def test_strict(self):
        with self.assertRaises(EmailQueueError), self.transaction():
            send_message_transactional(
                message(), to_addrs='nobody', datamanager=QueueDataManager())
        self.assertEqual(self.rows('id'), [])

    def test_is_not_cores(self):
        self.assertNotEqual(QueueDataManager(), SMTPDataManager())
        self.assertNotEqual(SMTPDataManager(strict=True), QueueDataManager())
        self.assertNotIsInstance(QueueDataManager(), SMTPDataManager)


class WithoutCaptureTestCase(SendmailTestCase):

    def test_core_sends(self):
        with self.transaction():
            send_message_transactional(message())
        self.server.wait_for(1)
        self.assertEqual(self.rows('id'), [])


class CaptureTestCase(SendmailTestCase):

    def setUp(self):
        super().setUp()
        sendmail.capture()
        self.addCleanup(sendmail.release)
        self.sessions = self.server.sessions

    def test_commit(self):
        for strict in [False, True]:
            with self.subTest(strict=strict):
                self.clear()
                with self.transaction():
                    send_message_transactional(message(), strict=strict)
                    sendmail_transactional(
                        'a@example.com', 'b@example.com', message(),
                        strict=strict)
                self.assertEqual(
                    self.rows('to_addrs', 'state', 'priority'), [
                        ('jane@example.com', 'outbox', '20'),
                        ('b@example.com', 'outbox', '20')])
        self.assertEqual(self.server.sessions, self.sessions)
        self.send_all()
        self.assertEqual(len(self.server.received), 2)

    def test_rollback(self):
        with self.transaction() as transaction:
            send_message_transactional(message())
            transaction.rollback()
        self.assertEqual(self.rows('id'), [])

    def test_two_commits(self):
        with self.transaction() as transaction:
            send_message_transactional(message())
            transaction.commit()
        self.assertEqual(len(self.rows('id')), 1)

    def test_another_server_and_a_readonly_transaction_keep_cores_way(self):
        with self.transaction():
            send_message_transactional(
                message(), datamanager=SMTPDataManager(self.server.uri))
        self.server.wait_for(1)
        with self.transaction(readonly=True) as transaction:
            send_message_transactional(message())
            transaction.commit()
        self.server.wait_for(2)
        self.assertEqual(self.rows('id'), [])

    def test_what_can_not_be_queued_fails(self):
        with self.transaction():
            send_message_transactional(message(), to_addrs='nobody\x00')
        (state, to_addrs, error, subject), = self.rows(
            'state', 'to_addrs', 'error', 'subject')
        self.assertEqual(
            (state, to_addrs, subject), ('failed', 'nobody', 'Test'))
        self.assertRegex(error, 'control')
        with self.assertRaises(EmailQueueError), self.transaction():
            send_message_transactional(
                message(), to_addrs='nobody', strict=True)

    def test_priority(self):
        with self.transaction():
            for header in [
                    {'List_Id': 'news'}, {'Precedence': 'bulk'},
                    {'List_Unsubscribe': '<https://example.com/>'}]:
                send_message_transactional(message(**header))
            urgent = message()
            set_options(
                urgent, priority='urgent', expires_at=dt.timedelta(days=1))
            send_message_transactional(urgent)
        self.assertEqual(
            [p for p, in self.rows('priority')], ['30', '30', '30', '10'])

    def test_password_reset(self):
        with self.transaction():
            User = Pool().get('res.user')
            user = User(USER)
            user.email = 'admin@example.com'
            user.password_reset = None
            user.save()
            User.reset_password([user])
        (priority, expires_at, to_addrs), = self.rows(
            'priority', 'expires_at', 'to_addrs')
        self.assertEqual((priority, to_addrs), ('10', 'admin@example.com'))
        self.assertAlmostEqual(
            expires_at, dt.datetime.now() + dt.timedelta(days=1),
            delta=dt.timedelta(minutes=1))

    def test_archived_email(self):
        with self.transaction(user=USER):
            Pool().get('ir.email').send(
                to='jane@example.com', subject="Invoice", body="Hello",
                record=('res.user', USER))
        (resource, message_id), = self.rows('resource', 'message_id')
        self.assertEqual(str(resource), f'res.user,{USER}')
        with self.transaction(readonly=True):
            email, = Pool().get('ir.email').search(
                [('message_id', '=', message_id)])

    def test_email_of_a_trigger_on_the_queue(self):
        "is sent core's way, or each would make another"
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            create = EmailQueue.create

            def create_and_send(values):
                send_message_transactional(message(subject="Triggered"))
                return create(values)

            with patch.object(EmailQueue, 'create', create_and_send):
                send_message_transactional(message())
                Transaction().commit()
        self.server.wait_for(1)
        self.assertEqual(self.rows('subject'), [('Test',)])

    def test_unknown_trytond(self):
        class Manager(SMTPDataManager):
            def put(self, from_addr, to_addrs, msg, priority):
                pass

        with self.assertRaisesRegex(RuntimeError, 'capture'):
            sendmail._check(Manager)


del QueueTestCase, SendmailTestCase
