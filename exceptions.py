# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The errors and warnings of the module."""
from trytond.exceptions import UserError, UserWarning
from trytond.i18n import gettext

# What an error quotes of a value at most
VALUE_LENGTH = 200


class EmailQueueError(UserError):
    "The root of the module's errors: ``message`` has their words"


class ArgumentError(EmailQueueError):
    """An argument cannot be used, and nothing has been done.

    ``argument`` is its name, ``value`` what is wrong with it, as text, and
    ``index`` the place of the email among several, None where it is one.
    """

    def __init__(self, message, argument, value, index=None):
        super().__init__(message)
        self.argument = argument
        self.value = value
        self.index = index


class SettingError(EmailQueueError):
    """An option of the configuration has a value that makes no sense.

    ``option`` is its name in the section, ``value`` the text of its value.
    """

    def __init__(self, message, option, value):
        super().__init__(message)
        self.option = option
        self.value = value


class HoldError(EmailQueueError):
    "Nothing is sent, because the option ``hold`` is set"


class CopyError(EmailQueueError):
    "Nothing is sent, because the database looks like a copy of another"


class ServerError(EmailQueueError):
    """A mail server takes no emails, or is not configured.

    ``server`` is its name, None for the default server; ``words`` are those of
    the server, None where it is not configured.
    """

    def __init__(self, message, description='', server=None, words=None):
        super().__init__(message, description)
        self.server = server
        self.words = words


class EmailError(EmailQueueError):
    "Nothing can be done with one email, which is the record ``email``"

    def __init__(self, message, email):
        super().__init__(message)
        self.email = email


class StateError(EmailError):
    "The email is in another state than what is asked for needs"


class MessageError(EmailError):
    "The message of the email is not available"


class BusyError(EmailError):
    "The email is with a sender at this moment"


class ClaimError(EmailError):
    """The email cannot be claimed.

    It is not in the outbox, with a sender or not committed.
    """


class NotSentError(EmailError):
    """The email was not sent to all of its recipients.

    What became of it is recorded: ``state`` and ``reason`` are those of the
    record, ``words`` those of the server, None where there are none.
    """

    def __init__(self, message, email, state, reason=None, words=None):
        super().__init__(message, email)
        self.state = state
        self.reason = reason
        self.words = words


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


def changed(email):
    "Return the error about an email that somebody else has changed"
    return StateError(
        gettext('email_queue.msg_changed', email=email.rec_name), email)


def not_an_address(value):
    "Return the error about an argument ``address`` that is not one address"
    value = str(value)[:VALUE_LENGTH]
    return ArgumentError(
        gettext('email_queue.msg_address_invalid',
            argument='address', value=value),
        'address', value)
