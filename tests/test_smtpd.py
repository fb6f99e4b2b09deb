# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
import base64
import json
import os
import re
import select
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import unittest

from . import smtpd
from .smtpd import Action, Mail, Server, make_certificates, read_log

SILENCE = .1  # seconds
COMPLETE = re.compile(rb'(?:\d{3}-[^\n]*\n)*(\d{3})(?: [^\n]*)?\r\n')


class Client:
    "A client that sends what it is told, and returns what comes back"

    def __init__(self, server, greeting=220):
        self.sock = socket.create_connection(('127.0.0.1', server.port), 5)
        self.input = b''
        if greeting:
            assert self.outcome() == greeting

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.sock.close()

    def send(self, *lines):
        data = [x if isinstance(x, bytes) else x.encode() for x in lines]
        self.sock.sendall(b''.join(line + b'\r\n' for line in data))

    def outcome(self, timeout=5):
        "Return the code of the next reply, or what came instead of a reply"
        self.sock.settimeout(timeout)
        while True:
            if match := COMPLETE.match(self.input):
                self.reply = self.input[:match.end()].decode()
                self.input = self.input[match.end():]
                return int(match[1])
            if re.match(rb'[^\d\n][^\n]*\n', self.input):
                self.input = self.input.partition(b'\n')[2]
                return 'garbage'
            try:
                data = self.sock.recv(65536)
            except TimeoutError:
                return 'silence'
            except ConnectionResetError:
                return 'reset'
            self.input += data
            if not data:
                cut, self.input = self.input, b''
                return ('endless' if len(cut) > 50_000
                    else 'cut' if cut else 'close')

    def do(self, *lines, timeout=5):
        "Send lines one by one, each after the reply to the line before"
        for line in lines:
            self.send(line)
            outcome = self.outcome(timeout)
        return outcome

    def mail(self, from_addr, to_addr, data='Subject: Test\r\n\r\nTest'):
        return self.do(
            f'MAIL FROM:<{from_addr}>', f'RCPT TO:<{to_addr}>', 'DATA',
            f'{data}\r\n.')

    def ehlo(self):
        assert self.do('EHLO client') == 250
        return self


# What the client of one step sees of each action, and whether the session goes
# on. {good} is the reply to a good step.
ACTIONS = {
    '451': (451, True),
    '550': (550, True),
    '421': (421, False),
    '250-close': (250, False),
    '451-reset': (451, False),
    'close': ('close', False),
    'reset': ('reset', False),
    'hang': ('silence', None),
    'trickle': ('{good}', True),
    'garbage': ('garbage', True),
    'endless': ('endless', False),
    'multi-endless': ('endless', False),
    'cut': ('cut', False),
    'split': ('{good}', True),
    '451x1': (451, True),
    'closex1': ('close', False),
    }
# The commands up to a step, then the command of the step, and its good reply
STEPS = {
    'greeting': ((), None, 220),
    'ehlo': ((), 'EHLO client', 250),
    'helo': ((), 'HELO client', 250),
    'noop': (('EHLO client',), 'NOOP', 250),
    'rset': (('EHLO client',), 'RSET', 250),
    'auth': (
        ('EHLO client',),
        'AUTH PLAIN ' + base64.b64encode(b'\0user\0password').decode(), 235),
    'quit': (('EHLO client',), 'QUIT', 221),
    'mail': (('EHLO client',), 'MAIL FROM:<{from_addr}>', 250),
    'rcpt': (
        ('EHLO client', 'MAIL FROM:<{from_addr}>'), 'RCPT TO:<{to_addr}>',
        250),
    'data': (
        ('EHLO client', 'MAIL FROM:<{from_addr}>', 'RCPT TO:<{to_addr}>'),
        'DATA', 354),
    'body': (
        ('EHLO client', 'MAIL FROM:<{from_addr}>', 'RCPT TO:<{to_addr}>',
            'DATA'),
        'Subject: The first half', 451),
    'dot': (
        ('EHLO client', 'MAIL FROM:<{from_addr}>', 'RCPT TO:<{to_addr}>',
            'DATA'),
        'Subject: Test\r\n\r\nTest\r\n.', 250),
    }


class ActionsTestCase(unittest.TestCase):
    "Each action at each step"

    def setUp(self):
        self.server = Server(trickle=.0005, split=.005, endless=100_000)
        self.server.start()
        self.addCleanup(self.server.stop)

    def check(self, step, action, from_addr='a@example.com',
            to_addr='b@example.com'):
        before, command, good = STEPS[step]
        expected, goes_on = ACTIONS[action]
        if expected == '{good}':
            expected = good
        if step in {'quit', 'body'} and goes_on:
            goes_on = False
        taken = self.server.count
        try:
            client = Client(self.server, 220 if step != 'greeting' else None)
        except ConnectionResetError:
            # may come before connect() has returned
            self.assertEqual(step, 'greeting')
            self.assertIn('reset', action)
            return
        with client:
            for line in before:
                client.do(line.format(from_addr=from_addr, to_addr=to_addr))
            if command:
                client.send(command.format(
                        from_addr=from_addr, to_addr=to_addr))
            timeout = SILENCE if expected == 'silence' else 5
            self.assertEqual(client.outcome(timeout), expected)
            if goes_on:
                self.server.script = {}
                if step == 'data' and expected == 354:
                    self.assertEqual(client.do('.'), 250)
                elif step != 'greeting' or expected == 220:
                    self.assertEqual(client.do('RSET'), 250)
            elif goes_on is False:
                self.assertIn(client.outcome(), {'close', 'reset'})
        if step == 'dot':
            self.assertEqual(self.server.count - taken, expected == 250)
        self.server.wait_until(lambda: not self.server.open_sessions)
        self.assertEqual(self.server.violations, [])

    def test_script(self):
        for step in STEPS:
            for action in ACTIONS:
                with self.subTest(step=step, action=action):
                    self.server.clear()
                    self.server.auth = (
                        ('user', 'password') if step == 'auth' else None)
                    self.server.script = {step: action}
                    self.check(step, action)

    def test_name_of_recipient(self):
        for step in ['rcpt', 'data', 'body', 'dot']:
            for action in ACTIONS:
                with self.subTest(step=step, action=action):
                    self.server.clear()
                    self.check(
                        step, action, to_addr=f'{step}-{action}@example.com')

    def test_name_of_sender(self):
        for step in ['mail', 'rcpt', 'data', 'body', 'dot']:
            for action in ACTIONS:
                with self.subTest(step=step, action=action):
                    self.server.clear()
                    self.check(
                        step, action,
                        from_addr=f'{step}-{action}.7@example.com')

    def test_starttls(self):
        self.server.tls = 'starttls'
        for action, (expected, goes_on) in ACTIONS.items():
            if expected == '{good}' or action == '250-close':
                continue
            with (self.subTest(action=action),
                    Client(self.server).ehlo() as client):
                self.server.script = {'starttls': action}
                self.server.clear()
                client.send('STARTTLS')
                self.assertEqual(
                    client.outcome(
                        SILENCE if expected == 'silence' else 5), expected)
                if goes_on:
                    self.assertEqual(client.do('NOOP'), 250)
        self.assertEqual(self.server.violations, [])

    def test_pipelined(self):
        "The replies before a fault are sent, the replies after it are not"
        for action, (expected, goes_on) in ACTIONS.items():
            with (self.subTest(action=action),
                    Client(self.server).ehlo() as client):
                self.server.clear()
                client.send(
                    'MAIL FROM:<a@example.com>', 'RCPT TO:<b@example.com>',
                    f'RCPT TO:<rcpt-{action}@example.com>',
                    'RCPT TO:<c@example.com>', 'DATA')
                self.assertEqual(client.outcome(), 250)
                self.assertEqual(client.outcome(), 250)
                if expected == '{good}':
                    expected = 250
                self.assertEqual(
                    client.outcome(SILENCE if expected == 'silence' else 5),
                    expected)
                if goes_on:
                    self.assertEqual(client.outcome(), 250)
                    self.assertEqual(client.outcome(), 354)
                    self.assertEqual(client.do('.'), 250)
                    self.assertEqual(
                        self.server.received[0].to_addrs[:1],
                        ('b@example.com',))
                elif goes_on is False:
                    self.assertIn(client.outcome(), {'close', 'reset'})
                self.assertEqual(self.server.violations, [])

    def test_split(self):
        "The reply has two segments, the first of which ends inside the code"
        with Client(self.server).ehlo() as client:
            client.do('MAIL FROM:<a@example.com>')
            client.send('RCPT TO:<rcpt-split@example.com>')
            self.assertEqual(client.sock.recv(1000), b'25')
            self.assertEqual(client.sock.recv(1000), b'0 2.1.5 ok\r\n')

    def test_trickle(self):
        "The reply comes one byte at a time"
        self.server.trickle = .02
        with Client(self.server).ehlo() as client:
            client.do('MAIL FROM:<a@example.com>')
            start = time.monotonic()
            client.send('RCPT TO:<rcpt-trickle@example.com>')
            self.assertEqual(client.sock.recv(1000), b'2')
            self.assertEqual(client.sock.recv(1000), b'5')
            self.assertEqual(client.sock.makefile().read(11), '0 2.1.5 ok\n')
            self.assertGreater(
                time.monotonic() - start, .02 * (len('250 2.1.5 ok\r\n') - 1))

    def test_endless_until_the_client_closes(self):
        self.server.endless = None
        for action in ['endless', 'multi-endless']:
            with Client(self.server).ehlo() as client:
                client.do('MAIL FROM:<a@example.com>')
                client.send(f'RCPT TO:<rcpt-{action}@example.com>')
                for _ in range(20):
                    self.assertGreater(len(client.sock.recv(65536)), 0)
            self.server.wait_until(lambda: not self.server.open_sessions)

    def test_flaky(self):
        with Client(self.server).ehlo() as client:
            for expected in [451, 451, 250, 250]:
                self.assertEqual(
                    client.mail('a@example.com', 'dot-451x2@example.com'),
                    expected)
            self.assertEqual(
                client.mail('a@example.com', 'dot-451x2@example.net'), 451)
        self.assertEqual(self.server.count, 2)

    def test_several_steps(self):
        address = 'rcpt-450x1+data-451x1+dot-452x1@example.com'
        with Client(self.server).ehlo() as client:
            for expected in [(450,), (250, 451), (250, 354, 452),
                    (250, 354, 250)]:
                client.do('RSET', 'MAIL FROM:<a@example.com>')
                for line, code in zip(
                        [f'RCPT TO:<{address}>', 'DATA', 'Test\r\n.'],
                        expected):
                    self.assertEqual(client.do(line), code)

    def test_taken(self):
        for action in ['451-taken', 'close-taken', 'resetx1-taken']:
            with Client(self.server).ehlo() as client:
                client.mail('a@example.com', f'dot-{action}@example.com')
        self.assertEqual(len(self.server.wait_for(3)), 3)

    def test_body_of_a_large_mail(self):
        "The client cannot write all of the mail"
        with Client(self.server).ehlo() as client:
            client.do(
                'MAIL FROM:<a@example.com>',
                'RCPT TO:<body-552@example.com>', 'DATA')
            with self.assertRaises(ConnectionError):
                for _ in range(100):
                    client.sock.sendall(b'x' * 100_000)
        self.assertEqual(self.server.count, 0)

    def test_unknown_names(self):
        for name in ['rcpt-team', 'data-99', 'dot', 'mail-bob', 'rcpt-600',
                '"a b"', '"rcpt>550"', 'body.close', 'x-dot-554']:
            with self.subTest(name=name), Client(self.server).ehlo() as client:
                self.assertEqual(
                    client.mail(f'{name}@example.com', f'{name}@example.com'),
                    250)
        self.assertEqual(self.server.violations, [])

    def test_replies(self):
        self.server.replies = {
            ('rcpt', 550): "5.2.1 <{address}> is gone\nfor ever",
            ('dot', 250): "2.0.0 queued as 7",
            }
        with Client(self.server).ehlo() as client:
            client.do('MAIL FROM:<a@example.com>')
            for command, reply in [
                    ('RCPT TO:<rcpt-550@example.com>',
                        "550-5.2.1 <rcpt-550@example.com> is gone\r\n"
                        "550 for ever\r\n"),
                    ('RCPT TO:<rcpt-550-5.7.1-not-here.x@example.com>',
                        "550 5.7.1 not here\r\n"),
                    ('RCPT TO:<rcpt-551@example.com>',
                        "551 5.1.1 <rcpt-551@example.com> no such user\r\n"),
                    ('RCPT TO:<rcpt-451@example.com>',
                        "451 4.7.1 try again later\r\n"),
                    ('RCPT TO:<b@example.com>', "250 2.1.5 ok\r\n"),
                    ('DATA', None),
                    ('.', "250 2.0.0 queued as 7\r\n"),
                    ]:
                client.do(command)
                if reply:
                    self.assertEqual(client.reply, reply)

    def test_scripts(self):
        "Text as it is, numbers, functions, and a change back to good replies"
        with Client(self.server).ehlo() as client:
            self.server.script['rcpt'] = '554 5.7.1 Relay access denied'
            client.do('MAIL FROM:<a@example.com>', 'RCPT TO:<b@example.com>')
            self.assertEqual(
                client.reply, "554 5.7.1 Relay access denied\r\n")
            self.server.script['rcpt'] = 451
            self.assertEqual(client.do('RCPT TO:<b@example.com>'), 451)
            self.server.script['rcpt'] = lambda session: (
                '550' if session.address.startswith('c') else None)
            self.assertEqual(client.do('RCPT TO:<b@example.com>'), 250)
            self.assertEqual(client.do('RCPT TO:<c@example.com>'), 550)
            self.server.script = lambda session, step: (
                '452' if step == 'rcpt' and session.recipients else None)
            self.assertEqual(client.do('RCPT TO:<b@example.com>'), 452)
            self.server.script = {'rcpt': None}
            self.assertEqual(client.do('RCPT TO:<b@example.com>'), 250)

    def test_bad_script(self):
        self.server.script = {'ehlo': 'explode'}
        with Client(self.server) as client:
            self.assertEqual(client.do('EHLO client'), 'close')
        self.assertIn("no action: 'explode'", self.server.violations[0])

    def test_fail_after(self):
        self.server.fail_after = {2: {'mail': '421'}, 3: {'mail': None}}
        with Client(self.server).ehlo() as client:
            for _ in range(2):
                self.assertEqual(
                    client.mail('a@example.com', 'b@example.com'), 250)
            self.assertEqual(client.do('MAIL FROM:<a@example.com>'), 421)

    def test_refused_greeting(self):
        self.server.script['greeting'] = '554 no'
        with Client(self.server, 554) as client:
            self.assertEqual(client.do('EHLO client'), 503)
            self.assertEqual(client.do('QUIT'), 221)

    def test_ehlo_refused(self):
        self.server.script['ehlo'] = '502'
        with smtplib.SMTP('127.0.0.1', self.server.port) as client:
            self.assertEqual(
                client.sendmail('a@example.com', ['b@example.com'], b'Hi'),
                {})
        self.assertEqual(self.server.received[0].mail_options, ())
        self.assertEqual(self.server.violations, [])


class ParseTestCase(unittest.TestCase):

    def test_parse(self):
        for name, expected in {
                '550': Action(550),
                '550x3': Action(550, times=3),
                '550.7': Action(550),
                '550-5.1.1': Action(550, text='5.1.1'),
                '550-5.1.1.7': Action(550, text='5.1.1'),
                '550-no-such-user': Action(550, text='no such user'),
                '550-5.1.1-no-such-user.x.y': Action(
                    550, text='5.1.1 no such user'),
                '550x1-5.1.1-no-close': Action(
                    550, times=1, text='5.1.1 no', flag='close'),
                '250-reset': Action(250, flag='reset'),
                'hang': Action(fault='hang'),
                'multi-endless': Action(fault='multi-endless'),
                'closex2-taken': Action(fault='close', times=2, flag='taken'),
                '554 5.7.1 As. it-is': Action(554, text='5.7.1 As. it-is'),
                '451x2 later': Action(451, times=2, text='later'),
                '': None,
                'closed': None,
                '55': None,
                '650': None,
                'team': None,
                }.items():
            with self.subTest(name=name):
                self.assertEqual(Action.parse(name), expected)


class SMTPServerTestCase(unittest.TestCase):

    def serve(self, **options):
        server = Server(**options).start()
        self.addCleanup(server.stop)
        return server

    def connect(self, server, **kwargs):
        client = Client(server, **kwargs)
        self.addCleanup(client.sock.close)
        return client

    def extensions(self, client):
        client.do('EHLO client')
        return {line[4:] for line in client.reply.splitlines()[1:]}

    def test_mail(self):
        server = self.serve()
        data = b'Subject: x\r\nMessage-ID:\r\n <1@example.com> \r\n\r\n' \
            b'.\r\n..\r\n.x\r\n\0 \xe9\r\n'
        with smtplib.SMTP('127.0.0.1', server.port) as client:
            refused = client.sendmail(
                'a@example.com',
                ['b@example.com', 'rcpt-550@example.com', 'c@example.com'],
                data, ['BODY=8BITMIME', 'RET=HDRS'], ['NOTIFY=NEVER'])
        self.assertEqual(refused, {
                'rcpt-550@example.com': (
                    550, b'5.1.1 <rcpt-550@example.com> no such user')})
        mail, = server.wait_for(1)
        self.assertEqual(mail, Mail(
                'a@example.com', ('b@example.com', 'c@example.com'), data,
                (f'size={len(data)}', 'BODY=8BITMIME', 'RET=HDRS'),
                dict.fromkeys(
                    ['b@example.com', 'c@example.com'], ('NOTIFY=NEVER',)),
                1, mail.time))
        self.assertEqual(mail.message_id, '<1@example.com>')
        self.assertLess(abs(time.monotonic() - mail.time), 5)
        self.assertEqual(
            [command.split()[0] for _, command in server.commands],
            ['ehlo', 'mail', 'rcpt', 'rcpt', 'rcpt', 'data', 'QUIT'])
        self.assertEqual(server.violations, [])

    def test_null_sender_and_smtputf8(self):
        server = self.serve()
        with smtplib.SMTP('127.0.0.1', server.port) as client:
            client.sendmail('', ['b@example.com'], b'x\r\n')
            client.sendmail(
                'é@example.com', ['ü@example.com', '"a b>c"@example.com'],
                b'x\r\n', ['SMTPUTF8'])
        self.assertEqual(
            [(m.from_addr, m.to_addrs) for m in server.received],
            [('', ('b@example.com',)),
                ('é@example.com', ('ü@example.com', '"a b>c"@example.com'))])
        self.assertEqual(server.violations, [])

    def test_sessions(self):
        server = self.serve()
        clients = [self.connect(server) for _ in range(3)]
        self.assertEqual(
            (server.sessions, server.open_sessions, server.max_open),
            (3, 3, 3))
        for client in clients[:2]:
            self.assertEqual(client.do('QUIT'), 221)
        server.wait_until(lambda: server.open_sessions == 1)
        clients[2].sock.close()
        server.wait_until(lambda: server.open_sessions == 0)
        self.connect(server)
        self.assertEqual((server.sessions, server.max_open), (4, 3))

    def test_stop_and_start(self):
        server = self.serve()
        port, uri = server.port, server.uri
        self.assertEqual(uri, f'smtp://127.0.0.1:{port}')
        client = self.connect(server).ehlo()
        client.mail('a@example.com', 'b@example.com')
        hanging = self.connect(server).ehlo()
        server.script['noop'] = 'hang'
        hanging.send('NOOP')
        server.wait_until(lambda: server.commands[-1] == (2, 'NOOP'))
        server.stop()
        self.assertIn(client.outcome(), {'close', 'reset'})
        self.assertIn(hanging.outcome(), {'close', 'reset'})
        with self.assertRaises(ConnectionRefusedError):
            Client(server)
        server.stop()  # to stop twice does no harm
        for _ in range(3):
            server.start()
            self.assertEqual(server.port, port)
            with Client(server).ehlo() as client:
                client.mail('a@example.com', 'b@example.com')
            server.stop()
        self.assertEqual(server.count, 4)

    def test_stop_with_fork(self):
        "A child that has inherited the port does not keep it open"
        server = self.serve()
        if not (child := os.fork()):
            signal.pause()
        try:
            server.stop()
            with self.assertRaises(ConnectionRefusedError):
                Client(server)
            server.start()
            Client(server).sock.close()
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    def test_wait(self):
        server = self.serve()
        with self.assertRaisesRegex(TimeoutError, "no 1 mails in 0.05 s"):
            server.wait_for(1, timeout=.05)

    def test_unknown_option(self):
        with self.assertRaises(TypeError):
            Server(pipelinig=False)

    def test_context_manager(self):
        with Server() as server:
            Client(server).sock.close()
        with self.assertRaises(ConnectionRefusedError):
            Client(server)

    def test_extensions(self):
        everything = {
            'PIPELINING', 'ENHANCEDSTATUSCODES', '8BITMIME', 'SMTPUTF8',
            'DSN', 'SIZE 0'}
        self.assertEqual(
            self.extensions(self.connect(self.serve())), everything)
        for option, keyword in [
                ('pipelining', 'PIPELINING'), ('eightbitmime', '8BITMIME'),
                ('enhanced', 'ENHANCEDSTATUSCODES'), ('dsn', 'DSN'),
                ('smtputf8', 'SMTPUTF8')]:
            server = self.serve(**{option: False})
            self.assertEqual(
                self.extensions(self.connect(server)), everything - {keyword})
        self.assertEqual(
            self.extensions(self.connect(self.serve(size=None))),
            everything - {'SIZE 0'})

    def test_parameters_not_offered(self):
        server = self.serve(
            size=None, eightbitmime=False, smtputf8=False, dsn=False)
        client = self.connect(server).ehlo()
        for option in ['SIZE=1', 'BODY=8BITMIME', 'SMTPUTF8', 'RET=FULL']:
            self.assertEqual(
                client.do(f'MAIL FROM:<a@example.com> {option}'), 555)
        client.do('MAIL FROM:<a@example.com>')
        self.assertEqual(
            client.do('RCPT TO:<b@example.com> NOTIFY=NEVER'), 555)
        self.assertEqual(len(server.violations), 5)

    def test_not_enhanced(self):
        client = self.connect(self.serve(enhanced=False)).ehlo()
        client.do('MAIL FROM:<a@example.com>')
        self.assertEqual(client.reply, '250 ok\r\n')
        client.do('RCPT TO:<rcpt-550@example.com>')
        self.assertEqual(
            client.reply, '550 <rcpt-550@example.com> no such user\r\n')

    def test_size(self):
        server = self.serve(size=100)
        client = self.connect(server)
        self.assertIn('SIZE 100', self.extensions(client))
        self.assertEqual(
            client.do('MAIL FROM:<a@example.com> SIZE=101'), 552)
        for size, expected in [(98, 250), (99, 552)]:
            self.assertEqual(
                client.mail('a@example.com', 'b@example.com', 'x' * size),
                expected)
        self.assertEqual([len(m.data) for m in server.received], [100])
        self.assertEqual(server.violations, [])

    def test_limits(self):
        server = self.serve(max_recipients=2, max_messages_per_session=1)
        client = self.connect(server).ehlo()
        client.do('MAIL FROM:<a@example.com>')
        self.assertEqual(
            [client.do(f'RCPT TO:<{i}@example.com>') for i in range(3)],
            [250, 250, 452])
        self.assertEqual(client.reply, '452 4.5.3 too many recipients\r\n')
        client.do('DATA', '.')
        self.assertEqual(client.do('MAIL FROM:<a@example.com>'), 421)
        self.assertEqual(client.outcome(), 'close')
        self.assertEqual(server.received[0].to_addrs, (
                '0@example.com', '1@example.com'))

    def test_idle(self):
        client = self.connect(self.serve(idle_timeout=.05)).ehlo()
        self.assertEqual([client.outcome(), client.outcome()], [421, 'close'])

    def test_delay(self):
        server = self.serve(delay={'dot': .1})
        client = self.connect(server).ehlo()
        start = time.monotonic()
        client.mail('a@example.com', 'b@example.com')
        self.assertGreaterEqual(time.monotonic() - start, .1)
        server.delay = .01
        start = time.monotonic()
        client.mail('a@example.com', 'b@example.com')
        self.assertGreaterEqual(time.monotonic() - start, .04)

    def test_auth(self):
        def b64(text):
            return base64.b64encode(text.encode()).decode()

        server = self.serve(auth=('me@example.com', 'pass:word'))
        self.assertEqual(
            server.uri,
            f'smtp://me%40example.com:pass%3Aword@127.0.0.1:{server.port}')
        client = self.connect(server)
        self.assertIn('AUTH PLAIN LOGIN', self.extensions(client))
        self.assertEqual(client.do('MAIL FROM:<a@example.com>'), 530)
        self.assertEqual(
            client.do(f'AUTH PLAIN {b64(chr(0) + "me" + chr(0) + "wrong")}'),
            535)
        self.assertEqual(client.do('AUTH CRAM-MD5'), 504)
        plain = b64('\0me@example.com\0pass:word')
        user, password = b64('me@example.com'), b64('pass:word')
        for lines in [
                [f'AUTH PLAIN {plain}'],
                ['AUTH PLAIN', plain],
                ['AUTH LOGIN', user, password],
                [f'AUTH LOGIN {user}', password]]:
            client = self.connect(server).ehlo()
            self.assertEqual(client.do(*lines), 235)
            self.assertEqual(
                client.mail('a@example.com', 'b@example.com'), 250)
        self.assertEqual(server.violations, [])
        client = self.connect(server).ehlo()
        self.assertEqual(client.do('AUTH PLAIN', '*'), 501)

    def test_pipelining(self):
        """After a refused MAIL everything gets 503; refused recipients change
        nothing
        """
        server = self.serve()
        client = self.connect(server).ehlo()
        for sender, recipients, expected in [
                ('a', ['b', 'rcpt-550', 'rcpt-452', 'c'],
                    [250, 250, 550, 452, 250, 354]),
                ('mail-451', ['b', 'rcpt-hang'], [451, 503, 503, 503]),
                ('a', ['rcpt-550', 'rcpt-451'], [250, 550, 451, 554])]:
            client.send(
                f'MAIL FROM:<{sender}@example.com>',
                *(f'RCPT TO:<{r}@example.com>' for r in recipients), 'DATA')
            self.assertEqual([client.outcome() for _ in expected], expected)
            if expected[-1] == 354:
                self.assertEqual(client.do('.'), 250)
        # The next transaction may follow the dot at once
        client.do('RSET')
        client.send(
            'MAIL FROM:<a@example.com>', 'RCPT TO:<b@example.com>', 'DATA')
        self.assertEqual([client.outcome() for _ in range(3)], [250, 250, 354])
        client.send('x', '.', 'MAIL FROM:<a@example.com>', 'RSET', 'QUIT')
        self.assertEqual(
            [client.outcome() for _ in range(4)], [250, 250, 250, 221])
        self.assertEqual(server.violations, [])

    def test_batch(self):
        "The replies to a group are one segment"
        client = self.connect(self.serve()).ehlo()
        client.send('MAIL FROM:<a@example.com>', 'RCPT TO:<b@example.com>')
        self.assertEqual(
            client.sock.recv(1000), b'250 2.1.0 ok\r\n250 2.1.5 ok\r\n')

    def test_lone_dot(self):
        for option, code in [(True, 250), (250, 250), (554, 554)]:
            server = self.serve(lone_dot=option)
            client = self.connect(server).ehlo()
            client.do('MAIL FROM:<a@example.com>')
            self.assertEqual(client.do('RCPT TO:<rcpt-550@example.com>'), 550)
            self.assertEqual(client.do('DATA'), 354)
            self.assertEqual(client.do('.'), code)
            self.assertEqual((server.lone_dots, server.count), (1, 0))
            self.assertEqual(
                client.mail('a@example.com', 'b@example.com'), 250)
            self.assertEqual(server.violations, [])
            client.do(
                'MAIL FROM:<a@example.com>', 'RCPT TO:<rcpt-550@example.com>',
                'DATA', 'Subject: For nobody\r\n.')
            self.assertIn("data for nobody", server.violations[0])

    def test_contradictory(self):
        group = [
            'MAIL FROM:<a@example.com>', 'RCPT TO:<b@example.com>', 'DATA']
        server = self.serve(drop_pipelined=True)
        client = self.connect(server).ehlo()
        client.send(*group)
        self.assertEqual(
            [client.outcome(), client.outcome(SILENCE)], [250, 'silence'])
        self.assertEqual(client.do('RSET', *group, '.'), 250)
        server = self.serve(garble_pipelined=True)
        client = self.connect(server).ehlo()
        client.send(*group)
        self.assertEqual(
            [client.outcome() for _ in group], [250, 'garbage', 'garbage'])
        self.assertEqual(client.do('RSET', *group, '.'), 250)
        self.assertEqual(server.violations, [])

    def test_violations(self):
        good = ['EHLO client']
        mail = good + ['MAIL FROM:<a@example.com>']
        data = mail + ['RCPT TO:<b@example.com>', 'DATA']
        for violation, lines, code in [
                ("MAIL before EHLO", ['MAIL FROM:<a@example.com>'], 503),
                ("not in a transaction",
                    good + ['RCPT TO:<b@example.com>'], 503),
                ("not in a transaction", good + ['DATA'], 503),
                ("not in a transaction", data + ['.', 'DATA'], 503),
                ("MAIL in a transaction",
                    mail + ['MAIL FROM:<a@example.com>'], 503),
                ("unknown command", ['HACK'], 500),
                ("bad syntax", good + ['MAIL FROM: <a@example.com>'], 501),
                ("bad syntax", mail + ['RCPT TO:b@example.com'], 501),
                ("bad SIZE", good + ['MAIL FROM:<a@example.com> SIZE=x'], 501),
                ("option not offered",
                    good + ['MAIL FROM:<a@example.com> X=1'], 555),
                ("option not offered",
                    ['HELO client', 'MAIL FROM:<a@example.com> SIZE=1'], 555),
                ("non-ASCII address without SMTPUTF8",
                    good + ['MAIL FROM:<é@example.com>'], 553),
                ("non-ASCII address without SMTPUTF8",
                    mail + ['RCPT TO:<é@example.com>'], 553),
                ("non-ASCII in a command", ['EHLO é'], 250),
                ("NUL or CR in a command", ['NOOP \0'], 250),
                ("NUL or CR in a command", ['NOOP \r.'], 250),
                ("bare LF", good + ['RSET\nNOOP'], 250),
                ("too long", ['NOOP ' + 'x' * 506], 250),
                ("too long",
                    mail + ['RCPT TO:<b@example.com> ORCPT=x;' + 'x' * 1010],
                    250),
                ("no STARTTLS now", good + ['STARTTLS'], 503),
                ("no AUTH now", good + ['AUTH PLAIN'], 503),
                ("8-bit data", data + [b'\xe9\r\n.'], 250),
                ("bare CR", data + ['a\rb\r\n.'], 250),
                ("bare LF in the data", data + ['a\nb\r\n.'], 550),
                ("leading dot", data + ['.a\r\n.'], 250),
                ("leading dot", data + ['x\r\n.a\r\n.'], 250),
                ("more data than SIZE",
                    good + ['MAIL FROM:<a@example.com> SIZE=10',
                        'RCPT TO:<b@example.com>', 'DATA',
                        'x' * 11 + '\r\n.'], 250),
                ]:
            with self.subTest(violation=violation, lines=lines[-1]):
                server = self.serve()
                client = self.connect(server)
                self.assertEqual(client.do(*lines), code)
                self.assertEqual(len(server.violations), 1)
                self.assertIn(violation, server.violations[0])

    def test_no_violations(self):
        server = self.serve(lone_dot=250)
        for lines in [
                ['NOOP ' + 'x' * 505],
                ['EHLO client', 'MAIL FROM:<a@example.com> ENVID=' + 'x' * 100,
                    'RCPT TO:<b@example.com> ORCPT=rfc822;' + 'x' * 493],
                ['HELO client', 'MAIL FROM:<a@example.com>',
                    'RCPT TO:<b@example.com>', 'DATA', b'\xe9\r\n.'],
                ['EHLO client', 'MAIL FROM:<> BODY=8BITMIME',
                    'RCPT TO:<b@example.com>', 'DATA', b'\xe9\0\r\n..\r\n.'],
                ]:
            self.connect(server).do(*lines)
        self.assertEqual(server.violations, [])

    def test_input_too_early(self):
        for pipelining, lines in [
                (False, ['MAIL FROM:<a@example.com>',
                    'RCPT TO:<b@example.com>']),
                (True, ['NOOP', 'NOOP']),
                (True, ['MAIL FROM:<a@example.com>',
                    'RCPT TO:<b@example.com>', 'DATA', '.']),
                (True, ['QUIT', 'NOOP'])]:
            server = self.serve(pipelining=pipelining)
            self.connect(server).ehlo().send(*lines)
            server.wait_until(lambda: server.violations)
        server = self.serve(delay={'greeting': .05})
        client = self.connect(server, greeting=None)
        client.send('EHLO client')
        self.assertEqual([client.outcome(), client.outcome()], [220, 250])
        self.assertIn('before the greeting', server.violations[0])
        # A late reply does not hide the mistake
        server = self.serve(pipelining=False, delay={'mail': .1})
        client = self.connect(server).ehlo()
        client.send('MAIL FROM:<a@example.com>')
        server.wait_until(lambda: len(server.commands) == 2)
        client.send('RCPT TO:<b@example.com>')
        self.assertEqual([client.outcome(), client.outcome()], [250, 250])
        self.assertEqual(len(server.violations), 1)

    def test_counters(self):
        server = self.serve(strict=False)
        client = self.connect(server).ehlo()
        client.mail('a@example.com', 'b@example.com', 'a\nb\nc')
        client.mail('a@example.com', 'b@example.com', 'x' * 998)
        client.mail('a@example.com', 'b@example.com', 'x' * 999 + '\r\nx')
        client.mail('a@example.com', 'b@example.com', 'a\rb\u00e9')
        self.assertEqual(
            (server.bare_lf, server.long_lines, server.bare_cr,
                server.eight_bit), (2, 1, 1, 1))
        self.assertEqual(server.count, 4)
        server.clear()
        self.assertEqual(
            (server.bare_lf, server.count, server.received, server.violations),
            (0, 0, [], []))

    def test_log(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, 'log')
            servers = [self.serve(log=path, keep=False) for _ in range(2)]
            for server in servers:
                client = self.connect(server).ehlo()
                self.assertEqual(
                    client.mail(
                        'a@example.com', 'b@example.com',
                        'message-id: <1@example.com>\r\n\r\nx'), 250)
                self.assertEqual(read_log(path)[-1], {
                        'time': read_log(path)[-1]['time'],
                        'message_id': '<1@example.com>',
                        'from': 'a@example.com', 'to': ['b@example.com'],
                        'size': 34, 'port': server.port, 'session': 1})
                self.assertEqual(server.wait_for(1), [])
                self.assertEqual((server.count, server.commands), (1, []))
            self.assertLess(abs(time.time() - read_log(path)[0]['time']), 10)
            self.assertEqual(len(read_log(path)), 2)

    def test_program(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, 'log')
            process = subprocess.Popen([
                    sys.executable, smtpd.__file__, '--log', path,
                    '--no-pipelining', '--delay', '0.002',
                    '--script', "{'rcpt': '450x1'}"],
                stdout=subprocess.PIPE, text=True)
            with process:
                try:
                    ready, port = process.stdout.readline().split()
                    self.assertEqual(ready, 'ready')
                    with smtplib.SMTP('127.0.0.1', int(port)) as client:
                        self.assertEqual(
                            list(client.sendmail(
                                    'a@example.com',
                                    ['b@example.com', 'c@example.com'],
                                    b'x\r\n')),
                            ['b@example.com'])
                        self.assertFalse(client.has_extn('pipelining'))
                finally:
                    process.terminate()
            with open(path) as log:
                self.assertEqual(
                    json.loads(log.readline())['to'], ['c@example.com'])

    def test_deadlock(self):
        "A client that writes without reading blocks here"
        server = self.serve(
            rcvbuf=2048, sndbuf=2048,
            replies={('rcpt', 250): '\n'.join(['2.1.5 ' + 'x' * 490] * 15)})
        address = '%03d' + 'x' * 200 + '@example.com'
        group = b'MAIL FROM:<a@example.com>\r\n' + b''.join(
            f'RCPT TO:<{address % i}>\r\n'.encode() for i in range(1000))
        naive = self.connect(server).ehlo()
        naive.sock.settimeout(.5)
        with self.assertRaises(TimeoutError):
            naive.sock.sendall(group)
        client = self.connect(server).ehlo()
        client.sock.setblocking(False)
        received = 0
        while received < 1001 or group:
            readable, writable, _ = select.select(
                [client.sock], [client.sock] if group else [], [], 5)
            self.assertTrue(readable or writable)
            if readable:
                client.input += client.sock.recv(65536)
                received += client.input.count(b'250 ')
                client.input = client.input[
                    client.input.rindex(b'\n') + 1:]
            if writable:
                group = group[client.sock.send(group):]
        client.sock.setblocking(True)
        self.assertEqual(client.do('DATA', '.'), 250)
        self.assertEqual(len(server.received[0].to_addrs), 1000)
        self.assertEqual(server.violations, [])

    def test_slow_read(self):
        server = self.serve(rcvbuf=2048, slow_read=.002)
        client = self.connect(server).ehlo()
        start = time.monotonic()
        client.mail('a@example.com', 'b@example.com', 'x' * 100_000)
        self.assertGreater(time.monotonic() - start, .05)
        self.assertEqual(len(server.received[0].data), 100_002)

    def test_large(self):
        server = self.serve()
        data = b'.x\r\n' + (b'x' * 76 + b'\r\n') * 100_000
        with smtplib.SMTP('127.0.0.1', server.port) as client:
            client.sendmail('a@example.com', ['b@example.com'], data)
        self.assertEqual(server.received[0].data, data)

    def test_many(self):
        "Many sessions at once"
        server = self.serve()
        clients = [self.connect(server).ehlo() for _ in range(50)]
        group = ['MAIL FROM:<a@example.com>', 'RCPT TO:<b@example.com>']
        for _ in range(20):
            for client in clients:
                client.send(*group, 'DATA')
            for client in clients:
                self.assertEqual(
                    [client.outcome() for _ in range(3)], [250, 250, 354])
                client.send('x', '.')
            for client in clients:
                self.assertEqual(client.outcome(), 250)
        self.assertEqual(len(server.wait_for(1000)), 1000)
        self.assertEqual(server.max_open, 50)
        self.assertEqual(server.violations, [])


class TLSTestCase(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.directory.cleanup)
        cls.certificates = make_certificates(cls.directory.name)
        cls.context = ssl.create_default_context(cafile=cls.certificates.ca)
        cls.context.verify_flags |= ssl.VERIFY_X509_STRICT

    def serve(self, certificate, **options):
        certfile, keyfile = certificate
        server = Server(certfile=certfile, keyfile=keyfile, **options)
        self.addCleanup(server.stop)
        return server.start()

    def connect(self, server, host='127.0.0.1'):
        if server.tls == 'smtps':
            client = smtplib.SMTP_SSL(host, server.port, context=self.context)
            self.addCleanup(client.close)
        else:
            client = smtplib.SMTP(host, server.port)
            self.addCleanup(client.close)
            client.starttls(context=self.context)
        return client

    def test_good(self):
        for tls, scheme in [('starttls', 'smtp+tls'), ('smtps', 'smtps')]:
            for host in ['127.0.0.1', 'localhost']:
                with self.subTest(tls=tls, host=host):
                    server = self.serve(
                        self.certificates.good, tls=tls, auth=('me', 'secret'),
                        extensions_after_tls={'pipelining': False})
                    self.assertEqual(
                        server.uri,
                        f'{scheme}://me:secret@127.0.0.1:{server.port}')
                    client = self.connect(server, host)
                    client.login('me', 'secret')
                    self.assertFalse(client.has_extn('pipelining'))
                    self.assertFalse(client.has_extn('starttls'))
                    data = b'x' * 300_000 + b'\r\n'
                    client.sendmail('a@example.com', ['b@example.com'], data)
                    client.quit()
                    self.assertEqual(server.received[0].data, data)
                    self.assertEqual(server.violations, [])

    def test_before_starttls(self):
        server = self.serve(
            self.certificates.good, tls='starttls', auth=('me', 'secret'))
        with smtplib.SMTP('127.0.0.1', server.port) as client:
            client.ehlo()
            self.assertTrue(client.has_extn('pipelining'))
            self.assertTrue(client.has_extn('starttls'))
            self.assertFalse(client.has_extn('auth'))

    def test_input_behind_starttls(self):
        server = self.serve(self.certificates.good, tls='starttls')
        with Client(server).ehlo() as client:
            client.send('STARTTLS', 'EHLO injected')
            self.assertEqual(client.outcome(), 220)
            with self.context.wrap_socket(
                    client.sock, server_hostname='localhost') as client.sock:
                self.assertEqual(client.do('NOOP'), 250)
        self.assertEqual(
            [line for _, line in server.commands],
            ['EHLO client', 'STARTTLS', 'NOOP'])
        self.assertIn("the last of a group", server.violations[0])

    def test_bad_certificates(self):
        for tls in ['starttls', 'smtps']:
            for name, message in [
                    ('wrong_name', "mismatch"), ('expired', "expired")]:
                with self.subTest(tls=tls, name=name):
                    server = self.serve(
                        getattr(self.certificates, name), tls=tls)
                    with self.assertRaisesRegex(
                            ssl.SSLCertVerificationError, message):
                        self.connect(server)
                    server.wait_until(lambda: server.open_sessions == 0)
                    self.assertEqual(server.violations, [])

    def test_unknown_ca(self):
        server = self.serve(self.certificates.good, tls='smtps')
        with self.assertRaises(ssl.SSLCertVerificationError):
            smtplib.SMTP_SSL(
                '127.0.0.1', server.port,
                context=ssl.create_default_context())

    def test_actions(self):
        for tls in ['starttls', 'smtps']:
            server = self.serve(
                self.certificates.good, tls=tls, endless=100_000,
                trickle=.001, split=.001)
            for action, expected in [
                    ('close', smtplib.SMTPServerDisconnected),
                    ('reset', smtplib.SMTPServerDisconnected),
                    ('421', smtplib.SMTPSenderRefused),
                    ('endless', smtplib.SMTPResponseException),
                    ('cut', smtplib.SMTPServerDisconnected),
                    ('garbage', smtplib.SMTPSenderRefused),
                    ('trickle', None),
                    ('split', None)]:
                client = self.connect(server)
                with self.subTest(tls=tls, action=action):
                    try:
                        client.sendmail(
                            f'mail-{action}@example.com', ['b@example.com'],
                            b'x\r\n')
                        outcome = None
                    except smtplib.SMTPException as exception:
                        outcome = type(exception)
                    self.assertEqual(outcome, expected)
                client.close()
            self.assertEqual(server.violations, [])

    def test_stop(self):
        for tls in ['starttls', 'smtps']:
            server = self.serve(self.certificates.good, tls=tls)
            client = self.connect(server)
            server.stop()
            with self.assertRaises(smtplib.SMTPServerDisconnected):
                client.noop()
            server.start()
            self.connect(server).quit()
