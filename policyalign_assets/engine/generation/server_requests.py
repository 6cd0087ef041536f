"""Requests to one `vllm serve`, and what its replies mean.

The server is not trusted with more than its answers: replies are bounded in size, nesting and time,
redirects are not followed, and its words are shortened before they are shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from policyalign_assets.endpoint import FAULT, loads, shown, why_unreachable
from policyalign_assets.engine.base import EngineUnavailable, NotFinite

if TYPE_CHECKING:
    import httpx2

PROBE = 20.0  # seconds for a look at a server's health and models
# The last words of a server whose reply would hold NaN, which JSON cannot.
NOT_FINITE = "not JSON compliant"


class ServerRefuses(EngineUnavailable):
    """A server does not take a request, or serves something else. Nothing mends itself here."""


class Lost(Exception):
    """A server gave no answer this time."""


class NotServed(Exception):
    """A server does not know the model or the adapter, or has no such endpoint."""


class Requests:
    """Sends requests by an open client. `timeout`: seconds for a reply, if no other is given.

    All methods raise Lost, NotServed, ServerRefuses and NotFinite.
    """

    def __init__(self, client: httpx2.AsyncClient, key: str, timeout: float):
        self._client, self._key, self._timeout = client, key, timeout

    def shown(self, text: str) -> str:
        """The beginning of a server's words, without the key."""
        return shown(text, self._key)

    async def get(self, address: str, path: str) -> Mapping[str, Any]:
        return self._object(address, await self.request(address, "GET", path, None, PROBE))

    async def post(
        self, address: str, path: str, content: dict[str, Any], seconds: float | None = None
    ) -> Mapping[str, Any]:
        body = await self.request(address, "POST", path, content, seconds)
        return self._object(address, body) if path == "v1/completions" else {}

    def _object(self, address: str, body: bytes) -> Mapping[str, Any]:
        try:
            read = loads(body.decode("utf-8", "replace"))
        except ValueError:
            read = None
        if not isinstance(read, dict):
            raise ServerRefuses(
                f"{address} of model.servers does not reply as `vllm serve` does. Fix: "
                "give the base address of `vllm serve`, without /v1."
            )
        return read

    async def request(
        self,
        address: str,
        method: str,
        path: str,
        content: dict[str, Any] | None,
        seconds: float | None,
    ) -> bytes:
        """The body of a reply of status 200. Raises Lost, NotServed, ServerRefuses, NotFinite."""
        import httpx2

        limit = seconds or self._timeout
        try:
            async with asyncio.timeout(limit):
                reply = await self._client.request(method, f"{address}/{path}", json=content)
        except (httpx2.TimeoutException, TimeoutError):
            raise Lost(f"gave no reply within {limit:,.0f} s") from None
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise Lost(why_unreachable(error)) from None
        if reply.status_code == 200:
            if fault := reply.extensions.get(FAULT):
                raise ServerRefuses(f"{address}: {fault}.")
            return reply.content
        said = self.shown(reply.text)
        if NOT_FINITE in reply.text:
            raise NotFinite(
                f"the model at {address} gives logits that are not numbers (start that "
                "server again before another attempt, since its cache may keep them)"
            )
        if reply.status_code == 404:
            raise NotServed(f"HTTP 404: {said}")
        message = f"answers with HTTP {reply.status_code}" + (f": {said}" if said else "")
        refused = reply.status_code == 500 and path == "v1/load_lora_adapter"  # a bad adapter
        if (reply.status_code in (408, 425, 429) or reply.status_code >= 500) and not refused:
            raise Lost(message)
        raise ServerRefuses(f"{address} of model.servers {message}.")
