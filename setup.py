#!/usr/bin/env python3
# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

MODULE = 'email_queue'
PACKAGE = f'trytond.modules.{MODULE}'
DIRECTORY = Path(__file__).resolve().parent
OAUTH = ['Authlib >= 1.9, < 2', 'joserfc']
POSTGRESQL = ['trytond[postgresql] >= 8.0, < 8.3']


def names(value):
    return value.strip().splitlines()


config = ConfigParser()
config.read(DIRECTORY / 'tryton.cfg')
info = config['tryton']
version = info['version']
major, minor = map(int, version.split('.')[:2])

# The requirement on trytond is wider than usual, because the same code is for
# two series.
requires = [
    'idna',
    'lxml',
    'nh3',
    'python-sql',
    'trytond >= 8.0, < 8.3',
    ]
for module in names(info.get('depends', '')):
    if module not in {'ir', 'res'}:
        requires.append(
            f'trytond_{module} >= {major}.{minor}, < {major}.{minor + 1}')

setup(
    # Named, so that setuptools does not take this file for a module
    script_name='setup.py',
    name=f'trytond_{MODULE}',
    version=version,
    description="Tryton module that sends emails from a transactional queue",
    long_description=(DIRECTORY / 'README.rst').read_text('utf-8'),
    long_description_content_type='text/x-rst',
    author="The email_queue developers",
    # The address of the commits
    author_email='maintainers@users.noreply.r-seed-b365acb7.example',
    project_urls={
        'forum': 'https://www.tryton.org/forum',
        'Tryton': 'https://www.tryton.org/',
        },
    license_expression='GPL-3.0-or-later',
    license_files=['LICENSE', 'COPYRIGHT'],
    keywords="tryton email queue outbox smtp",
    classifiers=[
        'Development Status :: 4 - Beta',
        'Environment :: Plugins',
        'Framework :: Tryton',
        'Intended Audience :: Developers',
        'Intended Audience :: System Administrators',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3 :: Only',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Communications :: Email :: Mail Transport Agents',
        'Topic :: Office/Business',
        ],
    package_dir={PACKAGE: '.'},
    packages=[PACKAGE, f'{PACKAGE}.tests'],
    package_data={
        PACKAGE: [
            'tryton.cfg',
            '*.xml',
            'view/*.xml',
            'locale/*.po',
            'icons/*.svg',
            ],
        f'{PACKAGE}.tests': ['*.rst', '*.json', '*.pem', 'notices/*.eml'],
        },
    python_requires='>=3.10',
    install_requires=requires,
    extras_require={
        # The modules whose emails are captured
        'modules': [
            'trytond_account_dunning_email >= 8.0, < 8.3',
            'trytond_inbound_email >= 8.0, < 8.3',
            'trytond_marketing_email >= 8.0, < 8.3',
            'trytond_notification_email >= 8.0, < 8.3',
            'trytond_web_user >= 8.0, < 8.3',
            ],
        # Logins by the key of a service account
        'oauth': OAUTH,
        'postgresql': POSTGRESQL,
        'test': [
            *OAUTH,
            *POSTGRESQL,
            'aiosmtpd',
            'build',
            'coverage >= 7.10',
            'flake8',
            'hypothesis',
            'isort',
            'proteus >= 8.0, < 8.3',
            'psycopg[binary]',
            'pytest',
            'twine',
            ],
        'web': [
            'selenium',
            'trytond_party >= 8.0, < 8.3',
            ],
        },
    scripts=[
        'bin/trytond-email-queue-bounce',
        'bin/trytond-email-queue-health',
        ],
    entry_points=f"""
    [trytond.modules]
    {MODULE} = {PACKAGE}
    """,
    zip_safe=False,
    )
