# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""A PostgreSQL server of its own for tests, demo and benchmarks.

It needs only the programs of PostgreSQL, neither trytond nor pytest. Run as a
script, this file prints where it finds the programs.
"""
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ['PostgreSQL', 'PostgreSQLError', 'bin_directory', 'free_port']


class PostgreSQLError(Exception):
    pass


def bin_directory():
    "Return the directory of the newest initdb that is installed"
    # Debian keeps initdb and pg_ctl out of the PATH
    directories = sorted(
        Path('/usr/lib/postgresql').glob('*/bin'),
        key=lambda path: float(path.parent.name), reverse=True)
    if initdb := shutil.which('initdb'):
        directories.append(Path(initdb).resolve().parent)
    for directory in directories:
        if (directory / 'initdb').exists():
            return directory
    raise PostgreSQLError(
        "PostgreSQL is not installed (on Debian: apt-get install postgresql)")


def free_port():
    "Return a port of 127.0.0.1 that nobody listens on"
    # Below the range from which the kernel takes the ports of clients, because
    # a client could otherwise get the port of the server while the server is
    # down
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as sock:
            try:
                sock.bind(('127.0.0.1', port))
            except OSError:
                continue
            return port


class PostgreSQL:
    """A server with a new data directory, until the end of the with block.

    :param durable: whether a commit must survive a power failure, as the
        benchmarks need it. Otherwise it survives a crash of the server only.
    :param settings: further settings of postgresql.conf.
    """

    def __init__(self, durable=False, **settings):
        self.bin = bin_directory()
        self.port = free_port()
        self.settings = {
            'listen_addresses': '127.0.0.1',
            'port': self.port,
            'unix_socket_directories': '',
            }
        if not durable:
            self.settings.update(
                fsync='off', synchronous_commit='off', full_page_writes='off')
        self.settings.update(settings)
        self.directory = None

    @property
    def uri(self):
        "The value for [database] uri"
        return f'postgresql://postgres@127.0.0.1:{self.port}/'

    @property
    def data(self):
        return self.directory / 'data'

    @property
    def pid(self):
        "The id of the server's process, None while the server is down"
        try:
            return int((self.data / 'postmaster.pid').read_text().split()[0])
        except FileNotFoundError:
            return None

    def __enter__(self):
        self.directory = Path(tempfile.mkdtemp(prefix='postgresql-'))
        try:
            if os.geteuid() == 0:
                shutil.chown(self.directory, 'postgres')
            self._run(
                'initdb', '--pgdata', self.data, '--username', 'postgres',
                '--auth', 'trust', '--encoding', 'UTF8',
                '--locale', 'C.UTF-8', '--no-sync')
            with (self.data / 'postgresql.conf').open('a') as conf:
                for name, value in self.settings.items():
                    conf.write(f"{name} = '{value}'\n")
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info):
        try:
            if self.pid:
                self.stop('immediate')
        except PostgreSQLError:
            # If a test has killed the server, the file with the pid stays
            # behind
            pass
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    def start(self):
        self._run(
            'pg_ctl', '--pgdata', self.data, '--log', self.directory / 'log',
            '--wait', 'start')

    def stop(self, mode='fast'):
        """Stop the server.

        :param mode: "smart" waits for the clients to leave, "fast" disconnects
            them, "immediate" is a crash
        """
        self._run(
            'pg_ctl', '--pgdata', self.data, '--mode', mode, '--wait', 'stop')

    def restart(self, mode='immediate'):
        self.stop(mode)
        self.start()

    def createdb(self, name, *args):
        self._run(
            'createdb', '--host', '127.0.0.1', '--port', self.port,
            '--username', 'postgres', *args, name)

    def _run(self, program, *args):
        command = [self.bin / program, *args]
        if os.geteuid() == 0:
            # The server refuses to run as root
            command = ['runuser', '-u', 'postgres', '--', *command]
        process = subprocess.run(
            list(map(str, command)), cwd=self.directory,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True)
        if process.returncode:
            log = self.directory / 'log'
            raise PostgreSQLError('\n'.join([
                        f"{program} failed:", process.stdout,
                        log.read_text() if log.exists() else '']))


if __name__ == '__main__':
    try:
        print(bin_directory())
    except PostgreSQLError as exception:
        sys.exit(str(exception))
