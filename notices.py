# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What a notice of non-delivery changes: a refusal that comes late."""
import json
import logging
import re
from typing import NamedTuple

from sql import Column, Literal
from sql.aggregate import Count
from sql.conditionals import Coalesce

from trytond import backend
from trytond.i18n import gettext
from trytond.pool import Pool
from trytond.transaction import Transaction, without_check_access

from . import bounce
from .access import check_writable
from .address import NULL_SENDER, on_the_wire
from .dead import GONE
from .exceptions import BusyError
from .history import about
from .program import opened
from .recipients import (
    account, answer_lines, join_lines, split_addresses, split_lines,
    words_by_address)
from .tools import forget, utc_now

__all__ = ['Notices', 'Received', 'SES_ID', 'SES_IDS', 'receive']
logger = logging.getLogger(__name__)

# Notices add no event to a history of so many events, so that a flood of
# notices does not fill the table
EVENTS = 100
# LIKE patterns of the queue ids of Amazon SES. They are the local parts of the
# Message-IDs that SES gives to messages in place of their own. An email that
# went in several SMTP transactions has several queue ids, one a line.
SES_ID = '%-000000'
SES_IDS = f'%\n{SES_ID}'
# The exit statuses that a mail server understands (sysexits.h)
EX_OK, EX_DATAERR, EX_NOUSER, EX_TEMPFAIL = 0, 65, 67, 75

_ses_message_id = re.compile(
    r'<([0-9a-f-]{40,}-000000)@(?:[a-z0-9-]+\.)?amazonses\.com>')
_envelope_id = re.compile(r'ENVID=(\S+)', re.I)
_xtext = re.compile(r'\+([0-9A-F]{2})')


class Received(NamedTuple):
    """What a notice has changed.

    :param emails: the ids of the emails that the notice is about.
    :param failed: the ids of the emails for which the notice has changed a
        recipient from accepted to refused.
    """
    emails: list
    failed: list


class _Email(NamedTuple):
    "The columns of an email that are compared with a notice"
    id: int
    from_addr: str
    to_addrs: str
    mail_options: str
    message_id: str
    subject: str
    state: str
    accepted: str
    refused: str
    error: str

    @property
    def envelope_id(self):
        "The ENVID of the envelope, empty if it has none"
        match = _envelope_id.search(self.mail_options or '')
        return _xtext.sub(
            lambda m: chr(int(m[1], 16)), match[1]) if match else ''

    @property
    def taken(self):
        "The recipients that the server has accepted"
        if self.state == 'sent':
            return split_addresses(self.to_addrs)
        return split_lines(self.accepted)

    def may_be_of(self, notice):
        "Return whether the notice may be about the email"
        return (
            # No mail server sends notices to the null sender
            self.from_addr != NULL_SENDER
            and not (notice.envelope_id and self.envelope_id
                and notice.envelope_id != self.envelope_id)
            and any(
                self.find(r, split_addresses(self.to_addrs))
                for r in notice.recipients))

    @staticmethod
    def find(recipient, addresses):
        """Return the address among ``addresses`` that a notice is about.

        :param recipient: the ``bounce.Recipient`` of the notice.
        :return: None if no address is the same.
        """
        by_key = {_key(a): a for a in addresses}
        for address in [recipient.original, recipient.address]:
            if address and _key(address) in by_key:
                return by_key[_key(address)]


def _key(address):
    "Return what is equal for two forms of the same address"
    return on_the_wire(address).lower()


class Notices:
    "The part of the model that records notices of non-delivery"
    __slots__ = ()

    @classmethod
    def receive_notice(cls, data):
        """Record what a notice of non-delivery says.

        A recipient whom the server had accepted becomes refused. The changes
        are made in the current transaction. Users are notified when it is
        committed.

        :param data: the bytes of the notice, whatever they are.
        :return: a :class:`Received`, None if the bytes are no notice.
        :raises BusyError: a sender holds one of the emails at this moment.
        :raises ReadonlyError: the transaction is readonly.
        """
        check_writable()
        notice = bounce.read(data)
        if not notice:
            logger.info("not a notice of non-delivery: %d bytes", len(data))
            return None
        emails = cls._noticed(notice)
        failed = [
            email.id for email in emails
            if cls._receive(email, notice.recipients)]
        if not emails:
            logger.warning(
                "a notice about %s is about no email of the queue",
                notice.message_id)
        if failed:
            forget(Transaction())
            Transaction().join(_Failed(cls)).ids.update(failed)
        return Received([e.id for e in emails], failed)

    @classmethod
    def receive_inbound_email(cls, inbound, rule):
        """Record a notice that came by the module *Inbound Email*.

        The method is called as the action of a rule of an inbox.

        :return: the first email that the notice is about, or None.
        """
        received = cls.receive_notice(_raw(inbound))
        if received and received.emails:
            return cls(received.emails[0])

    @classmethod
    def _noticed(cls, notice):
        "Return the emails that a notice is about"
        t = cls.__table__()
        where = t.message_id == notice.message_id
        if match := _ses_message_id.fullmatch(notice.message_id):
            # Each condition is the condition of an index
            where |= (t.queue_id == match[1]) & t.queue_id.like(SES_ID)
            where |= (
                t.queue_id.like(f'%{match[1]}%') & t.queue_id.like(SES_IDS))
        cursor = Transaction().connection.cursor()
        cursor.execute(*t.select(
                *(Column(t, name) for name in _Email._fields), where=where))
        emails = [_Email(*values) for values in cursor.fetchall()]
        return [e for e in emails if e.may_be_of(notice)]

    @classmethod
    def _receive(cls, email, recipients):
        "Record what a notice says of an email; return whether it has bounced"
        bounced, delayed, gone = {}, {}, {}
        for recipient in recipients:
            if recipient.action not in {'failed', 'delayed'}:
                continue
            if email.state == 'sending' and email.find(
                    recipient, split_addresses(email.to_addrs)):
                raise _busy(email)
            if address := email.find(recipient, email.taken):
                answers = bounced if recipient.action == 'failed' else delayed
                answers[address] = recipient.words
                if answers is bounced and recipient.status in GONE:
                    gone[address.lower()] = recipient.words, email.id
        if bounced:
            cls._refuse(email, bounced)
            cls._add_event_once(email, about('bounced', bounced))
            Pool().get('email.queue.address').learn(gone, refused=False)
        if delayed:
            cls._add_event_once(email, about('delayed', delayed))
        return bool(bounced)

    @classmethod
    def _refuse(cls, email, bounced):
        "Write to the row that the recipients in ``bounced`` are refused"
        accepted = join_lines(
            None, (a for a in email.taken if a not in bounced))
        refused = join_lines(
            email.refused, answer_lines(bounced))
        values = {
            'accepted': accepted,
            'refused': refused,
            'bounced_at': utc_now(),
            'write_date': utc_now(),
            }
        if email.state in {'sent', 'failed'}:
            values['state'] = 'failed'
            values['reason'] = 'bounced'
            values['error'] = account(
                email.to_addrs,
                words_by_address(refused, split_addresses(email.to_addrs)))
        t = cls.__table__()
        cursor = Transaction().connection.cursor()
        cursor.execute(*t.update(
                [Column(t, name) for name in values], list(values.values()),
                # Only if nobody has changed the row since the row was read
                where=(t.id == email.id) & (t.state == email.state)
                & (Coalesce(t.accepted, '') == (email.accepted or ''))
                & (Coalesce(t.refused, '') == (email.refused or ''))))
        if not cursor.rowcount:
            raise _busy(email)

    @classmethod
    def _add_event_once(cls, email, event):
        "Add an event to the history, unless it is full or says the same"
        Event = cls.events.get_target()
        t = Event.__table__()
        cursor = Transaction().connection.cursor()
        cursor.execute(*t.select(
                Count(Literal(1)), where=t.email == email.id))
        count, = cursor.fetchone()
        if count >= EVENTS:
            return
        if event.kind == 'delayed':
            cursor.execute(*t.select(
                    t.id, where=(t.email == email.id)
                    & (t.kind == event.kind)
                    & (t.recipients == event.recipients)
                    & (t.words == event.words), limit=1))
            if cursor.fetchone():
                return
        Event.add_events(
            event.kind, lambda t: t.id == email.id,
            recipients=event.recipients, words=event.words)


def _busy(email):
    return BusyError(
        gettext('email_queue.msg_notice_busy',
            email=email.subject or email.message_id),
        email)


def _raw(inbound):
    "Return the bytes of an inbound email, empty if its service has none"
    data = bytes(inbound.data or b'')
    if inbound.data_type == 'raw':
        return data
    key = {
        'mailchimp': 'raw_msg',
        'mailpace': 'raw',
        'postmark': 'RawEmail',
        'sendgrid': 'email',
        }.get(inbound.data_type)
    try:
        value = json.loads(data)[key]
        return value.encode('utf-8', 'surrogateescape')
    except (AttributeError, KeyError, TypeError, ValueError):
        return b''


class _Failed:
    """Notifies users of failed emails when the transaction is committed.

    It is a data manager, because the notifications are made in a transaction
    of their own, which sees the failures only after the commit.
    """

    def __init__(self, Model):
        self.Model = Model
        self.ids = set()

    def __eq__(self, other):
        return isinstance(other, _Failed) or NotImplemented

    def tpc_finish(self, transaction):
        ids, self.ids = self.ids, set()
        try:
            if ids:
                self.Model.run_finished(sorted(ids))
        except Exception:
            # Not raised, because the failures are recorded by now
            logger.exception("error in the hook for the end of a run")

    def tpc_abort(self, transaction):
        self.ids = set()

    abort = tpc_abort

    def tpc_begin(self, transaction):
        pass

    commit = tpc_vote = tpc_begin


def receive(database, data):
    """Record a notice for the program that a mail server calls.

    :param database: the name of the database.
    :param data: the bytes of the notice.
    :return: the exit status of ``sysexits.h``, and the line to print.
    """
    try:
        with opened(database, 'email.queue', readonly=False) as EmailQueue, \
                without_check_access():
            received = EmailQueue.receive_notice(data)
    except (BusyError, backend.DatabaseOperationalError) as error:
        return EX_TEMPFAIL, str(error)
    if received is None:
        return EX_DATAERR, "this is no notice of non-delivery"
    if not received.emails:
        return EX_NOUSER, "the notice is about no email of the queue"
    ids = ', '.join(map(str, received.failed))
    return EX_OK, f"not delivered: {ids}" if ids else "nothing is new"
