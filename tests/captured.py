# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""A plugin of pytest: the tests of other modules with this one activated.

    TRYTOND_EMAIL_QUEUE__CAPTURE=True pytest \\
        -p trytond.modules.email_queue.tests.captured \\
        --pyargs trytond.modules.notification_email.tests

Of the further modules that their tests activate those that are not installed
are left out.
"""
from functools import wraps
from importlib.util import find_spec

from trytond.tests import test_tryton, tools


def with_queue(activate):
    @wraps(activate)
    def wrapper(modules, *args, **kwargs):
        if isinstance(modules, str):
            modules = [modules]
        modules = [
            m for m in dict.fromkeys([*modules, 'email_queue'])
            if m in {'ir', 'res'} or find_spec(f'trytond.modules.{m}')]
        return activate(modules, *args, **kwargs)
    return wrapper


test_tryton.activate_module = with_queue(test_tryton.activate_module)
tools.activate_modules = with_queue(tools.activate_modules)


def pytest_report_header(config):
    return "email_queue is activated in every database"
