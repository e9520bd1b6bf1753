"""Asks a running service, and tells its answers from those of whatever answers in its place.

A proxy, a login page or another program may answer with any status, headers and body. Each ends in one line
that says what came, and from where.
"""

import email.utils
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx

from service.errors import GlyphrecError

TIMEOUT_S = 600.0  # a batch of long texts is slow on a small machine
MAX_TRIES = 30
MAX_WAIT_S = 60.0  # whatever Retry-After says
MAX_SHOWN = 200  # characters of somebody else's answer
OUR_PROBLEMS = "urn:glyphrec:problem:"
STATUSES = frozenset({"created", "moved", "updated", "unchanged", "failed"})

# Passing troubles of the service, and of a proxy that does not reach it. Each request may be repeated.
PASSING = frozenset({408, 429, 502, 503, 504})
HINTS = {
    401: "Something in front of the service asks for credentials of its own.",
    403: "Something in front of the service refuses the request.",
    404: "Check --url: is the service there, and under that path?",
    405: "Check --url: is the service there, and under that path?",
    407: "A proxy asks for credentials. Set them in HTTP_PROXY, or leave this host out with NO_PROXY.",
    413: "A proxy takes smaller bodies only. Give a smaller --batch, or raise its limit.",
    502: "A proxy does not reach the service.",
    503: "A proxy does not reach the service.",
    504: "A proxy waits less long than the service needs. Give a smaller --batch, or raise its timeout.",
}


@contextmanager
def connected(url: str, key: str | None) -> Iterator[httpx.Client]:
    """A client of the service at this address. Raises GlyphrecError for an address or key that is none."""
    if key is not None and not (key.isascii() and key.isprintable()):
        raise GlyphrecError(
            "--key: has signs that no key of glyphrec has. Give it as `glyphrec key` printed it."
        )
    headers = {"X-API-Key": key} if key else {}
    try:
        base = httpx.URL(url)
        here = base.host in {"localhost", "127.0.0.1", "::1"}  # no proxy for this machine
        client = httpx.Client(base_url=base, headers=headers, timeout=TIMEOUT_S, trust_env=not here)
    except (httpx.InvalidURL, ValueError) as error:  # ValueError: the address of a proxy in the environment
        raise GlyphrecError(f"--url {url}: cannot be asked ({error}).") from error
    with client:
        yield client


def ask(client: httpx.Client, method: str, path: str, **request: Any) -> Any:
    """The answer's JSON. Waits as long as trouble is passing.

    Raises GlyphrecError, if the service refuses the request with its words.
    """
    for tries_left in reversed(range(MAX_TRIES)):
        response = _once(client, method, path, **request)
        if response.status_code not in PASSING or not tries_left:
            break
        time.sleep(wait_s(response.headers.get("retry-after", "")))
    where, status = _shown_url(response.url), response.status_code
    if response.is_redirect:
        target = _one_line(response.headers.get("location", "nowhere"))
        raise GlyphrecError(f"{where}: redirects to {target}. Give the address of the service with --url.")
    try:
        answer = response.json()
    except (ValueError, RecursionError):
        hint = HINTS.get(status, "Another program answers there. Check --url.")
        raise GlyphrecError(f"{where}: answered {status} without JSON. {hint}") from None
    if response.is_error:
        is_ours = isinstance(answer, dict) and str(answer.get("type")).startswith(OUR_PROBLEMS)
        if is_ours and isinstance(answer.get("detail"), str):
            raise GlyphrecError(f"{where}: {status} {answer['detail']}")
        told = _one_line(json.dumps(answer, ensure_ascii=False))
        raise GlyphrecError(f"{where}: answered {status} {told}. {HINTS.get(status, 'Check --url.')}")
    if not response.is_success:
        raise not_ours(client, f"status {status}")
    return answer


def results_of(client: httpx.Client, answer: Any, num_items: int) -> list[dict[str, Any]]:
    """The results in an answer to POST /items, one for each item. Raises GlyphrecError for other answers."""
    rows = answer.get("items") if isinstance(answer, dict) else None
    if not isinstance(rows, list) or len(rows) != num_items or not all(map(_is_result, rows)):
        raise not_ours(client, json.dumps(answer, ensure_ascii=False))
    return rows


Kinds = Mapping[str, type | tuple[type, ...]]


def has(answer: Any, kinds: Kinds) -> bool:
    """Whether an answer is an object with these fields of these types."""
    return isinstance(answer, dict) and all(
        name in answer and isinstance(answer[name], kind) for name, kind in kinds.items()
    )


def not_ours(client: httpx.Client, told: str) -> GlyphrecError:
    """The error for an answer that no release of the service gives."""
    return GlyphrecError(
        f"{_shown_url(client.base_url)}: answers, but not as glyphrec does: {_one_line(told)}. Check --url."
    )


def wait_s(retry_after: str) -> float:
    """Seconds to wait: RFC 9110, section 10.2.3, has seconds or a date. 1 for anything else."""
    if re.fullmatch(r"[0-9]{1,9}", retry_after.strip()):
        return min(float(retry_after), MAX_WAIT_S)
    try:
        until = email.utils.parsedate_to_datetime(retry_after)
    except (TypeError, ValueError):
        return 1.0
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return min(max(0.0, (until - datetime.now(UTC)).total_seconds()), MAX_WAIT_S)


def _once(client: httpx.Client, method: str, path: str, **request: Any) -> httpx.Response:
    where = _shown_url(client.base_url)
    try:
        return client.request(method, path, **request)
    except httpx.DecodingError as error:
        raise GlyphrecError(f"{where}: the answer cannot be unpacked ({error}). Check --url.") from error
    except (httpx.RequestError, httpx.InvalidURL) as error:
        raise GlyphrecError(
            f"{where}: no service answers there ({_one_line(str(error))}). `glyphrec serve --bundle DIR` "
            "starts one."
        ) from error


def _is_result(row: Any) -> bool:
    if not has(row, {"status": str}) or row["status"] not in STATUSES:
        return False
    error, unused = row.get("error"), row.get("unused_values", [])
    is_told = error is None or has(error, {"detail": str})
    return (
        is_told
        and isinstance(unused, list)
        and all(has(each, {"field": str, "reason": str}) for each in unused)
    )


def _shown_url(url: httpx.URL) -> str:
    """Without a password."""
    return str(url.copy_with(username=None, password=None)).rstrip("/")


def _one_line(text: str) -> str:
    """Cut, and without signs that a terminal obeys."""
    line = "".join(sign if sign.isprintable() else " " for sign in text[: MAX_SHOWN + 1])
    return line if len(text) <= MAX_SHOWN else line[:MAX_SHOWN] + "…"
