# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What the sender of a document sees of its emails."""
from trytond.pool import Pool
from trytond.pyson import PYSONDecoder

from .. import sendmail
from .jsonrpc import STATES, RPCError, RPCTestCase
from .test_client import statements

DELIVERIES = {
    'outbox': 'waiting',
    'sending': 'waiting',
    'sent': 'sent',
    'failed': 'failed',
    'cancelled': 'cancelled',
    }
BCC = 'boss@example.net'


class DocumentTestCase(RPCTestCase):
    "Test the delivery of archived emails"

    def setUp(self):
        super().setUp()
        self.addCleanup(self.clear_archive)
        self.number = 0

    def clear_archive(self):
        with self.transaction() as transaction:
            transaction.connection.cursor().execute('DELETE FROM ir_email')

    def archive(
            self, user=None, to='jane@example.com', bcc=None, resource=None,
            **values):
        "Return the ids of an archived email of a user and of its queued email"
        self.number += 1
        message_id = f'<{self.number}@example.com>'
        user = self.clerk.id if user is None else user
        with self.transaction(user):
            Email = Pool().get('ir.email')
            email, = Email.create([{
                        'recipients': to,
                        'recipients_hidden': bcc,
                        'subject': "Order",
                        'message_id': message_id,
                        'resource': resource or f'res.user,{self.clerk.id}',
                        }])
        queued = self.queue(
            to_addrs=', '.join(filter(None, [to, bcc])),
            msg=f'Message-ID: {message_id}\r\nSubject: Order\r\n'.encode())
        self.write(queued, **values)
        return email.id, queued

    def delivery(self, session, id_):
        email, = session.call(
            'ir.email', 'read', [id_],
            ['delivery', 'delivery:string', 'delivery_error'])
        return email['delivery'], email['delivery_error']

    def test_states(self):
        "Test each state, and an email that was not queued"
        for state in STATES:
            id_, _ = self.archive(state=state)
            with self.subTest(state=state):
                self.assertEqual(
                    self.delivery(self.clerk, id_), (DELIVERIES[state], None))
        id_, queued = self.archive()
        with self.transaction():
            EmailQueue = Pool().get('email.queue')
            EmailQueue.delete([EmailQueue(queued)])
        self.assertEqual(self.delivery(self.clerk, id_), (None, None))

    def test_without_message_id(self):
        "Test an archived email without Message-ID"
        self.queue(msg=b'Subject: Test\r\n\r\n')
        with self.transaction():
            email, = Pool().get('ir.email').create([{
                        'resource': f'res.user,{self.clerk.id}',
                        }])
        self.assertEqual(self.delivery(self.clerk, email.id), (None, None))

    def test_error(self):
        "Test the words of the server are shown"
        id_, _ = self.archive(
            state='failed', reason='refused', error="550 no such user")
        self.assertEqual(
            self.delivery(self.clerk, id_),
            ('failed', "Refused: 550 no such user"))

    def test_one_query(self):
        "Test one query finds the deliveries of a list"
        ids = [self.archive()[0] for _ in range(10)]
        with statements(self) as executed:
            emails = self.clerk.call(
                'ir.email', 'read', ids, ['delivery', 'delivery_error'])
        self.assertEqual({e['delivery'] for e in emails}, {'waiting'})
        self.assertEqual(
            len([s for s in executed if '"email_queue"' in s]), 1)

    def test_access(self):
        "Test a user who may not read an email does not read its delivery"
        with self.transaction():
            Search = Pool().get('ir.ui.view_search')
            record, = Search.create([{
                        'name': "Test",
                        'model': 'res.user',
                        'domain': '[]',
                        }])
        id_, queued = self.archive(resource=str(record))
        with self.assertRaises(RPCError):
            self.delivery(self.clerk, id_)

    def test_hidden(self):
        "Test hidden recipients are shown only to the author and the group"
        error = f"{BCC} 550 5.1.1 <{BCC}>: boss is unknown"
        values = {
            'bcc': BCC, 'state': 'failed', 'reason': 'gave_up',
            'error': error, 'accepted': 'jane@example.com'}
        theirs, mine = [
            self.archive(user=user, **values)[0] for user in [1, None]]
        what = "Given up, delivered to 1 of 2 recipients: "
        for session in self.readers:
            for id_ in [theirs, mine]:
                self.assertEqual(
                    self.delivery(session, id_), ('failed', what + error))
        self.assertEqual(
            self.delivery(self.clerk, mine), ('failed', what + error))
        self.assertEqual(
            self.delivery(self.clerk, theirs),
            ('failed', f"{what}a hidden recipient 550 5.1.1"))

    def test_views(self):
        "Test the list and the form show the delivery"
        for type_ in ['tree', 'form']:
            view = self.clerk.call('ir.email', 'fields_view_get', None, type_)
            self.assertIn('name="delivery"', view['arch'])

    def test_relate(self):
        "Test the group can open the queued emails of any record"
        resource = f'res.user,{self.clerk.id}'
        id_ = self.queue(resource=resource)
        self.queue(resource=f'res.user,{self.postmaster.id}')
        self.queue()
        for session in self.sessions:
            # The cache takes an administrator without groups for any user
            with self.transaction():
                pool = Pool()
                pool.get('ir.action.keyword')._get_keyword_cache.clear()
                pool.get('res.user')._view_toolbar_get_cache.clear()
            with self.subTest(user=session.login):
                relates = {
                    action['name']: action for action in session.call(
                        'res.user', 'view_toolbar_get')['relate']}
                if session not in self.readers:
                    self.assertNotIn("Queued Emails", relates)
                    continue
                action = relates["Queued Emails"]
                self.assertEqual(action['res_model'], 'email.queue')
                for ids in [
                        [self.clerk.id], [self.clerk.id, 999_999]]:
                    domain = PYSONDecoder({
                            'active_model': 'res.user',
                            'active_id': ids[0],
                            'active_ids': ids,
                            }).decode(action['pyson_domain'])
                    self.assertEqual(
                        session.queue('search', domain, 0, None, None),
                        [id_])

    def test_deleted(self):
        "Test the email of a deleted record remains"
        with self.transaction():
            Lang = Pool().get('ir.lang')
            lang, = Lang.create([{'name': "Test", 'code': 'xx'}])
            reference = str(lang)
        id_ = self.queue(resource=reference)
        with self.transaction():
            Lang.delete([Lang(lang.id)])
        email, = self.postmaster.queue(
            'read', [id_], ['resource', 'resource.rec_name', 'state'])
        self.assertEqual(email['resource'], None)
        self.assertEqual(email['state'], 'outbox')
        self.send_all()
        self.assertEqual(self.read(id_, 'state'), 'sent')

    def test_captured(self):
        "Test an email that a user sends shows its delivery"
        self.addCleanup(sendmail.capture())
        with self.transaction(self.clerk.id):
            email = Pool().get('ir.email').send(
                to='rcpt-550@example.com', subject="Order", body="Hello",
                record=['res.user', self.clerk.id])
            id_ = email.id
        self.assertEqual(self.delivery(self.clerk, id_), ('waiting', None))
        self.send_all()
        state, error = self.delivery(self.clerk, id_)
        self.assertEqual(state, 'failed')
        self.assertIn('550', error)
