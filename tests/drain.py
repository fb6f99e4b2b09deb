# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""A program that starts senders: one sender for each line that it reads.

Each sender is a process of its own, forked from this process, so that it
starts at once. It prints "started PID" and, unless it is killed, "ended PID
SENT BYTES".
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

# An email to this address kills the process of its sender
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
    # So that a process that nobody waits for leaves no zombie
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
    "Adds up the numbers of emails in the log lines of a run"
    sent = 0

    def emit(self, record):
        if record.msg.startswith('sender %s: %d sent'):
            self.sent += record.args[1]


def tell(*words):
    # One write for a line, because other processes write, too
    os.write(1, f"{' '.join(map(str, words))}\n".encode())


if __name__ == '__main__':
    main(*sys.argv[1:])
