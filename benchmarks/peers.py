#!/usr/bin/env python3
# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Let one of Django's queues do the same, in an environment of its own.

    peers.py URI PORT COUNT SIZE WAY

URI is the URI of an empty database, PORT the port of the SMTP server. The
program prints "ready", waits for a line, and prints as JSON when it started
and ended. WAY is what it does:

queue        queues COUNT emails by post_office's send_many, in a transaction
post_office  sends COUNT queued emails by post_office, over four connections
mailer       sends COUNT queued emails by django-mailer, over its connection
"""
import json
import logging
import sys
import time
from email import message_from_bytes
from urllib.parse import urlsplit

import django
from django.conf import settings
from django.core.management import call_command
from django.db import transaction
from messages import FROM_ADDR, TO_ADDR, numbered, template

CONNECTIONS = 4
# The tables of each way, and how its sent emails are counted
APPS = {
    'queue': ['post_office'],
    'post_office': ['post_office'],
    'mailer': ['mailer'],
    }


def configure(uri, port, count, apps):
    database = urlsplit(uri)
    settings.configure(
        DATABASES={'default': {
                'ENGINE': 'django.db.backends.postgresql',
                'NAME': database.path.strip('/'),
                'USER': database.username or '',
                'HOST': database.hostname,
                'PORT': database.port,
                }},
        INSTALLED_APPS=[
            'django.contrib.contenttypes', 'django.contrib.auth', *apps],
        TEMPLATES=[{
                'BACKEND': 'django.template.backends.django.DjangoTemplates'}],
        EMAIL_HOST='127.0.0.1',
        EMAIL_PORT=port,
        POST_OFFICE={
            'BATCH_SIZE': count,
            'THREADS_PER_PROCESS': CONNECTIONS,
            'DEFAULT_PRIORITY': 'medium',
            },
        MAILER_USE_FILE_LOCK=False,
        DEFAULT_AUTO_FIELD='django.db.models.AutoField',
        USE_TZ=True)
    django.setup()
    # Both log each email
    logging.disable(logging.WARNING)
    call_command('migrate', verbosity=0)


def emails(size, count):
    message = template(size)
    for i in range(count):
        email = message_from_bytes(numbered(message, i + 1))
        yield {
            'sender': FROM_ADDR,
            'recipients': [TO_ADDR],
            'subject': email['Subject'],
            'message': email.get_payload(),
            }


def queue(size, count):
    from post_office import mail

    # The time for parsing the message here does not count
    arguments = list(emails(size, count))

    def work():
        with transaction.atomic():
            mail.send_many(arguments)

    return work


def post_office(size, count):
    from post_office import mail
    mail.send_many(emails(size, count))

    def work():
        sent, failed, requeued = mail.send_queued(processes=1)
        assert sent == count, (sent, failed, requeued)

    return work


def mailer(size, count):
    from django.core.mail import EmailMessage
    from mailer.engine import send_all
    from mailer.models import Message

    rows = []
    for email in emails(size, count):
        row = Message(priority=2)
        row.email = EmailMessage(
            email['subject'], email['message'], email['sender'],
            email['recipients'])
        rows.append(row)
    Message.objects.bulk_create(rows)

    def work():
        send_all()
        assert not Message.objects.count()

    return work


def main(uri, port, count, size, way):
    configure(uri, int(port), int(count), APPS[way])
    work = globals()[way](int(size), int(count))
    print('ready', flush=True)
    sys.stdin.readline()
    started = time.monotonic()
    work()
    print(json.dumps({'started': started, 'ended': time.monotonic()}))


if __name__ == '__main__':
    main(*sys.argv[1:])
