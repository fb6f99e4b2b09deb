# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Senders in processes of their own: many at once, and what kills them."""
import os
import random
import signal
import sqlite3
import subprocess
import time
import unittest
from collections import Counter
from contextlib import closing
from unittest.mock import patch

from trytond import backend
from trytond.pool import Pool
from trytond.transaction import Transaction

from .. import slot
from .drain import KILLER
from .postgresql import PostgreSQL, bin_directory
from .processes import ProcessTestCase, Senders

# How many of the arrived emails two sessions send again after a crash, on
# average, with 2 ms a reply
COPIES = 6


@unittest.skipIf(
    backend.name == 'sqlite', "the queue is a copy that grows no more")
class HeldByOthersTestCase(ProcessTestCase):
    "How many rows a sender holds at once"

    def test_urgent_passes_bulk(self):
        self.server.delay = {'dot': .1}
        self.addCleanup(setattr, self.server, 'delay', 0)
        for i in range(250):
            self.queue(f'r{i}@example.com', priority='bulk')
        with Senders(self.database) as senders:
            pid, = senders.start()
            self.server.wait_for(60)
            queued_at = time.monotonic()
            self.queue('urgent@example.com', priority='urgent')
            self.server.wait_until(lambda: [
                    m for m in self.server.received
                    if m.to_addrs == ('urgent@example.com',)])
            self.assertLess(time.monotonic() - queued_at, 2)
            os.kill(pid, signal.SIGKILL)

    def test_memory(self):
        size, count = 20 * 1024 * 1024, 12
        self.server.keep = False
        self.addCleanup(setattr, self.server, 'keep', True)
        id_ = self.queue(msg=b'Subject: Big\r\n\r\n' + (
                b'x' * 70 + b'\r\n') * (size // 72))
        with self.transaction() as transaction:
            # One message for all rows, so that this process does not hold one
            # for each
            names = ', '.join([
                    'from_addr', 'to_addrs', 'msg', 'size', 'priority',
                    'scheduled_at', 'attempts', 'crashes', 'state'])
            cursor = transaction.connection.cursor()
            for _ in range(count - 1):
                cursor.execute(
                    f'INSERT INTO email_queue ({names}) '
                    f'SELECT {names} FROM email_queue WHERE id = {id_}')
        with Senders(self.database) as senders:
            pid, = senders.start()
            senders.join(pid)
            self.assertEqual(self.states(), {'sent': count})
            self.assertLess(senders.memory[pid], 230 * 1024 * 1024)


class KillTestCase(ProcessTestCase):
    server_options = {'delay': .002}

    def test_kill(self):
        "Kill a sender at a random moment, 20 times"
        count, kills = 600, 20
        self.queue_many(count)
        chance = random.Random(1)
        unrecorded = []
        with Senders(self.database, connections=2) as senders:
            while len(unrecorded) < kills:
                before = len(self.server.received)
                pid, = senders.start()
                goal = before + chance.randint(1, count // kills - 5)
                while (len(self.server.received) < goal
                        and pid not in senders.sent):
                    time.sleep(.001)
                if pid not in senders.sent:
                    os.kill(pid, signal.SIGKILL)
                    senders.end(pid)
                    unrecorded.append(self.unrecorded(before))
                    # Otherwise there would be nothing more to kill
                    self.assertNotEqual(self.states(), {'sent': count})
                    self.recovered()
            self.drain(senders)
        # These emails, and no others, are sent again
        self.assertEqual(self.assert_sent(count), sum(unrecorded))
        self.assertLessEqual(sum(unrecorded), COPIES * kills)

    def test_terminate(self):
        self.queue_many(100)
        with Senders(self.database) as senders:
            pid, = senders.start()
            self.server.wait_for(10)
            os.kill(pid, signal.SIGTERM)
            self.assertFalse(senders.end(pid))
            unrecorded = self.unrecorded(0)
            # On SQLite the rows go back after some time
            self.drain(senders)
        self.assertEqual(self.assert_sent(100), unrecorded)

    @unittest.skipIf(
        backend.name == 'sqlite', "what it was at waits for its age")
    def test_message_that_kills(self):
        "Test that the email fails, alone, and kills no sender of other emails"
        names = [*(f'r{i}@example.com' for i in range(20)), KILLER]
        random.Random(1).shuffle(names)
        for name in names:
            self.queue(name)
        deaths = unrecorded = 0
        with Senders(self.database) as senders:
            while 'failed' not in self.states():
                before = len(self.server.received)
                pid, = senders.start()
                if not senders.end(pid):
                    deaths += 1
                    unrecorded += self.unrecorded(before)
                self.assertLessEqual(deaths, 10)
            self.drain(senders)
        self.assertEqual(deaths, 10)
        self.assertEqual(
            [row for row in self.rows(
                    'to_addrs', 'state', 'reason', 'crashes', 'attempts')
                if row[1] != 'sent'],
            [(KILLER, 'failed', 'died', 10, 0)])
        self.assertLessEqual(max(
                c for a, c in self.rows('to_addrs', 'crashes')
                if a != KILLER), 3)
        arrived = Counter(m.to_addrs for m in self.server.received)
        self.assertEqual(set(arrived), {(n,) for n in names if n != KILLER})
        self.assertEqual(sum(arrived.values()) - 20, unrecorded)


@unittest.skipUnless(backend.name == 'sqlite', "there it is but one row")
class LockedTestCase(ProcessTestCase):
    "Somebody writes in the only file of the database"
    server_options = {'delay': .005}

    def lock(self, seconds, **options):
        "Lock the database while emails are sent"
        self.queue_many(60)
        with Senders(self.database, **options) as senders:
            pid, = senders.start()
            self.server.wait_for(10)
            connection = sqlite3.connect(self.path, isolation_level=None)
            with closing(connection):
                connection.execute('PRAGMA busy_timeout = 10000')
                connection.execute('BEGIN IMMEDIATE')
                time.sleep(seconds)
                connection.execute('ROLLBACK')
            senders.join(pid)
            self.drain(senders)
        self.assertEqual(self.assert_sent(60), 0)
        self.assertEqual(
            {crashes for crashes, in self.rows('crashes')}, {0})

    def test_while(self):
        self.lock(2)

    def test_by_the_caller(self):
        "Test that a run in a transaction that has written sends nothing twice"
        self.queue_many(5)
        pool = Pool(self.database)
        with Transaction().start(self.database, 0, readonly=True):
            pool.init()
        self.addCleanup(Pool.stop, self.database)
        with Transaction().start(self.database, 0) as transaction, \
                patch.object(slot, 'BUSY_SECONDS', .2):
            transaction.connection.cursor().execute(
                "UPDATE res_user SET name = name")
            with self.assertRaises(backend.DatabaseOperationalError):
                pool.get('email.queue').send_all()
            transaction.rollback()
        self.assertFalse(self.server.received)
        self.assertEqual(
            set(self.rows('state', 'attempts', 'crashes')), {('outbox', 0, 0)})

    def test_for_too_long(self):
        "Test that emails that were accepted meanwhile are recorded in the end"
        self.lock(2.5, busy=1)


@unittest.skipIf(
    backend.name == 'sqlite', "a database with one writer has one sender")
class ParallelTestCase(ProcessTestCase):
    server_options = {'delay': .005}

    def test_six_slots(self):
        self.queue_many(600)
        with Senders(self.database, senders=6) as senders:
            sent = senders.join(*senders.start(6))
            self.assertEqual(sum(sent), 600)
            self.assertGreaterEqual(sum(map(bool, sent)), 4)
        self.assertEqual(self.assert_sent(600), 0)

    def test_one_slot(self):
        self.queue_many(200)
        with Senders(self.database, senders=1) as senders:
            sent = senders.join(*senders.start(6))
            self.assertEqual(sorted(sent), [0, 0, 0, 0, 0, 200])
        self.assertEqual(self.assert_sent(200), 0)

    def test_rate(self):
        """Test a rate of 600: at most 660 emails in a minute, and 20 in a
        second
        """
        count = 120
        self.queue_many(count)
        started = time.monotonic()
        with Senders(self.database, senders=4, rate=600) as senders:
            sent = senders.join(*senders.start(4))
            self.assertGreater(min(sent), 0)
            self.drain(senders)
        self.assertEqual(self.assert_sent(count), 0)
        times = sorted(m.time for m in self.server.received)
        # So a minute keeps the rate, too, because it has six times ten seconds
        for seconds, limit in [(1, 20), (10, 110)]:
            within = max(
                sum(start <= t < start + seconds for t in times)
                for start in times)
            self.assertLessEqual(within, limit, seconds)
        # The emails are not sent much more slowly either
        self.assertLess(time.monotonic() - started, 2 * count / 10)

    def test_one_of_three_killed(self):
        self.queue_many(600)
        with Senders(self.database, senders=3) as senders:
            killed, *others = senders.start(3)
            self.server.wait_for(50)
            os.kill(killed, signal.SIGKILL)
            senders.join(*others)
            # The emails of the dead sender are not lost but wait for the next
            # run
            self.drain(senders)
        self.assertLessEqual(self.assert_sent(600), 4)

    def test_connection_cut_while_another_starts(self):
        self.queue_many(400)
        with Senders(self.database, connections=2) as senders:
            first, = senders.start()
            self.server.wait_for(50)
            self.cut_sender()
            senders.start()
            self.drain(senders)
        # Emails that were in flight, and emails that had arrived since the
        # last record
        self.assertLessEqual(self.assert_sent(400), 4)

    def cut_sender(self):
        with self.transaction() as transaction:
            cursor = transaction.connection.cursor()
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks "
                "WHERE locktype = 'advisory' AND objsubid = 2 AND granted "
                "AND database = (SELECT oid FROM pg_database "
                "WHERE datname = current_database())")
            self.assertEqual(cursor.fetchall(), [(True,)])

    def test_postgresql_restarted(self):
        self.queue_many(300)
        # A commit that is not durable may be lost, which this test is not
        # about
        with PostgreSQL(durable=True) as postgresql:
            self.move_to(postgresql)
            with Senders(self.database, uri=postgresql.uri) as senders:
                first, = senders.start()
                self.server.wait_for(30)
                postgresql.stop('immediate')
                time.sleep(5)
                postgresql.start()
                senders.join(first)
                while self.select(
                        postgresql, "count(*)",
                        "WHERE state IN ('outbox', 'sending')") != '0':
                    senders.join(*senders.start())
            self.assertEqual(
                self.select(postgresql, "DISTINCT state, attempts"), 'sent|1')
        arrived = self.copies()
        self.assertEqual(set(arrived), {m for m, in self.rows('message_id')})
        self.assertLessEqual(sum(arrived.values()) - 300, 4)

    def select(self, postgresql, columns, where=''):
        query = f'SELECT {columns} FROM email_queue {where}'
        return subprocess.run([
                bin_directory() / 'psql', '-tAc', query,
                f'{postgresql.uri}{self.database}'],
            check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


del ProcessTestCase
