# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The way from queue_mail to the bytes at a real server."""
import copy
import datetime as dt
import email
import os
import socket
from contextlib import ExitStack
from email.header import Header
from email.message import EmailMessage, Message
from email.mime.application import MIMEApplication
from email.mime.image import MIMEImage
from email.mime.message import MIMEMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from unittest.mock import patch

from sql import Table

from trytond.exceptions import UserError
from trytond.model.exceptions import AccessError
from trytond.modules.email_queue.exceptions import EmailQueueError
from trytond.pool import Pool
from trytond.transaction import Transaction

from .tools import MESSAGE, QueueTestCase, configured

OWN_FIELDS = (
    b'Message-ID: <1@example.com>\r\n'
    b'Date: Thu, 1 Jan 2026 00:00:00 +0000\r\n')
COMPLETE = OWN_FIELDS + MESSAGE
ADMIN = 1


class DeliveryTestCase(QueueTestCase):
    "A queue whose emails are delivered in the order of sending"

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # The time-outs of other servers are not the subject of these tests
        cls.enter(configured(connections=1, timeout=60, data_timeout=60))

    def clear(self):
        super().clear()
        self.server.commands.clear()

    def count(self):
        with self.transaction(readonly=True):
            return Pool().get('email.queue').search([], count=True)

    def queue_message(self, msg, **keywords):
        with self.transaction():
            email, = Pool().get('email.queue').queue_message(msg, **keywords)
            return email.id

    def deliver(self, *ids):
        "Send all emails, and return what has arrived of these emails"
        self.server.received.clear()
        self.send_all()
        self.assertEqual(self.server.violations, [])
        received = list(self.server.received)
        self.assertEqual(len(received), len(ids))
        for id_, mail in zip(ids, received):
            msg, size, state, error = self.read(
                id_, 'msg', 'size', 'state', 'error')
            self.assertEqual((state, error), ('sent', None))
            self.assertEqual(len(mail.data), len(msg))
            # unittest must not compute the difference of some megabytes
            self.assertTrue(mail.data == msg)
            self.assertEqual(size, len(msg))
        return received

    def delivered(self, msg, **keywords):
        "Queue one email, and return its bytes as they have arrived"
        mail, = self.deliver(self.queue(msg=msg, **keywords))
        return mail.data


class CallerTestCase(DeliveryTestCase):
    "Test an email is in the queue exactly if its transaction is committed"

    def test_commit(self):
        "Test an email of a transaction that commits stays"
        with self.transaction():
            records = Pool().get('email.queue').queue_mail(
                'shop@example.com', 'jane@example.com', COMPLETE)
            self.assertIsInstance(records, list)
            record, = records
            self.assertEqual(record.state, 'outbox')
        mail, = self.deliver(record.id)
        self.assertEqual(mail.data, COMPLETE)
        self.assertEqual(mail.from_addr, 'shop@example.com')
        self.assertEqual(mail.to_addrs, ('jane@example.com',))

    def test_values(self):
        "Test the values of a new record"
        before = dt.datetime.now()
        id_ = self.queue(msg=COMPLETE)
        after = dt.datetime.now()
        with self.transaction(readonly=True):
            record = Pool().get('email.queue')(id_)
            for name, value in {
                    'from_addr': 'shop@example.com',
                    'to_addrs': 'jane@example.com',
                    'msg': COMPLETE,
                    'size': len(COMPLETE),
                    'filename': 'Test.eml',
                    'rec_name': "Test",
                    'subject': "Test",
                    'message_id': '<1@example.com>',
                    'mail_options': '',
                    'rcpt_options': '',
                    'resource': None,
                    'priority': '20',
                    'expires_at': None,
                    'accepted': None,
                    'refused': None,
                    'attempts': 0,
                    'first_attempt': None,
                    'crashes': 0,
                    'slot': None,
                    'sent_at': None,
                    'error': None,
                    'state': 'outbox',
                    }.items():
                with self.subTest(name=name):
                    self.assertEqual(getattr(record, name), value)
            self.assertFalse(record.uncertain)
            self.assertTrue(before <= record.scheduled_at <= after)

    def test_rollback(self):
        "Test no email of a transaction that rolls back stays"
        with self.transaction() as transaction:
            Pool().get('email.queue').queue_mail(
                'shop@example.com', 'jane@example.com', MESSAGE)
            transaction.rollback()
        self.assertEqual(self.count(), 0)
        self.assertEqual(self.deliver(), [])

    def test_exception(self):
        "Test no email of a transaction that ends in an exception stays"
        with self.assertRaises(ZeroDivisionError):
            with self.transaction():
                Pool().get('email.queue').queue_message(
                    email.message_from_bytes(MESSAGE),
                    'shop@example.com', 'jane@example.com')
                1 / 0
        self.assertEqual(self.count(), 0)
        self.assertEqual(self.deliver(), [])

    def test_rollback_before(self):
        "Test an email that is queued after a rollback stays"
        with self.transaction() as transaction:
            queue_mail = Pool().get('email.queue').queue_mail
            queue_mail('shop@example.com', 'a@example.com', MESSAGE)
            transaction.rollback()
            record, = queue_mail('shop@example.com', 'b@example.com', MESSAGE)
        mail, = self.deliver(record.id)
        self.assertEqual(mail.to_addrs, ('b@example.com',))

    def test_no_rights(self):
        "Test a user without any right on the model queues"
        with self.transaction():
            user, = Pool().get('res.user').create(
                [{'name': "No Rights", 'login': 'no_rights'}])
            self.assertFalse(user.groups)
        self.addCleanup(self.delete_user, user.id)
        message = email.message_from_bytes(COMPLETE)
        with self.transaction(user.id, context={'_check_access': True}):
            pool = Pool()
            EmailQueue = pool.get('email.queue')
            mail, = EmailQueue.queue_mail(
                'shop@example.com', 'a@example.com', COMPLETE,
                resource='res.user,1')
            message, = EmailQueue.queue_message(
                message, 'shop@example.com', 'b@example.com')
            self.assertTrue(Transaction().check_access)
            for method, *args in [
                    (EmailQueue.search, []),
                    (EmailQueue.read, [mail.id], ['subject']),
                    (EmailQueue.write, [mail], {'subject': "x"}),
                    (EmailQueue.delete, [mail]),
                    ]:
                with self.assertRaises(AccessError):
                    method(*args)
        self.assertEqual(self.read(mail.id, 'create_uid'), user.id)
        self.deliver(mail.id, message.id)

    def delete_user(self, id_):
        # A user is never deleted by its model
        with self.transaction() as transaction:
            user = Table('res_user')
            transaction.connection.cursor().execute(
                *user.delete(where=user.id == id_))

    def test_users(self):
        "Test root and administrator can queue, with and without checks"
        for user in [0, ADMIN]:
            for check_access in [True, False]:
                with self.subTest(user=user, check_access=check_access):
                    with self.transaction(
                            user, context={'_check_access': check_access}):
                        record, = Pool().get('email.queue').queue_mail(
                            'shop@example.com', 'jane@example.com', MESSAGE)
                    self.deliver(record.id)

    def test_network(self):
        "Test queueing never uses the network"
        message = MIMEText("x")
        message['From'] = 'shop@straße.de'
        message['To'] = 'jane@example.com'
        with self.transaction(), ExitStack() as stack:
            for target, name in [
                    (socket.socket, 'connect'),
                    (socket.socket, 'connect_ex'),
                    (socket.socket, 'sendto'),
                    (socket, 'create_connection'),
                    (socket, 'getaddrinfo'),
                    (socket, 'gethostbyname'),
                    (socket, 'gethostbyname_ex'),
                    (socket, 'gethostbyaddr'),
                    (socket, 'getnameinfo'),
                    (socket, 'getfqdn'),
                    ]:
                stack.enter_context(patch.object(
                        target, name, side_effect=AssertionError(name)))
            with self.assertRaises(AssertionError):
                socket.create_connection(('127.0.0.1', self.server.port))
            EmailQueue = Pool().get('email.queue')
            first, = EmailQueue.queue_mail(
                'shop@example.com', 'jane@example.com', b'x')
            second, = EmailQueue.queue_message(message)
        self.deliver(first.id, second.id)


class ContentTestCase(DeliveryTestCase):
    "Test the message that arrives is the message that was given"

    def assertSame(self, msg, expected):
        data = self.delivered(msg)
        self.assertEqual(len(data), len(expected))
        self.assertTrue(data == expected)

    def assertNormal(self, data):
        "Assert that every line has its end and at most 998 bytes of ASCII"
        self.assertTrue(data.isascii())
        self.assertEqual(data.count(b'\n'), data.count(b'\r\n'))
        self.assertEqual(data.count(b'\r'), data.count(b'\r\n'))
        self.assertLessEqual(max(map(len, data.split(b'\r\n'))), 998)

    def test_bytes(self):
        "Test bytes in every form"
        for type_ in [bytes, bytearray, memoryview]:
            with self.subTest(type=type_):
                self.assertSame(type_(COMPLETE), COMPLETE)

    def test_str(self):
        "Test text in ASCII"
        self.assertSame(COMPLETE.decode(), COMPLETE)
        self.assertSame(COMPLETE.decode().replace('\r\n', '\n'), COMPLETE)

    def test_message(self):
        "Test a Message as the standard library makes it"
        message = Message()
        message['Subject'] = Header("Jürgen", 'utf-8')
        message.set_payload("Hello\nJürgen", 'utf-8')
        data = self.delivered(message)
        self.assertNormal(data)
        received = email.message_from_bytes(data)
        self.assertEqual(
            received.get_payload(decode=True).decode().splitlines(),
            ["Hello", "Jürgen"])

    def test_email_message(self):
        "Test an EmailMessage with alternative and attachment"
        message = EmailMessage()
        message['Subject'] = "Jürgen & €"
        message['To'] = '"Doe, Jürgen" <jane@example.com>'
        message.set_content("Hellö\n.\nFrom me\n" + "x" * 2000 + "\n")
        message.add_alternative("<p>Hellö</p>\n", subtype='html')
        message.add_attachment(
            bytes(range(256)), 'application', 'pdf', filename='ü.pdf')
        data = self.delivered(message)
        self.assertNormal(data)
        received = email.message_from_bytes(data, policy=message.policy)
        self.assertEqual(received['Subject'], "Jürgen & €")
        self.assertEqual(
            received['To'].addresses[0].display_name, "Doe, Jürgen")
        self.assertEqual(
            received.get_body(['plain']).get_content().splitlines(),
            message.get_body(['plain']).get_content().splitlines())
        attachment, = received.iter_attachments()
        self.assertEqual(attachment.get_filename(), 'ü.pdf')
        self.assertEqual(attachment.get_content(), bytes(range(256)))

    def test_mime(self):
        "Test the older classes for MIME"
        message = MIMEMultipart()
        message['Subject'] = "Jürgen"
        message.attach(MIMEText("Hellö", 'plain', 'utf-8'))
        message.attach(MIMEText("Hellö", 'html', 'latin-1'))
        message.attach(MIMEImage(b'\0\xff', 'png'))
        message.attach(MIMEMessage(MIMEText("Hello")))
        data = self.delivered(message)
        self.assertNormal(data)
        received = email.message_from_bytes(data)
        plain, html, image, attached = received.get_payload()
        self.assertEqual(plain.get_payload(decode=True), "Hellö".encode())
        self.assertEqual(
            html.get_payload(decode=True), "Hellö".encode('latin-1'))
        self.assertEqual(image.get_payload(decode=True), b'\0\xff')
        self.assertEqual(attached.get_payload(0).get_payload(), "Hello")

    def test_parsed(self):
        "Test a message that was received"
        for policy in [email.policy.compat32, email.policy.default]:
            message = email.message_from_bytes(
                OWN_FIELDS + 'Subject: Jürgen\r\n\r\nHellö\r\n'.encode(),
                policy=policy)
            with self.subTest(policy=policy):
                data = self.delivered(message)
                self.assertNormal(data)
                self.assertIn(b'Message-ID: <1@example.com>\r\n', data)
                self.assertEqual(
                    email.message_from_bytes(data).get_payload(decode=True),
                    "Hellö\r\n".encode())

    def test_line_ends(self):
        "Test bare CR and LF become CRLF"
        expected = OWN_FIELDS + b'\r\na\r\nb\r\n\r\nc\r\n'
        for msg in [
                expected.replace(b'\r\n', b'\n'),
                expected.replace(b'\r\n', b'\r'),
                OWN_FIELDS + b'\na\rb\n\rc\n',
                OWN_FIELDS + b'\r\na\r\nb\r\r\nc',
                ]:
            with self.subTest(msg=msg):
                self.assertSame(msg, expected)

    def test_smuggling(self):
        "Test nothing in a message can end the message"
        body = (
            b'\r\n.\r\nMAIL FROM:<x@example.com>\r\n'
            b'RCPT TO:<x@example.com>\r\nDATA\r\n\r\nx\r\n.\r\nQUIT\r\n')
        for end in [b'\r\n', b'\n', b'\r', b'\r\r\n', b'\n\r\n', b'\n\r']:
            with self.subTest(end=end):
                data = self.delivered(
                    OWN_FIELDS + b'\r\n' + body.replace(b'\r\n', end))
                self.assertEqual(
                    data.replace(b'\r\n', b'').count(b'.'),
                    (OWN_FIELDS + body).count(b'.'))

    def test_dots(self):
        "Test leading dots"
        self.assertSame(
            OWN_FIELDS + b'\r\n.\r\n..\r\n...\r\n.a\r\n\r\n.\r\n',
            OWN_FIELDS + b'\r\n.\r\n..\r\n...\r\n.a\r\n\r\n.\r\n')
        data = self.delivered(b'.\r\n')
        self.assertTrue(data.endswith(b'\r\n\r\n.\r\n'))

    def test_from_lines(self):
        "Test lines that begin with From"
        body = b'\r\nFrom me\r\n>From you\r\nFrom \r\n'
        self.assertSame(OWN_FIELDS + body, OWN_FIELDS + body)
        message = email.message_from_bytes(OWN_FIELDS + body)
        self.assertSame(message, OWN_FIELDS + body)

    def test_8bit(self):
        "Test bytes that are not ASCII, also in headers, and NUL"
        data = (OWN_FIELDS + b'Subject: \xc3\xbc \xff\r\n\r\n'
            + bytes(set(range(256)) - {10, 13}) + b'\r\n')
        self.assertSame(data, data)

    def test_long_lines(self):
        "Test long lines of bytes and text"
        data = (OWN_FIELDS + b'X: ' + b'x' * 3000 + b'\r\n\r\n'
            + b'y' * 100000 + b'\r\n')
        self.assertSame(data, data)
        self.assertSame(data.decode(), data)

    def test_attachment(self):
        "Test an attachment of 8 MB"
        content = os.urandom(1024) * (8 * 1024)
        message = EmailMessage()
        message.set_content("Hello\n")
        message.add_attachment(content, 'application', 'octet-stream')
        data = self.delivered(message)
        attachment, = email.message_from_bytes(
            data, policy=message.policy).iter_attachments()
        self.assertTrue(attachment.get_content() == content)

    def test_8bit_attachment(self):
        "Test an attachment of 8 MB of raw bytes"
        data = OWN_FIELDS + b'\r\n' + (
            b'.' + bytes(set(range(256)) - {10, 13}) + b'\r\n') * (32 * 1024)
        self.assertSame(data, data)

    def test_without_header(self):
        "Test a text without any header"
        for text in [
                "Hello", "Hello\n\nSubject: none\n", ".", "Dear Jane: hello",
                " Subject: none\n", "From now on\nall is well\n", "\n", ""]:
            with self.subTest(text=text):
                data = self.delivered(text)
                header, _, body = data.partition(b'\r\n\r\n')
                received = email.message_from_bytes(data)
                self.assertEqual(received.keys(), ['Message-ID', 'Date'])
                self.assertFalse(received.defects)
                self.assertEqual(
                    body.decode().strip('\r\n').replace('\r\n', '\n'),
                    text.strip('\n'))

    def test_mbox_line(self):
        "Test the first line of an mbox is removed"
        line = 'From shop@example.com Thu Jan  1 00:00:00 2026\n'
        self.assertSame(line + COMPLETE.decode(), COMPLETE)
        message = email.message_from_string(
            line + COMPLETE.decode().replace('\r\n', '\n'))
        self.assertSame(message, COMPLETE)
        self.assertSame(message.as_string(unixfrom=True), COMPLETE)

    def test_bcc(self):
        "Test no Bcc leaves in a header, however it is written"
        for field in [
                'Bcc: secret@example.com',
                'BCC: secret@example.com',
                'bcc:secret@example.com',
                'Bcc : secret@example.com',
                'Bcc\t:\r\n\tsecret@example.com',
                'Bcc:\r\n "Doe, Jane"\r\n <secret@example.com>,\r\n x@y.z',
                'Bcc: secret@example.com\r\nbCC: secret@example.com',
                'Bcc: x@y.z\nBCC: secret@example.com\rbcc: x@y.z',
                'Resent-Bcc: secret@example.com',
                'resent-BCC :\r\n secret@example.com',
                ]:
            first = f'{field}\r\n{COMPLETE.decode()}'
            last = COMPLETE.decode().replace(
                '\r\n\r\n', f'\r\n{field}\r\n\r\n', 1)
            for msg in [first, last, first.encode(), last.encode()]:
                with self.subTest(msg=msg):
                    self.assertSame(msg, COMPLETE)
                    self.assertNotIn('secret', str(self.server.commands))

    def test_bcc_as_string(self):
        "Test Bcc in a message that the caller has made a text"
        message = MIMEText("Hello")
        message['Subject'] = "Test"
        message['Bcc'] = 'secret@example.com, ' * 20
        for msg in [message.as_string(), message.as_bytes(), str(message)]:
            with self.subTest(type=type(msg)):
                data = self.delivered(msg)
                self.assertNotIn(b'secret', data)
                self.assertTrue(data.endswith(b'\r\n\r\nHello\r\n'))

    def test_bcc_elsewhere(self):
        "Test Bcc in a body or in an attached message stays"
        body = b'\r\nBcc: body@example.com\r\n'
        self.assertSame(OWN_FIELDS + body, OWN_FIELDS + body)
        attached = EmailMessage()
        attached['Bcc'] = 'attached@example.com'
        attached.set_content("Hello\n")
        message = EmailMessage()
        message['Bcc'] = 'secret@example.com'
        message.set_content("Bcc: body@example.com\n")
        message.add_attachment(attached)
        data = self.delivered(message)
        self.assertNotIn(b'secret', data)
        self.assertIn(b'\r\nBcc: body@example.com\r\n', data)
        self.assertIn(b'\r\nBcc: attached@example.com\r\n', data)

    def test_bcc_recipients(self):
        "Test the recipients of Bcc get a message"
        for cls in [EmailMessage, Message]:
            message = cls()
            message['From'] = '"Shop, The" <shop@example.com>'
            message['To'] = '"Doe, Jane" <jane@example.com>'
            message['CC'] = 'john@example.com'
            message['bCC'] = 'secret@example.com, Jürgen <other@example.com>'
            message['Subject'] = "Test"
            message.set_payload("Hello")
            with self.subTest(cls=cls):
                mail, = self.deliver(self.queue_message(message))
                self.assertEqual(mail.from_addr, 'shop@example.com')
                self.assertEqual(
                    mail.to_addrs,
                    ('jane@example.com', 'john@example.com',
                        'secret@example.com', 'other@example.com'))
                self.assertNotIn(b'secret', mail.data)
                self.assertNotIn(b'bcc', mail.data.lower())
                self.assertIn(b'CC: john@example.com\r\n', mail.data)

    def test_resent(self):
        "Test a message that is sent again goes to the new recipients"
        message = email.message_from_bytes(
            b'Resent-Date: Thu, 1 Jan 2026 00:00:00 +0000\r\n'
            b'Resent-From: jane@example.com\r\n'
            b'Resent-To: john@example.com\r\n'
            b'Resent-Bcc: secret@example.com\r\n' + OWN_FIELDS
            + b'From: shop@example.com\r\nTo: jane@example.com\r\n\r\n')
        mail, = self.deliver(self.queue_message(message))
        self.assertEqual(mail.from_addr, 'jane@example.com')
        self.assertEqual(
            mail.to_addrs, ('john@example.com', 'secret@example.com'))
        self.assertNotIn(b'secret', mail.data)

    def test_envelope_given(self):
        "Test a given envelope counts rather than the header"
        message = email.message_from_bytes(
            b'From: x\r\nTo: y\r\nBcc: z\r\n' + COMPLETE)
        mail, = self.deliver(self.queue_message(
                message, from_addr='<>', to_addrs=['jane@example.com']))
        self.assertEqual(mail.from_addr, '')
        self.assertEqual(mail.to_addrs, ('jane@example.com',))
        self.assertEqual(
            mail.data, b'From: x\r\nTo: y\r\n' + COMPLETE)

    def test_unchanged(self):
        "Test the caller's object is unchanged"
        multipart = MIMEMultipart()
        multipart.attach(MIMEText("x" * 2000))
        multipart.attach(MIMEApplication(b'\0' * 2000))
        parsed = email.message_from_bytes(
            b'From x\r\nContent-Transfer-Encoding: 8bit\r\n\r\n\xff\r\n')
        made = EmailMessage()
        made.set_content("x" * 2000)
        made.add_attachment(b'\0', 'application', 'pdf', cte='binary')
        for message in [multipart, parsed, made]:
            message['From'] = 'shop@example.com'
            message['To'] = 'jane@example.com'
            message['Bcc'] = 'secret@example.com'
            with self.subTest(message=type(message)):
                before = copy.deepcopy(message)
                self.deliver(
                    self.queue_message(message), self.queue(msg=message))
                self.assertIsNone(message.get_boundary())
                self.assertEqual(message.items(), before.items())
                self.assertEqual(
                    message.get_unixfrom(), before.get_unixfrom())
                for part, other in zip(message.walk(), before.walk()):
                    self.assertEqual(part.items(), other.items())
                for copied in [message, before]:
                    if copied.is_multipart():
                        copied.set_boundary('x')
                self.assertEqual(message.as_bytes(), before.as_bytes())

    def test_message_id(self):
        "Test Message-ID and Date are added when absent"
        first, second = (
            self.delivered(MESSAGE), self.delivered(MESSAGE))
        ids = []
        for data in [first, second]:
            received = email.message_from_bytes(data)
            self.assertEqual(
                received.keys(), ['Message-ID', 'Date', 'Subject'])
            self.assertTrue(data.endswith(MESSAGE))
            date = email.utils.parsedate_to_datetime(received['Date'])
            if date.tzinfo:
                date = date.astimezone(dt.timezone.utc).replace(tzinfo=None)
            self.assertLess(
                abs(dt.datetime.now() - date), dt.timedelta(minutes=1))
            ids.append(received['Message-ID'])
        self.assertEqual(len(set(ids)), 2)

    def test_message_id_searched(self):
        "Test an email is found by its Message-ID"
        id_ = self.queue()
        self.queue()
        mail = email.message_from_bytes(self.read(id_, 'msg'))
        with self.transaction(readonly=True):
            record, = Pool().get('email.queue').search([
                    ('message_id', '=', mail['Message-ID'])])
            self.assertEqual(record.id, id_)

    def test_own_message_id(self):
        "Test Message-ID and Date are kept, also folded and in odd case"
        for fields in [
                OWN_FIELDS,
                OWN_FIELDS.lower(),
                OWN_FIELDS.upper(),
                OWN_FIELDS.replace(b': ', b':\r\n '),
                OWN_FIELDS.replace(b': ', b' :\r\n\t'),
                OWN_FIELDS.replace(b': ', b':'),
                ]:
            with self.subTest(fields=fields):
                self.assertSame(fields + MESSAGE, fields + MESSAGE)
                with self.transaction(readonly=True):
                    record, = Pool().get('email.queue').search(
                        [], order=[('id', 'DESC')], limit=1)
                    self.assertEqual(
                        record.message_id.lower(), '<1@example.com>')


class PlainServerContentTestCase(ContentTestCase):
    "Test the same with a server that offers no extension"
    server_options = {
        'pipelining': False,
        'size': None,
        'eightbitmime': False,
        'smtputf8': False,
        'dsn': False,
        'enhanced': False,
        }


class SubjectTestCase(DeliveryTestCase):
    "Test the subject is decoded, whatever is in it"

    def test_subject(self):
        "Test subjects of bytes"
        for value, expected in [
                (b'Hello', "Hello"),
                (b'Hello\r\n\tWorld', "Hello World"),
                (b'=?utf-8?q?J=C3=BCrgen?=', "Jürgen"),
                (b'=?utf-8?b?SsO8cmdlbg==?=\r\n =?latin-1?q?=E9?=', "Jürgené"),
                (b'=?no-such?q?x?=', "x"),
                (b'=?utf-8?q?=FF?=', "\ufffd"),
                ('=?ü?q?x?='.encode(), "x"),
                ('Jürgen'.encode(), "Jürgen"),
                ('Jürgen'.encode('latin-1'), "Jürgen"),
                (b'a\0b', "a b"),
                (b'=?utf-8?q?a=00b=0D=0AX=3A_c?=', "a b X: c"),
                (b'\xed\xa0\x80', None),
                (b'=?utf-7?q?+2AA-?=', "?"),
                (b'=?unknown-8bit?q?=ED=A0=80?=', None),
                (b'x' * 10000, "x" * 998),
                ('€'.encode() * 10000, "€" * 332),
                (b'', ""),
                ]:
            msg = b'Subject: ' + value + b'\r\n' + OWN_FIELDS + b'\r\n'
            with self.subTest(value=value[:100]):
                id_ = self.queue(msg=msg)
                subject, name = self.read(id_, 'subject', 'rec_name')
                if expected is not None:
                    self.assertEqual(subject or "", expected)
                self.assertEqual(name, subject or '<1@example.com>')
                mail, = self.deliver(id_)
                self.assertEqual(mail.data, msg)

    def test_message_id(self):
        "Test a Message-ID with unusual characters"
        for value in [
                b'no id at all', b'\0', b'<\xff>', b'x' * 10000,
                '<ü€@example.com>'.encode() * 100]:
            msg = b'Message-ID: ' + value + b'\r\nDate: x\r\n\r\n'
            with self.subTest(value=value[:100]):
                mail, = self.deliver(self.queue(msg=msg))
                self.assertEqual(mail.data, msg)

    def test_message(self):
        "Test subjects of messages"
        for subject, expected in [
                ("Jürgen", "Jürgen"),
                ("x " * 5000, ("x " * 499).strip()),
                ("ü" * 10000, "ü" * 499),
                ("🙂", "🙂"),
                ]:
            message = EmailMessage()
            message['Subject'] = subject
            mime = MIMEText("")
            mime['Subject'] = subject
            for msg in [message, mime]:
                with self.subTest(subject=subject[:100], type=type(msg)):
                    id_ = self.queue(msg=msg)
                    self.assertEqual(self.read(id_, 'subject'), expected)
                    self.deliver(id_)

    def test_search(self):
        "Test an email is found by its subject"
        id_ = self.queue(msg=b'Subject: =?utf-8?q?J=C3=BCrgen?=\r\n\r\n')
        self.queue()
        with self.transaction(readonly=True):
            record, = Pool().get('email.queue').search([
                    ('rec_name', 'ilike', '%ürg%')])
            self.assertEqual(record.id, id_)


class QueuedEnvelopeTestCase(DeliveryTestCase):
    "Test the envelope at the server is the envelope that was given"

    def test_recipients(self):
        "Test recipients in every form"
        for to_addrs, expected in [
                (['a@example.com', 'b@example.com'],
                    ('a@example.com', 'b@example.com')),
                (('a@example.com', 'b@example.com'),
                    ('a@example.com', 'b@example.com')),
                ((a for a in ['a@example.com', 'b@example.com']),
                    ('a@example.com', 'b@example.com')),
                ('a@example.com', ('a@example.com',)),
                ('"Doe, John" <john@example.com>', ('john@example.com',)),
                (['"Doe, John" <john@example.com>', 'a@example.com'],
                    ('john@example.com', 'a@example.com')),
                ('"Doe, John" <john@example.com>, a@example.com,b@example.com',
                    ('john@example.com', 'a@example.com', 'b@example.com')),
                (['a@example.com', 'b@example.com', 'A <a@example.com>',
                    'a@EXAMPLE.com', 'A@example.com'],
                    ('a@example.com', 'b@example.com', 'A@example.com')),
                ('a@example.com, a@example.com', ('a@example.com',)),
                ('"a, b> SIZE=1"@example.com', (
                        '"a, b> SIZE=1"@example.com',)),
                (['"a\\"b\\\\"@example.com', 'a@[127.0.0.1]', "o'b@localhost"],
                    ('"a\\"b\\\\"@example.com', 'a@[127.0.0.1]',
                        "o'b@localhost")),
                ]:
            with self.subTest(expected=expected):
                id_ = self.queue(to_addrs)
                self.assertEqual(
                    self.read(id_, 'to_addrs'), ', '.join(expected))
                mail, = self.deliver(id_)
                self.assertEqual(mail.to_addrs, expected)

    def test_300_recipients(self):
        "Test 300 recipients, each once, in transactions of 50"
        to_addrs = [f'user{i}@example.com' for i in range(300)]
        id_ = self.queue(to_addrs, msg=COMPLETE)
        self.send_all()
        self.assertEqual(self.server.violations, [])
        self.assertEqual(
            [len(m.to_addrs) for m in self.server.received], [50] * 6)
        self.assertEqual(
            [a for m in self.server.received for a in m.to_addrs], to_addrs)
        self.assertEqual({m.data for m in self.server.received}, {COMPLETE})
        self.assertEqual(self.read(id_, 'state'), 'sent')

    def test_sender(self):
        "Test senders in every form"
        for from_addr, expected in [
                ('shop@example.com', 'shop@example.com'),
                ('"Shop, The" <shop@example.com>', 'shop@example.com'),
                ('"a b"@example.com', '"a b"@example.com'),
                ('<>', ''),
                ]:
            with self.subTest(from_addr=from_addr):
                mail, = self.deliver(self.queue(from_addr=from_addr))
                self.assertEqual(mail.from_addr, expected)

    def test_null_sender(self):
        "Test the null sender is sent as <>"
        id_ = self.queue(from_addr='<>')
        self.assertEqual(self.read(id_, 'from_addr'), '<>')
        self.deliver(id_)
        command, = [c for _, c in self.server.commands
            if c.startswith('MAIL')]
        self.assertTrue(command.startswith('MAIL FROM:<> '))

    def test_smtputf8(self):
        "Test a local part that is not ASCII"
        for from_addr, to_addrs in [
                ('shop@example.com', ['jürgen@example.com']),
                ('käufer@example.com', ['jane@example.com']),
                ('shop@example.com', ['jane@example.com', '用户@例え.テスト']),
                ('"ä b"@example.com', ['"ü"@example.com']),
                ]:
            with self.subTest(from_addr=from_addr, to_addrs=to_addrs):
                mail, = self.deliver(self.queue(
                        to_addrs, from_addr=from_addr))
                self.assertEqual(mail.from_addr, from_addr)
                self.assertEqual(
                    mail.to_addrs, tuple(a.replace(
                            '例え.テスト', 'xn--r8jz45g.xn--zckzah')
                        for a in to_addrs))
                self.assertIn('SMTPUTF8', mail.mail_options)

    def test_smtputf8_not_needed(self):
        "Test SMTPUTF8 is not used if addresses and header are ASCII"
        for subject in ['Jürgen'.encode('latin-1'), b'Juergen']:
            mail, = self.deliver(self.queue(
                    'Jürgen <jane@straße.de>',
                    msg=OWN_FIELDS + b'Subject: ' + subject
                    + b'\r\n\r\n\xfc'))
            self.assertNotIn('SMTPUTF8', mail.mail_options)
            self.assertIn('BODY=8BITMIME', mail.mail_options)

    def test_smtputf8_each_transaction(self):
        "Test SMTPUTF8 is used in each SMTP transaction for a header in UTF-8"
        for to_addrs, msg in [
                (['jane@example.com'], 'Subject: Jürgen\r\n\r\n'),
                (['jane@example.com', 'jürgen@example.com'],
                    'To: jürgen@example.com\r\n\r\n')]:
            with self.subTest(to_addrs=to_addrs), configured(recipients=1):
                id_ = self.queue(to_addrs, msg=OWN_FIELDS + msg.encode())
                before = len(self.server.received)
                self.send_all()
                self.assertEqual(self.read(id_, 'state'), 'sent')
                mails = self.server.received[before:]
                self.assertEqual(len(mails), len(to_addrs))
                for mail in mails:
                    self.assertIn('SMTPUTF8', mail.mail_options)

    def test_smtputf8_headers(self):
        "Test a message has its header in UTF-8 if its addresses need SMTPUTF8"
        message = EmailMessage()
        message['From'] = 'shop@example.com'
        message['To'] = 'Jürgen <jürgen@example.com>'
        message.set_content("Hello\n")
        mail, = self.deliver(self.queue_message(message))
        self.assertEqual(mail.to_addrs, ('jürgen@example.com',))
        self.assertIn(
            'To: =?utf-8?q?J=C3=BCrgen?= <jürgen@example.com>\r\n'.encode(),
            mail.data)

    def test_idna(self):
        "Test a domain that is not ASCII"
        mail, = self.deliver(self.queue(
                ['info@straße.de', 'Info <info@GRÖSSE.de>',
                    'info@xn--strae-oqa.de'],
                from_addr='shop@straße.de'))
        self.assertEqual(mail.from_addr, 'shop@xn--strae-oqa.de')
        self.assertEqual(
            mail.to_addrs,
            ('info@xn--strae-oqa.de', 'info@xn--grsse-kua.de'))
        self.assertNotIn('SMTPUTF8', mail.mail_options)


class QueuedOptionsTestCase(DeliveryTestCase):
    "Test options reach the server"

    def test_dsn(self):
        "Test delivery status notifications"
        for mail_options, rcpt_options in [
                (['RET=HDRS', 'ENVID=42'],
                    ['NOTIFY=FAILURE,DELAY', 'ORCPT=rfc822;x@example.com']),
                ('RET=HDRS ENVID=42',
                    'NOTIFY=FAILURE,DELAY ORCPT=rfc822;x@example.com'),
                ]:
            with self.subTest(mail_options=mail_options):
                id_ = self.queue(
                    ['a@example.com', 'b@example.com'],
                    mail_options=mail_options, rcpt_options=rcpt_options)
                self.assertEqual(
                    self.read(id_, 'mail_options', 'rcpt_options'),
                    ['RET=HDRS ENVID=42',
                        'NOTIFY=FAILURE,DELAY ORCPT=rfc822;x@example.com'])
                mail, = self.deliver(id_)
                self.assertEqual(
                    mail.mail_options[:2], ('RET=HDRS', 'ENVID=42'))
                self.assertEqual(
                    mail.rcpt_options, dict.fromkeys(
                        ['a@example.com', 'b@example.com'],
                        ('NOTIFY=FAILURE,DELAY',
                            'ORCPT=rfc822;x@example.com')))

    def test_positional(self):
        "Test the order of arguments is that of smtplib"
        message = email.message_from_bytes(COMPLETE)
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            first, = EmailQueue.queue_mail(
                'shop@example.com', ['jane@example.com'], COMPLETE,
                ['RET=FULL'], ['NOTIFY=NEVER'])
            second, = EmailQueue.queue_message(
                message, 'shop@example.com', ['jane@example.com'],
                ['RET=FULL'], ['NOTIFY=NEVER'])
        for mail in self.deliver(first.id, second.id):
            self.assertIn('RET=FULL', mail.mail_options)
            self.assertEqual(
                mail.rcpt_options, {'jane@example.com': ('NOTIFY=NEVER',)})

    def test_own_options(self):
        "Test options that the module sets itself are not sent twice"
        mail, = self.deliver(self.queue(
                'jürgen@example.com', msg=OWN_FIELDS + b'\r\n\xff\r\n',
                mail_options=['SIZE=1', 'BODY=7BIT', 'smtputf8', 'RET=HDRS']))
        self.assertEqual(
            sorted(o.partition('=')[0] for o in mail.mail_options),
            ['BODY', 'RET', 'SIZE', 'SMTPUTF8'])
        self.assertIn(f'SIZE={len(mail.data)}', mail.mail_options)
        self.assertIn('BODY=8BITMIME', mail.mail_options)


class NoDSNTestCase(DeliveryTestCase):
    "Test options of extensions that the server does not offer"
    server_options = {'dsn': False}

    def test_left_out(self):
        "Test the options of DSN are left out, and the log says so"
        id_ = self.queue(
            mail_options=['RET=HDRS', 'ENVID=42'],
            rcpt_options=['NOTIFY=FAILURE'])
        with self.assertLogs(level='INFO') as logs:
            mail, = self.deliver(id_)
        self.assertEqual(
            [o for o in mail.mail_options if not o.startswith('SIZE')], [])
        self.assertEqual(mail.rcpt_options, {'jane@example.com': ()})
        for keyword in ['RET', 'ENVID', 'NOTIFY']:
            self.assertIn(f"{keyword} left out", str(logs.output))


class OrderTestCase(DeliveryTestCase):
    "Test the order in which emails are sent"

    hour = dt.timedelta(hours=1)

    def order(self):
        "Send all emails and return the first recipients as they arrive"
        self.send_all()
        return [m.to_addrs[0].partition('@')[0] for m in self.server.received]

    def test_priority(self):
        "Test urgent emails go before normal ones, and normal before bulk"
        for name in ['bulk', 'normal', 'urgent', 'normal', 'bulk', 'urgent']:
            self.queue(f'{name}@example.com', priority=name)
        self.queue('normal@example.com')
        self.assertEqual(
            self.order(), ['urgent'] * 2 + ['normal'] * 3 + ['bulk'] * 2)

    def test_fifo(self):
        "Test emails of one priority go in the order in which they were queued"
        names = [f'{n}{i}' for i in range(5) for n in ['b', 'n']]
        for name in names:
            self.queue(
                f'{name}@example.com',
                priority='bulk' if name.startswith('b') else 'normal')
        self.assertEqual(
            self.order(), [n for n in names if n.startswith('n')]
            + [n for n in names if n.startswith('b')])

    def test_fifo_transaction(self):
        """Test emails of one transaction go in the order in which they were
        queued
        """
        names = [f'n{i}' for i in range(10)]
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            for name in names:
                EmailQueue.queue_mail(
                    'shop@example.com', f'{name}@example.com', MESSAGE)
        self.assertEqual(self.order(), names)

    def test_due_first(self):
        "Test an email that was due earlier goes earlier"
        for name, hours in [('b', 2), ('c', 1), ('a', 3)]:
            self.queue(f'{name}@example.com', scheduled_at=-hours * self.hour)
        self.queue('u@example.com', priority='urgent')
        self.queue('d@example.com')
        self.assertEqual(self.order(), ['u', 'a', 'b', 'c', 'd'])

    def test_scheduled_at(self):
        "Test an email is not sent before its time"
        later = self.queue('later@example.com', scheduled_at=self.hour)
        self.queue('now@example.com', scheduled_at=dt.timedelta())
        self.queue('past@example.com', scheduled_at=dt.datetime.min)
        self.queue('never@example.com', scheduled_at=dt.datetime.max)
        self.assertEqual(self.order(), ['past', 'now'])
        self.assertEqual(
            self.read(later, 'state', 'attempts'), ['outbox', 0])
        self.write(later, scheduled_at=dt.datetime.now())
        self.assertEqual(self.order(), ['past', 'now', 'later'])

    def test_expires_at(self):
        "Test an email is not sent after its time"
        late = self.queue(
            'late@example.com', scheduled_at=-2 * self.hour,
            expires_at=-self.hour)
        future = self.queue('early@example.com', expires_at=self.hour)
        # Both emails must be queued before the first is due or expired
        waiting = self.queue(
            'waiting@example.com', scheduled_at=self.hour,
            expires_at=2 * self.hour)
        self.assertEqual(self.order(), ['early'])
        state, reason, attempts = self.read(
            late, 'state', 'reason', 'attempts')
        self.assertEqual((state, reason), ('failed', 'expired'))
        self.assertEqual(attempts, 0)
        self.assertEqual(self.read(future, 'state'), 'sent')
        self.assertEqual(self.read(waiting, 'state'), 'outbox')

    def test_times(self):
        "Test naive, aware and relative times"
        noon = dt.datetime(2100, 6, 1, 12, 0, 0, 123456)
        zone = dt.timezone(dt.timedelta(hours=2))
        for value, expected in [
                (noon, noon),
                (noon.replace(tzinfo=dt.timezone.utc), noon),
                (noon.replace(tzinfo=zone), noon - dt.timedelta(hours=2)),
                ]:
            with self.subTest(value=value):
                id_ = self.queue(
                    scheduled_at=value, expires_at=value + self.hour)
                self.assertEqual(
                    self.read(id_, 'scheduled_at', 'expires_at'),
                    [expected, expected + self.hour])
        before = dt.datetime.now()
        id_ = self.queue(scheduled_at=self.hour, expires_at=2 * self.hour)
        after = dt.datetime.now()
        scheduled_at, expires_at = self.read(
            id_, 'scheduled_at', 'expires_at')
        self.assertTrue(
            before <= scheduled_at - self.hour <= after)
        self.assertEqual(expires_at, scheduled_at + self.hour)
        # A relative expiry counts from now, too
        id_ = self.queue(
            scheduled_at=dt.datetime.now() - self.hour, expires_at=self.hour)
        self.assertGreater(self.read(id_, 'expires_at'), before)

    def test_aware(self):
        "Test an aware time decides when an email is due"
        zone = dt.timezone(dt.timedelta(hours=14))
        now = dt.datetime.now(zone)
        self.queue('due@example.com', scheduled_at=now - self.hour)
        self.queue('later@example.com', scheduled_at=now + self.hour)
        self.queue('valid@example.com', expires_at=now + self.hour)
        self.assertEqual(self.order(), ['due', 'valid'])


class ResourceTestCase(DeliveryTestCase):
    "Test the record that an email is about"

    def test_resource(self):
        "Test a record, and its reference as text"
        with self.transaction():
            user = Pool().get('res.user')(ADMIN)
        for resource in [user, 'res.user,1', 'res.user,01', str(user)]:
            with self.subTest(resource=resource):
                id_ = self.queue(resource=resource)
                self.assertEqual(self.read(id_, 'resource'), 'res.user,1')
                self.deliver(id_)

    def test_search(self):
        "Test the emails about a record are found"
        ids = [
            self.queue(resource=r) for r in ['res.user,1', 'res.user,01']]
        self.queue(resource='res.user,0')
        self.queue()
        with self.transaction(readonly=True):
            records = Pool().get('email.queue').search(
                [('resource', '=', 'res.user,1')], order=[('id', 'ASC')])
            self.assertEqual([r.id for r in records], ids)

    def test_readable(self):
        "Test the list can be read, whatever the resources are"
        for resource in [
                None, 'res.user,1', 'res.user,999999999',
                f"res.user,{'9' * 18}", 'ir.model,1', 'email.queue,1']:
            self.queue(resource=resource)
        with self.transaction(readonly=True):
            rows = Pool().get('email.queue').search_read(
                [], fields_names=['resource', 'resource.rec_name'])
        self.assertEqual(len(rows), 6)


class QueueRefusedTestCase(DeliveryTestCase):
    "Test a wrong argument raises a clear error and queues nothing"

    class Broken(Message):
        def raw_items(self):
            raise ZeroDivisionError("broken")

    def refused(self, method, argument, value, arguments):
        """Assert that an error names argument and value.

        Nothing is queued then, and the transaction is usable.
        """
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            with self.assertRaises(EmailQueueError) as cm:
                getattr(EmailQueue, method)(**arguments)
            self.assertIsInstance(cm.exception, UserError)
            self.assertIn(f'"{argument}"', cm.exception.message)
            self.assertIn(value, cm.exception.message)
            self.assertLess(len(cm.exception.message), 400)
            self.assertTrue(cm.exception.message.isprintable())
            self.assertEqual(EmailQueue.search([], count=True), 0)
            record, = EmailQueue.queue_mail(
                'shop@example.com', 'jane@example.com', COMPLETE)
        mail, = self.deliver(record.id)
        self.assertEqual(mail.data, COMPLETE)
        self.clear()

    def assertRefused(self, cases):
        for argument, given, shown, *others in cases:
            arguments = {
                'from_addr': 'shop@example.com',
                'to_addrs': ['jane@example.com'],
                'msg': MESSAGE,
                argument: given,
                **(others[0] if others else {}),
                }
            with self.subTest(argument=argument, given=repr(given)[:200]):
                self.refused('queue_mail', argument, shown, arguments)

    def test_sender(self):
        "Test no sender, several senders, and texts that are no sender"
        self.assertRefused([
                ('from_addr', '', '""'),
                ('from_addr', '  ', '"  "'),
                ('from_addr', None, 'None'),
                ('from_addr', b'shop@example.com', "b'shop@example.com'"),
                ('from_addr', ['shop@example.com'], "['shop@example.com']"),
                ('from_addr', 'a@example.com, b@example.com',
                    'a@example.com, b@example.com'),
                ('from_addr', 'shop', 'shop'),
                ('from_addr', 'Shop <shop>', 'Shop <shop>'),
                ])

    def test_recipients(self):
        "Test no recipient, and texts that are no recipient"
        self.assertRefused([
                ('to_addrs', [], '[]'),
                ('to_addrs', '', '""'),
                ('to_addrs', (a for a in []), '[]'),
                ('to_addrs', None, 'None'),
                ('to_addrs', 5, '5'),
                ('to_addrs', b'jane@example.com', "b'jane@example.com'"),
                ('to_addrs', ['jane@example.com', ''], '""'),
                ('to_addrs', ['jane@example.com', None], 'None'),
                ('to_addrs', ['jane@example.com', 'john'], 'john'),
                ('to_addrs', 'jane@example.com, john', 'john'),
                ('to_addrs', ['a@example.com, b@example.com'],
                    'a@example.com, b@example.com'),
                ('to_addrs', 'a@example.com; b@example.com',
                    'a@example.com; b@example.com'),
                ('to_addrs', '<>', '<>'),
                ('to_addrs', 'jane@exa mple.com', 'jane@exa mple.com'),
                ('to_addrs', 'jane@☃.com', 'jane@☃.com'),
                ('to_addrs', f'{"x" * 501}@example.com', 'x' * 65),
                ('to_addrs', 'x' * 100000, 'x' * 200 + '…'),
                ('to_addrs', 'ja\u2028ne@example.com', r'ja\u2028ne'),
                ('to_addrs', 'ja\ud800ne@example.com', r'ja\ud800ne'),
                ])

    def test_control(self):
        "Test CR, LF, NUL and others in any address or option"
        cases = []
        for character in ['\r', '\n', '\r\n', '\0', '\t', '\x1b', '\x7f']:
            shown = repr(character)[1:-1]
            for address in [
                    '{}jane@example.com', 'jane@example.com{}',
                    'ja{}ne@example.com', 'jane@exam{}ple.com',
                    '"ja{}ne"@example.com', '"Ja{}ne" <jane@example.com>',
                    'jane@example.com{}RCPT TO:<x@example.com>', '{}']:
                address = address.format(character)
                cases += [
                    ('from_addr', address, shown),
                    ('to_addrs', address, shown),
                    ('to_addrs', ['john@example.com', address], shown),
                    ]
            cases.append(('from_addr', f'<>{character}', shown))
            for option in ['{}', 'RET={}HDRS', 'RET=HDRS{}', '{}RET=HDRS',
                    'RET{}=HDRS', 'RET=HDRS{}RCPT TO:<x@example.com>']:
                option = option.format(character)
                cases += [
                    ('mail_options', option, shown),
                    ('mail_options', ['ENVID=42', option], shown),
                    ('rcpt_options', option, shown),
                    ('rcpt_options', ('NOTIFY=NEVER', option), shown),
                    ]
        # A transaction and a delivery for each character would take long
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            for argument, value, shown in cases:
                with self.subTest(argument=argument, value=value):
                    with self.assertRaises(EmailQueueError) as cm:
                        EmailQueue.queue_mail(**{
                                'from_addr': 'shop@example.com',
                                'to_addrs': ['jane@example.com'],
                                'msg': MESSAGE,
                                argument: value})
                    self.assertIn(f'"{argument}"', cm.exception.message)
                    self.assertIn(shown, cm.exception.message)
            self.assertEqual(EmailQueue.search([], count=True), 0)
            record, = EmailQueue.queue_mail(
                'shop@example.com', 'jane@example.com', MESSAGE)
        self.deliver(record.id)
        self.assertNotIn('x@example.com', str(self.server.commands))

    def test_options(self):
        "Test texts that are not options"
        self.assertRefused([
                (argument, value, shown)
                for argument in ['mail_options', 'rcpt_options']
                for value, shown in [
                    (None, 'None'),
                    (5, '5'),
                    (b'RET=HDRS', "b'RET=HDRS'"),
                    (['RET=HDRS', None], 'None'),
                    (['RET='], 'RET='),
                    ('RET=ü', 'RET=ü'),
                    ('RET=HDRS <x>', '<x>'),
                    ]])

    def test_message(self):
        "Test values that are not a message"
        broken = Message()
        broken['Subject'] = 'a\n\nBcc: secret@example.com'
        unknown = Message()
        unknown.set_payload('ü')
        self.assertRefused([
                ('msg', None, 'NoneType'),
                ('msg', 5, 'int'),
                ('msg', ['Subject: x'], 'list'),
                ('msg', {'Subject': 'x'}, 'dict'),
                ('msg', 'Subject: Jürgen', "'ü'"),
                ('msg', '\udcff', r"'\udcff'"),
                ('msg', broken, 'not one field in the header'),
                ('msg', unknown, 'UnicodeEncodeError'),
                ('msg', self.Broken(), 'ZeroDivisionError: broken'),
                ])

    def test_priority(self):
        "Test an unknown priority"
        self.assertRefused([
                ('priority', 'asap', 'asap'),
                ('priority', '10', '10'),
                ('priority', 10, '10'),
                ('priority', None, 'None'),
                ('priority', '', '""'),
                ('priority', [], '[]'),
                ('priority', {}, '{}'),
                ])

    def test_times(self):
        "Test values that are not a time, and an expiry that is too early"
        hour = dt.timedelta(hours=1)
        east = dt.timezone(hour)
        noon = dt.datetime(2100, 1, 1, 12)
        self.assertRefused([
                *((argument, value, shown)
                    for argument in ['scheduled_at', 'expires_at']
                    for value, shown in [
                        (5, '5'),
                        ('2026-01-01', '2026-01-01'),
                        (dt.date(2100, 1, 1), 'datetime.date(2100, 1, 1)'),
                        (dt.timedelta.max, 'datetime.timedelta'),
                        (dt.timedelta.min, 'datetime.timedelta'),
                        (dt.datetime.min.replace(tzinfo=east),
                            'datetime.datetime'),
                        ]),
                ('expires_at', -hour, str(dt.date.today().year)),
                ('expires_at', dt.datetime(2000, 1, 1), '2000-01-01'),
                ('expires_at', noon, '2100-01-01 12:00:00',
                    {'scheduled_at': noon}),
                ('expires_at', noon.replace(tzinfo=east),
                    '2100-01-01 11:00:00', {'scheduled_at': noon}),
                ('expires_at', hour, '20', {'scheduled_at': 2 * hour}),
                ])

    def test_resource(self):
        "Test values that are not a saved record"
        with self.transaction():
            pool = Pool()
            unsaved = pool.get('res.user')()
            negative = pool.get('res.user')(-1)
        self.assertRefused([
                ('resource', resource, shown) for resource, shown in [
                    (unsaved, 'res.user,'),
                    (negative, 'res.user,-1'),
                    ('', '""'),
                    ('res.user', 'res.user'),
                    ('res.user,', 'res.user,'),
                    ('res.user,None', 'res.user,None'),
                    ('res.user,-1', 'res.user,-1'),
                    ('res.user, 1', 'res.user, 1'),
                    ('res.user,1,2', 'res.user,1,2'),
                    ('res.user,1_0', 'res.user,1_0'),
                    ('res.user,１', 'res.user,１'),
                    ('res.user,1\0', r'res.user,1\x00'),
                    (f'res.user,{"9" * 19}', '999'),
                    (f'res.user,{"9" * 5000}', '999'),
                    ('no.such,1', 'no.such,1'),
                    # A record that cannot be searched would break the list
                    ('ir.module.config_wizard.first,1',
                        'ir.module.config_wizard.first,1'),
                    (5, '5'),
                    (('res.user', 1), "('res.user', 1)"),
                    ]])

    def test_queue_message(self):
        "Test the errors of queue_message"
        cases = []
        for argument, data, value in [
                ('from_addr', b'To: jane@example.com\n\n', '""'),
                ('from_addr', b'From:\nTo: jane@example.com\n\n', '""'),
                ('from_addr', b'From: shop\nTo: jane@example.com\n\n', 'shop'),
                ('to_addrs', b'From: shop@example.com\n\n', '[]'),
                ('to_addrs', b'From: shop@example.com\nTo: x:;\n\n', '[]'),
                ('to_addrs', b'From: shop@example.com\nTo: a@b; c@d\n\n',
                    'a@b; c@d'),
                ('to_addrs', b'From: shop@example.com\nBcc: a@b, c\n\n', 'c'),
                ('msg', b'From: shop@example.com\nTo: jane@example.com\n'
                    b'Resent-Date: x\nResent-Date: y\n\n', 'Resent-Date'),
                ]:
            for policy in [email.policy.compat32, email.policy.default]:
                cases.append((
                        argument, value,
                        email.message_from_bytes(data, policy=policy)))
        assigned = EmailMessage()
        assigned['From'] = 'shop@example.com'
        assigned['To'] = 'jane@example.com; john@example.com'
        cases += [
            ('msg', 'Defect', assigned),
            ('msg', 'NoneType', None),
            ('msg', 'str', MESSAGE.decode()),
            ('msg', 'bytes', MESSAGE),
            ]
        for argument, value, msg in cases:
            with self.subTest(argument=argument, msg=str(msg)):
                self.refused('queue_message', argument, value, {'msg': msg})

    def test_several(self):
        "Test emails that the transaction has queued before stay"
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            first, = EmailQueue.queue_mail(
                'shop@example.com', 'a@example.com', MESSAGE)
            with self.assertRaises(EmailQueueError):
                EmailQueue.queue_mail('shop@example.com', [], MESSAGE)
            second, = EmailQueue.queue_mail(
                'shop@example.com', 'b@example.com', MESSAGE)
        self.assertEqual(self.count(), 2)
        self.deliver(first.id, second.id)
