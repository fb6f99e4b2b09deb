# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""When to try again and how fast: settings, outcomes, pace.

Everything here is plain values and clocks: no database and no network.
"""
import configparser
import dataclasses
import datetime as dt
import random
import threading
import time

import trytond.config as config
from trytond.i18n import gettext

from .address import addresses
from .exceptions import EmailQueueError
from .recipients import join_lines, split_addresses, split_lines, words_of

__all__ = [
    'Deadline', 'Pace', 'Patience', 'Settings', 'Suspects', 'Throttle',
    'after', 'next_attempt', 'server_uri', 'servers']

HELD_ROWS = 500
RECORD_SECONDS = 0.02
ALIKE = 10
TROUBLE_DELAY = dt.timedelta(minutes=1)
TROUBLE_SECONDS = 60
UNCERTAIN_DELAY = dt.timedelta(minutes=15)
RETRY_DELAY_MAX = dt.timedelta(hours=4)
URI = 'uri_'
# Named servers have their own of these
OWN_SETTINGS = {'senders', 'connections', 'rate', 'return_path'}
# Those that are one address
ADDRESSES = {'redirect', 'return_path'}


def servers():
    """Return the names of the configured servers.

    None is the default one, of the section ``email``; it is the first.
    """
    options = []
    if config.has_section('email_queue'):
        options = sorted(config.options('email_queue'))
    return [None, *(
            option.removeprefix(URI) for option in options
            if option.startswith(URI) and option != URI
            and config.get('email_queue', option))]


def server_uri(name):
    "Return the URI of a server, None where it is not configured"
    if name is None:
        return config.get('email', 'uri')
    # Options do not tell upper from lower case, names do
    if name in servers():
        return config.get('email_queue', URI + name)


@dataclasses.dataclass(frozen=True)
class Settings:
    "The section ``email_queue`` of the configuration: see doc/configuration"
    senders: int = 1
    connections: int = 2
    rate: float = 0
    messages_per_connection: int = 100
    recipients: int = 50
    run_time: float = 50
    timeout: int = 60
    data_timeout: int = 600
    uncertain: str = 'retry'
    retry_delay: float = 60
    give_up: float = 5
    max_attempts: int = 0
    health_age: float = 900
    health_failed: int = 0
    clean_days: float = 30
    clean_body_days: float = 7
    hold: bool = False
    redirect: str = ''
    return_path: str = ''

    may_be_zero = {'clean_days', 'clean_body_days'}

    @classmethod
    def read(cls, server=None):
        "Return those of the server of that name, None for the default one"
        values = {}
        for field in dataclasses.fields(cls):
            option = field.name
            if server and option in OWN_SETTINGS:
                option += f'_{server}'
            text = config.get('email_queue', option)
            if not text:
                continue
            try:
                value = values[field.name] = cls.parsed(field, text)
            except ValueError:
                value = None
            if not cls._valid(field, value):
                raise EmailQueueError(gettext(
                        'email_queue.msg_setting_invalid',
                        argument=option, value=text))
        return cls(**values)

    @staticmethod
    def parsed(field, text):
        """Return the value that ``text`` is for a field of this class.

        :raises ValueError: it is none.
        """
        if field.name in ADDRESSES:
            address, = addresses(field.name, text)
            return address
        if field.type is bool:
            try:
                return configparser.RawConfigParser.BOOLEAN_STATES[
                    text.lower()]
            except KeyError:
                raise ValueError(text)
        return field.type(text)

    @classmethod
    def _valid(cls, field, value):
        if value is None:
            return False
        if field.name == 'uncertain':
            return value in {'retry', 'hold'}
        if field.type in {bool, str}:
            return True
        may_be_zero = not field.default or field.name in cls.may_be_zero
        smallest = 0 if may_be_zero else 1e-3
        return smallest <= value < 1e9


def after(row, outcome, now, settings, chance=random.random):
    """Return ``row`` as it has to be recorded after ``outcome``.

    :param outcome: the ``smtp.Outcome``, None where the row was not handed
        over.
    :param now: a naive datetime in UTC.
    :param chance: a function that returns a number from 0 to 1.
    """
    if outcome is None:
        if row.expired(now):
            return row._replace(state='failed', error="expired")
        return row._replace(state='outbox')
    recipients = split_addresses(row.to_addrs)
    decided = bool(
        outcome.accepted or outcome.refused or outcome.deferred
        or outcome.uncertain)
    row = row._replace(
        state='outbox',
        accepted=join_lines(row.accepted, outcome.accepted),
        refused=join_lines(
            row.refused, (f'{a} {w}' for a, w in outcome.refused.items())),
        queue_id=_queue_id(row, outcome),
        # Send Now has raised it for this attempt
        priority=decided and row.own_priority or row.priority,
        own_priority=None if decided else row.own_priority,
        attempts=row.attempts + decided,
        first_attempt=row.first_attempt or (now if decided else None))
    if not row.remaining:
        if recipients and not row.refused:
            return row._replace(
                state='sent', accepted=None, sent_at=now, error=None)
        words = row.refused or "no recipient"
        if row.accepted:
            count = len(split_lines(row.accepted))
            words = (f"delivered to {count} of {len(recipients)} recipients\n"
                f"{words}")
        elif len(recipients) == 1:
            words = words_of(words)
        return row._replace(state='failed', error=words)
    if outcome.uncertain:
        words = f"{outcome.uncertain}: the message may have arrived"
        next_ = now + UNCERTAIN_DELAY
        if (row.uncertain or settings.uncertain == 'hold'
                or not _allowed(row, next_, settings)):
            return row._replace(state='failed', uncertain=True, error=words)
        return row._replace(uncertain=True, scheduled_at=next_, error=words)
    if outcome.deferred:
        words = '\n'.join(
            f'{a} {w}' for a, w in outcome.deferred.items())
        if len(recipients) == 1:
            words, = outcome.deferred.values()
        next_ = next_attempt(row, now, settings, chance)
        if next_ is None:
            return row._replace(state='failed', error=f"gave up: {words}")
        return row._replace(scheduled_at=next_, error=words)
    row = row._replace(error=outcome.trouble.words)
    if not outcome.trouble.lasting:
        row = row._replace(scheduled_at=now + TROUBLE_DELAY)
    return row


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
    return not (
        (settings.max_attempts and row.attempts >= settings.max_attempts)
        or next_ - row.first_attempt > dt.timedelta(days=settings.give_up)
        or row.expired(next_))


class Suspects:
    """Rows that were refused alike, one after another.

    So many may each be at fault or all show that the server takes nothing
    from us. Who knows better: the message that comes next.
    """

    def __init__(self):
        self._refusal = None
        self._held = []

    def settle(self, row, outcome):
        "Return the pairs of row and outcome that can be recorded now"
        if outcome and outcome.refusal:
            settled = []
            if outcome.refusal != self._refusal:
                settled = self.release()
                self._refusal = outcome.refusal
            self._held.append((row, outcome))
            return settled
        if outcome and outcome.accepted:
            return [*self.release(), (row, outcome)]
        return [(row, outcome)]

    def release(self):
        held, self._held, self._refusal = self._held, [], None
        return held

    @property
    def count(self):
        return len(self._held)

    @property
    def words(self):
        _, outcome = self._held[0]
        return next(iter({**outcome.refused, **outcome.deferred}.values()))


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
    """

    def __init__(self, per_minute):
        self._seconds = 60 / per_minute if per_minute else 0
        self._next = time.monotonic() + self._seconds
        self._lock = threading.Lock()

    def turn(self):
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + self._seconds
            return turn
