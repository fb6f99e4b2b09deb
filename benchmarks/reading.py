#!/usr/bin/env python3
# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Time what clients and monitoring systems ask of a queue.

    reading.py DATABASE COUNT

The program prints the seconds of each query as JSON, a list for each kind:

list    the first rows of the list, as many as the client shows
tabs    the number of each tab, up to where the client stops counting
id      the email with a Message-ID
record  the emails about a record
text    the emails that the search box finds for an address
health  the numbers of the queue's health
"""
import json
import sys
import time
from xml.etree import ElementTree

from queueing import administrator

from trytond.pool import Pool
from trytond.pyson import PYSONDecoder
from trytond.transaction import Transaction

LIMIT = COUNT_LIMIT = 1000


class Reader:
    "The queries of a client, with the rights of its user"

    def __init__(self):
        pool = Pool()
        self.EmailQueue = pool.get('email.queue')
        self.Health = pool.get('email.queue.health')
        view = self.EmailQueue.fields_view_get(view_type='tree')
        self.names = sorted({
                field.get('name')
                for field in ElementTree.fromstring(view['arch']).iter('field')
                } | {'rec_name', 'resource.rec_name'})
        Domain = pool.get('ir.action.act_window.domain')
        self.domains = [
            PYSONDecoder().decode(domain.domain) if domain.domain else []
            for domain in Domain.search([
                    ('act_window.res_model', '=', 'email.queue'),
                    ('count', '=', True),
                    ])]
        # An email from the middle of the sent ones
        email, = self.EmailQueue.search(
            [('state', '=', 'sent')], order=[('id', 'ASC')],
            offset=500, limit=1)
        self.message_id, self.to_addrs = email.message_id, email.to_addrs
        # By SQL, because the ORM reads no reference to a missing record
        cursor = Transaction().connection.cursor()
        cursor.execute(
            'SELECT resource FROM email_queue WHERE id = %s', [email.id])
        self.resource, = cursor.fetchone()

    def _search_read(self, domain):
        rows = self.EmailQueue.search_read(
            domain, 0, LIMIT, None, self.names)
        assert len(rows) <= LIMIT
        return rows

    def list(self):
        assert len(self._search_read([])) == LIMIT

    def tabs(self):
        counts = [
            self.EmailQueue.search_count(domain, 0, COUNT_LIMIT)
            for domain in self.domains]
        assert max(counts) == COUNT_LIMIT

    def id(self):
        assert self._search_read([('message_id', '=', self.message_id)])

    def record(self):
        assert self._search_read([('resource', '=', self.resource)])

    def text(self):
        assert self._search_read([('rec_name', 'ilike', f'%{self.to_addrs}%')])

    def health(self):
        assert self.Health.measure().waiting


KINDS = ['list', 'tabs', 'id', 'record', 'text', 'health']


def main(database, count):
    Pool.start()
    Pool(database).init()
    user = administrator(database)
    times = {kind: [] for kind in KINDS}
    print('ready', flush=True)
    sys.stdin.readline()
    # The first round fills the caches
    for number in range(int(count) + 1):
        for kind in KINDS:
            with Transaction().start(
                    database, user, readonly=True,
                    context={'_check_access': True}):
                reader = Reader()
                started = time.perf_counter()
                getattr(reader, kind)()
                seconds = time.perf_counter() - started
            if number:
                times[kind].append(seconds)
    print(json.dumps(times))


if __name__ == '__main__':
    main(*sys.argv[1:])
