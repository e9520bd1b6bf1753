"""Which connections may stay open: as many as the limit says, and a few more for probes.

At the limit, the connection that has been idle for longest gives way to a new one, so idle connections can
live long without keeping others out. If all are in use, a new connection is surplus: it is answered if it
asks for a probe such as GET /health/live, and is refused otherwise. Connections that say nothing cannot take
the places of probes, because the oldest of them is refused when another one comes.
"""

from typing import Protocol

PROBE_RESERVE = 16  # probes and scrapes of a few monitors that come at once
# A connection that was idle for less is likely to be used again soon.
GIVES_WAY_AFTER_S = 5.0


class Connection(Protocol):
    """What the limit does to a connection."""

    def give_way(self) -> None:
        """Close an idle connection."""

    def refuse_surplus(self) -> None:
        """Refuse a surplus connection that has sent no request yet, and close it."""


class ConnectionLimit:
    """The open connections of a server. Times are those of the event loop, in seconds."""

    def __init__(self, max_connections: int, *, gives_way_after_s: float = GIVES_WAY_AFTER_S) -> None:
        self._max_connections = max_connections
        self._gives_way_after_s = gives_way_after_s
        self._taken: set[Connection] = set()  # those that the limit counts
        self._idle_since: dict[Connection, float] = {}  # of those, the longest idle first
        self._waiting: dict[Connection, None] = {}  # surplus ones without a request, the oldest first
        self._probing: set[Connection] = set()  # surplus ones with a probe

    def enter(self, connection: Connection, now: float) -> bool:
        """Take a new connection -> False if it is surplus."""
        if self._make_room(now):
            self._taken.add(connection)
            return True
        self._waiting[connection] = None
        if len(self._waiting) + len(self._probing) > PROBE_RESERVE:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.refuse_surplus()
        return False

    def promote(self, connection: Connection, now: float) -> bool:
        """Whether there is room by now for a surplus connection, which then is surplus no more."""
        if not self._make_room(now):
            return False
        self._waiting.pop(connection, None)
        self._taken.add(connection)
        return True

    def probe(self, connection: Connection) -> None:
        """Note that a surplus connection gets an answer, so that it is not refused meanwhile."""
        self._waiting.pop(connection, None)
        self._probing.add(connection)

    def rest(self, connection: Connection, now: float) -> None:
        """Note that a connection is idle: its last request is answered."""
        self.work(connection)  # so that it comes last
        if connection in self._taken:
            self._idle_since[connection] = now

    def work(self, connection: Connection) -> None:
        """Note that a connection is not idle any more."""
        self._idle_since.pop(connection, None)

    def leave(self, connection: Connection) -> None:
        """Forget a closed connection. May be called twice."""
        self._taken.discard(connection)
        self._probing.discard(connection)
        self._waiting.pop(connection, None)
        self.work(connection)

    def _make_room(self, now: float) -> bool:
        """Whether one more fits, after an idle one gave way if need be."""
        if len(self._taken) < self._max_connections:
            return True
        oldest = next(iter(self._idle_since), None)
        if oldest is None or now - self._idle_since[oldest] < self._gives_way_after_s:
            return False
        self.leave(oldest)
        oldest.give_way()
        return True
