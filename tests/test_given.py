# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""A message leaves as it was given: the bytes that a ``Message`` becomes."""
import datetime as dt
import re
import unittest
from email import message_from_bytes
from email.header import Header
from email.headerregistry import Address, Group
from email.message import EmailMessage, Message
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.policy import SMTP, compat32, default
from email.utils import getaddresses, parsedate_to_datetime

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ..address import Invalid, addresses, envelope_recipients
from ..mime import describe, prepare
from ..words import decoded_words
from .corpus import compare, messages

HOST = 'host.example.com'
POLICIES = [compat32, default, SMTP]
LONG_URL = f'https://example.com/unsubscribe?token={"0123456789abcdef" * 4}'
# RFC 3461 and others: an ASCII value in which no encoded word is allowed
TOKENS = {
    'List-Unsubscribe': f'<{LONG_URL}>',
    'References': ' '.join(f'<{"x" * 70}{i}@example.com>' for i in range(20)),
    'In-Reply-To': f'<{"y" * 200}@example.com>',
    'DKIM-Signature': f'v=1; a=rsa-sha256; d=example.com; b={"A" * 344}',
    'Autocrypt': f'addr=jane@example.com; keydata={"B" * 500}',
    'Feedback-ID': f'{"campaign" * 12}:customer:mail:example',
    'Content-Location': f'https://example.com/{"a/" * 60}',
    'X-Token': 'z' * 300,
    'Subject': f'See {LONG_URL}{LONG_URL} for it',
    }
names = st.text(
    st.characters(exclude_categories=['Cs', 'Cc', 'Zl', 'Zp', 'Cn', 'Co']),
    max_size=60)
domains = st.sampled_from([
        'example.com', 'b.example', 'straße.de', 'пример.рф', 'GRÖSSE.de'])
locals_ = st.text('abcxyz0123456789.+_-', min_size=1, max_size=70).filter(
    lambda s: not s.startswith('.') and not s.endswith('.') and '..' not in s)
people = st.lists(
    st.tuples(names, locals_, domains), min_size=1, max_size=8)


def parsed(data):
    return message_from_bytes(data, policy=default)


def field(data, name):
    "Return the unfolded value of a field of bytes"
    header = data.partition(b'\r\n\r\n')[0] + b'\r\n'
    header = re.sub(rb'\r\n(?=[ \t])', b'', header)
    return re.search(
        rb'(?im)^%s:[ \t]*(.*?)\r$' % name.encode(), header)[1].decode()


class EightBitTestCase(unittest.TestCase):
    "Test 8-bit content of a parsed message"
    body = 'Grüße\n'.encode()

    def test_encodings(self):
        "Test such content is queued, whatever encoding the message names"
        for encoding in [
                '8-bit', '8BIT', '8bit (as is)', '8bit; x=y',
                'quoted-printable', 'base64', 'base64 (x)', '7bit', 'binary',
                'x-uuencode', 'unknown', '',
                '8bit\nContent-Transfer-Encoding: 8bit',
                '7bit\nContent-Transfer-Encoding: base64']:
            for type_ in ['text/plain; charset=utf-8', 'application/pdf']:
                raw = (f'Content-Transfer-Encoding: {encoding}\n'
                    f'Content-Type: {type_}\n\n').encode() + self.body
                for policy in POLICIES:
                    with self.subTest(
                            encoding=encoding, type=type_, policy=policy):
                        data = prepare(
                            message_from_bytes(raw, policy=policy), HOST)
                        text = parsed(data).get_payload(decode=True)
                        if encoding.startswith('base64'):
                            # The content has no 8-bit bytes
                            self.assertTrue(data.isascii())
                        elif encoding.startswith(('x-', 'unknown')):
                            self.assertIn(
                                self.body.replace(b'\n', b'\r\n'), data)
                        else:
                            self.assertTrue(data.isascii(), data)
                            self.assertEqual(
                                text.replace(b'\r\n', b'\n'), self.body)

    def test_signed(self):
        "Test a signed part leaves byte for byte"
        part = (
            b'Content-Type: text/plain; charset=utf-8;  x=y\r\n'
            b'Content-Transfer-Encoding: 8bit\r\n'
            b'X-Long: ' + b'word ' * 100 + b'\r\n'
            b'X-Folded: a\r\n  b\r\n\tc\r\n'
            b'X-Raw: Gr\xc3\xbc\xc3\x9fe \xff\r\n\r\n'
            + 'Grüße\r\n'.encode() + b'x' * 2000 + b'\r\n \xff\0\r\n')
        for inner in [
                part,
                b'Content-Type: multipart/mixed; boundary=i\r\n\r\n'
                b'pre\r\n--i\r\n' + part + b'\r\n--i--\r\npost\xfc\r\n',
                b'Content-Type: message/rfc822\r\n\r\n' + part]:
            raw = (
                b'From: a@example.com\r\n'
                b'Content-Type: multipart/signed; boundary="s"; micalg=x\r\n'
                b'\r\n--s\r\n' + inner + b'\r\n--s\r\n'
                b'Content-Type: application/pgp-signature\r\n\r\nabc\r\n'
                b'--s--\r\n')
            for policy in POLICIES:
                with self.subTest(inner=inner[:40], policy=policy):
                    data = prepare(
                        message_from_bytes(raw, policy=policy), HOST)
                    self.assertIn(b'--s\r\n' + inner + b'\r\n--s\r\n', data)

    def test_boundary(self):
        "Test a boundary with an 8-bit byte"
        for boundary in [b'b\xfc', b'"b \xc3\xbc"', b'"b\\"c"', b'b']:
            mark = boundary.strip(b'"').replace(b'\\', b'')
            raw = (
                b'Content-Type: multipart/mixed; boundary=' + boundary
                + b'\r\n\r\n--' + mark + b'\r\n\r\none\r\n--' + mark
                + b'\r\n\r\ntwo\r\n--' + mark + b'--\r\n')
            for policy in POLICIES:
                with self.subTest(boundary=boundary, policy=policy):
                    message = message_from_bytes(raw, policy=policy)
                    data = prepare(message, HOST)
                    self.assertTrue(data.endswith(raw.partition(b'\r\n')[2]))

    def test_nul(self):
        "Test NUL is encoded in a body and refused in a field"
        text = MIMEText('a\0b\n')
        attachment = message_from_bytes(
            b'Content-Type: application/x\nContent-Transfer-Encoding: 7bit\n\n'
            b'a\0b\n')
        for message in [text, attachment]:
            data = prepare(message, HOST)
            self.assertNotIn(b'\0', data)
            self.assertEqual(
                parsed(data).get_payload(decode=True).strip(), b'a\0b')
        for message in [Message(), EmailMessage()]:
            for name in ['Subject', 'X-Test', 'To']:
                message = Message()
                message[name] = 'a\0b'
                with self.assertRaises(Invalid) as cm:
                    prepare(message, HOST)
                self.assertEqual(cm.exception.reason, 'msg_message_nul')


class EightBitHeaderTestCase(unittest.TestCase):
    "Test 8-bit bytes in the header of a parsed message"

    def test_parameter(self):
        "Test an attachment with a raw name is an attachment"
        for charset in ['utf-8', 'latin-1']:
            name = 'Rechnüng.pdf'.encode(charset)
            raw = (
                b'Content-Type: multipart/mixed; boundary=b\n\n--b\n'
                b'Content-Type: application/pdf; name="' + name + b'"\n'
                b'Content-Disposition: attachment; filename="' + name
                + b'"\n\nabc\n--b--\n')
            for policy in POLICIES:
                with self.subTest(name=name, policy=policy):
                    data = prepare(
                        message_from_bytes(raw, policy=policy), HOST)
                    self.assertNotIn(b'unknown-8bit', data)
                    part, = message_from_bytes(data).get_payload()
                    self.assertEqual(
                        part.get_content_type(), 'application/pdf')
                    self.assertEqual(
                        part.get_content_disposition(), 'attachment')
                    if name.decode('utf-8', 'ignore') == 'Rechnüng.pdf':
                        self.assertEqual(
                            parsed(data).get_payload()[0].get_filename(),
                            'Rechnüng.pdf')

    def test_fields(self):
        for charset in ['utf-8', 'latin-1']:
            raw = (
                'From: Jürgen GmbH <info@example.com>\n'
                'To: "Müller, J" <a@example.com>, b@example.com\n'
                'Subject: Grüße\nX-Any: Größe\nMessage-ID: <ü@example.com>\n'
                '\n').encode(charset)
            for policy in POLICIES:
                with self.subTest(charset=charset, policy=policy):
                    data = prepare(
                        message_from_bytes(raw, policy=policy), HOST)
                    self.assertNotIn(b'unknown-8bit', data)
                    message = message_from_bytes(data)
                    self.assertEqual(
                        envelope_recipients(message),
                        ['a@example.com', 'b@example.com'])
                    self.assertIn(
                        b'<info@example.com>', data.partition(b'\r\nTo')[0])
                    self.assertEqual(describe(data)[0], 'Grüße')


class TokensTestCase(unittest.TestCase):
    "Test long ASCII values"

    def test_tokens(self):
        "Test each value is folded at blanks only and means the same"
        for name, value in TOKENS.items():
            for cls in [EmailMessage, Message]:
                message = cls()
                message[name] = value
                with self.subTest(name, cls=cls):
                    data = prepare(message, HOST)
                    self.assertNotIn(b'=?', data)
                    self.assertEqual(field(data, name), value)
                    self.assertLessEqual(
                        max(map(len, data.split(b'\r\n'))), 998)

    @settings(max_examples=200, deadline=None)
    @given(st.text(
            st.characters(min_codepoint=32, max_codepoint=126), max_size=900))
    @example('x' * 900)
    def test_any(self, value):
        value = value.strip()
        message = EmailMessage()
        try:
            message['Comments'] = value
        except Exception:
            return
        value = str(message['Comments'])
        data = prepare(message, HOST)
        self.assertEqual(field(data, 'Comments').strip(), value)


class AddressFieldsTestCase(unittest.TestCase):
    "Test addresses() reads from a field what the caller gave"

    @settings(max_examples=300, deadline=None)
    @given(people)
    @example([
            ('A very long company name with a lot of words in it, Inc.',
                'a', 'b.example')] * 3)
    @example([('Müller, Jürgen "J" (x) <y@z>', 'a', 'straße.de')])
    @example([('a@b, c', 'a', 'b.example')])
    def test_names(self, people):
        try:
            given_ = [Address(n.strip(), u, d) for n, u, d in people]
            message = EmailMessage()
            message['To'] = given_
        except Exception:
            # Without values that the standard library does not take
            return
        expected = [
            a for p in people for a in addresses('to', f'{p[1]}@{p[2]}')]
        data = prepare(message, HOST)
        self.assertTrue(data.isascii())
        for policy in POLICIES:
            again = message_from_bytes(data, policy=policy)
            self.assertEqual(envelope_recipients(again), expected)
        if all(n.isprintable() and '=?' not in n for n, _, _ in people):
            shown = [
                decoded_words(name) for name, _ in getaddresses(
                    [field(data, 'To')])]
            self.assertEqual(
                [' '.join(name.split()) for name in shown],
                [' '.join(name.split()) for name, _, _ in people])

    def test_domain(self):
        "Test an IDN domain is not encoded as if it were words"
        for text in ['info@straße.de', 'Jürgen <info@straße.de>',
                'info@straße.de, Info <info@straße.de>',
                'Team: info@straße.de;']:
            for cls in [EmailMessage, Message]:
                message = cls()
                message['To'] = text
                with self.subTest(text, cls=cls):
                    data = prepare(message, HOST)
                    self.assertIn(b'info@xn--strae-oqa.de', data)
                    self.assertNotIn(b'=?utf-8?q?stra', data)

    def test_compat32(self):
        "Test name and address in one text that is not ASCII"
        for text, expected in [
                ('Jürgen GmbH <info@example.com>', ['info@example.com']),
                ('"Müller, J." <a@example.com>, b@example.com',
                    ['a@example.com', 'b@example.com']),
                ('a@example.com (Jürgen)', ['a@example.com']),
                ('"a@b ü" <c@example.com>', ['c@example.com']),
                ('Größe: a@example.com, Ü <b@example.com>;',
                    ['a@example.com', 'b@example.com']),
                ]:
            for value in [text, Header(text, 'utf-8')]:
                message = Message()
                message['To'] = value
                with self.subTest(text, type=type(value)):
                    data = prepare(message, HOST)
                    self.assertTrue(data.isascii())
                    self.assertEqual(
                        envelope_recipients(message_from_bytes(data)),
                        expected)

    def test_group(self):
        message = EmailMessage()
        message['To'] = [Group('Team, ü', [
                    Address('Ä', 'a', 'example.com'),
                    Address('', 'b', 'example.com')])]
        data = prepare(message, HOST)
        self.assertEqual(
            envelope_recipients(message_from_bytes(data)),
            ['a@example.com', 'b@example.com'])

    def test_comma_without_blanks(self):
        "Test a long list without blanks is folded"
        message = Message()
        message['To'] = ','.join(f'user{i}@example.com' for i in range(2000))
        data = prepare(message, HOST)
        self.assertLessEqual(max(map(len, data.split(b'\r\n'))), 998)
        self.assertEqual(
            len(envelope_recipients(message_from_bytes(data))), 2000)


class OnceTestCase(unittest.TestCase):
    "Test fields that RFC 5322 3.6 allows once"

    def test_lists(self):
        "Test several lists of addresses become one"
        for name in ['To', 'Cc', 'From', 'Reply-To']:
            message = MIMEMultipart()
            for address in ['a@example.com', 'b@example.com', 'a@example.com']:
                message[name] = address
            with self.subTest(name):
                data = prepare(message, HOST)
                self.assertEqual(data.count(f'\r\n{name}:'.encode()), 1)
                self.assertEqual(
                    field(data, name), 'a@example.com, b@example.com')

    def test_texts(self):
        "Test different texts are an error, and equal texts leave once"
        for name in ['Subject', 'Sender', 'Date', 'Message-ID']:
            for values, count in [(['a', 'a'], 1), (['a', 'b'], None)]:
                message = Message()
                for value in values:
                    message[name] = value
                with self.subTest(name, values=values):
                    if count:
                        data = prepare(message, HOST)
                        self.assertEqual(
                            data.count(f'\n{name}:'.encode())
                            + data.startswith(f'{name}:'.encode()), 1)
                        continue
                    with self.assertRaises(Invalid) as cm:
                        prepare(message, HOST)
                    self.assertEqual(cm.exception.reason, 'msg_message_twice')
                    self.assertEqual(cm.exception.value, name)

    def test_received(self):
        "Test fields that a message may have several times"
        message = Message()
        for _ in range(3):
            message['Received'] = 'from a'
        self.assertEqual(prepare(message, HOST).count(b'Received: '), 3)


class GivenBytesTestCase(unittest.TestCase):
    "Bytes and text"

    def test_bom(self):
        "Test a mark before the header is removed, but not a mark in a text"
        for rest in [b'Subject: x\r\n\r\n\xef\xbb\xbfa\r\n',
                b'From a@b Thu Jan  1 00:00:00 2026\r\nSubject: x\r\n\r\n']:
            data = prepare(b'\xef\xbb\xbf' + rest, HOST)
            self.assertEqual(describe(data)[0], 'x')
        self.assertIn(
            b'\r\n\r\n\xef\xbb\xbfHello', prepare(b'\xef\xbb\xbfHello', HOST))

    def test_date(self):
        "Test an added date is the due time"
        due = dt.datetime(2027, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc)
        for msg in [b'Subject: x\r\n\r\n', EmailMessage()]:
            data = prepare(msg, HOST, due=due.timestamp())
            found = parsedate_to_datetime(field(data, 'Date'))
            self.assertEqual(found.replace(tzinfo=dt.timezone.utc), due)


class CorpusTestCase(unittest.TestCase):
    "Test messages of others"

    def test_corpus(self):
        "Test each message leaves with its content"
        count = 0
        for name, data in messages():
            with self.subTest(name):
                self.assertEqual(compare(data), [])
            count += 1
        self.assertGreater(count, 20)
