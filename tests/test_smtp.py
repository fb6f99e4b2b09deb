# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What becomes of a message, whatever its server does, without a database."""
import logging
import os
import shutil
import socket
import tempfile
import time
import unittest
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from unittest.mock import patch

from trytond.modules.email_queue import smtp
from trytond.modules.email_queue.replies import (
    LENGTH, LOGIN, MAILBOX, MESSAGE, QUOTA, RATE, RECIPIENT, RECIPIENTS,
    SERVER, SESSION, WORDS, Reply, gist, meaning, verdict)
from trytond.modules.email_queue.smtp import Client, Mail, Outcome, server_name

from .smtpd import Server, make_certificates

SENDER = 'shop@example.com'
DATA = b'Subject: Test\r\nMessage-ID: <1@example.com>\r\n\r\nHello\r\n'
# More than the buffers of both ends of a connection can hold
LARGE = DATA + b'0123456789abcdef\r\n' * 500000
SMALL_BUFFER = {'rcvbuf': 4096}
# No step takes longer than this, except in the rows about slow steps
PATIENT, IMPATIENT = 20, .5
SECRET = 'hunter2'


def address(name):
    return f'{name}@example.com'


def mail(names='a b c', data=DATA, sender=SENDER, **options):
    return Mail(sender, tuple(map(address, names.split())), data, **options)


def before(reply, number=None):
    "Let the server send bytes before its reply, in all sessions or in one"
    def script(session):
        if number in {None, session.number}:
            session.output += reply
    return script


# What becomes of a message to three recipients if the server gives this answer
# at this step. "it" is the recipient that gets this answer; "lost" means that
# all are deferred, because the same happened again in a second session.
STEPS = 'greeting', 'ehlo', 'mail', 'rcpt', 'data', 'dot'
ANSWERS = {
    # Without EHLO the server has no extensions, but it has HELO
    '250': (
        'lasting', 'accepted', 'accepted', 'accepted', 'lost', 'accepted'),
    '354': (
        'lasting', 'accepted', 'lost', 'lost', 'accepted', 'uncertain'),
    '451': (
        'lasting', 'accepted', 'trouble', 'deferred it', 'deferred',
        'deferred'),
    '550': (
        'lasting', 'accepted', 'refused', 'refused it', 'refused', 'refused'),
    '451-close': (
        'lasting', 'lasting', 'trouble', 'deferred it', 'deferred',
        'deferred'),
    '550-close': (
        'lasting', 'lasting', 'refused', 'refused it', 'refused', 'refused'),
    '421': (
        'lasting', 'lasting', 'trouble', 'trouble', 'trouble', 'trouble'),
    '432': (
        'lasting', 'accepted', 'trouble', 'trouble for it', 'trouble',
        'trouble'),
    '454': (
        'lasting', 'accepted', 'trouble', 'trouble for it', 'trouble',
        'trouble'),
    '530': (
        'lasting', 'accepted', 'lasting', 'lasting for it', 'lasting',
        'lasting'),
    '451-4.7.500-server-busy': (
        'lasting', 'accepted', 'trouble', 'trouble for it', 'trouble',
        'trouble'),
    '550-5.4.5-daily-quota': (
        'lasting', 'accepted', 'lasting', 'lasting for it', 'lasting',
        'lasting'),
    'close': ('lasting', 'lasting', 'lost', 'lost', 'lost', 'uncertain'),
    'reset': ('lasting', 'lasting', 'lost', 'lost', 'lost', 'uncertain'),
    'hang': ('lasting', 'lasting', 'lost', 'lost', 'lost', 'uncertain'),
    'trickle': ('lasting', 'lasting', 'lost', 'lost', 'lost', 'uncertain'),
    'garbage': ('lasting', 'accepted', 'lost', 'lost', 'lost', 'uncertain'),
    'endless': ('lasting', 'lasting', 'lost', 'lost', 'lost', 'uncertain'),
    'multi-endless': (
        'lasting', 'lasting', 'lost', 'lost', 'lost', 'uncertain'),
    'cut': ('lasting', 'lasting', 'lost', 'lost', 'lost', 'uncertain'),
    'split': (
        'accepted', 'accepted', 'accepted', 'accepted', 'accepted',
        'accepted'),
    }
WAITS = {'hang', 'trickle'}


@dataclass
class Case:
    """What a server does, and what has to become of a message.

    The names are the local parts of addresses.
    """
    name: str
    to: str = 'a b c'
    accepted: str = ''
    refused: str = ''
    deferred: str = ''
    uncertain: bool = False
    trouble: str = ''  # or "trouble" or "lasting"
    words: str = ''  # of the server, somewhere in the outcome
    sessions: int = 1
    taken: str = ''  # what the server has delivered, but has not said so
    data: bytes = DATA
    sender: str = SENDER
    timeout: float = PATIENT
    options: dict = field(default_factory=dict)  # of the server
    client: dict = field(default_factory=dict)  # arguments
    pipelining: tuple = (False, True)

    def run(self, pipelining):
        "Return the outcome, and the server as it is when everything is over"
        options = {'pipelining': pipelining, **self.options}
        with Server(**options) as server:
            client = Client(server.uri, **{
                    'timeout': self.timeout,
                    'data_timeout': self.timeout,
                    **self.client})
            outcome = client.deliver(
                mail(self.to, data=self.data, sender=self.sender))
            client.close()
        return outcome, server


def matrix():
    "The cases of the table above"
    for answer, row in ANSWERS.items():
        for step, expected in zip(STEPS, row, strict=True):
            if step != 'rcpt':
                yield matrix_case(
                    answer, step, expected, options={'script': {step: answer}})
                continue
            for position, place in enumerate(['first', 'middle', 'last']):
                names = ['a', 'b', 'c']
                it = names[position] = f'rcpt-{answer}'
                yield matrix_case(
                    answer, step, expected, to=' '.join(names), it=it,
                    name=f'{answer} at {place} rcpt')


def matrix_case(answer, step, expected, to='a b c', it='', name='', **kwargs):
    case = Case(name or f'{answer} at {step}', to, **kwargs)
    others = ' '.join(n for n in to.split() if n != it)
    what, *which = expected.split()
    if what == 'lost':
        case.deferred, case.sessions = to, 2
    elif what == 'uncertain':
        case.uncertain = True
        # The words came too late for a client that does not wait for all
        # replies
        case.taken = to if answer == 'trickle' else ''
    elif what in {'trouble', 'lasting'}:
        case.trouble = what
        case.accepted = others if which else ''
    elif which:
        setattr(case, what, it)
        case.accepted = others
        case.sessions = 1 + answer.endswith('-close')
    else:
        setattr(case, what, to)
    if answer in WAITS:
        case.timeout = IMPATIENT
    if answer.endswith('endless') and not case.trouble:
        case.words = "an answer without end"
    return case


CASES = [
    Case("nothing special", accepted='a b c'),
    Case(
        "trickling, but fast enough", accepted='a b c',
        options={
            'trickle': .001,
            'script': dict.fromkeys(
                ['greeting', 'ehlo', 'mail', 'rcpt', 'data', 'dot'],
                'trickle'),
            }),
    Case(
        "all recipients in another way",
        to='a rcpt-550-5.1.1 rcpt-451-4.2.1 b rcpt-552-5.2.2',
        accepted='a b', refused='rcpt-550-5.1.1 rcpt-552-5.2.2',
        deferred='rcpt-451-4.2.1'),
    Case(
        "no recipient accepted",
        to='rcpt-550 rcpt-451', refused='rcpt-550', deferred='rcpt-451'),
    Case(
        "lost once at MAIL", accepted='a b c', sessions=2,
        options={'script': {'mail': 'closex1'}}),
    Case(
        "lost once at RCPT", to='a rcpt-resetx1 c',
        accepted='a rcpt-resetx1 c', sessions=2),
    Case(
        "lost once at DATA", accepted='a b c', sessions=2,
        options={'script': {'data': 'cutx1'}}),
    Case(
        "lost once in each of two transactions",
        to='rcpt-closex1.1 a rcpt-closex1.2 b',
        accepted='rcpt-closex1.1 a rcpt-closex1.2 b', sessions=3,
        client={'max_recipients': 2}),
    Case(
        "silent once at DATA", accepted='a b c', sessions=2,
        timeout=IMPATIENT, options={'script': {'data': 'hangx1'}}),

    # The first bad reply decides
    Case(
        "MAIL 451, 503 to all that follows", trouble='trouble', words='451',
        options={'script': {'mail': '451 4.3.0 later'}}),
    Case(
        "MAIL 550, 503 to all that follows", refused='a b c',
        words='550 5.7.1 not you',
        options={'script': {'mail': '550 5.7.1 not you'}}),
    Case(
        "DATA without recipients 503", to='rcpt-550', refused='rcpt-550',
        words='550 5.1.1', options={'no_recipients': 503}),
    Case(
        "DATA without recipients 421", to='rcpt-550', refused='rcpt-550',
        words='550 5.1.1', options={'no_recipients': 421}),

    # 354 although no recipient was accepted: a lone dot, whose answer is
    # ignored
    *(Case(
            f"{code} to a lone dot", to='rcpt-550 rcpt-551',
            refused='rcpt-550 rcpt-551', words='5.1.1 ',
            options={'lone_dot': code})
        for code in [250, 451, 554, 421, 354]),
    Case(
        "354 and 250 though MAIL was refused", refused='a b c',
        words='550 5.7.1 not you',
        options={'lone_dot': 250, 'script': {'mail': '550 5.7.1 not you'}}),
    Case(
        "354 and 250 though all is to come later", to='rcpt-450 rcpt-451',
        deferred='rcpt-450 rcpt-451', options={'lone_dot': 250}),
    *(Case(
            f"{fault} after a lone dot", to='rcpt-550', refused='rcpt-550',
            timeout=IMPATIENT,
            options={'lone_dot': 250, 'script': {'dot': fault}})
        for fault in ['close', 'reset', 'hang', 'garbage']),

    # In the data
    *(Case(
            f"{fault} within a large body", deferred='a b c', sessions=2,
            data=LARGE, timeout=timeout,
            options={**SMALL_BUFFER, 'script': {'body': fault}})
        for fault, timeout in [
            ('close', PATIENT), ('reset', PATIENT), ('hang', IMPATIENT)]),
    *(Case(
            f"{fault} within a body in one piece", uncertain=True,
            timeout=timeout, options={'script': {'body': fault}})
        for fault, timeout in [
            ('close', PATIENT), ('reset', PATIENT), ('hang', IMPATIENT)]),
    *(Case(
            f"552 and reset within a body of {len(data)}", refused='a b c',
            words='552 5.3.4', data=data,
            options={**SMALL_BUFFER, 'script': {'body': '552'}})
        for data in [DATA, LARGE]),
    *(Case(
            f"452 and reset within a body of {len(data)}", deferred='a b c',
            words='452 4.2.2', data=data,
            options={**SMALL_BUFFER, 'script': {'body': '452 4.2.2 full'}})
        for data in [DATA, LARGE]),
    *(Case(
            f"421 and reset within a body of {len(data)}", trouble='trouble',
            words='421', data=data,
            options={**SMALL_BUFFER, 'script': {'body': '421'}})
        for data in [DATA, LARGE]),
    Case(
        "250 and reset within a large body", deferred='a b c', sessions=2,
        data=LARGE, options={**SMALL_BUFFER, 'script': {'body': '250'}}),

    # After the dot
    *(Case(
            f"taken, but {fault} for an answer", uncertain=True, taken='a b c',
            timeout=IMPATIENT if fault == 'hang' else PATIENT,
            options={'script': {'dot': f'{fault}-taken'}})
        for fault in [
            'close', 'reset', 'hang', 'cut', 'garbage', 'endless',
            'multi-endless', '354']),
    Case(
        "taken and then closed", accepted='a b c',
        options={'script': {'dot': '250-close'}}),
    Case(
        "taken and then reset", accepted='a b c',
        options={'script': {'dot': '250-reset'}}),
    Case(
        "two codes in one answer to the dot", uncertain=True, taken='a b c',
        options={'script': {'dot': before(b'550-5.7.1 not this one\r\n')}}),
    Case(
        "an answer before the message", deferred='a b c', sessions=2,
        options={
            'script': {'data': before(b'354 go\r\n250 2.0.0 ok\r\n')}}),

    # Replies that answer no command
    Case(
        "one too many at MAIL", deferred='a b c', sessions=2,
        options={'script': {'mail': before(b'250 ok\r\n')}}),
    Case(
        "one too many at RCPT", deferred='a b c', sessions=2,
        options={'script': {'rcpt': before(b'250 ok\r\n')}}),

    # Too many recipients
    Case(
        "452 to later RCPT", to=' '.join(f'r{i}' for i in range(100)),
        accepted=' '.join(f'r{i}' for i in range(100)),
        options={'max_recipients': 7}),
    Case(
        "250, 550 and 452 among 100",
        to=' '.join(
            f'rcpt-550.{i}' if i % 7 == 3 else f'r{i}' for i in range(100)),
        accepted=' '.join(f'r{i}' for i in range(100) if i % 7 != 3),
        refused=' '.join(f'rcpt-550.{i}' for i in range(100) if i % 7 == 3),
        options={'max_recipients': 20}),
    *(Case(
            f"{text}: too many", to=' '.join(f'r{i}' for i in range(10)),
            accepted=' '.join(f'r{i}' for i in range(10)),
            options={'max_recipients': 4, 'replies': {('rcpt', 452): text}})
        for text in ['too many recipients', 'enough', '4.5.3 enough']),
    *(Case(
            f"552 {text}: too many",
            to=f'a b rcpt-552x1-{text}', accepted=f'a b rcpt-552x1-{text}')
        for text in ['5.5.3', 'too-many-recipients']),
    Case(
        "452 of a full mailbox", to='a rcpt-452x1-4.2.2-full c',
        accepted='a c', deferred='rcpt-452x1-4.2.2-full'),
    Case(
        "452 of a full system", to='a rcpt-452-4.3.1-full c',
        accepted='a c', trouble='trouble', words='452 4.3.1'),
    Case(
        "two kinds of trouble", to='rcpt-454-first rcpt-530-second c',
        accepted='c', trouble='trouble', words='454 first'),
    Case(
        "452 to the first and only one", to='rcpt-452',
        deferred='rcpt-452'),
    Case(
        "552 of a full mailbox", to='a rcpt-552-5.2.2-full c',
        accepted='a c', refused='rcpt-552-5.2.2-full'),

    # Extensions
    Case("just of the size", accepted='a b c', options={'size': len(DATA)}),
    Case(
        "too large for SIZE", refused='a b c', words='SIZE',
        options={'size': len(DATA) - 1}),
    Case("no limit", accepted='a b c', options={'size': 0}),
    *(Case(
            f"SIZE {value!r}", accepted='a b c',
            options={'script': {'ehlo': f'250 localhost\nSIZE{value}'}})
        for value in ['', ' 0', ' many', ' -1']),
    Case(
        "too large without SIZE", refused='a b c', words='552 5.3.4',
        options={'size': None, 'script': {'dot': '552 5.3.4 too big'}}),
    Case(
        "SMTPUTF8 not offered for some", to='a ü b ß', accepted='a b',
        refused='ü ß', words='SMTPUTF8', options={'smtputf8': False}),
    Case(
        "SMTPUTF8 not offered for any", to='ü ß', refused='ü ß',
        words='SMTPUTF8', options={'smtputf8': False}),
    Case(
        "SMTPUTF8 not offered for the sender", refused='a b c',
        words='SMTPUTF8', sender='bücher@example.com',
        options={'smtputf8': False}),
    Case("SMTPUTF8 offered", to='a ü b ß', accepted='a ü b ß'),
    Case(
        "SMTPUTF8 offered to the sender", accepted='a b c',
        sender='bücher@example.com'),
    Case("the null sender", accepted='a b c', sender='<>'),
    Case(
        "HELO only", accepted='a b c',
        options={'script': {'ehlo': '502 5.5.1 what?'}}),
    Case(
        "neither EHLO nor HELO", trouble='lasting', words='502 5.5.1 what?',
        options={
            'script': dict.fromkeys(['ehlo', 'helo'], '502 5.5.1 what?')}),

    # PIPELINING is offered, but does not work
    *(Case(
            f"{name} with all that is pipelined", accepted='a b c', sessions=2,
            timeout=IMPATIENT, options={name: True}, pipelining=(True,))
        for name in ['drop_pipelined', 'garble_pipelined']),
    Case(
        "reset by all that is pipelined", accepted='a b c', sessions=2,
        pipelining=(True,), options={
            'script': {'mail': lambda s: 'reset' if s.input else None}}),

    # The reply to RSET says nothing about the message
    *(Case(
            f"{fault} at RSET", to='rcpt-550', refused='rcpt-550',
            timeout=IMPATIENT, options={'script': {'rset': fault}})
        for fault in [
            'close', 'reset', 'hang', 'garbage', '250', '421', '451', '550']),
    Case(
        "hang at QUIT", accepted='a b c',
        options={'script': {'quit': 'hang'}}),
    *(Case(
            f"{fault} at QUIT", accepted='a b c',
            options={'script': {'quit': fault}})
        for fault in ['close', 'reset', 'garbage', '421', '451', '550']),
    ]


class TableTestCase(unittest.TestCase):
    "Test every row of the tables, step by step and pipelined"

    def test_table(self):
        jobs = [
            (case, pipelining)
            for case in [*matrix(), *CASES]
            for pipelining in case.pipelining]
        with patch.object(smtp, 'QUIT_TIMEOUT', IMPATIENT), \
                ThreadPoolExecutor(16) as pool:
            runs = [pool.submit(case.run, p) for case, p in jobs]
            for (case, pipelining), run in zip(jobs, runs):
                with self.subTest(case.name, pipelining=pipelining):
                    self.check(case, *run.result())

    def check(self, case, outcome, server):
        self.assertEqual(
            {
                'accepted': sorted(outcome.accepted),
                'refused': sorted(outcome.refused),
                'deferred': sorted(outcome.deferred),
                'uncertain': bool(outcome.unanswered),
                'trouble': trouble(outcome),
                'arrived': arrived(server),
                'sessions': server.sessions,
                'violations': server.violations,
                }, {
                'accepted': addresses(case.accepted),
                'refused': addresses(case.refused),
                'deferred': addresses(case.deferred),
                'uncertain': case.uncertain,
                'trouble': case.trouble,
                'arrived': Counter(
                    addresses(case.accepted) + addresses(case.taken)),
                'sessions': case.sessions,
                'violations': [],
                },
            outcome)
        for received in server.received:
            self.assertEqual(received.data, case.data)
        for words in said(outcome):
            self.assertTrue(words.isprintable(), words)
            self.assertIn(case.words, words)
        self.assertEqual(
            outcome.remaining(mail(case.to).to_addrs),
            [] if not (outcome.unanswered or outcome.trouble) else [
                a for a in map(address, case.to.split())
                if a not in outcome.accepted])


def addresses(names):
    return sorted(map(address, names.split()))


def arrived(server):
    return Counter(a for m in server.received for a in m.to_addrs)


def trouble(outcome):
    if outcome.trouble:
        return 'lasting' if outcome.trouble.lasting else 'trouble'
    return ''


def said(outcome):
    "Return all texts of an outcome"
    words = [*outcome.refused.values(), *outcome.deferred.values()]
    if outcome.unanswered:
        words.append(outcome.unanswered)
    if outcome.trouble:
        words.append(outcome.trouble.words)
    return words


class ServerTestCase(unittest.TestCase):
    "Tests of messages that go one after another"
    pipelining = True

    def setUp(self):
        super().setUp()
        patcher = patch.object(smtp, 'QUIT_TIMEOUT', IMPATIENT)
        patcher.start()
        self.addCleanup(patcher.stop)

    def serve(self, **options):
        server = Server(**{'pipelining': self.pipelining, **options})
        self.addCleanup(self.check, server)
        self.addCleanup(server.stop)
        return server.start()

    def check(self, server):
        self.assertEqual(server.violations, [])

    def client(self, uri, timeout=PATIENT, **arguments):
        client = Client(
            uri, timeout=timeout, **{'data_timeout': timeout, **arguments})
        self.addCleanup(client.close)
        return client

    def deliver(self, server, *args, **kwargs):
        client = self.client(server.uri)
        outcome = client.deliver(mail(*args, **kwargs))
        client.close()
        return outcome

    def commands(self, server, verb):
        return [c for _, c in server.commands if c.startswith(verb)]

    def assertAccepted(self, outcome, names='a b c'):
        self.assertEqual(
            outcome, Outcome(accepted=list(map(address, names.split()))))

    def assertTrouble(self, outcome, words, lasting=True):
        self.assertEqual(
            (outcome.accepted, outcome.refused, outcome.deferred,
                outcome.unanswered),
            ([], {}, {}, ''))
        self.assertEqual(outcome.trouble.lasting, lasting)
        self.assertIn(words, outcome.trouble.words)

    def assertArrived(self, server, count, names='a b c'):
        self.assertEqual(
            arrived(server), dict.fromkeys(addresses(names), count))


class SessionTestCase(ServerTestCase):
    "Test messages one after another"

    def test_one_session(self):
        server = self.serve()
        client = self.client(server.uri)
        for _ in range(5):
            self.assertAccepted(client.deliver(mail()))
        self.assertEqual(server.sessions, 1)
        client.close()
        self.assertArrived(server, 5)
        self.assertEqual(server.commands[-1], (1, 'QUIT'))
        verbs = {c.partition(' ')[0] for _, c in server.commands}
        self.assertEqual(verbs, {'ehlo', 'MAIL', 'RCPT', 'DATA', 'QUIT'})

    def test_messages_of_a_session(self):
        server = self.serve()
        client = self.client(server.uri, max_messages=3)
        for _ in range(7):
            self.assertAccepted(client.deliver(mail()))
        client.close()
        self.assertEqual(
            Counter(m.session for m in server.received),
            {1: 3, 2: 3, 3: 1})
        self.assertEqual(
            [c for _, c in server.commands].count('QUIT'), 3)

    def test_messages_that_the_server_allows(self):
        "Test that 421 to a further message is no trouble"
        server = self.serve(max_messages_per_session=3)
        client = self.client(server.uri)
        for _ in range(7):
            self.assertAccepted(client.deliver(mail()))
        self.assertEqual(
            Counter(m.session for m in server.received),
            {1: 3, 2: 3, 3: 1})

    def test_one_message_a_session_and_many_transactions(self):
        server = self.serve(max_messages_per_session=1)
        client = self.client(server.uri, max_recipients=2)
        self.assertAccepted(client.deliver(mail('a b c d e f')), 'a b c d e f')
        self.assertEqual(server.sessions, 3)
        self.assertArrived(server, 1, 'a b c d e f')

    def test_no_message_allowed(self):
        server = self.serve(max_messages_per_session=0)
        client = self.client(server.uri)
        self.assertTrouble(client.deliver(mail()), '421', lasting=False)
        self.assertEqual(server.sessions, 1)

    def test_idle_session(self):
        "Test that 421 and a connection closed for being idle count nothing"
        server = self.serve(idle_timeout=.1)
        client = self.client(server.uri)
        for number in [1, 2, 3]:
            self.assertAccepted(client.deliver(mail()))
            self.assertEqual(server.sessions, number)
            server.wait_until(lambda: not server.open_sessions)
        self.assertArrived(server, 3)

    def test_idle_session_and_a_loss(self):
        server = self.serve(idle_timeout=.1)
        client = self.client(server.uri)
        self.assertAccepted(client.deliver(mail()))
        server.wait_until(lambda: not server.open_sessions)
        self.assertAccepted(
            client.deliver(mail('data-closex1')), 'data-closex1')
        self.assertEqual(server.sessions, 3)

    def test_restarted_server(self):
        server = self.serve()
        client = self.client(server.uri)
        self.assertAccepted(client.deliver(mail()))
        server.stop()
        server.start()
        self.assertAccepted(client.deliver(mail()))
        self.assertArrived(server, 2)

    def test_stopped_server(self):
        server = self.serve()
        client = self.client(server.uri)
        self.assertAccepted(client.deliver(mail()))
        server.stop()
        self.assertTrouble(client.deliver(mail()), 'refused')
        server.start()
        self.assertAccepted(client.deliver(mail()))

    def test_next_message(self):
        "Test that what happens to a message has no effect on the next message"
        for to in [
                'rcpt-550', 'rcpt-451', 'rcpt-421', 'rcpt-close',
                'data-550', 'data-451', 'data-421', 'data-close',
                'dot-550', 'dot-451', 'dot-421', 'dot-close', 'dot-garbage',
                'body-552', 'body-close', 'rcpt-550-close', 'dot-550-close']:
            server = self.serve(lone_dot=250)
            with self.subTest(to):
                client = self.client(server.uri)
                self.assertAccepted(client.deliver(mail()))
                self.assertNotEqual(
                    client.deliver(mail(to)).accepted, addresses(to))
                self.assertAccepted(client.deliver(mail()))
                self.assertArrived(server, 2)

    def test_refused_session_is_used_on(self):
        server = self.serve()
        client = self.client(server.uri)
        for name in ['rcpt-550', 'data-550', 'dot-550']:
            self.assertEqual(
                list(client.deliver(mail(name)).refused),
                addresses(name))
        self.assertAccepted(client.deliver(mail()))
        self.assertEqual(server.sessions, 1)

    def test_body_taken_for_commands(self):
        """Test a server that refuses a message before the message ends.

        It answers the rest line by line, so the next message would be refused
        by the words for another command.
        """
        def script(session, step):
            if step == 'dot' and session.number == 1:
                refused.append(session)
                return '552 5.3.4 too big'
            if session in refused:
                session.output += b'500 5.5.2 unknown command\r\n' * 5

        refused = []
        server = self.serve(script=script)
        client = self.client(server.uri)
        outcome = client.deliver(mail())
        self.assertEqual(
            set(outcome.refused.values()), {'552 5.3.4 too big'})
        self.assertAccepted(client.deliver(mail()))
        self.assertEqual(server.sessions, 2)
        self.assertArrived(server, 1)

    def test_body_taken_for_commands_at_once(self):
        def script(session):
            if session.number == 1:
                session.output += b'552 5.3.4 too big\r\n' + (
                    b'500 5.5.2 unknown command\r\n' * 5)
                return '500 5.5.2 unknown command'

        server = self.serve(script={'dot': script})
        client = self.client(server.uri)
        outcome = client.deliver(mail())
        self.assertEqual(
            set(outcome.refused.values()), {'552 5.3.4 too big'})
        self.assertAccepted(client.deliver(mail()))
        self.assertEqual(server.sessions, 2)
        self.assertArrived(server, 1)

    def test_more_answers_than_one(self):
        "Test that what follows an answer is not taken for the next answer"
        for stale in [b'550 5.7.1 no\r\n', b'421 4.3.2 idle\r\n', b'250\r\n']:
            with self.subTest(stale):
                server = self.serve(script={
                        'dot': before(b'250 2.0.0 ok\r\n' + stale, 1)})
                client = self.client(server.uri)
                for _ in range(3):
                    self.assertAccepted(client.deliver(mail()))
                self.assertEqual(server.sessions, 2)
                self.assertArrived(server, 3)

    def test_rset_refused(self):
        "Test that no message follows a transaction that cannot be ended"
        server = self.serve(script={'rset': '502 5.5.1 what?'})
        client = self.client(server.uri)
        outcome = client.deliver(mail('rcpt-550'))
        self.assertEqual(list(outcome.refused), addresses('rcpt-550'))
        self.assertAccepted(client.deliver(mail()))
        self.assertEqual(server.sessions, 2)

    def test_step_by_step_from_then_on(self):
        for name in ['drop_pipelined', 'garble_pipelined']:
            with self.subTest(name):
                server = self.serve(pipelining=True, **{name: True})
                client = self.client(
                    server.uri, timeout=IMPATIENT, max_messages=2)
                for _ in range(5):
                    self.assertAccepted(client.deliver(mail()))
                # The first message with what was lost
                self.assertEqual(server.sessions, 4)
                self.assertArrived(server, 5)


class SessionStepByStepTestCase(SessionTestCase):
    pipelining = False


class TransactionTestCase(ServerTestCase):
    "Test the commands that go over the wire"

    def test_envelope(self):
        server = self.serve()
        self.assertAccepted(self.deliver(server))
        received, = server.received
        self.assertEqual(received.from_addr, SENDER)
        self.assertEqual(received.to_addrs, tuple(addresses('a b c')))

    def test_null_sender(self):
        server = self.serve()
        self.assertAccepted(self.deliver(server, sender='<>'))
        received, = server.received
        self.assertEqual(received.from_addr, '')
        self.assertEqual(
            self.commands(server, 'MAIL'),
            [f'MAIL FROM:<> SIZE={len(DATA)}'])

    def test_options(self):
        "Test the options of MAIL and RCPT, by what the server offers"
        eight_bit = DATA + b'\xe9\r\n'
        none = dict.fromkeys(
            ['size', 'eightbitmime', 'smtputf8', 'dsn'], None)
        dsn = {
            'mail_options': ('RET=HDRS', 'ENVID=1'),
            'rcpt_options': ('NOTIFY=FAILURE', 'ORCPT=rfc822;a@example.com'),
            }
        for offers, to, keywords, in_mail, in_rcpt in [
                ({}, 'a', {}, 'SIZE=53', ''),
                (none, 'a', {}, '', ''),
                ({}, 'a', {'data': eight_bit}, 'SIZE=56 BODY=8BITMIME', ''),
                (none, 'a', {'data': eight_bit}, '', ''),
                ({}, 'ü', {}, 'SIZE=53 SMTPUTF8', ''),
                ({}, 'a', {'mail_options': ('SMTPUTF8',)},
                    'SIZE=53 SMTPUTF8', ''),
                (none, 'a', {'mail_options': ('SMTPUTF8',)}, '', ''),
                ({}, 'a', {'mail_options': (
                            'size=1', 'body=7BIT', 'smtputf8')},
                    'SIZE=53 SMTPUTF8', ''),
                ({}, 'a', dsn, 'RET=HDRS ENVID=1 SIZE=53',
                    'NOTIFY=FAILURE ORCPT=rfc822;a@example.com'),
                (none, 'a', dsn, '', ''),
                ({'dsn': False}, 'a', dsn, 'SIZE=53', ''),
                ]:
            with self.subTest(to=to, keywords=keywords, offers=offers):
                server = self.serve(**offers)
                self.assertAccepted(self.deliver(server, to, **keywords), to)
                self.assertEqual(
                    self.commands(server, 'MAIL'),
                    [f'MAIL FROM:<{SENDER}> {in_mail}'.rstrip()])
                self.assertEqual(
                    self.commands(server, 'RCPT'),
                    [f'RCPT TO:<{address(to)}> {in_rcpt}'.rstrip()])

    def test_dsn_not_offered(self):
        "Test that each option that is left out is logged once"
        server = self.serve(dsn=False)
        with self.assertLogs(smtp.logger, 'INFO') as logs:
            outcome = self.deliver(
                server, mail_options=('RET=HDRS',),
                rcpt_options=('NOTIFY=FAILURE',))
        self.assertAccepted(outcome)
        self.assertEqual(
            [r.getMessage().split()[0] for r in logs.records],
            ['NOTIFY', 'RET'])

    def test_smtputf8_not_offered(self):
        "Test that addresses that the server cannot read are not sent"
        server = self.serve(smtputf8=False)
        self.deliver(server, 'a ü')
        self.deliver(server, sender=address('ü'))
        self.assertTrue(all(c.isascii() for _, c in server.commands))
        self.assertArrived(server, 1, 'a')

    def test_size(self):
        "Test that a message that is too large is not sent"
        server = self.serve(size=len(DATA))
        outcome = self.deliver(server, data=DATA + b'\r\n')
        self.assertEqual(sorted(outcome.refused), addresses('a b c'))
        self.assertTrue(outcome.refusal)
        self.assertEqual(self.commands(server, 'MAIL'), [])
        self.assertAccepted(self.deliver(server))

    def test_recipients_of_a_transaction(self):
        names = ' '.join(f'r{i}' for i in range(100))
        for recipients, transactions in [(1, 100), (50, 2), (99, 2), (100, 1)]:
            with self.subTest(recipients=recipients):
                server = self.serve()
                client = self.client(server.uri, max_recipients=recipients)
                self.assertAccepted(client.deliver(mail(names)), names)
                self.assertEqual(len(server.received), transactions)
                self.assertArrived(server, 1, names)

    def test_too_many_recipients(self):
        "Test that the other recipients follow at once, each of them once"
        names = [
            f'rcpt-550.{i}' if i % 5 == 2 else f'r{i}' for i in range(100)]
        good = ' '.join(n for n in names if '550' not in n)
        server = self.serve(max_recipients=20)
        outcome = self.deliver(server, ' '.join(names))
        self.assertEqual(
            outcome.accepted, [address(n) for n in good.split()])
        self.assertEqual(len(outcome.refused), 20)
        self.assertEqual(outcome.deferred, {})
        self.assertArrived(server, 1, good)
        self.assertEqual(
            [len(m.to_addrs) for m in server.received], [20, 20, 20, 20])
        self.assertEqual(server.sessions, 1)

    def test_no_recipient_accepted(self):
        "Test that DATA is sent only if it could not be held back"
        server = self.serve()
        self.deliver(server, 'rcpt-550 rcpt-451')
        self.assertEqual(
            [c.split()[0] for _, c in server.commands],
            ['ehlo', 'MAIL', 'RCPT', 'RCPT']
            + ['DATA'] * self.pipelining + ['RSET', 'QUIT'])

    def test_lone_dot(self):
        server = self.serve(lone_dot=250, pipelining=True)
        client = self.client(server.uri)
        for _ in range(2):
            outcome = client.deliver(mail('rcpt-550 rcpt-451'))
            self.assertEqual(outcome.accepted, [])
        self.assertAccepted(client.deliver(mail()))
        self.assertEqual(server.lone_dots, 2)
        self.assertEqual(server.sessions, 1)
        self.assertArrived(server, 1)

    def test_small_buffers(self):
        """Test that hundreds of RCPT and their replies do not wait for each
        other
        """
        # More than the buffers of both ends and the server can hold
        names = ' '.join(f'r{i}'.ljust(60, 'x') for i in range(1500))
        for slow_read in [0, .0001]:
            with self.subTest(slow_read=slow_read):
                server = self.serve(
                    rcvbuf=4096, sndbuf=4096, slow_read=slow_read,
                    replies={('rcpt', 250): '2.1.5 ' + 'so it is ' * 10})
                connected = smtp.get_smtp_server(server.uri, strict=True)
                for option, size in [
                        (socket.SO_SNDBUF, 8192),
                        (socket.SO_RCVBUF, 4096)]:
                    connected.sock.setsockopt(
                        socket.SOL_SOCKET, option, size)
                client = self.client(
                    server.uri, smtp=connected, max_recipients=1500)
                self.assertAccepted(client.deliver(mail(names)), names)
                client.close()
                self.assertArrived(server, 1, names)
                self.assertEqual(server.sessions, 1)

    def test_control_characters(self):
        "Test that nothing of such a message reaches the server"
        server = self.serve()
        client = self.client(server.uri)
        for character in ['\r', '\n', '\r\n', '\0', '\x7f', '\t']:
            bad = f'a@example.com>{character}RSET'
            for message in [
                    mail(sender=bad),
                    Mail(SENDER, (address('a'), bad), DATA),
                    mail(mail_options=(f'RET=HDRS{character}RSET',)),
                    mail(rcpt_options=(f'NOTIFY=NEVER{character}RSET',)),
                    ]:
                with self.subTest(message._replace(data=None)):
                    outcome = client.deliver(message)
                    self.assertEqual(
                        sorted(outcome.refused), sorted(message.to_addrs))
                    self.assertIsNotNone(outcome.refusal)
                    for words in outcome.refused.values():
                        self.assertIn("control character", words)
                        self.assertTrue(words.isprintable())
        client.close()
        self.assertEqual(
            {c.partition(' ')[0] for _, c in server.commands}, {'ehlo'})

    def test_unexpected_error(self):
        "Test that an exception is the fault of the message"
        def failing(step, reply):
            raise RuntimeError(f"no verdict\non {step}")

        server = self.serve()
        client = self.client(server.uri, verdict=failing)
        for message in [
                mail('a', sender=address('mail-550')),
                mail('rcpt-550'),
                mail('data-451'),
                mail('dot-550'),
                ]:
            with self.subTest(message._replace(data=None)):
                outcome = client.deliver(message)
                words, = outcome.refused.values()
                self.assertEqual(words[:24], "RuntimeError: no verdict")
                self.assertTrue(words.isprintable())
                self.assertIsNotNone(outcome.refusal)
        self.assertAccepted(client.deliver(mail()))

    def test_message_that_is_none(self):
        server = self.serve()
        client = self.client(server.uri)
        for message in [
                mail(data=None),
                mail(sender=None),
                mail(sender='\udcff@example.com'),
                ]:
            with self.subTest(message):
                outcome = client.deliver(message)
                self.assertEqual(sorted(outcome.refused), addresses('a b c'))
                self.assertAccepted(client.deliver(mail()))

    def test_own_verdict(self):
        def own(step, reply):
            if step == 'rcpt' and 'blocked' in reply.text:
                return SERVER
            return verdict(step, reply)

        server = self.serve()
        client = self.client(server.uri, verdict=own)
        self.assertTrouble(
            client.deliver(mail('rcpt-550-5.7.1-you-are-blocked')),
            '550 5.7.1 you are blocked', lasting=True)
        self.assertEqual(
            list(client.deliver(mail('rcpt-550')).refused),
            addresses('rcpt-550'))

    def test_own_verdict_on_421(self):
        "Test that a verdict of a module does not reopen a closed session"
        server = self.serve()
        client = self.client(
            server.uri, verdict=lambda step, reply: RECIPIENT)
        outcome = client.deliver(mail('a rcpt-421 c'))
        self.assertEqual(outcome.accepted, addresses('a c'))
        self.assertEqual(list(outcome.deferred), addresses('rcpt-421'))
        self.assertArrived(server, 1, 'a c')

    def test_refusal(self):
        "Test which messages count as refused alike"
        server = self.serve()
        client = self.client(server.uri)

        def refusal(*names):
            return client.deliver(mail(' '.join(names))).refusal

        self.assertEqual(
            refusal('rcpt-554-5.7.1-relay-denied.1'),
            refusal('rcpt-554-5.7.1-relay-denied.2'))
        self.assertEqual(
            refusal('dot-550-5.7.1-blocked.1'),
            refusal('dot-550-5.7.1-blocked.2'))
        for one, other in [
                ('rcpt-554-5.7.1-relay-denied', 'dot-554-5.7.1-relay-denied'),
                ('rcpt-554-5.7.1-relay-denied', 'rcpt-550-5.7.1-relay-denied'),
                ('rcpt-554-5.7.1-relay-denied', 'rcpt-554-5.7.2-relay-denied'),
                ('rcpt-554-5.7.1-relay-denied', 'rcpt-554-5.7.1-go-away'),
                ('rcpt-451-4.7.1-later', 'rcpt-551-4.7.1-later'),
                ]:
            self.assertNotEqual(refusal(one), refusal(other))
        # A mailbox is a reason of its own, and an accepted recipient shows
        # that the server takes messages
        for names in [
                ['rcpt-550-5.1.1-unknown'],
                ['rcpt-452-4.2.2-full'],
                ['a'],
                ['a', 'rcpt-554-5.7.1-relay-denied'],
                ['rcpt-554-5.7.1-relay-denied', 'a'],
                ]:
            self.assertIsNone(refusal(*names))


class TransactionStepByStepTestCase(TransactionTestCase):
    pipelining = False


class DataTestCase(ServerTestCase):
    "Test what is sent between DATA and the dot"

    def test_bytes(self):
        "Test that the bytes that arrive are the bytes that were given"
        line = b'x' * 998 + b'\r\n'
        for data in [
                b'',
                b'\r\n',
                b'.\r\n',
                b'..\r\n...\r\n',
                b'.\r\n.\r\n.\r\n',
                b'Subject: dots\r\n\r\n.\r\n..\r\n.x\r\nx.\r\n. \r\n',
                b'Subject: as commands\r\n\r\nQUIT\r\n.\r\nRSET\r\n',
                b'Subject: From\r\n\r\nFrom here\r\n>From there\r\n',
                b'Subject: NUL\r\n\r\n\0\r\n',
                b'Subject: tabs\r\n\r\n\t \x0b\x0c\x7f\r\n',
                b'Subject: octets\r\n\r\n' + bytes(
                    set(range(256)) - {10, 13}) + b'\r\n',
                b'Subject: long lines\r\n\r\n' + line * 3,
                b'Subject: blank lines\r\n\r\n' + b'\r\n' * 5,
                ]:
            with self.subTest(data[:80]):
                server = self.serve()
                self.assertAccepted(self.deliver(server, data=data))
                received, = server.received
                self.assertEqual(received.data, data)

    def test_dots_at_the_end_of_a_slice(self):
        server = self.serve()
        client = self.client(server.uri)
        for size in range(1, 12):
            with patch.object(smtp, 'SLICE_SIZE', size):
                data = b'a\r\n.b\r\n..\r\n.\r\nc\r\n'
                self.assertAccepted(client.deliver(mail(data=data)))
                self.assertEqual(server.received.pop().data, data)

    def test_lost_in_the_last_piece(self):
        "Test that a message is uncertain if all of it may have gone"
        for fault in ['close', 'reset', 'hang']:
            with self.subTest(fault), \
                    patch.object(smtp, 'SLICE_SIZE', 2 * len(LARGE)):
                server = self.serve(script={'body': fault}, **SMALL_BUFFER)
                client = self.client(
                    server.uri,
                    timeout=IMPATIENT if fault == 'hang' else PATIENT)
                outcome = client.deliver(mail(data=LARGE))
                self.assertNotEqual(outcome.unanswered, '')
                self.assertEqual(outcome.deferred, {})
                self.assertEqual(server.sessions, 1)

    def test_message_without_last_line_end(self):
        "Test that the final dot is always on a line of its own"
        server = self.serve()
        self.assertAccepted(self.deliver(server, data=b'Subject: a\r\n\r\nb'))
        received, = server.received
        self.assertEqual(received.data, b'Subject: a\r\n\r\nb\r\n')

    def test_large_message(self):
        data = DATA + (b'.' * 75 + b'\r\n') * (20_000_000 // 77)
        for buffers in [{}, {'rcvbuf': 64 * 1024}]:
            with self.subTest(buffers):
                server = self.serve(**buffers)
                self.assertAccepted(self.deliver(server, data=data))
                received, = server.received
                self.assertTrue(received.data == data)
                self.assertEqual(
                    received.mail_options, (f'SIZE={len(data)}',))


class SessionOpeningTestCase(ServerTestCase):
    "Test how sessions begin and how long they take"

    def test_given_server(self):
        server = self.serve()
        connected = smtp.get_smtp_server(server.uri, strict=True)
        self.addCleanup(connected.close)
        client = self.client(server.uri, smtp=connected)
        self.assertAccepted(client.deliver(mail()))
        self.assertEqual(server.sessions, 1)
        client.drop()
        self.assertAccepted(client.deliver(mail()))
        self.assertEqual(server.sessions, 2)

    def test_given_server_that_is_closed(self):
        server = self.serve()
        connected = smtp.get_smtp_server(server.uri, strict=True)
        connected.ehlo()
        connected.quit()
        client = self.client(server.uri, smtp=connected)
        self.assertAccepted(client.deliver(mail()))

    def test_timeout_of_the_uri(self):
        server = self.serve(script={'data': 'hang'})
        client = self.client(f'{server.uri}?timeout=1', timeout=1000)
        started = time.monotonic()
        outcome = client.deliver(mail())
        self.assertEqual(set(outcome.deferred.values()), {"timed out"})
        self.assertLess(time.monotonic() - started, 100)

    def test_data_timeout(self):
        "Test that the answer to the dot may take longer than other answers"
        server = self.serve(delay={'dot': 1})
        client = self.client(
            server.uri, timeout=IMPATIENT, data_timeout=PATIENT)
        self.assertAccepted(client.deliver(mail()))

    def test_endless_greeting(self):
        for fault in ['endless', 'multi-endless', 'trickle', 'hang']:
            with self.subTest(fault):
                server = self.serve(
                    script={'greeting': fault}, endless=1 << 22)
                client = self.client(server.uri, timeout=IMPATIENT)
                started = time.monotonic()
                outcome = client.deliver(mail())
                self.assertTrouble(outcome, '')
                self.assertLess(time.monotonic() - started, PATIENT)

    def test_opening_that_ends_too_late(self):
        "Test that a session that nobody waits for any more is closed"
        server = self.serve(delay={'greeting': .9, 'ehlo': .9})
        client = self.client(server.uri, timeout=IMPATIENT)
        self.assertTrouble(client.deliver(mail()), "timed out")
        server.wait_until(lambda: not server.open_sessions)
        self.assertEqual(server.received, [])

    def test_session_that_takes_nothing(self):
        server = self.serve()
        connected = smtp.get_smtp_server(server.uri, strict=True)
        connected.ehlo()
        connected.sock.shutdown(socket.SHUT_WR)
        client = self.client(server.uri, smtp=connected)
        self.assertAccepted(client.deliver(mail()))
        self.assertEqual(server.sessions, 2)

    def test_no_server(self):
        with socket.socket() as taken:
            taken.bind(('127.0.0.1', 0))
            client = self.client(f'smtp://127.0.0.1:{taken.getsockname()[1]}')
            self.assertTrouble(client.deliver(mail()), "Connection refused")

    def test_login(self):
        for tls in [None, 'starttls', 'smtps']:
            with self.subTest(tls=tls):
                server = self.serve(
                    auth=('shop', f'{SECRET}@/:%+?#'), tls=tls,
                    **self.certificate('good'))
                client = self.client(server.uri)
                self.assertAccepted(client.deliver(mail()))
                self.assertAccepted(client.deliver(mail()))
                self.assertEqual(server.sessions, 1)

    def test_login_refused(self):
        for reply, words in [
                ('535', '535 5.7.8 authentication failed'),
                ('534 5.7.9 too weak', '534 5.7.9 too weak'),
                ('454', '454'),
                ('504', '504'),
                # smtplib tries another mechanism
                ('421', "closed"),
                ]:
            with self.subTest(reply):
                server = self.serve(
                    auth=('shop', SECRET), script={'auth': reply})
                client = self.client(server.uri)
                self.assertTrouble(client.deliver(mail()), words)

    def test_login_needed(self):
        server = self.serve(auth=('shop', SECRET))
        client = self.client(f'smtp://127.0.0.1:{server.port}')
        self.assertTrouble(client.deliver(mail()), '530 5.7.0')

    def test_login_not_offered(self):
        server = self.serve()
        client = self.client(f'smtp://shop:{SECRET}@127.0.0.1:{server.port}')
        self.assertTrouble(client.deliver(mail()), "not supported")

    def test_login_needed_after_good_messages(self):
        for script in [
                {'mail': '530 5.7.0 log in'},
                {'rcpt': '530 5.7.0 log in'},
                {'data': '530 5.7.0 log in'},
                {'dot': '530 5.7.0 log in'},
                ]:
            with self.subTest(script):
                server = self.serve(fail_after={3: script})
                client = self.client(server.uri)
                for _ in range(3):
                    self.assertAccepted(client.deliver(mail()))
                self.assertTrouble(client.deliver(mail()), '530 5.7.0 log in')
                server.script.clear()
                self.assertAccepted(client.deliver(mail()))
                self.assertEqual(server.sessions, 2)

    def certificate(self, name):
        certfile, keyfile = getattr(self.certificates, name)
        return {'certfile': certfile, 'keyfile': keyfile}

    @property
    def certificates(self):
        cls = type(self)
        if not hasattr(cls, '_certificates'):
            if not shutil.which('openssl'):
                self.skipTest("no openssl to make certificates with")
            directory = tempfile.TemporaryDirectory()
            cls.addClassCleanup(directory.cleanup)
            cls._certificates = make_certificates(directory.name)
            cls.addClassCleanup(delattr, cls, '_certificates')
            patcher = patch.dict(os.environ, {
                    'SSL_CERT_FILE': cls._certificates.ca})
            patcher.start()
            cls.addClassCleanup(patcher.stop)
        return cls._certificates

    def test_tls(self):
        for tls in ['starttls', 'smtps']:
            for name, words in [
                    ('wrong_name', "mismatch"),
                    ('expired', "expired"),
                    ]:
                with self.subTest(name, tls=tls):
                    server = self.serve(
                        tls=tls, auth=('shop', SECRET),
                        **self.certificate(name))
                    client = self.client(server.uri)
                    self.assertTrouble(client.deliver(mail()), words)
                    self.assertNotIn(
                        'AUTH', [c.split()[0] for _, c in server.commands])

    def test_tls_of_an_unknown_authority(self):
        for tls in ['starttls', 'smtps']:
            with self.subTest(tls=tls):
                server = self.serve(tls=tls, **self.certificate('good'))
                with patch.dict(os.environ, {'SSL_CERT_FILE': os.devnull}):
                    client = self.client(server.uri)
                    self.assertTrouble(
                        client.deliver(mail()), "certificate verify failed")

    def test_tls_not_spoken(self):
        server = self.serve()
        for scheme in ['smtp+tls', 'smtps']:
            with self.subTest(scheme):
                client = self.client(
                    f'{scheme}://127.0.0.1:{server.port}', timeout=IMPATIENT)
                self.assertTrouble(client.deliver(mail()), '')
        # The server may still read what it took for commands
        server.stop()
        server.violations.clear()

    def test_starttls_refused(self):
        for reply in ['454', '502', '421', 'close', 'garbage', 'hang']:
            with self.subTest(reply):
                server = self.serve(
                    tls='starttls', auth=('shop', SECRET),
                    script={'starttls': reply}, **self.certificate('good'))
                client = self.client(server.uri, timeout=IMPATIENT)
                self.assertTrouble(client.deliver(mail()), '')
                self.assertNotIn(
                    'AUTH', [c.split()[0] for _, c in server.commands])

    def test_pipelining_gone_after_starttls(self):
        "Test that only the last offer of the server counts"
        server = self.serve(
            tls='starttls', pipelining=True, smtputf8=True,
            extensions_after_tls={'pipelining': False, 'smtputf8': False},
            **self.certificate('good'))
        client = self.client(server.uri)
        self.assertEqual(client.deliver(mail('a ü')).accepted, addresses('a'))
        self.assertAccepted(client.deliver(mail()))

    def test_large_message_over_tls(self):
        for tls in ['starttls', 'smtps']:
            with self.subTest(tls=tls):
                server = self.serve(tls=tls, **self.certificate('good'))
                client = self.client(server.uri)
                self.assertAccepted(client.deliver(mail(data=LARGE)))
                received, = server.received
                self.assertTrue(received.data == LARGE)

    def test_lost_over_tls(self):
        for to, expected in [
                ('data-close', {'deferred'}),
                ('data-reset', {'deferred'}),
                ('dot-close', {'unanswered'}),
                ('dot-hang', {'unanswered'}),
                ('dot-250-close', {'accepted'}),
                ]:
            with self.subTest(to):
                server = self.serve(tls='smtps', **self.certificate('good'))
                client = self.client(
                    server.uri, data_timeout=IMPATIENT)
                outcome = client.deliver(mail(to))
                self.assertEqual(
                    {name for name, value in vars(outcome).items()
                        if value and name not in {'refusal', 'queue_ids'}},
                    expected)

    def test_former_name(self):
        "Test that a transport may use the former name of unanswered"
        outcome = Outcome()
        outcome.uncertain = "timed out"
        self.assertEqual(outcome, Outcome(unanswered="timed out"))
        self.assertTrue(outcome.decided)
        self.assertEqual(outcome.uncertain, "timed out")

    def test_no_credentials(self):
        "Test that no text of any trouble has anything of the URI's login"
        server = self.serve(auth=('shop', 'another'))
        here = f'127.0.0.1:{server.port}'
        with socket.socket() as taken:
            taken.bind(('127.0.0.1', 0))
            nobody = f'127.0.0.1:{taken.getsockname()[1]}'
            for uri in [
                    f'smtp://shop:{SECRET}@{here}',
                    f'smtp://{SECRET}:shop@{here}',
                    f'smtp+tls://shop:{SECRET}@{here}',
                    f'smtp://shop:{SECRET}@{nobody}',
                    f'smtps://shop:{SECRET}@{nobody}',
                    f'smtp://shop:{SECRET}@{here}?timeout=0',
                    f'smtp://shop:{SECRET}@{here}?timeout={SECRET}',
                    f'smtp://shop:{SECRET}@{here}?{SECRET}',
                    f'smtp://shop:{SECRET}@{here}?{SECRET}=1',
                    f'smtp://shop:{SECRET}@127.0.0.1:{SECRET}',
                    f'smtp://shop:{SECRET}@127.0.0.1:99999',
                    f'smtp://shop:{SECRET}@[::1',
                    f'smtp://shop:{SECRET}@[{SECRET}]',
                    f'smtp://shop:{SECRET}@{"x" * 300}.invalid',
                    f'smtp://shop:{SECRET}@..',
                    f'smtp://shop:{SECRET}/more@{here}',
                    f'smtp://shop:{SECRET}#more@{here}',
                    f'smtp://shop:{SECRET}?more@{here}',
                    f'smtp://shop:{SECRET}[more@{here}',
                    f'smtp://shop:more/{SECRET}@{here}',
                    f'smtp://shop:{SECRET}ü@{here}',
                    f'smtp://shop:{SECRET}%C3%BC@{here}',
                    f'smtp://shop:{SECRET}\n@{here}',
                    f'shop:{SECRET}@{here}',
                    f'//shop:{SECRET}@{here}',
                    f'smtp:shop:{SECRET}@{here}',
                    ]:
                with self.subTest(uri), Records() as records:
                    client = self.client(uri, timeout=IMPATIENT)
                    outcome = client.deliver(mail())
                    self.assertTrouble(outcome, '')
                    self.assertNotIn(SECRET, repr(outcome))
                    if SECRET not in uri.rpartition('@')[2]:
                        self.assertNotIn(SECRET, server_name(uri))
                    self.assertNotIn(SECRET, records.text)
        # A client that speaks to the server by mistake
        server.stop()
        server.violations.clear()


class Records(logging.Handler):
    "All records that are logged for a while"

    def __enter__(self):
        self.lines = []
        self.setFormatter(logging.Formatter())
        self.logger = logging.getLogger()
        self.level_before = self.logger.level
        self.logger.setLevel(logging.DEBUG)
        self.logger.addHandler(self)
        return self

    def __exit__(self, *args):
        self.logger.removeHandler(self)
        self.logger.setLevel(self.level_before)

    def emit(self, record):
        self.lines.append(self.format(record))

    @property
    def text(self):
        return '\n'.join(self.lines)


class RepliesTestCase(unittest.TestCase):
    "Test which replies are kept"

    def test_bounds(self):
        "Test neither a long reply nor many short replies are kept"
        smtp._recurring.cache_clear()
        for text in [b'x' * (LENGTH + 1), b'x.example ' * 80000]:
            reply = smtp._reply_of(b'250', text)
            self.assertLessEqual(len(reply.text), LENGTH)
        self.assertEqual(smtp._recurring.cache_info().currsize, 0)
        for number in range(1000):
            reply = smtp._reply_of(b'250', b'2.0.0 Ok: queued as %d' % number)
        self.assertEqual(str(reply), '250 2.0.0 Ok: queued as 999')
        self.assertLessEqual(smtp._recurring.cache_info().currsize, 100)


class VerdictTestCase(unittest.TestCase):
    "Test the pure functions"

    def test_verdict(self):
        steps = 'mail', 'rcpt', 'data', 'dot'
        usual = MESSAGE, RECIPIENT, MESSAGE, MESSAGE
        later = SERVER, RECIPIENT, MESSAGE, MESSAGE
        server = SERVER, SERVER, SERVER, SERVER
        for text, expected in [
                # The server's
                ('421', server),
                ('421 4.3.2 closing', server),
                ('421 4.7.0 too many messages', server),
                ('432 4.7.12 password transition', server),
                ('454 4.7.0 temporary authentication failure', server),
                ('454 4.7.1 relay access denied', server),
                ('530 5.7.0 authentication required', server),
                ('534 5.7.9 mechanism too weak', server),
                ('535 5.7.8 credentials invalid', server),
                ('538 5.7.11 encryption required', server),
                ('452 4.3.1 insufficient system storage', server),
                ('451 4.3.2 not accepting messages', server),
                ('450 4.4.5 congestion', server),
                ('451 4.7.500 server busy', server),
                ('451 4.7.501 sender throttled', server),
                ('451 4.7.502 sender throttled', server),
                ('550 5.4.5 daily sending quota exceeded', server),
                # Only at MAIL
                ('450', later),
                ('450 4.7.1 try again later', later),
                ('451', later),
                ('451 4.7.1 greylisted', later),
                ('451 4.7.5001 no such code', later),
                ('452 too many recipients', later),
                ('452 4.5.3 too many recipients', later),
                ('452 4.2.2 mailbox full', later),
                ('455 4.5.1 parameters not now', later),
                ('451 try 4.7.500', later),
                # The fault of the message or of the recipient
                ('500 5.5.2 what?', usual),
                ('501 5.5.4 bad syntax', usual),
                ('503 5.5.1 bad sequence', usual),
                ('550', usual),
                ('550 5.1.1 no such user', usual),
                ('550 5.7.1 relaying denied', usual),
                ('551 5.7.1 go elsewhere', usual),
                ('552 5.2.2 mailbox full', usual),
                ('552 5.3.4 message too big', usual),
                ('553 5.6.7 no SMTPUTF8', usual),
                ('554 5.7.1 blocked', usual),
                ('555 5.5.4 unknown parameter', usual),
                ('556 5.1.10 null MX', usual),
                ]:
            code, _, words = text.partition(' ')
            with self.subTest(text):
                self.assertEqual(
                    tuple(
                        verdict(step, Reply(int(code), words))
                        for step in steps),
                    expected)

    def test_words(self):
        """Test that each example has the meaning that its line of the table
        says
        """
        for words in WORDS:
            code, _, text = words.example.partition(' ')
            with self.subTest(words.example):
                self.assertEqual(
                    meaning(Reply(int(code), text)), words.meaning)
                self.assertTrue(words.source)

    def test_meaning(self):
        for expected, texts in {
                MAILBOX: [
                    '550 5.1.1 x', '552 5.2.2 over quota for today',
                    '550 Unknown user', '550 User unknown',
                    '550 no such user here', '550 mailbox unavailable',
                    '550 5.5.0 mailbox unavailable',
                    '550 sorry, no mailbox here by that name (#5.1.1)',
                    '550 Unrouteable address', '550 invalid recipient',
                    '552 Mailbox quota exceeded, try again later',
                    '452 mailbox full, try again later',
                    '554 delivery error: dd This user doesn\'t have a '
                    'yahoo.com account',
                    '550 <joe@example.com>: Recipient address rejected: '
                    'User unknown in local recipient table'],
                QUOTA: [
                    '550 5.1.90 daily limit',
                    '550 user has exceeded daily quota',
                    '554 Message rejected: Sending paused for this account',
                    '554 5.2.0 SubmissionQuotaExceededException',
                    '554 5.2.0 OutboundSpamException',
                    '550 5.7.705 tenant has exceeded threshold',
                    '452 4.3.1 out of storage',
                    '550 Domain a.com has exceeded the max emails per hour',
                    '554 5.7.1 limit of 100 messages a day is reached',
                    '450 sending quota exceeded'],
                RATE: [
                    '454 Throttling failure: Daily message quota exceeded.',
                    '432 4.3.2 busy', '451 4.7.650 rate limited',
                    '450 4.7.1 Error: too much mail from 192.0.2.1',
                    '451 4.7.28 unusual rate'],
                SESSION: [
                    '451 4.4.2 Timeout', '452 4.4.5 enough',
                    '450 too many messages in this connection',
                    '550 maximum of messages per session exceeded'],
                RECIPIENTS: [
                    '452 4.5.3 x', '550 5.5.3 x', '554 5.5.3 x',
                    '550 Too many recipients',
                    '550 exceeded maximum of 10 recipients'],
                LOGIN: [
                    '530 x', '535 5.7.139 SmtpClientAuthentication is '
                    'disabled', '550 5.7.30 no basic authentication',
                    '530 5.7.57 Client not authenticated'],
                None: [
                    '550', '554 5.7.1 relay access denied', '554 no thanks',
                    '550 5.7.1 unable to relay for unknown user',
                    '554 5.2.252 SendAsDenied',
                    '451 4.7.1 Greylisting in action, please try again in '
                    '300 seconds', '552 5.3.4 message size exceeds limit',
                    '552 message size exceeds limit, try again with less'],
                }.items():
            for text in texts:
                code, _, words = text.partition(' ')
                with self.subTest(text):
                    self.assertEqual(
                        meaning(Reply(int(code), words)), expected)

    def test_alike(self):
        for one, other in [
                ('554 5.7.1 <jane@example.com>: Relay access denied',
                    '554 5.7.1 <john@example.org>: Relay access denied'),
                ('550 5.7.1 queue id 4BqX3y0 on mx12 refused',
                    '550 5.7.1 queue id 9ZpL1k8 on mx7 refused'),
                ('550 blocked until 10:00', '550 blocked until 10:05'),
                ('550  blocked', '550 blocked'),
                ('timed out', 'timed out'),
                ]:
            with self.subTest(one):
                self.assertEqual(gist(one), gist(other))
        for one, other in [
                ('554 5.7.1 denied', '550 5.7.1 denied'),
                ('554 5.7.1 denied', '554 5.7.2 denied'),
                ('554 5.7.1 denied', '554 5.7.1 blocked'),
                ('554 5.7.1 denied', '554 denied'),
                ]:
            with self.subTest(one):
                self.assertNotEqual(gist(one), gist(other))
        self.assertEqual(
            gist('554 5.7.1 <a@example.com>: no mail for you, see #123'),
            '554 5.7.1 no mail for you, see')
        self.assertEqual(gist(''), '')
        self.assertEqual(gist('421'), '421')

    def test_server_name(self):
        for uri, expected in [
                ('smtp://localhost', 'localhost'),
                ('smtp://localhost:25', 'localhost:25'),
                ('smtp://shop:secret@mail.example.com:587',
                    'mail.example.com:587'),
                ('smtp+tls://shop:secret@mail.example.com:587?timeout=9',
                    'mail.example.com:587'),
                ('smtps://shop@mail.example.com/?timeout=9',
                    'mail.example.com'),
                ('smtp://shop:p@ss@localhost:25', 'localhost:25'),
                ('smtp://shop:p/ss@localhost:25', 'localhost:25'),
                ('smtp://shop:p?s#s@localhost:25', 'localhost:25'),
                ('smtp://[::1]:25', '[::1]:25'),
                ('localhost:25', 'localhost:25'),
                ('smtp://localhost:25?local_hostname=a@b&timeout=9',
                    'localhost:25'),
                ('smtp://user:secret@localhost?local_hostname=a@b',
                    'localhost'),
                ('smtp://user:secret', '?'),
                ('smtp://user:secret/', '?'),
                ('smtp:user:secret', '?'),
                ('user:secret', '?'),
                ('smtp://localhost:25?secret=a@b!', '?'),
                ('smtp://user:secret@', '?'),
                ('smtp://user:secret@?timeout=9', '?'),
                ('smtp://user:sec ret', '?'),
                ('smtp://user:secret//x', '?'),
                ('', ''),
                ]:
            with self.subTest(uri):
                with patch.object(smtp.config, 'get', return_value=uri):
                    self.assertEqual(server_name(), expected)
                    if uri:
                        self.assertEqual(server_name(uri), expected)

    def test_reply(self):
        for reply, good, temporary, status, text in [
                (Reply(250, '2.1.0 ok'), True, False, '2.1.0', '250 2.1.0 ok'),
                (Reply(250, ''), True, False, '', '250'),
                (Reply(299, 'ok'), True, False, '', '299 ok'),
                (Reply(354, 'go on'), False, False, '', '354 go on'),
                (Reply(400, '4.7.500 busy'), False, True, '4.7.500',
                    '400 4.7.500 busy'),
                (Reply(499, '4.7.1'), False, True, '4.7.1', '499 4.7.1'),
                (Reply(500, 'x 5.1.1'), False, False, '', '500 x 5.1.1'),
                (Reply(550, '5.1.1234 no'), False, False, '',
                    '550 5.1.1234 no'),
                (Reply(550, '3.1.1 no'), False, False, '', '550 3.1.1 no'),
                ]:
            with self.subTest(reply):
                self.assertEqual(
                    (reply.good, reply.temporary, reply.status, str(reply)),
                    (good, temporary, status, text))

    def test_remaining(self):
        outcome = Outcome()
        outcome.accept(['a'])
        outcome.refuse(['b'], 'rcpt', '550 no')
        outcome.defer(['c'], 'rcpt', '451 later')
        self.assertEqual(
            outcome.remaining(['d', 'c', 'b', 'a', 'e']), ['d', 'e'])


del ServerTestCase
