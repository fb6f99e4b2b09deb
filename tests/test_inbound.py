# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Notices of non-delivery that come by the module Inbound Email."""
import json
import time
import unittest
from http import HTTPStatus
from importlib.util import find_spec

from werkzeug.test import Client

from trytond.pool import Pool
from trytond.protocols.wrappers import Response
from trytond.tests.test_tryton import DB_NAME, drop_db
from trytond.transaction import Transaction
from trytond.wsgi import app

from . import postfix
from .test_bounce import DEAD, UNKNOWN, notice
from .tools import QueueTestCase, configured

JANE, JOE = 'jane@example.com', 'joe@example.com'
MESSAGE = b'Message-ID: <1@shop.example.com>\r\nSubject: Invoice\r\n\r\n.\r\n'
FAILED = [
    'failed', f'{JANE}\n{JOE}',
    f'{DEAD} {UNKNOWN}']


@unittest.skipUnless(
    find_spec('trytond.modules.inbound_email')
    and find_spec('trytond.modules.party'), "they are not installed")
class InboundTestCase(QueueTestCase):
    modules = ['inbound_email', 'party', 'email_queue']

    @classmethod
    def setUpClass(cls):
        # The cached database may be one without this module
        drop_db()
        cls.addClassCleanup(drop_db)
        super().setUpClass()
        with Transaction().start(DB_NAME, 0):
            pool = Pool()
            inbox = pool.get('inbound.email.inbox')(
                name="Bounces", identifier='bounces')
            inbox.rules = [{
                    'origin': 'MAILER-DAEMON|postmaster',
                    'action': 'email.queue|receive_inbound_email',
                    }]
            inbox.save()

    def clear(self):
        super().clear()
        with self.transaction():
            cursor = Transaction().connection.cursor()
            for table in ['inbound_email', 'ir_email', 'res_notification']:
                cursor.execute(f'DELETE FROM {table}')

    def post(self, data, **options):
        client = Client(app, Response)
        url = f'/{DB_NAME}/inbound_email/inbox/bounces'
        # In 8.2 the document is a redirection, which forgets the options
        url = client.post(url).headers.get('Location', url)
        return client.post(
            url, data=data, query_string=options,
            content_type='application/octet-stream').status_code

    def inbound(self):
        "Return for each inbound email whether a rule was run, and its result"
        with self.transaction(readonly=True):
            return [
                (bool(e.rule), e.result and e.result.id)
                for e in Pool().get('inbound.email').search(
                    [], order=[('id', 'ASC')])]

    def queue_for(self, user):
        "Queue an email as a user with an archived copy, and return its id"
        with self.transaction(user):
            pool = Pool()
            email, = pool.get('email.queue').queue_mail(
                'shop@example.com', [JANE, DEAD.replace('rcpt', 'x'), JOE],
                MESSAGE)
            return email.id

    def test_action(self):
        "Test the action is offered for the rules of an inbox"
        with self.transaction(readonly=True):
            Rule = Pool().get('inbound.email.rule')
            self.assertIn(
                ('email.queue|receive_inbound_email',
                    "Bounce of the Email Queue"),
                Rule.fields_get(['action'])['action']['selection'])

    def test_notices(self):
        """Test every inbound email is kept, and its result is the email it is
        about
        """
        id_ = self.queue_for(1)
        self.send_all()
        dead = DEAD.replace('rcpt', 'x')
        data = notice([{'Final-Recipient': f'rfc822;{dead}'}])
        for body, options, expected in [
                (data, {}, id_),
                (data, {}, id_),
                (json.dumps({'email': data.decode()}), {'type': 'sendgrid'},
                    id_),
                (notice(message_id='<x@elsewhere.test>'), {}, None),
                (b'From: MAILER-DAEMON@x.test\n\nno notice\n', {}, None),
                ]:
            self.assertEqual(
                self.post(body, **options), HTTPStatus.NO_CONTENT)
            self.assertEqual(self.inbound()[-1], (True, expected))
        self.assertEqual(self.read(id_, 'state'), 'failed')
        with self.transaction(readonly=True):
            self.assertEqual(
                [e.kind for e in Pool().get('email.queue')(id_).events],
                ['bounced'])
            notification, = Pool().get('res.notification').search([])
            self.assertEqual(notification.user.id, 1)

    def test_sending(self):
        "Test a notice that comes too early is refused, so that it comes again"
        id_ = self.queue_for(1)
        self.write(id_, state='sending')
        dead = DEAD.replace('rcpt', 'x')
        data = notice([{'Final-Recipient': f'rfc822;{dead}'}])
        self.assertGreaterEqual(self.post(data), 400)
        self.assertEqual(self.inbound(), [])

    def test_contact_mechanism(self):
        "Test a party shows that an address does not work"
        self.queue('rcpt-550-5.1.1-no@example.com')
        self.send_all()
        with self.transaction():
            party = Pool().get('party.party')(name="Jane")
            party.contact_mechanisms = [
                {'type': 'email', 'value': 'Rcpt-550-5.1.1-no@example.com'},
                {'type': 'email', 'value': JANE},
                {'type': 'other', 'value': 'rcpt-550-5.1.1-no@example.com'},
                ]
            party.save()
            dead, *others = party.contact_mechanisms
            self.assertTrue(dead.dead_since)
            self.assertEqual([m.dead_since for m in others], [None, None])
            for type_ in ['form', 'tree']:
                view_id = Pool().get('ir.model.data').get_id(
                    'party', f'contact_mechanism_view_{type_}')
                view = Pool().get('party.contact_mechanism').fields_view_get(
                    view_id, type_)
                self.assertIn('dead_since', view['fields'])

    @unittest.skipIf(DB_NAME == ':memory:', "it is a matter of SQLite's file")
    @unittest.skipUnless(postfix.available(), "there is no Postfix")
    def test_postfix(self):
        "Test a real Postfix bounces one of three recipients"
        with postfix.Postfix(self.server.port) as relay, \
                configured('email', uri=relay.uri):
            with self.transaction(1):
                pool = Pool()
                email, = pool.get('email.queue').queue_mail(
                    'shop@example.com', [JANE, DEAD, JOE], MESSAGE)
                pool.get('ir.email')(
                    recipients=JANE, message_id=email.message_id,
                    subject="Invoice", resource='res.user,1').save()
            self.send_all()
            self.assertEqual(self.read(email.id, 'state'), 'sent')
            started = time.monotonic()
            self.server.wait_until(
                lambda: [m for m in self.server.received if not m.from_addr])
            mail, = (m for m in self.server.received if not m.from_addr)
            self.assertEqual(self.post(mail.data), HTTPStatus.NO_CONTENT)
            self.assertLess(time.monotonic() - started, 60)
        self.assertEqual(
            self.read(email.id, 'state', 'accepted', 'error'), FAILED)
        with self.transaction(readonly=True):
            archived, = Pool().get('ir.email').search([])
            self.assertEqual(archived.delivery, 'failed')
            notification, = Pool().get('res.notification').search([])
            self.assertEqual(notification.user.id, 1)


del QueueTestCase
