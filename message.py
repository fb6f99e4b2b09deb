# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""From what a caller gives to envelope and bytes, and from bytes to words.

Knows no database and no SMTP server.
"""
import base64
import binascii
import codecs
import copy
import html
import quopri
import re
from email.errors import (
    HeaderParseError, MessageError, NonASCIILocalPartDefect,
    ObsoleteHeaderDefect)
from email.generator import BytesGenerator
from email.header import Header, decode_header, make_header
from email.message import Message
from email.utils import formatdate, make_msgid
from io import BytesIO
from typing import NamedTuple

import idna

__all__ = [
    'ArgumentError', 'addresses', 'describe', 'envelope_recipients',
    'envelope_sender', 'html_text', 'masked', 'options', 'original_to',
    'prepare', 'printable', 'read', 'recipients', 'remaining', 'sender',
    'split_addresses']

NULL_SENDER = '<>'

# What Postfix removes by default (message_drop_headers)
DROPPED_FIELDS = {b'bcc', b'content-length', b'resent-bcc', b'return-path'}
# RFC 5322 2.1.1
LINE_LENGTH = 998
# RFC 5321 4.5.3.1.1 and 4.5.3.1.2
LOCAL_PART_LENGTH, DOMAIN_LENGTH = 64, 255
# More than a subject of LINE_LENGTH characters takes, however it is encoded
ENCODED_LENGTH = 32 * LINE_LENGTH
# What is looked at to show a message
READ_SIZE, HEADER_SIZE, TEXT_SIZE = 16 * 1024 ** 2, 64 * 1024, 128 * 1024
PARTS, DEPTH, FIELDS = 200, 20, 50
FIELD_SIZE, TAG_LENGTH = 4 * 1024, 2000
SHOWN_FIELDS = {
    name.lower().encode('ascii'): name for name in [
        'From', 'Sender', 'Reply-To', 'To', 'Cc', 'Date', 'Subject',
        'Message-ID', 'In-Reply-To', 'Auto-Submitted', 'List-Id',
        'List-Unsubscribe']}
MIME_FIELDS = {
    b'content-disposition', b'content-transfer-encoding', b'content-type'}
# Codecs of Python for other ends, some of which take quadratic time
NO_CHARSETS = {'idna', 'punycode', 'raw_unicode_escape', 'unicode_escape'}

_field_name = re.compile(rb'([!-9;-~]+)[ \t]*:')
_empty_lines = re.compile(rb'(?:\r\n)+(?=[ \t])')
# RFC 5321 4.1.2, esmtp-param
_option = re.compile(r'[A-Za-z0-9][A-Za-z0-9-]*(=[!-<>-~]+)?')
# More generous with dots than RFC 5321 as some mailboxes are
_dot_string = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.\x80-\U0010ffff-]+")
_quoted_string = re.compile(r'"(?:[^"\\\x00-\x1f\x7f]|\\[ -~])*"')
_label = re.compile(r'[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?')
_literal = re.compile(r'\[[A-Za-z0-9:.-]+\]')
_control = re.compile(r'[\x00-\x1f\x7f]')
_address_part = re.compile(r'(?:"(?:\\.|[^"\\])*"|[^,"])+')
# The list of addresses of RFC 5322 3.4 without blanks in an address, so that
# each is found as it stands. There is just one way to match any text: the time
# is linear.
_quoted = r'"(?:[^"\\]|\\.)*"'
_phrase = rf'(?:{_quoted}|[^"<>,:;@()\\])*'
_atom = r'[^ "<>,:;@()\\[\]]+'
_spec = rf'(?:{_quoted}|{_atom})@(?:\[[^][ "<>,;@()\\]*\]|{_atom})'
_separators = re.compile(r'[ ,]*')
_group = re.compile(rf'{_phrase}:[ ,]*')
_mailbox = re.compile(
    rf'(?:{_phrase}< *(?P<angled>{_spec}) *>|(?P<bare>{_spec}))? *'
    r'(?P<end_of_group>; *)?(?:,|\Z)')
_comment_part = re.compile(r'\\.|[^\\"()]+|.')
_address = re.compile(r'[^\s<>()\[\],;:"@]+@[^\s<>()\[\],;:"@]+')
_answer_code = re.compile(r'\d{3}(?: \d\.\d+\.\d+)?(?!\S)')
_not_base64 = bytes(set(range(256)) - set(
        b'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/'))
_tag = re.compile(r'<(?=[!?/a-zA-Z])')
_tag_name = re.compile(r'/?[a-zA-Z][a-zA-Z0-9]*')
_href = re.compile(
    r'\shref\s*=\s*(?:"([^"]*)"|\'([^\']*)\'|([^\s"\']+))', re.I)
_long_reference = re.compile(r'&#[xX]?[0-9a-fA-F]{8,};?')
_hidden_ends = {
    name: re.compile(rf'</{name}\b[^>]*>', re.I)
    for name in ['script', 'style', 'title']}
_tag_texts = {
    **dict.fromkeys(['br', 'div', 'tr', '/div', '/tr', '/li'], '\n'),
    **dict.fromkeys(
        [f'{end}{name}' for end in ['', '/'] for name in [
            'blockquote', 'h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'hr', 'ol', 'p',
            'pre', 'table', 'ul']],
        '\n\n'),
    'li': '\n- ', 'td': ' ', 'th': ' '}


class ArgumentError(ValueError):
    """An argument that cannot be queued.

    ``argument`` is its name, ``value`` what is wrong with it as printable text
    and ``reason`` the name of one of the module's messages.
    """

    def __init__(self, argument, value, reason):
        super().__init__(argument, value, reason)
        self.argument = argument
        if not (isinstance(value, str) and value.isprintable()):
            value = repr(value)
        self.value = value
        self.reason = reason


# From the caller to the envelope


def sender(from_addr):
    """Return the bare address of the envelope's sender.

    ``<>`` is the null sender (RFC 5321 4.5.5).
    """
    if isinstance(from_addr, str) and from_addr.strip(' ') == NULL_SENDER:
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
        to_addrs = _items('to_addrs', to_addrs, 'msg_address_invalid')
        found = []
        for item in to_addrs:
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


def _items(argument, values, reason):
    if isinstance(values, (bytes, bytearray, memoryview)):
        raise ArgumentError(argument, values, reason)
    try:
        iterator = iter(values)
    except TypeError:
        raise ArgumentError(argument, values, reason)
    return list(iterator)


def addresses(argument, text):
    """Return the bare addresses of ``text`` (RFC 5322 3.4), in order.

    A domain that is not ASCII is converted by IDNA 2008.
    """
    if not isinstance(text, str):
        raise ArgumentError(argument, text, 'msg_address_invalid')
    if _control.search(text):
        raise ArgumentError(argument, text, 'msg_address_control')
    return [_checked(argument, a) for a in _parsed(argument, text)]


def _parsed(argument, text):
    found, position, in_group = [], 0, False
    if '(' in text:
        text = _without_comments(argument, text)
    while position < len(text):
        position = _separators.match(text, position).end()
        if not in_group and (match := _group.match(text, position)):
            in_group, position = True, match.end()
        match = _mailbox.match(text, position)
        if not match or (match['end_of_group'] and not in_group):
            raise ArgumentError(
                argument, text[position:].strip(), 'msg_address_invalid')
        if address := match['angled'] or match['bare']:
            found.append(address)
        if match['end_of_group']:
            in_group = False
        position = match.end()
    if in_group:
        raise ArgumentError(argument, text, 'msg_address_invalid')
    return found


def _without_comments(argument, text):
    "Return ``text`` with a blank for each comment, which can be nested"
    kept, depth, quoted = [], 0, False
    for part in _comment_part.findall(text):
        if part == '(' and not quoted:
            depth += 1
        elif part == ')' and depth:
            depth -= 1
            part = ' '
        elif part == '"' and not depth:
            quoted = not quoted
        if not depth:
            kept.append(part)
    if depth:
        raise ArgumentError(argument, text, 'msg_address_invalid')
    return ''.join(kept)


def _checked(argument, address):
    local, _, domain = address.rpartition('@')
    # Nobody means a blank or a mark without width that is not ASCII
    if (not local.isprintable()
            or len(local.encode('utf-8')) > LOCAL_PART_LENGTH
            or not (_dot_string.fullmatch(local)
                or _quoted_string.fullmatch(local))):
        raise ArgumentError(argument, address, 'msg_address_invalid')
    try:
        domain = _ascii_domain(domain)
    except UnicodeError:
        raise ArgumentError(argument, address, 'msg_address_invalid')
    if (len(domain) > DOMAIN_LENGTH
            or not (_literal.fullmatch(domain)
                or all(map(_label.fullmatch, domain.split('.'))))):
        raise ArgumentError(argument, address, 'msg_address_invalid')
    return f'{local}@{domain}'


def _ascii_domain(domain):
    if domain.isascii() or len(domain) > DOMAIN_LENGTH:
        return domain
    # Python's own codec is IDNA 2003, for which straße is strasse
    return idna.encode(domain, uts46=True, transitional=False).decode('ascii')


def split_addresses(text):
    "Return the list of addresses that are joined by commas in ``text``"
    parts = map(str.strip, _address_part.findall(text or ''))
    return list(filter(None, parts))


def remaining(to_addrs, accepted, refused):
    """Return the recipients that a message has still to go to.

    The arguments are the texts of a record.
    """
    recipients = split_addresses(to_addrs)
    if not (accepted or refused):
        return recipients
    accepted = (accepted or '').split('\n')
    refused = (refused or '').split('\n')
    return [
        a for a in recipients
        if a not in accepted
        and not any(line.startswith(f'{a} ') for line in refused)]


def options(argument, values):
    "Return the list of ESMTP parameters (RFC 5321 4.1.2) of ``values``"
    if isinstance(values, str):
        values = [values]
    found = []
    for value in _items(argument, values, 'msg_option_invalid'):
        if not isinstance(value, str):
            raise ArgumentError(argument, value, 'msg_option_invalid')
        for option in filter(None, value.split(' ')):
            if not _option.fullmatch(option):
                raise ArgumentError(argument, option, 'msg_option_invalid')
            found.append(option)
    return found


def original_to(addresses):
    """Return the header field that names the recipients of a message.

    For one that goes to somebody else instead: the bytes of *X-Original-To*
    with CRLF, one address on each line.
    """
    lines = []
    for address in map(printable, addresses):
        if not address.isascii() or len(address) > LINE_LENGTH // 2:
            address = Header(address, 'utf-8').encode(linesep='\r\n')
        lines.append(address)
    value = ',\r\n '.join(lines)
    return f'X-Original-To: {value}\r\n'.encode('ascii')


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
    resent = _raw_values(message, 'Resent-Date')
    if len(resent) > 1:
        raise ArgumentError('msg', 'Resent-Date', 'msg_message_resent')
    return 'Resent-' if resent else ''


def _raw_values(message, name):
    "Return what is stored in ``message``: to parse it could fail"
    return [
        value for key, value in message.raw_items()
        if str(key).lower() == name.lower()]


def _header_addresses(argument, message, name):
    found = []
    for value in _raw_values(message, name):
        try:
            text = _header_text(value)
        except Exception as error:
            # A message can hold any object in any place
            raise ArgumentError(
                'msg', f'{type(error).__name__}: {error}',
                'msg_message_broken')
        found += addresses(argument, _unfolded(text))
    return found


def _header_text(value):
    "Return the addresses of a header as they were before any decoding"
    if isinstance(value, Header):
        # A decoded name could hold a comma
        return value.encode()
    for defect in getattr(value, 'defects', ()):
        # What is defective is not in its text any more
        if not isinstance(
                defect, (ObsoleteHeaderDefect, NonASCIILocalPartDefect)):
            raise defect
    try:
        return str(value).encode('utf-8', 'surrogateescape').decode('utf-8')
    except UnicodeError:
        return str(value)


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


class _Policy:
    """The policy of a message, whose fields stay where they are.

    Neither is every value free of line ends nor every version of Python free
    of empty lines where it folds: what follows would be in the body, Bcc
    among it.
    """

    def __init__(self, policy):
        self._policy = policy

    def __getattr__(self, name):
        return getattr(self._policy, name)

    def clone(self, **values):
        return type(self)(self._policy.clone(**values))

    def fold_binary(self, name, value):
        data = _with_crlf(self._policy.fold_binary(name, value))
        data = _empty_lines.sub(b'\r\n', data)
        fields, end = _header(data)
        if ([n.decode('ascii') for n, _ in fields] != [name.strip().lower()]
                or end != len(data)):
            raise HeaderParseError(f"{name!r} is not one field in the header")
        return data.replace(b'\r\n', self._policy.linesep.encode('ascii'))


def _serialised(message, utf8):
    stream = BytesIO()
    try:
        policy = message.policy.clone(
            cte_type='7bit',
            max_line_length=min(
                message.policy.max_line_length or LINE_LENGTH, LINE_LENGTH))
        if utf8 and hasattr(policy, 'utf8'):
            policy = policy.clone(utf8=True)
        # The generator sets missing boundaries on the message that it gets
        message = copy.deepcopy(message)
        _encode_bodies(message)
        BytesGenerator(
            stream, mangle_from_=False, policy=_Policy(policy)).flatten(
            message)
    except Exception as error:
        # A message can hold any object in any place
        raise ArgumentError(
            'msg', f'{type(error).__name__}: {error}', 'msg_message_broken')
    return stream.getvalue()


def _encode_bodies(message):
    "Encode what is not in lines of ASCII"
    if message.is_multipart():
        if message.get_content_type() == 'multipart/signed':
            # RFC 1847: a changed part is a broken signature
            return
        for part in message.get_payload():
            _encode_bodies(part)
        return
    # get_payload decodes it
    payload = message._payload
    if not isinstance(payload, str):
        return
    encoding = _transfer_encoding(message)
    is_long = any(len(line) > LINE_LENGTH for line in payload.split('\n'))
    if payload.isascii() and not is_long and encoding != 'binary':
        return
    type_ = message.get_content_maintype()
    if type_ == 'multipart':
        return
    if encoding == 'base64':
        if is_long:
            message.set_payload(
                re.sub(r'([^\n]{76})(?=[^\n])', r'\1\n', payload))
    elif encoding in {'', '7bit', '8bit', 'binary'}:
        data = payload.encode('ascii', 'surrogateescape')
        if encoding == 'binary' or type_ != 'text':
            data, encoding = base64.encodebytes(data), 'base64'
        else:
            data, encoding = quopri.encodestring(data), 'quoted-printable'
        message.set_payload(data.decode('ascii'))
        del message['Content-Transfer-Encoding']
        message['Content-Transfer-Encoding'] = encoding


def _transfer_encoding(message):
    # To have it parsed takes longer than all the rest
    values = _raw_values(message, 'Content-Transfer-Encoding')
    return str(values[0]).strip().lower() if values else ''


def _with_crlf(data):
    data = data.replace(b'\r\n', b'\n').replace(b'\r', b'\n')
    if data and not data.endswith(b'\n'):
        data += b'\n'
    return data.replace(b'\n', b'\r\n')


def _without_mbox_line(data):
    if data.startswith(b'From '):
        start = data.index(b'\r\n') + 2
        # A text without header can begin like this, too
        if _field_name.match(data, start):
            return data[start:]
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
    starts, position = [], 0
    while position < len(data):
        end = data.index(b'\r\n', position) + 2
        if match := _field_name.match(data, position, end):
            starts.append((match[1].lower(), position))
        elif not (starts and data[position] in b' \t'):
            break
        position = end
    ends = [start for _, start in starts[1:]] + [position]
    fields = [
        (name, data[start:end]) for (name, start), end in zip(starts, ends)]
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
    text = _unfolded(text)[:ENCODED_LENGTH]
    try:
        text = str(make_header(decode_header(text)))
    except (MessageError, LookupError, ValueError):
        # As it stands is better than not at all
        pass
    return printable(text)


def printable(text):
    "Return ``text`` as one line that any database can store and index"
    text = text.encode('utf-8', 'replace').decode('utf-8')
    text = ''.join(c if c.isprintable() else ' ' for c in text)
    line = ' '.join(text.split()).encode('utf-8')[:LINE_LENGTH]
    return line.decode('utf-8', 'ignore')


def masked(text, to_addrs, shown, name):
    """Return the words of a server without what tells hidden recipients.

    :param to_addrs: the recipients of the envelope.
    :param shown: the text of those that anyone may read.
    :param name: what takes the place of a line about another.
    """
    shown = {a.lower() for a in _address.findall(shown)}
    hidden = {
        a.lower() for a in split_addresses(to_addrs)
        if a.lower() not in shown}
    if not hidden:
        return text
    # Servers also write the part before the @ alone
    words = {w for a in hidden for w in [a, a.rpartition('@')[0]]}
    words = re.compile(
        r'(?<!\w)(?:%s)(?!\w)' % '|'.join(
            re.escape(w) for w in sorted(words, key=len, reverse=True)),
        re.I)
    lines = []
    for line in text.split('\n'):
        address, _, answer = line.partition(' ')
        if address.lower() in hidden:
            code = _answer_code.match(answer)
            line = f'{name} {code[0] if code else ""}'.rstrip()
        else:
            line = _address.sub(
                lambda m: m[0] if m[0].lower() in shown else '…', line)
            line = words.sub('…', line)
        lines.append(line)
    return '\n'.join(lines)


# From the bytes to what a person reads


class Attachment(NamedTuple):
    name: str
    type: str
    size: int


class Reading(NamedTuple):
    """What a person reads of a message.

    ``headers`` are pairs of name and value, ``complete`` is False where the
    list of attachments is not.
    """
    headers: list
    text: str
    html: str
    attachments: list
    complete: bool


class _Part(NamedTuple):
    fields: list
    mime: Message
    data: bytes

    @property
    def type(self):
        return printable(self.mime.get_content_type())

    @property
    def name(self):
        name = self.mime.get_filename() or ''
        return decoded(b'name:' + name.encode('utf-8', 'replace'))

    @property
    def is_text(self):
        return (
            self.type in {'text/plain', 'text/html'}
            and self.mime.get_content_disposition() != 'attachment'
            and not self.name)

    @property
    def body(self):
        encoding = str(self.mime['Content-Transfer-Encoding']).strip().lower()
        if encoding == 'base64':
            return _from_base64(self.data)
        if encoding == 'quoted-printable':
            return binascii.a2b_qp(self.data)
        return self.data

    @property
    def text(self):
        body = self.body
        text = _in_charset(
            body[:TEXT_SIZE], self.mime.get_content_charset())
        return f'{text}\n…' if len(body) > TEXT_SIZE else text


def read(data):
    """Return the :class:`Reading` of stored bytes, whatever they are.

    Nothing of them is executed or fetched, and what lies after the bounds of
    this module is left out.
    """
    complete = len(data) <= READ_SIZE
    data = _with_crlf(bytes(data[:READ_SIZE]))
    fields, _ = _part_header(data)
    texts = {'text/plain': [], 'text/html': []}
    attachments = []
    for number, part in enumerate(_leaves(data)):
        if number == PARTS:
            complete = False
            break
        if part.is_text:
            if sum(map(len, texts[part.type])) < TEXT_SIZE:
                texts[part.type].append(part.text)
        else:
            attachments.append(
                Attachment(part.name, part.type, len(part.body)))
    return Reading(
        [(SHOWN_FIELDS[name], decoded(field))
            for name, field in fields if name in SHOWN_FIELDS][:FIELDS],
        _tidy('\n'.join(texts['text/plain'])),
        _tidy('\n'.join(map(html_text, texts['text/html']))),
        attachments, complete)


def _leaves(data):
    "Yield the parts of a message that have no parts, in order"
    waiting = [(data, 0)]
    while waiting:
        data, depth = waiting.pop()
        fields, start = _part_header(data)
        mime = _mime(fields)
        boundary = mime.get_boundary() or ''
        parts = []
        if mime.get_content_maintype() == 'multipart' and depth < DEPTH:
            parts = _split(data, start, boundary.encode('utf-8', 'replace'))
        if parts:
            waiting += [(part, depth + 1) for part in reversed(parts)]
        else:
            yield _Part(fields, mime, data[start:])


def _part_header(data):
    "Return the fields of a part and where its body starts"
    # The last line end of a part belongs to the boundary
    fields, end = _header(_with_crlf(data[:HEADER_SIZE]))
    if data.startswith(b'\r\n', end):
        end += 2
    return fields, end


def _mime(fields):
    "Return a ``Message`` of the fields that say what a part is"
    mime = Message()
    fields = dict(reversed(fields))
    for name in fields.keys() & MIME_FIELDS:
        value = _value(fields[name][:FIELD_SIZE]).decode('utf-8', 'replace')
        mime[name.decode('ascii')] = _unfolded(value)
    return mime if _is_sound(mime) else Message()


def _is_sound(mime):
    try:
        mime.get_content_type()
        mime.get_content_charset()
        mime.get_content_disposition()
        mime.get_boundary()
        mime.get_filename()
    except Exception:
        # The standard library expects no such parameters
        return False
    return True


def _split(data, start, boundary):
    "Return the bytes of each part between the lines of the boundary"
    parts, begin = [], None
    if not boundary:
        return parts
    delimiter = re.compile(
        rb'\r\n--%s(--)?[ \t]*(?=\r\n|\Z)' % re.escape(boundary))
    # The first may have the line end of the blank line
    for match in delimiter.finditer(data, max(start - 2, 0)):
        if begin is not None:
            parts.append(data[begin:match.start()])
        if match[1] or len(parts) > PARTS:
            return parts
        begin = match.end() + len(b'\r\n')
    if begin is not None:
        # It ends without a last boundary
        parts.append(data[begin:])
    return parts


def _from_base64(data):
    data = data.translate(None, _not_base64)
    # One character alone is no byte
    data = data[:-1] if len(data) % 4 == 1 else data
    return binascii.a2b_base64(data + b'=' * (-len(data) % 4))


def _in_charset(data, charset):
    try:
        if charset and codecs.lookup(charset).name not in NO_CHARSETS:
            return data.decode(charset, 'replace')
        return data.decode('utf-8')
    except (LookupError, ValueError):
        return data.decode('latin-1')


def html_text(text):
    "Return the text that is in HTML, with the targets of its links"
    chunks, position, target = [], 0, ''
    while match := _tag.search(text, position):
        chunks.append(_html_words(text[position:match.start()]))
        start = match.end()
        is_comment = text.startswith('!--', start)
        end = text.find('-->' if is_comment else '>', start)
        if end < 0:
            break
        position = end + (3 if is_comment else 1)
        match = _tag_name.match(text, start)
        name = match[0].lower() if match else ''
        chunks.append(_tag_texts.get(name, ''))
        if name == 'a':
            target = _target(text[start:min(end, start + TAG_LENGTH)])
        elif name == '/a' and target:
            chunks.append(f' <{target}>')
            target = ''
        elif name in _hidden_ends:
            match = _hidden_ends[name].search(text, position)
            position = match.end() if match else len(text)
    else:
        chunks.append(_html_words(text[position:]))
    return ''.join(chunks)


def _target(tag):
    match = _href.search(tag)
    target = match[match.lastindex] if match else ''
    return '' if target.startswith('#') else _html_words(target).strip()


def _html_words(text):
    text = re.sub(r'\s+', ' ', text)
    return html.unescape(_long_reference.sub('\ufffd', text))


def _tidy(text):
    "Return ``text`` without what can not be shown and without empty space"
    cut = len(text) > TEXT_SIZE
    text = text[:TEXT_SIZE].replace('\r\n', '\n').replace('\r', '\n')
    text = text.encode('utf-8', 'replace').decode('utf-8')
    text = ''.join(
        c if c.isprintable() or c in '\n\t' else ' ' if c.isspace() else ''
        for c in text)
    lines = [line.rstrip() for line in text.split('\n')]
    text = re.sub(r'\n{3,}', '\n\n', '\n'.join(lines)).strip('\n')
    return text + '\n…' if cut else text
