# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The history of an email: what happened besides a plain success."""
from sql import Column, Expression, Literal
from sql.functions import Lower
from sql.operators import Or

from trytond.i18n import gettext
from trytond.model import ModelSQL, ModelView, fields
from trytond.model.exceptions import AccessError
from trytond.pool import Pool
from trytond.tools import escape_wildcard
from trytond.transaction import Transaction, without_check_access

from .reasons import REASONS, convert_events
from .tools import forget, moment

TEXTS = ['recipients', 'words']


class Event(ModelSQL, ModelView):
    __name__ = 'email.queue.event'

    email = fields.Many2One(
        'email.queue', "Email", required=True, readonly=True,
        ondelete='CASCADE')
    at = fields.DateTime("At", required=True, readonly=True)
    kind = fields.Selection([
            ('refused', "Refused"),
            ('deferred', "Refused for Now"),
            ('uncertain', "Uncertain"),
            ('suspect', "Suspect"),
            ('gave_up', "Given Up"),
            ('put_back', "Put Back"),
            ('sent', "Sent after Trouble"),
            ('bounced', "Bounced"),
            ('delayed', "Delayed"),
            ('retried', "Retried"),
            ('cancelled', "Cancelled"),
            ('sent_again', "Sent Again"),
            ], "Event", sort=False, required=True, readonly=True)
    user = fields.Many2One(
        'res.user', "User", readonly=True, ondelete='SET NULL',
        help="The user who did this. Empty if the system did it.")
    recipients = fields.Text(
        "Recipients", readonly=True,
        help="The recipients that the event is about, one a line.")
    reason = fields.Selection(
        REASONS, "Reason", sort=False, readonly=True,
        help="Why it happened, if the server alone did not decide it.")
    words = fields.Text(
        "Words", readonly=True, help="What the server said.")

    @classmethod
    def __setup__(cls):
        super().__setup__()
        cls._order = [('at', 'DESC'), ('id', 'DESC')]
        # A user reads the history of the emails that the user may read
        cls.__access__.add('email')
        # Removed, because in trytond 8.2 administrators have every access
        # right of the model
        for name in ['create', 'write', 'copy', 'delete', 'import_data']:
            cls.__rpc__.pop(name, None)

    @classmethod
    def __register__(cls, module):
        super().__register__(module)
        convert_events(cls)

    def get_rec_name(self, name):
        return f'{self.email.rec_name} {self.at}'

    @classmethod
    def check_modification(cls, mode, events, values=None, external=False):
        super().check_modification(
            mode, events, values=values, external=external)
        if external:
            raise AccessError(gettext('email_queue.msg_modification'))

    @classmethod
    def add_events(cls, kind, where, recipients=None, words=None):
        """Add an event of the current user to the history of emails.

        One statement adds the events of all emails.

        :param where: a function of the table of emails that returns the
            condition of the emails.
        :param recipients: whom the event is about, one address a line.
        """
        transaction = Transaction()
        emails = Pool().get('email.queue').__table__()
        values = {
            'email': emails.id,
            'at': moment(),
            'kind': kind,
            'user': transaction.user or None,
            'recipients': recipients,
            'words': words,
            }
        t = cls.__table__()
        transaction.connection.cursor().execute(*t.insert(
                [Column(t, name) for name in values],
                emails.select(
                    *(v if isinstance(v, Expression) else Literal(v)
                        for v in values.values()),
                    where=where(emails))))
        forget(transaction)

    @classmethod
    def naming(cls, address):
        """Return the ids of the emails whose history names an address.

        :param address: a ``retention._Address``.
        """
        t = cls.__table__()
        cursor = Transaction().connection.cursor()
        like = fields.SQL_OPERATORS['like']
        columns = [getattr(t, name) for name in TEXTS]
        cursor.execute(*t.select(
                t.email, *columns,
                where=Or([
                        like(Lower(column), f'%{escape_wildcard(text)}%')
                        for column in columns for text in address.texts])))
        return {
            id_ for id_, *values in cursor if any(map(address.is_in, values))}

    @classmethod
    def erase(cls, emails, address):
        "Erase an address from the history of emails"
        with without_check_access():
            events = cls.search([('email', 'in', list(map(int, emails)))])
            for event in events:
                if any(address.is_in(getattr(event, n)) for n in TEXTS):
                    cls.write([event], {
                            name: address.masked(getattr(event, name))
                            for name in TEXTS})
