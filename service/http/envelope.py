"""What surrounds every request: its id, key, bound on the body, timing, and a last resort for failures."""

import asyncio
import logging
import math
import re
from collections.abc import Callable, Mapping
from time import perf_counter
from urllib.parse import quote
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import (
    BadTimeout,
    BodyTooLarge,
    BodyTooSlow,
    HeadTooLarge,
    ServiceError,
    TargetTooLong,
)
from service.http.problems import RefusedBody, internal_problem, problem_response
from service.http.security import Guard
from service.telemetry.logs import request_id_now
from service.telemetry.metrics import Metrics
from service.telemetry.stages import Stages
from service.telemetry.tracing import Tracer

log = logging.getLogger("glyphrec")
access_log = logging.getLogger("glyphrec.access")

MAX_TARGET_BYTES = 8 * 2**10  # the longest cursor, or id of 256 characters, percent-encoded fits
MAX_PARAMETERS = 50
MAX_HEAD_BYTES = 32 * 2**10  # of all headers
MAX_HEADERS = 100
# Slower than any modem; without it a byte a time would hold a request for years.
MIN_BODY_BYTES_PER_S = 4 * 2**10
MAX_TIMEOUT_S = 3_600

_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{0,9})?|\.[0-9]{1,9}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")  # safe in a header and in a log line


class Envelope:
    """A pure ASGI middleware. Handlers find `request_id` and `stages` in `request.state`.

    What is asked for by exactly the method and path of `direct` goes there and not to the app.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        direct: Mapping[tuple[str, str], ASGIApp] | None = None,
        guard: Guard,
        is_stopping: Callable[[], bool],
        metrics: Metrics,
        max_body_bytes: int,
        body_timeout_s: float,
        log_requests: bool,
        tracer: Tracer | None = None,
    ) -> None:
        self._app = app
        self._direct = direct or {}
        self._guard = guard
        self._is_stopping = is_stopping
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._log_requests = log_requests
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at = perf_counter()
        headers = Headers(scope=scope)
        request_id = request_id_of(headers.get("x-request-id", ""))
        request_id_now.set(request_id)  # of this request's task
        stages = Stages()
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, stages=stages)
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer_headers = MutableHeaders(scope=message)
                answer_headers["X-Request-ID"] = request_id
                if self._is_stopping():  # the client's next request is to find another replica
                    answer_headers["Connection"] = "close"
                answer_headers["Server-Timing"] = stages.header(perf_counter() - started_at)
            await send(message)

        with self._metrics.http_in_flight.track_inprogress():
            try:
                _check_head(scope)
                self._guard.check(scope["method"], scope["path"], headers)
                self._check_length(headers)
                state["deadline"] = _deadline(headers)
                app = self._direct.get((scope["method"], scope["path"]), self._app)
                await app(scope, self._bounded(receive), send_with_headers)
            except ServiceError as error:
                state["refusal"] = error
                answer = problem_response(error, instance=scope["path"], request_id=request_id)
                await answer(scope, receive, send_with_headers)
            except ClientDisconnect:  # amid its body, so nobody waits for an answer
                pass
            except Exception:  # outermost loop: a client gets an answer whatever happened
                log.exception("request %s failed: %s %s", request_id, scope["method"], quote(scope["path"]))
                if status:
                    raise  # half an answer is out; only closing the connection can say so
                answer = internal_problem(instance=scope["path"], request_id=request_id)
                await answer(scope, receive, send_with_headers)
            finally:
                if (place := state.get("place")) is not None:
                    place.give_back()
                # A client that left before its answer counts as 499, as nginx has it.
                self._note(scope, headers, status or 499, started_at)

    def _check_length(self, headers: Headers) -> None:
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_body_bytes:
            raise BodyTooLarge(self._max_body_bytes)

    def _bounded(self, receive: Receive) -> Receive:
        """`receive` that refuses a body which is longer than it said, or that stops coming."""
        num_bytes, more = 0, True
        started_at = asyncio.get_running_loop().time()

        async def bounded() -> Message:
            nonlocal num_bytes, more
            if not more:  # what comes now is the end of the connection, which may take its time
                return await receive()
            slowest = started_at + num_bytes / MIN_BODY_BYTES_PER_S
            waits_since = min(asyncio.get_running_loop().time(), slowest)
            try:
                async with asyncio.timeout_at(waits_since + self._body_timeout_s):
                    message = await receive()
            except TimeoutError:
                raise RefusedBody(BodyTooSlow(self._body_timeout_s)) from None
            num_bytes += len(message.get("body", b""))
            more = message.get("more_body", False)
            if num_bytes > self._max_body_bytes:
                raise RefusedBody(BodyTooLarge(self._max_body_bytes))
            return message

        return bounded

    def _note(self, scope: Scope, headers: Headers, status: int, started_at: float) -> None:
        seconds = perf_counter() - started_at
        method, route = scope["method"], getattr(scope.get("route"), "path", "unmatched")
        state = scope["state"]
        self._metrics.observe_http(route, method, status, seconds, state.get("refusal"))
        self._metrics.observe_stages(state["stages"])
        if self._tracer is not None:
            self._tracer.note(
                headers,
                state["stages"],
                method=method,
                route=route,
                status=status,
                request_id=state["request_id"],
                started_at=started_at,
            )
        if self._log_requests:
            path = quote(scope["path"])  # it may hold the end of a line
            fields = {"method": method, "route": route, "status": status, "duration_ms": 1000 * seconds}
            access_log.info("%s %s %d %.1f ms", method, path, status, 1000 * seconds, extra=fields)


def request_id_of(given: str) -> str:
    """The client's own, where that is safe to repeat, else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else new_request_id()


def new_request_id() -> str:
    return uuid4().hex


def _check_head(scope: Scope) -> None:
    """Before anything is read from it. Raises TargetTooLong or HeadTooLarge."""
    query: bytes = scope["query_string"]
    if (
        len(scope.get("raw_path") or scope["path"]) + len(query) > MAX_TARGET_BYTES
        or query.count(b"&") >= MAX_PARAMETERS
    ):
        raise TargetTooLong(MAX_TARGET_BYTES, MAX_PARAMETERS)
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEAD_BYTES:
        raise HeadTooLarge


def _deadline(headers: Headers) -> float:
    """When the client gives up, by the event loop's clock; infinite where it does not say."""
    given = headers.get("x-request-timeout")
    if given is None:
        return math.inf
    timeout_s = float(given) if _SECONDS.fullmatch(given) else 0.0
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise BadTimeout(given, MAX_TIMEOUT_S)
    return asyncio.get_running_loop().time() + timeout_s
