# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Which error a caller gets, and the data that it needs to go on."""
import inspect
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from trytond.pool import Pool

from .. import exceptions, identity, recorder
from ..exceptions import (
    ArgumentError, BusyError, ClaimError, CopyError, EmailError,
    EmailQueueError, HoldError, MessageError, NoCopyError, NotSentError,
    ReadonlyError, RecordError, ServerError, SettingError, StateError)
from ..settings import Settings
from ..store import Store
from .tools import MESSAGE, QueueTestCase, configured

# The arguments that queue_mail refuses, each with its value
ARGUMENTS = [
    ('from_addr', 'no address'),
    ('from_addr', ''),
    ('to_addrs', 'no address'),
    ('to_addrs', []),
    ('mail_options', 'SIZE=1\r\nX'),
    ('rcpt_options', ['NOTIFY=\r\n']),
    ('msg', 4711),
    ('priority', 'high'),
    ('scheduled_at', 'now'),
    ('expires_at', 'tomorrow'),
    ('resource', 'no.model,1'),
    ('server', 'nowhere'),
    ('key', ''),
    ]
# A port on which nothing listens
CLOSED = 'smtp://127.0.0.1:1'


class ErrorsTestCase(QueueTestCase):

    @contextmanager
    def raising(self, Error, **data):
        "Check the class of an error and its attributes"
        with self.assertRaises(EmailQueueError) as raised:
            yield raised
        error = raised.exception
        self.assertIs(type(error), Error)
        self.assertTrue(error.message)
        for name, value in data.items():
            self.assertEqual(getattr(error, name), value, name)

    def emails(self, *ids):
        return Pool().get('email.queue').browse(ids)

    def test_classes(self):
        "Test each class has the root as base, and a text that says what it is"
        for name, Error in inspect.getmembers(exceptions, inspect.isclass):
            if Error.__module__ == exceptions.__name__ and (
                    name.endswith('Error') and name != 'LoginError'):
                with self.subTest(name):
                    self.assertTrue(issubclass(Error, EmailQueueError))
                    self.assertTrue(Error.__doc__)

    def test_root(self):
        "Test no error has only the class of the root"
        for path in Path(exceptions.__file__).parent.glob('*.py'):
            with self.subTest(path.name):
                self.assertNotRegex(
                    path.read_text('utf-8'),
                    r'(raise|return) EmailQueueError\(')

    def test_arguments(self):
        valid = {
            'from_addr': 'shop@example.com', 'to_addrs': 'jane@example.com',
            'msg': MESSAGE}
        for name, value in ARGUMENTS:
            with self.subTest(name, value=value), self.transaction(), \
                    self.raising(ArgumentError, argument=name, index=None):
                Pool().get('email.queue').queue_mail(
                    **{**valid, name: value})

    def test_arguments_of_several(self):
        with self.transaction(), self.raising(
                ArgumentError, argument='to_addrs', value='x', index=1):
            Pool().get('email.queue').queue_mails([
                    ('a@example.com', 'b@example.com', MESSAGE),
                    ('a@example.com', 'x', MESSAGE)])
        self.assertEqual(self.rows('id'), [])

    def test_address(self):
        id_ = self.queue('rcpt-550@example.com')
        self.write(
            id_, state='failed', refused='rcpt-550@example.com 550 no')
        with self.transaction():
            email, = self.emails(id_)
            EmailQueue = type(email)
            for call in [
                    lambda: EmailQueue.erase_address('x'),
                    lambda: EmailQueue.queue_to(
                        email, 'rcpt-550@example.com', 'x')]:
                with self.raising(
                        ArgumentError, argument='address', value='x'):
                    call()

    def test_settings(self):
        with configured(uri_news=CLOSED, rate_news='fast'), \
                self.transaction(), \
                self.raising(SettingError, option='rate_news', value='fast'):
            Settings.read('news')
        with configured(uri_news=CLOSED, for_news='nobody'), \
                self.transaction(), \
                self.raising(SettingError, option='for_news', value='nobody'):
            Pool().get('email.queue').queue_mail(
                'shop@example.com', 'jane@example.com', MESSAGE)

    def test_nothing_is_sent(self):
        id_ = self.queue()
        for settings, is_copy, Error in [
                ({'hold': 'True'}, False, HoldError), ({}, True, CopyError)]:
            with self.subTest(Error.__name__), configured(**settings), \
                    patch.object(identity, 'is_copy', lambda: is_copy), \
                    self.transaction(), self.raising(Error):
                self.emails(id_)[0].send()
        with patch.object(identity, 'is_copy', lambda: True), \
                self.raising(CopyError):
            self.send_all()

    def test_no_copy(self):
        with self.transaction(), self.raising(NoCopyError):
            identity._decide()

    def test_readonly(self):
        with self.transaction(readonly=True):
            EmailQueue = Pool().get('email.queue')
            for call in [
                    lambda: EmailQueue.queue_mail(
                        'shop@example.com', 'jane@example.com', MESSAGE),
                    lambda: EmailQueue.queue_mails([]),
                    lambda: EmailQueue.erase_address('jane@example.com')]:
                with self.raising(ReadonlyError):
                    call()

    def test_not_recorded(self):
        def failing(store, rows):
            raise store.Error("no room")

        id_ = self.queue()
        with patch.object(Store, 'record', failing), \
                patch.object(recorder, 'GIVE_UP_SECONDS', 0), \
                patch.object(recorder, 'RETRY_SECONDS', 0), \
                configured(uncertain='retry'):
            with self.raising(RecordError) as raised:
                self.send_all()
            self.assertIn("no room", raised.exception.message)
            with self.transaction(), self.raising(RecordError):
                self.emails(id_)[0].send()

    def wizard(self, name):
        Wizard = Pool().get(name, type='wizard')
        session_id, _, _ = Wizard.create()
        return Wizard(session_id)

    def test_wizards(self):
        with self.transaction():
            send_to = self.wizard('email.queue.send_to')
            with self.raising(ArgumentError, argument='active_id'):
                send_to.do_send({})
            archived = self.wizard('ir.email.send_again')
            with self.raising(ArgumentError, argument='active_ids'):
                archived.transition_send()
            check = self.wizard('email.queue.test')
            with self.raising(ArgumentError, argument='to_addr'):
                check.do_queue_email({})
            with configured('email', **{'from': None}), \
                    self.raising(SettingError, option='from', value=''):
                check.default_start([])

    def test_attachments(self):
        with self.transaction(1, context={'_check_access': True}), \
                self.raising(ArgumentError, argument='ids', value='[1, 2]'):
            Pool().get('email.queue.attachment').read([1, 2], ['data'])

    def test_server(self):
        self.queue()
        with configured('email', uri=CLOSED), \
                self.raising(ServerError, server=None) as raised:
            self.send_all()
        self.assertIn(raised.exception.words, raised.exception.message)

    def test_server_by_name(self):
        with configured(uri_news=CLOSED):
            self.queue(server='news')
            with self.raising(ServerError, server='news') as raised:
                self.send_all()
            self.assertIn(raised.exception.words, raised.exception.message)
        with self.raising(ServerError, server='news', words=None):
            self.send_all()

    def test_claim(self):
        id_ = self.queue()
        self.write(id_, state='cancelled')
        with self.transaction():
            email, = self.emails(id_)
            with self.raising(ClaimError, email=email):
                email.send()

    def test_not_sent(self):
        id_ = self.queue('rcpt-550@example.com')
        with self.transaction():
            email, = self.emails(id_)
            with self.raising(
                    NotSentError, email=email, state='failed',
                    reason='refused') as raised:
                email.send()
            self.assertIn('550', raised.exception.words)

    def test_state(self):
        id_ = self.queue()
        for name in ['retry', 'send_again']:
            with self.subTest(name), self.transaction():
                email, = self.emails(id_)
                with self.raising(StateError, email=email):
                    getattr(type(email), name)([email])
        with self.transaction():
            email, = self.emails(id_)
            with self.raising(StateError, email=email):
                type(email).queue_to(
                    email, 'jane@example.com', 'joe@example.com')

    def test_message(self):
        id_, secret = self.queue(), self.queue(sensitive=True)
        self.write(id_, state='failed', msg=None)
        with self.transaction():
            email, sensitive = self.emails(id_, secret)
            with self.raising(MessageError, email=email):
                type(email).retry([email])
            for each in [email, sensitive]:
                with self.raising(MessageError, email=each):
                    type(email).queue_again(each)

    def test_one_of_several(self):
        "Test which error a caller may catch to go on with the other emails"
        for Error in [
                StateError, MessageError, BusyError, ClaimError, NotSentError]:
            self.assertTrue(issubclass(Error, EmailError))


del QueueTestCase
