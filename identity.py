# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Whether this database is the original, from which emails were sent before.

A copy of the database, restored or cloned, has the same queue, but only the
original may send the emails.
"""
import logging

from sql import Null
from sql.aggregate import Count

from trytond import backend
from trytond.i18n import gettext
from trytond.model import ModelSQL, ModelView, fields
from trytond.pool import Pool
from trytond.pyson import Eval
from trytond.transaction import Transaction
from trytond.wizard import Button, StateTransition, StateView

from .access import QueueWizard
from .exceptions import CopyError, NoCopyError, SettingError
from .settings import Settings
from .tools import forget, utc_now

__all__ = [
    'WAITING', 'check', 'current', 'is_copy', 'may_send', 'notice', 'remember']
logger = logging.getLogger(__name__)

# The only record has always this id, so that two runs cannot make two records
ID = 1
# The states of emails that wait
WAITING = ['outbox', 'sending']


class Identity(ModelSQL):
    __name__ = 'email.queue.identity'

    identity = fields.Char("Identity", required=True, readonly=True)

    @classmethod
    def __setup__(cls):
        super().__setup__()
        # No client has to read or change the record
        cls.__rpc__.clear()


class Copy(QueueWizard):
    __name__ = 'email.queue.copy'

    start = StateView(
        'email.queue.copy.start', 'email_queue.identity_start_view_form', [
            Button("Close", 'end', 'tryton-close', default=True),
            Button("Cancel Them", 'cancel_emails', 'tryton-cancel',
                states={'invisible': ~Eval('is_copy')}),
            Button("Send Them", 'send_emails', 'tryton-forward',
                states={'invisible': ~Eval('is_copy')}),
            ])
    send_emails = StateTransition()
    cancel_emails = StateTransition()

    def default_start(self, fields):
        waiting, copied = _waiting(), is_copy()
        notices = [notice() or gettext('email_queue.msg_no_copy')]
        if copied:
            notices.append(gettext(
                    'email_queue.msg_copy_warning', number=waiting))
        return {
            'notice': '\n'.join(notices),
            'is_copy': copied,
            'waiting': waiting,
            'sent_from': _stored(),
            'database': current(),
            }

    def transition_send_emails(self):
        _decide()
        return 'end'

    def transition_cancel_emails(self):
        _decide()
        _cancel()
        return 'end'


class CopyStart(ModelView):
    __name__ = 'email.queue.copy.start'

    notice = fields.Text("Notice", readonly=True)
    is_copy = fields.Boolean("Is a Copy", readonly=True)
    waiting = fields.Integer(
        "Waiting Emails", readonly=True,
        help="The emails in the outbox or with a sender.")
    sent_from = fields.Char(
        "Sent From", readonly=True,
        help="The database that emails were sent from before.")
    database = fields.Char("This Database", readonly=True)


def current():
    """Return the identity of the database of the transaction.

    On PostgreSQL it is the identifier of the cluster (if the role may read it)
    with the oid and the name of the database. On SQLite it is the path of the
    file.
    """
    cursor = Transaction().connection.cursor()
    if backend.name == 'sqlite':
        cursor.execute('PRAGMA database_list')
        paths = {name: path for _, name, path in cursor.fetchall()}
        return paths['main'] or ':memory:'
    # Asked first, because a forbidden call would end the transaction
    cursor.execute(
        "SELECT has_function_privilege('pg_control_system()', 'EXECUTE')")
    (allowed,), = cursor.fetchall()
    # The address of PostgreSQL is no substitute, because a socket has none
    cluster = ("(SELECT system_identifier::text FROM pg_control_system())"
        if allowed else "NULL")
    cursor.execute(
        f"SELECT {cluster}, oid, datname FROM pg_database "
        "WHERE datname = current_database()")
    return ' '.join(str(v) for v in cursor.fetchone() if v is not None)


def _stored():
    "Return the identity of the database that has sent, None before any did"
    t = Pool().get('email.queue.identity').__table__()
    cursor = Transaction().connection.cursor()
    cursor.execute(*t.select(t.identity, where=t.id == ID))
    return next((identity for identity, in cursor.fetchall()), None)


def is_copy():
    "Return whether emails were sent before, but not from this database"
    stored = _stored()
    return stored is not None and stored != current()


def may_send():
    "Return whether emails are sent from this database at all"
    return not (Settings.read().hold or is_copy())


def remember():
    "Store the identity of the database, unless an identity is stored"
    if _stored() is not None:
        return
    t = Pool().get('email.queue.identity').__table__()
    cursor = Transaction().connection.cursor()
    try:
        cursor.execute(*t.insert([t.id, t.identity], [[ID, current()]]))
    except backend.DatabaseIntegrityError:
        # Another sender has stored the identity meanwhile
        pass


def check():
    """Check that this database may send the emails in its queue.

    :raises CopyError: the database looks like a copy. The words are the same
        in every run, so that the scheduler makes one ``ir.error`` of them.
    """
    if is_copy():
        logger.warning(
            "this database looks like a copy: nothing is sent, %d emails wait",
            _waiting())
        raise CopyError(
            gettext('email_queue.msg_copy'),
            gettext('email_queue.msg_copy_description'))


def notice():
    "Return why emails are not sent, or go to another address, or None"
    try:
        settings = Settings.read()
    except SettingError as error:
        return error.message
    notices = []
    if settings.hold:
        notices.append(gettext('email_queue.msg_hold'))
    if is_copy():
        notices.append(gettext('email_queue.msg_copy'))
    if settings.redirect:
        notices.append(gettext(
                'email_queue.msg_redirect', address=settings.redirect))
    return ' '.join(notices) or None


def _waiting():
    t = Pool().get('email.queue').__table__()
    cursor = Transaction().connection.cursor()
    cursor.execute(*t.select(Count(t.id), where=t.state.in_(WAITING)))
    (count,), = cursor.fetchall()
    return count


def _decide():
    "Let emails be sent from this database from now on"
    if not is_copy():
        raise NoCopyError(gettext('email_queue.msg_no_copy'))
    t = Pool().get('email.queue.identity').__table__()
    cursor = Transaction().connection.cursor()
    cursor.execute(*t.update([t.identity], [current()], where=t.id == ID))


def _cancel():
    transaction = Transaction()
    t = Pool().get('email.queue').__table__()
    cursor = transaction.connection.cursor()
    Event = Pool().get('email.queue.event')
    Event.add_events('cancelled', lambda t: t.state.in_(WAITING))
    cursor.execute(*t.update(
            [t.state, t.slot, t.write_date, t.write_uid],
            ['cancelled', Null, utc_now(), transaction.user],
            where=t.state.in_(WAITING)))
    forget(transaction)
