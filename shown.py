# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What all models that show an email have in common."""
import datetime as dt

from trytond.i18n import gettext

from . import recipients

__all__ = [
    'Titled', 'WithOutcome', 'in_whole_seconds', 'labels', 'outcome',
    'sentence', 'with_words', 'words_of']

# The reasons whose label says that the email may have arrived
ARRIVED = {'uncertain', 'not_recorded'}


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


class WithOutcome:
    "A model whose field ``outcome`` says what became of an email"
    __slots__ = ()

    @classmethod
    def get_outcome(cls, emails, name):
        labels_ = labels(cls)
        return {e.id: outcome(labels_, e) for e in emails}

    @classmethod
    def search_outcome(cls, name, clause):
        "Search the reason by its label for the user, and the server's words"
        _, operator, value, *_ = clause
        negated = operator.startswith(('!', 'not '))
        found = []
        if isinstance(value, str) and value.strip('%'):
            text = value.strip('%').replace('\\', '').casefold()
            found = [
                reason for reason, label in labels(cls).items()
                if reason and text in label.casefold()]
        by_words = ('error', *clause[1:])
        if not found:
            return [by_words]
        if negated:
            return [by_words, ['OR',
                    ('reason', '=', None), ('reason', 'not in', found)]]
        return ['OR', by_words, ('reason', 'in', found)]


def labels(Model):
    "Return the labels of the reasons in the user's language"
    return Model.reason.get_selection(Model, 'reason', None)


def outcome(labels, email, trouble=None):
    """Return in the user's language and on one line what became of an email.

    The line has the reason, to how many of its recipients the email was
    delivered, and the words of the server.

    :param labels: the labels of the reasons, as of :func:`labels`.
    :param email: a record or a ``store.Row``.
    :param trouble: the trouble of the server that the email waits for, which
        takes the place of reason and words; None for no trouble.
    :return: None if there is nothing to say.
    """
    if email.state == 'sent':
        return None
    words = None
    if email.state != 'cancelled' and not trouble:
        words = ' '.join(words_of(email).split())
    return sentence(labels, email, words, trouble)


def words_of(email):
    """Return the words of the server about an email, empty for no words.

    ``error`` is empty where the module itself ended the email, but some of its
    recipients may have been refused before.
    """
    return email.error or recipients.account(
        email.to_addrs, recipients.words_by_address(
            email.refused, recipients.split_addresses(email.to_addrs))) or ''


def sentence(labels, email, words, trouble=None):
    """Return the same as :func:`outcome`, with other words of the server.

    :param words: the other words, for example masked. Several lines of words
        are put below the rest.
    """
    what = trouble
    if email.state != 'cancelled' and not trouble:
        what = labels[email.reason]
        if email.uncertain and email.reason not in ARRIVED:
            what = '. '.join(filter(None, [labels['uncertain'], what]))
    if numbers := recipients.delivered(email.to_addrs, email.accepted):
        accepted, all_ = numbers
        what = ', '.join(filter(None, [what, gettext(
                        'email_queue.msg_outcome_delivered',
                        accepted=accepted, recipients=all_)]))
    text = with_words(what, words)
    return text and text[0].upper() + text[1:]


def with_words(what, words):
    "Return what became of an email together with the words of the server"
    if what and words:
        if '\n' in words:
            return f'{what}\n{words}'
        return gettext(
            'email_queue.msg_outcome_words', what=what, words=words)
    return what or words or None


def in_whole_seconds(rows):
    """Return the rows of ``read`` with all times in whole seconds.

    A client rounds times itself, then takes the rounded time for a change by
    the user, and wants to save it.
    """
    for row in rows:
        for name, value in row.items():
            if isinstance(value, dt.datetime):
                row[name] = value.replace(microsecond=0)
    return rows
