#!/usr/bin/env python3
# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""A TCP proxy that delays what it passes on, as a distant server would.

    proxy.py PORT SERVER-PORT SECONDS

Data takes SECONDS in each direction, however much is under way at the same
time. Connecting takes no longer than without the proxy.
"""
import collections
import select
import socket
import sys
import time

CHUNK_SIZE = 64 * 1024


class Proxy:

    def __init__(self, port, server_port, seconds):
        self.server = ('127.0.0.1', server_port)
        self.seconds = seconds
        self.listener = socket.create_server(('127.0.0.1', port))
        self.reading = [self.listener]
        self.peers = {}
        self.ended = set()
        # A queue is enough, because the delay is constant, so that data is due
        # in the order in which it has come
        self.under_way = collections.deque()
        # The data that a socket does not take at the moment
        self.stuck = {}

    def run(self):
        while True:
            timeout = None
            if self.under_way:
                due, *_ = self.under_way[0]
                timeout = max(due - time.monotonic(), 0)
            # epoll would round the time-out up to whole milliseconds
            readable, writable, _ = select.select(
                self.reading, list(self.stuck), [], timeout)
            for sock in readable:
                if sock is self.listener:
                    self.accept()
                else:
                    self.read(sock)
            for sock in writable:
                self.write(sock, self.stuck.pop(sock, b''))
            while self.under_way and self.under_way[0][0] <= time.monotonic():
                _, sock, data = self.under_way.popleft()
                self.arrive(sock, data)

    def accept(self):
        client, _ = self.listener.accept()
        server = socket.create_connection(self.server)
        for sock, peer in [(client, server), (server, client)]:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.reading.append(sock)
            self.peers[sock] = peer

    def read(self, sock):
        try:
            data = sock.recv(CHUNK_SIZE)
        except OSError:
            data = b''
        if not data:
            self.reading.remove(sock)
        self.under_way.append(
            (time.monotonic() + self.seconds, self.peers[sock], data))

    def arrive(self, sock, data):
        if not data:
            self.end(self.peers[sock])
        elif sock in self.stuck:
            self.stuck[sock] += data
        else:
            self.write(sock, data)

    def write(self, sock, data):
        try:
            sent = sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            # The next read from the socket reports the error
            return
        if sent < len(data):
            self.stuck[sock] = data[sent:]

    def end(self, sock):
        "Pass on that nothing more comes from the socket"
        peer = self.peers[sock]
        if peer in self.stuck:
            # Not before the data that is on its way
            self.under_way.append(
                (time.monotonic() + self.seconds, peer, b''))
            return
        try:
            peer.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        self.ended.add(sock)
        if peer in self.ended:
            for socket_ in [sock, peer]:
                self.ended.remove(socket_)
                del self.peers[socket_]
                socket_.close()


if __name__ == '__main__':
    port, server_port, seconds = sys.argv[1:]
    proxy = Proxy(int(port), int(server_port), float(seconds))
    print('ready', flush=True)
    proxy.run()
