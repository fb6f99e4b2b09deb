# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The messages that are sent, the same messages in every way."""
import base64
import random

__all__ = ['FROM_ADDR', 'NUMBER', 'TO_ADDR', 'numbered', 'template']

FROM_ADDR, TO_ADDR = 'shop@example.com', 'customer@example.com'
# The number of the message takes the place of this text
NUMBER = '@@@@@@@@'
HEADER = f"""\
From: The Shop <{FROM_ADDR}>
To: A Customer <{TO_ADDR}>
Subject: Your order {NUMBER}
Date: Fri, 02 Jan 2026 03:04:05 +0000
Message-ID: <order.{NUMBER}@example.com>
MIME-Version: 1.0
"""
TEXT = """\
Content-Type: text/plain; charset=us-ascii
Content-Transfer-Encoding: 7bit

"""
ATTACHMENT = """\
Content-Type: application/pdf
Content-Transfer-Encoding: base64

"""
# Up to this size a message is a text; a larger message does not compress
TEXT_SIZE = 10 * 1024


def template(size):
    "Return the bytes of a message with about ``size`` bytes"
    chance = random.Random(size)
    if size <= TEXT_SIZE:
        words = [
            ''.join(chance.choices('etaoinshrdlucmfw', k=chance.randint(2, 9)))
            for _ in range(200)]
        body = HEADER + TEXT
        while len(body) < size:
            body += ' '.join(chance.choices(words, k=11)) + '\n'
    else:
        body = HEADER + ATTACHMENT
        data = chance.randbytes((size - len(body)) * 3 // 4)
        body += base64.encodebytes(data).decode('ascii')
    return body.replace('\n', '\r\n').encode('ascii')


def numbered(message, number):
    "Return the message with its number in the place for it"
    return message.replace(NUMBER.encode('ascii'), b'%08d' % number)
