# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What the documentation says: its examples, options and names."""
import ast
import inspect
import re
import textwrap
import threading
import unittest
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import patch

import polib

import trytond
from trytond.model import ModelSQL, ModelView, fields
from trytond.pool import Pool, PoolMeta
from trytond.tests.test_tryton import DB_NAME
from trytond.transaction import Transaction

from .. import (
    bulk, email_queue, exceptions, health, oauth, policy, recorder, replies,
    sender, sendmail, smtp)
from ..exceptions import EmailQueueError
from ..settings import OPTIONS, Settings
from .tools import QueueTestCase, configured

ROOT = Path(__file__).resolve().parent.parent
README, DOC = ROOT / 'README.rst', ROOT / 'doc'
OPTION = {
    README: r'^``(\w+)`` +(?:``(\w+)``)? ',
    DOC / 'configuration.rst':
        # The match must not go beyond the next heading
        r'^``(\w+)``\n=+\n(?:(?!=).*\n)*?'
        r'.*default value is(?:: ``(\w+)``| empty)',
    }
# The options that a sender does not know
OTHER_OPTIONS = {'capture': 'False'}
FIELD = r'^``(\w+)`` '
DIRECTIVE = re.compile(
    r'^ *\.\. (class|classmethod|method|function|attribute|data|exception)::'
    r' (?:EmailQueue\.)?(\w+)(\(.*\))?$', re.M)
EXAMPLE = re.compile(
    r'^(?P<indent> *)\.\. code-block:: python\n(?: +:.*\n)*'
    r'(?P<code>(?:\n|(?P=indent) +.*\n)+)', re.M)

BORDER = re.compile(r'=+(?: +=+)+')
MARKUP = re.compile(r'``[^`]+``|\*[^*]+\*|\|[^|]+\|')
# Literal blocks, directives that hold no text and comments
NO_TEXT = re.compile(
    r'^(?P<indent> *)'
    r'(?:(?!\.\. )(?P<keep>.*\S)?::|\.\. (?:code-block|image|toctree)::.*)\n'
    r'(?:\n|(?P=indent) +.*\n)*', re.M)
LABEL = re.compile(r'^ *\.\. _([^:\n]+):(?: |$)', re.M)
TITLE = re.compile(r'^(.*\S)\n([#*=~^"-])\2+$', re.M)
# The text of a role has the name of the role before it
REFERENCE = re.compile(
    r'(?<![`:\w])`(?!`)(?:[^`<]+<)?([^`<>]+)>?`(?P<named>_?)(?!`)')
DOC_ROLE = re.compile(r':doc:`(?:[^`<]+<)?([^`<>]+)>?`')
IMAGE = re.compile(r'^\.\. image:: (\S+)(?:\n +:alt: (.+))?', re.M)
MENU_ROLE = re.compile(
    r':menuselection:`([^`]+)`|\*(Administration > [^*]+)\*')
# What others say: a client, a mail server, an endpoint, the operating system
WORDS_OF_OTHERS = {
    'Action - (8)', 'Connection refused', 'SendAsDenied', 'invalid_client',
    'no such user'}
QUOTE = re.compile(r'"([^"]*)"')
TOCTREE = re.compile(r'^\.\. toctree::\n((?:\n| +.*\n?)+)', re.M)


def pages():
    return [README, *sorted(DOC.rglob('*.rst'))]


def words(text):
    "Return a name as reStructuredText compares it"
    return ' '.join(text.split()).lower()


def simple_tables(text):
    """Return the first line, the width of the first column and the rows of
    tables
    """
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        if not BORDER.fullmatch(line.strip()):
            continue
        columns = [m.span() for m in re.finditer('=+', line)]
        # The last column has no end
        columns[-1] = columns[-1][0], None
        rows, borders = [], 1
        while borders < 3:
            _, line = next(lines)
            if BORDER.fullmatch(line.strip()):
                borders += 1
            elif borders == 2:
                rows.append([line[s:e].strip() for s, e in columns])
        yield number, columns[0][1] - columns[0][0], rows


def torn(width, rows):
    """Return the first cells that may be the rest of the cell above them.

    In a simple table each line with a first cell begins a row. A text looks
    like the rest of the cell above it if it would not have fitted into the
    line above, begins with a small letter, or has no other cell.
    """
    first = [row for row in rows if row[0]]
    found = []
    for (above, *_), (cell, *others) in zip(first, first[1:]):
        if MARKUP.fullmatch(cell) or not re.search(r'\s', above):
            continue
        if (len(f'{above} {cell.split()[0]}') > width
                or cell[0].islower() and not first[0][0][0].islower()
                or not all(others)):
            found.append(cell)
    return found


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
        "Test the examples run, one after another in each page"
        for path in [
                README,
                DOC / 'usage' / 'code.rst',
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
        "Test the example of another transport sends the emails for it by HTTP"
        code, = examples(DOC / 'usage' / 'transport.rst')
        names = {'__name__': 'example'}
        exec(code, names)
        EmailQueue = Pool(DB_NAME).get('email.queue')
        Extended = type('email.queue', (names['EmailQueue'], EmailQueue), {})
        ids = {}
        with self.service() as (url, received), configured(
                uri_api='smtp://api', api_url=url):
            plain = self.queue('jane@example.com')
            for word in ['taken', '400', '503']:
                ids[word] = self.queue(f'{word}@example.com', server='api')
                with ExitStack() as stack:
                    if word == '503':
                        stack.enter_context(
                            patch.object(policy, 'TROUBLE_SECONDS', 0))
                        stack.enter_context(
                            self.assertRaisesRegex(EmailQueueError, '503'))
                    stack.enter_context(self.transaction())
                    Extended.send_all()
        self.assertEqual(
            self.read(ids['taken'], 'state', 'queue_id'), ['sent', 'name'])
        # Like a refusal by SMTP: the server may refuse all emails alike
        suspect, error = self.read(ids['400'], 'suspect', 'error')
        self.assertIn('400', error)
        self.assertTrue(suspect)
        self.assertEqual(
            self.read(ids['503'], 'state', 'attempts', 'suspect'),
            ['outbox', 0, None])
        self.assertIn(
            ('shop@example.com', 'taken@example.com',
                self.read(ids['taken'], 'msg')), received)
        # The other email went by SMTP, as before
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
        "Send by the model, extended by the class of an example"
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
        for path, pattern in OPTION.items():
            with self.subTest(page=path.name):
                found = re.findall(pattern, path.read_text('utf-8'), re.M)
                # These are read when the module is loaded
                found.remove(('filestore', 'False'))
                self.assertEqual(
                    [(name, value and OPTIONS[name].parse(value))
                        for name, value in found if name in OPTIONS],
                    list(Settings()._asdict().items()))
                self.assertEqual(
                    {name: value
                        for name, value in found
                        if value and name not in OPTIONS},
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

    def test_public(self):
        "Test each public method of the model is in the reference"
        reference = (DOC / 'reference.rst').read_text('utf-8')
        framework = (
            'get_', 'set_', 'search_', 'order_', 'default_',
            'on_change_')
        found = 0
        for Class in email_queue.EmailQueue.__mro__:
            if not Class.__module__.startswith(
                    'trytond.modules.email_queue.'):
                continue
            for name, value in vars(Class).items():
                if (name.startswith(('_', *framework))
                        or not (isinstance(value, classmethod)
                            or inspect.isfunction(value))
                        or hasattr(ModelSQL, name)
                        or hasattr(ModelView, name)):
                    continue
                found += 1
                with self.subTest(f'{Class.__name__}.{name}'):
                    self.assertTrue(re.search(
                            rf'EmailQueue\.{name}\(|^``{name}``',
                            reference, re.M))
        self.assertGreater(found, 15)

    def test_files(self):
        "Test the design says what each file of the module knows"
        design = (DOC / 'design.rst').read_text('utf-8')
        section = design.partition('.. _layout of the module:')[2]
        section = section.partition('.. _where to change:')[0]
        for path in ROOT.glob('*.py'):
            if path.name not in {'__init__.py', 'setup.py'}:
                with self.subTest(path.name):
                    self.assertIn(f'``{path.name}``', section)

    def test_glossary(self):
        "Test the glossary is short, and each word is there once"
        design = (DOC / 'design.rst').read_text('utf-8')
        section = design.partition('.. _glossary:')[2]
        section = section.partition('.. _layout of the module:')[0]
        words = re.findall(r'^(\S.*)\n   ', section, re.M)
        self.assertGreater(len(words), 15)
        self.assertLessEqual(len(words), 25)
        self.assertEqual(len(set(words)), len(words))

    def test_names_in_files(self):
        "Test what the design says is in a file is there"
        text = (DOC / 'design.rst').read_text('utf-8')
        found = re.findall(
            r'``(\w+)`` (?:in|of) ``(\w+)[.]py``', ' '.join(text.split()))
        section = text.partition('.. _what the module says:')[2]
        section = section.partition('.. _suspect email:')[0]
        found += (
            (name, 'policy') for name in re.findall(
                r'^     - ``(_\w+|suspected)``$', section, re.M))
        self.assertGreater(len(found), 10)
        for name, stem in found:
            with self.subTest(name):
                tree = ast.parse((ROOT / f'{stem}.py').read_text('utf-8'))
                names = {
                    getattr(node, 'id', None) or getattr(node, 'name', None)
                    for node in ast.walk(tree)}
                self.assertIn(name, names)

    def test_numbers(self):
        "Test the design and the reference have the numbers of the code"
        design = words((DOC / 'design.rst').read_text('utf-8'))
        mib, kib = 2 ** 20, 2 ** 10
        for text in [
                f"at most {bulk.ROWS} rows or {bulk.BYTES // mib} MiB",
                f"{recorder.UNRECORDED_ROWS} emails, or two for each session",
                f"than {1000 * recorder.UNRECORDED_SECONDS:g} ms",
                f"at most every {1000 * policy.RECORD_SECONDS:g} ms",
                f"one and {policy.HELD_ROWS} rows for each session",
                f"after {sender.HELD_SIZE // mib} MiB of messages",
                f"used the connection for {sender.FENCE_SECONDS} seconds",
                f"{smtp.OPENING_STEPS * smtp.REPLY_LINES} lines of "
                f"{smtp.REPLY_LINE_LENGTH // kib} KiB",
                f"larger than {smtp.SLICE_SIZE // kib} KiB",
                f"{oauth.ANSWER_SIZE // kib} KiB and "
                f"{oauth.ENDPOINT_SECONDS} seconds",
                f"first {replies.LENGTH} characters of a reply",
                ]:
            with self.subTest(text):
                self.assertIn(text.lower(), design)
        reference = words((DOC / 'reference.rst').read_text('utf-8'))
        for text in [
                f"at most {bulk.ROWS} tuples are read",
                f"with up to {bulk.ROWS} emails each time",
                f"at most {bulk.KEY_LENGTH} characters",
                ]:
            with self.subTest(text):
                self.assertIn(text.lower(), reference)

    def test_quotes(self):
        "Test the errors that the page for the night quotes are the module's"
        texts = [(ROOT / 'message.xml').read_text('utf-8')]
        for path in ROOT.glob('*.py'):
            texts += (
                node.value for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Constant)
                and isinstance(node.value, str))
        texts = [' '.join(text.split()) for text in texts]
        page = NO_TEXT.sub(
            lambda match: f'{match["keep"] or ""}\n',
            (DOC / 'usage' / 'operating.rst').read_text('utf-8'))
        page = re.sub(r'``.+?``', '', page, flags=re.S)
        found = 0
        for quote in QUOTE.findall(page):
            for part in re.split('[…?]', ' '.join(quote.split())):
                part = part.strip()
                if len(part) > 8 and part not in WORDS_OF_OTHERS:
                    found += 1
                    with self.subTest(part):
                        self.assertTrue(any(part in text for text in texts))
        self.assertGreater(found, 15)

    def test_tables(self):
        "Test no first cell of a simple table goes on in a row of its own"
        found = 0
        for path in pages():
            for line, width, rows in simple_tables(path.read_text('utf-8')):
                found += 1
                with self.subTest(page=path.name, line=line):
                    self.assertFalse(torn(width, rows))
        self.assertTrue(found)

    def test_torn(self):
        "Test what a torn row is"
        for table, cells in [
                ("""
======= =====
A       B
======= =====
One two four
three   six
======= =====
""", ['three']),
                ("""
=============== =====
A               B
=============== =====
One or two      four
and three       six
=============== =====
""", ['and three']),
                ("""
=============== =====
A               B
=============== =====
One or two      four
Three
=============== =====
""", ['Three']),
                ("""
======= =====
A       B
======= =====
``one`` four
``two``
``six`` five
        seven
one     eight
======= =====
""", []),
                ]:
            with self.subTest(table=table):
                (_, width, rows), = simple_tables(table)
                self.assertEqual(torn(width, rows), cells)

    def test_references(self):
        "Test no reference leads nowhere, in a page or between pages"
        texts = {path: path.read_text('utf-8') for path in pages()}
        labels = {
            words(label) for path, text in texts.items() if path != README
            for label in LABEL.findall(text)}
        found = 0
        for path, text in texts.items():
            own = {words(name) for name in LABEL.findall(text)} | {
                words(title) for title, _ in TITLE.findall(text)}
            read = NO_TEXT.sub(
                lambda match: f'{match["keep"] or ""}\n', text)
            read = re.sub(r'``.+?``', '', read, flags=re.S)
            for match in REFERENCE.finditer(read):
                found += 1
                with self.subTest(page=path.name, reference=match[0]):
                    self.assertIn(
                        words(match[1]), own if match['named'] else labels)
            for page in DOC_ROLE.findall(read):
                with self.subTest(page=path.name, doc=page):
                    self.assertTrue((path.parent / f'{page}.rst').exists())
        self.assertGreater(found, 100)

    def test_images(self):
        "Test each picture exists, is shown, and has a description"
        shown = set()
        for path in pages():
            for image, alt in IMAGE.findall(path.read_text('utf-8')):
                with self.subTest(page=path.name, image=image):
                    image = (path.parent / image).resolve()
                    self.assertTrue(image.exists())
                    self.assertTrue(alt)
                    shown.add(image)
        self.assertEqual(shown, set((DOC / 'images').resolve().iterdir()))

    def test_toctree(self):
        "Test each page is named once in the list of its folder"
        listed = []
        for path in pages():
            for entries in TOCTREE.findall(path.read_text('utf-8')):
                for entry in entries.split('\n'):
                    entry = entry.strip()
                    if entry and not entry.startswith(':'):
                        listed.append(path.parent / f'{entry}.rst')
                self.assertNotIn(':glob:', entries)
        self.assertEqual(
            sorted([DOC / 'index.rst', *listed]), sorted(DOC.rglob('*.rst')))

    def test_menus(self):
        "Test the client has the menus with these names"
        with self.transaction(readonly=True):
            Menu = Pool().get('ir.ui.menu')
            menus = {
                menu.complete_name.replace(' / ', ' > ')
                for menu in Menu.search([])}
        # A menu of the user, which is no record of the menu
        menus.add("Preferences > Notifications")
        found = 0
        for path in pages():
            for match in MENU_ROLE.finditer(path.read_text('utf-8')):
                found += 1
                name = ' '.join((match[1] or match[2]).split())
                with self.subTest(page=path.name, menu=name):
                    self.assertIn(name.replace('-->', '>'), menus)
        self.assertTrue(found)

    def test_names_of_menus(self):
        "Test the menus have these names in other languages"
        languages = ['de', 'fr', 'es']
        names = {}
        for path in [
                *Path(trytond.__file__).parent.glob('[ir][re]*/locale/*.po'),
                *(ROOT / 'locale').glob('*.po')]:
            for entry in polib.pofile(path):
                if entry.msgctxt.startswith('model:ir.ui.menu,name:'):
                    names.setdefault(entry.msgid, {}).setdefault(
                        path.stem, set()).add(entry.msgstr)
        page = (DOC / 'installation.rst').read_text('utf-8')
        rows = re.findall(
            r'^   \* - \*(.+)\*\n     - \*(.+)\*\n     - \*(.+)\*\n'
            r'     - \*(.+)\*$', page, re.M)
        self.assertTrue(rows)
        for name, *translations in rows:
            for language, translation in zip(languages, translations):
                with self.subTest(name=name, language=language):
                    self.assertIn(translation, names[name][language])
        for language in languages:
            administration, = names["Administration"][language]
            for entry in polib.pofile(ROOT / 'locale' / f'{language}.po'):
                if "Administration / " in entry.msgid:
                    with self.subTest(language=language, text=entry.msgid):
                        self.assertIn(f'{administration} / ', entry.msgstr)


del QueueTestCase
