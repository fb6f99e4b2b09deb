# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.

from trytond.pool import PoolMeta

from .sendmail import set_options


class User(metaclass=PoolMeta):
    __name__ = 'res.user'

    def get_email_reset_password(self):
        msg, title = super().get_email_reset_password()
        set_options(
            msg, priority='urgent', expires_at=self.password_reset_expire)
        return msg, title


class WebUser(metaclass=PoolMeta):
    __name__ = 'web.user'

    def get_email_reset_password(self):
        msg, title = super().get_email_reset_password()
        set_options(
            msg, priority='urgent',
            expires_at=self.reset_password_token_expire)
        return msg, title
