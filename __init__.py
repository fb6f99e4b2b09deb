# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.

import logging

import trytond.config as config

from . import routes, sendmail
from .settings import at_start

__all__ = ['routes']
logger = logging.getLogger(__name__)

if (config.getboolean('queue', 'worker', default=False)
        and config.get('database', 'uri', default='').startswith('sqlite')):
    logger.warning(
        "[queue] worker is set, but workers need PostgreSQL: "
        "on SQLite no task of Tryton is ever done")

if at_start('capture'):
    sendmail.capture()
