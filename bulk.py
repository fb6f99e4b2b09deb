# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Many emails at once: a statement queues hundreds of them."""
import functools
import operator
from contextlib import contextmanager
from itertools import groupby

from trytond import backend
from trytond.i18n import gettext
from trytond.transaction import Transaction, without_check_access

from .access import check_writable
from .exceptions import EmailQueueError
from .store import database_time, forget

__all__ = ['Bulk', 'batches']

# What is created together, so that the memory does not grow with the number
ROWS, BYTES = 500, 8 * 2 ** 20
SAVEPOINT = 'email_queue_bulk'


class Bulk:
    "The part of the model that queues many emails at once"
    __slots__ = ()

    @classmethod
    def queue_mails(cls, mails):
        """Queue many emails in the current transaction, all or none.

        :param mails: an iterable of tuples: sender, recipients and message as
            of :meth:`queue_mail`, and a dictionary of its other arguments,
            which may be left out. A generator must not end the transaction.
        :return: the records, in the same order.
        :raises EmailQueueError: one of them cannot be queued, with its index.
            Nothing is queued then and the transaction remains usable.
        """
        check_writable()
        items = cls._bulk_items(mails)
        if _is_autocommit():
            # There is no savepoint: nothing is created before all is checked
            items = list(items)
        with _all_or_none():
            ids = cls._create_items(items)
        return cls.browse(ids)

    @classmethod
    def _bulk_items(cls, mails):
        "Yield the values of each email and whether it is due at the commit"
        clock = functools.cache(database_time)
        for index, mail in enumerate(mails):
            try:
                from_addr, to_addrs, msg, *others = mail
                keywords, = others or [{}]
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"mails[{index}] is no tuple of sender, recipients, "
                    f"message and keywords: {error}") from error
            try:
                values = cls._checked_values(
                    from_addr, to_addrs, msg, clock=clock, **keywords)
            except EmailQueueError as error:
                raise EmailQueueError(gettext(
                        'email_queue.msg_mails_item',
                        index=index, error=error.message)) from error
            except TypeError as error:
                # A keyword that there is not
                raise TypeError(f"mails[{index}]: {error}") from error
            yield values, keywords.get('scheduled_at') is None

    @classmethod
    def _create_items(cls, items):
        """Create emails in batches and return their ids.

        :param items: pairs of values and whether a worker sends the email at
            the commit.
        """
        ids, due = [], None
        for batch in batches(items):
            with without_check_access():
                emails = cls.create([values for values, _ in batch])
            new_ids = list(map(int, emails))
            ids += new_ids
            for id_, (_, is_due) in zip(new_ids, batch):
                if is_due and due is None:
                    due = id_
        if due is not None:
            cls._push([cls(due)])
        return ids

    @classmethod
    def _create_captured(cls, items):
        """Create captured emails.

        :param items: pairs of whether the email is about one in the queue,
            and what :meth:`_create_items` takes.
        """
        for is_about_queue, group in groupby(items, operator.itemgetter(0)):
            # Such an email fires no trigger, because one has made it
            context = {'_no_trigger': True} if is_about_queue else {}
            with Transaction().set_context(context):
                cls._create_items(item for _, item in group)


def batches(items):
    "Yield lists of pairs whose first are values, with a bound in bytes, too"
    batch, size = [], 0
    for item in items:
        batch.append(item)
        size += item[0]['size']
        if len(batch) >= ROWS or size >= BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _is_autocommit():
    connection = Transaction().connection
    if backend.name == 'sqlite':
        return connection.isolation_level is None
    return bool(connection.autocommit)


@contextmanager
def _all_or_none():
    "Take back what was done within, when it ends in an error"
    transaction = Transaction()
    if _is_autocommit():
        yield
        return
    cursor = transaction.connection.cursor()
    cursor.execute(f'SAVEPOINT {SAVEPOINT}')
    try:
        yield
    except BaseException:
        cursor.execute(f'ROLLBACK TO SAVEPOINT {SAVEPOINT}')
        forget(transaction)
        raise
    if backend.name != 'sqlite':
        # There the end of the outermost savepoint is a commit
        cursor.execute(f'RELEASE SAVEPOINT {SAVEPOINT}')
