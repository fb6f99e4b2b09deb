#!/usr/bin/env python3
# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Run the tests on each database and series of trytond, and check the style.

"make test" makes the virtual environments, which must exist, and calls this
program.
"""
import argparse
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from postgresql import PostgreSQL

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / '.cache'
VENVS = {
    '8.2': ROOT / '.venv',
    '8.0': ROOT / '.venv-8.0',
    }
CHECKS = [
    'postgresql', 'sqlite-8.0', 'engine', 'servers', 'modules', 'sqlite',
    'modules-8.0', 'plain', 'flake8', 'isort']
TESTS = 'trytond.modules.email_queue.tests'
# These tests need no database, so they run only once
PLAIN = [
    'test_bounce', 'test_decode', 'test_given', 'test_linear', 'test_message',
    'test_names', 'test_opening', 'test_policy', 'test_smtp', 'test_smtpd']
# On PostgreSQL these tests take as long as all others, so they run at the same
# time, in two databases of their own
ENGINE = [
    'test_crash', 'test_health', 'test_identity', 'test_operating',
    'test_record', 'test_store', 'test_worker']
SERVERS = [
    'test_fault', 'test_oauth', 'test_send', 'test_sender', 'test_servers']
# What mail servers and endpoints say does not depend on the database, so these
# tests do not run on SQLite
ANSWERS = ['test_fault', 'test_oauth']
# The tests run on PostgreSQL with trytond 8.2 and on SQLite with 8.0, so that
# each database and each series is tested. These modules test what only the
# other pairs could break.
PAIR = [
    'test_database', 'test_module', 'test_sender', 'test_store']
# These run on SQLite with both series and not on PostgreSQL, because who may
# call what is decided before the database is asked. One test searches, so it
# runs on both.
SERIES = ['test_border']
SEARCHES = ['test_border::ModelsTestCase::test_sensitive']
# These tests need further modules, which take long to be activated
OWN_MODULES = ['test_inbound', 'test_locale', 'test_module', 'test_modules']
# The modules' own tests, run while their emails are captured
MODULES = [
    'trytond.modules.account_dunning_email.tests',
    'trytond.modules.marketing_email.tests',
    'trytond.modules.notification_email.tests',
    'trytond.modules.web_user.tests',
    ]
# What an activated database depends on
CODE = ['*.py', '*.xml', 'tryton.cfg', 'view/*', 'locale/*']
OUTCOMES = {
    'passed': 'passed',
    'xpassed': 'passed',
    'failed': 'failed',
    'error': 'failed',
    'errors': 'failed',
    'skipped': 'skipped',
    'xfailed': 'skipped',
    }
# All tests usually take less than ten minutes, but longer on a busy machine
TIMEOUT = 25 * 60


class Check:
    "A command in a process group of its own, whose output goes to a file"
    process = None
    started = ended = None
    timed_out = False

    def __init__(self, name, command, directory, environ=None):
        self.name = name
        self.command = [str(c) for c in command]
        self.environ = environ
        self.log = directory / name
        self.log.touch()
        self.position = 0

    def start(self):
        self.started = time.monotonic()
        with self.log.open('wb') as log:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environ,
                stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True)

    def running(self):
        if not self.process or self.ended:
            return False
        if (self.process.poll() is None
                and time.monotonic() - self.started > TIMEOUT):
            self.timed_out = True
            self.kill()
        if self.process.poll() is None:
            return True
        self.kill()
        self.ended = time.monotonic()
        return False

    def kill(self):
        "Kill the command, and whatever it has started and left behind"
        if self.process:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait()

    def show(self):
        "Print the output of the command since the last call"
        with self.log.open('rb') as log:
            log.seek(self.position)
            sys.stdout.buffer.write(log.read())
            sys.stdout.flush()
            self.position = log.tell()

    @property
    def passed(self):
        return bool(
            self.ended and not self.timed_out and not self.process.returncode)

    @property
    def verdict(self):
        if self.passed:
            return "ok"
        return "TIMED OUT" if self.timed_out else "FAILED"

    @property
    def duration(self):
        return self.ended - self.started

    def details(self):
        return ''


class Tests(Check):
    "A run of pytest with its own configuration and database cache"
    arguments = [
        *(f'--ignore-glob=*/{name}.py' for name in [*OWN_MODULES, *PLAIN]),
        '--pyargs', TESTS]
    database = 'test'
    settings = {}

    def __init__(
            self, name, directory, uri='sqlite://', series='8.2',
            coverage=None, options=()):
        venv = VENVS[series]
        bin_ = venv / 'bin'
        command = [
            bin_ / 'pytest', '-o', f'cache_dir={CACHE / "pytest" / name}',
            '-p', f'{TESTS}.prepared', *options, *self.arguments]
        if coverage:
            command = [
                bin_ / 'coverage', 'run', '--data-file', coverage, *command]

        backend = uri.partition(':')[0]
        databases = directory / f'{name}.databases'
        databases.mkdir()
        environ = {
            key: value for key, value in os.environ.items()
            if not key.startswith(('TRYTOND_', 'DB_', 'COVERAGE_'))
            # Otherwise each program would compile the module again
            and key != 'PYTHONDONTWRITEBYTECODE'}
        environ.update(
            PATH=os.pathsep.join([str(bin_), os.environ['PATH']]),
            TRYTOND_DATABASE__URI=uri,
            TRYTOND_DATABASE__PATH=str(databases),
            DB_NAME=':memory:' if uri.startswith('sqlite') else self.database,
            DB_BASE=str(db_cache(f'{backend}-{series}-base', venv, [])),
            DB_CACHE=str(db_cache(f'{backend}-{series}', venv, CODE)),
            **self.settings)
        super().__init__(name, command, directory, environ)

    @property
    def counts(self):
        "Return the numbers in the last line of pytest"
        counts = Counter()
        if self.ended:
            lines = self.log.read_text(errors='replace').splitlines() or ['']
            for number, outcome in re.findall(r'(\d+) ([a-z]+)', lines[-1]):
                if outcome in OUTCOMES:
                    counts[OUTCOMES[outcome]] += int(number)
        if not self.passed and not counts['failed']:
            # pytest has ended before its last line
            counts['failed'] = 1
        return counts

    def details(self):
        return summary(self.counts)


class PostgreSQLTests(Tests):
    arguments = [
        *(f'--ignore-glob=*/{name}.py'
            for name in [*ENGINE, *SERVERS, *SERIES]),
        *Tests.arguments]


class EngineTests(Tests):
    arguments = ['--pyargs', *(f'{TESTS}.{name}' for name in ENGINE)]
    database = 'engine'


class ServersTests(Tests):
    arguments = [
        '--pyargs', *(f'{TESTS}.{name}' for name in [*SERVERS, *SEARCHES])]
    database = 'servers'


class SQLiteTests(Tests):
    arguments = [
        *(f'--ignore-glob=*/{name}.py' for name in ANSWERS), *Tests.arguments]


class PairTests(Tests):
    arguments = [
        '--pyargs', *(f'{TESTS}.{name}' for name in [*PAIR, *SERIES])]


class PlainTests(Tests):
    arguments = ['--pyargs', *(f'{TESTS}.{name}' for name in PLAIN)]


class OwnModulesTests(Tests):
    arguments = [
        '-p', f'{TESTS}.captured', '--pyargs',
        *(f'{TESTS}.{name}' for name in OWN_MODULES)]
    database = 'modules'
    settings = {'TRYTOND_EMAIL_QUEUE__CAPTURE': 'True'}


class ModulesTests(OwnModulesTests):
    arguments = [*OwnModulesTests.arguments, *MODULES]


def db_cache(name, venv, patterns):
    """Return the directory for databases that were activated with these very
    files and with the modules of a virtual environment
    """
    digest = hashlib.sha256(str((venv / 'stamp').stat().st_mtime_ns).encode())
    for pattern in patterns:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(str(path).encode())
            digest.update(path.read_bytes())
    directory = CACHE / 'db' / f'{name}-{digest.hexdigest()[:16]}'
    for other in directory.parent.glob(f'{name}-' + '[0-9a-f]' * 16):
        if other != directory:
            shutil.rmtree(other)
    return directory


def run(checks, jobs):
    "Run as many checks at once as there are jobs, and print one after another"
    waiting = list(checks)
    for check in checks:
        print(f"\n==== {check.name} ====", flush=True)
        while not check.ended:
            if sum(c.running() for c in checks) < jobs and waiting:
                waiting.pop(0).start()
            check.show()
            time.sleep(0.1)
        check.show()


def summary(counts):
    return ', '.join(
        f"{counts[outcome]} {outcome}"
        for outcome in ['passed', 'failed', 'skipped'])


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'checks', nargs='*', metavar='CHECK',
        help=f"one of {', '.join(CHECKS)} (default: all)")
    parser.add_argument(
        '--pytest', default='', metavar='OPTIONS',
        help="further options for pytest, as --pytest='-k priority -x'")
    parser.add_argument(
        '--coverage', action='store_true',
        help="trace the tests with trytond 8.2, which then take half as long "
        "again")
    parser.add_argument(
        '--jobs', type=int, default=(os.cpu_count() or 1) + 2,
        help="how many checks to run at once (default: %(default)s: two more "
        "than there are cores, because two checks wait most of the time)")
    args = parser.parse_args()
    if unknown := set(args.checks) - set(CHECKS):
        parser.error(f"no such check: {', '.join(unknown)}")
    return args


def main():
    args = parse_args()
    chosen = args.checks or CHECKS
    options = shlex.split(args.pytest)
    bin_ = VENVS['8.2'] / 'bin'
    # Otherwise a kill would leave the server behind
    for number in [signal.SIGTERM, signal.SIGHUP]:
        signal.signal(number, lambda number, frame: sys.exit(128 + number))

    with ExitStack() as stack:
        directory = Path(stack.enter_context(
                tempfile.TemporaryDirectory(prefix='email_queue-')))
        checks = []
        stack.callback(lambda: [check.kill() for check in checks])
        coverage = directory / '.coverage' if args.coverage else None
        traced = {'options': options, 'coverage': coverage}
        on_server = {}
        if {'postgresql', 'engine', 'servers', 'modules'} & set(chosen):
            server = stack.enter_context(PostgreSQL())
            # For pg_dump and pg_restore, which trytond calls
            os.environ['PATH'] = os.pathsep.join(
                [str(server.bin), os.environ['PATH']])
            on_server['uri'] = server.uri
        # The checks that take longest come first; of these, engine and servers
        # wait for other processes more than they compute
        for name, class_, keywords in [
                ('postgresql', PostgreSQLTests, traced | on_server),
                ('sqlite-8.0', SQLiteTests, {
                        'series': '8.0', 'options': options}),
                ('engine', EngineTests, traced | on_server),
                ('servers', ServersTests, traced | on_server),
                ('modules', ModulesTests, traced | on_server),
                ('sqlite', PairTests, traced),
                ('modules-8.0', OwnModulesTests, {
                        'series': '8.0', 'options': options}),
                ('plain', PlainTests, traced)]:
            if name in chosen:
                checks.append(class_(name, directory, **keywords))
        if 'flake8' in chosen:
            checks.append(Check('flake8', [bin_ / 'flake8'], directory))
        if 'isort' in chosen:
            checks.append(Check(
                    'isort', [bin_ / 'isort', '--check', '--diff', '.'],
                    directory))
        run(checks, args.jobs)

        if args.coverage:
            subprocess.run(
                [bin_ / 'coverage', 'combine', '--quiet', directory],
                cwd=ROOT)
            check = Check('coverage', [bin_ / 'coverage', 'report'], directory)
            checks.append(check)
            run([check], 1)

        print("\n==== summary ====")
        total = Counter()
        for check in checks:
            print(f"{check.name:<12}{check.verdict:<11}"
                f"{check.duration:>4.0f} s  {check.details()}".rstrip())
            if isinstance(check, Tests):
                total += check.counts
        print(f"\n{summary(total)}")
        return all(check.passed for check in checks)


if __name__ == '__main__':
    try:
        sys.exit(0 if main() else 1)
    except KeyboardInterrupt:
        sys.exit("interrupted")
