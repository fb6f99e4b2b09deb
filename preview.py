# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Stored bytes → what a person reads.

This file knows no database. It has a reader of MIME of its own, because this
reader is up to 90 times as fast as the standard library's parser, takes linear
time and never raises. The parser raises LookupError at an unknown charset.
"""
import binascii
import mimetypes
import re
from html import escape
from itertools import islice
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import lxml.html
import nh3

from .mime import decoded, header_fields, value_of, with_crlf
from .words import (
    decoded_words, from_base64, in_charset, printable, unquoted, with_domains)

# How many bytes are read of a message, of the header of each part, and of a
# text
READ_SIZE, HEADER_SIZE, TEXT_SIZE = 40 * 1024 ** 2, 64 * 1024, 128 * 1024
# How many characters and lines are shown as rich text, because clients show it
# slowly. The field Text has the rest.
RICH_SIZE, RICH_LINES = 32 * 1024, 1000
# How many parts and levels of parts are read, and how many fields are shown
PARTS, DEPTH, FIELDS = 200, 20, 50
FIELD_SIZE = 4 * 1024
SHOWN_FIELDS = {
    name.lower().encode('ascii'): name for name in [
        'From', 'Sender', 'Reply-To', 'To', 'Cc', 'Date', 'Subject',
        'Message-ID', 'In-Reply-To', 'Auto-Submitted', 'List-Id',
        'List-Unsubscribe']}
# The tags of the rich text of both clients; none has attributes
RICH_TAGS = {'b', 'br', 'div', 'i', 'u'}
# The tag in rich text for each tag of HTML that has a style
STYLES = {
    **dict.fromkeys(
        ['b', 'h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'strong', 'th'], 'b'),
    'cite': 'i', 'em': 'i', 'i': 'i', 'a': 'u', 'ins': 'u', 'u': 'u'}
# The length of the name of a file that any system can have
NAME_LENGTH = 100
EXTENSIONS = {'message/rfc822': '.eml', 'text/plain': '.txt'}
# The text in these tags is not shown
HIDDEN_TAGS = {'head', 'script', 'style', 'template', 'title'}
# One parameter. The quotes of a value may be unpaired.
_parameter = re.compile(
    r'[^;"]*?([^\s=;"]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*(?:"|\Z)|[^;]*)[^;]*')
# The characters that the name of a file must not have on some system
_forbidden = re.compile(r'[\\/:*?"<>|]')
_extension = re.compile(r'\.\w{1,8}$')
_long_tag = re.compile(r'<([A-Za-z][A-Za-z0-9]*)[^<>]{2000,}')
_continued = re.compile(r'(.+?)(?:\*(\d{1,3}))?(\*?)')
# The text in place of a tag of HTML: lines and blanks
_tag_texts = {
    **dict.fromkeys(['br', 'div', 'tr', '/div', '/tr', '/li'], '\n'),
    **dict.fromkeys(
        [f'{end}{name}' for end in ['', '/'] for name in [
            'blockquote', 'h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'hr', 'ol', 'p',
            'pre', 'table', 'ul']],
        '\n\n'),
    'li': '\n- ', 'td': ' ', 'th': ' '}


class Attachment(NamedTuple):
    name: str
    type: str
    size: int


class Reading(NamedTuple):
    """What a person reads of a message.

    ``headers`` are pairs of name and value. ``complete`` is False if
    attachments are missing in ``attachments``. ``html`` is the text of the
    HTML, ``sources`` are the HTML itself.
    """
    headers: list
    text: str
    html: str
    attachments: list
    complete: bool
    sources: list


class _Part(NamedTuple):
    "A part that has no parts: its fields by name, and its encoded body"
    fields: dict
    data: bytes

    @property
    def type(self):
        type_, _ = self._parameters(b'content-type')
        return printable(type_) if type_.count('/') == 1 else 'text/plain'

    @property
    def boundary(self):
        _, parameters = self._parameters(b'content-type')
        return parameters.get('boundary', '')

    @property
    def name(self):
        for field, name in [
                (b'content-disposition', 'filename'),
                (b'content-type', 'name')]:
            _, parameters = self._parameters(field)
            if name in parameters:
                return printable(decoded_words(parameters[name]))
        return ''

    @property
    def is_text(self):
        disposition, _ = self._parameters(b'content-disposition')
        return (
            self.type in {'text/plain', 'text/html'}
            and disposition != 'attachment'
            and not self.name)

    @property
    def body(self):
        encoding, _ = self._parameters(b'content-transfer-encoding')
        if encoding == 'base64':
            return from_base64(self.data)
        if encoding == 'quoted-printable':
            return binascii.a2b_qp(self.data)
        return self.data

    @property
    def text(self):
        body = self.body
        _, parameters = self._parameters(b'content-type')
        text = in_charset(body[:TEXT_SIZE], parameters.get('charset'))
        return f'{text}\n…' if len(body) > TEXT_SIZE else text

    def file_name(self, number):
        """Return a name for a file with the attachment.

        :param number: the name if the attachment has none.
        """
        name = self.name
        if not name and self.type == 'message/rfc822':
            fields, _ = _part_header(self.data)
            name = decoded(dict(reversed(fields)).get(b'subject', b''))
        name = _forbidden.sub('_', name).strip(' .') or str(number)
        if not _extension.search(name):
            name += EXTENSIONS.get(
                self.type, mimetypes.guess_extension(self.type) or '')
        return name[-NAME_LENGTH:]

    def _parameters(self, name):
        return _value_and_parameters(self.fields.get(name, b''))


def read(data):
    """Return the :class:`Reading` of any bytes.

    Nothing in the bytes is executed or fetched. What lies beyond the bounds of
    this file is left out.
    """
    complete = len(data) <= READ_SIZE
    data = with_crlf(bytes(data[:READ_SIZE]))
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
        attachments, complete, texts['text/html'])


def attached(data):
    "Return the parts of any bytes that are attachments for :func:`read`"
    data = with_crlf(bytes(data[:READ_SIZE]))
    return [
        part for part in islice(_leaves(data), PARTS) if not part.is_text]


def _leaves(data):
    "Yield the parts of a message that have no parts, in order"
    waiting = [(data, 0)]
    while waiting:
        data, depth = waiting.pop()
        fields, start = _part_header(data)
        part = _Part(dict(reversed(fields)), data[start:])
        parts = []
        if part.type.startswith('multipart/') and depth < DEPTH:
            parts = _split(
                data, start, part.boundary.encode('utf-8', 'surrogateescape'))
        if parts:
            waiting += [(inner, depth + 1) for inner in reversed(parts)]
        else:
            yield part


def _part_header(data):
    "Return the fields of a part and where its body starts"
    # The last line end of a part belongs to the boundary
    fields, end = header_fields(with_crlf(data[:HEADER_SIZE]))
    if data.startswith(b'\r\n', end):
        end += 2
    return fields, end


def _value_and_parameters(field):
    """Return the value of a field in lower case and its parameters by name.

    Parameters of RFC 2231 are decoded. Of several parameters with one name the
    first is returned.
    """
    text = value_of(field[:FIELD_SIZE]).decode('utf-8', 'surrogateescape')
    text = text.replace('\r\n', '').replace('\t', ' ')
    value, _, rest = text.partition(';')
    parts = {}
    for match in _parameter.finditer(rest):
        name, number, encoded = _continued.fullmatch(match[1]).groups()
        parts.setdefault(name.lower(), {}).setdefault(
            int(number or 0), (unquoted(match[2].strip()), bool(encoded)))
    # A comment can follow the value (RFC 2045 5.1)
    value = value.partition('(')[0].strip().lower()
    return value, {
        name: _joined([text for _, text in sorted(texts.items())])
        for name, texts in parts.items()}


def _joined(parts):
    "Return the text of a parameter, which can be in encoded parts"
    charset = None
    if parts[0][1]:
        charset, _, text = parts[0][0].partition("'")
        parts[0] = text.partition("'")[2] or text, True
    data = b''.join(
        unquote_to_bytes(text.encode('utf-8', 'surrogateescape'))
        if encoded else text.encode('utf-8', 'surrogateescape')
        for text, encoded in parts)
    return in_charset(data, charset)


def _split(data, start, boundary):
    "Return the bytes of each part between the lines of the boundary"
    parts, begin = [], None
    if not boundary:
        return parts
    delimiter = re.compile(
        rb'\r\n--%s(--)?[ \t]*(?=\r\n|\Z)' % re.escape(boundary))
    # The line end of the blank line after the header can belong to the first
    # delimiter
    for match in delimiter.finditer(data, max(start - 2, 0)):
        if begin is not None:
            parts.append(data[begin:match.start()])
        if match[1] or len(parts) > PARTS:
            return parts
        begin = match.end() + len(b'\r\n')
    if begin is not None:
        # The body ends without a last boundary
        parts.append(data[begin:])
    return parts


def html_text(text):
    "Return the text that is in HTML, with the targets of its links"
    return with_domains(''.join(words for _, words in _runs(text)))


def rich_text(text):
    """Return HTML as the rich text that Tryton's clients show.

    The rich text is lines of bold, italic and underlined words with the
    targets of links. It is built from the words of ``text``, and ``nh3`` drops
    everything else, so that nothing in it can be fetched or executed.
    """
    lines, size = [[]], 0
    for style, words in _runs(text):
        first, *rest = words[:RICH_SIZE].split('\n')
        lines[-1].append((style, first))
        lines += [[(style, part)] for part in rest]
        size += len(words)
        if size > RICH_SIZE or len(lines) > RICH_LINES:
            lines.append([('', '…')])
            break
    rich = []
    for line in map(_rich_line, lines):
        # Only the first of several blank lines is kept
        if line or rich and rich[-1]:
            rich.append(line)
    while rich and not rich[-1]:
        rich.pop()
    return nh3.clean(
        ''.join(f'<div>{line or "<br>"}</div>' for line in rich),
        tags=RICH_TAGS, attributes={}, link_rel=None)


def _rich_line(runs):
    "Return the markup of a line, of pairs of style and words"
    merged = [['', '']]
    for style, words in runs:
        words = _shown(words)
        if merged[-1][0] == style:
            merged[-1][1] += words
        elif words:
            merged.append([style, words])
    merged = [run for run in merged if run[1]]
    if not any(words.strip() for _, words in merged):
        return ''
    merged[0][1] = merged[0][1].lstrip()
    merged[-1][1] = merged[-1][1].rstrip()
    markup = ''
    for style, words in merged:
        if not words:
            continue
        words = escape(with_domains(words), quote=False)
        markup += f'<{style}>{words}</{style}>' if style else words
    return markup


def _runs(text):
    """Yield the words that are in HTML, each with its style.

    A style is a value of ``STYLES`` or empty. Words have one style at most,
    because each client nests several styles in its own way, and would take
    another nesting for a change by the user.
    """
    try:
        root = lxml.html.document_fromstring(
            # libxml2 takes quadratic time for the attributes of a tag
            _long_tag.sub(r'<\1', text).encode('utf-8', 'replace'),
            parser=lxml.html.HTMLParser(encoding='utf-8', huge_tree=True))
    except lxml.etree.LxmlError:
        # The HTML has no content
        return
    hidden, depths = 0, dict.fromkeys('bui', 0)

    def styled(*words):
        style = next((s for s, depth in depths.items() if depth), '')
        return [(style, w) for w in words if w]
    for event, element in lxml.etree.iterwalk(
            root, events=['start', 'end', 'comment', 'pi']):
        tag = element.tag if isinstance(element.tag, str) else ''
        style = STYLES.get(tag)
        if event == 'start':
            hidden += tag in HIDDEN_TAGS
            if style:
                depths[style] += 1
            if not hidden:
                yield from styled(_tag_texts.get(tag), _words(element.text))
            continue
        if style and event == 'end':
            depths[style] -= 1
        if not hidden and event == 'end':
            yield from styled(_target(element), _tag_texts.get(f'/{tag}'))
        hidden -= tag in HIDDEN_TAGS
        if not hidden:
            yield from styled(_words(element.tail))


def _target(element):
    target = (element.get('href') or '') if element.tag == 'a' else ''
    target = _words(target).strip()
    return f' <{target}>' if target and not target.startswith('#') else ''


def _words(text):
    return re.sub(r'\s+', ' ', text or '')


def _shown(text):
    "Return ``text`` without characters that cannot be shown"
    return ''.join(
        c if c.isprintable() or c in '\n\t' else ' ' if c.isspace() else ''
        for c in text)


def _tidy(text):
    "Return ``text`` as it is shown, without blanks and lines at its ends"
    cut = len(text) > TEXT_SIZE
    text = text[:TEXT_SIZE].replace('\r\n', '\n').replace('\r', '\n')
    text = text.encode('utf-8', 'replace').decode('utf-8')
    text = _shown(text)
    lines = [line.rstrip() for line in text.split('\n')]
    text = re.sub(r'\n{3,}', '\n\n', '\n'.join(lines)).strip('\n')
    return text + '\n…' if cut else text
