# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Keeps the outcomes of emails that were handed over until they are recorded.

After a crash the emails without a record are sent again. So there are only a
few of them at any time, and nothing but a crash drops an outcome.
"""
import collections
import logging
import threading
import time

from .policy import RECORD_SECONDS

__all__ = ['Gate', 'NotRecorded', 'Recorder', 'insist']
logger = logging.getLogger(__name__)

# How many emails may wait for their record, because a crash sends them twice:
# a number for fast servers, and how long the oldest waits for slow servers
UNRECORDED_ROWS = 140
UNRECORDED_SECONDS = 0.15
# How many seconds a failing record is repeated, and the pause before each try
GIVE_UP_SECONDS = 300
RETRY_SECONDS = 0.5
# How many times a step at the end of a run is tried when it is interrupted
INTERRUPTS = 5


class NotRecorded(Exception):
    "The database did not record the outcomes of emails that were accepted"


class Gate:
    """Where outcomes arrive, and where sessions wait until they are recorded.

    A session enters the gate before it hands an email over. It has to wait
    while too many emails are under way or unrecorded, or while the oldest
    outcome has been waiting for longer than the last records took.

    :param sessions: how many sessions there are; each has one email at a time.
    """

    def __init__(self, sessions):
        self._limit = max(UNRECORDED_ROWS, 2 * sessions)
        lock = threading.RLock()
        self._some = threading.Condition(lock)
        self._many = threading.Condition(lock)
        self._room = threading.Condition(lock)
        self._outcomes = collections.deque()
        self._arrived_at = collections.deque()
        self._count = 0
        self._seconds = collections.deque([RECORD_SECONDS / 2], maxlen=16)
        self._is_closed = False

    # The following methods are called by the sessions

    def enter(self):
        "Wait for a place and return whether a row can be handed over"
        with self._room:
            while not (self._is_closed or self._is_open()):
                self._room.wait()
            if not self._is_closed:
                self._count += 1
            return not self._is_closed

    def _is_open(self):
        if self._count >= self._limit:
            return False
        return not self._arrived_at or (
            time.monotonic() - self._arrived_at[0] < self._patience)

    @property
    def _patience(self):
        # Enough for the longest record, a pause, the next record and a margin
        return min(
            RECORD_SECONDS + 3 * max(self._seconds), UNRECORDED_SECONDS)

    def leave(self):
        "Give up the place without an outcome"
        with self._room:
            self._count -= 1
            self._room.notify()

    def put(self, id_, outcome):
        "Put the outcome of a row, None where the row was not handed over"
        with self._some:
            self._outcomes.append((id_, outcome))
            if outcome:
                self._arrived_at.append(time.monotonic())
            self._some.notify()
            if self._has_many():
                self._many.notify()

    def _has_many(self):
        return self._is_closed or 2 * len(self._arrived_at) >= self._limit

    # The following methods are called by the sender

    def close(self):
        "Let no session enter any more"
        with self._room:
            self._is_closed = True
            self._room.notify_all()
            self._many.notify_all()

    def wait(self, seconds):
        "Wait for an outcome and return whether one has come"
        with self._some:
            return bool(self._some.wait_for(
                    lambda: self._outcomes, timeout=seconds))

    def gather(self, seconds):
        "Wait until there are many outcomes, for so many seconds at most"
        with self._many:
            self._many.wait_for(self._has_many, timeout=seconds)

    def outcomes(self):
        "Return the pairs of a row's id and its outcome that have arrived"
        with self._some:
            return list(self._outcomes)

    def settled(self, count):
        "Drop the first ``count`` pairs"
        with self._some:
            for _ in range(min(count, len(self._outcomes))):
                self._outcomes.popleft()

    def recorded(self, arrived, released, seconds=None):
        """Make room for further emails.

        :param arrived: how many outcomes no longer wait for a record.
        :param released: how many of these or of earlier outcomes are recorded.
        :param seconds: how long the record took, None without a record.
        """
        with self._room:
            for _ in range(min(arrived, len(self._arrived_at))):
                self._arrived_at.popleft()
            self._count -= released
            if seconds is not None:
                self._seconds.append(seconds)
            self._room.notify_all()


class Recorder:
    """Records rows, and repeats a record that fails.

    :param settings: ``uncertain`` is the state of emails that the server may
        have accepted and that cannot be recorded in the end.
    :param touch: a function that is called while the recorder waits.
    """

    def __init__(self, store, gate, settings, touch):
        self._store = store
        self._gate = gate
        self._uncertain = (
            'failed' if settings.uncertain == 'fail' else 'outbox')
        self._touch = touch
        self._rows = {}
        self._locked = {}
        self._locked_at = self._looked_at = None
        self._failed_at = None
        self._arrived = 0
        self._is_open = False
        self.recorded_at = 0

    def add(self, row):
        "Let a row be recorded; to add it twice changes nothing"
        self._rows[row.id] = row

    def arrived(self, count):
        "Count outcomes whose rows were added, or need no record yet"
        self._arrived += count

    @property
    def is_behind(self):
        "Whether the last record has failed"
        return self._failed_at is not None

    @property
    def waits(self):
        "Whether rows wait for a record because somebody else has locked them"
        return bool(self._locked)

    def record(self):
        """Record the rows that nobody else has locked.

        :return: whether no row is left.
        :raises NotRecorded: records have failed for :data:`GIVE_UP_SECONDS`.
        """
        try:
            self._look_at_locked()
            self._record(list(self._rows.values()))
            self._failed_at = None
        except self._store.Error as error:
            if self._store.slot.is_lost:
                raise
            self._failed(error)
        return not (self._rows or self._locked)

    def finish(self):
        """Record all rows that are left, on a new connection where necessary.

        :raises NotRecorded: records have failed for :data:`GIVE_UP_SECONDS`.
        """
        while not self._try():
            self._touch()
            time.sleep(RETRY_SECONDS)

    def _try(self):
        try:
            if self._rows and self._store.slot.is_lost:
                self.reconnect()
            return self.record()
        except self._store.Error as error:
            self._failed(error)
            return False

    def reconnect(self):
        "Take the slot again, so that the outcomes can be recorded"
        if not self._store.slot.reconnect() and self._rows:
            logger.error(
                "another sender has taken the slot: the emails %s may be sent "
                "again", _ids(self._rows))
            self._rows.clear()
            self._locked.clear()

    def _record(self, rows):
        started, locked = time.monotonic(), []
        if rows:
            locked = self._record_unlocked(rows)
        for row in rows:
            self._rows.pop(row.id, None)
        self._is_open = False
        for row in locked:
            self._lock(row)
        self._gate.recorded(
            self._arrived, self._arrived - len(locked),
            time.monotonic() - started if rows else None)
        self._arrived = 0
        self.recorded_at = time.monotonic()

    def _record_unlocked(self, rows):
        "Record rows, and return the rows that somebody else has locked"
        try:
            # ``_is_open`` is still set if the last record failed or was
            # interrupted, and may have been made in part
            self._store.repeats, self._is_open = self._is_open, True
            self._store.record(rows)
        except self._store.Error as error:
            if not self._store.slot.is_locked_out(error):
                raise
            # If the whole table is locked, the question raises the same error
            locked = self._store.locked(rows)
            held = {row.id for row in locked}
            self._store.repeats = True
            self._store.record([r for r in rows if r.id not in held])
            return locked
        return []

    def _lock(self, row):
        if not self._locked:
            self._locked_at = self._looked_at = time.monotonic()
            logger.warning(
                "somebody has locked the email %d, which was handed over: "
                "it is recorded later", row.id)
        self._locked[row.id] = row

    def _look_at_locked(self):
        "Add the rows again that nobody else has locked any more"
        now = time.monotonic()
        if not self._locked or now - self._looked_at < RETRY_SECONDS:
            return
        self._looked_at = now
        still = {
            row.id for row in self._store.locked(list(self._locked.values()))}
        for id_ in self._locked.keys() - still:
            self.add(self._locked.pop(id_))
            self._gate.recorded(0, 1)
        if now - self._locked_at > GIVE_UP_SECONDS:
            logger.error(
                "the emails %s are still locked: they will be sent again",
                _ids(self._locked))
            self._locked.clear()

    def _failed(self, error):
        now = time.monotonic()
        if not self._failed_at:
            self._failed_at = now
            logger.warning(
                "cannot record %d emails, nothing more is sent meanwhile: "
                "%s", len(self._rows), error)
        elif now - self._failed_at > GIVE_UP_SECONDS:
            self._give_up()
            raise NotRecorded(str(error)) from error

    def _give_up(self):
        rows = list(self._rows.values())
        self._rows.clear()
        self._locked.clear()
        try:
            self._store.put_back(rows, self._uncertain)
        except self._store.Error:
            logger.exception("the next run will recover the emails")
        logger.error(
            "gave up recording the emails %s",
            _ids(row.id for row in rows))


def _ids(ids):
    return ', '.join(map(str, sorted(ids)))


def insist(*steps):
    """Call each step, even after an error; then raise the first error.

    A step that is interrupted, for example by a signal, begins again.
    """
    raised = None
    for step in steps:
        for _ in range(INTERRUPTS):
            try:
                step()
                break
            except BaseException as error:
                raised = raised or error
                if (isinstance(error, Exception)
                        and not isinstance(error, MemoryError)):
                    break
    if raised:
        raise raised
