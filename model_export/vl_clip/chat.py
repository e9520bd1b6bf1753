"""Questions to a server that speaks the OpenAI chat protocol: a budget, retries, and a cache of all answers.

An answer is stored under a hash of the model's name and the whole question. So a second run asks nothing, and
a run that ended early goes on where it was. The address of the server is not part of the key.
"""

import hashlib
import json
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import httpx

from model_export.files import check_folder, read_or_remove
from model_export.vl_clip.refinement_settings import PREFIX, RefinementSettings
from service.core.whole_files import write_whole
from service.errors import GlyphrecError

FIRST_PAUSE_S = 1.0  # before the first retry; it doubles each time
RETRIED = {
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.CONFLICT,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
}
HOPELESS = {HTTPStatus.UNAUTHORIZED, HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}
MAX_ANSWER_BYTES = 4 * 2**20
SHOWN_CHARS = 200  # of what the server said
LETTERS_PER_TOKEN = 4  # for servers that do not count tokens

Message = dict[str, Any]


class ChatFailed(GlyphrecError):
    """One question has no answer. Others may have."""


class ServerUnusable(GlyphrecError):
    """No question will have an answer: the key is refused, or nobody listens."""


class BudgetSpent(GlyphrecError):
    """The budget of requests or tokens is used up."""


class Chat:
    """Asks questions. Several threads may use it at once."""

    def __init__(
        self,
        settings: RefinementSettings,
        folder: Path,
        *,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """`folder` keeps the answers. Raises GlyphrecError if it cannot be written."""
        check_folder(folder, "--cache")
        self._settings, self._folder, self._pause = settings, folder, pause
        secret = settings.secret()
        self._client = httpx.Client(
            headers={} if secret is None else {"Authorization": f"Bearer {secret}"},
            timeout=settings.timeout_s,
        )
        self._lock = threading.Lock()
        self.num_requests = self.num_tokens = self.num_cached = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, messages: list[Message]) -> str:
        """The answer to a question, from the cache if it was asked before.

        Raises ChatFailed, ServerUnusable or BudgetSpent.
        """
        body = {
            "model": self._settings.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": self._settings.answer_tokens,
        }
        key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        path = self._folder / key[:2] / f"{key}.json"
        if path.is_file() and (kept := read_or_remove(path, _kept_answer)) is not None:
            with self._lock:
                self.num_cached += 1
            return kept
        answer = self._asked(body)
        path.parent.mkdir(exist_ok=True)
        write_whole(
            path, lambda partial: partial.write_text(json.dumps({"answer": answer}), encoding="utf-8")
        )
        return answer

    def _asked(self, body: dict[str, Any]) -> str:
        reason, wait_s = "", 0.0
        for attempt in range(self._settings.retries + 1):
            if attempt:
                self._pause(wait_s)
            self._spend_request()
            last = attempt == self._settings.retries
            pause_s = FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1.0)
            wait_s = min(pause_s, self._settings.max_pause_s)
            try:
                response = self._sent(body)
            except httpx.ConnectError as error:
                if last:
                    raise ServerUnusable(
                        f"{self._settings.url}: nobody answers ({error}). Start the server or correct "
                        f"{PREFIX}URL, and run the command again; answers so far are kept."
                    ) from None
                reason = str(error)
                continue
            except httpx.HTTPError as error:  # slow, cut off, or no HTTP
                reason = f"{type(error).__name__}: {error}"
                continue
            if response.status_code == HTTPStatus.OK:
                answer, reason = self._read(response, body)
                if answer is not None:
                    return answer
                continue
            reason = f"status {response.status_code}: {_shown(response)}"
            if response.status_code in HOPELESS:
                raise ServerUnusable(
                    f"{self._settings.url}: refuses to answer ({reason}). Check {PREFIX}URL, "
                    f"{PREFIX}MODEL and {PREFIX}KEY."
                )
            if response.status_code not in RETRIED and response.status_code < 500:
                raise ChatFailed(f"{self._settings.url}: refuses the question ({reason}).")
            asked_s = retry_after_s(response.headers.get("Retry-After"))
            if asked_s is not None:
                if asked_s > self._settings.max_pause_s:
                    raise ChatFailed(
                        f"{self._settings.url}: asks for a pause of {asked_s:.0f} s, and "
                        f"{PREFIX}MAX_PAUSE_S is {self._settings.max_pause_s:.0f}. Run the command later."
                    )
                wait_s = max(wait_s, asked_s)
        raise ChatFailed(
            f"{self._settings.url}: no answer after {self._settings.retries + 1} requests. The last one: "
            f"{reason}"
        )

    def _sent(self, body: dict[str, Any]) -> httpx.Response:
        """The response, of which at most MAX_ANSWER_BYTES are read."""
        url = f"{self._settings.url}/chat/completions"
        with self._client.stream("POST", url, json=body) as response:
            content = bytearray()
            started = time.monotonic()
            for piece in response.iter_bytes():
                content += piece
                # httpx bounds the wait for each piece, not for all of them.
                if time.monotonic() - started > self._settings.timeout_s:
                    raise httpx.ReadTimeout("the answer takes too long")
                if len(content) > MAX_ANSWER_BYTES:
                    raise httpx.ReadError("the answer is too long")
            return httpx.Response(
                response.status_code,
                headers={k: v for k, v in response.headers.items() if k != "content-encoding"},
                content=bytes(content),
            )

    def _read(self, response: httpx.Response, body: dict[str, Any]) -> tuple[str | None, str]:
        """The answer, or None and the reason. Tokens are counted in either case."""
        try:
            content = response.json()
            text = content["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            self._spend_tokens(None, body, "")
            return None, f"the answer has another form: {_shown(response)}"
        answer = text.strip() if isinstance(text, str) else ""
        usage = content.get("usage")
        self._spend_tokens(usage.get("total_tokens") if isinstance(usage, dict) else None, body, answer)
        return (answer, "") if answer else (None, "the answer is empty")

    def _spend_request(self) -> None:
        settings = self._settings
        with self._lock:
            for name, spent, limit in (
                ("MAX_REQUESTS", self.num_requests, settings.max_requests),
                ("MAX_TOKENS", self.num_tokens, settings.max_tokens),
            ):
                if spent >= limit:
                    raise BudgetSpent(
                        f"{PREFIX}{name}={limit} is used up. Items that were not reached keep their text. "
                        "Raise it and run the command again; answers so far are kept."
                    )
            self.num_requests += 1

    def _spend_tokens(self, counted: Any, body: dict[str, Any], answer: str) -> None:
        if not isinstance(counted, int) or counted < 0:
            letters = sum(len(part) for part in _texts_of(body)) + len(answer)
            counted = -(-letters // LETTERS_PER_TOKEN)
        with self._lock:
            self.num_tokens += counted


def retry_after_s(value: str | None) -> float | None:
    """The seconds that a header Retry-After asks for: a number or a date (RFC 9110, section 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _kept_answer(path: Path) -> str:
    content = json.loads(path.read_text(encoding="utf-8"))
    return str(content["answer"])


def _texts_of(body: dict[str, Any]) -> list[str]:
    found = []
    for message in body["messages"]:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        found += [part["text"] for part in parts if part["type"] == "text"]
    return found


def _shown(response: httpx.Response) -> str:
    return " ".join(response.text.split())[:SHOWN_CHARS]
