# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Many emails at once."""
import datetime as dt
import tracemalloc
from contextlib import contextmanager
from unittest.mock import patch

from trytond.model import fields
from trytond.model.exceptions import ValidationError
from trytond.pool import Pool
from trytond.sendmail import send_message_transactional
from trytond.tests.test_tryton import DB_NAME
from trytond.transaction import Transaction

from .. import bulk, sendmail
from ..exceptions import EmailQueueError
from ..sendmail import QueueDataManager
from .test_filestore import FilestoreTestCase
from .test_sendmail import message
from .tools import MESSAGE, QueueTestCase, configured

FROM = 'shop@example.com'
COMPLETE = (
    b'Message-ID: <1@example.com>\r\n'
    b'Date: Thu, 1 Jan 2026 00:00:00 +0000\r\n' + MESSAGE)


def mails(count, **keywords):
    return [
        (FROM, f'r{i}@example.com', MESSAGE, keywords) for i in range(count)]


@contextmanager
def creating(note):
    "Collect what ``note`` returns for the values of each INSERT"
    EmailQueue, noted = Pool(DB_NAME).get('email.queue'), []
    create = EmailQueue.create

    def noting(vlist):
        noted.append(note(vlist))
        return create(vlist)

    with patch.object(EmailQueue, 'create', noting):
        yield noted


class BulkTestCase(QueueTestCase):
    "Many emails in one call of queue_mails"

    def queue_mails(self, mails, **options):
        with self.transaction(**options):
            return list(map(int, Pool().get('email.queue').queue_mails(mails)))

    def setUp(self):
        super().setUp()
        # More than one batch
        self.enter_here(patch.object(bulk, 'ROWS', 3))

    def test_order(self):
        "Test there is a sent record for each email, in order"
        ids = self.queue_mails(iter(mails(8)))
        self.assertEqual(self.rows('id', 'to_addrs', 'state'), [
                (id_, f'r{i}@example.com', 'outbox')
                for i, id_ in enumerate(ids)])
        self.send_all()
        self.assertEqual(self.states(), {'sent': 8})
        self.assertEqual(len(self.server.received), 8)

    def test_none(self):
        self.assertEqual(self.queue_mails([]), [])

    def test_values(self):
        """Test the stored values are those of queue_mail, whatever the
        arguments are
        """
        keywords = [
            {},
            {'priority': 'urgent', 'sensitive': True},
            {'mail_options': ['RET=HDRS'], 'rcpt_options': 'NOTIFY=FAILURE'},
            {'resource': 'res.user,1', 'server': None},
            {'scheduled_at': dt.datetime(2030, 1, 1),
                'expires_at': dt.datetime(2030, 1, 2)},
            ]
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            names = [
                name for name, field in EmailQueue._fields.items()
                if not isinstance(field, (fields.Function, fields.One2Many))
                and name not in {'id', 'create_date', 'scheduled_at'}]
        for values in keywords:
            self.queue('jane@example.com', COMPLETE, FROM, **values)
        self.queue_mails([
                (FROM, 'jane@example.com', COMPLETE),
                *((FROM, ['jane@example.com'], COMPLETE, values)
                    for values in keywords[1:])])
        rows = self.rows(*names)
        self.assertEqual(rows[:5], rows[5:])
        due = [at for at, in self.rows('scheduled_at')]
        self.assertEqual(due[4], due[9])

    def test_time(self):
        "Test times from now are counted by the clock of the database"
        hour = dt.timedelta(hours=1)
        self.queue_mails(
            mails(4, scheduled_at=hour, expires_at=2 * hour))
        before = dt.datetime.now()
        for scheduled_at, expires_at in self.rows(
                'scheduled_at', 'expires_at'):
            if isinstance(scheduled_at, str):
                scheduled_at = dt.datetime.fromisoformat(scheduled_at)
                expires_at = dt.datetime.fromisoformat(expires_at)
            self.assertEqual(expires_at - scheduled_at, hour)
            self.assertLess(abs(scheduled_at - before - hour), hour / 2)

    def test_statements(self):
        "Test there is one INSERT for each batch"
        with creating(len) as inserts:
            self.queue_mails(mails(8))
        self.assertEqual(inserts, [3, 3, 2])

    def test_columns(self):
        "Test all emails have the fields that one has, and others none"
        resource = {'resource': 'res.user,1'}
        with creating(lambda vlist: list(map(set, vlist))) as inserts:
            self.queue_mails([
                    *mails(1), *mails(1, **resource), *mails(2)])
        first, second = inserts
        self.assertEqual(len(set(map(frozenset, first))), 1)
        self.assertEqual(first[0] - second[0], {'resource'})
        self.assertEqual(
            self.rows('resource'),
            [(None,), ('res.user,1',), (None,), (None,)])

    def test_bytes(self):
        "Test large messages make small batches"
        items = [({'size': size}, True) for size in [1, 10, 20, 1, 1]]
        with patch.object(bulk, 'BYTES', 20):
            self.assertEqual(
                [[v['size'] for v, _ in b] for b in bulk.batches(items)],
                [[1, 10, 20], [1, 1]])

    def test_error(self):
        "Test an error names the index, and nothing is queued"
        for index in [0, 2, 3, 7]:
            for values, word in [
                    ((FROM, 'nobody', MESSAGE), 'to_addrs'),
                    ((FROM, 'jane@example.com', 5), 'msg'),
                    ((FROM, 'jane@example.com', MESSAGE,
                            {'priority': 'high'}), 'priority'),
                    ]:
                for iterable in [list, iter]:
                    wrong = mails(8)
                    wrong[index] = values
                    with self.subTest(index=index, word=word):
                        with self.transaction() as transaction:
                            EmailQueue = Pool().get('email.queue')
                            first, = EmailQueue.queue_mail(
                                FROM, 'first@example.com', MESSAGE)
                            with self.assertRaises(EmailQueueError) as cm:
                                EmailQueue.queue_mails(iterable(wrong))
                            self.assertIn(str(index), cm.exception.message)
                            self.assertIn(word, cm.exception.message)
                            # The transaction remains usable
                            EmailQueue.queue_mail(
                                FROM, 'last@example.com', MESSAGE)
                            transaction.commit()
                        self.assertEqual(self.rows('to_addrs'), [
                                ('first@example.com',),
                                ('last@example.com',)])
                        self.clear()

    def test_mistake(self):
        "Test the error of a wrong call names the index, too"
        jane = FROM, 'jane@example.com', MESSAGE
        for wrong, words in [
                ((FROM,), "is no tuple"),
                (5, "is no tuple"),
                ((*jane, {}, {}), "is no tuple"),
                ((*jane, 5), "is no tuple"),
                ((*jane, {'colour': 'red'}), "has the unknown .* 'colour'"),
                ((*jane, {'clock': None}), "has the unknown keyword 'clock'"),
                ((*jane, {'msg': b''}), "has the unknown keyword 'msg'"),
                ((*jane, {5: 5}), "has the unknown keyword 5"),
                ]:
            with self.subTest(wrong=wrong), self.transaction():
                with self.assertRaisesRegex(
                        TypeError, rf'^queue_mails: mails\[7\] {words}'):
                    Pool().get('email.queue').queue_mails(
                        [*mails(7), wrong])
        self.assertEqual(self.rows('id'), [])

    def test_generator(self):
        "Test an error of the generator undoes what was queued before"
        def generator():
            yield from mails(7)
            raise KeyError('broken')

        with self.transaction():
            with self.assertRaises(KeyError):
                Pool().get('email.queue').queue_mails(generator())
        self.assertEqual(self.rows('id'), [])

    def test_autocommit(self):
        "Test a wrong call queues nothing if each statement commits"
        wrong = mails(7) + [(FROM, 'nobody', MESSAGE)]
        with self.assertRaises(EmailQueueError):
            self.queue_mails(iter(wrong), autocommit=True)
        self.assertEqual(self.rows('id'), [])
        self.queue_mails(iter(mails(7)), autocommit=True)
        self.assertEqual(len(self.rows('id')), 7)

    def test_readonly(self):
        with self.assertRaisesRegex(EmailQueueError, 'readonly'):
            self.queue_mails(mails(1), readonly=True)

    def test_push(self):
        "Test one task is pushed for all emails, and none if all are for later"
        for count, keywords in [
                (1, {}), (0, {'scheduled_at': dt.timedelta(days=1)})]:
            with self.subTest(count=count):
                self.clear()
                with configured('queue', worker=True):
                    self.queue_mails(mails(8, **keywords))
                with self.transaction(readonly=True):
                    self.assertEqual(
                        Pool().get('ir.queue').search([], count=True), count)

    def test_memory(self):
        "Test the memory does not grow with the number of emails"
        peaks = []
        message = COMPLETE + b'x' * 100_000 + b'\r\n'
        self.enter_here(patch.object(bulk, 'ROWS', 5))
        # The first call fills caches
        for count in [10, 30, 90]:
            tracemalloc.start()
            try:
                with self.transaction() as transaction:
                    Pool().get('email.queue').queue_mails(
                        (FROM, 'jane@example.com', message + b'%d\r\n' % i)
                        for i in range(count))
                    transaction.rollback()
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
        # 60 messages have 6 MB
        self.assertLess(peaks[2], peaks[1] + 2e6)


class ValidationTestCase(QueueTestCase):
    "What trytond still validates in a new email"

    def test_all_checked(self):
        "Test a field with a rule that is not the module's own is validated"
        EmailQueue = Pool(DB_NAME).get('email.queue')
        for name, attribute, rule in [
                ('resource', 'required', True),
                ('key', 'required', True),
                ('resource', 'states', {'required': True}),
                ('subject', 'domain', [('subject', '!=', 'Test')]),
                ('from_addr', 'size', 5),
                ]:
            field = getattr(EmailQueue, name)
            before = getattr(field, attribute)
            with self.subTest(name=name, attribute=attribute):
                try:
                    setattr(field, attribute, rule)
                    with self.assertRaises(ValidationError):
                        self.queue()
                finally:
                    setattr(field, attribute, before)
        self.assertEqual(self.states(), {})

    def test_validate_fields(self):
        """Test a module that extends validate_fields gets the names of all
        fields
        """
        EmailQueue = Pool(DB_NAME).get('email.queue')
        seen = []

        def validate_fields(cls, emails, names):
            seen.append(set(names))

        with patch.object(
                EmailQueue, 'validate_fields', classmethod(validate_fields)):
            self.queue()
        self.assertEqual(seen, [set(EmailQueue._fields)])

    def test_create(self):
        "Test values that the module has not checked are validated"
        with self.transaction() as transaction:
            EmailQueue = Pool().get('email.queue')
            with self.assertRaises(ValidationError):
                EmailQueue.create([{
                            'from_addr': '', 'to_addrs': 'jane@example.com',
                            'msg': MESSAGE, 'size': 1, 'priority': '20',
                            'scheduled_at': dt.datetime.now()}])
            transaction.rollback()

    def test_fields(self):
        "Test the list of checked fields names only fields of the model"
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            unchecked = EmailQueue._unchecked_fields()
            values = EmailQueue._checked_values(
                FROM, 'jane@example.com', MESSAGE)
        self.assertLessEqual(bulk.CHECKED, EmailQueue._fields.keys())
        self.assertFalse(values.keys() & unchecked)


class BulkFilesTestCase(FilestoreTestCase):
    "Many emails whose messages are in the filestore"

    def setUp(self):
        super().setUp()
        self.enter_here(patch.object(bulk, 'ROWS', 3))

    def test_stored(self):
        with self.transaction():
            Pool().get('email.queue').queue_mails(mails(8))
        self.assertEqual(len(self.paths()), 8)
        self.send_all()
        self.assertEqual(self.states(), {'sent': 8})

    def test_error(self):
        "Test no file is left of emails that are taken back"
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            with self.assertRaises(EmailQueueError):
                EmailQueue.queue_mails([*mails(7), (FROM, '', MESSAGE)])
            EmailQueue.queue_mails(mails(1))
        self.assertEqual(len(self.paths()), 1)
        self.assertEqual(len(self.rows('id')), 1)


class BulkCapturedTestCase(QueueTestCase):
    "Captured emails of a transaction, which are created together"

    def test_batches(self):
        """Test the number of INSERT and the order, with emails that fail among
        them
        """
        with patch.object(bulk, 'ROWS', 3), creating(len) as sizes:
            with self.transaction():
                for i in range(7):
                    send_message_transactional(
                        message(), FROM, [f'r{i}@' if i == 4 else
                            f'r{i}@example.com'],
                        datamanager=QueueDataManager(strict=False))
        self.assertEqual(sizes, [3, 3, 1])
        self.assertEqual(
            self.rows('to_addrs', 'state'), [
                (f'r{i}@', 'failed') if i == 4
                else (f'r{i}@example.com', 'outbox') for i in range(7)])

    def test_triggers(self):
        "Test no email about the queue itself fires a trigger"
        id_ = self.queue()

        def note(vlist):
            return len(vlist), Transaction().context.get('_no_trigger', False)

        with creating(note) as contexts:
            with self.transaction():
                for resource, to in [
                        (None, 'a@example.com'), (None, 'b@example.com'),
                        (f'email.queue,{id_}', 'c@example.com'),
                        (f'email.queue,{id_}', 'nobody'),
                        ('res.user,1', 'd@example.com')]:
                    msg = message()
                    sendmail.set_options(msg, resource=resource)
                    send_message_transactional(
                        msg, FROM, [to],
                        datamanager=QueueDataManager(strict=False))
        self.assertEqual(contexts, [(2, False), (2, True), (1, False)])
