# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What the reply of a server means, and whose fault it is.

This file knows no connection and no row. All words of servers are in
:data:`WORDS`.
"""
import re
from typing import NamedTuple

__all__ = [
    'LENGTH', 'LOGIN', 'MAILBOX', 'MESSAGE', 'QUOTA', 'RATE', 'RECIPIENT',
    'RECIPIENTS', 'Reply', 'SERVER', 'SESSION', 'WORDS', 'gist', 'meaning',
    'names_mailbox', 'statuses', 'too_many_recipients', 'verdict']

# Whose fault a bad reply is
MESSAGE, RECIPIENT, SERVER = 'message', 'recipient', 'server'

# What a bad reply is about
MAILBOX = 'mailbox'  # one mailbox: the refusal is the recipient's own
LOGIN = 'login'  # the server wants another login or another transport
SESSION = 'session'  # the session has ended, but a new session may work
RECIPIENTS = 'recipients'  # more recipients than an SMTP transaction may have
RATE = 'rate'  # messages come faster than the server takes them
QUOTA = 'quota'  # the server is full, or takes nothing from us for a while


class Reply(NamedTuple):
    "What a server answered: its code and its words on one line"
    code: int
    text: str

    @property
    def good(self):
        return 200 <= self.code <= 299

    @property
    def temporary(self):
        return 400 <= self.code <= 499

    @property
    def status(self):
        "The enhanced status code (RFC 3463), empty where there is none"
        match = _status.match(self.text)
        return match[1] if match else ''

    def __str__(self):
        return f'{self.code} {self.text}'.rstrip()


class Words(NamedTuple):
    """A pattern of replies, and what they mean.

    ``pattern`` is searched in the code and the words of a reply. ``example``
    is a reply that the pattern finds, and ``source`` says which servers answer
    so or where it is documented.
    """
    meaning: str
    pattern: re.Pattern
    example: str
    source: str


# How many characters of a reply are kept and searched: enough for a line of
# the list of emails, and so few that no reply makes the patterns slow
LENGTH = 500

_status = re.compile(r'([245]\.\d{1,3}\.\d{1,3})\b')
_any_status = re.compile(r'(?<![\d.])([245]\.\d{1,3}\.\d{1,3})(?![\d.])')
_codes = re.compile(r'(?:\d{3}\b\s*)?(?:\d\.\d{1,3}\.\d{1,3}\b\s*)?')
_digit = re.compile(r'\d')
# The number of an error of Microsoft's logins is the same at each occurrence,
# unlike other digits in a reply
_error_code = re.compile(r'AADSTS\d+\W*')


def _words(meaning, pattern, example, source):
    return Words(meaning, re.compile(pattern, re.I), example, source)


# The first pattern that a reply matches gives its meaning
WORDS = [
    # Codes that decide, whatever the status and the words are
    _words(
        LOGIN, r'^53[0458]\b',
        '530 5.7.0 Authentication required', 'RFC 4954 6, RFC 3207 4'),
    _words(
        RATE, r'^(?:432|454)\b',
        '432 4.3.2 Concurrent connections limit exceeded',
        'Exchange Online, SMTP AUTH limits; Amazon SES: 454 Throttling '
        'failure: Maximum sending rate exceeded'),

    # Statuses that name a mailbox
    _words(
        MAILBOX, r'^\d{3} (?:5\.1\.(?:1|2|3|6|10)|[45]\.2\.[12])\b',
        '550 5.1.1 User unknown', 'RFC 3463 3.2 and 3.3, RFC 7505 4.2'),

    # Messages per second or minute: too fast, whatever else the reply says
    _words(
        RATE, r'^4.*\bper (?:second|minute)\b',
        '452 4.4.5 Messages per second limit exceeded', 'Emailit'),

    # The session has ended
    _words(
        SESSION, r'^\d{3} (?:4\.4\.[25]|5\.4\.2)\b',
        '451 4.4.2 Timeout waiting for data from client',
        'RFC 3463 3.5; Amazon SES after ten idle seconds'),
    _words(
        SESSION,
        r'\b(?:per|in|for|on) (?:this |the |one |each |a |single |same )*'
        r'(?:smtp )?(?:session|connection)\b',
        '452 4.4.5 Maximum number of messages per session exceeded',
        'Stalwart; Exim smtp_accept_max_per_connection: '
        '"too many messages in one connection"'),

    # The server wants another login
    _words(
        LOGIN, r'^\d{3} 5\.7\.(?:30|57|139)\b',
        '550 5.7.30 Basic authentication is not supported for Client '
        'Submission', 'Exchange Online, non-delivery reports'),

    # Messages come too fast
    _words(
        RATE, r'^\d{3} 4\.7\.(?:28|50[0-2]|65[0-2])\b',
        '451 4.7.500 Server busy. Please try again later',
        'Exchange Online, non-delivery reports (4.7.500 to 502, 4.7.650 to '
        '652); Gmail, SMTP errors (4.7.28)'),
    _words(
        RATE,
        r'^4.*\b(?:throttl|too (?:fast|quickly)|slow down|too much mail\b'
        r'|(?:send\w*|message|delivery|request) rate\b'
        r'|rate.?limit|too many (?:messages|e?-?mails|connections|sessions'
        r'|concurrent))',
        '450 4.7.1 Error: too much mail from 192.0.2.1',
        'Postfix, smtpd_client_message_rate_limit; Exim, ratelimit; Mailgun'),

    # The server takes no more from us for a while. A reply about a full
    # mailbox must not match
    _words(
        QUOTA, r'^\d{3} (?:4\.3\.[12]|5\.4\.5)\b',
        '452 4.3.1 Insufficient system resources',
        'RFC 3463 3.4 and 3.5; Gmail: 5.4.5 Daily user sending limit '
        'exceeded'),
    _words(
        QUOTA,
        r'^\d{3} 5\.(?:1\.90|7\.(?:23[23]|28|50[1-3]|511|6[0-4]\d|70[58]'
        r'|750))\b',
        "550 5.1.90 Your message can't be sent because you've reached your "
        'daily limit for message recipients',
        'Exchange Online, non-delivery reports; Gmail, SMTP errors (5.7.28)'),
    _words(
        QUOTA,
        r'SubmissionQuotaExceeded|OutboundSpam|bad outbound sender'
        r'|sending (?:is |has been |was )?(?:paused|suspended|disabled)'
        r'|(?:paused|suspended|disabled)\W+(?:\w+\W+){0,3}sending',
        '554 5.2.0 STOREDRV.Submission.Exception:'
        'SubmissionQuotaExceededException',
        'Exchange Online, sending limits; Amazon SES: Sending paused for '
        'this account'),
    _words(
        QUOTA,
        r'^(?=.*(?:exceed|limit|quota))'
        r'(?=.*\b(?:hour(?:s|ly)?|days?|daily|seconds?|minutes?|try again'
        r'|sending|sent|outgoing)\b)'
        r'(?!.*\b(?:mailbox|inbox|message size|storage)\b)',
        '550 Domain example.com has exceeded the max emails per hour '
        '(25/25 (100%)) allowed',
        'cPanel; OVH; IONOS; Zoho: "exceeded" or "quota" with a period'),

    # The SMTP transaction has too many recipients
    _words(
        RECIPIENTS,
        r'^\d{3} [45]\.5\.3\b'
        r'|too many (?:recipients|rcpt)|recipients? limit\b'
        r'|max(?:imum)?\b.{0,30}\brecipients\b',
        '452 4.5.3 Too many recipients', 'RFC 5321 4.5.3.1.10, RFC 3463 3.6'),

    # Words that name a mailbox, of servers that give no status or the status
    # "other" (4.x.0, 5.x.0)
    _words(
        MAILBOX, r'\(#[45]\.(?:1\.[1236]|2\.[12])\)',
        "550 sorry, no mailbox here by that name. (#5.1.1)", 'qmail'),
    _words(
        MAILBOX,
        r'^\d{3} (?!\d\.\d{1,3}\.[1-9])(?:.*\b)?'
        r'(?:unknown (?:user|recipient|mailbox|local|account)'
        r'|no such (?:user|recipient|mailbox|address|account|person)'
        r'|no mailbox|no valid recipient|mailbox unavailable'
        r'|mailbox (?:is )?(?:disabled|inactive|full|unknown|not found)'
        r'|invalid (?:recipient|mailbox|user)'
        r'|un?rout[e]?able (?:address|mail domain)'
        r'|(?:user|recipient|mailbox|account|address)\b.{0,80}\b(?:unknown'
        r"|not found|not exist|(?:does|is) ?n[o']t exist|doesn't exist"
        r'|over (?:its )?quota|disabled|inactive)'
        r'|over quota|mailbox quota|exceeded storage allocation'
        r"|(?:does not|doesn't) have an? .{0,80}\baccount)",
        '550 Unrouteable address',
        'Exim: Unknown user, Unrouteable address; Outlook.com: 550 5.5.0 '
        'mailbox unavailable; RFC 5321 4.2.3'),
    ]

_ABOUT_THE_SERVER = {LOGIN, SESSION, RATE, QUOTA}


def meaning(reply):
    "Return the meaning of a bad reply by ``WORDS``, None where it is unknown"
    text = str(reply)[:LENGTH]
    for words in WORDS:
        if words.pattern.search(text):
            return words.meaning


def verdict(step, reply):
    """Return whose fault a bad reply is: MESSAGE, RECIPIENT or SERVER.

    :param step: ``mail``, ``rcpt``, ``data`` or ``dot``.
    :param reply: the :class:`Reply` with a code of 4xx or 5xx.
    """
    if (reply.code == 421
            or (step == 'mail' and reply.temporary)
            or meaning(reply) in _ABOUT_THE_SERVER):
        return SERVER
    return RECIPIENT if step == 'rcpt' else MESSAGE


def names_mailbox(step, reply):
    """Return whether a refusal is about the mailbox of one recipient.

    At MAIL the mailbox is that of the envelope sender, so that the refusal
    concerns all messages.
    """
    return step != 'mail' and meaning(reply) == MAILBOX


def too_many_recipients(reply):
    """Return whether the reply to RCPT says that there are enough recipients.

    The server then takes the message for the recipients before.
    """
    about = meaning(reply)
    return about == RECIPIENTS or (
        # A bare 452 means too many recipients (RFC 5321 4.5.3.1.10)
        reply.code == 452 and not reply.status and about is None)


def statuses(text):
    "Return the list of enhanced status codes (RFC 3463) in a text"
    return _any_status.findall(text)


def gist(words):
    """Return the words of a reply without addresses and digits.

    The result is equal for replies that say the same of different messages.
    """
    head = _codes.match(words)[0]
    rest = [
        word for word in words[len(head):].split()
        if '@' not in word[1:-1]
        and (not _digit.search(word) or _error_code.fullmatch(word))]
    return ' '.join([*head.split(), *rest])
