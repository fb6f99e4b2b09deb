# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Messages in the filestore."""
import datetime as dt
import os
import re
import subprocess
import sys
import tempfile
import unittest
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from trytond import backend
from trytond.modules.email_queue import files, retention
from trytond.pool import Pool
from trytond.tests.test_tryton import DB_NAME
from trytond.transaction import Transaction

from .test_client import statements
from .tools import MESSAGE, QueueTestCase, configured


class FilestoreTestCase(QueueTestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.path = cls.enter(tempfile.TemporaryDirectory())
        cls.enter(configured('database', path=cls.path))

    def setUp(self):
        super().setUp()
        self.clear_files()
        self.stack = ExitStack()
        self.addCleanup(self.stack.close)
        self.stack.enter_context(self.to_filestore(True))

    def clear_files(self):
        for path in self.paths():
            path.unlink()
        with self.transaction() as transaction:
            transaction.connection.cursor().execute(
                'DELETE FROM ir_filestore_queue')

    @contextmanager
    def to_filestore(self, value):
        with patch.object(
                Pool(DB_NAME).get('email.queue').msg, 'to_filestore', value):
            yield

    def paths(self):
        return [p for p in Path(self.path).rglob('*-*') if p.is_file()]

    def columns(self, id_):
        "Return whether the message is in the database, and in a file"
        with self.transaction(readonly=True) as transaction:
            t = Pool().get('email.queue').__table__()
            cursor = transaction.connection.cursor()
            cursor.execute(*t.select(
                    t.msg, t.file_id, where=t.id == id_))
            (msg, file_id), = cursor.fetchall()
            return bool(msg), bool(file_id)

    def clean(self):
        with self.transaction():
            Pool().get('email.queue').clean()

    def move(self):
        with self.transaction():
            return Pool().get('email.queue').move_messages()


class StoredTestCase(FilestoreTestCase):

    def test_send(self):
        "Test a message is in a file, and is sent and read from the file"
        id_ = self.queue()
        self.assertEqual(self.columns(id_), (False, True))
        path, = self.paths()
        self.assertEqual(
            path.parts[-5:-3],
            (Pool(DB_NAME).database_name, files.FOLDER))
        data = path.read_bytes()
        self.assertTrue(data.endswith(MESSAGE))
        self.assertEqual(self.read(id_, 'msg', 'text', 'size', 'content'), [
                data, "Hello", len(data), None])
        self.send_all()
        mail, = self.server.received
        self.assertEqual(mail.data, data)
        self.assertEqual(self.read(id_, 'state', 'msg'), ['sent', data])

    def test_one_statement(self):
        "Test no other connection ever sees a row without its message"
        for stored in [True, False]:
            with self.subTest(to_filestore=stored), \
                    self.to_filestore(stored), statements(self) as executed:
                self.queue()
            writing = [
                s for s in executed if re.search('INSERT|UPDATE', s)]
            self.assertEqual(len(writing), 1, writing)

    def test_mixed(self):
        "Test earlier messages are sent, whatever is configured now"
        with self.to_filestore(False):
            ids = [self.queue()]
        ids.append(self.queue())
        with self.to_filestore(False):
            self.assertTrue(all(self.read(i, 'msg') for i in ids))
            self.send_all()
        self.assertEqual({self.read(i, 'state') for i in ids}, {'sent'})
        self.assertEqual(len(self.server.received), 2)

    def test_prefix(self):
        field = Pool(DB_NAME).get('email.queue').msg
        with patch.object(field, 'store_prefix', 'emails'):
            id_ = self.queue()
            path, = self.paths()
            self.assertEqual(path.parts[-5:-3], ('emails', files.FOLDER))
            self.send_all()
            self.assertEqual(self.read(id_, 'state'), 'sent')
            self.assertTrue(self.read(id_, 'msg'))

    def test_configuration(self):
        "Test the options of the configuration"
        code = (
            'from trytond.pool import Pool\n'
            'Pool.start()\n'
            'from trytond.modules.email_queue.email_queue import EmailQueue\n'
            'print(EmailQueue.msg.to_filestore, EmailQueue.msg.store_prefix)')
        for values, expected in [
                ({}, 'False None'),
                ({'FILESTORE': 'True', 'STORE_PREFIX': 'x'}, 'True x')]:
            environ = {
                **os.environ, **{
                    f'TRYTOND_EMAIL_QUEUE__{n}': v
                    for n, v in values.items()}}
            self.assertEqual(
                subprocess.check_output(
                    [sys.executable, '-c', code], env=environ,
                    text=True).strip(),
                expected)

    def test_missing(self):
        "Test an email whose file is missing waits"
        ids = [self.queue(), self.queue(), self.queue()]
        for path in self.paths():
            if path.read_bytes() == self.read(ids[0], 'msg'):
                lost = path
        data = lost.read_bytes()
        lost.unlink()
        for broken in [None, data[:-5]]:
            if broken is not None:
                lost.write_bytes(broken)
                self.write(
                    ids[0], scheduled_at=dt.datetime.now(), attempts=0,
                    first_attempt=None)
            self.send_all()
            self.assertEqual(
                self.read(ids[0], 'state', 'reason', 'error', 'attempts'),
                ['outbox', 'not_in_filestore', None, 1])
        self.assertEqual(
            [self.read(i, 'state') for i in ids[1:]], ['sent', 'sent'])
        lost.write_bytes(data)
        self.write(ids[0], scheduled_at=dt.datetime.now())
        self.send_all()
        self.assertEqual(self.read(ids[0], 'state'), 'sent')

    def test_missing_all(self):
        "Test no email fails on a machine without the files"
        ids = [self.queue() for _ in range(12)]
        with tempfile.TemporaryDirectory() as other:
            with configured('database', path=other):
                with self.assertRaisesRegex(Exception, "not in the filestore"):
                    self.send_all()
        self.assertEqual(
            {tuple(self.read(i, 'state', 'attempts')) for i in ids},
            {('outbox', 0)})

    @unittest.skipIf(
        backend.name == 'sqlite', "all transactions share a connection")
    def test_rollback(self):
        "Test a rollback leaves no file, and a commit leaves all files"
        for end in ['rollback', 'error', 'commit']:
            with self.subTest(end=end):
                try:
                    with self.transaction() as transaction:
                        Pool().get('email.queue').queue_mail(
                            'shop@example.com', 'jane@example.com', MESSAGE)
                        self.assertEqual(len(self.paths()), 1)
                        if end == 'error':
                            raise ValueError
                        getattr(transaction, end)()
                except ValueError:
                    pass
                self.assertEqual(len(self.paths()), end == 'commit')

    @unittest.skipIf(
        backend.name == 'sqlite', "all transactions share a connection")
    def test_rollback_autocommit(self):
        "Test the file of a committed row stays, whatever follows"
        with self.assertRaises(ValueError):
            with Transaction().start(DB_NAME, 0, autocommit=True):
                email, = Pool().get('email.queue').queue_mail(
                    'shop@example.com', 'jane@example.com', MESSAGE)
                raise ValueError
        self.assertTrue(self.read(email.id, 'msg'))

    @unittest.skipIf(
        backend.name == 'sqlite', "all transactions share a connection")
    def test_failed_commit(self):
        "Test the file stays if nobody knows whether the commit happened"
        with self.assertRaises(OSError):
            with self.transaction() as transaction:
                Pool().get('email.queue').queue_mail(
                    'shop@example.com', 'jane@example.com', MESSAGE)
                connection = transaction.connection

                def commit():
                    transaction.connection = connection
                    connection.commit()
                    raise OSError("the answer is lost")

                transaction.connection = SimpleNamespace(
                    commit=commit, cursor=connection.cursor)
        self.send_all()
        self.assertEqual(len(self.server.received), 1)


class RemoveTestCase(FilestoreTestCase):
    "Test a file is removed with its message"

    def queue_sent(self, days):
        id_ = self.queue()
        self.write(
            id_, state='sent',
            sent_at=dt.datetime.now() - dt.timedelta(days=days))
        return id_

    def test_clean(self):
        self.queue_sent(31)
        emptied = self.queue_sent(8)
        kept = self.queue_sent(6)
        self.assertEqual(len(self.paths()), 3)
        self.clean()
        path, = self.paths()
        self.assertEqual(path.read_bytes(), self.read(kept, 'msg'))
        self.assertEqual(self.columns(emptied), (False, False))
        self.assertEqual(self.read(emptied, 'content'), 'removed')

    def test_sensitive(self):
        "Test the file is removed as soon as the email is sent"
        id_ = self.queue(sensitive=True)
        other = self.queue()
        self.assertIsNone(self.read(id_, 'msg'))
        self.send_all()
        self.assertEqual(len(self.server.received), 2)
        path, = self.paths()
        self.assertEqual(path.read_bytes(), self.read(other, 'msg'))
        self.assertEqual(self.columns(id_), (False, False))

    def test_sensitive_left(self):
        "Test the daily job removes files that could not be removed at once"
        self.queue(sensitive=True)
        with patch.object(files, 'purge', side_effect=OSError):
            self.send_all()
        self.assertEqual(len(self.paths()), 1)
        self.clean()
        self.assertEqual(self.paths(), [])

    def test_erase(self):
        self.queue()
        self.queue(['jane@example.com', 'john@example.com'])
        self.write(*self.ids(), state='sent')
        with self.transaction():
            Pool().get('email.queue').erase_address('jane@example.com')
        self.clean()
        self.assertEqual(self.paths(), [])

    def ids(self):
        with self.transaction(readonly=True):
            return [e.id for e in Pool().get('email.queue').search([])]

    def test_delete(self):
        "Test the delete of the ORM, and trytond's own job for the files"
        id_ = self.queue()
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            EmailQueue.delete([EmailQueue(id_)])
        self.assertEqual(len(self.paths()), 1)
        with configured('attachment', retention_days=-1), self.transaction():
            Pool().get('ir.filestore.queue').remove()
        self.assertEqual(self.paths(), [])

    def test_still_used(self):
        "Test a file that a row refers to stays, as after a crash"
        id_ = self.queue()
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            EmailQueue.msg.queue_for_removal(EmailQueue, 'msg', [id_])
        self.clean()
        self.assertTrue(self.read(id_, 'msg'))

    def test_written(self):
        "Test a replaced message leaves no file"
        id_ = self.queue()
        self.write(id_, msg=b'Subject: Other\r\n\r\n')
        with self.to_filestore(False):
            self.write(id_, msg=b'Subject: Third\r\n\r\n')
        self.clean()
        self.assertEqual(self.paths(), [])
        self.assertEqual(
            self.read(id_, 'msg'), b'Subject: Third\r\n\r\n')


class MoveTestCase(FilestoreTestCase):
    "Test messages are moved in and out"

    def test_move(self):
        with self.to_filestore(False):
            ids = [self.queue() for _ in range(5)]
            ids.append(self.queue(sensitive=True))
        self.write(ids[0], state='sent')
        gone = self.queue()
        self.write(gone, msg=None)
        messages = [self.read(i, 'msg') for i in ids]
        with patch.object(retention, 'BATCH', 2):
            self.assertEqual(self.move(), 6)
            self.assertEqual(self.move(), 0)
        self.assertEqual({self.columns(i) for i in ids}, {(False, True)})
        self.assertEqual([self.read(i, 'msg') for i in ids], messages)
        self.assertEqual(len(self.paths()), 6)
        with self.to_filestore(False), patch.object(retention, 'BATCH', 2):
            self.assertEqual(self.move(), 6)
            self.assertEqual(self.move(), 0)
        self.assertEqual({self.columns(i) for i in ids}, {(True, False)})
        self.assertEqual([self.read(i, 'msg') for i in ids], messages)
        self.assertEqual(self.paths(), [])
        self.send_all()
        self.assertEqual(len(self.server.received), 5)

    def test_sending(self):
        "Test the message of an email that is with a sender is not moved"
        id_ = self.queue()
        self.write(id_, state='sending')
        with self.to_filestore(False):
            self.assertEqual(self.move(), 0)
            self.assertEqual(self.columns(id_), (False, True))
            other = self.queue()
            self.write(other, state='sending')
        self.assertEqual(self.move(), 0)
        self.assertEqual(self.columns(other), (True, False))
        self.assertEqual(len(self.paths()), 1)

    def test_lost(self):
        "Test a lost file changes nothing"
        lost, id_ = self.queue(), self.queue(msg=b'Subject: Other\r\n\r\n')
        for path in self.paths():
            if b'Other' not in path.read_bytes():
                path.unlink()
        with self.to_filestore(False):
            self.assertEqual(self.move(), 1)
        self.assertEqual(self.columns(lost), (False, True))
        self.assertEqual(self.columns(id_), (True, False))

    def test_crash(self):
        "Test messages that were moved before an error have their files"
        with self.to_filestore(False):
            ids = [self.queue() for _ in range(3)]
        EmailQueue = Pool(DB_NAME).get('email.queue')
        move = EmailQueue._move_in

        def fail(id_):
            if id_ == ids[2]:
                raise ValueError
            return move(id_)

        with patch.object(EmailQueue, '_move_in', fail):
            with self.assertRaises(ValueError):
                self.move()
        self.assertTrue(all(self.read(i, 'msg') for i in ids))
        self.assertEqual(len(self.paths()), 2)
        self.assertEqual(self.move(), 1)


del QueueTestCase
