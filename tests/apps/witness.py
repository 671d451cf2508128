"""Writes down every request that reaches an app, before any framework may refuse it.

One JSON line per request goes to the file that WITNESS_FILE names. Field names are written as WSGI and ASGI agree on
them: lower case, with dashes.
"""

import json
import os

_file = os.open(os.environ["WITNESS_FILE"], os.O_WRONLY | os.O_APPEND)


def _write(**seen):
    # One write of one whole line, so that lines of several threads don't mix.
    os.write(_file, json.dumps(seen).encode() + b"\n")


class Wsgi:
    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response):
        fields = [
            [name.removeprefix("HTTP_").replace("_", "-").lower(), value]
            for name, value in environ.items()
            if name.startswith("HTTP_")
        ]
        _write(method=environ["REQUEST_METHOD"], path=environ["PATH_INFO"], fields=fields)
        return self.app(environ, start_response)


class Asgi:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "lifespan":
            fields = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]]
            # A WebSocket has no method of its own in ASGI.
            _write(method=scope.get("method", "WEBSOCKET"), path=scope["path"], fields=fields)
        await self.app(scope, receive, send)
