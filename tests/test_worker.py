# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Delivery at the commit by trytond's own workers."""
import datetime as dt
import os
import signal
import statistics
import subprocess
import sys
import time
import unittest
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import trytond.config as config
from trytond import backend
from trytond.pool import Pool
from trytond.sendmail import send_message_transactional
from trytond.tests.test_tryton import DB_NAME
from trytond.transaction import Transaction

from .. import sendmail
from ..slot import LockSlot, TouchedSlot
from .test_sendmail import message
from .tools import MESSAGE, QueueTestCase, configured

Slot = TouchedSlot if backend.name == 'sqlite' else LockSlot


class WorkerTestCase(QueueTestCase):

    def tasks(self):
        with self.transaction(readonly=True):
            Task = Pool().get('ir.queue')
            return [(t.name, t.data) for t in Task.search([])]


class PushTestCase(WorkerTestCase):
    "Test which task a transaction pushes"

    def test_one_task_a_transaction(self):
        with configured('queue', worker=True):
            with self.transaction(user=1, context={'company': 1}):
                self.queue_three()
        (name, data), = self.tasks()
        self.assertEqual(name, 'email_queue')
        self.assertEqual(
            (data['model'], data['method'], data['user'], data['context']),
            ('email.queue', 'send_queued', 0, {}))

    def queue_three(self):
        for _ in range(3):
            Pool().get('email.queue').queue_mail(
                'shop@example.com', 'jane@example.com', MESSAGE)

    def test_one_task_for_two_commits(self):
        with configured('queue', worker=True):
            with self.transaction() as transaction:
                self.queue_three()
                transaction.commit()
        self.assertEqual(len(self.tasks()), 1)

    def test_one_task_for_all_ways_to_queue(self):
        self.addCleanup(sendmail.capture())
        with configured('queue', worker=True):
            with self.transaction():
                self.queue_three()
                send_message_transactional(message())
            self.assertEqual(len(self.tasks()), 1)
            with self.transaction() as transaction:
                self.queue_three()
                send_message_transactional(message())
                transaction.commit()
                # The manager of capture comes after the manager that pushes
                send_message_transactional(message())
            self.assertEqual(len(self.tasks()), 3)

    def test_rollback(self):
        with configured('queue', worker=True):
            with self.transaction() as transaction:
                self.queue_three()
                transaction.rollback()
        self.assertEqual(self.tasks(), [])

    def test_scheduled_email(self):
        with configured('queue', worker=True):
            self.queue(scheduled_at=dt.timedelta(hours=1))
        self.assertEqual(self.tasks(), [])

    def test_without_worker(self):
        sessions = self.server.sessions
        self.queue()
        self.assertEqual(self.tasks(), [])
        self.assertEqual(self.server.sessions, sessions)

    def test_task_never_ends_in_an_error(self):
        self.queue()
        self.server.script['greeting'] = '554 5.3.2 no'
        self.addCleanup(self.server.script.clear)
        sessions = self.server.sessions
        for _ in range(100):
            with self.transaction():
                Pool().get('email.queue').send_queued([])
        self.assertLessEqual(self.server.sessions - sessions, 2)

    def test_task_without_a_slot(self):
        self.queue()
        with patch.object(Slot, 'take', return_value=False):
            with self.transaction():
                Pool().get('email.queue').send_queued([])
        self.send_all()
        with self.transaction():
            Pool().get('email.queue').send_queued([])
        self.assertEqual(len(self.server.received), 1)

    @unittest.skipIf(
        DB_NAME == ':memory:', "all transactions share one connection")
    def test_email_committed_while_the_sender_ends(self):
        give_back = Slot.give_back

        def late(store):
            if not self.late:
                with Transaction().new_transaction():
                    email, = Pool().get('email.queue').queue_mail(
                        'shop@example.com', 'late@example.com', MESSAGE)
                    self.late = email.id
            give_back(store)

        self.late = None
        self.queue()
        with patch.object(Slot, 'give_back', late):
            self.send_all()
        self.assertEqual(self.read(self.late, 'state'), 'sent')


@unittest.skipIf(backend.name == 'sqlite', "it has no workers")
class WorkerProcessesTestCase(WorkerTestCase):
    "Test with real workers"

    def setUp(self):
        super().setUp()
        self.enter_here(configured('queue', worker=True))
        self.workers = []
        self.addCleanup(self.stop_workers)

    def start_worker(self, processes=1):
        environ = {
            **os.environ,
            'TRYTOND_QUEUE__WORKER': 'True',
            'TRYTOND_EMAIL__URI': config.get('email', 'uri'),
            'TRYTOND_EMAIL_QUEUE__SENDERS': '2',
            }
        self.workers.append(subprocess.Popen([
                    sys.executable,
                    Path(sys.executable).parent / 'trytond-worker',
                    '-d', DB_NAME, '-n', str(processes), '-t', '1',
                    '--name', 'email_queue'],
                env=environ, start_new_session=True))

    def stop_workers(self):
        for worker in self.workers:
            # The worker with its processes
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        self.workers.clear()

    def warm_up(self):
        "Wait until a worker takes tasks"
        self.queue('first@example.com')
        self.server.wait_for(1, timeout=60)

    def wait_until_sent(self, count, timeout=60):
        end = time.monotonic() + timeout
        while self.states() != {'sent': count}:
            self.assertLess(time.monotonic(), end, self.states())
            time.sleep(.05)
        self.assertEqual(
            set(Counter(
                    m.message_id for m in self.server.received).values()),
            {1})

    def test_at_once(self):
        self.start_worker()
        self.warm_up()
        seconds = []
        for i in range(7):
            self.queue(f'r{i}@example.com')
            committed_at = time.monotonic()
            self.server.wait_for(i + 2)
            seconds.append(time.monotonic() - committed_at)
        self.assertLess(statistics.median(seconds), 1)

    def test_two_workers_and_the_scheduled_job(self):
        self.start_worker()
        self.start_worker()
        self.warm_up()
        for _ in range(10):
            self.queue_many(20)
            self.send_all()
        self.wait_until_sent(201)

    def test_server_down(self):
        self.start_worker(processes=2)
        self.warm_up()
        self.server.script['greeting'] = '421 4.3.2 no'
        self.addCleanup(self.server.script.clear)
        sessions = self.server.sessions
        for i in range(100):
            self.queue(f'r{i}@example.com')
        end = time.monotonic() + 60
        while self.unfinished():
            self.assertLess(time.monotonic(), end)
            time.sleep(.05)
        self.assertLess(self.server.sessions - sessions, 20)
        with self.transaction(readonly=True):
            self.assertEqual(Pool().get('ir.error').search([]), [])
        self.assertEqual(self.states(), {'sent': 1, 'outbox': 100})
        self.server.script.clear()
        self.send_all()
        self.wait_until_sent(101)

    def unfinished(self):
        with self.transaction(readonly=True):
            return Pool().get('ir.queue').search([('finished_at', '=', None)])

    def test_worker_killed(self):
        self.start_worker()
        self.warm_up()
        self.server.delay = .005
        self.addCleanup(setattr, self.server, 'delay', 0)
        self.queue_many(200)
        self.server.wait_for(20)
        self.stop_workers()
        self.assertIn('outbox', self.states())
        # The lock is gone with its connection, which may take a moment
        end = time.monotonic() + 60
        while self.states() != {'sent': 201}:
            self.assertLess(time.monotonic(), end, self.states())
            self.send_all()
        arrived = Counter(m.message_id for m in self.server.received)
        self.assertEqual(len(arrived), 201)
        self.assertLessEqual(sum(arrived.values()) - 201, 4)


del QueueTestCase, WorkerTestCase
