"""The attackers: one process with an event loop, so that they need little of the machine themselves.

None of them does anything that a slow client on a bad line doesn't do. Each keeps its connection for as long as the
server lets it, and comes back a second after it was cut, as often as there are connections in all.
"""

import collections
import errno
import os
import resource
import select
import socket
import ssl
import time

from http2 import (ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, HOST, MOST, PING, PREFACE,
                   RST_STREAM, SETTINGS, WINDOW_UPDATE, block, frame, status)
from peers import unverified

UPLOAD, SENT_OF_UPLOAD = 1_000_000, 900_000
RAMP_S, AGAIN_S = 3, 1
SOURCES = 16  # addresses 127.0.0.2 and on, so that there are ports enough
PIECE = 1 << 16
ZEROS = bytes(SENT_OF_UPLOAD)


def head(line, size, *fields):
    """The head of a request, filled up to `size` bytes, without the empty line at its end."""
    text = "\r\n".join([f"{line} HTTP/1.1", f"Host: {HOST}", *fields]) + "\r\n"
    while (missing := size - len(text)) > 20:
        name = f"X-Filler-{len(text)}: "
        text += name + "a" * max(0, min(4000, missing) - len(name) - 2) + "\r\n"
    return text.encode()


class Http1:
    """Sends `sent`, and reads at most `reads` bytes."""

    def __init__(self, sent, reads=None):
        self.sent, self.reads, self.start = memoryview(sent), reads, b""

    def begin(self):
        return [self.sent]

    def received(self, data, outcomes):
        if self.reads is not None:
            self.reads -= len(data)
        if len(self.start) < 12:
            self.start += data[:12]
            if len(self.start) >= 12 and self.start.startswith(b"HTTP/1."):
                outcomes[self.start[9:12].decode("latin-1")] += 1
        return []

    def wants_more(self):
        return self.reads is None or self.reads > 0

    def got_response(self):
        return self.start.startswith(b"HTTP/1.")


class Http2:
    """Opens as many streams as it is let, with `head`, each with `upload` bytes of a body that doesn't end."""

    def __init__(self, head, upload=0, window=65535, reads=None, streams=100):
        self.head, self.upload, self.window, self.reads, self.streams = head, upload, window, reads, streams
        self.read, self.next, self.open, self.opened = b"", 1, {}, 0
        self.room, self.initial, self.most = 65535, 65535, 0
        self.status = "?"

    def begin(self):
        initial_window = (4).to_bytes(2, "big") + self.window.to_bytes(4, "big")
        grant = frame(WINDOW_UPDATE, 0, 0, (MOST - 65535).to_bytes(4, "big")) if self.window else b""
        return [PREFACE + frame(SETTINGS, 0, 0, initial_window) + grant]

    def wants_more(self):
        return self.reads is None or self.reads > 0

    def got_response(self):
        return False  # not all of them

    def received(self, data, outcomes):
        if self.reads is not None:
            self.reads -= len(data)
        self.read, out, at = self.read + data, [], 0
        while len(self.read) - at >= 9:
            length = int.from_bytes(self.read[at : at + 3], "big")
            if len(self.read) - at - 9 < length:
                break
            kind, flags = self.read[at + 3 : at + 5]
            stream = int.from_bytes(self.read[at + 5 : at + 9], "big")
            self.frame(kind, flags, stream, self.read[at + 9 : at + 9 + length], out, outcomes)
            at += 9 + length
        self.read = self.read[at:]
        return out + self.more()

    def frame(self, kind, flags, stream, payload, out, outcomes):
        if kind == SETTINGS and not flags & ACK:
            # RFC 9113 §6.5.2: without the setting, streams aren't limited.
            self.most = self.most or self.streams
            for at in range(0, len(payload), 6):
                name, value = (int.from_bytes(part, "big") for part in (payload[at : at + 2], payload[at + 2 : at + 6]))
                if name == 3:
                    self.most = min(value, self.streams)
                elif name == 4:
                    for body in self.open.values():
                        body[1] += value - self.initial
                    self.initial = value
            out.append(frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            out.append(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            if not stream:
                self.room += int.from_bytes(payload, "big")
            elif stream in self.open:
                self.open[stream][1] += int.from_bytes(payload, "big")
        elif kind == HEADERS:
            self.status = status(payload, self.status)
            outcomes[f"{self.status}"] += 1
            if flags & END_STREAM:
                self.open.pop(stream, None)
        elif kind == DATA and flags & END_STREAM:
            self.open.pop(stream, None)
        elif kind == RST_STREAM:
            outcomes["reset streams"] += 1
            self.open.pop(stream, None)
        elif kind == GOAWAY:
            outcomes["GOAWAY"] += 1
            self.most = 0

    def more(self):
        out = []
        # A stream that was ended is opened once more.
        while len(self.open) < self.most and self.opened < 2 * self.streams:
            flags = 0 if self.upload else END_STREAM
            rest = self.head
            while rest:
                piece, rest = rest[:16384], rest[16384:]
                kind = HEADERS if len(piece) + len(rest) == len(self.head) else CONTINUATION
                last = 0 if rest else END_HEADERS
                out.append(frame(kind, last | (flags if kind == HEADERS else 0), self.next, piece))
            self.open[self.next] = [self.upload, self.initial]
            self.next, self.opened = self.next + 2, self.opened + 1
        for stream, body in self.open.items():
            while self.room > 0 and min(body) > 0:
                size = min(16384, self.room, *body)
                out.append(frame(DATA, 0, stream, ZEROS[:size]))
                self.room, body[0], body[1] = self.room - size, body[0] - size, body[1] - size
        return out


class Tls:
    """A TLS client that does its handshake, and then what `inner` does."""

    def __init__(self, inner):
        self.inner, self.done = inner, False
        self.read, self.write = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = CONTEXT.wrap_bio(self.read, self.write, server_hostname=HOST)

    def begin(self):
        return self.received(b"", None)

    def wants_more(self):
        return self.inner.wants_more()

    def got_response(self):
        return self.inner.got_response()

    def received(self, data, outcomes):
        self.read.write(data)
        try:
            if not self.done:
                self.session.do_handshake()
                self.done = True
                for piece in self.inner.begin():
                    self.session.write(piece)
            while data := self.session.read(PIECE):
                self.inner.received(data, outcomes)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass
        except ssl.SSLError:
            outcomes["TLS error"] += 1
        return [self.write.read()] if self.write.pending else []


CONTEXT = unverified()


def client_hello():
    return Tls(None).begin()[0]


class Crowd:
    """So many attackers, made by `make` from their number."""

    def __init__(self, address, count, make):
        self.address, self.make, self.outcomes, self.poll = address, make, collections.Counter(), select.epoll()
        self.members, self.left, self.most_open, self.number = {}, 2 * count, 0, 0
        self.due = collections.deque(time.monotonic() + RAMP_S * n / count for n in range(count))

    def run(self, until):
        while (now := time.monotonic()) < until:
            while self.due and self.due[0] <= now and self.left:
                self.due.popleft()
                self.open()
            self.most_open = max(self.most_open, len(self.members))
            for number, event in self.poll.poll(0.02, 500):
                member = self.members[number]
                try:
                    member.happened(event, self.outcomes)
                    member.register(self.poll)
                except BlockingIOError:
                    pass
                except OSError as error:
                    if not member.protocol.got_response():
                        self.outcomes["closed" if error.errno == errno.ENOTCONN else "reset"] += 1
                    self.poll.unregister(number)
                    self.members.pop(number).stream.close()
                    self.due.append(time.monotonic() + AGAIN_S)

    def open(self):
        self.left -= 1
        try:
            stream = socket.socket()
        except OSError:
            self.outcomes["not connected"] += 1
            return
        stream.setblocking(False)
        stream.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        stream.bind((f"127.0.0.{2 + self.number % SOURCES}", 0))
        protocol = self.make(self.number)
        self.number += 1
        if not protocol.wants_more() or getattr(protocol, "reads", None) is not None:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        if stream.connect_ex(self.address) not in (0, errno.EINPROGRESS):
            self.outcomes["not connected"] += 1
            stream.close()
            return
        self.members[stream.fileno()] = member = Member(stream, protocol)
        member.interest = select.EPOLLIN | select.EPOLLOUT
        self.poll.register(stream, member.interest)


IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h


class Member:
    def __init__(self, stream, protocol):
        self.stream, self.protocol, self.unsent = stream, protocol, collections.deque()
        self.unsent.extend(map(memoryview, protocol.begin()))

    def happened(self, event, outcomes):
        if event & ~select.EPOLLOUT:
            data = self.stream.recv(PIECE)
            if not data:
                raise OSError(errno.ENOTCONN, "closed")
            self.unsent.extend(map(memoryview, self.protocol.received(data, outcomes)))
        if event & select.EPOLLOUT and self.unsent:
            sent = self.stream.send(self.unsent[0][:PIECE])
            self.unsent[0] = self.unsent[0][sent:]
            if not self.unsent[0]:
                self.unsent.popleft()

    def register(self, poll):
        interest = (select.EPOLLIN if self.protocol.wants_more() else 0) | (select.EPOLLOUT if self.unsent else 0)
        if interest != self.interest:
            self.interest = interest
            poll.modify(self.stream, interest)


def raise_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 65535), max(hard, 65535)))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def attack(address, count, make, pipe):
    """A process of its own: attacks until a message says that it's over, and reports what it got."""
    os.nice(10)
    raise_descriptors()
    crowd = Crowd(address, count, make)
    while not pipe.poll():
        crowd.run(time.monotonic() + 0.2)
    pipe.send({"outcomes": crowd.outcomes, "most open": crowd.most_open, "open": len(crowd.members),
               "CPU": time.process_time()})


UPLOAD_HEAD = head("POST /silent", 0, f"Content-Length: {UPLOAD}") + b"\r\n"
CHUNKED_HEAD = head("POST /silent", 0, "Transfer-Encoding: chunked") + b"\r\n"
UPLOADED = UPLOAD_HEAD + ZEROS
# In chunks of 16 KiB, the last of which is torn.
CHUNKED = CHUNKED_HEAD + (b"4000\r\n" + ZEROS[:0x4000] + b"\r\n") * (SENT_OF_UPLOAD // 0x4000) + b"4000\r\nabc"
UNFINISHED = head("GET /silent", 65_000)
LARGE = head("GET /silent", 60_000) + b"\r\n"
LONG_RESPONSE = head("GET /10m", 0) + b"\r\n"
H2_UPLOAD = block(b"POST", b"/silent", 0, (b"content-length", b"%d" % UPLOAD))
H2_LARGE = block(b"GET", b"/silent", 60_000)
H2_LONG_RESPONSE = block(b"GET", b"/10m", 0)


def h2_slow_reader(number):
    """By turns: no window at all, or every window there is and a socket that isn't read."""
    if number % 2:
        return Http2(H2_LONG_RESPONSE, window=0)
    return Http2(H2_LONG_RESPONSE, window=MOST, reads=20_000)


def slow_handshake(number):
    """By turns: half a first record, a whole one and then nothing, a session with half a head, and with an upload."""
    hello = client_hello()
    return [
        lambda: Http1(hello[: len(hello) // 2]),
        lambda: Http1(hello),
        lambda: Tls(Http1(UNFINISHED[:30_000])),
        lambda: Tls(Http1(UPLOADED[:60_000])),
    ][number % 4]()


def mixed(number):
    return [
        lambda: Http1(UPLOADED),
        lambda: Http1(CHUNKED),
        lambda: Http1(UNFINISHED),
        lambda: Http1(LARGE),
        lambda: Http1(LONG_RESPONSE, reads=20_000),
        lambda: Http2(H2_UPLOAD, SENT_OF_UPLOAD, streams=10),
        lambda: Http2(H2_LARGE, streams=10),
        lambda: Http2(H2_LONG_RESPONSE, window=0, streams=10),
    ][number % 8]()


# Name: what it is, how many connections, how one is made, whether it is TLS.
ATTACKS = {
    "uploads": ("uploads of 1 MB that pause after 900 KB", 5000, lambda _: Http1(UPLOADED), False),
    "chunked": ("chunked uploads that pause after 900 KB", 5000, lambda _: Http1(CHUNKED), False),
    "heads": ("unfinished heads of 64 KiB", 5000, lambda _: Http1(UNFINISHED), False),
    "silent": ("heads of 60 KB in front of a silent app", 5000, lambda _: Http1(LARGE), False),
    "h2-uploads": ("HTTP/2 with 100 paused uploads each", 200, lambda _: Http2(H2_UPLOAD, SENT_OF_UPLOAD), False),
    "h2-silent": ("HTTP/2 with 100 heads of 60 KB each, silent app", 200, lambda _: Http2(H2_LARGE), False),
    "readers": ("slow readers of 10 MB", 1000, lambda _: Http1(LONG_RESPONSE, reads=20_000), False),
    "h2-readers": ("HTTP/2 with 100 slow readers of 10 MB each", 200, h2_slow_reader, False),
    "tls": ("TLS: unfinished handshakes, and sessions with half a request", 4000, slow_handshake, True),
    "mixed": ("all of these at once, but TLS", 3000, mixed, False),
}
