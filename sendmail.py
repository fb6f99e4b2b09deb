# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Emails that are sent by ``trytond.sendmail`` go in the queue.

A data manager's ``commit`` runs in the transaction of the database, before it
is committed: there the emails become rows, so that a rollback sends nothing.
"""
from email.message import Message
from inspect import signature

from trytond.pool import Pool
from trytond.sendmail import SMTPDataManager
from trytond.transaction import Transaction

from .access import check_writable

__all__ = ['QueueDataManager', 'capture', 'queue_now', 'set_options']


def set_options(msg, **options):
    """Choose how a captured email is queued.

    :param msg: the ``email.message.Message`` that is going to be sent.
    :param options: keywords of ``EmailQueue.queue_mail``.
    """
    if options.get('resource') is not None:
        # A record can not be copied, as the message is with all that it has
        options['resource'] = str(options['resource'])
    msg.email_queue = options


class QueueDataManager:
    """Puts the emails of a transaction in the queue.

    For the argument ``datamanager`` of ``send_message_transactional``.

    :param strict: whether an email that can not be queued is an error. Else
        it becomes a failed one.
    """

    def __init__(self, strict=True):
        self.strict = strict
        self.queue = []

    def put(self, from_addr, to_addrs, msg):
        # At the commit the caller could do nothing about it
        check_writable()
        self.queue.append((from_addr, to_addrs, msg))

    def __eq__(self, other):
        if not isinstance(other, QueueDataManager):
            return NotImplemented
        return self.strict == other.strict

    def abort(self, transaction):
        self.queue.clear()

    def tpc_begin(self, transaction):
        pass

    def commit(self, transaction):
        _queue(self, Pool().get('email.queue'))

    def tpc_vote(self, transaction):
        pass

    def tpc_finish(self, transaction):
        pass

    def tpc_abort(self, transaction):
        self.queue.clear()


def queue_now():
    "Queue what the current transaction would queue at its commit"
    transaction = Transaction()
    managers = [QueueDataManager]
    if _is_captured(SMTPDataManager):
        managers.append(SMTPDataManager)
    for Manager in managers:
        for strict in [False, True]:
            transaction.join(Manager(strict=strict)).commit(transaction)


def capture():
    """Let core's own data manager put its emails in the queue.

    The one place that changes trytond: its modules import the class by name,
    so that only a change of the class itself reaches them all.

    :return: a function that undoes it.
    :raises RuntimeError: trytond is not as this relies on.
    """
    Manager = SMTPDataManager
    _check(Manager)
    core_commit, core_tpc_vote = Manager.commit, Manager.tpc_vote

    def commit(self, transaction):
        if EmailQueue := _captured(self, transaction):
            _queue(self, EmailQueue)
        core_commit(self, transaction)

    def tpc_vote(self, transaction):
        # What a trigger on the queue itself sends is left in it
        if self.queue or not _captured(self, transaction):
            core_tpc_vote(self, transaction)

    def release():
        Manager.commit, Manager.tpc_vote = core_commit, core_tpc_vote

    if not _is_captured(Manager):
        Manager.commit, Manager.tpc_vote = commit, tpc_vote
    return release


def _is_captured(Manager):
    return Manager.commit.__module__ == __name__


def _check(Manager):
    manager, item = Manager(), ('from@example.com', [], Message())
    try:
        manager.put(*item)
        known = (
            manager.queue == [item]
            and manager.uri is None
            and manager._server is None
            and manager.strict is False
            and len(signature(manager.commit).parameters) == 1
            and len(signature(manager.tpc_vote).parameters) == 1)
    except (AttributeError, TypeError):
        known = False
    if not known:
        raise RuntimeError(
            "[email_queue] capture does not know this version of "
            "trytond.sendmail.SMTPDataManager")


def _captured(manager, transaction):
    "Return the queue that the manager's emails go in, None for core's way"
    has_server = manager.uri is not None or manager._server is not None
    if not (has_server or transaction.readonly):
        try:
            return Pool(transaction.database.name).get('email.queue')
        except KeyError:
            # The module is not activated
            pass


def _queue(manager, EmailQueue):
    # Each commit of a transaction comes here: what is queued must be gone
    emails, manager.queue = manager.queue, []
    if emails:
        EmailQueue.queue_captured(emails, strict=manager.strict)
