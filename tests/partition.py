# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""A wire to a server of 127.0.0.1 that can be cut, as a network can be.

While the wire is cut, nothing passes in either direction, and neither end is
told.
"""
import selectors
import socket
import threading
import time

__all__ = ['Wire']


class Wire:
    """A TCP proxy until the end of the with block.

    :param server_port: the port that it passes connections on to.
    """

    def __init__(self, server_port):
        self._server = ('127.0.0.1', server_port)
        self._selector = selectors.DefaultSelector()
        self._lock = threading.RLock()
        self._peers = {}
        # The sockets to the server, which does not learn that the client is
        # gone
        self._lost = []
        self._is_cut = self._is_over = False

    def __enter__(self):
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.port = self._listener.getsockname()[1]
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *args):
        self._is_over = True
        self._thread.join()
        for sock in [self._listener, *self._peers, *self._lost]:
            sock.close()

    def cut(self):
        with self._lock:
            self._is_cut = True

    def mend(self):
        with self._lock:
            self._is_cut = False

    def drop_clients(self):
        "Close the connections of the clients, while the server learns nothing"
        with self._lock:
            for client in list(filter(self._is_client, self._peers)):
                self._lost.append(self._peers[client])
                self._forget(client)
                client.close()

    def _is_client(self, sock):
        return sock.getsockname()[1] == self.port

    def _forget(self, sock):
        for end in [sock, self._peers[sock]]:
            self._selector.unregister(end)
            del self._peers[end]

    def _run(self):
        while not self._is_over:
            if self._is_cut:
                time.sleep(.01)
                continue
            for key, _ in self._selector.select(.05):
                with self._lock:
                    sock = key.fileobj
                    if not self._is_cut and (
                            sock is self._listener or sock in self._peers):
                        self._pass_on(sock)

    def _pass_on(self, sock):
        if sock is self._listener:
            client, _ = sock.accept()
            server = socket.create_connection(self._server)
            for one, other in [(client, server), (server, client)]:
                self._peers[one] = other
                self._selector.register(one, selectors.EVENT_READ)
            return
        try:
            data = sock.recv(64 * 1024)
            self._peers[sock].sendall(data)
        except OSError:
            data = b''
        if not data:
            peer = self._peers[sock]
            self._forget(sock)
            for end in [sock, peer]:
                end.close()
