# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The kinds of transactions of a caller: readonly, or with savepoints."""
import errno
import os
import subprocess
import sys
import tempfile
import time
import unittest
from contextlib import contextmanager
from email.message import EmailMessage
from pathlib import Path
from unittest.mock import patch

from trytond import backend
from trytond.filestore import FileStore
from trytond.modules.email_queue import run, sendmail
from trytond.pool import Pool
from trytond.sendmail import (
    SMTPDataManager, get_smtp_server, send_message_transactional)
from trytond.tests.test_tryton import DB_NAME
from trytond.transaction import Transaction

from ..exceptions import EmailQueueError
from .test_filestore import FilestoreTestCase
from .tools import MESSAGE, QueueTestCase, configured


def queue(to_addr='jane@example.com', **keywords):
    email, = Pool().get('email.queue').queue_mail(
        'shop@example.com', to_addr, MESSAGE, **keywords)
    return email


def message(to='jane@example.com'):
    msg = EmailMessage()
    msg['From'], msg['To'] = 'shop@example.com', to
    msg.set_content("Hello")
    return msg


@contextmanager
def savepoint(rolled_back=True):
    cursor = Transaction().connection.cursor()
    cursor.execute('SAVEPOINT test')
    yield
    cursor.execute(
        f'{"ROLLBACK TO" if rolled_back else "RELEASE"} SAVEPOINT test')


class SavepointFilesTestCase(FilestoreTestCase):
    "Files of emails that a savepoint takes back"

    def test_rolled_back(self):
        "Test only the files of existing rows stay, in any order"
        for first in [False, True]:
            for last in [False, True]:
                with self.subTest(first=first, last=last):
                    self.clear()
                    self.clear_files()
                    with self.transaction():
                        if first:
                            queue('first@example.com')
                        with savepoint():
                            queue('nobody@example.com')
                        with savepoint(rolled_back=False):
                            queue('kept@example.com')
                        if last:
                            queue('last@example.com')
                    count = 1 + first + last
                    self.assertEqual(len(self.rows('id')), count)
                    self.assertEqual(len(self.paths()), count)
                    self.send_all()
                    self.assertEqual(self.states(), {'sent': count})

    @unittest.skipIf(
        backend.name == 'sqlite', "all transactions share a connection")
    def test_rolled_back_whole(self):
        "Test no file stays when the whole transaction is rolled back"
        with self.assertRaises(RuntimeError), self.transaction():
            with savepoint():
                queue('nobody@example.com')
            queue('nor@example.com')
            raise RuntimeError("rolled back")
        self.assertEqual(self.paths(), [])

    @contextmanager
    def full(self, size):
        "Let the filestore take only so many bytes of a file"
        def set_(store, data, prefix=''):
            path = Path(store._filename(store._id(data), prefix))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data[:size])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with patch.object(FileStore, 'set', set_):
            yield

    def test_full(self):
        "Test a message is in the database if the filestore is full"
        for size in [0, 10]:
            with self.subTest(size=size), self.full(size):
                id_ = self.queue()
                self.assertEqual(self.columns(id_), (True, False))
                self.assertEqual(self.paths(), [])
        self.send_all()
        self.assertEqual(self.states(), {'sent': 2})

    def test_full_captured(self):
        "Test a full filestore makes no transaction of the business fail"
        self.addCleanup(sendmail.capture())
        with self.full(10), self.transaction():
            send_message_transactional(message())
        self.assertEqual(self.states(), {'outbox': 1})
        self.assertEqual(self.paths(), [])

    def test_full_real(self):
        "Test a file system that is really full"
        if os.geteuid() != 0:
            self.skipTest("only root can mount a small file system")
        with tempfile.TemporaryDirectory() as path:
            mounted = subprocess.run(
                ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', path],
                capture_output=True)
            if mounted.returncode:
                self.skipTest("no file system can be mounted here")
            try:
                with configured('database', path=path), \
                        patch.object(
                            FileStore, 'path',
                            property(lambda store: path)):
                    small = self.queue()
                    large = self.queue(
                        msg=MESSAGE + b'x' * 70 * 1024)
                    self.assertEqual(self.columns(small), (False, True))
                    self.assertEqual(self.columns(large), (True, False))
                    left = [
                        p for p in Path(path).rglob('*') if p.is_file()]
                    self.assertEqual(len(left), 1)
                    self.send_all()
                self.assertEqual(self.states(), {'sent': 2})
            finally:
                subprocess.run(['umount', path], check=True)

    def test_former_prefix(self):
        "Test files of version 8.2.0 are read, sent and removed"
        EmailQueue = Pool(DB_NAME).get('email.queue')
        with patch('trytond.modules.email_queue.files.FOLDER', '.'):
            id_ = self.queue()
        path, = self.paths()
        self.assertEqual(path.parts[-4], Pool(DB_NAME).database_name)
        self.assertIn(MESSAGE, self.read(id_, 'msg'))
        self.send_all()
        self.assertEqual(self.states(), {'sent': 1})
        with self.transaction():
            EmailQueue.delete([EmailQueue(id_)])
            self.assertTrue(self.paths())
        self.clean()
        self.assertEqual(self.paths(), [])

    def test_folder(self):
        "Test a record of another model cannot name the file of a message"
        self.queue(sensitive=True)
        (file_id,), = self.rows('file_id')
        with self.transaction():
            Attachment = Pool().get('ir.attachment')
            with configured('attachment', filestore=True):
                attachment = Attachment(
                    name="Stolen", type='data', resource='res.user,1')
                attachment.file_id = file_id
                attachment.save()
            t = Attachment.__table__()
            Transaction().connection.cursor().execute(*t.update(
                    [t.file_id], [file_id], where=t.id == attachment.id))
            self.assertFalse(Attachment(attachment.id).data)


class SavepointTaskTestCase(QueueTestCase):
    "The task of a worker, when a savepoint takes back its email"

    def test_task(self):
        with configured('queue', worker=True):
            with self.transaction() as transaction:
                with savepoint():
                    queue('nobody@example.com')
                queue()
                queue()
                transaction.commit()
                self.assertEqual(self.tasks(), 1)
                queue()
            with self.transaction():
                # One task for each commit
                self.assertEqual(self.tasks(), 2)

    def tasks(self):
        cursor = Transaction().connection.cursor()
        cursor.execute('SELECT id FROM ir_queue')
        return len(cursor.fetchall())


class ReadonlyTestCase(QueueTestCase):
    "Test each way into the queue from a readonly transaction"

    def ways(self, id_):
        EmailQueue = Pool().get('email.queue')
        email = EmailQueue(id_)
        yield queue
        yield lambda: EmailQueue.queue_mails([])
        yield lambda: EmailQueue.queue_message(message())
        yield lambda: send_message_transactional(
            message(), datamanager=sendmail.QueueDataManager())
        yield lambda: send_message_transactional(
            message(), datamanager=sendmail.QueueDataManager(strict=False))
        yield lambda: EmailQueue.send_now([email])
        yield lambda: EmailQueue.retry([email])
        yield lambda: EmailQueue.cancel([email])
        yield lambda: EmailQueue.erase_address('jane@example.com')

    def test_words(self):
        id_ = self.queue()
        self.write(id_, state='failed')
        with self.transaction(readonly=True):
            ways = list(self.ways(id_))
        for number in range(len(ways)):
            with self.subTest(number), self.transaction(readonly=True) as t:
                way = list(self.ways(id_))[number]
                with self.assertRaisesRegex(EmailQueueError, 'readonly'):
                    way()
                # The transaction goes on
                t.connection.cursor().execute('SELECT 1')
        self.assertEqual(self.states(), {'failed': 1})


class OwnServerTestCase(QueueTestCase):
    "Test a data manager with a server of its own does not use the queue"

    def test_own_server(self):
        self.addCleanup(sendmail.capture())
        for own in [False, True]:
            with self.subTest(own=own):
                self.clear()
                with self.transaction():
                    manager = SMTPDataManager()
                    if own:
                        manager._server = get_smtp_server(self.server.uri)
                    send_message_transactional(message(), datamanager=manager)
                self.assertEqual(len(self.rows('id')), not own)
                self.assertEqual(len(self.server.received), own)


class ByHandTestCase(QueueTestCase):
    "*Run Once* in the client"

    def test_ends_early(self):
        seconds = .5
        with patch.object(run, 'BY_HAND_SECONDS', seconds), \
                configured(rate=60):
            for i in range(30):
                self.queue(f'r{i}@example.com')
            started = time.monotonic()
            with self.transaction(user=1):
                Cron = Pool().get('ir.cron')
                cron, = Cron.search([('method', '=', 'email.queue|send_all')])
                Cron.run_once([cron])
            self.assertLess(time.monotonic() - started, 20)
        self.assertTrue(self.states()['outbox'])


class WorkerOnSQLiteTestCase(unittest.TestCase):
    "A worker without PostgreSQL"

    def start(self, uri):
        return subprocess.run(
            [sys.executable, '-c', 'import trytond.modules.email_queue'],
            env={**os.environ, 'TRYTOND_QUEUE__WORKER': 'True',
                'TRYTOND_DATABASE__URI': uri},
            capture_output=True, text=True, check=True).stderr

    def test_warning(self):
        self.assertIn("workers need PostgreSQL", self.start('sqlite://'))
        if backend.name == 'postgresql':
            uri = os.environ['TRYTOND_DATABASE__URI']
            self.assertEqual(self.start(uri), '')


del QueueTestCase, FilestoreTestCase
