# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""A plugin of pytest: the tests of other modules with this module activated.

    TRYTOND_EMAIL_QUEUE__CAPTURE=True pytest \\
        -p trytond.modules.email_queue.tests.captured \\
        --pyargs trytond.modules.notification_email.tests

All these modules are activated in each database, so that the cache needs only
one database. Further modules that the tests ask for are left out.
"""
from trytond.tests import test_tryton, tools

MODULES = [
    'account_dunning_email',
    'marketing_email',
    'notification_email',
    'inbound_email',
    'web_user',
    'email_queue',
    ]
activate_module = test_tryton.activate_module


def activate_all(modules=None, lang='en'):
    activate_module(MODULES, lang=lang)


def activate_all_by_client(modules, *setup):
    test_tryton.drop_db()
    activate_all()
    config = tools._get_config()
    for function in setup:
        function(config=config)
    return config


test_tryton.activate_module = activate_all
tools.activate_modules = activate_all_by_client


def pytest_collection_modifyitems(config, items):
    "Leave out the tests that trytond has for every module, but of this one"
    Any = test_tryton.ModuleTestCase
    general = {name for name in dir(Any) if name.startswith('test')}
    left_out = [
        item for item in items
        if issubclass(item.cls or object, Any) and item.name in general
        and item.cls.module != 'email_queue']
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_report_header(config):
    return f"activated in every database: {', '.join(MODULES)}"
