# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What scheduled actions, triggers and archived emails of trytond gain."""
from typing import NamedTuple

from sql import Column

from trytond.i18n import gettext
from trytond.model import Index, ModelView, dualmethod, fields
from trytond.model.exceptions import AccessError
from trytond.pool import Pool, PoolMeta
from trytond.pyson import Eval, If
from trytond.transaction import Transaction, check_access, without_check_access

from . import shown
from .access import looks_after_queue
from .exceptions import changed
from .recipients import masked
from .sendmail import queue_now

DELIVERIES = {
    'outbox': 'waiting',
    'sending': 'waiting',
    'sent': 'sent',
    'failed': 'failed',
    'cancelled': 'cancelled',
    }


class _Queued(NamedTuple):
    "The columns of a queued email that tell its delivery"
    state: str
    reason: str
    error: str
    to_addrs: str
    accepted: str
    refused: str
    uncertain: bool


class Cron(metaclass=PoolMeta):
    __name__ = 'ir.cron'

    @classmethod
    def __setup__(cls):
        super().__setup__()
        cls.method.selection.append(
            ('email.queue|send_all', "Send Queued Emails"))
        cls.method.selection.append(
            ('email.queue.health|watch', "Watch Email Queue"))
        cls.method.selection.append(
            ('email.queue|clean', "Clean Email Queue"))
        cls._notifications.add('email.queue|send_all')

    @dualmethod
    @ModelView.button
    def run_once(cls, crons):
        # The run must be short, because a person waits for it, and on SQLite
        # everybody else who writes waits, too
        by_hand = Transaction().user != 0
        with Transaction().set_context(email_queue_by_hand=by_hand):
            super().run_once(crons)


class Trigger(metaclass=PoolMeta):
    __name__ = 'ir.trigger'

    def trigger_action(self, ids):
        super().trigger_action(ids)
        if self.model.name == 'email.queue':
            # The emails that the trigger sends must not trigger it again
            with Transaction().set_context(_no_trigger=True):
                queue_now()


class Email(metaclass=PoolMeta):
    __name__ = 'ir.email'

    delivery = fields.Function(
        fields.Selection([
                (None, ""),
                ('waiting', "Waiting"),
                ('sent', "Sent"),
                ('failed', "Failed"),
                ('cancelled', "Cancelled"),
                ], "Delivery", sort=False,
            states={
                'invisible': ~Eval('delivery'),
                },
            help="What has become of the email in the queue."),
        'get_delivery')
    delivery_error = fields.Function(
        fields.Text("Delivery Error",
            states={
                'invisible': ~Eval('delivery_error'),
                },
            help="Why the email is not sent, to how many of its recipients "
            "it was delivered, and what the server said."),
        'get_delivery')

    @classmethod
    def __setup__(cls):
        super().__setup__()
        t = cls.__table__()
        cls._sql_indexes.add(Index(t, (t.message_id, Index.Equality())))

    @classmethod
    def view_attributes(cls):
        return super().view_attributes() + [
            ('/tree/field[@name="delivery"]', 'visual',
                If(Eval('delivery') == 'failed', 'danger',
                    If(Eval('delivery') == 'sent', 'success', '')),
                ['delivery']),
            ]

    @classmethod
    def queue_again(cls, emails):
        """Queue sent emails once more, each with an archived email of its own.

        Users may do this with the emails that they have queued themselves, and
        those who look after the queue with all emails.

        :raises StateError: an email is not sent.
        :raises AccessError: an email is somebody else's.
        """
        with check_access():
            cls.read([e.id for e in emails], ['id'])
        EmailQueue = Pool().get('email.queue')
        t = EmailQueue.__table__()
        cursor = Transaction().connection.cursor()
        for email in emails:
            cursor.execute(*t.select(
                    t.id, t.create_uid, where=(t.state == 'sent')
                    & (t.message_id == (email.message_id or None)),
                    order_by=[t.id.desc], limit=1))
            row = cursor.fetchone()
            if not row:
                raise changed(email)
            id_, creator = row
            # Compare who has created the queued email, because the creator of
            # the archived email could have given it any Message-ID
            if creator != Transaction().user and not looks_after_queue():
                raise AccessError(gettext('email_queue.msg_again_not_own'))
            with without_check_access():
                again = EmailQueue.queue_again(EmailQueue(id_))
                cls.copy([email], {'message_id': again.message_id})

    @classmethod
    def get_delivery(cls, emails, names):
        queued = cls._queued({e.message_id for e in emails if e.message_id})
        reads_all = _reads_queue()
        labels = shown.labels(Pool().get('email.queue'))
        values = {name: {} for name in names}
        for email in emails:
            found = queued.get(email.message_id)
            if 'delivery' in names:
                values['delivery'][email.id] = (
                    DELIVERIES.get(found.state) if found else None)
            if 'delivery_error' in names:
                values['delivery_error'][email.id] = found and email._outcome(
                    labels, found, reads_all or email._is_own)
        return values

    @classmethod
    def _queued(cls, message_ids):
        "Return the delivery of queued emails by Message-ID"
        t = Pool().get('email.queue').__table__()
        cursor = Transaction().connection.cursor()
        cursor.execute(*t.select(
                t.message_id, *(Column(t, name) for name in _Queued._fields),
                where=fields.SQL_OPERATORS['in'](
                    t.message_id, list(message_ids)),
                order_by=[t.id]))
        return {message_id: _Queued(*values) for message_id, *values in cursor}

    def _outcome(self, labels, queued, reads_all):
        "Return why an email is not sent, without what the user may not read"
        if queued.state == 'sent':
            return None
        words = None
        if queued.state != 'cancelled':
            words = shown.words_of(queued)
        if words and not reads_all:
            words = masked(
                words, queued.to_addrs, self._shown_recipients,
                gettext('email_queue.msg_hidden_recipient'))
        return shown.sentence(labels, queued, words)

    @property
    def _is_own(self):
        "Whether the user has created the archived email"
        return self.create_uid.id == Transaction().user

    @property
    def _shown_recipients(self):
        return ', '.join(
            filter(None, [self.recipients, self.recipients_secondary]))


def _reads_queue():
    # Asked explicitly, because trytond computes fields without access checks
    with check_access():
        return Pool().get('ir.model.access').check(
            'email.queue', 'read', raise_exception=False)
