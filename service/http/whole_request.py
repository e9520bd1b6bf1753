"""A request whose body is short and comes at once, and what may answer it without an app (decision 26)."""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Protocol

from service.inference.batching import Reservation


class _NobodyWaits:
    """In place of the event that uvicorn sets for an app that waits for a body."""

    def set(self) -> None:
        pass


_NOBODY_WAITS = _NobodyWaits()


class WholeRequest:
    """Stands where uvicorn has its RequestResponseCycle while a shortcut answers the request.

    So uvicorn sees that an answer is under way: the next request of the connection waits for it, and a
    server that stops does, too.
    """

    message_event = _NOBODY_WAITS

    __slots__ = (
        "_write",
        "body",
        "disconnected",
        "headers",
        "keep_alive",
        "more_body",
        "reservation",
        "response_complete",
        "shortcut",
        "started_at",
    )

    def __init__(
        self,
        shortcut: "Shortcut",
        headers: Sequence[tuple[bytes, bytes]],
        reservation: Reservation,
        write: Callable[[int, bytes, bytes, bool], None],
    ) -> None:
        """`write` takes what `answer` takes."""
        self.started_at = perf_counter()
        self.shortcut = shortcut
        self.headers = headers  # names in lower case
        self.reservation = reservation
        self.body = bytearray()  # as it may come in thousands of chunks
        self._write = write
        # Of uvicorn:
        self.more_body = True
        self.keep_alive = True
        self.disconnected = False
        self.response_complete = False

    def answer(self, status: int, head: bytes, body: bytes, *, keep_alive: bool) -> None:
        """Send the answer. If the client has left, nobody gets it.

        `head`: the lines of the headers, with the empty line after them. Without `keep_alive` the connection
        is closed, which the head must say.
        """
        self.response_complete = True
        self._write(status, head, body, keep_alive)


class Shortcut(Protocol):
    """Answers the ordinary requests of one route."""

    def begin(self, request: WholeRequest) -> bool:
        """Take a request over, and call its `answer` once, now or later.

        False: it is none of the ordinary ones, and nothing was done, so the app must answer it.
        """
