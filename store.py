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
from contextlib import contextmanager
from typing import NamedTuple

from sql import Cast, Column, For, From, Literal, Null, Select, Window, With
from sql.aggregate import Max, Min, Sum
from sql.conditionals import Case
from sql.functions import AtTimeZone, CurrentTimestamp, DateTrunc, Function

from trytond import backend
from trytond.i18n import gettext
from trytond.model import fields
from trytond.transaction import Transaction

from . import files, incomplete
from .exceptions import EmailQueueError
from .history import Event
from .recipients import remaining

__all__ = [
    'Row', 'Store', 'database_time', 'forget', 'queues', 'slots', 'utc_now',
    'waiting_servers']
logger = logging.getLogger(__name__)

# The first of the two integers of the module's advisory locks
LOCK_CLASS = zlib.crc32(b'email_queue') - 2 ** 31
NAMED_SLOTS = 2 ** 30
# The setting of PostgreSQL that a sender marks its session with
MARK = 'email_queue.session'
SESSION_TRIES = 3
BEAT_SECONDS = 1
# Either end of the connection notices within a minute that the other is gone
KEEPALIVE = {'idle': 20, 'interval': 10, 'count': 4}
UNANSWERED_SECONDS = 60
STATEMENT_SECONDS = 60
# While emails are sent a lock must not hold up what is not locked
LOCK_SECONDS, LOCK_SECONDS_SENDING = 30, 0.1
LOCKED_OUT = '55P03'
# What is over when the statement is tried again a moment later
PASSING = {LOCKED_OUT, '40001', '40P01', '57014'}
# So that neither role nor database nor a transaction of trytond, which leaves
# its time-out on the connections of the pool, decides for a sender
SESSION = {
    **{f'tcp_keepalives_{name}': str(n) for name, n in KEEPALIVE.items()},
    # No probe is sent while an answer is on its way: PostgreSQL 12 and later
    'tcp_user_timeout': f'{UNANSWERED_SECONDS}s',
    'statement_timeout': f'{STATEMENT_SECONDS}s',
    'lock_timeout': f'{LOCK_SECONDS}s',
    'idle_in_transaction_session_timeout': '0',
    'idle_session_timeout': '0',
    'transaction_timeout': '0',
    'default_transaction_isolation': 'read committed',
    }
RESTART_SECONDS = 2
# Without locks a row is orphaned when its sender has not touched it so long
ORPHANED_SECONDS = 60
BUSY_SECONDS = 60
CRASHES_ALONE, CRASHES_FAILED = 3, 10
# From the second crash on, doubled with each
CRASH_DELAY = dt.timedelta(minutes=1)
UNRECORDED_DELAY = dt.timedelta(minutes=15)


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
    suspect: str
    suspect_since: dt.datetime
    queue_id: str = None
    own_priority: str = None
    reason: str = None
    # What is told in the history, and the recipients that are not tried, each
    # with the reason: no columns of the table
    events: tuple = ()
    dead: tuple = ()

    ended = (
        'state', 'accepted', 'refused', 'attempts', 'first_attempt',
        'uncertain', 'sent_at', 'reason', 'error', 'suspect', 'suspect_since',
        'priority', 'own_priority')
    recorded = ended + ('scheduled_at', 'queue_id')

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


_columns = [name for name in Row._fields if name not in {'events', 'dead'}]
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


class Lock(Function):
    __slots__ = ()
    _function = 'pg_advisory_lock'


class Unlock(Function):
    __slots__ = ()
    _function = 'pg_advisory_unlock'


class BackendPid(Function):
    __slots__ = ()
    _function = 'pg_backend_pid'


class CurrentSetting(Function):
    __slots__ = ()
    _function = 'current_setting'


class SetConfig(Function):
    __slots__ = ()
    _function = 'set_config'


class Tuple(Function):
    __slots__ = ()
    _function = ''


class Unnest(Function):
    __slots__ = ()
    _function = 'unnest'


def moment():
    """Return what ``utc_now`` is in whole seconds.

    Clients show no parts of a second, and PostgreSQL would round up.
    """
    if backend.name == 'postgresql':
        return DateTrunc('second', utc_now())
    return utc_now().replace(microsecond=0)


def database_time():
    "Return what ``utc_now`` is in the current transaction, as a datetime"
    if backend.name != 'postgresql':
        return dt.datetime.now()
    cursor = Transaction().connection.cursor()
    cursor.execute(*Select([utc_now()]))
    return cursor.fetchone()[0]


def priorities(Model):
    "Return the stored values of the priorities, the most urgent first"
    return sorted(value for value, _ in Model.priority.selection)


def waiting_servers(Model):
    "Return the names of the servers that rows in the outbox are for"
    t = Model.__table__()
    cursor = Transaction().connection.cursor()
    names, name = [], ''
    # DISTINCT would walk over all of the rows
    while name is not None:
        cursor.execute(*t.select(
                Min(t.server),
                where=(t.state == 'outbox') & (t.server > name)))
        name, = cursor.fetchone()
        names.append(name)
    return names[:-1]


def queues(Model, table):
    "Yield the condition of each server and priority in the outbox"
    for server in [None, *waiting_servers(Model)]:
        for priority in priorities(Model):
            yield (
                (table.state == 'outbox') & (table.server == server)
                & (table.priority == priority))


class Store:
    """The queue's rows as a sender sees them.

    Every statement commits. On a database with locks the sender is alive as
    long as its connection, on others as long as it touches its rows.

    :param server: the name of the server that rows are claimed for, None for
        the default one.
    """

    def __init__(self, Model, server=None):
        self.Model = Model
        self.Event = Model.events.get_target()
        self.server = server
        self.priorities = priorities(Model)
        transaction = Transaction()
        self.connection = transaction.connection
        self.database = transaction.database
        self.has_locks = self.database.has_select_for()
        self.number = None
        self._session = None
        self._clock = database_time(), time.monotonic()
        self.used_at = time.monotonic()
        self._beaten_at = self.used_at
        self._places = {}
        self._restarted_at = time.monotonic()
        # A record that has been tried before may have been made in part
        self.repeats = False
        # The connection that has the lock of the slot, and its backend
        self._holder = self._backend = None
        self._prepare()

    def _prepare(self):
        if self.has_locks:
            _set_session(self.connection)
            _keep_alive(self.connection)
        else:
            self.connection.execute(
                f'PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}')

    def close(self):
        "Give the connection back as others expect it, without a slot"
        if not self.has_locks:
            pass
        elif not self._is_ready:
            self.connection.close()
        else:
            try:
                _reset_session(self.connection)
            except self.Error:
                # The pool will not have it again
                self.connection.close()
        self.number = None

    @property
    def Error(self):
        "The base class of the errors of the database"
        return self.connection.Error

    @property
    def is_lost(self):
        "Whether the connection with the lock of the slot is of no more use"
        return self.has_locks and (
            self._holder is not self.connection or not self._is_ready)

    @property
    def _is_ready(self):
        # An interrupt may have come in the middle of a statement
        info = self.connection.info
        return (info.transaction_status.name == 'IDLE'
            and info.pipeline_status.name == 'OFF')

    @staticmethod
    def is_locked_out(error):
        "Whether the statement waited for a lock in vain"
        return getattr(error, 'sqlstate', None) == LOCKED_OUT

    @staticmethod
    def is_passing(error):
        "Whether the statement may succeed a moment later"
        return getattr(error, 'sqlstate', None) in PASSING

    @contextmanager
    def hurried(self):
        "Wait for no lock for longer than a moment"
        self._set_lock_timeout(LOCK_SECONDS_SENDING)
        try:
            yield
        finally:
            if not self.is_lost:
                self._set_lock_timeout(LOCK_SECONDS)

    def _set_lock_timeout(self, seconds):
        if self.has_locks:
            self.execute((
                    "SELECT set_config('lock_timeout', %s, false)",
                    [f'{int(seconds * 1000)}ms']))

    def execute(self, query):
        "Execute a query of python-sql, which commits, and return the cursor"
        cursor = self.connection.cursor()
        cursor.execute(*query)
        self.used_at = time.monotonic()
        return cursor

    # The slot

    def take(self, numbers):
        """Take one of the slots and return whether one was free.

        :raises EmailQueueError: the connection has no session of its own.
        """
        if self.has_locks:
            self._begin_session()
            self.number = next(filter(self._lock, numbers), None)
            if self.number is not None:
                self._holds()
            else:
                self._mark('')
        elif not self._others():
            self.number = random.getrandbits(31)
        return self.number is not None

    def _holds(self):
        (self._backend,) = self.execute((
                "SELECT pid, backend_start FROM pg_stat_activity "
                "WHERE pid = pg_backend_pid()", [])).fetchall()
        self._holder = self.connection

    def reconnect(self):
        """Take the slot again on another connection and return whether it is.

        The server may not know yet that the old connection is lost. Its
        backend is ended, so that the slot is free at once.
        """
        if not self._is_ready:
            self.connection.close()
            transaction = Transaction()
            connection = self.database.get_connection(autocommit=True)
            self.database.put_connection(self.connection)
            self.connection = transaction.connection = connection
            self._prepare()
            if self._session:
                self._mark(self._session)
        if self._end_backend():
            self.execute(Select([Lock(LOCK_CLASS, self.number)]))
        elif not self._lock(self.number):
            return False
        self._holds()
        self._set_lock_timeout(LOCK_SECONDS_SENDING)
        return True

    def _end_backend(self):
        "End the backend that holds the slot, if it is our own old one"
        pid, started = self._backend
        return self.execute((
                "SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a "
                "JOIN pg_locks l ON l.pid = a.pid "
                "WHERE a.pid = %s AND a.backend_start = %s "
                "AND a.pid <> pg_backend_pid() "
                "AND l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted "
                "AND l.classid = %s AND l.objid = %s "
                "AND l.database = (SELECT oid FROM pg_database "
                "WHERE datname = current_database())",
                [pid, started, LOCK_CLASS % 2 ** 32, self.number % 2 ** 32])
            ).fetchall()

    def give_back(self):
        if self.has_locks:
            try:
                self._unlock(self.number)
                self._mark('')
            except backend.DatabaseOperationalError:
                # Lost with the connection
                pass
        self.number = None

    # Behind a pooler like PgBouncer each transaction may have another session.
    # A lock would stay with one that others use, and keep nobody away.

    def _check_pooler(self):
        pid, name = self.execute(Select([
                    BackendPid(), CurrentSetting(MARK, True)])).fetchone()
        # A pooler does not tell the pid of a server process
        if (pid != self.connection.info.backend_pid
                and (name or self._is_lent(pid))):
            raise _no_session()

    def _is_lent(self, pid):
        "Return whether another transaction moves the session, or gets it"
        try:
            other = self.database.get_connection()
        except backend.DatabaseOperationalError:
            # The claims will show it
            return False
        try:
            for _ in range(SESSION_TRIES):
                cursor = other.cursor()
                cursor.execute(*Select([BackendPid()]))
                other_pid, = cursor.fetchone()
                own_pid, = self.execute(Select([BackendPid()])).fetchone()
                other.rollback()
                if other_pid == pid or own_pid != pid:
                    return True
            return False
        finally:
            self.database.put_connection(other)

    def _begin_session(self):
        self._check_pooler()
        self._session = f'{random.getrandbits(64):x}'
        self._mark(self._session)

    def _mark(self, name):
        self.execute(Select([SetConfig(MARK, name, False)]))

    def _in_session(self):
        return CurrentSetting(MARK, True) == self._session

    def _checked(self, rows):
        "Return the claimed rows, unless another session claimed none"
        if not rows and self._session:
            (mine,), = self.execute(Select([self._in_session()])).fetchall()
            if not mine:
                raise _no_session()
        return rows

    def now(self):
        "Return the time by the clock of the database, as naive UTC"
        now, at = self._clock
        return now + dt.timedelta(seconds=time.monotonic() - at)

    def _lock(self, number):
        (locked,), = self.execute(
            Select([TryLock(LOCK_CLASS, number)])).fetchall()
        return locked

    def _unlock(self, number):
        self.execute(Select([Unlock(LOCK_CLASS, number)]))

    def _others(self):
        t = self.Model.__table__()
        return self.execute(t.select(
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
            self.execute(Select([Literal(1)]))
        else:
            t = self.Model.__table__()
            self.execute(t.update(
                    [t.write_date], [utc_now()],
                    where=(t.state == 'sending') & (t.sender == self.number)))

    def recover(self):
        "Put back what senders held that are dead"
        if self.has_locks and not self._session:
            self._check_pooler()
        t = self.Model.__table__()
        numbers = self.execute(t.select(
                t.sender, where=t.state == 'sending',
                group_by=t.sender)).fetchall()
        for number, in numbers:
            if (number is None or number == self.number
                    or not self.has_locks):
                self._recover(number)
            elif self._lock(number):
                self._recover(number)
                self._unlock(number)
        self.complete()

    def _recover(self, number):
        t = self.Model.__table__()
        crashes = t.crashes + 1
        delays = (
            (t.crashes == n, utc_now() + CRASH_DELAY * 2 ** (n - 1))
            for n in range(1, CRASHES_FAILED))
        failed = crashes >= CRASHES_FAILED
        where = (t.state == 'sending') & (t.sender == number)
        if not self.has_locks:
            where &= (
                (t.write_date < _ago(ORPHANED_SECONDS))
                | (t.write_date == Null))
        with self._atomic():
            ids = self._lock_unlocked(t, where)
            if not ids:
                return
            self._tell((id_, Event('put_back')) for id_ in ids)
            is_one = fields.SQL_OPERATORS['in'](t.id, ids)
            ended = self.execute(
                t.select(t.id, where=is_one & failed)).fetchall()
            self._tell(
                (id_, Event('gave_up', reason='died')) for id_, in ended)
            self.execute(t.update(
                    [t.state, t.crashes, t.scheduled_at, t.reason, t.error,
                        t.write_date],
                    [
                        Case((failed, 'failed'), else_='outbox'),
                        crashes,
                        Case(*delays, else_=t.scheduled_at),
                        Case((failed, 'died'), else_=t.reason),
                        Case((failed, Null), else_=t.error),
                        utc_now(),
                        ],
                    where=is_one))
        logger.warning("put back %d emails whose sender died", len(ids))

    def _lock_unlocked(self, table, where):
        "Lock the rows that nobody has locked and return their ids"
        query = table.select(table.id, where=where)
        if self.has_locks:
            For = self.database.get_select_for_skip_locked()
            query.for_ = For('UPDATE')
        return [id_ for id_, in self.execute(query).fetchall()]

    def complete(self):
        "Give rows what they lack that were not written by the module"
        t = self.Model.__table__()
        cursor = self.execute(self._update_unlocked(
                t, *incomplete.completion(self.Model, t, utc_now())))
        incomplete.log(cursor.rowcount)

    def _update_unlocked(self, table, columns, values, where):
        "Return the update of the rows that nobody has locked"
        if not self.has_locks:
            return table.update(columns, values, where=where)
        For = self.database.get_select_for_skip_locked()
        unlocked = With(query=table.select(
                table.id, where=where, for_=For('UPDATE')))
        return table.update(
            columns, values, with_=[unlocked],
            where=table.id.in_(unlocked.select(unlocked.id)))

    # Claiming

    def has_due(self):
        return any(map(self._has_due, self.priorities))

    def _has_due(self, priority):
        t = self.Model.__table__()
        return self.execute(t.select(
                t.id,
                where=self._due(t) & (t.priority == priority)
                & (t.crashes < CRASHES_ALONE),
                # Of the index, or PostgreSQL may rather read the table
                order_by=[t.server, t.priority, t.scheduled_at, t.id],
                limit=1)).fetchone()

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
        return self._checked(rows)

    def claim_alone(self):
        "Claim the next row that its senders died with"
        t = self.Model.__table__()
        return self._checked(self._claim(
                t, self._due(t) & (t.crashes >= CRASHES_ALONE), limit=1))

    def claim_record(self, id_):
        t = self.Model.__table__()
        return self._checked(self._claim(
                t, (t.state == 'outbox') & (t.id == id_), limit=1))

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
        if self._session:
            where &= self._in_session()
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
        row = [Column(t, name) for name in _columns]
        if self.database.has_returning():
            cursor = self.execute(t.update(
                    columns, values, where=t.id.in_(fitting),
                    with_=[c, f], returning=row))
        else:
            fitting.with_ = [c, f]
            ids = [i for i, in self.execute(fitting).fetchall()]
            if not ids:
                return []
            self.execute(t.update(
                    columns, values,
                    where=t.id.in_(ids) & (t.state == 'outbox')))
            cursor = self.execute(t.select(
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
        # What was written by SQL since the run began
        return row._replace(
            attempts=row.attempts or 0, crashes=row.crashes or 0)

    # Suspects

    def accepted_since(self, since):
        "Return whether an email was accepted after ``since``, by any sender"
        t = self.Model.__table__()
        return bool(self.execute(t.select(
                    t.id,
                    where=(t.state == 'sent') & (t.sent_at > since)
                    & (t.server == self.server),
                    limit=1)).fetchone())

    def suspected_alike(self, row, refusal):
        "Return since when another email is suspect that was refused so"
        t = self.Model.__table__()
        since, = self.execute(t.select(
                Max(t.suspect_since),
                where=(t.suspect == refusal) & (t.state == 'outbox')
                & (t.server == self.server) & (t.id != row.id))).fetchone()
        if isinstance(since, str):
            # SQLite knows the type of columns only
            since = dt.datetime.fromisoformat(since)
        return since

    # What is not configured

    def explain(self, server, reason):
        "Write why the rows wait that are for a server, and its name as error"
        t = self.Model.__table__()
        self.execute(self._update_unlocked(
                t, [t.reason, t.error, t.write_date],
                [reason, server, utc_now()],
                (t.state == 'outbox') & (t.server == server)
                & ((t.reason == Null) | (t.reason != reason))))
        forget(Transaction())

    # Recording

    def _update(self, names, values, ids):
        t = self.Model.__table__()
        return t.update(
            [Column(t, name) for name in names] + [t.sender, t.write_date],
            [*values, None, utc_now()],
            where=self._holding(t, ids))

    def _holding(self, t, ids):
        "Return the condition of those rows that the sender still holds"
        return (
            fields.SQL_OPERATORS['in'](t.id, ids)
            & (t.state == 'sending') & (t.sender == self.number))

    @contextmanager
    def _atomic(self):
        "Let several statements be one, where each else commits by itself"
        if self.has_locks:
            with self.connection.transaction():
                yield
        elif self.connection.in_transaction:
            # One database for all connections of a thread
            yield
        else:
            self.connection.execute('BEGIN IMMEDIATE')
            with self.connection:
                yield

    def _tell(self, pairs):
        "Tell events in the history, as pairs of the id of a row and event"
        t = self.Event.__table__()
        now = moment()
        values = [
            [id_, now, e.kind, e.recipients, e.words, e.reason]
            for id_, e in pairs]
        if values:
            self.execute(t.insert(
                    [t.email, t.at, t.kind, t.recipients, t.words, t.reason],
                    values))

    def _held(self, ids, lock=False):
        "Return which of the rows the sender still holds"
        t = self.Model.__table__()
        query = t.select(t.id, where=self._holding(t, ids))
        if lock and self.has_locks:
            query.for_ = For('UPDATE')
        return [id_ for id_, in self.execute(query).fetchall()]

    def _record_told(self, rows):
        "Record rows together with what is told of them"
        with self._atomic():
            held = set(self._held([r.id for r in rows], lock=True))
            rows = [r for r in rows if r.id in held]
            self._tell((r.id, event) for r in rows for event in r.events)
            return (
                sum(self._record_alike([r]) for r in rows if r.loses_message)
                + self._record_each([r for r in rows if not r.loses_message]))

    def _record_alike(self, rows):
        names, values = Row.ended, _ending(rows[0])
        if rows[0].loses_message:
            names += ('msg', 'file_id')
            values += (None, None)
        query = self._update(names, values, [r.id for r in rows])
        if any(r.queue_id for r in rows):
            self._set_queue_ids(query, rows)
        return self.execute(query).rowcount

    def _set_queue_ids(self, query, rows):
        "Let an update of several rows write the queue id of each, too"
        t = query.table
        if self.has_locks:
            # PostgreSQL would try the cases one by one for every row
            q = With('id', 'queue_id', query=Select([
                        Unnest(Cast([r.id for r in rows], 'INTEGER[]')),
                        Unnest(Cast([r.queue_id for r in rows], 'VARCHAR[]')),
                        ]))
            query.with_, query.from_ = [q], From([q])
            query.where &= t.id == q.id
            value = q.queue_id
        else:
            value = Case(*((t.id == r.id, r.queue_id) for r in rows))
        query.columns = [*query.columns, t.queue_id]
        query.values = [*query.values, value]

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

    def locked(self, rows):
        "Return those of the rows that this sender holds and somebody locks"
        t = self.Model.__table__()
        query = t.select(t.id, where=self._holding(t, [r.id for r in rows]))
        held = set(self.execute(query).fetchall())
        query.for_ = self.database.get_select_for_skip_locked()('UPDATE')
        locked = held - set(self.execute(query).fetchall())
        return [r for r in rows if (r.id,) in locked]

    def put_back(self, rows, state):
        """Let go of rows whose outcome cannot be recorded.

        :param state: of those that the server may have; the others go back
            to the outbox as they were.
        """
        t = self.Model.__table__()
        groups = collections.defaultdict(list)
        for row in rows:
            taken = bool(
                row.state == 'sent' or row.accepted or row.uncertain)
            groups[taken, row.crashes].append(row.id)
        told = {
            True: Event('uncertain', reason='not_recorded'),
            False: Event('put_back')}
        for (taken, crashes), ids in groups.items():
            columns, values = [t.state, t.sender, t.write_date], [
                'outbox', None, utc_now()]
            if taken:
                values[0] = state
                columns += [
                    t.uncertain, t.crashes, t.scheduled_at, t.reason, t.error]
                values += [
                    True, crashes + 1,
                    utc_now() + UNRECORDED_DELAY * 2 ** crashes,
                    'not_recorded', None]
            held = self._held(ids)
            self.execute(t.update(
                    columns, values, where=self._holding(t, ids)))
            try:
                self._tell((id_, told[taken]) for id_ in held)
            except self.Error:
                # The rows are more than their history
                logger.warning("it is not told", exc_info=True)
        forget(Transaction())

    def record(self, rows):
        "Write the outcome of rows that this sender holds"
        if not rows:
            return
        alike = collections.defaultdict(list)
        told = [r for r in rows if r.events]
        for row in rows:
            if not row.events:
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
        if told:
            count += self._record_told(told)
        if count != len(rows):
            logger.log(
                logging.INFO if self.repeats else logging.WARNING,
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


def _no_session():
    return EmailQueueError(
        gettext('email_queue.msg_no_session'),
        gettext('email_queue.msg_no_session_description'))


def _ago(seconds):
    return dt.datetime.now() - dt.timedelta(seconds=seconds)


def forget(transaction):
    "Drop what the ORM has read, as SQL has changed it"
    for cache in transaction.cache.values():
        cache.clear()


def _set_session(connection):
    "Set what this server knows of the settings of a sender's session"
    connection.cursor().execute(
        "SELECT set_config(name, value, false) "
        "FROM unnest(%s::text[], %s::text[]) AS s (name, value) "
        "WHERE current_setting(name, true) IS NOT NULL",
        [list(SESSION), list(SESSION.values())])


def _reset_session(connection):
    cursor = connection.cursor()
    cursor.execute(
        "SELECT name, pg_advisory_unlock_all() "
        "FROM unnest(%s::text[]) AS s (name) "
        "WHERE current_setting(name, true) IS NOT NULL", [list(SESSION)])
    # One query, where the names have been checked
    cursor.execute('; '.join(f'RESET {name}' for name, _ in cursor.fetchall()))


def _keep_alive(connection):
    """Let this end, too, notice within a minute that the other is gone.

    On PostgreSQL a lock lasts until the server knows so.
    """
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
