# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""How emails that are sent by ``trytond.sendmail`` get into the queue.

The emails become rows in the ``commit`` of a data manager, which trytond calls
at the end of the transaction, before it commits. So a rollback sends nothing.
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
        # As text, because a message is copied with its attributes, and a
        # record cannot be copied
        options['resource'] = str(options['resource'])
    msg.email_queue = options


class QueueDataManager:
    """Puts the emails of a transaction in the queue.

    An object of this class is for the argument ``datamanager`` of
    ``trytond.sendmail.send_message_transactional``.

    :param strict: whether an email that cannot be queued is an error.
        Otherwise it becomes a failed email.
    """

    def __init__(self, strict=True):
        self.strict = strict
        self.queue = []

    def put(self, from_addr, to_addrs, msg):
        # Checked here, because at the commit the caller cannot react any more
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
    "Queue now what the current transaction would queue at its commit"
    transaction = Transaction()
    managers = [QueueDataManager]
    if _is_captured(SMTPDataManager):
        managers.append(SMTPDataManager)
    for Manager in managers:
        for strict in [False, True]:
            transaction.join(Manager(strict=strict)).commit(transaction)


def capture():
    """Let the data manager of trytond put its emails in the queue.

    The class itself is changed, because trytond's modules import it by name.
    Nothing else in the module changes trytond.

    :return: a function that gives the class its own methods back.
    :raises RuntimeError: the class is not as the module knows it.
    """
    Manager = SMTPDataManager
    _check(Manager)
    core_commit, core_tpc_vote = Manager.commit, Manager.tpc_vote

    def commit(self, transaction):
        if EmailQueue := _captured(self, transaction):
            _queue(self, EmailQueue)
        core_commit(self, transaction)

    def tpc_vote(self, transaction):
        # The creation of queued emails may itself send emails in this commit.
        # Only these are left in ``queue``, and trytond sends them.
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
    "Return the model that queues the emails of a manager, None if none does"
    has_server = manager.uri is not None or manager._server is not None
    if not (has_server or transaction.readonly):
        try:
            return Pool(transaction.database.name).get('email.queue')
        except KeyError:
            # The module is not activated
            pass


def _queue(manager, EmailQueue):
    # Emptied, because each further commit of the transaction calls this again
    emails, manager.queue = manager.queue, []
    if emails:
        EmailQueue.queue_captured(emails, strict=manager.strict)
