# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Who sends for whom: which server, and from which address."""
import datetime as dt
import email
import email.policy
import tempfile
import unittest
from email.header import Header
from email.message import EmailMessage, Message
from unittest.mock import patch

from trytond.pool import Pool
from trytond.sendmail import send_message_transactional
from trytond.tests.test_tryton import DB_NAME
from trytond.tools.email_ import set_from_header

from .. import behalf, mime, sendmail
from ..address import Invalid
from ..exceptions import EmailQueueError
from ..sendmail import set_options
from .smtpd import Server
from .tools import MESSAGE, QueueTestCase, configured

ERP = 'erp@company-b.example'
COMPANY_B = f'"Company B" <{ERP}>'
DENIED = (
    "554 5.2.252 SendAsDenied; erp not allowed to send as another; "
    "STOREDRV.Submission.Exception:SendAsDeniedException")


def parsed(data):
    return email.message_from_bytes(data, policy=email.policy.default)


def message(from_='Jane Doe <jane@company-b.example>', **headers):
    msg = EmailMessage()
    if from_:
        msg['From'] = from_
    msg['To'] = 'joe@example.com'
    msg['Subject'] = "Test"
    for name, value in headers.items():
        msg[name.replace('_', '-')] = value
    msg.set_content("Hello")
    return msg


class ChosenTestCase(unittest.TestCase):
    "The server that the sender chooses"

    def setUp(self):
        for context in [
                configured(**{
                        f'uri_{n}': 'smtp://127.0.0.1' for n in 'abc'}),
                configured(
                    for_a='@company-a.example, jane@company-b.example',
                    for_b='@company-b.example,@straße.example',
                    for_c='sales@company-a.example')]:
            context.__enter__()
            self.addCleanup(context.__exit__, None, None, None)

    def chosen(self, from_addr, msg=MESSAGE, server=None):
        data = mime.prepare(msg, 'host')
        server, after, changed = behalf.on_behalf(server, from_addr, data)
        self.assertEqual((after, changed), (from_addr, data))
        return server

    def test_sender(self):
        for from_addr, server in [
                ('joe@company-a.example', 'a'),
                ('joe@company-b.example', 'b'),
                ('JOE@Company-B.example', 'b'),
                # The whole address counts before the domain
                ('sales@company-a.example', 'c'),
                ('Sales@company-a.example', 'c'),
                ('jane@company-b.example', 'a'),
                ('joe@straße.example', 'b'),
                # Neither a subdomain nor a domain that only ends alike
                ('joe@mail.company-b.example', None),
                ('joe@other-company-b.example', None),
                ('joe@example.com', None),
                ('"@company-b.example"@example.com', None),
                ('<>', None),
                ('?', None),
                ]:
            with self.subTest(from_addr):
                self.assertEqual(self.chosen(from_addr), server)

    def test_caller_chooses(self):
        self.assertEqual(self.chosen('joe@company-b.example', server='c'), 'c')

    def test_on_behalf_of(self):
        for class_ in [EmailMessage, Message]:
            for writer, server in [
                    ('jane@company-b.example', 'a'),
                    ('Joe <joe@company-b.example>', 'b'),
                    ('Jürgen Groß <joe@company-b.example>', 'b'),
                    ('nonsense', 'c'),
                    ('joe@example.com', 'c')]:
                with self.subTest(writer, class_=class_):
                    msg = class_()
                    msg['From'] = 'sales@company-a.example'
                    msg['On-Behalf-Of'] = writer
                    msg['Reply-To'] = writer
                    self.assertEqual(
                        self.chosen('sales@company-a.example', msg), server)

    def test_on_behalf_of_header(self):
        msg = Message()
        msg['On-Behalf-Of'] = Header(
            'Jürgen Groß <joe@company-b.example>', 'utf-8')
        self.assertEqual(self.chosen('x@example.com', msg), 'b')

    def test_null_sender(self):
        "Test From chooses the server if the envelope has no sender"
        self.assertEqual(
            self.chosen('<>', message('sales@company-a.example')), 'c')

    def test_nothing_is_set(self):
        with configured(for_a=None, for_b=None, for_c=None):
            self.assertFalse(behalf.is_set())
            self.assertIsNone(self.chosen('joe@company-b.example'))

    def test_not_valid(self):
        for value in ['company-b.example', '@', 'a b@c', '@a@b', ',', '@x y']:
            with self.subTest(value), configured(for_b=value), \
                    self.assertRaises(Invalid) as cm:
                self.chosen('joe@example.com')
            self.assertEqual(
                (cm.exception.argument, cm.exception.reason),
                ('for_b', 'msg_setting_invalid'))

    def test_server_is_gone(self):
        with configured(uri_b=None), self.assertRaises(Invalid) as cm:
            self.chosen('joe@company-b.example')
        self.assertEqual(cm.exception.reason, 'msg_server_unknown')


class RewrittenTestCase(unittest.TestCase):
    "The header of a message that is sent from another address"

    def setUp(self):
        context = configured(
            from_b=COMPANY_B, uri_b='smtp://127.0.0.1')
        context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)

    def sent(self, msg, from_addr='jane@company-b.example', server='b'):
        data = mime.prepare(msg, 'host')
        server, from_addr, after = behalf.on_behalf(server, from_addr, data)
        return from_addr, after, data

    def test_header(self):
        jane = 'jane@company-b.example'
        for case, msg, from_, reply_to in [
                ("a name", message(),
                    f'Jane Doe <{ERP}>', f'Jane Doe <{jane}>'),
                ("no name", message(jane), f'Company B <{ERP}>', jane),
                ("a quoted name", message(f'"Doe, Jane" <{jane}>'),
                    f'"Doe, Jane" <{ERP}>', f'"Doe, Jane" <{jane}>'),
                ("a name of others", message(f'Jürgen Groß <{jane}>'),
                    f'Jürgen Groß <{ERP}>', f'Jürgen Groß <{jane}>'),
                ("a reply to", message(Reply_To='x@example.com'),
                    f'Jane Doe <{ERP}>', 'x@example.com'),
                ("several", message(
                        f'Jane <{jane}>, Joe <joe@example.com>',
                        Sender=jane),
                    f'Jane <{ERP}>', f'Jane <{jane}>, Joe <joe@example.com>'),
                ("a sender", message(Sender='other@company-b.example'),
                    f'Jane Doe <{ERP}>', f'Jane Doe <{jane}>'),
                ("none", message(None), f'Company B <{ERP}>', jane),
                ("core's", message(
                        'erp@company-a.example',
                        On_Behalf_Of=f'Jane Doe <{jane}>', Reply_To=jane),
                    f'Jane Doe <{ERP}>', jane),
                ]:
            with self.subTest(case):
                from_addr, after, before = self.sent(msg)
                self.assertEqual(from_addr, ERP)
                after, before = parsed(after), parsed(before)
                self.assertEqual(str(after['From']), from_)
                self.assertEqual(str(after['Reply-To']), reply_to)
                self.assertIsNone(after['Sender'])
                self.assertIsNone(after['On-Behalf-Of'])
                changed = {
                    'from', 'reply-to', 'sender', 'on-behalf-of'}
                self.assertEqual(*(
                        [(n, str(v)) for n, v in m.items()
                            if n.lower() not in changed]
                        for m in [after, before]))
                self.assertEqual(*(
                        m.get_content() for m in [after, before]))

    def test_bytes(self):
        """Test raw bytes in the header stay, and the rest of the message is
        the same
        """
        rest = (
            b'To: joe@example.com\r\nMessage-ID: <1@x>\r\nDate: now\r\n\r\n'
            b'From: body\r\n.\r\n\xff\r\n')
        for before, after in [
                (b'From: j@b\r\n',
                    b'From: "Company B" <erp@company-b.example>\r\n'),
                (b'FROM : =?utf-8?q?J=C3=BC?= <j@b>\r\n',
                    b'From: =?utf-8?q?J=C3=BC?= <erp@company-b.example>\r\n'),
                (b'From:\r\n "Doe,\r\n\tJane" <j@b>\r\n',
                    b'From: "Doe, Jane" <erp@company-b.example>\r\n'),
                ('From: Jü <j@b>\r\n'.encode(),
                    b'From: =?utf-8?q?J=C3=BC?= <erp@company-b.example>\r\n'),
                (b'From: \xff <j@b>\r\n',
                    b'From: \xff <erp@company-b.example>\r\n'),
                (b'From: nonsense\r\n',
                    b'From: "Company B" <erp@company-b.example>\r\n'),
                (b'From: a@b\r\nFrom: c@d\r\nSender: e@f\r\n',
                    b'From: "Company B" <erp@company-b.example>\r\n'),
                ]:
            with self.subTest(before):
                _, data, _ = self.sent(before + rest)
                self.assertTrue(data.startswith(after), data)
                header, _, body = data.partition(b'\r\n\r\n')
                self.assertEqual(body, rest.partition(b'\r\n\r\n')[2])
                self.assertIn(b'\r\nMessage-ID: <1@x>\r\n', header)
                self.assertEqual(header.lower().count(b'from'), 1)

    def test_default_server(self):
        with configured(from_='erp@company-a.example', from_b=None):
            from_addr, data, _ = self.sent(message(), server=None)
            self.assertEqual(from_addr, 'erp@company-a.example')
            self.assertEqual(
                str(parsed(data)['From']), 'Jane Doe <erp@company-a.example>')
            self.assertUntouched(message(), server='b')

    def assertUntouched(self, msg, **keywords):
        from_addr, after, before = self.sent(msg, **keywords)
        self.assertEqual(from_addr, 'jane@company-b.example')
        self.assertEqual(after, before)

    def test_left_alone(self):
        for case, msg in [
                ("is it already", message(ERP)),
                ("is it already", message(f'Jane <{ERP.upper()}>')),
                ("DKIM", message(DKIM_Signature='v=1; a=rsa-sha256; b=x')),
                ("PGP", b'From: j@b\r\nContent-Type: multipart/signed; '
                    b'boundary=x\r\n\r\n--x--\r\n'),
                ("PGP", b'From: j@b\r\nContent-Type:\r\n Multipart/Signed (x)'
                    b'\r\n\r\n'),
                ("S/MIME", b'From: j@b\r\nContent-Type: '
                    b'application/pkcs7-mime; smime-type=signed-data\r\n\r\n'),
                ]:
            with self.subTest(case):
                self.assertUntouched(msg)

    def test_nothing_is_set(self):
        with configured(from_b=None):
            self.assertUntouched(message())
            self.assertFalse(behalf.is_set())

    def test_null_sender(self):
        from_addr, data, _ = self.sent(message(), from_addr='<>')
        self.assertEqual(from_addr, '<>')
        self.assertEqual(str(parsed(data)['From']), f'Jane Doe <{ERP}>')
        _, data, _ = self.sent(message(None), from_addr='<>')
        self.assertIsNone(parsed(data)['Reply-To'])

    def test_idn(self):
        with configured(from_b='"Bücher" <erp@straße.example>'):
            from_addr, data, _ = self.sent(message('j@b'))
        self.assertEqual(from_addr, 'erp@straße.example')
        self.assertIn(b'<erp@xn--strae-oqa.example>', data)
        self.assertIn('Bücher', str(parsed(data)['From']))

    def test_long_name(self):
        name = ' '.join(['Jane'] * 300)
        _, data, _ = self.sent(message(f'{name} <j@b>'))
        self.assertLess(max(map(len, data.split(b'\r\n'))), 998)
        self.assertEqual(
            parsed(data)['From'].addresses[0].display_name, name)

    def test_not_valid(self):
        for value in ['nobody', 'a@b, c@d', '@company-b.example', 'a@b\nX: y']:
            with self.subTest(value), configured(from_b=value), \
                    self.assertRaises(Invalid) as cm:
                self.sent(message())
            self.assertEqual(cm.exception.argument, 'from_b')


class BehalfServersTestCase(QueueTestCase):
    "Servers whose mailbox may send from its own address only"

    def setUp(self):
        super().setUp()
        self.company_b = self.enter_here(Server())
        self.company_b.script = self.deny(ERP)
        self.server.script = self.deny('tryton@example.com')
        self.addCleanup(setattr, self.server, 'script', {})
        self.enter_here(configured(
                uri_b=self.company_b.uri, for_b='@company-b.example',
                from_b=COMPANY_B, from_='tryton@example.com'))
        self.addCleanup(sendmail.capture())

    def deny(self, address):
        def script(session, step):
            if step == 'dot':
                msg = parsed(session.message)
                senders = {
                    a.addr_spec for name in ['From', 'Sender']
                    for field in msg.get_all(name, [])
                    for a in field.addresses}
                if senders | {session.from_addr} != {address}:
                    return DENIED

        return script


class SentTestCase(BehalfServersTestCase):
    "Emails of code and of core that are sent by such servers"

    def test_denied(self):
        "Test the server refuses other senders, as the tests below need it"
        with configured(from_b=None, from_=None):
            self.queue(msg=bytes(message()), server='b')
            self.queue(msg=bytes(message()))
            self.send_all()
        # Suspects, because nothing else was accepted
        self.assertEqual(self.states(), {'outbox': 2})
        for error, in self.rows('error'):
            self.assertIn('SendAsDenied', error)

    def test_queue_mail(self):
        self.queue(msg=bytes(message()), from_addr='jane@company-b.example')
        self.queue(msg=bytes(message('shop@example.com')))
        self.send_all()
        self.assertEqual(self.states(), {'sent': 2})
        self.assertEqual(
            [len(s.received) for s in [self.server, self.company_b]], [1, 1])
        self.assertEqual(self.rows('server', 'from_addr'), [
                ('b', ERP), (None, 'tryton@example.com')])

    def test_stored_is_sent(self):
        id_ = self.queue(
            msg=bytes(message()), from_addr='jane@company-b.example')
        stored, size = self.read(id_, 'msg', 'size')
        self.send_all()
        sent, = self.company_b.received
        self.assertEqual(sent.data, bytes(stored))
        self.assertEqual(len(sent.data), size)
        self.assertEqual(sent.from_addr, ERP)

    def user_email(self, address):
        "Send an email from a record, as a user does in the client"
        with self.transaction():
            pool = Pool()
            User = pool.get('res.user')
            user = User(1)
            user.email = address
            user.save()
        with self.transaction(1):
            pool = Pool()
            return pool.get('ir.email').send(
                to='Joe <joe@example.com>', subject="Offer", body="<p>Hi</p>",
                record=['res.user', 1]).message_id

    def test_user_of_another_company(self):
        message_id = self.user_email('jane@company-b.example')
        self.send_all()
        self.assertEqual(self.states(), {'sent': 1}, self.rows('error'))
        sent, = self.company_b.received
        msg = parsed(sent.data)
        self.assertEqual(str(msg['From']), f'Company B <{ERP}>')
        self.assertEqual(str(msg['Reply-To']), 'jane@company-b.example')
        self.assertEqual(sent.message_id, message_id)

    def test_user_of_the_same_company(self):
        self.user_email('jane@example.com')
        self.send_all()
        self.assertEqual(self.states(), {'sent': 1}, self.rows('error'))
        msg = parsed(self.server.received[0].data)
        self.assertEqual(str(msg['From']), 'tryton@example.com')
        self.assertEqual(str(msg['Reply-To']), 'jane@example.com')

    def reset(self):
        with self.transaction():
            User = Pool().get('res.user')
            user = User(1)
            user.email = 'joe@example.com'
            user.save()
            User.reset_password([user])

    def test_reset(self):
        "Test a captured password reset, by each of the servers"
        for from_, server in [
                ('shop@example.com', self.server),
                ('shop@company-b.example', self.company_b)]:
            with self.subTest(from_), configured('email', **{'from': from_}):
                self.clear()
                self.reset()
                self.send_all()
                self.assertEqual(
                    self.states(), {'sent': 1}, self.rows('error'))
                self.assertEqual(len(server.received), 1)

    def test_caller_chooses(self):
        msg = message()
        set_options(msg, server='b')
        with self.transaction():
            send_message_transactional(msg)
        self.send_all()
        self.assertEqual(len(self.company_b.received), 1)

    def test_on_behalf_of(self):
        for from_, on_behalf_of, server in [
                ('erp@company-a.example', 'jane@company-b.example',
                    self.company_b),
                ('erp@company-b.example', 'jane@example.com',
                    self.company_b),
                ]:
            with self.subTest(from_):
                msg = message(None)
                set_from_header(msg, from_, on_behalf_of)
                self.company_b.received.clear()
                with self.transaction():
                    send_message_transactional(msg)
                self.send_all()
                self.assertEqual(len(server.received), 1, self.rows('error'))

    def test_test_email(self):
        with self.transaction():
            msg = message('tryton@example.com')
            email, = Pool().get('email.queue').queue_message(msg)
            self.assertEqual(email.from_addr, 'tryton@example.com')


class BrokenTestCase(BehalfServersTestCase):
    "Options that are not valid, and the emails that they hold back"
    broken = [
        {'from_b': 'nobody'}, {'for_b': 'nobody'}, {'uri_b': None},
        {'for_a': '@'}]

    def test_error(self):
        for options in self.broken:
            with self.subTest(options), configured(**options):
                name, = options
                with self.assertRaises(EmailQueueError) as cm:
                    self.queue(
                        msg=bytes(message()),
                        from_addr='jane@company-b.example')
                self.assertIn(
                    name.replace('uri_b', 'server'), cm.exception.message)
        self.assertFalse(self.rows('id'))

    def test_other_servers_go_on(self):
        with configured(from_b='nobody'):
            self.queue(msg=bytes(message('shop@example.com')))
            self.send_all()
        self.assertEqual(self.states(), {'sent': 1})

    def capture(self, **options):
        "Let an email be captured that cannot be queued, and return its id"
        msg = message(None)
        set_from_header(
            msg, 'tryton@example.com', 'Jane <jane@company-b.example>')
        set_options(msg, **options)
        with self.transaction():
            send_message_transactional(msg)
        (id_, state), = self.rows('id', 'state')
        self.assertEqual(state, 'failed')
        return id_

    def retry(self, id_):
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            EmailQueue.retry([EmailQueue(id_)])

    def test_retry(self):
        for sensitive in [False, True]:
            for options in self.broken:
                with self.subTest(options, sensitive=sensitive):
                    self.clear()
                    self.company_b.received.clear()
                    with configured(**options):
                        id_ = self.capture(sensitive=sensitive)
                        before = self.rows('*')
                        with self.assertRaises(EmailQueueError):
                            self.retry(id_)
                        self.send_all()
                        self.assertEqual(self.rows('*'), before)
                    self.retry(id_)
                    self.send_all()
                    self.assertEqual(
                        self.read(id_, 'state', 'server', 'from_addr'),
                        ['sent', 'b', ERP])
                    self.assertFalse(self.server.received)
                    sent, = self.company_b.received
                    self.assertEqual(
                        str(parsed(sent.data)['From']), f'Jane <{ERP}>')

    def test_retry_in_the_filestore(self):
        with tempfile.TemporaryDirectory() as path, \
                configured('database', path=path):
            field = Pool(DB_NAME).get('email.queue').msg
            with patch.object(field, 'to_filestore', True), \
                    configured(from_b='nobody'):
                id_ = self.capture()
            with self.transaction(readonly=True):
                before = Pool().get('email.queue')(id_).file_id
                self.assertTrue(before)
            with patch.object(field, 'to_filestore', True):
                self.retry(id_)
            with self.transaction(readonly=True):
                email = Pool().get('email.queue')(id_)
                self.assertNotEqual(email.file_id, before)
                self.assertEqual(len(email.msg), email.size)
            self.send_all()
        self.assertEqual(self.states(), {'sent': 1}, self.rows('error'))
        self.assertEqual(len(self.company_b.received), 1)

    def test_denied_before_it_was_set(self):
        "Test a refused email is sent from the mailbox once this is set"
        with configured(from_b=None, from_=None):
            id_ = self.queue(
                msg=bytes(message()), from_addr='jane@company-b.example')
            self.send_all()
            # The email fails when it has been the only suspect for an hour
            self.assertEqual(self.read(id_, 'state'), 'outbox')
            long_ago = dt.datetime(2020, 1, 1)
            self.write(id_, suspect_since=long_ago, scheduled_at=long_ago)
            self.send_all()
            self.assertEqual(self.read(id_, 'state'), 'failed')
        self.retry(id_)
        self.send_all()
        self.assertEqual(self.read(id_, 'state'), 'sent')

    def test_partly_delivered(self):
        "Test the other recipients get the same email as those who have got it"
        with configured(for_b=None, from_b=None, from_=None):
            self.server.script = {}
            id_ = self.queue(
                ['a@example.com', 'rcpt-550x1@example.com'],
                msg=bytes(message()), from_addr='jane@company-b.example')
            self.send_all()
            self.assertEqual(self.read(id_, 'state'), 'failed')
        self.retry(id_)
        self.send_all()
        self.assertEqual(
            [m.from_addr for m in self.server.received],
            ['jane@company-b.example'] * 2)


del QueueTestCase, BehalfServersTestCase


if __name__ == '__main__':
    unittest.main()
