"""Usage: websocket_client.py PORT URL

Opens URL on 127.0.0.1:PORT, whatever host it names, and has texts and bytes echoed. Prints what came of it as JSON.
"""

import json
import socket
import sys

from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

TEXTS = ["hello", "grüß dich", "x" * 70_000]

connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=20)
try:
    # The client's own pings are off: the one below is the only one.
    with connect(sys.argv[2], sock=connection, proxy=None, ping_interval=None) as websocket:
        echoed = []
        for text in TEXTS:
            websocket.send(text)
            echoed.append(websocket.recv(timeout=20) == text)
        data = bytes(range(256)) * 1024
        websocket.send(data)
        echoed.append(websocket.recv(timeout=20) == data)
        pong = websocket.ping().wait(timeout=20)
    print(json.dumps({"echoed": echoed, "pong": pong, "close_code": websocket.close_code}))
except InvalidStatus as refused:
    print(json.dumps({"refused": refused.response.status_code}))
