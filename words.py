# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Decodes what others have encoded: bytes → text that a person reads.

Each function takes linear time, and raises no error for any text or bytes.
"""
import binascii
import codecs
import re

import idna

# The most bytes of a line, without the line end (RFC 5322 2.1.1)
LINE_LENGTH = 998
# Codecs of Python that are not charsets of messages; some of them take
# quadratic time
NO_CHARSETS = {
    'idna', 'mbcs', 'oem', 'punycode', 'raw_unicode_escape', 'undefined',
    'unicode_escape'}
# Mail programs use the charset on the left for texts that need the larger
# charset on the right
CHARSETS = {
    'ascii': 'cp1252', 'iso8859-1': 'cp1252', 'gb2312': 'gb18030',
    'gbk': 'gb18030', 'euc_kr': 'cp949', 'shift_jis': 'cp932',
    'tis-620': 'cp874'}

# An encoded word (RFC 2047 2), which can have a language (RFC 2231 5)
_encoded_word = re.compile(
    r'=\?([^?*\s]+)(?:\*[^?\s]*)?\?([bBqQ])\?([^?]*)\?=')
_qp_byte = re.compile(rb'=([0-9A-Fa-f]{2})')
_not_base64 = bytes(set(range(256)) - set(
        b'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/'))
_ascii_domain = re.compile(
    r'(?<![A-Za-z0-9_.-])(?:[A-Za-z0-9_-]{1,63}\.){0,20}'
    r'xn--[A-Za-z0-9-]{1,59}(?:\.[A-Za-z0-9-]{1,63}){0,20}', re.I)


def printable(text):
    "Return ``text`` as one line that any database can store and index"
    text = text.encode('utf-8', 'replace').decode('utf-8')
    if not text.isprintable():
        text = ''.join(c if c.isprintable() else ' ' for c in text)
    line = ' '.join(text.split()).encode('utf-8')[:LINE_LENGTH]
    return line.decode('utf-8', 'ignore')


def in_charset(data, charset):
    """Return the text of bytes, with U+FFFD for what cannot be decoded.

    :param charset: the name of the charset in the message, None for no name.
    """
    codec = _codec(charset)
    if codec:
        return data.decode(codec, 'replace')
    try:
        return data.decode('utf-8')
    except UnicodeDecodeError:
        return data.decode('cp1252', 'replace')


def _codec(charset):
    "Return the name of the codec for a charset, None if Python has no codec"
    charset = (charset or '').partition('*')[0].strip()
    for name in [charset, re.sub(r'[^A-Za-z0-9]', '', charset)]:
        try:
            codec = codecs.lookup(name).name
            codec = CHARSETS.get(codec, codec)
            if codec not in NO_CHARSETS:
                # A codec that does not decode to text raises an error here
                b'a'.decode(codec, 'replace')
                return codec
        except (LookupError, ValueError):
            continue


def decoded_words(text):
    """Return ``text`` with its encoded words (RFC 2047) decoded.

    Encoded words in one charset that follow each other are decoded together,
    because some programs divide a character between two words.
    """
    chunks, position, waiting = [], 0, None
    for match in _encoded_word.finditer(text):
        between = text[position:match.start()]
        data = _word_bytes(match[2], match[3])
        charset = match[1].lower()
        if waiting and not between.strip() and waiting[0] == charset:
            waiting[1].append(data)
        else:
            if waiting:
                chunks.append(_decoded(waiting))
            # Blanks between two encoded words are no part of the text
            if not waiting or between.strip():
                chunks.append(between)
            waiting = charset, [data]
        position = match.end()
    if waiting:
        chunks.append(_decoded(waiting))
    chunks.append(text[position:])
    return ''.join(chunks)


def _decoded(waiting):
    charset, data = waiting
    return in_charset(b''.join(data), charset)


def _word_bytes(encoding, text):
    data = text.encode('utf-8', 'replace')
    if encoding in 'bB':
        return from_base64(data)
    return _qp_byte.sub(
        lambda match: bytes.fromhex(match[1].decode('ascii')),
        data.replace(b'_', b' '))


def from_base64(data):
    "Return the bytes in base64, or as many as can be decoded"
    data = data.translate(None, _not_base64)
    # A single character at the end has only six bits of a byte
    data = data[:-1] if len(data) % 4 == 1 else data
    return binascii.a2b_base64(data + b'=' * (-len(data) % 4))


def unfolded(text):
    "Return the value of a header field on one line, with blanks for tabs"
    return re.sub(r'\r?\n(?=[ \t])', '', text).replace('\t', ' ')


def unquoted(text):
    "Return the text of a quoted string (RFC 5322 3.2.4), other text unchanged"
    if not text.startswith('"'):
        return text
    text = text[1:-1] if text.endswith('"') and len(text) > 1 else text[1:]
    return re.sub(r'\\(.)', r'\1', text)


def with_domains(text):
    "Return ``text`` with its IDN domains as people write them"
    return _ascii_domain.sub(lambda match: shown_domain(match[0]), text)


def shown_domain(domain):
    """Return a domain as people write it.

    The domain stays in ASCII if the form for people would be encoded to
    another domain.
    """
    if 'xn--' not in domain.lower():
        return domain
    try:
        shown = idna.decode(domain)
        if idna.encode(shown).decode('ascii') == domain.lower():
            return shown
    except UnicodeError:
        pass
    return domain
