# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The surroundings of a measurement: database, SMTP server, processes."""
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg
from messages import NUMBER
from psycopg import sql

from trytond.modules.email_queue.tests.postgresql import free_port

__all__ = ['Database', 'Program', 'Proxy', 'Sink', 'apart', 'smtp_sink']

PROGRAMS = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
TIMEOUT = 600


class Program:
    """A program of this directory, which waits for ``go`` when it is ready.

    :param python: the interpreter that runs the program.
    :param configuration: the configuration of trytond, as SECTION__OPTION.
    """

    def __init__(self, name, *args, python=sys.executable, **configuration):
        self.name = name
        self.process = subprocess.Popen(
            [python, PROGRAMS / name, *map(str, args)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment(**configuration))

    def __enter__(self):
        try:
            if self.process.stdout.readline() != 'ready\n':
                raise RuntimeError(f"{self.name} did not start")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info):
        self.process.kill()
        self.process.communicate()

    def go(self, processors=None):
        if processors:
            os.sched_setaffinity(self.process.pid, processors)
        self.process.stdin.write('\n')
        self.process.stdin.flush()

    def result(self):
        output, _ = self.process.communicate(timeout=TIMEOUT)
        if self.process.returncode:
            raise RuntimeError(f"{self.name} failed")
        return json.loads(output)


def environment(**configuration):
    "Return the environment with this configuration of trytond and no other"
    environ = {
        name: value for name, value in os.environ.items()
        if not name.startswith('TRYTON')}
    for name, value in configuration.items():
        environ[f'TRYTOND_{name}'] = str(value)
    return environ


def smtp_sink():
    "Return the program of Postfix, None where it is not installed"
    # Debian has smtp-sink in a directory that only root has in the PATH
    path = os.pathsep.join([os.environ['PATH'], '/usr/sbin'])
    return shutil.which('smtp-sink', path=path)


def apart():
    """Return the processors of a plain loop, and those of its server.

    A loop on the processor of its server is more than twice as fast as beside
    it, because no other processor has to be woken up for a reply. Where the
    kernel puts the two is chance, and a mail server has a machine of its own.
    """
    *client, server = sorted(os.sched_getaffinity(0))
    return client or [server], [server]


class Sink:
    "An SMTP server that counts messages and throws them away"

    def __init__(self, processors=None):
        self._processors = processors
        self.port = free_port()
        self.uri = f'smtp://127.0.0.1:{self.port}'
        self._counters = tempfile.TemporaryFile()

    def __enter__(self):
        user = ['-u', 'nobody'] if os.geteuid() == 0 else []
        self._process = subprocess.Popen(
            [smtp_sink(), *user, '-c', f'127.0.0.1:{self.port}', '1000'],
            stdout=self._counters)
        if self._processors:
            os.sched_setaffinity(self._process.pid, self._processors)
        wait_for(self.port)
        return self

    def __exit__(self, *exc_info):
        self._process.kill()
        self._process.wait()
        self._counters.close()

    @property
    def count(self):
        "Return the number of messages that have arrived"
        descriptor = self._counters.fileno()
        size = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, 200, max(size - 200, 0))
        counts = re.findall(rb'mesg=(\d+)', tail)
        return int(counts[-1]) if counts else 0


def wait_for(port):
    "Wait until something listens on the port of 127.0.0.1"
    for _ in range(200):
        try:
            socket.create_connection(('127.0.0.1', port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.01)
    raise RuntimeError(f"nothing listens on port {port}")


class Proxy(Program):
    """A proxy before a server, which makes the server look distant.

    :param round_trip: the seconds of a round trip through the proxy.
    """

    def __init__(self, server, round_trip):
        self.port = free_port()
        self.uri = f'smtp://127.0.0.1:{self.port}'
        super().__init__('proxy.py', self.port, server.port, round_trip / 2)


class Database:
    "A database with the module and rows of messages"

    def __init__(self, server, name):
        self.server = server
        self.name = name

    def create(self, sizes):
        "Create the database for rows of messages of these sizes"
        self.server.createdb(self.name)
        with tempfile.NamedTemporaryFile('w') as password:
            password.write('benchmark')
            password.flush()
            subprocess.run([
                    BIN / 'trytond-admin', '-d', self.name,
                    '-u', 'email_queue', '--email', 'admin@example.com'],
                env={
                    **environment(DATABASE__URI=self.server.uri),
                    'TRYTONPASSFILE': password.name,
                    },
                stdin=subprocess.DEVNULL, check=True)
        # So that the scheduler only sends
        self.execute(
            "UPDATE ir_cron SET active = (method = 'email.queue|send_all')")
        with self.program('templates.py', *sizes) as program:
            program.go()
            program.result()
        self.execute('CREATE TABLE template AS TABLE email_queue')
        self.execute('TRUNCATE email_queue CASCADE')

    def copy(self, name):
        "Return a new database that is equal to this one"
        with psycopg.connect(
                f'{self.server.uri}template1', autocommit=True) as connection:
            connection.execute(
                sql.SQL('CREATE DATABASE {} TEMPLATE {}').format(
                    sql.Identifier(name), sql.Identifier(self.name)))
        return Database(self.server, name)

    def program(self, name, *args, **configuration):
        "Return a program that works with this database"
        return Program(
            name, self.name, *args, DATABASE__URI=self.server.uri,
            **configuration)

    def execute(self, query, params=None):
        with psycopg.connect(
                f'{self.server.uri}{self.name}',
                autocommit=True) as connection:
            cursor = connection.execute(query, params)
            return cursor.fetchall() if cursor.description else []

    def count(self, state):
        (count,), = self.execute(
            'SELECT count(*) FROM email_queue WHERE state = %s', [state])
        return count

    def fill(self, size, count, **values):
        """Add rows as ``queue_mail`` makes them, except for ``values``.

        :param values: SQL of the columns that differ; ``i`` counts the rows.
        """
        number = "lpad(i::text, 8, '0')"
        values = {
            'id': "nextval('email_queue_id_seq')",
            'msg': "convert_to(replace(convert_from(msg, 'UTF8'), "
            f"'{NUMBER}', {number}), 'UTF8')",
            'message_id': f"replace(message_id, '{NUMBER}', {number})",
            'subject': f"replace(subject, '{NUMBER}', {number})",
            # One row after another, all of them due
            'scheduled_at': "now() AT TIME ZONE 'UTC' - interval '1 day' "
            "+ i * interval '1 ms'",
            **values,
            }
        columns = [c for c, in self.execute(
                "SELECT column_name FROM information_schema.columns "
                "WHERE table_name = 'template'")]
        self.execute(
            f"INSERT INTO email_queue ({', '.join(columns)}) "
            f"SELECT {', '.join(values.get(c, c) for c in columns)} "
            f"FROM template, generate_series(1, {count}) AS i "
            f"WHERE size = (SELECT size FROM template "
            f"ORDER BY abs(size - {size}) LIMIT 1)")

    def index_texts(self):
        "Make the indexes of the search box, which need an extension"
        if not self.execute(
                "SELECT 1 FROM pg_extension WHERE extname = 'pg_trgm'"):
            self.execute('CREATE EXTENSION pg_trgm')
            subprocess.run(
                [BIN / 'trytond-admin', '-d', self.name, '--indexes'],
                env=environment(DATABASE__URI=self.server.uri),
                stdin=subprocess.DEVNULL, check=True)
            self.settle()

    def settle(self):
        "Do the work that the server would do in the background later"
        self.execute('VACUUM (ANALYZE) email_queue')
        self.execute('CHECKPOINT')
