# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Which server sends the emails of an author, and from which address.

The option ``for_NAME`` lists the authors whose emails the server NAME sends.
``from_NAME`` is the only address that the server NAME lets its login send
from. This file knows no database and no SMTP.
"""
import functools
import re
from typing import NamedTuple

from . import settings
from .address import NULL_SENDER, Invalid, addresses
from .mime import header_fields, value_of, with_values
from .words import decoded_words, unfolded

__all__ = ['is_set', 'mailbox', 'on_behalf', 'sent_from', 'server_for']

FOR, FROM = 'for_', 'from_'
# A signature may cover the header of these types, so it must not be changed
# (RFC 1847, RFC 6376, RFC 8551)
SIGNED_TYPES = {
    'multipart/signed', 'application/pkcs7-mime', 'application/x-pkcs7-mime'}

_name = re.compile(
    r'[ ,]*(?P<name>(?:"(?:[^"\\]|\\.)*"|[^"<>,:;@()\\])*)<')


class Mailbox(NamedTuple):
    "An address and the name of its owner, which can be empty"
    name: str
    address: str

    def __str__(self):
        if self.name:
            return f'{self.name} <{self.address}>'
        return self.address


def is_set():
    "Return whether one of the options ``for_NAME`` and ``from_NAME`` is set"
    return bool(_authors_by_server() or settings.named(FROM))


def on_behalf(server, from_addr, data):
    """Return the server's name, the envelope sender and the bytes to send.

    :param server: the name that the caller has chosen, None for no choice.
    :param from_addr: the envelope sender, as :func:`envelope_from` returns it.
    :param data: the bytes of the message, as :func:`prepare` returns them.
    :raises Invalid: the configuration is not valid.
    """
    if is_set():
        if server is None:
            server = server_for(from_addr, data)
        from_addr, data = sent_from(server, from_addr, data)
    return server, from_addr, data


def sent_from(server, from_addr, data):
    "Return the envelope sender and the bytes that ``server`` may send"
    box, header = mailbox(server), _Header(data)
    if box and not header.is_signed and not _equal(
            header.addresses('from'), [box.address]):
        data = with_values(data, header.sent_from(box, from_addr))
        if from_addr != NULL_SENDER:
            from_addr = box.address
    return from_addr, data


def mailbox(server):
    "Return the only Mailbox that a server sends from, None for any address"
    option = f'{FROM}{server or ""}'
    text = settings.text(option)
    return _mailbox(option, text) if text else None


def server_for(from_addr, data):
    "Return the name of the server for the author, None for the default server"
    header = _Header(data)
    authors = header.addresses('on-behalf-of')
    authors += (
        header.addresses('from') if from_addr == NULL_SENDER else [from_addr])
    known = {
        name: _authors(f'{FOR}{name}', text)
        for name, text in _authors_by_server().items()}
    for author in authors:
        # An option that lists the whole address precedes one that lists its
        # domain
        for key in [author.casefold(), _domain(author)]:
            for name, listed in known.items():
                if key in listed:
                    return _configured(name)


def _configured(name):
    if name not in settings.servers():
        # Another server could refuse the email, or send it under another
        # address
        raise Invalid('server', name, 'msg_server_unknown')
    return name


def _domain(address):
    return f"@{address.rpartition('@')[2].casefold()}"


def _authors_by_server():
    "Return the texts of the options ``for_NAME`` by the name of the server"
    return {name: text for name, text in settings.named(FOR).items() if name}


@functools.lru_cache(1024)
def _authors(option, text):
    "Return the addresses and the domains (with their @) in an option"
    listed = set()
    try:
        for item in filter(None, map(str.strip, text.split(','))):
            is_domain = item.startswith('@')
            address, = addresses(option, f'x{item}' if is_domain else item)
            listed.add(_domain(address) if is_domain else address.casefold())
    except ValueError:
        listed.clear()
    if not listed:
        raise settings.InvalidSetting(option, text)
    return frozenset(listed)


@functools.lru_cache(1024)
def _mailbox(option, text):
    try:
        address, = addresses(option, text)
    except ValueError:
        raise settings.InvalidSetting(option, text) from None
    return Mailbox(_name_in(text), address)


def _name_in(text):
    "Return the name before the first address, as ``text`` has it"
    match = _name.match(text)
    return match['name'].strip() if match else ''


def _equal(some, others):
    return [a.casefold() for a in some] == [a.casefold() for a in others]


class _Header:
    "The fields in the header of a message that name its author"

    def __init__(self, data):
        self._texts = {}
        fields, _ = header_fields(data)
        for name, field in fields:
            text = value_of(field).decode('utf-8', 'surrogateescape')
            if text:
                self._texts.setdefault(
                    name.decode('ascii'), unfolded(text).strip())

    @property
    def is_signed(self):
        type_ = self._texts.get('content-type', '').partition(';')[0]
        type_ = type_.partition('(')[0].strip().lower()
        return type_ in SIGNED_TYPES or 'dkim-signature' in self._texts

    def addresses(self, name):
        "Return the addresses in a field, an empty list if it is not valid"
        try:
            return addresses(name, self._text(name))
        except Invalid:
            return []

    def _text(self, name):
        text = self._texts.get(name, '')
        # The standard library makes one encoded word of an invalid address
        return text if '@' in text else decoded_words(text)

    def sent_from(self, box, from_addr):
        "Return the new values of the fields for sending from ``box``"
        writer = next((
                self._text(name) for name in ['on-behalf-of', 'from']
                if self.addresses(name)), '')
        if not writer and from_addr != NULL_SENDER:
            writer = from_addr
        if name := _name_in(writer):
            box = box._replace(name=name)
        values = {'From': str(box), 'Sender': None, 'On-Behalf-Of': None}
        if writer and 'reply-to' not in self._texts:
            values['Reply-To'] = writer
        return values
