# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
import copy
import unittest
from array import array
from base64 import b64encode
from email import message_from_bytes
from email.header import Header
from email.message import EmailMessage, Message
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.policy import SMTP, compat32, default
from email.utils import formataddr

from trytond.modules.email_queue.address import (
    Invalid, addresses, envelope_from, envelope_recipients, envelope_sender,
    envelope_to, esmtp_options)
from trytond.modules.email_queue.mime import decoded, describe, prepare
from trytond.modules.email_queue.recipients import split_addresses

HOST = 'host.example.com'
POLICIES = [compat32, default, SMTP]
# Texts that take some parsers much time or stack
MEGABYTE = 1024 * 1024
ENDLESS = {
    'commas': ',' * MEGABYTE,
    'semicolons': ';' * MEGABYTE,
    'colons': ':' * MEGABYTE,
    'blanks': ' ' * MEGABYTE,
    'blanks before': ' ' * MEGABYTE + 'x',
    'blanks after': 'jane@example.com' + ' ' * MEGABYTE + 'x',
    'open comments': '(' * MEGABYTE,
    'closed comments': ')' * MEGABYTE,
    'nested comments': '(' * (MEGABYTE // 2) + ')' * (MEGABYTE // 2),
    'comments': '()' * (MEGABYTE // 2) + 'x',
    'angles': '<' * MEGABYTE,
    'quotes': '"' * (MEGABYTE + 1),
    'escaped quotes': '"' + '\\"' * (MEGABYTE // 2),
    'backslashes': '\\' * MEGABYTE,
    'ats': '@' * MEGABYTE,
    'dots': '.' * MEGABYTE,
    'brackets': '[' * MEGABYTE,
    'words': 'a ' * (MEGABYTE // 2),
    'names': '"a" ' * (MEGABYTE // 4),
    'encoded words': '=?utf-8?q?a?= ' * (MEGABYTE // 14),
    'groups': 'g:' * (MEGABYTE // 2),
    'local part': 'a' * MEGABYTE + '@example.com',
    'domain': 'jane@' + 'a.' * (MEGABYTE // 2) + 'com',
    'foreign domain': 'jane@' + 'ü.' * (MEGABYTE // 2) + 'de',
    'foreign label': 'jane@' + 'ü' * MEGABYTE + '.de',
    'no address': 'a,' * (MEGABYTE // 2),
    }


class MessageTestCase(unittest.TestCase):

    def refused(self, reason, function, *args, argument=None, value=None):
        "Assert that an argument is refused and return the error"
        with self.assertRaises(Invalid) as cm:
            function(*args)
        error = cm.exception
        self.assertEqual(error.reason, f'msg_{reason}')
        if argument is not None:
            self.assertEqual(error.argument, argument)
        if value is not None:
            self.assertEqual(error.value, value)
        self.assertTrue(error.value.isprintable())
        return error


class AddressesTestCase(MessageTestCase):
    "Test the bare addresses of what a caller gives"

    accepted = {
        'john@example.com': ['john@example.com'],
        '<john@example.com>': ['john@example.com'],
        ' < john@example.com > ': ['john@example.com'],
        'John Doe <john@example.com>': ['john@example.com'],
        '"Doe, John" <john@example.com>': ['john@example.com'],
        '"Doe, \\"John\\"" <john@example.com>': ['john@example.com'],
        '"Doe" "John" <john@example.com>': ['john@example.com'],
        '"jane@example.com" <john@example.com>': ['john@example.com'],
        '[Shop] John <john@example.com>': ['john@example.com'],
        "Dr. J. O'Doe <john@example.com>": ['john@example.com'],
        'Jürgen <john@example.com>': ['john@example.com'],
        'J\xa0D <john@example.com>': ['john@example.com'],
        '=?utf-8?q?Doe=2C_John?= <john@example.com>': ['john@example.com'],
        '"=?utf-8?q?John?=" <john@example.com>': ['john@example.com'],
        '=?utf-8?q?a=0Ab?= <john@example.com>': ['john@example.com'],
        '=?utf-8?b?InggPHhAeS56Piwi?= <john@example.com>': [
            'john@example.com'],
        'john@example.com (John)': ['john@example.com'],
        '(John (\\) "Doe) (x@y)) john@example.com': ['john@example.com'],
        '"(" <john@example.com>': ['john@example.com'],
        'a@example.com,b@example.com': ['a@example.com', 'b@example.com'],
        'a@example.com, "b, c" <d@example.com>, (e, f) g@example.com': [
            'a@example.com', 'd@example.com', 'g@example.com'],
        'a@example.com, A@example.com, a@example.com': [
            'a@example.com', 'A@example.com', 'a@example.com'],
        ', a@example.com,, b@example.com,': [
            'a@example.com', 'b@example.com'],
        'Group: a@example.com, B <b@example.com>;': [
            'a@example.com', 'b@example.com'],
        'A: a@example.com;, "B:": ;, c@example.com, D: d@example.com ; ': [
            'a@example.com', 'c@example.com', 'd@example.com'],
        'undisclosed-recipients:;': [],
        '': [],
        ' ,, ': [],
        '(nobody@example.com)': [],
        'a@localhost': ['a@localhost'],
        'a@[127.0.0.1]': ['a@[127.0.0.1]'],
        'a@[IPv6:::1]': ['a@[IPv6:::1]'],
        'a@ex_ample.com': ['a@ex_ample.com'],
        'a+b=c/d@example.com': ['a+b=c/d@example.com'],
        '-a@example.com': ['-a@example.com'],
        '%s@example.com': ['%s@example.com'],
        'a..b.@example.com': ['a..b.@example.com'],
        '=?utf-8?q?a?=@example.com': ['=?utf-8?q?a?=@example.com'],
        '"a b"@example.com': ['"a b"@example.com'],
        '"a,b@c"@example.com': ['"a,b@c"@example.com'],
        '"a\\"b"@example.com': ['"a\\"b"@example.com'],
        '"a> SIZE=1"@example.com': ['"a> SIZE=1"@example.com'],
        '"(a)"@example.com (b)': ['"(a)"@example.com'],
        '"."@example.com': ['"."@example.com'],
        'John@Example.COM': ['John@Example.COM'],
        f'{"x" * 65}@example.com': [f'{"x" * 65}@example.com'],
        'jürgen@example.com': ['jürgen@example.com'],
        '"jür gen"@example.com': ['"jür gen"@example.com'],
        'info@straße.de': ['info@straße.de'],
        'info@xn--strae-oqa.de': ['info@straße.de'],
        'Jürgen <jürgen@STRASSE.de>': ['jürgen@STRASSE.de'],
        'info@Größe.de': ['info@größe.de'],
        'info@例え。テスト': ['info@例え.テスト'],
        'info@ｅxample．com': ['info@example.com'],
        }

    invalid = [
        'john', 'john@', '@example.com', 'john@@example.com',
        'john@jane@example.com', 'john @example.com', 'john@ example.com',
        'john@exam ple.com', 'jo hn@example.com', 'john(x)@example.com',
        'john@(x)example.com', 'john@example.com jane@example.com',
        'john@example.com <jane@example.com>',
        'john@example.com; jane@example.com', 'john@example.com;',
        'john@example.com:jane@example.com', 'Group: john@example.com',
        'A: B: john@example.com;', 'A: john@example.com; jane@example.com',
        ';', ':', '<>', '< >', '<john>', '<<john@example.com>>',
        '<john@example.com', 'john@example.com>',
        '<john@example.com> <jane@example.com>',
        'john@example.com> SIZE=1', '<john@example.com> John',
        '<@relay.example.com:john@example.com>',
        '@relay.example.com:john@example.com',
        'john@example.com (', 'john@example.com (()', 'john@example.com )',
        '"john@example.com', 'john@example.com"', '"', '"\\"',
        '"john"doe@example.com', 'john."doe"@example.com',
        'john\\@doe@example.com', '\\', 'john@example.com\\',
        '=?utf-8?q?john=40example.com?=', 'john@=?utf-8?q?example?=.com',
        '"jür\\ö"@example.com',
        'john@.com', 'john@example.', 'john@example..com', 'john@-a.com',
        'john@a-.com', 'john@exam!ple.com', 'john@[a b]', 'john@[]',
        'john@[127.0.0.1', 'john@127.0.0.1]', 'john@[127.0.0.1].com',
        'john@xn--zz--.de', 'john@xn--.de', 'john@☃.net', 'john@℀.com',
        'john@\u0300a.com', f'john@{"ü" * 64}.de', f'john@{"a" * 64}.de',
        'john@' + '.'.join(['a' * 60] * 5), f'{"x" * 501}@example.com',
        f'{"ü" * 251}@example.com',
        'john＠example.com', 'john@example.com，jane@example.com',
        ]

    # These characters are invisible, and some of them would end a line
    invisible = [
        '\x80', '\x85', '\x9f', '\xa0', '\xad', '\u061c', '\u1680', '\u180e',
        '\u2000', '\u200b', '\u200e', '\u2028', '\u2029', '\u202e', '\u2060',
        '\u3000', '\ufeff', '\ud800', '\udc85', '\udfff', '\ue000', '\uffff',
        '\U000e0001']

    control = [*map(chr, range(32)), '\x7f']

    def test_accepted(self):
        "Test what is accepted as an address"
        for text, expected in self.accepted.items():
            with self.subTest(text=text):
                self.assertEqual(addresses('to_addrs', text), expected)

    def test_invalid(self):
        "Test what is not an address"
        for text in self.invalid:
            with self.subTest(text=text):
                self.refused(
                    'address_invalid', addresses, 'to_addrs', text,
                    argument='to_addrs')

    def test_value(self):
        "Test the error names the one of many texts that is not an address"
        for text, value in [
                ('a@example.com, b@-, c@example.com', 'b@-'),
                ('a@example.com, b, c', 'b, c'),
                ('John <a@b@c>', 'John <a@b@c>'),
                ('a\u2028b@example.com', r"'a\u2028b@example.com'"),
                ]:
            with self.subTest(text=text):
                self.refused(
                    'address_invalid', addresses, 'to_addrs', text,
                    value=value)

    def test_invisible(self):
        "Test invisible characters are not accepted in a local part"
        for character in self.invisible:
            for text in ['{}john@example.com', 'jo{}hn@example.com',
                    'john{}@example.com', '"jo{}hn"@example.com',
                    'J <jo{}hn@example.com>']:
                with self.subTest(character=ascii(character), text=text):
                    self.refused(
                        'address_invalid', addresses, 'to_addrs',
                        text.format(character))

    def test_invisible_domain(self):
        "Test invisible characters do not get into a domain"
        for character in self.invisible:
            with self.subTest(character=ascii(character)):
                try:
                    address, = addresses(
                        'to_addrs', f'john@exam{character}ple.com')
                except Invalid as error:
                    self.assertEqual(error.reason, 'msg_address_invalid')
                else:
                    # IDNA ignores this character
                    self.assertEqual(address, 'john@example.com')

    def test_control(self):
        "Test control characters are refused wherever they are"
        for character in self.control:
            for text in [
                    '{}john@example.com', 'jo{}hn@example.com',
                    'john{}@example.com', 'john@{}example.com',
                    'john@example.com{}', '"jo{}hn"@example.com',
                    '"jo\\{}hn"@example.com', 'J{}D <john@example.com>',
                    '"J{}D" <john@example.com>',
                    'john@example.com ({})', '{}', 'john@[{}]',
                    'john@example.com,{} jane@example.com']:
                with self.subTest(character=ascii(character), text=text):
                    text = text.format(character)
                    self.refused(
                        'address_control', addresses, 'to_addrs', text,
                        argument='to_addrs', value=repr(text))

    def test_type(self):
        "Test a value that is no text is no address"
        for value in [None, 1, b'john@example.com', ['john@example.com']]:
            with self.subTest(value=value):
                self.refused(
                    'address_invalid', addresses, 'to_addrs', value,
                    value=repr(value))

    def test_endless(self):
        "Test texts of a megabyte neither hang nor overflow"
        for name, text in ENDLESS.items():
            with self.subTest(name):
                try:
                    self.assertEqual(addresses('to_addrs', text), [])
                except Invalid as error:
                    self.assertEqual(error.reason, 'msg_address_invalid')

    def test_many(self):
        "Test many addresses in one text"
        expected = [f'user{i}@example.com' for i in range(10000)]
        for text in [
                ', '.join(expected),
                ','.join(f'"User, {i}" <{a}>' for i, a in enumerate(expected)),
                f"All: {', '.join(expected)};",
                ]:
            self.assertEqual(addresses('to_addrs', text), expected)

    def test_again(self):
        "Test a returned address is accepted again unchanged"
        for text, expected in self.accepted.items():
            for address in expected:
                with self.subTest(address=address):
                    self.assertEqual(
                        addresses('to_addrs', address), [address])

    def test_split(self):
        "Test joined addresses are split again"
        found = [a for e in self.accepted.values() for a in e]
        self.assertEqual(split_addresses(', '.join(found)), found)
        for text in ['', None, ' ', ',', ' , ']:
            with self.subTest(text=text):
                self.assertEqual(split_addresses(text), [])


class EnvelopeTestCase(MessageTestCase):
    "Test sender, recipients and options of the envelope"

    def test_sender(self):
        "Test one sender"
        for value, expected in [
                ('shop@example.com', 'shop@example.com'),
                ('Shop <shop@example.com>', 'shop@example.com'),
                ('<>', '<>'),
                (' <> ', '<>'),
                ('shop@xn--strae-oqa.de', 'shop@straße.de'),
                ]:
            with self.subTest(value=value):
                self.assertEqual(envelope_from(value), expected)

    def test_sender_refused(self):
        "Test no sender, several senders, and texts that are no sender"
        for reason, value in [
                ('sender_missing', ''),
                ('sender_missing', ' '),
                ('sender_missing', 'Nobody:;'),
                ('address_several', 'a@example.com, b@example.com'),
                ('address_several', 'A: a@example.com, b@example.com;'),
                ('address_invalid', 'shop'),
                ('address_invalid', None),
                ('address_invalid', False),
                ('address_invalid', b'shop@example.com'),
                ('address_invalid', ['shop@example.com']),
                ('address_invalid', '<>, <>'),
                ('address_invalid', '<> SIZE=1'),
                ('address_control', '<>\r\n'),
                ('address_control', '\n<>'),
                ('address_control', '<\0>'),
                ('address_control', 'shop@example.com\r\nRCPT TO:<x@y.z>'),
                ]:
            with self.subTest(value=value):
                self.refused(
                    reason, envelope_from, value, argument='from_addr')

    def test_recipients(self):
        "Test recipients in every form"
        for value, expected in [
                ('john@example.com', ['john@example.com']),
                ('a@example.com, b@example.com', [
                        'a@example.com', 'b@example.com']),
                (['a@example.com', 'b@example.com'], [
                        'a@example.com', 'b@example.com']),
                (('a@example.com', 'b@example.com'), [
                        'a@example.com', 'b@example.com']),
                ((a for a in ['a@example.com', 'b@example.com']), [
                        'a@example.com', 'b@example.com']),
                ({'a@example.com': 1, 'b@example.com': 2}, [
                        'a@example.com', 'b@example.com']),
                ({'a@example.com'}, ['a@example.com']),
                (['"Doe, John" <john@example.com>'], ['john@example.com']),
                (['John: john@example.com;'], ['john@example.com']),
                ]:
            with self.subTest(value=value):
                self.assertEqual(envelope_to(value), expected)

    def test_recipients_once(self):
        "Test each recipient is there once, in order, as first written"
        self.assertEqual(
            envelope_to([
                    'b@example.com', 'a@example.com', 'B@example.com',
                    'b@EXAMPLE.com', 'a@example.com', 'a@straße.de',
                    'a@straße.de']),
            ['b@example.com', 'a@example.com', 'B@example.com',
                'a@straße.de'])

    def test_recipients_refused(self):
        "Test no recipient, and texts that are no recipient"
        for reason, value, shown in [
                ('recipient_missing', '', None),
                ('recipient_missing', ' , ', None),
                ('recipient_missing', 'Nobody:;', None),
                ('recipient_missing', [], '[]'),
                ('recipient_missing', (), None),
                ('recipient_missing', iter([]), '[]'),
                ('address_invalid', None, 'None'),
                ('address_invalid', 5, '5'),
                ('address_invalid', b'a@example.com', "b'a@example.com'"),
                ('address_invalid', bytearray(b'a@example.com'), None),
                ('address_invalid', ['a@example.com', ''], None),
                ('address_invalid', ['a@example.com', None], 'None'),
                ('address_invalid', [b'a@example.com'], None),
                ('address_invalid', [['a@example.com']], None),
                ('address_invalid', ['a@example.com', 'b'], 'b'),
                ('address_invalid', ['Nobody:;'], None),
                ('address_invalid', ['<>'], None),
                ('address_invalid', '<>', None),
                ('address_several', ['a@example.com, b@example.com'], None),
                ('address_control', ['a@example.com', 'b@example.com\n'],
                    r"'b@example.com\n'"),
                ('address_control', 'a@example.com\r\nDATA', None),
                ('address_control', 'a@example.com\0', None),
                ]:
            with self.subTest(value=value):
                self.refused(
                    reason, envelope_to, value, argument='to_addrs',
                    value=shown)

    def test_recipients_error(self):
        "Test an error of the caller's own iterable reaches the caller"
        def generator():
            yield 'a@example.com'
            raise ZeroDivisionError

        with self.assertRaises(ZeroDivisionError):
            envelope_to(generator())

    def test_options(self):
        "Test options in every form"
        for value, expected in [
                ((), []),
                ('', []),
                ([''], []),
                ('RET=HDRS', ['RET=HDRS']),
                ('RET=HDRS ENVID=42', ['RET=HDRS', 'ENVID=42']),
                ('  RET=HDRS  ENVID=42 ', ['RET=HDRS', 'ENVID=42']),
                (['RET=HDRS', 'ENVID=42'], ['RET=HDRS', 'ENVID=42']),
                (('RET=HDRS ENVID=42', 'SMTPUTF8'),
                    ['RET=HDRS', 'ENVID=42', 'SMTPUTF8']),
                (iter(['NOTIFY=SUCCESS,FAILURE']), ['NOTIFY=SUCCESS,FAILURE']),
                (['ORCPT=rfc822;Bob+2B@example.com'],
                    ['ORCPT=rfc822;Bob+2B@example.com']),
                (['AUTH=<>', 'X-1=a<b>"c"'], ['AUTH=<>', 'X-1=a<b>"c"']),
                ]:
            with self.subTest(value=value):
                self.assertEqual(
                    esmtp_options('mail_options', value), expected)

    def test_options_refused(self):
        "Test texts that are not options"
        for value in [
                None, 5, b'RET=HDRS', [b'RET=HDRS'], [None], [['RET=HDRS']],
                '=', '=HDRS', 'RET=', 'RET=A=B', '-A', '<a>', 'RET:HDRS',
                'a@example.com>', 'RET=ü', 'RÉT', 'RET=\x7f', 'RET=\x85',
                'RET=\u2028', 'RET=\ud800', 'RET=\xa0', 'RET\xa0=HDRS',
                *(f'RET=HDRS{c}' for c in AddressesTestCase.control),
                *(f'{c}RET=HDRS' for c in AddressesTestCase.control),
                *(f'RET={c}HDRS' for c in AddressesTestCase.control),
                *AddressesTestCase.control,
                'RET=HDRS\r\nRCPT TO:<x@y.z>',
                ['RET=HDRS', 'ENVID=4\n2'],
                ]:
            with self.subTest(value=value):
                for name in ['mail_options', 'rcpt_options']:
                    self.refused(
                        'option_invalid', esmtp_options, name, value,
                        argument=name)


class HeaderEnvelopeTestCase(MessageTestCase):
    "Test the envelope that the header names"

    # With the parser of the standard library it is not certain who gets them
    defective = {
        '[Shop] John <john@example.com>',
        '"=?utf-8?q?John?=" <john@example.com>',
        '=?utf-8?q?a=0Ab?= <john@example.com>',
        '=?utf-8?q?a?=@example.com',
        'a..b.@example.com',
        }

    def messages(self, **fields):
        "Yield the message as it is parsed and as it is made"
        fields = {n.replace('_', '-'): v for n, v in fields.items()}
        data = ''.join(f'{n}: {v}\n' for n, v in fields.items()) + '\n'
        for policy in POLICIES:
            yield message_from_bytes(data.encode(), policy=policy)
        for cls in [Message, EmailMessage]:
            message = cls()
            for name, value in fields.items():
                try:
                    message[name] = value
                except (AttributeError, IndexError, ValueError):
                    # Python refuses this, or its parser runs past the end
                    break
            else:
                yield message

    def test_sender(self):
        "Test Sender counts before From, and its first address counts"
        for fields, expected in [
                ({'From': 'a@example.com'}, 'a@example.com'),
                ({'From': 'a@example.com, b@example.com'}, 'a@example.com'),
                ({'From': 'a@example.com', 'Sender': 'B <b@example.com>'},
                    'b@example.com'),
                ({'from': 'ä <ä@straße.de>'}, 'ä@straße.de'),
                ({'From': 'a@example.com', 'Resent_Date': 'today',
                    'Resent_From': 'b@example.com'}, 'b@example.com'),
                ({'From': 'a@example.com', 'Resent_Date': 'today',
                    'Resent_From': 'b@example.com',
                    'Resent_Sender': 'c@example.com'}, 'c@example.com'),
                ({'From': 'a@example.com', 'Resent_From': 'b@example.com'},
                    'a@example.com'),
                ]:
            for message in self.messages(**fields):
                with self.subTest(fields=fields, message=type(message)):
                    self.assertEqual(envelope_sender(message), expected)

    def test_recipients(self):
        "Test To, Cc and Bcc are the recipients"
        for fields, expected in [
                ({'To': 'a@example.com', 'CC': 'b@example.com',
                        'bcc': 'c@example.com, D <d@example.com>'},
                    ['a@example.com', 'b@example.com', 'c@example.com',
                        'd@example.com']),
                ({'Bcc': 'a@example.com'}, ['a@example.com']),
                ({'To': 'undisclosed-recipients:;', 'Bcc': 'a@example.com'},
                    ['a@example.com']),
                ({'To': 'a@example.com', 'Resent_Date': 'today',
                        'Resent_To': 'b@example.com',
                        'Resent_Bcc': 'c@example.com'},
                    ['b@example.com', 'c@example.com']),
                ({'Subject': "nobody"}, []),
                ({'To': ''}, []),
                ]:
            for message in self.messages(**fields):
                with self.subTest(fields=fields, message=type(message)):
                    self.assertEqual(envelope_recipients(message), expected)

    def test_addresses(self):
        "Test an address is read alike as an argument and in a header"
        for text, expected in AddressesTestCase.accepted.items():
            for message in self.messages(To=text):
                with self.subTest(text=text, message=type(message)):
                    try:
                        found = envelope_recipients(message)
                    except Invalid as error:
                        # Python lost a part when the value was assigned
                        self.assertTrue(message['To'].defects)
                        self.assertEqual(error.reason, 'msg_message_broken')
                        self.assertIn(text, self.defective)
                    else:
                        self.assertEqual(
                            [a.replace('"."', '.') for a in found],
                            [a.replace('"."', '.') for a in expected])

    def test_refused(self):
        """Test a defective header is refused rather than that a recipient gets
        lost
        """
        for text in AddressesTestCase.invalid:
            for message in self.messages(To=text):
                with self.subTest(text=text, message=type(message)):
                    try:
                        found = envelope_recipients(message)
                    except Invalid:
                        continue
                    # Python corrected the value when it was assigned
                    self.assertIsInstance(message, EmailMessage)
                    self.assertEqual(', '.join(found), message['To'])

    def test_encoded_name(self):
        "Test an encoded name is no address, whatever is in it"
        for name in ['Doe, John', '" <x@example.com>, "', 'x@example.com,',
                'a\r\nBcc: x@example.com', '\\', '(', ')', '<', 'Jürgen; x:']:
            field = b64encode(name.encode()).decode()
            field = f'=?utf-8?b?{field}?= <john@example.com>'
            for message in self.messages(To=field):
                with self.subTest(name=name, message=type(message)):
                    self.assertEqual(
                        envelope_recipients(message), ['john@example.com'])

    def test_folded(self):
        "Test folded headers"
        for policy in POLICIES:
            message = message_from_bytes(
                b'To:\r\n =?utf-8?q?J=C3=BCrgen?=\r\n\t<a@example.com>,\r\n'
                b' b@example.com\r\n\r\n', policy=policy)
            with self.subTest(policy=policy):
                self.assertEqual(
                    envelope_recipients(message),
                    ['a@example.com', 'b@example.com'])

    def test_repeated(self):
        "Test fields that are there several times"
        for policy in POLICIES:
            message = message_from_bytes(
                b'To: a@example.com\nBcc: b@example.com\nTo: c@example.com\n'
                b'BCC: d@example.com\n\n', policy=policy)
            with self.subTest(policy=policy):
                self.assertEqual(
                    envelope_recipients(message),
                    ['a@example.com', 'c@example.com', 'b@example.com',
                        'd@example.com'])

    def test_latin_1(self):
        "Test 8-bit names in another charset"
        for policy in POLICIES:
            message = message_from_bytes(
                'To: Jürgen <a@example.com>\n\n'.encode('latin-1'),
                policy=policy)
            with self.subTest(policy=policy):
                self.assertEqual(
                    envelope_recipients(message), ['a@example.com'])
            message = message_from_bytes(
                'To: jürgen@example.com\n\n'.encode('latin-1'), policy=policy)
            with self.subTest(policy=policy):
                with self.assertRaises(Invalid):
                    envelope_recipients(message)

    def test_header_object(self):
        "Test a Header as value"
        message = Message()
        header = Header()
        header.append("Doe, Jürgen", 'utf-8')
        header.append("<a@example.com>", 'us-ascii')
        message['To'] = header
        message['Cc'] = formataddr(("Doe, Jürgen", 'b@example.com'))
        self.assertEqual(
            envelope_recipients(message), ['a@example.com', 'b@example.com'])

    def test_sender_missing(self):
        "Test a message without sender"
        for message in [Message(), EmailMessage()]:
            self.refused(
                'sender_missing', envelope_sender, message,
                argument='from_addr')

    def test_resent_twice(self):
        "Test several resent blocks are an error, because the last is unknown"
        message = message_from_bytes(
            b'Resent-Date: x\nResent-To: a@example.com\nResent-Date: y\n'
            b'Resent-To: b@example.com\n\n')
        for function in [envelope_sender, envelope_recipients]:
            self.refused(
                'message_resent', function, message, argument='msg',
                value='Resent-Date')

    def test_type(self):
        "Test a value that is not a message has no header"
        for value in [None, 'To: a@example.com', b'To: a@example.com', {}]:
            for function in [envelope_sender, envelope_recipients]:
                self.refused(
                    'message_type', function, value, argument='msg',
                    value=type(value).__name__)

    def test_broken(self):
        "Test values that are no text"
        class Broken:
            def __str__(self):
                raise ZeroDivisionError("broken")

        message = Message()
        message['To'] = Broken()
        self.refused(
            'message_broken', envelope_recipients, message, argument='msg',
            value="ZeroDivisionError: broken")
        message = Message()
        message['To'] = None
        with self.assertRaises(Invalid):
            envelope_recipients(message)


class PrepareTestCase(MessageTestCase):
    "Test the bytes that go over the wire"

    message_id = b'Message-ID: <1@example.com>\r\n'
    date = b'Date: Thu, 1 Jan 2026 00:00:00 +0000\r\n'
    own = message_id + date

    def prepare(self, msg, **keywords):
        data = prepare(msg, HOST, **keywords)
        self.assertIsInstance(data, bytes)
        self.assertEqual(data.count(b'\n'), data.count(b'\r\n'))
        self.assertEqual(data.count(b'\r'), data.count(b'\r\n'))
        self.assertTrue(data.endswith(b'\r\n'))
        # Prepared bytes are not changed by preparing them again
        self.assertEqual(prepare(data, HOST), data)
        return data

    def fields(self, data):
        "Return names and values of the header and the rest"
        header, _, rest = data.partition(b'\r\n\r\n')
        names = [line.partition(b':')[0] for line in header.split(b'\r\n')
            if line[:1] not in b' \t']
        return names, rest

    def test_kept(self):
        "Test bytes that need no change stay as they are"
        for data in [
                b'\r\n',
                b'\r\nBody\r\n',
                b'\r\n.\r\n..\r\n.a\r\nFrom \r\n>From\r\n',
                b'Subject: x\r\n\r\n' + bytes(set(range(256)) - {10, 13})
                + b'\r\n',
                b'X: ' + b'x' * 5000 + b'\r\n\r\n' + b'y' * 100000 + b'\r\n',
                b'Subject:x\r\nsubject : y\r\nSUBJECT:\r\n z\r\n\r\n\r\n\r\n',
                b'X: 1\r\nNo field\r\nBcc: x\r\n\r\n',
                b'X: \xff\xfe\r\n\r\n\0\r\n',
                b'X: y\r\n',
                b'\r\nBcc: a@example.com\r\n',
                ]:
            with self.subTest(data=data[:100]):
                self.assertEqual(self.prepare(self.own + data),
                    self.own + data)

    def test_line_ends(self):
        "Test bare CR and LF become CRLF"
        expected = self.own + b'Subject: x\r\n\r\na\r\n\r\nb\r\n'
        for end in [b'\r', b'\n', b'\r\n']:
            with self.subTest(end=end):
                self.assertEqual(
                    self.prepare(expected.replace(b'\r\n', end)), expected)
        self.assertEqual(
            self.prepare(self.own + b'\r\na\rb\nc\r\nd\r\r\ne\n\rf\r\n\n'),
            self.own + b'\r\na\r\nb\r\nc\r\nd\r\n\r\ne\r\n\r\nf\r\n\r\n')

    def test_last_line_end(self):
        "Test the last line gets its line end"
        for data in [b'\r\nBody', b'X: y', b'\r\nBody\r', b'\r\nBody\n']:
            with self.subTest(data=data):
                self.assertEqual(
                    self.prepare(self.own + data),
                    self.own + data.rstrip() + b'\r\n')

    def test_types(self):
        "Test bytes and text in every form"
        data = self.own + b'\r\nBody\r\n'
        for msg in [
                data, data.decode(), bytearray(data), memoryview(data),
                memoryview(array('B', data)),
                ]:
            with self.subTest(type=type(msg)):
                self.assertEqual(self.prepare(msg), data)

    def test_type_refused(self):
        "Test values that are not a message"
        for msg in [None, 5, [], ('a',), object(), {'a': 1}, Header('x')]:
            with self.subTest(msg=msg):
                self.refused(
                    'message_type', prepare, msg, HOST, argument='msg',
                    value=type(msg).__name__)

    def test_non_ascii(self):
        "Test text that is not ASCII is refused"
        for msg, value in [
                ('Subject: ü', "'ü'"), ('\n\n\x80', r"'\x80'"),
                ('\udcff', r"'\udcff'"), ('x' * 10000 + '€', "'€'")]:
            with self.subTest(msg=msg[:20]):
                self.refused(
                    'message_ascii', prepare, msg, HOST, argument='msg',
                    value=value)

    def test_added(self):
        "Test Message-ID and Date are added when absent"
        for data, added in [
                (b'Subject: x\r\n\r\n', [b'Message-ID', b'Date']),
                (b'\r\n', [b'Message-ID', b'Date']),
                (self.date + b'\r\n', [b'Message-ID']),
                (self.message_id + b'\r\n', [b'Date']),
                (b'Resent-' + self.message_id + b'Resent-' + self.date
                    + b'\r\n', [b'Message-ID', b'Date']),
                (b'\r\n' + self.own, [b'Message-ID', b'Date']),
                ]:
            with self.subTest(data=data):
                prepared = self.prepare(data)
                names, _ = self.fields(prepared)
                self.assertEqual(names[:len(added)], added)
                self.assertTrue(prepared.endswith(data))
                self.assertEqual(
                    prepared.count(b'\r\n'), data.count(b'\r\n') + len(added))

    def test_added_id(self):
        "Test an added Message-ID has the host, and differs each time"
        ids = set()
        for _ in range(100):
            _, message_id = describe(self.prepare(b'\r\n'))
            self.assertRegex(message_id, rf'^<[^<>@ ]+@{HOST}>$')
            ids.add(message_id)
        self.assertEqual(len(ids), 100)

    def test_own(self):
        "Test Message-ID and Date stay, also folded and in odd case"
        for message_id in [
                b'Message-ID: <1@example.com>', b'message-id:<1@example.com>',
                b'MESSAGE-ID :\t<1@example.com>',
                b'Message-Id:\r\n <1@example.com>',
                b'Message-ID:\r\n \r\n\t<1@example.com>',
                b'Message-ID: no id at all',
                b'Message-ID: <1@example.com>\r\nMessage-ID: <2@example.com>',
                ]:
            for date in [
                    b'Date: Thu, 1 Jan 2026 00:00:00 +0000', b'date:x',
                    b'DATE\t:\r\n Thu,\r\n\t1 Jan 2026 00:00:00 +0000',
                    b'Date:',
                    ]:
                data = message_id + b'\r\n' + date + b'\r\n\r\nBody\r\n'
                with self.subTest(data=data):
                    self.assertEqual(self.prepare(data), data)

    def test_empty_id(self):
        "Test an empty Message-ID counts as none"
        for field in [b'Message-ID:\r\n', b'message-id: \r\n \r\n']:
            with self.subTest(field=field):
                prepared = self.prepare(self.date + field + b'\r\nx\r\n')
                names, _ = self.fields(prepared)
                self.assertEqual(names, [b'Message-ID', b'Date'])
                self.assertIn(HOST, describe(prepared)[1])

    def test_without_header(self):
        "Test a text without header gets one and a blank line"
        for text in [
                b'Hello\r\n', b'Hello\r\n\r\nBcc: a@example.com\r\n',
                b' Hello\r\n', b'\tx: y\r\n', b'Dear John: hello\r\n',
                b': x\r\n', b'\xefx: y\r\n', b'.\r\n', b'\0\r\n',
                b'From now on\r\nall is well\r\n',
                b'From a@example.com Thu Jan  1 00:00:00 2026\r\n\r\nx\r\n',
                b'From \r\n',
                ]:
            with self.subTest(text=text):
                prepared = self.prepare(text)
                names, rest = self.fields(prepared)
                self.assertEqual(names, [b'Message-ID', b'Date'])
                self.assertEqual(rest, text)

    def test_empty(self):
        "Test an empty message"
        for msg in [b'', '', b'\n', Message(), EmailMessage()]:
            with self.subTest(msg=msg):
                names, rest = self.fields(self.prepare(msg))
                self.assertEqual(names, [b'Message-ID', b'Date'])
                self.assertEqual(rest, b'')

    def test_mbox_line(self):
        "Test the first line of an mbox is removed, and no other line"
        data = self.own + b'\r\nFrom x\r\n'
        line = b'From a@example.com Thu Jan  1 00:00:00 2026'
        for end in [b'\r\n', b'\n', b'\r']:
            with self.subTest(end=end):
                self.assertEqual(self.prepare(line + end + data), data)
        for policy in POLICIES:
            message = message_from_bytes(
                line + b'\r\n' + data, policy=policy)
            self.assertEqual(message.get_unixfrom(), line.decode())
            self.assertEqual(self.prepare(message), data)

    def test_dropped(self):
        "Test fields that are removed, however they are written"
        rest = b'Subject: x\r\n y\r\n\r\nBcc: body@example.com\r\n'
        for field in [
                b'Bcc: a@example.com',
                b'BCC: a@example.com',
                b'bcC:a@example.com',
                b'Bcc :a@example.com',
                b'Bcc \t : a@example.com',
                b'Bcc:',
                b'Bcc:\r\n a@example.com,\r\n\tb@example.com',
                b'Bcc: a@example.com,\r\n \r\n b@example.com',
                b'Bcc: a@example.com\r\nbcc: b@example.com',
                b'Bcc: a@example.com\nBcc: b@example.com\rBCC: c@example.com',
                b'Resent-Bcc: a@example.com',
                b'RESENT-BCC\t:\r\n a@example.com',
                b'Return-Path: <a@example.com>',
                b'return-path:<>',
                b'Content-Length: 42',
                ]:
            for msg in [
                    field + b'\r\n' + self.own + rest,
                    self.own + field + b'\r\n' + rest,
                    self.own + b'Subject: x\r\n y\r\n' + field
                    + b'\r\n\r\nBcc: body@example.com\r\n',
                    ]:
                with self.subTest(msg=msg):
                    self.assertEqual(self.prepare(msg), self.own + rest)

    def test_not_dropped(self):
        "Test fields with names like those of removed fields stay"
        data = self.own + (
            b'X-Bcc: a@example.com\r\nBcc-X: a@example.com\r\n'
            b'Subject: x\r\n Bcc: a@example.com\r\n'
            b'Content-Length-X: 1\r\n\r\n')
        self.assertEqual(self.prepare(data), data)

    def test_dropped_all(self):
        "Test a header of which every field is removed"
        for data in [b'Bcc: a@example.com', b'Bcc: a@example.com\r\n\r\n']:
            prepared = self.prepare(data)
            self.assertNotIn(b'example.com', prepared.replace(
                    HOST.encode(), b''))
            self.assertEqual(
                self.fields(prepared)[0][:2], [b'Message-ID', b'Date'])

    def test_large(self):
        "Test headers and bodies of a megabyte do not hang"
        for data in [
                b'X: y' + b'\r\n z' * (MEGABYTE // 4) + b'\r\n',
                b'X: y\r\n' * (MEGABYTE // 6),
                b'Bcc: x\r\n' * (MEGABYTE // 8),
                b'x' * MEGABYTE + b'\r\n',
                b'x ' * (MEGABYTE // 2) + b'\r\n',
                b'\r\n' * (MEGABYTE // 2),
                b'\r\n' + b'.\r\n' * (MEGABYTE // 3),
                ]:
            with self.subTest(data=data[:10]):
                self.prepare(data)

    def test_message_dropped(self):
        "Test Bcc is removed from the header of a message"
        attached = EmailMessage()
        attached['Bcc'] = 'attached@example.com'
        attached.set_content("Bcc: attached@example.com\n")
        for message in [
                EmailMessage(),
                MIMEMultipart(),
                message_from_bytes(
                    b'Content-Type: multipart/mixed; boundary=x\n\n'
                    b'--x\n\n--x--\n'),
                ]:
            message['bCC'] = 'secret@example.com'
            message['Resent-Bcc'] = ', '.join(['secret@example.com'] * 20)
            message['Subject'] = "Test"
            if isinstance(message, EmailMessage):
                message.set_content("Bcc: body@example.com\n")
                message.add_attachment(attached)
            else:
                message.attach(MIMEText("Bcc: body@example.com\n"))
                message.set_boundary('x')
            with self.subTest(message=type(message)):
                data = self.prepare(message)
                self.assertNotIn(b'secret@', data)
                self.assertIn(b'\r\nBcc: body@example.com\r\n', data)
                if isinstance(message, EmailMessage):
                    self.assertEqual(
                        data.count(b'\r\nBcc: attached@example.com\r\n'), 2)

    def test_message_unchanged(self):
        "Test the caller's object is not changed"
        multipart = MIMEMultipart()
        multipart.attach(MIMEText("ü"))
        multipart.attach(MIMEText("x" * 2000))
        email = EmailMessage()
        email.set_content("x" * 2000)
        email.add_attachment(b'x' * 2000, 'application', 'pdf', cte='binary')
        parsed = message_from_bytes(
            b'From x\nA: b\nContent-Type: text/plain\n\n' + b'\xff' * 2000)
        for message in [multipart, email, parsed]:
            message['Bcc'] = 'secret@example.com'
            with self.subTest(message=type(message)):
                before = copy.deepcopy(message)
                self.prepare(message)
                self.assertEqual(message.items(), before.items())
                self.assertEqual(
                    message.get_unixfrom(), before.get_unixfrom())
                self.assertEqual(message.get_boundary(), None)
                for part, as_before in zip(message.walk(), before.walk()):
                    self.assertEqual(part.items(), as_before.items())
                    if not part.is_multipart():
                        self.assertEqual(
                            part.get_payload(), as_before.get_payload())
                self.prepare(message)

    def test_message_lines(self):
        "Test a message is in ASCII, in lines of at most 998 bytes"
        text = "ü " * 2000 + '\n' + "x" * 5000 + '\n'
        messages = []
        for policy in [default, SMTP, default.clone(cte_type='7bit'),
                default.clone(max_line_length=5000)]:
            message = EmailMessage(policy)
            message['Subject'] = "ü" * 500 + " " + "x " * 500
            message['References'] = '<x@example.com> ' * 100
            message.set_content(text)
            messages.append(message)
        message = EmailMessage(default.clone(max_line_length=None))
        message['Subject'] = "x " * 1000
        messages.append(message)
        for charset in ['utf-8', 'latin-1']:
            message = MIMEText(text, 'plain', charset)
            message['Subject'] = Header("ü" * 500, charset)
            messages.append(message)
        message = Message()
        message.set_payload("x" * 5000)
        messages.append(message)
        multipart = MIMEMultipart()
        multipart.attach(message)
        multipart.attach(MIMEText(text))
        messages.append(multipart)
        for message in messages:
            with self.subTest(message=str(message)[:200]):
                data = self.prepare(message)
                self.assertTrue(data.isascii())
                self.assertLessEqual(
                    max(map(len, data.split(b'\r\n'))), 998)

    def test_message_parsed(self):
        "Test a parsed message keeps its content, whatever its charset is"
        body = b'\xc3\xa9 = \xff\xfe. ' * 500 + b'\r\n.\r\n'
        for charset in [
                b'', b'; charset=utf-8', b'; charset=us-ascii',
                b'; charset=latin-1', b'; charset=utf-16',
                b'; charset=unknown', b'; charset=']:
            for encoding in [b'', b'7bit', b'8bit', b' 8BIT ', b'binary']:
                for type_ in [b'text/plain', b'application/pdf']:
                    data = b'Content-Type: ' + type_ + charset + b'\r\n'
                    if encoding:
                        data += (b'Content-Transfer-Encoding: ' + encoding
                            + b'\r\n')
                    data += b'\r\n' + body
                    for policy in POLICIES:
                        with self.subTest(
                                charset=charset, encoding=encoding,
                                type=type_, policy=policy):
                            data = self.prepare(
                                message_from_bytes(data, policy=policy))
                            self.assertTrue(data.isascii())
                            message = message_from_bytes(data, policy=policy)
                            self.assertEqual(
                                message.get_payload(decode=True)
                                .replace(b'\r\n', b'\n'),
                                body.replace(b'\r\n', b'\n'))

    def test_message_binary(self):
        "Test binary content arrives as it is"
        content = bytes(range(256)) * 20 + b'\r\r\n\n'
        message = EmailMessage()
        message.set_content(content, 'application', 'pdf', cte='binary')
        data = self.prepare(message)
        self.assertEqual(
            message_from_bytes(data).get_payload(decode=True), content)

    def test_message_base64(self):
        "Test content in base64 is in lines"
        message = MIMEApplication(bytes(range(256)) * 20)
        payload = message.get_payload()
        data = self.prepare(message)
        self.assertIn(payload.replace('\n', '\r\n').encode(), data)
        message.set_payload(payload.replace('\n', ''))
        self.assertIn(payload.replace('\n', '\r\n').encode(),
            self.prepare(message) + b'\r\n')

    def test_message_signed(self):
        "Test the parts of a signed message stay as they are"
        signed = (
            b'Content-Type: text/plain\r\n'
            b'X-Long: ' + b'x ' * 100 + b'\r\n\r\n' + b'y' * 2000 + b'\r\n')
        for policy in POLICIES:
            message = message_from_bytes(
                self.own + b'Content-Type: multipart/signed; boundary=b\r\n'
                b'\r\n--b\r\n' + signed
                + b'\r\n--b\r\nContent-Type: text/plain\r\n\r\nz\r\n--b--\r\n',
                policy=policy)
            with self.subTest(policy=policy):
                self.assertIn(signed, self.prepare(message))

    def test_message_from_lines(self):
        "Test a line that begins with From is not changed"
        for cls in [Message, EmailMessage]:
            message = cls()
            message.set_payload("From a\n.\n..b\nFrom c\n")
            data = self.prepare(message)
            self.assertTrue(
                data.endswith(b'\r\n\r\nFrom a\r\n.\r\n..b\r\nFrom c\r\n'))

    def test_message_utf8(self):
        "Test a header is in UTF-8 only if the addresses need it"
        message = EmailMessage()
        message['To'] = 'Jürgen <jürgen@example.com>'
        self.assertIn(
            'To: =?utf-8?q?J=C3=BCrgen?= <jürgen@example.com>\r\n'.encode(),
            self.prepare(message))
        message.replace_header('To', 'Jürgen <j@example.com>')
        self.assertTrue(self.prepare(message).isascii())
        message = MIMEText("ü", 'plain', 'utf-8')
        message['Subject'] = "Jürgen"
        self.assertTrue(self.prepare(message).isascii())

    def test_message_long_words(self):
        "Test long words after each other do not end the header"
        address = f'{"x" * 60}@{"y" * 60}.example.com'
        for cls in [EmailMessage, Message]:
            for value in [
                    f'{address}, z{address}, {address}',
                    f'{"x" * 100} {"y" * 100} <{address}>',
                    f'"{"x" * 100} {"y" * 100}" <{address}>',
                    ]:
                message = cls()
                message['To'] = value
                message['Bcc'] = 'secret@example.com'
                message.set_payload("body")
                with self.subTest(cls=cls, value=value):
                    data = self.prepare(message)
                    names, rest = self.fields(data)
                    self.assertEqual(
                        names, [b'Message-ID', b'Date', b'To'])
                    self.assertEqual(rest, b'body\r\n')
                    self.assertEqual(
                        envelope_recipients(message_from_bytes(data)),
                        addresses('to_addrs', value))

    def test_message_injection(self):
        "Test no value begins another field or ends the header"
        for line_end in ['\n', '\r', '\r\n', '\v', '\f', '\x1c', '\x85',
                '\u2028']:
            for text in ['X: y', '{}body', 'no field', '{}{}', 'X:', 'ü: y']:
                value = ("a{}" + text).format(*[line_end] * 3)
                message = Message()
                message['Subject'] = value
                message['Bcc'] = 'secret@example.com'
                message.set_payload("body")
                with self.subTest(value=ascii(value)):
                    try:
                        data = self.prepare(message)
                    except Invalid as error:
                        self.assertEqual(error.reason, 'msg_message_broken')
                    else:
                        names, rest = self.fields(data)
                        self.assertEqual(
                            names, [b'Message-ID', b'Date', b'Subject'])
                        self.assertEqual(rest, b'body\r\n')

    def test_message_injection_part(self):
        "Test no value of a part begins another field or ends its header"
        for name in ['a\nX: y', 'a\n\nbody', 'a\r\rbody', 'a"\n\n<b>']:
            part = MIMEApplication(b'x')
            part.add_header('Content-Disposition', 'attachment', filename=name)
            message = MIMEMultipart()
            message.attach(part)
            with self.subTest(name=name):
                self.refused('message_broken', prepare, message, HOST)

    def test_message_control(self):
        """Test that a character that only some take for a line end ends no
        field
        """
        for character in '\v\f\x1c\x1d\x1e':
            name = f'a{character}{character}body'
            part = MIMEApplication(b'x')
            part.add_header('Content-Disposition', 'attachment', filename=name)
            message = MIMEMultipart()
            message.attach(part)
            with self.subTest(name=ascii(name)):
                again, = message_from_bytes(
                    self.prepare(message)).get_payload()
                self.assertEqual(again.items(), part.items())

    def test_message_folded(self):
        "Test values that are folded in the right way"
        for value in ['a\n b', 'a\r\n\tb', 'a\n \n b', 'a\n']:
            message = Message()
            message['X-Test'] = value
            with self.subTest(value=value):
                names, _ = self.fields(self.prepare(message))
                self.assertEqual(
                    names, [b'Message-ID', b'Date', b'X-Test'])

    def test_message_names(self):
        "Test texts that are not the name of a field"
        for name in ['', 'a b', 'a:', 'ü', 'X\nBcc', 'a\r\n\r\nb', '\0', ' a']:
            message = Message()
            try:
                message[name] = 'x'
            except ValueError:
                # As newer versions of Python write it
                continue
            with self.subTest(name=name):
                self.refused(
                    'message_broken', prepare, message, HOST, argument='msg')

    def test_message_broken(self):
        "Test objects that are no valid messages"
        itself = Message()
        itself.attach(itself)
        deep = message = Message()
        for _ in range(2000):
            message['Content-Type'] = 'multipart/mixed'
            part = Message()
            message.attach(part)
            message = part
        payloads = []
        for payload in [[1, 2], object(), 5, 'ü', 'ü' * 2000, '€', '\ud800']:
            message = Message()
            message.set_payload(payload)
            payloads.append(message)
        values = []
        for value in [5, b'x', object(), '\ud800']:
            message = Message()
            message['X'] = value
            values.append(message)
        number = Message()
        number[5] = 'x'
        for message in [itself, deep, *payloads, *values, number]:
            with self.subTest(message={**vars(message)}):
                self.refused(
                    'message_broken', prepare, message, HOST, argument='msg')

    def test_message_uncommon(self):
        "Test messages that the standard library cannot write or copy"
        policy = Message()
        policy.policy = None
        uncopied = Message()
        uncopied.lock = (x for x in [])
        for message in [policy, uncopied]:
            message.set_payload("body")
            with self.subTest(message={**vars(message)}):
                self.assertTrue(
                    self.prepare(message).endswith(b'\r\n\r\nbody\r\n'))


class DescribeTestCase(MessageTestCase):
    "Test what a person reads of a message"

    def test_subject(self):
        "Test the subject is decoded, whatever is in it"
        for value, expected in [
                (b'Hello', "Hello"),
                (b'', ""),
                (b'  Hello \t World ', "Hello World"),
                (b'Hello\r\n World\r\n\t!', "Hello World !"),
                (b'\r\n Hello', "Hello"),
                (b'=?utf-8?q?J=C3=BCrgen?=', "Jürgen"),
                (b'=?UTF-8?B?SsO8cmdlbg==?=', "Jürgen"),
                (b'=?iso-8859-1?q?J=FCrgen_=26?= Co', "Jürgen & Co"),
                (b'=?utf-8*de?q?J=C3=BCrgen?=', "Jürgen"),
                (b'=?utf-8?q?J=C3=BC?=\r\n =?utf-8?q?rgen?=', "Jürgen"),
                (b'=?utf-8?q?a?= b =?utf-8?q?c?=', "a b c"),
                ('Jürgen'.encode(), "Jürgen"),
                ('Jürgen'.encode('latin-1'), "Jürgen"),
                (b'\xff\xfe', "ÿþ"),
                ('=?utf-8?q?J=C3=BCrgen?= ü'.encode(), None),
                (b'=?utf-8?q?=FF?=', "\ufffd"),
                (b'=?utf-8?b?A?=', ""),
                (b'=?utf-8?b?A===?=', None),
                (b'=?no-such?q?x?=', "x"),
                (b'=?unknown-8bit?q?=FF?=', None),
                (b'=?idna?q?xn--?=', None),
                (b'=?undefined?q?x?=', None),
                (b'=?rot13?q?x?=', None),
                (b'=?utf-16?q?x?=', None),
                (b'=?a\0b?q?x?=', None),
                ('=?ü?q?x?='.encode(), None),
                (b'=?' + b'x' * 5000 + b'?q?x?=', None),
                (b'a\0b\x7fc\x1bd', "a b c d"),
                (b'=?utf-8?q?a=00b=0D=0Ac?=', "a b c"),
                (b'=?utf-8?q?a=E2=80=A8b=C2=85c?=', "a b c"),
                (b'=?utf-8?q?=E2=80=AEevil?=', "evil"),
                (b'=?utf-7?q?+2AA-?=', "?"),
                (b'\xed\xa0\x80', None),
                (b'x' * 10000, "x" * 998),
                ('€'.encode() * 10000, "€" * 332),
                (b' =?utf-8?q?=E2=82=AC?=\r\n' * 10000, "€" * 332),
                ]:
            data = b'X: y\r\nSubject:' + value + b'\r\n\r\nSubject: z\r\n'
            with self.subTest(value=value[:100]):
                subject, message_id = describe(data)
                if expected is not None:
                    self.assertEqual(subject, expected)
                self.assertTrue(subject.isprintable())
                self.assertEqual(subject, ' '.join(subject.split()))
                subject.encode('utf-8')
                self.assertLessEqual(len(subject), 998)
                self.assertEqual(message_id, "")

    def test_message(self):
        "Test the subject of a message"
        for subject in ["Jürgen & €", "x " * 200, "Re: a, b; c", "\u200d🙂"]:
            message = EmailMessage()
            message['Subject'] = subject
            mime = MIMEText("")
            mime['Subject'] = Header(subject, 'utf-8')
            for msg in [message, mime]:
                with self.subTest(subject=subject, message=type(msg)):
                    self.assertEqual(
                        describe(prepare(msg, HOST))[0],
                        ' '.join(subject.replace('\u200d', ' ').split()))

    def test_absent(self):
        "Test messages without subject"
        for data in [b'', b'\r\n', b'\r\nSubject: x\r\n', b'X: y\r\n\r\n']:
            with self.subTest(data=data):
                self.assertEqual(describe(data), ("", ""))

    def test_first(self):
        "Test the first of several fields counts, in any case"
        self.assertEqual(
            describe(
                b'SUBJECT : a\r\nSubject: b\r\n'
                b'message-id:\r\n <1@example.com>\r\n'
                b'Message-ID: <2@example.com>\r\n\r\n'),
            ("a", "<1@example.com>"))

    def test_endless(self):
        "Test subjects of a megabyte do not hang"
        for value in [
                b'x', b'=?', b'=?utf-8?q?a?= ', b'=?utf-8?b?YQ==?= ', b'?',
                b'=', b' ', b'x ', b'=?a?q?', b'\r\n ', b'\xff',
                b'=?utf-8?q?a?= x ', b'\t', b'\0']:
            with self.subTest(value=value):
                field = b'Subject:' + value * (MEGABYTE // len(value))
                self.assertLessEqual(len(decoded(field)), 998)
