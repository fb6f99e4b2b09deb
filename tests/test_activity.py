# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Email Activity: its numbers, and who reads it."""
import datetime as dt
from collections import defaultdict
from xml.etree import ElementTree

from trytond.pool import Pool

from .jsonrpc import STATES, RPCError, RPCTestCase

NOW = dt.datetime.now().replace(minute=30, second=0, microsecond=0)
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)
MODELS = {
    'email.queue.activity.hour': 'time',
    'email.queue.activity.day': 'date',
    }
# The field for the time of a period, the number of periods, and their length
PERIODS = {
    'email.queue.activity.hour': ('time', 24, HOUR),
    'email.queue.activity.day': ('date', 30, DAY),
    }


class ActivityTestCase(RPCTestCase):
    "Test the activity"

    def setUp(self):
        super().setUp()
        # The hour may have changed since the tests were collected
        global NOW
        NOW = dt.datetime.now().replace(minute=30, second=0, microsecond=0)

    def put(self, state, at, count=1, queued=None):
        for _ in range(count):
            id_ = self.queue()
            self.write(
                id_, state=state, sent_at=at if state == 'sent' else None)
            with self.transaction() as transaction:
                t = Pool().get('email.queue').__table__()
                # The ORM cannot write either of these columns
                transaction.connection.cursor().execute(*t.update(
                        [t.create_date, t.write_date],
                        [queued or at, at], where=t.id == id_))

    def activity(self, model, session=None):
        "Return the periods that have emails"
        session = session or self.postmaster
        rows = [
            tuple(row[n] for n in [
                    MODELS[model], 'sent', 'failed', 'waiting', 'oldest'])
            for row in session.call(
                model, 'search_read', [], 0, None, None,
                [MODELS[model], 'sent', 'failed', 'waiting', 'oldest'])]
        return [row for row in rows if any(row[1:])]

    def test_periods(self):
        """Test an email counts in the period in which it was sent, failed or
        queued
        """
        old, waiting = NOW - 400 * DAY, NOW - 23 * HOUR
        self.put('sent', NOW, 2, queued=NOW - DAY)
        self.put('sent', NOW - HOUR)
        self.put('failed', NOW - HOUR, queued=NOW - 3 * DAY)
        self.put('outbox', waiting)
        self.put('sending', waiting + HOUR / 4)
        self.put('cancelled', NOW)
        self.put('sent', NOW - 8 * DAY)
        self.put('failed', NOW - 8 * DAY)
        self.put('outbox', NOW - 400 * DAY)
        self.put('sent', NOW - 400 * DAY)

        def hour(at):
            return at.replace(minute=0)

        self.assertEqual(
            self.activity('email.queue.activity.hour'), [
                (hour(NOW), 2, 0, 0, None),
                (hour(NOW - HOUR), 1, 1, 0, None),
                # Together with older emails
                (hour(waiting), 0, 0, 3, old),
                ])
        days = defaultdict(lambda: [0, 0])
        for at, sent, failed in [
                (NOW, 2, 0), (NOW - HOUR, 1, 1), (NOW - 8 * DAY, 1, 1)]:
            days[at.date()][0] += sent
            days[at.date()][1] += failed
        expected = {
            **{day: (*numbers, 0, None) for day, numbers in days.items()},
            waiting.date(): (
                *days[waiting.date()], 2, waiting),
            (NOW - 29 * DAY).date(): (0, 0, 1, old),
            }
        self.assertEqual(
            {row[0]: row[1:]
                for row in self.activity('email.queue.activity.day')},
            expected)

    def test_empty(self):
        "Test periods without emails are there, the latest period first"
        for model, (name, count, length) in PERIODS.items():
            with self.subTest(model=model):
                rows = self.postmaster.call(
                    model, 'search_read', [], 0, None, None,
                    [name, 'ago', 'sent', 'failed', 'waiting'])
                self.assertEqual(
                    [row['ago'] for row in rows],
                    list(range(count)))
                self.assertEqual(
                    {rows[n][name] - rows[n + 1][name]
                        for n in range(count - 1)}, {length})
                self.assertFalse(
                    {(r['sent'], r['failed'], r['waiting']) for r in rows}
                    - {(0, 0, 0)})
                # A client reads records that it has found before
                row, = self.postmaster.call(
                    model, 'read', [rows[3]['id']], [name, 'ago'])
                self.assertEqual(row[name], rows[3][name])

    def test_search(self):
        "Test the searches that a client makes"
        self.queue_each_state()
        for model, name in MODELS.items():
            with self.subTest(model=model):
                for domain in [
                        [(name, '<', NOW + 2 * DAY)] if name == 'time'
                        else [(name, '<', (NOW + 2 * DAY).date())],
                        [('waiting', '>', 0)],
                        [('oldest', '!=', None)],
                        ]:
                    self.assertTrue(
                        self.postmaster.call(model, 'search_count', domain))

    def test_access(self):
        "Test only users who read the queue read its activity"
        self.queue_each_state()
        for model in MODELS:
            for session in self.sessions:
                with self.subTest(model=model, user=session.login):
                    if session in self.readers:
                        self.assertTrue(self.activity(model, session))
                        continue
                    with self.assertRaises(RPCError):
                        self.activity(model, session)

    def test_modify(self):
        "Test nobody changes the activity"
        for model in MODELS:
            for session in self.sessions:
                for method, *params in [
                        ('create', [{'sent': 1}]),
                        ('write', [1], {'sent': 1}),
                        ('delete', [1]),
                        ]:
                    with self.subTest(
                            model=model, user=session.login, method=method):
                        with self.assertRaises(RPCError):
                            session.call(model, method, *params)

    def test_menu(self):
        "Test the menu opens the list and the graph"
        with self.transaction(readonly=True):
            get_id = Pool().get('ir.model.data').get_id
            menus = {
                'email.queue.activity.hour': get_id(
                    'email_queue.menu_activity_hour'),
                'email.queue.activity.day': get_id(
                    'email_queue.menu_activity_day'),
                }
            Menu = Pool().get('ir.ui.menu')
            for menu in Menu.browse(list(menus.values())):
                self.assertEqual(
                    menu.parent.rec_name, "Administration / Email Queue")
        for model, menu in menus.items():
            action, = self.postmaster.call(
                'ir.action.keyword', 'get_keyword', 'tree_open',
                ['ir.ui.menu', menu])
            self.assertEqual(action['res_model'], model)
            self.assertEqual(
                [type_ for _, type_ in action['views']], ['tree', 'graph'])
            for view_id, type_ in action['views']:
                view = self.postmaster.call(
                    model, 'fields_view_get', view_id, type_)
                root = ElementTree.fromstring(view['arch'])
                names = {e.get('name') for e in root.iter('field')}
                self.assertLessEqual(
                    {'ago', 'sent', 'failed'} if type_ == 'graph'
                    else {MODELS[model], 'sent', 'failed', 'waiting'}, names)
                # Waiting emails are not a share of the sent ones
                self.assertEqual('waiting' in names, type_ == 'tree')

    def test_states(self):
        "Test every state is counted"
        self.assertEqual(
            set(STATES),
            {'outbox', 'sending', 'sent', 'failed', 'cancelled'})
