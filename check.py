# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Checks step by step whether a server takes emails, without sending any.

The wizard of this file shows the steps, or queues a test email.
"""
import datetime as dt
import ssl
import time
from email.message import Message
from email.mime.text import MIMEText
from typing import NamedTuple

import trytond.config as config
from trytond.i18n import gettext
from trytond.model import ModelView, fields
from trytond.pool import Pool
from trytond.tools.email_ import set_from_header
from trytond.transaction import Transaction
from trytond.url import HOSTNAME
from trytond.wizard import Button, StateAction, StateTransition, StateView

from . import behalf, oauth
from .access import QueueWizard, looks_after_queue
from .address import NULL_SENDER, Invalid, addresses, envelope_from
from .exceptions import ArgumentError, LoginError, SettingError
from .handover import client_of
from .health import CRITICAL, OK
from .mime import header_fields, prepare, value_of
from .program import opened
from .settings import Settings, server_uri, servers
from .smtp import Client, Trouble, open_in_time, server_name, trouble_of
from .words import printable

__all__ = ['check', 'monitor']

# The time-out of a step in seconds; short, because a person waits
TIMEOUT = 10
STANDARD_PORT, TLS_PORT = 25, 465
# A certificate that ends within so many seconds should be renewed
CERTIFICATE_SECONDS = 14 * 24 * 60 * 60
CERTIFICATE_NAMES = 3
OFFERS = ['SIZE', 'PIPELINING', 'DSN', 'SMTPUTF8']


class Step(NamedTuple):
    """A step of a check.

    :param name: the end of the XML id of the message that is its title.
    :param good: whether the step has found nothing wrong.
    :param words: what the step has found.
    :param advice: what a person can do, empty for nothing.
    """
    name: str
    good: bool
    words: str
    advice: str = ''

    def text(self):
        "Return the step as lines of text in the language of the transaction"
        title = gettext(f'email_queue.msg_check_{self.name}')
        mark = gettext(
            'email_queue.msg_check_good' if self.good
            else 'email_queue.msg_check_bad')
        line = f'{title}: {mark}, {self.words}'
        return f'{line}\n   {self.advice}' if self.advice else line


class _Bad(Exception):
    "Ends the check with a step that is bad"

    def __init__(self, step):
        super().__init__(step.name)
        self.step = step


def check(Model, server, email=None):
    """Return the steps of the check of a server; only the last can be bad.

    :param server: the name of the server, None for the default server.
    :param email: the address of the user who would send.
    """
    steps = []
    try:
        for step in _steps(Model, server, email):
            steps.append(step)
            if not step.good:
                break
    except _Bad as error:
        steps.append(error.step)
    return steps


def _steps(Model, server, email):
    uri, settings = _settings(server)
    yield Step('settings', True, server_name(uri))
    yield _reached(uri)
    yield _encrypted(uri)
    token = _token(Model, server)
    if token is not None:
        yield Step('token', True, gettext('email_queue.msg_check_has_token'))
    greeting = _greeting(
        'login', client_of(Model, settings, server),
        'msg_check_login_token' if token is not None
        else 'msg_check_login_password')
    yield _login(uri, token)
    yield _offers(greeting)
    yield _sender(server, uri, email)


def _bad(name, words, advice):
    return _Bad(Step(name, False, words, gettext(f'email_queue.{advice}')))


def _settings(server):
    uri = server_uri(server)
    if uri is None:
        raise _bad(
            'settings', str(server), 'msg_check_settings_server')
    try:
        settings = Settings.read(server)
        behalf.mailbox(server)
        # An invalid ``for_NAME`` concerns all servers, because no server can
        # be chosen then
        behalf.server_for(NULL_SENDER, b'')
    except SettingError as error:
        raise _bad('settings', error.message, 'msg_check_settings_value')
    except Invalid as error:
        raise _bad(
            'settings', f'{error.argument} = {error.value}',
            'msg_check_settings_value')
    try:
        parts = config.parse_uri(uri)
        _, _, host = parts.netloc.rpartition('@')
        known = parts.hostname and parts.port != 0
    except ValueError:
        known = False
    # An unquoted character in the password could make trytond read another
    # host than the person has written
    if not (known and parts.scheme.startswith('smtp')
            and host == server_name(uri)):
        raise _bad('settings', server_name(uri), 'msg_check_settings_uri')
    return uri, settings


def _stripped(uri, scheme):
    "Return the URI with another scheme, and without user and password"
    parts = config.parse_uri(uri)
    return parts._replace(
        scheme=scheme, netloc=parts.netloc.rpartition('@')[2]).geturl()


def _greeting(name, client, advice):
    client.timeout = min(client.timeout, TIMEOUT)
    found = client.probe()
    if isinstance(found, Trouble):
        raise _bad(name, found.words, advice)
    return found


def _reached(uri):
    parts = config.parse_uri(uri)
    if parts.scheme.startswith('smtps'):
        try:
            open_in_time(
                TIMEOUT, lambda opening: opening.socket_to(
                    parts.hostname, parts.port or TLS_PORT, TIMEOUT),
                server_name(uri)).close()
        except Exception as error:
            raise _bad(
                'connect', trouble_of(error).words, 'msg_check_connect_how')
    else:
        _greeting(
            'connect', Client(_stripped(uri, 'smtp')), 'msg_check_connect_how')
    port = parts.port or (
        TLS_PORT if parts.scheme.startswith('smtps') else STANDARD_PORT)
    return Step('connect', True, f'{parts.hostname}:{port}')


def _encrypted(uri):
    scheme = config.parse_uri(uri).scheme
    if not (scheme.startswith('smtps') or 'tls' in scheme):
        return Step('tls', True, gettext('email_queue.msg_check_no_tls'))
    greeting = _greeting(
        'tls', Client(_stripped(uri, scheme)), 'msg_check_tls_how')
    certificate = greeting.certificate or {}
    names = [
        name for _, name in certificate.get('subjectAltName', ())]
    if len(names) > CERTIFICATE_NAMES:
        names[CERTIFICATE_NAMES:] = ['…']
    ends = ssl.cert_time_to_seconds(certificate['notAfter'])
    words = gettext(
        'email_queue.msg_check_certificate',
        version=greeting.tls,
        names=printable(', '.join(names)),
        date=dt.datetime.fromtimestamp(ends, dt.timezone.utc).date())
    advice = ''
    if ends - time.time() < CERTIFICATE_SECONDS:
        advice = gettext('email_queue.msg_check_certificate_ends')
    return Step('tls', True, words, advice)


def _token(Model, server):
    # A new token, because an old token would not show that the secret is wrong
    oauth.drop_token(server)
    try:
        return Model.access_token(server)
    except LoginError as error:
        words = error.words
    except Exception as error:
        words = trouble_of(error).words
    raise _bad('token', words, 'msg_check_token_how')


def _login(uri, token):
    parts = config.parse_uri(uri)
    if token is not None:
        words = gettext('email_queue.msg_check_login_by_token')
    elif parts.username and parts.password:
        words = gettext('email_queue.msg_check_login_by_password')
    else:
        words = gettext('email_queue.msg_check_no_login')
    return Step('login', True, words)


def _offers(greeting):
    offers = []
    for name in OFFERS:
        value = greeting.offers.get(name.lower())
        if value is None:
            offers.append(gettext('email_queue.msg_check_without', name=name))
        else:
            offers.append(printable(f'{name} {value}'))
    return Step('offers', True, ', '.join(offers))


def _sender(server, uri, email):
    "Check the addresses that an email of the user would be sent from"
    address = config.get('email', 'from')
    try:
        from_addr = envelope_from(address or '')
        msg = Message()
        set_from_header(msg, address, email or address)
        from_addr, data = behalf.sent_from(
            server, from_addr, prepare(msg, HOSTNAME))
        fields, _ = header_fields(data)
        author, = addresses('from', value_of(
                dict(fields)[b'from']).decode('utf-8'))
    except (Invalid, ValueError):
        raise _bad('sender', str(address), 'msg_check_sender_how')
    words = gettext(
        'email_queue.msg_check_addresses', author=author, sender=from_addr)
    domains = {_domain(author), _domain(from_addr)}
    option = f'from_{server}' if server else 'from_'
    if len(domains) > 1:
        return Step('sender', False, words, gettext(
                'email_queue.msg_check_domains', option=option))
    login = config.parse_uri(uri).username or ''
    login = login.replace('%40', '@')
    advice = ''
    if '@' in login and login.casefold() != author.casefold():
        advice = gettext(
            'email_queue.msg_check_send_as', login=login, option=option)
    return Step('sender', True, words, advice)


def _domain(address):
    return address.rpartition('@')[2].casefold()


def monitor(database, server=None):
    """Return the result of the command that checks a server.

    :param database: the name of the database.
    :param server: the name of the server, None for the default server.
    :return: the exit status, 0 or 2, and the lines to print.
    """
    with opened(database, 'email.queue') as EmailQueue:
        steps = check(EmailQueue, server)
        *_, last = steps
        status = OK if last.good else CRITICAL
        name = server or server_name(server_uri(None))
        lines = [
            f"EMAIL SERVER {'OK' if last.good else 'CRITICAL'}: {name}",
            *map(Step.text, steps)]
    return status, '\n'.join(lines)


def _chosen_by_sender():
    "Return the name of the server that sends for ``[email] from``"
    try:
        return behalf.server_for(
            envelope_from(config.get('email', 'from') or ''), b'')
    except Invalid:
        # A step of the check reports the error
        return None


class QueueTest(QueueWizard):
    __name__ = 'email.queue.test'

    start = StateView(
        'email.queue.test.start', 'email_queue.queue_test_start_view_form', [
            Button("Cancel", 'end', 'tryton-cancel'),
            Button("Check Server", 'check', 'tryton-search'),
            Button("Queue", 'queue_email', 'tryton-ok', default=True),
            ])
    check = StateTransition()
    result = StateView(
        'email.queue.test.result', 'email_queue.queue_test_result_view_form', [
            Button("Close", 'end', 'tryton-close'),
            Button("Back", 'start', 'tryton-back', default=True),
            ])
    queue_email = StateAction('email_queue.act_email_queue_form')

    def default_start(self, fields):
        User = Pool().get('res.user')
        user = User(Transaction().user)
        from_addr = config.get('email', 'from')
        if not from_addr:
            raise SettingError(
                gettext('email_queue.msg_test_sender'), 'from', '')
        return {
            'from_addr': from_addr,
            'to_addr': self._chosen('to_addr') or user.email,
            'server': self._chosen('server'),
            }

    def _chosen(self, name):
        "Return the value of a field of the form, None if it was not shown yet"
        return getattr(self.start, name, None) or None

    def transition_check(self):
        EmailQueue = Pool().get('email.queue')
        User = Pool().get('res.user')
        steps = check(
            EmailQueue, self._chosen('server') or _chosen_by_sender(),
            email=User(Transaction().user).email)
        self.result.steps = '\n'.join(map(Step.text, steps))
        return 'result'

    def default_result(self, fields):
        return {'steps': self.result.steps}

    def do_queue_email(self, action):
        EmailQueue = Pool().get('email.queue')
        user = Pool().get('res.user')(Transaction().user)
        values = self.default_start([])
        if not values['to_addr']:
            raise ArgumentError(
                gettext('email_queue.msg_test_recipient', user=user.rec_name),
                'to_addr', '')
        # EmailMessage would refuse an invalid address in worse words than
        # ``queue_message``
        msg = MIMEText(
            gettext('email_queue.msg_test_body'), _charset='utf-8')
        msg['From'] = values['from_addr']
        msg['To'] = values['to_addr']
        msg['Subject'] = gettext('email_queue.msg_test_subject')
        email, = EmailQueue.queue_message(msg, server=values['server'])
        action['views'].reverse()
        return action, {'res_id': [email.id]}


class QueueTestStart(ModelView):
    __name__ = 'email.queue.test.start'

    from_addr = fields.Char("From", readonly=True)
    to_addr = fields.Char(
        "To", required=True, help="The address that the test email goes to.")
    server = fields.Selection(
        'get_servers', "Server", sort=False,
        help="The name of the server in the configuration.\n"
        "If it is empty, the author of the email decides on the server.")

    @classmethod
    def get_servers(cls):
        if not looks_after_queue():
            return []
        return [(name, name or '') for name in servers()]


class QueueTestResult(ModelView):
    __name__ = 'email.queue.test.result'

    steps = fields.Text(
        "Steps", readonly=True,
        help="What was tried, one after another. Nothing was sent.")
