"""What is sent through hostward while it is measured, and what the app answers.

Client and app are one thread that goes in lockstep: it sends a request, reads it as the app, answers, and reads the
answer as the client. So hostward does the same work in the same order every time, a request after the other.
"""

import socket

HOST = "www.example.com"
PATIENCE_S = 60  # under valgrind a moment is long


class Wire:
    """A connection, read piece by piece."""

    def __init__(self, stream):
        self.stream, self.unread = stream, b""
        stream.settimeout(PATIENCE_S)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fill(self):
        data = self.stream.recv(65536)
        if not data:
            raise ConnectionError("hostward has closed a connection between two requests")
        self.unread += data

    def take(self, length):
        while len(self.unread) < length:
            self.fill()
        taken, self.unread = self.unread[:length], self.unread[length:]
        return taken

    def http1(self):
        """A message of HTTP/1.1: its head and its content, whose length is told."""
        while (end := self.unread.find(b"\r\n\r\n")) < 0:
            self.fill()
        head = self.take(end + 4)
        length = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        return head, self.take(int(length[0])) if length else b""

    def uwsgi(self):
        """A uwsgi packet without a body."""
        return self.take(int.from_bytes(self.take(4)[1:3], "little"))

    def http2(self):
        """A message of HTTP/2: its stream, and its content. Acknowledges what wants it."""
        content = b""
        while True:
            length, kind, flags = int.from_bytes(self.take(3), "big"), *self.take(2)
            stream, payload = int.from_bytes(self.take(4), "big"), self.take(length)
            if kind in (SETTINGS, PING) and not flags & ACK:
                self.stream.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
            elif kind in (DATA, HEADERS):
                content += payload if kind == DATA else b""
                if flags & END_STREAM:
                    return stream, content
            elif kind in (RST_STREAM, GOAWAY):
                raise ConnectionError(f"hostward has ended an exchange: frame {kind}, {payload!r}")


DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK, END_STREAM, END_HEADERS = 1, 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


# No settings, and room for whatever comes.
HELLO = frame(SETTINGS, 0, 0, b"") + frame(WINDOW_UPDATE, 0, 0, (2**30).to_bytes(4, "big"))


def literals(**fields):
    """HPACK, RFC 7541 §6.2.2: every field in letters, none remembered."""
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    return b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in pairs)


class Http:
    """A request of HTTP/1.1 and its answer, over connections that are kept."""

    scheme = "http"

    def __init__(self, request, answer):
        self.request, self.answer = request, answer
        self.content = answer.partition(b"\r\n\r\n")[2]

    def begin(self, client, listener):
        self.client, self.listener, self.app = client, listener, None

    def exchange(self):
        self.client.stream.sendall(self.request)
        self.serve()
        head, content = self.client.http1()
        assert head.startswith(b"HTTP/1.1 200 ") and content == self.content, head + content

    def serve(self):
        self.app = self.app or Wire(self.listener.accept()[0])
        head, content = self.app.http1()
        assert HOST.encode() in head and content == self.request.partition(b"\r\n\r\n")[2], head + content
        self.app.stream.sendall(self.answer)


class Post(Http):
    """The app is seen to keep connections first: before that, one that was used isn't trusted with a POST."""

    def begin(self, client, listener):
        super().begin(client, listener)
        post, self.request = self.request, request("GET", "/", "")
        self.exchange()
        self.exchange()
        self.request = post


class Refused(Http):
    """What the app never sees."""

    def exchange(self):
        self.client.stream.sendall(self.request)
        head, _ = self.client.http1()
        assert head.startswith(b"HTTP/1.1 421 "), head


class Uwsgi(Http):
    """The same to an app that speaks uwsgi: each request has a connection of its own."""

    scheme = "uwsgi"

    def serve(self):
        app = Wire(self.listener.accept()[0])
        assert HOST.encode() in app.uwsgi()
        app.stream.sendall(self.answer)
        app.stream.close()


class Grpc:
    """A unary call: HTTP/2 on both sides, trailers behind the answer."""

    scheme = "h2c"
    message = b"\0" + (20).to_bytes(4, "big") + b"m" * 20
    call = bytes([0x83, 0x86]) + literals(  # POST, http
        **{":path": "/orders.Orders/Get", ":authority": HOST}, content_type="application/grpc", te="trailers",
        user_agent="grpc-python/1.76.0 grpc-c/51.0.0 (linux; chttp2)", grpc_accept_encoding="identity, deflate, gzip",
        grpc_timeout="10S", x_forwarded_for="203.0.113.7", x_forwarded_proto="https", x_forwarded_port="443",
        x_amzn_trace_id="Root=1-67891233-abcdef012345678912345678")
    head = bytes([0x88]) + literals(content_type="application/grpc")  # 200
    trailers = literals(grpc_status="0", grpc_message="")

    def begin(self, client, listener):
        self.client, self.listener, self.app, self.stream = client, listener, None, 1
        client.stream.sendall(PREFACE + HELLO)

    def exchange(self):
        self.client.stream.sendall(frame(HEADERS, END_HEADERS, self.stream, self.call)
                                   + frame(DATA, END_STREAM, self.stream, self.message))
        if not self.app:
            self.app = Wire(self.listener.accept()[0])
            assert self.app.take(len(PREFACE)) == PREFACE
            self.app.stream.sendall(HELLO)
        stream, content = self.app.http2()
        assert content == self.message, content
        self.app.stream.sendall(frame(HEADERS, END_HEADERS, stream, self.head) + frame(DATA, 0, stream, self.message)
                                + frame(HEADERS, END_HEADERS | END_STREAM, stream, self.trailers))
        assert self.client.http2() == (self.stream, self.message)
        self.stream += 2


def request(method, target, fields, content=b""):
    lines = [f"{method} {target} HTTP/1.1", f"Host: {HOST}", *fields.strip().splitlines(), "", ""]
    return "\r\n".join(lines).encode() + content


def orders(length):
    """So many bytes: a list of orders, and white space for the rest."""
    order = b'{"id":%06d,"state":"shipped","total":"19.90"}'
    return (b"[" + b",".join(order % (100_000 + n) for n in range(length // 48)) + b"]").ljust(length)


def answer(fields, content):
    return "\r\n".join(["HTTP/1.1 200 OK", *fields.strip().splitlines(), "", ""]).encode() + content


# What an Application Load Balancer adds.
FORWARDED = """
X-Forwarded-For: 203.0.113.7
X-Forwarded-Proto: https
X-Forwarded-Port: 443
X-Amzn-Trace-Id: Root=1-67891233-abcdef012345678912345678
"""
BROWSER = FORWARDED + """sec-ch-ua: "Chromium";v="142", "Google Chrome";v="142", "Not_A Brand";v="99"
sec-ch-ua-mobile: ?0
sec-ch-ua-platform: "Windows"
Upgrade-Insecure-Requests: 1
User-Agent: Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8
Sec-Fetch-Site: same-origin
Sec-Fetch-Mode: navigate
Sec-Fetch-User: ?1
Sec-Fetch-Dest: document
Referer: https://www.example.com/orders?page=2
Accept-Encoding: gzip, deflate, br, zstd
Accept-Language: en-GB,en;q=0.9,de;q=0.8
Cookie: sessionid=k3v9q0zj2m5x8w1t7r4y6u0i3o9p2a5s; csrftoken=Zb1nM4vC7xL0kJ3hG6fD9sA2qW5eR8tY; theme=dark
Cache-Control: max-age=0
"""
API = FORWARDED + """User-Agent: orders-client/3.1
Accept: application/json
Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiJ9.c2lnbmF0dXJl
"""
FROM_AN_APP = """
Server: gunicorn
Date: Thu, 26 Nov 2026 08:00:00 GMT
Content-Type: application/json
Vary: Accept, Cookie
X-Content-Type-Options: nosniff
Referrer-Policy: same-origin
Content-Length: 4096
"""
SHORT = answer("Content-Length: 21", b"hello from the app :)")

PROFILES = {
    "bare": Http(request("GET", "/", ""), SHORT),
    "browser": Http(request("GET", "/orders?page=3", BROWSER), SHORT),
    "json": Http(request("GET", "/api/orders", API), answer(FROM_AN_APP, orders(4096))),
    "post": Post(request("POST", "/api/orders", API + "Content-Type: application/json\nContent-Length: 1024",
                         orders(1024)), SHORT),
    "grpc": Grpc(),
    "uwsgi": Uwsgi(request("GET", "/orders?page=3", BROWSER), SHORT),
}
# Every server that can be reached gets some. The connection ends with it, as a health check's does.
REFUSED = Refused(request("GET", "/", BROWSER + "Connection: close\n").replace(HOST.encode(), b"foreign.example"), b"")
