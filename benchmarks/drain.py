#!/usr/bin/env python3
# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Drain the queue once, in a process of its own.

    drain.py DATABASE send_all|scheduler|clean|tasks [SINCE]

With SINCE, a monotonic time, "clean" deletes the emails that were sent before.
The program prints "ready", waits for a line, and prints its results as JSON:
when it started and ended, when how many emails had been recorded, its peak of
memory, and the seconds of each task of a worker.
It sends once before it is ready, so that its caches are as full as those of a
process that runs for some time. So the queue must be empty at the start,
except for the scheduler.
"""
import json
import re
import sys
import time
from pathlib import Path

from messages import FROM_ADDR, TO_ADDR, template

import trytond.config as config
from trytond.pool import Pool
from trytond.transaction import Transaction


def send_all(database):
    with Transaction().start(database, 0):
        Pool(database).get('email.queue').send_all()


def scheduler(database):
    Pool(database).get('ir.cron').run(database)


def clean(database):
    with Transaction().start(database, 0):
        Pool(database).get('email.queue').clean()


def tasks(database, count=20):
    "Queue so many emails, each with its task, and return the tasks' seconds"
    seconds, message = [], template(2048)
    for _ in range(count):
        with Transaction().start(database, 0):
            email, = Pool(database).get('email.queue').queue_mail(
                FROM_ADDR, [TO_ADDR], message)
        started = time.perf_counter()
        with Transaction().start(database, 0):
            type(email).send_queued([email])
        seconds.append(time.perf_counter() - started)
    return seconds


def peak():
    "Return the largest number of bytes that the process has had in memory"
    # Unlike ru_maxrss this number begins at this program, not at the program
    # before exec
    status = Path('/proc/self/status').read_text()
    return int(re.search(r'VmHWM:\s*(\d+) kB', status)[1]) * 1024


def main(database, way, since=None):
    Pool.start()
    pool = Pool(database)
    pool.init()
    EmailQueue = pool.get('email.queue')
    finished, recorded = EmailQueue.finished, []

    def count(emails):
        recorded.append((time.monotonic(), len(emails)))
        finished(emails)

    EmailQueue.finished = count
    if way == 'send_all':
        send_all(database)
    print('ready', flush=True)
    sys.stdin.readline()
    started = time.monotonic()
    if since:
        if not config.has_section('email_queue'):
            config.add_section('email_queue')
        config.set(
            'email_queue', 'clean_days',
            str((started - float(since)) / 24 / 3600))
    result = {
        'send_all': send_all,
        'scheduler': scheduler,
        'clean': clean,
        'tasks': tasks,
        }[way](database)
    print(json.dumps({
                'started': started,
                'ended': time.monotonic(),
                'recorded': recorded,
                'peak': peak(),
                'tasks': result,
                }))


if __name__ == '__main__':
    main(*sys.argv[1:])
