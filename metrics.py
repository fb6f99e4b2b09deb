# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The numbers of each server, as Prometheus reads them.

The version of the text format is 0.0.4. The samples of the default server have
an empty label, because no server in the configuration can have an empty name.
Prometheus treats an empty label like a missing label.
"""
import datetime as dt
from collections import defaultdict

from sql import Literal
from sql.aggregate import Count, Min
from sql.conditionals import Case, Coalesce

from trytond.pool import Pool
from trytond.transaction import Transaction

from . import incomplete
from .settings import servers
from .tools import database_time

__all__ = ['CONTENT_TYPE', 'GAUGES', 'measure', 'text']

CONTENT_TYPE = 'text/plain; version=0.0.4; charset=utf-8'
RECENTLY = dt.timedelta(hours=1)
GAUGES = {
    'due': "Emails that could have been sent by now.",
    'waiting': "Emails that are to be sent, whatever their time.",
    'failed': "Emails that have failed and wait for a decision.",
    'suspect': "Waiting emails whose refusal may be the server's fault.",
    'oldest_due_seconds':
    "Seconds since the oldest of the due emails became due.",
    'sent_last_hour': "Emails sent within the last hour.",
    'failed_last_hour': "Emails failed within the last hour.",
    'server_in_trouble': "Whether the server was in trouble at the last run.",
    }


def text():
    "Return the present numbers in the text format"
    measured = measure()
    lines = []
    for gauge, help_ in GAUGES.items():
        name = f'email_queue_{gauge}'
        lines += [f'# HELP {name} {help_}', f'# TYPE {name} gauge']
        lines += (
            f'{name}{{server="{_escaped(server)}"}} {numbers[gauge]}'
            for server, numbers in sorted(measured.items()))
    return '\n'.join(lines) + '\n'


def _escaped(value):
    return value.replace('\\', r'\\').replace('"', r'\"').replace('\n', r'\n')


def measure():
    """Return the values of the gauges by the name of the server.

    The name of the default server is empty. A server that is no longer
    configured has values as long as it has emails.
    """
    pool = Pool()
    t = pool.get('email.queue').__table__()
    now = database_time()
    # A gauge is zero where no query finds a row for it
    measured = defaultdict(lambda: dict.fromkeys(GAUGES, 0))
    for server in servers():
        measured[server or '']
    _measure_waiting(measured, t, now)
    _measure_done(measured, t, now)
    unseen, stateless = incomplete.counts(t)
    # The next run completes the rows, of which most are the default server's
    measured['']['due'] += unseen
    measured['']['failed'] += stateless
    s = pool.get('email.queue.server').__table__()
    for server, in _fetch(s.select(s.name, where=s.trouble != '')):
        measured[server]['server_in_trouble'] = 1
    return dict(measured)


def _measure_waiting(measured, t, now):
    is_due = t.scheduled_at <= now
    # One state after another, because each has an index of its own
    for state in ['outbox', 'sending']:
        for server, waiting, due, oldest in _fetch(t.select(
                    t.server, Count(Literal(1)), Count(Case((is_due, 1))),
                    Min(Case((is_due, t.scheduled_at))),
                    where=t.state == state, group_by=[t.server])):
            numbers = measured[server or '']
            numbers['waiting'] += waiting
            numbers['due'] += due
            if oldest:
                numbers['oldest_due_seconds'] = max(
                    numbers['oldest_due_seconds'], _seconds(now, oldest))
    for server, suspect in _fetch(t.select(
                t.server, Count(Literal(1)),
                where=(t.state == 'outbox') & (t.suspect != ''),
                group_by=[t.server])):
        measured[server or '']['suspect'] = suspect


def _measure_done(measured, t, now):
    since = now - RECENTLY
    for server, sent in _fetch(t.select(
                t.server, Count(Literal(1)),
                where=(t.state == 'sent') & (t.sent_at >= since),
                group_by=[t.server])):
        measured[server or '']['sent_last_hour'] = sent
    failed_at = Coalesce(t.write_date, t.create_date)
    for server, failed, recently in _fetch(t.select(
                t.server, Count(Literal(1)),
                Count(Case((failed_at >= since, 1))),
                where=t.state == 'failed', group_by=[t.server])):
        numbers = measured[server or '']
        numbers['failed'] += failed
        numbers['failed_last_hour'] = recently


def _seconds(now, then):
    if isinstance(then, str):
        # SQLite returns the result of a function as text
        then = dt.datetime.fromisoformat(then)
    return int((now - then).total_seconds())


def _fetch(query):
    cursor = Transaction().connection.cursor()
    cursor.execute(*query)
    return cursor.fetchall()
