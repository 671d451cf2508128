"""The app, and the healthy clients."""

import contextlib
import select
import socket
import ssl
import threading
import time

from http2 import (ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, HOST, PING, PREFACE, RST_STREAM, SETTINGS,
                   WINDOW_UPDATE, block, frame, status)

LONG = memoryview(bytes(10_000_000))
PERIOD_S, PATIENCE_S = 0.1, 2
SMALL = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"
HEAD_OF_LONG = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LONG)


def app(listener):
    """Serves for ever: `/silent` reads and never responds, `/10m` has ten megabytes, anything else is small."""
    listener.setblocking(False)
    poll, clients = select.epoll(), {}
    poll.register(listener, select.EPOLLIN)
    while True:
        for number, event in poll.poll():
            if number != listener.fileno():
                client = clients[number]
                with contextlib.suppress(BlockingIOError):
                    try:
                        if client.happened(event):
                            poll.modify(number, select.EPOLLOUT if client.unsent else select.EPOLLIN)
                            continue
                    except (ConnectionError, TimeoutError):
                        pass
                    clients.pop(number).stream.close()
                continue
            with contextlib.suppress(BlockingIOError):
                while True:
                    stream = listener.accept()[0]
                    stream.setblocking(False)
                    # The app is outside of the cgroup, and its buffers aren't the subject.
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
                    clients[stream.fileno()] = Served(stream)
                    poll.register(stream, select.EPOLLIN)


class Served:
    """A connection of the app, which responds to one request after the other."""

    def __init__(self, stream):
        self.stream, self.read, self.unsent, self.body, self.silent = stream, b"", [], 0, False

    def happened(self, event):
        """False when it has ended."""
        if event & select.EPOLLOUT:
            sent = self.stream.send(self.unsent[0][: 1 << 17])
            self.unsent[0] = self.unsent[0][sent:]
            if not self.unsent[0]:
                self.unsent.pop(0)
            return True
        data = self.stream.recv(1 << 17)
        if self.silent:
            return bool(data)
        self.read += data
        while (end := self.read.find(b"\r\n\r\n")) >= 0:
            head, rest = self.read[:end].lower(), self.read[end + 4 :]
            length = [line[15:] for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
            if b"\r\ntransfer-encoding:" in head or head.startswith((b"get /silent", b"post /silent")):
                self.silent, self.read = True, b""
                return bool(data)
            length = int(length[0]) if length else 0
            if len(rest) < length:
                break
            self.read = rest[length:]
            self.unsent += [HEAD_OF_LONG, LONG] if head.startswith(b"get /10m") else [SMALL]
        return bool(data)


class Healthy:
    """Small requests every 100 ms: on new connections, on a kept one, and on a kept one of HTTP/2, each of them a
    thread."""

    def __init__(self, port, h2_port, tls):
        self.times, self.failures, self.ended, self.tls = [], [], threading.Event(), tls
        self.threads = [threading.Thread(target=self.run, args=(*what, f), daemon=True) for what, f in (
            (("new", port), one), (("kept", port), kept), (("HTTP/2", h2_port), Kept2()))]

    def run(self, kind, port, exchange):
        stream, number = None, 0
        while not self.ended.is_set():
            began, number = time.monotonic(), number + 1
            # Every second one on a kept connection has a small body.
            body = bytes(1000) if kind != "new" and number % 2 else b""
            try:
                stream, again = stream or self.connect(kind, port, began), stream is not None
                try:
                    status, stays = exchange(stream, body, began, not again)
                except ConnectionError:
                    # A kept connection may have been closed by now, as with every server: then a new one is used.
                    if not again:
                        raise
                    stream.close()
                    stream = self.connect(kind, port, began)
                    status, stays = exchange(stream, body, began, True)
                if status != "200":
                    raise ConnectionError(f"status {status}")
                if not stays:
                    stream.close()
                    stream = None
            except OSError as error:
                self.failures.append(f"{kind} {'POST' if body else 'GET'}: {error or type(error).__name__}")
                stream = stream.close() if stream else None
            self.times.append(time.monotonic() - began)
            self.ended.wait(max(0, PERIOD_S - self.times[-1]))

    def connect(self, kind, port, began):
        stream = socket.create_connection(("127.0.0.1", port), left(began))
        if self.tls:
            context = unverified()
            context.set_alpn_protocols(["h2" if kind == "HTTP/2" else "http/1.1"])
            stream = context.wrap_socket(stream, server_hostname=HOST)
        return stream

    def report(self):
        self.ended.set()
        for thread in self.threads:
            thread.join(PATIENCE_S + 1)
        return {"times": sorted(self.times), "failures": self.failures}


def unverified():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def left(began):
    rest = began + PATIENCE_S - time.monotonic()
    if rest <= 0:
        raise TimeoutError(f"no response within {PATIENCE_S} s")
    return rest


def receive(stream, began):
    stream.settimeout(left(began))
    try:
        data = stream.recv(65536)
    except TimeoutError:
        raise TimeoutError(f"no response within {PATIENCE_S} s") from None
    if not data:
        raise ConnectionError("closed without a response")
    return data


def kept(stream, body, began, _):
    """The status, and whether the connection can be kept."""
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    stream.settimeout(left(began))
    stream.sendall(f"{'POST' if body else 'GET'} / HTTP/1.1\r\nHost: {HOST}\r\n{length}\r\n".encode() + body)
    data = b""
    while b"\r\n\r\n" not in data or data[:12] == b"HTTP/1.1 200" and not data.endswith(b"\r\n\r\nok\n"):
        data += receive(stream, began)
    return data[9:12].decode("latin-1"), b"connection: close" not in data.lower()


def one(stream, body, began, new):
    return kept(stream, body, began, new)[0], False


class Kept2:
    """The same over HTTP/2. Grants the connection all the window there is when it begins."""

    def __call__(self, stream, body, began, new):
        out = b""
        if new:
            self.number, self.unread, self.last = 1, b"", "?"
            out = PREFACE + frame(SETTINGS, 0, 0, b"") + frame(WINDOW_UPDATE, 0, 0, (2**30).to_bytes(4, "big"))
        request = block(b"POST" if body else b"GET", b"/")
        out += frame(HEADERS, END_HEADERS | (0 if body else END_STREAM), self.number, request)
        out += frame(DATA, END_STREAM, self.number, body) if body else b""
        stream.settimeout(left(began))
        stream.sendall(out)
        stays, ended, self.number = True, False, self.number + 2
        while not ended:
            length = int.from_bytes(self.unread[:3], "big")
            if len(self.unread) < 9 or len(self.unread) < 9 + length:
                self.unread += receive(stream, began)
                continue
            kind, flags, payload = self.unread[3], self.unread[4], self.unread[9 : 9 + length]
            number, self.unread = int.from_bytes(self.unread[5:9], "big"), self.unread[9 + length :]
            if kind in (SETTINGS, PING) and not flags & ACK:
                stream.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
            elif kind == GOAWAY:
                stays = False
                if number_of(payload) < self.number - 2:
                    raise ConnectionResetError(f"GOAWAY {payload[4:]}")
            elif number == self.number - 2:
                if kind == RST_STREAM:
                    raise ConnectionRefusedError(f"stream reset with {number_of(payload)}")
                if kind == HEADERS:
                    self.last = status(payload, self.last)
                ended = kind in (DATA, HEADERS) and flags & END_STREAM
        return self.last, stays


def number_of(payload):
    return int.from_bytes(payload[:4], "big")


def healthy(port, h2_port, tls, pipe):
    """A process of its own: begins at once, and reports when it is asked to."""
    clients = Healthy(port, h2_port, tls)
    for thread in clients.threads:
        thread.start()
    pipe.recv()
    pipe.send(clients.report())
