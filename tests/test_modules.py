# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The emails of Tryton's own modules, captured, while a server is dead."""
import datetime as dt
import email
import unittest
from decimal import Decimal
from email.policy import default
from importlib.util import find_spec

import trytond.config as config
from trytond.pool import Pool
from trytond.sendmail import sendmail_transactional
from trytond.tests.test_tryton import DB_NAME, USER, drop_db
from trytond.transaction import Transaction, TransactionError
from trytond.worker import run_task

try:
    from trytond.modules.account.tests import create_chart, get_fiscalyear
    from trytond.modules.company.tests import create_company, set_company
except ImportError:
    # Without these modules the tests are skipped
    pass

from .. import sendmail
from ..exceptions import EmailQueueError
from .test_sendmail import message
from .tools import QueueTestCase, configured

MODULES = [
    'account_dunning_email',
    'marketing_email',
    'notification_email',
    'web_user',
    'email_queue',
    ]
# How often tasks may queue further tasks
TASKS = 5
MISSING = [m for m in MODULES if not find_spec(f'trytond.modules.{m}')]


@unittest.skipIf(MISSING, f"not installed: {', '.join(MISSING)}")
class ModulesTestCase(QueueTestCase):
    "Test each module with a server that is dead and comes back"
    modules = MODULES

    @classmethod
    def setUpClass(cls):
        # The cached database may be one without these modules
        drop_db()
        cls.addClassCleanup(drop_db)
        super().setUpClass()
        cls.enter(configured('marketing', **{
                    'email_subscribe_url': 'https://example.com/subscribe',
                    'email_unsubscribe_url': 'https://example.com/unsubscribe',
                    }))

    def setUp(self):
        super().setUp()
        if not config.getboolean('email_queue', 'capture'):
            self.addCleanup(sendmail.capture())
        self.addCleanup(self.server.start)
        self.addCleanup(self.server.stop)
        self.server.stop()
        self.sessions = self.server.sessions

    def transaction(self, user=USER, **options):
        return super().transaction(user, **options)

    def run_action(self, action, commit=True, user=USER):
        "Run an action, and then the tasks that the action has queued"
        extras = {}
        while True:
            with self.transaction(user, **extras) as transaction:
                try:
                    result = action()
                except TransactionError as error:
                    transaction.rollback()
                    error.fix(extras)
                    continue
                if not commit:
                    transaction.rollback()
            for _ in range(TASKS):
                for task in self.tasks():
                    run_task(DB_NAME, task)
            return result

    def tasks(self):
        with self.transaction(readonly=True):
            return list(map(int, Pool().get('ir.queue').search(
                        [('finished_at', '=', None)])))

    def clear(self):
        super().clear()
        with self.transaction():
            cursor = Transaction().connection.cursor()
            cursor.execute('DELETE FROM ir_email')

    def captured(self):
        with self.transaction(readonly=True):
            return sorted(
                (e.to_addrs, e.priority, str(e.resource or ''), e.state)
                for e in Pool().get('email.queue').search([]))

    def deliveries(self, resources):
        "Return what the archives of the records show"
        with self.transaction(readonly=True):
            return [
                e.delivery for e in Pool().get('ir.email').search(
                    [('resource', 'in', list(map(str, resources)))])]

    def deliver(self, action, to_addrs, priority='20', archived=True):
        """Test that each email of an action arrives once.

        The action returns the records that the emails are about. The first
        email is returned as it has arrived.
        """
        self.run_action(action, commit=False)
        self.assertEqual(self.captured(), [])

        resources = self.run_action(action)
        rows = sorted(
            (to, priority, str(resource or ''))
            for to, resource in zip(to_addrs, resources, strict=True))
        count = len(rows) if archived else 0
        with self.assertRaises(EmailQueueError):
            self.send_all()
        self.assertEqual(self.captured(), [(*r, 'outbox') for r in rows])
        self.assertEqual(self.deliveries(resources), ['waiting'] * count)
        self.assertEqual(self.server.sessions, self.sessions)

        self.server.start()
        self.send_all()
        self.send_all()
        self.assertEqual(self.captured(), [(*r, 'sent') for r in rows])
        self.assertEqual(self.deliveries(resources), ['sent'] * count)
        self.assertEqual(
            sorted(mail.to_addrs for mail in self.server.received),
            sorted((to,) for to in to_addrs))
        return email.message_from_bytes(
            self.server.received[0].data, policy=default)

    def test_ir_email(self):
        def send():
            user = Pool().get('res.user')(USER)
            Pool().get('ir.email').send(
                to='jane@example.com', subject="Invoice", body="Hello",
                record=(user.__name__, user.id))
            return [user]

        msg = self.deliver(send, ['jane@example.com'])
        self.assertEqual(msg['Subject'], "Invoice")

    def test_user_reset_password(self):
        def reset():
            User = Pool().get('res.user')
            user = User(USER)
            user.email = 'admin@example.com'
            user.save()
            User.reset_password([user])
            return [user]

        self.deliver(
            reset, ['admin@example.com'], priority='10', archived=False)

    def test_web_user(self):
        def validate():
            user = Pool().get('web.user')(email='jane@example.com')
            user.save()
            user.validate_email([user])
            return [None]

        def reset():
            user, = Pool().get('web.user').search([])
            user.reset_password([user])
            return [user]

        self.deliver(validate, ['jane@example.com'], archived=False)
        self.clear()
        self.server.stop()
        self.sessions = self.server.sessions
        self.deliver(
            reset, ['jane@example.com'], priority='10', archived=False)
        with self.transaction():
            queued, = Pool().get('email.queue').search([])
            self.assertEqual(
                queued.expires_at,
                queued.resource.reset_password_token_expire)

    def test_marketing_email(self):
        to_addrs = [f'r{i}@example.com' for i in range(5)]

        def process():
            Message = Pool().get('marketing.email.message')
            list_ = Pool().get('marketing.email.list')(name="News")
            list_.emails = [{'email': to} for to in to_addrs]
            list_.save()
            message = Message(
                list_=list_, title="News", content='<p>Hello</p>')
            message.save()
            Message.send([message])
            Message.process()
            return [None] * len(to_addrs)

        msg = self.deliver(
            process, to_addrs, priority='30', archived=False)
        self.assertRegex(
            msg['List-Unsubscribe'], '<https://example.com/unsubscribe.*>')
        self.assertEqual(
            msg['List-Unsubscribe-Post'], 'List-Unsubscribe=One-Click')

    def test_marketing_email_subscribe(self):
        def subscribe():
            list_ = Pool().get('marketing.email.list')(name="News")
            list_.save()
            list_.request_subscribe('jane@example.com')
            return [None]

        self.deliver(subscribe, ['jane@example.com'], archived=False)

    def test_notification_email(self):
        with self.transaction():
            trigger = self.notify('res.user', 'id')

        def create():
            return Pool().get('res.user').create([
                    {'name': name, 'login': name,
                        'email': f'{name}@example.com'}
                    for name in ['jane', 'john']])

        self.addCleanup(self.delete, trigger)
        msg = self.deliver(create, ['jane@example.com', 'john@example.com'])
        self.assertEqual(
            msg.get_body().get_content().strip(), "About a record")

    def test_trigger_on_the_queue(self):
        with self.transaction():
            trigger = self.notify('email.queue', 'create_uid')
        self.addCleanup(self.delete, trigger)
        self.server.start()

        def send():
            sendmail_transactional(
                'shop@example.com', 'jane@example.com', message())

        # On 8.0 other users may not read the record, so nothing would be sent
        self.run_action(send, user=0)
        self.assertEqual(
            [to for to, *_ in self.captured()],
            ['admin@example.com', 'jane@example.com'])

    def notify(self, model, recipients):
        "Send a notification for every record that is created"
        pool = Pool()
        Field = pool.get('ir.model.field')
        user = pool.get('res.user')(USER)
        user.email = 'admin@example.com'
        user.save()
        model_, = pool.get('ir.model').search([('name', '=', model)])
        report = pool.get('ir.action.report')(
            name="Notification", report_name='email_queue.test.report',
            model=model, template_extension='txt',
            report_content=b"About a record")
        report.save()
        field, = Field.search(
            [('model', '=', model), ('name', '=', recipients)])
        notification = pool.get('notification.email')(
            recipients=field, fallback_recipients=user, content=report)
        notification.save()
        trigger = pool.get('ir.trigger')(
            name="Creation", model=model_, on_create_=True,
            condition='true', notification_email=notification,
            action='notification.email|trigger')
        trigger.save()
        return trigger

    def delete(self, record):
        with self.transaction():
            record.delete([record])

    def test_account_dunning_email(self):
        company = self.run_action(self.create_company)

        def process():
            with set_company(company):
                return [self.process_dunning(company)]

        self.deliver(process, ['customer@example.com'])

    def create_company(self):
        company = create_company()
        with set_company(company):
            create_chart(company)
            fiscalyear = get_fiscalyear(company)
            fiscalyear.save()
            fiscalyear.create_period([fiscalyear])
        return company

    def process_dunning(self, company):
        pool = Pool()
        Account = pool.get('account.account')
        Dunning = pool.get('account.dunning')
        Process = pool.get('account.dunning.process', type='wizard')
        procedure = pool.get('account.dunning.procedure')(
            name="Procedure", levels=[{
                    'overdue': dt.timedelta(5),
                    'send_email': True,
                    }])
        procedure.save()
        party = pool.get('party.party')(
            name="Customer", dunning_procedure=procedure,
            contact_mechanisms=[{
                    'type': 'email',
                    'value': 'customer@example.com',
                    }])
        party.save()
        receivable, = Account.search([
                ('type.receivable', '=', True),
                ('party_required', '=', True),
                ('company', '=', company.id),
                ], limit=1)
        revenue, = Account.search([
                ('type.revenue', '=', True),
                ('closed', '!=', True),
                ('company', '=', company.id),
                ], limit=1)
        period = pool.get('account.period').search(
            [('company', '=', company.id)], limit=1)[0]
        journal, = pool.get('account.journal').search([('code', '=', 'REV')])
        move = pool.get('account.move')(
            company=company, period=period, journal=journal,
            date=period.start_date,
            lines=[
                {'account': revenue, 'credit': Decimal(100)},
                {'account': receivable, 'debit': Decimal(100),
                    'party': party, 'maturity_date': period.start_date},
                ])
        move.save()
        Dunning.generate_dunnings(period.start_date + dt.timedelta(days=5))
        dunning, = Dunning.search([('party', '=', party)])
        session_id, _, _ = Process.create()
        with Transaction().set_context(
                active_model=Dunning.__name__,
                active_id=dunning.id, active_ids=[dunning.id]):
            Process.execute(session_id, {}, 'process')
        return dunning


del QueueTestCase
