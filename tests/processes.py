# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What tests with senders in processes of their own have in common."""
import datetime as dt
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from sql import Table

import trytond.config as config
from trytond import backend
from trytond.tests.test_tryton import DB_NAME
from trytond.transaction import Transaction

from .postgresql import bin_directory
from .tools import QueueTestCase

ORPHANED_SECONDS = 3


class Senders:
    """A program that forks senders.

    :param busy: how many seconds the senders wait for a locked database.
    :param options: the options of the section email_queue.
    """

    def __init__(self, database, uri=None, busy='', **options):
        self.environ = {**os.environ, 'TRYTOND_EMAIL__URI': config.get(
                'email', 'uri')}
        if uri:
            self.environ['TRYTOND_DATABASE__URI'] = uri
        for name, value in options.items():
            self.environ[f'TRYTOND_EMAIL_QUEUE__{name.upper()}'] = str(value)
        self.database = database
        self.busy = str(busy)
        self.sent, self.memory = {}, {}
        self._started = []
        self._changed = threading.Condition()

    def __enter__(self):
        self.process = subprocess.Popen([
                sys.executable, '-m',
                'trytond.modules.email_queue.tests.drain',
                self.database, str(ORPHANED_SECONDS), self.busy],
            env=self.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, bufsize=1)
        assert self.process.stdout.readline() == 'ready\n'
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(self, *args):
        self.process.stdin.close()
        self.process.wait()

    def _read(self):
        for line in self.process.stdout:
            with self._changed:
                match line.split():
                    case 'started', pid:
                        self._started.append(int(pid))
                    case 'ended', pid, sent, memory:
                        self.memory[int(pid)] = int(memory)
                        self.sent[int(pid)] = int(sent)
                self._changed.notify_all()

    def start(self, count=1):
        "Start senders and return their process ids"
        before = len(self._started)
        self.process.stdin.write('\n' * count)
        self.process.stdin.flush()
        self._wait_for(lambda: len(self._started) == before + count)
        return self._started[before:]

    def join(self, *pids):
        "Wait for the end of the senders and return what each has sent"
        self._wait_for(lambda: set(pids) <= self.sent.keys())
        return [self.sent[p] for p in pids]

    def end(self, pid, timeout=60):
        "Wait until a sender is gone and return whether it ended by itself"
        end = time.monotonic() + timeout
        while Path(f'/proc/{pid}').exists():
            assert time.monotonic() < end
            time.sleep(.01)
        return pid in self.sent

    def _wait_for(self, condition, timeout=240):
        with self._changed:
            assert self._changed.wait_for(condition, timeout)


class ProcessTestCase(QueueTestCase):
    "A queue in a database that other processes can open, too"

    def setUp(self):
        super().setUp()
        if backend.name == 'sqlite':
            self.database = f'process{os.getpid()}'

    def queue_many(self, count, **keywords):
        ids = super().queue_many(count, **keywords)
        if self.database != DB_NAME:
            self.copy()
        return ids

    @property
    def path(self):
        return Path(config.get('database', 'path'), f'{self.database}.sqlite')

    def copy(self):
        path = self.path
        for suffix in ['', '-wal', '-shm']:
            Path(f'{path}{suffix}').unlink(missing_ok=True)
        self.addCleanup(path.unlink)
        with Transaction().start(DB_NAME, 0) as transaction, \
                sqlite3.connect(path) as copy:
            transaction.connection.backup(copy)
        copy.close()

    def recovered(self):
        "Let nobody wait until a row counts as orphaned"
        if backend.name == 'sqlite':
            t = Table('email_queue')
            with Transaction().start(self.database, 0) as transaction:
                transaction.connection.cursor().execute(*t.update(
                        [t.write_date], [dt.datetime(2000, 1, 1)],
                        where=t.state == 'sending'))

    def unrecorded(self, start):
        """Return how many emails have arrived and are not recorded as sent.

        :param start: how many emails had arrived before.
        """
        # What the dead sender had transmitted still arrives
        self.server.wait_until(lambda: not self.server.open_sessions)
        sent = {
            message_id for message_id, state in self.rows(
                'message_id', 'state') if state == 'sent'}
        return sum(
            m.message_id not in sent for m in self.server.received[start:])

    def drain(self, senders, timeout=120):
        "Start one sender after another until nothing waits"
        end = time.monotonic() + timeout
        while self.states().keys() & {'outbox', 'sending'}:
            self.assertLess(time.monotonic(), end, self.states())
            senders.join(*senders.start())

    def copies(self):
        "Return how often each message has arrived"
        return Counter(m.message_id for m in list(self.server.received))

    def assert_sent(self, count):
        self.assertEqual(self.states(), {'sent': count})
        self.assertEqual({a for a, in self.rows('attempts')}, {1})
        arrived = self.copies()
        self.assertEqual(
            set(arrived), {m for m, in self.rows('message_id')})
        self.assertEqual(len(arrived), count)
        return sum(arrived.values()) - count

    def move_to(self, postgresql):
        "Copy the database to another server"
        uri = config.get('database', 'uri')
        postgresql.createdb(self.database)
        dump = subprocess.run(
            [bin_directory() / 'pg_dump', '-Fc', f'{uri}{self.database}'],
            check=True, stdout=subprocess.PIPE).stdout
        subprocess.run([
                bin_directory() / 'pg_restore', '-d',
                f'{postgresql.uri}{self.database}'],
            check=True, input=dump)
