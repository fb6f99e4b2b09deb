#!/usr/bin/env python3
# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Queue many emails in one transaction, in a process of its own.

    campaign.py DATABASE COUNT SIZE WAY

The program prints "ready", waits for a line, and prints as JSON the seconds of
processor that it took, without those of PostgreSQL, and its peak of memory in
bytes. WAY is how it queues the emails:

generated  by queue_mails, from a generator
captured   by trytond.sendmail, with capture
singly     by queue_mail, one email after another
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


def generated(messages):
    Pool().get('email.queue').queue_mails(
        (FROM_ADDR, [TO_ADDR], message) for message in messages)


def captured(messages):
    for message in messages:
        send_message_transactional(message, FROM_ADDR, [TO_ADDR])


def singly(messages):
    EmailQueue = Pool().get('email.queue')
    for message in messages:
        EmailQueue.queue_mail(FROM_ADDR, [TO_ADDR], message)


def main(database, count, size, way):
    Pool.start()
    Pool(database).init()
    if way == 'captured':
        sendmail.capture()
    message, function = template(int(size)), globals()[way]
    # What each process does once
    with Transaction().start(database, 0) as transaction:
        function([parsed(message, 0)])
        transaction.rollback()
    numbers = range(1, int(count) + 1)
    if way == 'generated':
        messages = (numbered(message, i) for i in numbers)
    else:
        # Making the messages is the caller's work
        messages = [parsed(message, i) for i in numbers]
    print('ready', flush=True)
    sys.stdin.readline()
    started = time.process_time()
    with Transaction().start(database, 0):
        function(messages)
    print(json.dumps({
                'processor': time.process_time() - started,
                'peak': peak(),
                }))


if __name__ == '__main__':
    main(*sys.argv[1:])
