#!/usr/bin/env python3
# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""A shop that confirms its orders by email, as a module of yours would.

The program does not talk to an SMTP server.
"""
import sys
from email.message import EmailMessage

from trytond.pool import Pool
from trytond.transaction import Transaction


class OutOfStock(Exception):
    pass


def order(number, customer, in_stock=True):
    confirmation = EmailMessage()
    confirmation['From'] = "The Shop <shop@example.com>"
    confirmation['To'] = customer
    confirmation['Subject'] = f"Order {number}"
    confirmation.set_content(f"Thank you for your order {number}.")

    EmailQueue = Pool().get('email.queue')
    EmailQueue.queue_mail('shop@example.com', [customer], confirmation)

    if not in_stock:
        raise OutOfStock


def main(database):
    Pool.start()
    Pool(database).init()

    # The end of the transaction commits the order and the email together
    with Transaction().start(database, 0):
        order(1, 'alice@example.com')
    print("Order 1 of alice@example.com: committed")

    # An exception rolls back both
    try:
        with Transaction().start(database, 0):
            order(2, 'bob@example.com', in_stock=False)
    except OutOfStock:
        print("Order 2 of bob@example.com: out of stock, rolled back")

    # The address does not exist: the queue notices this, the shop does not
    with Transaction().start(database, 0):
        order(3, 'nobody@example.com')
    print("Order 3 of nobody@example.com: committed")


if __name__ == '__main__':
    main(sys.argv[1])
