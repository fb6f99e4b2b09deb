# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What a notice of non-delivery changes, and what it does not change."""
import datetime as dt
import json
import subprocess
import sys
import time
import unittest
from pathlib import Path
from unittest.mock import patch

from trytond import backend
from trytond.modules.email_queue import notices
from trytond.modules.email_queue.exceptions import BusyError, EmailQueueError
from trytond.pool import Pool
from trytond.tests.test_tryton import DB_NAME
from trytond.transaction import Transaction

from . import postfix
from .jsonrpc import RPCTestCase
from .test_bounce import DEAD, NOTICES, SES_ID, UNKNOWN, notice
from .test_history import HistoryTestCase
from .tools import QueueTestCase, configured

JANE, JOHN, JOE = 'jane@example.com', 'john@example.com', 'joe@example.com'
MESSAGE_ID = '<1@shop.example.com>'
MESSAGE = (
    f'Message-ID: {MESSAGE_ID}\r\nSubject: Invoice\r\n\r\nPay.\r\n').encode()
SCRIPT = Path(__file__).parents[1] / 'bin/trytond-email-queue-bounce'
NAMES = ['state', 'accepted', 'refused', 'error']


def about(*addresses, **fields):
    "Return the bytes of a notice about addresses"
    return notice([
            {'Final-Recipient': f'rfc822; {a}', **fields} for a in addresses])


class NoticesTestCase(HistoryTestCase):

    def queue_sent(self, to_addrs=(JANE, JOHN, JOE), msg=MESSAGE, **keywords):
        "Send an email and return its id"
        id_ = self.queue(to_addrs, msg, **keywords)
        self.send_all()
        return id_

    def receive(self, data, **options):
        with self.transaction(**options):
            return Pool().get('email.queue').receive_notice(data)

    def everything(self):
        with self.transaction(readonly=True) as transaction:
            cursor = transaction.connection.cursor()
            values = []
            for table in ['email_queue', 'email_queue_event']:
                t = Pool().get(table.replace('_', '.')).__table__()
                cursor.execute(*t.select(order_by=t.id))
                values.append([tuple(
                            bytes(v) if isinstance(v, memoryview) else v
                            for v in row) for row in cursor.fetchall()])
            return values


class BouncedTestCase(NoticesTestCase):
    "Test a refusal that comes late"

    def test_one_of_three(self):
        id_ = self.queue_sent()
        before = dt.datetime.now() - dt.timedelta(seconds=2)
        self.assertEqual(self.receive(about(JOHN)), ([id_], [id_]))
        self.assertEqual(self.read(id_, 'reason', 'outcome'), [
                'bounced', "Came back, delivered to 2 of 3 recipients: "
                f"{JOHN} {UNKNOWN}"])
        self.assertEqual(self.read(id_, *NAMES), [
                'failed', f'{JANE}\n{JOE}', f'{JOHN} {UNKNOWN}',
                f'{JOHN} {UNKNOWN}'])
        self.assertGreater(self.read(id_, 'bounced_at'), before)
        self.assertEqual(
            self.history(id_), [('bounced', JOHN, UNKNOWN, None)])

    def test_retry_goes_to_that_one_only(self):
        id_ = self.queue_sent()
        self.receive(about(JOHN))
        self.server.received.clear()
        self.press('retry', id_)
        self.assertEqual(
            self.read(id_, 'bounced_at', 'waiting'), [None, JOHN])
        self.send_all()
        mail, = self.server.received
        self.assertEqual(mail.to_addrs, (JOHN,))
        self.assertEqual(
            self.read(id_, 'state', 'accepted', 'error'), ['sent', None, None])

    def test_one_after_another(self):
        "Test further notices about the same email"
        id_ = self.queue_sent()
        self.receive(about(JOHN))
        self.receive(about(JANE))
        self.assertEqual(
            self.read(id_, 'error'),
            f'{JANE} {UNKNOWN}\n'
            f'{JOHN} {UNKNOWN}')
        self.receive(about(JOE))
        self.assertEqual(self.read(id_, *NAMES)[:2], ['failed', None])
        self.assertEqual(len(self.history(id_)), 3)

    def test_all_at_once(self):
        id_ = self.queue_sent()
        self.receive(about(JOE, JANE, JOHN))
        self.assertEqual(
            self.read(id_, 'error'),
            '\n'.join(f'{a} {UNKNOWN}' for a in [JANE, JOHN, JOE]))

    def test_only_recipient(self):
        id_ = self.queue_sent(JANE)
        self.receive(about(JANE))
        self.assertEqual(
            self.read(id_, *NAMES),
            ['failed', None, f'{JANE} {UNKNOWN}', UNKNOWN])

    def test_delivered_in_part(self):
        "Test an email that another recipient's server has refused at once"
        bad = 'rcpt-550-5.1.1-no@example.com'
        id_ = self.queue_sent([JANE, JOHN, bad])
        self.receive(about(JOHN))
        self.assertEqual(
            self.read(id_, 'state', 'accepted', 'error'), [
                'failed', JANE,
                ''
                f'{JOHN} {UNKNOWN}\n{bad} 550 5.1.1 no'])

    def test_while_others_wait(self):
        "Test an email that still has to go to another recipient"
        later = 'rcpt-451x1-4.2.0-later@example.com'
        id_ = self.queue_sent([JANE, JOHN, later])
        self.assertEqual(self.read(id_, 'state'), 'outbox')
        self.receive(about(JOHN))
        self.assertEqual(
            self.read(id_, 'state', 'accepted'), ['outbox', JANE])
        self.write(id_, scheduled_at=dt.datetime(2026, 1, 1))
        self.send_all()
        self.assertEqual(
            self.read(id_, 'state', 'reason', 'error'), [
                'failed', 'bounced', f'{JOHN} {UNKNOWN}'])

    def test_delayed(self):
        "Test a notice of a delay is one event and changes nothing else"
        id_ = self.queue_sent()
        rows, _ = self.everything()
        for _ in range(2):
            self.assertEqual(
                self.receive(about(JOHN, Action='delayed')), ([id_], []))
        self.assertEqual(
            self.history(id_), [('delayed', JOHN, UNKNOWN, None)])
        self.assertEqual(self.everything()[0], rows)

    def test_flood(self):
        "Test the number of events is limited"
        id_ = self.queue_sent()
        with patch.object(notices, 'EVENTS', 5):
            for i in range(10):
                self.receive(about(
                        JOHN, **{'Action': 'delayed',
                            'Diagnostic-Code': f'smtp; 451 {i}'}))
        self.assertEqual(len(self.history(id_)), 5)

    def test_rewritten(self):
        "Test the address that the sender gave is found after it was rewritten"
        id_ = self.queue_sent()
        self.receive(about('j.doe@elsewhere.test', **{
                    'Original-Recipient': f'rfc822;{JOHN}'}))
        self.assertEqual(
            self.read(id_, 'refused'), f'{JOHN} {UNKNOWN}')

    def test_domain(self):
        id_ = self.queue_sent('jane@straße.de')
        self.receive(about('Jane@XN--STRAE-OQA.DE'))
        self.assertEqual(
            self.read(id_, 'refused'), f'jane@straße.de {UNKNOWN}')

    def test_envelope_id(self):
        for own, told, changes in [
                ('row+3D1', 'row=1', True),
                ('row1', 'row2', False),
                ('row1', '', True),
                ('', 'of the relay', True),
                ]:
            with self.subTest(own=own, told=told):
                self.clear()
                id_ = self.queue_sent(
                    mail_options=[f'ENVID={own}'] if own else [])
                self.receive(notice(
                        [{'Final-Recipient': f'rfc822;{JOHN}'}],
                        envelope_id=told))
                self.assertEqual(
                    self.read(id_, 'state') == 'failed', changes)

    def test_same_message_id(self):
        "Test the right one of several emails with one Message-ID is found"
        others = [self.queue(a, MESSAGE) for a in [JANE, JOE]]
        id_ = self.queue_sent(JOHN)
        self.receive(about(JOHN))
        self.assertEqual(self.read(id_, 'state'), 'failed')
        for other in others:
            self.assertEqual(self.read(other, 'state'), 'sent')

    def test_ses(self):
        "Test a notice with the Message-ID that Amazon SES has given"
        queue_id = SES_ID.partition('@')[0].strip('<')
        self.server.script['dot'] = f'250 Ok {queue_id}'
        self.addCleanup(self.server.script.clear)
        id_ = self.queue_sent(
            [JANE, DEAD.replace('rcpt-550', 'x-550')])
        self.assertEqual(self.read(id_, 'queue_id'), queue_id)
        data = (NOTICES / 'ses.eml').read_bytes()
        data = data.replace(b'rcpt-550', b'x-550')
        self.assertEqual(self.receive(data), ([id_], [id_]))

    def test_ses_in_several_transactions(self):
        "Test each SMTP transaction has an id, any of which a notice may have"
        dead = DEAD.replace('rcpt-550', 'x-550')
        queue_id = SES_ID.partition('@')[0].strip('<')
        others = [queue_id.replace('aaaa', c * 4) for c in 'bc']
        data = (NOTICES / 'ses.eml').read_bytes().replace(
            b'rcpt-550', b'x-550')
        for ids in [
                [queue_id, *others], [others[0], queue_id, others[1]],
                [*others, queue_id]]:
            with self.subTest(ids=ids):
                self.clear()
                answers = iter([f'250 Ok {i}' for i in ids])
                self.server.script = lambda session, step: (
                    next(answers) if step == 'dot' else None)
                self.addCleanup(setattr, self.server, 'script', {})
                with configured(recipients=1, connections=1):
                    id_ = self.queue_sent([JANE, JOHN, dead])
                self.assertEqual(self.read(id_, 'queue_id'), '\n'.join(ids))
                self.assertEqual(self.receive(data), ([id_], [id_]))
                self.assertEqual(
                    self.read(id_, 'accepted'), f'{JANE}\n{JOHN}')
                other = data.replace(queue_id.encode(), others[0].replace(
                        'bbbb', 'dddd').encode())
                self.assertEqual(self.receive(other), ([], []))


class UnchangedTestCase(NoticesTestCase):
    "Test notices that change nothing"

    def setUp(self):
        super().setUp()
        self.id = self.queue_sent()

    def test_unchanged(self):
        waiting = self.queue(
            JANE, MESSAGE.replace(b'1@', b'2@'),
            scheduled_at=dt.timedelta(days=1))
        self.queue_sent(
            JANE, MESSAGE.replace(b'1@', b'3@'), from_addr='<>')
        before = self.everything()
        to_jane = [{'Final-Recipient': f'rfc822;{JANE}'}]
        for name, data, expected in [
                ('foreign', notice(to_jane, '<x@elsewhere.test>'), ([], [])),
                ('to another', about('x@example.com'), ([], [])),
                ('to none', about('', **{'Final-Recipient': 'rfc822;'}), None),
                ('delivered', about(JANE, Action='delivered'), None),
                ('relayed', about(JANE, Action='relayed'), None),
                ('unknown action', about(JANE, Action='x'), None),
                ('not yet sent', notice(to_jane, '<2@shop.example.com>'),
                    ([waiting], [])),
                ('null sender', notice(to_jane, '<3@shop.example.com>'),
                    ([], [])),
                ('10 MB', about(JANE) + b'x' * 10 ** 7, None),
                ('broken', about(JANE)[:300], None),
                ('no notice', MESSAGE, None),
                ('nothing', b'', None),
                ]:
            with self.subTest(name):
                received = self.receive(data)
                if name in {'delivered', 'relayed', 'unknown action'}:
                    expected = ([self.id], [])
                if name != 'to none':
                    self.assertEqual(received, expected)
                self.assertEqual(self.everything(), before)

    def test_doubled(self):
        self.receive(about(JOHN))
        before = self.everything()
        self.assertEqual(self.receive(about(JOHN)), ([self.id], []))
        self.assertEqual(self.everything(), before)

    def test_cancelled(self):
        "Test a cancelled email stays cancelled"
        self.receive(about(JOHN))
        self.press('cancel', self.id)
        self.receive(about(JANE))
        self.assertEqual(
            self.read(self.id, 'state', 'accepted'), ['cancelled', JOE])

    def test_sending(self):
        "Test an email that is with a sender is not changed"
        self.write(self.id, state='sending')
        before = self.everything()
        with self.assertRaises(BusyError) as raised:
            self.receive(about(JOHN))
        self.assertEqual(raised.exception.email.id, self.id)
        self.assertEqual(self.everything(), before)

    def test_changed_meanwhile(self):
        """Test an email that somebody has changed since it was read is not
        changed
        """
        def read(cls, notice):
            emails = noticed(notice)
            with Transaction().new_transaction() as transaction:
                transaction.connection.cursor().execute(
                    "UPDATE email_queue SET state = 'cancelled'")
            return emails

        EmailQueue = Pool(DB_NAME).get('email.queue')
        noticed = EmailQueue._noticed
        with patch.object(EmailQueue, '_noticed', classmethod(read)):
            with self.assertRaises(
                    (BusyError, backend.DatabaseOperationalError)):
                self.receive(about(JOHN))
        self.assertEqual(self.read(self.id, 'state'), 'cancelled')
        self.assertEqual(self.history(self.id), [])

    def test_readonly(self):
        with self.assertRaises(EmailQueueError):
            self.receive(about(JOHN), readonly=True)

    def test_rollback(self):
        with patch.object(
                Pool(DB_NAME).get('email.queue'), 'run_finished') as finished:
            with self.transaction() as transaction:
                Pool().get('email.queue').receive_notice(about(JOHN))
                transaction.rollback()
        self.assertFalse(finished.called)
        self.assertEqual(self.read(self.id, 'state'), 'sent')


class NoticesToldTestCase(RPCTestCase, NoticesTestCase):
    "Test which users are notified"

    def setUp(self):
        super().setUp()
        for _ in range(2):
            with self.transaction() as transaction:
                cursor = transaction.connection.cursor()
                cursor.execute('DELETE FROM res_notification')
                cursor.execute('DELETE FROM ir_email')
        with self.transaction(self.clerk.id):
            email, = Pool().get('email.queue').queue_mail(
                'shop@example.com', [JANE, JOHN], MESSAGE,
                resource=f'res.user,{self.clerk.id}')
            Pool().get('ir.email')(
                recipients=JANE, message_id=MESSAGE_ID, subject="Invoice",
                resource=f'res.user,{self.clerk.id}').save()
            self.id = email.id
        self.send_all()

    def notified(self):
        with self.transaction(readonly=True):
            return [
                (n.user.login, n.label, json.loads(n.records or 'null'))
                for n in Pool().get('res.notification').search([])]

    def test_author(self):
        self.receive(about(JOHN))
        self.receive(about(JOHN))
        self.assertEqual(
            self.notified(),
            [('clerk', "Email not delivered", [self.id])])

    def test_archive_and_health(self):
        self.receive(about(JOHN))
        with self.transaction(readonly=True):
            archived, = Pool().get('ir.email').search([])
            self.assertEqual(archived.delivery, 'failed')
            self.assertIn("delivered to 1 of 2", archived.delivery_error)
            self.assertEqual(
                Pool().get('email.queue.health').measure().failed, 1)

    def test_error_of_hook(self):
        "Test failures are recorded even if the hook raises an error"
        with patch.object(
                Pool(DB_NAME).get('email.queue'), 'run_finished',
                side_effect=RuntimeError):
            with self.assertLogs(
                    'trytond.modules.email_queue.notices', 'ERROR'):
                self.receive(about(JOHN))
        self.assertEqual(self.read(self.id, 'state'), 'failed')

    def test_no_client(self):
        "Test no client can give the queue a notice"
        for session in self.sessions:
            for method in ['receive_notice', 'receive_inbound_email']:
                with self.subTest(user=session.login, method=method):
                    with self.assertRaises(Exception):
                        session.queue(method, 'x', 'x')


class NoticeInboundTestCase(unittest.TestCase):
    "Test what the services of Inbound Email deliver"

    def test_raw(self):
        class Inbound:
            def __init__(self, data_type, data):
                self.data_type, self.data = data_type, data

        for data_type, key in [
                ('mailchimp', 'raw_msg'), ('mailpace', 'raw'),
                ('sendgrid', 'email'), ('postmark', 'RawEmail')]:
            for data, expected in [
                    (json.dumps({key: 'Subject: ü'}), 'Subject: ü'.encode()),
                    (json.dumps({}), b''),
                    (json.dumps({key: 1}), b''),
                    (json.dumps([]), b''),
                    ('{', b''),
                    ]:
                with self.subTest(data_type, data=data):
                    self.assertEqual(
                        notices._raw(Inbound(data_type, data.encode())),
                        expected)
        self.assertEqual(notices._raw(Inbound('raw', b'\xff')), b'\xff')
        self.assertEqual(notices._raw(Inbound('other', b'\xff')), b'')
        self.assertEqual(notices._raw(Inbound('raw', None)), b'')


class ReturnPathTestCase(NoticesTestCase):
    "Test to whom notices go"

    def test_default(self):
        with configured(return_path='bounces@example.com'):
            self.queue_sent()
            self.queue_sent(from_addr='<>')
        self.assertEqual(
            [m.from_addr for m in self.server.received],
            ['bounces@example.com', ''])
        self.assertEqual(
            {a for a, in self.rows('from_addr')}, {'shop@example.com', '<>'})

    def test_named(self):
        with configured(
                uri_big=self.server.uri, return_path_big='big@example.com'):
            self.queue_sent(server='big')
            self.queue_sent()
            id_ = self.queue(JANE, server='big')
            with self.transaction():
                Pool().get('email.queue')(id_).send()
        self.assertEqual(
            sorted(m.from_addr for m in self.server.received),
            ['big@example.com', 'big@example.com', 'shop@example.com'])

    def test_invalid(self):
        self.queue(JANE)
        for value in ['nobody', 'a@x.test, b@x.test', '<>']:
            with self.subTest(value), configured(return_path=value):
                with self.assertRaises(EmailQueueError) as cm:
                    self.send_all()
                self.assertIn('return_path', str(cm.exception))


@unittest.skipUnless(SCRIPT.exists(), "the script is not beside the tests")
class ScriptTestCase(NoticesTestCase):
    "Test the command for a pipe of a mail server"

    def run_script(self, data, *args):
        process = subprocess.run(
            [sys.executable, SCRIPT, *args], input=data,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertEqual(process.stdout, b'')
        self.assertEqual(process.stderr.count(b'\n'), 1)
        return process.returncode, process.stderr.decode()

    @unittest.skipIf(
        DB_NAME == ':memory:', "no other process sees the database")
    def test_status(self):
        id_ = self.queue_sent()
        for data, status, words in [
                (about(JOHN), 0, f"not delivered: {id_}"),
                (about(JOHN), 0, "nothing is new"),
                (notice(message_id='<x@y>'), 67, "about no email"),
                (MESSAGE, 65, "no notice"),
                (b'', 65, "no notice"),
                (about(JANE) + b'x' * 10 ** 7, 65, "no notice"),
                ]:
            with self.subTest(words):
                code, output = self.run_script(data, '-d', DB_NAME)
                self.assertEqual(code, status, output)
                self.assertIn(words, output)
        self.assertEqual(self.read(id_, 'state'), 'failed')
        self.write(id_, state='sending')
        code, output = self.run_script(about(JANE), '-d', DB_NAME)
        self.assertEqual(code, 75, output)

    def test_trouble(self):
        for status, *args in [
                (64,), (64, '-d'), (64, '-d', 'x', '--nonsense'),
                (78, '-d', 'x', '-c', '/nowhere/trytond.conf'),
                # The pool of PostgreSQL tries to connect for half a minute
                *[(75, '-d', 'nowhere')] * (backend.name == 'sqlite'),
                ]:
            with self.subTest(args=args):
                code, output = self.run_script(about(JOHN), *args)
                self.assertEqual(code, status, output)

    @unittest.skipIf(
        DB_NAME == ':memory:', "no other process sees the database")
    @unittest.skipUnless(postfix.available(), "there is no Postfix")
    def test_postfix(self):
        "Test a real Postfix bounces one of three recipients"
        with postfix.Postfix(self.server.port) as relay, \
                configured('email', uri=relay.uri):
            with self.transaction(1) as transaction:
                transaction.connection.cursor().execute('DELETE FROM ir_email')
                pool = Pool()
                email, = pool.get('email.queue').queue_mail(
                    'shop@example.com', [JANE, DEAD, JOE], MESSAGE)
                id_ = email.id
                pool.get('ir.email')(
                    recipients=JANE, message_id=email.message_id,
                    subject="Invoice", resource='res.user,1').save()
            self.send_all()
            self.assertEqual(self.read(id_, 'state'), 'sent')
            queue_id = self.read(id_, 'queue_id')
            started = time.monotonic()
            self.server.wait_until(
                lambda: [m for m in self.server.received if not m.from_addr])
            mail, = (m for m in self.server.received if not m.from_addr)
            self.assertEqual(mail.to_addrs, ('shop@example.com',))
            code, output = self.run_script(mail.data, '-d', DB_NAME)
            self.assertLess(time.monotonic() - started, 60)
            self.assertIn(f'{queue_id}: to=<{DEAD}>', relay.log)
        self.assertEqual(code, 0, output)
        self.assertEqual(self.read(id_, *NAMES), [
                'failed', f'{JANE}\n{JOE}', f'{DEAD} {UNKNOWN}',
                f'{DEAD} {UNKNOWN}'])
        with self.transaction(readonly=True):
            archived, = Pool().get('ir.email').search([])
            self.assertEqual(archived.delivery, 'failed')
            self.assertIn((1, f'[{id_}]'), [
                    (n.user.id, n.records)
                    for n in Pool().get('res.notification').search([])])


del QueueTestCase, RPCTestCase
