# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Addresses that do not work: what is known of them, and what a sender learns.

A sender only logs errors of this file, because the next email to an address
teaches the same.
"""
import datetime as dt
import logging

from sql import Column, Null

from trytond.i18n import gettext
from trytond.model import Index, ModelSQL, ModelView, fields
from trytond.model.exceptions import AccessError
from trytond.pool import Pool
from trytond.tools import grouped_slice
from trytond.transaction import Transaction

from .access import looks_after_queue
from .replies import statuses
from .tools import database_time, moment

__all__ = ['Addresses', 'DeadAddress', 'GONE', 'gone']
logger = logging.getLogger(__name__)

# The statuses that say that a mailbox or domain does not exist, or is closed
# (RFC 3463)
GONE = {'5.1.1', '5.1.2', '5.1.3', '5.1.6', '5.1.10', '5.2.1'}
# After so many notices an address counts as one that does not work
BOUNCES = 2
# An accepted email counts as arrived after so many days without a notice
WORKS_DAYS = 7
SLICE = 1000


def gone(answers):
    "Return the answers, by address, that say that the address does not exist"
    return {
        address: words for address, words in answers.items()
        if not GONE.isdisjoint(statuses(words)[:1])}


class DeadAddress(ModelSQL, ModelView):
    __name__ = 'email.queue.address'
    _rec_name = 'address'

    address = fields.Char("Address", required=True, readonly=True)
    since = fields.DateTime("Since", required=True, readonly=True)
    refused = fields.Boolean(
        "Refused", readonly=True,
        help="The mail server itself has refused the address.")
    bounces = fields.Integer(
        "Bounces", required=True, readonly=True,
        help="The number of notices that the address does not work.")
    accepted_at = fields.DateTime(
        "Accepted at", readonly=True,
        help="When the mail server accepted an email to the address "
        "that has not bounced so far.")
    words = fields.Text(
        "Words", readonly=True, help="What the server said last.")
    email = fields.Many2One(
        'email.queue', "Email", readonly=True, ondelete='SET NULL',
        help="The last email that did not reach the address.")

    @classmethod
    def __setup__(cls):
        super().__setup__()
        cls._order = [('id', 'DESC')]
        t = cls.__table__()
        cls._sql_indexes.update({
                Index(t, (t.address, Index.Equality())),
                Index(
                    t, (t.email, Index.Range()), where=t.email != Null),
                })
        for name in ['create', 'write', 'copy', 'import_data']:
            cls.__rpc__.pop(name, None)

    @classmethod
    def check_modification(cls, mode, records, values=None, external=False):
        super().check_modification(
            mode, records, values=values, external=external)
        # Users who look after the queue can delete an address by a client, but
        # nobody can make or change one
        if external and not (mode == 'delete' and looks_after_queue()):
            raise AccessError(gettext('email_queue.msg_modification'))

    @classmethod
    def _execute(cls, query):
        cursor = Transaction().connection.cursor()
        cursor.execute(*query)
        return cursor

    @classmethod
    def _in(cls, addresses):
        "Yield pairs of table and condition, each for a slice of the addresses"
        for sub_addresses in grouped_slice(sorted(addresses), SLICE):
            t = cls.__table__()
            yield t, fields.SQL_OPERATORS['in'](
                t.address, list(sub_addresses))

    @classmethod
    def is_used(cls):
        "Return whether any address is known"
        t = cls.__table__()
        return bool(cls._execute(t.select(t.id, limit=1)).fetchone())

    @classmethod
    def find(cls, addresses):
        """Return what is known of some addresses.

        :param addresses: the addresses, in small letters.
        :return: a dict by address of pairs: since when the address does not
            work (None if it may work), and the words of the server.
        """
        known = {}
        for t, where in cls._in(addresses):
            cursor = cls._execute(t.select(
                    t.address, t.since, t.refused, t.bounces, t.words,
                    where=where))
            for address, since, refused, bounces, words in cursor.fetchall():
                is_dead = refused or bounces >= BOUNCES
                known[address] = (since if is_dead else None), words
        return known

    @classmethod
    def learn(cls, answers, refused):
        """Note that addresses do not work.

        :param answers: a dict by address, in small letters, of pairs: the
            words of the server and the id of the email.
        :param refused: whether the mail server itself has refused the
            addresses. Otherwise a notice has come about them.
        """
        for address, (words, email) in answers.items():
            t = cls.__table__()
            values = {
                'words': words, 'email': email, 'accepted_at': None,
                'write_date': moment()}
            if refused:
                values['refused'] = True
            else:
                values['bounces'] = t.bounces + 1
            names = [Column(t, name) for name in values]
            if cls._execute(t.update(
                        names, list(values.values()),
                        where=t.address == address)).rowcount:
                continue
            values |= {
                'address': address, 'since': moment(),
                'refused': refused, 'bounces': 0 if refused else 1,
                'create_date': moment()}
            cls._execute(t.insert(
                    [Column(t, name) for name in values],
                    [list(values.values())]))

    @classmethod
    def works(cls, addresses):
        """Note that the mail server has accepted an email to addresses.

        An address without a bounce is deleted, because it works again. An
        address with bounces may bounce again, so it stays for a week.
        """
        for t, where in cls._in(addresses):
            cls._execute(t.delete(where=where & (t.bounces == 0)))
            cls._execute(t.update(
                    [t.accepted_at, t.refused], [moment(), False],
                    where=where & (t.accepted_at == Null)))

    @classmethod
    def clean(cls):
        "Delete the addresses whose last accepted email has not bounced"
        t = cls.__table__()
        before = database_time() - dt.timedelta(days=WORKS_DAYS)
        cls._execute(t.delete(where=t.accepted_at < before))

    @classmethod
    def erase(cls, address):
        """Delete an address that is erased, and mask it in other words.

        :param address: a ``retention._Address``.
        """
        for t, where in cls._in(address.texts):
            cls._execute(t.delete(where=where))
        t = cls.__table__()
        cursor = cls._execute(t.select(t.id, t.words, where=t.words != Null))
        for id_, words in cursor.fetchall():
            if address.is_in(words):
                cls._execute(t.update(
                        [t.words], [address.masked(words)],
                        where=t.id == id_))


class Addresses:
    """What a sender knows of addresses and learns of them.

    Bulk emails are not sent to an address that does not work; emails of other
    priorities are tried.
    """

    def __init__(self, store, is_redirected):
        self._store = store
        self._Model = Pool().get('email.queue.address')
        # With the option ``redirect`` an outcome is about its address only
        self._is_off = is_redirected
        self._is_used = False
        self._known, self._accepted, self._gone = set(), set(), {}
        if not self._is_off:
            self._is_used = bool(self._try(self._Model.is_used))

    def _try(self, function, *args, **keywords):
        try:
            return function(*args, **keywords)
        except Exception:
            logger.info(
                "cannot read or write what is known of addresses",
                exc_info=True)

    def look_up(self, rows):
        "Return the rows, each with its recipients that are not tried (dead)"
        if not self._is_used:
            return rows
        addresses = {a.lower() for row in rows for a in row.remaining}
        known = self._try(self._Model.find, addresses) or {}
        self._known.update(known)
        return [row._replace(dead=self._dead(row, known)) for row in rows]

    def _dead(self, row, known):
        if row.priority != self._store.priorities[-1]:
            return ()
        dead = []
        for address in row.remaining:
            since, words = known.get(address.lower(), (None, None))
            if since:
                dead.append((address, words or ''))
        return tuple(dead)

    def learn(self, row, outcome):
        "Learn what the outcome of a row says about its recipients"
        if not outcome or self._is_off:
            return
        if not (outcome.refused or self._known):
            return
        dead = dict(row.dead)
        tried = {a: w for a, w in outcome.refused.items() if a not in dead}
        self._gone.update(
            (a.lower(), (w, row.id)) for a, w in gone(tried).items())
        if self._known:
            self._accepted.update(
                self._known.intersection(map(str.lower, outcome.accepted)))

    def flush(self):
        "Write to the database what was learned"
        if self._gone:
            answers, self._gone = self._gone, {}
            self._try(self._Model.learn, answers, refused=True)
            self._is_used = True
        if self._accepted:
            accepted, self._accepted = self._accepted, set()
            self._try(self._Model.works, accepted)
