# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""A database with the module, which a trytond serves to a client of Tryton."""
import os
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path

import trytond.config as config
from trytond.modules.email_queue.tests.postgresql import free_port
from trytond.modules.email_queue.tests.smtpd import Server
from trytond.pool import Pool
from trytond.transaction import Transaction

__all__ = ['DATABASE', 'PASSWORD', 'ROOT', 'TIMEOUT', 'Site', 'wait']

DATABASE = 'shop'
PASSWORD = 'correct horse battery'
# The directory of trytond-admin and the other programs
BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parent.parent
# The directory of the web client, if it is there
SAO = ROOT / '.cache' / 'sao' / 'node_modules' / 'tryton-sao'
TIMEOUT = 60  # in seconds
INTERVAL = .1  # in seconds, between two looks at a condition


def wait(condition, what, ignored=()):
    """Wait until the condition holds, and return its value.

    :param what: what is missing, for the error after the time-out.
    :param ignored: the classes of exceptions that are ignored meanwhile.
    """
    end = time.monotonic() + TIMEOUT
    error = None
    while time.monotonic() < end:
        try:
            if value := condition():
                return value
        except tuple(ignored) as exception:
            error = exception
        time.sleep(INTERVAL)
    raise TimeoutError(f"no {what}") from error


class Site:
    """A database on SQLite, which a trytond serves.

    Its emails go to a server whose answers are in the addresses.

    :param modules: the modules to activate besides email_queue.
    :param language: the language of the users.
    """

    def __init__(self, modules=(), language='en'):
        self.language = language
        self.modules = ['email_queue', *modules]
        self.url = f'http://127.0.0.1:{free_port()}/'

    def __enter__(self):
        with ExitStack() as stack:
            self.directory = Path(stack.enter_context(
                    tempfile.TemporaryDirectory(prefix='email_queue-')))
            self.smtp = stack.enter_context(Server())
            self._configure()
            self._create_database()
            self._serve(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info):
        self._stack.close()

    def _configure(self):
        path = self.directory / 'trytond.conf'
        path.write_text(textwrap.dedent(f"""\
                [database]
                uri = sqlite://
                path = {self.directory}

                [web]
                listen = {self.url.split('/')[2]}
                root = {SAO}

                [email]
                uri = {self.smtp.uri}
                from = shop@example.com
                """))
        password = self.directory / 'password'
        password.write_text(PASSWORD)
        self.environ = {
            name: value for name, value in os.environ.items()
            if not name.startswith('TRYTOND_')}
        self.environ.update(
            TRYTOND_CONFIG=str(path), TRYTONPASSFILE=str(password))
        config.update_etc(str(path))

    def _create_database(self):
        (self.directory / f'{DATABASE}.sqlite').touch()
        self.run(
            'trytond-admin', '--email', 'admin@example.com',
            '--activate-dependencies', '-l', 'en', self.language,
            '-u', *self.modules)
        Pool.start()
        Pool(DATABASE).init()
        with self.transaction():
            pool = Pool()
            User = pool.get('res.user')
            Item = pool.get('ir.module.config_wizard.item')
            ModelData = pool.get('ir.model.data')
            admin, = User.search([('login', '=', 'admin')])
            User.write([admin], {
                    'language': self._language(),
                    'groups': [('add', [
                                ModelData.get_id(
                                    'email_queue.group_email_queue')])],
                    })
            # Otherwise the wizard of these modules would open first
            Item.write(Item.search([]), {'state': 'done'})

    def _language(self):
        language, = Pool().get('ir.lang').search([
                ('code', '=', self.language)])
        return language.id

    def create_user(self, login, **values):
        with self.transaction():
            user, = Pool().get('res.user').create([{
                        'name': login,
                        'login': login,
                        'password': PASSWORD,
                        'language': self._language(),
                        **values,
                        }])
            return user.id

    def _serve(self, stack):
        log = self.directory / 'trytond.log'
        process = subprocess.Popen(
            [BIN / 'trytond', '-d', DATABASE], env=self.environ,
            stdin=subprocess.DEVNULL, stdout=log.open('wb'),
            stderr=subprocess.STDOUT)
        stack.callback(process.wait)
        stack.callback(process.terminate)

        def is_up():
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            with urllib.request.urlopen(self.url):
                return True
        wait(is_up, "server", [OSError])

    def run(self, program, *args):
        process = subprocess.run(
            [BIN / program, '-d', DATABASE, *args], env=self.environ,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True)
        if process.returncode:
            raise RuntimeError(f"{program} failed:\n{process.stdout}")

    def run_job(self):
        "Let the scheduler send what is queued"
        with self.transaction():
            Cron = Pool().get('ir.cron')
            Cron.write(
                Cron.search([('method', '=', 'email.queue|send_all')]),
                {'next_call': None})
        self.run('trytond-cron', '--once')

    @contextmanager
    def transaction(self, user=0, **options):
        "A transaction that is committed at the end"
        with Transaction().start(DATABASE, user, **options) as transaction:
            yield transaction
