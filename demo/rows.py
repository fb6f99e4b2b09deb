#!/usr/bin/env python3
# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Print the rows of the queue as JSON."""
import json
import sys

from trytond.pool import Pool
from trytond.transaction import Transaction


def main(database):
    Pool.start()
    Pool(database).init()
    with Transaction().start(database, 0, readonly=True):
        emails = Pool().get('email.queue').search([], order=[('id', 'ASC')])
        print(json.dumps([{
                        'subject': email.subject,
                        'to': email.to_addrs,
                        'state': email.state,
                        'attempts': email.attempts,
                        'error': email.error or '',
                        } for email in emails]))


if __name__ == '__main__':
    main(sys.argv[1])
