# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The bytes of a notice of non-delivery → what it says (RFC 3464, qmail).

This file knows no database. Anybody can send such bytes, so no bytes make its
functions raise an error, and only a bounded part of the bytes is read.
"""
import email
import logging
import re
from email.policy import compat32
from typing import NamedTuple

from .replies import statuses
from .words import decoded_words, in_charset, printable, unfolded, with_domains

__all__ = ['Notice', 'Recipient', 'read']
logger = logging.getLogger(__name__)

# A notice of more bytes is not read at all
SIZE = 8 * 1024 * 1024
# So many bytes of a notice are read. They hold the report, because it comes
# before the returned message, which can be large.
READ_SIZE = 512 * 1024
RECIPIENTS = 1000
TEXT_LINES = 5000
WORDS_LENGTH = 500
ID_LENGTH = 998

STATUS_TYPES = {'message/delivery-status', 'message/global-delivery-status'}
RETURNED_TYPES = {
    'message/rfc822', 'message/global',
    'text/rfc822-headers', 'message/global-headers'}
# OpenSMTPD sends its reports as multipart/mixed
REPORT_TYPES = {'multipart/report', 'multipart/mixed'}
QMAIL_GREETING = 'Hi. This is the '
QMAIL_COPY = '--- Below this line is a copy of the message'

_xtext = re.compile(r'\\x\{([0-9A-Fa-f]{1,6})\}')
_blank_lines = re.compile(r'\n[ \t]*\n')


class Recipient(NamedTuple):
    """What a notice says about a recipient.

    :param address: the address that could not be reached.
    :param original: the address in the envelope of the email, empty where the
        notice does not have it.
    :param action: ``failed``, ``delayed``, ``delivered`` …
    :param status: the enhanced status code (:rfc:`3463`). It is taken from the
        words of the server beyond the relay where they have a code.
    :param words: the words of the server, one line.
    """
    address: str
    original: str
    action: str
    status: str
    words: str


class Notice(NamedTuple):
    """What a notice says.

    :param message_id: the Message-ID of the returned message.
    :param envelope_id: the ENVID of its envelope, empty if it had none.
    :param recipients: a tuple of :class:`Recipient`.
    """
    message_id: str
    envelope_id: str
    recipients: tuple


def read(data):
    "Return the :class:`Notice` of bytes, None if they are no notice"
    try:
        if len(data) > SIZE:
            return None
        return _read(bytes(data[:READ_SIZE]))
    except Exception:
        # The standard library raises anything on malformed messages
        logger.debug("not a notice", exc_info=True)
        return None


def _read(data):
    message = email.message_from_bytes(data, policy=compat32)
    if not message.is_multipart():
        return _of_qmail(message)
    if message.get_content_type() not in REPORT_TYPES:
        return None
    # Only the parts of the notice itself are read, because the returned
    # message can contain anything, such as a forged report
    parts = message.get_payload()
    status = _first(parts, STATUS_TYPES)
    if status is None:
        return None
    text = _text_words(_first(parts, {'text/plain'}))
    message_id, envelope_id, recipients = '', '', []
    for fields in _blocks(status):
        if fields['Final-Recipient'] or fields['Original-Recipient']:
            if len(recipients) < RECIPIENTS:
                recipients.append(_recipient(fields, text))
        else:
            envelope_id = envelope_id or _value(fields, 'Original-Envelope-Id')
            message_id = message_id or _value(fields, 'X-Original-Message-ID')
    returned = _first(parts, RETURNED_TYPES)
    if returned is not None:
        message_id = _value(_returned(returned), 'Message-ID') or message_id
    return _notice(message_id, envelope_id, recipients)


def _notice(message_id, envelope_id, recipients):
    if message_id and recipients:
        return Notice(
            message_id[:ID_LENGTH], envelope_id[:ID_LENGTH],
            tuple(recipients))


def _first(parts, types):
    return next((p for p in parts if p.get_content_type() in types), None)


def _blocks(part):
    "Return the groups of fields of a report; the first is about the message"
    blocks = part.get_payload()
    if isinstance(blocks, str):
        return _parsed(_decoded(part))
    if part.get_content_type() == 'message/delivery-status':
        return blocks
    # The standard library does not know message/global-delivery-status, and
    # takes all groups after the first for a body
    return [
        block for first in blocks
        for block in [first, *_parsed(_decoded(first))]]


def _parsed(text):
    return [
        email.message_from_string(block.lstrip('\n'), policy=compat32)
        for block in _blank_lines.split(text)]


def _returned(part):
    "Return the header of the message that is returned"
    payload = part.get_payload()
    if isinstance(payload, list):
        return payload[0]
    return email.message_from_string(_decoded(part), policy=compat32)


def _decoded(part):
    text = in_charset(
        part.get_payload(decode=True) or b'', part.get_content_charset())
    return text.replace('\r\n', '\n')


def _recipient(fields, text):
    address = _address(_value(fields, 'Final-Recipient'))
    original = _address(_value(fields, 'Original-Recipient'))
    _, _, words = _value(fields, 'Diagnostic-Code').partition(';')
    words = words.strip() or text.get((address or original).lower(), '')
    reported = _value(fields, 'Status')
    status = _first_status(f'{words} {reported}')
    action, *_ = _value(fields, 'Action').lower().split() or ['']
    return Recipient(
        address or original, original, action, status,
        _line(words or f'{action} {status}'))


def _first_status(text):
    return next(iter(statuses(text)), '')


def _value(fields, name):
    "Return the first value of a field as one line, empty without the field"
    value = next(
        (v for n, v in fields.raw_items() if n.lower() == name.lower()), '')
    # Not ``fields[name]``, because it would replace bytes that are not ASCII,
    # which are surrogates here, by question marks
    text = in_charset(value.encode('utf-8', 'surrogateescape'), None)
    return printable(decoded_words(unfolded(text)))


def _address(value):
    "Return the address of a field such as ``rfc822; jane@example.com``"
    kind, semicolon, address = value.partition(';')
    if not semicolon:
        address = value
    address = address.partition('(')[0].strip().strip('<>')
    if kind.strip().lower() == 'utf-8':
        address = _xtext.sub(lambda m: _character(m[1]), address)
    return address


def _character(code):
    code = int(code, 16)
    return chr(code) if code < 0x110000 else '?'


def _line(text):
    return with_domains(printable(text)[:WORDS_LENGTH])


def _text_words(part):
    "Return the words of lines such as ``ADDRESS: 550 no``, by address"
    if part is None:
        return {}
    words = {}
    for line in _decoded(part).split('\n', TEXT_LINES)[:TEXT_LINES]:
        address, colon, rest = line.partition(': ')
        if colon and '@' in address:
            words.setdefault(
                address.strip().strip('<>').lower(), rest.strip())
    return words


def _of_qmail(message):
    "Return the notice in a text of qmail, None if it is no such text"
    text = _decoded(message)
    report, _, copy = text.partition(QMAIL_COPY)
    if not report.lstrip().startswith(QMAIL_GREETING):
        return None
    recipients = []
    for paragraph in _blank_lines.split(report)[:RECIPIENTS]:
        first, _, rest = paragraph.strip().partition('\n')
        if not (first.startswith('<') and first.endswith('>:')):
            continue
        _, said, words = rest.partition('Remote host said: ')
        words, _, _ = (words if said else rest).partition('\nGiving up on ')
        words = _line(words)
        recipients.append(Recipient(
                first[1:-2], '', 'failed',
                _first_status(words), words or 'failed'))
    header = copy.partition('\n')[2].lstrip('\n')
    returned = email.message_from_string(header, policy=compat32)
    return _notice(_value(returned, 'Message-ID'), '', recipients)
