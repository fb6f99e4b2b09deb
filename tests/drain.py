# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""A program that starts senders, one for every line that it reads.

Each is a process of its own, forked from this one so that it is there at
once. It tells "started PID" and, unless it is killed, "ended PID SENT
BYTES".
"""
import datetime as dt
import logging
import os
import resource
import signal
import sys
import traceback

from trytond.exceptions import UserError
from trytond.pool import Pool
from trytond.transaction import Transaction

from .. import run, sender, slot, store

# Whoever sends to it dies
KILLER = 'killer@example.com'


def main(database, orphaned, busy=None):
    slot.ORPHANED_SECONDS = float(orphaned)
    if busy:
        slot.BUSY_SECONDS = float(busy)
    store.CRASH_DELAY = dt.timedelta(0)
    sender.hand_over = run.hand_over = deadly(sender.hand_over)
    Pool.start()
    with Transaction().start(database, 0, readonly=True):
        Pool(database).init()
    # Who is not waited for leaves no zombie
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    tell('ready')
    for _ in sys.stdin:
        if not os.fork():
            send(database)


def send(database):
    tell('started', os.getpid())
    count = Counter()
    logging.getLogger(sender.__name__).addHandler(count)
    logging.getLogger(sender.__name__).setLevel(logging.INFO)
    try:
        with Transaction().start(database, 0):
            Pool(database).get('email.queue').send_all()
    except UserError as error:
        print(error, file=sys.stderr)
    except Exception:
        traceback.print_exc()
    finally:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        tell('ended', os.getpid(), count.sent, peak)
        os._exit(0)


def deadly(deliver):
    def deliver_or_die(client, row, *args):
        if row.to_addrs == KILLER:
            os.kill(os.getpid(), signal.SIGKILL)
        return deliver(client, row, *args)

    return deliver_or_die


class Counter(logging.Handler):
    "The number of emails that the lines of a run tell"
    sent = 0

    def emit(self, record):
        if record.msg.startswith('sender %s: %d sent'):
            self.sent += record.args[1]


def tell(*words):
    # One write is one line, whoever else writes
    os.write(1, f"{' '.join(map(str, words))}\n".encode())


if __name__ == '__main__':
    main(*sys.argv[1:])
