#!/usr/bin/env python3
# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Time transactions of several kinds, one of each in turn.

    queueing.py DATABASE COUNT SIZE KIND...

It prints the seconds of each as JSON. The kinds:

queue   queues an email of SIZE bytes
create  creates one small record by the ORM
core    sends the email by trytond.sendmail
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
    # Two texts and a reference, and nothing happens because of it
    Pool().get('ir.error').create([{
                'origin': 'ir.cron,1',
                'message': "The server is in trouble",
                'description': "Nothing is sent until that ends.",
                }])


def core(message):
    send_message_transactional(message, FROM_ADDR, [TO_ADDR])


def administrator(database):
    with Transaction().start(database, 0, readonly=True):
        user, = Pool().get('res.user').search([('login', '=', 'admin')])
        return user.id


def seconds(database, user, function, message):
    started = time.perf_counter()
    with Transaction().start(database, user):
        function(message)
    return time.perf_counter() - started


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
        parsed = message_from_bytes(
            numbered(message, number + 1), policy=policy.default)
        for kind, function in zip(kinds, functions):
            times[kind].append(seconds(database, user, function, parsed))
    print(json.dumps(times))


if __name__ == '__main__':
    main(*sys.argv[1:])
