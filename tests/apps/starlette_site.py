"""A Starlette site whose TrustedHostMiddleware admits one host: a page, an echoing WebSocket, server-sent events.

ALLOWED_HOSTS names another host, WWW_REDIRECT=1 leaves www_redirect on, as it is by default.
"""

import asyncio
import os

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

from witness import Asgi

EVENTS = 3

# Code and reason of every close that a WebSocket's client sent.
closes = []

# Counts how many more events may be sent: every POST to /events/next lets one through.
gate = asyncio.Semaphore(0)


async def home(request):
    return JSONResponse({"url": str(request.url)})


async def echo(websocket):
    """Echoes until the client closes, or asks to be closed."""
    await websocket.accept()
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            closes.append([message["code"], message.get("reason")])
            return
        if message.get("text") == "close me":
            await websocket.close(4002, "as you wish")
            return
        if message.get("text") is not None:
            await websocket.send_text(message["text"])
        else:
            await websocket.send_bytes(message["bytes"])


async def closed(request):
    return JSONResponse(closes)


async def events(request):
    async def stream():
        for number in range(1, EVENTS + 1):
            if number > 1:
                await gate.acquire()
            yield f"data: {number}\n\n"

    return StreamingResponse(stream(), media_type="text/event-stream")


async def next_event(request):
    gate.release()
    return JSONResponse({})


application = Asgi(
    Starlette(
        routes=[
            Route("/", home),
            Route("/events", events),
            Route("/events/next", next_event, methods=["POST"]),
            WebSocketRoute("/echo", echo),
            Route("/closes", closed),
        ],
        middleware=[
            Middleware(
                TrustedHostMiddleware,
                allowed_hosts=[os.environ.get("ALLOWED_HOSTS", "www.example.com")],
                www_redirect="WWW_REDIRECT" in os.environ,
            )
        ],
    )
)
