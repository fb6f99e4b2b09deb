# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Talking SMTP: sessions and transactions.

Knows no database, no pool and no words of servers, which are in replies.py.
What becomes of a message is an :class:`Outcome`; nothing else leaves this
file.
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
    alike, meaning, names_mailbox, too_many_recipients, verdict)
from .sasl import log_in, user_of
from .words import with_domains

__all__ = [
    'MESSAGE', 'RECIPIENT', 'SERVER', 'Client', 'Greeting', 'Mail', 'Outcome',
    'Reply', 'Trouble', 'open_in_time', 'server_name', 'trouble_of',
    'verdict']
logger = logging.getLogger(__name__)

# A batch of pipelined commands fits the smallest default send buffer, so that
# writing it never waits for a server that waits for its replies to be read
BATCH_SIZE = 8 * 1024
SLICE_SIZE = 256 * 1024
LINE_LENGTH = 8 * 1024
REPLY_LINES = 100
# The length of the name that a server gives an email that it has accepted
QUEUE_ID_LENGTH = 100
# How many time-outs of one step connecting, TLS, EHLO and login have together
OPENING_STEPS = 3
# How many threads of each mail server may wait for a name server that does not
# answer
RESOLVING = 10
QUIT_TIMEOUT = 5

# All mean that the peer closed the connection; which error is raised depends
# on timing
CLOSED = (
    smtplib.SMTPServerDisconnected, ConnectionResetError,
    ConnectionAbortedError, BrokenPipeError)

# Postfix; Exim; OpenSMTPD and Sendmail; Amazon SES
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
# What is shown of a URI in which no host can be told from a secret
UNKNOWN_HOST = '?'


class Mail(NamedTuple):
    """A message with its envelope.

    ``data`` are the bytes with CRLF at the end of every line, without the
    final dot; options are tuples of ESMTP parameters.
    """
    from_addr: str
    to_addrs: tuple
    data: bytes
    mail_options: tuple = ()
    rcpt_options: tuple = ()


class Greeting(NamedTuple):
    """What a server tells until the login.

    ``offers`` are its extensions by their names in small letters, ``tls`` the
    version and ``certificate`` as of ``ssl.SSLSocket.getpeercert``.
    """
    offers: dict
    tls: str = None
    certificate: dict = None


class Trouble(NamedTuple):
    """What keeps the server from taking any message, and whether it lasts.

    ``kind`` is ``LOGIN`` where a login was refused for good, ``SESSION`` where
    no session was to be had, ``RATE`` where the server wants messages more
    slowly, ``QUOTA`` where it refused a message for good because it takes
    nothing from us, and otherwise None. ``reason`` is the one of the email
    that waits for the server.
    """
    words: str
    lasting: bool = False
    kind: str = None
    reason: str = 'trouble'


@dataclass
class Outcome:
    """What became of a message.

    ``refused`` for good and ``deferred`` for now map addresses to the server's
    words. Recipients in none of the three are still to go: because of
    ``trouble`` with the server, or because the connection broke after the
    final dot: ``unanswered`` has the words, ``uncertain`` is another name for
    it. ``refusal`` is the step and the words without addresses and digits, so
    that it is equal for messages that the server refused alike; None where it
    accepted a recipient or named a mailbox. ``queue_ids`` are the names that
    the server's own log has for what it accepted. ``reasons`` says of
    addresses in ``refused`` and ``deferred`` what the server did not say
    itself: values of ``reasons.REASONS``.
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
        "Return those of ``addresses`` that nothing is decided about"
        decided = {*self.accepted, *self.refused, *self.deferred}
        return [a for a in addresses if a not in decided]

    def accept(self, addresses):
        self.accepted.extend(addresses)
        self.refusal = None

    def refuse(self, addresses, step, words, reply=None, reason=None):
        self.refused.update((a, words) for a in addresses)
        self._refused_at(step, addresses, words, reply, reason)

    def defer(self, addresses, step, words, reply=None, reason=None):
        self.deferred.update((a, words) for a in addresses)
        self._refused_at(step, addresses, words, reply, reason)

    def _refused_at(self, step, addresses, words, reply, reason):
        if reason:
            self.reasons.update(dict.fromkeys(addresses, reason))
            words = f'{reason} {words}'
        if not (self.accepted or reply and names_mailbox(step, reply)):
            self.refusal = f'{step} {alike(words)}'


class _Lost(Exception):
    """The connection cannot be used any more.

    ``is_of_session`` tells that the server has ended the session, or may have
    ended it before this message. The loss is none of the message then.
    """

    def __init__(self, words, is_of_session=False):
        super().__init__(words)
        self.words = words
        self.is_of_session = is_of_session


class _Nonsense(_Lost):
    "Lost by a time-out or by an answer that makes no sense"


class _Unanswered(_Lost):
    "Lost after the message was transmitted, before the answer to it"


def trouble_of(error):
    "Return the Trouble of an exception that ends the opening of a session"
    kind = SESSION
    if (isinstance(error, smtplib.SMTPAuthenticationError)
            and error.smtp_code >= 500):
        kind = LOGIN
    return Trouble(_words(error), lasting=True, kind=kind)


def server_name(uri=None):
    """Return host and port of the server, without credentials.

    Of a URI that is not one it is :data:`UNKNOWN_HOST`, because any part of it
    can be that of a secret.
    """
    uri = uri or config.get('email', 'uri')
    host = _before_host.sub('', _parameters.sub('', uri, count=1), count=1)
    return host if _host.fullmatch(host) or not uri else UNKNOWN_HOST


class Client:
    """The sessions with a server, one after another.

    :param uri: as of ``get_smtp_server``, None for the configured one.
    :param server: a connected ``smtplib.SMTP`` to use for the first session.
    :param timeout: seconds for every step, where the URI gives none.
    :param data_timeout: seconds for the answer to the final dot.
    :param max_messages: how many messages go through a session.
    :param max_recipients: how many recipients an SMTP transaction has.
    :param verdict: a function like ``replies.verdict``.
    :param tokens: a function that returns the token to log in with, None for
        the login by the password of the URI. Its argument ``refused`` is one
        that the server has refused.
    :param return_path: the sender of the envelope instead of a message's own,
        unless that is the null sender.
    """

    def __init__(self, uri=None, server=None, timeout=60, data_timeout=600,
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
        self._server = self._given = server
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
                # The session had ended, so the same message goes in a new one
                continue
            if outcome.trouble or outcome.unanswered:
                return outcome
        return outcome

    def _transact(self, session, mail, remaining, outcome, losses):
        """Do one SMTP transaction and add to ``outcome``.

        :param losses: how many connections the message has lost in a row.
        :return: how many it has lost by now.
        :raises _Lost: the session had ended, so it is no loss of the message.
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
        "End the session as the protocol has it, if it is the client's own"
        if self._session and self._session.server is not self._given:
            self._session.quit()
        self._session = None

    def drop(self):
        "Close the connection at once"
        if self._session:
            self._session.server.close()
            self._session = None

    def _ready_session(self, pipelining):
        if self._session and self._session.messages >= self.max_messages:
            self.close()
        if not self._session:
            server = self._logged_in()
            self._session = _Session(
                server, self.timeout, self.data_timeout, self.verdict,
                pipelining and server.has_extn('pipelining'))
        return self._session

    def probe(self):
        "Open a session, end it, and return its Greeting or the Trouble"
        try:
            server = self._logged_in()
        except Exception as error:
            return trouble_of(error)
        sock = server.sock
        tls = hasattr(sock, 'version')
        greeting = Greeting(
            dict(server.esmtp_features),
            sock.version() if tls else None,
            sock.getpeercert() if tls else None)
        _Session(
            server, self.timeout, self.data_timeout, self.verdict,
            pipelining=False).quit()
        return greeting

    def _logged_in(self):
        "Return a connection, which takes two tokens where one is refused"
        token = None
        if not (self._server and self._server.sock):
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
        server, self._server = self._server, None
        if server and server.sock:
            opening.watch(server.sock)
        else:
            uri = self.uri
            if not _timeout.search(uri):
                seconds = math.ceil(self.timeout)
                uri += f'{"&" if "?" in uri else "?"}timeout={seconds}'
            server = opening.connect(uri)
        # A bound until the login only, because the session has its own bounds
        file = server.file or server.sock.makefile('rb')
        server.file = _Lines(file)
        try:
            with _words_of_ehlo([server]):
                server.ehlo_or_helo_if_needed()
            if token is not None:
                log_in(server, user, token)
        except BaseException:
            server.close()
            raise
        server.file = file
        return server


@contextmanager
def _words_of_ehlo(servers):
    """Raise the refusal of EHLO instead of an error that follows from it.

    After a refused EHLO smtplib goes on with HELO. Its error is then the
    answer to HELO, or that the server does not offer what only EHLO shows.
    """
    try:
        yield
    except smtplib.SMTPAuthenticationError:
        raise
    except smtplib.SMTPException:
        for server in servers:
            if refused := getattr(server, 'refused_ehlo', None):
                raise smtplib.SMTPHeloError(*refused)
        raise


class _Opening:
    """A connection until the end of its login, which can be cut at any time.

    smtplib starts its time-out anew with every byte that arrives.
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
        "Return whether the opening has come to its end without being cut"
        with self._lock:
            for handle in self._handles:
                handle.close()
            self._handles.clear()
            return not self._is_cut

    def connect(self, uri):
        """Return what ``get_smtp_server`` returns for the URI.

        It takes no class of connections: its code is run with a ``smtplib``
        whose classes tell their sockets.
        """
        opening, servers = self, []

        class SMTP(smtplib.SMTP):

            def __init__(self, *args, **kwargs):
                servers.append(self)
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
            with _words_of_ehlo(servers):
                server = get_server(uri, strict=True)
        except BaseException:
            # Neither trytond nor smtplib closes a connection whose greeting,
            # TLS or login fails
            for server in servers:
                server.close()
            raise
        if isinstance(server.file, _Lines):
            server.file = server.file.file
        return server

    def socket_to(self, host, port, timeout):
        "Return a connected socket that is watched from before it connects"
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
    "The file of a connection, from which a bounded number of lines is read"

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


# Nothing can interrupt a thread that waits for the name server
_resolving = []
_resolving_lock = threading.Lock()


def open_in_time(seconds, connect, name):
    """Return what ``connect`` returns for an :class:`_Opening`.

    It has a method ``close``, for what is opened too late.

    :param name: of the server, by which the threads that hang are counted.

    :raises TimeoutError: it takes longer. Its connection is closed.
    """
    opening, result, error = _Opening(), [], []

    def run():
        server = None
        try:
            server = connect(opening)
            result.append(server)
        except BaseException as e:
            error.append(e)
        if not opening.end() and server:
            server.close()

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
        for server in result:
            # The connection was opened at the moment when it was cut
            server.close()
        raise TimeoutError("timed out")
    if error:
        raise error[0]
    return result[0]


class _Session:
    "A connection on which messages are sent one after another"

    def __init__(self, server, timeout, data_timeout, verdict, pipelining):
        self.server = server
        self.timeout = timeout
        self.data_timeout = data_timeout
        self.verdict = verdict
        self.pipelining = pipelining
        self.messages = 0
        self.step = 'mail'
        # Whether the server has said that it closes the connection
        self.closed = False
        self._offers = server.esmtp_features
        self._size_limit = _size_limit(self._offers)
        self._received = b''

    def send(self, mail, recipients, outcome):
        """Do one SMTP transaction and add to ``outcome``.

        At least one of ``recipients`` is decided, or there is trouble.
        """
        self.messages += 1
        self.step = 'mail'
        recipients = self._possible(mail, recipients, outcome)
        try:
            if recipients:
                self._transact(mail, recipients, outcome)
        except _Lost as error:
            if self.messages > 1 and self.step == 'mail':
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
        if self.messages == 1:
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
            # A failing QUIT does not change earlier answers
            pass
        self.server.close()

    def _possible(self, mail, recipients, outcome):
        "Return the recipients that the server's extensions allow"
        size, limit = len(mail.data), self._size_limit
        if limit and size > limit:
            # A suspect like any other, because a server can offer a limit by
            # mistake
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
        "Return the options that are offered, without those that we set"
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

        Fewer than there are commands where going on makes no sense.
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
                # The server may have sent the reason before it closed
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

        Return the recipients that the server takes the message for.
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
        "Return the kind of trouble that the reply is"
        about = meaning(reply)
        if not reply.temporary:
            return None if about == LOGIN else QUOTA
        if step == 'mail' and self.messages == 1 and (
                reply.code == 421 or about == SESSION
                or 'connections' in reply.text.lower()):
            # A server that greets more sessions than it serves says so
            return SESSION
        # At RCPT the rate may be that of the recipient
        return RATE if about == RATE and step != 'rcpt' else None

    def _transmit(self, mail, recipients, outcome):
        "Return whether the server has taken the message"
        self._expect_silence()
        self.step = 'body'
        data = mail.data.replace(b'\r\n.', b'\r\n..')
        if data.startswith(b'.'):
            data = b'.' + data
        # The dot must be on a line of its own, or the server waits for ever
        end = b'.\r\n' if data[-2:] in (b'', b'\r\n') else b'\r\n.\r\n'
        # Only the last piece is joined with the end, because to join the whole
        # would copy the message
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
        elif self.messages > 1 and meaning(reply) == SESSION:
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
        # The reply also shows whether a server that refused a message waits
        # for the next message or takes the lines for commands
        self._write(b'RSET\r\n')
        reply = self._reply(self.timeout)
        if not reply.good:
            raise _Lost(str(reply))

    def _expect_silence(self):
        "Give up a server that answers more than it was asked"
        if self._received:
            raise _Nonsense(
                f"unexpected answer: {_printable(self._received)}")

    def _write(self, data):
        try:
            self.server.sock.settimeout(self.timeout)
            self.server.sock.sendall(data)
        except OSError as error:
            raise _broken(error)

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
        server = self.server
        if server.file is None:
            server.file = server.sock.makefile('rb')
        while b'\n' not in self._received:
            if len(self._received) > LINE_LENGTH:
                raise _Nonsense("an answer without end")
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                raise _Nonsense("timed out")
            try:
                server.sock.settimeout(seconds)
                received = server.file.read1(LINE_LENGTH)
            except OSError as error:
                raise _broken(error)
            if not received:
                raise _Lost(_words(ConnectionResetError()))
            self._received += received
        line, _, self._received = self._received.partition(b'\n')
        return line.rstrip(b'\r')


@functools.lru_cache(maxsize=100)
def _reply_of(code, text):
    """Return the reply of a code and a text as bytes.

    Cached, because a server says the same again and again, and each text is
    searched for domains.
    """
    return Reply(int(code), _printable(text))


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


def _broken(error):
    "Return the loss that an error of the socket is"
    Loss = _Nonsense if isinstance(error, TimeoutError) else _Lost
    return Loss(_words(error))


def _words(error):
    "Return what an error says, without anything of the configuration"
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
