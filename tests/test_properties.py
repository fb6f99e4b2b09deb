# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Whatever is accepted arrives as it was given; everything else has no effect.
"""
import email
import re
import string
from email.message import EmailMessage, Message

from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from trytond.modules.email_queue.address import on_the_wire
from trytond.modules.email_queue.exceptions import EmailQueueError
from trytond.modules.email_queue.recipients import split_addresses
from trytond.pool import Pool

from .test_queue import OWN_FIELDS, DeliveryTestCase

# The same examples in each run, with several emails in each example
REPEATABLE = settings(
    deadline=None, database=None, derandomize=True, max_examples=12,
    phases=[Phase.explicit, Phase.generate, Phase.shrink])


def some(*strategies):
    return st.lists(
        st.tuples(*strategies) if len(strategies) > 1 else strategies[0],
        min_size=1, max_size=10)


specials = '"\\<>()[],:;@. \t\r\n\0\x7f\x85\xa0\u2028\ufeff'
atext = string.ascii_letters + string.digits + "!#$%&'*+-/=?^_`{|}~."
foreign = 'äßéñ用戶ш한'

local_parts = st.one_of(
    st.text(atext, min_size=1, max_size=64),
    st.text(atext + foreign, min_size=1, max_size=20),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
    .map(lambda text: '"%s"' % re.sub(r'(["\\])', r'\\\1', text)))
# Without a look ahead, for which hypothesis would throw away most examples
labels = st.from_regex(
    r'[a-zA-Z0-9]{1,4}(-?[a-zA-Z0-9]{1,4}){1,2}', fullmatch=True)
domains = st.one_of(
    st.lists(labels, min_size=1, max_size=4).map('.'.join),
    st.sampled_from(['[127.0.0.1]', '[IPv6:2001:db8::1]', 'straße.de']))
mailboxes = st.builds('{}@{}'.format, local_parts, domains)
names = st.one_of(
    st.text(string.ascii_letters + ' .', max_size=20),
    st.text(st.characters(blacklist_categories=['Cc', 'Cs']), max_size=20)
    .map(lambda text: '"%s"' % re.sub(r'(["\\])', r'\\\1', text)))
comments = st.text(string.ascii_letters + '@,<>"', max_size=10).map('({})'
    .format)
anything = st.one_of(
    st.text(st.sampled_from('ab' + specials), max_size=30),
    st.text(max_size=30),
    st.lists(
        st.one_of(mailboxes, st.text(st.sampled_from(specials), max_size=3)),
        max_size=5).map(''.join))
values = st.text(
    st.characters(min_codepoint=33, max_codepoint=126,
        blacklist_characters='='),
    min_size=1, max_size=40)


@st.composite
def lists_of_addresses(draw):
    "Return addresses, and a text that has them in one of many ways"
    found, text = [], []
    for mailbox in draw(st.lists(mailboxes, min_size=1, max_size=5)):
        found.append(mailbox)
        way = draw(st.sampled_from(
                ['{}', '<{}>', ' {} ', '{name} <{}>', '{name}< {} >',
                    '{comment} {}', '{} {comment}', '{name}{comment}<{}>',
                    'Group: {};', 'Group:,{comment}, {} ,;']))
        text.append(way.format(
                mailbox, name=draw(names), comment=draw(comments)))
    return found, draw(st.sampled_from([',', ', ', ' ,, '])).join(text)


def ascii_domain(address):
    return address.replace('straße.de', 'xn--strae-oqa.de')


def once(addresses):
    found = {}
    for address in addresses:
        local, _, domain = address.rpartition('@')
        found.setdefault((local, domain.lower()), address)
    return tuple(found.values())


class PropertyTestCase(DeliveryTestCase):

    def check(self, batch):
        """Queue and send emails with these arguments.

        Return for each the mail that has arrived, None if the arguments are
        refused.
        """
        self.clear()
        records = [self.queued(**arguments) for arguments in batch]
        mails = iter(self.deliver(*(r['id'] for r in records if r)))
        found, verbs = [], []
        for record in records:
            mail = next(mails) if record else None
            if record:
                recipients = split_addresses(record['to_addrs'])
                self.assertEqual(
                    mail.from_addr or '<>',
                    on_the_wire(record['from_addr']))
                self.assertEqual(
                    list(mail.to_addrs), list(map(on_the_wire, recipients)))
                verbs += ['MAIL', *['RCPT' for _ in recipients], 'DATA']
            found.append(mail)
        if verbs:
            verbs = ['EHLO', *verbs, 'QUIT']
        self.assertEqual(
            [c.split()[0].upper() for _, c in self.server.commands], verbs)
        return found

    def queued(self, **arguments):
        "Return the values of the record, None if it is refused"
        arguments = {
            'from_addr': 'shop@example.com',
            'to_addrs': ['jane@example.com'],
            'msg': OWN_FIELDS,
            **arguments}
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            before = EmailQueue.search([], count=True)
            try:
                if arguments['to_addrs'] is None:
                    record, = EmailQueue.queue_message(**arguments)
                else:
                    record, = EmailQueue.queue_mail(**arguments)
            except EmailQueueError:
                self.assertEqual(EmailQueue.search([], count=True), before)
                return None
            record, = EmailQueue.read(
                [record.id], ['from_addr', 'to_addrs'])
            return record


class AnyAddressesTestCase(PropertyTestCase):
    "Test the envelope that arrives is the envelope that was given"

    @REPEATABLE
    @given(some(mailboxes, st.lists(mailboxes, min_size=1, max_size=5)))
    def test_mailboxes(self, batch):
        "Test every mailbox is accepted and arrives unchanged"
        mails = self.check(
            {'from_addr': from_addr, 'to_addrs': to_addrs}
            for from_addr, to_addrs in batch)
        for (from_addr, to_addrs), mail in zip(batch, mails):
            self.assertEqual(mail.from_addr, ascii_domain(from_addr))
            self.assertEqual(mail.to_addrs, once(map(ascii_domain, to_addrs)))

    @REPEATABLE
    @given(some(lists_of_addresses()))
    def test_written(self, batch):
        "Test mailboxes are found whatever is written around them"
        mails = self.check({'to_addrs': text} for _, text in batch)
        for (expected, _), mail in zip(batch, mails):
            self.assertEqual(mail.to_addrs, once(map(ascii_domain, expected)))

    @REPEATABLE
    @given(some(lists_of_addresses()))
    def test_headers(self, batch):
        "Test mailboxes are found in the header of a message"
        messages = []
        for _, text in batch:
            message = Message()
            message['From'] = 'shop@example.com'
            message['To'] = text
            message['Bcc'] = 'secret@example.com'
            messages.append(message)
        mails = self.check(
            {'msg': message, 'from_addr': None, 'to_addrs': None}
            for message in messages)
        for (expected, _), mail in zip(batch, mails):
            self.assertEqual(
                mail.to_addrs,
                once([*map(ascii_domain, expected), 'secret@example.com']))
            self.assertNotIn(b'secret', mail.data)

    @REPEATABLE
    @given(some(anything))
    @example(['a@example.com\r\nRCPT TO:<b@example.com>'])
    @example(['a@example.com> SIZE=1'])
    def test_anything(self, batch):
        "Test any text as sender and as recipients"
        self.check({'from_addr': text} for text in batch)
        self.check({'to_addrs': text} for text in batch)

    @REPEATABLE
    @given(some(st.lists(anything, max_size=3)))
    def test_any_list(self, batch):
        "Test any list of texts as recipients"
        mails = self.check({'to_addrs': to_addrs} for to_addrs in batch)
        for to_addrs, mail in zip(batch, mails):
            # Nothing arrives at an address that the text did not have
            for address in mail.to_addrs if mail else []:
                local = address.rpartition('@')[0]
                self.assertTrue(any(local in text for text in to_addrs))


class AnyOptionsTestCase(PropertyTestCase):
    "Test the options that arrive are the options that were given"

    @REPEATABLE
    @given(some(values, values))
    def test_values(self, batch):
        "Test every value is accepted and arrives unchanged"
        mails = self.check({
                'mail_options': ['RET=HDRS', f'ENVID={mail_value}'],
                'rcpt_options': f'NOTIFY=NEVER ORCPT={rcpt_value}',
                }
            for mail_value, rcpt_value in batch)
        for (mail_value, rcpt_value), mail in zip(batch, mails):
            self.assertEqual(
                mail.mail_options[:2], ('RET=HDRS', f'ENVID={mail_value}'))
            self.assertEqual(
                mail.rcpt_options['jane@example.com'],
                ('NOTIFY=NEVER', f'ORCPT={rcpt_value}'))

    @REPEATABLE
    @given(some(st.one_of(anything, values)))
    @example(['42\r\nRCPT TO:<b@example.com>'])
    def test_anything(self, batch):
        "Test any text as value"
        # What follows a blank is no option, because no server offers any name
        batch = [text.replace(' ', ' =') for text in batch]
        mails = self.check({
                'mail_options': [f'ENVID={text}'],
                'rcpt_options': [f'ORCPT={text}'],
                }
            for text in batch)
        for text, mail in zip(batch, mails):
            if mail:
                options = f'ENVID={text}'.split(' ')
                self.assertIn(options[0], mail.mail_options)


class AnyMessageTestCase(PropertyTestCase):
    "Test the bytes that arrive are the bytes that were given"

    lines = st.lists(st.one_of(
            st.binary(max_size=20),
            st.text(st.sampled_from('.From :\r\n\0aé'), max_size=10)
            .map(str.encode),
            st.sampled_from([
                    b'.', b'..', b'', b'From me', b'Bcc: x@example.com',
                    b'QUIT', b'\r', b'\n', b'x' * 3000])),
        max_size=8)
    line_ends = st.sampled_from([b'\r\n', b'\n', b'\r'])

    @staticmethod
    def normal(data):
        "Return the data with the line ends that it must have"
        lines = re.split(b'\r\n|\r|\n', data)
        if not lines[-1]:
            lines.pop()
        return b''.join(line + b'\r\n' for line in lines)

    @REPEATABLE
    @given(some(lines, line_ends))
    @example([([b'.', b'MAIL FROM:<x@example.com>'], b'\n')])
    def test_body(self, batch):
        "Test any body"
        batch = [
            OWN_FIELDS + b'\r\n' + line_end.join(lines)
            for lines, line_end in batch]
        mails = self.check({'msg': msg} for msg in batch)
        for msg, mail in zip(batch, mails):
            self.assertEqual(mail.data, self.normal(msg))

    @REPEATABLE
    @given(some(st.one_of(
                lines.map(b'\n'.join),
                st.text(st.characters(max_codepoint=127)),
                st.text(st.sampled_from('bBcC: \t\r\n-aFrom.')))))
    @example(['Bcc:\n x', 'From a\nBcc : x', ' \nBcc: x', 'Bcc', 'a\nBcc:x'])
    def test_anything(self, batch):
        "Test any bytes and text in ASCII"
        mails = self.check({'msg': msg} for msg in batch)
        for msg, mail in zip(batch, mails):
            received = email.message_from_bytes(mail.data)
            self.assertTrue(received['Message-ID'])
            self.assertIsNotNone(received['Date'])
            fields = re.match(
                rb'(?:[!-9;-~]+[ \t]*:.*\r\n(?:[ \t].*\r\n)*)*', mail.data)[0]
            self.assertIsNone(
                re.search(rb'(?im)^(resent-)?bcc[ \t]*:', fields))
            # Only lines of the header are removed
            lines = iter(mail.data.split(b'\r\n'))
            missing = [
                line for line in self.normal(
                    msg.encode() if isinstance(msg, str) else msg)
                .split(b'\r\n')
                if line not in lines]
            if missing:
                self.assertRegex(
                    missing[0],
                    rb'(?i)^(From |(bcc|resent-bcc|message-id)[ \t]*:)')

    @REPEATABLE
    @given(some(
            st.text(
                # A NUL in a field is refused
                st.characters(
                    blacklist_categories=['Cs'], blacklist_characters='\0'),
                max_size=50),
            st.text(st.characters(blacklist_categories=['Cs']), max_size=50),
            st.binary(max_size=50)))
    @example([("a", "From x\n.\n" + "y" * 2000, b'\r\n.\r\n')])
    def test_email_message(self, batch):
        "Test any text and attachment of an EmailMessage"
        messages = []
        for subject, text, attached in batch:
            message = EmailMessage()
            try:
                message['Subject'] = subject
            except ValueError:
                # A value that has line ends
                pass
            message.set_content(text)
            message.add_attachment(attached, 'application', 'octet-stream')
            messages.append(message)
        before = [message.items() for message in messages]
        mails = self.check({'msg': message} for message in messages)
        self.assertEqual([message.items() for message in messages], before)
        for (_, _, attached), message, mail in zip(batch, messages, mails):
            self.assertTrue(mail.data.isascii())
            received = email.message_from_bytes(
                mail.data, policy=message.policy)
            self.assertEqual(
                received.get_body().get_content().replace('\r\n', '\n'),
                message.get_body().get_content().replace('\r\n', '\n'))
            part, = received.iter_attachments()
            self.assertEqual(part.get_content(), attached)

    @REPEATABLE
    @given(some(
            st.text(), st.text(st.characters(blacklist_categories=['Cs'])),
            st.sampled_from(['Subject', 'X-Test'])))
    @example([
            ("a\n\nbody", "", 'Subject'), ("a\x0b\x0bbody", "", 'Subject'),
            ("a\nBcc: x", "", 'Subject')])
    def test_message(self, batch):
        "Test any field and body of a Message"
        messages = []
        for value, text, name in batch:
            message = Message()
            message[name] = value
            message['Bcc'] = 'secret@example.com'
            message.set_payload(text, 'utf-8')
            messages.append(message)
        mails = self.check({'msg': message} for message in messages)
        for (_, _, name), mail in zip(batch, mails):
            if mail:
                self.assertNotIn(b'secret', mail.data)
                received = email.message_from_bytes(mail.data)
                self.assertFalse(received.defects)
                self.assertEqual(
                    {*received.keys()} - {
                        'MIME-Version', 'Content-Type',
                        'Content-Transfer-Encoding'},
                    {'Message-ID', 'Date', name})
