# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""A token endpoint on loopback: client credentials and JWT bearer."""
import datetime as dt
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl

__all__ = ['Endpoint']

JWT_BEARER = 'urn:ietf:params:oauth:grant-type:jwt-bearer'
EXPIRED = (
    "AADSTS7000222: The provided client secret keys for app 'erp' are "
    "expired. Trace ID: 5b2f1c3e-0d4a-4f4e-9a51-8e6c2c1f0a00 Correlation ID: "
    "0f8e7d6c-5b4a-4392-8170-6f5e4d3c2b1a Timestamp: 2026-11-27 {:%H:%M:%S}Z")
HUGE = 10 * 1024 * 1024


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.endpoint.got.append(self.path)
        self.answer(404, b'')

    def do_POST(self):
        length = int(self.headers['Content-Length'])
        form = dict(parse_qsl(self.rfile.read(length).decode('ascii')))
        try:
            self.server.endpoint.asked(self, form)
        except ConnectionError:
            pass
        self.close_connection = True

    def answer(self, status, data, *fields):
        if not isinstance(data, bytes):
            data = json.dumps(data).encode('ascii')
        self.send_response(status)
        for name, value in [
                *fields, ('Content-Type', 'application/json'),
                ('Content-Length', str(len(data)))]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


class Endpoint:
    """An endpoint that gives ``TOKEN-1``, ``TOKEN-2`` … to who knows the
    secret.

    ``script`` is the name of a method ``answer_…`` that answers instead.
    :meth:`good` says whether a token was given and not taken back.
    """
    secret = 'c1ient~s3cr3t/with+signs='
    token = 'TOKEN-{}-0123456789abcdefghij'

    def __init__(self, certificate=None, public_key=None):
        self.certificate = certificate
        self.public_key = public_key
        self.port = 0
        self.expires_in = 3600
        self.clear()

    def clear(self):
        self.script = None
        self.forms = []
        self.got = []
        self.tokens = []
        self.bad = set()
        self.users = set()

    def __enter__(self):
        return self.start()

    def __exit__(self, *args):
        self.stop()

    def start(self):
        self._over = threading.Event()
        self._server = ThreadingHTTPServer(('127.0.0.1', self.port), Handler)
        self._server.daemon_threads = True
        self._server.endpoint = self
        self.port = self._server.server_port
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self.certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=[.01], daemon=True)
        self._thread.start()
        return self

    def stop(self):
        if not self._over.is_set():
            self._over.set()
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    @property
    def uri(self):
        scheme = 'https' if self.certificate else 'http'
        return f'{scheme}://127.0.0.1:{self.port}/tenant/token'

    def good(self, user, token):
        "Return whether a login with the token is accepted"
        self.users.add(user)
        return token in self.tokens and token not in self.bad

    def take_back(self):
        "Make all tokens that were given so far invalid"
        self.bad.update(self.tokens)

    def asked(self, handler, form):
        self.forms.append(form)
        if self.script:
            name = self.script.replace('-', '_')
            return getattr(self, f'answer_{name}')(handler, form)
        if self.knows(form):
            return self.answer_token(handler, form)
        self.answer_invalid_client(handler, form)

    def knows(self, form):
        if form['grant_type'] == 'client_credentials':
            return form['client_secret'] == self.secret
        if form['grant_type'] == JWT_BEARER and self.public_key:
            from joserfc import jwt
            self.claims = jwt.decode(form['assertion'], self.public_key).claims
            return self.claims['aud'] == self.uri

    def answer_token(self, handler, form):
        token = self.token.format(len(self.tokens) + 1)
        self.tokens.append(token)
        handler.answer(200, {
                'token_type': 'Bearer', 'expires_in': self.expires_in,
                'access_token': token})

    def answer_invalid_client(self, handler, form):
        words = EXPIRED.format(dt.datetime.now(dt.timezone.utc))
        handler.answer(401, {
                'error': 'invalid_client', 'error_description': words,
                'error_codes': [7000222]})

    def answer_echo(self, handler, form):
        "Answer with an error that repeats all that was sent"
        handler.answer(400, {
                'error': 'invalid_request',
                'error_description': f'you sent {form} {list(form.values())}'})

    def answer_hang(self, handler, form):
        self._over.wait()

    def answer_drip(self, handler, form):
        "Send byte after byte of a header that has no end"
        handler.wfile.write(b'HTTP/1.1 200 OK\r\nX-Drip: ')
        while not self._over.wait(.02):
            handler.wfile.write(b'x')

    def answer_rubbish(self, handler, form):
        handler.wfile.write(b'%% \xff this is no answer\r\n\r\n')

    def answer_no_json(self, handler, form):
        handler.answer(200, b'<html>Sign in</html>')

    def answer_deep(self, handler, form):
        handler.answer(200, b'[' * 60000)

    def answer_list(self, handler, form):
        handler.answer(200, ['access_token'])

    def answer_no_token(self, handler, form):
        handler.answer(200, {'token_type': 'Bearer', 'access_token': None})

    def answer_control(self, handler, form):
        handler.answer(200, {'access_token': 'TOKEN\r\nRSET'})

    def answer_other_type(self, handler, form):
        handler.answer(200, {'access_token': 'TOKEN', 'token_type': 'mac'})

    def answer_long_token(self, handler, form):
        handler.answer(200, {'access_token': 'T' * 60000})

    def answer_huge(self, handler, form):
        handler.answer(200, {'access_token': 'T' * HUGE})

    def answer_huge_error(self, handler, form):
        handler.answer(400, {'error': 'T' * HUGE})

    def answer_unavailable(self, handler, form):
        handler.answer(503, b'<html>Service unavailable</html>')

    def answer_redirect(self, handler, form):
        handler.answer(302, b'', ('Location', self.uri))

    def answer_cut(self, handler, form):
        handler.wfile.write(
            b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"access')
