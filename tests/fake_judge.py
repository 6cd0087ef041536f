"""An OpenAI-compatible server in a thread, whose replies the test scripts: `reply(messages,
attempt)` gives a `Reply`."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Reply:
    text: str | None = ""  # the judge's words
    status: int = 200
    body: bytes | None = None  # instead of a chat completion
    seconds: float = 0.0  # before the first byte
    finish: str = "stop"
    kind: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class FakeJudge:
    def __init__(self, reply: Callable[[list[dict], int], Reply]):
        self.reply, self.requests, self.keys, self.lock = reply, [], set(), threading.Lock()
        self.attempts: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        key = json.dumps(request["messages"])
        with self.lock:
            self.requests.append(request)
            self.keys.add(handler.headers["Authorization"])
            self.attempts[key] += 1
            attempt = self.attempts[key]
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            reply = self.reply(request["messages"], attempt)
            time.sleep(reply.seconds)
        finally:
            with self.lock:
                self.at_once -= 1
        body = (
            reply.body
            if reply.body is not None
            else json.dumps(
                {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": request["model"],
                    "choices": [
                        {
                            "index": 0,
                            "finish_reason": reply.finish,
                            "message": {"role": "assistant", "content": reply.text},
                        }
                    ],
                }
            ).encode()
        )
        handler.send_response(reply.status)
        handler.send_header("Content-Type", reply.kind)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in reply.headers:
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)


@contextmanager
def fake_judge(
    reply: Callable[[list[dict], int], Reply], tls: ssl.SSLContext | None = None
) -> Iterator[FakeJudge]:
    fake = FakeJudge(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            with suppress(BrokenPipeError, ConnectionResetError):  # the client gave up waiting
                fake.answer(self)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fake.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}/v1"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
