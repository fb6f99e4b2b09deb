# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What the contact mechanisms of parties tell of dead addresses."""
from trytond.model import fields
from trytond.pool import Pool, PoolMeta
from trytond.pyson import Eval


class ContactMechanism(metaclass=PoolMeta):
    __name__ = 'party.contact_mechanism'

    dead_since = fields.Function(
        fields.DateTime(
            "Does Not Work Since",
            states={
                'invisible': ~Eval('dead_since'),
                },
            help="Emails to this address came back: there is no such mailbox."
            ),
        'get_dead_since')

    @classmethod
    def get_dead_since(cls, mechanisms, name):
        DeadAddress = Pool().get('email.queue.address')
        addresses = {
            m.id: m.value.strip().lower() for m in mechanisms
            if m.type == 'email' and m.value}
        known = DeadAddress.find(set(addresses.values()))
        return {
            m.id: known.get(addresses.get(m.id), (None, None))[0]
            for m in mechanisms}
