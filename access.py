# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Which users look after the queue, and the checks of their rights."""
from trytond.i18n import gettext
from trytond.model.exceptions import AccessError
from trytond.pool import Pool
from trytond.transaction import Transaction
from trytond.wizard import Wizard

from .exceptions import ReadonlyError

GROUP = 'email_queue.group_email_queue'


def looks_after_queue():
    """Return whether the user of the transaction looks after the queue.

    Three kinds of users do: trytond itself (user 0), the members of the group
    and, with trytond 8.2, the administrators, who pass the access rights of
    every model.
    """
    if Transaction().user == 0:
        return True
    pool = Pool()
    User = pool.get('res.user')
    if hasattr(User, 'is_administrator') and User.is_administrator():
        return True
    group = pool.get('ir.model.data').get_id(GROUP)
    return group in User.get_groups()


class QueueWizard(Wizard):
    """A wizard for the users who look after the queue.

    Every call of a client is checked. The check of ``trytond`` is not enough,
    because it reads the allowed groups from an action whose id the client
    chooses in the context.
    """

    @classmethod
    def check_access(cls):
        super().check_access()
        if not looks_after_queue():
            raise AccessError(gettext('email_queue.msg_access'))

    @classmethod
    def delete(cls, session_id):
        # trytond lets any user end the wizard of another user
        cls.check_access()
        return super().delete(session_id)


def check_writable():
    """Check that the transaction can write.

    :raises ReadonlyError: the transaction is readonly.
    """
    if Transaction().readonly:
        raise ReadonlyError(gettext('email_queue.msg_readonly'))
