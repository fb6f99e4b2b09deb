# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The place of one sender, and the connection by which it holds the place.

There are two kinds of slots. On PostgreSQL a slot is an advisory lock, which
ends with the connection. On SQLite it is the time at which the sender has last
touched its rows. This file knows no SMTP and no outcome.
"""
import datetime as dt
import logging
import os
import random
import socket
import time
import zlib
from contextlib import contextmanager

from sql import Literal, Null, Select
from sql.functions import Function

from trytond import backend
from trytond.i18n import gettext
from trytond.transaction import Transaction

from .exceptions import PoolerError
from .tools import utc_now

__all__ = ['BEAT_SECONDS', 'slot_for', 'slot_numbers']
logger = logging.getLogger(__name__)

# The first of the two integers of the module's advisory locks
LOCK_CLASS = zlib.crc32(b'email_queue') - 2 ** 31
# The slots of named servers have numbers from here on
NAMED_SLOTS = 2 ** 30
# The setting of PostgreSQL by which a sender marks its backend
MARK = 'email_queue.session'
# How many transactions show whether a pooler changes the backend
POOLER_TRIES = 3
BEAT_SECONDS = 1
# Either end of the connection notices within a minute that the other end is
# gone
KEEPALIVE = {'idle': 20, 'interval': 10, 'count': 4}
UNANSWERED_SECONDS = 60
STATEMENT_SECONDS = 60
# How long a statement waits for a lock. The wait is short while emails are
# sent, because a locked row must not hold up the other rows
LOCK_SECONDS, LOCK_SECONDS_SENDING = 30, 0.1
# The SQLSTATE of a statement that has waited too long for a lock
LOCKED_OUT = '55P03'
# The SQLSTATEs of errors that may be over when the statement is repeated
PASSING = {LOCKED_OUT, '40001', '40P01', '57014'}
# The settings of a sender's connection. They are set because the role, the
# database or an earlier transaction of trytond, which leaves its time-out on
# the connections of the pool, may have set others
SETTINGS = {
    **{f'tcp_keepalives_{name}': str(n) for name, n in KEEPALIVE.items()},
    # Needed beside the keepalives, because none is sent while an answer is on
    # its way; PostgreSQL 12 and later
    'tcp_user_timeout': f'{UNANSWERED_SECONDS}s',
    'statement_timeout': f'{STATEMENT_SECONDS}s',
    'lock_timeout': f'{LOCK_SECONDS}s',
    'idle_in_transaction_session_timeout': '0',
    'idle_session_timeout': '0',
    'transaction_timeout': '0',
    'default_transaction_isolation': 'read committed',
    }
# On SQLite a row is orphaned when its sender has not touched it for so many
# seconds
ORPHANED_SECONDS = 60
# How many seconds a statement of SQLite waits for other writers
BUSY_SECONDS = 60


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


def slot_numbers(server, count):
    """Yield the numbers of the slots of a server.

    The numbers are the same on every machine. The slots of the default server
    are numbered from 1, and those of named servers from 2 ** 30 on.
    ``EmailQueue.send`` takes negative numbers.

    :param count: how many slots the server has.
    """
    for number in range(1, count + 1):
        if server:
            number = NAMED_SLOTS + zlib.crc32(
                f'{server} {number}'.encode('utf-8')) % NAMED_SLOTS
        yield number


def slot_for(Model):
    "Return the slot for the connection of the current transaction"
    if Transaction().database.has_select_for():
        return LockSlot(Model)
    return TouchedSlot(Model)


class Slot:
    """The place of a sender, and the connection by which the sender holds it.

    The connection is in autocommit mode: every statement commits.

    :param Model: the model of the queue.
    """
    # Whether the connection by which the slot is held cannot be used any more
    is_lost = False

    def __init__(self, Model):
        transaction = Transaction()
        self.connection = transaction.connection
        self.database = transaction.database
        self.number = None
        self.used_at = self._beaten_at = time.monotonic()
        self._table = Model.__table__()
        self._prepare()

    @property
    def Error(self):
        "The base class of the errors of the database"
        return self.connection.Error

    @staticmethod
    def is_locked_out(error):
        "Return whether the statement has waited too long for a lock"
        return getattr(error, 'sqlstate', None) == LOCKED_OUT

    @staticmethod
    def is_passing(error):
        "Return whether the statement may succeed a moment later"
        return getattr(error, 'sqlstate', None) in PASSING

    def execute(self, query):
        "Execute a query of python-sql, which commits, and return the cursor"
        cursor = self.connection.cursor()
        cursor.execute(*query)
        self.used_at = time.monotonic()
        return cursor

    def fetch(self, query):
        "Return the rows of a query of python-sql, which commits"
        return self.execute(query).fetchall()

    def execute_many(self, query, parameters):
        "Execute a query with each of the parameters and return the cursor"
        cursor = self.connection.cursor()
        cursor.executemany(query, parameters)
        self.used_at = time.monotonic()
        return cursor

    def holds(self, table):
        "Return the condition of the rows that the sender holds"
        return (table.state == 'sending') & (table.slot == self.number)

    def beat(self):
        "Show that the sender lives, once a second at most"
        now = time.monotonic()
        if now - self._beaten_at >= BEAT_SECONDS:
            self._beaten_at = now
            self._beat()


class LockSlot(Slot):
    """A slot that is an advisory lock of PostgreSQL.

    The sender holds the lock exactly as long as it has the connection.
    """

    def __init__(self, Model):
        # The mark of the sender's backend, None while no slot is taken
        self._mark = None
        # The connection that has the lock, and the process id and start of its
        # backend
        self._holder = self._backend = None
        super().__init__(Model)

    def _prepare(self):
        _configure(self.connection)
        _keep_alive(self.connection)

    def close(self):
        "Reset the connection for its next user"
        if self._is_ready:
            try:
                _reset(self.connection)
            except self.Error:
                # Closed, so that the pool drops the connection
                self.connection.close()
        else:
            self.connection.close()
        self.number = None

    @property
    def is_lost(self):
        return self._holder is not self.connection or not self._is_ready

    def fetch(self, query):
        cursor = self.connection.cursor()
        # Binary, because a message as text would take twice its size, beside
        # its bytes
        cursor.execute(*query, binary=True)
        self.used_at = time.monotonic()
        return cursor.fetchall()

    @property
    def _is_ready(self):
        # False after an interrupt in the middle of a statement
        info = self.connection.info
        return (info.transaction_status.name == 'IDLE'
            and info.pipeline_status.name == 'OFF')

    def take(self, numbers):
        """Take one of the slots and return whether one was free.

        :raises PoolerError: a pooler lends the connection its backend.
        """
        self._check_pooler()
        self._mark = f'{random.getrandbits(64):x}'
        self._set_mark(self._mark)
        self.number = next(filter(self._lock, numbers), None)
        if self.number is None:
            self._set_mark('')
            return False
        self._remember_holder()
        return True

    def give_back(self):
        try:
            self._unlock(self.number)
            self._set_mark('')
        except backend.DatabaseOperationalError:
            # The connection is lost, and its lock, too
            pass
        self.number = None

    def reconnect(self):
        """Take the slot again on a new connection.

        PostgreSQL may not know yet that the old connection is lost. So the old
        backend is ended, which frees the slot at once.

        :return: False where another sender has taken the slot.
        """
        if not self._is_ready:
            self.connection.close()
            transaction = Transaction()
            connection = self.database.get_connection(autocommit=True)
            self.database.put_connection(self.connection)
            self.connection = transaction.connection = connection
            self._prepare()
            if self._mark:
                self._set_mark(self._mark)
        if self._end_backend():
            self.execute(Select([Lock(LOCK_CLASS, self.number)]))
        elif not self._lock(self.number):
            return False
        self._remember_holder()
        self._set_lock_timeout(LOCK_SECONDS_SENDING)
        return True

    def _remember_holder(self):
        (self._backend,) = self.execute((
                "SELECT pid, backend_start FROM pg_stat_activity "
                "WHERE pid = pg_backend_pid()", [])).fetchall()
        self._holder = self.connection

    def _end_backend(self):
        "End the old backend of this sender, if it still holds the slot"
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

    def _lock(self, number):
        (locked,), = self.execute(
            Select([TryLock(LOCK_CLASS, number)])).fetchall()
        return locked

    def _unlock(self, number):
        self.execute(Select([Unlock(LOCK_CLASS, number)]))

    @contextmanager
    def hurried(self):
        "Let no statement wait for a lock for longer than a moment"
        self._set_lock_timeout(LOCK_SECONDS_SENDING)
        try:
            yield
        finally:
            if not self.is_lost:
                self._set_lock_timeout(LOCK_SECONDS)

    def _set_lock_timeout(self, seconds):
        self.execute((
                "SELECT set_config('lock_timeout', %s, false)",
                [f'{int(seconds * 1000)}ms']))

    @contextmanager
    def atomic(self):
        "Let several statements commit together"
        with self.connection.transaction():
            yield

    def _beat(self):
        self.execute(Select([Literal(1)]))

    def dead(self, numbers):
        """Yield the numbers whose senders have died.

        Each number is locked until the next number is asked for.
        """
        if not self._mark:
            self._check_pooler()
        for number in numbers:
            if number is None or number == self.number:
                yield number
            elif self._lock(number):
                yield number
                self._unlock(number)

    @staticmethod
    def is_orphaned(table):
        "Return the condition of the rows of a dead sender that can be taken"
        return Literal(True)

    # Behind a pooler like PgBouncer each transaction may have another backend.
    # The lock of a slot would stay with a backend that others use, too, so
    # that it would keep nobody away.

    def _check_pooler(self):
        pid, name = self.execute(Select([
                    BackendPid(), CurrentSetting(MARK, True)])).fetchone()
        # A pooler tells a process id of its own instead of the backend's
        if (pid != self.connection.info.backend_pid
                and (name or self._is_lent(pid))):
            raise _pooler_error()

    def _is_lent(self, pid):
        "Return whether a second transaction changes the backend, or shares it"
        try:
            other = self.database.get_connection()
        except backend.DatabaseOperationalError:
            # There is no second connection, so only the claims can find out
            return False
        try:
            for _ in range(POOLER_TRIES):
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

    def _set_mark(self, mark):
        self.execute(Select([SetConfig(MARK, mark, False)]))

    def _has_mark(self):
        "Return the condition that the backend has the sender's mark"
        return CurrentSetting(MARK, True) == self._mark

    def of_own_backend(self, where):
        "Return the condition ``where`` for the backend with the mark only"
        return where & self._has_mark() if self._mark else where

    def check_backend(self):
        """Check that the backend still has the sender's mark.

        :raises PoolerError: a pooler has lent the connection another backend.
        """
        if self._mark:
            (mine,), = self.execute(Select([self._has_mark()])).fetchall()
            if not mine:
                raise _pooler_error()


class TouchedSlot(Slot):
    """The only slot of a database without locks, SQLite.

    The slot is taken while a row in the state sending was touched within the
    last minute, because the sender of the row lives.
    """

    def _prepare(self):
        self.connection.execute(
            f'PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}')

    def close(self):
        self.number = None

    def take(self, numbers):
        "Take the slot, under a random number, if no other sender lives"
        if not self._others():
            self.number = random.getrandbits(31)
        return self.number is not None

    def _others(self):
        t = self._table
        return self.execute(t.select(
                t.id,
                where=(t.state == 'sending')
                & (t.write_date >= _ago(ORPHANED_SECONDS)),
                limit=1)).fetchone()

    def give_back(self):
        self.number = None

    @contextmanager
    def hurried(self):
        "Change nothing, because SQLite has no locks of rows"
        yield

    @contextmanager
    def atomic(self):
        "Let several statements commit together"
        if self.connection.in_transaction:
            # All transactions of a thread share the connection to a database
            # in memory
            yield
        else:
            self.connection.execute('BEGIN IMMEDIATE')
            with self.connection:
                yield

    def _beat(self):
        t = self._table
        self.execute(t.update(
                [t.write_date], [utc_now()], where=self.holds(t)))

    def dead(self, numbers):
        "Yield all numbers, because ``is_orphaned`` finds the rows"
        yield from numbers

    @staticmethod
    def is_orphaned(table):
        "Return the condition of the rows that nobody has touched for long"
        return (
            (table.write_date < _ago(ORPHANED_SECONDS))
            | (table.write_date == Null))

    def of_own_backend(self, where):
        return where

    def check_backend(self):
        pass


def _pooler_error():
    return PoolerError(
        gettext('email_queue.msg_no_session'),
        gettext('email_queue.msg_no_session_description'))


def _ago(seconds):
    return dt.datetime.now() - dt.timedelta(seconds=seconds)


def _configure(connection):
    "Set all :data:`SETTINGS` that this version of PostgreSQL knows"
    connection.cursor().execute(
        "SELECT set_config(name, value, false) "
        "FROM unnest(%s::text[], %s::text[]) AS s (name, value) "
        "WHERE current_setting(name, true) IS NOT NULL",
        [list(SETTINGS), list(SETTINGS.values())])


def _reset(connection):
    cursor = connection.cursor()
    cursor.execute(
        "SELECT name, pg_advisory_unlock_all() "
        "FROM unnest(%s::text[]) AS s (name) "
        "WHERE current_setting(name, true) IS NOT NULL", [list(SETTINGS)])
    # The names come from the query above, so they are safe in a statement
    cursor.execute('; '.join(f'RESET {name}' for name, _ in cursor.fetchall()))


def _keep_alive(connection):
    """Let this end of a connection notice that the other end is gone.

    It notices within a minute. The other end does the same by
    :data:`SETTINGS`.
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
