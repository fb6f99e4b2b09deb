# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Sessions over JSON-RPC, as Tryton's clients have them."""
import base64
import gzip
import json
from http import HTTPStatus
from unittest.mock import patch
from urllib.parse import quote

from pwdlib.hashers.argon2 import Argon2Hasher
from werkzeug.test import Client

from trytond.modules.email_queue.email_queue import EmailQueue
from trytond.pool import Pool
from trytond.protocols.jsonrpc import JSONDecoder, JSONEncoder
from trytond.protocols.wrappers import Response
from trytond.res.user import PASSWORD_HASH
from trytond.tests.test_tryton import DB_NAME
from trytond.transaction import Transaction
from trytond.wsgi import app

from .tools import QueueTestCase

PASSWORD = 'correct horse battery'
STATES = [s for s, _ in EmailQueue.state.selection]


class RPCError(Exception):
    "The error in an answer: its name, and what the client shows"

    @property
    def name(self):
        return self.args[0]


class Session:
    "The session of a user who is logged in"

    def __init__(self, login):
        self.login = login
        self._client = Client(app, Response)
        self._headers = {'Accept-Encoding': 'gzip'}
        self.id, token, *_ = self(
            'common.db.login', login, {'password': PASSWORD})
        token = base64.b64encode(f'{login}:{self.id}:{token}'.encode())
        self._headers['Authorization'] = f'Session {token.decode()}'

    def __call__(self, method, *params):
        "Call a method, such as ``model.MODEL.METHOD``, and return its result"
        response = self._client.post(
            f'/{quote(DB_NAME)}/rpc/',
            headers=self._headers,
            content_type='application/json',
            data=json.dumps(
                {'id': 1, 'method': method, 'params': params},
                cls=JSONEncoder))
        if response.status_code != HTTPStatus.OK:
            raise RPCError(HTTPStatus(response.status_code).name)
        data = response.data
        if data.startswith(b'\x1f\x8b'):
            data = gzip.decompress(data)
        answer = json.loads(data, object_hook=JSONDecoder())
        if 'error' in answer:
            name, *details = answer['error']
            raise RPCError(name, *details)
        return answer['result']

    def call(self, model, method, *params, context=None):
        return self(f'model.{model}.{method}', *params, context or {})

    def queue(self, method, *params, context=None):
        return self.call('email.queue', method, *params, context=context)


class RPCTestCase(QueueTestCase):
    """Tests with three users, each of whom has a session.

    ``administrator`` has all rights that Tryton itself gives, ``postmaster``
    is in the group of the module, ``clerk`` is in no group.
    """

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # A quick hash, because six hashes of the usual kind take half a second
        quick = Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1)
        cls.enter(patch.multiple(
                PASSWORD_HASH, hashers=[quick], current_hasher=quick))
        with Transaction().start(DB_NAME, 0):
            pool = Pool()
            User = pool.get('res.user')
            ModelData = pool.get('ir.model.data')
            group = ModelData.get_id('email_queue.group_email_queue')
            # Only in 8.2 administrators pass the access rights of every model
            cls.has_bypass = 'administrator' in User._fields
            for login, groups in [
                    ('admin', None), ('postmaster', [group]), ('clerk', [])]:
                values = {'password': PASSWORD}
                if groups is not None:
                    values['groups'] = [('add', groups)]
                if users := User.search([('login', '=', login)]):
                    User.write(users, values)
                else:
                    User.create([{'name': login, 'login': login, **values}])
        cls.administrator = Session('admin')
        cls.postmaster = Session('postmaster')
        cls.clerk = Session('clerk')
        cls.sessions = [cls.administrator, cls.postmaster, cls.clerk]

    @property
    def readers(self):
        if self.has_bypass:
            return [self.administrator, self.postmaster]
        return [self.postmaster]

    @property
    def strangers(self):
        return [s for s in self.sessions if s not in self.readers]

    def queue_each_state(self):
        "Queue an email for each state and return the ids by the state"
        ids = {}
        for state in STATES:
            ids[state] = self.queue(
                msg=b'Subject: Reset\r\n\r\nYour secret is 42.\r\n')
            if state != 'outbox':
                self.write(ids[state], state=state)
        return ids
