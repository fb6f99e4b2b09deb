#!/usr/bin/env python3
# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Time transactions of several kinds, one transaction of each kind in turn.

    queueing.py DATABASE COUNT SIZE KIND...

The program prints the seconds of each transaction as JSON. These kinds have
one email or record:

queue   queues an email of SIZE bytes
create  creates one small record by the ORM
core    sends the email by trytond.sendmail

These kinds queue thousands of emails in a transaction:

singly    by a call for each email
together  by one call for all emails
ready     by one call for all emails, whose messages are bytes already
captured  as trytond.sendmail has handed them over
"""
import json
import sys
import time
from email import message_from_bytes, policy

from messages import FROM_ADDR, TO_ADDR, numbered, template

from trytond.pool import Pool
from trytond.sendmail import send_message_transactional
from trytond.transaction import Transaction


def queue(message):
    Pool().get('email.queue').queue_mail(FROM_ADDR, [TO_ADDR], message)


def create(message):
    # A record with two texts and a reference, whose creation triggers nothing
    Pool().get('ir.error').create([{
                'origin': 'ir.cron,1',
                'message': "The server is in trouble",
                'description': "Nothing is sent until that ends.",
                }])


def core(message):
    send_message_transactional(message, FROM_ADDR, [TO_ADDR])


def singly(messages):
    EmailQueue = Pool().get('email.queue')
    for message in messages:
        EmailQueue.queue_mail(FROM_ADDR, [TO_ADDR], message)


def together(messages):
    Pool().get('email.queue').queue_mails(
        (FROM_ADDR, [TO_ADDR], message) for message in messages)


def ready(messages):
    together(messages)


def captured(messages):
    Pool().get('email.queue').queue_captured(
        [(FROM_ADDR, [TO_ADDR], message) for message in messages])


# How many emails each of their transactions queues, as in bench.py
MANY = 4000
MANY_KINDS = {singly, together, ready, captured}


def administrator(database):
    with Transaction().start(database, 0, readonly=True):
        user, = Pool().get('res.user').search([('login', '=', 'admin')])
        return user.id


def seconds(database, user, function, message):
    started = time.perf_counter()
    with Transaction().start(database, user):
        function(message)
    return time.perf_counter() - started


def parsed(message, number):
    return message_from_bytes(
        numbered(message, number), policy=policy.default)


def main(database, count, size, *kinds):
    Pool.start()
    Pool(database).init()
    user = administrator(database)
    message = template(int(size))
    functions = [globals()[kind] for kind in kinds]
    times = {kind: [] for kind in kinds}
    print('ready', flush=True)
    sys.stdin.readline()
    for number in range(int(count)):
        for kind, function in zip(kinds, functions):
            if function in MANY_KINDS:
                first = number * MANY
                make = numbered if function is ready else parsed
                argument = [
                    make(message, first + i + 1) for i in range(MANY)]
            else:
                argument = parsed(message, number + 1)
            times[kind].append(seconds(database, user, function, argument))
    print(json.dumps(times))


if __name__ == '__main__':
    main(*sys.argv[1:])
