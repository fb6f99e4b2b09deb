# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Talks SMTP: sessions and SMTP transactions.

This file knows no database, no pool and no words of refusals, which are in
replies.py. :meth:`Client.deliver` returns all that can become of a message as
an :class:`Outcome`, and raises nothing.
"""
import functools
import logging
import math
import os
import re
import smtplib
import socket
import threading
import time
import types
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import trytond.config as config
from trytond.sendmail import get_smtp_server

from .address import NULL_SENDER, on_the_wire
from .exceptions import LoginError
from .mime import needs_smtputf8
from .replies import (
    LENGTH, LOGIN, MESSAGE, QUOTA, RATE, RECIPIENT, SERVER, SESSION, Reply,
    gist, meaning, names_mailbox, too_many_recipients, verdict)
from .sasl import log_in, user_of
from .words import with_domains

__all__ = [
    'MESSAGE', 'RECIPIENT', 'SERVER', 'Client', 'Greeting', 'Mail', 'Outcome',
    'Reply', 'Trouble', 'open_in_time', 'server_name', 'trouble_of',
    'verdict']
logger = logging.getLogger(__name__)

# In bytes. A batch of pipelined commands fits the smallest default send
# buffer: otherwise writing it could wait for a server that waits until its
# replies are read
BATCH_SIZE = 8 * 1024
# How many bytes of a message are written at once
SLICE_SIZE = 256 * 1024
# The most bytes in a line of a reply, and the most lines in a reply
REPLY_LINE_LENGTH = 8 * 1024
REPLY_LINES = 100
# How many characters are kept of the name that a server gives an email in its
# own log
QUEUE_ID_LENGTH = 100
# How long connecting, TLS, EHLO and login may take together, in time-outs of
# one step
OPENING_STEPS = 3
# How many threads of each server may wait for a name server that does not
# answer
RESOLVING = 10
# How many seconds to wait for the end of a connection
QUIT_TIMEOUT = 5

# All mean that the peer closed the connection; which error is raised depends
# on timing
CLOSED = (
    smtplib.SMTPServerDisconnected, ConnectionResetError,
    ConnectionAbortedError, BrokenPipeError)

# How Postfix; Exim; OpenSMTPD and Sendmail; Amazon SES name an email that they
# have accepted
_queue_id = re.compile(
    r'queued as (\S+)|\bid=(\S+)|\A(\S+) Message accepted for delivery'
    r'|\AOk ([0-9a-f-]{40,})', re.I)
_reply_line = re.compile(rb'([2-5]\d\d)(?:([ -])(.*))?')
_control = re.compile(r'[\x00-\x1f\x7f]')
_timeout = re.compile(r'[?&]timeout=(\d+)')
# The parameters that get_smtp_server knows, at the end of a URI
_parameters = re.compile(
    r'/?(?:\?(?:timeout|local_hostname)=[^&]*'
    r'(?:&(?:timeout|local_hostname)=[^&]*)*)?\Z')
# Up to the last @, because an unquoted password may itself contain @ or /
_before_host = re.compile(r'\A(?:.*@|(?:[A-Za-z][\w+.-]*:)?//)', re.S)
_host = re.compile(r'(?:[\w.-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?')
# What is shown of a URI in which host and secrets cannot be told apart
UNKNOWN_HOST = '?'


class Mail(NamedTuple):
    """A message with its envelope.

    ``data`` are the bytes with CRLF at the end of every line, without the
    final dot; ``mail_options`` and ``rcpt_options`` are tuples of ESMTP
    parameters.
    """
    from_addr: str
    to_addrs: tuple
    data: bytes
    mail_options: tuple = ()
    rcpt_options: tuple = ()


class Greeting(NamedTuple):
    """What a server has told by the end of the login.

    ``offers`` maps the names of its extensions, in small letters, to their
    parameters. ``tls`` is the version of TLS, and ``certificate`` what
    ``ssl.SSLSocket.getpeercert`` returns; both are None without TLS.
    """
    offers: dict
    tls: str = None
    certificate: dict = None


class Trouble(NamedTuple):
    """What keeps the server from taking any email, and whether it lasts.

    Trouble that is ``lasting`` ends the run at once; otherwise the server is
    tried again. ``kind`` is ``LOGIN`` where a login was refused for good,
    ``SESSION`` where no session could be opened, ``RATE`` where the server
    wants messages more slowly, ``QUOTA`` where it refused a message for good
    because it takes nothing from us, and otherwise None. ``reason`` is the
    reason of the emails that wait for the server.
    """
    words: str
    lasting: bool = False
    kind: str = None
    reason: str = 'trouble'


@dataclass
class Outcome:
    """What became of a message.

    ``accepted`` lists recipients. ``refused`` (for good) and ``deferred`` (for
    now) map recipients to the server's words. Other recipients have not got
    the message, because of ``trouble`` with the server, or because the
    connection broke after the final dot: then ``unanswered`` has the words of
    the loss (``uncertain`` is an older name of ``unanswered``).

    ``refusal`` is the step and the words without addresses and digits, so that
    it is equal for messages that the server refused alike. It is None where
    the server accepted a recipient or named a mailbox. ``queue_ids`` are the
    names of the accepted message in the server's own log. ``reasons`` maps
    recipients in ``refused`` and ``deferred`` to a value of
    ``reasons.REASONS``, where the server did not say the reason itself.
    """
    accepted: list = field(default_factory=list)
    refused: dict = field(default_factory=dict)
    deferred: dict = field(default_factory=dict)
    unanswered: str = ''
    trouble: Trouble = None
    refusal: str = None
    queue_ids: list = field(default_factory=list, compare=False)
    reasons: dict = field(default_factory=dict)

    @property
    def decided(self):
        "Whether the server has decided on the message for any recipient"
        return bool(
            self.accepted or self.refused or self.deferred or self.unanswered)

    @property
    def uncertain(self):
        return self.unanswered

    @uncertain.setter
    def uncertain(self, words):
        self.unanswered = words

    def remaining(self, addresses):
        "Return the ``addresses`` about which nothing is decided"
        decided = {*self.accepted, *self.refused, *self.deferred}
        return [a for a in addresses if a not in decided]

    def accept(self, addresses):
        "Note that the server has accepted the message for ``addresses``"
        self.accepted.extend(addresses)
        self.refusal = None

    def refuse(self, addresses, step, words, reply=None, reason=None):
        """Note that ``addresses`` are refused for good.

        :param step: ``mail``, ``rcpt``, ``data`` or ``dot``.
        :param words: the server's words, or those of an error.
        :param reply: the :class:`Reply`, None if the server did not refuse.
        :param reason: a value of ``reasons.REASONS``, None where the words of
            the server say all.
        """
        self.refused.update((a, words) for a in addresses)
        self._refused_at(step, addresses, words, reply, reason)

    def defer(self, addresses, step, words, reply=None, reason=None):
        "Note that ``addresses`` are refused for now: see :meth:`refuse`"
        self.deferred.update((a, words) for a in addresses)
        self._refused_at(step, addresses, words, reply, reason)

    def _refused_at(self, step, addresses, words, reply, reason):
        if reason:
            self.reasons.update(dict.fromkeys(addresses, reason))
            words = f'{reason} {words}'
        if not (self.accepted or reply and names_mailbox(step, reply)):
            self.refusal = f'{step} {gist(words)}'


class _Lost(Exception):
    """The connection cannot be used any more.

    ``is_of_session`` is set where the server has ended the session, or may
    have ended it before this message. Then the message has not caused the
    loss, and a new session may work.
    """

    def __init__(self, words, is_of_session=False):
        super().__init__(words)
        self.words = words
        self.is_of_session = is_of_session


class _Nonsense(_Lost):
    "Lost by a time-out or by a reply that makes no sense"


class _Unanswered(_Lost):
    "Lost after the message was transmitted, before the reply to the message"


def trouble_of(error):
    "Return the Trouble for an exception that ended the opening of a session"
    kind = SESSION
    if (isinstance(error, smtplib.SMTPAuthenticationError)
            and error.smtp_code >= 500):
        kind = LOGIN
    return Trouble(_words(error), lasting=True, kind=kind)


def server_name(uri=None):
    """Return the host and the port in the URI of a server, without its login.

    For a text that is no URI the name is :data:`UNKNOWN_HOST`, because any
    part of such a text can belong to a secret.

    :param uri: None for the URI of the default server.
    """
    uri = uri or config.get('email', 'uri')
    host = _before_host.sub('', _parameters.sub('', uri, count=1), count=1)
    return host if _host.fullmatch(host) or not uri else UNKNOWN_HOST


class Client:
    """The sessions with a server, one after another.

    :param uri: a URI for ``get_smtp_server``, None for that of the default
        server.
    :param smtp: a connected ``smtplib.SMTP`` to use for the first session.
    :param timeout: seconds for every step, where the URI has no time-out.
    :param data_timeout: seconds for the reply to the final dot.
    :param max_messages: how many messages go through a session.
    :param max_recipients: how many recipients an SMTP transaction has.
    :param verdict: a function like ``replies.verdict``.
    :param tokens: a function that returns the token to log in with, or None to
        log in by the password of the URI. Its argument ``refused`` is a token
        that the server has refused.
    :param return_path: the envelope sender of every message, but of those with
        the null sender. If it is empty, each message keeps its own.
    """

    def __init__(self, uri=None, smtp=None, timeout=60, data_timeout=600,
            max_messages=100, max_recipients=50, verdict=verdict,
            tokens=lambda refused=None: None, return_path=''):
        self.uri = uri or config.get('email', 'uri')
        match = _timeout.search(self.uri)
        self.timeout = int(match[1]) if match else timeout
        self.data_timeout = data_timeout
        self.max_messages = max_messages
        self.max_recipients = max_recipients
        self.verdict = verdict
        self.tokens = tokens
        self.return_path = return_path
        self.pipelining = True
        self._smtp = self._given = smtp
        self._session = None

    def deliver(self, mail):
        "Return the :class:`Outcome` of sending ``mail`` to its recipients"
        if self.return_path and mail.from_addr != NULL_SENDER:
            mail = mail._replace(from_addr=self.return_path)
        outcome, losses = Outcome(), 0
        while remaining := outcome.remaining(mail.to_addrs):
            try:
                session = self._ready_session(self.pipelining and not losses)
            except Exception as error:
                outcome.trouble = trouble_of(error)
                return outcome
            try:
                losses = self._transact(
                    session, mail, remaining, outcome, losses)
            except _Lost:
                # The session had ended, so the message goes in a new session
                continue
            if outcome.trouble or outcome.unanswered:
                return outcome
        return outcome

    def _transact(self, session, mail, remaining, outcome, losses):
        """Do one SMTP transaction and add its result to ``outcome``.

        :param losses: how many connections in a row the message has lost.
        :return: how many it has lost after this SMTP transaction.
        :raises _Lost: the session had ended, which is no loss of the message.
        """
        try:
            session.send(mail, remaining[:self.max_recipients], outcome)
            losses = 0
        except _Lost as error:
            self.drop()
            if isinstance(error, _Unanswered):
                outcome.unanswered = error.words
                return losses
            if isinstance(error, _Nonsense):
                self.pipelining = False
            if error.is_of_session:
                raise
            losses += 1
            if losses > 1 and not outcome.trouble:
                outcome.defer(
                    outcome.remaining(remaining), session.step, error.words)
        except Exception as error:
            logger.debug("unexpected error", exc_info=True)
            self.drop()
            outcome.refuse(
                outcome.remaining(remaining), session.step,
                _printable(f'{type(error).__name__}: {error}'),
                reason='unsendable')
        if outcome.trouble and (outcome.trouble.lasting or session.closed):
            self.drop()
        return losses

    @property
    def is_open(self):
        "Whether there is a session, as far as the client knows"
        return bool(self._session)

    def close(self):
        "End the session by QUIT, but not a session that the caller has given"
        if self._session and self._session.smtp is not self._given:
            self._session.quit()
        self._session = None

    def drop(self):
        "Close the connection at once"
        if self._session:
            self._session.smtp.close()
            self._session = None

    def _ready_session(self, pipelining):
        if self._session and self._session.carried >= self.max_messages:
            self.close()
        if not self._session:
            smtp = self._logged_in()
            self._session = _Session(
                smtp, self.timeout, self.data_timeout, self.verdict,
                pipelining and smtp.has_extn('pipelining'))
        return self._session

    def probe(self):
        "Open a session, end it, and return its Greeting or the Trouble"
        try:
            smtp = self._logged_in()
        except Exception as error:
            return trouble_of(error)
        sock = smtp.sock
        tls = hasattr(sock, 'version')
        greeting = Greeting(
            dict(smtp.esmtp_features),
            sock.version() if tls else None,
            sock.getpeercert() if tls else None)
        _Session(
            smtp, self.timeout, self.data_timeout, self.verdict,
            pipelining=False).quit()
        return greeting

    def _logged_in(self):
        """Return an ``smtplib.SMTP`` that is logged in.

        If the server refuses the token, a second token is tried.
        """
        token = None
        if not (self._smtp and self._smtp.sock):
            token = self.tokens()
        try:
            return self._opened(token)
        except smtplib.SMTPAuthenticationError as error:
            if token is None or error.smtp_code < 500:
                raise
        return self._opened(self.tokens(refused=token))

    def _opened(self, token):
        user = None if token is None else user_of(self.uri)
        return open_in_time(
            OPENING_STEPS * self.timeout,
            lambda opening: self._connect(opening, user, token),
            server_name(self.uri))

    def _connect(self, opening, user=None, token=None):
        smtp, self._smtp = self._smtp, None
        if smtp and smtp.sock:
            opening.watch(smtp.sock)
        else:
            uri = self.uri
            if not _timeout.search(uri):
                seconds = math.ceil(self.timeout)
                uri += f'{"&" if "?" in uri else "?"}timeout={seconds}'
            smtp = opening.connect(uri)
        # _Lines bounds the replies until the login, and the session bounds
        # those after it
        file = smtp.file or smtp.sock.makefile('rb')
        smtp.file = _Lines(file)
        try:
            with _words_of_ehlo([smtp]):
                smtp.ehlo_or_helo_if_needed()
            if token is not None:
                log_in(smtp, user, token)
        except BaseException:
            smtp.close()
            raise
        smtp.file = file
        return smtp


@contextmanager
def _words_of_ehlo(opened):
    """Raise the refusal of EHLO instead of an error that follows from it.

    After a refused EHLO smtplib tries HELO. The error of smtplib is then about
    HELO, or about an extension that is missing because only EHLO lists them.

    :param opened: a list of the ``smtplib.SMTP`` objects, filled meanwhile.
    """
    try:
        yield
    except smtplib.SMTPAuthenticationError:
        raise
    except smtplib.SMTPException:
        for smtp in opened:
            if refused := getattr(smtp, 'refused_ehlo', None):
                raise smtplib.SMTPHeloError(*refused)
        raise


class _Opening:
    """A connection until the end of its login, which can be cut at any time.

    Cutting is needed because smtplib starts its time-out anew with every byte
    that arrives.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._is_cut = False
        self._handles = []

    def watch(self, sock):
        "Let the connection of ``sock`` end when the opening is cut"
        # A second handle, because TLS detaches the handle of the socket
        handle = socket.socket(fileno=os.dup(sock.fileno()))
        with self._lock:
            self._handles.append(handle)
            if self._is_cut:
                self._shut()

    def cut(self):
        "End the connection from another thread"
        with self._lock:
            self._is_cut = True
            self._shut()

    def _shut(self):
        for handle in self._handles:
            try:
                handle.shutdown(socket.SHUT_RDWR)
            except OSError:
                # The socket is not connected yet, or no longer
                pass

    def end(self):
        "End the opening, and return False if it was cut before"
        with self._lock:
            for handle in self._handles:
                handle.close()
            self._handles.clear()
            return not self._is_cut

    def connect(self, uri):
        """Return what ``get_smtp_server`` returns for the URI.

        The function cannot be given a class for the connection. So its code
        runs with a changed ``smtplib``, whose classes let the opening watch
        their sockets.
        """
        opening, opened = self, []

        class SMTP(smtplib.SMTP):

            def __init__(self, *args, **kwargs):
                opened.append(self)
                super().__init__(*args, **kwargs)

            def _get_socket(self, host, port, timeout):
                return opening.socket_to(host, port, timeout)

            def ehlo(self, *args):
                code, words = super().ehlo(*args)
                self.refused_ehlo = code >= 400 and (code, words)
                return code, words

            def getreply(self):
                if self.file is None and self.sock:
                    self.file = _Lines(self.sock.makefile('rb'))
                return super().getreply()

        class SMTP_SSL(smtplib.SMTP_SSL, SMTP):
            pass

        names = {**vars(smtplib), 'SMTP': SMTP, 'SMTP_SSL': SMTP_SSL}
        get_server = types.FunctionType(
            get_smtp_server.__code__,
            {**get_smtp_server.__globals__,
                'smtplib': types.SimpleNamespace(**names)},
            argdefs=get_smtp_server.__defaults__,
            closure=get_smtp_server.__closure__)
        try:
            with _words_of_ehlo(opened):
                smtp = get_server(uri, strict=True)
        except BaseException:
            # Neither trytond nor smtplib closes a connection whose greeting,
            # TLS or login fails
            for smtp in opened:
                smtp.close()
            raise
        if isinstance(smtp.file, _Lines):
            smtp.file = smtp.file.file
        return smtp

    def socket_to(self, host, port, timeout):
        "Return a connected socket, which is watched even while it connects"
        error = OSError("no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(timeout)
                self.watch(sock)
                if self._is_cut:
                    raise TimeoutError("timed out")
                sock.connect(address)
                return sock
            except OSError as e:
                sock.close()
                error = e
        raise error


class _Lines:
    "The file of a connection, which raises an error after too many lines"

    def __init__(self, file):
        self.file = file
        self._left = OPENING_STEPS * REPLY_LINES

    def readline(self, size):
        self._left -= 1
        if self._left < 0:
            raise _Nonsense("an answer without end")
        return self.file.readline(size)

    def close(self):
        self.file.close()


# The threads that wait for the name server, because nothing can interrupt them
_resolving = []
_resolving_lock = threading.Lock()


def open_in_time(seconds, connect, name):
    """Return what ``connect`` returns in time.

    :param connect: a function that is called with an :class:`_Opening` and
        returns an object with the method ``close``, which closes what was
        opened too late.
    :param name: the name of the server whose threads that hang are counted.
    :raises TimeoutError: ``connect`` takes longer than ``seconds``, or
        ``RESOLVING`` threads of the server hang.
    """
    opening, result, error = _Opening(), [], []

    def run():
        opened = None
        try:
            opened = connect(opening)
            result.append(opened)
        except BaseException as e:
            error.append(e)
        if not opening.end() and opened:
            opened.close()

    with _resolving_lock:
        _resolving[:] = [t for t in _resolving if t.is_alive()]
        if sum(t.name == name for t in _resolving) >= RESOLVING:
            raise TimeoutError("timed out")
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        opening.cut()
        thread.join(QUIT_TIMEOUT)
        if thread.is_alive():
            with _resolving_lock:
                _resolving.append(thread)
        for opened in result:
            # The connection was opened at the moment when it was cut
            opened.close()
        raise TimeoutError("timed out")
    if error:
        raise error[0]
    return result[0]


class _Session:
    "A connection on which messages are sent one after another"

    def __init__(self, smtp, timeout, data_timeout, verdict, pipelining):
        self.smtp = smtp
        self.timeout = timeout
        self.data_timeout = data_timeout
        self.verdict = verdict
        self.pipelining = pipelining
        # How many messages the session has carried, the present one included
        self.carried = 0
        # The step of the SMTP transaction, for the words of an error
        self.step = 'mail'
        # Whether the server has said that it closes the connection
        self.closed = False
        self._offers = smtp.esmtp_features
        self._size_limit = _size_limit(self._offers)
        self._received = b''

    def send(self, mail, recipients, outcome):
        """Do one SMTP transaction and add its result to ``outcome``.

        At the end at least one of ``recipients`` is decided, or there is
        trouble with the server.

        :raises _Lost: the connection cannot be used any more.
        """
        self.carried += 1
        self.step = 'mail'
        recipients = self._possible(mail, recipients, outcome)
        try:
            if recipients:
                self._transact(mail, recipients, outcome)
        except _Lost as error:
            if self.carried > 1 and self.step == 'mail':
                # The server may have ended the session before this message
                error.is_of_session = True
            raise

    def _transact(self, mail, recipients, outcome):
        options = self._offered(mail.rcpt_options)
        commands = [
            self._mail_command(mail, recipients),
            *(_command('RCPT TO:', a, options) for a in recipients),
            b'DATA\r\n']
        replies = []
        try:
            self._ask(commands, replies)
        except _Lost as error:
            if replies and not isinstance(error, _Nonsense):
                # Replies received before the connection broke still count
                self._judge(recipients, replies, outcome)
            raise
        self._check_ended(replies)
        accepted = self._judge(recipients, replies, outcome)
        started = len(replies) == len(commands) and replies[-1].code == 354
        taken = accepted and started and self._transmit(
            mail, accepted, outcome)
        if not (taken or self.closed):
            self._abandon(lone_dot=started and not accepted)

    def _check_ended(self, replies):
        """Give up a session after a reply by which the server ends it.

        The session may have been idle for too long, or have carried as many
        messages as the server allows. A new session shows whether the server
        is in trouble.
        """
        if self.carried == 1:
            return
        for number, reply in enumerate(replies):
            if not (reply.good or reply.code == 354) and (
                    reply.code == 421
                    or (number == 0 and reply.temporary)
                    or meaning(reply) == SESSION):
                raise _Lost(str(reply), is_of_session=True)

    def quit(self):
        try:
            self._write(b'QUIT\r\n')
            self._reply(QUIT_TIMEOUT)
        except _Lost:
            # A failing QUIT does not change earlier replies
            pass
        self.smtp.close()

    def _possible(self, mail, recipients, outcome):
        "Return the recipients that the server's extensions allow"
        size, limit = len(mail.data), self._size_limit
        if limit and size > limit:
            # The email can become a suspect, because a server can offer a
            # limit by mistake
            outcome.refuse(
                recipients, 'mail', f'SIZE {limit}', reason='too_large')
            return []
        if 'smtputf8' in self._offers:
            return recipients
        foreign = [a for a in recipients if not on_the_wire(a).isascii()]
        if not on_the_wire(mail.from_addr).isascii():
            foreign = recipients
        if foreign:
            outcome.refuse(
                foreign, 'mail', 'SMTPUTF8', reason='no_smtputf8')
        return [a for a in recipients if a not in foreign]

    def _mail_command(self, mail, recipients):
        options = self._offered(mail.mail_options)
        keywords = {o.partition('=')[0].upper() for o in mail.mail_options}
        if 'size' in self._offers:
            options.append(f'SIZE={len(mail.data)}')
        if '8bitmime' in self._offers and not mail.data.isascii():
            options.append('BODY=8BITMIME')
        if 'smtputf8' in self._offers and (
                'SMTPUTF8' in keywords
                or needs_smtputf8(mail.data)
                or not all(
                    on_the_wire(a).isascii()
                    for a in [mail.from_addr, *recipients])):
            options.append('SMTPUTF8')
        address = '' if mail.from_addr == '<>' else mail.from_addr
        return _command('MAIL FROM:', address, options)

    def _offered(self, options):
        "Return the options that the server offers and that we do not set"
        kept = []
        for option in options:
            keyword = option.partition('=')[0].upper()
            if keyword in {'SIZE', 'BODY', 'SMTPUTF8'}:
                continue
            if (keyword in {'RET', 'ENVID', 'NOTIFY', 'ORCPT'}
                    and 'dsn' not in self._offers):
                logger.info(
                    "%s left out: the server does not offer DSN", keyword)
                continue
            kept.append(option)
        return kept

    def _ask(self, commands, replies):
        """Add the replies to MAIL, RCPT … and DATA to ``replies``.

        After a reply that leaves nothing to ask, further commands are not
        sent, and have no reply.
        """
        for batch in self._batches(commands):
            if batch == commands[-1:] and not any(
                    r.good for r in replies[1:]):
                break
            self._expect_silence()
            broken = None
            try:
                self._write(b''.join(batch))
            except _Lost as error:
                # The server may have replied before it closed the connection
                broken = error
            for command in batch:
                self.step = command[:4].decode('ascii').lower()
                try:
                    reply = self._reply(self.timeout)
                except _Lost as error:
                    raise broken or error
                if not self._expected(reply):
                    raise _Nonsense(f"unexpected answer: {reply}")
                replies.append(reply)
                if reply.code == 421:
                    return
            if not replies[0].good:
                break

    def _expected(self, reply):
        return reply.code >= 400 or (
            reply.code == 354 if self.step == 'data' else reply.good)

    def _batches(self, commands):
        if not self.pipelining:
            return [[c] for c in commands]
        batches, size = [[]], 0
        for command in commands:
            if size + len(command) > BATCH_SIZE:
                batches.append([])
                size = 0
            batches[-1].append(command)
            size += len(command)
        return batches

    def _judge(self, recipients, replies, outcome):
        """Add what the bad replies mean to ``outcome``.

        Return the recipients for whom the server takes the message.
        """
        mail, *rcpts = replies
        data = rcpts.pop() if len(rcpts) > len(recipients) else None
        if not mail.good:
            self._blame('mail', mail, recipients, outcome)
            return []
        accepted = []
        for address, reply in zip(recipients, rcpts):
            if reply.good:
                accepted.append(address)
            elif not (accepted and too_many_recipients(reply)):
                self._blame('rcpt', reply, [address], outcome)
        if accepted and data and data.code != 354:
            self._blame('data', data, accepted, outcome)
            return []
        return accepted

    def _blame(self, step, reply, recipients, outcome):
        self.closed = self.closed or reply.code == 421
        if self.verdict(step, reply) == SERVER:
            outcome.trouble = outcome.trouble or Trouble(
                str(reply), lasting=not reply.temporary,
                kind=self._kind(step, reply))
        elif reply.temporary:
            outcome.defer(recipients, step, str(reply), reply)
        else:
            outcome.refuse(recipients, step, str(reply), reply)

    def _kind(self, step, reply):
        "Return the ``Trouble.kind`` of a reply"
        about = meaning(reply)
        if not reply.temporary:
            return None if about == LOGIN else QUOTA
        if step == 'mail' and self.carried == 1 and (
                reply.code == 421 or about == SESSION
                or 'connections' in reply.text.lower()):
            # A server that greets more sessions than it serves refuses the
            # other sessions so
            return SESSION
        # At RCPT the server may limit the rate of emails to the recipient
        return RATE if about == RATE and step != 'rcpt' else None

    def _transmit(self, mail, recipients, outcome):
        "Return whether the server has taken the message"
        self._expect_silence()
        self.step = 'body'
        data = mail.data.replace(b'\r\n.', b'\r\n..')
        if data.startswith(b'.'):
            data = b'.' + data
        # The dot must be alone on its line, or the server waits for ever
        end = b'.\r\n' if data[-2:] in (b'', b'\r\n') else b'\r\n.\r\n'
        # Only the last piece is joined with the end, because joining the whole
        # message would copy it
        view, reply = memoryview(data), None
        last = len(data) // SLICE_SIZE * SLICE_SIZE
        for position in range(0, last + 1, SLICE_SIZE):
            piece = view[position:position + SLICE_SIZE]
            if position == last:
                self.step = 'dot'
                piece = bytes(piece) + end
            try:
                self._write(piece)
            except _Lost as error:
                reply = self._last_words(error)
                break
        try:
            reply = reply or self._reply(self.data_timeout)
            if not (reply.good or reply.code >= 400):
                raise _Nonsense(f"unexpected answer: {reply}")
        except _Lost as error:
            raise _Unanswered(error.words) from error
        if reply.good:
            outcome.accept(recipients)
            outcome.queue_ids.append(_queue_id_of(reply))
        elif self.carried > 1 and meaning(reply) == SESSION:
            raise _Lost(str(reply), is_of_session=True)
        else:
            self._blame('dot', reply, recipients, outcome)
        return reply.good

    def _last_words(self, error):
        "Return the refusal that a server sent before it cut the connection"
        try:
            reply = self._reply(QUIT_TIMEOUT)
        except _Lost:
            reply = None
        if reply and reply.code >= 400:
            return reply
        if self.step == 'dot':
            raise _Unanswered(error.words) from error
        raise error

    def _abandon(self, lone_dot):
        "End an SMTP transaction whose message the server has not accepted"
        self.step = 'rset'
        if lone_dot:
            # RFC 2920 3.1: after 354 only a dot ends the message
            self._write(b'.\r\n')
            self._reply(self.timeout)
        # The reply to RSET also shows whether a server that has refused the
        # message reads commands again, or takes lines of the message for
        # commands
        self._write(b'RSET\r\n')
        reply = self._reply(self.timeout)
        if not reply.good:
            raise _Lost(str(reply))

    def _expect_silence(self):
        "Give up the session if the server sends more replies than commands"
        if self._received:
            raise _Nonsense(
                f"unexpected answer: {_printable(self._received)}")

    def _write(self, data):
        try:
            self.smtp.sock.settimeout(self.timeout)
            self.smtp.sock.sendall(data)
        except OSError as error:
            raise _loss(error)

    def _reply(self, timeout):
        "Return the next reply, which must be complete in ``timeout`` seconds"
        deadline = time.monotonic() + timeout
        code, lines = None, []
        while len(lines) < REPLY_LINES:
            line = self._line(deadline)
            match = _reply_line.fullmatch(line)
            if not match:
                raise _Nonsense(
                    f"not an answer: {_printable(line)}")
            if code and code != match[1]:
                raise _Nonsense("an answer with two codes")
            code, more, text = match.groups()
            lines.append(text or b'')
            if more != b'-':
                return _reply_of(code, b' '.join(lines))
        raise _Nonsense("an answer without end")

    def _line(self, deadline):
        smtp = self.smtp
        if smtp.file is None:
            smtp.file = smtp.sock.makefile('rb')
        while b'\n' not in self._received:
            if len(self._received) > REPLY_LINE_LENGTH:
                raise _Nonsense("an answer without end")
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                raise _Nonsense("timed out")
            try:
                smtp.sock.settimeout(seconds)
                received = smtp.file.read1(REPLY_LINE_LENGTH)
            except OSError as error:
                raise _loss(error)
            if not received:
                raise _Lost(_words(ConnectionResetError()))
            self._received += received
        line, _, self._received = self._received.partition(b'\n')
        return line.rstrip(b'\r')


def _reply_of(code, text):
    "Return the reply of a code and a text as bytes"
    # A long text is not kept, because a server decides how long it is
    parse = _parsed if len(text) > LENGTH else _recurring
    return parse(code, text)


def _parsed(code, text):
    return Reply(int(code), _printable(text))


# A server sends the same replies again and again, and each text is searched
# for domains
_recurring = functools.lru_cache(maxsize=100)(_parsed)


def _queue_id_of(reply):
    text = reply.text.removeprefix(reply.status).strip()
    match = _queue_id.search(text)
    name = next(filter(None, match.groups())) if match else text
    return name[:QUEUE_ID_LENGTH]


def _size_limit(offers):
    try:
        return max(int(offers.get('size', 0)), 0)
    except ValueError:
        return 0


def _command(verb, address, options):
    line = ' '.join([f'{verb}<{on_the_wire(address)}>', *options])
    if _control.search(line):
        raise ValueError(f"control character in {line!r}")
    return f'{line}\r\n'.encode('utf-8')


def _printable(text):
    if isinstance(text, bytes):
        text = text.decode('utf-8', 'replace')
    if not text.isprintable():
        text = ''.join(c if c.isprintable() else ' ' for c in text)
    return with_domains(' '.join(text.split())[:LENGTH])


def _loss(error):
    "Return the exception ``_Lost`` for an error of the socket"
    Loss = _Nonsense if isinstance(error, TimeoutError) else _Lost
    return Loss(_words(error))


def _words(error):
    "Return the words of an error, which hold nothing of the configuration"
    if isinstance(error, (_Lost, LoginError)):
        return error.words
    if isinstance(error, smtplib.SMTPResponseException):
        return f'{error.smtp_code} {_printable(error.smtp_error)}'
    if isinstance(error, TimeoutError) or str(error).endswith('timed out'):
        # smtplib turns a time-out into a disconnection
        return "timed out"
    if isinstance(error, CLOSED):
        return "the connection was closed"
    if isinstance(error, (OSError, smtplib.SMTPException)):
        text = getattr(error, 'strerror', None) or str(error)
        return _printable(text) or type(error).__name__
    return type(error).__name__
