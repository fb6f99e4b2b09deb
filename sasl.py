# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The login at a mail server by a token instead of a password.

XOAUTH2 is the mechanism of Microsoft and Google, OAUTHBEARER the standard one
(RFC 7628).
"""
import base64
import ipaddress
import re
import smtplib
import ssl
from urllib.parse import unquote_plus

import trytond.config as config

from .exceptions import LoginError

# The code of a refused login (RFC 4954 6), for an error without a code
REFUSED = 535

_plain = re.compile(r'[\x21-\x7e]+')


def user_of(uri):
    """Return the name of the user in a URI who logs in by a token.

    :raises LoginError: the URI has no user, or has a password.
    """
    uri = config.parse_uri(uri)
    if not uri.username:
        raise LoginError(
            "the URI of the server has no user to log in by OAuth")
    if uri.password:
        # trytond would log in by the password, before the token can be used
        raise LoginError(
            "the URI of the server has a password, which a login by OAuth "
            "does not need: take it out")
    # trytond decodes the user in the same way
    user = unquote_plus(uri.username)
    if not _plain.fullmatch(user):
        raise LoginError(
            "the user in the URI of the server is not of ASCII letters, "
            "digits and signs")
    return user


def log_in(smtp, user, token):
    """Log in at a server that has answered to EHLO.

    :param smtp: the connected ``smtplib.SMTP``.
    :raises smtplib.SMTPAuthenticationError: the server refuses the token.
    :raises LoginError: the token cannot be sent to the server.
    """
    if not _plain.fullmatch(token):
        raise LoginError("the token has other characters than ASCII ones")
    if not _is_private(smtp.sock):
        raise LoginError(
            "the connection is not encrypted, so no token is sent: "
            "the URI has to begin with smtp+tls:// or smtps://")
    offered = smtp.esmtp_features.get('auth', '').upper().split()
    for mechanism, response in [
            ('XOAUTH2', _xoauth2), ('OAUTHBEARER', _oauthbearer)]:
        if mechanism in offered:
            break
    else:
        raise LoginError("the server offers no login by OAuth")
    initial, refused = response(smtp, user, token)
    # The debugging output of smtplib would show the token
    level, smtp.debuglevel = smtp.debuglevel, 0
    try:
        smtp.auth(
            mechanism,
            # A challenge says that the server refuses the token, and waits for
            # a last response
            lambda challenge=None: initial if challenge is None else refused)
    except smtplib.SMTPException as error:
        words = _words(error)
        if token in words or _encoded(initial) in words:
            raise smtplib.SMTPAuthenticationError(
                getattr(error, 'smtp_code', REFUSED),
                b'the server refuses the token') from None
        raise
    finally:
        smtp.debuglevel = level


def _xoauth2(smtp, user, token):
    return f'user={user}\x01auth=Bearer {token}\x01\x01', ''


def _oauthbearer(smtp, user, token):
    # RFC 5801 4 writes = and , in a name so
    name = user.replace('=', '=3D').replace(',', '=2C')
    host, port, *_ = smtp.sock.getpeername()
    host = getattr(smtp, '_host', host)
    return (
        f'n,a={name},\x01host={host}\x01port={port}'
        f'\x01auth=Bearer {token}\x01\x01', '\x01')


def _is_private(sock):
    "Return whether the connection is encrypted, or stays on this machine"
    if isinstance(sock, ssl.SSLSocket):
        return True
    host = str(sock.getpeername()[0]).partition('%')[0]
    return ipaddress.ip_address(host).is_loopback


def _words(error):
    words = getattr(error, 'smtp_error', None)
    if isinstance(words, bytes):
        return words.decode('utf-8', 'replace')
    return str(words or error)


def _encoded(initial):
    return base64.b64encode(initial.encode('ascii')).decode('ascii')
