"""A gRPC client: `grpc_client.py address authority [root]`. Makes every kind of call and prints what came of it, as JSON.

With `root`, a file of PEM, over TLS: it is the only certificate that is believed, and has to name the authority.
"""

import json
import queue
import sys
import time

import grpc

address, authority, *root = sys.argv[1:]
if root:
    with open(root[0], "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    channel = grpc.secure_channel(address, credentials, options=(("grpc.ssl_target_name_override", authority),))
else:
    channel = grpc.insecure_channel(address, options=(("grpc.default_authority", authority),))
DEADLINE = 20


def metadata(pairs):
    return {key: value for key, value in pairs or () if key.startswith("x-")}


def unary(message, **more):
    return channel.unary_unary("/test.Test/Unary").with_call(message, timeout=DEADLINE, **more)


def failure(call):
    try:
        call()
        return "it succeeded"
    except grpc.RpcError as error:
        return [error.code().name, error.details(), metadata(error.trailing_metadata())]


def unary_call():
    reply, call = unary(b"abc", metadata=(("x-question", "why"),))
    return [reply.decode(), metadata(call.initial_metadata()), metadata(call.trailing_metadata()), call.code().name]


def large():
    message = bytes(range(256)) * 12 * 1024  # 3 MiB; gRPC's own limit is 4
    return unary(message)[0] == message[::-1]


def at_once():
    calls = [channel.unary_unary("/test.Test/Unary").future(b"%d" % n, timeout=DEADLINE) for n in range(300)]
    return all(call.result() == (b"%d" % n)[::-1] for n, call in enumerate(calls))


def talk():
    """The next message is sent only when the last one's reply is there."""
    outbox, replies = queue.Queue(), []
    call = channel.stream_stream("/test.Test/Talk")(iter(outbox.get, None), timeout=DEADLINE)
    for number in range(20):
        outbox.put(b"%d" % number)
        replies.append(next(call).decode())
    outbox.put(None)
    return [replies == ["re: %d" % n for n in range(20)], list(call), call.code().name]


def deadline():
    began = time.monotonic()
    what = failure(lambda: channel.unary_unary("/test.Test/Hang")(b"", timeout=2))
    return [what[0], time.monotonic() - began < 10]


def cancel():
    call = channel.unary_stream("/test.Test/Drip")(b"", timeout=DEADLINE)
    first = next(call).decode()
    call.cancel()
    return [first, failure(lambda: next(call))[0]]


def main():
    print(json.dumps({
        "unary": unary_call(),
        "large": large(),
        "at_once": at_once(),
        "server_streaming": [m.decode() for m in channel.unary_stream("/test.Test/Count")(b"5", timeout=DEADLINE)],
        "many": len(list(channel.unary_stream("/test.Test/Count")(b"20000", timeout=DEADLINE))),
        "client_streaming": channel.stream_unary("/test.Test/Join")(iter([b"a", b"b", b"c"]), timeout=DEADLINE).decode(),
        "bidirectional": talk(),
        "refused": failure(lambda: channel.unary_unary("/test.Test/Refuse")(b"unicorn", timeout=DEADLINE)),
        "unknown": failure(lambda: channel.unary_unary("/test.Test/Nothing")(b"", timeout=DEADLINE))[0],
        "deadline": deadline(),
        "cancel": cancel(),
        "seen": channel.unary_unary("/test.Test/Seen")(b"2", timeout=DEADLINE).decode(),
    }))


main()
