# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What a caller gives → the envelope.

This file knows no database and no SMTP server. It reads addresses itself,
because the reader of the standard library raises RecursionError at "(((". The
reader here takes linear time for any text.
"""
import re
from email.errors import NonASCIILocalPartDefect, ObsoleteHeaderDefect
from email.header import Header
from email.message import Message

import idna

from . import words

NULL_SENDER = '<>'
# In bytes, a bound against nonsense only. RFC 5321 4.5.3.1.1 allows 64, but
# addresses for replies and SRS have more, and the server may take them.
LOCAL_PART_LENGTH = 500
# RFC 5321 4.5.3.1.2
DOMAIN_LENGTH = 255
# An ESMTP parameter (RFC 5321 4.1.2, esmtp-param)
_option = re.compile(r'[A-Za-z0-9][A-Za-z0-9-]*(=[!-<>-~]+)?')
# Dots can be anywhere, unlike in RFC 5321, because there are such mailboxes
_dot_string = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.\x80-\U0010ffff-]+")
_quoted_string = re.compile(r'"(?:[^"\\\x00-\x1f\x7f]|\\[ -~])*"')
_label = re.compile(r'[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?')
_literal = re.compile(r'\[[A-Za-z0-9:.-]+\]')
_control = re.compile(r'[\x00-\x1f\x7f]')
# A list of addresses (RFC 5322 3.4), but without blanks in an address, so that
# each address is found as it stands. There is only one way to match a text, so
# that matching takes linear time.
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


class Invalid(ValueError):
    """An argument that cannot be queued.

    The error has no words for users, because their translations need a
    database. Callers of the model get an :class:`exceptions.ArgumentError`
    instead.

    ``argument`` is the name of the argument, ``value`` its wrong part as
    printable text, and ``reason`` the name of one of the module's messages.
    """

    def __init__(self, argument, value, reason):
        super().__init__(argument, value, reason)
        self.argument = argument
        if not (isinstance(value, str) and value.isprintable()):
            value = repr(value)
        self.value = value
        self.reason = reason


def envelope_from(from_addr):
    """Return the bare address of the envelope sender.

    ``<>`` is the null sender (RFC 5321 4.5.5).

    :raises Invalid: there is no address, several, or one that is invalid.
    """
    if isinstance(from_addr, str) and from_addr.strip(' ') == NULL_SENDER:
        return NULL_SENDER
    found = addresses('from_addr', from_addr)
    if not found:
        raise Invalid('from_addr', from_addr, 'msg_sender_missing')
    if len(found) > 1:
        raise Invalid('from_addr', from_addr, 'msg_address_several')
    return found[0]


def envelope_to(to_addrs):
    """Return the list of the envelope's bare addresses, each once, in order.

    A string may hold several addresses, an item of an iterable just one.

    :raises Invalid: there is no address, or one that is invalid.
    """
    if isinstance(to_addrs, str):
        found = addresses('to_addrs', to_addrs)
    else:
        to_addrs = _items('to_addrs', to_addrs, 'msg_address_invalid')
        found = []
        for item in to_addrs:
            parsed = addresses('to_addrs', item)
            if not parsed:
                raise Invalid('to_addrs', item, 'msg_address_invalid')
            if len(parsed) > 1:
                raise Invalid('to_addrs', item, 'msg_address_several')
            found += parsed
    if not found:
        raise Invalid('to_addrs', to_addrs, 'msg_recipient_missing')
    once = {}
    for address in found:
        local, _, domain = address.rpartition('@')
        once.setdefault((local, domain.lower()), address)
    return list(once.values())


def _items(argument, values, reason):
    if isinstance(values, (bytes, bytearray, memoryview)):
        raise Invalid(argument, values, reason)
    try:
        iterator = iter(values)
    except TypeError:
        raise Invalid(argument, values, reason)
    return list(iterator)


def addresses(argument, text):
    """Return the bare addresses of ``text`` (RFC 5322 3.4), in order.

    The domain of each is as people write it, even where ``text`` has it as
    *xn--…*; :func:`on_the_wire` does the opposite.

    :raises Invalid: ``text`` is not a list of valid addresses.
    """
    if not isinstance(text, str):
        raise Invalid(argument, text, 'msg_address_invalid')
    if _control.search(text):
        raise Invalid(argument, text, 'msg_address_control')
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
            raise Invalid(
                argument, text[position:].strip(), 'msg_address_invalid')
        if address := match['angled'] or match['bare']:
            found.append(address)
        if match['end_of_group']:
            in_group = False
        position = match.end()
    if in_group:
        raise Invalid(argument, text, 'msg_address_invalid')
    return found


def _without_comments(argument, text):
    "Return ``text`` with a blank in place of each comment; comments can nest"
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
        raise Invalid(argument, text, 'msg_address_invalid')
    return ''.join(kept)


def _checked(argument, address):
    local, _, domain = address.rpartition('@')
    # Non-ASCII spaces and zero-width characters are always a mistake
    if (not local.isprintable()
            or len(local.encode('utf-8')) > LOCAL_PART_LENGTH
            or not (_dot_string.fullmatch(local)
                or _quoted_string.fullmatch(local))):
        raise Invalid(argument, address, 'msg_address_invalid')
    try:
        domain = _ascii_domain(domain)
    except UnicodeError:
        raise Invalid(argument, address, 'msg_address_invalid')
    if (len(domain) > DOMAIN_LENGTH
            or not (_literal.fullmatch(domain)
                or all(map(_label.fullmatch, domain.split('.'))))):
        raise Invalid(argument, address, 'msg_address_invalid')
    return f'{local}@{words.shown_domain(domain)}'


def on_the_wire(address):
    """Return an address with its domain as SMTP and headers need it.

    The domain is encoded by IDNA 2008, because Python's own codec is IDNA
    2003, which makes strasse of straße. A domain that cannot be encoded stays
    as it is.
    """
    if address.isascii():
        return address
    local, at, domain = address.rpartition('@')
    try:
        return f'{local}{at}{_ascii_domain(domain)}'
    except UnicodeError:
        return address


def _ascii_domain(domain):
    if domain.isascii() or len(domain) > DOMAIN_LENGTH:
        return domain
    return idna.encode(domain, uts46=True, transitional=False).decode('ascii')


def esmtp_options(argument, values):
    """Return the list of ESMTP parameters (RFC 5321 4.1.2) in ``values``.

    :param values: a text with blanks between parameters, or an iterable of
        such texts.
    :raises Invalid: a parameter has not the form of the RFC.
    """
    if isinstance(values, str):
        values = [values]
    found = []
    for value in _items(argument, values, 'msg_option_invalid'):
        if not isinstance(value, str):
            raise Invalid(argument, value, 'msg_option_invalid')
        for option in filter(None, value.split(' ')):
            if not _option.fullmatch(option):
                raise Invalid(argument, option, 'msg_option_invalid')
            found.append(option)
    return found


def envelope_sender(message):
    """Return the envelope sender that the header of ``message`` names.

    It is the same as in ``smtplib.SMTP.send_message``: the first address of
    *Sender*, or of *From* without a *Sender*, or of their *Resent-* fields
    where the message has a *Resent-Date* (RFC 5322 3.6.6).

    :raises Invalid: the header names none, or has invalid addresses.
    """
    prefix = _resent(message)
    for name in ['Sender', 'From']:
        if found := _header_addresses(
                'from_addr', message, f'{prefix}{name}'):
            return found[0]
    raise Invalid('from_addr', '', 'msg_sender_missing')


def envelope_recipients(message):
    "Return the addresses of *To*, *Cc* and *Bcc*, see :func:`envelope_sender`"
    prefix = _resent(message)
    found = []
    for name in ['To', 'Cc', 'Bcc']:
        found += _header_addresses('to_addrs', message, f'{prefix}{name}')
    return found


def _resent(message):
    if not isinstance(message, Message):
        raise Invalid('msg', type(message).__name__, 'msg_message_type')
    resent = raw_values(message, 'Resent-Date')
    if len(resent) > 1:
        raise Invalid('msg', 'Resent-Date', 'msg_message_resent')
    return 'Resent-' if resent else ''


def raw_values(message, name):
    "Return the values of a field unparsed, because parsing them could fail"
    return [
        value for key, value in message.raw_items()
        if str(key).lower() == name.lower()]


def _header_addresses(argument, message, name):
    found = []
    for value in raw_values(message, name):
        try:
            text = _header_text(value)
        except Exception as error:
            # Any object, which can raise anything, may be the value of a field
            raise Invalid(
                'msg', f'{type(error).__name__}: {error}',
                'msg_message_broken')
        found += addresses(argument, words.unfolded(text))
    return found


def header_addresses(header):
    """Return the text of the addresses that an ``email.header.Header`` holds.

    It is the encoded text, because a decoded name could contain a comma, or
    the decoded text where the addresses themselves are encoded.
    """
    encoded = header.encode(linesep='\n')
    return encoded if '@' in encoded else str(header)


def _header_text(value):
    "Return the text of a field of addresses, undecoded"
    if isinstance(value, Header):
        return header_addresses(value)
    for defect in getattr(value, 'defects', ()):
        # The text of a defective field lacks its defective part
        if not isinstance(
                defect, (ObsoleteHeaderDefect, NonASCIILocalPartDefect)):
            raise defect
    try:
        return str(value).encode('utf-8', 'surrogateescape').decode('utf-8')
    except UnicodeError:
        return str(value)
