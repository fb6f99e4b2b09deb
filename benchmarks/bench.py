#!/usr/bin/env python3
# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Measure the module: each figure beside its reference, in the same run."""
import argparse
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Callable, NamedTuple

from servers import TIMEOUT, Database, Program, Proxy, Sink, apart, smtp_sink

from trytond.modules.email_queue.tests.postgresql import (
    PostgreSQL, PostgreSQLError, bin_directory)

ROOT = Path(__file__).resolve().parent.parent
ROUND_TRIP = 0.005
SMALL, LARGE, HUGE = 2 * 1024, 200 * 1000, 20 * 1000 * 1000
# How many emails are queued at once, the same number as in queueing.py
MANY = 4000
MIB = 1024 * 1024
QUIET = 0.1
# Django's queues, in an environment of their own
PEERS = ROOT / '.cache' / 'peers'
PEERS_PACKAGES = [
    'django-mailer ~= 2.3', 'django-post-office ~= 3.12', 'psycopg[binary]']
# The number of parts of a simulated day
PARTS = 10
# The SQL of the address of person number i. The names consist of the same
# parts, and half of the people share three domains.
SYLLABLES = "(ARRAY['an', 'bel', 'cor', 'da', 'el', 'fra', 'ga', 'han', " \
    "'is', 'jo', 'ka', 'lu', 'ma', 'ni', 'ol', 'per', 'ro', 'sa', 'ti', " \
    "'ver'])[1 + i / %d %% 20]"
ADDRESS = "||".join([
        SYLLABLES % 1, SYLLABLES % 20, "'.'", SYLLABLES % 400,
        SYLLABLES % 8000, "i % 97", "'@'",
        "CASE i % 2 WHEN 0 THEN (ARRAY['mail.example', 'post.example', "
        "'web.example'])[1 + i / 2 % 3] "
        f"ELSE {SYLLABLES % 7}||{SYLLABLES % 331}||'.example' END"])


class Line(NamedTuple):
    """A line of the table.

    :param compare: a function of the value and its reference, whose result
        ``limit`` bounds.
    """
    title: str
    unit: str
    compare: Callable
    bound: str
    limit: float
    limit_unit: str = ''

    @property
    def required(self):
        return f'{self.bound} {self.limit:g}{self.limit_unit}'

    def holds(self, result):
        if self.bound == '>=':
            return result >= self.limit
        return result <= self.limit


def ratio(value, reference):
    return value / reference


def times_less(value, reference):
    return reference / value


def difference(value, reference):
    return value - reference


class Void(Exception):
    "The measurement did not measure what it was meant to"


class Bench:
    "The servers, and the ways to use them"

    def __init__(self, database, scheduler_databases, quick=False):
        self.database = database
        self.big, self.small = scheduler_databases
        self.quick = quick

    @property
    def backlog(self):
        "What is in the big queue"
        return {
            'due': self.number(200000),
            'sent': self.number(1000000),
            'later': self.number(100000),
            }

    def number(self, number):
        return number // 10 if self.quick else number

    def loop(self, server, count, sink=None, processors=None):
        "Return the messages a second of the plain loop"
        with Program('loop.py', server.port, count, SMALL) as program:
            with arriving(sink or server, count):
                program.go(processors)
                result = program.result()
        return count / (result['ended'] - result['started'])

    def drain(
            self, server, count, size=SMALL, sink=None, processes=1,
            **configuration):
        "Return the results of draining a queue of so many messages"
        configuration = {
            f'EMAIL_QUEUE__{name.upper()}': value
            for name, value in configuration.items()}
        self.database.execute('TRUNCATE email_queue CASCADE')
        with ExitStack() as stack:
            programs = [
                stack.enter_context(self.database.program(
                        'drain.py', 'send_all', EMAIL__URI=server.uri,
                        **configuration))
                for _ in range(processes)]
            self.database.fill(size, count)
            self.database.settle()
            with arriving(sink or server, count):
                for program in programs:
                    program.go()
                results = [program.result() for program in programs]
        if self.database.count('sent') != count:
            raise Void(f"not all of {count} are recorded as sent")
        return results

    def rate(self, server, count, **options):
        "Return the messages a second of draining the queue"
        results = self.drain(server, count, **options)
        return count / (
            max(r['ended'] for r in results)
            - min(r['started'] for r in results))


class arriving:
    "Check that exactly ``count`` messages arrive at the sink"

    def __init__(self, sink, count):
        self.sink = sink
        self.count = count

    def __enter__(self):
        self.before = self.sink.count

    def __exit__(self, exc_type, *exc_info):
        if exc_type:
            return
        for _ in range(100):
            arrived = self.sink.count - self.before
            if arrived >= self.count:
                break
            time.sleep(0.01)
        if arrived != self.count:
            raise Void(f"{arrived} of {self.count} messages arrived")


# The figures. Each function returns a pair of value and reference for each of
# its lines.


def drain_1(bench):
    count = bench.number(2000)
    client, server = apart()
    with Sink(server) as sink:
        # A run has several threads and its database, which use all processors
        return [(
                bench.rate(sink, count, connections=1),
                bench.loop(sink, count, processors=client))]


def drain_4_peers(bench):
    count = bench.number(1000)
    with Sink() as sink:
        value = bench.rate(sink, count, connections=4)
        rates = []
        for way in ['post_office', 'mailer']:
            with arriving(sink, count):
                rates.append(count / peer(bench, sink, count, way))
    return [(value, max(rates))]


def peer(bench, sink, count, way):
    "Return in how many seconds one of Django's queues does something"
    # A new database for each
    name = f'peer_{time.monotonic_ns()}'
    bench.database.server.createdb(name)
    with Program(
            'peers.py', f'{bench.database.server.uri}{name}', sink.port,
            count, SMALL, way, python=peers_python()) as program:
        program.go()
        result = program.result()
    return result['ended'] - result['started']


def peers_python():
    python = PEERS / 'bin' / 'python'
    if not python.exists():
        subprocess.run([sys.executable, '-m', 'venv', PEERS], check=True)
        subprocess.run(
            [python, '-m', 'pip', 'install', '-qq',
                '--disable-pip-version-check', *PEERS_PACKAGES], check=True)
    return python


def processes(bench):
    count = bench.number(4000)
    with Sink() as sink:
        return [tuple(
                bench.rate(
                    sink, count, processes=processes, senders=processes,
                    connections=2)
                for processes in [2, 1])]


def drain_1_distant(bench):
    count = bench.number(300)
    with Sink() as sink, Proxy(sink, ROUND_TRIP) as proxy:
        return [(
                bench.rate(proxy, count, sink=sink, connections=1),
                bench.loop(proxy, count, sink=sink))]


def drain_16_distant(bench):
    with Sink() as sink, Proxy(sink, ROUND_TRIP) as proxy:
        return [(
                bench.rate(
                    proxy, bench.number(5000), sink=sink, connections=16),
                bench.loop(proxy, bench.number(300), sink=sink))]


def senders(bench):
    count = bench.number(1000)
    with Sink() as sink, Proxy(sink, ROUND_TRIP) as proxy:
        return [tuple(
                bench.rate(
                    proxy, processes * count, sink=sink, processes=processes,
                    senders=processes, connections=2)
                for processes in [4, 1])]


def backlog(bench):
    count = bench.number(8000)
    backlog = bench.backlog
    with Sink() as sink:
        big = scheduler(bench.big, sink, 3 if bench.quick else 20, **backlog)
        small = scheduler(bench.small, sink, 60, due=count)
    if len(small) != count:
        raise Void(f"{len(small)} of {count} messages were sent")
    if not 2 * count <= len(big) < backlog['due']:
        raise Void(f"{len(big)} messages were sent")
    reference = 1e3 * small[-1] / count
    return [
        (1e3 * big[count - 1] / count, reference),
        (1e3 * (big[-1] - big[-1 - count]) / count, reference)]


def scheduler(database, sink, run_time, due, sent=0, later=0):
    "Return after how many seconds each message was recorded as sent"
    restock(database, due, sent, later)
    with database.program(
            'drain.py', 'scheduler', EMAIL__URI=sink.uri,
            EMAIL_QUEUE__RUN_TIME=run_time) as program:
        before = sink.count
        program.go()
        result = program.result()
        count = database.count('sent') - sent
        with arriving(sink, count + before - sink.count):
            pass
    return [
        recorded - result['started']
        for recorded, number in result['recorded'] for _ in range(number)]


def restock(database, due, sent, later):
    if not later:
        database.execute('TRUNCATE email_queue CASCADE')
    have = database.count('sent')
    database.fill(
        SMALL, max(sent - have, 0), state="'sent'", attempts='1',
        first_attempt='scheduled_at', sent_at='scheduled_at',
        to_addrs=ADDRESS,
        resource="'res.user,' || i",
        # As old as sent emails are after some days
        msg='NULL')
    if not database.count('outbox'):
        database.fill(
            SMALL, later, scheduled_at="now() AT TIME ZONE 'UTC' "
            "+ interval '1 day' + i * interval '1 ms'")
    database.execute(
        "DELETE FROM email_queue WHERE id IN (SELECT id FROM email_queue "
        "WHERE state = 'sent' ORDER BY id DESC LIMIT %s)",
        [max(have - sent, 0)])
    database.fill(SMALL, due - (database.count('outbox') - later))
    database.execute('UPDATE ir_cron SET next_call = NULL')
    database.settle()


def growth(bench):
    """Return the times of queries on the big queue and on 2,000 rows.

    The trigrams of the search box come last, because the drain would have to
    wait for them.
    """
    restock(bench.big, **bench.backlog)
    restock(bench.small, due=1000, sent=1000, later=0)
    times = []
    for database in [bench.big, bench.small]:
        database.index_texts()
        with database.program('reading.py', 10) as program:
            program.go()
            times.append({
                    kind: 1e3 * median(seconds)
                    for kind, seconds in program.result().items()})
    big, small = times
    return [
        *((big[kind], small[kind]) for kind in big),
        (cleaning(bench.big), cleaning(bench.small))]


def cleaning(database, count=1000):
    "Return the milliseconds in which so many old emails are deleted"
    before = database.count('sent')
    database.execute(
        "UPDATE email_queue SET sent_at = sent_at - interval '1 year' "
        "WHERE id IN (SELECT id FROM email_queue WHERE state = 'sent' "
        "ORDER BY id LIMIT %s)", [count])
    database.settle()
    with database.program('drain.py', 'clean') as program:
        program.go()
        result = program.result()
    if before - database.count('sent') != count:
        raise Void(f"not just {count} emails were deleted")
    return 1e3 * (result['ended'] - result['started'])


def task(bench):
    return [(
            tasks(bench.small, bench.number(300000)),
            tasks(bench.small, 0))]


def tasks(database, later):
    """Return the milliseconds of a worker's task, with and without emails for
    tomorrow
    """
    database.execute('TRUNCATE email_queue CASCADE')
    database.fill(
        SMALL, later, msg="''::bytea",
        scheduled_at="now() AT TIME ZONE 'UTC' "
        "+ interval '1 day' + i * interval '1 ms'")
    database.settle()
    with Sink() as sink:
        with database.program(
                'drain.py', 'tasks', EMAIL__URI=sink.uri) as program:
            program.go()
            seconds = program.result()['tasks']
        if database.count('sent') != len(seconds):
            raise Void(f"not all of {len(seconds)} are recorded as sent")
    return 1e3 * median(seconds)


def memory(bench):
    count = bench.number(1000)
    peaks = []
    with Sink() as sink:
        for size in [LARGE, SMALL]:
            result, = bench.drain(sink, count, size)
            peaks.append(result['peak'] / MIB)
    return [tuple(peaks)]


def memory_huge(bench):
    peaks = []
    with Sink() as sink:
        for size in [HUGE, SMALL]:
            result, = bench.drain(sink, 5 if bench.quick else 25, size)
            peaks.append(result['peak'] / MIB)
    return [tuple(peaks)]


def campaign(bench, count, way):
    "Return the time and memory of queueing so many emails in one transaction"
    bench.database.execute('TRUNCATE email_queue CASCADE')
    with bench.database.program(
            'campaign.py', count, SMALL, way) as program:
        program.go()
        result = program.result()
    if bench.database.count('outbox') != count:
        raise Void(f"not all of {count} are queued")
    return result


def campaign_captured(bench):
    count = bench.number(10000)
    return [tuple(
            campaign(bench, count, way)['processor']
            for way in ['captured', 'singly'])]


def campaign_memory(bench):
    return [tuple(
            campaign(bench, bench.number(count), 'generated')['peak'] / MIB
            for count in [100000, 5000])]


def day(bench):
    """Return the last part of a day beside the second part: the size of the
    table and of its indexes after the daily job, and the time of a message at
    the end of the part.

    Each part queues and sends emails, and cleans what the part before has
    sent.
    """
    database, count = bench.database, bench.number(50000)
    database.execute('TRUNCATE email_queue CASCADE')
    parts = []
    with Sink() as sink:
        for _ in range(PARTS):
            parts.append(part(database, sink, count, time.monotonic()))
    return list(zip(parts[-1], parts[1]))


def part(database, sink, count, started):
    with database.program(
            'drain.py', 'send_all', EMAIL__URI=sink.uri,
            EMAIL_QUEUE__CONNECTIONS=4,
            EMAIL_QUEUE__RUN_TIME=TIMEOUT) as program:
        database.fill(SMALL, count)
        with arriving(sink, count):
            program.go()
            result = program.result()
    recorded = [
        at for at, number in result['recorded'] for _ in range(number)]
    last = min(8000, count // 2)
    milliseconds = 1e3 * (recorded[-1] - recorded[-1 - last]) / last
    # PostgreSQL itself does so several times in the hours of a part
    database.execute('VACUUM (ANALYZE) email_queue')
    with database.program('drain.py', 'clean', started) as program:
        program.go()
        program.result()
    if database.count('sent') != count:
        raise Void(f"there are not just {count} after the daily job")
    database.execute('VACUUM (ANALYZE) email_queue')
    (table, indexes), = database.execute(
        "SELECT pg_total_relation_size('email_queue'), "
        "pg_indexes_size('email_queue')")
    return table / MIB, indexes / MIB, milliseconds


def queue_create(bench):
    return queueing(bench, 'queue', 'create')


def queue_core(bench):
    return queueing(bench, 'queue', 'core')


def bulk(bench):
    return bulk_queueing(bench, 'together', 'singly')


def bulk_peer(bench):
    # Bytes, because send_many stores subject and text as they are given, and
    # makes a message of them when it sends
    (value,), = bulk_queueing(bench, 'ready')
    with Sink() as sink:
        return [(value, MANY / peer(bench, sink, MANY, 'queue'))]


def bulk_captured(bench):
    return bulk_queueing(bench, 'captured', 'singly')


def bulk_queueing(bench, *kinds):
    bench.database.execute('TRUNCATE email_queue CASCADE')
    with bench.database.program(
            'queueing.py', 1, SMALL, *kinds) as program:
        program.go()
        seconds = program.result()
    if bench.database.count('outbox') != MANY * len(kinds):
        raise Void(f"not {MANY} each are queued")
    return [tuple(MANY / seconds[kind][0] for kind in kinds)]


def queueing(bench, *kinds):
    count = bench.number(200)
    bench.database.execute('TRUNCATE email_queue CASCADE')
    with Sink() as sink, Proxy(sink, ROUND_TRIP) as proxy, \
            bench.database.program(
                'queueing.py', count, SMALL, *kinds,
                EMAIL__URI=proxy.uri) as program, \
            arriving(sink, count * kinds.count('core')):
        program.go()
        seconds = program.result()
    if bench.database.count('outbox') != count:
        raise Void(f"not all of {count} are queued")
    return [tuple(1e3 * median(seconds[kind]) for kind in kinds)]


FIGURES = {
    'drain-1': (drain_1, [Line(
                "One connection, no delay, beside a plain loop",
                'messages/s', ratio, '>=', 1.2)]),
    'drain-1-distant': (drain_1_distant, [Line(
                "One connection, 5 ms away, beside a plain loop",
                'messages/s', ratio, '>=', 1.7)]),
    'drain-16-distant': (drain_16_distant, [Line(
                "16 connections, 5 ms away, beside a plain loop on one",
                'messages/s', ratio, '>=', 20)]),
    'drain-4-peers': (drain_4_peers, [Line(
                "1,000 emails, four connections, beside the fastest of "
                "django-mailer and django-post_office",
                'messages/s', ratio, '>=', 2)]),
    'processes': (processes, [Line(
                "Two processes beside one, no delay, two connections each",
                'messages/s', ratio, '>=', 1.2)]),
    'senders': (senders, [Line(
                "Four senders, 5 ms away, beside one",
                'messages/s', ratio, '>=', 3)]),
    'backlog': (backlog, [
            Line("A message, 1,300,000 in the queue, beside 8,000: at first",
                'ms', ratio, '<=', 1.25),
            Line("The same at the end of the run",
                'ms', ratio, '<=', 1.25)]),
    'growth': (growth, [
            Line("1,000 rows of the list, of 1,300,000 beside 2,000",
                'ms', ratio, '<=', 1.5),
            Line("The numbers of its tabs",
                'ms', ratio, '<=', 2),
            Line("Its email with a Message-ID",
                'ms', difference, '<=', 5, ' ms'),
            Line("Its email about a record",
                'ms', difference, '<=', 5, ' ms'),
            Line("Its emails to an address, by the search box and trigrams",
                'ms', difference, '<=', 25, ' ms'),
            Line("The numbers of its health",
                'ms', difference, '<=', 100, ' ms'),
            Line("Deleting the oldest 1,000 of its emails",
                'ms', ratio, '<=', 2),
            ]),
    'task': (task, [Line(
                "A worker's task, beside 300,000 for tomorrow and none",
                'ms', ratio, '<=', 1.5)]),
    'memory': (memory, [Line(
                "Peak of memory, messages of 200 kB, beside 2 KB",
                'MiB', difference, '<=', 40, ' MiB')]),
    'memory-huge': (memory_huge, [Line(
                "Peak of memory, 25 messages of 20 MB, beside 2 KB",
                'MiB', difference, '<=', 130, ' MiB')]),
    'day': (day, [
            Line("A day in ten parts, the last beside the second: table",
                'MiB', ratio, '<=', 1.2),
            Line("Its indexes", 'MiB', ratio, '<=', 1.2),
            Line("A message at its end", 'ms', ratio, '<=', 1.2),
            ]),
    'queue-create': (queue_create, [Line(
                "Transaction that queues, beside one that creates a record",
                'ms', ratio, '<=', 1.3)]),
    'bulk': (bulk, [Line(
                "4,000 emails at once, beside one by one",
                'emails/s', ratio, '>=', 2)]),
    'bulk-peer': (bulk_peer, [Line(
                "4,000 emails at once, beside django-post_office's send_many",
                'emails/s', ratio, '>=', 0.5)]),
    'campaign': (campaign_captured, [Line(
                "10,000 captured emails, beside one by one",
                's of CPU', times_less, '>=', 2, ' times less')]),
    'campaign-memory': (campaign_memory, [Line(
                "Peak of memory, a generator of 100,000, beside 5,000",
                'MiB', difference, '<=', 40, ' MiB')]),
    'bulk-captured': (bulk_captured, [Line(
                "4,000 captured emails, beside one by one",
                'emails/s', ratio, '>=', 2)]),
    'queue-core': (queue_core, [Line(
                "Transaction that queues, beside core's way to a server",
                'ms', times_less, '>=', 4, ' times less')]),
    }


def measure(name, bench, rounds):
    "Return the cells of the lines of a figure, and whether the limits hold"
    function, lines = FIGURES[name]
    pairs = []
    for number in range(rounds):
        try:
            pairs.append(function(bench))
        except Void as exception:
            print(f"{name}: void: {exception}", flush=True)
            return [(line.title, '', '', "void", line.required, "NO")
                for line in lines]
        texts = ' and '.join(
            f"{number_text(value)} beside {number_text(reference)} {line.unit}"
            for line, (value, reference) in zip(lines, pairs[-1]))
        print(f"{name}: {texts}", flush=True)
    rows = []
    for line, values in zip(lines, zip(*pairs)):
        result = median(line.compare(*pair) for pair in values)
        value, reference = map(median, zip(*values))
        rows.append((
                line.title,
                f'{number_text(value)} {line.unit}',
                f'{number_text(reference)} {line.unit}',
                f'{result:.2f}' if abs(result) < 10 else f'{result:.1f}',
                line.required,
                "yes" if line.holds(result) else "NO"))
    return rows


def number_text(value):
    return f'{value:.0f}' if value >= 100 else f'{value:.3g}'


def table(rows):
    "Return the rows as a simple table of reStructuredText"
    rows = [
        ("Figure", "Measured", "Reference", "Result", "Must be", "Holds"),
        *rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    rule = '  '.join('=' * width for width in widths)
    lines = [
        '  '.join(c.ljust(w) for c, w in zip(row, widths)).rstrip()
        for row in rows]
    return '\n'.join([rule, lines[0], rule, *lines[1:], rule])


def install():
    "Install the programs that are missing"
    try:
        bin_directory()
    except PostgreSQLError:
        subprocess.run([ROOT / '.ci' / 'install', 'postgresql'], check=True)
    if not smtp_sink():
        subprocess.run([ROOT / '.ci' / 'install', 'postfix'], check=True)


def busy(seconds=1):
    "Return the share of the processors that other programs use now"
    before = processors()
    time.sleep(seconds)
    total, idle = (b - a for a, b in zip(before, processors()))
    return 1 - idle / total


def processors():
    "Return the time of all processors so far, and their idle time"
    with open('/proc/stat') as stat:
        times = list(map(int, stat.readline().split()[1:9]))
    return sum(times), times[3] + times[4]


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'figures', nargs='*', metavar='FIGURE',
        help=f"one of {', '.join(FIGURES)} (default: all)")
    parser.add_argument(
        '--rounds', type=int, default=3,
        help="how often to measure each (default: %(default)s)")
    parser.add_argument(
        '--quick', action='store_true',
        help="a tenth of the messages, to see whether it works")
    args = parser.parse_args()
    if unknown := set(args.figures) - set(FIGURES):
        parser.error(f"no such figure: {', '.join(unknown)}")
    return args


def main():
    args = parse_args()
    install()
    if (share := busy()) > QUIET:
        print(f"Other programs use {share:.0%} of the processors: "
            "the figures will mean little.", flush=True)
    started = time.monotonic()
    with PostgreSQL(durable=True) as server:
        print("creating the databases", flush=True)
        database = Database(server, 'bench')
        database.create([SMALL, LARGE, HUGE])
        bench = Bench(
            database, [database.copy('big'), database.copy('small')],
            args.quick)
        rows = []
        for name in args.figures or FIGURES:
            rows += measure(name, bench, args.rounds)
    print(f"\n{table(rows)}\n\n"
        f"Medians of {args.rounds} rounds, each figure and its reference "
        f"in turn, {os.cpu_count()} processors, "
        f"{time.monotonic() - started:.0f} s.")
    return all(row[-1] == "yes" for row in rows)


if __name__ == '__main__':
    sys.exit(0 if main() else 1)
