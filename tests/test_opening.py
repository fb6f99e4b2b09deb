# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Servers that never come to an end before the first message.

Whatever a server does then, neither a thread nor an open file is left.
"""
import os
import resource
import smtplib
import socket
import threading
import time
import unittest
from contextlib import contextmanager
from unittest.mock import patch

from .. import smtp

MAIL = smtp.Mail(
    'shop@example.com', ('jane@example.com',), b'Subject: Test\r\n\r\n')
TIMEOUT = 0.1
SECONDS = smtp.OPENING_STEPS * TIMEOUT
GREETING = b'220 hostile\r\n'
EHLO = b'250-hostile\r\n250-STARTTLS\r\n250 AUTH LOGIN PLAIN CRAM-MD5\r\n'
CREDENTIALS = 'jane:secret@'


def endless(piece):
    def answer(sock):
        while True:
            sock.sendall(piece)
    return answer


def dripping(piece):
    def answer(sock):
        while True:
            for byte in piece:
                sock.sendall(bytes([byte]))
                time.sleep(TIMEOUT / 5)
    return answer


def silent(sock):
    while sock.recv(4096):
        pass


def challenges(sock):
    while sock.recv(4096):
        sock.sendall(b'334 dGVzdA==\r\n')


class HostileServer:
    """A server that gives the replies, each after a command but the first, and
    then the answer
    """

    def __init__(self, replies, answer):
        self._replies = replies
        self._answer = answer
        self._threads = []

    def __enter__(self):
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.port = self._listener.getsockname()[1]
        self._start(self._accept)
        return self

    def __exit__(self, *exc_info):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _start(self, target, *args):
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, sock)

    def _serve(self, sock):
        with sock:
            try:
                for i, reply in enumerate(self._replies):
                    if i:
                        sock.recv(4096)
                    sock.sendall(reply)
                if self._replies:
                    sock.recv(4096)
                self._answer(sock)
            except OSError:
                pass


class OpeningTestCase(unittest.TestCase):
    cases = {
        'greeting': ('smtp', '', [], b'220-hostile\r\n'),
        'EHLO': ('smtp', '', [GREETING], b'250-hostile\r\n'),
        'STARTTLS': ('smtp+tls', '', [GREETING, EHLO], b'220-hostile\r\n'),
        'AUTH': ('smtp', CREDENTIALS, [GREETING, EHLO], b'334-hostile\r\n'),
        }

    @contextmanager
    def nothing_left(self):
        threads, files = threading.active_count(), _open_files()
        yield
        end = time.monotonic() + 10
        while (time.monotonic() < end
                and (threading.active_count(), _open_files())
                > (threads, files)):
            time.sleep(0.01)
        self.assertLessEqual(threading.active_count(), threads)
        self.assertLessEqual(_open_files(), files)

    def deliver(self, scheme, credentials, replies, answer):
        "Return the words of the trouble, and how long it took"
        with self.nothing_left(), HostileServer(replies, answer) as server:
            client = smtp.Client(
                f'{scheme}://{credentials}127.0.0.1:{server.port}',
                timeout=TIMEOUT)
            started = time.monotonic()
            outcome = client.deliver(MAIL)
            client.close()
            return outcome.trouble.words, time.monotonic() - started

    def test_endless(self):
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for name, (*how, piece) in self.cases.items():
            with self.subTest(name):
                words, _ = self.deliver(*how, endless(piece))
                self.assertEqual(words, "an answer without end")
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
        self.assertLess(grown, 32 * 1024)

    def test_dripping(self):
        for name, (*how, piece) in self.cases.items():
            with self.subTest(name):
                words, seconds = self.deliver(*how, dripping(piece))
                self.assertEqual(words, "timed out")
                self.assertGreaterEqual(seconds, SECONDS)

    def test_line_without_end(self):
        for name, (*how, _) in self.cases.items():
            with self.subTest(name):
                words, _ = self.deliver(*how, endless(b'2' * 8192))
                self.assertEqual(words, "500 Line too long.")

    def test_silence(self):
        for name, (*how, _) in self.cases.items():
            with self.subTest(name):
                words, _ = self.deliver(*how, silent)
                self.assertEqual(words, "timed out")

    def test_challenges(self):
        "Test a login that asks for one more answer each time"
        words, _ = self.deliver('smtp', CREDENTIALS, [GREETING, EHLO],
            lambda sock: (sock.sendall(b'334 dGVzdA==\r\n'), challenges(sock)))
        self.assertIn('infinite loop', words)

    def test_handshake(self):
        "Test a TLS handshake that hangs or never ends"
        record = b'\x16\x03\x03\x40\x00' + b'\x0b\x00\x3f\xfc' + b'\0' * 16380
        start_tls = [GREETING, EHLO, GREETING]
        for scheme, replies in [('smtps', []), ('smtp+tls', start_tls)]:
            for answer in [silent, dripping(record)]:
                with self.subTest(scheme, answer=answer):
                    words, _ = self.deliver(scheme, '', replies, answer)
                    self.assertEqual(words, "timed out")

    def test_refused_login(self):
        "Test no connection stays open when a step is refused"
        for scheme, credentials, replies in [
                ('smtp+tls', '', [GREETING, EHLO, b'454 no\r\n']),
                ('smtp', CREDENTIALS, [GREETING, EHLO, *[b'535 no\r\n'] * 3]),
                ('smtp', '', [b'554 no\r\n']),
                ]:
            with self.subTest(scheme, replies=replies):
                self.deliver(scheme, credentials, replies, silent)

    def test_given_server(self):
        "Test a connection of the caller whose greeting never ends"
        for answer in [endless(b'250-x\r\n'), dripping(b'250-x\r\n')]:
            with self.subTest(answer=answer), self.nothing_left(), \
                    HostileServer([GREETING], answer) as server:
                given = smtplib.SMTP('127.0.0.1', server.port, timeout=10)
                outcome = smtp.Client(
                    f'smtp://127.0.0.1:{server.port}', smtp=given,
                    timeout=TIMEOUT).deliver(MAIL)
                self.assertIn(outcome.trouble.words, {
                        "an answer without end", "timed out"})

    def test_name_server(self):
        """Test the number of threads that wait for a hanging name server is
        limited
        """
        answer, asked = threading.Event(), []

        def getaddrinfo(*args, **kwargs):
            asked.append(args)
            answer.wait(30)
            raise socket.gaierror("no such name")

        with self.nothing_left(), \
                patch.object(socket, 'getaddrinfo', getaddrinfo), \
                patch.object(smtp, 'QUIT_TIMEOUT', 0), \
                patch.object(smtp, 'RESOLVING', 2):
            for _ in range(4):
                outcome = smtp.Client(
                    'smtp://mail.example.com', timeout=0.01).deliver(MAIL)
                self.assertEqual(outcome.trouble.words, "timed out")
            self.assertEqual(len(asked), 2)
            answer.set()


def _open_files():
    return len(os.listdir('/proc/self/fd'))
