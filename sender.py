# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""A sender: claims rows, hands them over, records the outcomes.

Only the thread of the sender uses its connection to the database. The sessions
have threads of their own, which do SMTP only.
"""
import collections
import dataclasses
import datetime as dt
import logging
import threading
import time

from . import identity, shown
from .dead import Addresses
from .handover import client_for, hand_over
from .history import with_events
from .known import Known, accepted_since, has_equal_suspect, login_of
from .policy import (
    ALIKE, ALIKE_AFTER_ACCEPTED, RECORD_SECONDS, Pace, Patience, Sessions,
    Suspects, Throttle, after, first_answer, suspected)
from .recipients import delivered
from .recorder import Gate, Recorder, insist
from .replies import LOGIN, RATE, SESSION
from .slot import BEAT_SECONDS
from .store import CRASHES_ALONE
from .tools import Thread

__all__ = ['Sender', 'log_row']
logger = logging.getLogger(__name__)

# How many bytes of messages a sender claims ahead
HELD_SIZE = 16 * 1024 * 1024
# When the database has not answered for so many seconds, nothing is handed
# over, because another sender may have taken the slot
FENCE_SECONDS = 30
# How many times the server may refuse an email as sent too fast while it takes
# other emails; after that the email goes back to the outbox
OVERTAKEN = 3


@dataclasses.dataclass
class Result:
    """What a sender has done and learned.

    ``known`` is what is known about the server now, and ``trouble`` are the
    words of the last trouble. ``accepted`` tells whether the server has
    accepted a message, ``claimed`` whether a row was claimed,
    ``login_refused`` whether a login was refused, and ``stopped_early``
    whether trouble has stopped the sender. ``failed`` are the ids of the
    emails that have failed, and ``counts`` how many emails were recorded in
    each state.
    """
    known: Known
    trouble: str = None
    accepted: bool = False
    claimed: bool = False
    login_refused: bool = False
    stopped_early: bool = False
    failed: list = dataclasses.field(default_factory=list)
    counts: collections.Counter = dataclasses.field(
        default_factory=collections.Counter)
    started_at: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def in_trouble(self):
        "Whether trouble stopped the sender, or the server accepted nothing"
        return bool(self.trouble) and (self.stopped_early or not self.accepted)

    def log(self, name):
        "Log what was done, if anything, under ``name``"
        if not self.counts:
            return
        seconds = time.monotonic() - self.started_at
        logger.info(
            "sender %s: %d sent, %d failed, %d deferred in %.1f s, "
            "%.1f messages/s",
            name, self.counts['sent'], self.counts['failed'],
            self.counts['outbox'], seconds, self.counts['sent'] / seconds)


class Sender:
    """What sends the emails of one server in a run, in the slot of its store.

    The threads of the sessions take rows from ``_work`` until they get None,
    and put the outcomes into ``_gate``. At the gate they also wait until
    earlier outcomes are recorded.

    :param deadline: the ``policy.Deadline`` after which no row is claimed.
    :param caller: the ``run._Caller``, whose transaction is kept alive.
    :param known: what is known about the server, a ``known.Known``.
    """

    def __init__(self, store, settings, deadline, caller, known):
        self.store = store
        self.result = Result(known)
        # Read at once, because the transaction of the caller can get lost
        # while emails are sent
        self._labels = shown.labels(store.Model)
        self._settings = settings
        self._deadline = deadline
        self._held = {}
        self._work = _Work()
        self._gate = Gate(settings.connections)
        self._caller = caller
        self._recorder = Recorder(store, self._gate, settings, caller.touch)
        self._stopping = threading.Event()
        self._is_blocked = self._alone_claimed = False
        self._addresses = Addresses(store, bool(settings.redirect))
        self._suspects = Suspects()
        self._patience = Patience()
        self._pace = Pace(settings.connections)
        self._throttle = Throttle(
            settings.rate / settings.senders, known.rate)
        self._sessions = Sessions(
            settings.connections, known.sessions,
            seconds=_seconds_until(known.more_sessions, store.now()),
            first=bool(known.refused_logins))
        self._accepted_count = 0
        self._threads = [
            Thread(target=self._serve, daemon=True)
            for _ in range(settings.connections)]

    def drain(self):
        "Send due emails until none is left or the time is over"
        with self.store.slot.hurried():
            try:
                for thread in self._threads:
                    thread.start()
                while self._replenish():
                    self._wait()
                    self._collect()
                    self._recorder.record()
                    self._addresses.flush()
                    self._beat()
            finally:
                insist(
                    self._stop, self._keep_slot, self._join, self._collect,
                    self._give_back, self._recorder.finish,
                    self._addresses.flush)
        self.result.log(self.store.server or self.store.slot.number)

    @property
    def late(self):
        return self._deadline.is_over

    # The following methods run in the calling thread

    def _replenish(self):
        "Claim further rows, and return whether there is anything to wait for"
        if self._stopping.is_set() or self._deadline.is_cut:
            return False
        if self._recorder.is_behind:
            return True
        self._is_blocked = False
        rows = self._pace.rows()
        # The slot is kept as long as somebody else has locked a row that has
        # to be recorded. So other emails are sent meanwhile, even when the
        # time is over.
        late = self.late and not self._recorder.waits
        if (not late and len(self._held) <= rows / 2
                and not self._holds_alone()):
            size = sum(r.size for r in self._held.values())
            self._claim(
                self.store.claim, rows - len(self._held), HELD_SIZE - size)
        if not self._held and not (late and self._alone_claimed):
            self._alone_claimed = True
            self._claim(self.store.claim_alone)
        return bool(
            self._held or self._is_blocked or self._recorder.waits)

    def _holds_alone(self):
        "Return whether the sender holds a row that is sent alone"
        return any(r.crashes >= CRASHES_ALONE for r in self._held.values())

    def _claim(self, claim, *args):
        try:
            self._hold(claim(*args))
        except self.store.Error as error:
            if not self.store.slot.is_passing(error) or self.late:
                raise
            logger.debug("cannot claim", exc_info=True)
            self._is_blocked = True

    def _hold(self, rows):
        for row in self._addresses.look_up(rows):
            self._held[row.id] = row._replace(msg=None)
            self._work.put(row)
        # Last, so that the rows are given back if it fails
        if rows and not self.result.claimed:
            self.result.claimed = True
            identity.remember()

    def _wait(self):
        "Wait for an outcome, and for a moment longer for further outcomes"
        if not self._gate.wait(BEAT_SECONDS):
            self._check_threads()
        elif len(self._gate.outcomes()) < len(self._held):
            # Recording outcomes one by one would make this thread and the
            # sessions wait for each other
            self._gate.gather(
                self._recorder.recorded_at + RECORD_SECONDS - time.monotonic())

    def _collect(self):
        "Settle the outcomes that have arrived; can be repeated if interrupted"
        pairs = self._gate.outcomes()
        self._settle(pairs)
        self._recorder.arrived(sum(bool(outcome) for _, outcome in pairs))
        self._gate.settled(len(pairs))

    def _check_threads(self):
        # The row of a dead thread stays in the state sending, and is recovered
        # like the rows of a dead sender
        if any(t.wait(0) for t in self._threads):
            raise RuntimeError("a thread of the sender has died")

    def _settle(self, pairs):
        # One timestamp for all rows that one statement records
        now = self.store.now()
        self._pace.finished(len(pairs))
        for id_, outcome in pairs:
            row = self._held.get(id_)
            if not row:
                continue
            if outcome:
                self._learn(row, outcome, now)
            else:
                self._finish([(row, None)], now)
            del self._held[id_]

    def _learn(self, row, outcome, now):
        "Settle an outcome, and learn from it about the server"
        if outcome.accepted:
            self.result.accepted = True
            self._patience.relieved()
        if outcome.trouble:
            seconds = time.monotonic()
            self._patience.troubled(seconds)
            self.result.login_refused |= outcome.trouble.kind == LOGIN
            self._trouble(
                outcome.trouble.words,
                outcome.trouble.lasting or self._patience.exhausted(seconds))
        if outcome.refusal and self._is_own_fault(row):
            self._finish([(row, outcome)], now)
            return
        self._finish(self._suspects.settle(row, outcome), now)
        if outcome.refusal and self._is_servers_fault(row, outcome.refusal):
            self._trouble(self._first_words(outcome), lasting=True)

    def _is_own_fault(self, row):
        """Return whether the refusal of a suspect is the fault of its message.

        It is if the server has accepted any email since the row is a suspect.
        """
        return bool(row.suspect_since) and (
            self.result.accepted
            or self._ask(accepted_since, row.suspect_since))

    def _is_servers_fault(self, row, refusal):
        "Return whether there are enough equal refusals for the server's fault"
        if self.result.accepted:
            return self._suspects.count(refusal) >= ALIKE_AFTER_ACCEPTED
        return (self._suspects.count(refusal) >= ALIKE
            or self._ask(has_equal_suspect, row, refusal))

    def _ask(self, question, *args):
        """Return the database's answer to a question about suspects.

        The answer is False if the database has an error. The error is not
        raised, because accepted emails must be recorded whatever happens here.
        """
        try:
            return question(self.store, self.result.known, *args)
        except self.store.Error:
            logger.debug("cannot ask about suspects", exc_info=True)
            return False

    def _trouble(self, words, lasting):
        self.result.trouble = words
        if lasting:
            self._halt()

    def _halt(self):
        self._stopping.set()
        self._gate.close()
        self._sessions.close()

    def _finish(self, pairs, now):
        for row, outcome in pairs:
            if outcome and outcome.accepted:
                self._accepted_partly(row, outcome, now)
            self._addresses.learn(row, outcome)
            self._record(
                row, after(row, outcome, now, self._settings), outcome)

    def _accepted_partly(self, row, outcome, now):
        """Remember when the server has accepted an email for some recipients.

        The time is kept in ``Known``, because the email may never be *Sent*.
        """
        if len(outcome.accepted) < len(row.remaining):
            self.result.known = self.result.known._replace(accepted_at=now)

    def _record(self, before, row, outcome):
        self._recorder.add(with_events(before, row, outcome))
        if row.state == 'failed':
            self.result.failed.append(row.id)
        if outcome or row.state == 'failed':
            self.result.counts[row.state] += 1
            log_row(row)

    def _release_suspects(self):
        "Record the suspects, whose fault the run has not found out"
        now, result = self.store.now(), self.result
        for pairs in self._suspects.release():
            is_only = len(pairs) == 1
            for row, outcome in pairs:
                is_only = is_only and (result.accepted or not self._ask(
                        has_equal_suspect, row, outcome.refusal))
                after_ = suspected(row, outcome, now, self._settings, is_only)
                self._record(row, after_, outcome)
            if not is_only:
                result.stopped_early = True
                result.trouble = (
                    result.trouble or self._first_words(pairs[0][1]))

    def _first_words(self, outcome):
        "Return why the first recipient that is not accepted was refused"
        address, words = first_answer(outcome)
        return shown.with_words(
            self._labels[outcome.reasons.get(address)], words)

    def _stop(self):
        "Let each thread end after the row that it is sending"
        self.result.stopped_early = self._stopping.is_set()
        self._halt()
        for _ in self._threads:
            self._work.put(None)

    def _join(self):
        for thread in self._threads:
            while not thread.wait(BEAT_SECONDS):
                self._keep_slot()

    def _give_back(self):
        "Give back the rows that were claimed and not handed over"
        while row := self._work.left():
            self._settle([(row.id, None)])
        self._release_suspects()
        self._conclude()

    def _conclude(self):
        "Add to what is known about the server what this run has learned"
        result, now = self.result, self.store.now()
        known = result.known
        if result.login_refused:
            known = known.login_refused(login_of(self.store.server), now)
        elif result.accepted and known.refused_logins:
            known = known.login_accepted()
        if result.in_trouble:
            known = known.troubled(result.trouble, now)
            result.trouble = known.trouble
        elif result.accepted:
            known = known.relieved()
        sessions, seconds = None, 0
        if self._sessions.are_fewer:
            sessions, seconds = self._sessions.granted, self._sessions.seconds
        result.known = known._replace(
            sessions=sessions,
            more_sessions=sessions and now + dt.timedelta(seconds=seconds),
            rate=self._throttle.found)

    def _beat(self):
        self.store.slot.beat()
        self._caller.touch()

    def _keep_slot(self):
        try:
            if self.store.slot.is_lost:
                self._recorder.reconnect()
            self._beat()
        except self.store.Error:
            # Not raised, because the sender may be stopping just because its
            # connection is lost
            logger.debug("cannot keep the slot", exc_info=True)

    # The following methods run in the threads of the sessions

    def _serve(self):
        client = client_for(
            self.store.Model, self._settings, self.store.server)
        while (self._sessions.enter(client)
                and (row := self._work.get()) is not None):
            self._hand_over(client, row)
        client.close()

    def _hand_over(self, client, row):
        "Hand over a row and put its outcome, or leave it to another session"
        accepted, overtaken = self._accepted_count, 0
        while self._may_send(row):
            self._sessions.tries(client)
            outcome = hand_over(client, row, self._settings.redirect)
            trouble = outcome.trouble
            if not (trouble and trouble.kind in {SESSION, LOGIN}):
                self._sessions.tried(client, getattr(client, 'is_open', True))
            elif self._sessions.refuses(client):
                client.drop()
                if not outcome.decided:
                    self._gate.leave()
                    self._work.put_back(row)
                    return
                outcome.trouble = trouble._replace(lasting=False)
            if outcome.trouble and outcome.trouble.lasting:
                # At once, before the calling thread learns of the trouble, so
                # that no session hands over another message
                self._halt()
            if outcome.accepted:
                self._accepted_count += 1
                self._throttle.accepted()
            if not _is_too_fast(outcome):
                self._gate.put(row.id, outcome)
                return
            self._throttle.slow_down()
            overtaken += self._accepted_count > accepted
            accepted = self._accepted_count
            if overtaken >= OVERTAKEN:
                self._gate.put(row.id, outcome)
                return
            self.result.trouble = trouble.words
            self._gate.leave()
            if self.late:
                break
        self._gate.put(row.id, None)

    def _may_send(self, row):
        "Wait for the row's turn and return whether it can be handed over"
        turn = self._throttle.turn()
        while (seconds := max(
                    turn, self._patience.until, self._throttle.resumes_at)
                - time.monotonic()) > 0:
            if self.late and (self._throttle.is_slowed
                    or self._throttle.resumes_at > time.monotonic()):
                return False
            if self._stopping.wait(min(seconds, BEAT_SECONDS)):
                break
        if self._stopping.is_set() or not self._gate.enter():
            return False
        if (row.expired(self.store.now())
                or time.monotonic() - self.store.slot.used_at > FENCE_SECONDS):
            self._gate.leave()
            return False
        return True


class _Work:
    """Rows for the sessions, in the order in which they were put.

    A row that is put back is the next, because it was due before the others.
    """

    def __init__(self):
        self._rows = collections.deque()
        self._some = threading.Condition()

    def put(self, row):
        "Put a row, or None, which ends the thread that gets it"
        with self._some:
            self._rows.append(row)
            self._some.notify()

    def put_back(self, row):
        with self._some:
            self._rows.appendleft(row)
            self._some.notify()

    def get(self):
        "Wait for a row and return it, or None"
        with self._some:
            while not self._rows:
                self._some.wait()
            return self._rows.popleft()

    def left(self):
        "Return a row that no session has taken, None where there is none"
        with self._some:
            while self._rows:
                if row := self._rows.popleft():
                    return row


def _seconds_until(at, now):
    return max((at - now).total_seconds(), 0) if at else 0


def _is_too_fast(outcome):
    "Return whether the server has refused the message as sent too fast"
    return (outcome.trouble and outcome.trouble.kind == RATE
        and not outcome.accepted)


def log_row(row):
    "Log why a row was not sent"
    if row.state == 'sent':
        return
    state = 'failed' if row.state == 'failed' else (
        f'deferred until {row.scheduled_at:%Y-%m-%d %H:%M:%S}')
    texts = [row.reason or '', *(row.error or '').splitlines()]
    if numbers := delivered(row.to_addrs, row.accepted):
        texts.insert(1, "delivered to {} of {} recipients".format(*numbers))
    logger.info("email %d %s: %s", row.id, state, ' | '.join(texts))
