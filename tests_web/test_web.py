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
                # The server refuses it once
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
                self.assertIn('no such user', browser.values['error'])
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

    def order(self, customer):
        msg = EmailMessage()
        msg['From'] = "The Shop <shop@example.com>"
        msg['To'] = customer
        msg['Subject'] = "Your order"
        msg.set_content("Thank you for your order.")
        Pool().get('email.queue').queue_message(msg)
