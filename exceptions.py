# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.

from trytond.exceptions import UserError, UserWarning


class EmailQueueError(UserError):
    pass


class BusyError(EmailQueueError):
    "An email is with a sender at this moment"


class UncertainWarning(UserWarning):
    pass


class LoginError(Exception):
    """Why there is no login at a mail server by OAuth 2.

    Its words are shown to people, so they hold no secret.
    """

    def __init__(self, words):
        super().__init__(words)
        self.words = words


class ExpiredWarning(UserWarning):
    pass


class UrgentWarning(UserWarning):
    pass
