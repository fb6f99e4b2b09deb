# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Rows with NULL in a column that a sender needs.

Such a row was written by SQL or by another tool: the module writes no such
rows. PostgreSQL refuses them, but SQLite does not. No sender would claim the
row, or a sender would fail with an error. So the row gets the values that the
module would have written, or it fails with a reason of ``reasons.REASONS``.
"""
import logging

from sql import Column, Null
from sql.aggregate import Count
from sql.conditionals import Case, Coalesce
from sql.functions import Function
from sql.operators import Or

from trytond import backend
from trytond.transaction import Transaction

__all__ = [
    'Octets', 'REQUIRED', 'UNKNOWN', 'complete', 'completion', 'counts',
    'is_incomplete', 'is_unseen', 'log']
logger = logging.getLogger(__name__)

REQUIRED = [
    'attempts', 'crashes', 'from_addr', 'priority', 'scheduled_at', 'size',
    'state', 'to_addrs']
# The address that is stored in place of a missing one
UNKNOWN = '?'


class Octets(Function):
    __slots__ = ()
    # SQLite has OCTET_LENGTH only from version 3.43 on
    _function = (
        'OCTET_LENGTH' if backend.name == 'postgresql' else 'LENGTH')


def is_incomplete(table, names=REQUIRED):
    "Return the condition of the rows with NULL in one of the columns"
    return Or([Column(table, name) == Null for name in names])


def is_unseen(table):
    "Return the condition of waiting rows without priority or due time"
    return (table.state == 'outbox') & (
        (table.priority == Null) | (table.scheduled_at == Null))


def counts(table):
    """Return how many rows wait unseen, and how many have no state.

    One query counts both, with only the condition of the index, because with a
    further condition for the state SQLite would choose another index.
    """
    cursor = Transaction().connection.cursor()
    cursor.execute(*table.select(
            Count(Case((is_unseen(table), 1))),
            Count(Case((table.state == Null, 1))),
            where=is_incomplete(table)))
    return cursor.fetchone()


def completion(Model, table, now):
    """Return columns, values and condition of an update of incomplete rows.

    Rows that a sender holds are left out, because after an update the sender
    would take them for rows of another sender. A row without a due time is due
    from its creation on.

    :param now: the time by the clock of the database.
    """
    t = table
    waits = (t.state == Null) | (t.state == 'outbox')
    reasons = [
        (t.state == Null, 'no_state'),
        (waits & (t.from_addr == Null), 'no_sender'),
        (waits & (t.to_addrs == Null), 'no_recipient'),
        ]
    values = {
        'attempts': Coalesce(t.attempts, Model.default_attempts()),
        'crashes': Coalesce(t.crashes, Model.default_crashes()),
        'from_addr': Coalesce(t.from_addr, UNKNOWN),
        'priority': Coalesce(t.priority, Model.default_priority()),
        'scheduled_at': Coalesce(t.scheduled_at, t.create_date, now),
        'size': Coalesce(t.size, Octets(t.msg), 0),
        'state': Case(
            (Or([condition for condition, _ in reasons]), 'failed'),
            else_=t.state),
        'to_addrs': Coalesce(t.to_addrs, UNKNOWN),
        }
    where = is_incomplete(t) & (
        (t.state == Null) | (t.state != 'sending'))
    return (
        [Column(t, name) for name in [*REQUIRED, 'reason']],
        [*(values[name] for name in REQUIRED), Case(*reasons, else_=t.reason)],
        where)


def complete(Model, now):
    "Complete the rows in the current transaction"
    t = Model.__table__()
    cursor = Transaction().connection.cursor()
    columns, values, where = completion(Model, t, now)
    cursor.execute(*t.update(columns, values, where=where))
    log(cursor.rowcount)


def log(count):
    "Log how many rows were incomplete"
    if count > 0:
        logger.warning(
            "%d emails lacked something that a sender needs", count)
