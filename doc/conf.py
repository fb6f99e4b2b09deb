# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
from configparser import ConfigParser
from pathlib import Path

_config = ConfigParser()
_config.read(Path(__file__).resolve().parent.parent / 'tryton.cfg')

project = 'trytond_email_queue'
release = _config['tryton']['version']
version = '.'.join(release.split('.')[:2])
html_title = "Email Queue Module"
master_doc = 'index'
default_role = 'ref'
highlight_language = 'none'
exclude_patterns = ['_build']
