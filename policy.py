# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What becomes of a row, when it is due again, and how fast emails go.

This file has plain values and clocks, no database and no network.
"""
import datetime as dt
import random
import threading
import time

from .reasons import reason_of
from .recipients import (
    account, answer_lines, join_lines, split_addresses, split_lines,
    words_by_address)
from .replies import QUOTA

__all__ = [
    'ALIKE', 'ALIKE_AFTER_ACCEPTED', 'Deadline', 'Pace', 'Patience',
    'RECORD_SECONDS', 'Sessions', 'Suspects', 'Throttle', 'after',
    'first_answer', 'login_delay', 'next_attempt', 'suspected']

# How many rows a sender holds at most for each session
HELD_ROWS = 500
# How long outcomes are gathered for one record
RECORD_SECONDS = 0.02
# How many equal refusals, with no message accepted between them, show that the
# server is at fault. The second number is for a run in which the server has
# accepted a message: it is higher, because a few bad messages may follow each
# other by chance.
ALIKE, ALIKE_AFTER_ACCEPTED = 2, 10
# The first wait of a suspect, and the longest
SUSPECT_DELAYS = dt.timedelta(minutes=5), dt.timedelta(minutes=40)
# A suspect fails after this time if the server has neither accepted any
# message since then nor refused another message in the same way
ONLY_SUSPECT_LIMIT = dt.timedelta(hours=1)
LOGIN_DELAY_MAX = dt.timedelta(minutes=15)
# While the server wants messages more slowly: the longest pause of all
# sessions, and the longest interval between two messages, in seconds
PAUSE_MAX = 30
INTERVAL_MAX = 30
# Fewer messages do not show which rate the server takes
TAKEN_MIN = 10
# In how many seconds the rate doubles after the server has wanted messages
# more slowly
DOUBLING_SECONDS = 30
# After so many seconds a sender tries one session more than the server granted
SESSION_SECONDS = 300
TROUBLE_DELAY = dt.timedelta(minutes=1)
# After so many seconds without relief trouble ends the sender's work
TROUBLE_SECONDS = 60
UNCERTAIN_DELAY = dt.timedelta(minutes=15)
RETRY_DELAY_MAX = dt.timedelta(hours=4)


def after(row, outcome, now, settings, chance=random.random):
    """Return ``row`` as it has to be recorded after ``outcome``.

    Each function that ``after`` calls is a line of the table "What the module
    says" in doc/design.rst.

    :param outcome: the ``smtp.Outcome``, None where the row was not handed
        over. A refusal in the outcome counts as the message's own fault: see
        :func:`suspected` for refusals that may be the server's.
    :param now: a naive datetime in UTC.
    :param chance: a function that returns a number from 0 to 1.
    """
    if outcome is None:
        return _given_back(row, now)
    row = _decided(row, outcome, now)
    if not row.remaining:
        return _complete(row, outcome, now)
    if outcome.unanswered:
        return _unanswered(row, outcome.unanswered, now, settings)
    if outcome.deferred:
        return _deferred(row, outcome, now, settings, chance)
    return _troubled(row, outcome.trouble, now, settings)


def _decided(row, outcome, now):
    "Return the row in the outbox, with what the server has decided"
    values = {
        'state': 'outbox',
        'accepted': join_lines(row.accepted, outcome.accepted),
        'refused': join_lines(row.refused, answer_lines(outcome.refused)),
        'queue_id': _queue_id(row, outcome),
        }
    if outcome.decided:
        values.update(
            # *Send Now* has raised the priority for this attempt only
            priority=row.own_priority or row.priority,
            own_priority=None,
            attempts=row.attempts + 1,
            first_attempt=row.first_attempt or now,
            suspect=None, suspect_since=None)
    return row._replace(**values)


def _given_back(row, now):
    "Return the row as it was before the claim, or failed if it has expired"
    if row.expired(now):
        return _failed(
            row, 'expired',
            words_by_address(row.error, row.remaining) or row.error or {})
    return row._replace(state='outbox')


def _complete(row, outcome, now):
    "Return the row sent or failed: each recipient is accepted or refused"
    if row.refused:
        reason = 'refused'
        if row.bounced_at and not outcome.refused:
            # The notice came while the email had to go to other recipients
            reason = 'bounced'
        elif len(split_lines(row.refused)) == len(outcome.refused):
            # All refusals are of this attempt, so their reasons are known
            reason = reason_of(outcome.reasons, outcome.refused, reason)
        return _failed(row, reason)
    if not split_addresses(row.to_addrs):
        return _failed(row, 'no_recipient')
    return row._replace(
        state='sent', accepted=None, sent_at=now, reason=None, error=None)


def _unanswered(row, words, now, settings):
    "Return the row due once more, or failed: the server has not answered"
    next_ = now + UNCERTAIN_DELAY
    fails = (
        row.uncertain or settings.uncertain == 'fail'
        or not _allowed(row, next_, settings))
    row = row._replace(uncertain=True)
    if fails:
        return _failed(row, 'uncertain', words)
    return row._replace(scheduled_at=next_, reason='uncertain', error=words)


def _deferred(row, outcome, now, settings, chance):
    "Return the row due again, or failed if the limits allow no attempt"
    words = outcome.deferred
    next_ = next_attempt(row, now, settings, chance)
    if next_ is None:
        return _failed(
            row, reason_of(outcome.reasons, words, 'gave_up'), words)
    return row._replace(
        scheduled_at=next_,
        reason=reason_of(outcome.reasons, words, 'deferred'),
        error=account(row.to_addrs, words))


def _troubled(row, trouble, now, settings):
    "Return the row due again; no attempt is counted for trouble"
    row = row._replace(reason=trouble.reason, error=trouble.words)
    if trouble.kind == QUOTA:
        return _waits(row, 'gave_up', trouble.words, now, settings)
    if not trouble.lasting:
        row = row._replace(scheduled_at=now + TROUBLE_DELAY)
    return row


def _failed(row, reason, words=()):
    """Return the row as failed.

    :param words: the server's last words about the recipients that it has
        neither accepted nor refused: a dict by address, or one text for all.
    """
    refused = words_by_address(row.refused, split_addresses(row.to_addrs))
    if isinstance(words, str):
        if not (row.accepted or refused):
            return _ended(row, reason, words)
        words = dict.fromkeys(row.remaining, words)
    return _ended(
        row, reason, account(row.to_addrs, {**dict(words), **refused}))


def _ended(row, reason, error):
    return row._replace(
        state='failed', suspect=None, suspect_since=None,
        reason=reason, error=error)


def suspected(row, outcome, now, settings, is_only, chance=random.random):
    """Return ``row`` as it is recorded while the server may be at fault.

    The row stays in the outbox and no attempt is counted.

    :param outcome: the ``smtp.Outcome`` with a ``refusal``.
    :param is_only: whether no other message was refused in the same way. If
        so, a message that the server has deferred is deferred as always, and a
        message that the server has refused for good fails after an hour.
    """
    since = row.suspect_since or now
    if is_only and not (outcome.refused and now - since < ONLY_SUSPECT_LIMIT):
        row = after(row, outcome, now, settings, chance)
        if row.state == 'outbox':
            # Kept, so that a later refusal can be compared with it
            row = row._replace(suspect=outcome.refusal, suspect_since=since)
        return row
    words = {**outcome.deferred, **outcome.refused}
    row = row._replace(
        state='outbox', suspect=outcome.refusal,
        reason=reason_of(outcome.reasons, words, 'suspect'),
        error=account(row.to_addrs, words))
    return _waits(
        row, reason_of(outcome.reasons, words, 'gave_up'), words, now,
        settings)


def _waits(row, reason, words, now, settings):
    """Return the row due again, or failed if it has waited for too long.

    :param reason: the reason of the row if it fails.
    :param words: the server's words: a dict by address, or one text for all.
    """
    since = row.suspect_since or now
    row = row._replace(
        suspect_since=since, first_attempt=row.first_attempt or now)
    next_ = now + _suspect_delay(since, now)
    if _allowed_time(row, next_, settings):
        return row._replace(scheduled_at=next_)
    return _failed(row, reason, words)


def _suspect_delay(since, now):
    "Return the next wait of a suspect: 5, 10, 20, then always 40 minutes"
    delay, longest = SUSPECT_DELAYS
    at = since + delay
    while at <= now and delay < longest:
        delay *= 2
        at += delay
    return min(delay, longest)


def login_delay(refused):
    "Return how long the next login waits after ``refused`` logins in a row"
    return min(dt.timedelta(minutes=2 ** min(refused - 1, 9)), LOGIN_DELAY_MAX)


def _queue_id(row, outcome):
    "Return the row's queue ids, one a line, with those of the outcome"
    ids = filter(None, [row.queue_id, *outcome.queue_ids])
    return '\n'.join(dict.fromkeys(ids)) or None


def next_attempt(row, now, settings, chance=random.random):
    "Return when a row is due again after its attempts, None for never"
    doublings = min(row.attempts - 1, 30)
    seconds = min(
        settings.retry_delay * 2 ** doublings,
        RETRY_DELAY_MAX.total_seconds())
    next_ = now + dt.timedelta(seconds=seconds * (0.75 + chance() / 2))
    return next_ if _allowed(row, next_, settings) else None


def _allowed(row, next_, settings):
    "Return whether the limits allow another attempt at ``next_``"
    return _allowed_time(row, next_, settings) and not (
        settings.max_attempts and row.attempts >= settings.max_attempts)


def _allowed_time(row, next_, settings):
    give_up = dt.timedelta(days=settings.give_up)
    return not (
        next_ - row.first_attempt > give_up or row.expired(next_))


class Suspects:
    """Rows of a run whose refusal may be the server's fault.

    The next message shows whose fault they are: if the server accepts it, the
    refused messages themselves are at fault.
    """

    def __init__(self):
        self._held = {}

    def settle(self, row, outcome):
        """Return the pairs of row and outcome that can be recorded now.

        A refusal is held back. When a message is accepted, all refusals before
        are settled as faults of their messages.
        """
        if outcome and outcome.refusal:
            self._held.setdefault(outcome.refusal, []).append((row, outcome))
            return []
        if outcome and outcome.accepted:
            own = [pair for pairs in self._held.values() for pair in pairs]
            self._held.clear()
            return [*own, (row, outcome)]
        return [(row, outcome)]

    def count(self, refusal):
        "Return how many rows with this refusal are held back"
        return len(self._held.get(refusal, ()))

    def release(self):
        "Return the pairs that are held back, a list for each refusal"
        held, self._held = list(self._held.values()), {}
        return held


def first_answer(outcome):
    "Return the first recipient not accepted, and the server's words about it"
    return next(iter({**outcome.refused, **outcome.deferred}.items()))


class Sessions:
    """Which threads of a sender may have a session with the server.

    A server may grant fewer sessions than the settings say. If it refuses a
    further session while another one lives, this is no trouble: the thread of
    the refused session waits. Each thread has a client of its own.

    :param most: the number of sessions in the settings.
    :param granted: the number that the server granted in an earlier run, None
        where it granted all.
    :param seconds: how long to wait before one session more than granted is
        tried.
    :param first: whether one thread has to open its session before the others
        try, because a login was refused in the last run.
    """

    def __init__(self, most, granted=None, seconds=0, first=False):
        self._most = most
        self.granted = min(1 if first else granted or most, most)
        self._first = first
        self._again_at = time.monotonic() + seconds
        self._admitted, self._alive, self._trying = set(), set(), set()
        self._changed = threading.Condition()
        self._is_closed = False

    @property
    def seconds(self):
        "The seconds until one session more than granted is tried"
        return max(self._again_at - time.monotonic(), 0)

    @property
    def are_fewer(self):
        "Whether the server granted fewer sessions than the settings say"
        return self.granted < self._most and not self._first

    def enter(self, client):
        "Wait until the client may have a session and return whether it may"
        if client in self._admitted:
            return True
        with self._changed:
            while not self._is_closed and len(self._admitted) >= self.granted:
                if not self._first and not self.seconds:
                    self.granted += 1
                    break
                # The thread that opens the first session wakes the others
                self._changed.wait(None if self._first else self.seconds)
            if not self._is_closed:
                self._admitted.add(client)
            return not self._is_closed

    def tries(self, client):
        "Note that the client is about to open a session, if it has none"
        if client not in self._alive:
            with self._changed:
                self._trying.add(client)

    def tried(self, client, has_session):
        """Note that the server has not refused the client a session.

        :param has_session: whether the client has a session. It has none if it
            did not need one.
        """
        if client in self._alive:
            return
        with self._changed:
            self._trying.discard(client)
            if has_session:
                self._alive.add(client)
                if self._first:
                    self._first, self.granted = False, self._most
            self._changed.notify_all()

    def refuses(self, client):
        """Return whether the server, which refuses the client, grants others.

        If no session lives, wait for the sessions that are being opened,
        because the server may grant one of them.
        """
        with self._changed:
            self._alive.discard(client)
            self._trying.discard(client)
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._alive or not self._trying or self._is_closed)
            if not self._alive:
                return False
            self._admitted.discard(client)
            self.granted = len(self._admitted)
            self._again_at = time.monotonic() + SESSION_SECONDS
            return True

    def close(self):
        "Let no thread have a session any more"
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


class Patience:
    "How a sender waits for a server in trouble: 1, 2, 4 … seconds"

    def __init__(self):
        self.until = self._delay = 0
        self._since = None

    def troubled(self, now):
        "Note trouble, and double the wait; ``now`` is of ``time.monotonic``"
        if now < self.until:
            # A session was already sending when the pause began
            return
        self._since = self._since or now
        self._delay = self._delay * 2 or 1
        self.until = now + self._delay

    def relieved(self):
        "Note that the server has accepted a message"
        self.until = self._delay = 0
        self._since = None

    def exhausted(self, now):
        "Return whether the trouble has lasted too long"
        return (self._since is not None
            and max(now, self.until) - self._since > TROUBLE_SECONDS)


class Pace:
    "How many rows a sender holds: as many as it sends in about a second"

    def __init__(self, connections):
        self._connections = connections
        self._started = time.monotonic()
        self._finished = []

    def finished(self, count):
        "Note that ``count`` outcomes have arrived"
        self._finished.append((time.monotonic(), count))

    def rows(self):
        "Return how many rows the sender may hold now"
        now = time.monotonic()
        self._finished = [(t, n) for t, n in self._finished if t > now - 1]
        seconds = max(min(now - self._started, 1), RECORD_SECONDS)
        rate = sum(n for _, n in self._finished) / seconds
        return int(min(
                max(rate, self._connections), HELD_ROWS * self._connections))


class Deadline:
    "The time after which a sender claims no more rows"

    def __init__(self, seconds):
        self._at = time.monotonic() + seconds
        self.is_cut = False

    def cut(self):
        "Let the sender stop at once, after the emails that are being sent"
        self.is_cut = True

    @property
    def is_over(self):
        return self.is_cut or time.monotonic() >= self._at


class Throttle:
    """Gives each message a time, so that messages go at an even rate.

    The first message waits, too, so that several runs one after another keep
    the rate.

    :param per_minute: how many messages a minute the settings allow, 0 for no
        limit.
    :param found: how many messages a minute the server took in an earlier run
        before it refused more, None where it refused none.
    """

    def __init__(self, per_minute, found=None):
        self._shortest = 60 / per_minute if per_minute else 0
        self._seconds = max(self._shortest, 60 / found if found else 0)
        now = time.monotonic()
        self._next = now + self._seconds
        self.resumes_at = self._slowed_at = self._started_at = now
        self._pause = self._taken = 0
        self._lock = threading.Lock()

    def turn(self):
        "Return the time of the next message (``time.monotonic``)"
        with self._lock:
            now = time.monotonic()
            if self.is_slowed:
                self._recover(now)
            turn = max(self._next, now)
            self._next = turn + self._seconds
            return turn

    def _recover(self, now):
        "Raise the rate again, doubled every 30 seconds"
        if now > self._slowed_at:
            factor = 0.5 ** ((now - self._slowed_at) / DOUBLING_SECONDS)
            self._seconds = max(self._seconds * factor, self._shortest)
            self._slowed_at = now

    def slow_down(self):
        """Pause, and go on with half of the rate that was too high.

        If the server has taken only a few messages, there is only the pause,
        because the rate is not known.
        """
        with self._lock:
            now = time.monotonic()
            if now < self.resumes_at:
                # A session was already sending when the pause began
                return
            if self._taken >= TAKEN_MIN:
                seconds = max(now - self._started_at, 1) / self._taken
                self._seconds = min(
                    max(2 * seconds, 1.5 * self._seconds), INTERVAL_MAX)
            self._pause = min(2 * self._pause or 1, PAUSE_MAX)
            self.resumes_at = self._slowed_at = now + self._pause
            self._next = max(self._next, self.resumes_at)

    def accepted(self):
        "Note that the server has taken a message"
        self._taken += 1
        self._pause = 0

    @property
    def is_slowed(self):
        "Whether the server wants messages more slowly than the settings say"
        return self._seconds > self._shortest

    @property
    def found(self):
        "How many messages a minute the server takes, None for no limit"
        with self._lock:
            self._recover(time.monotonic())
            slower = self._seconds > max(self._shortest, 1e-3)
            return 60 / self._seconds if slower else None
