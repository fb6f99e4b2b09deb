#!/usr/bin/env python3
# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Queue many emails in one transaction, in a process of its own.

    campaign.py DATABASE COUNT SIZE WAY

It says "ready", waits for a line, and prints as JSON the seconds of processor
that it took, without PostgreSQL's, and its peak of memory in bytes:

generated  by queue_mails, from a generator
captured   by trytond.sendmail, with capture
singly     by queue_mail, one after another
"""
import json
import sys
import time
from email import message_from_bytes, policy

from drain import peak
from messages import FROM_ADDR, TO_ADDR, numbered, template

from trytond.modules.email_queue import sendmail
from trytond.pool import Pool
from trytond.sendmail import send_message_transactional
from trytond.transaction import Transaction


def parsed(message, number):
    return message_from_bytes(
        numbered(message, number), policy=policy.default)


def generated(message, numbers):
    Pool().get('email.queue').queue_mails(
        (FROM_ADDR, [TO_ADDR], numbered(message, i)) for i in numbers)


def captured(message, numbers):
    for i in numbers:
        send_message_transactional(
            parsed(message, i), FROM_ADDR, [TO_ADDR])


def singly(message, numbers):
    EmailQueue = Pool().get('email.queue')
    for i in numbers:
        EmailQueue.queue_mail(FROM_ADDR, [TO_ADDR], parsed(message, i))


def main(database, count, size, way):
    Pool.start()
    Pool(database).init()
    if way == 'captured':
        sendmail.capture()
    message, function = template(int(size)), globals()[way]
    # What a process does once
    with Transaction().start(database, 0) as transaction:
        function(message, [0])
        transaction.rollback()
    print('ready', flush=True)
    sys.stdin.readline()
    started = time.process_time()
    with Transaction().start(database, 0):
        function(message, range(1, int(count) + 1))
    print(json.dumps({
                'processor': time.process_time() - started,
                'peak': peak(),
                }))


if __name__ == '__main__':
    main(*sys.argv[1:])
