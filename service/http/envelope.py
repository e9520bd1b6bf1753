"""What surrounds every request: its id, checks of its head and key, bounds on its body, and its report.

It is also the last resort for failures: each request gets an answer, even if our own code fails.
"""

import logging
from collections.abc import Callable, Mapping
from urllib.parse import quote

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ServiceError
from service.http.exchange import Exchange, Reporter
from service.http.limits import bounded_body, check_body_length, check_encoding, check_head, deadline_of
from service.http.prefix import prefix_of
from service.http.problems import ProblemResponse, internal_problem, problem_response
from service.http.security import Guard
from service.telemetry.logs import request_id_now
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import Tracer

log = logging.getLogger("glyphrec")

DESCRIPTION = "/openapi.json"


class Envelope:
    """A pure ASGI middleware.

    A request with exactly the method and path of an app in `direct` goes to that app.
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
        prefix: str = "",
        log_requests: bool,
        tracer: Tracer | None = None,
        route_of: Callable[[str, str], str | None] = lambda _method, _path: None,
        is_probe: Callable[[str, str], bool] = lambda _method, _path: False,
    ) -> None:
        self._app = app
        self._direct = direct or {}
        self._guard = guard
        self._is_stopping = is_stopping
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._prefix = prefix
        self._reporter = Reporter(
            metrics, tracer, log_requests=log_requests, route_of=route_of, is_probe=is_probe
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. An error raised before the answer has begun becomes a problem document."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, send, self._is_stopping)
        request_id_now.set(exchange.request_id)  # of this request's task
        self._metrics.num_in_flight += 1
        try:
            self._check(exchange)
            routed = exchange.routed
            if routed["path"] == DESCRIPTION:  # which names it as its server
                routed["root_path"] = prefix_of(exchange.headers, self._prefix)
            app = self._direct.get((routed["method"], routed["path"]), self._app)
            body = bounded_body(exchange.reading(receive), self._max_body_bytes, self._body_timeout_s)
            await app(routed, body, exchange.send)
        except ServiceError as error:
            exchange.state["refusal"] = error
            await _refusal(error, exchange)(scope, receive, exchange.send)
        except ClientDisconnect:  # before its body had come, so nobody waits for an answer
            pass
        except Exception:  # outermost loop: a client gets an answer whatever happened
            log.exception(
                "request %s failed: %s %s", exchange.request_id, scope["method"], quote(scope["path"])
            )
            if exchange.status:
                raise  # half of an answer is out; only closing the connection can tell the client
            await _failure(exchange)(scope, receive, exchange.send)
        finally:
            self._metrics.num_in_flight -= 1
            exchange.release_reservation()
            self._reporter.report(exchange)

    def _check(self, exchange: Exchange) -> None:
        """Raise a ServiceError if the head of the request is enough to refuse it."""
        scope, headers = exchange.scope, exchange.headers
        check_head(scope)
        self._guard.check(scope["method"], scope["path"], headers)
        check_body_length(headers, self._max_body_bytes)
        check_encoding(headers)
        exchange.state["deadline"] = deadline_of(headers)


def _refusal(error: ServiceError, exchange: Exchange) -> ProblemResponse:
    return problem_response(error, instance=exchange.scope["path"], request_id=exchange.request_id)


def _failure(exchange: Exchange) -> ProblemResponse:
    return internal_problem(instance=exchange.scope["path"], request_id=exchange.request_id)
