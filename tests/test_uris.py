# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""No secret of a URI is shown, however broken the URI is."""
import unittest

from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from trytond.pool import Pool

from ..exceptions import EmailQueueError
from ..smtp import Client, server_name
from .test_smtp import Records
from .tools import QueueTestCase, configured

SECRET = 'hunter2s'
HOSTS = ['localhost', 'mail.example.com', '[::1]', '127.0.0.1']
REPEATABLE = settings(
    deadline=None, database=None, derandomize=True, max_examples=500,
    phases=[Phase.explicit, Phase.generate, Phase.shrink])

starts = st.sampled_from([
        'smtp://', 'smtps://', 'smtp+tls://', '//', 'smtp:', 'smtp:/',
        'smtp:///', 'SMTP://', ' smtp://', ':', '://', '', 'smtp//', '@//'])
broken = st.text(st.sampled_from('a1:/?#[]%&=;+. \t\n\\|"ü'), max_size=6)
ports = st.sampled_from(['', ':25', ':', ':99999999', ':x', ':-1'])
ends = st.sampled_from([
        '', '/', '?timeout=9', '/?timeout=9', '?local_hostname=a@b', '?',
        '#', '?timeout=9&local_hostname=a@b', f'?{SECRET}', f'?x={SECRET}@b',
        f'/{SECRET}', f'#{SECRET}@'])
secrets = st.builds('{}{}{}'.format, broken, st.just(SECRET), broken)
# If a host follows, a password may have an @
quoted = st.builds(
    '{}{}{}'.format, secrets, st.sampled_from(['', '@']), broken)
credentials = st.one_of(
    st.builds('user:{}'.format, quoted), st.builds('{}:pass'.format, quoted))
with_host = st.builds(
    '{}{}@{}{}{}'.format,
    starts, credentials, st.sampled_from(HOSTS), ports, ends)
without_host = st.builds(
    '{}user:{}{}{}{}'.format,
    starts, secrets, st.sampled_from(['', '@']), ports, ends)


class NameTestCase(unittest.TestCase):
    "Test the name of a server in texts for people"

    @REPEATABLE
    @given(st.one_of(with_host, without_host))
    @example(f'smtp://user:{SECRET}')
    @example(f'smtp:user://{SECRET}')
    @example(f'smtp://user:{SECRET}@localhost?local_hostname=a@b')
    def test_secret(self, uri):
        self.assertNotIn(SECRET, server_name(uri))
        with configured('email', uri=uri):
            self.assertNotIn(SECRET, server_name())
        self.assertNotIn(SECRET, repr(Client(uri)))

    @REPEATABLE
    @given(starts.filter(lambda s: s.endswith('p://')), credentials,
        st.sampled_from(HOSTS), st.sampled_from(['', ':25', ':465']),
        st.sampled_from(['', '/', '?timeout=9', '?local_hostname=a@b']))
    def test_host(self, start, credentials, host, port, end):
        "Test the host of a good URI is shown"
        self.assertEqual(
            server_name(f'{start}{credentials}@{host}{port}{end}'),
            host + port)


class RunTestCase(QueueTestCase):
    "Test everything that a run raises, writes and logs"

    def uris(self):
        here = self.server.uri.rpartition('/')[2]
        for start in ['smtp://', 'smtps://', '//', 'smtp:', '']:
            for end in ['', '/', '@', f'@{here}:x', '?timeout=1', '?']:
                yield f'{start}localhost:{SECRET}{end}'
        yield f'smtp://localhost:{SECRET}[@{here}'
        yield f'smtp://localhost:{SECRET}@{here}?{SECRET}'
        yield f'smtp://localhost:{SECRET}@{here}?timeout={SECRET}'

    def told(self, call):
        "Return the words of the error that a call raises"
        with self.assertRaises(EmailQueueError) as cm, self.transaction():
            call(Pool().get('email.queue'))
        return repr(cm.exception) + str(cm.exception.__cause__)

    def test_secret(self):
        for uri in self.uris():
            with self.subTest(uri), configured('email', uri=uri), \
                    Records() as records:
                self.clear()
                id_ = self.queue()
                told = self.told(lambda EmailQueue: EmailQueue.send_all())
                self.assertIn(server_name(), told)
                told += self.told(
                    lambda EmailQueue: EmailQueue(id_).send())
                self.run_cron()
                with self.transaction(readonly=True) as transaction:
                    cursor = transaction.connection.cursor()
                    cursor.execute('SELECT description FROM ir_error')
                    errors = cursor.fetchall()
                    self.assertTrue(errors)
                    told += repr(errors)
                    told += str(
                        Pool().get('email.queue.health').measure())
                told += repr(self.rows('error', 'state')) + records.text
                self.assertNotIn(SECRET, told)


del QueueTestCase


if __name__ == '__main__':
    unittest.main()
