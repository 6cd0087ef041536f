"""An OpenAI-compatible server over engines of ours: what `vllm serve` is to clients, in a thread.

A request for a name that is not served gets HTTP 404, as vLLM answers it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from policyalign_assets.engine.base import Engine, Message, Sampling


@dataclass
class Server:
    """`models`: engines by the name under which they are served; a test may exchange them.

    `likeliest`: makes the log-probabilities of an answer from request and answer, as [(token,
    log-probability, {other token: log-probability})]. A server without it does not know the
    parameter, and refuses it if `strict`.
    """

    models: dict[str, Engine]
    likeliest: Callable[[str, str], list[tuple[str, float, dict[str, float]]]] | None = None
    strict: bool = False
    url: str = ""
    asked: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, request: dict) -> tuple[int, dict]:
        engine = self.models.get(request["model"])
        if engine is None:
            message = f"The model `{request['model']}` does not exist."
            return 404, {"error": {"message": message, "type": "NotFoundError", "code": 404}}
        if self.strict and self.likeliest is None and "logprobs" in request:
            return 400, {"error": {"message": "Unknown parameter: logprobs", "code": 400}}
        chat = tuple(Message(m["role"], m["content"]) for m in request["messages"])
        with self.lock:  # one model, one thread
            self.asked += 1
            made = engine.generate([chat], Sampling(request["max_tokens"], request["temperature"]))
        choice = {
            "index": 0,
            "finish_reason": made[0].finish,
            "message": {"role": "assistant", "content": made[0].text},
        }
        if self.likeliest is not None and request.get("logprobs"):
            prompt = request["messages"][-1]["content"]
            choice["logprobs"] = {
                "content": [
                    {
                        "token": token,
                        "logprob": value,
                        "bytes": None,
                        "top_logprobs": [
                            {"token": t, "logprob": v, "bytes": None}
                            for t, v in {token: value, **others}.items()
                        ][: request["top_logprobs"]],
                    }
                    for token, value, others in self.likeliest(prompt, made[0].text)
                ]
            }
        return 200, {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": request["model"],
            "choices": [choice],
        }


@contextmanager
def serving(**models: Engine) -> Iterator[Server]:
    """A server of these engines, by name."""
    server = Server(dict(models))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            status, reply = server.answer(json.loads(self.rfile.read(length)))
            body = json.dumps(reply).encode()
            # A client that has its answer may close the connection before the last line is sent.
            with suppress(ConnectionError):
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *args) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
