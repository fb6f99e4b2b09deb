# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What a large queue costs a run that has nothing to do.

The table has 30,000 rows for the future, 30,000 sent and 10,000 cancelled
rows, a tenth of a large queue. They fill hundreds of pages, so that PostgreSQL
prefers an index that fits, and they are made in two seconds.
"""
import re
import time
import unittest
from contextlib import contextmanager
from unittest.mock import patch

from sql import Literal

from trytond import backend
from trytond.pool import Pool
from trytond.pyson import PYSONDecoder
from trytond.tests.test_tryton import DB_NAME

from ..exceptions import EmailQueueError
from ..retention import BATCH
from ..slot import LockSlot
from .test_bounce import NOTICES
from .tools import QueueTestCase, configured

SECONDS = 60
KINDS = [
    # State, number, due time
    ('outbox', 30000, "now() + interval '1 day'"),
    ('sent', 30000, "now()"),
    ('cancelled', 10000, "now()"),
    ]


@unittest.skipUnless(backend.name == 'postgresql', "it has other plans")
class PlansTestCase(QueueTestCase):

    def vacuum(self):
        # As autovacuum does
        database = backend.Database(DB_NAME)
        connection = database.get_connection(autocommit=True)
        try:
            cursor = connection.cursor()
            # The rows of earlier tests are gone but not their pages in the
            # indexes. The rows are so narrow here that these few pages would
            # decide on the plan.
            cursor.execute('REINDEX TABLE email_queue')
            deadline = time.monotonic() + SECONDS
            seen = False
            while not seen:
                # VACUUM leaves rows that an older transaction might still see
                self.assertLess(time.monotonic(), deadline)
                cursor.execute('VACUUM ANALYZE email_queue')
                cursor.execute(
                    "SELECT relallvisible >= 0.9 * relpages FROM pg_class "
                    "WHERE oid = 'email_queue'::regclass")
                (seen,), = cursor.fetchall()
        finally:
            database.put_connection(connection)

    def fill(self):
        with self.transaction() as transaction:
            cursor = transaction.connection.cursor()
            # VACUUM leaves what is not yet on the disk
            cursor.execute('SET LOCAL synchronous_commit = on')
            for state, count, due in KINDS:
                cursor.execute(f"""
                    INSERT INTO email_queue (from_addr, to_addrs, size,
                        priority, scheduled_at, attempts, crashes, state,
                        sent_at, create_date, message_id)
                    SELECT 'shop@example.com', 'jane@example.com', 1,
                        (ARRAY['10', '20', '30'])[1 + i % 3],
                        ({due}) AT TIME ZONE 'UTC', 0, 0, '{state}',
                        CASE WHEN '{state}' = 'sent' THEN
                            now() AT TIME ZONE 'UTC' END,
                        now() AT TIME ZONE 'UTC', i::text
                    FROM generate_series(1, {count}) AS i""")
        self.vacuum()

    def prepare(self):
        "Add a few rows of everything that a run handles"
        for to_addrs in [
                'jane@example.com', 'rcpt-450@example.com',
                'rcpt-550@example.com']:
            self.queue(to_addrs)
        self.queue(sensitive=True)
        with configured(uri_x=self.server.uri):
            self.queue(server='x')
        orphan, lone, old, cancelled = [self.queue() for _ in range(4)]
        with self.transaction() as transaction:
            cursor = transaction.connection.cursor()
            cursor.execute(
                "UPDATE email_queue SET state = 'sending', slot = 77 "
                "WHERE id = %s", [orphan])
            cursor.execute(
                "UPDATE email_queue SET crashes = 3 WHERE id = %s", [lone])
            cursor.execute(
                "UPDATE email_queue SET state = 'sent', "
                "sent_at = now() - interval '1 year' WHERE id = %s", [old])
            cursor.execute(
                "UPDATE email_queue SET state = 'cancelled', write_date = "
                "now() - interval '1 year' WHERE id = %s", [cancelled])

    @contextmanager
    def statements(self):
        "Collect the executed statements that are about the queue"
        from trytond.backend.postgresql.database import LoggingCursor
        execute, executed = LoggingCursor.execute, {}

        def collect(cursor, query, params=None, **kwargs):
            text = str(query)
            if ('"email_queue"' in text
                    and text.split()[0] in {
                        'SELECT', 'UPDATE', 'DELETE', 'WITH'}):
                executed[text, str(params)] = params
            return execute(cursor, query, params, **kwargs)

        with patch.object(LoggingCursor, 'execute', collect):
            yield executed

    def plans(self, statements):
        with self.transaction(readonly=True) as transaction:
            cursor = transaction.connection.cursor()
            for (text, _), params in statements.items():
                cursor.execute(f'EXPLAIN {text}', params)
                yield text, '\n'.join(row[0] for row in cursor)

    def test_statements(self):
        "Test no table is read from end to end, and nothing large is sorted"
        self.fill()
        self.prepare()
        with self.statements() as statements:
            with self.assertRaises(EmailQueueError):
                # The server of one row is not configured
                self.send_all()
            sent = len(statements)
            with self.transaction():
                Pool().get('email.queue.health').watch()
            watched = len(statements)
            with self.transaction():
                Pool().get('email.queue').clean()
                Pool().get('email.queue').receive_notice(
                    (NOTICES / 'ses.eml').read_bytes())
        self.assertLess(10, sent)
        self.assertLess(sent, watched)
        self.assertLess(watched, len(statements))
        for text, plan in self.plans(statements):
            with self.subTest(text):
                self.assertNotIn('Seq Scan on email_queue', plan, plan)
                for rows in re.findall(
                        r'(?<!Incremental )Sort  \(cost=\S+ rows=(\d+)', plan):
                    self.assertLessEqual(int(rows), BATCH, plan)

    def test_attention(self):
        "Test the tab Needs Attention is counted without reading the backlog"
        self.fill()
        with self.transaction(readonly=True):
            pool = Pool()
            domain = pool.get('ir.action.act_window.domain')(
                pool.get('ir.model.data').get_id(
                    'email_queue.act_email_queue_form_domain_attention'))
            domain = PYSONDecoder({}).decode(domain.domain)
            with self.statements() as statements:
                self.assertEqual(
                    pool.get('email.queue').search_count(domain), 0)
        (text, _), params = statements.popitem()
        self.assertFalse(statements)
        self.assertLess(self.pages(text, params), 40)

    def pages(self, text, params):
        "Return how many pages the statement reads"
        with self.transaction() as transaction:
            cursor = transaction.connection.cursor()
            cursor.execute(f'EXPLAIN (ANALYZE, BUFFERS) {text}', params)
            plan = '\n'.join(row[0] for row in cursor)
            transaction.rollback()
        # The first line is about the whole; what the planner reads is another
        # matter
        buffers = re.search(
            r'Buffers: shared (.*)', plan.partition('Planning:')[0])
        return sum(map(int, re.findall(
                    r'(?:hit|read)=(\d+)', buffers[1] if buffers else '')))

    def test_nothing_due(self):
        "Test an index is not read from end to end either"
        self.fill()
        # Otherwise nothing would be read, because the session of the run is
        # over
        with self.statements() as statements, \
                patch.object(LockSlot, '_has_mark', lambda _: Literal(True)):
            self.send_all()
        self.assertLess(5, len(statements))
        for (text, _), params in statements.items():
            with self.subTest(text):
                self.assertLess(self.pages(text, params), 40)


del QueueTestCase
