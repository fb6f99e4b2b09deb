# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""A plugin of pytest: what is activated in a database is activated once.

    DB_BASE=DIRECTORY DB_CACHE=DIRECTORY pytest \\
        -p trytond.modules.email_queue.tests.prepared ...

To fill a database with its own records takes trytond five seconds of the
processor on SQLite and twelve on PostgreSQL. A run needs a dozen databases,
which differ in the modules only, so that each is a copy of one in ``DB_BASE``.
Runs at the same time can share both directories: a file is there as a whole
or not at all, and only one run at a time makes what is not there.
"""
import fcntl
import os
import tempfile
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from unittest.mock import patch

from trytond.tests import test_tryton, tools

BASE = Path(os.environ['DB_BASE'])
CACHE = Path(os.environ['DB_CACHE'])
for directory in [BASE, CACHE]:
    directory.mkdir(parents=True, exist_ok=True)

backup_db_cache = test_tryton.backup_db_cache
create_db = test_tryton.create_db


@contextmanager
def alone(directory):
    "Let other runs wait that want something of the directory"
    with (directory / 'lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def one_run(function):
    @wraps(function)
    def wrapper(*args, **kwargs):
        with alone(CACHE):
            return function(*args, **kwargs)

    return wrapper


def save(name):
    "Save the database in the cache, under its name only when it is complete"
    cache = Path(test_tryton.DB_CACHE)
    with tempfile.TemporaryDirectory(dir=cache) as directory:
        with patch.object(test_tryton, 'DB_CACHE', directory):
            backup_db_cache(name)
        for path in Path(directory).iterdir():
            if not (cache / path.name).exists():
                path.rename(cache / path.name)


def copy(name=test_tryton.DB_NAME, lang='en'):
    "Create a database that has no module, as the function of trytond does"
    if test_tryton.db_exist(name):
        return
    with alone(BASE), patch.multiple(
            test_tryton, DB_NAME=name, DB_CACHE=str(BASE)):
        if not test_tryton.restore_db_cache(lang):
            create_db(name, lang)
            save(lang)


test_tryton.backup_db_cache = tools.backup_db_cache = save
test_tryton.create_db = copy
test_tryton.activate_module = one_run(test_tryton.activate_module)
tools.activate_modules = one_run(tools.activate_modules)
