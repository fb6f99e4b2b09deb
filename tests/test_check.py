# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The check of a server names the step that is bad, and sends nothing."""
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest.mock import patch
from urllib.parse import quote

from trytond.pool import Pool

from .. import check, oauth
from .endpoint import Endpoint
from .jsonrpc import RPCError, RPCTestCase
from .postgresql import free_port
from .processes import ProcessTestCase
from .smtpd import Server, make_certificates
from .tools import QueueTestCase, configured

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / 'bin' / 'trytond-email-queue-health'
USER, PASSWORD = 'tryton@example.com', 's3cr3t@/:%'
STEPS = [
    'settings', 'connect', 'tls', 'token', 'login', 'offers', 'sender']
# The token is a step of its own
STEPS_BY_PASSWORD = [s for s in STEPS if s != 'token']


@unittest.skipUnless(shutil.which('openssl'), "it makes the certificates")
class CheckTestCase(QueueTestCase):

    @classmethod
    def setUpClass(cls):
        directory = cls.enter(tempfile.TemporaryDirectory())
        cls.certificates = make_certificates(directory)
        cls.enter(patch.dict(
                os.environ, SSL_CERT_FILE=cls.certificates.ca))
        super().setUpClass()

    def setUp(self):
        super().setUp()
        oauth._tokens.clear()
        self.endpoint = self.enter_here(Endpoint(self.certificates.good))
        self.enter_here(patch.object(check, 'TIMEOUT', self.timeout))
        self.enter_here(patch.object(oauth, 'ENDPOINT_SECONDS', 1))

    def serve(self, certificate='good', **options):
        certfile, keyfile = getattr(self.certificates, certificate)
        return self.enter_here(
            Server(**{'certfile': certfile, 'keyfile': keyfile, **options}))

    def by_password(self, **options):
        return self.serve(**{
                'tls': 'starttls', 'auth': (USER, PASSWORD), **options})

    def by_token(self, **options):
        server = self.serve(**{
                'tls': 'starttls', 'bearer': self.endpoint.good, **options})
        scheme, _, rest = server.uri.partition('://')
        return server, f'{scheme}://{quote(USER)}@{rest}'

    def oauth(self, **changes):
        return configured(**{
                'oauth_token_uri': self.endpoint.uri,
                'oauth_client_id': 'client',
                'oauth_client_secret': self.endpoint.secret,
                **changes})

    def check(self, uri, server=None, email=None):
        "Return the steps, and all that is shown of them"
        option = {'section': 'email', 'uri': uri}
        if server:
            option = {f'uri_{server}': uri}
        with configured(**option), self.transaction(readonly=True):
            steps = check.check(Pool().get('email.queue'), server, email)
            text = '\n'.join(s.text() for s in steps)
        for secret in [
                PASSWORD, quote(PASSWORD, safe=''), self.endpoint.secret,
                *self.endpoint.tokens]:
            self.assertNotIn(secret, text)
        return steps, text

    def assertGood(self, steps, names=STEPS_BY_PASSWORD):
        self.assertEqual([s.name for s in steps if s.good], names)
        self.assertEqual(len(steps), len(names))

    def assertBad(self, steps, name, words=''):
        *before, last = steps
        self.assertTrue(all(s.good for s in before))
        self.assertEqual((last.name, last.good), (name, False))
        self.assertTrue(last.advice)
        self.assertIn(words, last.words)

    def assertNothingSent(self, server):
        verbs = {c.split()[0].upper() for _, c in server.commands}
        self.assertFalse(
            verbs & {'MAIL', 'RCPT', 'DATA'})
        self.assertIn('QUIT', verbs)
        self.assertEqual(server.violations, [])
        server.wait_until(lambda: not server.open_sessions)


class CheckGoodTestCase(CheckTestCase):

    def test_password(self):
        for tls in ['starttls', 'smtps']:
            for options in [{}, {'size': 1234, 'dsn': False}]:
                with self.subTest(tls=tls, **options):
                    server = self.by_password(tls=tls, **options)
                    steps, text = self.check(server.uri)
                    self.assertGood(steps)
                    self.assertNothingSent(server)
                    self.assertIn(f'127.0.0.1:{server.port}', text)
                    self.assertIn('TLSv1', text)
                    self.assertIn('localhost, 127.0.0.1', text)
                    self.assertRegex(text, r'until 20\d\d-\d\d-\d\d')
                    self.assertIn('SMTPUTF8', text)
                    if options:
                        self.assertIn('SIZE 1234, PIPELINING, no DSN', text)

    def test_token(self):
        for tls in ['starttls', 'smtps']:
            for mechanism in ['XOAUTH2', 'OAUTHBEARER']:
                with self.subTest(tls=tls, mechanism=mechanism), self.oauth():
                    server, uri = self.by_token(
                        tls=tls, bearer_mechanisms=(mechanism,))
                    steps, text = self.check(uri)
                    self.assertGood(steps, STEPS)
                    self.assertIn("by token", text)
                    self.assertNothingSent(server)

    def test_without_login_and_tls(self):
        server = self.serve()
        steps, text = self.check(server.uri)
        self.assertGood(steps)
        self.assertIn("can be read on its way", text)
        self.assertNothingSent(server)

    def test_named_server(self):
        server = self.by_password()
        with configured('email', uri='smtp://127.0.0.1:1'):
            steps, _ = self.check(server.uri, server='news')
        self.assertGood(steps)
        self.assertNothingSent(server)

    def test_certificate_that_ends(self):
        server = self.by_password()
        with patch.object(check, 'CERTIFICATE_SECONDS', 1e9):
            steps, text = self.check(server.uri)
        self.assertGood(steps)
        self.assertIn("ends soon", text)

    def test_sender(self):
        server = self.by_password()
        for email, from_, words in [
                (None, None, "From is tryton@example.com, the "
                    "envelope sender is tryton@example.com"),
                ('jane@example.com', None, "From is jane@example.com, the "
                    "envelope sender is tryton@example.com"),
                # Core writes On-Behalf-Of
                ('jane@example.net', None, "From is tryton@example.com, the "
                    "envelope sender is tryton@example.com"),
                ('jane@example.com', 'erp@example.org', "From is "
                    "erp@example.org, the envelope sender is "
                    "erp@example.org"),
                ]:
            with self.subTest(email, from_=from_), configured(from_=from_):
                steps, text = self.check(server.uri, email=email)
                self.assertGood(steps)
                self.assertIn(words, text)
                # A sender who is not the user of the login may be refused
                alone = words.count(USER) == 2
                self.assertEqual(bool(steps[-1].advice), not alone)

    def test_secret_of_today(self):
        "Test no token of an earlier secret hides that the secret has expired"
        _, uri = self.by_token()
        with self.oauth():
            with configured('email', uri=uri):
                self.assertTrue(oauth.access_token())
            self.endpoint.secret = 'another'
            self.addCleanup(delattr, self.endpoint, 'secret')
            steps, _ = self.check(uri)
        self.assertBad(steps, 'token', "AADSTS7000222")


class BadTestCase(CheckTestCase):
    "Test the last step is the bad step, and says what to do"
    timeout = 1

    def test_settings(self):
        for uri in [
                'smtp://', 'mail.example.com', 'http://127.0.0.1',
                'smtp://a:b/c@127.0.0.1', 'smtp://127.0.0.1:port',
                'smtp://[::1', f'smtp://user:{PASSWORD}@127.0.0.1:25']:
            with self.subTest(uri):
                steps, text = self.check(uri)
                self.assertBad(steps, 'settings')
        with self.transaction(readonly=True):
            steps = check.check(Pool().get('email.queue'), 'nobody')
        self.assertBad(steps, 'settings', 'nobody')

    def test_settings_value(self):
        for name, value in [
                ('timeout', 'x'), ('from_', 'x'), ('for_news', 'x')]:
            with self.subTest(name), configured(**{name: value}):
                steps, _ = self.check(self.server.uri)
                self.assertBad(steps, 'settings', name)

    def test_connect(self):
        port = free_port()
        for scheme in ['smtp', 'smtp+tls', 'smtps']:
            with self.subTest(scheme):
                steps, _ = self.check(
                    f'{scheme}://user:{quote(PASSWORD, safe="")}'
                    f'@127.0.0.1:{port}')
                self.assertBad(steps, 'connect', 'refused')
        for greeting, words in [
                ('hang', 'timed out'), ('554 no', '554'),
                ('close', 'closed'), ('endless', '')]:
            with self.subTest(greeting):
                server = self.by_password(script={'greeting': greeting})
                steps, _ = self.check(server.uri)
                self.assertBad(steps, 'connect', words)

    def test_tls(self):
        for tls in ['starttls', 'smtps']:
            for certificate, words in [
                    ('wrong_name', 'mismatch'), ('expired', 'expired')]:
                with self.subTest(certificate, tls=tls):
                    server = self.by_password(
                        tls=tls, certificate=certificate)
                    steps, _ = self.check(server.uri)
                    self.assertBad(steps, 'tls', words)
        for reply in ['454', 'hang', 'close', 'garbage']:
            with self.subTest(reply):
                server = self.by_password(script={'starttls': reply})
                self.assertBad(self.check(server.uri)[0], 'tls')
        server = self.serve()
        for scheme in ['smtp+tls', 'smtps']:
            with self.subTest(scheme):
                steps, _ = self.check(f'{scheme}://127.0.0.1:{server.port}')
                self.assertBad(steps, 'tls')

    def test_token(self):
        server, uri = self.by_token()
        for script, words in [
                ('invalid-client', 'invalid_client'), ('hang', 'timed out'),
                ('rubbish', 'makes no sense'), ('huge', 'too long')]:
            with self.subTest(script), self.oauth():
                self.endpoint.script = script
                self.assertBad(self.check(uri)[0], 'token', words)
        with self.oauth(oauth_client_secret=None):
            self.assertBad(
                self.check(uri)[0], 'token', 'oauth_client_secret')
        verbs = {c.split()[0] for _, c in server.commands}
        self.assertNotIn('AUTH', verbs)

    def test_login(self):
        server = self.by_password(script={'auth': '535 5.7.8 no'})
        steps, _ = self.check(server.uri)
        self.assertBad(steps, 'login', '535')
        self.assertIn("oauth_", steps[-1].advice)
        server, uri = self.by_token(bearer=lambda user, token: False)
        with self.oauth():
            steps, _ = self.check(uri)
        self.assertBad(steps, 'login', '535')
        self.assertIn("allow SMTP", steps[-1].advice)
        self.assertNothingSent(server)

    def test_sender(self):
        server = self.by_password()
        for from_ in ['root', None, 'a@b, c@d']:
            with self.subTest(from_), configured('email', **{'from': from_}):
                self.assertBad(self.check(server.uri)[0], 'sender')
        with patch.object(check, 'set_from_header') as set_from_header:
            set_from_header.side_effect = (
                lambda msg, sender, from_: msg.add_header('From', 'a@b'))
            steps, _ = self.check(server.uri)
        self.assertBad(steps, 'sender', 'From is a@b')
        self.assertIn('"from_"', steps[-1].advice)

    def test_queue_is_not_touched(self):
        self.queue()
        before = self.rows('*')
        self.check(self.server.uri)
        self.assertEqual(self.rows('*'), before)
        self.assertFalse(self.server.received)


class WizardTestCase(RPCTestCase):
    "Test the button of the wizard"

    def start(self, session):
        name = 'wizard.email.queue.test'
        id_, start, _ = session(f'{name}.create', {})
        self.addCleanup(session, f'{name}.delete', id_, {})

        def execute(state, **values):
            return session(
                f'{name}.execute', id_, {'start': values}, state, {})

        return execute, execute(start)

    def test_check(self):
        marketing = self.enter_here(Server())
        self.enter_here(configured(uri_marketing=marketing.uri))
        execute, _ = self.start(self.postmaster)
        for server, port in [
                (None, self.server.port), ('marketing', marketing.port)]:
            with self.subTest(server):
                result = execute('check', server=server)
                self.assertEqual(result['view']['state'], 'result')
                steps = result['view']['defaults']['steps']
                self.assertIn(f'127.0.0.1:{port}', steps)
                self.assertNotIn('BAD', steps)
        self.assertFalse(self.server.received or marketing.received)
        with configured(for_marketing='tryton@example.com'):
            steps = execute('check')['view']['defaults']['steps']
            self.assertIn(f'127.0.0.1:{marketing.port}', steps)
        with configured(for_marketing='x'):
            steps = execute('check')['view']['defaults']['steps']
            self.assertIn('BAD', steps)

    def test_back(self):
        "Test the wizard keeps the choices when the user goes back"
        execute, _ = self.start(self.postmaster)
        execute('check', to_addr='jane@example.com', server=None)
        result = execute('start', to_addr='jane@example.com')
        self.assertEqual(
            result['view']['defaults']['to_addr'], 'jane@example.com')

    def test_unknown_server(self):
        execute, _ = self.start(self.postmaster)
        for server in ['nobody', 'uri_', 'x\ny']:
            steps = execute('check', server=server)['view']['defaults']
            self.assertIn('BAD', steps['steps'])

    def test_strangers(self):
        for session in self.strangers:
            with self.assertRaises(RPCError):
                self.start(session)
            self.assertFalse(
                session.call('email.queue.test.start', 'get_servers'))


class CheckCommandTestCase(ProcessTestCase):
    "Test trytond-email-queue-health --check"

    def run_script(self, *args, **options):
        if not self.rows('id'):
            self.queue_many(1)
        environ = {
            **os.environ,
            'TRYTOND_EMAIL__URI': self.server.uri,
            'TRYTOND_EMAIL__FROM': 'tryton@example.com',
            **{f'TRYTOND_EMAIL_QUEUE__{name.upper()}': str(value)
                for name, value in options.items()}}
        process = subprocess.run(
            [sys.executable, SCRIPT, '-d', self.database, *args], env=environ,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return process.returncode, process.stdout

    def rows(self, *names):
        try:
            return super().rows(*names)
        except Exception:
            # The identity is stored when the first email is sent
            return []

    def test_good(self):
        status, output = self.run_script('--check')
        self.assertEqual(status, 0, output)
        self.assertTrue(output.startswith(
                f'EMAIL SERVER OK: 127.0.0.1:{self.server.port}\n'), output)
        self.assertEqual(len(output.splitlines()), 1 + 6)
        self.assertFalse(self.server.received)

    def test_bad(self):
        status, output = self.run_script(
            '--check', '--server', 'news',
            uri_news=f'smtp://jane:s3cr3t@127.0.0.1:{free_port()}')
        self.assertEqual(status, 2, output)
        self.assertTrue(output.startswith('EMAIL SERVER CRITICAL: news\n'))
        self.assertIn('BAD', output)
        self.assertNotIn('s3cr3t', output)

    def test_unknown_server(self):
        status, output = self.run_script('--check', '--server', 'nobody')
        self.assertEqual(status, 2)
        self.assertIn('nobody', output)

    def test_arguments(self):
        status, output = self.run_script('--server', 'news')
        self.assertEqual(
            (status, output),
            (3, "EMAIL QUEUE UNKNOWN: --server goes with --check only\n"))

    def test_in_time(self):
        self.server.script['greeting'] = 'hang'
        self.addCleanup(self.server.script.clear)
        status, output = self.run_script('--check', '-t', '1')
        self.assertEqual(
            (status, output),
            (3, "EMAIL QUEUE UNKNOWN: no answer within 1 s\n"))


del QueueTestCase, ProcessTestCase, RPCTestCase, CheckTestCase


if __name__ == '__main__':
    unittest.main()
