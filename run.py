# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""A run: a sender for each server, in a slot of its own.

With several servers, each server has a thread with a sender. No other thread
uses the sender's connection to the database.
"""
import logging
import threading
import time
from contextlib import contextmanager

import trytond.config as config
from trytond.i18n import gettext
from trytond.pool import Pool
from trytond.transaction import Transaction

from . import identity, shown
from .exceptions import (
    ClaimError, EmailQueueError, HoldError, NotSentError, RecordError,
    ServerError)
from .handover import client_for, client_of, hand_over
from .history import with_events
from .known import accepted_since, has_equal_suspect, login_of, recall, retain
from .policy import Deadline, after, suspected
from .recorder import Gate, NotRecorded, Recorder, insist
from .sender import Sender, log_row
from .settings import Settings, server_uri, servers
from .slot import BEAT_SECONDS, slot_numbers
from .smtp import Outcome, Trouble, server_name
from .store import Store, waiting_servers
from .tools import Thread, forget, own_transaction

__all__ = ['in_trouble', 'run', 'send']
logger = logging.getLogger(__name__)

# Many tasks at once must not each connect to a server that is down
TROUBLED_SECONDS = 10
# How many seconds the task of a worker waits; then the threads of slow servers
# go on without the task
TASK_SECONDS = 1
# How many seconds a run may take that a person has started, because the client
# of the person waits for the run
BY_HAND_SECONDS = 10
# How many senders in a row may claim nothing although rows are due, because
# somebody has locked the rows
IDLE_SENDERS = 2
# The connections of a server's thread: of its transaction, and of its sender
CONNECTIONS_EACH = 2
# The connections of the caller and of the listeners for the cache and the bus
CONNECTIONS_BESIDE = 3
# When this process last met trouble, by the names of database and server
_troubled_at = {}


@contextmanager
def _opened(Model, server=None):
    "Yield a store with a connection of its own"
    with own_transaction(keep_context=True, autocommit=True):
        store = Store(Model, server)
        try:
            yield store
        finally:
            store.slot.close()


class _Caller:
    """The transaction in which a run is called.

    The transaction is idle while emails are sent. PostgreSQL may end an idle
    transaction (``idle_in_transaction_session_timeout``), and with it the
    further jobs of the scheduler. So the calling thread touches it every
    second.
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
            # The owner of the transaction gets the error at its next statement
            logger.warning("the caller's transaction is lost", exc_info=True)
            self._connection = None

    @property
    def _is_idle(self):
        return self._connection and (
            self._connection.info.transaction_status.name == 'INTRANS')


def in_trouble():
    "Return whether this process has just met trouble with all servers"
    return all(map(_in_trouble, servers()))


def _in_trouble(server):
    troubled_at = _troubled_at.get((Transaction().database.name, server))
    return (troubled_at is not None
        and time.monotonic() - troubled_at < TROUBLED_SECONDS)


def run(Model):
    """Send the due emails of each server that has a free slot.

    :param Model: the model of the queue.
    :raises ServerError: a server is in trouble or not configured. Its words
        are the same in every run, so that the scheduler makes one ``ir.error``
        of them.
    :raises CopyError: the database looks like a copy.
    :raises SettingError: the configuration makes no sense.
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
        errors += _side_by_side(
            Model, names, run_time, TASK_SECONDS if is_task else run_time)
    else:
        errors += _in_turn(Model, names, run_time)
    _raise_first(errors)


def _enough_connections(servers):
    "Return whether there are connections for a thread of each server"
    needed = servers * CONNECTIONS_EACH + CONNECTIONS_BESIDE
    allowed = config.getint('database', 'maxconn', default=64)
    if allowed < needed:
        logger.warning(
            "sending to one server after another: maxconn is %d, "
            "but %d servers side by side need %d",
            allowed, servers, needed)
    return allowed >= needed


def _check_copy(settings):
    with own_transaction(keep_context=True, autocommit=True):
        identity.check()
    if settings.redirect:
        logger.warning(
            "redirect is set: everything is sent to %s", settings.redirect)


def _missing(Model, names):
    "Return an error for each server that has emails and is not configured"
    with _opened(Model) as store:
        missing = [n for n in waiting_servers(Model) if n not in names]
        for name in missing:
            logger.warning("emails wait for the unknown server %s", name)
            store.explain(name, 'no_server')
    return [
        ServerError(
            gettext('email_queue.msg_server_missing', server=name),
            gettext('email_queue.msg_server_missing_description'),
            server=name)
        for name in missing]


def _raise_first(errors):
    "Raise the first error, and report the others as the scheduler does"
    # Unexpected errors first, because the scheduler retries a run after them
    errors.sort(key=lambda e: isinstance(e, EmailQueueError))
    for error in errors[1:]:
        _report(error)
    if errors:
        raise errors[0]


def _report(error):
    if not isinstance(error, EmailQueueError):
        logger.error("error in a run", exc_info=error)
    elif method := Transaction().context.get('_cron'):
        pool = Pool()
        for cron in pool.get('ir.cron').search(
                [('method', '=', method)], order=[('id', 'ASC')], limit=1):
            pool.get('ir.error').report(cron, error)


def _in_turn(Model, names, seconds):
    "Send the due emails of one server after another, and return the errors"
    errors = []
    for name in names:
        try:
            _send_due(Model, name, Deadline(seconds / len(names)))
        except Exception as error:
            errors.append(error)
    return errors


def _side_by_side(Model, names, seconds, patience):
    """Send the due emails of each server in a thread, and return the errors.

    :param seconds: how long a sender claims rows.
    :param patience: how many seconds to wait for the threads. A server that
        hangs for longer is left to its thread: the next run finds the slot of
        this server taken, and sends the emails of the other servers.
    """
    with _opened(Model) as store:
        # Before the threads start, because recovering locks the slots of dead
        # senders for a moment
        store.recover()
    threads = [_ServerThread(Model, name, Deadline(seconds)) for name in names]
    end, caller = time.monotonic() + patience, _Caller()
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while ((seconds := end - time.monotonic()) > 0
                    and not thread.wait(min(seconds, BEAT_SECONDS))):
                caller.touch()
    except BaseException:
        for thread in threads:
            thread.deadline.cut()
        raise
    # Leave all threads before any error is returned: a thread that is left
    # reports its own error
    ended = [thread for thread in threads if not thread.leave()]
    return [thread.error for thread in ended if thread.error]


class _ServerThread(Thread):
    """The thread of a run for one of several servers.

    It is no daemon, so that the interpreter waits until the outcomes are
    recorded, and no email is sent twice.
    """

    def __init__(self, Model, server, deadline):
        super().__init__(name=f'email_queue {server}', target=self._send)
        transaction = Transaction()
        self.deadline = deadline
        self.error = None
        self._Model = Model
        self._server = server
        self._database = transaction.database.name
        self._context = transaction.context
        self._is_over = self._is_left = False
        self._lock = threading.Lock()

    def _send(self):
        try:
            with self._transaction():
                _send_due(self._Model, self._server, self.deadline)
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
        """Let the thread report its own error from now on.

        :return: False where the thread has ended: then ``error`` is its error.
        """
        with self._lock:
            self._is_left = not self._is_over
        return self._is_left


def _send_due(Model, server, deadline):
    "Send the due emails of a server if a slot of it is free"
    failed, more, idle = [], True, 0
    try:
        settings = Settings.read(server)
        # Not for ever, because somebody may have locked the due rows for long
        while more and idle < IDLE_SENDERS:
            result, more = _with_slot(Model, server, settings, deadline)
            if result:
                idle = 0 if result.claimed else idle + 1
                failed += result.failed
                _check_trouble(server, result)
    except NotRecorded as error:
        raise _record_error(error) from error
    finally:
        _call_hook(Model, failed)


def _record_error(error):
    return RecordError(
        gettext('email_queue.msg_not_recorded', error=error),
        gettext('email_queue.msg_not_recorded_description'))


def _check_trouble(server, result):
    if result.in_trouble:
        logger.warning(
            "trouble with the server %s: %s",
            _server_name(server), result.trouble)
        _raise_trouble(server, result.trouble)


def _raise_trouble(server, words):
    _troubled_at[Transaction().database.name, server] = time.monotonic()
    raise ServerError(
        gettext('email_queue.msg_server_trouble',
            server=_server_name(server), error=words),
        gettext('email_queue.msg_server_trouble_description'),
        server=server, words=words)


def _server_name(server):
    name = server_name(server_uri(server))
    return f'{server} ({name})' if server else name


def _call_hook(Model, failed):
    try:
        if failed:
            Model.run_finished(failed)
    except Exception:
        # The hook only informs users; everything is recorded by now
        logger.exception("error in the hook for the end of a run")


def _with_slot(Model, server, settings, deadline):
    """Send the due emails of a server in a free slot.

    :return: the ``sender.Result``, None without a free slot, and whether rows
        are still due.
    """
    caller = _Caller()
    with _opened(Model, server) as store:
        if not store.slot.take(slot_numbers(server, settings.senders)):
            logger.info("no slot is free")
            return None, False
        try:
            store.recover()
            known = recall(store)
            _check_login(store, known)
            sender = Sender(store, settings, deadline, caller, known)
            sender.drain()
            _retain(store, sender.result.known, known)
        finally:
            store.slot.give_back()
        # A run that found no free slot meanwhile relies on this second look
        return sender.result, not sender.late and store.has_due()


def _check_login(store, known):
    """Check that the time to wait after refused logins is over.

    The next login waits, because each refused login brings the server closer
    to banning this host. It does not wait for a person who starts the run.

    :raises ServerError: it is too early for a login.
    """
    by_hand = Transaction().context.get('email_queue_by_hand')
    if not by_hand and known.login_waits(
            login_of(store.server), store.now()):
        _raise_trouble(store.server, known.trouble)


def _retain(store, known, before):
    try:
        retain(store, known, before)
    except store.Error:
        # No error is raised, because the emails are recorded, and the next run
        # learns the same
        logger.warning("what the run has learned is lost", exc_info=True)


def send(email, smtp=None):
    "Send one record: see EmailQueue.send"
    Model, settings = type(email), Settings.read()
    if settings.hold:
        raise HoldError(gettext('email_queue.msg_hold'))
    _check_copy(settings)
    caller = _Caller()
    with _opened(Model) as store:
        # A slot that no run takes, so that an email can be sent while all
        # other slots are taken
        row = None
        if store.slot.take([-email.id]):
            try:
                row = _send(store, email, settings, smtp, caller)
            except NotRecorded as error:
                raise _record_error(error) from error
            finally:
                store.slot.give_back()
    forget(Transaction())
    if not row:
        raise ClaimError(
            gettext('email_queue.msg_not_claimed', email=email.rec_name),
            email)
    if row.state != 'sent':
        error = shown.outcome(shown.labels(Model), row)
        raise NotSentError(
            gettext('email_queue.msg_not_sent',
                email=email.rec_name, error=error),
            email, row.state, row.reason, row.error)


def _send(store, email, settings, smtp, caller):
    "Return the row as it was recorded, None if it cannot be claimed"
    rows = store.claim_record(email.id)
    if not rows:
        return None
    claimed, = rows
    identity.remember()
    outcome = None
    if not claimed.expired(store.now()):
        outcome = _send_row(store.Model, claimed, settings, smtp)
    row = _judged(store, claimed, outcome, settings)
    recorder = Recorder(store, Gate(1), settings, caller.touch)
    recorder.add(with_events(claimed, row, outcome))
    insist(recorder.finish)
    log_row(row)
    return row


def _judged(store, row, outcome, settings):
    "Return the row as it has to be recorded after an attempt by ``send``"
    now = store.now()
    if not (outcome and outcome.refusal):
        return after(row, outcome, now, settings)
    known = recall(store)
    if row.suspect_since and accepted_since(store, known, row.suspect_since):
        return after(row, outcome, now, settings)
    is_only = not has_equal_suspect(store, known, row, outcome.refusal)
    return suspected(row, outcome, now, settings, is_only)


def _send_row(Model, row, settings, smtp):
    if not (server_uri(row.server) or smtp):
        return Outcome(trouble=Trouble(
                row.server, lasting=True, reason='no_server'))
    settings = Settings.read(row.server)
    if smtp is None:
        client = client_for(Model, settings, row.server)
    else:
        client = client_of(Model, settings, row.server, smtp)
    outcome = hand_over(client, row, settings.redirect)
    client.close()
    return outcome
