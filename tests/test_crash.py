# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Senders in processes of their own: many at once, and what kills them."""
import os
import random
import signal
import subprocess
import time
import unittest

from trytond import backend

from .postgresql import PostgreSQL, bin_directory
from .processes import ProcessTestCase, Senders


@unittest.skipIf(
    backend.name == 'sqlite', "the queue is a copy that grows no more")
class HoldTestCase(ProcessTestCase):
    "What a sender holds at once"

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
        size, count = 20 * 1024 * 1024, 25
        self.server.keep = False
        self.addCleanup(setattr, self.server, 'keep', True)
        id_ = self.queue(msg=b'Subject: Big\r\n\r\n' + (
                b'x' * 70 + b'\r\n') * (size // 72))
        with self.transaction() as transaction:
            # A row for each without a message for each in this process
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
            self.assertLess(senders.memory[pid], 300 * 1024 * 1024)


class KillTestCase(ProcessTestCase):
    server_options = {'delay': .002}

    def test_kill(self):
        "20 times at a random moment"
        count, kills, copies = 600, 20, 4
        if backend.name == 'sqlite':
            # Each costs the time after which a row is orphaned, and so few
            # have no average: a single one may come just before a record
            count, kills, copies = 100, 3, 8
        self.queue_many(count)
        chance = random.Random(1)
        with Senders(self.database, connections=2) as senders:
            killed = 0
            while killed < kills:
                before = len(self.server.received)
                pid, = senders.start()
                goal = before + chance.randint(1, count // kills - 5)
                while (len(self.server.received) < goal
                        and pid not in senders.sent):
                    time.sleep(.001)
                if pid not in senders.sent:
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
                    # Or there were nothing more to kill
                    self.assertNotEqual(self.states(), {'sent': count})
            self.drain(senders)
        extra = self.assert_sent(count)
        self.assertLessEqual(extra, copies * kills)

    def test_terminate(self):
        self.queue_many(100)
        with Senders(self.database) as senders:
            pid, = senders.start()
            self.server.wait_for(10)
            os.kill(pid, signal.SIGTERM)
            self.drain(senders)
        self.assertLessEqual(self.assert_sent(100), 4)


@unittest.skipIf(
    backend.name == 'sqlite', "a database with one writer has one sender")
class ParallelTestCase(ProcessTestCase):
    server_options = {'delay': .005}

    def test_six_slots(self):
        self.queue_many(1200)
        with Senders(self.database, senders=6) as senders:
            sent = senders.join(*senders.start(6))
            self.assertEqual(sum(sent), 1200)
            self.assertGreaterEqual(sum(map(bool, sent)), 4)
        self.assertEqual(self.assert_sent(1200), 0)

    def test_one_slot(self):
        self.queue_many(200)
        with Senders(self.database, senders=1) as senders:
            sent = senders.join(*senders.start(6))
            self.assertEqual(sorted(sent), [0, 0, 0, 0, 0, 200])
        self.assertEqual(self.assert_sent(200), 0)

    def test_rate(self):
        self.queue_many(60)
        with Senders(self.database, senders=4, rate=600) as senders:
            senders.join(*senders.start(4))
            self.drain(senders)
        self.assertEqual(self.assert_sent(60), 0)
        times = sorted(m.time for m in self.server.received)
        for i, start in enumerate(times):
            within = [t for t in times[i:] if t < start + 1]
            self.assertLessEqual(len(within), 20)
        self.assertLessEqual(60 / (times[-1] - times[0]), 660 / 60 * 1.1)

    def test_one_of_three_killed(self):
        self.queue_many(600)
        with Senders(self.database, senders=3) as senders:
            killed, *others = senders.start(3)
            self.server.wait_for(50)
            os.kill(killed, signal.SIGKILL)
            senders.join(*others)
            # What the dead one held is not lost but waits for the next run
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
        # What was in flight, and what had arrived since the last record
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
        # A commit that is not durable may be lost: not what is tested here
        with PostgreSQL(durable=True) as postgresql:
            self.move_to(postgresql)
            with Senders(self.database, uri=postgresql.uri) as senders:
                senders.start()
                self.server.wait_for(30)
                postgresql.stop('immediate')
                time.sleep(5)
                postgresql.start()
                while self.waiting(postgresql):
                    senders.join(*senders.start())
        arrived = self.copies()
        self.assertEqual(len(arrived), 300)
        self.assertLessEqual(sum(arrived.values()) - 300, 4)

    def waiting(self, postgresql):
        query = ("SELECT count(*) FROM email_queue "
            "WHERE state IN ('outbox', 'sending')")
        count = subprocess.run([
                bin_directory() / 'psql', '-tAc', query,
                f'{postgresql.uri}{self.database}'],
            check=True, stdout=subprocess.PIPE).stdout
        return int(count)


del ProcessTestCase
