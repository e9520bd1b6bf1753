"""Which requests are repeated, how often, and after which pause. Nothing here waits or sends.

`attempts` is a generator: it yields Send and Wait, a transport does what they say, and sends back what came
of it. So the rules are the same for both clients.
"""

import email.utils
import math
import random
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import NamedTuple, TypeVar

import httpx

from glyphrec_client.answers import slug_of
from glyphrec_client.calls import Call, Repeat
from glyphrec_client.errors import NoAnswer, TimedOut, one_line, shown_url

T = TypeVar("T")

MAX_SERVICE_TIMEOUT_S = 3_600.0  # the largest X-Request-Timeout that the service takes
# Passing troubles of the service, and of a proxy that does not reach it.
PASSING = frozenset({408, 429, 502, 503, 504})
# The service refuses these before it changes anything.
NOT_BEGUN = frozenset({"overloaded", "not-ready", "stopping", "too-many-connections", "body-too-slow"})
NEVER_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
    httpx.InvalidURL,
)
NEVER_REPEATED = (
    httpx.DecodingError,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
    httpx.InvalidURL,
)


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often a request is repeated, and how long the client waits before.

    `Retry-After` of an answer counts before the pauses given here. Otherwise the pause before the n-th
    repetition is first_wait_s * growth ** (n - 1), made shorter by a random part of up to `jitter` of it, so
    that many clients do not come back at the same moment. No pause is longer than max_wait_s.
    """

    max_tries: int = 5  # 1: no request is repeated
    first_wait_s: float = 0.25
    growth: float = 2.0
    jitter: float = 0.5
    max_wait_s: float = 60.0
    after_no_answer: bool = True  # also repeat where no answer came

    def __post_init__(self) -> None:
        if self.max_tries < 1:
            raise ValueError(f"max_tries is {self.max_tries}. At least one try is needed.")
        if min(self.first_wait_s, self.growth, self.max_wait_s) < 0 or not 0 <= self.jitter <= 1:
            raise ValueError(f"{self}: no time may be below 0, and jitter is between 0 and 1.")

    def pause_s(self, num_tries: int, retry_after: str = "") -> float:
        """Seconds to wait after so many tries."""
        by_itself = self.first_wait_s * self.growth ** min(num_tries - 1, 30)
        by_itself *= 1 - self.jitter * random.random()
        return min(wait_s(retry_after, otherwise_s=by_itself), self.max_wait_s)


class Send(NamedTuple):
    """Send the request. `timeout_s` is what is left of the call's time; None without a limit."""

    timeout_s: float | None


class Wait(NamedTuple):
    """Do nothing for so long."""

    seconds: float


FAILURES = (httpx.HTTPError, httpx.InvalidURL)
Failure = httpx.HTTPError | httpx.InvalidURL
Outcome = httpx.Response | Failure | None
Attempts = Generator[Send | Wait, Outcome, T]


def attempts(
    call: Call[T], base_url: httpx.URL, retry: Retry, timeout_s: float | None, now: Callable[[], float]
) -> Attempts[T]:
    """Try a call until it succeeds or must not be repeated -> what it asks for.

    A Send is answered with the response or the error of httpx, a Wait with None. A pause that would outlast
    the call's time is not made: the last trouble is raised instead.

    Raises NoAnswer, TimedOut, UnexpectedAnswer, and ProblemError.
    """
    deadline = math.inf if timeout_s is None else now() + timeout_s
    for num_tries in count(1):
        outcome = yield Send(None if timeout_s is None else max(deadline - now(), 0.001))
        assert outcome is not None, "a Send is answered"
        if isinstance(outcome, httpx.Response) and outcome.status_code not in PASSING:
            return call.read(outcome)
        after = outcome.headers.get("retry-after", "") if isinstance(outcome, httpx.Response) else ""
        pause_s = retry.pause_s(num_tries, after)
        is_last = num_tries >= retry.max_tries or now() + pause_s >= deadline
        if is_last or not may_be_repeated(call.repeat, outcome, retry):
            if isinstance(outcome, httpx.Response):
                return call.read(outcome)
            raise no_answer(base_url, outcome) from outcome
        yield Wait(pause_s)
    raise AssertionError("the last try returns or raises")


def may_be_repeated(repeat: Repeat, outcome: httpx.Response | Failure, retry: Retry) -> bool:
    """Whether the same request may be sent again after a passing trouble."""
    if repeat is Repeat.NEVER:
        return False
    if isinstance(outcome, httpx.Response):
        return repeat is Repeat.ALWAYS or slug_of(outcome) in NOT_BEGUN
    if isinstance(outcome, NEVER_REPEATED) or not retry.after_no_answer:
        return False
    return repeat is Repeat.ALWAYS or isinstance(outcome, NEVER_SENT)


def no_answer(base_url: httpx.URL, error: Failure) -> NoAnswer:
    """The error for a request without an answer."""
    where, was_sent = shown_url(base_url), not isinstance(error, NEVER_SENT)
    if isinstance(error, httpx.TimeoutException):
        return TimedOut(where, "no answer came in time", was_sent=was_sent)
    if isinstance(error, httpx.DecodingError):
        return NoAnswer(where, f"the answer cannot be unpacked ({one_line(str(error))})")
    return NoAnswer(where, f"no service answers there ({one_line(str(error))})", was_sent=was_sent)


def wait_s(retry_after: str, *, otherwise_s: float = 1.0) -> float:
    """Seconds of a Retry-After header, which has seconds or a date (RFC 9110, section 10.2.3)."""
    if re.fullmatch(r"[0-9]{1,9}", retry_after.strip()):
        return float(retry_after)
    try:
        until = email.utils.parsedate_to_datetime(retry_after)
    except (TypeError, ValueError):
        return otherwise_s
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())
