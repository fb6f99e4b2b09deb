# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""An email with a key is queued once."""
import threading
import unittest

from trytond import backend
from trytond.pool import Pool
from trytond.sendmail import send_message_transactional
from trytond.transaction import Transaction

from ..exceptions import EmailQueueError
from ..sendmail import QueueDataManager, set_options
from .test_sendmail import message
from .tools import MESSAGE, QueueTestCase, configured

FROM = 'shop@example.com'
KEY = 'sale.sale,12/confirmation'


class KeyTestCase(QueueTestCase):

    def test_second(self):
        "Test a second call returns the first record unchanged, in any state"
        for state in ['outbox', 'sending', 'sent', 'failed', 'cancelled']:
            with self.subTest(state=state):
                self.clear()
                id_ = self.queue(key=KEY)
                self.write(id_, state=state)
                before = self.rows('*')
                with configured('queue', worker=True):
                    self.assertEqual(
                        self.queue(
                            'joe@example.com', b'Subject: Other\r\n\r\n',
                            key=KEY, priority='bulk'), id_)
                self.assertEqual(self.rows('*'), before)
                with self.transaction(readonly=True):
                    self.assertFalse(Pool().get('ir.queue').search([]))

    def test_same_transaction(self):
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            first, second = (
                EmailQueue.queue_mail(FROM, to, MESSAGE, key=KEY)
                for to in ['jane@example.com', 'joe@example.com'])
        self.assertEqual(first, second)
        self.assertEqual(self.rows('to_addrs'), [('jane@example.com',)])

    def test_other_keys(self):
        "Test keys are compared as they are written, and None is no key"
        ids = {self.queue(key=key) for key in [
                None, None, 'a', 'A', 'a ', 'ä']}
        self.assertEqual(len(ids), 6)

    def test_gone(self):
        "Test the key is free again when the row is gone"
        id_ = self.queue(key=KEY)
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            EmailQueue.delete([EmailQueue(id_)])
        self.assertNotEqual(self.queue(key=KEY), id_)

    def test_rolled_back(self):
        with self.transaction() as transaction:
            Pool().get('email.queue').queue_mail(
                FROM, 'joe@example.com', MESSAGE, key=KEY)
            transaction.rollback()
        self.queue(key=KEY)
        self.assertEqual(self.rows('to_addrs'), [('jane@example.com',)])

    def test_wrong(self):
        for key in ['', ' ', 'a\nb', 'a\0', 'x' * 501, 12, b'a', ('a',)]:
            with self.subTest(key=key):
                with self.assertRaisesRegex(EmailQueueError, '"key"'):
                    self.queue(key=key)
        self.queue(key='ä' * 500)

    def test_many(self):
        "Test several emails with keys, some taken and one used twice"
        first = self.queue(key='0')
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            emails = EmailQueue.queue_mails(
                (FROM, f'r{i}@example.com', MESSAGE, {'key': key})
                for i, key in enumerate(['1', None, '0', '1', None, '2']))
            to_addrs = [e.to_addrs[:2] for e in emails]
        self.assertEqual(emails[2].id, first)
        self.assertEqual(
            to_addrs, ['r0', 'r1', 'ja', 'r0', 'r4', 'r5'])
        self.assertEqual(len(self.rows('id')), 5)

    def test_captured(self):
        "Test captured emails with a key, one of which fails"
        for to in ['jane@example.com', 'nobody']:
            with self.subTest(to=to):
                self.clear()
                for _ in range(2):
                    with self.transaction():
                        msg = message()
                        set_options(msg, key=KEY)
                        send_message_transactional(
                            msg, FROM, [to],
                            datamanager=QueueDataManager(strict=False))
                self.assertEqual(self.rows('key'), [(KEY,)])

    def test_again(self):
        "Test an email that is sent again, or copied by code, has no key"
        id_ = self.queue(key=KEY)
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            self.assertIsNone(EmailQueue.queue_again(EmailQueue(id_)).key)
            copy, = EmailQueue.copy([EmailQueue(id_)])
            self.assertIsNone(copy.key)

    def test_erased(self):
        "Test a key that names an erased address is erased"
        ids = [
            self.queue('jane@example.com, joe@example.com', key=key)
            for key in [KEY, 'jane@example.com/1', 'jane@example.com/2']]
        with self.transaction():
            Pool().get('email.queue').erase_address('jane@example.com')
        self.assertEqual(
            self.rows('id', 'key'), list(zip(ids, [KEY, None, None])))

    def test_behind(self):
        """Test trytond repeats a transaction that cannot see the email with
        the key
        """
        with self.transaction() as transaction:
            EmailQueue = Pool().get('email.queue')
            EmailQueue.search([])
            read, create = EmailQueue._taken_keys, EmailQueue.create
            self.assertEqual(read([KEY]), {})
            self.addCleanup(setattr, EmailQueue, '_taken_keys', read)
            EmailQueue._taken_keys = lambda keys: {}
            if backend.name == 'postgresql':
                with Transaction().new_transaction():
                    create([self.values()])
            else:
                # Its transactions can share a connection
                create([self.values()])
            with self.assertRaises(backend.DatabaseOperationalError):
                EmailQueue.queue_mail(
                    FROM, 'joe@example.com', MESSAGE, key=KEY)
            transaction.rollback()

    def values(self):
        return {
            **Pool().get('email.queue')._checked_values(
                FROM, 'jane@example.com', MESSAGE, key=KEY)}

    @unittest.skipUnless(
        backend.name == 'postgresql', "it has one writer at a time")
    def test_at_once(self):
        """Test the second of two transactions waits, and then gets the first's
        row
        """
        ids, tries = [], []
        barrier = threading.Barrier(2, timeout=30)

        def queue():
            for number in range(5):
                try:
                    with self.transaction():
                        EmailQueue = Pool().get('email.queue')
                        EmailQueue.search([], limit=1)
                        if not number:
                            barrier.wait()
                        email, = EmailQueue.queue_mail(
                            FROM, 'jane@example.com', MESSAGE, key=KEY)
                        id_ = email.id
                except backend.DatabaseOperationalError:
                    # As trytond does
                    tries.append(number)
                else:
                    ids.append(id_)
                    return

        threads = [threading.Thread(target=queue) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        self.assertEqual(len(ids), 2)
        self.assertEqual(len(set(ids)), 1)
        self.assertEqual(len(tries), 1)
        self.assertEqual(len(self.rows('id')), 1)
