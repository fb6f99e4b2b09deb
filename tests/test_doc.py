# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What the documentation says: its examples, options and names."""
import dataclasses
import inspect
import re
import textwrap
import threading
import unittest
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import patch

from trytond.model import fields
from trytond.pool import Pool, PoolMeta
from trytond.tests.test_tryton import DB_NAME
from trytond.transaction import Transaction

from .. import email_queue, exceptions, health, policy, replies, sendmail, smtp
from ..exceptions import EmailQueueError
from ..policy import Settings
from .tools import QueueTestCase, configured

ROOT = Path(__file__).resolve().parent.parent
README, DOC = ROOT / 'README.rst', ROOT / 'doc'
OPTION = {
    README: r'^``(\w+)`` +(?:``(\w+)``)? ',
    DOC / 'configuration.rst':
        # Not over the next heading
        r'^``(\w+)``\n=+\n(?:(?!=).*\n)*?'
        r'.*default value is(?:: ``(\w+)``| empty)',
    }
# Those that a sender does not know
OTHER_OPTIONS = {'capture': 'False'}
FIELD = r'^``(\w+)`` '
DIRECTIVE = re.compile(
    r'^ *\.\. (class|classmethod|method|function|attribute|data|exception)::'
    r' (?:EmailQueue\.)?(\w+)(\(.*\))?$', re.M)
EXAMPLE = re.compile(
    r'^(?P<indent> *)\.\. code-block:: python\n(?: +:.*\n)*'
    r'(?P<code>(?:\n|(?P=indent) +.*\n)+)', re.M)


def examples(path):
    "Return the code of the examples, each with the lines of the page"
    text = path.read_text('utf-8')
    return [
        compile(
            '\n' * text.count('\n', 0, match.start('code'))
            + textwrap.dedent(match['code']),
            path, 'exec')
        for match in EXAMPLE.finditer(text)]


@unittest.skipUnless(
    README.exists() and DOC.exists(), "the documentation is not installed")
class DocTestCase(QueueTestCase):
    "Test the documentation"

    def test_examples(self):
        "Test the examples run, those of a page one after another"
        for path in [
                README,
                DOC / 'usage' / 'index.rst',
                DOC / 'usage' / 'capture.rst',
                ]:
            with self.subTest(page=path.name):
                self.clear()
                with self.transaction() as transaction:
                    names = {'pool': Pool(), 'transaction': transaction}
                    for code in examples(path):
                        if 'PoolMeta' in code.co_names:
                            self.extend(code)
                        else:
                            exec(code, names)
                self.send_all()
                self.assertTrue(self.server.received)

    def test_transport(self):
        "Test the example of another transport sends by HTTP what is for it"
        code, = examples(DOC / 'usage' / 'transport.rst')
        names = {'__name__': 'example'}
        exec(code, names)
        EmailQueue = Pool(DB_NAME).get('email.queue')
        Extended = type('email.queue', (names['EmailQueue'], EmailQueue), {})
        with self.service() as (url, received), configured(
                uri_api='smtp://api', api_url=url):
            ids = {
                word: self.queue(f'{word}@example.com', server='api')
                for word in ['taken', '400', '503']}
            plain = self.queue('jane@example.com')
            with self.assertRaisesRegex(EmailQueueError, '503'), \
                    patch.object(policy, 'TROUBLE_SECONDS', 0), \
                    self.transaction():
                Extended.send_all()
        self.assertEqual(
            self.read(ids['taken'], 'state', 'queue_id'), ['sent', 'name'])
        self.assertEqual(self.read(ids['503'], 'state', 'attempts'),
            ['outbox', 0])
        state, error = self.read(ids['400'], 'state', 'error')
        self.assertEqual(state, 'failed')
        self.assertIn('400', error)
        self.assertIn(
            ('shop@example.com', 'taken@example.com',
                self.read(ids['taken'], 'msg')), received)
        # By SMTP, as before
        self.assertEqual(self.read(plain, 'state'), 'sent')
        self.assertEqual(len(self.server.received), 1)

    @contextmanager
    def service(self):
        "A service that answers as the recipient says"
        received = []

        class Handler(BaseHTTPRequestHandler):

            def do_POST(self):
                data = self.rfile.read(int(self.headers['Content-Length']))
                to_addr = self.headers['X-To']
                received.append((self.headers['X-From'], to_addr, data))
                word = to_addr.partition('@')[0]
                self.send_response(int(word) if word.isdigit() else 200)
                self.end_headers()
                self.wfile.write(b'name')

            def log_message(self, *args):
                pass

        with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield f'http://127.0.0.1:{server.server_port}/', received
            finally:
                server.shutdown()
                thread.join()

    def extend(self, code):
        "Send by the model as the class of an example changes it"
        names = {'__name__': 'example'}
        exec(code, names)
        class_, = (c for c in names.values() if type(c) is PoolMeta)
        EmailQueue = Pool().get('email.queue')
        Extended = type('email.queue', (class_, EmailQueue), {})
        emails = [
            EmailQueue.queue_mail(
                'shop@example.com', f'{to}@example.com', 'Subject: Test')[0]
            for to in ['jane', 'rcpt-550']]
        Transaction().commit()
        Extended.send_all()
        Transaction().commit()
        self.assertEqual(
            [EmailQueue(e.id).state for e in emails], ['sent', 'failed'])

    def test_options(self):
        "Test the options and their defaults"
        options = {f.name: f for f in dataclasses.fields(Settings)}
        for path, pattern in OPTION.items():
            with self.subTest(page=path.name):
                found = re.findall(pattern, path.read_text('utf-8'), re.M)
                # Read when the module is loaded
                found.remove(('filestore', 'False'))
                self.assertEqual(
                    [(name, value and Settings.parsed(options[name], value))
                        for name, value in found if name in options],
                    list(dataclasses.asdict(Settings()).items()))
                self.assertEqual(
                    {name: value
                        for name, value in found
                        if value and name not in options},
                    OTHER_OPTIONS)

    def test_reference(self):
        "Test the names and signatures of the reference"
        reference = (DOC / 'reference.rst').read_text('utf-8')
        with self.transaction(readonly=True):
            email = Pool().get('email.queue')()
            owners = [
                email, smtp, replies.Reply(250, ''), exceptions, email_queue,
                health, health.Numbers, sendmail,
                smtp.Client('smtp://localhost'), smtp.Outcome()]
            for type_, name, signature in DIRECTIVE.findall(reference):
                with self.subTest(name=name):
                    owner = next(o for o in owners if hasattr(o, name))
                    if signature:
                        self.assertEqual(
                            str(inspect.signature(getattr(owner, name))),
                            signature)
        self.assertEqual(
            re.findall(FIELD, reference, re.M),
            [name for name, value in vars(email_queue.EmailQueue).items()
                if isinstance(value, fields.Field)])


del QueueTestCase
