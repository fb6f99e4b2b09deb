# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Why an email is not sent, as data.

``reason`` is what the module says of an email, and ``error`` has the words of
the server. Before there were reasons, the module wrote English texts into
``error``; :func:`convert` makes a reason and words of them.
"""
import re
from typing import NamedTuple

from sql import Column, Null

from trytond.transaction import Transaction

from .recipients import (
    account, answer_lines, answers, join_lines, split_addresses, split_lines)

__all__ = [
    'REASONS', 'convert', 'convert_events', 'converted', 'reason_of']

# A label begins a sentence, which the words of the server may end
REASONS = [
    (None, ""),
    # The server has answered
    ('refused', "Refused"),
    ('deferred', "Refused for now"),
    ('bounced', "Came back"),
    ('suspect', "The server may refuse everything"),
    ('trouble', "The server is in trouble"),
    ('uncertain', "May have arrived"),
    # The module has decided
    ('expired', "Expired"),
    ('gave_up', "Given up"),
    ('died', "Its senders died"),
    ('not_recorded', "May have arrived, but could not be recorded"),
    ('no_server', "The server is not configured"),
    # The server or the address cannot take the email
    ('too_large', "Larger than the server takes"),
    ('no_smtputf8', "The server takes no such address"),
    ('dead', "Not tried, because the address does not work"),
    # The email itself is at fault
    ('no_message', "The message has been removed"),
    ('not_in_filestore', "The message is not in the filestore"),
    ('no_sender', "Without a valid sender"),
    ('no_recipient', "Without a valid recipient"),
    ('no_state', "Without a valid state"),
    ('not_queued', "Could not be queued"),
    ('unsendable', "Cannot be sent"),
    # The update from an older version has found the email in this state
    ('waited', "Waited for long before the update"),
    ('failed_before', "Failed before the update"),
    ]
DECIDED = {reason for reason, _ in REASONS} - {None, 'refused', 'not_queued'}
# How many rows are converted together
BATCH = 1000


def reason_of(reasons, addresses, default):
    """Return the reason that all of the addresses have.

    :param reasons: a dict by address, only of addresses about which the server
        did not say the reason itself.
    :param default: the reason of the other addresses. It is also returned
        where the addresses have different reasons.
    """
    found = {reasons.get(address, default) for address in addresses}
    return found.pop() if len(found) == 1 else default


# The texts of older versions


class Old(NamedTuple):
    "What is read of a row to find out its reason"
    id: int
    state: str
    from_addr: str
    to_addrs: str
    accepted: str
    refused: str
    error: str
    attempts: int
    uncertain: bool
    suspect_since: object
    bounced_at: object


class New(NamedTuple):
    "What is written to the row"
    reason: str
    error: str
    refused: str


_delivered = re.compile(r'\Adelivered to \d+ of \d+ recipients(?:\n|\Z)')
_heads = [
    (re.compile(r'\Aexpired(?:: |\n|\Z)'), 'expired'),
    (re.compile(r'\Agave up(?:: |\n|\Z)'), 'gave_up'),
    ]
# Texts that were the whole error; what the group matches is kept
_wholes = [
    (re.compile(pattern, re.S), reason) for pattern, reason in [
        (r'no recipient', 'no_recipient'),
        (r'(.+) is not a valid email address', 'no_recipient'),
        (r'its senders died', 'died'),
        (r'the outcome could not be recorded: '
            r'the message may have arrived', 'not_recorded'),
        (r'The server "(.*)" is not configured\.', 'no_server'),
        (r'it had no state', 'no_state'),
        (r'its state was (?:None|(.*))', 'no_state'),
        (r'it had no sender', 'no_sender'),
        (r'it had no recipient', 'no_recipient'),
        (r'there is no message', 'no_message'),
        (r'waited since [-\d]+ [:\d]+ before the update', 'waited'),
        (r'failed before the update', 'failed_before'),
        ]]
# Texts about one recipient, or about all; what the group matches is kept
_answers = [
    (re.compile(pattern), reason) for pattern, reason in [
        (r'(.*): the message may have arrived', 'uncertain'),
        (r'The message of \d+ bytes is larger than the server\'s limit of '
            r'(\d+) bytes\.', 'too_large'),
        (r'The server does not offer SMTPUTF8\.', 'no_smtputf8'),
        (r'the message has been removed', 'no_message'),
        (r'the message is not in the filestore', 'not_in_filestore'),
        (r'not tried, because it does not work since [-\d]+: ?(.*)', 'dead'),
        (r'is not a valid email address', 'refused'),
        (r'([A-Za-z]+(?:Error|Exception): .*)', 'unsendable'),
        ]]
_words = {
    'too_large': 'SIZE {}',
    'no_smtputf8': 'SMTPUTF8',
    }


def convert(Model):
    "Give rows of older versions a reason, and keep only words in ``error``"
    t = Model.__table__()
    cursor = Transaction().connection.cursor()
    has_none = (t.reason == Null) & (
        (t.state == 'failed') | ((t.state != 'sent') & (t.error != Null)))
    last = 0
    while True:
        cursor.execute(*t.select(
                *(Column(t, name) for name in Old._fields),
                where=has_none & (t.id > last), order_by=[t.id], limit=BATCH))
        rows = [Old(*values) for values in cursor.fetchall()]
        if not rows:
            break
        queries = [
            t.update(
                [Column(t, name) for name in New._fields],
                list(converted(row)), where=t.id == row.id)
            for row in rows]
        cursor.executemany(str(queries[0]), [q.params for q in queries])
        last = rows[-1].id


def convert_events(Event):
    "Give a reason to events of older versions about emails given up"
    t = Event.__table__()
    cursor = Transaction().connection.cursor()
    cursor.execute(*t.select(
            t.id, t.recipients, t.words,
            where=(t.reason == Null) & (t.words != Null)
            & ((t.kind == 'gave_up')
                | (t.words.like('% could not be recorded: %')))))
    for id_, recipients, words in cursor.fetchall():
        new = converted(Old(
                id_, 'failed', None, ', '.join(split_lines(recipients)), None,
                None, words, None, None, None, None))
        # If the text does not give a reason, the kind of the event does
        reason = new.reason if new.reason in DECIDED else 'gave_up'
        cursor.execute(*t.update(
                [t.reason, t.words], [reason, new.error], where=t.id == id_))


def converted(row):
    "Return as :class:`New` what the texts of an :class:`Old` row say"
    recipients = split_addresses(row.to_addrs)
    refused, reasons = _split_refused(row.refused, recipients)
    text = _delivered.sub('', row.error or '')
    for pattern, reason in _wholes:
        match = pattern.fullmatch(text)
        if match and text not in split_lines(row.refused):
            kept = next(iter(match.groups()), None)
            if reason == 'no_recipient' and kept == row.from_addr:
                reason = 'no_sender'
            if reason not in {'no_server', 'no_state'}:
                kept = None
            return New(reason, kept, refused)
    head, text = _split_head(text)
    words, more = _split_error(text, row.to_addrs)
    reason = _one_of({**reasons, **more}.values())
    if head == 'expired' or not reason:
        reason = head or _default(row)
    return New(reason, words, refused)


def _one_of(reasons):
    found = set(reasons)
    if 'uncertain' in found:
        return 'uncertain'
    return found.pop() if len(found) == 1 else None


def _split_error(text, to_addrs):
    "Return the servers' words in a text, and the reasons in it by address"
    recipients = split_addresses(to_addrs)
    lines, words, reasons = [], {}, {}
    for line in split_lines(text):
        address = None
        if len(recipients) > 1:
            (address, answer), = answers(line, recipients)
        if address in recipients:
            words[address], reasons[address] = _split_answer(answer)
        else:
            answer, reasons[line] = _split_answer(line)
            lines.append(answer)
    lines.append(account(to_addrs, words))
    return join_lines(None, filter(None, lines)), reasons


def _split_head(text):
    for pattern, reason in _heads:
        if match := pattern.match(text):
            return reason, text[match.end():]
    return None, text


def _split_refused(text, recipients):
    "Return ``refused`` without texts of the module, and its reasons"
    words, reasons = {}, {}
    for address, answer in answers(text, recipients):
        words[address], reasons[address] = _split_answer(answer)
    return join_lines(None, answer_lines(words)), reasons


def _split_answer(words):
    "Return the words of the server, and the reason that the text gives"
    for pattern, reason in _answers:
        if match := pattern.fullmatch(words):
            kept = next(iter(match.groups()), '')
            return _words.get(reason, '{}').format(kept), reason
    return words, None


def _default(row):
    "Return the reason of a row whose texts say nothing of it"
    if row.state == 'failed':
        if row.bounced_at:
            return 'bounced'
        # A captured email that could not be queued has a translated text
        is_new = not (row.attempts or row.refused or row.suspect_since)
        return 'not_queued' if is_new else 'refused'
    if row.suspect_since:
        return 'suspect'
    return 'deferred' if row.attempts else 'trouble'
