# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Which events of an email are written to its history.

This file has plain values, no database and no network. A plain success makes
no event, so that it costs nothing.
"""
from typing import NamedTuple

from .recipients import answer_lines

__all__ = ['Event', 'about', 'with_events']


class Event(NamedTuple):
    """What happened to an email.

    :param kind: one of the kinds of ``email.queue.event``.
    :param recipients: whom the event is about, one address a line.
    :param words: what the server said. For several recipients each line is
        an address, a blank and the words about this address.
    :param reason: a value of ``reasons.REASONS``, None where the kind of the
        event says enough.
    """
    kind: str
    recipients: str = None
    words: str = None
    reason: str = None


def with_events(before, row, outcome):
    """Return ``row`` with the events that are recorded together with it.

    :param before: the row as it was handed over.
    :param row: the row as it is recorded.
    :param outcome: the ``smtp.Outcome``, None if the row was not handed over.
    """
    events = tuple(_events(before, row, outcome))
    return row._replace(events=events) if events else row


def _events(before, row, outcome):
    if _is_suspect(before, row):
        # Only if something has changed, because otherwise each run would add
        # the same event
        if (row.reason, row.error) != (before.reason, before.error):
            reason = None if row.reason == 'suspect' else row.reason
            yield Event(
                'suspect', _lines(before.remaining), row.error, reason)
    elif outcome:
        yield from _answered('refused', outcome.refused, outcome.reasons)
        yield from _answered('deferred', outcome.deferred, outcome.reasons)
        if outcome.unanswered:
            yield Event(
                'uncertain', _lines(before.remaining), outcome.unanswered)
    if row.state == 'failed' and not (
            outcome and (outcome.refused or outcome.unanswered)):
        yield Event('gave_up', _lines(row.remaining), row.error, row.reason)
    if row.state == 'sent' and (
            before.reason or before.error or before.uncertain
            or before.crashes):
        yield Event('sent', _lines(before.remaining), row.queue_id)


def _is_suspect(before, row):
    "Return whether the row is recorded as a suspect"
    return (row.state == 'outbox' and row.suspect_since is not None
        and row.attempts == before.attempts)


def _answered(kind, answers, reasons):
    "Yield one event for all answers that have the same reason"
    by_reason = {}
    for address, words in answers.items():
        group = by_reason.setdefault(reasons.get(address), {})
        group[address] = words
    for reason, group in by_reason.items():
        yield about(kind, group, reason)


def about(kind, answers, reason=None):
    """Return the event about the answers of a server.

    :param answers: a dict of the server's words by address.
    """
    if len(answers) == 1:
        (address, words), = answers.items()
        return Event(kind, address, words or None, reason)
    words = answers if any(answers.values()) else {}
    return Event(
        kind, _lines(answers), _lines(answer_lines(words)), reason)


def _lines(texts):
    return '\n'.join(texts) or None
