# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What a person reads of a message, whatever its bytes."""
import encodings.aliases
import time
import unittest
from email.message import EmailMessage

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .. import preview
from ..preview import Attachment, attached, html_text, read, rich_text

SECONDS = 3

NESTED = ''.join(
    f'Content-Type: multipart/mixed; boundary=b{n}\n\n--b{n}\n'
    for n in range(1000)).encode()
FRAGMENTS = [
    b'Content-Type: ', b'text/html', b'text/plain', b'multipart/mixed',
    b'message/rfc822', b'; charset=', b'; boundary=', b'; filename*0*=',
    b'utf-8', b'punycode', b'utf-7', b'idna', b'hex', b'undefined', b'"',
    b"''", b'%FF', b'Content-Transfer-Encoding: ', b'base64',
    b'quoted-printable', b'x-uuencode', b'Content-Disposition: attachment',
    b'\r\n', b'\n', b'\r', b'\r\n\r\n', b'--', b'--b', b'b', b'=', b'=?',
    b'=?utf-8?q?', b'=?punycode?b?', b'?=', b'Subject: ', b'<', b'</', b'<!--',
    b'<script>', b'<a href=', b'&#', b'&#99999999999999999999;', b'\x00',
    b'\xff\xfe', b'\xe2\x80\xae', b'9' * 5000]


def fragments():
    return st.lists(
        st.sampled_from(FRAGMENTS) | st.binary(max_size=9),
        max_size=40).map(b''.join)


class ReadingTestCase(unittest.TestCase):
    "Test what is read of a message"

    def assertReads(self, data):
        "Read the message, in time, and return what a database can store"
        start = time.process_time()
        reading = read(data)
        self.assertLess(time.process_time() - start, SECONDS)
        for text in [
                reading.text, reading.html,
                *(t for pair in reading.headers for t in pair),
                *(t for a in reading.attachments for t in a[:2]),
                ]:
            self.assertNotIn('\0', text)
            text.encode('utf-8')
            self.assertLessEqual(len(text), preview.TEXT_SIZE + 2)
        self.assertLessEqual(len(reading.attachments), preview.PARTS)
        return reading

    def test_message(self):
        "Test a message with all that messages have"
        msg = EmailMessage()
        msg['From'] = "Größe & Co <shop@example.com>"
        msg['To'] = "Jane <jane@example.com>"
        msg['Subject'] = "Your order – thank you"
        msg['X-Secret'] = "secret"
        msg.set_content("Grüße,\n\nthe shop\n")
        msg.add_alternative(
            "<html><head><title>No</title></head><body><p>Grüße,</p>"
            '<p>the <a href="https://example.com/">shop</a></p></body></html>',
            subtype='html')
        msg.add_attachment(
            b'%PDF' * 1000, maintype='application', subtype='pdf',
            filename="Rechnung für Jane.pdf")
        msg.add_attachment("a;b\n", subtype='csv', filename='data.csv')
        inner = EmailMessage()
        inner['Subject'] = "Forwarded"
        inner.set_content("Inner text")
        msg.add_attachment(inner)

        reading = self.assertReads(msg.as_bytes())

        self.assertEqual(reading.headers, [
                ('From', "Größe & Co <shop@example.com>"),
                ('To', "Jane <jane@example.com>"),
                ('Subject', "Your order – thank you"),
                ])
        self.assertEqual(reading.text, "Grüße,\n\nthe shop")
        self.assertEqual(
            reading.html, "Grüße,\n\nthe shop <https://example.com/>")
        self.assertEqual(
            [a[:2] for a in reading.attachments], [
                ("Rechnung für Jane.pdf", 'application/pdf'),
                ('data.csv', 'text/csv'),
                ('', 'message/rfc822'),
                ])
        self.assertEqual(reading.attachments[0].size, 4000)
        self.assertTrue(reading.complete)

    def test_plain(self):
        "Test a message without MIME"
        for data, text in [
                (b'Subject: Test\n\nHello\n', "Hello"),
                (b'\nHello', "Hello"),
                (b'Subject: Test', ""),
                (b'', ""),
                (b'\n\xc3\xa9', "é"),
                (b'\n\xe9', "é"),
                (b'\na\x00b\x1b[31m\xe2\x80\xaec', "ab[31mc"),
                ]:
            with self.subTest(data=data):
                self.assertEqual(self.assertReads(data).text, text)

    def test_filename(self):
        "Test names of attachments as programs write them"
        for disposition, name in [
                ('attachment; filename=a.pdf', "a.pdf"),
                ("attachment; filename*=utf-8''%C3%A9.pdf", "é.pdf"),
                ('attachment; filename="=?utf-8?q?=C3=A9.pdf?="', "é.pdf"),
                ("attachment; filename*0*=utf-8''%C3; filename*1*=%A9", "é"),
                ("attachment; filename*=nonsense''%C3%A9", "é"),
                ('attachment; filename="../../etc/passwd"',
                    "../../etc/passwd"),
                ('attachment; filename="a\tb"', "a b"),
                ('attachment', ""),
                ]:
            with self.subTest(disposition=disposition):
                attachment, = self.assertReads(
                    f'Content-Type: text/plain\n'
                    f'Content-Disposition: {disposition}\n\nHello'.encode()
                    ).attachments
                self.assertEqual(attachment.name, name)
                self.assertEqual(attachment.type, 'text/plain')

    def test_boundaries(self):
        "Test parts are found by the lines of the boundary"
        head = b'Content-Type: multipart/mixed; boundary="b c"\n\n'
        for body, text in [
                (b'--b c\n\nA\n--b c\n\nB\n--b c--\n', "A\nB"),
                (b'before\n--b c\n\nA\n--b c--\nafter', "A"),
                (b'--b c\n\nA\n--b cd\n--b c--', "A\n--b cd"),
                (b'--b c  \n\nA', "A"),
                (b'--b c--\n', ""),
                ]:
            with self.subTest(body=body):
                self.assertEqual(self.assertReads(head + body).text, text)

    def test_without_boundary(self):
        "Test a multipart message that has no parts"
        reading = self.assertReads(
            b'Content-Type: multipart/mixed\n\nHello\n')
        self.assertEqual(
            reading.attachments, [Attachment('', 'multipart/mixed', 7)])

    def test_charsets(self):
        "Test each codec of Python, and names of no codec"
        for charset in [
                *sorted({*encodings.aliases.aliases.values(), 'idna',
                        'punycode', 'undefined', 'unicode_escape',
                        'raw_unicode_escape', 'mbcs', 'oem'}),
                'x' * 1000, 'a\0b', '../os', 'os', '"', '=?utf-8?q?x?=']:
            with self.subTest(charset=charset):
                for body in [
                        b'Hello', b'x-' + b'a' * 200_000 + b'-99999999999',
                        b'\xff\xfe' * 100_000]:
                    self.assertReads(
                        f'Content-Type: text/plain; charset={charset}\n'
                        f'Subject: =?{charset}?q?Hello=FF?=\n\n'.encode()
                        + body)

    def test_base64(self):
        "Test bodies that are not quite base64"
        for body, text in [
                (b'SGVsbG8=', "Hello"), (b'SGVsbG8', "Hello"),
                (b'SGVs\nbG8', "Hello"), (b'S G*V\xffsbG8===', "Hello"),
                (b'S', ""), (b'SGVsb', "Hel"), (b'SA==SA==', None),
                (b'====', ""), (b'', ""),
                ]:
            with self.subTest(body=body):
                reading = self.assertReads(
                    b'Content-Transfer-Encoding: base64\n\n' + body)
                if text is not None:
                    self.assertEqual(reading.text, text)

    def test_bounds(self):
        "Test the bounds of what is shown"
        for size in [preview.TEXT_SIZE, preview.TEXT_SIZE + 1]:
            text = self.assertReads(b'\n' + b'a' * (size - 2)).text
            self.assertEqual(text.endswith('…'), size > preview.TEXT_SIZE)
        part = b'--b\nContent-Type: image/png\n\n\n'
        for count in [preview.PARTS, preview.PARTS + 1, 100_000]:
            reading = self.assertReads(
                b'Content-Type: multipart/mixed; boundary=b\n\n'
                + count * part + b'--b--')
            self.assertEqual(reading.complete, count <= preview.PARTS)
        self.assertFalse(self.assertReads(
                b'\n' + bytes(preview.READ_SIZE)).complete)

    def test_bombs(self):
        "Test messages that are made to take long"
        mib = 1024 ** 2
        content_type = b'Content-Type: multipart/mixed; boundary=b\n\n'
        for name, data in [
                ('nested', NESTED),
                ('nested alike', 5000 * (content_type + b'--b\n')),
                ('empty boundary', b'Content-Type: multipart/mixed; '
                    b'boundary=""\n\n' + b'--\n' * mib),
                ('almost boundaries', content_type + b'--bc\n' * mib),
                ('fields', b'Content-A: b\n' * mib),
                ('names', b''.join(
                        b'content-%d: b\n' % n for n in range(100_000))),
                ('long field', b'Subject: ' + b' a' * mib),
                ('words', b'Subject: ' + b'=?utf-8?q?a?= ' * mib),
                ('punycode', b'Subject: =?punycode?q?a-' + b'b' * mib + b'?='),
                ('parameters', b'Content-Type: text/plain'
                    + b'; a*0*="' * mib),
                ('semicolons', b'Content-Type: text/plain; a="' + b';' * mib),
                ('quoted-printable',
                    b'Content-Transfer-Encoding: quoted-printable\n\n'
                    + b'=' * 8 * mib),
                *(('html ' + repr(text), b'Content-Type: text/html\n\n'
                    + text * (preview.TEXT_SIZE // len(text)))
                    for text in [
                        b'<', b'<a', b'<!--', b'<a href=', b'<script>',
                        b'<script></', b'<a href="', b'< ', b'&', b'&#',
                        b'&#9', b'>', b'<a href   ', b' ', b'<p>', b'\n',
                        b"<a href='\"", b'</script ', b'<title>']),
                ]:
            with self.subTest(name=name):
                self.assertReads(data)

    @settings(
        deadline=None, suppress_health_check=[HealthCheck.too_slow],
        max_examples=300)
    @given(st.binary() | fragments())
    def test_bytes(self, data):
        "Test bytes that no program ever wrote"
        self.assertReads(data)

    @settings(
        deadline=None, suppress_health_check=[HealthCheck.too_slow],
        max_examples=200)
    @given(
        st.sampled_from(['', 'base64', 'quoted-printable']),
        st.sampled_from(['plain', 'html']), fragments())
    def test_body(self, encoding, subtype, body):
        "Test such bytes in a body"
        self.assertReads(
            b'Content-Type: multipart/mixed; boundary=b\n\n--b\n'
            + f'Content-Type: text/{subtype}; charset=utf-8\n'.encode()
            + f'Content-Transfer-Encoding: {encoding}\n\n'.encode() + body)

    @given(st.text(
            st.characters(exclude_categories=['C', 'Z']), min_size=1))
    @settings(deadline=None)
    def test_round_trip(self, text):
        "Test a text is read as it was written"
        msg = EmailMessage()
        msg.set_content(text, cte='base64')
        msg.add_attachment(
            text.encode(), maintype='application', subtype='x-test',
            filename='test')
        reading = self.assertReads(msg.as_bytes())
        self.assertEqual(reading.text, text)
        self.assertEqual(reading.attachments, [
                Attachment('test', 'application/x-test', len(text.encode()))])


class HTMLTestCase(unittest.TestCase):
    "Test the text of HTML"

    def test_text(self):
        for html, text in [
                ("a<br>b<br/>c", "a\nb\nc"),
                ("a\n  b", "a b"),
                ("<ul><li>a</li><li>b</li></ul>", "\n\n\n- a\n\n- b\n\n\n"),
                ("<td>a</td><td>b</td>", " a b"),
                ("a<script>alert('<b>')</script >b", "ab"),
                ("a<STYLE>b { c }</STYLE>d", "ad"),
                ("a<!-- <b> -->c<![endif]>d", "acd"),
                ("a<!-- b", "a"),
                ("a<script>b", "a"),
                ("a < b &lt; c &amp;nbsp; &eacute;", "a < b < c &nbsp; é"),
                ("&#8364;&#x20AC;&#99999999999;", "€€\ufffd"),
                ("<a href='https://example.com/?a&amp;b'>c</a>d",
                    "c <https://example.com/?a&b>d"),
                ("<a class=x href=https://example.com>c</a>",
                    "c <https://example.com>"),
                ("<a href='#top'>c</a>", "c"),
                ("<a>c</a>", "c"),
                ("<img src='https://example.com/track.png'>", ""),
                ]:
            with self.subTest(html=html):
                self.assertEqual(html_text(html), text)

    def test_rich_text(self):
        "Test the rich text has nothing but words and three styles"
        for html, rich in [
                ("a<br>b", "<div>a</div><div>b</div>"),
                ("<p>a</p><p>b</p>",
                    "<div>a</div><div><br></div><div>b</div>"),
                ("a<br>\n <b>b</b> <br> <i> </i> c",
                    "<div>a</div><div><b>b</b></div>"
                    "<div><i> </i> c</div>"),
                ("<h1>a</h1>b", "<div><b>a</b></div><div><br></div>"
                    "<div>b</div>"),
                ("a <strong>b</strong> <em>c</em> <u>d</u>",
                    "<div>a <b>b</b> <i>c</i> <u>d</u></div>"),
                # Only one style at a time
                ("<i>a<b>b<u>c</u></b>d</i>",
                    "<div><i>a</i><b>bc</b><i>d</i></div>"),
                ("a &lt;b&gt; &amp;lt; c",
                    "<div>a &lt;b&gt; &amp;lt; c</div>"),
                ("<a href='https://example.com/?a&amp;b' onclick='x()'>c</a>",
                    "<div><u>c</u> &lt;https://example.com/?a&amp;b&gt;"
                    "</div>"),
                ("<a href='javascript:x()'>c</a>",
                    "<div><u>c</u> &lt;javascript:x()&gt;</div>"),
                ("<img src='https://example.com/track.png' onerror=x()>", ""),
                ("<script>x()</script><style>b{}</style><svg onload=x()>", ""),
                ("<b style='background: url(//example.com)'>a</b>",
                    "<div><b>a</b></div>"),
                ("<iframe src=//a.example></iframe><form action=x>a</form>",
                    "<div>a</div>"),
                ("<!--<img src=x>--><![CDATA[<img src=x>]]>a",
                    "<div>]]&gt;a</div>"),
                ("&lt;img src=x onerror=x()&gt;",
                    "<div>&lt;img src=x onerror=x()&gt;</div>"),
                ("a\x1b\u2028b", "<div>a b</div>"),
                ("", ""),
                ]:
            with self.subTest(html=html):
                self.assertEqual(rich_text(html), rich)

    def test_rich_text_is_bounded(self):
        for html in [
                "<div>" * 26_000 + "a", "<b>a" * 32_000, "<br>a" * 26_000,
                "<b>a<i>" * 18_000, "a " * 64_000, "<a href=x>a" * 9000,
                ]:
            with self.subTest(html=html[:10]):
                rich = rich_text(html)
                self.assertLess(len(rich), 8 * preview.RICH_SIZE)
                self.assertLessEqual(
                    rich.count('<div>'), preview.RICH_LINES + 2)


class FileNameTestCase(unittest.TestCase):
    "Test the file names by which attachments are opened"

    def test_names(self):
        for type_, name, expected in [
                ('application/pdf', 'order.pdf', 'order.pdf'),
                ('application/pdf', '', '1.pdf'),
                ('application/pdf', '../../etc/x.pdf', '_.._etc_x.pdf'),
                ('application/pdf', 'C:\\x|y.pdf', 'C__x_y.pdf'),
                ('text/plain', 'readme', 'readme.txt'),
                ('x/unheard-of', '', '1'),
                ('application/pdf', 'a' * 300 + '.pdf', 'a' * 96 + '.pdf'),
                ]:
            part, = attached((
                    f'Content-Type: {type_}\r\n'
                    f'Content-Disposition: attachment; filename="{name}"\r\n'
                    '\r\nx').replace('C:\\', 'C:\\\\').encode())
            with self.subTest(type=type_, name=name):
                self.assertEqual(part.file_name(1), expected)

    def test_email(self):
        "Test an attached email is a file with its subject as name"
        part, = attached(
            b'Content-Type: message/rfc822\r\n\r\n'
            b'Subject: =?utf-8?q?Gr=C3=B6=C3=9Fe?= 1/2\r\n\r\nx')
        self.assertEqual(part.file_name(1), 'Größe 1_2.eml')
        self.assertTrue(part.body.startswith(b'Subject: '))
