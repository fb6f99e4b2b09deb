# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Hands a row over to a session: row → mail → outcome.

This file uses no database, because its functions are called in the threads of
the sessions, which have no transaction.
"""
import logging
from functools import partial

from .mime import original_to
from .settings import server_uri
from .smtp import Client, Mail, Outcome, Trouble
from .words import printable

__all__ = ['client_for', 'client_of', 'hand_over']
logger = logging.getLogger(__name__)


def client_of(Model, settings, name, smtp=None):
    """Return the :class:`smtp.Client` for a server.

    :param name: the name of the server, None for the default server.
    :param smtp: a connected ``smtplib.SMTP`` to use for the first session.
    """
    return Client(
        uri=server_uri(name),
        smtp=smtp,
        timeout=settings.timeout,
        data_timeout=settings.data_timeout,
        max_messages=settings.messages_per_connection,
        max_recipients=settings.recipients,
        verdict=Model.verdict,
        tokens=partial(Model.access_token, name),
        return_path=settings.return_path)


def client_for(Model, settings, name):
    """Return the client that the model has for a server.

    Where the model raises an error, it is a client that only tells trouble.
    """
    try:
        return Model.get_client(name, settings)
    except Exception as error:
        logger.exception("no client for the server %s", name)
        return _NoClient(printable(f"{type(error).__name__}: {error}"))


class _NoClient:
    "A client whose outcomes are trouble, so that emails stay in the outbox"
    is_open = False

    def __init__(self, words):
        self._words = words

    def deliver(self, mail):
        return Outcome(trouble=Trouble(self._words, lasting=True))

    def close(self):
        pass

    drop = close


def _mail(row):
    return Mail(
        row.from_addr, tuple(row.remaining), bytes(row.msg),
        tuple((row.mail_options or '').split()),
        tuple((row.rcpt_options or '').split()))


def hand_over(client, row, redirect):
    """Return the :class:`smtp.Outcome` of handing over a row.

    :param redirect: an address that gets the email in place of its recipients,
        empty for none.
    """
    if row.msg is None:
        return _without_message(row)
    try:
        mail = _mail(row)
        if redirect:
            return _redirect(client, mail, redirect)
        dead = dict(row.dead)
        if dead:
            mail = mail._replace(
                to_addrs=tuple(a for a in mail.to_addrs if a not in dead))
        outcome = client.deliver(mail)
        if not outcome.trouble:
            outcome.refused.update(dead)
            outcome.reasons.update(dict.fromkeys(dead, 'dead'))
        return outcome
    except Exception as error:
        # The row has, for example, no bytes or an invalid address
        logger.debug("email %d cannot be sent", row.id, exc_info=True)
        # Without a refusal, so that the email cannot become a suspect: the
        # server has not been asked
        return _refusal(
            row, printable(f"{type(error).__name__}: {error}"), 'unsendable')


def _redirect(client, mail, address):
    "Deliver to ``address`` only, and return the outcome for the recipients"
    outcome = client.deliver(mail._replace(
            to_addrs=(address,),
            data=original_to(mail.to_addrs) + mail.data))
    if outcome.accepted:
        outcome.accepted = list(mail.to_addrs)
    for by_address in [outcome.refused, outcome.deferred, outcome.reasons]:
        if address in by_address:
            value = by_address.pop(address)
            by_address.update(dict.fromkeys(mail.to_addrs, value))
    return outcome


def _without_message(row):
    if not row.file_id:
        return _refusal(row, '', 'no_message')
    # The email is deferred, because another machine may have the file, or this
    # machine may have it later. If the files of all emails are missing, these
    # refusals are equal, and count as trouble.
    outcome = Outcome()
    outcome.defer(
        row.remaining or [row.to_addrs], 'mail', '',
        reason='not_in_filestore')
    return outcome


def _refusal(row, words, reason):
    "Return the outcome for an email that was handed over to no server"
    recipients = row.remaining or [row.to_addrs]
    return Outcome(
        refused=dict.fromkeys(recipients, words),
        reasons=dict.fromkeys(recipients, reason))
