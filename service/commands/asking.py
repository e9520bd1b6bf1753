"""Asks a running service, and tells its answers from those of whatever answers in its place.

A proxy, a login page or another program may answer with any status, headers and body. Each ends in one line
that says what came, and from where.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from glyphrec_client import Client, NoAnswer, ProblemError, Retry, UnexpectedAnswer
from glyphrec_client import picture as picture  # for the commands, which ask by this room alone
from glyphrec_client.errors import one_line, shown_url
from service.errors import GlyphrecError

TIMEOUT_S = 600.0  # of a request with all its tries: a batch of long texts is slow on a small machine
MAX_TRIES = 30
RETRY = Retry(max_tries=MAX_TRIES, first_wait_s=1.0, growth=1.0, jitter=0.0, after_no_answer=False)
STATUSES = frozenset({"created", "moved", "updated", "unchanged", "failed"})

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
def connected(url: str, key: str | None) -> Iterator[Client]:
    """A client of the service at this address. Raises GlyphrecError for an address or key that is none."""
    if key is not None and not (key.isascii() and key.isprintable()):
        raise GlyphrecError(
            "--key: has signs that no key of glyphrec has. Give it as `glyphrec key` printed it."
        )
    try:
        client = Client(url, key, timeout_s=TIMEOUT_S, retry=RETRY)
    except (httpx.InvalidURL, ValueError) as error:  # also for the address of a proxy in the environment
        raise GlyphrecError(f"--url {url}: cannot be asked ({error.__cause__ or error}).") from error
    with client:
        yield client


def ask(client: Client, method: str, path: str, body: Any = None) -> Any:
    """The answer's JSON. Waits as long as trouble is passing.

    Raises GlyphrecError, if the service refuses the request with its words.
    """
    try:
        return client.any_json(method, path, body)
    except ProblemError as error:
        raise GlyphrecError(f"{shown_url(error.response.url)}: {error.status} {error.detail}") from error
    except UnexpectedAnswer as error:
        raise _unexpected(client, error) from error
    except NoAnswer as error:
        where, reason = shown_url(client.base_url), one_line(str(error.__cause__))
        if isinstance(error.__cause__, httpx.DecodingError):
            told = f"{where}: the answer cannot be unpacked ({reason}). Check --url."
        else:
            told = f"{where}: no service answers there ({reason}). `glyphrec serve --bundle DIR` starts one."
        raise GlyphrecError(told) from error


def results_of(client: Client, answer: Any, num_items: int) -> list[dict[str, Any]]:
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


def not_ours(client: Client, told: str) -> GlyphrecError:
    """The error for an answer that no release of the service gives."""
    return GlyphrecError(
        f"{shown_url(client.base_url)}: answers, but not as glyphrec does: {one_line(told)}. Check --url."
    )


def _unexpected(client: Client, error: UnexpectedAnswer) -> GlyphrecError:
    response = error.response
    where, status = shown_url(response.url), response.status_code
    if response.is_redirect:
        target = one_line(response.headers.get("location", "nowhere"))
        return GlyphrecError(f"{where}: redirects to {target}. Give the address of the service with --url.")
    if not error.has_json:
        hint = HINTS.get(status, "Another program answers there. Check --url.")
        return GlyphrecError(f"{where}: answered {status} without JSON. {hint}")
    if response.is_error:
        told = one_line(json.dumps(error.value, ensure_ascii=False))
        return GlyphrecError(f"{where}: answered {status} {told}. {HINTS.get(status, 'Check --url.')}")
    return not_ours(client, f"status {status}")


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
