"""uvicorn's HTTP/1.1 with bounds of its own: it has none on the size of a head or the time that one takes."""

import asyncio
from typing import Any
from uuid import uuid4

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.api.problems import problem_response
from service.errors import HeadTooLarge, NotHttp, ServiceError

MAX_PIPELINED = 50
MAX_UNUSED_BYTES = 64 * 2**10  # twice what envelope.py takes of a whole head


class BoundedHttp(HttpToolsProtocol):
    """Closes a connection that sends much of which nothing comes, or that takes long to say what it wants.

    What grows while it comes is a head that does not end and the trailer of a chunked body; what is complete
    is bounded by envelope.py, and the bodies too.
    """

    def __init__(self, *args: Any, head_timeout_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timeout_s = head_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._unused_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unused_bytes += len(data)
        super().data_received(data)  # calls the on_… below
        if self._unused_bytes > MAX_UNUSED_BYTES and not self.transport.is_closing():
            self._refuse(HeadTooLarge())

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  uvicorn's own words
        self._refuse(NotHttp())

    def on_message_begin(self) -> None:
        self._unused_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if (
            len(self.pipeline) >= MAX_PIPELINED
        ):  # one read may hold thousands, and each waits with all its parts
            raise httptools.HttpParserError("too many requests ahead of their answers")
        self._unused_bytes = 0
        self._stop_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unused_bytes = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        has_next = bool(self.pipeline)
        super().on_response_complete()
        if not has_next:
            self._await_head()

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

    def _refuse(self, error: ServiceError) -> None:
        """Answer outside of any request, and close. An answer that is under way is cut off instead."""
        if self.cycle is None or self.cycle.response_complete:
            answer = problem_response(error, instance="", request_id=uuid4().hex)
            headers = [*answer.raw_headers, (b"connection", b"close")]
            lines = b"".join(b"%b: %b\r\n" % header for header in headers)
            self.transport.write(b"".join([STATUS_LINE[error.status], lines, b"\r\n", answer.body]))
        self.transport.close()
