# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.

import trytond.config as config

from . import sendmail

if config.getboolean('email_queue', 'capture', default=False):
    sendmail.capture()
