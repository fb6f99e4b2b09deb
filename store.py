# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The queue's rows as a sender sees them: slots, claims and records.

Knows no SMTP and nothing of what an outcome means.
"""
import collections
import datetime as dt
import logging
import operator
import os
import random
import socket
import time
import zlib
from typing import NamedTuple

from sql import Column, Literal, Null, Select, Window, With
from sql.aggregate import Min, Sum
from sql.conditionals import Case
from sql.functions import AtTimeZone, CurrentTimestamp, Function

from trytond import backend
from trytond.model import fields
from trytond.transaction import Transaction

from . import files
from .recipients import remaining

__all__ = ['Row', 'Store', 'forget', 'slots', 'utc_now']
logger = logging.getLogger(__name__)

# The first of the two integers of the module's advisory locks
LOCK_CLASS = zlib.crc32(b'email_queue') - 2 ** 31
NAMED_SLOTS = 2 ** 30
BEAT_SECONDS = 1
# Either end of the connection notices within a minute that the other is gone
KEEPALIVE = {'idle': 20, 'interval': 10, 'count': 4}
UNANSWERED_SECONDS = 60
RESTART_SECONDS = 2
# Without locks a row is orphaned when its sender has not touched it so long
ORPHANED_SECONDS = 60
BUSY_SECONDS = 60
CRASHES_ALONE, CRASHES_FAILED = 3, 10


class Row(NamedTuple):
    "What a sender reads of a record; it writes what is ``recorded``"
    id: int
    server: str
    priority: str
    scheduled_at: dt.datetime
    expires_at: dt.datetime
    from_addr: str
    to_addrs: str
    mail_options: str
    rcpt_options: str
    msg: bytes
    size: int
    state: str
    accepted: str
    refused: str
    attempts: int
    first_attempt: dt.datetime
    uncertain: bool
    crashes: int
    sent_at: dt.datetime
    error: str
    file_id: str
    sensitive: bool

    ended = (
        'state', 'accepted', 'refused', 'attempts', 'first_attempt',
        'uncertain', 'sent_at', 'error')
    recorded = ended + ('scheduled_at',)

    @property
    def ending(self):
        "What is recorded of a sent row: that of many is the same"
        if self.state == 'sent':
            return _ending(self), self.loses_message

    @property
    def loses_message(self):
        return self.state == 'sent' and bool(self.sensitive)

    @property
    def place(self):
        "The order of sending"
        return self.priority, self.scheduled_at, self.id

    @property
    def remaining(self):
        "The recipients that the message has still to go to"
        return remaining(self.to_addrs, self.accepted, self.refused)

    def expired(self, now):
        return bool(self.expires_at) and self.expires_at <= now


_ending = operator.attrgetter(*Row.ended)


def slots(server, count):
    """Yield the numbers of the slots of a server.

    They are the same everywhere. Those of the default one count from 1, those
    of names are from 2 ** 30 on, and negative ones belong to ``send``.
    """
    for slot in range(1, count + 1):
        if server:
            slot = NAMED_SLOTS + zlib.crc32(
                f'{server} {slot}'.encode('utf-8')) % NAMED_SLOTS
        yield slot


def utc_now():
    """Return the time of the clock of the database, as naive UTC.

    The one of trytond is in the time zone of the server on PostgreSQL, and
    stands still during a transaction on SQLite.
    """
    if backend.name == 'postgresql':
        return AtTimeZone(CurrentTimestamp(), 'UTC')
    return dt.datetime.now()


class TryLock(Function):
    __slots__ = ()
    _function = 'pg_try_advisory_lock'


class Unlock(Function):
    __slots__ = ()
    _function = 'pg_advisory_unlock'


class Tuple(Function):
    __slots__ = ()
    _function = ''


class Store:
    """The queue's rows as a sender sees them.

    Every statement commits. On a database with locks the sender is alive as
    long as its connection, on others as long as it touches its rows.

    :param server: the name of the server that rows are claimed for, None for
        the default one.
    """

    def __init__(self, Model, server=None):
        self.Model = Model
        self.server = server
        self.priorities = sorted(v for v, _ in Model.priority.selection)
        transaction = Transaction()
        self.connection = transaction.connection
        self.database = transaction.database
        self.has_locks = self.database.has_select_for()
        self.number = None
        self.used_at = time.monotonic()
        self._beaten_at = self.used_at
        self._places = {}
        self._restarted_at = time.monotonic()
        if self.has_locks:
            _keep_alive(self.connection)
        else:
            self.connection.execute(
                f'PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}')

    def _execute(self, query):
        cursor = self.connection.cursor()
        cursor.execute(*query)
        self.used_at = time.monotonic()
        return cursor

    # The slot

    def take(self, numbers):
        "Take one of the slots and return whether one was free"
        if self.has_locks:
            self.number = next(filter(self._lock, numbers), None)
        elif not self._others():
            self.number = random.getrandbits(31)
        return self.number is not None

    def take_again(self, number):
        "Take the slot of a connection that is lost, if it is still free"
        if self.has_locks:
            return self.take([number])
        # Nobody else has drawn the same
        self.number = number
        return True

    def give_back(self):
        if self.has_locks:
            try:
                self._unlock(self.number)
            except backend.DatabaseOperationalError:
                # Lost with the connection
                pass
        self.number = None

    def _lock(self, number):
        (locked,), = self._execute(
            Select([TryLock(LOCK_CLASS, number)])).fetchall()
        return locked

    def _unlock(self, number):
        self._execute(Select([Unlock(LOCK_CLASS, number)]))

    def _others(self):
        t = self.Model.__table__()
        return self._execute(t.select(
                t.id,
                where=(t.state == 'sending')
                & (t.write_date >= _ago(ORPHANED_SECONDS)),
                limit=1)).fetchone()

    def beat(self):
        "Show that the sender lives"
        now = time.monotonic()
        if now - self._beaten_at < BEAT_SECONDS:
            return
        self._beaten_at = now
        if self.has_locks:
            self._execute(Select([Literal(1)]))
        else:
            t = self.Model.__table__()
            self._execute(t.update(
                    [t.write_date], [utc_now()],
                    where=(t.state == 'sending') & (t.sender == self.number)))

    def recover(self):
        "Put back what senders held that are dead"
        t = self.Model.__table__()
        numbers = self._execute(t.select(
                t.sender, where=t.state == 'sending',
                group_by=t.sender)).fetchall()
        for number, in numbers:
            if number == self.number or not self.has_locks:
                self._recover(number)
            elif self._lock(number):
                self._recover(number)
                self._unlock(number)

    def _recover(self, number):
        t = self.Model.__table__()
        crashes = t.crashes + 1
        failed = crashes >= CRASHES_FAILED
        where = (t.state == 'sending') & (t.sender == number)
        if not self.has_locks:
            where &= t.write_date < _ago(ORPHANED_SECONDS)
        cursor = self._execute(t.update(
                [t.state, t.crashes, t.error, t.write_date],
                [
                    Case((failed, 'failed'), else_='outbox'),
                    crashes,
                    Case((failed, "its senders died"), else_=t.error),
                    utc_now(),
                    ],
                where=where))
        if cursor.rowcount:
            logger.warning(
                "put back %d emails whose sender died", cursor.rowcount)

    # Claiming

    def has_due(self):
        t = self.Model.__table__()
        return bool(self._execute(t.select(
                    t.id,
                    where=self._due(t) & (t.crashes < CRASHES_ALONE),
                    limit=1)).fetchone())

    def claim(self, limit, size):
        """Claim the next due rows and return them in the order of sending.

        :param limit: their number at most.
        :param size: the bytes after which no further is claimed.
        """
        if time.monotonic() - self._restarted_at > RESTART_SECONDS:
            self._restart()
        rows = []
        for priority in self.priorities:
            t = self.Model.__table__()
            where = (
                self._due(t)
                & (t.priority == priority)
                & (t.crashes < CRASHES_ALONE))
            if place := self._places.get(priority):
                where &= Tuple(t.scheduled_at, t.id) > Tuple(*place)
            found = self._claim(
                t, where, limit - len(rows),
                size - sum(r.size for r in rows))
            if found:
                self._places[priority] = found[-1].place[1:]
            rows += found
            if len(rows) >= limit or sum(r.size for r in rows) >= size:
                break
        else:
            self._restart()
        return rows

    def claim_alone(self):
        "Claim the next row that its senders died with"
        t = self.Model.__table__()
        return self._claim(
            t, self._due(t) & (t.crashes >= CRASHES_ALONE), limit=1)

    def claim_record(self, id_):
        t = self.Model.__table__()
        return self._claim(
            t, (t.state == 'outbox') & (t.id == id_), limit=1)

    def _restart(self):
        # The scheduler's own transaction keeps the index entries of rows that
        # are claimed: a claim that began at the first would walk over all
        self._places.clear()
        self._restarted_at = time.monotonic()

    def _due(self, t):
        return (
            (t.state == 'outbox')
            & (t.server == self.server)
            & (t.scheduled_at <= utc_now()))

    def _claim(self, t, where, limit, size=1):
        # IS NULL is no constant to PostgreSQL: without the server it sorts
        order = [t.server, t.priority, t.scheduled_at, t.id]
        candidates = t.select(
            t.id, t.size, t.priority, t.scheduled_at,
            where=where, order_by=order, limit=limit)
        if self.database.has_select_for():
            For = self.database.get_select_for_skip_locked()
            candidates.for_ = For('UPDATE')
        c = With(query=candidates)
        before = Sum(
            c.size,
            window=Window([], order_by=[c.priority, c.scheduled_at, c.id])
            ) - c.size
        f = With(query=c.select(c.id, before.as_('before')))
        fitting = f.select(f.id, where=f.before < size)
        t = self.Model.__table__()
        columns = [t.state, t.sender, t.write_date]
        values = ['sending', self.number, utc_now()]
        row = [Column(t, name) for name in Row._fields]
        if self.database.has_returning():
            cursor = self._execute(t.update(
                    columns, values, where=t.id.in_(fitting),
                    with_=[c, f], returning=row))
        else:
            fitting.with_ = [c, f]
            ids = [i for i, in self._execute(fitting).fetchall()]
            if not ids:
                return []
            self._execute(t.update(
                    columns, values,
                    where=t.id.in_(ids) & (t.state == 'outbox')))
            cursor = self._execute(t.select(
                    *row,
                    where=t.id.in_(ids) & (t.state == 'sending')
                    & (t.sender == self.number)))
        return sorted(
            (self._load(Row(*values)) for values in cursor.fetchall()),
            key=lambda row: row.place)

    def _load(self, row):
        if row.file_id:
            msg = self.Model.msg.load(row.file_id, row.size)
            row = row._replace(msg=msg)
        return row

    # Names of servers

    def servers(self):
        "Return the names of the servers that rows in the outbox are for"
        t = self.Model.__table__()
        names, name = [], ''
        # DISTINCT would walk over all of the rows
        while name is not None:
            (name,), = self._execute(t.select(
                    Min(t.server),
                    where=(t.state == 'outbox') & (t.server > name))
                ).fetchall()
            names.append(name)
        return names[:-1]

    def explain(self, server, words):
        "Show words as the error of the rows that wait for a server"
        t = self.Model.__table__()
        self._execute(t.update(
                [t.error, t.write_date], [words, utc_now()],
                where=(t.state == 'outbox') & (t.server == server)
                & ((t.error == Null) | (t.error != words))))
        forget(Transaction())

    # Recording

    def _update(self, names, values, ids):
        t = self.Model.__table__()
        return t.update(
            [Column(t, name) for name in names] + [t.sender, t.write_date],
            [*values, None, utc_now()],
            where=fields.SQL_OPERATORS['in'](t.id, ids)
            & (t.state == 'sending') & (t.sender == self.number))

    def _record_alike(self, rows):
        names, values = Row.ended, _ending(rows[0])
        if rows[0].loses_message:
            names += ('msg', 'file_id')
            values += (None, None)
        return self._execute(self._update(
                names, values, [r.id for r in rows])).rowcount

    def _record_each(self, rows):
        if not rows:
            return 0
        values = [
            tuple(getattr(r, n) for n in Row.recorded) for r in rows]
        cursor = self.connection.cursor()
        # In one transaction where psycopg pipelines them
        cursor.executemany(str(self._update(Row.recorded, values[0], [0])), [
                self._update(Row.recorded, v, [r.id]).params
                for r, v in zip(rows, values)])
        self.used_at = time.monotonic()
        return cursor.rowcount

    def record(self, rows):
        "Write the outcome of rows that this sender holds"
        if not rows:
            return
        alike = collections.defaultdict(list)
        for row in rows:
            alike[row.ending or row.id].append(row)
        groups, each = [], []
        for group in alike.values():
            if len(group) > 1 or group[0].loses_message:
                groups.append(group)
            else:
                each += group
        file_ids = [r.id for r in rows if r.loses_message and r.file_id]
        if file_ids:
            # Before, or a crash would forget them: a row that still has its
            # file keeps it
            self.Model.msg.queue_for_removal(self.Model, 'msg', file_ids)
        count = sum(map(self._record_alike, groups))
        count += self._record_each(each)
        if count != len(rows):
            logger.warning(
                "%d of the emails %s are no longer held by sender %s",
                len(rows) - count,
                ', '.join(str(r.id) for r in rows), self.number)
        forget(Transaction())
        if file_ids:
            self._purge()
        try:
            self.Model.finished(self.Model.browse([r.id for r in rows]))
        except Exception:
            # What was sent is recorded: nothing of it may be undone
            logger.exception("error in the hook for finished emails")

    def _purge(self):
        try:
            files.purge(self.Model)
        except Exception:
            logger.exception("files are left to the daily job")


def _ago(seconds):
    return dt.datetime.now() - dt.timedelta(seconds=seconds)


def forget(transaction):
    "Drop what the ORM has read, as SQL has changed it"
    for cache in transaction.cache.values():
        cache.clear()


def _keep_alive(connection):
    """Let both ends notice within a minute that the other is gone.

    On PostgreSQL a lock lasts until the server knows so.
    """
    cursor = connection.cursor()
    for name, seconds in KEEPALIVE.items():
        cursor.execute(f'SET tcp_keepalives_{name} = {seconds}')
    # No probe is sent while an answer is on its way: PostgreSQL 12 and later
    cursor.execute(
        "SELECT set_config(name, %s, false) FROM pg_settings "
        "WHERE name = 'tcp_user_timeout'", [f'{UNANSWERED_SECONDS}s'])
    with socket.socket(fileno=os.dup(connection.fileno())) as sock:
        if sock.family == socket.AF_UNIX:
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, seconds in [
                ('TCP_KEEPIDLE', KEEPALIVE['idle']),
                ('TCP_KEEPINTVL', KEEPALIVE['interval']),
                ('TCP_KEEPCNT', KEEPALIVE['count']),
                ('TCP_USER_TIMEOUT', 1000 * KEEPALIVE['idle']),
                ]:
            if hasattr(socket, option):
                sock.setsockopt(
                    socket.IPPROTO_TCP, getattr(socket, option), seconds)
