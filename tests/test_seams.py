# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Which hook is called when, for modules that extend the queue."""
from unittest.mock import patch

from trytond.pool import Pool
from trytond.sendmail import send_message_transactional
from trytond.tests.test_tryton import DB_NAME
from trytond.transaction import Transaction

from .. import identity, run, smtp
from ..exceptions import EmailQueueError
from ..sendmail import QueueDataManager
from .test_bounce import notice
from .test_sendmail import message
from .tools import MESSAGE, QueueTestCase

FROM = 'shop@example.com'
NOTICED = b'Message-ID: <1@shop.example.com>\r\n' + MESSAGE


class HooksTestCase(QueueTestCase):
    "Test which hook is called when"

    def setUp(self):
        super().setUp()
        self.called = []
        EmailQueue = Pool(DB_NAME).get('email.queue')
        for name in ['queued', 'finished', 'run_finished']:
            self.enter_here(patch.object(
                    EmailQueue, name, self.hook(name)))

    def hook(self, name):
        def hook(emails):
            self.called.append((name, sorted(map(int, emails))))
        return hook

    def calls(self):
        called, self.called = self.called, []
        return called

    def test_queued(self):
        "Test each way into the queue"
        id_ = self.queue(key='a')
        self.assertEqual(self.calls(), [('queued', [id_])])
        # There is an email with this key already
        self.queue(key='a')
        self.assertEqual(self.calls(), [])
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            ids = [e.id for e in EmailQueue.queue_mails(
                    (FROM, f'r{i}@example.com', MESSAGE) for i in range(3))]
        self.assertEqual(self.calls(), [('queued', ids)])
        with self.transaction():
            again = EmailQueue.queue_again(EmailQueue(id_)).id
        self.assertEqual(self.calls(), [('queued', [again])])
        with self.transaction():
            for to in ['jane@example.com', 'nobody']:
                send_message_transactional(
                    message(), FROM, [to],
                    datamanager=QueueDataManager(strict=False))
        (name, ids), = self.calls()
        self.assertEqual((name, len(ids)), ('queued', 2))

    def test_queued_transaction(self):
        """Test the hook runs in the caller's transaction, without checks of
        access
        """
        seen = []

        def queued(emails):
            transaction = Transaction()
            seen.append((
                    transaction, transaction.user, transaction.check_access,
                    [e.to_addrs for e in emails]))

        EmailQueue = Pool(DB_NAME).get('email.queue')
        with patch.object(EmailQueue, 'queued', queued):
            with self.transaction(1, context={'_check_access': True}):
                transaction = Transaction()
                EmailQueue.queue_mail(FROM, 'jane@example.com', MESSAGE)
        self.assertEqual(
            seen, [(transaction, 1, False, ['jane@example.com'])])

    def test_queued_error(self):
        """Test an exception of the hook reaches the caller, and nothing is
        queued
        """
        EmailQueue = Pool(DB_NAME).get('email.queue')
        with patch.object(EmailQueue, 'queued', side_effect=KeyError('no')):
            with self.assertRaises(KeyError):
                self.queue()
            with self.transaction():
                with self.assertRaises(KeyError):
                    EmailQueue.queue_mails([
                            (FROM, 'jane@example.com', MESSAGE)])
        self.assertEqual(self.rows('id'), [])

    def test_sent(self):
        """Test the hooks for an attempt, and for emails that have failed for
        good
        """
        sent, failed = self.queue(), self.queue('rcpt-550@example.com')
        self.calls()
        self.send_all()
        called = self.calls()
        self.assertEqual(called.pop(), ('run_finished', [failed]))
        self.assertEqual({name for name, _ in called}, {'finished'})
        self.assertEqual({i for _, ids in called for i in ids}, {sent, failed})

    def test_buttons(self):
        "Test no button calls a hook"
        id_ = self.queue()
        self.calls()
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            emails = EmailQueue.browse([id_])
            EmailQueue.cancel(emails)
            EmailQueue.retry(emails)
            EmailQueue.send_now(emails)
        self.assertEqual(self.calls(), [])

    def test_put_back(self):
        "Test that no hook is called for the email of a dead sender"
        self.queue()
        self.calls()
        with self.transaction() as transaction:
            transaction.connection.cursor().execute(
                "UPDATE email_queue SET state = 'sending', slot = 4711, "
                "write_date = '2026-01-01'")
        with self.transaction(), \
                run._opened(Pool().get('email.queue')) as store:
            self.assertTrue(store.slot.take([1]))
            try:
                store.recover()
            finally:
                store.slot.give_back()
        self.assertEqual(self.states(), {'outbox': 1})
        self.assertEqual(self.calls(), [])

    def test_bounced(self):
        "Test that a failure by a notice calls the hook at the commit"
        id_ = self.queue(msg=NOTICED)
        self.send_all()
        self.calls()
        data = notice(
            [{'Final-Recipient': 'rfc822; jane@example.com'}],
            message_id='<1@shop.example.com>')
        with self.transaction():
            Pool().get('email.queue').receive_notice(data)
            self.assertEqual(self.calls(), [])
        self.assertEqual(self.calls(), [('run_finished', [id_])])

    def test_copy(self):
        "Test that no hook is called for emails that are cancelled in a copy"
        self.queue()
        self.calls()
        with self.transaction():
            identity._cancel()
        self.assertEqual(self.states(), {'cancelled': 1})
        self.assertEqual(self.calls(), [])


class Transport:
    "Another transport, with only the methods that it must have"

    def __init__(self, called):
        self.called = called

    def deliver(self, mail):
        self.called.append(mail)
        outcome = smtp.Outcome()
        outcome.accept(mail.to_addrs)
        return outcome

    def close(self):
        self.called.append('close')

    def drop(self):
        self.called.append('drop')


class OtherClientTestCase(QueueTestCase):
    "Test another transport"

    def get_client(self, function):
        return patch.object(
            Pool(DB_NAME).get('email.queue'), 'get_client', function)

    def test_transport(self):
        "Test a run and send hand each email to another transport"
        called, asked = [], []

        def get_client(server, settings):
            asked.append((server, settings.timeout))
            return Transport(called)

        for send in [self.send_all, self.send_one]:
            called.clear()
            self.clear()
            with self.subTest(send=send.__name__), self.get_client(get_client):
                id_ = self.queue(rcpt_options='NOTIFY=NEVER')
                send()
                mail, = (c for c in called if isinstance(c, smtp.Mail))
                self.assertEqual(mail, smtp.Mail(
                        'shop@example.com', ('jane@example.com',),
                        self.read(id_, 'msg'), (), ('NOTIFY=NEVER',)))
                self.assertIn('close', called)
                self.assertEqual(self.states(), {'sent': 1})
        self.assertEqual(set(asked), {(None, self.timeout)})
        self.assertFalse(self.server.received)

    def send_one(self):
        with self.transaction():
            email, = Pool().get('email.queue').search([])
            email.send()

    def test_none(self):
        "Test the emails stay in the outbox if there is no client"
        self.queue()

        def get_client(server, settings):
            raise KeyError('api_url')

        for send in [self.send_all, self.send_one]:
            with self.subTest(send=send.__name__), \
                    self.get_client(get_client), \
                    self.assertLogs(level='ERROR'), \
                    self.assertRaisesRegex(EmailQueueError, 'api_url'):
                send()
            self.assertEqual(self.rows('state', 'attempts'), [('outbox', 0)])
