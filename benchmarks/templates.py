#!/usr/bin/env python3
# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Queue one message of each size, with a place for its number.

    templates.py DATABASE SIZE...
"""
import sys

from messages import FROM_ADDR, TO_ADDR, template

from trytond.pool import Pool
from trytond.transaction import Transaction


def main(database, *sizes):
    Pool.start()
    Pool(database).init()
    print('ready', flush=True)
    sys.stdin.readline()
    with Transaction().start(database, 0):
        for size in sizes:
            Pool().get('email.queue').queue_mail(
                FROM_ADDR, [TO_ADDR], template(int(size)))
    print('true')


if __name__ == '__main__':
    main(*sys.argv[1:])
