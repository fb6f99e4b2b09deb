# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Tryton's desktop client on a database with the module."""
import json
import os
import re
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

from trytond.modules.email_queue.tests_web.site import (
    DATABASE, PASSWORD, ROOT, Site, wait)

__all__ = ['Desktop', 'Site']

PYTHON = ROOT / '.cache' / 'desktop' / 'bin' / 'python'
DRIVER = Path(__file__).resolve().parent / 'driver.py'
# What the screen shows when something goes wrong
FAILURE = ROOT / '.cache' / 'desktop.png'
# What the toolkit says of a display without a desktop
OPTIONAL = re.compile(
    r'Couldn\'t (?:connect to|register with) accessibility bus'
    r'|Failed to register: .*DBus|dconf-WARNING|org\.freedesktop\.DBus'
    r'|cannot open display: |Gdk-WARNING .*EDID|^\s*$', re.I)


class Desktop:
    """The client on a display of its own; every method waits for its result.

    Every command of driver.py is a method.

    :param site: the :class:`Site` that the client uses.
    :param login: the login of the user.
    :param language: the language of the client until it knows the user's.
    """

    def __init__(self, site, login='admin', language='en',
            width=1366, height=768):
        self.site = site
        self.login = login
        self.language = language
        self.size = width, height

    def __enter__(self):
        with ExitStack() as stack:
            self.directory = Path(stack.enter_context(
                    tempfile.TemporaryDirectory(prefix='email_queue-')))
            self.opened = self.directory / 'opened'
            self.opened.mkdir()
            self.log = self.directory / 'client.log'
            display = self._start_display(stack)
            self._start_client(stack, display)
            self._stack = stack.pop_all()
        try:
            self.password(PASSWORD)
            self.wait(lambda: self.menu_names(), "menu")
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, exc_type, *exc_info):
        try:
            if exc_type:
                self._command('picture', str(FAILURE))
        except Exception:
            # The first error is the one to show
            pass
        finally:
            self._stack.close()

    def _start_display(self, stack):
        reading, writing = os.pipe()
        process = subprocess.Popen([
                'Xvfb', '-displayfd', str(writing), '-nolisten', 'tcp',
                '-screen', '0', '{}x{}x24'.format(*self.size)],
            pass_fds=[writing], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        os.close(writing)
        with os.fdopen(reading) as file:
            display = f':{file.readline().strip()}'
        # The window manager maximizes the window, and gives dialogs the size
        # that they ask for
        process = subprocess.Popen(
            ['openbox', '--sm-disable'],
            env={**self._home(), 'DISPLAY': display},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        return display

    def _home(self):
        "Return an environment without settings of any user"
        return {
            **os.environ,
            'HOME': str(self.directory),
            'XDG_CONFIG_HOME': str(self.directory / 'config'),
            }

    def _start_client(self, stack, display):
        environ = {
            **self._home(),
            'DISPLAY': display,
            'GDK_BACKEND': 'x11',
            'GSETTINGS_BACKEND': 'memory',
            'GTK_THEME': 'Adwaita',
            'LANG': 'C.UTF-8',
            'LANGUAGE': self.language,
            'NO_AT_BRIDGE': '1',
            'OPENED': str(self.opened),
            }
        # There is no bus of a session
        environ.pop('DBUS_SESSION_BUS_ADDRESS', None)
        host = self.site.url.split('/')[2]
        self._process = subprocess.Popen([
                PYTHON, DRIVER, '-u', self.login,
                f'tryton://{host}/{DATABASE}/'],
            env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log.open('wb'), text=True)
        stack.callback(self._process.wait)
        stack.callback(self._process.terminate)
        stack.callback(self._process.stdin.close)
        stack.callback(self._process.stdout.close)

    def _command(self, *command):
        try:
            print(json.dumps(command), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ''
        if not answer:
            raise RuntimeError(self.log.read_text())
        good, value = json.loads(answer)
        if good:
            return value
        if value.startswith('LookupError: '):
            raise LookupError(value)
        raise RuntimeError(value)

    def __getattr__(self, name):
        if name.startswith('_'):
            raise AttributeError(name)

        def command(*arguments):
            return self.wait(
                lambda: [self._command(name, *arguments)],
                f"{name} {arguments}")[0]
        return command

    def wait(self, condition, what):
        return wait(condition, what, [LookupError])

    def wait_for(self, **values):
        "Wait until fields of the form show the values"
        self.wait(
            lambda: values.items() <= self._command('values').items(),
            f"form with {values}")

    def find(self, text):
        "Wait until a text is seen, as a whole or as a part"
        return self.wait(
            lambda: [t for t in self._command('texts') if text in t], text)[0]

    def wait_until_settled(self):
        "Wait until the picture no longer changes"
        last = None

        def settled():
            nonlocal last
            path = self.directory / 'settled.png'
            self._command('picture', str(path))
            before, last = last, path.read_bytes()
            return before == last
        self.wait(settled, "rest")

    def save(self, path):
        "Save a picture of the screen, with nothing in focus"
        self.unfocus()
        self.wait_until_settled()
        self._command('picture', str(path))

    @property
    def problems(self):
        "Return the errors that the client has shown in windows and in its log"
        lines = self.log.read_text().splitlines()
        return [
            *self._command('errors'),
            *(line for line in lines if not OPTIONAL.search(line))]
