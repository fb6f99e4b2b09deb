# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What clients show alike of an email, whoever reads it."""
import datetime as dt

from trytond.i18n import gettext

__all__ = ['Titled', 'in_whole_seconds']


class Titled:
    "A model with the subject and the Message-ID of an email"
    __slots__ = ()

    def get_rec_name(self, name):
        return self.subject or self.message_id or str(self.id)

    def get_title(self, name):
        return self.subject or gettext('email_queue.msg_no_subject')

    @classmethod
    def search_title(cls, name, clause):
        return [('subject', *clause[1:])]


def in_whole_seconds(rows):
    """Return what ``read`` returns without parts of seconds.

    Clients take what they round for a change, and want to save it.
    """
    for row in rows:
        for name, value in row.items():
            if isinstance(value, dt.datetime):
                row[name] = value.replace(microsecond=0)
    return rows
