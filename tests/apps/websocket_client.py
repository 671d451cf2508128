"""Usage: websocket_client.py talk|wait PORT URL

Opens URL on 127.0.0.1:PORT, whatever host it names; `wss://` without asking who it is. Prints what came of it as JSON.

talk: messages of every kind both ways, then a close from either side.
wait: one message, then silence until the connection ends.
"""

import json
import os
import socket
import ssl
import sys
import threading
import time

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

PATIENCE = 20
LARGE = 5_000_000


def open_websocket(port, url):
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    context = None
    if url.startswith("wss:"):
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    # The client's own pings are off: nothing is said but what is said here.
    return connect(url, sock=connection, ssl=context, proxy=None, ping_interval=None, max_size=None)


def echoes(websocket, message):
    websocket.send(message)
    return websocket.recv(timeout=PATIENCE) == message


def interleaved(websocket):
    """A hundred messages, text and bytes in turns, sent while the echoes of earlier ones are read."""
    messages = [chr(97 + n % 26) * (n * 997) if n % 2 else os.urandom(n * 991) for n in range(100)]

    def send():
        for message in messages:
            websocket.send(message)

    sender = threading.Thread(target=send)
    sender.start()
    received = [websocket.recv(timeout=PATIENCE) for _ in messages]
    sender.join()
    return received == messages


def closed_by_the_app(port, url):
    with open_websocket(port, url) as websocket:
        websocket.send("close me")
        try:
            websocket.recv(timeout=PATIENCE)
        except ConnectionClosed as closed:
            return [closed.rcvd.code, closed.rcvd.reason]


def talk(port, url):
    with open_websocket(port, url) as websocket:
        result = {
            "extensions": websocket.response.headers.get("Sec-WebSocket-Extensions", "").split(";")[0],
            "texts": [echoes(websocket, text) for text in ("", "hello", "grüß dich", "x" * 70_000)],
            "bytes": [echoes(websocket, data) for data in (b"", b"\0\xff", bytes(range(256)) * 1024)],
            # Text shrinks on its way; random bytes don't.
            "large": [echoes(websocket, "0123456789" * (LARGE // 10)), echoes(websocket, os.urandom(LARGE))],
            "pong": websocket.ping(b"there?").wait(timeout=PATIENCE),
            "interleaved": interleaved(websocket),
        }
        websocket.close(4001, "enough")
        result["closed"] = websocket.close_code
    return {**result, "closed_by_the_app": closed_by_the_app(port, url)}


def wait(port, url):
    with open_websocket(port, url) as websocket:
        echoed = echoes(websocket, "hello")
        since = time.monotonic()
        try:
            websocket.recv(timeout=PATIENCE)
            end = "a message"
        except ConnectionClosed as closed:
            end = None if closed.rcvd is None else closed.rcvd.code
        return {"echoed": echoed, "end": end, "seconds": time.monotonic() - since}


try:
    print(json.dumps({"talk": talk, "wait": wait}[sys.argv[1]](int(sys.argv[2]), sys.argv[3])))
except InvalidStatus as refused:
    print(json.dumps({"refused": refused.response.status_code}))
