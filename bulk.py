# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""How emails become rows: many in one statement, and each key only once."""
import functools
import inspect
import operator
import re
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import groupby

from trytond import backend
from trytond.i18n import gettext
from trytond.model import ModelStorage, Workflow, fields
from trytond.transaction import Transaction, without_check_access

from .access import check_writable
from .address import Invalid
from .exceptions import ArgumentError
from .tools import database_time, forget

__all__ = ['Bulk', 'batches', 'checked_key']

# How many emails, and how many bytes of messages, one statement creates at
# most, so that the memory does not grow with the number of emails. Larger
# statements are slower, because for each record trytond looks at the ids of
# all records that are browsed with it.
ROWS, BYTES = 100, 8 * 2 ** 20
# GIVEN are the fields that have a value in each new email. CHECKED are all
# fields whose values are checked before the email is created.
GIVEN = {
    'from_addr', 'to_addrs', 'size', 'priority', 'scheduled_at', 'attempts',
    'crashes', 'state'}
CHECKED = GIVEN | {
    'msg', 'file_id', 'mail_options', 'rcpt_options', 'subject', 'message_id',
    'resource', 'server', 'expires_at', 'sensitive', 'key', 'error',
    # The following are empty in a new email
    'accepted', 'again_of', 'bounced_at', 'events', 'first_attempt',
    'own_priority', 'queue_id', 'reason', 'refused', 'sent_at', 'suspect',
    'suspect_since', 'uncertain'}
# Whether the values of the emails that the thread creates are checked already
_is_checked = ContextVar('is_checked', default=False)
SAVEPOINT = 'email_queue_bulk'
# In characters, because an index of PostgreSQL has room for 2,700 bytes
KEY_LENGTH = 500
KEY_INDEX = 'email_queue_key_unique'

# How the errors of PostgreSQL and SQLite name the key that is taken
_key_taken = re.compile(rf'{KEY_INDEX}|email_queue\.key')


class Bulk:
    "The part of the model that creates emails"
    __slots__ = ()

    @classmethod
    def queue_mails(cls, mails):
        """Queue many emails in the current transaction, all or none.

        :param mails: an iterable of tuples: sender, recipients, message, and a
            dictionary of further arguments, all for :meth:`queue_mail`. The
            dictionary may be left out. A generator must not end the
            transaction.
        :return: the records, in the same order.
        :raises ArgumentError: an email cannot be queued; ``index`` tells which
            one. Nothing is queued then, and the transaction remains usable.
        :raises TypeError: an item is no such tuple, or has an unknown keyword.
        :raises SettingError, ReadonlyError: as of :meth:`queue_mail`.
        """
        check_writable()
        items = cls._bulk_items(mails)
        if _is_autocommit():
            # Without a savepoint, check all emails before the first is created
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
                keywords = {**keywords}
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"queue_mails: mails[{index}] is no tuple of sender, "
                    f"recipients, message and keywords: {error}") from error
            try:
                values = cls._checked_values(
                    from_addr, to_addrs, msg, clock=clock, **keywords)
            except ArgumentError as error:
                raise ArgumentError(
                    gettext('email_queue.msg_mails_item',
                        index=index, error=error.message),
                    error.argument, error.value, index) from error
            except TypeError:
                cls._check_keywords(index, keywords)
                raise
            yield values, keywords.get('scheduled_at') is None

    @classmethod
    def _check_keywords(cls, index, keywords):
        "Check that ``keywords`` are arguments of :meth:`queue_mail`"
        _, _, _, *known = inspect.signature(cls.queue_mail).parameters
        for name in keywords:
            if name not in known:
                raise TypeError(
                    f"queue_mails: mails[{index}] has the unknown keyword "
                    f"{name!r}") from None

    @classmethod
    def _create_items(cls, items):
        """Create emails in batches and return their ids.

        If an email in the queue has the key of an item, its id is returned.

        :param items: pairs of values and whether a worker sends the email at
            the commit.
        """
        ids, due = [], []
        for batch in batches(items):
            found = cls._taken_keys(values.get('key') for values, _ in batch)
            # An email is named by its key, or by its position without a key
            names = [
                values.get('key') or position
                for position, (values, _) in enumerate(batch)]
            new = {}
            for name, item in zip(names, batch):
                if name not in found:
                    new.setdefault(name, item)
            created = cls._create_new([values for values, _ in new.values()])
            found.update(zip(new, created))
            ids += (found[name] for name in names)
            if not due:
                due = [
                    id_ for id_, (_, is_due) in zip(created, new.values())
                    if is_due][:1]
        cls._push(cls.browse(due))
        return ids

    @classmethod
    def _create_new(cls, vlist):
        if not vlist:
            return []
        try:
            with without_check_access(), _checked():
                emails = cls.create(_without_empty(vlist))
        except backend.DatabaseIntegrityError as error:
            if not _key_taken.search(str(error)):
                raise
            # Another transaction has queued the email since this transaction
            # began. trytond repeats a transaction that ends in an operational
            # error, and then finds the email.
            raise backend.DatabaseOperationalError(
                "an email with the same key was queued at the same time"
                ) from error
        with without_check_access():
            cls.queued(emails)
        return _ids(emails)

    @classmethod
    def _validate(cls, emails, field_names=None):
        if field_names is None and _is_checked.get():
            field_names = cls._unchecked_fields()
        super()._validate(emails, field_names=field_names)

    @classmethod
    def _unchecked_fields(cls):
        """Return the names of the fields that trytond has to validate.

        They are the fields to which another module has added a rule. The
        values of the other fields are checked already, and validating them
        once more would take as long as inserting the email. None stands for
        all fields: it is returned where another module extends
        ``validate_fields``, which gets the names.
        """
        if (cls.validate_fields.__func__
                is not ModelStorage.validate_fields.__func__):
            return None
        return {
            name for name, field in cls._fields.items()
            if name not in CHECKED or field.domain
            or getattr(field, 'size', None) or 'required' in field.states
            or (field.required and name not in GIVEN)}

    @classmethod
    def _taken_keys(cls, keys):
        "Return the ids of the emails in the queue with these keys, by key"
        keys = list({key for key in keys if key is not None})
        if not keys:
            return {}
        t = cls.__table__()
        cursor = Transaction().connection.cursor()
        cursor.execute(*t.select(
                t.key, t.id, where=fields.SQL_OPERATORS['in'](t.key, keys)))
        return dict(cursor.fetchall())

    @classmethod
    def _make_keys_unique(cls):
        # By SQL, because an index of trytond is never unique, and the index of
        # a constraint would have an entry for each row without a key
        Transaction().connection.cursor().execute(
            f'CREATE UNIQUE INDEX IF NOT EXISTS "{KEY_INDEX}" '
            f'ON "{cls._table}" ("key") WHERE "key" IS NOT NULL')

    @classmethod
    def copy(cls, emails, default=None):
        default = {} if default is None else default.copy()
        default.setdefault('key')
        # Not by Workflow.copy, which would put the copy of a sent email into
        # the outbox
        return super(Workflow, cls).copy(emails, default=default)

    @classmethod
    def _create_captured(cls, items):
        """Create captured emails.

        :param items: pairs of whether the email is about an email in the
            queue, and an item for :meth:`_create_items`.
        """
        for is_about_queue, group in groupby(items, operator.itemgetter(0)):
            # An email about the queue must not fire the trigger that may have
            # sent it
            context = {'_no_trigger': True} if is_about_queue else {}
            with Transaction().set_context(context):
                cls._create_items(item for _, item in group)


def checked_key(key):
    """Return a key, or None.

    :raises Invalid: the key is no text of one line, or too long.
    """
    if key is not None and not (
            isinstance(key, str) and key.isprintable()
            and 0 < len(key.strip()) and len(key) <= KEY_LENGTH):
        raise Invalid('key', key, 'msg_key_invalid')
    return key


def batches(items):
    "Yield lists of at most ``ROWS`` items, which end after ``BYTES`` bytes"
    batch, size = [], 0
    for item in items:
        batch.append(item)
        size += item[0]['size']
        if len(batch) >= ROWS or size >= BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _without_empty(vlist):
    """Return the values of emails without the fields that are empty in all.

    A statement takes time for each value that it writes, empty or not. A field
    that some of the emails have stays in all of them, because trytond makes a
    statement for each run of records with the same fields.
    """
    used = {
        name for values in vlist for name, value in values.items()
        if value is not None}
    return [
        {name: value for name, value in values.items() if name in used}
        for values in vlist]


def _ids(records):
    "Return the ids of new records, without instantiating them on trytond 8.2"
    ids = getattr(records, 'ids', None)
    return list(map(int, records)) if ids is None else ids


@contextmanager
def _checked():
    token = _is_checked.set(True)
    try:
        yield
    finally:
        _is_checked.reset(token)


def _is_autocommit():
    connection = Transaction().connection
    if backend.name == 'sqlite':
        return connection.isolation_level is None
    return bool(connection.autocommit)


@contextmanager
def _all_or_none():
    "Undo the changes of the block when it ends in an error"
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
        # On SQLite, releasing the outermost savepoint would commit
        cursor.execute(f'RELEASE SAVEPOINT {SAVEPOINT}')
