# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Where messages are: in a column of the database or in the filestore.

A file that no row refers to waits for its removal in the queue of trytond, so
that a rollback keeps it and a crash does not forget it.
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

__all__ = ['FileIDField', 'MessageField', 'purge']
logger = logging.getLogger(__name__)

BATCH = 1000
# The files have a folder of their own below the prefix. Otherwise a user who
# may write the id of a file in a record of another model could read messages
# through this record.
FOLDER = 'email_queue'


class FileIDField(fields.Char):
    "The id of the file of a message; hidden if the message is sensitive"

    def sql_column(self, tables, Model):
        return _unless_sensitive(tables, super().sql_column(tables, Model))


class MessageField(fields.Binary):
    """A message, which is written to the filestore if ``to_filestore`` is set.

    It is read from where it is. The ORM reads a sensitive message for nobody,
    because checks of access do not cover every way to a field, such as an
    export.
    """

    def __init__(self, *args, to_filestore=False, **keywords):
        super().__init__(*args, file_id='file_id', **keywords)
        self.to_filestore = to_filestore

    @property
    def prefixes(self):
        """Return the two folders of the files in the filestore.

        New files go to the first. Version 8.2.0 stored files in the second.
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
        # Hidden from the ORM, which would write each message by statements of
        # its own. ``values`` returns the message to be written with the other
        # columns.
        raise AttributeError('set')

    def values(self, Model, data):
        "Return the values of both columns, and store ``data`` if it is needed"
        file_id = None
        if self.to_filestore and data is not None:
            try:
                file_id = self.store(data)
            except Exception:
                # Kept in the database, because an error of the filestore must
                # not lose the email
                logger.exception(
                    "a message is kept in the database as the filestore "
                    "does not take it")
            else:
                data = None
                Transaction().join(_Written(Model)).put(file_id)
        return {self.name: data, self.file_id: file_id}

    def store(self, data):
        "Write a file and return its id; after an error no part of it is left"
        prefix, _ = self.prefixes
        if not hasattr(filestore, '_id'):
            return filestore.set(data, prefix=prefix)
        # The id is chosen first, so that the file can be deleted if writing it
        # fails in the middle
        store, file_id = copy.copy(filestore), filestore._id(data)
        store._id = lambda data: file_id
        try:
            return store.set(data, prefix=prefix)
        except BaseException:
            store.delete(file_id, prefix=prefix)
            raise

    def remove(self, file_id):
        "Delete a file that this version has stored"
        prefix, _ = self.prefixes
        filestore.delete(file_id, prefix=prefix)

    def load(self, file_id, size):
        "Return the bytes of a file, None if it is missing or incomplete"
        for prefix in self.prefixes:
            try:
                data = self.cast(filestore.get(file_id, prefix=prefix))
            except Exception as error:
                # Any error, because the filestore can be of any class
                logger.info(
                    "cannot read %r of %r in the filestore: %s",
                    file_id, prefix, error)
            else:
                return data if len(data) == size else None
        logger.error("the file %r is not in the filestore", file_id)
        return None

    def queue_for_removal(self, Model, name, ids):
        # Like the method of trytond, but with the prefix, without which the
        # job of trytond does not find the file
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
    "Hide a column from searching and sorting, too, which would leak it"
    table, _ = tables[None]
    return Case((table.sensitive, Null), else_=column)


class _Written:
    """Removes the files of a transaction that is rolled back.

    The files of a savepoint that was rolled back are removed after the commit
    of the transaction, because the commit can still fail.
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
        # From here on the commit may succeed even if the database does not
        # answer. So only files to which no row refers are removed.
        self._file_ids = self._rolled_back

    def tpc_finish(self, transaction):
        self._remove()

    tpc_abort = tpc_finish

    def _remove(self):
        file_ids, self._file_ids, self._rolled_back = self._file_ids, [], []
        if not file_ids:
            return
        try:
            # Another connection sees only the rows that are committed, even
            # where each statement of this transaction commits
            with Transaction().new_transaction(readonly=True):
                file_ids = _unused(self._Model, file_ids)
                for file_id in file_ids:
                    self._Model.msg.remove(file_id)
        except Exception:
            logger.exception("cannot remove the files %s", file_ids)

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
    """Remove the files of messages that are removed from their rows.

    The files are removed at once, unlike by the job of trytond, because the
    options of the module say how long messages are kept. Each file is removed
    before its entry in the queue of files, so that it is tried again after an
    error.
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
    "Return entries of the queue of files to whose files no row refers"
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
