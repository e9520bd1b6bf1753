"""Client and AsyncClient: two thin transports. calls.py and many.py know what is sent and how it is read.

Each method is made from one function there, so neither client has code of its own for a route.
"""

import asyncio
import copy
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from glyphrec_client import calls, many
from glyphrec_client.calls import Call
from glyphrec_client.errors import ClientError, shown_url
from glyphrec_client.many import Flow, Found
from glyphrec_client.retries import (
    FAILURES,
    MAX_SERVICE_TIMEOUT_S,
    Outcome,
    Retry,
    Send,
    Wait,
    attempts,
)

P = ParamSpec("P")
T = TypeVar("T")

# Beyond the time that the service was given, so that its own words about a missed deadline still arrive.
GRACE_S = 1.0
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class _Options:
    base_url: httpx.URL
    headers: dict[str, str]
    timeout_s: float | None
    retry: Retry

    def request(self, call: Call[Any], timeout_s: float | None) -> dict[str, Any]:
        """The arguments of httpx' `request` for one try."""
        headers = {**call.headers}
        if timeout_s is not None:
            headers["X-Request-Timeout"] = f"{min(timeout_s, MAX_SERVICE_TIMEOUT_S):.3f}"
        return {
            "method": call.method,
            "url": call.path,
            "params": call.params or None,
            "content": call.content,
            "headers": headers,
            "timeout": None if timeout_s is None else timeout_s + GRACE_S,
        }

    @property
    def of_httpx(self) -> dict[str, Any]:
        """The arguments of httpx' clients. A proxy of the environment is not asked for this machine."""
        return {
            "base_url": self.base_url,
            "headers": self.headers,
            "trust_env": self.base_url.host not in LOOPBACK,
        }


def _options(url: str, key: str | None, timeout_s: float | None, retry: Retry | None) -> _Options:
    try:
        base_url = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise ValueError(f"url {url!r} is no URL: {error}") from error
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ValueError("key has signs that no key of glyphrec has. Give it as `glyphrec key` printed it.")
    _check_timeout(timeout_s)
    headers = {"Accept": "*/*", "User-Agent": "glyphrec-client"} | ({"X-API-Key": key} if key else {})
    return _Options(base_url, headers, timeout_s, retry or Retry())


def _check_timeout(timeout_s: float | None) -> None:
    if timeout_s is not None and not timeout_s > 0:
        raise ValueError(f"timeout_s is {timeout_s}. Give seconds above 0, or None for no limit.")


class _Both:
    """What needs no network, and so is the same for both clients."""

    _options: _Options

    @property
    def base_url(self) -> httpx.URL:
        """The address that was given."""
        return self._options.base_url

    def with_timeout(self, timeout_s: float | None) -> Self:
        """This client with another timeout for each call. Both use the same connections."""
        _check_timeout(timeout_s)
        other = copy.copy(self)
        other._options = replace(self._options, timeout_s=timeout_s)
        return other

    def __repr__(self) -> str:
        return f"{type(self).__name__}({shown_url(self.base_url)!r})"


def _as_method(method: Any, make: Callable[..., Any]) -> None:
    """Let `method` have the signature of `make` behind `self`; wraps() alone would hide an argument."""
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    made = inspect.signature(make)
    method.__signature__ = made.replace(
        parameters=[itself, *made.parameters.values()], return_annotation=inspect.Signature.empty
    )


def _ask(make: Callable[P, Call[T]]) -> "Callable[Concatenate[Client, P], T]":
    @wraps(make)
    def method(client: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return client.send(make(*args, **kwargs))

    _as_method(method, make)
    return method


def _each(make: Callable[P, Flow[T]]) -> "Callable[Concatenate[Client, P], Iterator[T]]":
    @wraps(make)
    def method(client: "Client", /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return client.follow(make(*args, **kwargs))

    _as_method(method, make)
    return method


def _ask_async(make: Callable[P, Call[T]]) -> "Callable[Concatenate[AsyncClient, P], Awaitable[T]]":
    @wraps(make)
    async def method(client: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await client.send(make(*args, **kwargs))

    _as_method(method, make)
    return method


def _each_async(make: Callable[P, Flow[T]]) -> "Callable[Concatenate[AsyncClient, P], AsyncIterator[T]]":
    @wraps(make)
    def method(client: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return client.follow(make(*args, **kwargs))

    _as_method(method, make)
    return method


class Client(_Both):
    """Asks a service, and waits for the answer. Several threads may share one client.

    >>> with Client(url) as client:
    ...     client.ready().status
    'ready'
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        *,
        timeout_s: float | None = 30.0,
        retry: Retry | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`url` is the address of the service, perhaps with a path, and `key` one of its API keys.

        A call with all its tries takes at most about `timeout_s` seconds; None: any time. The service is told
        what is left of it (X-Request-Timeout). `transport` is one of httpx, for example with certificates of
        its own or for a socket of the file system.

        Raises ValueError for an address or key that is none.
        """
        self._options = _options(url, key, timeout_s, retry)
        self._http = httpx.Client(**self._options.of_httpx, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def send(self, call: Call[T]) -> T:
        """Make a call, and repeat it where that is safe. Raises ClientError."""
        options = self._options
        steps = attempts(call, options.base_url, options.retry, options.timeout_s, time.monotonic)
        outcome: Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                result: T = done.value
                return result
            match step:
                case Wait(seconds):
                    time.sleep(seconds)
                    outcome = None
                case Send(timeout_s):
                    try:
                        outcome = self._http.request(**options.request(call, timeout_s))
                    except FAILURES as error:
                        outcome = error

    def follow(self, flow: Flow[T]) -> Iterator[T]:
        """Make the calls of a flow as its values are wanted."""
        answer: Any = None
        error: ClientError | None = None
        while True:
            try:
                step = flow.send(answer) if error is None else flow.throw(error)
            except StopIteration:
                return
            answer = error = None
            if isinstance(step, Found):
                yield step.value
                continue
            try:
                answer = self.send(step)
            except ClientError as problem:
                error = problem

    recommend = _ask(calls.recommend)
    rank = _ask(calls.rank)
    recommend_batch = _ask(calls.recommend_batch)
    search = _ask(calls.search)
    send_events = _ask(calls.send_events)
    put_items = _ask(calls.put_items)
    put_item = _ask(calls.put_item)
    put_many = _each(many.put_many)
    all_items = _each(many.all_items)
    list_items = _ask(calls.list_items)
    get_item = _ask(calls.get_item)
    patch_item = _ask(calls.patch_item)
    delete_item = _ask(calls.delete_item)
    similar_items = _ask(calls.similar_items)
    get_image = _ask(calls.get_image)
    put_image = _ask(calls.put_image)
    delete_image = _ask(calls.delete_image)
    info = _ask(calls.info)
    ready = _ask(calls.ready)
    live = _ask(calls.live)
    bundles = _ask(calls.bundles)
    change_bundle = _ask(calls.change_bundle)
    any_json = _ask(calls.any_json)


class AsyncClient(_Both):
    """As Client, for asyncio. Every method is awaited; `put_many` and `all_items` are for `async for`.

    >>> async def ask():
    ...     async with AsyncClient(url) as client:
    ...         page = await client.recommend(["item-0"], limit=2)
    ...         titles = [each.item["title"] async for each in client.all_items()]
    ...         return len(page.items), "Thing number 7" in titles
    >>> asyncio.run(ask())
    (2, True)
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        *,
        timeout_s: float | None = 30.0,
        retry: Retry | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """As Client."""
        self._options = _options(url, key, timeout_s, retry)
        self._http = httpx.AsyncClient(**self._options.of_httpx, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def send(self, call: Call[T]) -> T:
        """Make a call, and repeat it where that is safe. Raises ClientError."""
        options = self._options
        steps = attempts(call, options.base_url, options.retry, options.timeout_s, time.monotonic)
        outcome: Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                result: T = done.value
                return result
            match step:
                case Wait(seconds):
                    await asyncio.sleep(seconds)
                    outcome = None
                case Send(timeout_s):
                    try:
                        outcome = await self._http.request(**options.request(call, timeout_s))
                    except FAILURES as error:
                        outcome = error

    async def follow(self, flow: Flow[T]) -> AsyncIterator[T]:
        """Make the calls of a flow as its values are wanted."""
        answer: Any = None
        error: ClientError | None = None
        while True:
            try:
                step = flow.send(answer) if error is None else flow.throw(error)
            except StopIteration:
                return
            answer = error = None
            if isinstance(step, Found):
                yield step.value
                continue
            try:
                answer = await self.send(step)
            except ClientError as problem:
                error = problem

    recommend = _ask_async(calls.recommend)
    rank = _ask_async(calls.rank)
    recommend_batch = _ask_async(calls.recommend_batch)
    search = _ask_async(calls.search)
    send_events = _ask_async(calls.send_events)
    put_items = _ask_async(calls.put_items)
    put_item = _ask_async(calls.put_item)
    put_many = _each_async(many.put_many)
    all_items = _each_async(many.all_items)
    list_items = _ask_async(calls.list_items)
    get_item = _ask_async(calls.get_item)
    patch_item = _ask_async(calls.patch_item)
    delete_item = _ask_async(calls.delete_item)
    similar_items = _ask_async(calls.similar_items)
    get_image = _ask_async(calls.get_image)
    put_image = _ask_async(calls.put_image)
    delete_image = _ask_async(calls.delete_image)
    info = _ask_async(calls.info)
    ready = _ask_async(calls.ready)
    live = _ask_async(calls.live)
    bundles = _ask_async(calls.bundles)
    change_bundle = _ask_async(calls.change_bundle)
    any_json = _ask_async(calls.any_json)
