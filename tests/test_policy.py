# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""When to try again and how fast: no database, no server and no waiting."""
import datetime as dt
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from unittest.mock import patch

from trytond.modules.email_queue import policy
from trytond.modules.email_queue.policy import (
    HELD_ROWS, Deadline, Pace, Patience, Sessions, Suspects, Throttle, after,
    first_answer, login_delay, next_attempt, suspected)
from trytond.modules.email_queue.reasons import REASONS
from trytond.modules.email_queue.replies import QUOTA
from trytond.modules.email_queue.settings import Settings
from trytond.modules.email_queue.smtp import Outcome, Trouble
from trytond.modules.email_queue.store import Row

NOW = dt.datetime(2024, 2, 29, 12, 0)
A, B, C = 'a@example.com', 'b@example.com', 'c@example.com'
BUSY = Trouble('421 4.3.2 busy')
DOWN = Trouble('Connection refused', lasting=True)
FULL = Trouble('554 quota exceeded', lasting=True, kind=QUOTA)


def at(**delta):
    return NOW + dt.timedelta(**delta)


def make_row(to=(A, B, C), **values):
    fields = dict.fromkeys(Row._fields)
    fields.update(
        id=1, state='sending', to_addrs=', '.join(to), attempts=0, crashes=0,
        uncertain=False, scheduled_at=at(seconds=-5))
    fields.update(values)
    return Row(**fields)


# The row, the outcome, the settings, and what changes in the recorded row
FIRST = {'attempts': 1, 'first_attempt': NOW}
SENT = {**FIRST, 'state': 'sent', 'sent_at': NOW}
AFTER = {
    # Not handed over
    "given back": (
        {}, None, {}, {}),
    "given back, not yet expired": (
        {'expires_at': at(seconds=1)}, None, {}, {}),
    "expired": (
        {'expires_at': NOW}, None, {},
        {'state': 'failed', 'reason': 'expired'}),
    "expired long ago": (
        {'expires_at': at(days=-9)}, None, {},
        {'state': 'failed', 'reason': 'expired'}),
    "expired after some": (
        {'expires_at': NOW, 'accepted': A, 'refused': f'{B} 550 no',
            'error': f"{C} 451 later"}, None, {},
        {'state': 'failed', 'reason': 'expired',
            'error': f"{B} 550 no\n{C} 451 later"}),
    "expired with words": (
        {'to': [A], 'expires_at': NOW, 'error': "451 later"}, None, {},
        {'state': 'failed', 'reason': 'expired', 'error': "451 later"}),
    "expired with words for all": (
        {'expires_at': NOW, 'error': "421 busy"}, None, {},
        {'state': 'failed', 'reason': 'expired', 'error': "421 busy"}),
    "given back with what was": (
        {'attempts': 3, 'first_attempt': at(hours=-1), 'error': "451",
            'accepted': A, 'refused': f'{B} 550'}, None, {}, {}),

    # Accepted
    "accepted": (
        {}, Outcome([A, B, C]), {}, SENT),
    "accepted by the only one": (
        {'to': [A]}, Outcome([A]), {}, SENT),
    "accepted after others": (
        {'accepted': f'{A}\n{B}', 'attempts': 2, 'error': "451",
            'reason': 'deferred',
            'first_attempt': at(hours=-1)},
        Outcome([C]), {},
        {'state': 'sent', 'sent_at': NOW, 'attempts': 3, 'accepted': None,
            'reason': None, 'error': None}),
    "accepted, though late": (
        {'expires_at': at(seconds=-1)}, Outcome([A, B, C]), {}, SENT),
    "accepted, but the server is in trouble": (
        {}, Outcome([A, B, C], trouble=BUSY), {}, SENT),
    "accepted, and once uncertain": (
        {'uncertain': True}, Outcome([A, B, C]), {}, SENT),
    "accepted in the row already": (
        {'to': [A], 'accepted': A}, Outcome(), {},
        {'state': 'sent', 'sent_at': NOW, 'accepted': None}),

    # Refused
    "refused": (
        {'to': [A]}, Outcome(refused={A: "550 no"}), {},
        {**FIRST, 'state': 'failed', 'refused': f'{A} 550 no',
            'reason': 'refused', 'error': "550 no"}),
    "refused by all": (
        {'to': [A, B]}, Outcome(refused={A: "550 no", B: "551 no"}), {},
        {**FIRST, 'state': 'failed', 'refused': f'{A} 550 no\n{B} 551 no',
            'reason': 'refused', 'error': f'{A} 550 no\n{B} 551 no'}),
    "refused by one": (
        {}, Outcome([A, C], refused={B: "550 no"}), {},
        {**FIRST, 'state': 'failed', 'accepted': f'{A}\n{C}',
            'refused': f'{B} 550 no',
            'reason': 'refused', 'error': f"{B} 550 no"}),
    "refused by the last": (
        {'accepted': A, 'refused': f'{B} 550 no', 'attempts': 1,
            'first_attempt': at(hours=-1)},
        Outcome(refused={C: "551 no"}), {},
        {'state': 'failed', 'attempts': 2,
            'refused': f'{B} 550 no\n{C} 551 no',
            'reason': 'refused', 'error': f"{B} 550 no\n{C} 551 no"}),
    "accepted by the last": (
        {'accepted': A, 'refused': f'{B} 550 no', 'attempts': 1,
            'first_attempt': at(hours=-1)},
        Outcome([C]), {},
        {'state': 'failed', 'attempts': 2, 'accepted': f'{A}\n{C}',
            'reason': 'refused', 'error': f"{B} 550 no"}),
    "bounced before the last accepted": (
        {'accepted': A, 'refused': f'{B} 550 no', 'bounced_at': NOW,
            'first_attempt': at(hours=-1)},
        Outcome([C]), {},
        {'state': 'failed', 'attempts': 1, 'accepted': f'{A}\n{C}',
            'reason': 'bounced', 'error': f"{B} 550 no"}),
    "bounced before the last refused": (
        {'accepted': A, 'refused': f'{B} 550 no', 'bounced_at': NOW,
            'first_attempt': at(hours=-1)},
        Outcome(refused={C: '551 no'}), {},
        {'state': 'failed', 'attempts': 1,
            'refused': f'{B} 550 no\n{C} 551 no', 'reason': 'refused',
            'error': f"{B} 550 no\n{C} 551 no"}),
    "no recipient": (
        {'to': []}, Outcome(), {},
        {'state': 'failed', 'reason': 'no_recipient'}),
    "nothing but commas": (
        {'to_addrs': ', ,'}, Outcome(), {},
        {'state': 'failed', 'reason': 'no_recipient'}),

    # Deferred
    "deferred": (
        {'to': [A]}, Outcome(deferred={A: "451 later"}), {},
        {**FIRST, 'state': 'outbox', 'scheduled_at': at(seconds=60),
            'reason': 'deferred', 'error': "451 later"}),
    "deferred by all": (
        {'to': [A, B]}, Outcome(deferred={A: "451 later", B: "450 full"}), {},
        {**FIRST, 'state': 'outbox', 'scheduled_at': at(seconds=60),
            'reason': 'deferred', 'error': f"{A} 451 later\n{B} 450 full"}),
    "deferred by one": (
        {}, Outcome([A], refused={B: "550 no"}, deferred={C: "451 later"}),
        {},
        {**FIRST, 'state': 'outbox', 'scheduled_at': at(seconds=60),
            'accepted': A, 'refused': f'{B} 550 no',
            'reason': 'deferred', 'error': f"{C} 451 later"}),
    "deferred once more": (
        {'to': [A], 'attempts': 2, 'first_attempt': at(seconds=-180)},
        Outcome(deferred={A: "451 later"}), {},
        {'state': 'outbox', 'attempts': 3, 'scheduled_at': at(seconds=240),
            'reason': 'deferred', 'error': "451 later"}),
    "deferred and the server in trouble": (
        {'to': [A, B]}, Outcome(deferred={A: "451 later"}, trouble=DOWN), {},
        {**FIRST, 'state': 'outbox', 'scheduled_at': at(seconds=60),
            'reason': 'deferred', 'error': f"{A} 451 later"}),
    "gave up by number": (
        {'to': [A]}, Outcome(deferred={A: "451 later"}), {'max_attempts': 1},
        {**FIRST, 'state': 'failed', 'reason': 'gave_up',
            'error': "451 later"}),
    "gave up by age": (
        {'to': [A], 'attempts': 9, 'first_attempt': at(days=-5)},
        Outcome(deferred={A: "451 later"}), {},
        {'attempts': 10, 'state': 'failed', 'reason': 'gave_up',
            'error': "451 later"}),
    "gave up, as it will be expired": (
        {'to': [A], 'expires_at': at(seconds=60)},
        Outcome(deferred={A: "451 later"}), {},
        {**FIRST, 'state': 'failed', 'reason': 'gave_up',
            'error': "451 later"}),

    "gave up after some": (
        {'accepted': A, 'refused': f'{B} 550 no', 'attempts': 1,
            'first_attempt': at(hours=-1)},
        Outcome(deferred={C: "451 later"}), {'max_attempts': 2},
        {'attempts': 2, 'state': 'failed', 'reason': 'gave_up',
            'error': f"{B} 550 no\n{C} 451 later"}),
    "gave up without any": (
        {'to': [A, B], 'refused': f'{B} 550 no'},
        Outcome(deferred={A: "451 later"}), {'max_attempts': 1},
        {**FIRST, 'state': 'failed', 'reason': 'gave_up',
            'error': f"{A} 451 later\n{B} 550 no"}),
    "own after it was a suspect": (
        {'to': [A], 'suspect': "rcpt 554 no", 'suspect_since': at(hours=-1),
            'first_attempt': at(hours=-1)},
        Outcome(refused={A: "554 no"}), {},
        {'attempts': 1, 'state': 'failed', 'refused': f'{A} 554 no',
            'reason': 'refused', 'error': "554 no", 'suspect': None,
            'suspect_since': None}),
    "without a message": (
        {'to': [A, B]},
        Outcome(refused={A: '', B: ''}, reasons={
                A: 'no_message', B: 'no_message'}), {},
        {**FIRST, 'state': 'failed', 'refused': f'{A}\n{B}',
            'reason': 'no_message'}),
    "refused and not tried": (
        {'to': [A, B]},
        Outcome(refused={A: '550 no', B: '550 5.1.1 no'},
            reasons={B: 'dead'}), {},
        {**FIRST, 'state': 'failed', 'reason': 'refused',
            'refused': f'{A} 550 no\n{B} 550 5.1.1 no',
            'error': f'{A} 550 no\n{B} 550 5.1.1 no'}),
    "not tried after others were refused": (
        {'to': [A, B], 'refused': f'{A} 550 no'},
        Outcome(refused={B: '550 5.1.1 no'}, reasons={B: 'dead'}), {},
        {**FIRST, 'state': 'failed', 'reason': 'refused',
            'refused': f'{A} 550 no\n{B} 550 5.1.1 no',
            'error': f'{A} 550 no\n{B} 550 5.1.1 no'}),
    "not in the filestore": (
        {'to': [A]},
        Outcome(deferred={A: ''}, reasons={A: 'not_in_filestore'}), {},
        {**FIRST, 'scheduled_at': at(seconds=60),
            'reason': 'not_in_filestore'}),
    "not in the filestore for too long": (
        {'to': [A]},
        Outcome(deferred={A: ''}, reasons={A: 'not_in_filestore'}),
        {'max_attempts': 1},
        {**FIRST, 'state': 'failed', 'reason': 'not_in_filestore'}),
    "for a server that is not configured": (
        {}, Outcome(trouble=Trouble(
                'x', lasting=True, reason='no_server')), {},
        {'reason': 'no_server', 'error': 'x'}),

    # Uncertain
    "uncertain": (
        {}, Outcome(unanswered="timed out"), {},
        {**FIRST, 'uncertain': True, 'scheduled_at': at(minutes=15),
            'reason': 'uncertain', 'error': "timed out"}),
    "uncertain again": (
        {'uncertain': True, 'attempts': 1, 'first_attempt': at(minutes=-15)},
        Outcome(unanswered="timed out"), {},
        {'attempts': 2, 'state': 'failed',
            'reason': 'uncertain', 'error': "timed out"}),
    "uncertain, to be held": (
        {}, Outcome(unanswered="timed out"), {'uncertain': 'fail'},
        {**FIRST, 'uncertain': True, 'state': 'failed',
            'reason': 'uncertain', 'error': "timed out"}),
    "uncertain after some": (
        {}, Outcome([A], refused={B: "550 no"}, unanswered="timed out"), {},
        {**FIRST, 'uncertain': True, 'scheduled_at': at(minutes=15),
            'accepted': A, 'refused': f'{B} 550 no',
            'reason': 'uncertain', 'error': "timed out"}),
    "uncertain and soon expired": (
        {'expires_at': at(minutes=15)}, Outcome(unanswered="timed out"), {},
        {**FIRST, 'uncertain': True, 'state': 'failed',
            'reason': 'uncertain', 'error': "timed out"}),
    "uncertain at the last attempt": (
        {}, Outcome(unanswered="timed out"), {'max_attempts': 1},
        {**FIRST, 'uncertain': True, 'state': 'failed',
            'reason': 'uncertain', 'error': "timed out"}),
    "uncertain at the end of its days": (
        {'attempts': 7, 'first_attempt': at(days=-5)},
        Outcome(unanswered="timed out"), {},
        {'attempts': 8, 'uncertain': True, 'state': 'failed',
            'reason': 'uncertain', 'error': "timed out"}),

    "uncertain at last after some": (
        {'accepted': A, 'refused': f'{B} 550 no', 'uncertain': True,
            'attempts': 1, 'first_attempt': at(minutes=-15)},
        Outcome(unanswered="timed out"), {},
        {'attempts': 2, 'state': 'failed',
            'reason': 'uncertain', 'error': f"{B} 550 no\n{C} timed out"}),

    # The server's trouble
    "refused for a quota": (
        {}, Outcome(trouble=FULL), {},
        {'suspect_since': NOW, 'first_attempt': NOW,
            'scheduled_at': at(minutes=5), 'reason': 'trouble',
            'error': FULL.words}),
    "refused for a quota again": (
        {'suspect_since': at(minutes=-16), 'first_attempt': at(minutes=-16)},
        Outcome(trouble=FULL), {},
        {'scheduled_at': at(minutes=20), 'reason': 'trouble',
            'error': FULL.words}),
    "refused for a quota for too long": (
        {'to': [A], 'suspect_since': at(days=-5),
            'first_attempt': at(days=-5)},
        Outcome(trouble=FULL), {},
        {'state': 'failed', 'suspect_since': None,
            'reason': 'gave_up', 'error': FULL.words}),
    "trouble": (
        {}, Outcome(trouble=BUSY), {},
        {'scheduled_at': at(minutes=1), 'reason': 'trouble',
            'error': BUSY.words}),
    "lasting trouble": (
        {}, Outcome(trouble=DOWN), {},
        {'reason': 'trouble', 'error': DOWN.words}),
    "trouble after other attempts": (
        {'attempts': 2, 'first_attempt': at(days=-9), 'uncertain': True},
        Outcome(trouble=BUSY), {'max_attempts': 1},
        {'scheduled_at': at(minutes=1), 'reason': 'trouble',
            'error': BUSY.words}),
    "trouble after some were accepted": (
        {}, Outcome([A], trouble=BUSY), {},
        {**FIRST, 'accepted': A, 'scheduled_at': at(minutes=1),
            'reason': 'trouble', 'error': BUSY.words}),
    "lasting trouble after some were refused": (
        {}, Outcome(refused={A: "550 no"}, trouble=DOWN), {},
        {**FIRST, 'refused': f'{A} 550 no', 'reason': 'trouble',
            'error': DOWN.words}),
    }


class AfterTestCase(unittest.TestCase):
    "Test what becomes of a row"

    def test_table(self):
        for name, (values, outcome, settings, expected) in AFTER.items():
            with self.subTest(name):
                row = make_row(**values)
                self.assertEqual(
                    after(
                        row, outcome, NOW, Settings(**settings),
                        chance=lambda: .5),
                    row._replace(**{'state': 'outbox', **expected}))

    def test_reason(self):
        "Test that every row that is not sent has a reason"
        for name, (values, outcome, settings, _) in AFTER.items():
            with self.subTest(name):
                row = after(
                    make_row(**values), outcome, NOW, Settings(**settings))
                self.assertIn(row.state, {'sent', 'failed', 'outbox'})
                if outcome:
                    self.assertEqual(bool(row.reason), row.state != 'sent')
                    self.assertIn(row.reason, dict(REASONS))

    def test_recipients_of_the_next_attempt(self):
        for outcome, remaining in [
                (Outcome([A], {B: "550"}, {C: "451"}), [C]),
                (Outcome([A], trouble=BUSY), [B, C]),
                (Outcome([B], unanswered="lost"), [A, C]),
                (Outcome(refused={A: "550"}, trouble=DOWN), [B, C]),
                ]:
            with self.subTest(outcome):
                row = after(make_row(), outcome, NOW, Settings())
                self.assertEqual(row.remaining, remaining)


class NextAttemptTestCase(unittest.TestCase):
    "Test when and whether a row is tried again"

    def next_(self, attempts=1, chance=.5, first=NOW, expires=None, **values):
        row = make_row(
            attempts=attempts, first_attempt=first, expires_at=expires)
        next_ = next_attempt(row, NOW, Settings(**values), lambda: chance)
        return next_ and (next_ - NOW).total_seconds()

    def test_delay(self):
        for attempts, seconds in [
                (1, 60), (2, 120), (3, 240), (4, 480), (8, 7680),
                (9, 14400), (10, 14400), (31, 14400), (10 ** 6, 14400)]:
            with self.subTest(attempts):
                self.assertEqual(self.next_(attempts), seconds)

    def test_chance(self):
        for chance, seconds in [(0, 45), (.5, 60), (1, 75)]:
            with self.subTest(chance):
                self.assertEqual(self.next_(chance=chance), seconds)
        self.assertEqual(self.next_(99, chance=0), .75 * 14400)
        self.assertEqual(self.next_(99, chance=1), 1.25 * 14400)
        row = make_row(attempts=1, first_attempt=NOW)
        delays = {
            (next_attempt(row, NOW, Settings()) - NOW).total_seconds()
            for _ in range(1000)}
        self.assertGreater(len(delays), 900)
        self.assertGreaterEqual(min(delays), 45)
        self.assertLessEqual(max(delays), 75)

    def test_retry_delay(self):
        for retry_delay, attempts, seconds in [
                (1e-3, 1, .001), (1e-3, 99, 14400), (1, 1, 1), (1, 4, 8),
                (3600, 3, 14400), (86400, 1, 14400), (1e9 - 1, 99, 14400)]:
            with self.subTest(retry_delay=retry_delay, attempts=attempts):
                self.assertEqual(
                    self.next_(attempts, retry_delay=retry_delay), seconds)

    def test_give_up(self):
        for first, give_up, tried in [
                (at(days=-4), 5, True),
                (at(days=-5, seconds=60), 5, True),
                (at(days=-5, seconds=59), 5, False),
                (at(days=-5), 5, False),
                (at(days=-5), 6, True),
                (NOW, .001, True),
                (NOW, .0005, False),
                (at(days=-9999), 1e9 - 1, True),
                ]:
            with self.subTest(first=first, give_up=give_up):
                self.assertEqual(
                    self.next_(first=first, give_up=give_up) is not None,
                    tried)

    def test_max_attempts(self):
        for attempts, max_attempts, tried in [
                (1, 0, True), (999, 0, True), (1, 1, False), (1, 2, True),
                (2, 2, False), (3, 2, False)]:
            with self.subTest(attempts=attempts, max_attempts=max_attempts):
                self.assertEqual(
                    self.next_(attempts, max_attempts=max_attempts)
                    is not None,
                    tried)

    def test_expires_at(self):
        for expires, tried in [
                (None, True), (at(seconds=61), True), (at(seconds=60), False),
                (NOW, False), (at(days=-1), False)]:
            with self.subTest(expires):
                self.assertEqual(
                    self.next_(expires=expires) is not None, tried)


class LargeSettingsTestCase(unittest.TestCase):

    def test_values_fit_what_is_computed(self):
        "Test that the valid values of settings cause no error"
        for name in ['retry_delay', 'give_up']:
            for value in [1e-3, 1e9 - 1]:
                settings = Settings(**{name: value})
                for attempts in [0, 1, 50]:
                    row = make_row(
                        attempts=attempts, first_attempt=at(days=-1))
                    for outcome in [
                            Outcome(deferred={A: "451"}, trouble=BUSY),
                            Outcome(unanswered="lost")]:
                        after(row, outcome, NOW, settings)


def refusal(words="554 relay denied", refused=(A,)):
    outcome = Outcome()
    outcome.refuse(refused, 'rcpt', words)
    return outcome


class SuspectsTestCase(unittest.TestCase):
    "Test rows whose refusal may be the server's fault, one after another"

    def settle(self, *outcomes):
        """Return which of the rows 1, 2 … are recorded at once, and which are
        held
        """
        suspects = Suspects()
        settled = [
            [row for row, _ in suspects.settle(number, outcome)]
            for number, outcome in enumerate(outcomes, 1)]
        return settled, [
            [row for row, _ in pairs] for pairs in suspects.release()]

    def test_table(self):
        denied, blocked = refusal(), refusal("554 blocked")
        for name, outcomes, settled, held in [
                ("nothing", [], [], []),
                ("accepted", [Outcome([A])] * 2, [[1], [2]], []),
                ("one", [denied], [[]], [[1]]),
                ("alike", [denied] * 3, [[]] * 3, [[1, 2, 3]]),
                ("accepted after them", [denied, denied, Outcome([A])],
                    [[], [], [1, 2, 3]], []),
                ("accepted in between", [denied, Outcome([A]), denied],
                    [[], [1, 2], []], [[3]]),
                ("another refusal", [denied, denied, blocked],
                    [[]] * 3, [[1, 2], [3]]),
                ("in turns", [denied, blocked, denied],
                    [[]] * 3, [[1, 3], [2]]),
                ("accepted after two kinds", [denied, blocked, Outcome([A])],
                    [[], [], [1, 2, 3]], []),
                ("deferred alike", [
                        Outcome(deferred={A: "451"}, refusal='rcpt 451')
                        ] * 2, [[], []], [[1, 2]]),
                # Outcomes that say nothing about the server
                ("trouble", [denied, Outcome(trouble=BUSY), denied],
                    [[], [2], []], [[1, 3]]),
                ("uncertain", [denied, Outcome(unanswered="lost"), denied],
                    [[], [2], []], [[1, 3]]),
                ("a mailbox", [denied, Outcome(refused={A: "550"}), denied],
                    [[], [2], []], [[1, 3]]),
                ("not handed over", [denied, None, denied],
                    [[], [2], []], [[1, 3]]),
                ]:
            with self.subTest(name):
                self.assertEqual(self.settle(*outcomes), (settled, held))

    def test_alike(self):
        "Test that addresses and digits make no difference"
        suspects = Suspects()
        for n in range(5):
            outcome = refusal(f"554 5.7.1 <{n}@example.com>: denied, id {n}Q")
            suspects.settle(n, outcome)
            self.assertEqual(suspects.count(outcome.refusal), n + 1)
        self.assertEqual(suspects.count(refusal("554 no").refusal), 0)
        self.assertEqual(len(suspects.release()), 1)
        self.assertEqual(suspects.release(), [])

    def test_words(self):
        self.assertEqual(first_answer(refusal("554 no A")), (A, "554 no A"))
        outcome = Outcome()
        outcome.defer([A], 'dot', "451 not now")
        self.assertEqual(first_answer(outcome), (A, "451 not now"))


class SuspectedTestCase(unittest.TestCase):
    "Test what is recorded of a suspect"

    def test_table(self):
        denied = refusal("554 denied")
        gist = denied.refusal
        waits = {
            'state': 'outbox', 'reason': 'suspect', 'error': "554 denied",
            'suspect': gist,
            'suspect_since': NOW, 'first_attempt': NOW,
            'scheduled_at': at(minutes=5)}
        later = Outcome()
        later.defer([A], 'rcpt', "451 later")
        too_large = Outcome()
        too_large.refuse([A], 'mail', "SIZE 9", reason='too_large')
        for name, values, outcome, alone, expected in [
                ("first, alone", {}, denied, True, waits),
                ("first of many", {}, denied, False, waits),
                *((f"after {minutes} minutes",
                    {'suspect_since': at(minutes=-minutes)}, denied, True,
                    {**waits, 'suspect_since': at(minutes=-minutes),
                        'scheduled_at': at(minutes=next_)})
                    for minutes, next_ in [
                        (4, 5), (5, 10), (14, 10), (15, 20), (35, 40),
                        (59, 40)]),
                ("alone for an hour", {'suspect_since': at(hours=-1)}, denied,
                    True, {
                        'state': 'failed', 'attempts': 1,
                        'refused': f'{A} 554 denied',
                        'reason': 'refused', 'error': "554 denied",
                        'first_attempt': NOW, 'suspect_since': None}),
                ("of many for a day", {'suspect_since': at(days=-1)}, denied,
                    False, {
                        **waits, 'suspect_since': at(days=-1),
                        'scheduled_at': at(minutes=40)}),
                ("of many for too long",
                    {'suspect_since': at(days=-5), 'first_attempt':
                        at(days=-5)}, denied, False, {
                        'state': 'failed', 'suspect_since': None,
                        'reason': 'gave_up', 'error': "554 denied"}),
                ("expires before", {'expires_at': at(minutes=5)}, denied,
                    False, {
                        'state': 'failed', 'first_attempt': NOW,
                        'reason': 'gave_up', 'error': "554 denied"}),
                ("deferred, alone", {}, later, True, {
                        'state': 'outbox', 'attempts': 1,
                        'first_attempt': NOW,
                        'reason': 'deferred', 'error': "451 later",
                        'scheduled_at': at(seconds=60),
                        'suspect': later.refusal, 'suspect_since': NOW}),
                ("deferred like others", {}, later, False, {
                        **waits, 'error': "451 later",
                        'suspect': later.refusal}),
                ("too large, like others", {}, too_large, False, {
                        **waits, 'reason': 'too_large', 'error': "SIZE 9",
                        'suspect': 'mail too_large SIZE'}),
                ]:
            with self.subTest(name):
                row = make_row([A], **values)
                self.assertEqual(
                    suspected(
                        row, outcome, NOW, Settings(), alone,
                        chance=lambda: .5),
                    row._replace(**expected))

    def test_login_delay(self):
        self.assertEqual(
            [login_delay(n) // dt.timedelta(minutes=1) for n in range(1, 7)]
            + [login_delay(1000) // dt.timedelta(minutes=1)],
            [1, 2, 4, 8, 15, 15, 15])


class SessionsTestCase(unittest.TestCase):
    "Test how many sessions a run has"

    def test_all(self):
        sessions = Sessions(2)
        self.assertTrue(sessions.enter('a') and sessions.enter('b'))
        self.assertFalse(sessions.are_fewer)

    def test_one_more_is_refused(self):
        sessions = Sessions(2)
        for client in 'ab':
            sessions.enter(client)
            sessions.tries(client)
        sessions.tried('a', True)
        self.assertTrue(sessions.refuses('b'))
        self.assertEqual(sessions.granted, 1)
        self.assertTrue(sessions.are_fewer)
        self.assertGreater(sessions.seconds, 100)
        self.assertTrue(sessions.enter('a'))

    def test_waits_for_the_one_that_is_opened(self):
        sessions = Sessions(2)
        for client in 'ab':
            sessions.enter(client)
            sessions.tries(client)
        with ThreadPoolExecutor(1) as pool:
            refused = pool.submit(sessions.refuses, 'b')
            self.assertFalse(refused.done())
            sessions.tried('a', True)
            self.assertTrue(refused.result())

    def test_tried_without_session(self):
        "Test that a client that needed no session makes no other client wait"
        sessions = Sessions(2)
        for client in 'ab':
            sessions.enter(client)
            sessions.tries(client)
        sessions.tried('a', False)
        self.assertFalse(sessions.refuses('b'))

    def test_all_are_refused(self):
        sessions = Sessions(2)
        for client in 'ab':
            sessions.enter(client)
            sessions.tries(client)
        with ThreadPoolExecutor(1) as pool:
            refused = pool.submit(sessions.refuses, 'b')
            self.assertFalse(sessions.refuses('a'))
            self.assertFalse(refused.result())

    def test_one_more_later(self):
        sessions = Sessions(3, granted=1, seconds=.05)
        self.assertTrue(sessions.enter('a'))
        started = time.monotonic()
        self.assertTrue(sessions.enter('b'))
        self.assertGreaterEqual(time.monotonic() - started, .04)
        self.assertEqual(sessions.granted, 2)

    def test_first(self):
        sessions = Sessions(2, first=True)
        self.assertTrue(sessions.enter('a'))
        with ThreadPoolExecutor(1) as pool:
            entered = pool.submit(sessions.enter, 'b')
            sessions.tries('a')
            self.assertFalse(entered.done())
            sessions.tried('a', True)
            self.assertTrue(entered.result())
        self.assertFalse(sessions.are_fewer)

    def test_closed(self):
        sessions = Sessions(2, first=True)
        sessions.enter('a')
        with ThreadPoolExecutor(1) as pool:
            entered = pool.submit(sessions.enter, 'b')
            sessions.close()
            self.assertFalse(entered.result())


class PatienceTestCase(unittest.TestCase):
    "Test the pauses for a server in trouble"

    def test_pauses(self):
        patience = Patience()
        now, pauses = 1000, []
        while not patience.exhausted(now):
            patience.troubled(now)
            pauses.append(patience.until - now)
            now = patience.until
        self.assertEqual(pauses, [1, 2, 4, 8, 16, 32])

    def test_no_trouble(self):
        patience = Patience()
        self.assertEqual(patience.until, 0)
        self.assertFalse(patience.exhausted(10 ** 9))

    def test_trouble_within_a_pause(self):
        "Test that the trouble of many sessions at once counts once"
        patience = Patience()
        for now in [1000, 1000.1, 1000.9]:
            patience.troubled(now)
            self.assertEqual(patience.until, 1001)
        patience.troubled(1001)
        self.assertEqual(patience.until, 1003)

    def test_relieved(self):
        patience = Patience()
        for now in [1000, 1001, 1003, 1007]:
            patience.troubled(now)
        patience.relieved()
        self.assertEqual(patience.until, 0)
        self.assertFalse(patience.exhausted(2000))
        patience.troubled(2000)
        self.assertEqual(patience.until, 2001)
        self.assertFalse(patience.exhausted(2001))

    def test_trouble_that_takes_its_time(self):
        "Test that slow replies count for the minute, too"
        patience = Patience()
        patience.troubled(1000)
        self.assertFalse(patience.exhausted(1000))
        patience.troubled(1059)
        self.assertTrue(patience.exhausted(1059))


class Clock(SimpleNamespace):
    "A clock that takes the place of the module time"
    now = 1000

    def monotonic(self):
        return self.now


class PolicyClockTestCase(unittest.TestCase):

    def setUp(self):
        super().setUp()
        self.clock = Clock()
        patcher = patch.object(policy, 'time', self.clock)
        patcher.start()
        self.addCleanup(patcher.stop)


class PaceTestCase(PolicyClockTestCase):
    "Test how many rows a sender holds"

    def test_start(self):
        self.assertEqual(Pace(1).rows(), 1)
        self.assertEqual(Pace(16).rows(), 16)

    def test_table(self):
        for connections, seconds, per_step, rows in [
                (2, 10, 0, 2),  # no outcome within the last second
                (2, 10, .1, 2),  # fewer outcomes than connections
                (2, 10, 5, 50),
                (2, 10, 40, 400),
                (2, 10, 1000, 2 * HELD_ROWS),
                (1, 10, 1000, HELD_ROWS),
                (2, .5, 5, 50),  # the sender has just begun
                ]:
            with self.subTest(
                    connections=connections, seconds=seconds,
                    per_step=per_step):
                pace = Pace(connections)
                for _ in range(int(seconds * 10)):
                    self.clock.now += .1
                    pace.finished(per_step)
                self.assertAlmostEqual(pace.rows(), rows, delta=rows / 9)

    def test_first_results(self):
        "Test that a few outcomes at once do not count as a high rate for ever"
        pace = Pace(2)
        pace.finished(10)
        self.assertLessEqual(pace.rows(), 2 * HELD_ROWS)
        self.clock.now += 1.1
        self.assertEqual(pace.rows(), 2)

    def test_stalled_server(self):
        pace = Pace(2)
        self.clock.now += 10
        pace.finished(300)
        self.assertEqual(pace.rows(), 300)
        self.clock.now += 2
        self.assertEqual(pace.rows(), 2)

    def test_memory(self):
        pace = Pace(2)
        for _ in range(10000):
            self.clock.now += .01
            pace.finished(1)
            pace.rows()
        self.assertLess(len(pace._finished), 200)


class ThrottleTestCase(PolicyClockTestCase):
    "Test when each message has its turn"

    def test_no_limit(self):
        throttle = Throttle(0)
        self.assertEqual([throttle.turn() for _ in range(3)], [1000] * 3)

    def test_even(self):
        throttle = Throttle(60)
        self.assertEqual(
            [throttle.turn() for _ in range(4)], [1001, 1002, 1003, 1004])

    def test_rate(self):
        "Test that no minute has more messages than the rate"
        for rate in [.5, 7, 600, 12345]:
            throttle = Throttle(rate)
            turns = [throttle.turn() for _ in range(int(rate) * 3 + 2)]
            self.assertAlmostEqual(turns[0], 1000 + 60 / rate)
            for one, other in zip(turns, turns[int(rate) + 1:]):
                self.assertGreater(other - one, 60)

    def test_turns_that_nobody_took_are_gone(self):
        throttle = Throttle(60)
        throttle.turn()
        self.clock.now = 1100
        self.assertEqual(
            [throttle.turn() for _ in range(3)], [1100, 1101, 1102])


class SlowedThrottleTestCase(PolicyClockTestCase):
    "Test a rate that the server makes slower"

    def take(self, throttle, count, seconds):
        for _ in range(count):
            self.clock.now += seconds
            throttle.turn()
            throttle.accepted()

    def test_halved(self):
        throttle = Throttle(0)
        self.take(throttle, 100, .1)
        throttle.slow_down()
        self.assertEqual(throttle.resumes_at, self.clock.now + 1)
        # Ten messages a second were too many
        self.assertAlmostEqual(throttle.found, 5 * 60)
        first, second = throttle.turn(), throttle.turn()
        self.assertAlmostEqual(first, self.clock.now + 1)
        self.assertAlmostEqual(second - first, .2)

    def test_slowly_up(self):
        throttle = Throttle(0)
        self.take(throttle, 100, .1)
        throttle.slow_down()
        self.clock.now += 1 + 30
        self.assertAlmostEqual(throttle.found, 10 * 60)
        self.clock.now += 1000
        self.assertIsNone(throttle.found)

    def test_not_faster_than_the_settings(self):
        throttle = Throttle(60)
        self.take(throttle, 100, 1)
        throttle.slow_down()
        self.assertAlmostEqual(throttle.found, 30)
        self.clock.now += 1000
        self.assertIsNone(throttle.found)
        first, second = throttle.turn(), throttle.turn()
        self.assertAlmostEqual(second - first, 1)

    def test_pauses(self):
        throttle = Throttle(0)
        pauses = []
        for _ in range(7):
            throttle.slow_down()
            # From other sessions, which were already sending
            throttle.slow_down()
            pauses.append(throttle.resumes_at - self.clock.now)
            self.clock.now = throttle.resumes_at
        self.assertEqual(pauses, [1, 2, 4, 8, 16, 30, 30])
        # Nothing was taken, so no rate is known
        self.assertFalse(throttle.is_slowed)

    def test_found_before(self):
        throttle = Throttle(0, found=60)
        first, second = throttle.turn(), throttle.turn()
        self.assertAlmostEqual(first, self.clock.now + 1)
        self.assertAlmostEqual(second - first, 1)


class DeadlineTestCase(PolicyClockTestCase):
    "Test the end of a run"

    def test_time(self):
        deadline = Deadline(50)
        self.clock.now = 1049
        self.assertFalse(deadline.is_over)
        self.clock.now = 1050
        self.assertTrue(deadline.is_over)
        self.assertFalse(deadline.is_cut)

    def test_cut(self):
        deadline = Deadline(50)
        deadline.cut()
        self.assertTrue(deadline.is_over)
        self.assertTrue(deadline.is_cut)


del PolicyClockTestCase
