"""One client for OpenAI-compatible chat endpoints: judges and generators ask through it.

The server is not trusted. A reply is bounded in size (also after decompression), in nesting depth
and in time; redirects are not followed; where the deployment names allowed hosts, others are
refused. Time-outs, lost connections, 408, 409, 429 and 5xx are tried again with growing random
pauses. The API key is read once and appears in no message.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import re
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from policyalign_assets.settings import EndpointSettings, SettingsError, may_hold_a_key

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI

HOSTS_VARIABLE = "POLICYALIGN_ENDPOINT_HOSTS"
MAX_REPLY = 4 * 1024 * 1024  # bytes of one reply, decompressed
MAX_NESTING = 64  # levels of one reply's JSON
HEADERS = 4  # times the timeout: against headers that come byte by byte
SHOWN = 200  # characters of an error's body that a message shows
NO_COMPLETION = "the endpoint's reply is not that of a chat completion"
FAULT = "policyalign_fault"  # where the transport leaves what is wrong with a reply

Result = TypeVar("Result")


class EndpointDown(ConnectionError):
    """The endpoint cannot be reached, or has no time. The same call may succeed later."""


class EndpointRefuses(ValueError):
    """The endpoint does not take the request as it is."""


class NotACompletion(ValueError):
    """The endpoint replied, but not with a chat completion."""


@dataclass(frozen=True)
class Completion:
    """`text` is None where there is none at all. `cut`: it reached the token limit. `declined`: a
    filter of the provider took the place of an answer, or the provider's refusal field is set.
    `tokens`: None where the server gives no log-probabilities, or none that can be read."""

    text: str | None
    cut: bool
    declined: bool
    tokens: tuple[Token, ...] | None = None


@dataclass(frozen=True)
class Token:
    """A token of an answer, with the likeliest tokens in its place: {text: log-probability}."""

    text: str
    log_probability: float
    likeliest: dict[str, float]


class Endpoint:
    """`who` begins every message, for example "the judge"; `section` names the settings.

    Raises SettingsError where the API key is missing or the host is not allowed.
    """

    def __init__(self, settings: EndpointSettings, section: str, who: str) -> None:
        self.settings, self.section, self.who = settings, section, who
        check_host(settings.base_url or "", section)
        self._key = read_key(settings.api_key_variable, section)
        self._tls = _tls(settings.ca_file, section)

    def run(self, work: Callable[[Asker], Awaitable[Result]]) -> Result:
        """`work` with an open client; see `run_async`."""

        async def opened() -> Result:
            async with self._opened() as asker:
                return await work(asker)

        return run_async(opened)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Asker]:
        import httpx2
        from openai import AsyncOpenAI

        s = self.settings
        transport = bounded_transport(httpx2.AsyncHTTPTransport(verify=self._tls), s.timeout)
        async with (
            httpx2.AsyncClient(transport=transport, follow_redirects=False) as http,
            AsyncOpenAI(
                base_url=s.base_url,
                api_key=self._key,
                timeout=s.timeout,
                max_retries=s.retries,
                http_client=http,
            ) as client,
        ):
            yield Asker(client, self)

    def shown(self, text: str) -> str:
        """See `shown`."""
        return shown(text, self._key)


class Asker:
    """Asks an open endpoint."""

    def __init__(self, client: AsyncOpenAI, endpoint: Endpoint) -> None:
        self._client, self._endpoint = client, endpoint

    async def ask(
        self,
        messages: Sequence[Mapping[str, str]],
        max_tokens: int,
        temperature: float,
        seed: int | None = None,
        top_logprobs: int | None = None,
    ) -> Completion:
        """Raises EndpointDown, EndpointRefuses or NotACompletion, after all retries.

        top_logprobs: also ask for log-probabilities, of so many tokens at each place.
        """
        import openai

        who, settings = self._endpoint.who, self._endpoint.settings
        parameters: dict[str, object] = {
            settings.token_parameter: max_tokens,
            "temperature": temperature,
            **({} if seed is None else {"seed": seed}),
            **({} if top_logprobs is None else {"logprobs": True, "top_logprobs": top_logprobs}),
        }
        for name in settings.omit_parameters:
            parameters.pop(name, None)
        try:
            raw = await self._client.chat.completions.with_raw_response.create(
                model=settings.model or "",
                messages=[dict(m) for m in messages],  # type: ignore[misc]
                extra_body={**parameters, **settings.extra_parameters},
            )
        except openai.APITimeoutError:
            raise EndpointDown(f"{who} gave no reply in time") from None
        except openai.APIConnectionError as error:
            raise EndpointDown(f"{who}'s endpoint {why_unreachable(error)}") from None
        except openai.APIStatusError as error:
            raise self._status(error.status_code, error.response) from None
        except (openai.OpenAIError, ValueError, TypeError) as error:
            raise NotACompletion(f"{NO_COMPLETION} ({type(error).__name__})") from None
        fault = raw.http_response.extensions.get(FAULT)
        if fault:
            raise NotACompletion(fault)
        return read_completion(raw.http_response.content)

    def _status(self, code: int, response: httpx2.Response) -> EndpointDown | EndpointRefuses:
        endpoint = self._endpoint
        if 300 <= code < 400:
            return EndpointRefuses(
                f"{endpoint.who}'s endpoint redirects to another address (HTTP {code}), which is "
                f"not followed. Fix: give the final address as {endpoint.section}.base_url"
            )
        body = endpoint.shown(response.text)
        message = f"{endpoint.who}'s endpoint answers with HTTP {code}" + (
            f": {body}" if body else ""
        )
        if code in (408, 409, 429) or code >= 500:
            return EndpointDown(message)
        return EndpointRefuses(message + _fix(body, endpoint.section))


def run_async(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Runs `work` in this thread, or inside a notebook's event loop in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work()).result()


def shown(text: str, key: str) -> str:
    """The beginning of untrusted text for a message: one line, without the key or its like."""
    if len(key) > 4:
        text = text.replace(key, "[key]")
    text = re.sub(r"(?i)\b(?:bearer\s+|sk-|key-|token-)[\w.*-]{6,}", "[key]", text)
    text = re.sub(r"[^\x20-\x7e\u00a1-\uffff]+", " ", " ".join(text.split()))
    # numbers of requests differ from reply to reply, and equal faults are counted together
    text = re.sub(r"\b(?=[\w-]*\d)[0-9a-zA-Z_-]{12,}\b", "…", text)
    return text[:SHOWN]


def read_completion(body: bytes) -> Completion:
    """Raises NotACompletion for anything that is no chat completion."""
    try:
        said = loads(body.decode("utf-8", "replace"))
        choice = said["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text, refusal = _text(message.get("content")), message.get("refusal")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise NotACompletion(NO_COMPLETION) from None
    declined = finish == "content_filter" or (not text and bool(refusal))
    if declined and not text and isinstance(refusal, str):
        text = refusal
    return Completion(text, finish == "length", declined, _tokens(choice.get("logprobs")))


def _tokens(logprobs: object) -> tuple[Token, ...] | None:
    """The tokens of a reply, or None where it has none or they are not as the API says."""
    try:
        found = tuple(
            Token(
                _token_text(one),
                _log_probability(one),
                {_token_text(t): _log_probability(t) for t in one.get("top_logprobs") or ()},
            )
            for one in logprobs["content"]  # type: ignore[index]
        )
    except (TypeError, KeyError, ValueError, AttributeError):
        return None
    return found or None


def _token_text(token: Mapping[str, object]) -> str:
    text = token["token"]
    if not isinstance(text, str):
        raise ValueError("a token is no text")
    return text


def _log_probability(token: Mapping[str, object]) -> float:
    value = float(token["logprob"])  # type: ignore[arg-type]
    if not value <= 1e-3:  # rounding may lift it above 0 a little; NaN is refused too
        raise ValueError("a log-probability is above 0")
    return value


def loads(text: str, **options: Any) -> Any:
    """`json.loads` for untrusted text. Raises ValueError, also for what is nested too deeply."""
    depth = deepest = 0
    for bracket in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', text):
        depth += (bracket[0] in "[{") - (bracket[0] in "]}")
        deepest = max(deepest, depth)
    if deepest > MAX_NESTING:
        raise ValueError("nested too deeply")
    return json.loads(text, **options)


def check_host(
    base_url: str,
    section: str,
    environ: Mapping[str, str] | None = None,
    field: str = "base_url",
) -> None:
    """Raises SettingsError for a link-local address, and for a host that is not on the list of
    the deployment (POLICYALIGN_ENDPOINT_HOSTS: names with wildcards, separated by commas)."""
    host = (urlsplit(base_url).hostname or "").rstrip(".")
    allowed = (os.environ if environ is None else environ).get(HOSTS_VARIABLE, "")
    patterns = [p.strip().lower() for p in allowed.split(",") if p.strip()]
    if patterns and not any(fnmatch(host, p) for p in patterns):
        raise SettingsError(
            f"{section}.{field} names the host {host!r}, which {HOSTS_VARIABLE} does not allow. "
            f"Fix: use one of {', '.join(patterns)}, or ask whoever runs the deployment."
        )
    if _link_local(host):
        raise SettingsError(
            f"{section}.{field} names {host!r}, a link-local address, where clouds keep the "
            f"credentials of a machine. Fix: give the address of a model server."
        )


def _link_local(host: str) -> bool:
    if host in ("metadata", "metadata.google.internal", "instance-data"):
        return True
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        try:  # "2852039166" and "0xa9fea9fe" are addresses too
            address = ipaddress.ip_address(int(host, 0))
        except ValueError:
            return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_link_local or str(address) == "fd00:ec2::254"


def read_key(variable: str | None, section: str, field: str = "api_key_variable") -> str:
    """The key that the environment variable holds; "none" without a variable.

    Raises SettingsError where the variable may hold another secret, or is not set.
    """
    if not variable:
        return "none"
    if not may_hold_a_key(variable):
        raise SettingsError(
            f"{section}.{field} names {variable}, which may be any secret of this "
            "machine. Fix: name a variable like POLICYALIGN_JUDGE_KEY, or list this one in "
            "POLICYALIGN_KEY_VARIABLES where the deployment is set up."
        )
    if not os.environ.get(variable):
        raise SettingsError(
            f"{section}.{field} names {variable}, which is not set. "
            "Fix: set it, or unset the setting."
        )
    return os.environ[variable]


def _tls(ca_file: str | None, section: str) -> ssl.SSLContext | bool:
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"{section}.ca_file={ca_file!r} cannot be read as certificates ({error}). "
            "Fix: give a PEM file."
        ) from None


def why_unreachable(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"has a TLS certificate that is not trusted ({cause.verify_message}). "
                "Fix: name the certificate authority in ca_file"
            )
        if isinstance(cause, ssl.SSLError):
            return f"fails in TLS ({cause.reason or 'unknown reason'}). Fix: is it http or https?"
        cause = cause.__cause__ or cause.__context__
    return "cannot be reached"


def _fix(body: str, section: str) -> str:
    """What the reply of a server that refuses a parameter suggests."""
    said = body.lower()
    if "max_completion_tokens" in said:
        return f". Fix: {section}.token_parameter=max_completion_tokens"
    for name in ("temperature", "seed"):
        if name in said and re.search(r"unsupported|not support|does not|only the default", said):
            return f'. Fix: {section}.omit_parameters=["{name}"]'
    return ""


def _text(content: object) -> str | None:
    """The words of a message, which may come in parts."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [p if isinstance(p, str) else p.get("text") for p in content]
        return "".join(p for p in parts if isinstance(p, str))
    raise ValueError("no text")


# ---- a transport that reads no more than it should -----------------------------------------------
def bounded_transport(
    inner: httpx2.AsyncBaseTransport, seconds: float, most: int = MAX_REPLY
) -> httpx2.AsyncBaseTransport:
    """`inner`, whose replies are bounded in size (`most` bytes) and in time.

    What is wrong with a reply's body stands in its extensions under FAULT.
    """
    import httpx2

    class Bounded(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            request.headers["Accept-Encoding"] = "identity"
            try:
                # waiting for a connection and for the headers has limits of the client's own
                async with asyncio.timeout(HEADERS * seconds):
                    response = await inner.handle_async_request(request)
                try:
                    async with asyncio.timeout(seconds):
                        body, fault = await _body(response, most)
                finally:
                    await response.aclose()
            except TimeoutError:
                raise httpx2.ReadTimeout("no complete reply in time", request=request) from None
            headers = [
                (name, value)
                for name, value in response.headers.multi_items()
                if name.lower() not in ("content-encoding", "content-length", "transfer-encoding")
            ]
            return httpx2.Response(
                response.status_code,
                headers=headers,
                content=body,
                extensions={FAULT: fault} if fault else {},
                request=request,
            )

        async def aclose(self) -> None:
            await inner.aclose()

    return Bounded()


async def _body(response: httpx2.Response, most: int) -> tuple[bytes, str | None]:
    """The decompressed body, or what is wrong with it."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
        return b"", f"the endpoint's reply is compressed as {encoding[:20]!r}, which is not read"
    unpack = zlib.decompressobj(47) if encoding not in ("identity", "") else None
    made = bytearray()
    assert not isinstance(response.stream, (bytes, str))
    async for chunk in response.stream:  # type: ignore[union-attr]
        try:
            made += unpack.decompress(chunk, most + 1 - len(made)) if unpack else chunk
        except zlib.error:
            return b"", "the endpoint's reply is not compressed as it says"
        if len(made) > most:
            return b"", f"the endpoint's reply is larger than {most // 2**20} MiB"
    return bytes(made), None
