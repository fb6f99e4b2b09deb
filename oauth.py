# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Tokens for the login at a mail server by OAuth 2.

The endpoint is asked by client credentials (RFC 6749 4.4) or by the key of a
service account (RFC 7523), because neither needs a refresh token: it would
have to be stored, and could expire unnoticed. A token is kept in the memory of
the process only.
"""
import http.client
import ipaddress
import json
import logging
import math
import os
import re
import stat
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple
from urllib.parse import quote_plus, urlencode, urlsplit

from . import settings
from .exceptions import LoginError
from .sasl import user_of
from .settings import server_uri
from .smtp import open_in_time, server_name
from .words import printable

__all__ = ['access_token', 'drop_token', 'options']
logger = logging.getLogger(__name__)

OPTIONS = ['token_uri', 'client_id', 'client_secret', 'scope', 'key']
FILE = 'file:'
CLIENT_CREDENTIALS = 'client_credentials'
JWT_BEARER = 'urn:ietf:params:oauth:grant-type:jwt-bearer'
# The longest time from the request to the last byte of its answer
ENDPOINT_SECONDS = 30
# How long before its end a token is replaced
RENEW_SECONDS = 5 * 60
# The lifetime of a token if the endpoint does not tell it
LIFETIME = 10 * 60
LIFETIME_MAX = 24 * 60 * 60
ANSWER_SIZE = FILE_SIZE = 64 * 1024
# The longest token that fits in the command of a login (RFC 4954 4)
TOKEN_LENGTH = 8 * 1024
WORDS_LENGTH = 400
# Each line of a key with at least so many characters is a secret by itself
LINE_LENGTH = 16

_token = re.compile(r'[\x21-\x7e]+')
_tokens = {}
_tokens_lock = threading.Lock()


def options(server):
    "Return the texts of the OAuth options that are set for a server, by name"
    texts = {
        name: settings.text(f'oauth_{name}', server)
        for name in OPTIONS}
    return {name: text for name, text in texts.items() if text}


def access_token(server=None, refused=None):
    "Return a token: see ``EmailQueue.access_token``"
    values = options(server)
    if not values:
        return None
    request = _Request(server, server_uri(server), values)
    with _tokens_lock:
        tokens = _tokens.get(server)
        if tokens is None or tokens.request != request:
            tokens = _tokens[server] = _Tokens(request)
    return tokens.get(refused)


def drop_token(server):
    "Drop the token of a server, so that the next call asks for a new one"
    with _tokens_lock:
        _tokens.pop(server, None)


def _begin():
    "Start a forked process without tokens, and with a lock that is free"
    global _tokens_lock
    _tokens_lock = threading.Lock()
    _tokens.clear()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_begin)


class _Tokens:
    "The token of a server: one thread asks for it, and the others wait"

    def __init__(self, request):
        self.request = request
        self._lock = threading.Lock()
        self._token = None
        self._renew_at = 0
        self._asked = None

    def get(self, refused=None):
        with self._lock:
            if (self._token not in {None, refused}
                    and time.monotonic() < self._renew_at):
                return self._token
            asked = self._asked
            if not asked:
                self._asked = Future()
        if not asked:
            asked = self._ask(self._asked)
        try:
            return asked.result()
        except LoginError as error:
            # A copy, because several threads must not raise the same exception
            raise LoginError(error.words) from None

    def _ask(self, asked):
        started = time.monotonic()
        try:
            token, seconds = self.request.send()
        except BaseException as error:
            with self._lock:
                self._asked = None
            if isinstance(error, LoginError):
                asked.set_exception(error)
                return asked
            # Only this thread is interrupted, so the threads that wait get an
            # ordinary error
            asked.set_exception(LoginError("no token: interrupted"))
            raise
        early = min(RENEW_SECONDS, seconds / 2)
        with self._lock:
            self._token = token
            self._renew_at = started + seconds - early
            self._asked = None
        asked.set_result(token)
        return asked


class _Answer(NamedTuple):
    status: int
    data: bytes

    def close(self):
        "Do nothing: the answer was read as a whole"


class _Request:
    "A request for a token"

    def __init__(self, server, uri, options):
        self._server = server
        self._uri = uri
        self._options = options
        self._host = ''
        self._secrets = []

    def __eq__(self, other):
        return (isinstance(other, _Request)
            and (self._uri, self._options) == (other._uri, other._options))

    def send(self):
        """Return a token and the seconds that it is valid for.

        :raises LoginError: the endpoint gives no token.
        """
        self._secrets, self._host = [], ''
        try:
            answer = open_in_time(
                ENDPOINT_SECONDS, self._post,
                f'the token for {self._server or "the default server"}')
            token = self._token(answer)
        except LoginError as error:
            raise LoginError(self._without_secrets(error.words)) from None
        except Exception as error:
            # Without the text and the chain of the exception, because they may
            # hold secrets of the request
            raise self._no_token(_words(error)) from None
        logger.info(
            "a new token for the server %s",
            self._server or server_name(self._uri))
        return token

    def _no_token(self, words):
        whence = f" from {self._host}" if self._host else ""
        return LoginError(
            f"no token{whence}: {self._without_secrets(words)}")

    def _without_secrets(self, text):
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, '…')
        return printable(text)[:WORDS_LENGTH]

    # The request

    def _value(self, name, default=None):
        "Return the value of an option, from a file if the option names one"
        text = self._options.get(name, default)
        if text is None:
            raise LoginError(f'"{self._name(name)}" is not set')
        if text.startswith(FILE):
            text = _read(self._name(name), text.removeprefix(FILE))
        if name in {'client_secret', 'key'}:
            self._hide(text)
        return text

    def _hide(self, secret):
        "Remember a secret, so that it is cut out of the words of errors"
        lines = [line for line in secret.split() if len(line) >= LINE_LENGTH]
        self._secrets += filter(None, [secret, quote_plus(secret), *lines])

    def _name(self, name):
        return settings.full_name(f'oauth_{name}', self._server)

    def _post(self, opening):
        if 'key' in self._options:
            uri, fields = self._assertion()
        else:
            uri, fields = self._credentials()
        uri = self._checked(uri)
        request = urllib.request.Request(
            uri, data=urlencode(fields).encode('ascii'), method='POST',
            headers={'Accept': 'application/json'})
        try:
            with _opener(opening, self._host).open(
                    request, timeout=ENDPOINT_SECONDS) as response:
                return _Answer(response.status, _bounded(response))
        except urllib.error.HTTPError as error:
            with error:
                return _Answer(error.code, _bounded(error))

    def _credentials(self):
        fields = {
            'grant_type': CLIENT_CREDENTIALS,
            'client_id': self._value('client_id'),
            'client_secret': self._value('client_secret'),
            }
        if scope := self._value('scope', ''):
            fields['scope'] = scope
        return self._value('token_uri'), fields

    def _assertion(self):
        if 'client_secret' in self._options:
            raise LoginError(
                f'"{self._name("key")}" and "{self._name("client_secret")}" '
                "are both set: take one of them out")
        text, scope = self._value('key'), self._value('scope', '')
        key, claims, fields = text, {}, {'grant_type': JWT_BEARER}
        headers = {'alg': 'RS256'}
        if text.startswith('{'):
            # The key is in the JSON of a Google service account
            account = self._account(text)
            key, issuer = account['private_key'], account['client_email']
            uri = self._value('token_uri', account['token_uri'])
            if isinstance(account.get('private_key_id'), str):
                headers['kid'] = account['private_key_id']
            if scope:
                claims['scope'] = scope
        else:
            issuer, uri = self._value('client_id'), self._value('token_uri')
            if scope:
                fields['scope'] = scope
        fields['assertion'] = self._signed(
            key, issuer=issuer, audience=uri, subject=user_of(self._uri),
            claims=claims, header=headers)
        self._hide(fields['assertion'])
        return uri, fields

    def _account(self, text):
        try:
            account = json.loads(text)
            for name in ['private_key', 'client_email', 'token_uri']:
                if not isinstance(account[name], str):
                    raise ValueError
        except (KeyError, TypeError, ValueError, RecursionError):
            raise LoginError(
                f'"{self._name("key")}" is not the key of a service account '
                "in JSON") from None
        self._hide(account['private_key'])
        return account

    def _signed(self, key, **keywords):
        try:
            from authlib.oauth2.rfc7523 import JWTBearerGrant
            from joserfc.jwk import RSAKey
        except ImportError:
            raise LoginError(
                f'"{self._name("key")}" needs Authlib: '
                "pip install trytond_email_queue[oauth]") from None
        try:
            token = JWTBearerGrant.sign(RSAKey.import_key(key), **keywords)
        except Exception:
            raise LoginError(
                f'"{self._name("key")}" holds no RSA key in PEM') from None
        return token if isinstance(token, str) else token.decode('ascii')

    def _checked(self, uri):
        """Return the URI of the endpoint.

        :raises LoginError: the URI is not valid, or the secret could be read
            on its way.
        """
        try:
            parts = urlsplit(uri)
            host, _ = parts.hostname, parts.port
        except ValueError:
            parts = host = None
        if not (host and parts.scheme in {'http', 'https'}) or (
                not _token.fullmatch(uri) or '@' in parts.netloc):
            raise LoginError(f'"{self._name("token_uri")}" is not a URI')
        if parts.scheme == 'http' and not _is_here(host):
            raise LoginError(
                f'"{self._name("token_uri")}" must begin with https://, '
                f"but for {host} it begins with http://")
        self._host = host
        return uri

    # The answer

    def _token(self, answer):
        if len(answer.data) > ANSWER_SIZE:
            raise self._no_token("the answer is too long")
        try:
            values = json.loads(answer.data)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            values = {}
        token = values.get('access_token')
        if isinstance(token, str):
            self._hide(token)
        words = [
            values[name] for name in ['error', 'error_description']
            if isinstance(values.get(name), str)]
        if answer.status != 200 or words:
            raise self._no_token(
                ': '.join(words) or f"HTTP status {answer.status}")
        if not (isinstance(token, str) and _token.fullmatch(token)
                and len(token) <= TOKEN_LENGTH
                and str(values.get('token_type', 'bearer')).lower()
                == 'bearer'):
            raise self._no_token("the answer makes no sense")
        return token, _seconds(values.get('expires_in'))


def _read(option, path):
    "Return the text of a file that holds the value of an option"
    try:
        # O_NONBLOCK, because opening a FIFO would wait without end
        handle = os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0))
        with open(handle, 'rb') as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(0, "it is no file")
            data = file.read(FILE_SIZE + 1)
        if len(data) > FILE_SIZE:
            raise OSError(0, "it is too large")
        return data.decode('utf-8').strip()
    except (OSError, ValueError) as error:
        words = getattr(error, 'strerror', None) or "it is no text"
        raise LoginError(
            f'"{option}" cannot be read from {path}: {words}') from None


def _seconds(lifetime):
    try:
        seconds = float(lifetime)
    except (TypeError, ValueError, OverflowError):
        return LIFETIME
    if math.isnan(seconds):
        return LIFETIME
    return min(max(seconds, 0), LIFETIME_MAX)


def _bounded(response):
    return response.read(ANSWER_SIZE + 1)


def _words(error):
    "Return the words of an error without data of the request or the answer"
    if isinstance(error, urllib.error.URLError):
        error = error.reason
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    if isinstance(error, http.client.HTTPException):
        return "the answer makes no sense"
    return type(error).__name__


def _is_here(host):
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'


# An HTTP client whose connections end in time, and which prints nothing


class _Silent:
    "A connection whose socket is watched, and which never prints its data"
    debuglevel = 0

    def __init__(self, *args, opening, **keywords):
        super().__init__(*args, **keywords)
        self._create_connection = (
            lambda address, timeout, source: opening.socket_to(
                *address, timeout))

    def set_debuglevel(self, level):
        pass


class _HTTPConnection(_Silent, http.client.HTTPConnection):
    pass


class _HTTPSConnection(_Silent, http.client.HTTPSConnection):
    pass


class _Handler(
        urllib.request.HTTPSHandler, urllib.request.HTTPHandler):

    def __init__(self, opening):
        super().__init__()
        self._opening = opening

    def http_open(self, request):
        return self.do_open(
            partial(_HTTPConnection, opening=self._opening), request)

    def https_open(self, request):
        return self.do_open(
            partial(_HTTPSConnection, opening=self._opening), request)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    "Follows no redirect, because only the endpoint may get the secret"

    def redirect_request(self, *args):
        return None


def _opener(opening, host):
    # This machine itself is reached without a proxy
    proxies = {} if _is_here(host) else {
        scheme: proxy
        for scheme, proxy in urllib.request.getproxies().items()
        if scheme == 'https'}
    opener = urllib.request.OpenerDirector()
    for handler in [
            urllib.request.ProxyHandler(proxies), _Handler(opening),
            _NoRedirect(), urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor()]:
        opener.add_handler(handler)
    return opener
