# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The rows as a sender sees them: slots, claims and records by SQL."""
import datetime as dt
import time
from contextlib import contextmanager
from unittest.mock import patch

from sql import Table

from trytond import backend
from trytond.pool import Pool
from trytond.transaction import Transaction

from .. import store
from ..store import Store
from .tools import QueueTestCase

has_locks = backend.name != 'sqlite'
MUCH = 10 ** 9
# The largest id of a record
LAST_ID = 2 ** 31 - 1


class StoreTestCase(QueueTestCase):

    @contextmanager
    def store(self, number=None):
        "A store on a connection of its own, with that slot where it is given"
        with self.transaction(), \
                Transaction().new_transaction(autocommit=True):
            store = Store(Pool().get('email.queue'))
            if number is not None:
                self.assertTrue(store.take([number]))
            try:
                yield store
            finally:
                if number is not None:
                    store.give_back()

    def update(self, id_, **values):
        "Write what the ORM does not let be written"
        t = Table('email_queue')
        with self.transaction() as transaction:
            transaction.connection.cursor().execute(*t.update(
                    [getattr(t, name) for name in values],
                    list(values.values()), where=t.id == id_))

    def zone(self, name):
        "Let the connection of the transaction have a time zone of its own"
        if has_locks:
            Transaction().connection.cursor().execute(
                f"SET TIME ZONE '{name}'")


class ClockTestCase(StoreTestCase):
    "The time is UTC, whatever the server of the database thinks"
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
        "Test that the rows of a run that takes long are touched"
        id_ = self.queue()
        with self.store(1) as store_, patch.object(store, 'BEAT_SECONDS', 0):
            store_.claim(10, MUCH)
            if has_locks:
                used_at = store_.used_at
                store_.beat()
                self.assertGreater(store_.used_at, used_at)
                return
            for _ in range(2):
                claimed_at = self.write_date(id_)
                time.sleep(.01)
                store_.beat()
                self.assertGreater(self.write_date(id_), claimed_at)

    def write_date(self, id_):
        cursor = Transaction().connection.cursor()
        cursor.execute(
            f'SELECT write_date FROM email_queue WHERE id = {id_}')
        (write_date,), = cursor.fetchall()
        return write_date


del QueueTestCase
