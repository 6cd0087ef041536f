"""`vllm serve` in threads: the endpoints that the engine `vllm-server` uses, over weights of ours.

Tokens and log-probabilities are real ones of the model and of the adapters that were loaded. What a
server does wrong is scripted by `fault`.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from peft import PeftModel

from policyalign_assets.engine.base import Sampling
from policyalign_assets.engine.forward.modules import ModelForward
from policyalign_assets.engine.forward.scoring import response_logits
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import LoadedModel, load_model
from policyalign_assets.settings import ModelSettings

DROP = "the connection is lost"  # a fault: no reply at all
Fault = Callable[[str, dict[str, Any]], Any]  # path, request -> (status, reply), DROP or None


@dataclass(frozen=True)
class Answered:
    """Sampled tokens, and the likeliest tokens of each place of the answer and of the prompt."""

    tokens: list[int]
    listed: list[dict[int, float]]
    prompt: list[dict[int, float] | None]


class Weights:
    """The base model with any number of adapters, for all servers of a test: one user at a time."""

    def __init__(self, settings: ModelSettings | None = None):
        self.settings = settings or ModelSettings(device="cpu")
        self.lock = threading.RLock()
        self.loaded = load_model(self.settings)
        self._peft: PeftModel | None = None
        self._made: dict[tuple, Answered] = {}

    def add(self, key: str, path: str) -> None:
        with self.lock:
            if self._peft is None:
                base = load_model(self.settings).model
                self._peft = PeftModel.from_pretrained(base, path, adapter_name=key).eval()
            elif key not in self._peft.peft_config:
                self._peft.load_adapter(path, adapter_name=key)

    def answer(self, key: str | None, request: dict[str, Any]) -> Answered:
        prompt, longest = request["prompt"], request["max_tokens"]
        lists = (request["logprobs"], request.get("prompt_logprobs"))
        asked = (key, tuple(prompt), longest, request["temperature"], request["seed"], lists)
        with self.lock:
            if asked not in self._made:
                self._made[asked] = self._compute(key, prompt, request)
            return self._made[asked]

    def _compute(self, key: str | None, prompt: list[int], request: dict[str, Any]) -> Answered:
        model: Any = self.loaded.model
        if key is not None:
            assert self._peft is not None
            self._peft.set_adapter(key)
            model = self._peft
        loaded = LoadedModel(model, self.loaded.tokenizer, "fake", "fake")
        sampling = Sampling(request["max_tokens"], request["temperature"], request["seed"] or 0)
        (made,) = TransformersEngine(loaded, 4_096).generate_ids([prompt], sampling, rows=[0])
        answered = _listed(model, prompt, made.token_ids, request["logprobs"] or 0)
        first: list[dict[int, float] | None] = [None]
        top = request.get("prompt_logprobs")
        read = first + _listed(model, prompt[:1], prompt[1:], top) if top is not None else []
        return Answered(list(made.token_ids), answered, read)


@torch.no_grad()
def _listed(
    model: Any, prompt: list[int], response: Sequence[int], top: int
) -> list[dict[int, float]]:
    """At each place of a response, its own token and the `top` likeliest ones."""
    logits_TV = response_logits(ModelForward(model), [prompt], [list(response)])
    listed = []
    for token, logp_V in zip(response, logits_TV.log_softmax(-1), strict=True):
        ids = [token, *(i for i in logp_V.topk(min(top, len(logp_V))).indices.tolist())]
        listed.append({i: float(logp_V[i]) for i in dict.fromkeys(ids)})
    return listed


@dataclass
class FakeVllm:
    """One server. `stale` gives the adapter that it answers with in place of the one asked for."""

    weights: Weights
    served: str = "bundled"
    context: int = 2_048
    key: str | None = None
    runtime_lora: bool = True
    fault: Fault = lambda path, request: None
    stale: Callable[[str], str | None] | None = None
    address: str = ""
    adapters: dict[str, str] = field(default_factory=dict)  # path by name
    ever: list[str] = field(default_factory=list)  # names of all adapters that were loaded
    asked: list[dict[str, Any]] = field(default_factory=list)  # of /v1/completions
    answered: int = 0
    stop: Callable[[], None] = lambda: None
    dead: bool = False

    def reply(self, path: str, request: dict[str, Any]) -> Any:
        if path == "/v1/completions":
            self.asked.append(request)
        wrong = self.fault(path, request)
        if wrong is not None:
            return wrong
        if path == "/health":
            return 200, {}
        if path == "/version":
            return 200, {"version": "0.32.0"}
        if path == "/v1/models":
            base = {"id": self.served, "root": "/somewhere", "max_model_len": self.context}
            loaded = [{"id": n, "root": p, "parent": self.served} for n, p in self.adapters.items()]
            return 200, {"object": "list", "data": [base | {"parent": None}, *loaded]}
        if path == "/v1/load_lora_adapter" and self.runtime_lora:
            return self._load(request["lora_name"], request["lora_path"])
        if path == "/v1/unload_lora_adapter" and self.runtime_lora:
            if self.adapters.pop(request["lora_name"], None) is None:
                return _error(404, f"The lora adapter '{request['lora_name']}' cannot be found.")
            return 200, {}
        if path == "/v1/completions":
            return self._complete(request)
        return 404, {"detail": "Not Found"}

    def _load(self, name: str, path: str) -> tuple[int, dict]:
        if name in self.adapters:
            return _error(400, f"The lora adapter '{name}' has already been loaded.")
        try:
            self.weights.add(name, path)
        except (OSError, ValueError) as error:
            return _error(404, f"No adapter found for {path}: {error}")
        self.adapters[name] = path
        self.ever.append(name)
        return 200, {}

    def _complete(self, request: dict[str, Any]) -> tuple[int, dict]:
        name = request["model"]
        if name != self.served and name not in self.adapters:
            return _error(404, f"The model `{name}` does not exist.")
        adapter = None if name == self.served else name
        if adapter is not None and self.stale:
            adapter = self.stale(adapter)
        made = self.weights.answer(adapter, request)
        self.answered += 1
        own = [of_token[t] for t, of_token in zip(made.tokens, made.listed, strict=True)]
        status, reply = 200, completion(request, made.tokens, own)
        choice = reply["choices"][0]
        if request["logprobs"]:
            choice["logprobs"]["top_logprobs"] = [
                {f"token_id:{t}": p for t, p in of_token.items()} for of_token in made.listed
            ]
        if request.get("prompt_logprobs") is not None:
            choice["prompt_logprobs"] = [
                of_token and {str(t): {"logprob": p, "rank": 1} for t, p in of_token.items()}
                for of_token in made.prompt
            ]
        return status, reply


def completion(request: dict[str, Any], tokens: Sequence[int], log_probs: Sequence[Any]) -> dict:
    return {
        "object": "text_completion",
        "choices": [
            {
                "index": 0,
                "text": "",
                "finish_reason": "stop" if tokens[-1] in request["stop_token_ids"] else "length",
                "token_ids": list(tokens),
                "prompt_token_ids": request["prompt"],
                "logprobs": {"token_logprobs": list(log_probs), "tokens": []},
            }
        ],
    }


def _error(status: int, message: str) -> tuple[int, dict]:
    return status, {"error": {"message": message, "code": status}}


@contextmanager
def fake_vllm(server: FakeVllm, port: int = 0) -> Iterator[FakeVllm]:
    """Serves until the end, or until `server.stop()` kills it with what it is answering."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.handle_one({})

        def do_POST(self) -> None:
            self.handle_one(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def handle_one(self, request: dict[str, Any]) -> None:
            given = self.headers["Authorization"]
            if server.key and self.path != "/health" and given != f"Bearer {server.key}":
                made = 401, {"error": "Unauthorized"}
            else:
                made = server.reply(self.path, request)
            if server.dead or made == DROP:
                self.close_connection = True
                with suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)
                return
            status, reply = made
            body = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            with suppress(ConnectionError):
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *args) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()

    def stop() -> None:
        if not server.dead:
            server.dead = True
            http.shutdown()
            http.server_close()

    server.address, server.stop, server.dead = f"http://127.0.0.1:{http.server_port}", stop, False
    try:
        yield server
    finally:
        stop()


@contextmanager
def fake_replicas(weights: Weights, count: int = 2) -> Iterator[list[FakeVllm]]:
    with ExitStack() as stack:
        yield [stack.enter_context(fake_vllm(FakeVllm(weights))) for _ in range(count)]


def settings_of(*servers: FakeVllm | str, **more: Any) -> ModelSettings:
    """Settings of the engine over these servers, which gives up soon."""
    addresses = tuple(s if isinstance(s, str) else s.address for s in servers)
    values = {"server_patience": 0.3, "server_timeout": 20, "device": "cpu"} | more
    return ModelSettings(engine="vllm-server", servers=addresses, **values)
