# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""No text or message of others takes more than linear time."""
import email
import time
import unittest
from email.policy import compat32, default

from .. import (
    address, behalf, mime, original, preview, recipients, replies, smtp, words)
from ..address import Invalid
from .tools import configured

# How many characters there are, and how many times as many in the longer text
SIZE, TIMES = 6000, 4
# Linear is 4 times as long, n log n 5 times; very short times do not count
LONGER, FLOOR = 6, .004
HEADERS = {
    'punycode': (b'Subject: =?punycode?q?', b'z', b'?='),
    'idna': (b'Subject: =?idna?q?xn--', b'a', b'?='),
    'unicode_escape': (b'Subject: =?unicode_escape?q?', b'\\\\x41', b'?='),
    'encoded words': (b'Subject: ', b'=?utf-8?q?a?= ', b''),
    'many charsets': (b'Subject: ', b'=?a?q?a?= =?b?q?b?= ', b''),
    'half words': (b'Subject: ', b'=?a?q?', b''),
    'question marks': (b'Subject: ', b'=?', b''),
    'base64 word': (b'Subject: =?utf-8?b?', b'A', b'?='),
    'xn--': (b'Subject: ', b'xn--a.', b''),
    'dots': (b'Subject: ', b'a.', b''),
    'folded': (b'Subject:', b'\r\n y', b''),
    'blanks': (b'Subject: x', b' ', b'y'),
    'to': (b'To: ', b'a@example.com, ', b''),
    'to idn': ('To: ü '.encode(), 'a@straße.de, '.encode(), b''),
    'to names': (b'To: ', '"ü, x" <a@example.com>, '.encode(), b''),
    'to angles': ('To: ü'.encode(), b'<', b''),
    'to quotes': ('To: ü'.encode(), b'"', b''),
    'to comments': ('To: ü'.encode(), b'(', b''),
    'from': (b'From: ', b'a@example.com, ', b''),
    'from quotes': (b'From: ', b'"a" ', b'<a@example.com>'),
    'from open quotes': (b'From: ', b'"', b''),
    'from angles': (b'From: ', b'<', b''),
    'on behalf of': (b'On-Behalf-Of: ', b'a" <', b''),
    'on behalf of words': (b'On-Behalf-Of: ', b'=?utf-8?q?a?= ', b'@'),
    'semicolons': (b'Content-Type: text/plain; a="', b';', b'"'),
    'open quotes': (b'Content-Type: text/plain', b'; a="x', b''),
    'continued': (b'Content-Type: text/plain', b'; a*0="x"', b''),
    'raw name': (
        b'Content-Disposition: attachment', '; filename="ü"'.encode(), b''),
    'fields': (b'', b'X: y\r\n', b''),
    'same fields': (b'', b'To: a@example.com\r\n', b''),
    }
BODIES = {
    'parts': (
        b'multipart/mixed; boundary=b',
        b'--b\r\nContent-Type: text/plain; a=";;;;"\r\n\r\nx\r\n'),
    'boundaries': (b'multipart/mixed; boundary=b', b'--b\r\n'),
    **{
        f'html {text[:12]}': (b'text/html', text.encode()) for text in [
            '</script ', '<script ', '<script>', '<style>', '<div>', '<b>',
            '<table><tr><td>', '<a href=x>', '<', '<!--', '<!--x-->', '&#',
            '&#x1;', '&amp', '<p>x', '<form><p>', '<!doctype ', '<?x ',
            '<a ', 'a=1 ', '</', '<li>', '<select><option>', ']]>']},
    'attributes': (b'text/html', b'<a '),
    'utf-7': (b'text/plain; charset=utf-7', b'+'),
    'hz': (b'text/plain; charset=hz', b'~{'),
    'iso-2022-jp': (b'text/plain; charset=iso-2022-jp', b'\x1b$B'),
    'nul': (b'text/plain', b'\0'),
    'long line': (b'text/plain', b'x'),
    '8 bit': (b'text/plain; charset=utf-8', 'ü\n'.encode()),
    'dots': (b'text/plain', b'.\r\n'),
    }
TEXTS = [
    'a', '@', 'a@', 'a@b,', '<', '"', '(', '\\', ':', ' ', '. ', 'xn--', 'ü',
    'a.', 'a@example.com ', '550 5.1.1 ', '\n', 'x@', '"a" ', '=?', 'a b ',
    '[', 'ü@straße.de,', 'user=']


def seconds(function, *args):
    "Return the processor time of the fastest of some calls"
    best = None
    for _ in range(3):
        start = time.process_time()
        try:
            function(*args)
        except Invalid:
            pass
        took = time.process_time() - start
        best = took if best is None else min(best, took)
    return best


class LinearTestCase(unittest.TestCase):

    def assertLinear(self, function, make):
        "Assert that four times as much takes about four times as long"
        for _ in range(3):
            short = seconds(function, make(SIZE))
            long = seconds(function, make(TIMES * SIZE))
            if long <= max(LONGER * short, FLOOR):
                return
        self.fail(f"{short * 1e3:.1f} ms, then {long * 1e3:.1f} ms")

    def messages(self):
        for name, (before, piece, after) in HEADERS.items():
            yield name, lambda size, before=before, piece=piece, after=after: (
                before + piece * (size // len(piece)) + after
                + b'\r\n\r\nx\r\n')
        for name, (type_, piece) in BODIES.items():
            yield name, lambda size, type_=type_, piece=piece: (
                b'Content-Type: ' + type_ + b'\r\n\r\n'
                + piece * (size // len(piece)))
        yield 'different attributes', lambda size: (
            b'Content-Type: text/html\r\n\r\n<a '
            + b''.join(b'a%d=1 ' % n for n in range(size // 7)) + b'>')

    def test_bytes(self):
        "Test functions that read the bytes of a message"
        for name, make in self.messages():
            for function in [
                    lambda data: mime.prepare(data, 'host'),
                    lambda data: mime.describe(
                        mime.with_crlf(data)),
                    lambda data: preview.read(data),
                    lambda data: preview.rich_text(
                        '\n'.join(preview.read(data).sources)),
                    lambda data: [
                        (p.file_name(1), p.body)
                        for p in preview.attached(data)],
                    lambda data: behalf.on_behalf(
                        None, 'a@example.com', mime.with_crlf(data)),
                    ]:
                with self.subTest(name), configured(
                        for_a='@example.net', from_='"x" <x@example.com>'):
                    self.assertLinear(function, make)

    def test_message(self):
        "Test functions that read a Message"
        for name, make in self.messages():
            for policy in [compat32, default]:
                def parsed(size):
                    return email.message_from_bytes(make(size), policy=policy)

                for function in [
                        lambda msg: mime.prepare(msg, 'host'),
                        address.envelope_recipients]:
                    with self.subTest(name, policy=policy):
                        self.assertLinear(function, parsed)

    def test_text(self):
        "Test functions that read a text"
        functions = [
            lambda text: address.addresses('x', text),
            lambda text: address.esmtp_options('x', text),
            address.on_the_wire,
            words.printable, words.decoded_words, words.with_domains,
            recipients.split_addresses,
            original.recipients_of,
            lambda text: recipients.remaining(text, text, text),
            lambda text: recipients.masked(
                text, 'a@example.com, b@example.com', 'b@example.com', 'x'),
            lambda text: recipients.masked(text, text, '', 'x'),
            lambda text: recipients.masked('550 a', 'a@b.de', text, 'x'),
            preview.html_text, preview.rich_text, replies.gist,
            smtp.server_name,
            lambda text: replies.verdict('rcpt', replies.Reply(550, text)),
            lambda text: mime.original_to([text]),
            ]
        for piece in TEXTS:
            for number, function in enumerate(functions):
                with self.subTest(piece, number=number):
                    self.assertLinear(
                        function, lambda size: piece * (size // len(piece)))

    def test_recipients(self):
        "Test ten thousand recipients"
        def row(size):
            people = [f'user{n}@example.com' for n in range(size // 4)]
            return (
                ', '.join(people), '\n'.join(people[::2]),
                '\n'.join(f'{a} 550 5.1.1 no {a}' for a in people[1::2]))

        self.assertLinear(
            lambda texts: recipients.remaining(*texts), row)
        self.assertLinear(
            lambda texts: recipients.masked(
                texts[2], texts[0], texts[1], 'x'), row)
        self.assertLinear(
            lambda texts: recipients.without(texts[2], lambda a: False), row)


if __name__ == '__main__':
    unittest.main()
