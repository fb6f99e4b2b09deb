#!/usr/bin/env python3
# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Show how emails go from a transaction through the queue to an SMTP server.

Everything happens in a temporary directory and on 127.0.0.1.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from contextlib import ExitStack
from email import message_from_bytes, policy
from pathlib import Path

from aiosmtpd.controller import Controller

from trytond.modules.email_queue.tests.postgresql import PostgreSQL, free_port

DATABASE = 'demo'
PROGRAMS = Path(__file__).resolve().parent
# The directory of trytond-admin and the other programs
BIN = Path(sys.executable).parent


class Mailbox:
    "What the SMTP server does with the emails that it gets"

    def __init__(self):
        self.received = []

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address == 'nobody@example.com':
            return '550 5.1.1 no such user here'
        envelope.rcpt_tos.append(address)
        return '250 OK'

    async def handle_DATA(self, server, session, envelope):
        message = message_from_bytes(envelope.content, policy=policy.default)
        self.received.append({
                'subject': str(message['Subject']),
                'to': ', '.join(envelope.rcpt_tos),
                })
        return '250 OK'


def run(*command):
    "Run a program and show its output"
    print(f"    $ {' '.join(command)}", flush=True)
    process = subprocess.run(
        [BIN / command[0], *command[1:]], cwd=PROGRAMS,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True)
    print(textwrap.indent(process.stdout, ' ' * 6), end='', flush=True)
    process.check_returncode()


def configure(directory, smtp_port, postgresql):
    config = directory / 'trytond.conf'
    config.write_text(textwrap.dedent(f"""\
            [database]
            uri = {postgresql.uri if postgresql else 'sqlite://'}
            path = {directory}

            [email]
            uri = smtp://127.0.0.1:{smtp_port}
            """))
    password = directory / 'password'
    password.write_text('demo')
    os.environ.update(
        TRYTOND_CONFIG=str(config), TRYTONPASSFILE=str(password))


def create_database(directory, postgresql):
    if postgresql:
        postgresql.createdb(DATABASE)
    else:
        (directory / f'{DATABASE}.sqlite').touch()
    run('trytond-admin', '-d', DATABASE, '-u', 'email_queue',
        '--email', 'admin@example.com')


def queue():
    "Return the rows of the queue"
    return json.loads(subprocess.check_output(
            [sys.executable, PROGRAMS / 'rows.py', DATABASE]))


def show(title, rows, columns):
    print(f"\n{title}\n")
    lines = [[c.upper() for c in columns]]
    lines.extend(
        [' '.join(str(row[c]).split()) for c in columns] for row in rows)
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        cells = (value.ljust(width) for value, width in zip(line, widths))
        print(f"    {'  '.join(cells)}".rstrip())


def conclude(received, rows):
    "Explain the rows, and return whether they are as expected"
    rows = {row['subject']: row for row in rows}
    conclusions = [
        ("Order 1 was committed: its email has arrived, once.",
            [e['subject'] for e in received] == ['Order 1']
            and 'Order 1' in rows
            and rows['Order 1']['state'] == 'sent'),
        ("Order 2 was rolled back: it has no email.",
            'Order 2' not in rows),
        ("Order 3 was committed, but the server refuses the address: "
            "its email is kept as failed, with the server's words.",
            'Order 3' in rows
            and rows['Order 3']['state'] == 'failed'
            and 'no such user here' in rows['Order 3']['error']),
        ]
    print("\nSo:\n")
    for text, holds in conclusions:
        print(textwrap.fill(
                text, initial_indent=f"    {'yes' if holds else 'NO '}  ",
                subsequent_indent=' ' * 9))
    return all(holds for _, holds in conclusions)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--postgresql', action='store_true',
        help="use a PostgreSQL server of its own instead of SQLite")
    args = parser.parse_args()

    with ExitStack() as stack:
        directory = Path(stack.enter_context(
                tempfile.TemporaryDirectory(prefix='email_queue-')))
        mailbox = Mailbox()
        smtp = Controller(mailbox, hostname='127.0.0.1', port=free_port())
        smtp.start()
        stack.callback(smtp.stop)
        postgresql = None
        if args.postgresql:
            postgresql = stack.enter_context(PostgreSQL())
        configure(directory, smtp.port, postgresql)

        print("1. A new database with the module (this takes a moment):\n")
        create_database(directory, postgresql)

        print("\n2. A program takes three orders and queues an email for each,"
            "\n   in the order's own transaction. "
            "It talks to no mail server:\n")
        run('python', 'shop.py', DATABASE)
        if mailbox.received:
            sys.exit("An email was sent before its time")

        print("\n3. The scheduler runs, as it does every minute, "
            "and sends what is queued:\n")
        run('trytond-cron', '-d', DATABASE, '--once')

        rows = queue()

    show("What the mail server has received:",
        mailbox.received, ['subject', 'to'])
    show("What the queue says (Administration > Email Queue in the client):",
        rows, ['subject', 'to', 'state', 'attempts', 'error'])
    holds = conclude(mailbox.received, rows)
    print(textwrap.dedent("""
        Next:

            README.rst, "The first hour"   with your own database and server
            doc/usage/client.rst           the queue in the client, in pictures
            doc/usage/code.rst             queue emails from your own code
            demo/shop.py                   what the program above does"""))
    return holds


if __name__ == '__main__':
    sys.exit(0 if main() else 1)
