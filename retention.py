# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Deletes old emails, removes their messages, and erases an address."""
import datetime as dt
import logging
import re
from typing import NamedTuple

from sql import Null
from sql.conditionals import Coalesce
from sql.functions import Lower
from sql.operators import Or

from trytond.i18n import gettext
from trytond.model import ModelView, fields
from trytond.pool import Pool
from trytond.tools import escape_wildcard, grouped_slice
from trytond.transaction import Transaction, without_check_access
from trytond.wizard import Button, StateTransition, StateView

from . import preview
from .access import QueueWizard, check_writable
from .address import NULL_SENDER, Invalid, addresses, on_the_wire
from .exceptions import not_an_address
from .files import purge
from .recipients import remaining, split_addresses, without
from .settings import Settings
from .tools import Tuple, database_time, forget, locking, own_transaction

__all__ = ['Erased', 'Retention']
logger = logging.getLogger(__name__)

BATCH = 1000
# The text that takes the place of an erased address
ERASED = '***'
NAMED_IN = [
    'from_addr', 'to_addrs', 'accepted', 'refused', 'error', 'subject', 'key',
    'mail_options', 'rcpt_options', 'queue_id']
# If a message has none of these, nothing in it is encoded
_encoded = re.compile(rb'base64|quoted-printable|=\?|&#|utf-?(?:7|16|32)')


class Erased(NamedTuple):
    "How many emails with an address were deleted, changed, or busy"
    deleted: int
    changed: int
    busy: int


class Retention:
    "How long the queue keeps emails and messages"
    __slots__ = ()

    @classmethod
    def clean(cls):
        """Delete old emails and remove the messages of sent emails.

        This is the daily scheduled job. It commits after every thousand
        emails.
        """
        settings = Settings.read()
        t = cls.__table__()
        emptied = deleted = 0
        if before := _ago(settings.clean_body_days):
            emptied = _each_batch(
                cls, t, t.sent_at,
                (t.state == 'sent') & (t.sent_at < before)
                & ((t.msg != Null) | (t.file_id != Null)),
                cls._remove_messages)
        if before := _ago(settings.clean_days):
            deleted = _each_batch(
                cls, t, t.sent_at, (t.state == 'sent') & (t.sent_at < before),
                cls._delete)
            changed_at = Coalesce(t.write_date, t.create_date)
            deleted += _each_batch(
                cls, t, changed_at,
                (t.state == 'cancelled') & (changed_at < before),
                cls._delete)
        with own_transaction(autocommit=True):
            purge(cls)
            Pool().get('email.queue.address').clean()
        logger.info(
            "%d emails deleted, the messages of %d removed", deleted, emptied)

    @classmethod
    def _delete(cls, ids):
        cls.delete(cls.browse(ids))

    @classmethod
    def _remove_messages(cls, ids):
        t = cls.__table__()
        cls.msg.queue_for_removal(cls, 'msg', ids)
        Transaction().connection.cursor().execute(*t.update(
                [t.msg, t.file_id], [None, None],
                where=fields.SQL_OPERATORS['in'](t.id, ids)))

    @classmethod
    def erase_address(cls, address):
        """Erase everything about an address, for a legal request.

        The method runs in the current transaction. An email to this address
        only is deleted, sent or not. Other emails lose the address in all of
        their fields. They also lose their message, at once or, if it still has
        to be sent, when it is sent.

        :param address: one email address.
        :return: the numbers of emails, as an :class:`Erased`. Busy emails are
            with a sender and stay: erase the address again after a few
            minutes.
        :raises ArgumentError: ``address`` is not one valid address.
        :raises ReadonlyError: the transaction is readonly.
        """
        check_writable()
        address = _Address(address)
        cursor = Transaction().connection.cursor()
        Event = cls.events.get_target()
        ids = cls._about(address)
        for name in ['email.queue.address', 'email.queue.server']:
            Pool().get(name).erase(address)
        deleted = changed = busy = 0
        for sub_ids in grouped_slice(sorted(ids), BATCH):
            sub_ids = list(sub_ids)
            t = cls.__table__()
            cursor.execute(*locking(t.select(
                        t.id,
                        where=fields.SQL_OPERATORS['in'](t.id, sub_ids)
                        & (t.state != 'sending'))))
            locked = [id_ for id_, in cursor]
            busy += len(sub_ids) - len(locked)
            emails = cls.browse(locked)
            delete = [e for e in emails if address.is_all_of(e)]
            change = [e for e in emails if not address.is_all_of(e)]
            with without_check_access():
                for email in change:
                    cls.write([email], address.erased_from(email))
                Event.erase(change, address)
                cls.delete(delete)
            deleted += len(delete)
            changed += len(change)
        logger.info(
            "an address erased: %d emails deleted, %d changed, %d busy",
            deleted, changed, busy)
        return Erased(deleted, changed, busy)

    @classmethod
    def count_address(cls, address):
        """Return what :meth:`erase_address` would do, and change nothing.

        :param address: one email address.
        :return: the numbers of emails, as an :class:`Erased`.
        :raises ArgumentError: ``address`` is not one valid address.
        """
        address = _Address(address)
        deleted = changed = busy = 0
        for ids in grouped_slice(sorted(cls._about(address)), BATCH):
            for email in cls.browse(list(ids)):
                if email.state == 'sending':
                    busy += 1
                elif address.is_all_of(email):
                    deleted += 1
                else:
                    changed += 1
        return Erased(deleted, changed, busy)

    @classmethod
    def _about(cls, address):
        "Return the ids of the emails with the address in any place"
        return {
            *cls._naming(address), *cls._mentioning(address),
            *cls.events.get_target().naming(address)}

    @classmethod
    def _naming(cls, address):
        "Return the ids of emails with the address anywhere but in a message"
        t = cls.__table__()
        cursor = Transaction().connection.cursor()
        columns = [getattr(t, name) for name in NAMED_IN]
        like = fields.SQL_OPERATORS['like']
        cursor.execute(*t.select(
                t.id, *columns,
                where=Or([
                        like(Lower(column), f'%{escape_wildcard(text)}%')
                        for column in columns for text in address.texts])))
        return [
            id_ for id_, *values in cursor
            if any(address.is_in(value) for value in values)]

    @classmethod
    def _mentioning(cls, address):
        "Yield the ids of the emails whose message has the address"
        t = cls.__table__()
        cursor = Transaction().connection.cursor()
        cursor.execute(*t.select(
                t.id, where=(t.msg != Null) | (t.file_id != Null)))
        for id_, in cursor.fetchall():
            data = cls._message(id_)
            if data and address.is_in_message(data):
                yield id_

    @classmethod
    def _message(cls, id_):
        "Return the bytes of the message of an email, sensitive or not"
        t = cls.__table__()
        cursor = Transaction().connection.cursor()
        cursor.execute(*t.select(
                t.msg, t.file_id, t.size, where=t.id == id_))
        for msg, file_id, size in cursor.fetchall():
            if file_id:
                return cls.msg.load(file_id, size)
            return bytes(msg or b'')

    @classmethod
    def move_messages(cls):
        """Move all messages to the place where new messages are stored.

        This is the filestore if the configuration says so, otherwise the
        database. Each move is committed by itself, so that the method can be
        stopped and called again, even while emails are sent. The message of an
        email that is with a sender stays.

        :return: how many messages were moved.
        """
        t = cls.__table__()
        if cls.msg.to_filestore:
            where, move = t.msg != Null, cls._move_in
        else:
            where, move = t.file_id != Null, cls._move_out
        count = last = 0
        with own_transaction(autocommit=True) as transaction:
            cursor = transaction.connection.cursor()
            while True:
                cursor.execute(*t.select(
                        t.id, where=where & (t.id > last),
                        order_by=[t.id], limit=BATCH))
                ids = [id_ for id_, in cursor]
                if not ids:
                    break
                for id_ in ids:
                    count += move(id_)
                last = ids[-1]
            purge(cls)
        return count

    @classmethod
    def _move_in(cls, id_):
        "Return whether the message of the email was moved to the filestore"
        file_id = cls.msg.store(cls._message(id_))
        t = cls.__table__()
        moved = _update_idle(t, id_, t.msg != Null, None, file_id)
        if not moved:
            cls.msg.remove(file_id)
        return moved

    @classmethod
    def _move_out(cls, id_):
        "Return whether the message of the email was moved to the database"
        data = cls._message(id_)
        if data is None:
            logger.error("the message of email %d cannot be moved", id_)
            return False
        cls.msg.queue_for_removal(cls, 'msg', [id_])
        t = cls.__table__()
        return _update_idle(
            t, id_, t.file_id != Null, cls.msg.sql_format(data), None)


def _update_idle(t, id_, where, msg, file_id):
    # An email that is with a sender is left out, because the sender has
    # already read where the message is
    cursor = Transaction().connection.cursor()
    cursor.execute(*t.update(
            [t.msg, t.file_id], [msg, file_id],
            where=where & (t.id == id_) & (t.state != 'sending')))
    return bool(cursor.rowcount)


def _ago(days):
    "Return the time ``days`` ago, None if ``days`` is zero or too large"
    try:
        return database_time() - dt.timedelta(days=days) if days else None
    except OverflowError:
        return None


def _each_batch(Model, t, at, where, change):
    """Change rows in the order of a time, and return their number.

    Each batch begins after the last row of the batch before, because the
    transaction of the scheduler keeps the index entries of changed rows.
    """
    count, after = 0, None
    while True:
        with own_transaction() as transaction:
            cursor = transaction.connection.cursor()
            place = where
            if after:
                place &= Tuple(at, t.id) > Tuple(*after)
            cursor.execute(*locking(t.select(
                        t.id, at.as_('at'), where=place,
                        order_by=[at, t.id], limit=BATCH)))
            rows = cursor.fetchall()
            if not rows:
                return count
            change([id_ for id_, _ in rows])
            forget(transaction)
        count += len(rows)
        after = rows[-1][::-1]


class _Address:
    "An address that is to be erased, and how it is found in texts"

    def __init__(self, text):
        try:
            found = addresses('address', text)
        except Invalid as error:
            raise not_an_address(error.value) from error
        if len(found) != 1:
            raise not_an_address(text)
        # In a message the domain can be in the form of SMTP, or as people
        # write it, or as the user has written it
        self.texts = sorted({
                found[0].lower(), on_the_wire(found[0]).lower(),
                _bare(text).lower()})
        self._local_parts = {
            text.rpartition('@')[0].encode('utf-8') for text in self.texts}
        self._pattern = re.compile('|'.join(
                # The whole address only; it can be within the URI of a page
                r'(?:(?<![\w.+-])|(?<=%3d))'
                + re.escape(text).replace('@', '(?:@|%40)')
                + r'(?![\w-]|\.\w)' for text in self.texts), re.I)

    def _equals(self, address):
        return address.lower() in self.texts

    def is_in(self, text):
        return bool(self._pattern.search(text or ''))

    def masked(self, text):
        return self._pattern.sub(ERASED, text) if text else text

    def is_in_message(self, data):
        # The local part is searched first, because most messages do not have
        # even this part
        lower = data.lower()
        if (any(part in lower for part in self._local_parts)
                and self.is_in(data.decode('utf-8', 'replace'))):
            return True
        if not _encoded.search(lower):
            return False
        reading = preview.read(data)
        texts = [
            *(value for _, value in reading.headers), reading.text,
            reading.html, *(a.name for a in reading.attachments)]
        return any(map(self.is_in, texts))

    def is_all_of(self, email):
        "Return whether the email is to nobody else"
        return all(map(
                self._equals, split_addresses(email.to_addrs)))

    def erased_from(self, email):
        "Return the values to write to an email that has other recipients, too"
        values = {
            name: self._without(name, getattr(email, name))
            for name in NAMED_IN}
        if email.state == 'outbox':
            values.update(self._waiting(email, values))
        if values.get('state', email.state) == 'outbox':
            values['sensitive'] = True
        else:
            values['msg'] = None
        return values

    def _waiting(self, email, values):
        "Return the values that end an email if nothing is left to be sent"
        if self._equals(email.from_addr):
            return {'state': 'cancelled'}
        if not remaining(
                values['to_addrs'], values['accepted'], values['refused']):
            if values['refused']:
                return {'state': 'failed', 'reason': 'refused'}
            return {
                'state': 'sent', 'sent_at': database_time(),
                'reason': None, 'error': None}
        return {}

    def _without(self, name, text):
        if name == 'from_addr':
            return NULL_SENDER if self._equals(text) else text
        if not text:
            return text
        if name == 'key':
            # None, because two masked keys would be equal
            return None if self.is_in(text) else text
        if name == 'to_addrs':
            return ', '.join(
                a for a in split_addresses(text)
                if not self._equals(a))
        if name in {'mail_options', 'rcpt_options'}:
            return ' '.join(o for o in text.split() if not self.is_in(o))
        if name in {'accepted', 'refused'}:
            text = without(text, self._equals)
        return self.masked(text) or None


def _bare(text):
    "Return the address in a text without the name before it"
    return text.rpartition('<')[2].partition('>')[0].strip()


class EraseAddress(QueueWizard):
    __name__ = 'email.queue.erase_address'

    start = StateView(
        'email.queue.erase_address.start',
        'email_queue.erase_address_start_view_form', [
            Button("Cancel", 'end', 'tryton-cancel'),
            Button("Count", 'count', 'tryton-forward', default=True),
            ])
    count = StateTransition()
    confirm = StateView(
        'email.queue.erase_address.confirm',
        'email_queue.erase_address_confirm_view_form', [
            Button("Cancel", 'end', 'tryton-cancel', default=True),
            Button("Erase", 'erase', 'tryton-clear'),
            ])
    erase = StateTransition()
    done = StateView(
        'email.queue.erase_address.done',
        'email_queue.erase_address_done_view_form', [
            Button("Close", 'end', 'tryton-close', default=True),
            ])

    def transition_count(self):
        EmailQueue = Pool().get('email.queue')
        _show(EmailQueue.count_address(self.start.address), self.confirm)
        return 'confirm'

    def default_confirm(self, fields):
        return {
            'address': self.start.address,
            'warning': gettext('email_queue.msg_erase_final'),
            **_shown(self.confirm),
            }

    def transition_erase(self):
        EmailQueue = Pool().get('email.queue')
        _show(EmailQueue.erase_address(self.start.address), self.done)
        return 'done'

    def default_done(self, fields):
        return _shown(self.done)


def _show(erased, view):
    "Put the numbers into a view of the wizard"
    for name, number in erased._asdict().items():
        setattr(view, name, number)


def _shown(view):
    "Return the numbers that a view of the wizard shows"
    return {name: getattr(view, name) for name in Erased._fields}


class EraseAddressStart(ModelView):
    __name__ = 'email.queue.erase_address.start'

    address = fields.Char(
        "Address", required=True,
        help="The email address about which everything is erased.")


class EraseAddressConfirm(ModelView):
    __name__ = 'email.queue.erase_address.confirm'

    address = fields.Char("Address", readonly=True)
    deleted = fields.Integer(
        "Deletions", readonly=True,
        help="The emails that are to this address only.")
    changed = fields.Integer(
        "Changes", readonly=True,
        help="The emails that would lose the address.")
    busy = fields.Integer(
        "Skipped", readonly=True,
        help="The emails that are being sent now.")
    warning = fields.Char("Warning", readonly=True)


class EraseAddressDone(ModelView):
    __name__ = 'email.queue.erase_address.done'

    deleted = fields.Integer(
        "Deleted", readonly=True,
        help="The emails that were to this address only.")
    changed = fields.Integer(
        "Changed", readonly=True,
        help="The emails that have lost the address.")
    busy = fields.Integer(
        "Busy", readonly=True,
        help="The emails that could not be changed as they are being sent. "
        "Erase the address again in a few minutes.")
