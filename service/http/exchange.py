"""One request and the answer to it, and the report of both when they are over."""

import logging
from collections.abc import Callable
from http import HTTPStatus
from time import perf_counter
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from service.http.limits import promises_a_body
from service.http.request_ids import request_id_of
from service.telemetry.metrics import Metrics
from service.telemetry.stages import Stages
from service.telemetry.tracing import Tracer

access_log = logging.getLogger("glyphrec.access")

CLIENT_LEFT = 499  # the status that nginx logs if a client leaves before its answer


class Exchange:
    """Handlers find `request_id` and `stages` in `request.state`."""

    __slots__ = (
        "_is_stopping",
        "_send",
        "awaits_go_ahead",
        "headers",
        "request_id",
        "routed",
        "scope",
        "stages",
        "started_at",
        "state",
        "status",
    )

    def __init__(self, scope: Scope, send: Send, is_stopping: Callable[[], bool]) -> None:
        self.started_at = perf_counter()
        self.scope = scope
        # HEAD runs the route of GET, and the server leaves the body out (RFC 9110 section 9.3.2).
        self.routed = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        self.headers = Headers(scope=scope)
        self.request_id = request_id_of(self.headers.get("x-request-id", ""))
        self.stages = Stages()
        self.status = 0  # of the answer; 0 before it begins
        self.state = self.routed["state"] = scope.setdefault("state", {})
        self.state.update(request_id=self.request_id, stages=self.stages)
        # Whether the client still waits until it may send the body. If it may not, its next bytes would be
        # taken for the body, so the connection ends with the answer.
        self.awaits_go_ahead = promises_a_body(self.headers)
        self._send = send
        self._is_stopping = is_stopping

    async def send(self, message: Message) -> None:
        """Send a part of the answer; its head gets our headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.request_id
            if (
                self.awaits_go_ahead or self._is_stopping()
            ):  # so that the client's next request finds another replica
                headers["Connection"] = "close"
            headers["Server-Timing"] = self.stages.header(perf_counter() - self.started_at)
        await self._send(message)

    def reading(self, receive: Receive) -> Receive:
        """`receive`, but the first call is the go-ahead for a client that waits for it."""
        if not self.awaits_go_ahead:
            return receive

        async def receive_after_all() -> Message:
            self.awaits_go_ahead = False
            return await receive()

        return receive_after_all

    def release_reservation(self) -> None:
        """Its room in a queue, if it has any that it did not use."""
        reservation = self.state.get("reservation")
        if reservation is not None:
            reservation.release()


class Reporter:
    """Tells metrics, trace and log about an exchange that is over."""

    def __init__(
        self,
        metrics: Metrics,
        tracer: Tracer | None,
        *,
        log_requests: bool,
        route_of: Callable[[str, str], str | None],
        is_probe: Callable[[str, str], bool],
    ) -> None:
        """For a method and a path, `route_of` tells the template of the route, `is_probe` if monitors ask it.

        Probes and scrapes come every second and say nothing, so only those that fail are logged.
        """
        self._metrics = metrics
        self._route_of = route_of
        self._tracer = tracer
        self._log_requests = log_requests
        self._is_probe = is_probe

    def report(self, exchange: Exchange) -> None:
        """Record the duration, the status and the stages. A client that left early counts as CLIENT_LEFT."""
        seconds = perf_counter() - exchange.started_at
        method, status = exchange.scope["method"], exchange.status or CLIENT_LEFT
        found = exchange.routed.get("route")  # none if the head alone was refused
        path = exchange.scope["path"]
        route = getattr(found, "path", None) or self._route_of(method, path) or "unmatched"
        self._metrics.observe_http(route, method, status, seconds, exchange.state.get("refusal"))
        self._metrics.observe_stages(exchange.stages)
        if self._tracer is not None:
            self._tracer.note(
                exchange.headers,
                exchange.stages,
                method=method,
                route=route,
                status=status,
                request_id=exchange.request_id,
                started_at=exchange.started_at,
            )
        if self._log_requests and (status >= HTTPStatus.BAD_REQUEST or not self._is_probe(method, path)):
            path = quote(path)  # it may hold the end of a line
            fields = {"method": method, "route": route, "status": status, "duration_ms": 1000 * seconds}
            access_log.info("%s %s %d %.1f ms", method, path, status, 1000 * seconds, extra=fields)
