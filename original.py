# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The table of the original, the module of this name for Tryton 3.4 → ours.

In the table of the original ``msg`` is a text, and the only other columns are
addresses, attempts and state. The update of the module converts the table.
"""
import datetime as dt
import json
import logging
from typing import NamedTuple

from sql import Cast, Column, Literal, Null, Table
from sql.aggregate import Count
from sql.functions import Function

from trytond import backend
from trytond.model import ModelSQL, fields
from trytond.pool import Pool
from trytond.transaction import Transaction
from trytond.url import HOSTNAME

from . import notification
from .address import Invalid, envelope_from, envelope_to
from .incomplete import UNKNOWN, Octets
from .mime import describe, prepare
from .recipients import join_lines
from .tools import database_time
from .words import printable

__all__ = ['Held', 'convert', 'notify_held', 'recipients_of', 'values_of']
logger = logging.getLogger(__name__)

MODULE = 'email_queue'
# The column that holds the texts until they are converted
TEXT = 'msg_original'
# A batch has at most so many rows and bytes, so that memory does not grow with
# the table
ROWS, BYTES = 1000, 4 * 1024 * 1024
# An email that has waited longer is sent only if a person decides so
WAITED = dt.timedelta(days=1)
# The new columns that the conversion fills
COLUMNS = [
    'msg', 'size', 'subject', 'message_id', 'priority', 'scheduled_at',
    'crashes', 'sensitive', 'sent_at', 'refused', 'reason', 'error']
# The method of the scheduler's action, in the original and in this module
METHOD = 'email.queue|send_all'
# Other methods that the action can have after the migration of the original
OLD_METHODS = ['email.queue|send_mail_cron', 'email.queue|send_mail']


class Held(ModelSQL):
    "How many emails the update holds back, until users have been notified"
    __name__ = 'email.queue.held'

    number = fields.Integer("Number", required=True, readonly=True)

    @classmethod
    def __setup__(cls):
        super().__setup__()
        # No client reads or writes these records
        cls.__rpc__.clear()


class Row(NamedTuple):
    "A row of the original, without its text"
    id: int
    from_addr: str
    to_addrs: str
    attempts: int
    state: str
    create_date: dt.datetime
    write_date: dt.datetime


class ConvertTo(Function):
    __slots__ = ()
    _function = 'CONVERT_TO'


def _bytes_of(column):
    "Return the expression for the bytes of a text, valid or not"
    if backend.name == 'postgresql':
        return ConvertTo(column, 'UTF8')
    return Cast(column, 'BLOB')


def convert(Model, module):
    """Convert the table of the original, if it is not converted yet.

    An interrupted conversion is continued: the texts stay until all of them
    are converted.
    """
    if not backend.TableHandler.table_exist(Model._table):
        return
    handler = Model.__table_handler__(module)
    if (handler.column_exist('msg')
            and handler.column_is_type('msg', fields.Text._sql_type)):
        handler.column_rename('msg', TEXT)
    is_original = handler.column_exist(TEXT)
    if is_original:
        _convert_table(Model, handler)
    _convert_settings(is_original)


def _convert_table(Model, handler):
    for name in COLUMNS:
        handler.add_column(name, Model._fields[name]._sql_type)
    _take_over(Model)
    _convert_rows(Model)
    handler.drop_column(TEXT)
    _make_as_new(handler)
    _remember_held(Model)


def _take_over(Model):
    "Take over messages that were queued while their column was a text"
    t = Model.__table__()
    _cursor().execute(*t.update(
            [t.msg], [_bytes_of(Column(t, TEXT))],
            where=(t.size != Null) & (t.scheduled_at != Null)
            & (t.msg == Null)))


def _convert_rows(Model):
    cursor = _cursor()
    t = Model.__table__()
    cursor.execute(*t.select(
            Count(Literal(1)),
            where=(t.size == Null) | (t.scheduled_at == Null)))
    total, = cursor.fetchone()
    now, count, last = database_time(), 0, 0
    while rows := _next_rows(Model, last):
        for batch in _batches(rows):
            _convert_batch(Model, batch, now)
            count += len(batch)
        last = rows[-1][0].id
        logger.info(
            "%d of %d emails of the original module are converted",
            count, total)


def _next_rows(Model, last):
    "Return the next rows, each with the size of its text"
    t = Model.__table__()
    cursor = _cursor()
    cursor.execute(*t.select(
            *(Column(t, name) for name in Row._fields),
            Octets(_bytes_of(Column(t, TEXT))),
            where=((t.size == Null) | (t.scheduled_at == Null))
            & (t.id > last),
            order_by=[t.id], limit=ROWS))
    return [(Row(*values), size or 0) for *values, size in cursor.fetchall()]


def _batches(rows):
    "Yield lists of rows whose texts have at most ``BYTES`` together"
    batch, bytes_ = [], 0
    for row, size in rows:
        if batch and bytes_ + size > BYTES:
            yield batch
            batch, bytes_ = [], 0
        batch.append(row)
        bytes_ += size
    yield batch


def _convert_batch(Model, rows, now):
    t = Model.__table__()
    cursor = _cursor()
    cursor.execute(*t.select(
            t.id, _bytes_of(Column(t, TEXT)),
            where=fields.SQL_OPERATORS['in'](t.id, [r.id for r in rows])))
    texts = dict(cursor.fetchall())
    queries = []
    for row in rows:
        text = texts.pop(row.id)
        values = values_of(
            Model, row, None if text is None else bytes(text), now)
        values['msg'] = Model.msg.sql_format(values['msg'])
        queries.append(t.update(
                [Column(t, name) for name in values], list(values.values()),
                where=t.id == row.id))
    cursor.executemany(str(queries[0]), [q.params for q in queries])


def values_of(Model, row, text, now):
    """Return the values for a row of the original.

    :param text: the bytes of the row's text, None if it has none.
    :param now: the time by the clock of the database.
    """
    queued_at = row.create_date or now
    from_addr, to_addrs, refused, fault = _envelope(row)
    data = message(text, queued_at)
    subject, message_id = describe(data) if data else (None, None)
    state, reason, error = row.state, None, None
    if state in {'outbox', 'sending'}:
        state = 'outbox'
        if data is None:
            fault = fault or 'no_message'
        if not fault and queued_at < now - WAITED:
            fault = 'waited'
        if fault:
            state, reason = 'failed', fault
    elif state == 'failed':
        reason = fault or 'failed_before'
    elif state != 'sent':
        error = None if state is None else printable(str(state))
        state, reason = 'failed', 'no_state'
    return {
        'from_addr': from_addr,
        'to_addrs': to_addrs,
        'msg': data,
        'size': len(data or b''),
        'subject': subject,
        'message_id': message_id,
        'priority': Model.default_priority(),
        'scheduled_at': queued_at,
        'attempts': row.attempts or 0,
        'crashes': Model.default_crashes(),
        'sensitive': False,
        'sent_at': (row.write_date or queued_at) if state == 'sent' else None,
        'refused': refused if state == 'outbox' else None,
        'state': state,
        'reason': reason,
        'error': error,
        }


def message(text, queued_at):
    "Return the bytes that ``queue_mail`` would have stored for a text"
    if text is None:
        return None
    at = queued_at.replace(microsecond=0, tzinfo=dt.timezone.utc).timestamp()
    return prepare(text, HOSTNAME, due=at)


def _envelope(row):
    """Return envelope sender, recipients, the text of ``refused``, a reason.

    The reason is None unless nobody can get the email. The original sent an
    email to invalid addresses, too: the server refused these addresses, and
    the other recipients got the email.
    """
    fault = None
    try:
        from_addr = envelope_from(row.from_addr or '')
    except Invalid:
        from_addr = printable(row.from_addr or '') or UNKNOWN
        fault = 'no_sender'
    valid, wrong = recipients_of(row.to_addrs or '')
    if not valid:
        shown = printable(row.to_addrs or '') or UNKNOWN
        return from_addr, shown, None, fault or 'no_recipient'
    refused = join_lines(None, wrong)
    return from_addr, ', '.join([*valid, *wrong]), refused, fault


def recipients_of(text):
    "Return the valid addresses of a text, and the invalid ones, printable"
    try:
        return envelope_to(text), []
    except Invalid:
        pass
    valid, wrong = [], []
    for part in text.split(','):
        try:
            valid += envelope_to(part)
        except Invalid:
            # An unpaired double quote would swallow the addresses after it
            if part := printable(part.replace('"', "'")):
                wrong.append(part)
    return list(dict.fromkeys(valid)), list(dict.fromkeys(wrong))


def _make_as_new(handler):
    "Change the types and constraints of old columns to those of a new table"
    cursor = _cursor()
    for name in ['create_uid', 'write_uid']:
        handler.drop_fk(name)
    if backend.name == 'sqlite':
        table = handler.table_name
        cursor.execute(f'PRAGMA table_info("{table}")')
        columns = cursor.fetchall()
        if any(notnull for _, _, _, notnull, _, _ in columns):
            # This makes the table anew, without the constraints that a table
            # of trytond does not have
            handler.alter_type('from_addr', 'VARCHAR')
    else:
        type_ = fields.Timestamp._sql_type
        _, precise = Transaction().database.sql_type(type_)
        for name in ['create_date', 'write_date']:
            handler.alter_type(name, precise)


def _remember_held(Model):
    "Note how many emails are held back, so that administrators are notified"
    t = Model.__table__()
    cursor = _cursor()
    cursor.execute(*t.select(
            Count(Literal(1)),
            where=(t.state == 'failed') & (t.reason == 'waited')))
    number, = cursor.fetchone()
    if number:
        held = Pool().get('email.queue.held').__table__()
        cursor.execute(*held.insert([held.number], [[number]]))


# The action and the user


def _convert_settings(is_original):
    """Keep the scheduler's action of the original, and retire its user.

    Both are removed from the list of the module's records, because otherwise
    the update would delete the action with its interval, and would fail to
    delete the user.
    """
    actions, users = _unlist('send_mail_cron'), _unlist('email_sender')
    user = Table('res_user')
    _cursor().execute(*user.update(
            [user.active], [False], where=user.id.in_(users or [-1])))
    methods = [*OLD_METHODS, *([METHOD] if is_original else [])]
    cron, cursor = Table('ir_cron'), _cursor()
    cursor.execute(*cron.select(
            cron.id,
            where=cron.id.in_(actions or [-1]) | cron.method.in_(methods)))
    # The action that was a record of the original comes first
    found = sorted(
        (id_ for id_, in cursor), key=lambda id_: (id_ not in actions, id_))
    if not _has_action() and found:
        _adopt(found.pop(0))
    if not is_original or actions:
        _retire(found)


def _unlist(fs_id):
    "Take a record out of the list of the module's records; return its ids"
    data, cursor = Table('ir_model_data'), _cursor()
    where = (data.module == MODULE) & (data.fs_id == fs_id)
    cursor.execute(*data.select(data.db_id, where=where))
    ids = [id_ for id_, in cursor if id_ is not None]
    cursor.execute(*data.delete(where=where))
    return ids


def _has_action():
    """Return whether an action is in the list of the module's records.

    If the action was adopted before the activation, its id is written now.
    """
    cron, data, cursor = Table('ir_cron'), Table('ir_model_data'), _cursor()
    cursor.execute(*data.select(
            data.id, data.db_id,
            where=(data.module == MODULE) & (data.fs_id == 'cron_send_all')))
    found = cursor.fetchone()
    if found and found[1] is None:
        cursor.execute(*cron.select(
                cron.id, where=cron.method == METHOD, order_by=[cron.id],
                limit=1))
        for id_, in cursor.fetchall():
            cursor.execute(*data.update(
                    [data.db_id], [id_], where=data.id == found[0]))
    return bool(found)


def _adopt(id_):
    "Add an action to the module's records, with the interval that it has"
    cron, data, module = map(Table, ['ir_cron', 'ir_model_data', 'ir_module'])
    cursor = _cursor()
    cursor.execute(*cron.update(
            [cron.method], [METHOD], where=cron.id == id_))
    cursor.execute(*module.select(
            module.id,
            where=(module.name == MODULE)
            & module.state.in_(['activated', 'to upgrade'])))
    if not cursor.fetchone():
        # With an id the activation would write the default interval. Without
        # an id trytond takes the action for one that a person has deleted, and
        # leaves it.
        id_ = None
    values = {
        'module': MODULE,
        'fs_id': 'cron_send_all',
        'model': 'ir.cron',
        'db_id': id_,
        'noupdate': True,
        'field_names': json.dumps(
            ['interval_number', 'interval_type', 'method']),
        }
    cursor.execute(*data.insert(
            [Column(data, name) for name in values],
            [list(values.values())]))


def _retire(ids):
    "Deactivate further actions that do the same as the adopted one"
    cron = Table('ir_cron')
    if ids:
        _cursor().execute(*cron.update(
                [cron.method, cron.active], [METHOD, False],
                where=cron.id.in_(ids)))


# Telling


def notify_held():
    "Notify the administrators once how many emails an update holds back"
    pool = Pool()
    Held = pool.get('email.queue.held')
    held = Held.search([])
    number = sum(h.number for h in held)
    if held and notification.notify_of_queue(
            _administrators(), 'msg_held_label', 'msg_held', number,
            number=number):
        Held.delete(held)


def _administrators():
    "Return the administrators of Tryton and the members of the group"
    Health = Pool().get('email.queue.health')
    return {*Health.administrators(), *Health.members()}


def _cursor():
    return Transaction().connection.cursor()
