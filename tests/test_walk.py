# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""All places that end an email or keep it back, and what is shown there."""
import datetime as dt
from email import message_from_bytes
from unittest.mock import patch

from trytond.modules.email_queue import original
from trytond.modules.email_queue.exceptions import EmailQueueError
from trytond.modules.email_queue.reasons import REASONS
from trytond.pool import Pool
from trytond.tests.test_tryton import DB_NAME
from trytond.transaction import Transaction

from .catalogue import LOCALE
from .test_notices import NoticesTestCase, about
from .test_store import StoreTestCase
from .tools import MESSAGE, QueueTestCase, configured

GOOD, GONE, LATER, DENIED, LOST = (
    f'{name}@example.com' for name in [
        'jane', 'rcpt-550-5.1.1-gone', 'rcpt-451-4.2.1-full',
        'rcpt-554-5.7.1-denied', 'dot-close'])
NOW = dt.datetime(2026, 11, 27, 12)
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)
ORIGINAL = original.Row(
    1, 'shop@example.com', GOOD, 0, 'outbox', NOW - HOUR, None)


def situation(state, reason, error, english, german):
    "Add a method to the table of situations, with the expected result"
    def decorator(method):
        method.expected = state, reason, error, english, german
        return method
    return decorator


class TranslatedTestCase(QueueTestCase):
    "Tests in a database with the translations of the module"
    languages = ['de']

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        with Transaction().start(DB_NAME, 0):
            pool = Pool()
            Lang, Translation = map(pool.get, ['ir.lang', 'ir.translation'])
            langs = Lang.search([('code', 'in', cls.languages)])
            Lang.write(langs, {'translatable': True})
            for language in cls.languages:
                Translation.translation_import(
                    language, 'email_queue', [LOCALE / f'{language}.po'])


class LabelTestCase(TranslatedTestCase):
    "Test the reasons in the languages of users"
    languages = ['de', 'fr', 'es']

    def test_one_by_one(self):
        "Test each reason has a label of its own in each language"
        for language in ['en', *self.languages]:
            with self.subTest(language), self.transaction(
                    context={'language': language}):
                labels = Pool().get('email.queue').fields_get(
                    ['reason'])['reason']['selection']
                self.assertEqual(
                    [value for value, _ in labels],
                    [value for value, _ in REASONS])
                self.assertEqual(
                    len({label for _, label in labels}), len(REASONS))
                self.assertEqual(
                    dict(labels) == dict(REASONS), language == 'en')


class WalkTestCase(TranslatedTestCase, NoticesTestCase, StoreTestCase):
    "Each method is a situation, and returns the id of its email"

    def test_all(self):
        "Test state, reason, error, and the sentence in two languages"
        reached = set()
        for name, method in vars(type(self)).items():
            if not hasattr(method, 'expected'):
                continue
            with self.subTest(name):
                self.clear()
                id_ = method(self)
                self.assertEqual(
                    (*self.read(id_, 'state', 'reason', 'error'),
                        *self.sentences(id_)), method.expected)
            reached.add(method.expected[1])
        self.assertEqual(reached, dict(REASONS).keys() - {None})

    def sentences(self, id_):
        for language in ['en', 'de']:
            with self.transaction(
                    readonly=True, context={'language': language}):
                outcome = Pool().get('email.queue')(id_).outcome
                # The sentence about a waiting email ends with the time of the
                # next attempt
                yield outcome.partition('; ')[0]

    def send_in_peace(self):
        try:
            self.send_all()
        except EmailQueueError:
            pass

    def sent(self, to_addrs=GOOD, **values):
        "Queue an email, send it, and return its id"
        id_ = self.queue(to_addrs)
        if values:
            self.write(id_, **values)
        self.send_in_peace()
        return id_

    def sent_later(self, id_, **values):
        self.write(id_, scheduled_at=dt.datetime(2026, 1, 1), **values)
        self.send_in_peace()
        return id_

    def converted(self, text=b'Hello', **values):
        "Add a row as the conversion of the original makes it"
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            email, = EmailQueue.create([original.values_of(
                        EmailQueue, ORIGINAL._replace(**values), text, NOW)])
            return email.id

    # The server has answered

    @situation(
        'failed', 'refused', '550 5.1.1 gone',
        "Refused: 550 5.1.1 gone",
        "Abgelehnt: 550 5.1.1 gone")
    def refused(self):
        return self.sent(GONE)

    @situation(
        'failed', 'refused', f'{GONE} 550 5.1.1 gone',
        "Refused, delivered to 1 of 2 recipients: "
        f"{GONE} 550 5.1.1 gone",
        "Abgelehnt, an 1 von 2 Empfängern zugestellt: "
        f"{GONE} 550 5.1.1 gone")
    def refused_in_part(self):
        return self.sent(f'{GOOD}, {GONE}')

    @situation(
        'failed', 'refused', '554 5.7.1 denied',
        "Refused: 554 5.7.1 denied",
        "Abgelehnt: 554 5.7.1 denied")
    def refused_though_others_are_not(self):
        id_ = self.sent(DENIED)
        self.sent()
        return self.sent_later(id_)

    @situation(
        'outbox', 'suspect', '554 5.7.1 denied',
        "The server may refuse everything: 554 5.7.1 denied",
        "Der Server lehnt vielleicht alles ab: 554 5.7.1 denied")
    def suspect(self):
        return self.sent(DENIED)

    @situation(
        'outbox', 'deferred', '451 4.2.1 full',
        "Refused for now: 451 4.2.1 full",
        "Vorerst abgelehnt: 451 4.2.1 full")
    def deferred(self):
        return self.sent(LATER)

    @situation(
        'outbox', 'deferred', f'{LATER} 451 4.2.1 full',
        "Refused for now, delivered to 1 of 2 recipients: "
        f"{LATER} 451 4.2.1 full",
        "Vorerst abgelehnt, an 1 von 2 Empfängern zugestellt: "
        f"{LATER} 451 4.2.1 full")
    def deferred_in_part(self):
        return self.sent(f'{GOOD}, {LATER}')

    @situation(
        'outbox', 'deferred', 'the connection was closed',
        "Refused for now: the connection was closed",
        "Vorerst abgelehnt: the connection was closed")
    def lost_before_it_was_transmitted(self):
        return self.sent('data-close@example.com')

    @situation(
        'failed', 'gave_up', '451 4.2.1 full',
        "Given up: 451 4.2.1 full",
        "Aufgegeben: 451 4.2.1 full")
    def gave_up(self):
        with configured(max_attempts=1):
            return self.sent(LATER)

    @situation(
        'failed', 'gave_up', '554 5.7.1 denied',
        "Given up: 554 5.7.1 denied",
        "Aufgegeben: 554 5.7.1 denied")
    def gave_up_as_the_server_refuses_all(self):
        self.sent(DENIED)
        return self.sent(
            DENIED, suspect_since=dt.datetime(2026, 1, 1),
            first_attempt=dt.datetime(2026, 1, 1))

    @situation(
        'failed', 'gave_up', '550 5.4.5 quota',
        "Given up: 550 5.4.5 quota",
        "Aufgegeben: 550 5.4.5 quota")
    def gave_up_for_a_quota(self):
        return self.sent(
            'rcpt-550-5.4.5-quota@example.com',
            first_attempt=dt.datetime(2026, 1, 1))

    @situation(
        'outbox', 'trouble', '421 4.3.2 busy',
        "The server is in trouble: 421 4.3.2 busy",
        "Der Server ist gestört: 421 4.3.2 busy")
    def trouble(self):
        return self.sent('rcpt-421-4.3.2-busy@example.com')

    @situation(
        'outbox', 'uncertain', 'the connection was closed',
        "May have arrived: the connection was closed",
        "Vielleicht angekommen: the connection was closed")
    def uncertain(self):
        return self.sent(LOST)

    @situation(
        'failed', 'uncertain', 'the connection was closed',
        "May have arrived: the connection was closed",
        "Vielleicht angekommen: the connection was closed")
    def uncertain_twice(self):
        return self.sent_later(self.sent(LOST))

    @situation(
        'outbox', 'deferred', '451 4.2.1 full',
        "May have arrived. Refused for now: 451 4.2.1 full",
        "Vielleicht angekommen. Vorerst abgelehnt: 451 4.2.1 full")
    def deferred_after_it_was_uncertain(self):
        return self.sent(LATER, uncertain=True)

    @situation(
        'failed', 'bounced', f'{GOOD} 550 5.1.1 unknown',
        "Came back, delivered to 1 of 2 recipients: "
        f"{GOOD} 550 5.1.1 unknown",
        "Zurückgekommen, an 1 von 2 Empfängern zugestellt: "
        f"{GOOD} 550 5.1.1 unknown")
    def bounced(self):
        id_ = self.queue_sent([GOOD, 'john@example.com'])
        self.receive(about(GOOD, **{
                    'Diagnostic-Code': 'smtp; 550 5.1.1 unknown'}))
        return id_

    # The module has decided

    @situation('failed', 'expired', None, "Expired", "Abgelaufen")
    def expired(self):
        return self.sent(expires_at=dt.datetime(2026, 1, 1))

    @situation(
        'failed', 'expired', '451 4.2.1 full',
        "Expired: 451 4.2.1 full",
        "Abgelaufen: 451 4.2.1 full")
    def expired_after_it_was_deferred(self):
        return self.sent_later(
            self.sent(LATER), expires_at=dt.datetime(2026, 1, 1))

    @situation(
        'failed', 'died', None,
        "Its senders died, delivered to 1 of 3 recipients: "
        f"{GONE} 550 5.1.1 gone",
        "Seine Sender sind abgestürzt, an 1 von 3 Empfängern zugestellt: "
        f"{GONE} 550 5.1.1 gone")
    def died(self):
        id_ = self.sent(f'{GOOD}, {GONE}, {LATER}')
        self.update(
            id_, state='sending', crashes=9, write_date=NOW - DAY,
            **{'sender' if 'sender' in self.columns() else 'slot': 99})
        self.send_in_peace()
        return id_

    def columns(self):
        with self.transaction():
            return Pool().get('email.queue')._fields

    @situation(
        'outbox', 'not_recorded', None,
        "May have arrived, but could not be recorded",
        "Vielleicht angekommen, konnte aber nicht vermerkt werden")
    def not_recorded(self):
        id_ = self.queue()
        with self.store(1) as store:
            row, = store.claim(1, 10 ** 9)
            store.put_back([row._replace(state='sent')], 'outbox')
        return id_

    @situation(
        'outbox', 'no_server', 'x',
        "The server is not configured: x",
        "Der Server ist nicht konfiguriert: x")
    def no_server(self):
        with configured(uri_x=self.server.uri):
            id_ = self.queue(server='x')
        self.send_in_peace()
        return id_

    @situation(
        'outbox', 'no_server', 'x',
        "The server is not configured: x",
        "Der Server ist nicht konfiguriert: x")
    def no_server_to_send_by(self):
        with configured(uri_x=self.server.uri):
            id_ = self.queue(server='x')
        with self.transaction(), self.assertRaisesRegex(
                EmailQueueError, "not sent: The server is not configured: x"):
            Pool().get('email.queue')(id_).send()
        return id_

    # The server, or the address, cannot take the email

    @situation(
        'outbox', 'too_large', 'SIZE 10',
        "Larger than the server takes: SIZE 10",
        "Größer als der Server annimmt: SIZE 10")
    def too_large(self):
        with patch.object(self.server, 'size', 10):
            return self.sent()

    @situation(
        'failed', 'too_large', 'SIZE 10',
        "Larger than the server takes: SIZE 10",
        "Größer als der Server annimmt: SIZE 10")
    def too_large_though_others_are_not(self):
        with patch.object(self.server, 'size', 10):
            id_ = self.sent()
        self.sent()
        with patch.object(self.server, 'size', 10):
            return self.sent_later(id_)

    @situation(
        'failed', 'no_smtputf8', 'ü@example.com SMTPUTF8',
        "The server takes no such address, delivered to 1 of 2 recipients: "
        "ü@example.com SMTPUTF8",
        "Der Server nimmt keine solche Adresse an, an 1 von 2 Empfängern "
        "zugestellt: ü@example.com SMTPUTF8")
    def no_smtputf8(self):
        with patch.object(self.server, 'smtputf8', False):
            return self.sent(f'{GOOD}, ü@example.com')

    @situation(
        'failed', 'dead', f'{GONE} 550 5.1.1 gone',
        "Not tried, because the address does not work, delivered to 1 of 2 "
        f"recipients: {GONE} 550 5.1.1 gone",
        "Nicht versucht, weil die Adresse nicht funktioniert, an 1 von 2 "
        f"Empfängern zugestellt: {GONE} 550 5.1.1 gone")
    def dead(self):
        self.sent(GONE)
        id_ = self.queue(f'{GOOD}, {GONE}', priority='bulk')
        self.send_in_peace()
        return id_

    # The email itself is at fault

    @situation(
        'failed', 'no_message', None,
        "The message has been removed",
        "Die Nachricht wurde entfernt")
    def no_message(self):
        return self.sent(f'{GOOD}, {GONE}', msg=None)

    @situation(
        'outbox', 'not_in_filestore', None,
        "The message is not in the filestore",
        "Die Nachricht ist nicht im Dateispeicher")
    def not_in_filestore(self):
        id_ = self.queue()
        self.update(id_, msg=None, file_id='none')
        with self.assertLogs('trytond.modules.email_queue', 'ERROR'):
            self.send_in_peace()
        return id_

    @situation(
        'failed', 'unsendable',
        "ValueError: control character in 'RCPT TO:<a\\x01b@example.com>'",
        "Cannot be sent: ValueError: control character in "
        "'RCPT TO:<a\\x01b@example.com>'",
        "Kann nicht gesendet werden: ValueError: control character in "
        "'RCPT TO:<a\\x01b@example.com>'")
    def unsendable(self):
        id_ = self.queue()
        self.write(id_, to_addrs='a\x01b@example.com')
        self.send_in_peace()
        self.sent()
        return self.sent_later(id_)

    @situation(
        'failed', 'no_recipient', None,
        "Without a valid recipient",
        "Ohne gültigen Empfänger")
    def no_recipient(self):
        id_ = self.queue()
        self.write(id_, to_addrs=', ,')
        self.send_in_peace()
        return id_

    # The words are in the language of the user who has sent the email
    @situation(
        'failed', 'not_queued',
        '"nobody@" of "to_addrs" is not a valid email address.',
        "Could not be queued: "
        '"nobody@" of "to_addrs" is not a valid email address.',
        "Konnte nicht eingereiht werden: "
        '"nobody@" of "to_addrs" is not a valid email address.')
    def not_queued(self):
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            EmailQueue.queue_captured(
                [('shop@example.com', 'nobody@', message_from_bytes(MESSAGE))])
        (id_,), = self.rows('id')
        return id_

    # The update has found the email so

    @situation(
        'failed', 'no_sender', None,
        "Without a valid sender",
        "Ohne gültigen Absender")
    def no_sender(self):
        return self.converted(from_addr='shop')

    @situation(
        'failed', 'no_recipient', None,
        "Without a valid recipient",
        "Ohne gültigen Empfänger")
    def no_valid_recipient(self):
        return self.converted(to_addrs='jane')

    @situation(
        'failed', 'no_state', 'draft',
        "Without a valid state: draft",
        "Ohne gültigen Status: draft")
    def no_state(self):
        return self.converted(state='draft')

    @situation(
        'failed', 'no_message', None,
        "The message has been removed",
        "Die Nachricht wurde entfernt")
    def no_text(self):
        return self.converted(text=None)

    @situation(
        'failed', 'waited', None,
        "Waited for long before the update",
        "Hat vor der Aktualisierung lange gewartet")
    def waited(self):
        return self.converted(create_date=NOW - 2 * DAY)

    @situation(
        'failed', 'failed_before', None,
        "Failed before the update",
        "Vor der Aktualisierung fehlgeschlagen")
    def failed_before(self):
        return self.converted(state='failed')
