# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""One run: take a slot, claim rows, hand them over, record the outcomes.

The calling thread owns the database, the threads of the sessions do SMTP only.
"""
import collections
import datetime as dt
import logging
import queue
import threading
import time
from contextlib import contextmanager

from trytond import backend
from trytond.i18n import gettext
from trytond.transaction import Transaction, without_check_access

from . import smtp
from .exceptions import EmailQueueError
from .policy import (
    ALIKE, RECORD_SECONDS, Pace, Patience, Settings, Suspects, Throttle, after)
from .store import BEAT_SECONDS, CRASHES_ALONE, Store, forget

__all__ = ['in_trouble', 'run', 'send']
logger = logging.getLogger(__name__)

HELD_SIZE = 16 * 1024 * 1024
FENCE_SECONDS = 30
# A herd of tasks must not be one of connections
TROUBLED_SECONDS = 10
_troubled_at = {}
ALIKE_DELAY = dt.timedelta(minutes=5)


class Sender:
    """A run that holds a slot.

    The threads take rows from ``_work`` in the order of sending and put pairs
    of row and outcome in ``_results``; the outcome is None where the row was
    not handed over.
    """

    def __init__(self, store, settings, ends_at):
        self.store = store
        self.number = store.number
        self.trouble = None
        self.accepted = False
        self.unrecorded = []
        self.failed = []
        self._settings = settings
        self._ends_at = ends_at
        self._held = {}
        self._work = queue.PriorityQueue()
        self._results = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._suspects = Suspects()
        self._patience = Patience()
        self._pace = Pace(settings.connections)
        self._throttle = Throttle(settings.rate / settings.senders)
        self._now = None
        self._recorded_at = 0
        self._alone_claimed = False
        self._counts = collections.Counter()
        self._started_at = time.monotonic()
        self._threads = [
            threading.Thread(target=self._serve, daemon=True)
            for _ in range(settings.connections)]

    def drain(self):
        "Send what is due, until nothing is or the time is over"
        for thread in self._threads:
            thread.start()
        try:
            while self._replenish():
                self._settle(self._arrived(wait=True))
                self._record()
                self.store.beat()
        finally:
            self._stop()
            self._record()
        self._log()

    @property
    def in_trouble(self):
        "Whether trouble ended the run or let nothing be accepted in it"
        return self.trouble and (self._stopped_early or not self.accepted)

    @property
    def late(self):
        return time.monotonic() >= self._ends_at

    # The calling thread

    def _replenish(self):
        "Claim ahead and return whether there is anything to wait for"
        if self._stopping.is_set():
            return False
        alone = any(r.crashes >= CRASHES_ALONE for r in self._held.values())
        rows = self._pace.rows()
        if not (self.late or alone) and len(self._held) <= rows / 2:
            size = sum(r.size for r in self._held.values())
            self._hold(self.store.claim(
                    rows - len(self._held), HELD_SIZE - size))
        if not self._held and not (self.late and self._alone_claimed):
            self._alone_claimed = True
            self._hold(self.store.claim_alone())
        return bool(self._held)

    def _hold(self, rows):
        for row in rows:
            self._held[row.id] = row._replace(msg=None)
            self._work.put((row.place, row))

    def _arrived(self, wait=False):
        "Return the results that have come, after a while where there is none"
        pairs = []
        if wait:
            try:
                pairs.append(self._results.get(timeout=BEAT_SECONDS))
            except queue.Empty:
                return pairs
            # Recording each by itself makes both sides wait for each other
            time.sleep(max(
                    self._recorded_at + RECORD_SECONDS - time.monotonic(), 0))
        while not self._results.empty():
            pairs.append(self._results.get())
        return pairs

    def _settle(self, pairs):
        # What is recorded together has one time
        self._now = dt.datetime.now()
        now = time.monotonic()
        self._pace.finished(len(pairs))
        for row, outcome in pairs:
            del self._held[row.id]
            if outcome and outcome.accepted:
                self.accepted = True
                self._patience.relieved()
            if outcome and outcome.trouble:
                self._patience.troubled(now)
                self._trouble(
                    outcome.trouble.words,
                    outcome.trouble.lasting or self._patience.exhausted(now))
            self._finish(self._suspects.settle(row, outcome))
        if self._suspects.count >= 2 * ALIKE:
            self._accuse()

    def _trouble(self, words, lasting):
        self.trouble = words
        if lasting:
            self._stopping.set()

    def _accuse(self):
        "Blame the server for what the suspects were refused for"
        words = self._suspects.words
        outcome = smtp.Outcome(trouble=smtp.Trouble(words, lasting=True))
        due = self._now + ALIKE_DELAY
        self._finish(
            (row._replace(scheduled_at=due), outcome)
            for row, _ in self._suspects.release())
        self._trouble(words, lasting=True)

    def _finish(self, pairs):
        for row, outcome in pairs:
            row = after(row, outcome, self._now, self._settings)
            self.unrecorded.append(row)
            if row.state == 'failed':
                self.failed.append(row.id)
            if outcome or row.state == 'failed':
                self._counts[row.state] += 1
                _log_row(row)

    def _record(self):
        self.store.record(self.unrecorded)
        self.unrecorded = []
        self._recorded_at = time.monotonic()

    def _stop(self):
        "Let the threads end what they are at and give the rest back"
        self._stopped_early = self._stopping.is_set()
        self._stopping.set()
        for _ in self._threads:
            self._work.put(((), None))
        for thread in self._threads:
            while thread.is_alive():
                thread.join(BEAT_SECONDS)
                self._beat()
        self._settle(self._arrived())
        while not self._work.empty():
            _, row = self._work.get()
            if row:
                self._settle([(self._held[row.id], None)])
        if self._suspects.count >= ALIKE:
            self._accuse()
            self._stopped_early = True
        self._finish(self._suspects.release())

    def _beat(self):
        try:
            self.store.beat()
        except backend.DatabaseOperationalError:
            # It may be the reason to stop
            logger.debug("no connection", exc_info=True)

    def _log(self):
        if not self._counts:
            return
        seconds = time.monotonic() - self._started_at
        logger.info(
            "sender %s: %d sent, %d failed, %d deferred in %.1f s, "
            "%.1f messages/s",
            self.number, self._counts['sent'], self._counts['failed'],
            self._counts['outbox'], seconds, self._counts['sent'] / seconds)

    # The threads

    def _serve(self):
        client = _client(self.store.Model, self._settings)
        while (row := self._work.get()[1]) is not None:
            outcome = None
            if self._may_send(row):
                outcome = _deliver(client, row)
            self._results.put((row._replace(msg=None), outcome))
        client.close()

    def _may_send(self, row):
        "Wait for the row's turn and return whether it can be handed over"
        turn = self._throttle.turn()
        while (seconds := max(turn, self._patience.until)
                - time.monotonic()) > 0:
            if self._stopping.wait(seconds):
                break
        return not (
            self._stopping.is_set()
            or row.expired(dt.datetime.now())
            or time.monotonic() - self.store.used_at > FENCE_SECONDS)


def _client(Model, settings, server=None):
    return smtp.Client(
        server=server,
        timeout=settings.timeout,
        data_timeout=settings.data_timeout,
        messages=settings.messages_per_connection,
        recipients=settings.recipients,
        verdict=Model.verdict)


def _mail(row):
    return smtp.Mail(
        row.from_addr, tuple(row.remaining), bytes(row.msg),
        tuple((row.mail_options or '').split()),
        tuple((row.rcpt_options or '').split()))


def _deliver(client, row):
    try:
        return client.deliver(_mail(row))
    except Exception as error:
        # A message without bytes, with an address that is none …
        logger.debug("email %d can not be sent", row.id, exc_info=True)
        outcome = smtp.Outcome()
        outcome.refuse(
            row.remaining or [row.to_addrs], 'mail',
            f"{type(error).__name__}: {error}")
        return outcome


def _log_row(row):
    if row.state == 'sent':
        return
    state = 'failed' if row.state == 'failed' else (
        f'deferred until {row.scheduled_at:%Y-%m-%d %H:%M:%S}')
    logger.info(
        "email %d %s: %s", row.id, state, ' | '.join(row.error.splitlines()))


@contextmanager
def _own_transaction():
    with Transaction().new_transaction(autocommit=True) as transaction, \
            transaction.set_user(0), without_check_access():
        yield


def in_trouble():
    "Return whether a run of this process met trouble a moment ago"
    troubled_at = _troubled_at.get(Transaction().database.name)
    return (troubled_at is not None
        and time.monotonic() - troubled_at < TROUBLED_SECONDS)


def run(Model):
    """Send the due emails of ``Model`` if a slot is free.

    :raises EmailQueueError: the server is in trouble, in words that are the
        same in every run.
    """
    settings = Settings.read()
    ends_at = time.monotonic() + settings.run_time
    more, failed = True, []
    try:
        while more:
            sender, more = _run(Model, settings, ends_at)
            if sender:
                failed += sender.failed
                _check_trouble(sender)
    finally:
        _finish(Model, failed)


def _check_trouble(sender):
    if sender.in_trouble:
        logger.warning("trouble with the server: %s", sender.trouble)
        _troubled_at[Transaction().database.name] = time.monotonic()
        raise EmailQueueError(
            gettext('email_queue.msg_server_trouble',
                server=smtp.server_name(),
                error=smtp.alike(sender.trouble)),
            gettext('email_queue.msg_server_trouble_description'))


def _finish(Model, failed):
    try:
        if failed:
            Model.run_finished(failed)
    except Exception:
        # It is told for the convenience of users, what was done is recorded
        logger.exception("error in the hook for the end of a run")


def _run(Model, settings, ends_at):
    "Return the sender, None without a slot, and whether more is due"
    sender = None
    try:
        with _own_transaction():
            store = Store(Model)
            if not store.take(range(1, settings.senders + 1)):
                logger.info("no slot is free")
                return None, False
            try:
                store.recover()
                sender = Sender(store, settings, ends_at)
                sender.drain()
            finally:
                store.give_back()
            # Whoever found no slot in the meantime relies on it
            return sender, not sender.late and store.has_due()
    except backend.DatabaseOperationalError:
        if sender and sender.unrecorded:
            _record_again(sender)
        raise


def _record_again(sender):
    "Record what the connection was lost for, if nobody has taken the slot"
    with _own_transaction():
        store = Store(sender.store.Model)
        if store.take([sender.number]):
            store.record(sender.unrecorded)
            store.give_back()


def send(email, server=None):
    "Send one record: see EmailQueue.send"
    Model, settings = type(email), Settings.read()
    with _own_transaction():
        store = Store(Model)
        # A slot of its own, whatever runs
        row = None
        if store.take([-email.id]):
            try:
                row = _send(store, email, settings, server)
            finally:
                store.give_back()
    forget(Transaction())
    if not row:
        raise EmailQueueError(gettext(
                'email_queue.msg_not_claimed', email=email.rec_name))
    if row.state != 'sent':
        raise EmailQueueError(gettext(
                'email_queue.msg_not_sent',
                email=email.rec_name, error=row.error))


def _send(store, email, settings, server):
    "Return the row as it was recorded, None where it can not be claimed"
    for row in store.claim_record(email.id):
        outcome = None
        if not row.expired(dt.datetime.now()):
            client = _client(store.Model, settings, server=server)
            outcome = _deliver(client, row)
            client.close()
        row = after(row, outcome, dt.datetime.now(), settings)
        store.record([row])
        _log_row(row)
        return row
