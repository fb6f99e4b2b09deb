# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""How other modules see the buttons, and how buttons and senders compete."""
from unittest.mock import patch

from trytond import backend
from trytond.pool import Pool
from trytond.tests.test_tryton import DB_NAME
from trytond.transaction import Transaction

from ..exceptions import EmailQueueError
from .processes import ProcessTestCase, Senders
from .tools import QueueTestCase

# State before, button, state after
TRANSITIONS = [
    ('outbox', 'cancel', 'cancelled'),
    ('failed', 'cancel', 'cancelled'),
    ('failed', 'retry', 'outbox'),
    ('cancelled', 'retry', 'outbox'),
    ]


class TransitionTestCase(QueueTestCase):
    "Test what modules that extend the queue see of a button"

    def press(self, button, id_):
        with self.transaction(1):
            EmailQueue = Pool().get('email.queue')
            getattr(EmailQueue, button)([EmailQueue(id_)])

    def test_hooks(self):
        "Test the hooks of a write see the states before and after"
        EmailQueue = Pool(DB_NAME).get('email.queue')
        for before, button, after in TRANSITIONS:
            seen = set()

            def on_write(emails, values):
                if 'state' in values:
                    seen.update(('before', e.state) for e in emails)
                return []

            def on_modification(mode, emails, names):
                if 'state' in names:
                    seen.update((mode, e.state) for e in emails)

            with self.subTest(before=before, button=button):
                id_ = self.queue()
                self.write(id_, state=before)
                with patch.object(EmailQueue, 'on_write', on_write), \
                        patch.object(
                            EmailQueue, 'on_modification', on_modification):
                    self.press(button, id_)
                self.assertEqual(seen, {('before', before), ('write', after)})
                self.assertEqual(self.read(id_, 'state'), after)

    def test_send_now(self):
        "Test the hooks of a write see Send Now"
        EmailQueue = Pool(DB_NAME).get('email.queue')
        names = set()
        id_ = self.queue(priority='bulk')
        with patch.object(
                EmailQueue, 'on_modification',
                lambda mode, emails, names_: names.update(names_)):
            self.press('send_now', id_)
        self.assertLessEqual({'priority', 'scheduled_at'}, names)
        self.assertEqual(
            self.read(id_, 'priority', 'own_priority'), ['10', '30'])

    def test_further_transition(self):
        "Test a module can allow a further transition"
        EmailQueue = Pool(DB_NAME).get('email.queue')
        id_ = self.queue()
        self.write(id_, state='sent')
        with self.assertRaises(EmailQueueError):
            self.press('retry', id_)
        with patch.object(
                EmailQueue, '_transitions',
                EmailQueue._transitions | {('sent', 'outbox')}):
            self.press('retry', id_)
        self.assertEqual(self.read(id_, 'state'), 'outbox')

    def test_other_state(self):
        "Test no email is changed if one of them is in another state"
        ids = self.queue_many(3)
        self.write(ids[1], state='sending')
        for button in ['send_now', 'cancel', 'retry']:
            with self.subTest(button), self.assertRaisesRegex(
                    EmailQueueError, 'Test'), self.transaction(1):
                EmailQueue = Pool().get('email.queue')
                getattr(EmailQueue, button)(EmailQueue.browse(ids))
        self.assertEqual(self.states(), {'outbox': 2, 'sending': 1})

    def test_copy(self):
        "Test a copied record is not sent"
        id_ = self.queue()
        self.write(id_, state='sent')
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            copy, = EmailQueue.copy([EmailQueue(id_)])
            self.assertEqual(copy.state, 'sent')


class ButtonRaceTestCase(ProcessTestCase):
    "Test a button while a process sends"

    def setUp(self):
        super().setUp()
        self.id, = self.queue_many(1)
        pool = Pool(self.database)
        pool.init()
        self.EmailQueue = pool.get('email.queue')

    def state(self):
        with Transaction().new_transaction(readonly=True) as transaction:
            cursor = transaction.connection.cursor()
            cursor.execute('SELECT state FROM email_queue')
            (state,), = cursor.fetchall()
            return state

    def test_claimed(self):
        "Test an email that is claimed after it was read is not changed"
        self.server.delay = {'dot': 2}
        self.addCleanup(setattr, self.server, 'delay', 0)
        for button in ['send_now', 'cancel']:
            with self.subTest(button), Senders(self.database) as senders:
                self.set_back()
                with Transaction().start(self.database, 1) as transaction:
                    email = self.EmailQueue(self.id)
                    self.assertEqual(email.state, 'outbox')
                    pid, = senders.start()
                    self.server.wait_until(lambda: self.state() == 'sending')
                    # trytond repeats a request after the second error, and the
                    # repeated request gets the first error
                    with self.assertRaises((
                                EmailQueueError,
                                backend.DatabaseOperationalError)):
                        getattr(self.EmailQueue, button)([email])
                    transaction.rollback()
                self.assertEqual(senders.join(pid), [1])
                self.assertEqual(self.states(), {'sent': 1})

    def set_back(self):
        with Transaction().start(self.database, 0) as transaction:
            transaction.connection.cursor().execute(
                "UPDATE email_queue SET state = 'outbox'")

    def test_pressed(self):
        "Test no sender claims an email that is being cancelled"
        with Senders(self.database) as senders:
            with Transaction().start(self.database, 1) as transaction:
                self.EmailQueue.cancel([self.EmailQueue(self.id)])
                pid, = senders.start()
                if backend.name != 'sqlite':
                    # The sender waits there for the end of the transaction
                    self.assertEqual(senders.join(pid), [0])
                transaction.commit()
            self.assertEqual(senders.join(pid), [0])
        self.assertEqual(self.states(), {'cancelled': 1})
        self.assertFalse(self.server.received)


del QueueTestCase, ProcessTestCase
