# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The queue's rows as a sender sees them: claims and records.

This file knows no SMTP, and not what an outcome means.
"""
import collections
import datetime as dt
import logging
import operator
import time
from functools import partial
from typing import NamedTuple

from sql import Cast, Column, From, Null, Select, Window, With
from sql.aggregate import Max, Min, Sum
from sql.conditionals import Case
from sql.functions import Function

from trytond import backend
from trytond.model import fields
from trytond.transaction import Transaction

from . import files, incomplete
from .history import Event
from .recipients import remaining
from .slot import slot_for
from .tools import Tuple, database_time, forget, locking, moment, utc_now

__all__ = ['CRASHES_ALONE', 'Row', 'Store', 'queues', 'waiting_servers']
logger = logging.getLogger(__name__)

# After so many seconds claims begin at the first row again
RESTART_SECONDS = 2
# Crashes after which a row is claimed alone, and after which it fails
CRASHES_ALONE, CRASHES_FAILED = 3, 10
# How long a row waits after its second crash, doubled with each further crash
CRASH_DELAY = dt.timedelta(minutes=1)
# How long an email waits that may have been sent and could not be recorded
UNRECORDED_DELAY = dt.timedelta(minutes=15)

# The columns that an outcome changes; many sent rows have equal values in them
OUTCOME_COLUMNS = (
    'state', 'accepted', 'refused', 'attempts', 'first_attempt',
    'uncertain', 'sent_at', 'reason', 'error', 'suspect', 'suspect_since',
    'priority', 'own_priority')
# All columns that a record writes. For sent rows that are recorded together,
# scheduled_at is left out, and each queue_id is written to its row
RECORDED_COLUMNS = OUTCOME_COLUMNS + ('scheduled_at', 'queue_id')


class Row(NamedTuple):
    """The columns of an email that a sender reads.

    The record of a row writes :data:`RECORDED_COLUMNS`.
    """
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
    bounced_at: dt.datetime = None
    # These are no columns: the events for the history, and pairs of a
    # recipient that is not tried and the words about this recipient
    events: tuple = ()
    dead: tuple = ()

    @property
    def statement_key(self):
        """What is recorded of a sent row, None for a row in another state.

        Rows with equal values share one statement.
        """
        if self.state == 'sent':
            return _outcome_values(self), self.loses_message

    @property
    def loses_message(self):
        "Whether the record removes the message, a secret that has been sent"
        return self.state == 'sent' and bool(self.sensitive)

    @property
    def place(self):
        "The place in the order of sending"
        return self.priority, self.scheduled_at, self.id

    @property
    def remaining(self):
        "The recipients that are neither accepted nor refused"
        return remaining(self.to_addrs, self.accepted, self.refused)

    def expired(self, now):
        "Return whether the email must not be sent any more"
        return bool(self.expires_at) and self.expires_at <= now


_columns = [name for name in Row._fields if name not in {'events', 'dead'}]
_outcome_values = operator.attrgetter(*OUTCOME_COLUMNS)


class Unnest(Function):
    __slots__ = ()
    _function = 'unnest'


def priorities(Model):
    "Return the stored values of the priorities, the most urgent first"
    return sorted(value for value, _ in Model.priority.selection)


def waiting_servers(Model):
    "Return the names of the servers that rows in the outbox wait for"
    t = Model.__table__()
    cursor = Transaction().connection.cursor()
    names, name = [], ''
    # One step in the index for each name, because DISTINCT would read all rows
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

    :param server: the name of the server whose rows are claimed, None for the
        default server.
    """

    def __init__(self, Model, server=None):
        self.Model = Model
        self.Event = Model.events.get_target()
        self.server = server
        self.slot = slot_for(Model)
        self.priorities = priorities(Model)
        self._clock = database_time(), time.monotonic()
        self._places = {}
        self._restarted_at = time.monotonic()
        # Whether the next record may have been made in part before
        self.repeats = False

    @property
    def Error(self):
        "The base class of the errors of the database"
        return self.slot.Error

    def execute(self, query):
        "Execute a query of python-sql, which commits, and return the cursor"
        return self.slot.execute(query)

    def now(self):
        "Return the time by the clock of the database, as naive UTC"
        now, at = self._clock
        return now + dt.timedelta(seconds=time.monotonic() - at)

    # Rows of other senders

    def recover(self):
        "Put back the rows of senders that have died"
        t = self.Model.__table__()
        numbers = self.execute(t.select(
                t.slot, where=t.state == 'sending',
                group_by=t.slot)).fetchall()
        for number in self.slot.dead(number for number, in numbers):
            self._recover(number)
        self.complete()

    def _recover(self, number):
        t = self.Model.__table__()
        crashes = t.crashes + 1
        delays = (
            (t.crashes == n, utc_now() + CRASH_DELAY * 2 ** (n - 1))
            for n in range(1, CRASHES_FAILED))
        failed = crashes >= CRASHES_FAILED
        where = (
            (t.state == 'sending') & (t.slot == number)
            & self.slot.is_orphaned(t))
        with self.slot.atomic():
            ids = self._ids(locking(t.select(t.id, where=where)))
            if not ids:
                return
            self._add_events((id_, Event('put_back')) for id_ in ids)
            is_one = fields.SQL_OPERATORS['in'](t.id, ids)
            ended = self._ids(t.select(t.id, where=is_one & failed))
            self._add_events(
                (id_, Event('gave_up', reason='died')) for id_ in ended)
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

    def complete(self):
        "Complete rows that another tool has written"
        t = self.Model.__table__()
        cursor = self.execute(self._update_unlocked(
                t, *incomplete.completion(self.Model, t, utc_now())))
        incomplete.log(cursor.rowcount)

    def explain(self, server, reason):
        "Write why rows wait for a server: the reason, and its name as error"
        t = self.Model.__table__()
        self.execute(self._update_unlocked(
                t, [t.reason, t.error, t.write_date],
                [reason, server, utc_now()],
                (t.state == 'outbox') & (t.server == server)
                & ((t.reason == Null) | (t.reason != reason))))
        forget(Transaction())

    def _update_unlocked(self, table, columns, values, where):
        "Return the update of the rows that nobody has locked"
        unlocked = With(query=locking(table.select(table.id, where=where)))
        return table.update(
            columns, values, with_=[unlocked],
            where=table.id.in_(unlocked.select(unlocked.id)))

    def _ids(self, query):
        return [id_ for id_, in self.execute(query).fetchall()]

    # Claiming

    def has_due(self):
        "Return whether a row of the server is due, except those sent alone"
        return any(map(self._has_due, self.priorities))

    def _has_due(self, priority):
        t = self.Model.__table__()
        return self.execute(t.select(
                t.id,
                where=self._due(t) & (t.priority == priority)
                & (t.crashes < CRASHES_ALONE),
                # The order of the index, because without it PostgreSQL may
                # read the whole table
                order_by=[t.server, t.priority, t.scheduled_at, t.id],
                limit=1)).fetchone()

    def claim(self, limit, size):
        """Claim the next due rows and return them in the order of sending.

        :param limit: how many rows at most.
        :param size: the bytes of messages after which no further row is
            claimed.
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

    def _checked(self, rows):
        "Return the claimed rows; if there are none, check the backend"
        if not rows:
            self.slot.check_backend()
        return rows

    def claim_alone(self):
        "Claim the next row whose senders keep dying"
        t = self.Model.__table__()
        return self._checked(self._claim(
                t, self._due(t) & (t.crashes >= CRASHES_ALONE), limit=1))

    def claim_record(self, id_):
        "Claim the row with this id, due or not"
        t = self.Model.__table__()
        return self._checked(self._claim(
                t, (t.state == 'outbox') & (t.id == id_), limit=1))

    def _restart(self):
        # Claims do not always begin at the first row, because the scheduler's
        # transaction keeps the index entries of claimed rows alive, and a
        # claim from the beginning walks over all these entries
        self._places.clear()
        self._restarted_at = time.monotonic()

    def _due(self, t):
        return (
            (t.state == 'outbox')
            & (t.server == self.server)
            & (t.scheduled_at <= utc_now()))

    def _claim(self, table, where, limit, size=1):
        """Claim rows and return them in the order of sending.

        :param limit: how many rows at most.
        :param size: the bytes of messages after which no further row is
            claimed.
        """
        rows = self._take(*self._fitting(table, where, limit, size))
        return sorted(
            (self._load(Row(*values)) for values in rows),
            key=lambda row: row.place)

    def _fitting(self, table, where, limit, size):
        """Return the query of the ids of the next rows.

        Its common table expressions are returned, too. They belong at the
        beginning of the statement, because PostgreSQL may run an expression in
        a condition more than once.
        """
        candidates = With(query=locking(table.select(
                    table.id, table.size, table.priority, table.scheduled_at,
                    where=self.slot.of_own_backend(where),
                    # PostgreSQL does not see that the server is always the
                    # same, and would sort the rows by an order without it
                    order_by=[
                        table.server, table.priority, table.scheduled_at,
                        table.id],
                    limit=limit)))
        before = Sum(
            candidates.size,
            window=Window([], order_by=[
                    candidates.priority, candidates.scheduled_at,
                    candidates.id])) - candidates.size
        summed = With(query=candidates.select(
                candidates.id, before.as_('before')))
        fitting = summed.select(summed.id, where=summed.before < size)
        return fitting, [candidates, summed]

    def _take(self, fitting, with_):
        "Give rows to this sender, and return their values"
        table = self.Model.__table__()
        columns = [table.state, table.slot, table.write_date]
        values = ['sending', self.slot.number, utc_now()]
        row = [Column(table, name) for name in _columns]
        if self.slot.database.has_returning():
            return self.slot.fetch(table.update(
                    columns, values, where=table.id.in_(fitting),
                    with_=with_, returning=row))
        fitting.with_ = with_
        ids = self._ids(fitting)
        if not ids:
            return []
        self.execute(table.update(
                columns, values,
                where=table.id.in_(ids) & (table.state == 'outbox')))
        return self.execute(table.select(
                *row, where=table.id.in_(ids) & self.slot.holds(table))
            ).fetchall()

    def _load(self, row):
        if row.file_id:
            msg = self.Model.msg.load(row.file_id, row.size)
            row = row._replace(msg=msg)
        if None in {row.attempts, row.crashes}:
            # Another tool may have written NULL since the run began
            row = row._replace(
                attempts=row.attempts or 0, crashes=row.crashes or 0)
        return row

    # Suspects

    def accepted_since(self, since):
        "Return whether an email was accepted after ``since``, by any sender"
        t = self.Model.__table__()
        return bool(self.execute(t.select(
                    t.id,
                    where=(t.state == 'sent') & (t.sent_at > since)
                    & (t.server == self.server),
                    limit=1)).fetchone())

    def equal_suspect_since(self, row, refusal):
        "Return since when another email with an equal refusal is a suspect"
        t = self.Model.__table__()
        since, = self.execute(t.select(
                Max(t.suspect_since),
                where=(t.suspect == refusal) & (t.state == 'outbox')
                & (t.server == self.server) & (t.id != row.id))).fetchone()
        if isinstance(since, str):
            # SQLite converts columns to a datetime, but not expressions
            since = dt.datetime.fromisoformat(since)
        return since

    # Recording

    def _update(self, names, values, ids):
        t = self.Model.__table__()
        return t.update(
            [Column(t, name) for name in names] + [t.slot, t.write_date],
            [*values, None, utc_now()],
            where=self._holding(t, ids))

    def _holding(self, t, ids):
        "Return the condition of the rows among ``ids`` that the sender holds"
        return fields.SQL_OPERATORS['in'](t.id, ids) & self.slot.holds(t)

    def _add_events(self, pairs):
        "Write pairs of the id of a row and an event into the history"
        t = self.Event.__table__()
        now = moment()
        values = [
            [id_, now, e.kind, e.recipients, e.words, e.reason]
            for id_, e in pairs]
        if values:
            self.execute(t.insert(
                    [t.email, t.at, t.kind, t.recipients, t.words, t.reason],
                    values))

    def _held(self, ids, locked=lambda query: query):
        """Return which of the rows the sender still holds.

        :param locked: a function of the query that lets it lock the rows.
        """
        t = self.Model.__table__()
        return self._ids(locked(t.select(t.id, where=self._holding(t, ids))))

    def _record_with_events(self, rows):
        "Record rows and their events in one transaction"
        with self.slot.atomic():
            held = set(self._held(
                    [r.id for r in rows], partial(locking, skip=False)))
            rows = [r for r in rows if r.id in held]
            self._add_events((r.id, event) for r in rows for event in r.events)
            count = self._record_each(
                [r for r in rows if not r.loses_message])
            for row in rows:
                if row.loses_message:
                    count += self._record_group([row])
            return count

    def _record_group(self, rows):
        "Record rows with one key by one statement, and return their number"
        names, values = OUTCOME_COLUMNS, _outcome_values(rows[0])
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
        if backend.name == 'postgresql':
            # Not by CASE, because PostgreSQL tries the cases one by one for
            # every row
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
            tuple(getattr(r, n) for n in RECORDED_COLUMNS) for r in rows]
        # Psycopg pipelines the statements, in one transaction
        return self.slot.execute_many(
            str(self._update(RECORDED_COLUMNS, values[0], [0])), [
                self._update(RECORDED_COLUMNS, v, [r.id]).params
                for r, v in zip(rows, values)]).rowcount

    def locked(self, rows):
        "Return the rows that this sender holds and somebody else has locked"
        ids = [r.id for r in rows]
        locked = set(self._held(ids)).difference(self._held(ids, locking))
        return [r for r in rows if r.id in locked]

    def put_back(self, rows, state):
        """Let go of rows whose outcome cannot be recorded.

        :param state: the state of the rows that the server may have accepted.
            The other rows go back to the outbox as they were.
        """
        t = self.Model.__table__()
        groups = collections.defaultdict(list)
        for row in rows:
            taken = bool(
                row.state == 'sent' or row.accepted or row.uncertain)
            groups[taken, row.crashes].append(row.id)
        events = {
            True: Event('uncertain', reason='not_recorded'),
            False: Event('put_back')}
        for (taken, crashes), ids in groups.items():
            columns, values = [t.state, t.slot, t.write_date], [
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
                self._add_events((id_, events[taken]) for id_ in held)
            except self.Error:
                # Not raised, because putting the rows back matters more than
                # their history
                logger.warning(
                    "the history lacks the emails that were put back",
                    exc_info=True)
        forget(Transaction())

    def record(self, rows):
        "Write the outcome of rows that this sender holds"
        if not rows:
            return
        with_events = [r for r in rows if r.events]
        groups, each = _grouped(r for r in rows if not r.events)
        file_ids = [r.id for r in rows if r.loses_message and r.file_id]
        if file_ids:
            # Before the record, because after a crash the files that a row
            # still refers to are kept
            self.Model.msg.queue_for_removal(self.Model, 'msg', file_ids)
        count = self._record_each(each)
        for group in groups:
            count += self._record_group(group)
        if with_events:
            count += self._record_with_events(with_events)
        if count != len(rows):
            logger.log(
                logging.INFO if self.repeats else logging.WARNING,
                "%d of the emails %s are no longer held by sender %s",
                len(rows) - count,
                ', '.join(str(r.id) for r in rows), self.slot.number)
        forget(Transaction())
        if file_ids:
            self._purge()
        try:
            self.Model.finished(self.Model.browse([r.id for r in rows]))
        except Exception:
            # Not raised, because the rows are recorded by now
            logger.exception("error in the hook for finished emails")

    def _purge(self):
        try:
            files.purge(self.Model)
        except Exception:
            logger.exception("files are left to the daily job")


def _grouped(rows):
    "Return lists of rows that one statement records, and the other rows"
    by_key = collections.defaultdict(list)
    for row in rows:
        by_key[row.statement_key or row.id].append(row)
    groups, each = [], []
    for group in by_key.values():
        if len(group) > 1 or group[0].loses_message:
            groups.append(group)
        else:
            each += group
    return groups, each
