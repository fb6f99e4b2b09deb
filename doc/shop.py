# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The emails of a small shop, for the pictures of the documentation."""
import datetime as dt
import random
from email.message import EmailMessage

from trytond.pool import Pool
from trytond.transaction import Transaction

DOMAIN = 'tinplate.example'
# The user who writes the invoices and does not look after the queue
USER = 'clara'
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
    'krüger': ("Anneliese Krüger", ['a.krueger@krueger.example']),
    'hobby': ("Hobbyhaus Sachsen", ['bestellung@hobbyhaus.example']),
    'friends': ("Friends of Tin", [
            f'member{number}@friends.example' for number in range(1, 301)]),
    }
# The customers who get German emails
GERMAN = {'becker', 'krüger', 'hobby'}
# What the mail servers of the customers say to an address at a step
ANSWERS = {
    ('rcpt', 'k.vogel@becker.example'):
        "550 5.1.1 <k.vogel@becker.example>: user unknown",
    ('rcpt', 'tomas.novak@post.example'):
        "550 5.7.1 mail from 203.0.113.25 refused, see post.example/blocked",
    ('rcpt', 'pedidos@garcia.example'):
        "450 4.2.0 greylisted, try again in 300 seconds",
    ('rcpt', 'owen@hughes.example'): "552 5.2.2 mailbox full",
    ('rcpt', 'bestellung@hobbyhaus.example'):
        "451 4.3.0 temporary lookup failure",
    ('rcpt', 'member17@friends.example'): "550 5.1.1 no such user",
    ('rcpt', 'member204@friends.example'): "552 5.2.2 mailbox full",
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
    'complaint': (
        'orders', "Fw: Crane without hook", 'normal',
        "we are sorry, and send the missing hook of {number} tomorrow. Your "
        "letter and the photo are attached.", 'photo.jpg'),
    'greetings': (
        'news', "A merry Christmas from the workshop", 'bulk',
        "our workshop closes on 24 December and opens on 4 January.", None),
    'blank': ('orders', "", 'normal', "the plan that you asked for.", None),
    'news': (
        'news', "New in the workshop: the harbour crane", 'bulk',
        "the harbour crane of 1932 is back, in red and in green.", None),
    }
GERMAN_KINDS = {
    'order': (
        "Ihre Bestellung {number}",
        "vielen Dank für Ihre Bestellung {number}. Wir melden uns, sobald sie "
        "unsere Werkstatt verlässt."),
    'shipped': (
        "Ihre Bestellung {number} ist unterwegs",
        "Ihre Bestellung {number} hat heute unsere Werkstatt verlassen."),
    'invoice': (
        "Rechnung {number}",
        "anbei unsere Rechnung {number}, zahlbar innerhalb von 14 Tagen."),
    'reminder': (
        "Zahlungserinnerung zur Rechnung {number}",
        "zu unserer Rechnung {number} haben wir noch keine Zahlung erhalten."),
    'news': (
        "Neu aus der Werkstatt: der Hafenkran",
        "der Hafenkran von 1932 ist wieder da, in Rot und in Grün."),
    }
HTML = """\
<html><head><style>p {{color: #333}}</style></head><body>
<h2>Tinplate Toys</h2>
<p>{greeting} <b>{name}</b>,</p><p>{text}</p>
<p>{end},<br><i>Tinplate Toys</i><br>
<a href="https://{domain}/">{domain}</a></p>
<img src="https://{domain}/opened.gif" width="1" height="1">
</body></html>
"""
# The emails of each of the days before
DAYS = 28
KINDS_OF_DAY = {
    'order': ['hill', 'marsh', 'petit', 'okafor', 'club'],
    'invoice': ['marsh', 'petit', 'okafor'],
    'shipped': ['hill', 'marsh', 'club', 'okafor'],
    'reminder': ['petit', 'marsh', 'club', 'hughes'],
    'password': ['okafor', 'marsh'],
    }
# Hours ago, kind, customer, number, and the state if the job does not decide
# it
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
    (2.2, 'invoice', 'krüger', '2026-0740'),
    (2, 'complaint', 'krüger', 'SO-1192'),
    (1.5, 'news', 'friends', ''),
    (1.2, 'order', 'hobby', 'SO-1193'),
    (1, 'blank', 'okafor', ''),
    (.5, 'greetings', 'marsh', '', 'scheduled'),
    (.4, 'reminder', 'becker', '2026-0700'),
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
    "Let the queue of the site have the emails of some weeks"
    # The pictures should change only where the client changes
    chance = random.Random(DOMAIN)
    user = site.create_user(
        USER, name="Clara Finch", email=f'{USER}@{DOMAIN}')
    with site.transaction():
        parties = create_parties()
    emails = []
    # Only the user is notified of what fails
    for user, rows in [(0, earlier(chance)), (user, EMAILS)]:
        with site.transaction(user):
            emails += [
                (queue(parties[customer], chance, ago, kind, customer, number),
                    ago, *state)
                for ago, kind, customer, number, *state in rows]
    with site.transaction():
        for email, _, *state in emails:
            if state:
                # So that the job leaves the email alone
                email = type(email)(email.id)
                email.state = 'cancelled'
                email.save()
    site.run_job()
    with site.transaction():
        for email, ago, *state in emails:
            move(type(email)(email.id), ago, *state)


def earlier(chance):
    "Yield the emails of all days but the last three"
    number = 700
    for day in range(DAYS, 3, -1):
        weekday = (dt.date.today() - dt.timedelta(days=day)).weekday()
        for _ in range(chance.randint(*(2, 5) if weekday > 4 else (7, 16))):
            kind = chance.choice(list(KINDS_OF_DAY))
            number += 1
            yield (
                day * 24 - chance.uniform(0, 8), kind,
                chance.choice(KINDS_OF_DAY[kind]),
                f'SO-{number}' if kind in {'order', 'shipped'}
                else f'2026-0{number // 2}')


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


def queue(party, chance, ago, kind, customer, number):
    pool = Pool()
    Email = pool.get('ir.email')
    name, addresses = CUSTOMERS[customer]
    sender, subject, priority, text, attachment = KINDS[kind]
    greeting, end = "Dear", "Kind regards"
    if customer in GERMAN:
        subject, text = GERMAN_KINDS.get(kind, (subject, text))
        greeting, end = "Guten Tag", "Freundliche Grüße"
    text = text.format(number=number)
    msg = EmailMessage()
    msg['From'] = f"Tinplate Toys <{sender}@{DOMAIN}>"
    msg['To'] = ', '.join(addresses)
    msg['Message-ID'] = f'<{chance.getrandbits(64):x}@{DOMAIN}>'
    msg['Date'] = dt.datetime.now(dt.timezone.utc) - dt.timedelta(hours=ago)
    if subject:
        msg['Subject'] = subject.format(number=number)
    msg.set_content(
        f"{greeting} {name},\n\n{text}\n\n{end},\nTinplate Toys\n")
    if kind != 'password':
        msg.add_alternative(
            HTML.format(
                greeting=greeting, name=name, text=text, end=end,
                domain=DOMAIN),
            subtype='html')
    if kind == 'complaint':
        letter = EmailMessage()
        letter['Subject'] = "Crane without hook"
        letter['From'] = addresses[0]
        letter.set_content("The crane came without its hook!")
        msg.add_attachment(letter)
    if attachment:
        size = chance.randrange(40_000, 160_000)
        types = {'pdf': ('application', 'pdf'), 'jpg': ('image', 'jpeg')}
        maintype, subtype = types[attachment.rpartition('.')[2]]
        msg.add_attachment(
            b'%PDF-1.7\n' + chance.randbytes(size),
            maintype=maintype, subtype=subtype,
            filename=attachment.format(number=number))
    if kind == 'invoice':
        # As the client does for emails that a user sends
        archived = Email.from_message(
            msg, resource=party, body=f'<p>{text}</p>')
        archived.save()
        shift(archived, ago, ['create_date'])
    email, = pool.get('email.queue').queue_message(
        msg, priority=priority, resource=party)
    return email


def christmas():
    now = dt.datetime.now()
    day = dt.datetime(now.year, 12, 24, 9)
    return day if day > now else day.replace(year=now.year + 1)


def move(email, ago, state=None):
    "Move an email to the past, but not if its next attempt is due"
    names = ['create_date', 'write_date', 'first_attempt', 'sent_at']
    values = {'state': state or email.state}
    if state == 'scheduled':
        values = {'state': 'outbox', 'scheduled_at': christmas()}
    elif state or email.state != 'outbox':
        names.append('scheduled_at')
    shift(email, ago, names, **values)


def shift(record, ago, names, **values):
    values |= {
        name: getattr(record, name) - dt.timedelta(hours=ago)
        for name in names if getattr(record, name) and name not in values}
    t = record.__table__()
    cursor = Transaction().connection.cursor()
    cursor.execute(*t.update(
            [getattr(t, name) for name in values], list(values.values()),
            where=t.id == record.id))
