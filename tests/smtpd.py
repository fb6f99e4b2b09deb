# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""A real SMTP server for tests: the address says what the server answers.

A local part ``STEP-ACTION`` says what the server does at this step of the SMTP
transaction; any other address is accepted::

    rcpt-550@example.com                    550 to this RCPT
    rcpt-550-5.2.2-mailbox-full.7@...       "550 5.2.2 mailbox full", the 7th
    dot-451x2@...                           451 to the dot twice, then accepted
    data-close@...                          closes instead of answering DATA
    rcpt-451x1+dot-554@...                  several steps in one name

STEP is ``mail`` (in the sender's address only), ``rcpt``, ``data``, ``body``
(in the middle of the data; then the connection is reset) or ``dot``. The
sender's address counts first, but the RCPT of a recipient is decided by the
recipient's own address.

ACTION is ``(CODE|FAULT)[xTIMES][-ENHANCED][-words][-FLAG][.anything]``:

- CODE: three digits; 421 also closes;
- FAULT: ``close`` without a reply, ``reset`` (RST), ``hang`` until the client
  or the server goes, ``trickle`` and ``split`` (the good reply byte by byte,
  or in two segments), ``cut`` (half of it, then closed), ``endless`` and
  ``multi-endless`` (a line, or lines, without end), ``garbage``;
- TIMES: only the first TIMES that the server sees this step and address;
- FLAG: ``close`` or ``reset`` after the reply; ``taken``: the mail is taken
  although its dot gets no 2xx.

``script`` takes the same actions for every step, also greeting, ehlo, helo,
starttls, auth, rset, noop and quit, and counts before any address. Its text
may be the reply itself: ``{'rcpt': '554 5.7.1 Relay access denied'}``.
"""
import argparse
import ast
import asyncio
import base64
import functools
import json
import os
import re
import socket
import ssl
import struct
import subprocess
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import NamedTuple
from urllib.parse import quote

__all__ = ['Action', 'Mail', 'Server', 'make_certificates', 'read_log']

BATCH = 1024  # bytes of replies that wait for the end of the input
BUFFER = 64 * 1024  # bytes of input after which the connection stops reading
MAX_LINE = 1000  # bytes of a line of data, with its CRLF
MAX_COMMAND = {  # bytes, with what extensions add; 512 for all others
    'AUTH': 12288,
    'MAIL': 512 + 26 + 17 + 10 + 116,
    'RCPT': 512 + 528,
    }
ENDS_GROUP = {'EHLO', 'HELO', 'STARTTLS', 'AUTH', 'DATA', 'QUIT', 'NOOP'}
EXTENSIONS = {
    'pipelining': 'PIPELINING',
    'enhanced': 'ENHANCEDSTATUSCODES',
    'eightbitmime': '8BITMIME',
    'smtputf8': 'SMTPUTF8',
    'dsn': 'DSN',
    }
PARAMETERS = {
    'MAIL': {
        'SIZE': 'size', 'BODY': 'eightbitmime', 'SMTPUTF8': 'smtputf8',
        'RET': 'dsn', 'ENVID': 'dsn'},
    'RCPT': {'NOTIFY': 'dsn', 'ORCPT': 'dsn'},
    }
ACTION = re.compile(r"""
    (?: (?P<code> [2-5]\d\d) | (?P<fault> close | reset | hang | trickle
        | garbage | endless | multi-endless | cut | split))
    (?: x (?P<times> \d+))?
    (?: [ ] (?P<text> .*)
        | (?: - (?P<enhanced> [245]\.\d{1,3}\.\d{1,3}))?
            (?P<words> (?: -\w+)*?)
            (?: - (?P<flag> close | reset | taken))?
            (?: \. .*)?)""", re.X | re.S)
BEARER = {
    'XOAUTH2': r'user=(?P<user>[^\x01]+)'
    r'\x01auth=Bearer (?P<token>[^\x01]+)\x01\x01',
    'OAUTHBEARER': r'n,a=(?P<user>[^\x01,]+),\x01host=[^\x01]+\x01port=\d+'
    r'\x01auth=Bearer (?P<token>[^\x01]+)\x01\x01',
    }
PATH = r':<((?:"(?:[^"\\]|\\.)*"|[^">])*)>((?: [^ ]+)*)$'
ENHANCED = re.compile(r'^[245]\.\d{1,3}\.\d{1,3} ', re.M)
GARBAGE = b'%% \xff this is no reply\r\n'
REPLIES = {
    ('mail', 250): "2.1.0 ok",
    ('rcpt', 250): "2.1.5 ok",
    ('rcpt', 452): "4.5.3 too many recipients",
    ('rcpt', 5): "5.1.1 <{address}> no such user",
    ('data', 3): "end data with <CR><LF>.<CR><LF>",
    ('auth', 5): "5.7.8 authentication failed",
    421: "4.3.2 service not available, closing",
    552: "5.3.4 message too big",
    2: "2.0.0 ok",
    3: "go on",
    4: "4.7.1 try again later",
    5: "5.7.1 message refused",
    }


class Mail(NamedTuple):
    "A mail that the server has taken"
    from_addr: str  # '' for the null sender
    to_addrs: tuple  # the accepted recipients
    data: bytes  # without dot-stuffing, with the last CRLF
    mail_options: tuple  # as sent: ('SIZE=12', 'BODY=8BITMIME')
    rcpt_options: dict  # {address: options}
    session: int  # the number of the session, from 1
    time: float  # by the monotonic clock

    @property
    def message_id(self):
        "The content of the field Message-ID, or None"
        match = re.search(
            rb'^Message-ID:\s*(.*?)\s*$',
            self.data.partition(b'\r\n\r\n')[0], re.I | re.M)
        return match and match[1].decode('utf-8', 'replace')


class Action(NamedTuple):
    "What the server does at one step"
    code: int = 0
    fault: str = ''
    times: int = 0  # 0 is always
    text: str = ''
    flag: str = ''

    @classmethod
    @functools.lru_cache(1024)
    def parse(cls, name):
        "Return the action of a name, None if it names none"
        if not (match := ACTION.fullmatch(name)):
            return
        words = (match['words'] or '').replace('-', ' ').strip()
        text = match['text'] or ' '.join(
            filter(None, [match['enhanced'], words]))
        return cls(
            int(match['code'] or 0), match['fault'] or '',
            int(match['times'] or 0), text, match['flag'] or '')

    @property
    def takes(self):
        "Return whether the mail is taken if this happens at the dot"
        if self.fault:
            good = self.fault in {'trickle', 'split'}
        else:
            good = is_good(self.code or 250)
        return good or self.flag == 'taken'


@functools.lru_cache(4096)
def actions_of(address):
    "Return the action of each step that an address names"
    actions = {}
    for part in address.rpartition('@')[0].strip('"').split('+'):
        step, _, name = part.partition('-')
        if (step in {'mail', 'rcpt', 'data', 'body', 'dot'}
                and (action := Action.parse(name))):
            actions[step] = action
    return actions


def is_good(code):
    return code // 100 == 2


@functools.lru_cache(1024)
def wire(code, text, enhanced=True):
    "Return the bytes of a reply, one line for each line of the text"
    if not enhanced:
        text = ENHANCED.sub('', text)
    *lines, last = text.split('\n')
    lines = [f'{code}-{line}\r\n' for line in lines] + [f'{code} {last}\r\n']
    return ''.join(lines).encode('utf-8', 'surrogateescape')


class Gone(Exception):
    "The session is over"


class Refusal(Exception):
    "The code and the text of the reply"


class Connection(asyncio.Protocol):
    """The bytes of one session.

    If the peer does not read its replies, the connection stops reading.
    """

    def __init__(self, server):
        self.server = server
        self.input = bytearray()
        self.output = bytearray()
        self.waited = False  # for the last line
        self.ended = False
        self.lost = asyncio.Event()
        self._arrived = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport):
        self.use(transport)
        self.task = asyncio.get_running_loop().create_task(self.run())

    def use(self, transport):
        self.transport = transport
        transport.set_write_buffer_limits(1)  # with 0 TLS never resumes

    def data_received(self, data):
        self.input += data
        limit = self.server.rcvbuf or BUFFER
        if self.server.slow_read or len(self.input) > limit:
            self.transport.pause_reading()
        self._wake()

    def eof_received(self):
        self.ended = True
        self._wake()

    def connection_lost(self, exc):
        self.lost.set()
        self._writable.set()
        self.eof_received()

    def pause_writing(self):
        self._writable.clear()

    def resume_writing(self):
        self._writable.set()

    def _wake(self):
        if self._arrived and not self._arrived.done():
            self._arrived.set_result(None)

    async def more(self):
        "Wait for more input, after all replies are sent"
        # Some bytes may arrive while the client takes its time over the
        # replies
        size = len(self.input)
        await self.flush()
        self.waited = True
        if self.server.slow_read:
            await asyncio.sleep(self.server.slow_read)
        self.transport.resume_reading()
        if len(self.input) == size and not self.ended:
            self._arrived = asyncio.get_running_loop().create_future()
            if self.server.idle_timeout:
                await asyncio.wait_for(self._arrived, self.server.idle_timeout)
            else:
                await self._arrived
        if len(self.input) == size:
            raise Gone

    async def line(self):
        while (end := self.input.find(b'\n')) < 0:
            await self.more()
        return self.take(end + 1)

    def take(self, size):
        with memoryview(self.input) as view, view[:size] as part:
            taken = bytes(part)
        del self.input[:size]
        return taken

    async def put(self, reply):
        "Put a reply, which is sent at the latest when there is no more input"
        self.output += reply
        if len(self.output) > BATCH:
            await self.flush()

    async def flush(self):
        if self.output:
            output = bytes(self.output)
            self.output.clear()
            await self.write(output)

    async def write(self, data):
        if self.transport.is_closing():
            raise Gone
        self.transport.write(data)
        await self._writable.wait()


class Session(Connection):
    """The SMTP of one connection, a method for each verb and each fault.

    A script may read ``server``, ``number`` (from 1), ``helo`` (its name),
    ``tls``, ``user``, ``messages`` (taken), ``command`` (the line), and of
    the transaction ``from_addr``, ``recipients`` ({address: options}),
    ``address``, that of this MAIL or RCPT, and at the dot ``message``."""

    def __init__(self, server):
        super().__init__(server)
        self.number = server.opened(self)
        self.messages = 0
        self.command = self.user = ''
        self.tls = self.refused = False
        self.meet()

    def meet(self, name='', offers=None):
        "Begin the session, or begin it again"
        self.helo, self.offers = name, offers or {}
        self.forget()

    def forget(self):
        "End the transaction"
        self.from_addr = None
        self.attempted = False
        self.address = ''
        self.options = {}
        self.mail_options = ()
        self.recipients = {}
        self.message = b''

    async def run(self):
        try:
            await self.serve()
        except (Gone, ConnectionError, ssl.SSLError):
            pass
        except Exception:
            self.server.note('violations', traceback.format_exc())
        finally:
            self.transport.close()
            self.server.closed(self)

    async def serve(self):
        if self.server.tls == 'smtps':
            await self.start_tls()
        try:
            code = await self.answer('greeting', 220, "localhost ESMTP")
            self.refused = not is_good(code)
            if self.input:
                self.violation("input before the greeting")
            while True:
                await self.obey()
        except asyncio.TimeoutError:
            await self.reply(421, "4.4.2 idle for too long")

    async def start_tls(self):
        self.use(await asyncio.get_running_loop().start_tls(
                self.transport, self, self.server.context, server_side=True))
        self.tls = True
        self.meet()

    async def obey(self):
        "Read and answer one command"
        self.waited = False
        line = await self.line()
        self.command = line.decode('utf-8', 'surrogateescape').rstrip('\r\n')
        if self.server.keep:
            self.server.note('commands', (self.number, self.command))
        if not self.waited:
            if 'pipelining' not in self.offers:
                self.violation("command before the reply to the last one")
            elif self.server.drop_pipelined:
                return
            elif self.server.garble_pipelined:
                return await self.put(GARBAGE)
        verb, _, rest = self.command.partition(' ')
        verb = verb.upper()
        self.check_command(verb, line)
        try:
            if self.refused and verb != 'QUIT':
                raise Refusal(503, "5.5.1 no service here")
            if not (method := getattr(self, 'smtp_' + verb, None)):
                raise self.wrong(500, "5.5.2 unknown command")
            await method(rest)
        except Refusal as refusal:
            await self.reply(*refusal.args)

    # What the client does wrong

    def violation(self, text):
        self.server.note(
            'violations', f"session {self.number}: {text}: {self.command!r}")

    def wrong(self, code, text):
        "Return the refusal of what no client may do"
        self.violation(text)
        return Refusal(code, text)

    def check_command(self, verb, line):
        if not line.endswith(b'\r\n'):
            self.violation("command line ends in a bare LF")
        if b'\0' in line or b'\r' in line[:-2]:
            self.violation("NUL or CR in a command")
        if len(line) > MAX_COMMAND.get(verb, 512):
            self.violation("command line too long")
        if not line.isascii() and verb not in {'MAIL', 'RCPT'}:
            self.violation("non-ASCII in a command")
        if self.input and verb in ENDS_GROUP:
            self.violation("input after what must be the last of a group")

    def check_data(self, data):
        "Note what is wrong with the data, and refuse what has to be refused"
        server = self.server
        lines = data.count(b'\r\n')
        bare_lf, bare_cr = data.count(b'\n') - lines, data.count(b'\r') - lines
        server.bare_lf += bare_lf
        server.bare_cr += bare_cr
        server.long_lines += len(data) > MAX_LINE and sum(
            len(line) >= MAX_LINE for line in data.split(b'\n'))
        if bare_cr:
            self.violation("bare CR in the data")
        if not data.isascii():
            server.eight_bit += 1
            if ('eightbitmime' in self.offers
                    and not {'BODY', 'SMTPUTF8'} & self.options.keys()):
                self.violation("8-bit data without BODY=8BITMIME")
        # smtplib adds a last CRLF after it has told the size
        if len(data) - 2 > int(self.options.get('SIZE', len(data))):
            self.violation("more data than SIZE tells")
        if bare_lf and server.strict:
            raise self.wrong(550, "5.6.11 bare LF in the data")
        if 0 < self.max_size < len(data):
            raise Refusal(552)

    @property
    def max_size(self):
        return self.offers.get('size', self.server.size) or 0

    # What the server says

    async def reply(self, code, text=''):
        "Reply as the state of the session demands"
        await self.perform(Action(), '', code, text)

    async def answer(self, step, code, text='', addresses=()):
        """Answer as the script and the names say, otherwise by ``code``.

        Return the code of the reply, 0 if there is none.
        """
        action = self.server.action(self, step, addresses)
        return await self.perform(action, step, code, text)

    async def perform(self, action, step, code, text=''):
        await self.delay(step)
        if action.code:
            code, text = action.code, action.text
        else:
            text = self.server.replies.get((step, code), text)
        reply = wire(
            code, text or self.text(step, code), self.server.enhanced)
        if action.fault:
            return await self.fault(action.fault, reply) or 0
        await self.put(reply)
        if code == 421 or action.flag in {'close', 'reset'}:
            await self.fault(action.flag or 'close', reply)
        return code

    def text(self, step, code):
        replies = {**REPLIES, **self.server.replies}
        keys = (step, code), code, (step, code // 100), code // 100
        text = next(replies[key] for key in keys if key in replies)
        return text.replace('{address}', self.address)

    async def delay(self, step):
        delay = self.server.delay
        if isinstance(delay, dict):
            delay = delay.get(step)
        if delay:
            await self.flush()
            await asyncio.sleep(delay)

    # The faults; each gets the reply that would have been right

    async def fault(self, name, reply=b''):
        await self.flush()
        return await getattr(self, 'fault_' + name.replace('-', '_'))(reply)

    async def fault_close(self, reply):
        raise Gone

    async def fault_reset(self, reply):
        self.transport.get_extra_info('socket').setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.transport.abort()
        raise Gone

    async def fault_hang(self, reply):
        await self.lost.wait()
        raise Gone

    async def fault_trickle(self, reply):
        await self.write(reply[:1])
        for byte in reply[1:]:
            await asyncio.sleep(self.server.trickle)
            await self.write(bytes([byte]))
        return int(reply[:3])

    async def fault_split(self, reply):
        await self.write(reply[:2])
        await asyncio.sleep(self.server.split)
        await self.write(reply[2:])
        return int(reply[:3])

    async def fault_cut(self, reply):
        await self.write(reply[:reply.index(b'\r\n') // 2])
        raise Gone

    async def fault_garbage(self, reply):
        await self.write(GARBAGE)

    async def fault_endless(self, reply):
        await self.write(reply[:4])
        await self.flood(b'and so on ' * 400)

    async def fault_multi_endless(self, reply):
        await self.flood((reply[:3] + b'-and so on\r\n') * 200)

    async def flood(self, chunk):
        sent = 0
        while not self.server.endless or sent < self.server.endless:
            await self.write(chunk)
            sent += len(chunk)
            await asyncio.sleep(0)
        raise Gone

    # The session

    async def smtp_EHLO(self, name):
        self.meet()
        offers = self.server.offers(self.tls)
        lines = '\n'.join(["localhost", *self.extensions(offers)])
        if is_good(await self.answer('ehlo', 250, lines)):
            self.meet(name, offers)

    async def smtp_HELO(self, name):
        self.meet()
        if is_good(await self.answer('helo', 250, "localhost")):
            self.meet(name)

    def extensions(self, offers):
        yield from (EXTENSIONS[name] for name in offers if name != 'size')
        if 'size' in offers:
            yield f"SIZE {offers['size']}"
        if self.server.tls == 'starttls' and not self.tls:
            yield "STARTTLS"
        if self.may_login:
            yield f"AUTH {' '.join(self.mechanisms)}"

    async def smtp_STARTTLS(self, rest):
        if self.server.tls != 'starttls' or self.tls or not self.offers:
            raise self.wrong(503, "5.5.1 no STARTTLS now")
        if await self.answer('starttls', 220, "2.0.0 ready") == 220:
            await self.flush()
            self.input.clear()
            await self.start_tls()

    @property
    def mechanisms(self):
        server = self.server
        return [
            *(['PLAIN', 'LOGIN'] if server.auth else []),
            *(server.bearer_mechanisms if server.bearer else [])]

    @property
    def may_login(self):
        return self.mechanisms and (
            self.tls or self.server.tls != 'starttls')

    async def smtp_AUTH(self, rest):
        if not self.may_login or not self.offers or self.user:
            raise self.wrong(503, "5.5.1 no AUTH now")
        mechanism, _, initial = rest.partition(' ')
        mechanism = mechanism.upper()
        if mechanism not in self.mechanisms:
            raise Refusal(504, "5.5.4 unknown mechanism")
        try:
            if mechanism in BEARER:
                login = await self.bearer(mechanism, initial)
                good = self.server.bearer(*login)
                if not good:
                    await self.refuse_bearer(mechanism)
            else:
                login = await self.login(mechanism, initial)
                good = login == tuple(self.server.auth)
        except ValueError:
            raise self.wrong(501, "5.5.2 bad credentials")
        if is_good(await self.answer('auth', 235 if good else 535)):
            self.user = login[0]

    async def login(self, mechanism, initial):
        "Log in by user and password"
        if mechanism == 'PLAIN':
            plain = await self.response(initial, "")
            return tuple(plain.split('\0')[1:])
        if mechanism == 'LOGIN':
            return (
                await self.response(initial, "Username:"),
                await self.response('', "Password:"))

    async def bearer(self, mechanism, initial):
        "Log in by user and token"
        text = await self.response(initial, "")
        if not (match := re.fullmatch(BEARER[mechanism], text)):
            raise ValueError
        return (
            match['user'].replace('=2C', ',').replace('=3D', '='),
            match['token'])

    async def refuse_bearer(self, mechanism):
        "Say why the token is refused, and wait for the client's last line"
        prompt = '{"status":"invalid_token"}'
        await self.put(wire(334, base64.b64encode(prompt.encode()).decode()))
        response = (await self.line()).strip()
        expected = b'' if mechanism == 'XOAUTH2' else base64.b64encode(b'\x01')
        if response != expected:
            self.violation("bad answer to a refused token")

    async def response(self, response, prompt):
        if not response:
            await self.put(wire(
                    334, base64.b64encode(prompt.encode()).decode()))
            response = (await self.line()).strip()
        return base64.b64decode(response, validate=True).decode()

    async def smtp_RSET(self, rest):
        if is_good(await self.answer('rset', 250)):
            self.forget()

    async def smtp_NOOP(self, rest):
        await self.answer('noop', 250)

    async def smtp_QUIT(self, rest):
        await self.answer('quit', 221, "2.0.0 bye")
        await self.fault('close')

    # The transaction

    async def smtp_MAIL(self, rest):
        if not self.helo:
            raise self.wrong(503, "5.5.1 MAIL before EHLO")
        if self.from_addr is not None:
            raise self.wrong(503, "5.5.1 MAIL in a transaction")
        self.forget()
        self.attempted = True
        if self.mechanisms and not self.user:
            raise Refusal(530, "5.7.0 authentication required")
        limit = self.server.max_messages_per_session
        if limit is not None and self.messages >= limit:
            raise Refusal(421, "4.7.0 too many messages in this session")
        self.options, options = self.path('MAIL', 'FROM', rest)
        if int(self.options.get('SIZE', 0)) > self.max_size > 0:
            raise Refusal(552)
        if is_good(await self.answer('mail', 250, addresses=[self.address])):
            self.from_addr, self.mail_options = self.address, options

    async def smtp_RCPT(self, rest):
        self.check_transaction()
        _, options = self.path('RCPT', 'TO', rest)
        limit = self.server.max_recipients
        full = limit is not None and len(self.recipients) >= limit
        if is_good(await self.answer(
                    'rcpt', 452 if full else 250,
                    addresses=[self.address, self.from_addr])):
            self.recipients[self.address] = options

    def path(self, verb, keyword, rest):
        "Set the address; return the options as {key: value} and as they are"
        if not (match := re.match(keyword + PATH, rest, re.I)):
            raise self.wrong(501, "5.5.4 bad syntax")
        self.address, options = match[1], tuple(match[2].split())
        named = dict(
            option.upper().partition('=')[::2] for option in options)
        for key in named:
            if PARAMETERS[verb].get(key) not in self.offers:
                raise self.wrong(555, "5.5.4 option not offered")
        if not named.get('SIZE', '0').isdecimal():
            raise self.wrong(501, "5.5.4 bad SIZE")
        if (not self.address.isascii()
                and 'SMTPUTF8' not in named.keys() | self.options.keys()):
            raise self.wrong(553, "5.6.7 non-ASCII address without SMTPUTF8")
        return named, options

    def check_transaction(self):
        if self.from_addr is None:
            if not self.attempted or 'pipelining' not in self.offers:
                self.violation("not in a transaction")
            raise Refusal(503, "5.5.1 MAIL first")

    async def smtp_DATA(self, rest):
        self.check_transaction()
        if not self.recipients:
            return await self.lone_dot()
        names = [self.from_addr, *self.recipients]
        if await self.answer('data', 354, addresses=names) != 354:
            return
        await self.interrupt(names)
        data = await self.data()
        try:
            self.check_data(data)
            self.message = data
            action = self.server.action(self, 'dot', names)
            if action.takes:
                self.messages += 1
                self.server.took(self, data)
            await self.perform(action, 'dot', 250)
        finally:
            self.forget()

    async def lone_dot(self):
        "Take DATA although no recipient was accepted"
        if not self.server.lone_dot:
            raise Refusal(
                self.server.no_recipients, "5.5.1 no valid recipients")
        if await self.answer('data', 354) == 354:
            if await self.data():
                self.violation("data for nobody")
            self.server.lone_dots += 1
            lone_dot = self.server.lone_dot
            await self.answer('dot', 250 if lone_dot is True else lone_dot)
            self.forget()

    async def interrupt(self, names):
        "Do what has to happen in the middle of the data"
        action = self.server.action(self, 'body', names)
        if action != Action():
            while not self.input:
                await self.more()
            await self.perform(action, 'body', 451)
            await self.fault('reset')

    async def data(self):
        "Return the data up to the final dot"
        start = 0
        while not self.input.startswith(b'.\r\n'):
            if (end := self.input.find(b'\r\n.\r\n', start)) >= 0:
                break
            start = max(0, len(self.input) - 4)
            await self.more()
        else:
            end = -2
        data = self.take(end + 2)
        self.take(3)
        if data.startswith(b'.') or b'\n.' in data:
            if re.search(rb'(?:^|\r\n)\.[^.]', data):
                self.violation("leading dot not doubled")
            data = re.sub(rb'(^|\r\n)\.', rb'\1', data)
        return data


@dataclass(eq=False, kw_only=True)
class Server:
    """A server on 127.0.0.1 in a thread of its own, a context manager.

    Every option may be changed at any time. What EHLO offers holds from the
    next EHLO on; port, certificate, buffers and log hold from the next
    start().
    """
    port: int = 0  # 0: the kernel's choice, kept when it starts again
    # {step: action} or a function (session, step); an action may be a
    # function (session); None leaves it to the names
    script: dict | Callable = field(default_factory=dict)
    fail_after: dict = field(default_factory=dict)  # {n: {step: action}}: the
    # script is updated by it once n mails are taken
    replies: dict = field(default_factory=dict)  # {(step, code): text}
    delay: float | dict = 0  # seconds before every reply, or {step: seconds}
    pipelining: bool = True
    size: int | None = 0  # bytes of a mail; 0: no limit, None: not offered
    eightbitmime: bool = True
    smtputf8: bool = True
    dsn: bool = True
    enhanced: bool = True  # enhanced status codes, in all replies
    extensions_after_tls: dict = field(default_factory=dict)  # what changes:
    # {'pipelining': False}
    auth: tuple | None = None  # (user, password); then MAIL needs a login
    # a function (user, token) that tells whether they are good; then it does
    bearer: Callable | None = None
    bearer_mechanisms: tuple = ('XOAUTH2', 'OAUTHBEARER')
    tls: str | None = None  # 'starttls' or 'smtps'
    certfile: str | None = None
    keyfile: str | None = None
    max_messages_per_session: int | None = None  # then 421
    max_recipients: int | None = None  # of a transaction, then 452
    idle_timeout: float | None = None  # seconds, then 421
    no_recipients: int = 554  # to DATA without recipients
    lone_dot: int | bool = False  # or 354 to it, and this (250) to its dot
    drop_pipelined: bool = False  # loses all of a group but the first
    garble_pipelined: bool = False  # answers them with garbage
    strict: bool = True  # refuses bare LF
    rcvbuf: int | None = None  # bytes of SO_RCVBUF, also small segments then
    sndbuf: int | None = None  # bytes of SO_SNDBUF
    slow_read: float = 0  # seconds before each read
    trickle: float = .2  # seconds between two bytes
    split: float = .05  # seconds between the two parts
    endless: int | None = 1 << 20  # bytes, then it closes; None: never
    log: str | None = None  # path: a line of JSON for each mail
    keep: bool = True  # mails and commands in memory

    def __post_init__(self):
        self._changed = threading.Condition()
        self._thread = None
        self._live = set()
        self.sessions = self.max_open = 0
        self.clear()

    def clear(self):
        "Forget everything that was received and noted so far"
        self.count = 0  # of mails taken
        self.received = []  # of Mail
        self.commands = []  # of (session number, line)
        self.violations = []  # of str: what clients did wrong, own errors
        self.bare_lf = self.bare_cr = self.long_lines = 0  # in all data
        self.eight_bit = self.lone_dots = 0  # mails
        self._seen = Counter()

    def __enter__(self):
        return self.start()

    def __exit__(self, *args):
        self.stop()

    def start(self):
        if self.tls:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(self.certfile, self.keyfile)
        listener = self._listen()
        self.port = listener.getsockname()[1]
        self._log = self.log and open(self.log, 'ab', buffering=0)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=[self._serve(listener)],
            daemon=True)
        self._thread.start()
        return self

    def stop(self):
        "Stop as if killed: the port and all connections close"
        if self._thread:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._thread = None
            self._loop.close()
            if self._log:
                self._log.close()

    def _listen(self):
        # If asyncio is given the protocol number, it sets TCP_NODELAY
        listener = socket.socket(proto=socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.rcvbuf:
            listener.setsockopt(
                socket.SOL_SOCKET, socket.SO_RCVBUF, self.rcvbuf)
            # otherwise the kernel of the client takes megabytes from it
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1200)
        if self.sndbuf:
            listener.setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDBUF, self.sndbuf)
        listener.bind(('127.0.0.1', self.port))
        listener.listen(1024)
        return listener

    async def _serve(self, listener):
        server = await self._loop.create_server(
            lambda: Session(self), sock=listener, backlog=1024)
        await self._stop.wait()
        # A forked process may hold the socket, too
        listener.shutdown(socket.SHUT_RDWR)
        server.close()
        live = list(self._live)
        for session in live:
            session.transport.abort()
            session.task.cancel()
        await asyncio.gather(
            *(session.task for session in live), return_exceptions=True)

    @property
    def uri(self):
        "Return the URI as in the section email of trytond"
        scheme = {'starttls': 'smtp+tls', 'smtps': 'smtps'}.get(
            self.tls, 'smtp')
        login = ''
        if self.auth:
            login = ':'.join(quote(part, safe='') for part in self.auth) + '@'
        return f'{scheme}://{login}127.0.0.1:{self.port}'

    @property
    def open_sessions(self):
        return len(self._live)

    def wait_for(self, count, timeout=10):
        "Return the received mails once there are so many"
        self.wait_until(
            lambda: count <= (
                len(self.received) if self.keep else self.count),
            timeout, f"{count} mails")
        return list(self.received)

    def wait_until(self, condition, timeout=10, what="such state"):
        "Wait until condition() holds; it is asked whenever something happens"
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                raise TimeoutError(
                    f"no {what} in {timeout} s: {self.count} mails, "
                    f"{self.open_sessions} of {self.sessions} sessions open, "
                    f"last commands {self.commands[-5:]}, "
                    f"violations {self.violations[:5]}")

    # What sessions ask and report, in the server's thread

    def offers(self, tls):
        "Return what EHLO offers: {option: value}, without what is not offered"
        offers = {name: getattr(self, name) for name in [*EXTENSIONS, 'size']}
        if tls:
            offers.update(self.extensions_after_tls)
        return {
            name: value for name, value in offers.items()
            if value is not None and value is not False}

    def action(self, session, step, addresses):
        """Return the action that the script, or else an address, wants at a
        step
        """
        action = self._scripted(session, step)
        if action and self._is_due(action, step):
            return action
        for address in addresses:
            action = actions_of(address).get(step)
            if action and self._is_due(action, step, address):
                return action
        return Action()

    def _scripted(self, session, step):
        if callable(self.script):
            name = self.script(session, step)
        else:
            name = self.script.get(step)
        if callable(name):
            name = name(session)
        if name is not None:
            if not (action := Action.parse(str(name))):
                raise ValueError(f"no action: {name!r}")
            return action

    def _is_due(self, action, step, address=None):
        if not action.times:
            return True
        self._seen[step, address] += 1
        return self._seen[step, address] <= action.times

    def opened(self, session):
        with self._changed:
            self._live.add(session)
            self.sessions += 1
            self.max_open = max(self.max_open, len(self._live))
            self._changed.notify_all()
            return self.sessions

    def closed(self, session):
        with self._changed:
            self._live.discard(session)
            self._changed.notify_all()

    def note(self, name, what):
        with self._changed:
            getattr(self, name).append(what)
            self._changed.notify_all()

    def took(self, session, data):
        mail = Mail(
            session.from_addr, tuple(session.recipients), data,
            session.mail_options, session.recipients, session.number,
            time.monotonic())
        if self._log:
            self._log.write(self._log_line(mail))
        with self._changed:
            self.count += 1
            if self.keep:
                self.received.append(mail)
            if self.count in self.fail_after:
                self.script.update(self.fail_after[self.count])
            self._changed.notify_all()

    def _log_line(self, mail):
        return json.dumps({
                'time': time.time(),
                'message_id': mail.message_id,
                'from': mail.from_addr,
                'to': mail.to_addrs,
                'size': len(mail.data),
                'port': self.port,
                'session': mail.session,
                }).encode() + b'\n'


def read_log(path):
    "Return the mails in a log as dictionaries, in the order of their arrival"
    with open(path) as log:
        return [json.loads(line) for line in log if line.endswith('\n')]


class Certificates(NamedTuple):
    "Paths; each of the last three is (certfile, keyfile)"
    ca: str
    good: tuple  # localhost and 127.0.0.1
    wrong_name: tuple
    expired: tuple


def make_certificates(directory):
    "Make a CA and certificates that it has signed, by the command openssl"
    def path(name):
        return os.path.join(directory, name)

    def openssl(*args, **kwargs):
        subprocess.run(
            ['openssl', *args], check=True, capture_output=True, text=True,
            **kwargs)

    def request(name, *args):
        openssl(
            'req', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256',
            '-nodes', '-subj', f'/CN={name}', '-keyout', path(f'{name}.key'),
            *args)

    def certificate(name, alt_names, days):
        request(name, '-out', path(f'{name}.csr'))
        openssl(
            'x509', '-req', '-in', path(f'{name}.csr'), '-days', days,
            '-CA', path('ca.pem'), '-CAkey', path('ca.key'),
            '-CAcreateserial', '-extfile', '/dev/stdin',
            '-out', path(f'{name}.pem'), input=(
                'basicConstraints = critical, CA:FALSE\n'
                'subjectKeyIdentifier = hash\n'
                'authorityKeyIdentifier = keyid\n'
                f'subjectAltName = {alt_names}\n'))
        return path(f'{name}.pem'), path(f'{name}.key')

    request(
        'ca', '-x509', '-days', '3650', '-out', path('ca.pem'),
        '-addext', 'keyUsage = critical, keyCertSign, cRLSign')
    here = 'DNS:localhost, IP:127.0.0.1'
    return Certificates(
        path('ca.pem'),
        certificate('good', here, '3650'),
        certificate('wrong_name', 'DNS:mail.example.org', '3650'),
        certificate('expired', here, '-1'))


def main(args=None):
    "Serve until this process is killed, or until its parent is gone"
    def literal(text):
        try:
            return ast.literal_eval(text)
        except (SyntaxError, ValueError):
            return text

    parser = argparse.ArgumentParser(
        description="An SMTP server for tests; options as of the class Server")
    for option in fields(Server):
        kind = {'type': literal}
        if option.type is bool:
            kind = {'action': argparse.BooleanOptionalAction}
        parser.add_argument(
            f'--{option.name.replace("_", "-")}', default=argparse.SUPPRESS,
            **kind)
    options = {'keep': False, **vars(parser.parse_args(args))}
    with Server(**options) as server:
        print('ready', server.port, flush=True)
        parent = os.getppid()
        while os.getppid() == parent:
            time.sleep(.5)


if __name__ == '__main__':
    main()
