# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.

from trytond.exceptions import UserError, UserWarning


class EmailQueueError(UserError):
    pass


class BusyError(EmailQueueError):
    "An email is with a sender at this moment"


class UncertainWarning(UserWarning):
    pass


class ExpiredWarning(UserWarning):
    pass


class UrgentWarning(UserWarning):
    pass
