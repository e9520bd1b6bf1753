"""Refusals of a full queue, which under overload go out ten thousand times a second.

Their bytes are made once and cut at the request's id. And a head that was refused is remembered with the
length of its request: the same bytes are the same request again, so nobody needs to parse them.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import NamedTuple

from service.errors import Overloaded, ServiceError
from service.http.problems import problem_response
from service.http.request_ids import new_request_id
from service.telemetry.metrics import Metrics
from service.telemetry.tallies import Count, Tally

MAX_KNOWN = 1_024
MAX_KNOWN_BYTES = 2_048  # of a head
END_OF_HEAD = b"\r\n\r\n"
# The id is a part of the answer, and the length of a body in pieces is not in the head.
VARYING = frozenset({b"x-request-id", b"transfer-encoding"})

_MARK = new_request_id()  # an id of another length changes the Content-Length, so such a refusal is not kept


class Refused(NamedTuple):
    """A head that was refused."""

    method: str
    path: str
    num_bytes: int  # of the whole request
    requests: Count
    seconds: Tally
    rejections: Count

    def observe(self, seconds: float) -> None:
        """Count one more refusal, which took so long."""
        self.requests.inc()
        self.seconds.observe(seconds)
        self.rejections.inc()


class Refusals:
    """The refusals of a server, and how they are counted."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._answers: dict[tuple[str, str, bool], list[bytes]] = {}
        self._known: dict[bytes, Refused] = {}  # by head

    @property
    def num_known(self) -> int:
        """Heads that are remembered."""
        return len(self._known)

    def answer(self, error: ServiceError, instance: str, request_id: str, *, keep_alive: bool) -> bytes:
        """A problem document with its head."""
        # Only these are kept: values that a client chooses, such as the path, must not fill the memory.
        if not isinstance(error, Overloaded) or len(request_id) != len(_MARK):
            return _whole(error, instance, request_id, keep_alive)
        key = (str(error), instance, keep_alive)
        if (pieces := self._answers.get(key)) is None:
            pieces = self._answers[key] = _whole(error, instance, _MARK, keep_alive).split(_MARK.encode())
        return request_id.encode().join(pieces)

    def remember(self, start: bytes, headers: Sequence[tuple[bytes, bytes]], method: str, path: str) -> None:
        """Note a request that was refused by its head alone. `start` holds its first bytes, and no others.

        Nothing is noted if another request with this head could be longer, or get another answer.
        """
        head, end, body = start.partition(END_OF_HEAD)
        fields = dict(headers)
        length = fields.get(b"content-length", b"")
        if (
            end
            and len(head) <= MAX_KNOWN_BYTES
            and head.startswith(method.encode() + b" ")  # no empty lines, which a parser skips
            and head.count(b"\n") == head.count(b"\r\n")  # so that it does not end before its end
            and length.isdigit()
            and len(body) <= int(length)
            and VARYING.isdisjoint(fields)
        ):
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            num_bytes = len(head) + len(end) + int(length)
            series = self._metrics.series_of_refusals(method, path, Overloaded.status, Overloaded.slug)
            self._known[head] = Refused(method, path, num_bytes, *series)

    def known(self, start: bytes) -> Refused | None:
        """What is known of a head that was refused before, if `start` has it and nothing after its body."""
        head, end, _ = start.partition(END_OF_HEAD)
        known = self._known.get(head) if end else None
        return known if known is not None and len(start) <= known.num_bytes else None


def _whole(error: ServiceError, instance: str, request_id: str, keep_alive: bool) -> bytes:
    answer = problem_response(error, instance=instance, request_id=request_id)
    headers = [*answer.raw_headers, (b"x-request-id", request_id.encode())]
    if not keep_alive:
        headers.append((b"connection", b"close"))
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    status = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n".encode()
    return b"".join([status, lines, b"\r\n", answer.body])
