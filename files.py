# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Where messages are: in a column of the database or in the filestore.

A file that no row has any more waits in trytond's own queue for its removal:
so it survives a rollback and a crash does not forget it.
"""
import copy
import logging

from sql import Column, Literal, Null
from sql.conditionals import Case
from sql.functions import CurrentTimestamp

from trytond.filestore import filestore
from trytond.model import fields
from trytond.pool import Pool
from trytond.transaction import Transaction

__all__ = ['Message', 'purge']
logger = logging.getLogger(__name__)

BATCH = 1000
# A folder of the prefix that no other model has: whoever may write the id of a
# file in a record of their own could read the messages through it
FOLDER = 'email_queue'


class FileID(fields.Char):
    "The id of a message's file, which is hidden as the message is"

    def sql_column(self, tables, Model):
        return _unless_sensitive(tables, super().sql_column(tables, Model))


class Message(fields.Binary):
    """A message, read from where it is, stored where ``to_filestore`` says.

    The ORM reads nothing of a sensitive one, for whomever: neither access
    nor its check reaches each way to a field, an export for example.
    """

    def __init__(self, *args, to_filestore=False, **keywords):
        super().__init__(*args, file_id='file_id', **keywords)
        self.to_filestore = to_filestore

    @property
    def prefixes(self):
        """Return where the files are in the filestore.

        New ones are in the first. Version 8.2.0 stored them in the second.
        """
        prefix = self.store_prefix
        if prefix is None:
            prefix = Transaction().database.name
        return [f'{prefix}/{FOLDER}', prefix]

    def get(self, ids, model, name, values=None):
        format_ = Transaction().context.get(f'{model.__name__}.{name}')
        t = model.__table__()
        cursor = Transaction().connection.cursor()
        cursor.execute(*t.select(
                t.id, t.file_id, t.size,
                where=fields.SQL_OPERATORS['in'](t.id, ids)
                & (t.file_id != '') & ~t.sensitive))
        messages = {
            id_: size if format_ == 'size' else self.load(file_id, size)
            for id_, file_id, size in cursor.fetchall()}
        for row in values or []:
            if row['id'] not in messages:
                msg = row[name]
                if msg is not None:
                    msg = len(msg) if format_ == 'size' else self.cast(msg)
                messages[row['id']] = msg
        return messages

    def sql_column(self, tables, Model):
        return _unless_sensitive(tables, super().sql_column(tables, Model))

    @property
    def set(self):
        # The ORM does not find it: it is done with the other columns by
        # values and queue_for_removal, and not by further statements
        raise AttributeError('set')

    def values(self, Model, data):
        "Return the values of both columns for ``data``, stored where it is to"
        file_id = None
        if self.to_filestore and data is not None:
            try:
                file_id = self.store(data)
            except Exception:
                # Whatever the filestore lacks, the email is not lost
                logger.exception(
                    "a message is kept in the database as the filestore "
                    "does not take it")
            else:
                data = None
                Transaction().join(_Written(Model)).put(file_id)
        return {self.name: data, self.file_id: file_id}

    def store(self, data):
        "Write a file and return its id, or leave nothing of it"
        prefix, _ = self.prefixes
        if not hasattr(filestore, '_id'):
            return filestore.set(data, prefix=prefix)
        # The id of a file is needed when writing it fails in the middle
        store, file_id = copy.copy(filestore), filestore._id(data)
        store._id = lambda data: file_id
        try:
            return store.set(data, prefix=prefix)
        except BaseException:
            store.delete(file_id, prefix=prefix)
            raise

    def remove(self, file_id):
        prefix, _ = self.prefixes
        filestore.delete(file_id, prefix=prefix)

    def load(self, file_id, size):
        "Return the bytes of a file, None where they are not all there"
        for prefix in self.prefixes:
            try:
                data = self.cast(filestore.get(file_id, prefix=prefix))
            except Exception as error:
                # Any class can be the filestore
                logger.info(
                    "can not read %r of %r in the filestore: %s",
                    file_id, prefix, error)
            else:
                return data if len(data) == size else None
        logger.error("the file %r is not in the filestore", file_id)
        return None

    def queue_for_removal(self, Model, name, ids):
        # As of trytond, but with the prefix: its job can not do without
        t = Model.__table__()
        q = Pool().get('ir.filestore.queue').__table__()
        transaction = Transaction()
        file_id = Column(t, self.file_id)
        cursor = transaction.connection.cursor()
        for prefix in self.prefixes:
            cursor.execute(*q.insert(
                    [q.create_date, q.create_uid, q.file_id, q.model, q.prefix,
                        q.field],
                    t.select(
                        CurrentTimestamp(), Literal(transaction.user), file_id,
                        Literal(Model.__name__), Literal(prefix),
                        Literal(name),
                        where=fields.SQL_OPERATORS['in'](t.id, ids)
                        & (file_id != Null))))


def _unless_sensitive(tables, column):
    "Hide a column also where it is searched or sorted by"
    table, _ = tables[None]
    return Case((table.sensitive, Null), else_=column)


class _Written:
    """Removes the files of a transaction that is rolled back.

    Also those of a savepoint that was: after the commit, because the commit
    itself can still fail.
    """

    def __init__(self, Model):
        self._Model = Model
        self._file_ids = []
        self._rolled_back = []

    def put(self, file_id):
        self._file_ids.append(file_id)

    def __eq__(self, other):
        if not isinstance(other, _Written):
            return NotImplemented
        return self._Model == other._Model

    def commit(self, transaction):
        if self._file_ids:
            self._rolled_back = _unused(self._Model, self._file_ids)

    def tpc_vote(self, transaction):
        # A commit whose answer is lost may have come to pass: only what no
        # row has is removed
        self._file_ids = self._rolled_back

    def tpc_finish(self, transaction):
        self._remove()

    tpc_abort = tpc_finish

    def _remove(self):
        file_ids, self._file_ids, self._rolled_back = self._file_ids, [], []
        if not file_ids:
            return
        try:
            # A row that another connection sees is there, as each statement
            # of an autocommit transaction is
            with Transaction().new_transaction(readonly=True):
                file_ids = _unused(self._Model, file_ids)
                for file_id in file_ids:
                    self._Model.msg.remove(file_id)
        except Exception:
            logger.exception("can not remove the files %s", file_ids)

    def tpc_begin(self, transaction):
        pass

    abort = tpc_begin


def _unused(Model, file_ids):
    t = Model.__table__()
    cursor = Transaction().connection.cursor()
    cursor.execute(*t.select(
            t.file_id,
            where=fields.SQL_OPERATORS['in'](t.file_id, file_ids)
            & (t.file_id != '')))
    return list(set(file_ids) - {file_id for file_id, in cursor})


def purge(Model):
    """Remove the files of messages that are gone, without further delay.

    How long they are kept is decided for the rows. A file is gone before its
    place in the queue is: where both could not be, it is tried again.
    """
    last = 0
    while entries := _removable(Model, last):
        for _, file_id, prefix in entries:
            filestore.delete(file_id, prefix=prefix)
        ids = [id_ for id_, *_ in entries]
        q = Pool().get('ir.filestore.queue').__table__()
        Transaction().connection.cursor().execute(*q.delete(
                where=fields.SQL_OPERATORS['in'](q.id, ids)))
        last = ids[-1]


def _removable(Model, last):
    "Return some places of the queue whose files no row has"
    t = Model.__table__()
    q = Pool().get('ir.filestore.queue').__table__()
    cursor = Transaction().connection.cursor()
    cursor.execute(*q.select(
            q.id, q.file_id, q.prefix,
            where=(q.model == Model.__name__)
            & (q.field == Model.msg.name)
            & (q.prefix != Null)
            & (q.id > last)
            & ~q.file_id.in_(
                t.select(
                    t.file_id,
                    where=(t.file_id == q.file_id) & (t.file_id != ''))),
            order_by=[q.id], limit=BATCH))
    return cursor.fetchall()
