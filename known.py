# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What the senders of all processes have learned about each server.

A sender reads this knowledge when it begins, and writes what has changed when
it ends.
"""
import datetime as dt
from typing import NamedTuple

from sql import Column, Null

from trytond import backend
from trytond.i18n import gettext
from trytond.model import ModelSQL, Unique, fields
from trytond.pool import Pool
from trytond.transaction import Transaction, without_check_access

from . import oauth, smtp
from .policy import login_delay
from .replies import gist
from .settings import server_uri

__all__ = [
    'Known', 'Server', 'accepted_since', 'login_of', 'recall', 'retain',
    'has_equal_suspect', 'time_in_words', 'troubles']

# Two tries, because two senders can find at once that a server has no record
TRIES = 2


class Server(ModelSQL):
    __name__ = 'email.queue.server'

    name = fields.Char(
        "Name", readonly=True,
        help="The name in the configuration, empty for the default server.")
    trouble = fields.Text("Trouble", readonly=True)
    troubled_at = fields.Timestamp("Troubled at", readonly=True)
    accepted_at = fields.Timestamp("Accepted at", readonly=True)
    refused_logins = fields.Integer("Refused Logins", readonly=True)
    login = fields.Char("Login", readonly=True)
    next_login = fields.Timestamp("Next Login", readonly=True)
    sessions = fields.Integer("Sessions", readonly=True)
    more_sessions = fields.Timestamp("More Sessions", readonly=True)
    rate = fields.Float("Rate", readonly=True)

    @classmethod
    def __setup__(cls):
        super().__setup__()
        t = cls.__table__()
        cls._sql_constraints += [
            ('name_unique', Unique(t, t.name),
                'email_queue.msg_server_name_unique'),
            ]
        # No client has to read or change these records
        cls.__rpc__.clear()

    @classmethod
    def erase(cls, address):
        """Erase an address from the trouble, and from the scheduler's errors.

        :param address: a ``retention._Address``.
        """
        pool = Pool()
        Error = pool.get('ir.error')
        with without_check_access():
            actions = pool.get('ir.cron').search([
                    ('method', 'like', 'email.queue%')])
            errors = Error.search([
                    ('origin', 'in', list(map(str, actions)))])
            for Model, name, records in [
                    (cls, 'trouble', cls.search([])),
                    (Error, 'message', errors)]:
                for record in records:
                    text = getattr(record, name)
                    if address.is_in(text):
                        Model.write([record], {name: address.masked(text)})


class Known(NamedTuple):
    """What is known about a server.

    ``trouble`` are the words of its trouble, which began at ``troubled_at``.
    ``accepted_at`` is when the server last accepted an email for some
    recipients only; an email that was accepted for all has ``sent_at``.
    ``refused_logins`` is how many logins in a row were refused. ``login`` is a
    hash of the configuration of the last of these, which is not tried again
    before ``next_login``. ``sessions`` is how many sessions the server
    granted; one more is tried at ``more_sessions``. ``rate`` is how many
    messages a minute the server took before it refused more.
    """
    trouble: str = None
    troubled_at: dt.datetime = None
    accepted_at: dt.datetime = None
    refused_logins: int = None
    login: str = None
    next_login: dt.datetime = None
    sessions: int = None
    more_sessions: dt.datetime = None
    rate: float = None

    def steady(self, words):
        """Return the words for trouble.

        They are the earlier words as long as the trouble is alike, so that the
        scheduler makes one ``ir.error`` of it.
        """
        if self.trouble and gist(self.trouble) == gist(words):
            return self.trouble
        return words

    def troubled(self, words, now):
        "Return the same with trouble in these words"
        return self._replace(
            trouble=self.steady(words),
            troubled_at=self.troubled_at or now)

    def relieved(self):
        "Return the same without trouble"
        return self._replace(trouble=None, troubled_at=None)

    def login_refused(self, login, now):
        """Return the same with a further refused login, and a longer wait.

        :param login: the text of :func:`login_of`, with secrets.
        """
        refused = (self.refused_logins or 0) + 1
        return self._replace(
            refused_logins=refused,
            # Hashed like a password, because the text has secrets
            login=Pool().get('res.user').hash_password(login),
            next_login=now + login_delay(refused))

    def login_accepted(self):
        "Return the same without refused logins"
        return self._replace(refused_logins=None, login=None, next_login=None)

    def login_waits(self, login, now):
        "Return whether it is too early for the same login"
        if not self.next_login or self.next_login <= now:
            return False
        valid, _ = Pool().get('res.user').check_password(login, self.login)
        return valid


def recall(store):
    "Return what is known about the server of the store"
    t = _table()
    row = store.execute(t.select(
            *(Column(t, name) for name in Known._fields),
            where=t.name == (store.server or ''))).fetchone()
    return Known(*row) if row else Known()


def retain(store, known, before):
    "Write what has changed from ``before`` to ``known``"
    changed = {
        name: value for name, value in known._asdict().items()
        if value != getattr(before, name)}
    if not changed:
        return
    t = _table()
    for _ in range(TRIES):
        cursor = store.execute(t.update(
                [Column(t, name) for name in changed], list(changed.values()),
                where=t.name == (store.server or '')))
        if cursor.rowcount:
            break
        try:
            store.execute(t.insert(
                    [t.name, *(Column(t, name) for name in changed)],
                    [[store.server or '', *changed.values()]]))
            break
        except backend.DatabaseIntegrityError:
            # Another run has made the record meanwhile
            continue


def accepted_since(store, known, since):
    "Return whether the server has accepted an email after ``since``"
    return (known.accepted_at is not None and known.accepted_at > since
        or store.accepted_since(since))


def has_equal_suspect(store, known, row, refusal):
    "Return whether another suspect is alike, and nothing was accepted since"
    since = store.equal_suspect_since(row, refusal)
    return bool(since) and not accepted_since(store, known, since)


def login_of(server):
    "Return the text of all options of the login at a server, with secrets"
    return '\n'.join([server_uri(server) or '', *(
                f'{name} {value}'
                for name, value in oauth.options(server).items())])


def troubles(now):
    """Return a sentence about each server that takes no emails, by its name.

    The name of the default server is None.

    :param now: the time of the database, naive UTC.
    """
    t = _table()
    cursor = Transaction().connection.cursor()
    cursor.execute(*t.select(
            t.name, t.trouble, t.troubled_at,
            where=(t.trouble != Null) & (t.troubled_at != Null)))
    return {
        name or None: gettext(
            'email_queue.msg_server_takes_none',
            server=_shown(name), time=time_in_words(at, now),
            words=' '.join(words.split()))
        for name, words, at in cursor}


def _shown(name):
    "Return the name of a server, and its host and port"
    uri = server_uri(name or None)
    if name:
        return f'{name} ({smtp.server_name(uri)})' if uri else name
    return smtp.server_name(uri)


def time_in_words(at, now):
    """Return a time in words, without its date if it is today.

    The words are in UTC, because trytond does not know the time zone of the
    user.
    """
    lang = Pool().get('ir.lang').get()
    format_ = '%H:%M' if at.date() == now.date() else f'{lang.date} %H:%M'
    return f'{lang.strftime(at, format_)} UTC'


def _table():
    return Pool().get('email.queue.server').__table__()
