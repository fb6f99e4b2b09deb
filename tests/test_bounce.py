# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What is read from a notice of non-delivery, and from bytes that are no
notice.

The notices of Postfix 3.7, Exim 4.96 and OpenSMTPD 6.8 in ``notices`` are
real; the other notices have the form that is documented.
"""
import random
import unittest
from pathlib import Path

from .. import bounce
from .test_linear import seconds

NOTICES = Path(__file__).parent / 'notices'
DEAD = 'rcpt-550-5.1.1-unknown@example.com'
UNKNOWN = '550 5.1.1 unknown'
# Name, envelope id, original recipient, status, words
READ = [
    ('postfix', '', DEAD, '5.1.1', UNKNOWN),
    ('postfix-headers', 'row4711', DEAD, '5.1.1', UNKNOWN),
    ('exim', '', '', '5.1.1', UNKNOWN),
    ('exim-headers', 'row4711', '', '5.1.1', UNKNOWN),
    ('opensmtpd', '', '', '5.1.1', UNKNOWN),
    ('opensmtpd-headers', '', '', '5.1.1', UNKNOWN),
    ('qmail', '', '', '5.1.1', UNKNOWN),
    ('gmail', '', '', '5.1.1',
        "550-5.1.1 The email account that you tried to reach does not exist. "
        "550 5.1.1 unknown"),
    ('exchange', '', '', '5.1.10',
        f"550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient {DEAD} not "
        "found by SMTP address lookup"),
    ('ses', '', '', '5.1.1', UNKNOWN),
    ]
SES_ID = (
    '<0100019a0000-aaaaaaaa-1234-5678-9abc-def012345678-000000'
    '@email.amazonses.com>')


def notice(
        recipients=None, message_id='<1@shop.example.com>', envelope_id='',
        kind='multipart/report; report-type=delivery-status',
        status_type='message/delivery-status', status=None,
        returned_type='text/rfc822-headers', returned=None, text='No.\n'):
    "Return the bytes of a notice; a recipient is a dict of its fields"
    if recipients is None:
        recipients = [{}]
    if status is None:
        blocks = ['Reporting-MTA: dns; relay.example.com\n' + (
                f'Original-Envelope-Id: {envelope_id}\n'
                if envelope_id else '')]
        for fields in recipients:
            fields = {
                'Final-Recipient': f'rfc822; {DEAD}',
                'Action': 'failed',
                'Status': '5.1.1',
                'Diagnostic-Code': f'smtp; {UNKNOWN}',
                **fields}
            blocks.append(''.join(
                    f'{n}: {v}\n' for n, v in fields.items() if v))
        status = '\n'.join(blocks)
    if returned is None:
        returned = f'Message-ID: {message_id}\nSubject: Invoice\n'
    return '\n'.join([
            'From: MAILER-DAEMON@relay.example.com',
            f'Content-Type: {kind}; boundary=b',
            '',
            '--b', '', text,
            '--b', f'Content-Type: {status_type}', '', status,
            '--b', f'Content-Type: {returned_type}', '', returned,
            '--b--', '']).encode('utf-8', 'surrogateescape')


class BounceReadTestCase(unittest.TestCase):

    def one(self, data):
        found = bounce.read(data)
        recipient, = found.recipients
        return found, recipient

    def test_servers(self):
        "Test the notices of mail servers"
        for name, envelope_id, original, status, words in READ:
            with self.subTest(name):
                data = (NOTICES / f'{name}.eml').read_bytes()
                for data in [data, data.replace(b'\r\n', b'\n')]:
                    found, recipient = self.one(data)
                    server = name.partition('-')[0]
                    message_id = f'<{server}.1@shop.example.com>'
                    if server == 'ses':
                        message_id = SES_ID
                    self.assertEqual(found.message_id, message_id)
                    self.assertEqual(found.envelope_id, envelope_id)
                    self.assertEqual(recipient, (
                            DEAD, original, 'failed', status, words))

    def test_all_are_read(self):
        self.assertEqual(
            {p.stem for p in NOTICES.glob('*.eml')},
            {name for name, *_ in READ} | {'postfix-delayed'})

    def test_delayed(self):
        _, recipient = self.one((NOTICES / 'postfix-delayed.eml').read_bytes())
        self.assertEqual(recipient.action, 'delayed')
        self.assertEqual(recipient.words, '451 4.2.0 later')

    def test_forms(self):
        "Test what other servers write in the fields"
        for fields, expected in [
                ({'Final-Recipient': 'rfc822;<a@x.test>'},
                    ('a@x.test', '', 'failed', '5.1.1', UNKNOWN)),
                ({'Final-Recipient': 'a@x.test (Jane)'},
                    ('a@x.test', '', 'failed', '5.1.1', UNKNOWN)),
                ({'Final-Recipient': 'UTF-8; a\\x{FC}@x.test'},
                    ('aü@x.test', '', 'failed', '5.1.1', UNKNOWN)),
                ({
                        'Final-Recipient': None,
                        'Original-Recipient': 'rfc822;b@x.test',
                        },
                    ('b@x.test', 'b@x.test', 'failed', '5.1.1', UNKNOWN)),
                ({'Action': 'Failed (really)'},
                    (DEAD, '', 'failed', '5.1.1', UNKNOWN)),
                ({'Action': None}, (DEAD, '', '', '5.1.1', UNKNOWN)),
                ({'Status': '5.0.0 (no)'},
                    (DEAD, '', 'failed', '5.1.1', UNKNOWN)),
                ({'Diagnostic-Code': None},
                    (DEAD, '', 'failed', '5.1.1', 'failed 5.1.1')),
                ({'Diagnostic-Code': 'smtp; 552 full\n  and more'},
                    (DEAD, '', 'failed', '5.1.1', '552 full and more')),
                ({'Diagnostic-Code': 'x; ' + 'y' * 5000},
                    (DEAD, '', 'failed', '5.1.1', 'y' * 500)),
                ({'Diagnostic-Code': 'smtp; 550 5.2.1 xn--strae-oqa.de'},
                    (DEAD, '', 'failed', '5.2.1', '550 5.2.1 straße.de')),
                ]:
            with self.subTest(fields=fields):
                _, recipient = self.one(notice([fields]))
                self.assertEqual(recipient, expected)

    def test_several(self):
        found = bounce.read(notice([
                    {'Final-Recipient': 'rfc822;a@x.test'},
                    {'Final-Recipient': 'rfc822;b@x.test',
                        'Action': 'relayed'}]))
        self.assertEqual(
            [(r.address, r.action) for r in found.recipients],
            [('a@x.test', 'failed'), ('b@x.test', 'relayed')])

    def test_global(self):
        "Test a notice about addresses in UTF-8 (RFC 6533)"
        found = bounce.read(notice(
                [{'Final-Recipient': 'utf-8; jürgen@straße.de'}, {}],
                status_type='message/global-delivery-status',
                returned_type='message/global-headers'))
        self.assertEqual(
            [r.address for r in found.recipients],
            ['jürgen@straße.de', DEAD])

    def test_message_id(self):
        "Test which of several Message-IDs is that of the returned message"
        for values, expected in [
                ({'returned_type': 'message/rfc822',
                    'returned': 'Message-ID:\n <2@x>\n\nMessage-ID: <3@x>\n'},
                    '<2@x>'),
                ({'status': 'X-Original-Message-ID: <4@x>\n\n'
                    f'Final-Recipient: {DEAD}\nAction: failed\n',
                    'returned': 'Subject: x\n'}, '<4@x>'),
                ({'status': 'X-Original-Message-ID: <4@x>\n\n'
                    f'Final-Recipient: {DEAD}\nAction: failed\n'},
                    '<1@shop.example.com>'),
                ]:
            with self.subTest(values=values):
                found = bounce.read(notice(**values))
                self.assertEqual(found.message_id, expected)

    def test_none(self):
        "Test bytes that are no notice"
        good = notice()
        inner = b'\n'.join([
                b'Content-Type: multipart/mixed; boundary=o', b'', b'--o',
                b'Content-Type: message/rfc822', b'', good, b'--o--', b''])
        for name, data in {
                'nothing': b'',
                'text': b'Subject: Test\r\n\r\nHello\r\n',
                'garbage': bytes(range(256)) * 40,
                'no bytes': None,
                'str': 'Subject: Test',
                'in what is returned': inner,
                'an alternative': notice(kind='multipart/alternative'),
                'without returned message': notice(returned='', message_id=''),
                'without recipients': notice([]),
                'too large': good + b'x' * bounce.SIZE,
                'a vacation': notice(status_type='text/plain'),
                'qmail of nobody': b'Subject: x\n\nHi. This is the end.\n',
                }.items():
            with self.subTest(name):
                self.assertIsNone(bounce.read(data))

    def test_large_message_returned(self):
        "Test a notice that returns a large message is read"
        data = notice(
            returned_type='message/rfc822',
            returned='Message-ID: <1@x>\n\n' + ('x' * 76 + '\n') * 60000)
        self.assertGreater(len(data), bounce.READ_SIZE)
        self.assertEqual(bounce.read(data).message_id, '<1@x>')

    def test_bounds(self):
        found = bounce.read(notice([{}] * (bounce.RECIPIENTS + 100)))
        self.assertEqual(len(found.recipients), bounce.RECIPIENTS)
        found = bounce.read(notice(message_id='<' + 'x' * 5000 + '>'))
        self.assertLessEqual(len(found.message_id), bounce.ID_LENGTH)

    def test_broken(self):
        "Test notices that are cut or mutilated raise nothing"
        chance = random.Random(15)
        for path in sorted(NOTICES.glob('*.eml')):
            data = path.read_bytes()
            for _ in range(60):
                broken = bytearray(data[:chance.randrange(len(data))])
                for _ in range(chance.randrange(20)):
                    if broken:
                        broken[chance.randrange(len(broken))] = (
                            chance.randrange(256))
                found = bounce.read(bytes(broken))
                self.assertIsInstance(found, bounce.Notice | None)

    def test_hostile(self):
        "Test errors of the standard library do not reach the caller"
        deep = b''.join(
            b'Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n' % (i, i)
            for i in range(3000))
        messages = b'Content-Type: message/rfc822\n\n' * 5000
        for name, data in {
                'parts': deep,
                'messages': messages,
                'charset': notice(
                    kind='multipart/report; charset="x\0y"'),
                'unknown charset': notice(
                    returned_type='text/rfc822-headers; charset=nonsense'),
                'punycode': notice(
                    returned_type='text/rfc822-headers; charset=punycode'),
                'encoding': notice(
                    status_type='message/delivery-status\n'
                    'Content-Transfer-Encoding: base64'),
                'surrogates': notice([{'Action': '\udcff\udcfe'}]),
                'xtext': notice(
                    [{'Final-Recipient': 'utf-8;\\x{FFFFFF}@x'}]),
                'many fields': notice([{f'X{i}': 'y' for i in range(9000)}]),
                }.items():
            with self.subTest(name):
                self.assertIsInstance(bounce.read(data), bounce.Notice | None)

    def test_linear(self):
        "Test every notice takes linear time"
        for name, make in {
                'text': lambda n: notice(text='a@x.test: b\n' * n),
                'recipients': lambda n: notice([{}] * (n // 20)),
                'words': lambda n: notice(
                    [{'Diagnostic-Code': 'x;' + '5.1.' * n}]),
                'encoded': lambda n: notice(
                    [{'Diagnostic-Code': 'x;' + '=?a?q?a?= ' * n}]),
                'blank lines': lambda n: notice(status='\n \n' * n),
                'qmail': lambda n: b'Subject: x\n\nHi. This is the \n'
                + b'<a@x>:\nno\n\n' * n,
                }.items():
            with self.subTest(name):
                short = max(seconds(bounce.read, make(4000)), .01)
                self.assertLess(seconds(bounce.read, make(16000)), 7 * short)
