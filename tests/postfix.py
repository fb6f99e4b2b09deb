# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""A Postfix of its own, which relays to a port of 127.0.0.1."""
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

__all__ = ['Postfix', 'available']

MAIN = """\
compatibility_level = 3.6
queue_directory = {directory}/queue
data_directory = {directory}/data
command_directory = /usr/sbin
daemon_directory = {daemons}
maillog_file = {directory}/log/maillog
maillog_file_prefixes = {directory}/log
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = relay.example.com
mydestination =
mynetworks = 127.0.0.0/8
relayhost = [127.0.0.1]:{relay_port}
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_recipient_restrictions =
local_recipient_maps =
alias_maps =
disable_dns_lookups = yes
smtp_tls_security_level = none
minimal_backoff_time = 1s
queue_run_delay = 1s
"""
MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 1 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
smtp unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
postlog unix-dgram n - n - 1 postlogd
"""


def daemons():
    for directory in ['/usr/lib/postfix/sbin', '/usr/libexec/postfix']:
        if os.path.exists(f'{directory}/master'):
            return directory


def available():
    "Return whether Postfix is installed and can be started"
    return bool(
        os.geteuid() == 0 and shutil.which('postfix') and daemons())


class Postfix:
    """A relay that runs while the context is entered.

    :param relay_port: the port of the server that gets all of it.
    :param options: further lines of main.cf.
    """

    def __init__(self, relay_port, **options):
        with socket.socket() as sock:
            sock.bind(('127.0.0.1', 0))
            self.port = sock.getsockname()[1]
        self.uri = f'smtp://127.0.0.1:{self.port}'
        self._relay_port = relay_port
        self._options = options
        self._directory = None

    def __enter__(self):
        self._directory = tempfile.TemporaryDirectory(prefix='postfix-')
        directory = Path(self._directory.name)
        directory.chmod(0o755)
        for name in ['etc', 'queue', 'data', 'log']:
            (directory / name).mkdir()
        shutil.chown(directory / 'data', 'postfix')
        main = MAIN.format(
            directory=directory, daemons=daemons(),
            relay_port=self._relay_port)
        main += ''.join(f'{n} = {v}\n' for n, v in self._options.items())
        (directory / 'etc/main.cf').write_text(main)
        (directory / 'etc/master.cf').write_text(
            MASTER.format(port=self.port))
        try:
            self._postfix('start')
        except BaseException:
            self._directory.cleanup()
            raise
        return self

    def __exit__(self, *exc_info):
        try:
            self._postfix('stop')
        finally:
            self._directory.cleanup()

    @property
    def log(self):
        return (Path(self._directory.name) / 'log/maillog').read_text()

    def _postfix(self, command):
        subprocess.run(
            ['postfix', '-c', f'{self._directory.name}/etc', command],
            check=True, stdin=subprocess.DEVNULL, capture_output=True,
            timeout=60)
