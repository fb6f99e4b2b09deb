#!/usr/bin/env python3
# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Send messages by a plain loop over smtplib, without any database.

    loop.py PORT COUNT SIZE
"""
import json
import smtplib
import sys
import time

from messages import FROM_ADDR, TO_ADDR, numbered, template


def main(port, count, size):
    message = template(size)
    messages = [numbered(message, i + 1) for i in range(count)]
    print('ready', flush=True)
    sys.stdin.readline()
    started = time.monotonic()
    with smtplib.SMTP('127.0.0.1', port) as server:
        for message in messages:
            server.sendmail(FROM_ADDR, [TO_ADDR], message)
    print(json.dumps({'started': started, 'ended': time.monotonic()}))


if __name__ == '__main__':
    main(*map(int, sys.argv[1:]))
