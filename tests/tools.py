# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What the tests of a real queue with a real server have in common."""
import datetime as dt
import unittest
from collections import Counter
from contextlib import contextmanager

from sql import Table

import trytond.config as config
from trytond.pool import Pool
from trytond.tests.test_tryton import DB_NAME, activate_module, db_exist
from trytond.transaction import Transaction

from .. import run
from .smtpd import Server

MESSAGE = b'Subject: Test\r\n\r\nHello\r\n'


@contextmanager
def configured(section='email_queue', **values):
    "Set options of the configuration for a while"
    before = {name: config.get(section, name) for name in values}
    _configure(section, values)
    try:
        yield
    finally:
        _configure(section, before)


def _configure(section, values):
    if not config.has_section(section):
        config.add_section(section)
    for name, value in values.items():
        # An empty option counts as not set
        config.set(section, name, '' if value is None else str(value))


class QueueTestCase(unittest.TestCase):
    """A committed queue, which is empty before every test.

    The class has a server whose answers are in the addresses.
    """
    modules = ['email_queue']
    database = DB_NAME
    server_options = {}
    # The time-out of the client, in seconds, because a busy machine makes the
    # server answer late. Classes whose server hangs set less.
    timeout = 5

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if not _are_activated(cls.modules):
            activate_module(cls.modules)
        cls.server = cls.enter(Server(**cls.server_options))
        cls.enter(configured('email', **{
                    'uri': cls.server.uri,
                    'from': 'tryton@example.com',
                    }))
        cls.enter(configured(
                timeout=cls.timeout, data_timeout=cls.timeout))

    @classmethod
    def enter(cls, context):
        value = context.__enter__()
        cls.addClassCleanup(context.__exit__, None, None, None)
        return value

    def enter_here(self, context):
        "Enter a context until the end of the test and return its value"
        value = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return value

    def setUp(self):
        super().setUp()
        self.clear()
        self.addCleanup(self.clear)

    def clear(self):
        # What this process remembers of earlier tests
        run._troubled_at.clear()
        with self.transaction():
            cursor = Transaction().connection.cursor()
            for table in [
                    'email_queue_address', 'email_queue_event', 'email_queue',
                    'email_queue_identity', 'email_queue_server', 'ir_error',
                    'ir_queue']:
                cursor.execute(f'DELETE FROM {table}')
        self.server.received.clear()
        self.server.violations.clear()

    @contextmanager
    def transaction(self, user=0, **options):
        "A transaction that is committed at the end"
        with Transaction().start(DB_NAME, user, **options) as transaction:
            yield transaction

    def queue(self, to_addrs='jane@example.com', msg=MESSAGE,
            from_addr='shop@example.com', **keywords):
        "Queue an email in a transaction of its own and return its id"
        with self.transaction():
            email, = Pool().get('email.queue').queue_mail(
                from_addr, to_addrs, msg, **keywords)
            return email.id

    def queue_many(self, count, from_addr='shop@example.com', msg=MESSAGE,
            **keywords):
        "Queue emails in one transaction and return their ids"
        with self.transaction():
            return list(map(int, Pool().get('email.queue').queue_mails([
                            (from_addr, f'r{i}@example.com', msg, keywords)
                            for i in range(count)])))

    def rows(self, *names):
        "Return these values, or all values, of all committed rows"
        with Transaction().start(
                self.database, 0, readonly=True) as transaction:
            cursor = transaction.connection.cursor()
            cursor.execute(
                f"SELECT {', '.join(names) or '*'} FROM email_queue "
                "ORDER BY id")
            return [tuple(map(_plain, row)) for row in cursor]

    def states(self):
        "Return how many emails are in each state"
        return Counter(state for state, in self.rows('state'))

    def read(self, id_, *names):
        "Return values of a committed record"
        with self.transaction(readonly=True):
            # A record would read all of its fields
            row, = Pool().get('email.queue').read([id_], names)
            values = [row[name] for name in names]
        return values[0] if len(names) == 1 else values

    def write(self, *ids, **values):
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            EmailQueue.write(EmailQueue.browse(ids), values)

    def send_all(self):
        with self.transaction():
            Pool().get('email.queue').send_all()

    def end_wait_for_login(self):
        "Let the time be over in which no login is tried"
        with self.transaction() as transaction:
            transaction.connection.cursor().execute(
                'UPDATE email_queue_server SET next_login = NULL')

    def run_cron(self):
        "Let the scheduler run the job that sends, and no other job"
        with self.transaction() as transaction:
            t = Table('ir_cron')
            is_it = t.method == 'email.queue|send_all'
            cursor = transaction.connection.cursor()
            later = dt.datetime(2999, 1, 1)
            for at, where in [(later, ~is_it), (None, is_it)]:
                cursor.execute(*t.update([t.next_call], [at], where=where))
        Pool(DB_NAME).get('ir.cron').run(DB_NAME)


def _plain(value):
    return bytes(value) if isinstance(value, memoryview) else value


def _are_activated(modules):
    """Return whether the modules can be used as they are.

    activate_module would load all of them again, which takes a second for each
    class.
    """
    if DB_NAME not in Pool.database_list() or not db_exist(DB_NAME):
        return False
    with Transaction().start(DB_NAME, 0, readonly=True):
        return Pool().get('ir.module').search([
                ('name', 'in', modules), ('state', '=', 'activated'),
                ], count=True) == len(modules)
