# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""One run: take a slot, claim rows, hand them over, record the outcomes.

The thread of a sender owns its connection to the database, the threads of the
sessions do SMTP only. Of several servers each has a thread with a sender.
"""
import collections
import datetime as dt
import itertools
import logging
import queue
import threading
import time
from contextlib import contextmanager
from functools import partial

import trytond.config as config
from trytond.i18n import gettext
from trytond.pool import Pool
from trytond.transaction import Transaction, without_check_access

from . import identity, oauth, shown, smtp
from .dead import Addresses
from .exceptions import EmailQueueError
from .history import told
from .known import recall, retain
from .mime import original_to
from .policy import (
    ALIKE, ALIKE_AFTER_ACCEPTED, RECORD_SECONDS, Deadline, Pace, Patience,
    Sessions, Suspects, Throttle, after, first_answer, suspected)
from .recipients import delivered
from .recorder import Gate, NotRecorded, Recorder, insist
from .replies import LOGIN, RATE, SESSION
from .settings import Settings, server_uri, servers
from .store import (
    BEAT_SECONDS, CRASHES_ALONE, Store, forget, slots, waiting_servers)
from .words import printable

__all__ = ['client_of', 'in_trouble', 'run', 'send']
logger = logging.getLogger(__name__)

HELD_SIZE = 16 * 1024 * 1024
FENCE_SECONDS = 30
# A herd of tasks must not be one of connections
TROUBLED_SECONDS = 10
# What a worker's task waits for servers, which go on without it
TASK_SECONDS = 1
# A run that a person started in a client ends so early, because the client
# waits for it
BY_HAND_SECONDS = 10
# In a row without anything to claim, though something is due
IDLE_RUNS = 2
_troubled_at = {}
# Of a thread: its transaction, and the sender's
CONNECTIONS_EACH = 2
# The caller's, and those that listen for the cache and the bus
CONNECTIONS_BESIDE = 3
# How often a message may be refused as sent too fast while others are taken
OVERTAKEN = 3


class Sender:
    """A run that holds a slot.

    The threads take rows from ``_work``, until there is None, and tell what
    became of them to ``_gate``, where they also wait for the records.

    :param known: what is known about the server, a ``known.Known``.
    """

    def __init__(self, store, settings, deadline, caller, known):
        self.store = store
        self.number = store.number
        self.trouble = None
        self.accepted = False
        self.failed = []
        self.known = known
        self._settings = settings
        self._deadline = deadline
        self._held = {}
        self._work = _Work()
        self._gate = Gate(settings.connections)
        self._caller = caller
        self._recorder = Recorder(store, self._gate, settings, caller.touch)
        self._stopping = threading.Event()
        self._stopped_early = self._is_blocked = False
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
        self._login_refused = False
        self._accepted = 0
        self._now = None
        self._labels = shown.labels(store.Model)
        self._alone_claimed = False
        self.claimed = False
        self._counts = collections.Counter()
        self._started_at = time.monotonic()
        self._threads = [
            threading.Thread(target=self._serve, daemon=True)
            for _ in range(settings.connections)]

    def drain(self):
        "Send what is due, until nothing is or the time is over"
        with self.store.hurried():
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
        self._log()

    @property
    def in_trouble(self):
        "Whether trouble ended the run or let nothing be accepted in it"
        return self.trouble and (self._stopped_early or not self.accepted)

    @property
    def late(self):
        return self._deadline.is_over

    # The calling thread

    def _replenish(self):
        "Claim ahead and return whether there is anything to wait for"
        if self._stopping.is_set() or self._deadline.is_cut:
            return False
        if self._recorder.is_behind:
            return True
        self._is_blocked = False
        alone = any(r.crashes >= CRASHES_ALONE for r in self._held.values())
        rows = self._pace.rows()
        # What is locked keeps the slot: others' emails need not wait for it
        late = self.late and not self._recorder.waits
        if not (late or alone) and len(self._held) <= rows / 2:
            size = sum(r.size for r in self._held.values())
            self._claim(
                self.store.claim, rows - len(self._held), HELD_SIZE - size)
        if not self._held and not (late and self._alone_claimed):
            self._alone_claimed = True
            self._claim(self.store.claim_alone)
        return bool(
            self._held or self._is_blocked or self._recorder.waits)

    def _claim(self, claim, *args):
        try:
            self._hold(claim(*args))
        except self.store.Error as error:
            if not self.store.is_passing(error) or self.late:
                raise
            logger.debug("can not claim", exc_info=True)
            self._is_blocked = True

    def _hold(self, rows):
        for row in self._addresses.look_up(rows):
            self._held[row.id] = row._replace(msg=None)
            self._work.put(row)
        # Only now: were it to fail, the rows would be given back
        if rows and not self.claimed:
            self.claimed = True
            identity.remember()

    def _wait(self):
        "Wait for outcomes, and a bit longer for those that come with them"
        if not self._gate.wait(BEAT_SECONDS):
            self._check_threads()
        elif len(self._gate.outcomes()) < len(self._held):
            # To record each by itself lets both sides wait for each other
            self._gate.gather(
                self._recorder.recorded_at + RECORD_SECONDS - time.monotonic())

    def _collect(self):
        "Settle what has come; an interrupted call is simply made again"
        pairs = self._gate.outcomes()
        self._settle(pairs)
        self._recorder.arrived(sum(bool(outcome) for _, outcome in pairs))
        self._gate.settled(len(pairs))

    def _check_threads(self):
        # What a dead one was at is recovered as of a dead sender
        if not all(t.is_alive() for t in self._threads):
            raise RuntimeError("a thread of the sender has died")

    def _settle(self, pairs):
        # What is recorded together has one time
        self._now = self.store.now()
        now = time.monotonic()
        self._pace.finished(len(pairs))
        for id_, outcome in pairs:
            row = self._held.get(id_)
            if not row:
                continue
            if outcome:
                self._learn(row, outcome, now)
            else:
                self._finish([(row, None)])
            del self._held[id_]

    def _learn(self, row, outcome, now):
        "Settle an outcome, and with it what it tells of the server"
        if outcome.accepted:
            self.accepted = True
            self._patience.relieved()
        if outcome.trouble:
            self._patience.troubled(now)
            self._login_refused |= outcome.trouble.kind == LOGIN
            self._trouble(
                outcome.trouble.words,
                outcome.trouble.lasting or self._patience.exhausted(now))
        if outcome.refusal and self._is_own(row):
            self._finish([(row, outcome)])
            return
        self._finish(self._suspects.settle(row, outcome))
        if outcome.refusal and self._is_the_servers(row, outcome.refusal):
            self._trouble(self._first_words(outcome), lasting=True)

    def _is_own(self, row):
        "Return whether something was accepted since the row is a suspect"
        return bool(row.suspect_since) and (
            self.accepted or self._ask(_accepted_since, row.suspect_since))

    def _is_the_servers(self, row, refusal):
        "Return whether so many were refused so that the server is at fault"
        if self.accepted:
            return self._suspects.alike(refusal) >= ALIKE_AFTER_ACCEPTED
        return (self._suspects.alike(refusal) >= ALIKE
            or self._ask(_suspected_alike, row, refusal))

    def _ask(self, question, *args):
        """Return the database's answer, False where it gives none.

        An email that was accepted must be recorded whatever happens here.
        """
        try:
            return question(self.store, self.known, *args)
        except self.store.Error:
            logger.debug("can not ask of suspects", exc_info=True)
            return False

    def _trouble(self, words, lasting):
        self.trouble = words
        if lasting:
            self._halt()

    def _halt(self):
        self._stopping.set()
        self._gate.close()
        self._sessions.close()

    def _finish(self, pairs):
        for row, outcome in pairs:
            if outcome and outcome.accepted:
                self._accepted_partly(row, outcome)
            self._addresses.learn(row, outcome)
            self._record(
                row, after(row, outcome, self._now, self._settings), outcome)

    def _accepted_partly(self, row, outcome):
        "Remember what no row in the state sent will show"
        if len(outcome.accepted) < len(row.remaining):
            self.known = self.known._replace(accepted_at=self._now)

    def _record(self, before, row, outcome):
        self._recorder.add(told(before, row, outcome))
        if row.state == 'failed':
            self.failed.append(row.id)
        if outcome or row.state == 'failed':
            self._counts[row.state] += 1
            _log_row(row)

    def _release_suspects(self):
        "Keep those of whom is not known yet whose fault it is"
        for pairs in self._suspects.release():
            alone = len(pairs) == 1
            for row, outcome in pairs:
                alone = alone and (self.accepted or not self._ask(
                        _suspected_alike, row, outcome.refusal))
                after_ = suspected(
                    row, outcome, self._now, self._settings, alone)
                self._record(row, after_, outcome)
            if not alone:
                self._stopped_early = True
                self.trouble = self.trouble or self._first_words(pairs[0][1])

    def _first_words(self, outcome):
        "Return why the first recipient was refused whom nobody accepted"
        address, words = first_answer(outcome)
        return shown.with_words(
            self._labels[outcome.reasons.get(address)], words)

    def _stop(self):
        "Let the threads end what they are at"
        self._stopped_early = self._stopping.is_set()
        self._halt()
        for _ in self._threads:
            self._work.put(None)

    def _join(self):
        for thread in self._threads:
            while thread.is_alive():
                thread.join(BEAT_SECONDS)
                self._keep_slot()

    def _give_back(self):
        "Give back what has not been handed over"
        while row := self._work.left():
            self._settle([(row.id, None)])
        self._release_suspects()
        self._conclude()

    def _conclude(self):
        "Add what this run has learned to what is known about the server"
        known, now = self.known, self.store.now()
        if self._login_refused:
            known = known.login_refused(_login(self.store.server), now)
        elif self.accepted and known.refused_logins:
            known = known.login_accepted()
        if self.in_trouble:
            known = known.troubled(self.trouble, now)
            self.trouble = known.trouble
        elif self.accepted:
            known = known.relieved()
        sessions, seconds = None, 0
        if self._sessions.are_fewer:
            sessions, seconds = self._sessions.granted, self._sessions.seconds
        self.known = known._replace(
            sessions=sessions,
            more_sessions=sessions and now + dt.timedelta(seconds=seconds),
            rate=self._throttle.found)

    def _beat(self):
        self.store.beat()
        self._caller.touch()

    def _keep_slot(self):
        try:
            if self.store.is_lost:
                self._recorder.reconnect()
            self._beat()
        except self.store.Error:
            # It may be the reason to stop
            logger.debug("no connection", exc_info=True)

    def _log(self):
        if not self._counts:
            return
        seconds = time.monotonic() - self._started_at
        logger.info(
            "sender %s: %d sent, %d failed, %d deferred in %.1f s, "
            "%.1f messages/s",
            self.store.server or self.number,
            self._counts['sent'], self._counts['failed'],
            self._counts['outbox'], seconds, self._counts['sent'] / seconds)

    # The threads

    def _serve(self):
        client = _client(
            self.store.Model, self._settings, self.store.server)
        while (self._sessions.enter(client)
                and (row := self._work.get()) is not None):
            self._hand_over(client, row)
        client.close()

    def _hand_over(self, client, row):
        "Tell the outcome, unless the row goes to another session"
        accepted, overtaken = self._accepted, 0
        while self._may_send(row):
            self._sessions.tries(client)
            outcome = _deliver(client, row, self._settings.redirect)
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
                # No other message is tried meanwhile
                self._halt()
            if outcome.accepted:
                self._accepted += 1
                self._throttle.accepted()
            if not _is_too_fast(outcome):
                self._gate.put(row.id, outcome)
                return
            self._throttle.slow_down()
            overtaken += self._accepted > accepted
            accepted = self._accepted
            if overtaken >= OVERTAKEN:
                self._gate.put(row.id, outcome)
                return
            self.trouble = trouble.words
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
                or time.monotonic() - self.store.used_at > FENCE_SECONDS):
            self._gate.leave()
            return False
        return True


class _Work:
    """Rows for the sessions, in the order in which they were put.

    One that comes back is the next, because others were put after it.
    """

    def __init__(self):
        self._rows = queue.PriorityQueue()
        self._number = itertools.count(1)

    def put(self, row):
        "Put a row, or None for the end of a session"
        self._rows.put((row is None, next(self._number), row))

    def put_back(self, row):
        self._rows.put((False, -next(self._number), row))

    def get(self):
        "Wait for a row and return it, or None"
        return self._rows.get()[-1]

    def left(self):
        "Return a row that nobody has taken, None where there is none"
        while not self._rows.empty():
            if row := self.get():
                return row


def _seconds_until(at, now):
    return max((at - now).total_seconds(), 0) if at else 0


def _is_too_fast(outcome):
    "Return whether the message is to go again, only not so soon"
    return (outcome.trouble and outcome.trouble.kind == RATE
        and not outcome.accepted)


def _accepted_since(store, known, since):
    return (known.accepted_at is not None and known.accepted_at > since
        or store.accepted_since(since))


def _suspected_alike(store, known, row, refusal):
    "Return whether another was refused so, and nothing accepted since"
    since = store.suspected_alike(row, refusal)
    return bool(since) and not _accepted_since(store, known, since)


def client_of(Model, settings, name, server=None):
    return smtp.Client(
        uri=server_uri(name),
        server=server,
        timeout=settings.timeout,
        data_timeout=settings.data_timeout,
        messages=settings.messages_per_connection,
        recipients=settings.recipients,
        verdict=Model.verdict,
        tokens=partial(Model.access_token, name),
        return_path=settings.return_path)


def _client(Model, settings, name):
    "Return what the model has for a server, also where it fails to make it"
    try:
        return Model.get_client(name, settings)
    except Exception as error:
        logger.exception("no client for the server %s", name)
        return _NoClient(printable(f"{type(error).__name__}: {error}"))


class _NoClient:
    "Leaves each email in the outbox, as a server in trouble does"
    is_open = False

    def __init__(self, words):
        self._words = words

    def deliver(self, mail):
        return smtp.Outcome(trouble=smtp.Trouble(self._words, lasting=True))

    def close(self):
        pass

    drop = close


def _mail(row):
    return smtp.Mail(
        row.from_addr, tuple(row.remaining), bytes(row.msg),
        tuple((row.mail_options or '').split()),
        tuple((row.rcpt_options or '').split()))


def _deliver(client, row, redirect):
    if row.msg is None:
        return _without_message(row)
    try:
        mail = _mail(row)
        if redirect:
            return _redirect(client, mail, redirect)
        dead = dict(row.dead)
        outcome = client.deliver(mail._replace(
                to_addrs=tuple(a for a in mail.to_addrs if a not in dead)))
        if not outcome.trouble:
            outcome.refused.update(dead)
            outcome.reasons.update(dict.fromkeys(dead, 'dead'))
        return outcome
    except Exception as error:
        # A message without bytes, with an address that is none …
        logger.debug("email %d can not be sent", row.id, exc_info=True)
        # No suspect, because the server has no part in it
        return _refusal(
            row, printable(f"{type(error).__name__}: {error}"), 'unsendable')


def _redirect(client, mail, address):
    "Deliver to that address only, and return the outcome for the recipients"
    outcome = client.deliver(mail._replace(
            to_addrs=(address,),
            data=original_to(mail.to_addrs) + mail.data))
    if outcome.accepted:
        outcome.accepted = list(mail.to_addrs)
    for by_address in [outcome.refused, outcome.deferred, outcome.reasons]:
        if address in by_address:
            said = by_address.pop(address)
            by_address.update(dict.fromkeys(mail.to_addrs, said))
    return outcome


def _without_message(row):
    if not row.file_id:
        return _refusal(row, '', 'no_message')
    # Another machine may have it, or this one later; where all are missing it
    # is trouble as of a server
    outcome = smtp.Outcome()
    outcome.defer(
        row.remaining or [row.to_addrs], 'mail', '',
        reason='not_in_filestore')
    return outcome


def _refusal(row, words, reason):
    "Return the outcome of an email that no server was asked to take"
    recipients = row.remaining or [row.to_addrs]
    return smtp.Outcome(
        refused=dict.fromkeys(recipients, words),
        reasons=dict.fromkeys(recipients, reason))


def _log_row(row):
    if row.state == 'sent':
        return
    state = 'failed' if row.state == 'failed' else (
        f'deferred until {row.scheduled_at:%Y-%m-%d %H:%M:%S}')
    texts = [row.reason or '', *(row.error or '').splitlines()]
    if numbers := delivered(row.to_addrs, row.accepted):
        texts.insert(1, "delivered to {} of {} recipients".format(*numbers))
    logger.info("email %d %s: %s", row.id, state, ' | '.join(texts))


@contextmanager
def _own_transaction():
    with Transaction().new_transaction(autocommit=True) as transaction, \
            transaction.set_user(0), without_check_access():
        yield


@contextmanager
def _opened(Model, server=None):
    "Return a store on a connection of its own"
    with _own_transaction():
        store = Store(Model, server)
        try:
            yield store
        finally:
            store.close()


class _Caller:
    """The transaction that a run is called in, of the calling thread.

    It has nothing to do meanwhile, for which PostgreSQL may end it
    (``idle_in_transaction_session_timeout``), and with it what the scheduler
    has still to do.
    """

    def __init__(self):
        transaction = Transaction()
        self._connection = None
        if transaction.database.has_select_for():
            self._connection = transaction.connection
        self._touched_at = time.monotonic()

    def touch(self):
        now = time.monotonic()
        if not self._is_idle or now - self._touched_at < BEAT_SECONDS:
            return
        self._touched_at = now
        try:
            self._connection.cursor().execute('SELECT 1')
        except self._connection.Error:
            # Who owns it will find out
            logger.warning("the caller's transaction is lost", exc_info=True)
            self._connection = None

    @property
    def _is_idle(self):
        return self._connection and (
            self._connection.info.transaction_status.name == 'INTRANS')


def in_trouble():
    "Return whether this process met trouble with all servers a moment ago"
    return all(map(_in_trouble, servers()))


def _in_trouble(server):
    troubled_at = _troubled_at.get((Transaction().database.name, server))
    return (troubled_at is not None
        and time.monotonic() - troubled_at < TROUBLED_SECONDS)


def run(Model):
    """Send the due emails of ``Model``, of each server that has a free slot.

    :raises EmailQueueError: a server is in trouble or not configured, in words
        that are the same in every run, or the database looks like a copy.
    """
    settings, names = Settings.read(), servers()
    if settings.hold:
        logger.warning("hold is set: nothing is sent")
        return
    _check_copy(settings)
    context = Transaction().context
    is_task = context.get('email_queue_task')
    run_time = settings.run_time
    if context.get('email_queue_by_hand'):
        run_time = min(run_time, BY_HAND_SECONDS)
    if is_task:
        errors, names = [], [n for n in names if not _in_trouble(n)]
    else:
        errors = _missing(Model, names)
    if (len(names) > 1 and Transaction().database.has_select_for()
            and _enough_connections(len(names))):
        errors += _drain_side_by_side(
            Model, names, run_time, TASK_SECONDS if is_task else run_time)
    else:
        errors += _drain_in_turn(Model, names, run_time)
    _tell(errors)


def _enough_connections(servers):
    "Return whether the servers can have their threads"
    needed = servers * CONNECTIONS_EACH + CONNECTIONS_BESIDE
    allowed = config.getint('database', 'maxconn', default=64)
    if allowed < needed:
        logger.warning(
            "one server after another is sent to: maxconn is %d, "
            "for %d servers side by side %d are needed",
            allowed, servers, needed)
    return allowed >= needed


def _check_copy(settings):
    with _own_transaction():
        identity.check()
    if settings.redirect:
        logger.warning(
            "redirect is set: everything is sent to %s", settings.redirect)


def _missing(Model, names):
    "Return an error for each server that emails wait for in vain"
    with _opened(Model) as store:
        missing = [n for n in waiting_servers(Model) if n not in names]
        for name in missing:
            logger.warning("emails wait for the unknown server %s", name)
            store.explain(name, 'no_server')
    return [
        EmailQueueError(
            gettext('email_queue.msg_server_missing', server=name),
            gettext('email_queue.msg_server_missing_description'))
        for name in missing]


def _tell(errors):
    "Raise one error and report the others as the scheduler does with that"
    # The scheduler tries again after what is not for the administrator
    errors.sort(key=lambda e: isinstance(e, EmailQueueError))
    for error in errors[1:]:
        _report(error)
    for error in errors[:1]:
        raise error


def _report(error):
    if not isinstance(error, EmailQueueError):
        logger.error("error in a run", exc_info=error)
    elif method := Transaction().context.get('_cron'):
        pool = Pool()
        for cron in pool.get('ir.cron').search(
                [('method', '=', method)], order=[('id', 'ASC')], limit=1):
            pool.get('ir.error').report(cron, error)


def _drain_in_turn(Model, names, seconds):
    "Drain one server after another and return the errors"
    errors = []
    for name in names:
        try:
            _drain(Model, name, Deadline(seconds / len(names)))
        except Exception as error:
            errors.append(error)
    return errors


def _drain_side_by_side(Model, names, seconds, patience):
    """Drain the servers in threads and return the errors.

    A server that hangs for longer than the seconds of ``patience`` is left to
    its thread: the next run finds its slot taken and sends to the others.
    """
    with _opened(Model) as store:
        # Later it could take the slot of a dead sender from its thread
        store.recover()
    drains = [_Drain(Model, name, Deadline(seconds)) for name in names]
    end, caller = time.monotonic() + patience, _Caller()
    try:
        for drain in drains:
            drain.start()
        for drain in drains:
            while (drain.is_alive()
                    and (seconds := end - time.monotonic()) > 0):
                drain.join(min(seconds, BEAT_SECONDS))
                caller.touch()
    except BaseException:
        for drain in drains:
            drain.deadline.cut()
        raise
    return [d.error for d in drains if not d.leave() and d.error]


class _Drain(threading.Thread):
    """What a run does for one of several servers.

    The interpreter waits for it at its end, so that nothing is sent twice.
    """

    def __init__(self, Model, server, deadline):
        super().__init__(name=f'email_queue {server}')
        transaction = Transaction()
        self.deadline = deadline
        self.error = None
        self._Model = Model
        self._server = server
        self._database = transaction.database.name
        self._context = transaction.context
        self._is_over = self._is_left = False
        self._lock = threading.Lock()

    def run(self):
        try:
            with self._transaction():
                _drain(self._Model, self._server, self.deadline)
        except Exception as error:
            self.error = error
        with self._lock:
            self._is_over = True
        if self._is_left and self.error:
            with self._transaction():
                _report(self.error)

    def _transaction(self):
        return Transaction().start(self._database, 0, context=self._context)

    def leave(self):
        "Let it tell its error itself, unless it is over, and return whether"
        with self._lock:
            self._is_left = not self._is_over
        return self._is_left


def _drain(Model, server, deadline):
    "Send the due emails of a server if a slot of it is free"
    failed, more, idle = [], True, 0
    try:
        settings = Settings.read(server)
        # What is due may be locked by somebody who takes long
        while more and idle < IDLE_RUNS:
            sender, more = _run(Model, server, settings, deadline)
            if sender:
                idle = 0 if sender.claimed else idle + 1
                failed += sender.failed
                _check_trouble(sender)
    except NotRecorded as error:
        raise EmailQueueError(
            gettext('email_queue.msg_not_recorded', error=error),
            gettext('email_queue.msg_not_recorded_description')) from error
    finally:
        _finish(Model, failed)


def _check_trouble(sender):
    if sender.in_trouble:
        logger.warning(
            "trouble with the server %s: %s",
            _server_name(sender.store.server), sender.trouble)
        _raise_trouble(sender.store.server, sender.trouble)


def _raise_trouble(server, words):
    _troubled_at[Transaction().database.name, server] = time.monotonic()
    raise EmailQueueError(
        gettext('email_queue.msg_server_trouble',
            server=_server_name(server), error=words),
        gettext('email_queue.msg_server_trouble_description'))


def _server_name(server):
    name = smtp.server_name(server_uri(server))
    return f'{server} ({name})' if server else name


def _finish(Model, failed):
    try:
        if failed:
            Model.run_finished(failed)
    except Exception:
        # It is told for the convenience of users, what was done is recorded
        logger.exception("error in the hook for the end of a run")


def _run(Model, server, settings, deadline):
    "Return the sender, None without a slot, and whether more is due"
    caller = _Caller()
    with _opened(Model, server) as store:
        if not store.take(slots(server, settings.senders)):
            logger.info("no slot is free")
            return None, False
        try:
            store.recover()
            known = recall(store)
            _check_login(store, known)
            sender = Sender(store, settings, deadline, caller, known)
            sender.drain()
            _retain(store, sender.known, known)
        finally:
            store.give_back()
        # Whoever found no slot in the meantime relies on it
        return sender, not sender.late and store.has_due()


def _check_login(store, known):
    """Check that a login can be tried.

    Each one that is refused brings a server closer to banning this host.

    :raises EmailQueueError: it is too early. A person who runs the job need
        not wait.
    """
    by_hand = Transaction().context.get('email_queue_by_hand')
    if not by_hand and known.login_waits(
            _login(store.server), store.now()):
        _raise_trouble(store.server, known.trouble)


def _login(server):
    "Return all that the configuration says of the login at a server"
    return '\n'.join([server_uri(server) or '', *(
                f'{name} {value}'
                for name, value in oauth.options(server).items())])


def _retain(store, known, before):
    try:
        retain(store, known, before)
    except store.Error:
        # The emails are recorded, and the next run learns the same
        logger.warning("what the run has learned is lost", exc_info=True)


def send(email, server=None):
    "Send one record: see EmailQueue.send"
    Model, settings = type(email), Settings.read()
    if settings.hold:
        raise EmailQueueError(gettext('email_queue.msg_hold'))
    _check_copy(settings)
    caller = _Caller()
    with _opened(Model) as store:
        # A slot of its own, whatever runs
        row = None
        if store.take([-email.id]):
            try:
                row = _send(store, email, settings, server, caller)
            finally:
                store.give_back()
    forget(Transaction())
    if not row:
        raise EmailQueueError(gettext(
                'email_queue.msg_not_claimed', email=email.rec_name))
    if row.state != 'sent':
        error = shown.outcome(shown.labels(Model), row)
        raise EmailQueueError(gettext(
                'email_queue.msg_not_sent',
                email=email.rec_name, error=error))


def _send(store, email, settings, server, caller):
    "Return the row as it was recorded, None where it can not be claimed"
    for row in store.claim_record(email.id):
        identity.remember()
        outcome = None
        if not row.expired(store.now()):
            outcome = _send_row(store.Model, row, settings, server)
        before, row = row, _judged(store, row, outcome, settings)
        recorder = Recorder(store, Gate(1), settings, caller.touch)
        recorder.add(told(before, row, outcome))
        insist(recorder.finish)
        _log_row(row)
        return row


def _judged(store, row, outcome, settings):
    "Return the row as it is to be recorded after it was sent alone"
    now = store.now()
    if not (outcome and outcome.refusal):
        return after(row, outcome, now, settings)
    known = recall(store)
    if row.suspect_since and _accepted_since(store, known, row.suspect_since):
        return after(row, outcome, now, settings)
    alone = not _suspected_alike(store, known, row, outcome.refusal)
    return suspected(row, outcome, now, settings, alone)


def _send_row(Model, row, settings, server):
    if not (server_uri(row.server) or server):
        return smtp.Outcome(trouble=smtp.Trouble(
                row.server, lasting=True, reason='no_server'))
    settings = Settings.read(row.server)
    if server is None:
        client = _client(Model, settings, row.server)
    else:
        client = client_of(Model, settings, row.server, server=server)
    outcome = _deliver(client, row, settings.redirect)
    client.close()
    return outcome
