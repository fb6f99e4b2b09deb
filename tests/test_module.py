# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
from trytond.tests.test_tryton import ModuleTestCase, with_transaction


class EmailQueueModuleTestCase(ModuleTestCase):
    "Test Email Queue module"
    module = 'email_queue'
    extras = ['inbound_email', 'party', 'web_user']

    @with_transaction(user=0)
    def test_wizards(self):
        # In 8.0 the groups of a wizard hold for administrators, too
        super().test_wizards.__wrapped__(self)


del ModuleTestCase
