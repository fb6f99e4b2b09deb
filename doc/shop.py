# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The emails of a small shop, for the pictures of the documentation."""
import datetime as dt
import random
from email.message import EmailMessage
from email.utils import make_msgid

from trytond.pool import Pool
from trytond.transaction import Transaction

DOMAIN = 'tinplate.example'
CUSTOMERS = {
    'hill': ("Hillside Nursery School", ['office@hillside.example']),
    'marsh': ("Eleanor Marsh", ['eleanor@marsh.example']),
    'becker': ("Spielwaren Becker", [
            'einkauf@becker.example', 'buchhaltung@becker.example',
            'k.vogel@becker.example']),
    'petit': ("Le Petit Train", ['commandes@petit-train.example']),
    'novak': ("Tomáš Novák", ['tomas.novak@post.example']),
    'garcia': ("Juguetes García", ['pedidos@garcia.example']),
    'okafor': ("Ada Okafor", ['ada@okafor.example']),
    'lindqvist': ("Lindqvist & Sons", ['ap@lindqvist.example']),
    'club': ("Model Railway Club", ['members@railway-club.example']),
    'hughes': ("Owen Hughes", ['owen@hughes.example']),
    }
# What the mail servers of the customers say to an address at a step
ANSWERS = {
    ('rcpt', 'k.vogel@becker.example'):
        "550 5.1.1 <k.vogel@becker.example>: user unknown",
    ('rcpt', 'tomas.novak@post.example'):
        "550 5.7.1 mail from 203.0.113.25 refused, see post.example/blocked",
    ('rcpt', 'pedidos@garcia.example'):
        "450 4.2.0 greylisted, try again in 300 seconds",
    ('rcpt', 'owen@hughes.example'): "552 5.2.2 mailbox full",
    ('dot', 'ap@lindqvist.example'): "close",
    }
# From, subject, priority, text, attachment
KINDS = {
    'order': (
        'orders', "Your order {number}", 'normal',
        "thank you for your order {number}. We tell you when it leaves.",
        None),
    'shipped': (
        'orders', "Your order {number} is on its way", 'normal',
        "your order {number} left our workshop today.", None),
    'invoice': (
        'billing', "Invoice {number}", 'normal',
        "please find attached our invoice {number}, due within 14 days.",
        'invoice-{number}.pdf'),
    'reminder': (
        'billing', "Reminder: invoice {number} is due", 'normal',
        "we have not yet received your payment of invoice {number}.",
        'invoice-{number}.pdf'),
    'password': (
        'no-reply', "Reset your password", 'urgent',
        "open https://tinplate.example/password/{number} to choose a new "
        "password. The link is good for an hour.", None),
    'news': (
        'news', "New in the workshop: the harbour crane", 'bulk',
        "the harbour crane of 1932 is back, in red and in green.", None),
    }
# Hours ago, kind, customer, number, and the state where it is not the job that
# decides
EMAILS = [
    (76, 'order', 'hill', 'SO-1182'),
    (75.8, 'invoice', 'hill', '2026-0731'),
    (71, 'order', 'petit', 'SO-1183'),
    (70.5, 'invoice', 'petit', '2026-0732'),
    (54, 'shipped', 'hill', 'SO-1182'),
    (53.9, 'shipped', 'petit', 'SO-1183'),
    (52, 'password', 'okafor', '7f3a91'),
    (51.7, 'order', 'okafor', 'SO-1184'),
    (50, 'reminder', 'hughes', '2026-0688'),
    (47, 'invoice', 'becker', '2026-0733'),
    (30, 'order', 'marsh', 'SO-1185'),
    (29.9, 'invoice', 'marsh', '2026-0734'),
    (28, 'news', 'club', ''),
    (28, 'news', 'okafor', ''),
    (28, 'news', 'marsh', ''),
    (28, 'news', 'novak', '', 'cancelled'),
    (27, 'order', 'novak', 'SO-1186'),
    (26.9, 'invoice', 'novak', '2026-0735'),
    (25, 'order', 'becker', 'SO-1187'),
    (6, 'shipped', 'marsh', 'SO-1185'),
    (5.5, 'order', 'petit', 'SO-1188'),
    (5.4, 'invoice', 'petit', '2026-0736'),
    (3, 'password', 'marsh', '02be77'),
    (2.5, 'order', 'okafor', 'SO-1189'),
    (2.4, 'invoice', 'okafor', '2026-0737'),
    (.2, 'invoice', 'lindqvist', '2026-0738'),
    (.1, 'order', 'garcia', 'SO-1190'),
    (.03, 'invoice', 'club', '2026-0739', 'sending'),
    (.02, 'password', 'okafor', 'c41d08', 'outbox'),
    (.01, 'order', 'hill', 'SO-1191', 'outbox'),
    (.01, 'news', 'petit', '', 'outbox'),
    (.01, 'news', 'becker', '', 'outbox'),
    ]


def answer(session, step):
    "The script of the mail server"
    return ANSWERS.get((step, session.address))


def fill(site):
    "Have the emails of some days in the queue of the site"
    with site.transaction():
        parties = create_parties()
        emails = [
            (queue(parties, ago, kind, customer, number), ago, *state)
            for ago, kind, customer, number, *state in EMAILS]
        for email, _, *state in emails:
            if state:
                # So that the job leaves it alone
                email.state = 'cancelled'
                email.save()
    site.run_job()
    with site.transaction():
        for email, ago, *state in emails:
            move(type(email)(email.id), ago, *state)


def create_parties():
    Party = Pool().get('party.party')
    parties = Party.create([
            {
                'name': name,
                'contact_mechanisms': [('create', [
                            {'type': 'email', 'value': address}
                            for address in addresses])],
                } for name, addresses in CUSTOMERS.values()])
    return dict(zip(CUSTOMERS, parties))


def queue(parties, ago, kind, customer, number):
    name, addresses = CUSTOMERS[customer]
    sender, subject, priority, text, attachment = KINDS[kind]
    msg = EmailMessage()
    msg['From'] = f"Tinplate Toys <{sender}@{DOMAIN}>"
    msg['To'] = ', '.join(addresses)
    msg['Message-ID'] = make_msgid(domain=DOMAIN)
    msg['Date'] = dt.datetime.now(dt.timezone.utc) - dt.timedelta(hours=ago)
    msg['Subject'] = subject.format(number=number)
    msg.set_content(
        f"Dear {name},\n\n{text.format(number=number)}\n\n"
        "Kind regards,\nTinplate Toys\n")
    if attachment:
        size = random.randrange(40_000, 160_000)
        msg.add_attachment(
            b'%PDF-1.7\n' + random.randbytes(size),
            maintype='application', subtype='pdf',
            filename=attachment.format(number=number))
    email, = Pool().get('email.queue').queue_message(
        msg, priority=priority, resource=parties[customer])
    return email


def move(email, ago, state=None):
    "Move an email to the past, but not when its next attempt is due"
    names = ['create_date', 'first_attempt', 'sent_at']
    if state or email.state != 'outbox':
        names.append('scheduled_at')
    values = {
        name: getattr(email, name) - dt.timedelta(hours=ago)
        for name in names if getattr(email, name)}
    values['state'] = state or email.state
    t = email.__table__()
    cursor = Transaction().connection.cursor()
    cursor.execute(*t.update(
            [getattr(t, name) for name in values], list(values.values()),
            where=t.id == email.id))
