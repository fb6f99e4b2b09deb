# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Indexes answer what a client asks of a large queue."""
import unittest
from contextlib import contextmanager

from trytond import backend
from trytond.pool import Pool

from .tools import QueueTestCase


@unittest.skipUnless(backend.name == 'postgresql', "it has other plans")
class GrowthTestCase(QueueTestCase):
    "Test the plans for a queue of some size"

    def fill(self, count):
        with self.transaction() as transaction:
            transaction.connection.cursor().execute(f"""
                INSERT INTO email_queue (from_addr, to_addrs, size, priority,
                    scheduled_at, attempts, crashes, state, subject,
                    message_id, resource)
                SELECT 'shop@example.com',
                    md5(i::text) || '@example.com', 1, '20',
                    now() AT TIME ZONE 'UTC', 0, 0,
                    CASE WHEN i % 50 = 0 THEN 'outbox' ELSE 'sent' END,
                    'Order ' || md5(i::text), '<' || md5(i::text) || '@host>',
                    'res.user,' || i
                FROM generate_series(1, {count}) AS i""")
        with self.transaction() as transaction:
            transaction.connection.cursor().execute('ANALYZE email_queue')

    def plan(self, domain, **options):
        "Return how PostgreSQL would search"
        with self.transaction(readonly=True) as transaction:
            query = Pool().get('email.queue').search(
                domain, limit=1000, query=True, **options)
            cursor = transaction.connection.cursor()
            cursor.execute(f'EXPLAIN {query}', query.params)
            return '\n'.join(row[0] for row in cursor)

    def test_searches(self):
        self.fill(50000)
        for domain in [
                [],
                [('state', '=', 'outbox')],
                [('state', '=', 'sent')],
                [('state', '=', 'failed')],
                [('state', '=', 'sending')],
                [('message_id', '=', '<x@host>')],
                [('resource', '=', 'res.user,77')],
                ]:
            with self.subTest(domain=domain):
                plan = self.plan(domain)
                self.assertIn('Index', plan)
                self.assertNotIn('Seq Scan', plan)

    @contextmanager
    def trigrams(self):
        "Make the extension, and the indexes that an update then makes"
        def update():
            backend.Database.clear_cache()
            with self.transaction():
                EmailQueue = Pool().get('email.queue')
                before = EmailQueue._sql_indexes.copy()
                EmailQueue.__setup_indexes__()
                EmailQueue._update_sql_indexes()
                # These are the indexes of the class
                EmailQueue._sql_indexes = before

        def execute(query):
            with self.transaction() as transaction:
                transaction.connection.cursor().execute(query)

        execute('CREATE EXTENSION pg_trgm')
        try:
            update()
            yield
        finally:
            execute('DROP EXTENSION pg_trgm CASCADE')
            update()

    def test_search_box(self):
        "Test the search box does not read the whole table"
        self.fill(50000)
        domain = [('rec_name', 'ilike', '%c4ca4238a0b9@nowhere%')]
        self.assertIn('Seq Scan', self.plan(domain))
        with self.trigrams():
            plan = self.plan(domain)
        self.assertNotIn('Seq Scan', plan)

    def test_many_recipients(self):
        "Test an email may go to more recipients than fit in an entry of btree"
        to_addrs = [f'customer{i * 7919}@example{i}.com' for i in range(3000)]
        self.queue(to_addrs)
        with self.trigrams():
            id_ = self.queue(to_addrs)
            self.send_all()
            self.assertEqual(self.read(id_, 'state'), 'sent')


del QueueTestCase
