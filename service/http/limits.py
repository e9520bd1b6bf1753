"""Limits of a request: the size of its head, the size and speed of its body, and its deadline."""

import asyncio
import math
import re
from urllib.parse import unquote_to_bytes

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from service.errors import (
    BadTimeout,
    BodyTooLarge,
    BodyTooSlow,
    EncodedBody,
    HeadTooLarge,
    TargetNotUtf8,
    TargetTooLong,
)
from service.http.problems import RefusedBody

MAX_TARGET_BYTES = 8 * 2**10  # the longest cursor, or id of 256 characters, percent-encoded fits
MAX_PARAMETERS = 50
MAX_HEAD_BYTES = 32 * 2**10  # of all headers
MAX_HEADERS = 100
# Slower than any modem. Without it a client could hold a request for years, one byte at a time.
MIN_BODY_BYTES_PER_S = 4 * 2**10
MAX_TIMEOUT_S = 3_600

_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{0,9})?|\.[0-9]{1,9}")


def check_head(scope: Scope) -> None:
    """Raise TargetTooLong, TargetNotUtf8 or HeadTooLarge. It comes before any other check reads the head."""
    query: bytes = scope["query_string"]
    if (
        len(scope.get("raw_path") or scope["path"]) + len(query) > MAX_TARGET_BYTES
        or query.count(b"&") >= MAX_PARAMETERS
    ):
        raise TargetTooLong(MAX_TARGET_BYTES, MAX_PARAMETERS)
    if b"%" in (sent := scope.get("raw_path") or b""):
        try:
            unquote_to_bytes(sent).decode()
        except UnicodeDecodeError:  # which would reach an id with the replacement character
            raise TargetNotUtf8 from None
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEAD_BYTES:
        raise HeadTooLarge


def check_body_length(headers: Headers, max_bytes: int) -> None:
    """Raise BodyTooLarge if the head already says that the body is too long."""
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise BodyTooLarge(max_bytes)


def check_encoding(headers: Headers) -> None:
    """Raise EncodedBody if the body is packed: a small one could hold a huge text."""
    encoding = headers.get("content-encoding", "").strip()
    if encoding.lower() not in ("", "identity"):
        raise EncodedBody(encoding)


def promises_a_body(headers: Headers) -> bool:
    """Whether the client waits for a go-ahead before it sends the body (RFC 9110, section 10.1.1)."""
    return headers.get("expect", "").lower() == "100-continue" and (
        "transfer-encoding" in headers or headers.get("content-length", "0").strip("0") != ""
    )


def deadline_of(headers: Headers) -> float:
    """When the client gives up, by the event loop's clock; infinite if it does not say. Raises BadTimeout."""
    given = headers.get("x-request-timeout")
    return math.inf if given is None else deadline_after(given)


def deadline_after(given: str) -> float:
    """The deadline of a request with this X-Request-Timeout. Raises BadTimeout."""
    timeout_s = float(given) if _SECONDS.fullmatch(given) else 0.0
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise BadTimeout(given, MAX_TIMEOUT_S)
    return asyncio.get_running_loop().time() + timeout_s


def bounded_body(receive: Receive, max_bytes: int, timeout_s: float) -> Receive:
    """`receive`, but it refuses a body that is longer than its head said, or that stops coming.

    The next part must come within `timeout_s` seconds, and on average MIN_BODY_BYTES_PER_S must come.
    """
    num_bytes, more = 0, True
    started_at = asyncio.get_running_loop().time()

    async def bounded() -> Message:
        nonlocal num_bytes, more
        if not more:  # the next message is the end of the connection, which may take its time
            return await receive()
        slowest = started_at + num_bytes / MIN_BODY_BYTES_PER_S
        waits_since = min(asyncio.get_running_loop().time(), slowest)
        try:
            async with asyncio.timeout_at(waits_since + timeout_s):
                message = await receive()
        except TimeoutError:
            raise RefusedBody(BodyTooSlow(timeout_s)) from None
        num_bytes += len(message.get("body", b""))
        more = message.get("more_body", False)
        if num_bytes > max_bytes:
            raise RefusedBody(BodyTooLarge(max_bytes))
        return message

    return bounded
