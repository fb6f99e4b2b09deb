# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What users gain: emails with passwords are urgent, sensitive, and expire."""
from trytond.pool import PoolMeta

from .sendmail import set_options


class User(metaclass=PoolMeta):
    __name__ = 'res.user'

    def get_email_reset_password(self):
        msg, title = super().get_email_reset_password()
        set_options(
            msg, priority='urgent', expires_at=self.password_reset_expire,
            resource=self, sensitive=True)
        return msg, title


class UserApplication(metaclass=PoolMeta):
    __name__ = 'res.user.application'

    @classmethod
    def __setup__(cls):
        super().__setup__()
        cls.application.selection.append(('email_queue', "Email Queue"))


class WebUser(metaclass=PoolMeta):
    __name__ = 'web.user'

    def get_email_reset_password(self):
        msg, title = super().get_email_reset_password()
        set_options(
            msg, priority='urgent',
            expires_at=self.reset_password_token_expire,
            resource=self, sensitive=True)
        return msg, title
