# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The errors and warnings of the module."""
from trytond.exceptions import UserError, UserWarning
from trytond.i18n import gettext

# How many characters of a value an error quotes
VALUE_LENGTH = 200


class EmailQueueError(UserError):
    "The root of the module's errors: ``message`` has the words for a person"


class ArgumentError(EmailQueueError):
    """An argument cannot be used, and nothing has been done.

    ``argument`` is its name, and ``value`` the wrong part of its value, as
    text. ``index`` is the position of the email (from 0) in the argument of
    ``queue_mails``, otherwise None.
    """

    def __init__(self, message, argument, value, index=None):
        super().__init__(message)
        self.argument = argument
        self.value = value
        self.index = index


class SettingError(EmailQueueError):
    """An option of the configuration has a value that makes no sense, or none.

    ``option`` is the name of the option in its section, and ``value`` the text
    of its value.
    """

    def __init__(self, message, option, value):
        super().__init__(message)
        self.option = option
        self.value = value


class HoldError(EmailQueueError):
    "Nothing is sent, because the option ``hold`` is set"


class CopyError(EmailQueueError):
    "Nothing is sent, because the database looks like a copy of another"


class NoCopyError(EmailQueueError):
    "There is nothing to decide, because the database looks like no copy"


class ReadonlyError(EmailQueueError):
    """The transaction is readonly, so that nothing can be written in it.

    The transaction of an RPC method is readonly, unless its ``RPC`` says
    otherwise.
    """


class PoolerError(EmailQueueError):
    """Nothing is sent, because the database connection has no own session.

    A pooler, such as PgBouncer in transaction mode, lends the session to
    several connections, so that the lock of a slot would keep nobody away.
    """


class RecordError(EmailQueueError):
    """The database did not take the outcome of emails for five minutes.

    The emails that the server has accepted are uncertain.
    """


class ServerError(EmailQueueError):
    """A mail server takes no emails, or is not configured.

    ``server`` is the name of the server, None for the default server.
    ``words`` are the words of the server or of the failed connection, None
    where the server is not configured.
    """

    def __init__(self, message, description='', server=None, words=None):
        super().__init__(message, description)
        self.server = server
        self.words = words


class EmailError(EmailQueueError):
    "What was asked for cannot be done with the record ``email``"

    def __init__(self, message, email):
        super().__init__(message)
        self.email = email


class StateError(EmailError):
    "The email is not in a state in which this can be done"


class MessageError(EmailError):
    "The message of the email is not available"


class BusyError(EmailError):
    "The email is with a sender at this moment"


class ClaimError(EmailError):
    """The email cannot be claimed.

    It is not in the outbox, or it is with a sender, or it is not committed.
    """


class NotSentError(EmailError):
    """The email was not sent to all of its recipients.

    What became of the email is recorded: ``state`` and ``reason`` are those of
    the record. ``words`` are the words of the server, None where it said none.
    """

    def __init__(self, message, email, state, reason=None, words=None):
        super().__init__(message, email)
        self.state = state
        self.reason = reason
        self.words = words


class UncertainWarning(UserWarning):
    pass


class LoginError(Exception):
    """There can be no login at a server by OAuth 2.

    ``words`` say why. They are shown to people, so they hold no secret.
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
