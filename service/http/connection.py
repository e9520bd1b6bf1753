"""uvicorn's HTTP/1.1 with limits on the size of a head, on the time for it, on idle time, and on the load.

A request that finds no room is refused here, before a task or a scope is made for it. A refusal costs a
fraction of any other answer, so the service keeps answering while many times its load arrives.
"""

import asyncio
import math
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.errors import HeadTooLarge, NotHttp, Overloaded, ServiceError, TooManyConnections
from service.http.connection_limit import ConnectionLimit
from service.http.refusals import Refusals
from service.http.request_ids import new_request_id, request_id_of
from service.http.whole_request import Shortcut, WholeRequest
from service.inference.batching import Reservation
from service.telemetry.metrics import UNREAD, Metrics

MAX_PIPELINED = 50
CLOCK_S = 0.002  # the clock of the event loop goes in steps of milliseconds
MAX_UNUSED_BYTES = 64 * 2**10  # twice what limits.py allows for a whole head
# How long and how large a body may get before the app takes the request. Many clients send a head and its
# body in two packets. With Nagle's algorithm the second waits until the first is acknowledged, within 40 ms.
BODY_WAIT_S = 0.05
MAX_WHOLE_BYTES = 64 * 2**10


class BoundedHttp(HttpToolsProtocol):
    """Closes a connection whose head is too long or takes too long, and refuses requests under overload.

    A head that does not end and the trailer of a chunked body grow while they come, so they are limited here.
    limits.py limits complete heads, and bodies. `admit` gets the method and the path, reserves the request's
    room in a queue, and raises Overloaded if there is none; `refusal` only tells what it would raise. An idle
    connection lives for `keep_alive_s`, or less where all connections of `limit` are taken; see
    connection_limit.py. One beyond them gets one answer and is closed: an error, unless `is_probe` is true of
    its method and path.
    """

    def __init__(
        self,
        *args: Any,
        head_timeout_s: float,
        keep_alive_s: float,
        limit: ConnectionLimit,
        admit: Callable[[str, str], Reservation | None],
        refusal: Callable[[str, str], Overloaded | None],
        is_probe: Callable[[str, str], bool],
        metrics: Metrics,
        refusals: Refusals,
        route_of: Callable[[str, str], str | None] = lambda _method, _path: None,
        is_stopping: Callable[[], bool] = lambda: False,
        shortcuts: Mapping[tuple[str, str], Shortcut] | None = None,
        **kwargs: Any,
    ) -> None:
        """`shortcuts`: by method and target, what answers without the app where a request is ordinary."""
        super().__init__(*args, **kwargs)
        self._head_timeout_s = head_timeout_s
        self._keep_alive_s = keep_alive_s
        self._limit = limit
        self._admit = admit
        self._refusal = refusal
        self._is_probe = is_probe
        self._metrics = metrics
        self._refusals = refusals
        self._route_of = route_of
        self._is_stopping = is_stopping
        self._shortcuts = shortcuts or {}
        self._timer: asyncio.TimerHandle | None = None
        self._close_at = math.inf  # by the clock of the event loop
        self._unused_bytes = 0
        self._is_surplus = False  # one connection too many, without a request so far
        self._is_resting = False  # between two requests; no byte of the next one has come
        self._is_incomplete = False  # the message whose first byte has come
        self._reservation: Reservation | None = None  # of the request whose body is coming
        self._num_begun = 0  # messages that began in the bytes that are parsed now
        self._unread_bytes = 0  # of the body of a request that was refused without parsing it
        self._refused: tuple[str, str] | None = None  # method and path of a request whose parts are coming
        self._whole: WholeRequest | None = None  # a request for a shortcut whose body is coming
        self._body_timer: asyncio.TimerHandle | None = None  # when the app takes it

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Start the time for the first head, and note whether this connection is one too many."""
        super().connection_made(transport)
        self._await_head()
        self._is_surplus = not self._limit.enter(self, self.loop.time())

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer, so that it does not keep the closed connection in memory."""
        self._stop_timer()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._stop_body_timer()
        self._limit.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the bytes. Refuses the request if a head or a trailer takes too many of them."""
        if self.transport.is_closing():
            return
        if self._unread_bytes:
            data = self._without_unread(data)
            if not data:
                return
        was_resting = self._is_resting
        if was_resting:
            if self._refuse_again(data):
                return
            self._is_resting = False
            self._limit.work(self)
            self._await_head()
        self._unused_bytes += len(data)
        self._num_begun = 0
        super().data_received(data)  # calls the on_… methods below
        is_whole_start = was_resting and self._num_begun == 1
        if self._refused is not None and is_whole_start and not self.transport.is_closing():
            self._refusals.remember(data, self.headers, *self._refused)
        if self._whole is not None and not self.transport.is_closing():
            self._await_body(self._whole)
        if self._reservation is not None:  # its body is not complete, and meanwhile others may use the room
            self._reservation.release()
            self._reservation = None
        if self._unused_bytes > MAX_UNUSED_BYTES and not self.transport.is_closing():
            self._refuse(HeadTooLarge())

    def _refuse_again(self, start: bytes) -> bool:
        """Refuse a request without parsing it, if its head was refused before and there is no room now."""
        known = self._refusals.known(start)
        if known is None or self._is_surplus or self._is_stopping() or self.flow.write_paused:
            return False
        started_at = perf_counter()
        error = self._refusal(known.method, known.path)
        if error is None:
            return False
        self.transport.write(self._refusals.answer(error, known.path, new_request_id(), keep_alive=True))
        self._unread_bytes = known.num_bytes - len(start)
        if self._unread_bytes:
            self._is_resting = False
            self._limit.work(self)
            self._await_head()  # the end of its body
        else:
            self._rest()
        known.observe(perf_counter() - started_at)
        return True

    def _without_unread(self, data: bytes) -> bytes:
        """Drop the body of a request that was refused without parsing it -> what comes after it."""
        num_dropped = min(self._unread_bytes, len(data))
        self._unread_bytes -= num_dropped
        if not self._unread_bytes:
            self._rest()
        return data[num_dropped:]

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  the text of uvicorn
        """Answer bytes that cannot be parsed with a problem document, where uvicorn would send plain text."""
        self._refuse(NotHttp())

    def on_message_begin(self) -> None:
        """Forget the counts and the refusal of the previous request."""
        self._unused_bytes = 0
        self._refused = None
        self._num_begun += 1
        self._is_incomplete = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Reserve room for the request and start its task, or refuse it by its head alone.

        Raises HttpParserError, which closes the connection, if too many requests wait for their answers.
        """
        if len(self.pipeline) >= MAX_PIPELINED:  # one read may hold thousands, and each waits in memory
            raise httptools.HttpParserError("too many requests before the first answer")
        self._unused_bytes = 0
        self._stop_timer()
        if self._is_idle():  # an answer must not overtake the answers before it
            method = self.parser.get_method().decode("ascii")
            path = self.url.partition(b"?")[0].decode("ascii", "replace")
            try:
                if self._is_surplus:
                    self._check_surplus(method, path)
                reservation = self._admit(method, path)
            except (TooManyConnections, Overloaded) as error:
                self._turn_away(error, method, path)
                return
            if reservation is not None:
                shortcut = self._shortcuts.get((method, path))
                if shortcut is not None and self._may_be_ordinary(path):
                    self._whole = WholeRequest(shortcut, self.headers, reservation, self._write_answer)
                    self.cycle = self._whole  # type: ignore[assignment]  # it has all that uvicorn asks for
                    self._reservation = reservation
                else:
                    self._begin(reservation)
                return
        super().on_headers_complete()
        if self._is_surplus:
            self.cycle.keep_alive = False

    def _check_surplus(self, method: str, path: str) -> None:
        """Raise TooManyConnections if there is still no room, unless the request is a probe."""
        if self._limit.promote(self, self.loop.time()):
            self._is_surplus = False
        elif self._is_probe(method, path):
            self._limit.probe(self)
        else:
            raise TooManyConnections

    def _begin(self, reservation: Reservation) -> None:
        """Start the request's task, which releases the reservation at its end; see envelope.py."""
        self.scope["state"]["reservation"] = self._reservation = reservation
        try:
            super().on_headers_complete()
        except Exception:
            reservation.release()
            raise

    def _may_be_ordinary(self, path: str) -> bool:
        """Whether a shortcut may look at the request. Its client reads its answers, and stays for more."""
        return (
            len(self.url) == len(path)  # no query
            and not (self._is_surplus or self.expect_100_continue or self.flow.write_paused)
            and self.parser.should_keep_alive()
            and self.parser.get_http_version() == "1.1"
        )

    def _await_body(self, whole: WholeRequest) -> None:
        """Wait a little for the rest of its body, which may never come."""
        if len(whole.body) > MAX_WHOLE_BYTES:
            self._leave_to_app(whole)
        elif self._body_timer is None:
            self._body_timer = self.loop.call_later(BODY_WAIT_S, self._body_is_late, whole)

    def _body_is_late(self, whole: WholeRequest) -> None:
        if not self.transport.is_closing():
            self._leave_to_app(whole)

    def _stop_body_timer(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def _leave_to_app(self, whole: WholeRequest) -> None:
        """Let the app answer a request that no shortcut takes."""
        self._stop_body_timer()
        self._whole = None
        self.cycle = None  # type: ignore[assignment]  # as before the first request, so that it begins at once
        self._begin(whole.reservation)
        if not whole.keep_alive:  # the server began to stop
            self.cycle.keep_alive = False
        if whole.body:
            super().on_body(bytes(whole.body))

    def on_body(self, body: bytes) -> None:
        """Pass a part of the body on, or drop it if the request was refused."""
        self._unused_bytes = 0
        if self._whole is not None:
            self._whole.body += body
        elif self._refused is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Leave the reservation to whoever answers the request, because the whole body is here."""
        self._is_incomplete = False
        if self._whole is not None:
            whole, self._whole, self._reservation = self._whole, None, None
            self._stop_body_timer()
            if whole.shortcut.begin(whole):
                return
            self._leave_to_app(whole)
        self._reservation = None
        if self._refused is None:
            super().on_message_complete()
        if self._is_idle():  # the answer came before the end of the body
            self._rest()

    def _write_answer(self, status: int, head: bytes, body: bytes, keep_alive: bool) -> None:
        """Send the answer of a shortcut."""
        if not self.transport.is_closing():
            usual = b"".join([b"%b: %b\r\n" % header for header in self.server_state.default_headers])
            self.transport.write(b"".join((STATUS_LINE[status], usual, head, body)))
            if not keep_alive:
                self.transport.close()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        """Start the idle time, or the time for the next request if a part of it is here already.

        It does what uvicorn does, but for uvicorn's own timer, as ours is enough.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._is_incomplete:
            self._await_head()
        else:
            self._rest()

    @property
    def awaits_request(self) -> bool:
        """Whether the first request has not come yet, or the head of a later one is not complete."""
        return self._is_idle() and not self._is_resting and not self.transport.is_closing()

    def give_way(self) -> None:
        """Close the idle connection, because a new one needs its place."""
        self.transport.close()

    def refuse_surplus(self) -> None:
        """Refuse a connection that has sent no request yet, because a newer one may have a probe."""
        error = TooManyConnections()
        self._metrics.observe_http(UNREAD, "other", error.status, 0.0, error)
        self._refuse(error)

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        """Close the connection unless the next head is complete in time.

        The rest of a body that was answered before its end must come within the same time.
        """
        self._start_timer(self._head_timeout_s)

    def _rest(self) -> None:
        """Close the connection unless the next request begins within the time of an idle connection."""
        if self.transport.is_closing():
            return
        self._is_resting = True
        self._limit.rest(self, self.loop.time())
        self._start_timer(self._keep_alive_s)

    def _start_timer(self, timeout_s: float) -> None:
        """Close the connection then, unless the timer is stopped or started again before.

        A request starts it twice, so the handle of an earlier time is kept: when it is due, it looks whether
        the time has moved.
        """
        self._close_at = self.loop.time() + timeout_s
        if self._timer is not None and self._timer.when() > self._close_at:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self.loop.call_at(self._close_at, self._look_at_time)

    def _look_at_time(self) -> None:
        self._timer = None
        if self.loop.time() >= self._close_at - CLOCK_S:
            self.transport.close()
        elif self._close_at < math.inf:
            self._timer = self.loop.call_at(self._close_at, self._look_at_time)

    def _stop_timer(self) -> None:
        self._close_at = math.inf

    def _turn_away(self, error: TooManyConnections | Overloaded, method: str, path: str) -> None:
        """Refuse a request by its head alone. Its body is dropped, and the connection stays open."""
        started_at = perf_counter()
        self._refused = method, path
        given = next((value for name, value in self.headers if name == b"x-request-id"), b"")
        is_overload = isinstance(error, Overloaded)
        # Who waits for a go-ahead sends no body now, and its next request would be taken for it.
        keep_alive = (
            is_overload
            and self.parser.should_keep_alive()
            and not self.expect_100_continue
            and not self._is_stopping()
        )
        self._write(error, path, request_id_of(given.decode("latin-1")), keep_alive)
        # Only a path without parameters has an admission, so the path is the route's template, too.
        route = path if is_overload else self._route_of(method, unquote(path)) or "unmatched"
        self._metrics.observe_http(route, method, error.status, perf_counter() - started_at, error)
        if keep_alive:
            self._await_head()  # the end of its body, after which the connection is idle

    def _refuse(self, error: ServiceError) -> None:
        """Answer outside of any request, and close. If an answer is under way, it is cut off instead."""
        if self._is_idle() or self._whole is not None:
            self._write(error, "", new_request_id(), keep_alive=False)
        self.transport.close()

    def _write(self, error: ServiceError, instance: str, request_id: str, keep_alive: bool) -> None:
        self.transport.write(self._refusals.answer(error, instance, request_id, keep_alive=keep_alive))
        if not keep_alive:
            self._limit.leave(self)
            self.transport.close()
