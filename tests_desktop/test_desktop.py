# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What a user does in the desktop client."""
import unittest
from email.message import EmailMessage

from trytond.modules.email_queue.tests_desktop.desktopclient import (
    Desktop, Site)
from trytond.pool import Pool

# The part of the screen without the menu
LIST_WIDTH = 1366 - 320
PDF = b'%PDF-1.7 invoice'


class DesktopTestCase(unittest.TestCase):
    "Test the desktop client"

    @classmethod
    def setUpClass(cls):
        cls.site = Site()
        cls.enterClassContext(cls.site)
        with cls.site.transaction():
            for to in ['alice', 'rcpt-550x1-5.1.1-no-such-user']:
                cls.queue(f'{to}@example.com')
        cls.site.run_job()

    def test_retry(self):
        "Test reading an email that failed and sending it again"
        with Desktop(self.site) as desktop:
            desktop.menu('Administration', 'Email Queue')
            desktop.tab("Needs Attention")
            widths = dict(desktop.columns())
            self.assertLess(sum(widths.values()), LIST_WIDTH)
            desktop.open("Your order")
            desktop.wait_for(state='failed')
            desktop.find('no such user')
            desktop.tab("Message")
            desktop.find("Thank you")
            desktop.open_attachment('invoice.pdf')
            desktop.wait(
                lambda: [p.read_bytes() for p in desktop.opened.iterdir()]
                == [PDF], "file")

            desktop.click("Retry")
            desktop.click("Yes")
            desktop.wait_for(state='outbox')
            self.site.run_job()
            desktop.tool('reload')
            desktop.wait_for(state='sent')
            # Rounded values must not be taken for a change
            desktop.close()
            self.assertEqual(desktop.problems, [])

    def test_activity(self):
        "Test the activity as list and graph, and the test email"
        with Desktop(self.site) as desktop:
            for name in ['Hour', 'Day']:
                desktop.menu(
                    'Administration', 'Email Queue',
                    f'Email Activity by {name}')
                desktop.wait(lambda: desktop.count(), "row")
                desktop.tool('switch')
                desktop.wait_until_settled()
            desktop.menu(
                'Administration', 'Email Queue', 'Queue a Test Email')
            desktop.wait(lambda: 'to_addr' in desktop.values(), "form")
            desktop.wait_until_settled()
            self.assertEqual(desktop.hidden(), 0)
            desktop.click("Queue")
            desktop.wait_for(to_addrs='admin@example.com')
            self.assertEqual(desktop.problems, [])

    def test_erase_address(self):
        "Test the windows of an erasure show all of their texts"
        with self.site.transaction():
            self.queue('bob@example.com')
        with Desktop(self.site) as desktop:
            desktop.menu('Administration', 'Email Queue', 'Erase Address')
            desktop.enter('address', 'bob@example.com')
            desktop.wait_until_settled()
            self.assertEqual(desktop.hidden(), 0)
            desktop.click("Count")
            desktop.wait_for(deleted='1', address='bob@example.com')
            desktop.wait_until_settled()
            self.assertEqual(desktop.hidden(), 0)
            desktop.click("Erase")
            desktop.wait(
                lambda: 'warning' not in desktop.values(), "result")
            desktop.wait_until_settled()
            self.assertEqual(desktop.hidden(), 0)
            desktop.wait_for(deleted='1')
            desktop.click("Close")
            self.assertEqual(desktop.problems, [])

    @staticmethod
    def queue(to):
        msg = EmailMessage()
        msg['From'] = 'shop@example.com'
        msg['To'] = to
        msg['Subject'] = "Your order"
        msg.set_content("Plain")
        msg.add_alternative(
            "<p>Thank <b>you</b>, <i>see</i> <a href=x>us</a></p>",
            subtype='html')
        msg.add_attachment(
            PDF, maintype='application', subtype='pdf',
            filename='invoice.pdf')
        Pool().get('email.queue').queue_message(msg)
