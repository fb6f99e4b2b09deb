# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The rows as a sender sees them: slots, claims and records by SQL."""
import datetime as dt
import os
import socket
import time
import unittest
from contextlib import contextmanager
from unittest.mock import patch

from sql import Table

from trytond import backend
from trytond.pool import Pool
from trytond.transaction import Transaction

from .. import slot, store
from ..store import Store
from .tools import MESSAGE, QueueTestCase

has_locks = backend.name != 'sqlite'
MUCH = 10 ** 9
# The largest id of a record
LAST_ID = 2 ** 31 - 1


class StoreTestCase(QueueTestCase):

    @contextmanager
    def transaction(self, user=0, **options):
        "A transaction, also beside the transaction of a store"
        if Transaction().connection:
            with Transaction().new_transaction(**options) as transaction:
                yield transaction
        else:
            with super().transaction(user, **options) as transaction:
                yield transaction

    @contextmanager
    def store(self, number=None):
        "A store on a connection of its own, with this slot if one is given"
        with self.transaction(), \
                Transaction().new_transaction(autocommit=True):
            store = Store(Pool().get('email.queue'))
            if number is not None:
                self.assertTrue(store.slot.take([number]))
            try:
                yield store
            finally:
                if number is not None:
                    store.slot.give_back()

    def update(self, id_, **values):
        "Write columns that the ORM does not let anybody write"
        t = Table('email_queue')
        with self.transaction() as transaction:
            transaction.connection.cursor().execute(*t.update(
                    [getattr(t, name) for name in values],
                    list(values.values()), where=t.id == id_))

    def zone(self, name):
        "Let the connection of the transaction have another time zone"
        if has_locks:
            Transaction().connection.cursor().execute(
                f"SET TIME ZONE '{name}'")


class DatabaseClockTestCase(StoreTestCase):
    "Times are UTC, whatever time zone the database server has"
    zones = ['Asia/Tokyo', 'America/New_York', 'UTC']

    def test_queued(self):
        for zone in self.zones:
            with self.subTest(zone):
                before = dt.datetime.now() - dt.timedelta(seconds=1)
                with self.transaction():
                    self.zone(zone)
                    email, = Pool().get('email.queue').queue_mail(
                        'shop@example.com', 'jane@example.com', b'')
                    self.zone('UTC')
                scheduled_at = self.read(email.id, 'scheduled_at')
                self.assertTrue(before <= scheduled_at <= dt.datetime.now())

    def test_buttons(self):
        for button, state in [('send_now', 'outbox'), ('retry', 'failed')]:
            for zone in self.zones:
                with self.subTest(button, zone=zone):
                    id_ = self.queue(scheduled_at=dt.timedelta(days=1))
                    self.write(id_, state=state)
                    before = dt.datetime.now() - dt.timedelta(seconds=1)
                    with self.transaction():
                        self.zone(zone)
                        EmailQueue = Pool().get('email.queue')
                        getattr(EmailQueue, button)([EmailQueue(id_)])
                        self.zone('UTC')
                    scheduled_at = self.read(id_, 'scheduled_at')
                    self.assertTrue(
                        before <= scheduled_at <= dt.datetime.now())

    def test_due(self):
        minute = dt.timedelta(minutes=1)
        due = self.queue(scheduled_at=-minute)
        self.queue(scheduled_at=minute)
        for zone in self.zones:
            with self.subTest(zone), self.store(1) as store:
                self.zone(zone)
                self.assertTrue(store.has_due())
                row, = store.claim(10, MUCH)
                self.assertEqual(row.id, due)
                self.assertFalse(store.has_due())
                store.record([row._replace(state='outbox')])
                self.zone('UTC')

    def test_due_since_the_run_began(self):
        with self.store(1) as store:
            self.assertEqual(store.claim(10, MUCH), [])
            # On SQLite the clock of a transaction stands still
            email, = Pool().get('email.queue').queue_mail(
                'shop@example.com', 'jane@example.com', b'')
            row, = store.claim(10, MUCH)
            self.assertEqual(row.id, email.id)

    def test_beat(self):
        "Test that the rows of a long run are touched"
        id_ = self.queue()
        with self.store(1) as store_, patch.object(slot, 'BEAT_SECONDS', 0):
            store_.claim(10, MUCH)
            if has_locks:
                used_at = store_.slot.used_at
                store_.slot.beat()
                self.assertGreater(store_.slot.used_at, used_at)
                return
            for _ in range(2):
                claimed_at = self.write_date(id_)
                time.sleep(.01)
                store_.slot.beat()
                self.assertGreater(self.write_date(id_), claimed_at)

    def write_date(self, id_):
        cursor = Transaction().connection.cursor()
        cursor.execute(
            f'SELECT write_date FROM email_queue WHERE id = {id_}')
        (write_date,), = cursor.fetchall()
        return write_date


class SlotTestCase(StoreTestCase):
    "Who holds which slot, and what becomes of the rows of a dead sender"

    def sending(self, number):
        id_ = self.queue()
        self.update(
            id_, state='sending', slot=number,
            write_date=dt.datetime.now() - dt.timedelta(hours=1))
        return id_

    @unittest.skipUnless(has_locks, "it has one slot")
    def test_take(self):
        with self.store(1) as first, self.store() as second:
            self.assertFalse(second.slot.take([1]))
            self.assertIsNone(second.slot.number)
            self.assertTrue(second.slot.take([1, 2, 3]))
            self.assertEqual(second.slot.number, 2)
            first.slot.give_back()
            self.assertEqual(first.slot.take([1]), True)
            second.slot.give_back()

    @unittest.skipUnless(has_locks, "it has no connection to lose")
    def test_keepalive(self):
        "Test that both ends notice within a minute that the other end is gone"
        with self.store() as store:
            cursor = store.slot.connection.cursor()
            for name, value in [
                    ('tcp_keepalives_idle', '20'),
                    ('tcp_keepalives_interval', '10'),
                    ('tcp_keepalives_count', '4'),
                    ('tcp_user_timeout', '60000'),
                    ]:
                cursor.execute(f'SHOW {name}')
                self.assertEqual(cursor.fetchone(), (value,), name)
            sock = socket.socket(fileno=os.dup(store.slot.connection.fileno()))
            with sock:
                for level, option, value in [
                        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
                        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
                        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
                        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
                        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20000),
                        ]:
                    self.assertEqual(sock.getsockopt(level, option), value)

    def test_last_id(self):
        "Test that send has a slot for any id"
        for number in [-1, -LAST_ID, 2 ** 30, LAST_ID]:
            with self.subTest(number), self.store(number) as store:
                if has_locks:
                    self.assertEqual(store.slot.number, number)

    @unittest.skipUnless(has_locks, "age tells who is dead")
    def test_recover(self):
        "Test that rows of a living sender stay, however long it takes"
        mine, living, dead = map(self.sending, [1, 2, 3])
        by_send, by_dead_send = self.sending(-4), self.sending(-5)
        ended = self.queue()
        self.update(ended, state='sent', slot=3)
        with self.store(2), self.store(-4), self.store(1) as store:
            store.recover()
            self.assertEqual(store.slot.number, 1)
        for id_ in [mine, dead, by_dead_send]:
            self.assertEqual(
                self.read(id_, 'state', 'crashes', 'attempts'),
                ['outbox', 1, 0])
        for id_ in [living, by_send]:
            self.assertEqual(
                self.read(id_, 'state', 'crashes'), ['sending', 0])
        self.assertEqual(self.read(ended, 'state', 'crashes'), ['sent', 0])
        # The locks are given back
        with self.store(3), self.store(-5):
            pass

    @unittest.skipIf(has_locks, "locks tell who is dead")
    def test_recover_by_age(self):
        old, young = self.sending(1), self.sending(1)
        self.update(young, write_date=dt.datetime.now())
        with self.store() as store:
            # Somebody else recovers at the same moment
            self.assertFalse(store.slot.take([1]))
            store.slot.number = 2
            store.recover()
        self.assertEqual(self.read(old, 'state', 'crashes'), ['outbox', 1])
        self.assertEqual(self.read(young, 'state', 'crashes'), ['sending', 0])

    def test_record_what_is_not_mine(self):
        "Test that a sender that was taken for dead changes nothing"
        for state, number in [
                ('sending', 2), ('sending', None), ('outbox', None),
                ('sent', None), ('cancelled', None), ('failed', None)]:
            with self.subTest(state, slot=number):
                self.clear()
                lost, mine = self.queue(), self.queue()
                with self.store(1) as store:
                    first, second = store.claim(10, MUCH)
                    self.update(lost, state=state, slot=number)
                    for row in [
                            first._replace(state='sent'),
                            first._replace(state='outbox', error="later")]:
                        with self.assertLogs(level='WARNING') as logs:
                            store.record([row])
                        self.assertIn(str(lost), logs.output[0])
                    store.record([second._replace(state='sent')])
                self.assertEqual(
                    self.read(lost, 'state', 'slot', 'error'),
                    [state, number, None])
                self.assertEqual(self.read(mine, 'state'), 'sent')

    @unittest.skipUnless(has_locks, "each is a transaction of its own")
    def test_record_at_once(self):
        "Test that rows with different outcomes are recorded all or none"
        self.queue(), self.queue()
        with self.store(1) as store:
            rows = [
                row._replace(state='outbox', error=f"{row.id} is late")
                for row in store.claim(10, MUCH)]
            rows[-1] = rows[-1]._replace(attempts=2 ** 40)
            with self.assertRaisesRegex(Exception, 'out of range'):
                store.record(rows)
        for row in rows:
            self.assertEqual(
                self.read(row.id, 'state', 'error'), ['sending', None])


class ClaimTestCase(StoreTestCase):
    "Which rows are claimed"

    def claim(self, store, *args):
        return [row.id for row in store.claim(*args)]

    def test_limit(self):
        ids = [self.queue() for _ in range(5)]
        with self.store(1) as store:
            self.assertEqual(self.claim(store, 2, MUCH), ids[:2])
            self.assertEqual(self.claim(store, 2, MUCH), ids[2:4])
            self.assertEqual(self.claim(store, 2, MUCH), ids[4:])
            self.assertEqual(self.claim(store, 2, MUCH), [])

    def test_size(self):
        "Test that bytes limit a claim, but one large message is claimed"
        bulk = [
            self.queue(msg=MESSAGE + b'x' * 1000, priority='bulk')
            for _ in range(4)]
        normal = self.queue(msg=MESSAGE + b'x' * 1000)
        with self.store(1) as store:
            self.assertEqual(self.claim(store, 9, 0), [])
            self.assertEqual(self.claim(store, 9, -1), [])
            self.assertEqual(self.claim(store, 9, 1), [normal])
            # Two messages are more than the limit
            self.assertEqual(self.claim(store, 9, 1500), bulk[:2])
            self.assertEqual(self.claim(store, 9, MUCH), bulk[2:])

    def test_place(self):
        "Test that claims go on at a place, and begin again"
        ids = [self.queue() for _ in range(4)]
        with self.store(1) as store_:
            self.assertEqual(self.claim(store_, 2, MUCH), ids[:2])
            first, = self.claim(store_, 1, MUCH)
            self.assertEqual(first, ids[2])
            # Queued before the place
            earlier = self.queue(scheduled_at=-dt.timedelta(hours=1))
            urgent = self.queue(priority='urgent')
            self.assertEqual(self.claim(store_, 2, MUCH), [urgent, ids[3]])
            # Nothing was left after the place
            self.assertEqual(self.claim(store_, 1, MUCH), [])
            self.assertEqual(self.claim(store_, 1, MUCH), [earlier])

    def test_place_after_a_while(self):
        "Test that an email from before the place is claimed after a while"
        ids = [self.queue() for _ in range(4)]
        with self.store(1) as store_:
            self.assertEqual(self.claim(store_, 1, MUCH), ids[:1])
            earlier = self.queue(scheduled_at=-dt.timedelta(hours=1))
            self.assertEqual(self.claim(store_, 1, MUCH), ids[1:2])
            with patch.object(store, 'RESTART_SECONDS', -1):
                self.assertEqual(self.claim(store_, 1, MUCH), [earlier])

    def test_same_time(self):
        now = dt.datetime.now()
        ids = [self.queue(scheduled_at=now) for _ in range(5)]
        with self.store(1) as store:
            for id_ in ids:
                self.assertEqual(self.claim(store, 1, MUCH), [id_])

    def test_crashed(self):
        "Test that a row whose senders died is claimed by itself"
        killers = [self.queue(), self.queue()]
        self.write(*killers, crashes=3)
        innocent = self.queue()
        self.write(innocent, crashes=2)
        with self.store(1) as store:
            self.assertEqual(self.claim(store, 10, MUCH), [innocent])
            self.assertFalse(store.has_due())
            for id_ in killers:
                row, = store.claim_alone()
                self.assertEqual(row.id, id_)
            self.assertEqual(store.claim_alone(), [])

    def test_values(self):
        "Test that a claimed row has the queued values"
        id_ = self.queue(
            ['jane@example.com', 'john@example.com'], priority='urgent',
            expires_at=dt.timedelta(days=1), mail_options=['RET=HDRS'],
            rcpt_options=['NOTIFY=NEVER'])
        names = [n for n in store._columns if n != 'state']
        expected = self.read(id_, *names)
        with self.store(1) as store_:
            row, = store_.claim(1, MUCH)
            self.assertEqual(self.read(id_, 'state'), 'sending')
        self.assertEqual(row.state, 'sending')
        self.assertEqual(
            [bytes(v) if n == 'msg' else v or None
                for n, v in zip(names, (getattr(row, n) for n in names))],
            [v or None for v in expected])

    @unittest.skipUnless(has_locks, "there one writes at a time")
    def test_locked(self):
        "Test that a row that somebody has locked is skipped"
        locked, free = self.queue(), self.queue()
        with self.transaction() as transaction:
            transaction.connection.cursor().execute(
                f'SELECT id FROM email_queue WHERE id = {locked} FOR UPDATE')
            with Transaction().new_transaction(autocommit=True):
                store = Store(Pool().get('email.queue'))
                store.slot.take([1])
                self.assertEqual(self.claim(store, 10, MUCH), [free])
                store.slot.give_back()


del QueueTestCase
