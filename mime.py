# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What a caller gives → the bytes that go over the wire.

This file knows no database and no SMTP server. It writes the bytes of a
``Message`` itself, because the generators of the standard library damage
fields when they fold them (cpython#79986, #83938, #100884, #121284) and encode
a body in 8 bits again.
"""
import base64
import quopri
import random
import re
from email.header import Header
from email.message import Message
from email.utils import encode_rfc2231, formatdate, make_msgid

from .address import Invalid, header_addresses, on_the_wire, raw_values
from .words import (
    LINE_LENGTH, decoded_words, in_charset, printable, unfolded, unquoted,
    with_domains)

# The fields that Postfix removes by default (message_drop_headers)
DROPPED_FIELDS = {b'bcc', b'content-length', b'resent-bcc', b'return-path'}
# A line of more characters is folded (RFC 5322 2.1.1)
FOLD_LENGTH = 78
# How many bytes of a value are decoded: more than a subject of LINE_LENGTH
# characters has in any encoding
ENCODED_LENGTH = 32 * LINE_LENGTH
# Fields whose values are lists of addresses, or a name before angle brackets
ADDRESS_FIELDS = {
    *(f'{prefix}{name}' for prefix in ['', 'resent-'] for name in [
        'from', 'sender', 'reply-to', 'to', 'cc', 'bcc']),
    'disposition-notification-to', 'errors-to', 'mail-followup-to',
    'mail-reply-to', 'on-behalf-of', 'return-receipt-to', 'x-original-to',
    'list-id'}
# Fields whose values have parameters (RFC 2045 5.1, RFC 2183 2)
PARAMETER_FIELDS = {'content-type', 'content-disposition'}
# Fields whose values must not contain encoded words (RFC 2047 5)
STRUCTURED_FIELDS = {
    'arc-authentication-results', 'arc-message-signature', 'arc-seal',
    'authentication-results', 'autocrypt', 'content-id', 'content-location',
    'content-transfer-encoding', 'date', 'dkim-signature', 'feedback-id',
    'in-reply-to', 'list-archive', 'list-help', 'list-owner', 'list-post',
    'list-subscribe', 'list-unsubscribe', 'list-unsubscribe-post',
    'message-id', 'mime-version', 'received', 'references', 'resent-date',
    'resent-message-id', 'return-path'}
# Fields that RFC 5322 3.6 allows once, with the text that joins their values,
# None where different values are an error
ONCE = {
    'from': ', ', 'reply-to': ', ', 'to': ', ', 'cc': ', ', 'bcc': ', ',
    'in-reply-to': ' ', 'references': ' ', 'sender': None, 'subject': None,
    'message-id': None, 'date': None, 'mime-version': None,
    'content-type': None, 'content-transfer-encoding': None}
# The encoding for each value of Content-Transfer-Encoding, and for usual
# misspellings. It is empty for values that say "not encoded" (RFC 2045 6.1).
ENCODINGS = {
    '': '', '7bit': '', '7-bit': '', '8bit': '', '8-bit': '',
    'binary': 'binary',
    'base64': 'base64', 'quoted-printable': 'quoted-printable'}
BOM = b'\xef\xbb\xbf'

_field_name = re.compile(rb'([!-9;-~]+)[ \t]*:')
_one_field = re.compile(
    rb'([!-9;-~]+)[ \t]*:[^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*')
_line_end = re.compile(r'\r\n?|\n')
_empty_lines = re.compile(rb'(?:\r\n)+(?=[ \t])')
_piece = re.compile(r'[ \t]*[^ \t]+|[ \t]+')
_listed = re.compile(r'(?:"(?:\\.|[^"\\])*"|[^,"]|")*,?')
_parameter = re.compile(
    r';[ \t]*([^\s=;"]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*(?:"|\Z)|[^;]*)')
# An item of an address field. Names and comments can become encoded words;
# other items cannot (RFC 2047 5).
_address_token = re.compile(
    r'"(?:[^"\\]|\\.)*"(?!@)|\((?:[^()\\]|\\.)*\)|<[^<>]*>|[,:;]|[^"(<,:;]+|.')
_quoted_string = re.compile(r'"(?:[^"\\]|\\.)*"')
_eight_bit = re.compile(rb'[\x80-\xff]')


def prepare(msg, host, due=None):
    """Return the bytes that go over the wire for ``msg``.

    :param msg: ``bytes``, an ASCII ``str`` or a ``Message``, which is not
        modified.
    :param host: the domain of a Message-ID that has to be added.
    :param due: the seconds since the epoch of a *Date* that has to be added,
        None for now.
    :raises Invalid: ``msg`` cannot be sent.
    """
    if isinstance(msg, Message):
        data = _serialised(msg)
    elif isinstance(msg, str):
        try:
            data = msg.encode('ascii')
        except UnicodeEncodeError as error:
            raise Invalid(
                'msg', repr(msg[error.start]), 'msg_message_ascii')
    elif isinstance(msg, (bytes, bytearray, memoryview)):
        data = bytes(msg)
    else:
        raise Invalid('msg', type(msg).__name__, 'msg_message_type')
    data = _without_bom(with_crlf(data))
    return _with_fields(_without_mbox_line(data), host, due)


# A Message as bytes


def _serialised(message):
    try:
        fields, body = _fields_and_body(message)
        header = b''.join(_field(*field) for field in _once(fields))
        return header + b'\n' + body
    except Invalid:
        raise
    except Exception as error:
        # Any object, which can raise anything, may be a part or the value of
        # a field
        raise Invalid(
            'msg', f'{type(error).__name__}: {error}', 'msg_message_broken')


def _message(message, signed=False):
    """Return the bytes of a message or of one of its parts.

    :param signed: whether the part has to stay as it is (RFC 1847 2.1).
    """
    fields, body = _fields_and_body(message, signed)
    header = b''.join(_field(name, value, signed) for name, value in fields)
    return header + b'\n' + body


def _fields_and_body(message, signed=False):
    body, changed = _body(message, signed)
    fields = []
    for name, value in message.raw_items():
        key = name.lower()
        if key in changed:
            # The first of several fields of one name gets the new value, the
            # others go
            value, changed[key] = changed[key], None
            if value is None:
                continue
        fields.append((name, value))
    names = {name.lower() for name, _ in fields}
    fields += [
        (name.title(), value) for name, value in changed.items()
        if name not in names]
    return fields, body


def _body(message, signed):
    "Return the bytes of the body, and the fields that it changes, by name"
    payload = message._payload
    if payload is None:
        return b'', {}
    if isinstance(payload, list):
        if _type(message).startswith('message/'):
            return _encapsulated(message, payload, signed), {}
        return _multipart(message, payload, signed)
    if not isinstance(payload, str):
        raise TypeError(f"a payload of {type(payload).__name__}")
    data = _raw(payload)
    if signed or _type(message).startswith('multipart/'):
        return data, {}
    return _encoded(message, data)


def _type(message):
    "Return the type of a part in lower case, without parsing its parameters"
    for value in raw_values(message, 'Content-Type'):
        type_ = str(value).partition(';')[0].strip().lower()
        return type_ if type_.count('/') == 1 else 'text/plain'
    return message.get_default_type()


def _encapsulated(message, parts, signed):
    if _type(message) == 'message/delivery-status':
        # The parts are blocks of fields, with blank lines between them
        # (RFC 3464 2.1)
        return b'\n'.join(_block(part, signed) for part in parts)
    return b''.join(_message(part, signed=signed) for part in parts)


def _block(part, signed):
    "Return a block of fields with one line end, or the text in its place"
    data = _message(part, signed=signed)
    fields, end = header_fields(with_crlf(data))
    return data.rstrip(b'\n') + b'\n' if end else data.removeprefix(b'\n')


def _multipart(message, parts, signed):
    signed = signed or _type(message) == 'multipart/signed'
    texts = [_message(part, signed=signed) for part in parts]
    boundary, changed = _boundary(message, texts)
    chunks = []
    if message.preamble is not None:
        chunks += [_raw(message.preamble), b'\n']
    for number, text in enumerate(texts or [b'']):
        chunks += [b'\n' if number else b'', b'--', boundary, b'\n', text]
    chunks += [b'\n--', boundary, b'--\n']
    if message.epilogue is not None:
        chunks.append(_raw(message.epilogue))
    return b''.join(chunks), changed


def _raw(text):
    return text.encode('ascii', 'surrogateescape')


def _boundary(message, texts):
    "Return the boundary, and the field that must name it if it is new"
    type_ = _text_of('content-type', next(
            iter(raw_values(message, 'Content-Type')), ''))
    for match in _parameter.finditer(unfolded(type_)):
        if match[1].lower() == 'boundary':
            if value := unquoted(match[2].strip()):
                return value.encode('utf-8', 'surrogateescape'), {}
    boundary = message.get_boundary()
    if boundary:
        return boundary.encode('utf-8', 'replace'), {}
    while True:
        boundary = f'{"=" * 15}{random.randrange(10 ** 19):019}=='
        if not any(boundary.encode('ascii') in text for text in texts):
            break
    type_ = type_ or 'multipart/mixed'
    return boundary.encode('ascii'), {
        'content-type': f'{type_.rstrip("; ")}; boundary="{boundary}"'}


def _encoded(message, data):
    """Return a body in lines of ASCII, and the fields that have to change.

    A body that is in lines of ASCII already stays as it is.
    """
    values = raw_values(message, 'Content-Transfer-Encoding')
    field = str(values[0]) if values else ''
    encoding = ENCODINGS.get(re.split(r'[\s;(]', field.strip())[0].lower())
    is_plain = data.isascii() and b'\0' not in data
    is_long = LINE_LENGTH < max(
        map(len, data.replace(b'\r', b'\n').split(b'\n')))
    if encoding is None:
        # A body in an unknown encoding stays, because it cannot be decoded
        return data, {}
    if is_plain and not is_long and encoding != 'binary':
        return data, {}
    if encoding == 'base64':
        return _lines_of_base64(data), {}
    if encoding == 'quoted-printable':
        data = _eight_bit.sub(lambda m: b'=%02X' % m[0][0], data)
        return _lines_of_quoted_printable(data.replace(b'\0', b'=00')), {}
    if encoding == 'binary' or not _type(message).startswith('text/'):
        data, encoding = base64.encodebytes(data), 'base64'
    else:
        data, encoding = quopri.encodestring(data), 'quoted-printable'
        data = data.replace(b'\0', b'=00')
    return data, {'content-transfer-encoding': encoding}


def _lines_of_base64(data):
    # Other bytes have no meaning in base64 (RFC 2045 6.8)
    data = re.sub(rb'[^A-Za-z0-9+/=\r\n]', b'', data)
    return re.sub(rb'([^\r\n]{76})(?=[^\r\n])', rb'\1\n', data)


def _lines_of_quoted_printable(data):
    lines = []
    for line in data.split(b'\n'):
        while len(line) > LINE_LENGTH:
            # A line must not end within an encoded byte
            cut = 70 - next(
                (n for n in [1, 2] if line[70 - n:71 - n] == b'='), 0)
            lines.append(line[:cut] + b'=')
            line = line[cut:]
        lines.append(line)
    return b'\n'.join(lines)


# A field of the header


def _once(fields):
    "Return the fields of a header, each name of ``ONCE`` with one value"
    values = {}
    for name, value in fields:
        values.setdefault(name.lower(), []).append(value)
    kept = []
    for name, value in fields:
        key = name.lower()
        repeated = values[key]
        if key in ONCE and len(repeated) != 1:
            if not repeated:
                continue
            value, values[key] = _joined(name, repeated), []
        kept.append((name, value))
    return kept


def _joined(name, values):
    key = name.lower()
    texts = list(dict.fromkeys(
            unfolded(_text_of(key, value)).strip() for value in values))
    if ONCE[key] is None and len(texts) > 1:
        raise Invalid('msg', name, 'msg_message_twice')
    return (ONCE[key] or '').join(filter(None, texts))


def _field(name, value, signed=False):
    "Return the bytes of a field, with a line end after each of its lines"
    key = name.strip().lower()
    text = _text_of(key, value)
    if '\0' in text:
        raise Invalid('msg', name, 'msg_message_nul')
    if signed and type(value) is str:
        data = f'{name}: {text}\n'.encode('utf-8', 'surrogateescape')
    else:
        data = _folded(name, _in_ascii(key, text))
    data = _empty_lines.sub(b'\r\n', with_crlf(data))
    match = _one_field.fullmatch(data)
    if not match or match[1].decode('ascii').lower() != key:
        raise ValueError(f"{name!r} is not one field in the header")
    return data.replace(b'\r\n', b'\n')


def _text_of(key, value):
    "Return the text of a field's value, as the caller or the parser made it"
    if isinstance(value, Header):
        if key in ADDRESS_FIELDS:
            return header_addresses(value)
        return value.encode(linesep='\n')
    if not isinstance(value, str):
        raise TypeError(f"a value of {type(value).__name__}")
    text = str(value).rstrip('\r\n')
    if hasattr(value, 'fold') and key in PARAMETER_FIELDS:
        if not text.isascii():
            return _text_of_parameters(value)
    return text


def _text_of_parameters(value):
    "Return the text of a value that the standard library has parsed"
    type_ = str(value).partition(';')[0].strip()
    return type_ + ''.join(
        f'; {name}={_quoted(param)}' for name, param in value.params.items())


def _quoted(text):
    return '"%s"' % re.sub(r'([\\"])', r'\\\1', text)


def _in_ascii(key, text):
    """Return the text of a field as ASCII, with encoded words where allowed.

    In a field that may have no encoded words, other characters than ASCII and
    raw bytes stay.
    """
    try:
        # Surrogates are the raw bytes of a parsed message
        text = text.encode('utf-8', 'surrogateescape').decode('utf-8')
    except UnicodeDecodeError:
        return text
    is_text = not (
        key in ADDRESS_FIELDS or key in PARAMETER_FIELDS
        or key in STRUCTURED_FIELDS)
    if key in STRUCTURED_FIELDS or text.isascii() and not (
            is_text and _has_overlong_word(text)):
        return text
    text = unfolded(text)
    if key in ADDRESS_FIELDS:
        return _address_list(text)
    if key in PARAMETER_FIELDS:
        return _parameters(text)
    return _encoded_words(text, len(key) + 2)


def _has_overlong_word(text):
    "Return whether a word is too long for a line of RFC 5322 2.1.1"
    return len(text) > LINE_LENGTH - FOLD_LENGTH and max(
        map(len, text.split())) > LINE_LENGTH - FOLD_LENGTH


def _encoded_words(text, used=0):
    """Return the encoded words for ``text``, one on each line.

    :param used: how many characters of the first line the field's name takes.
    """
    return Header(
        text, 'utf-8', maxlinelen=76, header_name='x' * min(used, 40)
        ).encode(linesep='\n')


def _address_list(text):
    "Return a list of addresses, of which only names and comments are encoded"
    chunks, pending = [], []
    for token in _address_token.findall(text):
        if token[0] == '<':
            chunks.append(_phrase(''.join(pending)))
            chunks.append(f'<{_addresses_on_the_wire(token[1:-1])}>')
            pending = []
        elif token == ':':
            # A colon ends the name of a group (RFC 5322 3.4)
            chunks += [_phrase(''.join(pending)).rstrip(), token]
            pending = []
        elif token in {',', ';'} or token[0] == '(' and len(token) > 1:
            chunks.append(_addresses_on_the_wire(''.join(pending)))
            chunks.append(_comment(token))
            pending = []
        else:
            pending.append(token)
    chunks.append(_addresses_on_the_wire(''.join(pending)))
    return ''.join(chunks)


def _phrase(text):
    "Return the name of an address, with encoded words if it is not ASCII"
    if text.isascii():
        return text
    lead = ' ' if text[0].isspace() else ''
    text = _quoted_string.sub(lambda m: unquoted(m[0]), text.strip())
    return f'{lead}{_encoded_words(text)} '


def _comment(token):
    if token.isascii():
        return token
    return f'({_encoded_words(token[1:-1])})'


def _addresses_on_the_wire(text):
    "Return ``text`` with each address in it as ``on_the_wire`` returns it"
    return ' '.join(
        on_the_wire(word) if '@' in word and not word.isascii() else word
        for word in text.split(' '))


def _parameters(text):
    "Return a value with its parameters encoded by RFC 2231 if not ASCII"
    def written(match):
        name, value = match[1], match[2].strip()
        if value.isascii():
            return match[0]
        value = encode_rfc2231(unquoted(value), 'utf-8')
        return f'; {name.rstrip("*")}*={value}'

    return _parameter.sub(written, text)


def _folded(name, text):
    """Return the bytes of a field, folded at blanks where a line is long.

    Blanks stay what they are (RFC 5322 2.2.3), so that nothing changes when
    the field is unfolded.
    """
    is_list = name.strip().lower() in ADDRESS_FIELDS
    lines = []
    for line in _line_end.split(f'{name}: {text}'):
        lines += _folded_line(line, is_list)
    return ('\n'.join(lines) + '\n').encode('utf-8', 'surrogateescape')


def _folded_line(line, is_list):
    if len(line) <= FOLD_LENGTH:
        return [line]
    lines, current = [], ''
    for piece in _pieces(line, is_list):
        # The name of the field must not be alone on the first line
        if (current.strip() and not (not lines and current.endswith(':'))
                and len(current) + len(piece) > FOLD_LENGTH
                and piece[0] in ' \t' and piece.strip()):
            lines.append(current)
            current = ''
        current += piece
    return [*lines, current]


def _pieces(line, is_list):
    """Yield the words of a line.

    A long list of addresses without blanks is split after its commas.
    """
    for piece in _piece.findall(line):
        if not is_list or len(piece) <= LINE_LENGTH - FOLD_LENGTH:
            yield piece
            continue
        first, *others = filter(None, _listed.findall(piece))
        yield first
        for item in others:
            yield f' {item}'


# The header of the bytes


def with_crlf(data):
    "Return bytes with CRLF at the end of every line, of the last one, too"
    data = data.replace(b'\r\n', b'\n').replace(b'\r', b'\n')
    if data and not data.endswith(b'\n'):
        data += b'\n'
    return data.replace(b'\n', b'\r\n')


def _without_bom(data):
    rest = data.removeprefix(BOM)
    # A byte order mark before a header goes; before a text it is part of the
    # text
    is_header = _field_name.match(rest) or rest.startswith(b'From ')
    return rest if is_header else data


def _without_mbox_line(data):
    # "From :" begins a field, because a field can have blanks before its colon
    # (RFC 5322 4.5)
    if data.startswith(b'From ') and not _field_name.match(data):
        start = data.index(b'\r\n') + 2
        # A text without a header can begin with "From ", too
        if _field_name.match(data, start):
            return data[start:]
    return data


def _with_fields(data, host, due):
    fields, end = header_fields(data)
    names = {name for name, value in fields if value_of(value)}
    kept = [
        value for name, value in fields
        if name not in DROPPED_FIELDS
        and not (name == b'message-id' and name not in names)]
    added = []
    if b'message-id' not in names:
        added.append(f'Message-ID: {make_msgid(domain=host)}\r\n')
    if b'date' not in {name for name, _ in fields}:
        added.append(f'Date: {formatdate(due)}\r\n')
    if not fields and not data.startswith(b'\r\n'):
        added.append('\r\n')
    if not added and len(kept) == len(fields):
        return data
    return b''.join(
        [''.join(added).encode('ascii'), *kept, memoryview(data)[end:]])


def header_fields(data):
    """Return the fields of the header block, and the position of its end.

    Each field is a pair: its name in lower case, and all of its bytes. This
    reader of headers is up to 90 times as fast as the standard library's
    parser, and takes any bytes.

    :param data: the bytes of a message, every line of which ends in CRLF.
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


def with_values(data, values):
    """Return the bytes of a message with other values of some fields.

    :param values: the new text of each field by its name. None takes a field
        out.
    """
    fields, end = header_fields(data)
    new = {
        name.lower().encode('ascii'):
        b'' if text is None else with_crlf(_field(name, text))
        for name, text in values.items()}
    names = set(new)
    kept = []
    for name, field in fields:
        if name in names:
            # The new value replaces all fields of the name
            field = new.pop(name, b'')
        kept.append(field)
    return b''.join([*kept, *new.values(), memoryview(data)[end:]])


def value_of(field):
    "Return the value in the bytes of a field, without blanks around it"
    return field.partition(b':')[2].strip()


def needs_smtputf8(data):
    "Return whether the header of a message is in UTF-8 (RFC 6532 3)"
    if data.isascii():
        return False
    end = data.find(b'\r\n\r\n')
    header = data[:end if end >= 0 else None]
    try:
        return not header.isascii() and bool(header.decode('utf-8'))
    except UnicodeDecodeError:
        return False


def original_to(addresses):
    """Return the bytes of the field *X-Original-To*, one address on each line.

    The field names the recipients of a message that goes to somebody else
    instead. Its lines end in CRLF.
    """
    lines = []
    for address in map(on_the_wire, map(printable, addresses)):
        if not address.isascii() or len(address) > LINE_LENGTH // 2:
            address = Header(address, 'utf-8').encode(linesep='\r\n')
        lines.append(address)
    value = ',\r\n '.join(lines)
    return f'X-Original-To: {value}\r\n'.encode('ascii')


def describe(data):
    """Return the decoded *Subject* and the *Message-ID* of stored bytes.

    Both are one line of printable text, empty where the message has no such
    field.
    """
    fields, _ = header_fields(data)
    fields = dict(reversed(fields))
    return (
        decoded(fields.get(b'subject', b'')),
        printable(value_of(fields.get(b'message-id', b'')).decode(
                'utf-8', 'replace')))


def decoded(field):
    "Return the decoded value in the bytes of a field as one line of text"
    text = in_charset(value_of(field)[:ENCODED_LENGTH], None)
    return printable(with_domains(decoded_words(unfolded(text))))
