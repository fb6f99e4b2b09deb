# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Messages of others, and what must be the same after they were queued."""
import importlib.util
from email import message_from_bytes
from email.policy import compat32, default
from pathlib import Path

from ..address import Invalid
from ..mime import prepare

HOST = 'host.example.com'
# The fields that the module adds or removes, or that name another encoding
# after it has encoded the body
OWN = {
    'bcc', 'resent-bcc', 'return-path', 'content-length', 'message-id',
    'date', 'content-transfer-encoding'}
# One message of each kind, for a Python that is installed without its tests
WRITTEN = {
    'plain': b'From: a@example.com\nSubject: x\n\nHello\n',
    'no header': b'Hello\n',
    'empty': b'',
    'nested': (
        b'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="a b"\n'
        b'\npreamble\n--a b\nContent-Type: multipart/alternative;\n'
        b' boundary=c\n\n--c\n\none\n--c\nContent-Type: text/html\n\n<p>\n'
        b'--c--\n--a b\nContent-Type: message/rfc822\n\nSubject: in\n\nin\n'
        b'--a b--\nepilogue\n'),
    'report': (
        b'Content-Type: multipart/report; boundary=b\n\n--b\n\nfailed\n--b\n'
        b'Content-Type: message/delivery-status\n\nReporting-MTA: dns; x\n\n'
        b'Final-Recipient: rfc822; a@b\nAction: failed\n\n--b--\n'),
    'report in blocks': (
        b'Content-Type: multipart/report; boundary=b\n\n--b\n'
        b'Content-Type: message/delivery-status\n\nno field\n\n\nnor this\n'
        b'\nReporting-MTA: dns; x\n\nFinal-Recipient: rfc822; a@b\n\n'
        b'--b--\n'),
    'blanks before colons': b'From  : a@b\nSubject\t: x\n\nHello\n',
    'unfinished': b'Content-Type: multipart/mixed; boundary=b\n\n--b\n\nx',
    'no parts': b'Content-Type: multipart/mixed; boundary=b\n\nx\n',
    'no boundary': b'Content-Type: multipart/mixed\n\n--b\n\nx\n--b--\n',
    **{
        f'charset {charset}': (
            f'Content-Type: text/plain; charset={charset}\n'
            'Content-Transfer-Encoding: 8bit\n\n').encode() + text
        for charset, text in {
            'utf-8': 'Größe\n'.encode(), 'latin-1': b'Gr\xf6\xdfe\n',
            'utf-16': 'Größe\n'.encode('utf-16'), 'no-such': b'\xff\xfe\n',
            'gb2312': '你好\n'.encode('gb18030')}.items()},
    **{
        f'encoding {encoding}': (
            b'Content-Transfer-Encoding: ' + encoding.encode() + b'\n\n'
            + b'Gr=C3=BC=C3=9Fe \xc3\xbc QUJD\n')
        for encoding in [
            'quoted-printable', 'base64', '8-bit', '7bit', 'binary',
            'x-unknown', '']},
    'folded': b'Subject: a\n b\n\tc\nTo: "x,\n y" <a@example.com>\n\nx\n',
    'latin': 'Subject: Grüße\nFrom: ü <a@example.com>\n\n'.encode('latin-1'),
    'long': b'Subject: ' + b'word ' * 500 + b'\n\n' + b'x' * 5000 + b'\n',
    'nul': b'Subject: x\n\na\0b\n',
    }


def messages(directory=None):
    """Yield the names and bytes of messages.

    Without a directory, these are some messages of each kind, and the messages
    that come with the tests of Python where these are installed.
    """
    if directory is None:
        yield from WRITTEN.items()
        spec = importlib.util.find_spec('test')
        if not spec or not spec.submodule_search_locations:
            return
        directory = Path(
            spec.submodule_search_locations[0]) / 'test_email' / 'data'
    for path in sorted(Path(directory).rglob('*')):
        if path.is_file():
            yield str(path), path.read_bytes()


def compare(data):
    """Queue a message in each form and return what has changed, as words.

    Bytes must leave as they are. As a ``Message``, the tree of parts, their
    fields and their contents must be what a reader sees.
    """
    return [*_compare_bytes(data), *(
            f'{type(policy).__name__}: {words}'
            for policy in [compat32, default]
            for words in _compare_message(data, policy))]


def _compare_bytes(data):
    lines = data.replace(b'\r\n', b'\n').replace(b'\r', b'\n').split(b'\n')
    sent = prepare(data, HOST).split(b'\r\n')
    kept = [line for line in sent if line]
    wanted = [line for line in lines if line]
    dropped = [line for line in wanted if line not in set(kept)]
    names = {line.split(b':')[0].strip().lower() for line in dropped}
    if extra := [
            n for n in names
            if n.decode('latin-1') not in OWN and not n.startswith(
                (b'from ', b'\xef\xbb\xbf', b' ', b'\t'))]:
        yield f'bytes lost {extra[:3]}'


def _compare_message(data, policy):
    message = message_from_bytes(data, policy=policy)
    try:
        sent = prepare(message, HOST)
    except Invalid as error:
        # RFC 5322 3.6 and RFC 2045 2.7
        if error.reason not in {'msg_message_twice', 'msg_message_nul'}:
            yield str(error)
        return
    before = list(message_from_bytes(data).walk())
    after = list(message_from_bytes(sent).walk())
    if [p.get_content_type() for p in before] != [
            p.get_content_type() for p in after]:
        yield 'other parts'
        return
    for number, (old, new) in enumerate(zip(before, after)):
        encoding = str(old['Content-Transfer-Encoding'] or '')
        if _content(old, encoding) != _content(new, encoding):
            yield f'part {number}: another content'
        lost = {n.lower() for n in old.keys()} - OWN - {
            n.lower() for n in new.keys()}
        if lost:
            yield f'part {number} lost {lost}'


def _content(part, encoding):
    if part.is_multipart():
        return None
    if encoding.lower().strip() == 'base64':
        # Bytes that are not of the alphabet of base64 have no meaning
        payload = part._payload.encode('ascii', 'ignore')
        return b''.join(payload.split())
    content = part.get_payload(decode=True) or b''
    return content.replace(b'\r\n', b'\n').replace(b'\r', b'\n').rstrip(b'\n')
