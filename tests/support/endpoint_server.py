# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""A real HTTP server that speaks as an OpenAI-compatible endpoint, and misbehaves when told to."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


Reply = Callable[[Any], None]


def says(text: Any, chat: bool = True) -> Reply:
    """An answer with this text."""
    choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return sends(200, json.dumps({"choices": [choice]}))


def sends(status: int, body: str, **headers: str) -> Reply:
    """Any answer; `_` in a header's name stands for `-`."""

    def reply(handler: Any) -> None:
        data = body.encode()
        handler.send_response(status)
        for name, value in {**headers, "Content_Length": str(len(data))}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return reply


def hangs_up(handler: Any) -> None:
    """No answer at all."""
    handler.connection.shutdown(socket.SHUT_RDWR)


def breaks_off(handler: Any) -> None:
    """Half of the answer that its header promises."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"mess')


def drips(handler: Any) -> None:
    """A byte at a time, without an end."""
    handler.send_response(200)
    handler.end_headers()
    _drip(handler, b" ")


def drips_headers(handler: Any) -> None:
    """The same before anything is said."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    _drip(handler, b"x")


def echoes_the_key(handler: Any) -> None:
    """A refusal that repeats the key in its status line, a header and its body, there with `\\/` as some servers do."""
    key = handler.headers["Authorization"]
    handler.send_response(401, f"bad {key}")
    handler.send_header("X-Request-Id", key)
    handler.end_headers()
    handler.wfile.write(json.dumps({"error": {"message": "." * 460 + key}}).replace("/", "\\/").encode())


def _drip(handler: Any, byte: bytes) -> None:
    with suppress(OSError):
        while not handler.server.closing.wait(0.05):
            handler.wfile.write(byte)
            handler.wfile.flush()


def slow(seconds: float, then: Reply) -> Reply:
    def reply(handler: Any) -> None:
        handler.server.closing.wait(seconds)
        then(handler)

    return reply


class Endpoint:
    """
    Args:
        url (`str`): For the author.
        requests (`list[dict]`): What came in: `path`, `key`, `headers`, `body` and `time`.
        replies (`list[Reply]`): The answers to the next requests; after them, `answer`.
        answer (`Callable[[dict], Reply]`): From the body of a request to the answer.
        most (`int`): Requests that were open at one time.
    """

    def __init__(self, url: str):
        self.url, self.requests, self.replies = url, [], []
        self.answer: Callable[[dict], Reply] = lambda body: says(f"About: {asked(body)}", "messages" in body)
        self.open = self.most = 0
        self.lock = threading.Lock()


def asked(body: dict) -> str:
    """The last words of a prompt."""
    return body["messages"][-1]["content"] if "messages" in body else body["prompt"]


@contextmanager
def serving() -> Iterator[Endpoint]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with endpoint.lock:
                told = {"path": self.path, "key": self.headers["Authorization"], "headers": dict(self.headers)}
                endpoint.requests.append({**told, "body": body, "time": time.monotonic()})
                reply = endpoint.replies.pop(0) if endpoint.replies else endpoint.answer(body)
                endpoint.open += 1
                endpoint.most = max(endpoint.most, endpoint.open)
            try:
                reply(self)
            except OSError:  # who asked has gone
                pass
            with endpoint.lock:
                endpoint.open -= 1

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.closing = True, threading.Event()
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
