# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What several files need of SQL, clocks, threads and transactions.

This file knows nothing of emails and imports no other file of the module.
"""
import datetime as dt
import threading
from contextlib import contextmanager, nullcontext

from sql import For, Select
from sql.functions import AtTimeZone, CurrentTimestamp, DateTrunc, Function

from trytond import backend
from trytond.transaction import Transaction, without_check_access

__all__ = [
    'Thread', 'Tuple', 'database_time', 'forget', 'locking', 'moment',
    'own_transaction', 'utc_now']


class Thread(threading.Thread):
    """A thread whose end can be waited for in spite of signals.

    An interrupted ``join`` lets Python 3.11 take a living thread for ended, so
    that neither the caller nor the interpreter waits for it any more.
    """

    def __init__(self, **keywords):
        super().__init__(**keywords)
        self._ended = threading.Event()

    def run(self):
        try:
            super().run()
        finally:
            self._ended.set()

    def wait(self, seconds):
        """Wait for so many seconds, and return whether the thread has ended.

        A thread that was never started counts as ended.
        """
        if self.ident is None:
            return True
        if not self._ended.wait(seconds):
            return False
        # An interrupt does no harm any more, because the work is done
        self.join()
        return True


class Tuple(Function):
    "Several expressions that are compared as a row: (a, b) > (1, 2)"
    __slots__ = ()
    _function = ''


def utc_now():
    """Return the time of the database's clock, as naive UTC, for a query.

    It is not ``CurrentTimestamp``, because this function returns the time in
    the time zone of PostgreSQL, and the same time during a whole transaction
    on SQLite.
    """
    if backend.name == 'postgresql':
        return AtTimeZone(CurrentTimestamp(), 'UTC')
    return dt.datetime.now()


def moment():
    """Return the same as :func:`utc_now`, in whole seconds.

    The parts of a second are cut off, because clients do not show them, and
    PostgreSQL would round up.
    """
    if backend.name == 'postgresql':
        return DateTrunc('second', utc_now())
    return utc_now().replace(microsecond=0)


def database_time():
    """Return the time of the database's clock as a naive ``datetime`` in UTC.

    On PostgreSQL the current transaction asks for it.
    """
    if backend.name != 'postgresql':
        return dt.datetime.now()
    cursor = Transaction().connection.cursor()
    cursor.execute(*Select([utc_now()]))
    return cursor.fetchone()[0]


def locking(query, skip=True):
    """Let a query lock the rows that it selects, and return it.

    The query is unchanged on SQLite, where only one transaction writes at a
    time.

    :param skip: whether rows that another transaction has locked are left out.
        Otherwise the query waits for the locks.
    """
    database = Transaction().database
    if database.has_select_for():
        Locks = database.get_select_for_skip_locked() if skip else For
        query.for_ = Locks('UPDATE')
    return query


def forget(transaction):
    "Drop what the ORM has read, because SQL has changed the rows"
    for cache in transaction.cache.values():
        cache.clear()


@contextmanager
def own_transaction(keep_context=False, **options):
    """Run in a new transaction of user 0, without checks of access.

    :param keep_context: whether the context of the caller's transaction is
        kept. Otherwise the context is empty, as in a scheduled job.
    :param options: keywords of ``Transaction.new_transaction``.
    """
    with Transaction().new_transaction(**options) as transaction:
        context = (
            nullcontext() if keep_context else transaction.reset_context())
        # ``without_check_access`` comes last, because it changes the context
        with transaction.set_user(0), context, without_check_access():
            yield transaction
