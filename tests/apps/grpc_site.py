"""A gRPC service without generated code: messages are bytes. It says on its output where it listens."""

import concurrent.futures
import threading

import grpc

cancelled = threading.Semaphore(0)


def unary(request, context):
    metadata = {key: value for key, value in context.invocation_metadata()}
    context.send_initial_metadata((("x-initial", "first"),))
    context.set_trailing_metadata((("x-trailing", "last"), ("x-asked", metadata.get("x-question", "")),
                                   ("x-host", metadata.get("x-forwarded-host", ""))))
    return request[::-1]


def refuse(request, context):
    context.set_trailing_metadata((("x-trailing", "last"),))
    context.abort(grpc.StatusCode.NOT_FOUND, "no such thing: %s" % request.decode())


def count(request, context):
    for number in range(int(request)):
        yield b"%d" % number


def join(requests, context):
    return b",".join(requests)


def talk(requests, context):
    for request in requests:
        yield b"re: " + request


def given_up(context):
    """Set, and counted, once nobody waits for the call any more."""
    gone = threading.Event()

    def count():
        cancelled.release()
        gone.set()

    if not context.add_callback(count):
        count()  # It was over before this began.
    return gone


def hang(request, context):
    """Answers nothing."""
    given_up(context).wait(30)
    return b""


def drip(request, context):
    """One message at once, then none."""
    gone = given_up(context)  # Before the message: who gives up on it at once keeps the rest from running.
    yield b"first"
    gone.wait(30)


def seen(request, context):
    """Answers once this many calls have been given up."""
    for _ in range(int(request)):
        if not cancelled.acquire(timeout=10):
            return b"no"
    return b"yes"


def main():
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Refuse": grpc.unary_unary_rpc_method_handler(refuse),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Join": grpc.stream_unary_rpc_method_handler(join),
        "Talk": grpc.stream_stream_rpc_method_handler(talk),
        "Hang": grpc.unary_unary_rpc_method_handler(hang),
        "Drip": grpc.unary_stream_rpc_method_handler(drip),
        "Seen": grpc.unary_unary_rpc_method_handler(seen),
    }
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=32))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print("listening on 127.0.0.1:%d" % port, flush=True)
    server.wait_for_termination()


main()
