# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The recipients and the attachments that a form lists."""
from email.message import EmailMessage
from unittest.mock import patch

from trytond.pool import Pool

from .. import preview
from ..parts import part_ids
from .jsonrpc import RPCError, RPCTestCase

RECIPIENT, ATTACHMENT = 'email.queue.recipient', 'email.queue.attachment'
PDF = b'%PDF-1.7 \0\xff'
SIZE = {f'{ATTACHMENT}.data': 'size'}
HOSTILE = [
    {}, {'_check_access': False}, {'_user': 0}, {'user': 0},
    {'email.queue.msg': 'size'}, SIZE]


class RecipientTestCase(RPCTestCase):
    "Test the recipients of an email"

    def recipients(self, id_):
        email, = self.postmaster.queue(
            'read', [id_], ['recipients', 'to_count'])
        rows = self.postmaster.call(
            RECIPIENT, 'read', email['recipients'],
            ['address', 'state', 'words'])
        self.assertEqual(len(rows), email['to_count'])
        return [(r['address'], r['state'], r['words']) for r in rows]

    def test_states(self):
        for to_addrs, values, expected in [
                ('a@x.de', {}, [('a@x.de', 'waiting', '')]),
                ('a@x.de', {'error': "451 later\n"},
                    [('a@x.de', 'waiting', "451 later")]),
                ('a@x.de', {'state': 'sent'}, [('a@x.de', 'accepted', None)]),
                ('a@x.de', {'state': 'cancelled'},
                    [('a@x.de', 'unsent', '')]),
                ('a@x.de', {
                        'state': 'failed', 'refused': 'a@x.de 550 no',
                        'error': '550 no'},
                    [('a@x.de', 'refused', '550 no')]),
                ('a@x.de, b@x.de, c@x.de, d@x.de', {
                        'accepted': 'a@x.de', 'refused': 'b@x.de 550 no',
                        'error': 'c@x.de 451 later'}, [
                        ('b@x.de', 'refused', '550 no'),
                        ('c@x.de', 'waiting', '451 later'),
                        ('d@x.de', 'waiting', ''),
                        ('a@x.de', 'accepted', None)]),
                ]:
            id_ = self.queue(to_addrs=to_addrs)
            self.write(id_, **values)
            with self.subTest(to_addrs=to_addrs, **values):
                self.assertEqual(self.recipients(id_), expected)

    def test_bounced(self):
        id_ = self.queue(to_addrs='a@x.de, b@x.de')
        self.write(
            id_, state='failed', accepted='a@x.de', refused='b@x.de 550 no')
        with self.transaction():
            Pool().get('email.queue.event').add_events(
                'bounced', lambda t: t.id == id_, recipients='b@x.de')
        self.assertEqual(self.recipients(id_), [
                ('b@x.de', 'bounced', '550 no'),
                ('a@x.de', 'accepted', None)])

    def test_many(self):
        """Test the one recipient of hundreds who did not get the email comes
        first
        """
        people = [f'p{n}@x.de' for n in range(300)]
        id_ = self.queue(to_addrs=people)
        self.write(
            id_, state='failed', refused='p200@x.de 550 no',
            accepted='\n'.join(a for a in people if a != 'p200@x.de'))
        first, *others = self.recipients(id_)
        self.assertEqual(first, ('p200@x.de', 'refused', '550 no'))
        self.assertEqual({state for _, state, _ in others}, {'accepted'})

    def test_words_of_states(self):
        "Test a client gets the states in the language of the user"
        id_ = self.queue()
        row, = self.postmaster.call(
            RECIPIENT, 'read', part_ids(id_, 1), ['state', 'state:string'])
        self.assertEqual(row['state:string'], "Waiting")


class AttachmentTestCase(RPCTestCase):
    "Test the attachments of an email"

    def message(self):
        inner = EmailMessage()
        inner['Subject'] = "Inner"
        inner.set_content("inside")
        msg = EmailMessage()
        msg.set_content("Hello")
        msg.add_attachment(
            PDF, maintype='application', subtype='pdf', filename='a.pdf')
        msg.add_attachment(inner)
        return msg

    def read(self, session, ids, names, context=None):
        return session.call(ATTACHMENT, 'read', ids, names, context=context)

    def test_read(self):
        id_ = self.queue(msg=self.message())
        email, = self.postmaster.queue('read', [id_], ['attachments'])
        pdf, inner = ids = email['attachments']
        rows = self.read(
            self.postmaster, ids, ['name', 'type', 'data'], SIZE)
        self.assertEqual(
            [(r['name'], r['type']) for r in rows],
            [('a.pdf', 'application/pdf'), ('Inner.eml', 'message/rfc822')])
        self.assertEqual(rows[0]['data'], len(PDF))
        row, = self.read(self.postmaster, [pdf], ['data'])
        self.assertEqual(row['data'], PDF)
        row, = self.read(self.postmaster, [inner], ['data'])
        self.assertIn(b'Subject: Inner\r\n', row['data'])
        with self.assertRaisesRegex(RPCError, "one by one"):
            self.read(self.postmaster, ids, ['data'])

    def test_bound(self):
        "Test what comes after the bound of a preview is not read"
        id_ = self.queue(msg=self.message())
        with patch.object(preview, 'READ_SIZE', 400):
            email, = self.postmaster.queue('read', [id_], ['attachments'])
            self.assertLess(len(email['attachments']), 2)

    def test_unknown(self):
        "Test ids of parts that do not exist"
        id_ = self.queue(msg=b'')
        row, = self.read(
            self.postmaster, [part_ids(id_, 5)[-1]], ['name', 'data'])
        self.assertEqual([row['name'], row['data']], [None, None])

    def test_strangers(self):
        "Test nobody else reads the parts, whatever the context says"
        id_ = self.queue(msg=self.message())
        ids = part_ids(id_, 1)
        for session in self.strangers:
            for context in HOSTILE:
                for model, names in [
                        (ATTACHMENT, ['name']), (ATTACHMENT, ['data']),
                        (RECIPIENT, ['address', 'words'])]:
                    with self.subTest(
                            user=session.login, model=model, context=context):
                        with self.assertRaises(RPCError):
                            session.call(
                                model, 'read', ids, names, context=context)

    def test_sensitive(self):
        "Test nobody reads the parts of a sensitive email"
        id_ = self.queue(msg=self.message(), sensitive=True)
        ids = part_ids(id_, 2)
        for session in self.readers:
            for context in HOSTILE:
                with self.subTest(user=session.login, context=context):
                    email, = session.queue(
                        'read', [id_], ['attachments', 'html', 'text'],
                        context=context)
                    self.assertFalse(email['attachments'])
                    self.assertFalse(email['html'] or email['text'])
                    for part in ids:
                        row, = self.read(
                            session, [part], ['name', 'data'], context)
                        self.assertFalse(row['name'] or row['data'])

    def test_callable(self):
        "Test a client may only read the parts"
        id_ = self.queue(msg=self.message())
        ids = part_ids(id_, 1)
        for model in [ATTACHMENT, RECIPIENT]:
            for method, *params in [
                    ('create', [{}]), ('write', ids, {}), ('delete', ids),
                    ('copy', ids), ('search', [], 0, None, None),
                    ('search_read', [], 0, None, None, ['email']),
                    ('export_data', ids, ['email.msg']),
                    ]:
                with self.subTest(model=model, method=method):
                    with self.assertRaises(RPCError):
                        self.postmaster.call(model, method, *params)
            # A client cannot get at related records either
            row, = self.postmaster.call(
                model, 'read', ids, ['email', 'email.msg', 'email.rec_name'])
            self.assertEqual(row, {'id': ids[0], 'email': id_})
