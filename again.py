# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Sends an email once more, to the same recipients or a corrected address."""
import re

from trytond.i18n import gettext
from trytond.model import ModelView, fields
from trytond.pool import Pool
from trytond.transaction import Transaction, without_check_access
from trytond.url import HOSTNAME
from trytond.wizard import (
    Button, StateAction, StateTransition, StateView, Wizard)

from .access import QueueWizard, check_writable
from .address import Invalid, addresses, on_the_wire
from .exceptions import ArgumentError, MessageError, changed, not_an_address
from .mime import describe, header_fields, prepare
from .recipients import address_of, split_lines
from .tools import utc_now

__all__ = ['Again']

# The fields whose values the new email takes from the first
COPIED = [
    'from_addr', 'mail_options', 'rcpt_options', 'priority', 'server']
# The fields of a message that name its recipients
RECIPIENT_FIELDS = {b'to', b'cc', b'resent-to', b'resent-cc'}


class Again:
    "The part of the model that queues an email once more, as a new email"
    __slots__ = ()

    @classmethod
    def queue_again(cls, email, to_addrs=None, data=None):
        """Queue an email once more and return the new one.

        The new email has another Message-ID. Its field ``again_of`` names the
        email, and the field ``again`` of the email names the new one.

        :param to_addrs: the new recipients, None for those of the email.
        :param data: the new message, None for that of the email.
        :raises MessageError: the email has lost its message, or the message is
            a secret.
        """
        check_writable()
        cls._check_message([email])
        if email.sensitive:
            raise MessageError(
                gettext('email_queue.msg_again_sensitive',
                    email=email.rec_name),
                email)
        data = _renamed(cls._message(email.id) if data is None else data)
        subject, message_id = describe(data)
        with without_check_access():
            again, = cls.create([{
                        **{name: getattr(email, name) for name in COPIED},
                        'to_addrs': to_addrs or email.to_addrs,
                        'msg': data,
                        'size': len(data),
                        'subject': subject,
                        'message_id': message_id,
                        'resource': (
                            str(email.resource) if email.resource else None),
                        'scheduled_at': utc_now(),
                        'again_of': email.id,
                        }])
        cls.events.get_target().add_events(
            'sent_again', lambda t: t.id == email.id,
            recipients='\n'.join(again.to_addrs.split(', ')),
            words=message_id)
        with without_check_access():
            cls.queued([again])
        cls._push([again])
        return again

    @classmethod
    def queue_to(cls, email, refused, address):
        """Queue a failed email for a recipient whose address was wrong.

        :param refused: the wrong address, which was refused.
        :param address: the right address, which replaces the wrong one in the
            message, too.
        :return: the new email.
        :raises StateError: the email has not failed at that address.
        :raises MessageError: as of :meth:`queue_again`.
        :raises ArgumentError: ``address`` is not one valid address.
        """
        lines = split_lines(email.refused)
        if email.state != 'failed' or refused not in map(address_of, lines):
            raise changed(email)
        try:
            address, = addresses('address', address)
        except (Invalid, ValueError) as error:
            raise not_an_address(address) from error
        data = cls._message(email.id)
        return cls.queue_again(
            email, address,
            data and _corrected(data, refused, address))


def _renamed(data):
    "Return a message with another Message-ID"
    found, end = header_fields(data)
    kept = b''.join(f for name, f in found if name != b'message-id')
    return prepare(kept + data[end:], HOSTNAME)


def _corrected(data, wrong, right):
    "Return a message with an address replaced in the fields of recipients"
    found, end = header_fields(data)
    # The domain can be in either form. A part of a longer address must not be
    # replaced.
    forms = '|'.join(
        map(re.escape, sorted({wrong, on_the_wire(wrong)}, reverse=True)))
    pattern = re.compile(rf'(?<![\w.+-])(?:{forms})(?![\w-]|\.\w)', re.I)
    right = on_the_wire(right)
    header = []
    for name, field in found:
        if name in RECIPIENT_FIELDS:
            text = field.decode('utf-8', 'surrogateescape')
            text = pattern.sub(lambda match: right, text)
            field = text.encode('utf-8', 'surrogateescape')
        header.append(field)
    return b''.join(header) + data[end:]


class SendTo(QueueWizard):
    __name__ = 'email.queue.send_to'

    start = StateView(
        'email.queue.send_to.start', 'email_queue.send_to_start_view_form', [
            Button("Cancel", 'end', 'tryton-cancel'),
            Button("Send", 'send', 'tryton-ok', default=True),
            ])
    send = StateAction('email_queue.act_email_queue_form')

    @property
    def _email(self):
        "The email that the wizard was started for, None for another record"
        context = Transaction().context
        EmailQueue = Pool().get('email.queue')
        id_ = context.get('active_id')
        if (context.get('active_model') == EmailQueue.__name__
                and isinstance(id_, int)):
            return next(iter(EmailQueue.search([('id', '=', id_)])), None)

    def default_start(self, fields):
        email = self._email
        lines = split_lines(email.refused) if email else []
        refused = list(dict.fromkeys(map(address_of, lines)))
        return {
            'addresses': '\n'.join(refused),
            'refused': refused[0] if len(refused) == 1 else None,
            }

    def do_send(self, action):
        email = self._email
        if not email:
            raise _not_chosen('active_id')
        again = email.__class__.queue_to(
            email, self.start.refused, self.start.address)
        action['views'].reverse()
        return action, {'res_id': [again.id]}


class SendToStart(ModelView):
    __name__ = 'email.queue.send_to.start'

    addresses = fields.Text("Addresses", readonly=True)
    refused = fields.Selection(
        'get_refused', "Refused", required=True,
        help="The address that was refused.")
    address = fields.Char(
        "Address", required=True,
        help="The right address, which replaces the refused address in the "
        "message.")

    @fields.depends('addresses')
    def get_refused(self):
        return [(a, a) for a in split_lines(self.addresses)]


class ArchivedAgain(Wizard):
    """Send Again for archived emails.

    Every user may start the wizard. Whether the emails are the user's own is
    checked when they are queued.
    """
    __name__ = 'ir.email.send_again'

    start = StateView(
        'ir.email.send_again.start',
        'email_queue.email_send_again_start_view_form', [
            Button("Cancel", 'end', 'tryton-cancel'),
            Button("Send Again", 'send', 'tryton-ok', default=True),
            ])
    send = StateTransition()

    @classmethod
    def check_access(cls):
        # trytond asks for the right to write archived emails, which nobody has
        pass

    def transition_send(self):
        Email = Pool().get('ir.email')
        context = Transaction().context
        ids = context.get('active_ids')
        if context.get('active_model') != Email.__name__ or not ids:
            raise _not_chosen('active_ids')
        Email.queue_again(Email.browse(ids))
        return 'end'


class ArchivedAgainStart(ModelView):
    __name__ = 'ir.email.send_again.start'


def _not_chosen(argument):
    "Return the error about a wizard that is started without an email"
    return ArgumentError(
        gettext('email_queue.msg_again_none'), argument, '')
