# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What the database may do while emails are sent, and what is sent twice then.

Locks, errors, a full disk, a cut wire, a transaction that is ended and
interrupts, with senders in processes of their own that are killed meanwhile.
"""
import datetime as dt
import itertools
import os
import signal
import subprocess
import tempfile
import threading
import time
import unittest
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import trytond.config as config
from trytond import backend
from trytond.pool import Pool
from trytond.tests.test_tryton import DB_NAME
from trytond.transaction import Transaction

from .. import recorder, run, sender, slot, smtp, store
from ..exceptions import EmailQueueError, RecordError
from ..tools import Thread
from .partition import Wire
from .postgresql import bin_directory
from .processes import ProcessTestCase, Senders
from .smtpd import Server
from .tools import QueueTestCase, configured

try:
    import psycopg
except ImportError:
    psycopg = None

has_locks = backend.name != 'sqlite'
# How many emails two sessions have handed over when the records stop
TWICE = 20
TWICE_FAST = 150


class GateTestCase(unittest.TestCase):
    "Test when a session may hand an email over"

    def gate(self):
        return recorder.Gate(2)

    def waits(self, gate):
        "Return whether a session has to wait at the gate"
        entered = threading.Event()
        thread = threading.Thread(
            target=lambda: gate.enter() and entered.set(), daemon=True)
        thread.start()
        self.addCleanup(gate.close)
        thread.join(.05)
        return not entered.is_set()

    def test_number(self):
        gate = self.gate()
        for id_ in range(recorder.UNRECORDED_ROWS):
            self.assertTrue(gate.enter())
        self.assertTrue(self.waits(gate))

    def test_number_after_record(self):
        gate = self.gate()
        for id_ in range(recorder.UNRECORDED_ROWS):
            gate.enter()
            gate.put(id_, smtp.Outcome())
        gate.recorded(recorder.UNRECORDED_ROWS, 1, .01)
        self.assertFalse(self.waits(gate))
        # The other emails are recorded later: they count by their number, not
        # by their age
        self.assertTrue(self.waits(gate))

    def test_age(self):
        gate = self.gate()
        gate.enter()
        gate.put(1, smtp.Outcome())
        time.sleep(recorder.UNRECORDED_SECONDS)
        self.assertTrue(self.waits(gate))

    def test_age_of_others(self):
        "Test that emails that were not handed over make no session wait"
        gate = self.gate()
        gate.put(1, None)
        gate.enter()
        gate.leave()
        time.sleep(recorder.UNRECORDED_SECONDS)
        self.assertFalse(self.waits(gate))

    def test_slow_records(self):
        "Test that the usual time of a record makes no session wait"
        gate = self.gate()
        with patch.object(recorder, 'UNRECORDED_SECONDS', 10):
            gate.enter()
            gate.put(1, smtp.Outcome())
            gate.recorded(1, 1, .5)
            gate.enter()
            gate.put(2, smtp.Outcome())
            time.sleep(.2)
            self.assertFalse(self.waits(gate))

    def test_close(self):
        gate = self.gate()
        gate.enter()
        gate.put(1, smtp.Outcome())
        time.sleep(recorder.UNRECORDED_SECONDS)
        ends = []
        thread = threading.Thread(target=lambda: ends.append(gate.enter()))
        thread.start()
        gate.close()
        thread.join()
        self.assertEqual(ends, [False])
        self.assertFalse(gate.enter())


class InsistTestCase(unittest.TestCase):
    "What is done at the end of a run, whatever happens"

    def test_steps(self):
        for error, count in [
                (KeyboardInterrupt(), 3), (SystemExit(), 3),
                (MemoryError(), 3), (ValueError(), 1)]:
            with self.subTest(error=error):
                done, errors = [], [error] * 2

                def step():
                    done.append('step')
                    if errors:
                        raise errors.pop()

                with self.assertRaises(type(error)):
                    recorder.insist(step, lambda: done.append('next'))
                self.assertEqual(done, ['step'] * count + ['next'])


class RecordTestCase(ProcessTestCase):
    "Senders whose records are held up"

    @contextmanager
    def connection(self):
        "A transaction of somebody else, in this process"
        uri = f"{config.get('database', 'uri')}{self.database}"
        with psycopg.connect(uri) as connection:
            yield connection.cursor()

    def wait_for(self, **states):
        "Wait until so many emails are in each state"
        end = time.monotonic() + 20
        while self.states() != states:
            self.assertLess(time.monotonic(), end, self.states())
            time.sleep(.05)

    def assert_nothing_new(self, seconds=.3):
        "Check that nothing more arrives, and return how many have arrived"
        # Emails that were under way when the record was held up
        time.sleep(.3)
        count = len(self.server.received)
        time.sleep(seconds)
        self.assertEqual(len(self.server.received), count)
        return count


@unittest.skipUnless(has_locks, "it is but one file: see test_crash")
class LockTableTestCase(RecordTestCase):
    "Somebody locks the table, as REINDEX, VACUUM FULL or ALTER do"
    server_options = {'delay': .01}

    def test_while(self):
        self.queue_many(60)
        with Senders(self.database) as senders:
            pid, = senders.start()
            for mode, goal in [('SHARE', 10), ('ACCESS EXCLUSIVE', 30)]:
                self.server.wait_for(goal)
                with self.connection() as cursor:
                    cursor.execute(f'LOCK TABLE email_queue IN {mode} MODE')
                    self.assertLess(self.assert_nothing_new(), 60)
            # The same run goes on
            self.assertEqual(senders.join(pid), [60])
        self.assertEqual(self.assert_sent(60), 0)
        self.assertEqual(set(self.rows('crashes')), {(0,)})

    def test_kill(self):
        for delay, count, twice in [
                (.01, 40, TWICE), (0, 1000, TWICE_FAST)]:
            with self.subTest(delay=delay):
                self.clear()
                self.enter_here(patch.object(self.server, 'delay', delay))
                self.queue_many(count)
                with Senders(self.database) as senders:
                    # Before, because a server at full speed does not wait
                    with self.connection() as cursor:
                        pid, = senders.start()
                        self.server.wait_for(10)
                        cursor.execute(
                            'LOCK TABLE email_queue IN SHARE MODE')
                        self.assertLess(self.assert_nothing_new(), count)
                        os.kill(pid, signal.SIGKILL)
                        senders.end(pid)
                    unrecorded = self.unrecorded(0)
                    self.drain(senders)
                self.assertEqual(self.assert_sent(count), unrecorded)
                self.assertLessEqual(unrecorded, twice)


@unittest.skipUnless(has_locks, "there nobody locks a row")
class LockRowsTestCase(RecordTestCase):
    "Somebody locks rows that a sender holds"
    server_options = {'delay': .01}

    def test_rows(self):
        count = 40
        self.queue_many(count)
        with Senders(self.database) as senders:
            pid, = senders.start()
            self.server.wait_for(10)
            with self.connection() as cursor:
                cursor.execute(
                    "SELECT id FROM email_queue WHERE state = 'sending' "
                    "LIMIT 3 FOR UPDATE SKIP LOCKED")
                locked = len(cursor.fetchall())
                self.assertGreater(locked, 0)
                self.wait_for(sent=count - locked, sending=locked)
                # An email that is queued meanwhile does not wait
                self.queue('later@example.com')
                self.wait_for(sent=count - locked + 1, sending=locked)
            senders.join(pid)
        self.assertEqual(self.assert_sent(count + 1), 0)
        self.assertEqual(set(self.rows('crashes')), {(0,)})

    def test_for_ever(self):
        "Test that the run ends, and that nothing is lost"
        self.queue_many(3)
        with patch.object(recorder, 'GIVE_UP_SECONDS', .3), \
                patch.object(recorder, 'RETRY_SECONDS', .1), \
                self.holding() as ids:
            with self.assertLogs(recorder.__name__, 'ERROR'):
                self.send_all()
            self.assertEqual(self.states(), {'sent': 2, 'sending': 1})
        self.send_all()
        self.assertEqual(self.states(), {'sent': 3})
        self.assertEqual(self.read(ids[0], 'crashes'), 1)

    @contextmanager
    def holding(self):
        "Lock the first row that is handed over"
        def deliver_locked(client, row, redirect):
            with lock:
                if not ids:
                    ids.append(row.id)
                    cursor.execute(
                        f'SELECT id FROM email_queue WHERE id = {row.id} '
                        'FOR UPDATE')
            return deliver(client, row, redirect)

        ids, lock, deliver = [], threading.Lock(), sender.hand_over
        with self.connection() as cursor, \
                patch.object(sender, 'hand_over', deliver_locked):
            yield ids


@unittest.skipUnless(has_locks, "its triggers know no SQLSTATE")
class RecordErrorTestCase(RecordTestCase):
    "The record ends in an error while the connection lives"
    server_options = {'delay': .01}

    def setUp(self):
        super().setUp()
        with self.connection() as cursor:
            # The trigger reads another table, because to begin or end the
            # trouble in the queue's own table would have to wait
            cursor.execute("""
                CREATE TABLE record_trouble (code TEXT);
                CREATE FUNCTION record_trouble() RETURNS trigger
                LANGUAGE plpgsql AS $$
                DECLARE trouble TEXT := (SELECT code FROM record_trouble);
                BEGIN
                    IF trouble IS NOT NULL AND OLD.state = 'sending' THEN
                        RAISE EXCEPTION 'trouble' USING ERRCODE = trouble;
                    END IF;
                    RETURN NEW;
                END $$;
                CREATE TRIGGER record_trouble BEFORE UPDATE ON email_queue
                FOR EACH ROW EXECUTE FUNCTION record_trouble()""")
        self.addCleanup(self.remove)

    def remove(self):
        with self.connection() as cursor:
            cursor.execute(
                'DROP FUNCTION record_trouble CASCADE; '
                'DROP TABLE record_trouble')

    def trouble(self, code=None):
        with self.connection() as cursor:
            cursor.execute('DELETE FROM record_trouble')
            if code:
                cursor.execute(
                    f"INSERT INTO record_trouble VALUES ('{code}')")

    def test_while(self):
        "disk full, read only, deadlock, a module's error"
        codes = ['53100', '25006', '40P01', 'P0001']
        count = 12 * len(codes) + 12
        self.queue_many(count)
        with Senders(self.database) as senders:
            pid, = senders.start()
            for i, code in enumerate(codes):
                self.server.wait_for(6 + 12 * i)
                self.trouble(code)
                arrived = self.assert_nothing_new(.2)
                self.assertLess(arrived, count)
                self.trouble()
            self.assertEqual(senders.join(pid), [count])
        self.assertEqual(self.assert_sent(count), 0)
        self.assertEqual(set(self.rows('crashes')), {(0,)})

    def test_kill(self):
        self.queue_many(60)
        with Senders(self.database) as senders:
            pid, = senders.start()
            self.server.wait_for(10)
            self.trouble('53100')
            self.assert_nothing_new(.2)
            os.kill(pid, signal.SIGKILL)
            senders.end(pid)
            self.trouble()
            self.drain(senders)
        self.assertLessEqual(self.assert_sent(60), TWICE)

    def give_up(self, code='53100', **options):
        self.queue_many(5)
        with patch.object(recorder, 'GIVE_UP_SECONDS', .2), \
                patch.object(recorder, 'RETRY_SECONDS', .1), \
                configured(**options), \
                self.assertRaisesRegex(RecordError, "trouble"):
            self.trouble(code)
            with patch.object(store.Store, 'put_back', self.put_back):
                self.send_all()

    @property
    def put_back(self):
        "A put_back that is called when the disk has room again"
        def later(*args):
            self.trouble()
            put_back(*args)

        put_back = store.Store.put_back
        return later

    def test_give_up(self):
        now = dt.datetime.now()
        self.give_up()
        sent = len(self.server.received)
        self.assertGreater(sent, 0)
        rows = self.rows('state', 'uncertain', 'crashes', 'scheduled_at')
        for state, uncertain, crashes, due in rows:
            self.assertEqual(state, 'outbox')
            self.assertEqual(crashes, int(bool(uncertain)))
            self.assertEqual(
                due > now + dt.timedelta(minutes=14), bool(uncertain))
        self.assertEqual(sum(bool(r[1]) for r in rows), sent)
        self.send_all()
        self.assertEqual(len(self.server.received), 5)
        self.assertEqual(set(self.copies().values()), {1})

    def test_give_up_hold(self):
        "Test that a person decides with uncertain = fail"
        self.give_up(uncertain='fail')
        self.assertEqual(
            self.states(), {
                'failed': len(self.server.received),
                'outbox': 5 - len(self.server.received)})

    def test_give_up_at_last(self):
        "Test that a later run finds emails that cannot even be put back"
        self.queue_many(5)
        self.trouble('53100')
        with patch.object(recorder, 'GIVE_UP_SECONDS', .2), \
                patch.object(recorder, 'RETRY_SECONDS', .1), \
                self.assertLogs(recorder.__name__, 'ERROR'), \
                self.assertRaises(EmailQueueError):
            self.send_all()
        self.assertEqual(self.states()['sending'], len(self.server.received))
        self.trouble()
        self.send_all()
        self.assertEqual(self.states(), {'sent': 5})


@unittest.skipUnless(has_locks, "it has no tablespaces")
class FullDiskTestCase(RecordTestCase):
    server_options = {'delay': .005}

    def setUp(self):
        super().setUp()
        self.directory = Path(tempfile.mkdtemp(prefix='tablespace-'))
        self.addCleanup(self.directory.rmdir)
        mount = subprocess.run([
                'mount', '-t', 'tmpfs', '-o', 'size=2m,mode=0777', 'tmpfs',
                self.directory], stderr=subprocess.PIPE)
        if mount.returncode:
            self.skipTest(f"no tmpfs can be mounted: {mount.stderr}")
        self.addCleanup(subprocess.run, ['umount', self.directory])
        (self.directory / 'data').mkdir()
        self.directory.joinpath('data').chmod(0o777)
        if os.geteuid() == 0:
            subprocess.run(
                ['chown', '-R', 'postgres', self.directory], check=True)
        self.psql(f"CREATE TABLESPACE small LOCATION '{self.directory}/data'")
        self.addCleanup(self.psql, 'DROP TABLESPACE small')
        self.addCleanup(
            self.psql, 'ALTER TABLE email_queue SET TABLESPACE pg_default')

    def psql(self, command):
        subprocess.run([
                bin_directory() / 'psql', '-qc', command,
                f"{config.get('database', 'uri')}{self.database}"],
            check=True)

    def fill(self):
        "Fill the disk"
        path = self.directory / 'filler'
        with path.open('wb', buffering=0) as filler:
            for size in [65536, 1024]:
                try:
                    while True:
                        filler.write(b'x' * size)
                except OSError:
                    pass
        return path

    def test_full(self):
        count = 120
        self.queue_many(count)
        self.psql('ALTER TABLE email_queue SET TABLESPACE small')
        with Senders(self.database) as senders, \
                self.connection() as cursor:
            # So that no page gets room again
            cursor.execute('SELECT 1 FROM email_queue')
            pid, = senders.start()
            self.server.wait_for(10)
            filler = self.fill()
            self.server.wait_until(lambda: self.stands_still(count), 30)
            filler.unlink()
            self.drain(senders)
        self.assertEqual(self.assert_sent(count), 0)

    def stands_still(self, count):
        before = len(self.server.received)
        time.sleep(.5)
        self.assertLess(before, count)
        return len(self.server.received) == before


@unittest.skipUnless(has_locks, "it is a file")
class PartitionTestCase(RecordTestCase):
    "The network between sender and database is cut"
    server_options = {'delay': .01}

    def setUp(self):
        super().setUp()
        uri = config.parse_uri(config.get('database', 'uri'))
        self.wire = self.enter_here(Wire(uri.port))
        self.uri = uri._replace(
            netloc=uri.netloc.replace(
                str(uri.port), str(self.wire.port))).geturl()

    def cut(self, count=60):
        "Cut the wire while emails are sent, and return the sender"
        self.queue_many(count)
        senders = self.enter_here(Senders(self.database, uri=self.uri))
        pid, = senders.start()
        self.server.wait_for(10)
        self.wire.cut()
        self.assertLess(self.assert_nothing_new(), count)
        return senders, pid

    def test_while(self):
        senders, pid = self.cut()
        self.wire.mend()
        self.assertEqual(senders.join(pid), [60])
        self.assertEqual(self.assert_sent(60), 0)

    def test_kill(self):
        senders, pid = self.cut()
        os.kill(pid, signal.SIGKILL)
        senders.end(pid)
        self.wire.mend()
        # Emails that were on their way when the wire was cut arrive now
        self.drain(senders)
        self.assertLessEqual(self.assert_sent(60), TWICE)

    def test_old_backend(self):
        "Test that the sender takes its slot from its own old connection"
        senders, pid = self.cut()
        backends = self.holders()
        self.assertEqual(len(backends), 1)
        self.wire.drop_clients()
        self.wire.mend()
        senders.join(pid)
        self.assertFalse(backends & self.backends())
        # The run that was cut off has recorded all: nothing is left for the
        # next run
        self.assertNotIn('sending', self.states())
        self.drain(senders)
        self.assertEqual(self.assert_sent(60), 0)
        self.assertEqual(set(self.rows('crashes')), {(0,)})

    def holders(self):
        """Return who holds a slot of this database, because other databases
        have slots, too
        """
        with self.connection() as cursor:
            cursor.execute(
                "SELECT pid FROM pg_locks WHERE locktype = 'advisory' "
                "AND granted AND objsubid = 2 AND classid = %s "
                "AND database = (SELECT oid FROM pg_database "
                "WHERE datname = current_database())",
                [slot.LOCK_CLASS % 2 ** 32])
            return set(cursor.fetchall())

    def backends(self):
        with self.connection() as cursor:
            cursor.execute('SELECT pid FROM pg_stat_activity')
            return set(cursor.fetchall())


@unittest.skipUnless(has_locks, "it has no sessions")
class RecordSessionTestCase(QueueTestCase):
    "Settings of role or database for the sessions of the senders"
    server_options = {'delay': .02}

    def test_settings(self):
        names = {n for n in slot.SETTINGS if 'tcp' not in n}
        with Transaction().start(DB_NAME, 0, timeout=7) as transaction:
            before = self.settings(transaction, names)
        with Transaction().start(DB_NAME, 0):
            Model = Pool().get('email.queue')
            with run._opened(Model) as opened:
                inside = self.settings(opened.slot, names)
                opened.slot.take([1])
                connection = opened.slot.connection
            self.assertEqual(
                {inside[n] for n in inside if 'idle' in n}, {'0'})
            self.assertEqual(inside['statement_timeout'], '1min')
            self.assertEqual(inside['lock_timeout'], '30s')
            self.assertEqual(
                inside['default_transaction_isolation'], 'read committed')
            opened.slot.connection = connection
            after = self.settings(opened.slot, names)
            self.assertFalse(connection.execute(
                    "SELECT 1 FROM pg_locks "
                    "WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
                    ).fetchall())
        self.assertEqual(before.pop('statement_timeout'), '7s')
        self.assertEqual(after.pop('statement_timeout'), '0')
        self.assertEqual(after, before)

    def settings(self, owner, names):
        cursor = owner.connection.cursor()
        cursor.execute(
            'SELECT n, current_setting(n, true) FROM unnest(%s::text[]) AS n '
            'WHERE current_setting(n, true) IS NOT NULL', [list(names)])
        return dict(cursor.fetchall())

    def run_for_long(self, call='send_all', **context):
        "A run that takes longer than its caller's transaction may be idle"
        self.queue_many(12)
        with patch.object(run, 'BEAT_SECONDS', .1), \
                self.transaction() as transaction, \
                transaction.set_context(**context):
            cursor = transaction.connection.cursor()
            cursor.execute(
                "SET LOCAL idle_in_transaction_session_timeout = '700ms'")
            started = time.monotonic()
            Pool().get('email.queue').send_all()
            self.assertGreater(time.monotonic() - started, 1)
            # The jobs that the scheduler runs after it
            cursor.execute('SELECT 1')
        self.assertEqual(self.states(), {'sent': 12})

    def test_idle_in_transaction(self):
        with configured(rate=12 * 60 / 1.2):
            self.run_for_long()

    def test_idle_in_transaction_task(self):
        with configured(rate=12 * 60 / 1.2):
            self.run_for_long(email_queue_task=True)

    def test_idle_in_transaction_side_by_side(self):
        other = self.enter_here(Server())
        with configured(rate=12 * 60 / 1.2, uri_other=other.uri):
            self.run_for_long()


class InterruptTestCase(RecordTestCase):
    "Whatever is raised, arrived outcomes are recorded"
    server_options = {'delay': .002}

    @unittest.skipUnless(has_locks, "the copy of the queue does not grow")
    def test_signal(self):
        "SIGINT at any moment, also twice"
        with Senders(self.database) as senders:
            for i in range(6):
                with self.subTest(i):
                    self.clear()
                    self.queue_many(40)
                    pid, = senders.start()
                    self.server.wait_for(4 + 3 * i)
                    os.kill(pid, signal.SIGINT)
                    if i % 2:
                        time.sleep(.002 * i)
                        os.kill(pid, signal.SIGINT)
                    senders.join(pid)
                    self.assertEqual(self.unrecorded(0), 0)

    def test_thread(self):
        "An interrupted wait does not take a living thread for ended"
        release = threading.Event()
        thread = Thread(target=release.wait, daemon=True)
        self.assertTrue(thread.wait(0))
        thread.start()
        self.addCleanup(
            signal.signal, signal.SIGALRM,
            signal.signal(signal.SIGALRM, signal.default_int_handler))
        signal.setitimer(signal.ITIMER_REAL, .01)
        with self.assertRaises(KeyboardInterrupt):
            thread.wait(10)
        self.assertFalse(thread.wait(0))
        release.set()
        self.assertTrue(thread.wait(10))

    def test_errors(self):
        # The sender is in this process
        self.database = DB_NAME
        errors = itertools.cycle([KeyboardInterrupt, SystemExit, MemoryError])
        for class_, methods in [
                (sender.Sender, [
                        '_wait', '_settle', '_finish', '_replenish', '_hold',
                        '_join', '_give_back', '_collect']),
                (recorder.Recorder, ['_record', '_record_unlocked'])]:
            for method, error in zip(methods, errors):
                with self.subTest(method, error=error.__name__):
                    self.interrupt(class_, method, error)

    def interrupt(self, class_, name, error):
        "Raise an error after the call of a method, and a second time"
        def method(*args, **kwargs):
            result = original(*args, **kwargs)
            if len(self.server.received) >= 5 and len(raised) < 2:
                raised.append(name)
                raise error
            return result

        self.clear()
        self.queue_many(10)
        original, raised = getattr(class_, name), []
        with patch.object(class_, name, method), \
                self.assertRaises(error):
            self.send_all()
        self.assertTrue(raised)
        sent = [s for s, in self.rows('state') if s == 'sent']
        self.server.wait_until(lambda: not self.server.open_sessions)
        self.assertEqual(len(sent), len(self.server.received))


del ProcessTestCase, RecordTestCase
