# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Several servers: which one sends an email, and who waits for which one."""
import datetime as dt
import json
import os
import signal
import threading
import time
import unittest
from email.message import EmailMessage
from unittest.mock import patch

from trytond import backend
from trytond.pool import Pool

from .. import run, settings
from ..exceptions import EmailQueueError
from ..sendmail import QueueDataManager, set_options
from ..settings import Settings
from ..slot import LockSlot, slot_numbers
from ..store import Store
from .postgresql import free_port
from .processes import ProcessTestCase, Senders
from .smtpd import Server
from .tools import MESSAGE, QueueTestCase, configured

has_locks = backend.name != 'sqlite'


class ServersTestCase(QueueTestCase):
    "Tests with the server *marketing* beside the default server"
    timeout = 2

    def setUp(self):
        super().setUp()
        self.marketing = self.enter_here(Server())
        self.enter_here(configured(uri_marketing=self.marketing.uri))
        self.addCleanup(self.server.script.clear)
        self.addCleanup(self.wait_for_drains)

    def wait_for_drains(self):
        "Wait until the threads that runs have left to themselves end"
        self.server.script.clear()
        drains = self.drains()
        if drains:
            for server in [self.server, self.marketing]:
                server.stop()
            self.server.start()
        for drain in drains:
            drain.join()

    def drains(self):
        return [
            t for t in threading.enumerate()
            if isinstance(t, run._ServerThread)]

    def recipients(self, server):
        return [a for m in list(server.received) for a in m.to_addrs]

    def errors(self):
        with self.transaction(readonly=True):
            Error = Pool().get('ir.error')
            return sorted(e.message for e in Error.search([]))


class QueueingTestCase(ServersTestCase):
    "Which server the row names, and what cannot be queued"

    def test_name_is_kept_and_no_credentials(self):
        uri = 'smtp://jane:s3cr3t@127.0.0.1:1'
        with configured(uri_marketing=uri):
            id_ = self.queue(server='marketing')
        self.assertEqual(self.read(id_, 'server'), 'marketing')
        with self.transaction(readonly=True) as transaction:
            cursor = transaction.connection.cursor()
            cursor.execute('SELECT * FROM email_queue')
            self.assertNotIn('s3cr3t', str(cursor.fetchall()))

    def test_default(self):
        self.assertIsNone(self.read(self.queue(), 'server'))

    def message(self):
        msg = EmailMessage()
        msg['From'] = 'shop@example.com'
        msg['To'] = 'jane@example.com'
        return msg

    def test_queue_message(self):
        with self.transaction():
            email, = Pool().get('email.queue').queue_message(
                self.message(), server='marketing')
            self.assertEqual(email.server, 'marketing')

    def capture(self, server, strict):
        msg = self.message()
        set_options(msg, server=server)
        with self.transaction() as transaction:
            manager = QueueDataManager(strict=strict)
            manager.put(None, None, msg)
            manager.commit(transaction)
            email, = Pool().get('email.queue').search([])
            return email.server, email.state, email.error

    def test_captured(self):
        self.assertEqual(
            self.capture('marketing', True), ('marketing', 'outbox', None))

    def test_captured_with_an_unknown_name(self):
        with self.assertRaisesRegex(EmailQueueError, '"server" is "nobody"'):
            self.capture('nobody', True)
        server, state, error = self.capture('nobody', False)
        self.assertEqual((server, state), ('nobody', 'failed'))
        self.assertIn('"server" is "nobody"', error)

    def test_unknown_name(self):
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            for name in ['nobody', 'Marketing', '', 1, 'uri_marketing', []]:
                with self.subTest(name=name):
                    with self.assertRaisesRegex(
                            EmailQueueError,
                            f'^"server" is "{name}"'.replace('[]', r'\[\]')):
                        EmailQueue.queue_mail(
                            'shop@example.com', 'jane@example.com', MESSAGE,
                            server=name)
            self.assertFalse(EmailQueue.search([]))

    def test_option_without_value_is_no_server(self):
        with configured(uri_nobody=None, uri_=self.marketing.uri):
            self.assertEqual(settings.servers(), [None, 'marketing'])

    def test_search(self):
        id_ = self.queue(server='marketing')
        self.queue()
        with self.transaction(readonly=True):
            EmailQueue = Pool().get('email.queue')
            for domain in [
                    ('server', '=', 'marketing'), ('server', 'ilike', 'Mar%'),
                    ('server', '!=', None)]:
                self.assertEqual(
                    [e.id for e in EmailQueue.search([domain])], [id_])


class OwnSettingsTestCase(ServersTestCase):
    "The options that a server has of its own"

    def test_settings(self):
        with configured(
                rate=60, rate_marketing=600, senders=3, connections=4,
                connections_marketing=5, recipients=7):
            own, default = Settings.read('marketing'), Settings.read()
        self.assertEqual(
            (own.rate, own.senders, own.connections, own.recipients),
            (600, 1, 5, 7))
        self.assertEqual(
            (default.rate, default.senders, default.connections),
            (60, 3, 4))

    def test_invalid_value_stops_that_server_only(self):
        id_, other = self.queue(server='marketing'), self.queue()
        with configured(rate_marketing='fast'):
            with self.assertRaisesRegex(EmailQueueError, 'rate_marketing'):
                self.send_all()
        self.assertEqual(self.read(id_, 'state'), 'outbox')
        self.assertEqual(self.read(other, 'state'), 'sent')

    def test_slots(self):
        self.assertEqual(list(slot_numbers(None, 3)), [1, 2, 3])
        numbers = [
            n for name in ['marketing', 'news', 'ž']
            for n in slot_numbers(name, 50)]
        self.assertEqual(len(set(numbers)), 150)
        self.assertGreaterEqual(min(numbers), 2 ** 30)
        self.assertLess(max(numbers), 2 ** 31)
        # The same numbers on every machine, and in the next version
        self.assertEqual(
            list(slot_numbers('marketing', 2)), [1376916103, 1260077885])

    def test_rate(self):
        for i in range(4):
            self.queue(f'r{i}@example.com', server='marketing')
        ids = [self.queue(f'r{i}@example.com') for i in range(50)]
        with configured(rate_marketing=240):
            started = time.monotonic()
            self.send_all()
            # 60 / 240 seconds before each message
            self.assertGreaterEqual(time.monotonic() - started, 1)
        self.assertEqual({self.read(i, 'state') for i in ids}, {'sent'})
        self.assertEqual(len(self.marketing.received), 4)
        times = [m.time for m in self.server.received]
        # At the rate of the other server it would take 12 seconds
        self.assertLess(max(times) - min(times), 6)

    def test_default_only(self):
        with configured(uri_marketing=None), \
                patch.object(run, '_ServerThread', side_effect=AssertionError):
            id_ = self.queue()
            self.send_all()
        self.assertEqual(self.read(id_, 'state'), 'sent')


class SendByServerTestCase(ServersTestCase):
    "Which server sends an email"

    def test_each_its_own(self):
        with Server() as news, configured(uri_news=news.uri):
            self.queue('a@example.com')
            self.queue('b@example.com', server='marketing')
            self.queue('c@example.com', server='news')
            self.queue('d@example.com', server='marketing')
            self.send_all()
            self.assertEqual(self.recipients(self.server), ['a@example.com'])
            self.assertEqual(
                set(self.recipients(self.marketing)),
                {'b@example.com', 'd@example.com'})
            self.assertEqual(self.recipients(news), ['c@example.com'])

    def test_order(self):
        with configured(connections_marketing=1):
            for name in ['bulk', 'normal', 'urgent']:
                self.queue(
                    f'{name}@example.com', server='marketing', priority=name)
            self.send_all()
        self.assertEqual(self.recipients(self.marketing), [
                'urgent@example.com', 'normal@example.com',
                'bulk@example.com'])

    def send(self, id_, *args):
        with self.transaction():
            Pool().get('email.queue')(id_).send(*args)

    def test_send(self):
        self.send(self.queue(server='marketing'))
        self.assertEqual(len(self.marketing.received), 1)
        self.assertFalse(self.server.received)

    def test_send_without_server(self):
        id_ = self.queue(server='marketing')
        with configured(uri_marketing=None):
            with self.assertRaisesRegex(
                    EmailQueueError, "server is not configured: marketing"):
                self.send(id_)
        self.assertEqual(
            self.read(id_, 'state', 'attempts', 'reason', 'error'),
            ['outbox', 0, 'no_server', 'marketing'])
        self.assertFalse(self.server.received)

    def test_no_longer_configured(self):
        ids = [
            self.queue(server='marketing'),
            self.queue(
                server='marketing', scheduled_at=dt.timedelta(hours=1))]
        other = self.queue()
        with configured(uri_marketing=None):
            for _ in range(3):
                self.run_cron()
        self.assertEqual(self.read(other, 'state'), 'sent')
        self.assertEqual(len(self.server.received), 1)
        for id_ in ids:
            self.assertEqual(
                self.read(id_, 'state', 'attempts', 'reason', 'error'),
                ['outbox', 0, 'no_server', 'marketing'])
        error, = self.errors()
        self.assertIn('"marketing"', error)
        self.run_cron()
        self.assertEqual(self.read(ids[0], 'state', 'error'), ['sent', None])
        self.assertEqual(len(self.marketing.received), 1)

    def test_dead_sender_of_a_server_that_is_gone(self):
        id_ = self.queue(server='marketing')
        number, = slot_numbers('marketing', 1)
        with self.transaction() as transaction:
            cursor = transaction.connection.cursor()
            t = Pool().get('email.queue').__table__()
            cursor.execute(*t.update(
                    [t.state, t.slot, t.write_date],
                    ['sending', number,
                        dt.datetime.now() - dt.timedelta(hours=1)]))
        with configured(uri_marketing=None):
            self.send_all()
        self.assertEqual(self.read(id_, 'state', 'crashes'), ['outbox', 1])


class ServersTroubleTestCase(ServersTestCase):
    "A server that takes nothing"

    def setUp(self):
        super().setUp()
        self.other = self.enter_here(Server())
        self.enter_here(configured(
                uri_marketing=f'smtp://jane:s3cr3t@127.0.0.1:{free_port()}',
                uri_news=self.other.uri))

    def test_refuses(self):
        dead = self.queue(server='marketing')
        for i in range(3):
            self.queue(f'a{i}@example.com')
            self.queue(f'b{i}@example.com', server='news')
            self.run_cron()
            self.assertEqual(len(self.server.received), i + 1)
            self.assertEqual(len(self.other.received), i + 1)
        self.assertEqual(self.read(dead, 'state', 'attempts'), ['outbox', 0])
        error, = self.errors()
        self.assertRegex(error, r'"marketing \(127.0.0.1:\d+\)".* refused')
        self.assertNotIn('s3cr3t', error)

    def test_two_are_two_errors(self):
        self.server.script['greeting'] = '554 5.3.2 no'
        self.queue()
        self.queue(server='marketing')
        for _ in range(3):
            self.queue(server='news')
            self.run_cron()
        self.assertEqual(len(self.other.received), 3)
        default, marketing = self.errors()
        self.assertIn('554', default)
        self.assertIn('marketing', marketing)

    def test_default_is_dead(self):
        self.server.script['greeting'] = 'close'
        self.queue()
        self.queue(server='news')
        with self.assertRaisesRegex(EmailQueueError, 'closed'):
            self.send_all()
        self.assertEqual(len(self.other.received), 1)

    def test_hangs_for_its_time_out(self):
        self.server.script['greeting'] = 'hang'
        self.queue()
        self.queue(server='news')
        started = time.monotonic()
        with self.assertRaisesRegex(EmailQueueError, 'timed out'):
            self.send_all()
        # Three time-outs for all of connecting
        self.assertLess(time.monotonic() - started, 20)
        self.assertEqual(len(self.other.received), 1)

    def test_task_spares_who_was_in_trouble(self):
        self.queue(server='marketing')
        with patch.object(run, '_send_due', wraps=run._send_due) as drain:
            for i in range(3):
                self.queue(server='news')
                with self.transaction():
                    Pool().get('email.queue').send_queued([])
                self.other.wait_for(i + 1)
        self.assertEqual(
            [c.args[1] for c in drain.call_args_list].count('marketing'), 1)
        self.assertEqual(self.errors(), [])


@unittest.skipUnless(has_locks, "there they are drained one after another")
class HangTestCase(ServersTestCase):
    "A server that hangs for longer than a run"

    def setUp(self):
        super().setUp()
        self.enter_here(configured(timeout=60, data_timeout=600, run_time=2))

    def hang(self, server, step='greeting'):
        server.script[step] = 'hang'
        name = 'marketing' if server is self.marketing else None
        return self.queue('dead@example.com', server=name)

    def test_default_hangs(self):
        self.check(self.server, self.marketing, 'marketing')

    def test_other_hangs(self):
        self.check(self.marketing, self.server, None)

    def test_hangs_after_the_message(self):
        self.check(self.marketing, self.server, None, step='dot')

    def check(self, dead, alive, name, step='greeting'):
        id_ = self.hang(dead, step)
        for i in range(3):
            self.queue(f'r{i}@example.com', server=name)
            started = time.monotonic()
            run = threading.Thread(target=self.run_cron)
            run.start()
            # While the other server hangs
            alive.wait_for(i + 1, timeout=30)
            run.join()
            self.assertLess(time.monotonic() - started, 30)
        self.assertEqual(self.read(id_, 'state'), 'sending')
        self.assertEqual(self.errors(), [])
        # The thread that was left reports what became of its server
        dead.stop()
        if dead is self.server:
            self.addCleanup(dead.start)
        for drain in self.drains():
            drain.join(30)
        self.assertEqual(self.read(id_, 'state'), 'outbox')
        if step == 'greeting':
            error, = self.errors()
            self.assertIn(f':{dead.port}', error)

    def test_task_does_not_wait(self):
        self.hang(self.server)
        with configured(run_time=50):
            started = time.monotonic()
            for i in range(3):
                self.queue(f'r{i}@example.com', server='marketing')
                with self.transaction():
                    Pool().get('email.queue').send_queued([])
                self.marketing.wait_for(i + 1, timeout=30)
            self.assertLess(time.monotonic() - started, 45)

    def test_interrupted(self):
        self.marketing.delay = .02
        for i in range(60):
            self.queue(f'r{i}@example.com', server='marketing')

        class Interrupt(BaseException):
            pass

        def wait(drain, seconds):
            self.marketing.wait_for(5)
            raise Interrupt

        with configured(run_time=50, rate_marketing=600), \
                patch.object(run._ServerThread, 'wait', wait), \
                self.assertRaises(Interrupt):
            self.send_all()
        for drain in self.drains():
            threading.Thread.join(drain, 10)
            self.assertFalse(drain.is_alive())
        with self.transaction(readonly=True):
            states = {
                e.state for e in Pool().get('email.queue').search([])}
        self.assertEqual(states, {'sent', 'outbox'})
        self.assertLess(len(self.marketing.received), 50)


class ServerProcessesTestCase(ProcessTestCase):
    "Senders in processes of their own"

    def setUp(self):
        super().setUp()
        self.marketing = Server()
        self.marketing.start()
        self.addCleanup(self.marketing.stop)
        self.options = {
            'uri_marketing': self.marketing.uri, 'timeout': 10,
            'data_timeout': 10}

    def queue_both(self, count):
        with configured(uri_marketing=self.marketing.uri):
            for i in range(count):
                self.queue(f'a{i}@example.com')
                self.queue(f'b{i}@example.com', server='marketing')
        if not has_locks:
            self.copy()

    def assert_each_sent(self, count, copies=0):
        self.assertEqual(self.states(), {'sent': 2 * count})
        for server, letter in [(self.server, 'a'), (self.marketing, 'b')]:
            arrived = [a for m in server.received for a in m.to_addrs]
            self.assertEqual(
                set(arrived),
                {f'{letter}{i}@example.com' for i in range(count)})
            self.assertLessEqual(len(arrived) - count, copies)

    def test_three_at_once(self):
        self.queue_both(40)
        with Senders(
                self.database, senders=2, senders_marketing=2,
                **self.options) as senders:
            senders.join(*senders.start(3))
            self.drain(senders)
        self.assert_each_sent(40)

    @unittest.skipUnless(has_locks, "killed, its rows wait for their age")
    def test_killed(self):
        self.queue_both(40)
        self.server.delay = self.marketing.delay = .005
        self.addCleanup(setattr, self.server, 'delay', 0)
        with Senders(self.database, **self.options) as senders:
            pid, = senders.start()
            self.server.wait_for(10)
            self.marketing.wait_for(10)
            os.kill(pid, signal.SIGKILL)
            self.drain(senders)
        self.assert_each_sent(40, copies=4)

    @unittest.skipUnless(has_locks, "there they are drained one by one")
    def test_other_process_passes_the_one_that_hangs(self):
        self.server.script['greeting'] = 'hang'
        self.addCleanup(self.server.script.clear)
        self.queue_both(1)
        with Senders(
                self.database, **{**self.options, 'timeout': 60}) as senders:
            first, = senders.start()
            self.marketing.wait_for(1)
            with configured(uri_marketing=self.marketing.uri):
                self.queue('c@example.com', server='marketing')
            second, = senders.start()
            self.marketing.wait_for(2)
            self.assertFalse(senders.sent)
            for pid in [first, second]:
                os.kill(pid, signal.SIGKILL)


@unittest.skipUnless(has_locks, "it is the planner of PostgreSQL")
class PlanTestCase(ServersTestCase):
    "A claim walks along the index, however many emails wait"

    def claims(self, server):
        "Return the plans of two claims that follow each other"
        plans = []

        def fetch(slot, query):
            sql, params = query
            cursor = slot.connection.cursor()
            cursor.execute(f'EXPLAIN (FORMAT JSON) {sql}', params)
            (plan,), = cursor.fetchall()
            plan = json.loads(plan) if isinstance(plan, str) else plan
            plans.append(plan[0]['Plan'])
            return fetch_(slot, query)

        fetch_ = LockSlot.fetch
        with self.transaction() as transaction:
            store = Store(Pool().get('email.queue'), server)
            store.slot.number = 1
            with patch.object(LockSlot, 'fetch', fetch):
                for _ in range(2):
                    store.claim(100, 10 ** 7)
            transaction.rollback()
        return plans

    def nodes(self, plan):
        yield plan
        for child in plan.get('Plans', []):
            yield from self.nodes(child)

    def test_hundred_thousand(self):
        with self.transaction() as transaction:
            cursor = transaction.connection.cursor()
            cursor.execute(
                "INSERT INTO email_queue (from_addr, to_addrs, size, "
                "priority, scheduled_at, attempts, crashes, state, server) "
                "SELECT 'shop@example.com', 'jane@example.com', 1000, "
                "(10 * (1 + i % 3))::text, "
                "now() - i * interval '1 second', 0, 0, 'outbox', "
                "CASE i % 2 WHEN 0 THEN 'marketing' END "
                "FROM generate_series(1, 100000) AS i")
        with self.transaction() as transaction:
            transaction.connection.cursor().execute('ANALYZE email_queue')
        for server in [None, 'marketing']:
            with self.subTest(server=server):
                first, further = self.claims(server)
                self.assertNotIn('ROW', self.check(first))
                # From the place where the claim before ended
                self.assertIn('ROW', self.check(further))

    def check(self, plan):
        "Return the condition by which the index is searched"
        candidates, = [
            n for n in self.nodes(plan)
            if n.get('Subplan Name', '').startswith('CTE')]
        types = [n['Node Type'] for n in self.nodes(candidates)]
        self.assertEqual(types, ['Limit', 'LockRows', 'Index Scan'])
        *_, scan = self.nodes(candidates)
        for name in ['server', 'priority', 'scheduled_at']:
            self.assertIn(name, scan['Index Cond'])
        return scan['Index Cond']


del QueueTestCase, ServersTestCase, ProcessTestCase
