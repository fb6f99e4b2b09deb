# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""From what a caller gives to envelope and bytes, and from bytes to words.

Knows no database and no SMTP server.
"""
import copy
import quopri
import re
from email.errors import (
    HeaderParseError, NonASCIILocalPartDefect, ObsoleteHeaderDefect)
from email.generator import BytesGenerator
from email.header import Header, decode_header, make_header
from email.headerregistry import HeaderRegistry
from email.message import Message
from email.utils import formatdate, make_msgid
from io import BytesIO

import idna

__all__ = [
    'ArgumentError', 'addresses', 'describe', 'envelope_recipients',
    'envelope_sender', 'options', 'prepare', 'recipients', 'sender',
    'split_addresses']

NULL_SENDER = '<>'

# What Postfix removes by default (message_drop_headers)
DROPPED_FIELDS = {b'bcc', b'content-length', b'resent-bcc', b'return-path'}
# RFC 5322 2.1.1
LINE_LENGTH = 998
# RFC 5321 4.5.3.1.1 and 4.5.3.1.2
LOCAL_PART_LENGTH, DOMAIN_LENGTH = 64, 255

_field_name = re.compile(rb'([!-9;-~]+)[ \t]*:')
# RFC 5321 4.1.2, esmtp-param
_option = re.compile(r'[A-Za-z0-9][A-Za-z0-9-]*(=[!-<>-~]+)?')
# An address in no need of a parser: the mailbox of RFC 5321 4.1.2 without
# quotes and literals, more generous than it with dots as some mailboxes are
_atext = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]"
_plain_address = re.compile(rf'{_atext}+@[A-Za-z0-9._-]+')
_dot_string = re.compile(rf'(?:{_atext}|[^\x00-\x7f])+')
_quoted_string = re.compile(r'"(?:[^"\\\x00-\x1f\x7f]|\\[ -~])*"')
_label = re.compile(r'[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?')
_literal = re.compile(r'\[[A-Za-z0-9:.-]+\]')
_control = re.compile(r'[\x00-\x1f\x7f]')
_address_part = re.compile(r'(?:"(?:\\.|[^"\\])*"|[^,"])+')
_headers = HeaderRegistry()


class ArgumentError(ValueError):
    """An argument that cannot be queued.

    ``argument`` is its name, ``value`` what is wrong with it as text and
    ``reason`` the name of one of the module's messages.
    """

    def __init__(self, argument, value, reason):
        super().__init__(argument, value, reason)
        self.argument = argument
        self.value = value if isinstance(value, str) else repr(value)
        self.reason = reason


# From the caller to the envelope


def sender(from_addr):
    """Return the bare address of the envelope's sender.

    ``<>`` is the null sender (RFC 5321 4.5.5).
    """
    if not isinstance(from_addr, str):
        raise ArgumentError('from_addr', from_addr, 'msg_address_invalid')
    if from_addr.strip() == NULL_SENDER:
        return NULL_SENDER
    found = addresses('from_addr', from_addr)
    if not found:
        raise ArgumentError('from_addr', from_addr, 'msg_sender_missing')
    if len(found) > 1:
        raise ArgumentError('from_addr', from_addr, 'msg_address_several')
    return found[0]


def recipients(to_addrs):
    """Return the list of the envelope's bare addresses, each once, in order.

    A string may hold several addresses, an item of an iterable just one.
    """
    if isinstance(to_addrs, str):
        found = addresses('to_addrs', to_addrs)
    else:
        try:
            items = list(to_addrs)
        except TypeError:
            raise ArgumentError('to_addrs', to_addrs, 'msg_address_invalid')
        found = []
        for item in items:
            parsed = addresses('to_addrs', item)
            if not parsed:
                raise ArgumentError('to_addrs', item, 'msg_address_invalid')
            if len(parsed) > 1:
                raise ArgumentError('to_addrs', item, 'msg_address_several')
            found += parsed
    if not found:
        raise ArgumentError('to_addrs', to_addrs, 'msg_recipient_missing')
    once = {}
    for address in found:
        local, _, domain = address.rpartition('@')
        once.setdefault((local, domain.lower()), address)
    return list(once.values())


def addresses(argument, text):
    """Return the bare addresses of ``text`` (RFC 5322 3.4), in order.

    A domain that is not ASCII is converted by IDNA 2008.
    """
    if not isinstance(text, str):
        raise ArgumentError(argument, text, 'msg_address_invalid')
    if _control.search(text):
        raise ArgumentError(argument, repr(text), 'msg_address_control')
    if _plain_address.fullmatch(text):
        return [_checked(argument, text, text)]
    return [_checked(argument, text, a) for a in _parsed(argument, text)]


def _parsed(argument, text):
    try:
        header = _headers('To', text)
        found = [a.addr_spec for a in header.addresses]
    except Exception:
        # The standard library's parser runs past the end of some inputs
        raise ArgumentError(argument, text, 'msg_address_invalid')
    for defect in header.defects:
        if not isinstance(
                defect, (ObsoleteHeaderDefect, NonASCIILocalPartDefect)):
            raise ArgumentError(argument, text, 'msg_address_invalid')
    for address in found:
        # What was decoded or put together is not what was asked for
        if address not in text:
            raise ArgumentError(argument, text, 'msg_address_invalid')
    return found


def _checked(argument, text, address):
    local, _, domain = address.rpartition('@')
    try:
        domain = _ascii_domain(domain)
        octets = len(local.encode('utf-8'))
    except UnicodeError:
        raise ArgumentError(argument, text, 'msg_address_invalid')
    if (not (_dot_string.fullmatch(local) or _quoted_string.fullmatch(local))
            or octets > LOCAL_PART_LENGTH
            or len(domain) > DOMAIN_LENGTH
            or not (_literal.fullmatch(domain)
                or all(map(_label.fullmatch, domain.split('.'))))):
        raise ArgumentError(argument, text, 'msg_address_invalid')
    return f'{local}@{domain}'


def _ascii_domain(domain):
    if domain.isascii():
        return domain
    # Python's own codec is IDNA 2003, for which straße is strasse
    return idna.encode(domain, uts46=True, transitional=False).decode('ascii')


def split_addresses(text):
    "Return the list of addresses that are joined by commas in ``text``"
    return [a.strip() for a in _address_part.findall(text or '') if a.strip()]


def options(argument, values):
    "Return the list of ESMTP parameters (RFC 5321 4.1.2) of ``values``"
    if isinstance(values, str):
        values = [values]
    try:
        values = list(values)
    except TypeError:
        raise ArgumentError(argument, values, 'msg_option_invalid')
    found = []
    for value in values:
        if not isinstance(value, str):
            raise ArgumentError(argument, value, 'msg_option_invalid')
        for option in value.split(' '):
            if not _option.fullmatch(option):
                raise ArgumentError(
                    argument, repr(value), 'msg_option_invalid')
            found.append(option)
    return found


def envelope_sender(message):
    """Return the sender that the headers of ``message`` name.

    The first address of *Sender*, else of *From*; of the resent block where
    there is one (RFC 5322 3.6.6). As ``smtplib.SMTP.send_message`` does.
    """
    prefix = _resent(message)
    for name in ['Sender', 'From']:
        if found := _header_addresses(
                'from_addr', message, f'{prefix}{name}'):
            return found[0]
    raise ArgumentError('from_addr', '', 'msg_sender_missing')


def envelope_recipients(message):
    "Return the addresses of *To*, *Cc* and *Bcc*, see :func:`envelope_sender`"
    prefix = _resent(message)
    found = []
    for name in ['To', 'Cc', 'Bcc']:
        found += _header_addresses('to_addrs', message, f'{prefix}{name}')
    return found


def _resent(message):
    if not isinstance(message, Message):
        raise ArgumentError('msg', type(message).__name__, 'msg_message_type')
    resent = message.get_all('Resent-Date') or []
    if len(resent) > 1:
        raise ArgumentError('msg', 'Resent-Date', 'msg_message_resent')
    return 'Resent-' if resent else ''


def _header_addresses(argument, message, name):
    found = []
    for value in message.get_all(name) or []:
        # A decoded name could hold a comma
        text = value.encode() if isinstance(value, Header) else str(value)
        found += addresses(argument, _unfolded(text))
    return found


def _unfolded(text):
    return re.sub(r'\r?\n(?=[ \t])', '', text).replace('\t', ' ')


# From the caller to the bytes


def prepare(msg, host, utf8=False):
    """Return the bytes that go over the wire for ``msg``.

    :param msg: ``bytes``, an ASCII ``str`` or a ``Message``, which is not
        modified.
    :param host: the domain of a Message-ID that has to be added.
    :param utf8: whether header fields may hold UTF-8 (RFC 6532).
    """
    if isinstance(msg, Message):
        data = _serialised(msg, utf8)
    elif isinstance(msg, str):
        try:
            data = msg.encode('ascii')
        except UnicodeEncodeError as error:
            raise ArgumentError(
                'msg', repr(msg[error.start]), 'msg_message_ascii')
    elif isinstance(msg, (bytes, bytearray, memoryview)):
        data = bytes(msg)
    else:
        raise ArgumentError('msg', type(msg).__name__, 'msg_message_type')
    return _with_fields(_without_mbox_line(_with_crlf(data)), host)


def _serialised(message, utf8):
    policy = message.policy.clone(cte_type='7bit')
    if utf8 and hasattr(policy, 'utf8'):
        policy = policy.clone(utf8=True)
    stream = BytesIO()
    try:
        # The generator sets missing boundaries on the message that it gets
        message = copy.deepcopy(message)
        _encode_long_lines(message)
        BytesGenerator(stream, mangle_from_=False, policy=policy).flatten(
            message)
    except Exception as error:
        # A message can hold any object in any place
        raise ArgumentError(
            'msg', f'{type(error).__name__}: {error}', 'msg_message_broken')
    return stream.getvalue()


def _encode_long_lines(message):
    if message.get_content_type() == 'multipart/signed':
        # RFC 1847: a changed part is a broken signature
        return
    if message.is_multipart():
        for part in message.get_payload():
            _encode_long_lines(part)
        return
    encoding = str(message.get('Content-Transfer-Encoding', '')).lower()
    payload = message.get_payload()
    if (encoding.strip() in {'', '7bit', '8bit'}
            and isinstance(payload, str)
            and any(len(line) > LINE_LENGTH
                for line in payload.split('\n'))):
        payload = quopri.encodestring(message.get_payload(decode=True))
        message.set_payload(payload.decode('ascii'))
        del message['Content-Transfer-Encoding']
        message['Content-Transfer-Encoding'] = 'quoted-printable'


def _with_crlf(data):
    data = data.replace(b'\r\n', b'\n').replace(b'\r', b'\n')
    if data and not data.endswith(b'\n'):
        data += b'\n'
    return data.replace(b'\n', b'\r\n')


def _without_mbox_line(data):
    if data.startswith(b'From '):
        return data[data.index(b'\r\n') + 2:]
    return data


def _with_fields(data, host):
    fields, end = _header(data)
    names = {name for name, value in fields if _value(value)}
    kept = [
        value for name, value in fields
        if name not in DROPPED_FIELDS
        and not (name == b'message-id' and name not in names)]
    added = []
    if b'message-id' not in names:
        added.append(f'Message-ID: {make_msgid(domain=host)}\r\n')
    if b'date' not in {name for name, _ in fields}:
        added.append(f'Date: {formatdate()}\r\n')
    if not fields and not data.startswith(b'\r\n'):
        added.append('\r\n')
    if not added and len(kept) == len(fields):
        return data
    return b''.join(
        [''.join(added).encode('ascii'), *kept, memoryview(data)[end:]])


def _header(data):
    """Return the fields of the header block and where it ends.

    A field is its name in lower case and all of its bytes.
    """
    fields, position = [], 0
    while position < len(data):
        end = data.index(b'\r\n', position) + 2
        line = data[position:end]
        if fields and line[:1] in b' \t':
            name, value = fields[-1]
            fields[-1] = name, value + line
        elif match := _field_name.match(line):
            fields.append((match[1].lower(), line))
        else:
            break
        position = end
    return fields, position


def _value(field):
    return field.partition(b':')[2].strip()


# From the bytes to words


def describe(data):
    """Return the decoded *Subject* and the *Message-ID* of stored bytes.

    Both are one line of printable text, empty where there is none.
    """
    fields, _ = _header(data)
    fields = dict(reversed(fields))
    return (
        decoded(fields.get(b'subject', b'')),
        decoded(fields.get(b'message-id', b'')))


def decoded(field):
    "Return the value of a header field's bytes as one line of text"
    value = _value(field)
    try:
        text = value.decode('utf-8')
    except UnicodeDecodeError:
        text = value.decode('latin-1')
    text = _unfolded(text)
    try:
        text = str(make_header(decode_header(text)))
    except (HeaderParseError, LookupError, ValueError):
        # As it stands is better than not at all
        pass
    text = text.encode('utf-8', 'replace').decode('utf-8')
    text = ''.join(c if c.isprintable() else ' ' for c in text)
    return ' '.join(text.split())[:LINE_LENGTH]
