# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What users without further rights read of the emails that they have queued.

The models are queries without messages and without emails of other users, so
that no client can get either of them.
"""
from sql import Column

from trytond.i18n import gettext
from trytond.model import ModelSQL, ModelView, fields
from trytond.model.exceptions import AccessError
from trytond.pool import Pool
from trytond.pyson import Eval
from trytond.transaction import Transaction

from .email_queue import EmailQueue
from .event import Event
from .reasons import REASONS
from .shown import Titled, WithOutcome, in_whole_seconds


class _Own(ModelSQL, ModelView):
    "Records about the emails that the user of the transaction has queued"

    @classmethod
    def __setup__(cls):
        super().__setup__()
        cls._order = [('id', 'DESC')]
        for name in ['create', 'write', 'copy', 'delete', 'import_data']:
            cls.__rpc__.pop(name, None)

    @classmethod
    def _names(cls):
        "Return the names of the columns of the query"
        return [
            name for name, field in cls._fields.items()
            if not isinstance(field, (fields.Function, fields.One2Many))]

    @classmethod
    def _is_own(cls, emails):
        return emails.create_uid == Transaction().user

    @classmethod
    def read(cls, ids, fields_names):
        return in_whole_seconds(super().read(ids, fields_names))

    @classmethod
    def check_modification(cls, mode, records, values=None, external=False):
        super().check_modification(
            mode, records, values=values, external=external)
        if external:
            raise AccessError(gettext('email_queue.msg_modification'))


def _shown_if(name):
    return {'invisible': ~Eval(name)}


class OwnEmail(Titled, WithOutcome, _Own):
    __name__ = 'email.queue.own'
    _rec_name = 'subject'

    from_addr = fields.Char("From", readonly=True)
    to_addrs = fields.Char("Recipients", readonly=True)
    subject = fields.Char("Subject", readonly=True)
    title = fields.Function(
        fields.Char("Subject"), 'get_title', searcher='search_title')
    message_id = fields.Char("Message-ID", readonly=True)
    queue_id = fields.Text(
        "Queue ID", readonly=True, states=_shown_if('queue_id'),
        help="What the server calls the email in its own log.")
    scheduled_at = fields.Timestamp("Due at", readonly=True)
    sent_at = fields.Timestamp(
        "Sent at", readonly=True, states=_shown_if('sent_at'))
    bounced_at = fields.Timestamp(
        "Bounced at", readonly=True, states=_shown_if('bounced_at'))
    attempts = fields.Integer("Attempts", readonly=True)
    accepted = fields.Text(
        "Accepted", readonly=True, states=_shown_if('accepted'),
        help="The recipients that the server has accepted.")
    refused = fields.Text(
        "Refused", readonly=True, states=_shown_if('refused'),
        help="The recipients that the server has refused for good, "
        "each with its answer.")
    uncertain = fields.Boolean("Uncertain", readonly=True)
    reason = fields.Selection(
        REASONS, "Reason", sort=False, readonly=True,
        states=_shown_if('reason'), help="Why the email is not sent.")
    outcome = fields.Function(
        fields.Char(
            "What Became of It",
            help="Why the email is not sent, to how many of its recipients "
            "it was delivered, and what the server said."),
        'get_outcome', searcher='search_outcome')
    error = fields.Text(
        "Error", readonly=True, states=_shown_if('error'),
        help="The last negative answer of the server.")
    state = fields.Selection(
        EmailQueue.state.selection, "State", readonly=True, sort=False)
    events = fields.One2Many(
        'email.queue.own.event', 'email', "History", readonly=True,
        states=_shown_if('events'))

    @classmethod
    def __setup__(cls):
        super().__setup__()
        for name in ['create_date', 'scheduled_at', 'sent_at', 'bounced_at']:
            # In whole seconds, as ``read`` returns them
            getattr(cls, name).format = '%H:%M:%S'

    @classmethod
    def table_query(cls):
        t = Pool().get('email.queue').__table__()
        return t.select(
            *(Column(t, name).as_(name) for name in cls._names()),
            where=cls._is_own(t))


class OwnEvent(_Own):
    __name__ = 'email.queue.own.event'

    email = fields.Many2One('email.queue.own', "Email", readonly=True)
    at = fields.DateTime("At", readonly=True)
    kind = fields.Selection(
        Event.kind.selection, "Event", readonly=True, sort=False)
    recipients = fields.Text("Recipients", readonly=True)
    reason = fields.Selection(REASONS, "Reason", readonly=True, sort=False)
    words = fields.Text("Words", readonly=True)

    @classmethod
    def table_query(cls):
        pool = Pool()
        t = pool.get('email.queue').__table__()
        e = pool.get('email.queue.event').__table__()
        return e.join(t, condition=e.email == t.id).select(
            *(Column(e, name).as_(name) for name in cls._names()),
            where=cls._is_own(t))
