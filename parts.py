# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What a form lists of one email: its recipients and its attachments.

These records are in no table. Their ids are made from the id of the email, and
their values are read from the email with the rights of the user.
"""
from trytond.i18n import gettext
from trytond.model import ModelStorage, ModelView, fields
from trytond.pool import Pool
from trytond.transaction import Transaction

from . import preview
from .exceptions import VALUE_LENGTH, ArgumentError
from .recipients import (
    address_of, remaining, split_addresses, split_lines, words_by_address)

# How many bits of an id are the number of the part. The bits above are the id
# of the email; a client in JavaScript has 53 bits for both.
BITS = 20
# Refused recipients come first, so that they are seen in a long list
ORDER = ['refused', 'bounced', 'waiting', 'unsent', 'accepted']


def part_ids(email, count):
    "Return the ids of ``count`` parts of an email, given by its id"
    return [(email << BITS) + n for n in range(min(count, 1 << BITS))]


class _Part(ModelStorage, ModelView):
    "Records about one email, which trytond computes and nobody writes"

    email = fields.Many2One('email.queue', "Email", readonly=True)

    @classmethod
    def __setup__(cls):
        super().__setup__()
        for name in set(cls.__rpc__) & {
                'create', 'write', 'copy', 'delete', 'search', 'search_count',
                'search_read', 'export_data', 'export_data_domain',
                'import_data', 'resources'}:
            cls.__rpc__.pop(name)

    @classmethod
    def search(cls, domain, *args, **keywords):
        "Return nothing, because the records are found by their email only"
        return 0 if keywords.get('count') else []

    @classmethod
    def read(cls, ids, fields_names):
        numbers = {}
        for id_ in ids:
            numbers.setdefault(id_ >> BITS, []).append(id_ % (1 << BITS))
        rows = {}
        # One email after another, so that only one message is in memory
        for email, of_email in numbers.items():
            values = cls._read_parts(email, of_email, fields_names)
            for number, row in zip(of_email, values):
                id_ = (email << BITS) + number
                row.update(id=id_, email=email)
                rows[id_] = {
                    name: row.get(name)
                    for name in ['id', *fields_names] if '.' not in name}
        return [rows[id_] for id_ in ids]

    @classmethod
    def _read_parts(cls, email, numbers, names):
        """Return the values of the numbered parts of an email.

        :raises AccessError: the user may not read the email.
        """
        raise NotImplementedError


class Recipient(_Part):
    __name__ = 'email.queue.recipient'
    _rec_name = 'address'

    address = fields.Char("Address", readonly=True)
    state = fields.Selection([
            ('waiting', "Waiting"),
            ('accepted', "Accepted"),
            ('refused', "Refused"),
            ('bounced', "Bounced"),
            ('unsent', "Not Sent"),
            ], "State", sort=False, readonly=True)
    words = fields.Char(
        "Answer", readonly=True, help="What the server said of the address.")

    @classmethod
    def _read_parts(cls, email, numbers, names):
        EmailQueue = Pool().get('email.queue')
        row, = EmailQueue.read([email], [
                'to_addrs', 'accepted', 'refused', 'error', 'state'])
        found = _recipients(row, cls._bounced(email))
        if 'state:string' in names:
            states = dict(cls.fields_get(['state'])['state']['selection'])
            for part in found:
                part['state:string'] = states[part['state']]
        return [found[n] if n < len(found) else {} for n in numbers]

    @classmethod
    def _bounced(cls, email):
        Event = Pool().get('email.queue.event')
        events = Event.search([
                ('email', '=', email), ('kind', '=', 'bounced')])
        return {
            address_of(line) for event in events
            for line in split_lines(event.recipients)}


def _recipients(row, bounced):
    "Return address, state and words of each recipient, in ``ORDER``"
    addresses = split_addresses(row['to_addrs'])
    waiting = {*remaining(row['to_addrs'], row['accepted'], row['refused'])}
    words = words_by_address(row['error'], addresses)
    refused = words_by_address(row['refused'], addresses)
    if len(addresses) == 1 and waiting and row['state'] != 'sent':
        words.setdefault(addresses[0], row['error'])
    of_waiting = {
        'outbox': 'waiting', 'sending': 'waiting', 'sent': 'accepted'}.get(
            row['state'], 'unsent')
    accepted = {*split_lines(row['accepted'])}
    found = []
    for address in addresses:
        if address in waiting:
            state = of_waiting
        elif address in accepted:
            state = 'accepted'
        else:
            state = 'bounced' if address in bounced else 'refused'
        answer = refused.get(address) or words.get(address) or ''
        found.append({
                'address': address, 'rec_name': address, 'state': state,
                'words': ' '.join(answer.split())
                if state != 'accepted' else None})
    return sorted(found, key=lambda part: ORDER.index(part['state']))


class Attachment(_Part):
    __name__ = 'email.queue.attachment'

    name = fields.Char("Name", readonly=True)
    type = fields.Char("Type", readonly=True)
    data = fields.Binary("File", filename='name', readonly=True)

    @classmethod
    def read(cls, ids, fields_names):
        # A client opens one attachment, and asks for the sizes of the others
        if ('data' in fields_names and len(ids) > 1
                and Transaction().check_access and not cls._only_size()):
            raise ArgumentError(
                gettext('email_queue.msg_one_attachment'), 'ids',
                str(ids)[:VALUE_LENGTH])
        return super().read(ids, fields_names)

    @classmethod
    def _only_size(cls):
        return Transaction().context.get(f'{cls.__name__}.data') == 'size'

    @classmethod
    def _read_parts(cls, email, numbers, names):
        EmailQueue = Pool().get('email.queue')
        # The client may ask for the size of ``msg`` instead of its bytes
        with Transaction().set_context({f'{EmailQueue.__name__}.msg': None}):
            row, = EmailQueue.read([email], ['msg'])
        found = preview.attached(row['msg'] or b'')
        rows = []
        for number in numbers:
            if number >= len(found):
                rows.append({})
                continue
            part, data = found[number], None
            if 'data' in names:
                data = part.body
                data = (len(data) if cls._only_size()
                    else fields.Binary.cast(data))
            name = part.file_name(number + 1)
            rows.append({
                    'name': name, 'rec_name': name, 'type': part.type,
                    'data': data})
        return rows
