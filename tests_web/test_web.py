# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What a user does in the web client."""
import unittest
from email.message import EmailMessage

from trytond.modules.email_queue.tests_web.webclient import Browser, Site
from trytond.pool import Pool


class WebTestCase(unittest.TestCase):
    "Test the web client"

    def test_retry(self):
        "Test reading an email that failed and sending it again"
        with Site() as site:
            with site.transaction():
                # The server refuses the email once
                for to in ['alice', 'rcpt-550x1-5.1.1-no-such-user']:
                    self.order(f'{to}@example.com')
            site.run_job()
            self.assertEqual(len(site.smtp.received), 1)

            with Browser(site.url) as browser:
                browser.login()
                browser.open_menu('Administration', 'Email Queue')
                browser.open_tab('Failed')
                browser.open_row("Your order")
                browser.wait_for(state="Failed")
                self.assertIn('no such user', browser.values['outcome'])
                browser.open_tab('Message')
                self.assertIn("Thank you", ''.join(browser.values.values()))

                browser.click('.form button', "Retry")
                browser.click('.modal button', "OK")
                browser.wait_for(state="Outbox")
                site.run_job()
                browser.click('#reload')
                browser.wait_for(state="Sent")
                self.assertEqual(browser.errors, [])

            self.assertEqual(len(site.smtp.received), 2)
            self.assertEqual(site.smtp.violations, [])

    def test_send_now_and_cancel(self):
        "Test several emails of the list, and what the tabs count"
        with Site() as site:
            with site.transaction():
                for to in ['alice', 'bob', 'carol']:
                    self.order(f'{to}@example.com')
            with Browser(site.url) as browser:
                browser.login()
                browser.open_menu('Administration', 'Email Queue')
                browser.find('.nav-tabs a', "Outbox 3")
                browser.open_tab("Outbox")
                browser.select_row("alice@example.com")
                browser.click('.tree-container button', "Cancel")
                browser.click('.modal button', "OK")
                browser.find('.tree-container button', "Retry")
                browser.click('#reload')
                browser.find('.nav-tabs a', "Outbox 2")
                browser.open_tab("Cancelled")
                browser.find('.tree tbody .widget', "alice@example.com")
                browser.open_tab("Outbox")
                browser.select_row("bob@example.com")
                browser.select_row("carol@example.com")
                browser.click('.tree-container button', "Send Now")
                # The client asks before several emails are changed
                browser.click('.modal button', "Yes")
                browser.wait_until_idle()
                browser.open_row("bob@example.com")
                browser.open_tab("Other")
                browser.wait_for(priority="Urgent")
                self.assertEqual(browser.errors, [])
            site.run_job()
            self.assertEqual(
                sorted(m.to_addrs for m in site.smtp.received),
                [('bob@example.com',), ('carol@example.com',)])

    def test_activity(self):
        "Test the activity as list and graph, and the test email"
        with Site() as site:
            with Browser(site.url) as browser:
                browser.login()
                browser.open_menu('Administration', 'Email Queue')
                # There is no email yet
                browser.open_menu('Queue a Test Email')
                browser.click('.modal button', "Queue")
                browser.wait_for(to_addrs='admin@example.com')
                site.run_job()
                for name in ['Hour', 'Day']:
                    browser.open_menu(f'Email Activity by {name}')
                    browser.find('.tree tbody .widget', "1")
                    browser.switch_view()
                    browser.find('.graph')
                self.assertEqual(browser.errors, [])

    def test_document(self):
        "Test the sender of a document sees what became of its email"
        with Site() as site:
            user = site.create_user('clara')
            with site.transaction(user):
                self.order('rcpt-550-5.1.1-no-such-user@example.com', user)
            site.run_job()
            with Browser(site.url) as browser:
                browser.login('clara')
                browser.click('.notification-badge')
                browser.click('.notification-label', "Email not delivered")
                browser.wait_for(state="Failed")
                self.assertIn('no such user', browser.values['error'])
                self.assertEqual(browser.errors, [])

    def test_erase_address(self):
        "Test what the documentation says of a legal request"
        with Site() as site:
            with site.transaction():
                for to in ['alice', 'bob']:
                    self.order(f'{to}@example.com')
            with Browser(site.url) as browser:
                browser.login()
                browser.open_menu('Administration', 'Email Queue')
                browser.open_tab("Outbox")
                browser.select_row("alice@example.com")
                browser.open_action("Erase Address")
                browser.type('.modal [name=address]', 'alice@example.com')
                browser.click('.modal button', "Count")
                browser.wait_until_idle()
                browser.wait_for(deleted='1', changed='0', busy='0')
                browser.click('.modal button', "Erase")
                browser.wait_until_idle()
                browser.wait_for(deleted='1', changed='0', busy='0')
                browser.click('.modal button', "Close")
                browser.click('#reload')
                browser.find('.nav-tabs a', "Outbox 1")
                browser.find('.tree tbody .widget', "bob@example.com")
                self.assertEqual(browser.errors, [])

    def test_copy(self):
        "Test what the documentation says of a copy of the database"
        with Site() as site:
            with site.transaction():
                self.order('alice@example.com')
            site.run_job()
            with site.transaction() as transaction:
                self.order('bob@example.com')
                cursor = transaction.connection.cursor()
                cursor.execute(
                    "UPDATE email_queue_identity SET identity = 'original'")
            site.run_job()
            with Browser(site.url) as browser:
                browser.login()
                browser.open_menu('Administration', 'Email Queue')
                browser.open_tab("Outbox")
                browser.select_row("bob@example.com")
                browser.open_action("Emails of a Copied Database")
                browser.wait_for(waiting='1', sent_from='original')
                browser.click('.modal button', "Cancel Them")
                browser.open_tab("Cancelled")
                browser.find('.tree tbody .widget', "bob@example.com")
                self.assertEqual(browser.errors, [])
            site.run_job()
            self.assertEqual(len(site.smtp.received), 1)

    def order(self, customer, user=None):
        msg = EmailMessage()
        msg['From'] = "The Shop <shop@example.com>"
        msg['To'] = customer
        msg['Subject'] = "Your order"
        msg.set_content("Thank you for your order.")
        email, = Pool().get('email.queue').queue_message(msg)
        if user:
            Email = Pool().get('ir.email')
            Email.create([{
                        'message_id': email.message_id,
                        'recipients': customer,
                        'resource': f'res.user,{user}',
                        }])
