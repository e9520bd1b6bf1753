"""uvicorn's HTTP/1.1 with bounds of its own: on the size of a head, the time that one takes, and the load.

What cannot be taken in is refused here, before a task or a scope is made for it. A refusal costs a fraction
of what any other answer does, so many times more requests than can be served leave time to serve.
"""

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.errors import HeadTooLarge, NotHttp, Overloaded, ServiceError, TooManyConnections
from service.http.envelope import new_request_id, request_id_of
from service.http.problems import problem_response
from service.inference.batching import Place
from service.telemetry.metrics import Metrics

MAX_PIPELINED = 50
MAX_UNUSED_BYTES = 64 * 2**10  # twice what envelope.py takes of a whole head

# Of a full queue, as they were sent, cut where the request's id stands: under load the same few go out
# thousands of times a second. An id of another length makes another body, so those are made anew.
_MARK = new_request_id()
_answers: dict[tuple[str, str, bool], list[bytes]] = {}


class BoundedHttp(HttpToolsProtocol):
    """Closes a connection that sends much of which nothing comes, or that takes long to say what it wants.

    What grows while it comes is a head that does not end and the trailer of a chunked body; what is complete
    is bounded by envelope.py, and the bodies too. `admit` is asked, by method and path, for a request's place
    in a queue: it raises Overloaded where there is none. Beyond `max_connections` no request is taken in.
    """

    def __init__(
        self,
        *args: Any,
        head_timeout_s: float,
        max_connections: int,
        admit: Callable[[str, str], Place | None],
        metrics: Metrics,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._head_timeout_s = head_timeout_s
        self._max_connections = max_connections
        self._admit = admit
        self._metrics = metrics
        self._head_timer: asyncio.TimerHandle | None = None
        self._unused_bytes = 0
        self._is_surplus = False  # one connection too many
        self._place: Place | None = None  # of the request whose body comes now
        self._is_refused = False  # the request whose parts come now

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._is_surplus = len(self.connections) > self._max_connections
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._unused_bytes += len(data)
        super().data_received(data)  # calls the on_… below
        if self._place is not None:  # its body is yet to come, and until then others may have the room
            self._place.give_back()
            self._place = None
        if self._unused_bytes > MAX_UNUSED_BYTES and not self.transport.is_closing():
            self._refuse(HeadTooLarge())

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  uvicorn's own words
        self._refuse(NotHttp())

    def on_message_begin(self) -> None:
        self._unused_bytes = 0
        self._is_refused = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if (
            len(self.pipeline) >= MAX_PIPELINED
        ):  # one read may hold thousands, and each waits with all its parts
            raise httptools.HttpParserError("too many requests ahead of their answers")
        self._unused_bytes = 0
        self._stop_timer()
        if self._is_idle():  # an answer must not overtake those before it
            method = self.parser.get_method().decode("ascii")
            path = self.url.partition(b"?")[0].decode("ascii", "replace")
            try:
                if self._is_surplus:
                    raise TooManyConnections
                place = self._admit(method, path)
            except (TooManyConnections, Overloaded) as error:
                self._turn_away(error, method, path)
                return
            if place is not None:
                self._begin(place)
                return
        super().on_headers_complete()

    def _begin(self, place: Place) -> None:
        """The request's task, which envelope.py surrounds, gives the place back; unless there is none."""
        self.scope["state"]["place"] = self._place = place
        try:
            super().on_headers_complete()
        except Exception:
            place.give_back()
            raise

    def on_body(self, body: bytes) -> None:
        self._unused_bytes = 0
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._place = None
        if not self._is_refused:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        has_next = bool(self.pipeline)
        super().on_response_complete()
        if not has_next:
            self._await_head()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        """From now on, or from the end of the last answer, until the next head is complete.

        That is also the time to send the rest of a body that was answered before its end.
        """
        self._stop_timer()
        self._head_timer = self.loop.call_later(self._head_timeout_s, self.transport.close)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _turn_away(self, error: TooManyConnections | Overloaded, method: str, path: str) -> None:
        """Answer a request by its head alone. Its body is dropped as it comes, and the connection goes on."""
        started_at = perf_counter()
        self._is_refused = True
        given = next((value for name, value in self.headers if name == b"x-request-id"), b"")
        # What has a place in a queue has no parameters in its path, so that is the route's template too.
        is_known = isinstance(error, Overloaded)
        keep_alive = is_known and self.parser.should_keep_alive()
        self._write(error, path, request_id_of(given.decode("latin-1")), keep_alive)
        route = path if is_known else "unmatched"
        self._metrics.observe_http(route, method, error.status, perf_counter() - started_at, error)
        if keep_alive:
            self._await_head()

    def _refuse(self, error: ServiceError) -> None:
        """Answer outside of any request, and close. An answer that is under way is cut off instead."""
        if self._is_idle():
            self._write(error, "", new_request_id(), keep_alive=False)
        self.transport.close()

    def _write(self, error: ServiceError, instance: str, request_id: str, keep_alive: bool) -> None:
        # No others: what a client may choose, such as any path, must not fill the memory.
        if isinstance(error, Overloaded) and len(request_id) == len(_MARK):
            key = (str(error), instance, keep_alive)
            if (pieces := _answers.get(key)) is None:
                pieces = _answers[key] = _whole(error, instance, _MARK, keep_alive).split(_MARK.encode())
            self.transport.write(request_id.encode().join(pieces))
        else:
            self.transport.write(_whole(error, instance, request_id, keep_alive))
        if not keep_alive:
            self.transport.close()


def _whole(error: ServiceError, instance: str, request_id: str, keep_alive: bool) -> bytes:
    answer = problem_response(error, instance=instance, request_id=request_id)
    headers = [*answer.raw_headers, (b"x-request-id", request_id.encode())]
    if not keep_alive:
        headers.append((b"connection", b"close"))
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    return b"".join([STATUS_LINE[error.status], lines, b"\r\n", answer.body])
