# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""When to try again and how fast: outcomes, pace.

Everything here is plain values and clocks: no database and no network.
"""
import datetime as dt
import random
import threading
import time

from .reasons import reason_of
from .recipients import (
    account, answer_lines, join_lines, split_addresses, split_lines, told)
from .replies import QUOTA

__all__ = [
    'ALIKE', 'ALIKE_AFTER_ACCEPTED', 'Deadline', 'Pace', 'Patience',
    'RECORD_SECONDS', 'Sessions', 'Suspects', 'Throttle', 'after',
    'first_answer', 'login_delay', 'next_attempt', 'suspected']

HELD_ROWS = 500
RECORD_SECONDS = 0.02
# How many messages refused alike, with nothing accepted between, show that it
# is the server; how many it takes in a run that was accepted something before,
# where a few bad ones may follow each other by chance
ALIKE, ALIKE_AFTER_ACCEPTED = 2, 10
SUSPECT_DELAYS = dt.timedelta(minutes=5), dt.timedelta(minutes=40)
# A suspect that nothing was accepted after, and nothing refused alike
ALONE = dt.timedelta(hours=1)
LOGIN_DELAY_MAX = dt.timedelta(minutes=15)
# A server that is asked to take it more slowly
PAUSE_MAX = 30
INTERVAL_MAX = 30
# Fewer messages say nothing of the rate that a server takes
TAKEN_MIN = 10
DOUBLING_SECONDS = 30
# The next session more than the server granted
SESSION_SECONDS = 300
TROUBLE_DELAY = dt.timedelta(minutes=1)
TROUBLE_SECONDS = 60
UNCERTAIN_DELAY = dt.timedelta(minutes=15)
RETRY_DELAY_MAX = dt.timedelta(hours=4)


def after(row, outcome, now, settings, chance=random.random):
    """Return ``row`` as it has to be recorded after ``outcome``.

    Each function that it calls is a part of the table in doc/design.rst.

    :param outcome: the ``smtp.Outcome``, None where the row was not handed
        over. A refusal in it is the message's own: see :func:`suspected`.
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
    row = row._replace(
        state='outbox',
        accepted=join_lines(row.accepted, outcome.accepted),
        refused=join_lines(row.refused, answer_lines(outcome.refused)),
        queue_id=_queue_id(row, outcome))
    if not outcome.decided:
        return row
    return row._replace(
        # Send Now has raised it for this attempt
        priority=row.own_priority or row.priority,
        own_priority=None,
        attempts=row.attempts + 1,
        first_attempt=row.first_attempt or now,
        suspect=None, suspect_since=None)


def _given_back(row, now):
    "Not handed over: as it was, unless its time is over"
    if row.expired(now):
        return _failed(
            row, 'expired', told(row.error, row.remaining) or row.error or {})
    return row._replace(state='outbox')


def _complete(row, outcome, now):
    "Accepted or refused for each recipient"
    if row.refused:
        reason = 'refused'
        if row.bounced_at and not outcome.refused:
            # While the email still had to go to other recipients
            reason = 'bounced'
        elif len(split_lines(row.refused)) == len(outcome.refused):
            # None of them was refused in an earlier attempt
            reason = reason_of(outcome.reasons, outcome.refused, reason)
        return _failed(row, reason)
    if not split_addresses(row.to_addrs):
        return _failed(row, 'no_recipient')
    return row._replace(
        state='sent', accepted=None, sent_at=now, reason=None, error=None)


def _unanswered(row, words, now, settings):
    "Transmitted, but not answered: tried again once, where that is allowed"
    next_ = now + UNCERTAIN_DELAY
    fails = (
        row.uncertain or settings.uncertain == 'fail'
        or not _allowed(row, next_, settings))
    row = row._replace(uncertain=True)
    if fails:
        return _failed(row, 'uncertain', words)
    return row._replace(scheduled_at=next_, reason='uncertain', error=words)


def _deferred(row, outcome, now, settings, chance):
    "Refused for now: tried again as long as the limits allow"
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
    "Trouble with the server: no attempt of the message"
    row = row._replace(reason=trouble.reason, error=trouble.words)
    if trouble.kind == QUOTA:
        return _waits(row, 'gave_up', trouble.words, now, settings)
    if not trouble.lasting:
        row = row._replace(scheduled_at=now + TROUBLE_DELAY)
    return row


def _failed(row, reason, words=()):
    """Return the row as failed.

    :param words: what the server said last of the recipients that it has not
        refused, by address, or as one text for all of them.
    """
    refused = told(row.refused, split_addresses(row.to_addrs))
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


def suspected(row, outcome, now, settings, alone, chance=random.random):
    """Return ``row`` as it is recorded while its refusal may be the server's.

    It stays in the outbox and no attempt is counted.

    :param outcome: the ``smtp.Outcome`` with a ``refusal``.
    :param alone: whether no other message was refused alike. A message that is
        alone is deferred as any other where the server said so, and fails in
        the end where it was refused for good.
    """
    since = row.suspect_since or now
    if alone and not (outcome.refused and now - since < ALONE):
        row = after(row, outcome, now, settings, chance)
        if row.state == 'outbox':
            # So that it is recognised when another is refused alike
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
    """Return the row due again as long as the server refuses everything.

    :param reason: of the row when it has waited for too long.
    :param words: what the server said, by address or to all.
    """
    since = row.suspect_since or now
    row = row._replace(
        suspect_since=since, first_attempt=row.first_attempt or now)
    next_ = now + _suspect_delay(since, now)
    if _allowed_time(row, next_, settings):
        return row._replace(scheduled_at=next_)
    return _failed(row, reason, words)


def _suspect_delay(since, now):
    "Return 5, 10, 20 and 40 minutes, one after another"
    delay, longest = SUSPECT_DELAYS
    at = since + delay
    while at <= now and delay < longest:
        delay *= 2
        at += delay
    return min(delay, longest)


def login_delay(refused):
    "Return how long no login is tried after so many were refused"
    return min(dt.timedelta(minutes=2 ** min(refused - 1, 9)), LOGIN_DELAY_MAX)


def _queue_id(row, outcome):
    "Return the names that the server has for what it took of the row"
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
    "Return whether the limits allow another attempt at that time"
    return _allowed_time(row, next_, settings) and not (
        settings.max_attempts and row.attempts >= settings.max_attempts)


def _allowed_time(row, next_, settings):
    give_up = dt.timedelta(days=settings.give_up)
    return not (
        next_ - row.first_attempt > give_up or row.expired(next_))


class Suspects:
    """Rows of a run whose refusal may be the server's fault.

    Who knows better: the message that comes next.
    """

    def __init__(self):
        self._held = {}

    def settle(self, row, outcome):
        "Return the pairs of row and outcome that are the messages' own"
        if outcome and outcome.refusal:
            self._held.setdefault(outcome.refusal, []).append((row, outcome))
            return []
        if outcome and outcome.accepted:
            own = [pair for pairs in self._held.values() for pair in pairs]
            self._held.clear()
            return [*own, (row, outcome)]
        return [(row, outcome)]

    def alike(self, refusal):
        "Return how many of them were refused so"
        return len(self._held.get(refusal, ()))

    def release(self):
        "Return a list of pairs for each refusal, and forget them"
        held, self._held = list(self._held.values()), {}
        return held


def first_answer(outcome):
    "Return the first recipient that was not taken, and the server's words"
    return next(iter({**outcome.refused, **outcome.deferred}.items()))


class Sessions:
    """Which threads of a run may have a session with the server.

    A server may grant fewer than the settings say. A refused one more is no
    trouble while another lives: its thread waits. Each thread has a client.

    :param most: of the settings.
    :param granted: as far as known from before, None for all.
    :param seconds: after which one more than granted is tried.
    :param first: whether one has to open its session before others try.
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
        "After how many seconds one more than granted is tried"
        return max(self._again_at - time.monotonic(), 0)

    @property
    def are_fewer(self):
        "Whether the server granted fewer than the settings say"
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
                # Who waits for the first session is told of it
                self._changed.wait(None if self._first else self.seconds)
            if not self._is_closed:
                self._admitted.add(client)
            return not self._is_closed

    def tries(self, client):
        if client not in self._alive:
            with self._changed:
                self._trying.add(client)

    def tried(self, client, has_session):
        "No session was refused to the client, which may not have asked"
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
        """Return whether the server only refuses one session more.

        Waits for the other sessions that are being opened, because these may
        be those that it grants.
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
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


class Patience:
    "How a sender waits for a server in trouble: 1, 2, 4 … seconds"

    def __init__(self):
        self.until = self._delay = 0
        self._since = None

    def troubled(self, now):
        if now < self.until:
            # Of a session that was at it when the pause began
            return
        self._since = self._since or now
        self._delay = self._delay * 2 or 1
        self.until = now + self._delay

    def relieved(self):
        self.until = self._delay = 0
        self._since = None

    def exhausted(self, now):
        return (self._since is not None
            and max(now, self.until) - self._since > TROUBLE_SECONDS)


class Pace:
    "How many rows to hold: what is sent in about a second"

    def __init__(self, connections):
        self._connections = connections
        self._started = time.monotonic()
        self._finished = []

    def finished(self, count):
        self._finished.append((time.monotonic(), count))

    def rows(self):
        now = time.monotonic()
        self._finished = [(t, n) for t, n in self._finished if t > now - 1]
        seconds = max(min(now - self._started, 1), RECORD_SECONDS)
        rate = sum(n for _, n in self._finished) / seconds
        return int(min(
                max(rate, self._connections), HELD_ROWS * self._connections))


class Deadline:
    "The end of a run: after it no more is claimed"

    def __init__(self, seconds):
        self._at = time.monotonic() + seconds
        self.is_cut = False

    def cut(self):
        "Let the run end at once, with what it is at"
        self.is_cut = True

    @property
    def is_over(self):
        return self.is_cut or time.monotonic() >= self._at


class Throttle:
    """Whose turn is when, for an even rate.

    The first waits, too, so that runs one after another keep the rate.

    :param per_minute: of the settings, 0 for no limit.
    :param found: the messages a minute that the server took before it refused
        more, None where it has not.
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
        with self._lock:
            now = time.monotonic()
            if self.is_slowed:
                self._recover(now)
            turn = max(self._next, now)
            self._next = turn + self._seconds
            return turn

    def _recover(self, now):
        "Become faster again, slowly"
        if now > self._slowed_at:
            factor = 0.5 ** ((now - self._slowed_at) / DOUBLING_SECONDS)
            self._seconds = max(self._seconds * factor, self._shortest)
            self._slowed_at = now

    def slow_down(self):
        """Pause, and go on with half the rate that was too much.

        Where hardly anything was taken there is no rate to halve.
        """
        with self._lock:
            now = time.monotonic()
            if now < self.resumes_at:
                # Of a session that was at it when the pause began
                return
            if self._taken >= TAKEN_MIN:
                seconds = max(now - self._started_at, 1) / self._taken
                self._seconds = min(
                    max(2 * seconds, 1.5 * self._seconds), INTERVAL_MAX)
            self._pause = min(2 * self._pause or 1, PAUSE_MAX)
            self.resumes_at = self._slowed_at = now + self._pause
            self._next = max(self._next, self.resumes_at)

    def accepted(self):
        "The server has taken a message"
        self._taken += 1
        self._pause = 0

    @property
    def is_slowed(self):
        "Whether the server wants it more slowly than the settings"
        return self._seconds > self._shortest

    @property
    def found(self):
        "The messages a minute that the server takes, None where it takes all"
        with self._lock:
            self._recover(time.monotonic())
            slower = self._seconds > max(self._shortest, 1e-3)
            return 60 / self._seconds if slower else None
