# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What is in the history of an email, who reads it, and when it is deleted."""
import datetime as dt
import unittest
from unittest.mock import patch

from trytond import backend
from trytond.model.exceptions import AccessError
from trytond.modules.email_queue import history, identity, policy, sender, smtp
from trytond.modules.email_queue.settings import Settings
from trytond.modules.email_queue.store import Row
from trytond.pool import Pool
from trytond.transaction import Transaction, check_access

from ..exceptions import EmailQueueError
from .jsonrpc import RPCError, RPCTestCase
from .test_store import StoreTestCase
from .tools import QueueTestCase, configured

NOW = dt.datetime(2026, 11, 27, 12)
ROW = dict.fromkeys(Row._fields) | {
    'id': 1, 'to_addrs': 'a@x.test, b@x.test, c@x.test', 'state': 'sending',
    'attempts': 0, 'crashes': 0, 'uncertain': False, 'sensitive': False,
    'scheduled_at': NOW, 'events': ()}
SENT = {'accepted': ['a@x.test', 'b@x.test', 'c@x.test']}
TROUBLE = smtp.Trouble('554 5.7.1 denied', lasting=True)
ALL = 'a@x.test\nb@x.test\nc@x.test'
# Name, values of the row, outcome, events
TOLD = [
    ('success', {}, SENT, []),
    ('not handed over', {}, None, []),
    ('trouble', {}, {'trouble': TROUBLE}, []),
    ('refused', {}, {
            'accepted': ['a@x.test', 'b@x.test'],
            'refused': {'c@x.test': '550 5.1.1 no'},
            }, [('refused', 'c@x.test', '550 5.1.1 no')]),
    ('refused by two', {}, {
            'accepted': ['b@x.test'],
            'refused': {'a@x.test': '550 no', 'c@x.test': '552 full'},
            }, [('refused', 'a@x.test\nc@x.test',
                'a@x.test 550 no\nc@x.test 552 full')]),
    ('refused and deferred', {}, {
            'accepted': ['b@x.test'],
            'refused': {'a@x.test': '550 no'},
            'deferred': {'c@x.test': '451 later'},
            }, [('refused', 'a@x.test', '550 no'),
            ('deferred', 'c@x.test', '451 later')]),
    ('deferred at last', {'attempts': 8}, {
            'accepted': ['a@x.test', 'b@x.test'],
            'deferred': {'c@x.test': '451 later'},
            }, [('deferred', 'c@x.test', '451 later'),
            ('gave_up', 'c@x.test', 'c@x.test 451 later', 'gave_up')]),
    ('uncertain', {}, {'unanswered': 'timed out'},
        [('uncertain', ALL, 'timed out')]),
    ('uncertain again', {'uncertain': True}, {'unanswered': 'timed out'},
        [('uncertain', ALL, 'timed out')]),
    ('expired', {'expires_at': NOW}, None,
        [('gave_up', ALL, None, 'expired')]),
    ('after a refusal', {'error': '451 later'}, SENT, [('sent', ALL, '4A1B')]),
    ('not tried', {}, {
            'accepted': ['a@x.test'],
            'refused': {'b@x.test': '550 no', 'c@x.test': '550 5.1.1 no'},
            'reasons': {'c@x.test': 'dead'},
            }, [('refused', 'b@x.test', '550 no'),
            ('refused', 'c@x.test', '550 5.1.1 no', 'dead')]),
    ('without a message', {}, {
            'refused': dict.fromkeys(SENT['accepted'], ''),
            'reasons': dict.fromkeys(SENT['accepted'], 'no_message'),
            }, [('refused', ALL, None, 'no_message')]),
    ('after a crash', {'crashes': 1}, SENT, [('sent', ALL, '4A1B')]),
    ('the rest', {'error': '451', 'accepted': 'a@x.test\nb@x.test'},
        {'accepted': ['c@x.test']}, [('sent', 'c@x.test', '4A1B')]),
    ]


class HistoryToldTestCase(unittest.TestCase):
    "Test the events of an outcome"

    def test_told(self):
        for name, values, outcome, expected in TOLD:
            with self.subTest(name):
                row = Row(**{**ROW, **values})
                if outcome is not None:
                    outcome = smtp.Outcome(queue_ids=['4A1B'], **outcome)
                after = policy.after(
                    row, outcome, NOW, Settings(max_attempts=9))
                told = history.with_events(row, after, outcome)
                self.assertEqual(
                    list(told.events), [history.Event(*e) for e in expected])
                self.assertEqual(told, after._replace(events=told.events))

    def test_suspect(self):
        "Test a suspect has one event as long as the server says the same"
        row = Row(**ROW)
        outcome = smtp.Outcome()
        outcome.refuse(row.remaining, 'mail', '554 5.7.1 denied')
        words = '\n'.join(f'{a} 554 5.7.1 denied' for a in row.remaining)
        for reason, error, expected in [
                (None, None, [history.Event('suspect', ALL, words)]),
                ('suspect', words, []),
                ]:
            row = row._replace(reason=reason, error=error)
            after = policy.suspected(
                row, outcome, NOW, Settings(), is_only=False)
            told = history.with_events(row, after, outcome)
            self.assertEqual(list(told.events), expected)

    def test_no_suspect_any_more(self):
        row = Row(**{
                **ROW, 'suspect': 'mail 554', 'suspect_since': NOW,
                'attempts': 1})
        outcome = smtp.Outcome()
        outcome.refuse(row.remaining, 'mail', '554 no')
        after = policy.after(row, outcome, NOW, Settings())
        told = history.with_events(row, after, outcome)
        self.assertEqual([e.kind for e in told.events], ['refused'])


class QueueIDTestCase(unittest.TestCase):
    "Test what a server calls an email"

    def test_forms(self):
        for text, expected in [
                ('2.0.0 Ok: queued as 4A1B2C3D', '4A1B2C3D'),
                ('OK id=1vOa2b-0001Xy-2z', '1vOa2b-0001Xy-2z'),
                ('2.0.0 9a8b7c6d Message accepted for delivery', '9a8b7c6d'),
                ('2.0.0 5ARNx0 Message accepted for delivery', '5ARNx0'),
                ('ok 1764250000 qp 4711', 'ok 1764250000 qp 4711'),
                ('2.0.0 OK  1764250000 a1-20020a gsmtp',
                    'OK  1764250000 a1-20020a gsmtp'),
                ('Ok 010001aac0-1f-000000', 'Ok 010001aac0-1f-000000'),
                ('', ''),
                ('x' * 500, 'x' * 100),
                ]:
            with self.subTest(text):
                self.assertEqual(
                    smtp._queue_id_of(smtp.Reply(250, text)), expected)


class HistoryTestCase(QueueTestCase):

    def history(self, id_):
        "Return the events of an email, the first event first"
        with self.transaction(readonly=True):
            events = Pool().get('email.queue')(id_).events
            return [
                (e.kind, e.recipients, e.words, e.user and e.user.login)
                for e in reversed(events)]

    def reasons(self, id_):
        "Return the reasons of the events of an email, the first event first"
        with self.transaction(readonly=True):
            events = Pool().get('email.queue')(id_).events
            return [e.reason for e in reversed(events)]

    def count(self):
        with self.transaction(readonly=True) as transaction:
            cursor = transaction.connection.cursor()
            cursor.execute('SELECT count(*) FROM email_queue_event')
            return cursor.fetchone()[0]

    def press(self, button, *ids, user=1):
        with self.transaction(user):
            EmailQueue = Pool().get('email.queue')
            getattr(EmailQueue, button)(EmailQueue.browse(ids))


class HistorySendTestCase(HistoryTestCase):
    "Test the events of a run"

    def test_success(self):
        "Test a plain success adds no event, but the queue id"
        self.server.keep = True
        ids = self.queue_many(20)
        sensitive = self.queue(sensitive=True)
        self.send_all()
        self.assertEqual(self.states(), {'sent': 21})
        self.assertEqual(self.count(), 0)
        names = [self.read(id_, 'queue_id') for id_ in [*ids, sensitive]]
        self.assertTrue(all(names))
        self.assertEqual(self.read(sensitive, 'msg'), None)

    def test_each_has_its_own_queue_id(self):
        "Test emails that are recorded together keep their queue ids"
        words = {}

        def deliver(client, row, redirect):
            outcome = smtp.Outcome(queue_ids=[f'ID{row.id}'])
            outcome.accept(row.remaining)
            words[row.id] = f'ID{row.id}'
            return outcome

        self.queue_many(30)
        self.queue(sensitive=True)
        self.queue(sensitive=True)
        with patch.object(sender, 'hand_over', deliver):
            self.send_all()
        self.assertEqual(dict(self.rows('id', 'queue_id')), words)

    def test_transactions(self):
        "Test an email that went in several transactions has each queue id"
        with configured(recipients=1):
            id_ = self.queue(['a@example.com', 'b@example.com'])
            with patch.object(
                    smtp, '_queue_id_of', side_effect=['A1', 'B2']):
                self.send_all()
        self.assertEqual(self.read(id_, 'queue_id'), 'A1\nB2')

    def test_partial(self):
        "Test a refusal adds an event, and the queue id is kept"
        id_ = self.queue(['jane@example.com', 'rcpt-550-5.1.1-no@example.com'])
        self.send_all()
        self.assertEqual(self.history(id_), [
                ('refused', 'rcpt-550-5.1.1-no@example.com', '550 5.1.1 no',
                    None)])
        self.assertTrue(self.read(id_, 'queue_id'))

    def test_sent_after_trouble(self):
        for sensitive in [False, True]:
            with self.subTest(sensitive=sensitive):
                to = f'dot-451x1-4.2.0-later.{sensitive}@example.com'
                id_ = self.queue(to, sensitive=sensitive)
                self.send_all()
                self.write(id_, scheduled_at=dt.datetime(2026, 1, 1))
                self.send_all()
                self.assertEqual(self.read(id_, 'state'), 'sent')
                self.assertEqual(self.history(id_), [
                        ('deferred', to, '451 4.2.0 later', None),
                        ('sent', to, self.read(id_, 'queue_id'), None)])

    def test_send(self):
        "Test the events of send"
        id_ = self.queue('rcpt-550-5.1.1-no@example.com')
        with self.transaction():
            with self.assertRaises(Exception):
                Pool().get('email.queue')(id_).send()
        self.assertEqual(
            [kind for kind, *_ in self.history(id_)], ['refused'])

    def test_suspects(self):
        "Test there is one event if the server was taken to be at fault"
        ids = [
            self.queue(f'dot-554-5.7.1-denied.{i}@example.com')
            for i in range(2)]
        for _ in range(3):
            with self.assertRaises(EmailQueueError), \
                    configured(connections=1):
                self.send_all()
            self.write(*ids, scheduled_at=dt.datetime(2026, 1, 1))
        self.assertEqual(self.states(), {'outbox': 2})
        for id_ in ids:
            self.assertEqual(
                [(k, w) for k, _, w, _ in self.history(id_)],
                [('suspect', '554 5.7.1 denied')])


class StoreHistoryTestCase(HistoryTestCase, StoreTestCase):
    "Test events are recorded together with the row"

    def failed(self, row):
        return row._replace(
            state='failed', error='550 no',
            events=(history.Event('refused', row.to_addrs, '550 no'),))

    def test_not_held(self):
        "Test there is no event for a row that the sender no longer holds"
        lost, kept = self.queue(), self.queue()
        with self.store(1) as store:
            rows = store.claim(10, 10 ** 9)
            self.update(lost, slot=4711)
            with self.assertLogs(
                    'trytond.modules.email_queue.store', 'WARNING'):
                store.record(list(map(self.failed, rows)))
        self.assertEqual(self.history(lost), [])
        self.assertEqual(
            self.history(kept),
            [('refused', 'jane@example.com', '550 no', None)])

    def test_once(self):
        "Test a repeated record adds no second event"
        id_ = self.queue()
        with self.store(1) as store:
            rows = list(map(self.failed, store.claim(10, 10 ** 9)))
            store.record(rows)
            store.repeats = True
            store.record(rows)
        self.assertEqual(len(self.history(id_)), 1)

    def test_error(self):
        "Test there is no event if the record fails"
        id_ = self.queue()
        with self.store(1) as store:
            rows = list(map(self.failed, store.claim(10, 10 ** 9)))
            with patch.object(
                    store, '_record_each', side_effect=store.Error):
                with self.assertRaises(store.Error):
                    store.record(rows)
            self.assertFalse(store.slot.is_lost)
            self.assertEqual(self.history(id_), [])
            store.record(rows)
        self.assertEqual(len(self.history(id_)), 1)

    def test_recover(self):
        "Test there is an event for the death of a sender"
        id_ = self.queue()
        for crashes, state in [(0, 'outbox'), (9, 'failed')]:
            self.update(
                id_, state='sending', slot=4711, crashes=crashes,
                write_date=dt.datetime(2026, 1, 1))
            with self.store(1) as store:
                store.recover()
            self.assertEqual(self.read(id_, 'state'), state)
        self.assertEqual(
            [kind for kind, *_ in self.history(id_)],
            ['put_back', 'put_back', 'gave_up'])
        self.assertEqual(self.reasons(id_), [None, None, 'died'])

    def test_put_back(self):
        "Test there is an event if an outcome could not be recorded"
        taken, other = self.queue(), self.queue()
        with self.store(1) as store:
            rows = {row.id: row for row in store.claim(10, 10 ** 9)}
            store.put_back([
                    rows[taken]._replace(state='sent'),
                    rows[other]._replace(state='outbox')], 'outbox')
        (kind, _, words, _), = self.history(taken)
        self.assertEqual((kind, words), ('uncertain', None))
        self.assertEqual(self.reasons(taken), ['not_recorded'])
        self.assertEqual(self.history(other), [('put_back', None, None, None)])

    def test_put_back_without(self):
        "Test a row is put back even if its event cannot be written"
        id_ = self.queue()
        with self.store(1) as store:
            rows = store.claim(10, 10 ** 9)
            with patch.object(store, '_add_events', side_effect=store.Error):
                store.put_back(
                    [r._replace(state='sent') for r in rows], 'outbox')
        self.assertEqual(
            self.read(id_, 'state', 'uncertain'), ['outbox', True])


class PersonTestCase(HistoryTestCase):
    "Test the events of what people do have their names"

    def test_buttons(self):
        id_, other = self.queue_many(2)
        self.press('cancel', id_, other)
        self.press('retry', id_)
        self.press('cancel', id_, user=0)
        self.assertEqual(self.history(id_), [
                ('cancelled', None, None, 'admin'),
                ('retried', None, None, 'admin'),
                ('cancelled', None, None, None)])
        self.assertEqual(len(self.history(other)), 1)

    def test_not_pressed(self):
        "Test there is no event if nothing was done"
        id_ = self.queue()
        self.write(id_, state='sent')
        with self.assertRaises(Exception):
            self.press('cancel', id_)
        self.assertEqual(self.count(), 0)

    def test_copy(self):
        "Test the emails that are cancelled in a copy of the database"
        ids = self.queue_many(2)
        sent = self.queue()
        self.write(sent, state='sent')
        with self.transaction(1):
            identity._cancel()
        for id_ in ids:
            self.assertEqual(
                self.history(id_), [('cancelled', None, None, 'admin')])
        self.assertEqual(self.history(sent), [])


class HistoryGoneTestCase(HistoryTestCase):
    "Test the history is deleted with its email"

    def test_deleted(self):
        id_, other = self.queue_many(2)
        self.press('cancel', id_, other)
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            EmailQueue.delete([EmailQueue(id_)])
        self.assertEqual(self.count(), 1)

    def test_cleaned(self):
        id_ = self.queue()
        self.press('cancel', id_)
        with self.transaction() as transaction:
            transaction.connection.cursor().execute(
                'UPDATE email_queue SET write_date = create_date',)
        with patch.object(
                Settings, 'read',
                return_value=Settings(clean_days=1e-9)):
            with self.transaction():
                Pool().get('email.queue').clean()
        self.assertEqual((self.rows('id'), self.count()), ([], 0))

    @unittest.skipIf(backend.name == 'sqlite', "it has no foreign keys")
    def test_sql(self):
        self.press('cancel', self.queue())
        with self.transaction() as transaction:
            transaction.connection.cursor().execute('DELETE FROM email_queue')
        self.assertEqual(self.count(), 0)

    def test_erased(self):
        "Test an erased address is erased from the history, too"
        jane = 'rcpt-550-5.1.1-no.jane@example.com'
        together = self.queue([jane, 'rcpt-550-5.1.1-no.john@example.com'])
        alone = self.queue(jane)
        self.send_all()
        elsewhere = self.queue('joe@example.com')
        with self.transaction():
            Event = Pool().get('email.queue.event')
            Event.add_events(
                'delayed', lambda t: t.id == elsewhere,
                recipients='joe@example.com', words=f'as {jane} does')
        with self.transaction():
            erased = Pool().get('email.queue').erase_address(jane)
        self.assertEqual(erased, (1, 2, 0))
        self.assertEqual(self.history(together), [
                ('refused', '***\nrcpt-550-5.1.1-no.john@example.com',
                    '*** 550 5.1.1 no\n'
                    'rcpt-550-5.1.1-no.john@example.com 550 5.1.1 no', None)])
        self.assertEqual(
            self.history(elsewhere),
            [('delayed', 'joe@example.com', 'as *** does', None)])
        self.assertNotIn((alone,), self.rows('id'))
        self.assertEqual(self.count(), 2)


class HistoryAccessTestCase(RPCTestCase, HistoryTestCase):
    "Test who reads the history"

    contexts = [
        {}, {'_check_access': False}, {'_user': 0}, {'user': 0},
        {'groups': [1, 2, 3]}, {'action_id': 1}]

    def setUp(self):
        super().setUp()
        self.id = self.queue('rcpt-550-5.1.1-no@example.com')
        self.send_all()
        with self.transaction(readonly=True):
            self.event, = (
                e.id for e in Pool().get('email.queue.event').search([]))

    def call(self, session, method, *params, context=None):
        return session.call(
            'email.queue.event', method, *params, context=context)

    def reads(self):
        yield 'read', [self.event], ['words', 'recipients', 'rec_name']
        yield 'search', [], 0, None, None
        yield 'search_count', []
        yield 'search_read', [], 0, None, None, ['words']
        yield 'export_data', [self.event], ['words']

    def test_readers(self):
        "Test users who read an email read its history"
        for session in self.readers:
            for method, *params in self.reads():
                with self.subTest(user=session.login, method=method):
                    self.assertTrue(self.call(session, method, *params))
            row, = session.queue('read', [self.id], ['events', 'queue_id'])
            self.assertEqual(list(row['events']), [self.event])

    def test_strangers(self):
        "Test nobody else reads the history, whatever the context says"
        for session in self.strangers:
            for method, *params in self.reads():
                for context in self.contexts:
                    with self.subTest(
                            user=session.login, method=method,
                            context=context):
                        with self.assertRaises(RPCError):
                            self.call(
                                session, method, *params, context=context)

    def test_modify(self):
        "Test no client changes the history"
        values = {
            'email': self.id, 'at': dt.datetime(2026, 1, 1),
            'kind': 'retried'}
        for session in self.sessions:
            for method, *params in [
                    ('create', [values]),
                    ('write', [self.event], {'words': 'forged'}),
                    ('copy', [self.event], {}),
                    ('delete', [self.event]),
                    ('import_data', ['kind'], [['retried']]),
                    ('tell', 'retried', None),
                    ('erase', [self.id], 'x'),
                    ]:
                with self.subTest(user=session.login, method=method):
                    with self.assertRaises(RPCError):
                        self.call(session, method, *params)
            with self.subTest(user=session.login), self.transaction() as t:
                Event = Pool().get('email.queue.event')
                with t.set_user(session.id), check_access():
                    for call in [
                            lambda: Event.create([values]),
                            lambda: Event.write(
                                [Event(self.event)], {'words': 'forged'}),
                            lambda: Event.delete([Event(self.event)]),
                            ]:
                        with self.assertRaises(AccessError):
                            call()
                Transaction().rollback()
        self.assertEqual(len(self.history(self.id)), 1)


del QueueTestCase, RPCTestCase, StoreTestCase
