# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Core's own emails, with and without capture."""
import datetime as dt
import os
import subprocess
import sys
import unittest
from email.message import EmailMessage
from unittest.mock import patch

from trytond.pool import Pool
from trytond.sendmail import (
    SMTPDataManager, send_message, send_message_transactional)
from trytond.sendmail import sendmail as core_sendmail
from trytond.sendmail import sendmail_transactional
from trytond.tests.test_tryton import DB_NAME, USER
from trytond.transaction import Transaction
from trytond.worker import run_task

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


# Each process of trytond calls Pool.start first
START = """
from trytond.pool import Pool
from trytond.sendmail import SMTPDataManager as Manager
{code}
Pool.start()
print(Manager.commit.__module__.endswith('email_queue.sendmail'))
"""


class ManagerTestCase(QueueTestCase):
    "Test the public data manager"

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


class WithoutCaptureTestCase(QueueTestCase):

    def test_core_sends(self):
        with self.transaction():
            send_message_transactional(message())
        self.server.wait_for(1)
        self.assertEqual(self.rows('id'), [])


class CaptureTestCase(QueueTestCase):

    def setUp(self):
        super().setUp()
        self.addCleanup(sendmail.capture())
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
        """An email that the creation of an email sends goes core's way.

        In the queue it would cause another email.
        """
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

    def test_trigger_on_the_queue(self):
        "A trigger on the queue sends in a task of its own, and only once"
        def act(records, trigger):
            send_message_transactional(message(subject="Triggered"))

        pool = Pool(DB_NAME)
        with self.transaction():
            model, = pool.get('ir.model').search(
                [('name', '=', 'email.queue')])
            trigger = pool.get('ir.trigger')(
                name="Test", model=model, on_create_=True, condition='true',
                action='email.queue|act')
            trigger.save()
        self.addCleanup(self.delete, trigger)
        with patch.object(
                pool.get('email.queue'), 'act', act, create=True):
            with self.transaction():
                send_message_transactional(message())
            for _ in range(3):
                self.run_tasks()
        self.assertEqual(
            self.rows('subject', 'state'),
            [('Test', 'outbox'), ('Triggered', 'outbox')])

    def delete(self, record):
        with self.transaction():
            record.delete([record])

    def run_tasks(self):
        with self.transaction(readonly=True):
            tasks = list(map(int, Pool().get('ir.queue').search(
                        [('finished_at', '=', None)])))
        for task in tasks:
            run_task(DB_NAME, task)

    def test_direct(self):
        "Without a transaction an email is sent at once"
        with self.transaction():
            send_message(message(), strict=True)
            core_sendmail(
                'a@example.com', ['b@example.com'], message(), strict=True)
            self.assertEqual(len(self.server.wait_for(2)), 2)
        self.assertEqual(self.rows('id'), [])

    def test_database_without_the_module(self):
        models = Pool(DB_NAME)._pool['model']
        with self.transaction() as transaction, patch.dict(models):
            del models['email.queue']
            send_message_transactional(message())
            transaction.commit()
        self.server.wait_for(1)
        self.assertEqual(self.rows('id'), [])

    def test_resource(self):
        msg = message()
        with self.transaction():
            user = Pool().get('res.user')(USER)
            set_options(msg, resource=user)
            send_message_transactional(msg)
        self.assertEqual(
            [str(r) for r, in self.rows('resource')], [str(user)])

    def test_many_archived(self):
        with self.transaction():
            self.assertEqual(
                Pool().get('email.queue')._archived(
                    f'<{i}@example.com>' for i in range(70000)),
                {})

    def test_strange_messages(self):
        "Strange messages do not make the transaction fail"
        without_sender = message()
        del without_sender['From']
        without_recipient = message(to='')
        surrogate = message(subject="Test \udcff")
        part = EmailMessage()
        part['From'], part['To'] = 'a@example.com', 'b@example.com'
        part.set_payload("\udcff\ud800")
        for i, msg in enumerate(
                [without_sender, without_recipient, surrogate, part]):
            with self.subTest(i):
                self.clear()
                with self.transaction():
                    send_message_transactional(msg)
                (state,), = self.rows('state')
                self.assertIn(state, {'outbox', 'failed'})


class StartTestCase(unittest.TestCase):
    "Test what is checked when trytond starts"

    def start(self, code='', capture='True'):
        environ = {**os.environ, 'TRYTOND_EMAIL_QUEUE__CAPTURE': capture}
        return subprocess.run(
            [sys.executable, '-c', START.format(code=code)],
            env=environ, capture_output=True, text=True)

    def test_capture(self):
        process = self.start()
        self.assertEqual(process.stdout, "True\n", process.stderr)

    def test_off(self):
        process = self.start(capture='False')
        self.assertEqual(process.stdout, "False\n", process.stderr)

    def test_unknown_trytond(self):
        for code in [
                "del Manager.tpc_vote",
                "Manager.commit = lambda self: None",
                "Manager.put = lambda self, message: None",
                "Manager.put = lambda self, *args: None",
                "Manager.__init__ = lambda self: None",
                ]:
            with self.subTest(code=code):
                process = self.start(code)
                self.assertTrue(process.returncode)
                self.assertIn("[email_queue] capture", process.stderr)


del QueueTestCase
