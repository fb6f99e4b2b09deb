# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.

import trytond.config as config

from . import routes, sendmail

__all__ = ['routes']

if config.getboolean('email_queue', 'capture', default=False):
    sendmail.capture()
