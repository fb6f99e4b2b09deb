# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The login by OAuth 2, with a real token endpoint and a real server."""
import base64
import contextlib
import http.client
import io
import json
import logging
import os
import shutil
import smtplib
import socket
import sys
import tempfile
import threading
import time
import traceback
import unittest
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch
from urllib.parse import quote, quote_plus

from sql import Table

from trytond.pool import Pool
from trytond.transaction import Transaction

from .. import oauth, sasl, smtp
from ..exceptions import LoginError
from .endpoint import Endpoint
from .processes import ProcessTestCase, Senders
from .smtpd import Server, make_certificates
from .tools import QueueTestCase, configured

USER = 'erp+x@example.com'
CLIENT = '11111111-2222-3333-4444-555555555555'
SCOPE = 'https://outlook.office365.com/.default'
SECONDS = 1


@unittest.skipUnless(shutil.which('openssl'), "it makes the certificates")
class OAuthTestCase(QueueTestCase):
    "A server that accepts only logins by a token, over TLS"

    @classmethod
    def setUpClass(cls):
        directory = cls.enter(tempfile.TemporaryDirectory())
        cls.certificates = make_certificates(directory)
        certfile, keyfile = cls.certificates.good
        cls.server_options = {
            'tls': 'starttls', 'certfile': certfile, 'keyfile': keyfile,
            'bearer': lambda user, token: False}
        cls.enter(patch.dict(
                os.environ, SSL_CERT_FILE=cls.certificates.ca))
        super().setUpClass()

    def setUp(self):
        super().setUp()
        oauth._tokens.clear()
        self.directory = Path(
            self.enter_here(tempfile.TemporaryDirectory()))
        self.endpoint = self.enter_here(Endpoint(self.certificates.good))
        self.server.bearer = self.endpoint.good
        self.addCleanup(self.server.script.clear)
        self.enter_here(configured('email', uri=self.uri(self.server)))
        self.enter_here(configured(**self.options()))
        self.enter_here(
            patch.object(oauth, 'ENDPOINT_SECONDS', SECONDS))

    def clear(self):
        super().clear()
        self.server.commands.clear()

    def uri(self, server):
        scheme, _, rest = server.uri.partition('://')
        return f'{scheme}://{quote(USER, safe="")}@{rest}'

    def options(self, **changes):
        return {
            'oauth_token_uri': self.endpoint.uri,
            'oauth_client_id': CLIENT,
            'oauth_client_secret': self.endpoint.secret,
            'oauth_scope': SCOPE,
            **changes}

    def serve(self, **options):
        return self.enter_here(
            Server(**{**self.server_options, 'bearer': self.endpoint.good,
                    **options}))

    def errors(self):
        with self.transaction(readonly=True):
            Error = Pool().get('ir.error')
            return [e.message for e in Error.search([])]

    def troubled(self, *words, runs=3):
        "Check that nothing is sent, which is told once, and return the error"
        ids = self.queue_many(3)
        received = len(self.server.received)
        for _ in range(runs):
            self.run_cron()
        self.assertEqual(len(self.server.received), received)
        errors = set()
        for id_ in ids:
            state, attempts, first, error = self.read(
                id_, 'state', 'attempts', 'first_attempt', 'error')
            self.assertEqual((state, attempts, first), ('outbox', 0, None))
            errors.add(error)
        error, = errors - {None}
        told, = self.errors()
        for word in words:
            self.assertIn(word, error)
            self.assertIn(word, told)
        return error

    def healed(self):
        self.end_wait_for_login()
        self.run_cron()
        self.assertEqual(self.states().keys(), {'sent'})
        self.assertEqual({a for a, in self.rows('attempts')}, {1})


class OAuthGoodTestCase(OAuthTestCase):

    def test_mechanisms(self):
        for tls in ['starttls', 'smtps']:
            for mechanism in ['XOAUTH2', 'OAUTHBEARER']:
                with self.subTest(tls=tls, mechanism=mechanism):
                    oauth._tokens.clear()
                    self.clear()
                    self.endpoint.clear()
                    server = self.serve(
                        tls=tls, bearer_mechanisms=(mechanism,))
                    with configured('email', uri=self.uri(server)):
                        self.queue()
                        self.send_all()
                    self.assertEqual(len(server.received), 1)
                    self.assertEqual(server.violations, [])
                    self.assertEqual(self.endpoint.users, {USER})
                    form, = self.endpoint.forms
                    self.assertEqual(form, {
                            'grant_type': 'client_credentials',
                            'client_id': CLIENT,
                            'client_secret': self.endpoint.secret,
                            'scope': SCOPE})

    def test_one_token_for_all_sessions(self):
        with configured(connections=4, messages_per_connection=1):
            for _ in range(2):
                self.queue_many(10)
                self.send_all()
        self.assertGreater(self.server.sessions, 10)
        self.assertEqual(len(self.server.received), 20)
        self.assertEqual(len(self.endpoint.forms), 1)

    def test_send(self):
        id_ = self.queue()
        with self.transaction():
            Pool().get('email.queue')(id_).send()
        self.assertEqual(self.read(id_, 'state'), 'sent')

    def test_connection_that_is_given(self):
        id_ = self.queue()
        with Server() as other, smtplib.SMTP('127.0.0.1', other.port) as smtp:
            with self.transaction():
                Pool().get('email.queue')(id_).send(smtp)
        self.assertEqual(self.read(id_, 'state'), 'sent')
        self.assertFalse(self.endpoint.forms)

    def test_named_server(self):
        news = self.serve()
        names = {f'{n}_news': v for n, v in self.options().items()}
        none = dict.fromkeys(self.options())
        with configured(uri_news=self.uri(news), **names), \
                configured(**none), configured('email', uri='smtp://[::1]:1'):
            self.queue(server='news')
            self.send_all()
            self.assertIsNone(oauth.access_token())
            self.assertIn(
                oauth.access_token('news'), self.endpoint.tokens)
        self.assertEqual(len(news.received), 1)

    def test_without_tls_on_loopback(self):
        server = self.serve(tls=None)
        self.endpoint.stop()
        with Endpoint() as endpoint:
            server.bearer = endpoint.good
            with configured('email', uri=self.uri(server)), \
                    configured(oauth_token_uri=endpoint.uri):
                self.queue()
                self.send_all()
        self.assertEqual(len(server.received), 1)

    def test_token_of_a_module(self):
        def access_token(server=None, refused=None):
            return 'another' if refused else 'one'

        self.server.bearer = lambda user, token: token == 'another'
        with self.transaction(readonly=True):
            EmailQueue = Pool().get('email.queue')
        with patch.object(EmailQueue, 'access_token', access_token), \
                configured(**dict.fromkeys(self.options())):
            self.queue()
            self.send_all()
        self.assertEqual(len(self.server.received), 1)

    def test_settings_are_changed(self):
        oauth.access_token()
        with configured(oauth_client_id='another'):
            oauth.access_token()
        self.assertEqual(
            [f['client_id'] for f in self.endpoint.forms],
            [CLIENT, 'another'])


class LifeTestCase(OAuthTestCase):
    "How long a token is used"

    def asked(self, seconds):
        "Return how many tokens are asked for by calls at these seconds"
        oauth._tokens.clear()
        self.endpoint.forms.clear()
        clock = SimpleNamespace(monotonic=lambda: now)
        with patch.object(oauth, 'time', clock):
            for now in seconds:
                oauth.access_token()
        return len(self.endpoint.forms)

    def test_renewed_five_minutes_early(self):
        for lifetime, last in [
                (3600, 3299), ('3600', 3299), (600, 299), (60, 29),
                (1e9, 86099), (None, 299), ('soon', 299), (float('nan'), 299)]:
            with self.subTest(lifetime=lifetime):
                self.endpoint.expires_in = lifetime
                self.assertEqual(self.asked([0, last]), 1)
                self.assertEqual(self.asked([0, last + 1]), 2)

    def test_without_life(self):
        for lifetime in [0, -1, float('-inf')]:
            self.endpoint.expires_in = lifetime
            self.assertEqual(self.asked([0, 0]), 2)


class OAuthRefusedTestCase(OAuthTestCase):
    "A server that does not accept the token"

    def test_once(self):
        for mechanism in ['XOAUTH2', 'OAUTHBEARER']:
            with self.subTest(mechanism):
                self.server.bearer_mechanisms = (mechanism,)
                self.endpoint.clear()
                self.queue()
                self.send_all()
                self.endpoint.take_back()
                self.queue()
                self.send_all()
                self.assertEqual(len(self.endpoint.forms), 2)
                self.assertEqual(self.states().keys(), {'sent'})
                self.assertEqual({a for a, in self.rows('attempts')}, {1})
                self.assertEqual(self.server.violations, [])
                oauth._tokens.clear()

    def test_fresh_one_is_for_all_sessions(self):
        oauth.access_token()
        self.endpoint.take_back()
        with configured(connections=8):
            self.queue_many(40)
            self.send_all()
        self.assertEqual(self.states(), {'sent': 40})
        self.assertEqual(len(self.endpoint.forms), 2)

    def test_for_good(self):
        self.server.bearer = lambda user, token: False
        self.troubled("535", "authentication failed")
        # A fresh token in each run, and the token of the first run
        self.assertLessEqual(len(self.endpoint.forms), 2 * 3 + 1)
        self.server.bearer = self.endpoint.good
        self.healed()

    def test_switched_off(self):
        self.server.script['auth'] = (
            "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication"
            " is disabled for the Tenant")
        self.troubled("SmtpClientAuthentication is disabled")
        self.server.script.clear()
        self.healed()

    def test_busy(self):
        "Test no fresh token is asked for when the server is busy"
        self.server.script['auth'] = '454 4.7.0 try later'
        self.troubled("454", runs=1)
        self.assertEqual(len(self.endpoint.forms), 1)
        self.server.script.clear()
        self.healed()

    def test_offers_none(self):
        self.server.bearer_mechanisms = ('PLAIN',)
        self.addCleanup(
            setattr, self.server, 'bearer_mechanisms',
            Server.bearer_mechanisms)
        self.troubled("the server offers no login by OAuth")
        self.server.bearer_mechanisms = Server.bearer_mechanisms
        self.healed()

    def test_uri(self):
        here = self.server.uri.partition('://')[2]
        for login, words in [
                ('', "no user"), ('erp:s3cr3t@', "has a password"),
                ('j%C3%B6@', "not of ASCII"), ('a%01b@', "not of ASCII"),
                ]:
            with self.subTest(login), \
                    configured('email', uri=f'smtp+tls://{login}{here}'):
                self.clear()
                self.troubled(words, runs=1)
        self.assertFalse([c for _, c in self.server.commands if 'AUTH' in c])


class EndpointTestCase(OAuthTestCase):
    "An endpoint that gives no token"
    scripts = {
        'hang': "timed out",
        'drip': "timed out",
        'rubbish': "makes no sense",
        'no-json': "makes no sense",
        'deep': "makes no sense",
        'list': "makes no sense",
        'no-token': "makes no sense",
        'control': "makes no sense",
        'other-type': "makes no sense",
        'long-token': "makes no sense",
        'huge': "too long",
        'huge-error': "too long",
        'unavailable': "HTTP status",
        'redirect': "HTTP status",
        'cut': "makes no sense",
        'invalid-client': "invalid_client",
        'echo': "invalid_request",
        }

    def test_scripts(self):
        for script, words in self.scripts.items():
            with self.subTest(script):
                self.clear()
                oauth._tokens.clear()
                self.endpoint.clear()
                self.endpoint.script = script
                started = time.monotonic()
                error = self.troubled(words, runs=2)
                self.assertLess(time.monotonic() - started, 15)
                self.assertIn("no token from 127.0.0.1", error)
                self.assertEqual(self.endpoint.got, [])
                # The mail server is not even connected to
                self.assertEqual(self.server.commands, [])
                self.endpoint.script = None
                self.healed()

    def test_expired_secret(self):
        self.queue()
        self.send_all()
        self.endpoint.take_back()
        with patch.object(self.endpoint, 'secret', 'another'):
            self.troubled("invalid_client", "AADSTS7000222")
        self.healed()

    def test_down(self):
        self.endpoint.stop()
        self.troubled("refused")
        self.endpoint.start()
        self.addCleanup(self.endpoint.stop)
        self.healed()

    def test_proxy(self):
        "Test a proxy is used for other machines, and not for this machine"
        lines = []

        def serve():
            sock, _ = listener.accept()
            with sock, sock.makefile('rb') as file:
                lines.append(file.readline())
                sock.sendall(b'HTTP/1.1 403 No\r\n\r\n')

        with socket.create_server(('127.0.0.1', 0)) as listener:
            proxy = f'http://127.0.0.1:{listener.getsockname()[1]}'
            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            with patch.dict(
                    os.environ, https_proxy=proxy, http_proxy=proxy,
                    no_proxy='', NO_PROXY=''):
                self.assertTrue(oauth.access_token())
                with configured(
                        oauth_token_uri='https://login.example.com/token'), \
                        self.assertRaisesRegex(LoginError, '403'):
                    oauth.access_token()
            thread.join(10)
        self.assertTrue(lines[0].startswith(b'CONNECT login.example.com:443'))

    def test_not_trusted(self):
        with patch.dict(os.environ, SSL_CERT_FILE=os.devnull):
            self.troubled("certificate verify failed", runs=1)
        self.assertFalse(self.endpoint.forms)
        self.healed()

    def test_uri(self):
        for uri, words in [
                ('http://login.example.com/token', "must begin with https"),
                ('http://127.0.0.1.example.com/', "must begin with https"),
                ('http://127.0.0.1@login.example.com/', "is not a URI"),
                ('https://user:s3cr3t@127.0.0.1/', "is not a URI"),
                ('ftp://127.0.0.1/', "is not a URI"),
                ('file:///nowhere', "cannot be read"),
                ('/token', "is not a URI"),
                ('https://[::1/', "is not a URI"),
                ('https://127.0.0.1:port/', "is not a URI"),
                ('https://127.0.0.1/\u00fc', "is not a URI"),
                (None, "is not set"),
                ]:
            with self.subTest(uri), configured(oauth_token_uri=uri):
                with self.assertRaisesRegex(LoginError, words) as cm:
                    oauth.access_token()
                self.assertIn('"oauth_token_uri"', cm.exception.words)
                self.assertNotIn('s3cr3t', cm.exception.words)

    def test_missing(self):
        for name in ['client_id', 'client_secret']:
            with self.subTest(name), configured(**{f'oauth_{name}': None}):
                self.clear()
                self.troubled(f'"oauth_{name}" is not set', runs=1)
        self.assertFalse(self.endpoint.forms)

    def test_scope_is_optional(self):
        with configured(oauth_scope=None):
            oauth.access_token()
        self.assertNotIn('scope', self.endpoint.forms[0])

    def test_nothing_stays_open(self):
        for script in ['hang', 'drip', 'huge']:
            with self.subTest(script):
                self.endpoint.script = script
                threads = set(threading.enumerate())
                with self.assertRaises(LoginError):
                    oauth.access_token()
                end = time.monotonic() + 10
                name = 'the token for the default server'
                while [t for t in set(threading.enumerate()) - threads
                        if t.name == name]:
                    self.assertLess(time.monotonic(), end)
                    time.sleep(.01)


class FileTestCase(OAuthTestCase):
    "Values that are in files"

    def file(self, text, name='value'):
        path = self.directory / name
        path.write_bytes(text.encode('utf-8'))
        return f'file:{path}'

    def test_each(self):
        for name, value in self.options().items():
            with self.subTest(name), \
                    configured(**{name: self.file(f'{value}\n')}):
                oauth.access_token()
        first, *others = self.endpoint.forms
        self.assertEqual(others, [first] * 3)

    def test_renewed_file(self):
        "Test a secret that is replaced needs no restart"
        with configured(oauth_client_secret=self.file('old')):
            self.troubled("invalid_client", runs=1)
            self.file(self.endpoint.secret)
            self.healed()

    def test_not_read(self):
        fifo = self.directory / 'fifo'
        os.mkfifo(fifo)
        large = self.file('x' * (oauth.FILE_SIZE + 1), 'large')
        (self.directory / 'bytes').write_bytes(b'\xff\xfe')
        for value, words in [
                (f'file:{self.directory}/none', "No such file"),
                (f'file:{self.directory}', "no file|directory"),
                (f'file:{fifo}', "no file"),
                ('file:/dev/zero', "no file"),
                (large, "too large"),
                (f'file:{self.directory}/bytes', "no text"),
                ('file:', "No such file"),
                ]:
            with self.subTest(value), configured(oauth_client_secret=value):
                with self.assertRaisesRegex(
                        LoginError, f'"oauth_client_secret".*({words})'):
                    oauth.access_token()
        self.assertFalse(self.endpoint.forms)


class OAuthKeyTestCase(OAuthTestCase):
    "With the key of a service account"

    @classmethod
    def setUpClass(cls):
        try:
            from joserfc.jwk import RSAKey
        except ImportError:
            raise unittest.SkipTest("the extra oauth is not installed")
        super().setUpClass()
        cls.key = RSAKey.generate_key(2048)
        cls.pem = cls.key.as_pem(private=True).decode('ascii')

    def setUp(self):
        super().setUp()
        self.endpoint.public_key = self.key
        for name in ['token_uri', 'client_id', 'client_secret']:
            self.enter_here(configured(**{f'oauth_{name}': None}))
        self.enter_here(configured(
                oauth_scope='https://mail.google.com/',
                oauth_key=self.json()))

    def json(self, **changes):
        path = self.directory / 'key.json'
        path.write_text(json.dumps({
                    'type': 'service_account',
                    'private_key_id': 'abc',
                    'private_key': self.pem,
                    'client_email': 'erp@project.example.com',
                    'token_uri': self.endpoint.uri,
                    **changes}))
        return f'file:{path}'


class ServiceAccountTestCase(OAuthKeyTestCase):
    "What the key of a service account signs"

    def test_google(self):
        self.queue()
        self.send_all()
        self.assertEqual(len(self.server.received), 1)
        form, = self.endpoint.forms
        self.assertEqual(form.keys(), {'grant_type', 'assertion'})
        claims = self.endpoint.claims
        self.assertEqual(claims['iss'], 'erp@project.example.com')
        self.assertEqual(claims['sub'], USER)
        self.assertEqual(claims['scope'], 'https://mail.google.com/')
        self.assertLessEqual(claims['exp'] - claims['iat'], 3600)
        header = base64.urlsafe_b64decode(
            form['assertion'].partition('.')[0] + '==')
        self.assertIn(b'"abc"', header)

    def test_pem(self):
        path = self.directory / 'key.pem'
        path.write_text(self.pem)
        with configured(
                oauth_key=f'file:{path}', oauth_client_id=CLIENT,
                oauth_token_uri=self.endpoint.uri):
            self.queue()
            self.send_all()
        self.assertEqual(len(self.server.received), 1)
        self.assertEqual(self.endpoint.claims['iss'], CLIENT)
        self.assertEqual(
            self.endpoint.forms[0]['scope'], 'https://mail.google.com/')

    def test_not_valid(self):
        cases = [
            ({'private_key': 'no key'}, "no RSA key"),
            ({'private_key': None}, "in JSON"),
            ({'client_email': 1}, "in JSON"),
            ({'token_uri': 'http://login.example.com'}, "must begin with"),
            ]
        for changes, words in cases:
            with self.subTest(words), \
                    configured(oauth_key=self.json(**changes)), \
                    self.assertRaisesRegex(LoginError, words):
                oauth.access_token()
        for value, words in [
                ('{', "in JSON"), ('[]', "is not set"),
                ('{"a":' * 5000, "in JSON")]:
            with self.subTest(words), configured(oauth_key=value), \
                    self.assertRaisesRegex(LoginError, words):
                oauth.access_token()
        with configured(oauth_client_secret='x'), \
                self.assertRaisesRegex(LoginError, "both set"):
            oauth.access_token()

    def test_without_authlib(self):
        with patch.dict(sys.modules, {'authlib.oauth2.rfc7523': None}):
            self.troubled("trytond_email_queue[oauth]", runs=1)
        self.healed()


class SecretsTestCase(OAuthKeyTestCase):
    "No secret is in anything that is shown, printed or logged"

    def setUp(self):
        super().setUp()
        self.told = io.StringIO()
        handler = logging.StreamHandler(self.told)
        root = logging.getLogger()
        level = root.level
        root.setLevel(logging.DEBUG)
        root.addHandler(handler)
        self.addCleanup(root.setLevel, level)
        self.addCleanup(root.removeHandler, handler)
        for target in [
                contextlib.redirect_stdout, contextlib.redirect_stderr]:
            self.enter_here(target(self.told))
        for cls in [smtplib.SMTP, http.client.HTTPConnection]:
            self.enter_here(patch.object(cls, 'debuglevel', 2))
        handler = oauth._Handler.__init__

        def debugged(self, *args):
            handler(self, *args)
            # As the class says from Python 3.12 on
            self._debuglevel = 2

        self.enter_here(
            patch.object(oauth._Handler, '__init__', debugged))

    def secrets(self):
        yield self.endpoint.secret
        yield quote_plus(self.endpoint.secret)
        yield from (x for x in self.pem.split() if len(x) > 20)
        for form in self.endpoint.forms:
            if 'assertion' in form:
                yield form['assertion']
        for token in [*self.endpoint.tokens, Endpoint.token.format('')[5:]]:
            yield token
            for response in [sasl._xoauth2, sasl._oauthbearer]:
                sock = SimpleNamespace(
                    getpeername=lambda: ('127.0.0.1', self.server.port))
                server = SimpleNamespace(sock=sock, _host='127.0.0.1')
                initial, _ = response(server, USER, token)
                yield base64.b64encode(initial.encode()).decode()

    def check(self):
        with self.transaction(readonly=True) as transaction:
            cursor = transaction.connection.cursor()
            for table in [
                    'email_queue', 'ir_error', 'res_notification',
                    'ir_message']:
                cursor.execute(f'SELECT * FROM {table}')
                self.told.write(str(cursor.fetchall()))
        told = self.told.getvalue()
        self.assertIn("trouble with the server", told)
        for secret in self.secrets():
            self.assertNotIn(secret, told)

    def credentials(self):
        return configured(**self.options(oauth_key=None))

    def test_all_scripts(self):
        for options in [contextlib.nullcontext, self.credentials]:
            for script in [*EndpointTestCase.scripts, None]:
                if script in {'huge', 'huge-error', 'hang'}:
                    continue
                with options():
                    oauth._tokens.clear()
                    self.endpoint.script = script
                    self.queue()
                    self.run_cron()
        self.server.script['dot'] = '250'
        self.endpoint.take_back()
        self.queue()
        self.run_cron()
        self.check()

    def test_server_repeats_the_token(self):
        def token(session, step):
            if step == 'auth':
                return f'535 5.7.8 {" ".join(self.endpoint.tokens)}'

        def command(session, step):
            if step == 'auth':
                return f'535 5.7.8 {session.command}'

        self.addCleanup(setattr, self.server, 'script', {})
        for script in [token, command]:
            self.clear()
            self.server.script = script
            self.endpoint.forms.clear()
            oauth._tokens.clear()
            self.queue()
            self.run_cron()
            error, = self.errors()
            self.assertIn("535 the server refuses the token", error)
            # Once more with a fresh token, as after any refused login
            self.assertEqual(len(self.endpoint.forms), 2)
        self.check()

    def test_user_is_no_ascii(self):
        "Test no exception of a codec holds a secret"
        with configured('email', uri=self.uri(self.server).replace(
                    'erp', 'j%C3%B6')):
            self.queue()
            self.run_cron()
        self.check()

    def test_exceptions(self):
        for options in [contextlib.nullcontext, self.credentials]:
            for script in EndpointTestCase.scripts:
                if script in {'huge', 'huge-error', 'hang'}:
                    continue
                self.endpoint.script = script
                oauth._tokens.clear()
                with self.subTest(script), options(), \
                        self.assertRaises(LoginError) as cm:
                    oauth.access_token()
                error = cm.exception
                seen = [''.join(traceback.format_exception(error))]
                while error := error.__context__ or error.__cause__:
                    seen.append(f'{error!r} {error} {vars(error)}')
                for secret in self.secrets():
                    self.assertNotIn(secret, ''.join(seen))
                self.assertLess(len(cm.exception.words), 600)

    def test_repr(self):
        with self.credentials():
            token = oauth.access_token()
            tokens, = oauth._tokens.values()
            client = smtp.Client(tokens=oauth.access_token)
            text = f'{tokens} {tokens.request} {client} {client.tokens}'
            self.assertNotIn(token, text)
            self.assertNotIn(self.endpoint.secret, text)


class SharingTestCase(OAuthTestCase):
    "Several threads need a token at the same time"

    def together(self, count):
        "Let so many threads ask at once and return what each of them got"
        results, threads = [], []

        def ask():
            try:
                results.append(oauth.access_token())
            except LoginError as error:
                results.append(error)

        release = threading.Event()
        answer = self.endpoint.answer_token

        def held(handler, form):
            release.wait(10)
            if self.endpoint.fails:
                return self.endpoint.answer_unavailable(handler, form)
            return answer(handler, form)

        self.enter_here(
            patch.object(self.endpoint, 'answer_held', held, create=True))
        self.endpoint.script = 'held'
        waiting = patch.object(
            oauth.Future, 'result', autospec=True, side_effect=self.counting(
                oauth.Future.result, count, release))
        with waiting, patch.object(oauth, 'ENDPOINT_SECONDS', 20):
            threads += [threading.Thread(target=ask) for _ in range(count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
        return results

    def counting(self, result, count, release):
        calls = []

        def counted(future):
            calls.append(future)
            # All threads wait but the one that asks
            if len(calls) == count - 1:
                release.set()
            return result(future)

        return counted

    def test_threads(self):
        self.endpoint.fails = False
        results = self.together(8)
        self.assertEqual(set(results), set(self.endpoint.tokens))
        self.assertEqual((len(results), len(self.endpoint.forms)), (8, 1))

    def test_threads_without_token(self):
        self.endpoint.fails = True
        results = self.together(8)
        self.assertEqual(len(self.endpoint.forms), 1)
        self.assertEqual(len({id(error) for error in results}), 8)
        for error in results:
            self.assertIn("HTTP status 503", error.words)

    def test_forked(self):
        "Test a process that was forked in a wrong moment does not wait"
        with oauth._tokens_lock:
            pid = os.fork()
            if not pid:
                try:
                    os._exit(0 if oauth.access_token() else 1)
                finally:
                    os._exit(2)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)

    def test_interrupted_while_others_wait(self):
        "Test the other threads get an error, and are not interrupted"
        asked = oauth.Future()
        request = SimpleNamespace(send=self.interrupted)
        with self.assertRaises(KeyboardInterrupt):
            oauth._Tokens(request)._ask(asked)
        with self.assertRaisesRegex(LoginError, "interrupted"):
            asked.result(0)

    def interrupted(self):
        raise KeyboardInterrupt

    def test_interrupted(self):
        "Test a later thread does not wait for an interrupted one"
        with patch.object(
                oauth._Request, 'send', side_effect=KeyboardInterrupt), \
                self.assertRaises(KeyboardInterrupt):
            oauth.access_token()
        self.assertTrue(oauth.access_token())


class OAuthProcessesTestCase(ProcessTestCase, OAuthTestCase):
    "Senders in processes of their own"

    def test_two(self):
        options = {**self.options(), 'connections': 3}
        self.queue_many(5)
        for i in range(2):
            self.again()
            with Senders(self.database, **options) as senders:
                senders.join(*senders.start())
            self.assertEqual(len(self.endpoint.forms), i + 1)
        self.assertEqual(
            self.states().keys(), {'sent'}, self.rows('error'))

    def again(self):
        "Let all emails be sent once more"
        t = Table('email_queue')
        with Transaction().start(self.database, 0) as transaction:
            transaction.connection.cursor().execute(
                *t.update([t.state], ['outbox']))

    def test_side_by_side(self):
        self.server.delay = .02
        self.addCleanup(setattr, self.server, 'delay', 0)
        self.queue_many(60)
        options = {**self.options(), 'senders': 2, 'connections': 3}
        with Senders(self.database, **options) as senders:
            senders.join(*senders.start(2))
            self.drain(senders)
        self.assert_sent(60)
        self.assertLessEqual(len(self.endpoint.forms), len(senders.sent))


class SaslTestCase(unittest.TestCase):

    def test_is_private(self):
        for host, private in [
                ('127.0.0.1', True), ('127.9.9.9', True), ('::1', True),
                ('10.0.0.1', False), ('192.0.2.1', False),
                ('fe80::1%eth0', False), ('2001:db8::1', False)]:
            sock = SimpleNamespace(getpeername=lambda: (host, 25))
            self.assertEqual(sasl._is_private(sock), private)

    def test_names(self):
        "Test signs that separate the parts of OAUTHBEARER (RFC 5801 4)"
        sock = SimpleNamespace(getpeername=lambda: ('127.0.0.1', 587))
        initial, _ = sasl._oauthbearer(
            SimpleNamespace(sock=sock, _host='mail.example.com'),
            'a,b=c@example.com', 'TOKEN')
        self.assertEqual(
            initial, 'n,a=a=2Cb=3Dc@example.com,\x01host=mail.example.com\x01'
            'port=587\x01auth=Bearer TOKEN\x01\x01')

    def test_token(self):
        for token in ['', 'a b', 'a\r\nRSET', 'ü', 'a\x01b']:
            with self.subTest(token), self.assertRaisesRegex(
                    LoginError, 'other characters'):
                sasl.log_in(None, USER, token)

    def test_alike(self):
        for words, expected in [
                ("invalid_client: AADSTS7000215: Invalid Trace ID: 1a-2",
                    "invalid_client: AADSTS7000215: Invalid Trace ID:"),
                ("AADSTS at 10:15", "AADSTS at")]:
            self.assertEqual(smtp.gist(words), expected)


del QueueTestCase, ProcessTestCase, OAuthTestCase, OAuthKeyTestCase


if __name__ == '__main__':
    unittest.main()
