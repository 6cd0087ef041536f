"""Several `vllm serve` processes that hold the same model: who is asked, and who has gone away.

Row n goes to server n modulo the number of servers. A server that refuses connections, answers 5xx
or 429, or does not answer in time gets no rows for a while: the others take them over. It comes
back when it is healthy, serves the right model and has the current adapter. Work ends with
`ServersDown` when no server has answered for `model.server_patience` seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from policyalign_assets.endpoint import (
    EndpointDown,
    bounded_transport,
    check_host,
    read_key,
    run_async,
)
from policyalign_assets.engine.generation.server_requests import (
    PROBE,
    Lost,
    NotServed,
    Requests,
    ServerRefuses,
)
from policyalign_assets.settings import ModelSettings

if TYPE_CHECKING:
    import httpx2

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds without rows for a server that has failed
LOST = 8  # how often one row may be lost with its server before the work stops
LOADING = 300.0  # seconds for a server to load an adapter
# Bytes of one reply. The log-probabilities of a prompt are some 100 bytes for each token listed.
MAX_REPLY = 32 * 1024 * 1024

NAME = "policyalign-"  # how the names of our adapters begin

Result = TypeVar("Result")


class ServersDown(EndpointDown):
    """None of the servers answers. The same work may succeed later."""


@dataclass(frozen=True)
class Adapter:
    """An adapter under a name that was never used for other weights."""

    name: str
    path: Path
    revision: str


@dataclass
class Replica:
    """One server. `away_until` is a time of `time.monotonic`; 0 while the server answers."""

    address: str
    away_until: float = 0.0
    failures: int = 0  # in a row
    why: str = ""  # it went away
    context: int = 0  # tokens; 0 until it was asked
    version: str = "unknown"


class Replicas:
    """The servers of `model.servers`, with what is known of each.

    Raises SettingsError where a host is not allowed or the key's variable is not set.
    """

    def __init__(self, settings: ModelSettings, names: Sequence[str]):
        """names: the base model's names, of which a server must serve one."""
        for address in settings.servers:
            check_host(address, "model", field="servers")
        self.settings, self.names = settings, names
        self.key = read_key(settings.server_key_variable, "model", "server_key_variable")
        self.all = [Replica(address) for address in settings.servers]
        self.adapter: Adapter | None = None  # that each server must have
        self.base: dict[str, str] = {}  # the name of the base model at each address

    def run(self, work: Callable[[Session], Awaitable[Result]]) -> Result:
        """`work` with open connections; see `run_async`."""

        async def opened() -> Result:
            async with self._opened() as client:
                return await work(Session(self, client))

        return run_async(opened)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[httpx2.AsyncClient]:
        import httpx2

        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        transport = bounded_transport(
            httpx2.AsyncHTTPTransport(limits=limits), self.settings.server_timeout, MAX_REPLY
        )
        headers = {"Authorization": f"Bearer {self.key}"} if self.key != "none" else {}
        async with httpx2.AsyncClient(
            transport=transport,
            follow_redirects=False,
            headers=headers,
            timeout=self.settings.server_timeout,
        ) as client:
            yield client

    def model_at(self, replica: Replica) -> str:
        """The name to ask for: the adapter's, or the base model's at this server."""
        return self.adapter.name if self.adapter else self.base[replica.address]

    def failed(self, replica: Replica, why: str) -> None:
        """Notes that a server gave no answer, and says so once."""
        now = time.monotonic()
        if now < replica.away_until:
            return  # rows that were with it at the same time
        if not replica.failures:
            logging.getLogger(__name__).warning(
                "the server %s %s: its rows go to the others until it is back",
                replica.address,
                why,
            )
        pause = min(FIRST_PAUSE * 2**replica.failures, LONGEST_PAUSE)
        replica.failures, replica.why, replica.away_until = replica.failures + 1, why, now + pause

    def answered(self, replica: Replica) -> None:
        if replica.failures:
            logging.getLogger(__name__).warning("the server %s is back", replica.address)
        replica.failures, replica.away_until, replica.why = 0, 0.0, ""

    def down(self, seconds: float) -> ServersDown:
        found = "; ".join(f"{r.address} {r.why or 'gives no answer'}" for r in self.all)
        waited = f" for {seconds:,.0f} s" if seconds >= 1 else ""
        return ServersDown(
            f"none of model.servers answers{waited}: {found}. Saved steps and parts are kept. Fix: "
            "start the servers (docs/deploy.md) or correct model.servers, then start the stage "
            "again; it goes on after what is saved."
        )


class Session:
    """The servers, with open connections: for one call of the engine."""

    def __init__(self, replicas: Replicas, client: httpx2.AsyncClient):
        self._replicas = replicas
        self._requests = Requests(client, replicas.key, replicas.settings.server_timeout)
        self._last_answer = time.monotonic()
        self._probing = {r.address: asyncio.Lock() for r in replicas.all}
        free = replicas.settings.server_concurrency
        self._free = {r.address: asyncio.Semaphore(free) for r in replicas.all}

    # ---- rows ------------------------------------------------------------------------------------

    async def answers(
        self,
        requests: Sequence[dict[str, Any]],
        rows: Sequence[int],
        read: Callable[[Mapping[str, Any], int], Result],
        done: Callable[[int], None],
    ) -> list[Result]:
        """One answer for each request to /v1/completions, in their order.

        `read` makes the answer from a reply and the request's number. The first failure ends the
        whole call. Raises ServersDown, ServerRefuses, NotFinite.
        """
        finished = 0

        async def one(n: int) -> Result:
            nonlocal finished
            made = read(await self._row(requests[n], rows[n]), n)
            finished += 1
            done(finished)
            return made

        tasks = [asyncio.create_task(one(n)) for n in range(len(requests))]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _row(self, request: dict[str, Any], row: int) -> Mapping[str, Any]:
        lost = 0
        while True:
            replica = await self._choose(row)
            async with self._free[replica.address]:
                if replica.away_until:  # it went away while this row waited
                    continue
                try:
                    reply = await self._complete(replica, request)
                except Lost as error:
                    self._replicas.failed(replica, str(error))
                    lost += 1
                    if lost == LOST:
                        raise ServersDown(
                            f"a row was lost {LOST} times; at last {replica.address} {error}. "
                            "Saved steps and parts are kept. Fix: look into the server's log, "
                            "raise model.server_timeout or lower model.server_concurrency."
                        ) from None
                    continue
            self._replicas.answered(replica)
            self._last_answer = time.monotonic()
            return reply

    async def _complete(self, replica: Replica, request: dict[str, Any]) -> Mapping[str, Any]:
        content = {**request, "model": self._replicas.model_at(replica)}
        try:
            return _whole(await self._requests.post(replica.address, "v1/completions", content))
        except NotServed:  # a server that was started again has no adapter
            await self._bring_up(replica)
        try:
            return _whole(await self._requests.post(replica.address, "v1/completions", content))
        except NotServed as error:
            raise Lost(f"does not know {content['model']!r} ({error})") from None

    async def _choose(self, row: int) -> Replica:
        """The server for a row: its own, or the next one that answers."""
        replicas = self._replicas.all
        while True:
            order = [replicas[(row + k) % len(replicas)] for k in range(len(replicas))]
            for replica in order:
                if not replica.away_until:
                    return replica
                if time.monotonic() >= replica.away_until and await self._is_back(replica):
                    return replica
            waited = time.monotonic() - self._last_answer
            if waited >= self._replicas.settings.server_patience:
                raise self._replicas.down(waited)
            await asyncio.sleep(
                max(0.02, min(min(r.away_until for r in replicas) - time.monotonic(), 0.5))
            )

    async def _is_back(self, replica: Replica) -> bool:
        async with self._probing[replica.address]:
            if not replica.away_until:
                return True
            if time.monotonic() < replica.away_until:
                return False
            try:
                await self._bring_up(replica)
            except Lost as error:
                replica.away_until, replica.why = 0.0, ""
                self._replicas.failed(replica, str(error))
                return False
            # It counts as back when it has answered a row, and is asked from now on.
            replica.away_until = 0.0
            return True

    # ---- health, models and adapters -------------------------------------------------------------

    async def check(self) -> None:
        """Looks at every server. Raises ServersDown if none answers, and ServerRefuses."""

        async def look(replica: Replica) -> None:
            try:
                await self._bring_up(replica)
            except Lost as error:
                self._replicas.failed(replica, str(error))
            else:
                self._replicas.answered(replica)

        await asyncio.gather(*map(look, self._replicas.all))
        if all(r.away_until for r in self._replicas.all):
            raise self._replicas.down(0)

    async def load_everywhere(self, old: Adapter | None) -> None:
        """Gives the current adapter to all servers, and takes `old` from them."""
        await self._each(self._load)
        if old:
            await self._each(lambda replica: self._unload(replica, old.name))

    async def sweep(self, beginning: str) -> None:
        """Takes adapters from the servers whose folder is gone: those of killed processes."""

        async def at(replica: Replica) -> None:
            for model in await self._served(replica):
                name, path = str(model.get("id")), str(model.get("root"))
                ours = name.startswith(NAME) and path.startswith(beginning)
                if ours and not Path(path).exists():
                    await self._unload(replica, name)

        await self._each(at)

    async def unload_everywhere(self, name: str) -> None:
        await self._each(lambda replica: self._unload(replica, name))

    async def _each(self, work: Callable[[Replica], Awaitable[None]]) -> None:
        """`work` at all servers that are not away; one that fails is away from then on."""

        async def at(replica: Replica) -> None:
            try:
                await work(replica)
            except Lost as error:
                self._replicas.failed(replica, str(error))

        await asyncio.gather(*(at(r) for r in self._replicas.all if not r.away_until))

    async def _bring_up(self, replica: Replica) -> None:
        """Raises Lost, and ServerRefuses where the server serves another model."""
        await self._requests.request(replica.address, "GET", "health", None, PROBE)
        served = await self._served(replica)
        self._check_base(replica, served)
        try:
            version = (await self._requests.get(replica.address, "version")).get("version")
            replica.version = self._requests.shown(str(version or "unknown"))
        except (NotServed, ServerRefuses):
            replica.version = "unknown"
        adapter = self._replicas.adapter
        if adapter and adapter.name not in {m.get("id") for m in served}:
            await self._load(replica)

    async def _served(self, replica: Replica) -> list[Mapping[str, Any]]:
        try:
            reply = await self._requests.get(replica.address, "v1/models")
            return [m for m in reply["data"] if isinstance(m, dict)]
        except (NotServed, KeyError, TypeError):
            raise ServerRefuses(
                f"{replica.address} of model.servers lists no models, so it is no `vllm serve`. "
                "Fix: give the base address of `vllm serve`, without /v1."
            ) from None

    def _check_base(self, replica: Replica, served: list[Mapping[str, Any]]) -> None:
        names = self._replicas.names
        bases = [m for m in served if not m.get("parent")]
        mine = next((m for m in bases if {m.get("id"), m.get("root")} & set(names)), None)
        if mine is None or not isinstance(mine.get("id"), str):
            others = self._requests.shown(", ".join(str(m.get("id")) for m in bases)) or "nothing"
            raise ServerRefuses(
                f"{replica.address} of model.servers serves {others}, and not the model of "
                f"model.id={names[0]!r}. Fix: start it with the same model and "
                f"--served-model-name {names[0]}, or correct model.servers."
            )
        self._replicas.base[replica.address] = str(mine["id"])
        limit = mine.get("max_model_len")
        if not isinstance(limit, int) or limit < 1:
            raise ServerRefuses(
                f"{replica.address} of model.servers does not say its context (max_model_len). "
                "Fix: use `vllm serve` of vllm 0.32."
            )
        replica.context = limit

    async def _load(self, replica: Replica) -> None:
        adapter = self._replicas.adapter
        assert adapter is not None
        content = {"lora_name": adapter.name, "lora_path": str(adapter.path)}
        for attempt in range(2):
            try:
                await self._requests.post(replica.address, "v1/load_lora_adapter", content, LOADING)
                return
            except NotServed as error:
                raise ServerRefuses(
                    f"{replica.address} loads no adapters at run time ({error}). Fix: start it "
                    "with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora, and let it "
                    f"read {adapter.path.parent} (model.adapters_dir)."
                ) from None
            except ServerRefuses as error:
                if attempt or "already been loaded" not in str(error):
                    raise ServerRefuses(
                        f"{error} It was asked to load the adapter in {adapter.path}. Fix: let it "
                        "read that folder (model.adapters_dir), and start it with --enable-lora "
                        "and a --max-lora-rank of at least distillation.lora_rank."
                    ) from None
            # The name holds the hash of the weights, so those that are loaded are the same; but
            # their folder may be gone.
            await self._unload(replica, adapter.name)

    async def _unload(self, replica: Replica, name: str) -> None:
        try:
            await self._requests.post(
                replica.address, "v1/unload_lora_adapter", {"lora_name": name}, LOADING
            )
        except (NotServed, ServerRefuses) as error:
            if "cannot be found" not in str(error):
                logging.getLogger(__name__).warning(
                    "%s keeps the adapter %s: %s", replica.address, name, error
                )


def _whole(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    """The reply, unless the server broke its answer off because it is being stopped."""
    try:
        stopped = reply["choices"][0]["finish_reason"] == "abort"
    except (KeyError, TypeError, IndexError):
        stopped = False
    if stopped:
        raise Lost("broke off an answer")
    return reply
