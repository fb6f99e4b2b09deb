# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""How notices of non-delivery come by the module *Inbound Email*."""
from trytond.pool import PoolMeta


class InboundRule(metaclass=PoolMeta):
    __name__ = 'inbound.email.rule'

    @classmethod
    def __setup__(cls):
        super().__setup__()
        cls.action.selection.append(
            ('email.queue|receive_inbound_email', "Bounce of the Email Queue"))
