# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The model of the queue: its fields, how emails are queued, its buttons."""
import datetime as dt
import functools
import logging
from contextlib import contextmanager
from itertools import groupby

from sql import Column, Literal, Null
from sql.conditionals import Case, Coalesce

import trytond.config as config
from trytond import backend
from trytond.i18n import gettext
from trytond.model import (
    Index, ModelSQL, ModelStorage, ModelView, Workflow, fields)
from trytond.model.exceptions import AccessError
from trytond.pool import Pool
from trytond.pyson import Bool, Eval, If
from trytond.tools import grouped_slice, slugify
from trytond.transaction import Transaction
from trytond.url import HOSTNAME

from . import (
    again, behalf, bulk, files, handover, identity, incomplete, known, notices,
    notification, oauth, original, preview, reasons, replies, run, settings,
    shown)
from .access import check_writable
from .address import (
    Invalid, envelope_from, envelope_recipients, envelope_sender, envelope_to,
    esmtp_options)
from .exceptions import (
    VALUE_LENGTH, ArgumentError, EmailQueueError, ExpiredWarning, MessageError,
    SettingError, UncertainWarning, UrgentWarning, changed)
from .mime import describe, prepare
from .parts import part_ids
from .reasons import REASONS
from .recipients import remaining, split_addresses
from .retention import Retention
from .settings import InvalidSetting
from .shown import Titled, WithOutcome, in_whole_seconds
from .store import CRASHES_ALONE
from .tools import database_time, forget, utc_now
from .words import printable, with_domains

logger = logging.getLogger(__name__)

PRIORITIES = {
    'urgent': '10',
    'normal': '20',
    'bulk': '30',
    }
# How many emails a warning names at most
NAMES = 5
# How many ids a statement has at most
IDS_LENGTH = 1000
TRUE = Literal(True)
# So many digits fit an integer of any database
ID_LENGTH = 18


def transition(state):
    """Return a decorator like ``Workflow.transition``, but safe from senders.

    The decorated method raises StateError and changes nothing if the state of
    an email has no such transition, or if a sender has claimed the email in
    the meantime.
    """
    def decorator(func):
        func = Workflow.transition(state)(func)

        @functools.wraps(func)
        def wrapper(cls, emails, *args, **kwargs):
            cls._keep_from_senders(emails, {
                    before for before, after in cls._transitions
                    if after == state})
            return func(cls, emails, *args, **kwargs)
        return wrapper
    return decorator


class EmailQueue(
        again.Again, bulk.Bulk, notices.Notices, Retention, Titled,
        WithOutcome, Workflow, ModelSQL, ModelView):
    __name__ = 'email.queue'
    _rec_name = 'subject'

    from_addr = fields.Char(
        "From", required=True, readonly=True,
        help="The envelope sender. "
        "Notices of non-delivery are sent to it.")
    to_addrs = fields.Char(
        "Recipients", required=True, readonly=True,
        help="The recipients of the envelope, separated by commas.")
    msg = files.MessageField(
        "Message", filename='filename', readonly=True,
        to_filestore=settings.at_start('filestore'),
        store_prefix=settings.at_start('store_prefix'),
        states={
            'invisible': Bool(Eval('content')),
            },
        help="The message exactly as it is sent.")
    file_id = files.FileIDField("File ID", readonly=True)
    content = fields.Function(
        fields.Selection([
                (None, ""),
                ('hidden', "Hidden"),
                ('removed', "Removed"),
                ], "Content", sort=False,
            states={
                'invisible': ~Eval('content'),
                },
            help="Why the message is not available: sensitive messages are "
            "hidden, and removed once they are sent; others are removed some "
            "days after sending.\n"
            "Without its message an email cannot be sent again."),
        'get_content')
    sensitive = fields.Boolean(
        "Sensitive", readonly=True,
        states={
            'invisible': ~Eval('sensitive'),
            },
        help="The message is hidden, and removed once it is sent.")
    filename = fields.Function(fields.Char("File Name"), 'get_filename')
    headers = fields.Function(
        fields.Text("Headers"), 'get_contents')
    text = fields.Function(
        fields.Text("Text",
            states={
                'invisible': ~Eval('text'),
                }),
        'get_contents')
    html = fields.Function(
        fields.Text("HTML",
            states={
                'invisible': ~Eval('html'),
                },
            help="The HTML without what could be fetched or executed, "
            "with the targets of its links."),
        'get_contents')
    attachments = fields.Function(
        fields.One2Many(
            'email.queue.attachment', 'email', "Attachments", readonly=True,
            states={
                'invisible': ~Eval('attachments'),
                },
            help="The files in the message. Open one by the icon beside its "
            "size."),
        'get_contents', setter='set_parts')
    recipients = fields.Function(
        fields.One2Many(
            'email.queue.recipient', 'email', "Recipients", readonly=True,
            help="Recipients who do not have the email come first."),
        'get_recipients', setter='set_parts')
    to_count = fields.Function(
        fields.Integer("Number of Recipients"), 'get_to_count')
    size = fields.Integer(
        "Size", required=True, readonly=True,
        help="The number of bytes of the message.")
    mail_options = fields.Char(
        "Mail Options", readonly=True,
        states={
            'invisible': ~Eval('mail_options'),
            },
        help="The ESMTP options of the envelope sender, separated by spaces.")
    rcpt_options = fields.Char(
        "Recipient Options", readonly=True,
        states={
            'invisible': ~Eval('rcpt_options'),
            },
        help="The ESMTP options of each recipient, separated by spaces.")
    subject = fields.Char("Subject", readonly=True)
    title = fields.Function(
        fields.Char("Subject"), 'get_title', searcher='search_title')
    message_id = fields.Char("Message-ID", readonly=True)
    resource = fields.Reference(
        "Record", selection='get_resources', readonly=True,
        states={
            'invisible': ~Eval('resource'),
            },
        help="The record that the email is about.")
    key = fields.Char(
        "Key", readonly=True, strip=False,
        states={
            'invisible': ~Eval('key'),
            },
        help="The name that the queueing program has given the email, so that "
        "the email is queued only once.")
    priority = fields.Selection([
            (PRIORITIES['urgent'], "Urgent"),
            (PRIORITIES['normal'], "Normal"),
            (PRIORITIES['bulk'], "Bulk"),
            ], "Priority", sort=False, required=True, readonly=True)
    own_priority = fields.Char(
        "Own Priority", readonly=True,
        help="The priority that Send Now has raised, until the next attempt.")
    server = fields.Char(
        "Server", readonly=True,
        states={
            'invisible': ~Eval('server'),
            },
        help="The configured name of the server that sends the email. Empty "
        "for the default server.")
    scheduled_at = fields.Timestamp(
        "Due at", required=True, readonly=True,
        help="The email is not sent before this time.")
    expires_at = fields.Timestamp(
        "Expires at", readonly=True,
        states={
            'invisible': ~Eval('expires_at'),
            },
        help="The email fails if it could not be sent by this time.")
    accepted = fields.Text(
        "Accepted", readonly=True,
        states={
            'invisible': ~Eval('accepted'),
            },
        help="The recipients that the server has accepted.")
    refused = fields.Text(
        "Refused", readonly=True,
        states={
            'invisible': ~Eval('refused'),
            },
        help="The recipients that the server has refused for good, "
        "each with its answer.")
    waiting = fields.Function(
        fields.Text("Waiting",
            states={
                'invisible': ~Eval('waiting'),
                },
            help="The recipients to whom the email has still to be sent."),
        'get_waiting')
    attempts = fields.Integer(
        "Attempts", required=True, readonly=True,
        help="How many times the server has accepted or refused the email.")
    first_attempt = fields.Timestamp(
        "First Attempt", readonly=True,
        states={
            'invisible': ~Eval('first_attempt'),
            })
    uncertain = fields.Boolean(
        "Uncertain", readonly=True,
        states={
            'invisible': ~Eval('uncertain'),
            },
        help="The connection broke after the message was transmitted, "
        "so the email may have arrived.")
    crashes = fields.Integer(
        "Crashes", required=True, readonly=True,
        states={
            'invisible': ~Eval('crashes'),
            },
        help="How often the sender of the email has died.")
    suspect = fields.Char(
        "Suspect", readonly=True,
        states={
            'invisible': ~Eval('suspect'),
            },
        help="What the server said, without addresses and numbers, as long as "
        "it is not known whether the server refuses this email or all emails.")
    suspect_since = fields.Timestamp(
        "Suspect since", readonly=True,
        states={
            'invisible': ~Eval('suspect_since'),
            })
    slot = fields.Integer("Slot", readonly=True)
    sent_at = fields.Timestamp(
        "Sent at", readonly=True,
        states={
            'invisible': ~Eval('sent_at'),
            })
    reason = fields.Selection(
        REASONS, "Reason", sort=False, readonly=True,
        states={
            'invisible': ~Eval('reason'),
            },
        help="Why the email is not sent.")
    error = fields.Text(
        "Error", readonly=True,
        states={
            'invisible': ~Eval('error'),
            },
        help="The last negative answer of the server, or why a program could "
        "not queue the email.")
    queue_id = fields.Text(
        "Queue ID", readonly=True,
        states={
            'invisible': ~Eval('queue_id'),
            },
        help="What the server calls the email in its own log.")
    bounced_at = fields.Timestamp(
        "Bounced at", readonly=True,
        states={
            'invisible': ~Eval('bounced_at'),
            },
        help="When a notice came that the email did not reach a recipient "
        "whom the server had accepted.")
    again_of = fields.Many2One(
        'email.queue', "Original", readonly=True, ondelete='SET NULL',
        states={
            'invisible': ~Eval('again_of'),
            },
        help="The email that this email sends again.")
    again = fields.Function(
        fields.Many2Many(
            'email.queue', None, None, "Sent Again", readonly=True,
            states={
                'invisible': ~Eval('again'),
                },
            help="The emails that send this email again."),
        'get_again')
    events = fields.One2Many(
        'email.queue.event', 'email', "History", readonly=True,
        states={
            'invisible': ~Eval('events'),
            },
        help="What happened besides a plain success, the latest first.")
    state = fields.Selection([
            ('outbox', "Outbox"),
            ('sending', "Sending"),
            ('sent', "Sent"),
            ('failed', "Failed"),
            ('cancelled', "Cancelled"),
            ], "State", sort=False, required=True, readonly=True)
    outcome = fields.Function(
        fields.Char("What Became of It",
            states={
                'invisible': ~Eval('outcome'),
                },
            help="Why the email is not sent, to how many of its recipients "
            "it was delivered, and what the server said."),
        'get_outcome', searcher='search_outcome')
    sent_or_due = fields.Function(
        fields.Timestamp(
            "Sent or Due",
            help="When the email was sent, or when it is due."),
        'get_sent_or_due', searcher='search_sent_or_due')
    notice = fields.Function(
        fields.Char("Notice",
            states={
                'invisible': ~Eval('notice'),
                },
            help="Why nothing is sent, or why emails go to another address, "
            "and since when the server takes no emails."),
        'get_notice')

    @classmethod
    def __setup__(cls):
        super().__setup__()
        cls._order.insert(0, ('id', 'DESC'))
        # In whole seconds, as ``read`` returns them
        for name in [
                'create_date', 'scheduled_at', 'expires_at', 'first_attempt',
                'sent_at', 'bounced_at', 'suspect_since', 'sent_or_due']:
            getattr(cls, name).format = '%H:%M:%S'

        t = cls.__table__()
        cls._sql_indexes.update({
                # The order of sending
                Index(
                    t,
                    (t.server, Index.Range()),
                    (t.priority, Index.Range()),
                    (t.scheduled_at, Index.Range()),
                    (t.id, Index.Range()),
                    where=t.state == 'outbox'),
                # Emails that are sent alone, because of their crashes
                Index(
                    t,
                    (t.server, Index.Range()),
                    (t.priority, Index.Range()),
                    (t.scheduled_at, Index.Range()),
                    (t.id, Index.Range()),
                    where=(t.state == 'outbox')
                    & (t.crashes >= CRASHES_ALONE)),
                Index(
                    t, (t.slot, Index.Range()), where=t.state == 'sending'),
                Index(
                    t, (t.suspect, Index.Equality()),
                    where=(t.state == 'outbox') & (t.suspect != '')),
                # Rows that another tool has left incomplete
                Index(
                    t, (t.id, Index.Range()),
                    where=incomplete.is_incomplete(t)),
                # Cancelled emails that the daily job deletes
                Index(
                    t,
                    (Coalesce(t.write_date, t.create_date), Index.Range()),
                    (t.id, Index.Range()),
                    where=t.state == 'cancelled'),
                Index(t, (t.message_id, Index.Equality())),
                # Notices about emails to which Amazon SES has given another
                # Message-ID
                Index(
                    t, (t.queue_id, Index.Equality()),
                    where=t.queue_id.like(notices.SES_ID)),
                Index(
                    t, (t.id, Index.Range()),
                    where=t.queue_id.like(notices.SES_IDS)),
                # A search for the Message-ID by the ORM
                Index(t, (Coalesce(t.message_id, ''), Index.Equality())),
                Index(
                    t, (t.resource, Index.Similarity(begin=True)),
                    where=t.resource != ''),
                Index(
                    t, (t.again_of, Index.Range()),
                    where=t.again_of != Null),
                Index(t, (t.state, Index.Equality()), (t.id, Index.Range())),
                # Emails that are counted and searched by reason
                Index(
                    t, (t.state, Index.Range()), (t.reason, Index.Range()),
                    where=t.reason != Null),
                # The tab Needs Attention
                Index(
                    t, (t.id, Index.Range()),
                    where=(t.state == 'outbox') & (t.uncertain == TRUE)),
                Index(
                    t, (t.id, Index.Range()),
                    where=(t.state == 'outbox') & (t.suspect_since != Null)),
                Index(t, (t.create_date, Index.Range())),
                Index(
                    t, (t.file_id, Index.Equality()), where=t.file_id != ''),
                # Email Activity
                Index(t, (t.sent_at, Index.Range()), where=t.state == 'sent'),
                })

        # The transitions that people make. Senders make the other ones by SQL.
        cls._transitions |= {
            ('failed', 'outbox'),
            ('cancelled', 'outbox'),
            ('outbox', 'cancelled'),
            ('failed', 'cancelled'),
            }
        cls._buttons.update(
            send_now={
                'invisible': Eval('state') != 'outbox',
                'depends': ['state'],
                },
            retry={
                'invisible': ~Eval('state').in_(['failed', 'cancelled']),
                'depends': ['state'],
                },
            cancel={
                'invisible': ~Eval('state').in_(['outbox', 'failed']),
                'depends': ['state'],
                },
            send_again={
                'invisible': Eval('state') != 'sent',
                'depends': ['state'],
                },
            send_to={
                'invisible': Eval('state') != 'failed',
                'depends': ['state'],
                },
            )
        # Removed, because in trytond 8.2 administrators have every access
        # right of the model
        for name in ['create', 'write', 'copy', 'delete', 'import_data']:
            cls.__rpc__.pop(name, None)

    @classmethod
    def __register__(cls, module):
        # Rows are completed before the columns are made, because NULL would
        # keep a column from being NOT NULL
        cls._rename_columns(module)
        original.convert(cls, module)
        cls._complete(module)
        super().__register__(module)
        reasons.convert(cls)
        cls._make_keys_unique()
        cls._show_domains()

    @classmethod
    def _rename_columns(cls, module):
        "Rename the columns that had another name in version 8.2.0"
        if backend.TableHandler.table_exist(cls._table):
            cls.__table_handler__(module).column_rename('sender', 'slot')

    @classmethod
    def _complete(cls, module):
        "Complete the rows if the table exists"
        if backend.TableHandler.table_exist(cls._table):
            handler = cls.__table_handler__(module)
            if all(map(handler.column_exist, incomplete.REQUIRED)):
                handler.add_column('reason', cls.reason._sql_type)
                incomplete.complete(cls, utc_now())

    @classmethod
    def _show_domains(cls):
        "Write domains as people do, which version 8.2.0 stored as *xn--…*"
        t = cls.__table__()
        names = ['from_addr', 'to_addrs', 'accepted', 'refused', 'error']
        columns = [Column(t, name) for name in names]
        cursor = Transaction().connection.cursor()
        cursor.execute(*t.select(
                t.id, where=t.from_addr.like('%xn--%')
                | t.to_addrs.like('%xn--%')))
        for ids in grouped_slice([id_ for id_, in cursor], IDS_LENGTH):
            cursor.execute(*t.select(
                    t.id, *columns,
                    where=fields.SQL_OPERATORS['in'](t.id, list(ids))))
            for id_, *texts in cursor.fetchall():
                shown = [text and with_domains(text) for text in texts]
                cursor.execute(*t.update(columns, shown, where=t.id == id_))

    @classmethod
    def __setup_indexes__(cls):
        super().__setup_indexes__()
        database = Transaction().database
        # For the search box. Another kind of index would be of no use for its
        # patterns, and has no room for a long list of recipients.
        if (hasattr(database, 'has_extension')
                and database.has_extension('pg_trgm')):
            t = cls.__table__()
            cls._sql_indexes.update(
                Index(t, (Index.Unaccent(column), Index.Similarity()))
                for column in [
                    t.to_addrs, t.from_addr, Coalesce(t.message_id, '')])

    @classmethod
    def default_priority(cls):
        return PRIORITIES['normal']

    @classmethod
    def default_attempts(cls):
        return 0

    @classmethod
    def default_crashes(cls):
        return 0

    @classmethod
    def default_sensitive(cls):
        return False

    @classmethod
    def default_state(cls):
        return 'outbox'

    def get_filename(self, name):
        name = slugify(self.subject or '') or str(self.id)
        return f'{name}.eml'

    @classmethod
    def search_rec_name(cls, name, clause):
        _, operator, value, *rest = clause
        bool_op = 'AND' if operator.startswith(('!', 'not ')) else 'OR'
        if isinstance(value, str):
            value = with_domains(value)
        return [bool_op, *(
                (name_, operator, value, *rest)
                for name_ in ['subject', 'message_id', 'from_addr', 'to_addrs']
                )]

    @classmethod
    def order_title(cls, tables):
        table, _ = tables[None]
        return [table.subject]

    @classmethod
    def get_outcome(cls, emails, name):
        now, labels = database_time(), shown.labels(cls)
        troubles = known.troubles(now)
        return {
            e.id: e._waits(
                now, shown.outcome(labels, e, e._trouble(troubles, now)))
            for e in emails}

    def _waits(self, now, outcome):
        "Return the outcome of the email, with what the email waits for"
        if self.state != 'outbox':
            return outcome
        if (self.crashes or 0) >= CRASHES_ALONE:
            outcome = '. '.join(filter(None, [outcome, gettext(
                            'email_queue.msg_outcome_crashes',
                            number=self.crashes)]))
        if not self.scheduled_at or self.scheduled_at <= now:
            return outcome
        time = known.time_in_words(self.scheduled_at, now)
        if outcome:
            return gettext(
                'email_queue.msg_outcome_next',
                outcome=outcome.rstrip(' .'), time=time)
        return gettext('email_queue.msg_outcome_scheduled', time=time)

    def _trouble(self, troubles, now):
        "Return the trouble of the server that the email waits for, or None"
        # ``scheduled_at`` is None in a record that a client has not saved
        if (self.state == 'outbox' and not self.bounced_at
                and not self.uncertain and not self.suspect_since
                and (self.scheduled_at or now) <= now):
            return troubles.get(self.server)

    def get_sent_or_due(self, name):
        if self.state == 'sent':
            return self.sent_at
        if self.state in identity.WAITING:
            return self.scheduled_at

    @classmethod
    def search_sent_or_due(cls, name, clause):
        _, operator, value, *_ = clause
        over = [*identity.WAITING, 'sent']
        if value is None:
            return [(
                    'state', 'not in' if operator == '=' else 'in', over)]
        return ['OR',
            [('state', '=', 'sent'), ('sent_at', operator, value)],
            [('state', 'in', identity.WAITING),
                ('scheduled_at', operator, value)],
            ]

    @classmethod
    def order_sent_or_due(cls, tables):
        table, _ = tables[None]
        return [Case(
                (table.state == 'sent', table.sent_at),
                (table.state.in_(identity.WAITING), table.scheduled_at))]

    @classmethod
    def read(cls, ids, fields_names):
        if not Transaction().check_access:
            return super().read(ids, fields_names)
        return in_whole_seconds(cls._read_with_resources(ids, fields_names))

    @classmethod
    def _read_with_resources(cls, ids, fields_names):
        # One resource that the user may not read would be an error for the
        # whole list
        prefix = 'resource.'
        names = [n for n in fields_names if not n.startswith(prefix)]
        related = [
            n.removeprefix(prefix)
            for n in fields_names if n.startswith(prefix)]
        if not related:
            return super().read(ids, fields_names)
        rows = super().read(ids, [*names, 'resource'])
        resources = _read_resources(
            {r['resource'] for r in rows if r['resource']}, related)
        for row in rows:
            row[prefix] = resources.get(row['resource'])
            if 'resource' not in names:
                del row['resource']
        return rows

    @classmethod
    def get_content(cls, emails, name):
        removed = cls._without_message([e.id for e in emails])
        return {
            e.id: 'removed' if e.id in removed
            else 'hidden' if e.sensitive else None
            for e in emails}

    @classmethod
    def _without_message(cls, ids):
        "Return which of the emails have lost their message"
        t = cls.__table__()
        cursor = Transaction().connection.cursor()
        cursor.execute(*t.select(
                t.id, where=fields.SQL_OPERATORS['in'](t.id, ids)
                & (t.msg == Null) & (t.file_id == Null) & (t.size > 0)))
        return {id_ for id_, in cursor}

    @classmethod
    def get_contents(cls, emails, names):
        contents = {name: {} for name in names}
        # The client may ask for the size of ``msg`` instead of its bytes
        with Transaction().set_context({f'{cls.__name__}.msg': None}):
            for email in emails:
                # One email at a time, because a read loads the messages of all
                # records that are browsed together
                reading = preview.read(cls(email.id).msg or b'')
                for name in names:
                    contents[name][email.id] = _shown(email, reading, name)
        return contents

    def get_recipients(self, name):
        return part_ids(self.id, self.to_count)

    @classmethod
    def set_parts(cls, emails, name, value):
        raise AccessError(gettext('email_queue.msg_modification'))

    def get_to_count(self, name):
        return len(split_addresses(self.to_addrs))

    @classmethod
    def get_notice(cls, emails, name):
        of_all = identity.notice()
        troubles = known.troubles(database_time())
        notices = {}
        for email in emails:
            notice = [of_all]
            if email.state in identity.WAITING:
                notice.append(troubles.get(email.server))
            notices[email.id] = ' '.join(filter(None, notice)) or None
        return notices

    def get_waiting(self, name):
        if self.state in identity.WAITING:
            return '\n'.join(remaining(
                    self.to_addrs, self.accepted, self.refused))

    @classmethod
    def get_again(cls, emails, name):
        found = {e.id: [] for e in emails}
        t = cls.__table__()
        cursor = Transaction().connection.cursor()
        cursor.execute(*t.select(
                t.again_of, t.id, order_by=[t.id],
                where=fields.SQL_OPERATORS['in'](t.again_of, list(found))))
        for again_of, id_ in cursor:
            found[again_of].append(id_)
        return found

    @classmethod
    def get_resources(cls):
        pool = Pool()
        Model = pool.get('ir.model')
        Access = pool.get('ir.model.access')
        models = Model.get_name_items((ModelStorage, ModelView))
        if Transaction().check_access:
            access = Access.get_access([m for m, _ in models])
            models = [(m, n) for m, n in models if access[m]['read']]
        return [(None, ""), *models]

    @classmethod
    def view_attributes(cls):
        state = Eval('state', '')
        return super().view_attributes() + [
            # A whole row is only muted, because a client may paint its
            # background
            ('/tree', 'visual',
                If(state == 'cancelled', 'muted', ''), ['state']),
            ('/tree/field[@name="state"]', 'visual',
                If(state == 'failed', 'danger',
                    If((state == 'outbox') & (
                            Bool(Eval('uncertain'))
                            | Bool(Eval('suspect_since'))),
                        'warning', '')),
                ['state', 'uncertain', 'suspect_since']),
            # With HTML the text is on a page of its own
            ('/form//group[@id="text"]', 'states',
                {'invisible': Bool(Eval('html'))}, ['html']),
            ('/form//page[@id="plain"]', 'states',
                {'invisible': ~Eval('html')}, ['html']),
            ('/form//group[@id="files"]', 'states',
                {'invisible': ~Eval('attachments')}, ['attachments']),
            ]

    @classmethod
    def preprocess_values(cls, mode, values):
        values = super().preprocess_values(mode, values)
        if 'msg' in values:
            values.update(cls.msg.values(cls, values['msg']))
        return values

    @classmethod
    def write(cls, emails, values, *args):
        actions = iter((emails, values, *args))
        for emails_, values_ in zip(actions, actions):
            if 'msg' in values_:
                cls.msg.queue_for_removal(cls, 'msg', list(map(int, emails_)))
        super().write(emails, values, *args)

    @classmethod
    def check_modification(cls, mode, emails, values=None, external=False):
        super().check_modification(
            mode, emails, values=values, external=external)
        if external:
            raise AccessError(gettext('email_queue.msg_modification'))

    @classmethod
    def queue_mail(
            cls, from_addr, to_addrs, msg, mail_options=(), rcpt_options=(),
            *, priority='normal', scheduled_at=None, expires_at=None,
            resource=None, server=None, sensitive=False, key=None):
        """Queue an email in the current transaction.

        The positional arguments are those of ``smtplib.SMTP.sendmail``.

        :param from_addr: the envelope sender, ``<>`` for the null sender.
        :param to_addrs: an iterable of addresses, or one string that may hold
            several.
        :param msg: ``bytes``, an ASCII ``str`` or an
            ``email.message.Message``.
        :param mail_options: ESMTP options of MAIL, such as ``RET=HDRS``.
        :param rcpt_options: ESMTP options of every RCPT, such as
            ``NOTIFY=FAILURE``.
        :param priority: ``urgent``, ``normal`` or ``bulk``.
        :param scheduled_at: when the email is due: a ``datetime`` (naive is
            UTC) or a ``timedelta`` from now. None is now.
        :param expires_at: when the email fails if it is not sent by then, in
            the same way. None is never.
        :param resource: the saved record that the email is about, or its
            ``MODEL,ID``.
        :param server: the name of a configured server. None is the server for
            the author of the email, or the default server.
        :param sensitive: whether the message holds a secret. Nobody sees such
            a message in the queue, and it is removed once it is sent.
        :param key: a name that the caller gives the email. If an email has
            this key already, nothing is queued.
        :return: a list with the new record, or with the record that has the
            key already.
        :raises ArgumentError: one of the arguments cannot be queued.
        :raises SettingError: the configuration makes no sense.
        :raises ReadonlyError: the transaction is readonly. After any of these
            errors nothing is queued, and the transaction remains usable.
        """
        check_writable()
        values = cls._checked_values(
            from_addr, to_addrs, msg, mail_options, rcpt_options,
            priority=priority, scheduled_at=scheduled_at,
            expires_at=expires_at, resource=resource, server=server,
            sensitive=sensitive, key=key)
        return cls.browse(cls._create_items([(values, scheduled_at is None)]))

    @classmethod
    def _push(cls, emails):
        "Let a worker, if there is one, send the due emails at the commit"
        if emails and config.getboolean('queue', 'worker'):
            Transaction().join(_Push()).put(emails[0])

    @classmethod
    def queue_message(
            cls, msg, from_addr=None, to_addrs=None, mail_options=(),
            rcpt_options=(), **keywords):
        """Queue an email whose envelope comes from its headers.

        The positional arguments are those of
        ``smtplib.SMTP.send_message``, the keywords those of
        :meth:`queue_mail`.
        """
        from_addr, to_addrs = cls._envelope(msg, from_addr, to_addrs)
        return cls.queue_mail(
            from_addr, to_addrs, msg, mail_options, rcpt_options, **keywords)

    @classmethod
    def _envelope(cls, msg, from_addr, to_addrs):
        "Return sender and recipients, from the header of ``msg`` if None"
        with _argument_errors():
            if from_addr is None:
                from_addr = envelope_sender(msg)
            if to_addrs is None:
                to_addrs = envelope_recipients(msg)
        return from_addr, to_addrs

    @classmethod
    def queue_captured(cls, emails, strict=False):
        """Queue the emails that ``trytond.sendmail`` was told to send.

        :param emails: triples of sender, recipients and ``Message``, as
            ``smtplib.SMTP.send_message`` takes them.
        :param strict: whether an email that cannot be queued is an error.
            Otherwise it becomes a failed email.
        :raises ArgumentError, SettingError: with ``strict``, as
            :meth:`queue_mail`.
        :raises ReadonlyError: the transaction is readonly.
        """
        check_writable()
        cls._create_captured(cls._captured_items(emails, strict))

    @classmethod
    def _captured_items(cls, emails, strict):
        """Yield the items for :meth:`_create_captured`."""
        resources = cls._archived({_message_id(m) for _, _, m in emails})
        clock = functools.cache(database_time)
        for from_addr, to_addrs, msg in emails:
            options = cls.captured_options(msg)
            resource = options.setdefault(
                'resource', resources.get(_message_id(msg)))
            is_about_queue = str(resource).startswith(f'{cls.__name__},')
            try:
                from_addr_, to_addrs_ = cls._envelope(msg, from_addr, to_addrs)
                values = cls._checked_values(
                    from_addr_, to_addrs_, msg, clock=clock, **options)
            except EmailQueueError as error:
                if strict:
                    raise
                values = cls._failed_values(
                    from_addr, to_addrs, msg, error, **options)
                is_due = False
            else:
                is_due = options.get('scheduled_at') is None
            yield is_about_queue, (values, is_due)

    @classmethod
    def captured_options(cls, msg):
        """Return the keywords of :meth:`queue_mail` for a captured message.

        The keywords are those of ``sendmail.set_options``. A message to a
        mailing list gets the priority *bulk*.
        """
        options = dict(getattr(msg, 'email_queue', {}))
        if (msg['List-Id'] or msg['List-Unsubscribe']
                or str(msg['Precedence']).strip().lower() == 'bulk'):
            options.setdefault('priority', 'bulk')
        return options

    @classmethod
    def _archived(cls, message_ids):
        "Return the resources of archived emails by Message-ID"
        Email = Pool().get('ir.email')
        t = Email.__table__()
        cursor = Transaction().connection.cursor()
        resources = {}
        for ids in grouped_slice(
                list(map(str, message_ids)), count=IDS_LENGTH):
            cursor.execute(*t.select(
                    t.message_id, t.resource,
                    where=fields.SQL_OPERATORS['in'](
                        t.message_id, list(ids))))
            resources.update(cursor.fetchall())
        return resources

    @classmethod
    def _failed_values(
            cls, from_addr, to_addrs, msg, error, server=None,
            sensitive=False, key=None, **_):
        try:
            data = prepare(msg, HOSTNAME)
        except Invalid:
            data = b''
        subject, message_id = describe(data)
        try:
            key = bulk.checked_key(key)
        except Invalid:
            key = None
        if not isinstance(to_addrs, str):
            to_addrs = ', '.join(map(str, to_addrs or [msg['To'] or '']))
        return {
            'from_addr': printable(
                str(from_addr or msg['From'] or '')) or incomplete.UNKNOWN,
            'to_addrs': printable(to_addrs) or incomplete.UNKNOWN,
            'msg': data,
            'size': len(data),
            'subject': subject,
            'message_id': message_id,
            # Kept, so that *Retry* does not send it by another server
            'server': printable(str(server or '')) or None,
            'scheduled_at': utc_now(),
            'state': 'failed',
            'reason': 'not_queued',
            'error': error.message,
            'sensitive': bool(sensitive),
            'key': key,
            }

    @classmethod
    def _checked_values(cls, *args, **keywords):
        with _argument_errors():
            return cls._queue_values(*args, **keywords)

    @classmethod
    def _queue_values(
            cls, from_addr, to_addrs, msg, mail_options=(), rcpt_options=(),
            *, priority='normal', scheduled_at=None, expires_at=None,
            resource=None, server=None, sensitive=False, key=None,
            clock=database_time):
        """Return the values of a new email.

        :param clock: a function that returns the time of the database.
        """
        from_addr = envelope_from(from_addr)
        to_addrs = envelope_to(to_addrs)
        mail_options = esmtp_options('mail_options', mail_options)
        rcpt_options = esmtp_options('rcpt_options', rcpt_options)
        if not isinstance(priority, str) or priority not in PRIORITIES:
            raise Invalid(
                'priority', priority, 'msg_priority_invalid')
        if server not in settings.servers():
            raise Invalid(
                'server', str(server), 'msg_server_unknown')
        now = None
        if scheduled_at is not None or expires_at is not None:
            now = clock()
        if scheduled_at is not None:
            scheduled_at = _instant('scheduled_at', scheduled_at, now)
        if expires_at is not None:
            expires_at = _instant('expires_at', expires_at, now)
            if expires_at <= (scheduled_at or now):
                raise Invalid(
                    'expires_at', str(expires_at), 'msg_expires_too_early')
        data = prepare(msg, HOSTNAME, due=_later(scheduled_at, now))
        server, from_addr, data = behalf.on_behalf(server, from_addr, data)
        subject, message_id = describe(data)
        return {
            'from_addr': from_addr,
            'to_addrs': ', '.join(to_addrs),
            'msg': data,
            'size': len(data),
            'mail_options': ' '.join(mail_options),
            'rcpt_options': ' '.join(rcpt_options),
            'subject': subject,
            'message_id': message_id,
            'resource': _reference(resource),
            'priority': PRIORITIES[priority],
            'server': server,
            # By the clock of the database, so that a worker finds the email
            # due at the commit
            'scheduled_at': scheduled_at or utc_now(),
            'expires_at': expires_at,
            'sensitive': bool(sensitive),
            'key': bulk.checked_key(key),
            }

    @classmethod
    def send_all(cls):
        """Send the emails that are due.

        This is the method of the scheduled job. A module may replace it to
        send the emails in another way.

        :raises ServerError: a server is in trouble or not configured. Its
            emails stay in the queue.
        :raises CopyError: the database looks like a copy.
        :raises SettingError: the configuration makes no sense.
        :raises PoolerError: a pooler shares the session of the database.
        :raises RecordError: the database does not take outcomes.
        """
        run.run(cls)

    @classmethod
    def send_queued(cls, emails):
        """Send all emails that are due, as the task of a worker.

        An error is only logged, because the administrator would get an error
        from each task. The scheduled job raises one error for all of them.

        :param emails: a list with the email that pushed the task.
        """
        try:
            if not run.in_trouble():
                with Transaction().set_context(email_queue_task=True):
                    cls.send_all()
        except EmailQueueError as error:
            logger.info("an error is left to the scheduled job: %s", error)

    def send(self, smtp_server=None):
        """Send this committed email now, whatever its due time.

        :param smtp_server: the connected ``smtplib.SMTP`` to use. None opens a
            session with the server of the email.
        :raises ClaimError: the email cannot be claimed.
        :raises NotSentError: the email was not sent to all of its recipients.
            What became of it is recorded.
        :raises HoldError: the option ``hold`` is set.
        :raises CopyError, SettingError, PoolerError, RecordError: as
            :meth:`send_all`.
        """
        run.send(self, smtp_server)

    @classmethod
    def verdict(cls, step, reply):
        "Return whose fault the bad reply of a server is: see replies.verdict"
        return replies.verdict(step, reply)

    @classmethod
    def get_client(cls, server, settings):
        """Return what sends the emails of a server, one after another.

        A module may replace the method, for another transport than SMTP. It is
        called in the threads of the sessions, which have no transaction, so it
        must not use the database.

        :param server: the name of the server, None for the default server.
        :param settings: the ``settings.Settings`` of the server.
        :return: an object like ``smtp.Client``: ``deliver(mail)`` takes a
            ``smtp.Mail`` and returns a ``smtp.Outcome``, ``close()`` ends the
            session, ``drop()`` ends it at once.
        """
        return handover.client_of(cls, settings, server)

    @classmethod
    def access_token(cls, server=None, refused=None):
        """Return the token for the login at a server by OAuth 2.

        The method is called in the threads of the sessions, which have no
        transaction, so it must not use the database.

        :param server: the name of the server, None for the default server.
        :param refused: a token that the server has refused. Another token has
            to be returned.
        :return: the token, None where the server has no options for OAuth 2.
        :raises LoginError: there is no token.
        """
        return oauth.access_token(server, refused)

    @classmethod
    def queued(cls, emails):
        """Called when ``emails`` have been queued, for subclasses to extend.

        The method runs in the transaction that queues them, without checks of
        access.
        """

    @classmethod
    def finished(cls, emails):
        """Called when the outcome of ``emails`` is recorded, to be extended.

        The method runs on the connection of the sender, where each statement
        commits.
        """

    @classmethod
    def run_finished(cls, failed):
        """Called at the end of a run in which emails have failed.

        Subclasses can extend the method. It runs in the transaction of the
        caller of :meth:`send_all`, which may not see what the run has
        recorded.

        :param failed: the ids of the emails.
        """
        notification.notify(cls, failed)

    @classmethod
    @ModelView.button
    def send_now(cls, emails):
        """Send emails before all others, at once.

        :raises StateError: an email is not in the outbox.
        :raises UrgentWarning: there are several emails.
        """
        cls._keep_from_senders(emails, {'outbox'})
        cls._warn_many(emails)
        # Raised until the next attempt only: see policy.after
        for own_priority, group in groupby(
                emails, lambda e: e.own_priority or e.priority):
            cls.write(list(group), {
                    'own_priority': own_priority,
                    'priority': PRIORITIES['urgent'],
                    'scheduled_at': utc_now(),
                    })
        cls._push(emails)

    @classmethod
    @ModelView.button
    @transition('outbox')
    def retry(cls, emails):
        """Put failed or cancelled emails back in the outbox.

        :raises StateError: an email is neither failed nor cancelled.
        :raises MessageError: the message of an email has been removed.
        :raises UncertainWarning: an email may have arrived.
        :raises ExpiredWarning: an email has expired.
        """
        cls._check_message(emails)
        cls._warn_uncertain([e for e in emails if e.uncertain])
        now = database_time()
        expired = [e for e in emails if e.expires_at and e.expires_at <= now]
        cls._warn_expired(expired)
        values = {
            'attempts': 0,
            'crashes': 0,
            'first_attempt': None,
            'uncertain': False,
            'refused': None,
            'reason': None,
            'error': None,
            'bounced_at': None,
            'suspect': None,
            'suspect_since': None,
            }
        # Before anything is written, go through all emails once, because this
        # raises an error if one of them cannot be changed
        for _ in cls._on_behalf(emails):
            pass
        # A cancelled email keeps its due time and its expiry, unless it has
        # expired
        resumed = [
            e for e in emails if e.state == 'cancelled' and e not in expired]
        restarted = [e for e in emails if e not in resumed]
        cls.write(resumed, values, restarted, {
                **values,
                'scheduled_at': utc_now(),
                'expires_at': None,
                })
        for email, values in cls._on_behalf(emails):
            cls.write([email], values)
        cls._add_events('retried', emails)
        cls._push(emails)

    @classmethod
    def _on_behalf(cls, emails):
        """Yield emails with the values that ``behalf.on_behalf`` changes.

        So an email that failed because of the configuration is sent as the
        configuration says now. The emails come one at a time, because each has
        its message with it.
        """
        if not behalf.is_set():
            return
        for email in emails:
            if email.accepted:
                # Some recipients have got the message as it is
                continue
            data = cls._message(email.id)
            if data is None:
                raise _message_removed(email)
            before = email.server, email.from_addr, data
            with _argument_errors():
                after = behalf.on_behalf(*before)
            if after != before:
                server, from_addr, data = after
                yield email, {
                    'server': server, 'from_addr': from_addr,
                    'msg': data, 'size': len(data)}

    @classmethod
    def _check_message(cls, emails):
        removed = cls._without_message([e.id for e in emails])
        for email in emails:
            if email.id in removed:
                raise _message_removed(email)

    @classmethod
    def _warn_uncertain(cls, emails):
        _warn(
            UncertainWarning, 'email_queue_retry_uncertain', emails,
            'email_queue.msg_retry_uncertain')

    @classmethod
    def _warn_expired(cls, emails):
        _warn(
            ExpiredWarning, 'email_queue_retry_expired', emails,
            'email_queue.msg_retry_expired')

    @classmethod
    def _warn_many(cls, emails):
        if len(emails) > 1:
            _warn(
                UrgentWarning, 'email_queue_send_now', emails,
                'email_queue.msg_send_now_many', number=len(emails))

    @classmethod
    @ModelView.button
    @transition('cancelled')
    def cancel(cls, emails):
        """Take emails out of the outbox, or give failed emails up.

        :raises StateError: an email is neither in the outbox nor failed.
        """
        cls._add_events('cancelled', emails)

    @classmethod
    @ModelView.button
    def send_again(cls, emails):
        """Queue sent emails once more: see :meth:`queue_again`.

        :raises StateError: an email is not sent.
        :raises MessageError: as of :meth:`queue_again`.
        """
        for email in emails:
            if email.state != 'sent':
                raise changed(email)
            cls.queue_again(email)

    @classmethod
    @ModelView.button_action('email_queue.wizard_send_to')
    def send_to(cls, emails):
        "Open the wizard that sends a failed email to a corrected address"

    @classmethod
    def _keep_from_senders(cls, emails, states):
        """Let no sender claim ``emails`` before the transaction ends.

        On PostgreSQL an update locks the rows. On SQLite an update keeps
        everybody else from writing, so that a write of the ORM cannot change
        rows that a sender claims meanwhile.

        :param states: the states that the emails may be in.
        :raises StateError: an email is in another state.
        """
        check_writable()
        transaction = Transaction()
        cursor = transaction.connection.cursor()
        t = cls.__table__()
        for sub_emails in grouped_slice(emails, IDS_LENGTH):
            sub_emails = list(sub_emails)
            where = (
                fields.SQL_OPERATORS['in'](t.id, list(map(int, sub_emails)))
                & t.state.in_(list(states)))
            cursor.execute(*t.update([t.state], [t.state], where=where))
            if cursor.rowcount != len(sub_emails):
                cursor.execute(*t.select(t.id, where=where))
                held = {id_ for id_, in cursor}
                raise changed(
                    next(e for e in sub_emails if e.id not in held))
        # Forget what was read before the rows were locked
        forget(transaction)
        transaction.counter += 1
        if transaction.timestamp:
            # It does not matter when the client has read the emails, because
            # their state has been checked by now
            for email in emails:
                transaction.timestamp.pop(str(email), None)

    @classmethod
    def _add_events(cls, kind, emails):
        "Add what the user does with ``emails`` to their history"
        ids = list(map(int, emails))
        if ids:
            cls.events.get_target().add_events(
                kind, lambda t: fields.SQL_OPERATORS['in'](t.id, ids))


def _warn(Class, name, emails, message, **values):
    "Ask the user whether to go on, by a warning that names the emails"
    Warning = Pool().get('res.user.warning')
    key = Warning.format(name, emails)
    if emails and Warning.check(key):
        names = [
            f'{e.rec_name} ({e.to_addrs})'[:VALUE_LENGTH]
            for e in emails[:NAMES]]
        if len(emails) > NAMES:
            names.append('…')
        raise Class(key, gettext(message, **values), '\n'.join(names))


def _read_resources(references, names):
    """Return the values of records by their references.

    Of a record that the user may not read only the id is returned.
    """
    ids, values = {}, {}
    for reference in references:
        model, _, id_ = reference.partition(',')
        ids.setdefault(model, []).append(int(id_))
        values[reference] = {
            'id': int(id_), **dict.fromkeys(names), 'rec_name': f'({id_})'}
    for model, ids in ids.items():
        for row in _read_allowed(Pool().get(model), ids, names):
            values[f'{model},{row["id"]}'] = row
    return values


def _read_allowed(Model, ids, names):
    try:
        return Model.read(ids, names)
    except AccessError:
        middle = len(ids) // 2
        if not middle:
            return []
        return [
            *_read_allowed(Model, ids[:middle], names),
            *_read_allowed(Model, ids[middle:], names)]


def _shown(email, reading, name):
    "Return what the field ``name`` shows of the message of an email"
    if name == 'headers':
        text = '\n'.join(f'{n}: {v}' for n, v in reading.headers)
    elif name == 'attachments':
        return part_ids(email.id, len(reading.attachments))
    elif name == 'html':
        text = preview.rich_text('\n'.join(reading.sources))
    else:
        # A message without a text is shown as the text of its HTML
        text = reading.text or reading.html
    return text or None


class _Push:
    """Pushes one task for all emails that a transaction queues.

    It is a data manager, because the task is needed at the end of the
    transaction. The first email pushes the task, because after ``commit`` of
    this data manager another one could still queue emails. ``commit`` pushes
    the task again if a rollback to a savepoint has taken it back.
    """

    def __init__(self):
        self._email = self._task = None

    def put(self, email):
        self._email = email
        if self._task is None:
            self._task = self._push()

    def _push(self):
        "Push a task and return its id"
        transaction = Transaction()
        with transaction.set_user(0), transaction.reset_context(), \
                transaction.set_context(queue_name='email_queue'):
            task, = self._email.__class__.__queue__.send_queued([self._email])
        return task

    def __eq__(self, other):
        return isinstance(other, _Push) or NotImplemented

    def commit(self, transaction):
        if self._task is not None and not self._is_pushed():
            self._task = self._push()

    def _is_pushed(self):
        t = Pool().get('ir.queue').__table__()
        cursor = Transaction().connection.cursor()
        cursor.execute(*t.select(t.id, where=t.id == self._task))
        return bool(cursor.fetchone())

    def tpc_finish(self, transaction):
        self._email = self._task = None

    tpc_abort = abort = tpc_finish

    def tpc_begin(self, transaction):
        pass

    tpc_vote = tpc_begin


@contextmanager
def _argument_errors():
    try:
        yield
    except Invalid as error:
        value = error.value
        if len(value) > VALUE_LENGTH:
            value = f'{value[:VALUE_LENGTH]}…'
        words = gettext(
            f'email_queue.{error.reason}',
            argument=error.argument, value=value)
        Error = (
            SettingError if isinstance(error, InvalidSetting)
            else ArgumentError)
        raise Error(words, error.argument, value) from error


def _message_removed(email):
    return MessageError(
        gettext('email_queue.msg_message_removed', email=email.rec_name),
        email)


def _instant(argument, value, now):
    "Return the naive UTC of a datetime or of a timedelta from now"
    try:
        if isinstance(value, dt.timedelta):
            return now + value
        if isinstance(value, dt.datetime):
            if value.tzinfo:
                value = value.astimezone(dt.timezone.utc).replace(tzinfo=None)
            return value
    except (OverflowError, ValueError):
        pass
    raise Invalid(argument, value, 'msg_time_invalid')


def _message_id(msg):
    "Return the Message-ID of a ``Message`` as a text"
    # Not msg['Message-ID'], because parsing it would take a fifth of the time
    # in which many emails are queued
    for name, value in msg.raw_items():
        if name.lower() == 'message-id':
            return str(value).strip()
    return ''


def _later(at, now):
    "Return the seconds since the epoch of a naive UTC that is after now"
    if at and at > now:
        return at.replace(
            microsecond=0, tzinfo=dt.timezone.utc).timestamp()


def _reference(resource):
    if resource is None:
        return None
    reference = str(resource)
    model, _, id_ = reference.partition(',')
    try:
        # A reference that cannot be read would be an error for the whole list
        valid = (
            issubclass(Pool().get(model), ModelStorage)
            and id_.isascii() and id_.isdigit() and len(id_) <= ID_LENGTH)
    except KeyError:
        valid = False
    if not valid:
        raise Invalid(
            'resource', reference, 'msg_resource_invalid')
    return f'{model},{int(id_)}'
