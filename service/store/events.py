"""Events in Redis: each counts once, however often it is posted, and every replica hears of it."""

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis, RedisCluster

from service.errors import ServiceError
from service.store.client import Script, redis_errors
from service.store.records import to_bytes

EVENTS_KEPT = 100_000  # for replicas to follow; about 100 bytes each
EVENTS_PER_READ = 1_000


class Event(NamedTuple):
    """A person took an item of a page: clicked, bought or played it."""

    event_id: str
    request_id: str  # of the answer that the page came with
    item_id: str


class Told(NamedTuple):
    """An event as replicas read it from the log of events."""

    entry_id: bytes
    request_id: str
    item_id: str


class EventStore:
    """The events of the catalog `catalog`, whichever model was served. Several stores may write at once."""

    def __init__(self, redis: Redis | RedisCluster, *, catalog: str, keep_s: float) -> None:
        """`keep_s`: for how many seconds, at least, a repeated event is recognized."""
        self._redis: Any = redis
        # The same hash tag as all keys of the catalog, so that they share one slot of a cluster.
        self._ids, self._events = f"{{{catalog}}}:event_ids", f"{{{catalog}}}:events"
        self._owner_prefix = f"{{{catalog}}}:event_owner:"
        self._owner = os.urandom(8).hex().encode()
        self._keep_s = math.ceil(keep_s)
        self._take = Script("events")

    async def take(self, events: Sequence[Event]) -> int:
        """Write the new ones among the events, in one step, and return their number. May be repeated.

        Raises StoreUnavailable or StoreFault.
        """
        flat = [to_bytes(part) for event in events for part in event]
        call = [self._keep_s, EVENTS_KEPT, *flat]
        (reply,) = await self._take.run(self._redis, [self._ids, self._events], [call])
        if isinstance(reply, ServiceError):
            raise reply
        return int(reply)

    async def last_entry_id(self) -> bytes:
        """Where the log of events ends now: `after` gives what follows."""
        with redis_errors():
            newest = await self._redis.xrevrange(self._events, count=1)
        return newest[0][0] if newest else b"0-0"

    async def after(self, entry_id: bytes, block_ms: int) -> list[Told]:
        """The oldest events after an entry, in order. If there is none, waits up to `block_ms` for one."""
        with redis_errors():
            streams = await self._redis.xread({self._events: entry_id}, count=EVENTS_PER_READ, block=block_ms)
        return [
            Told(each_id, _text(fields.get(b"request", b"")), _text(fields.get(b"item", b"")))
            for each_id, fields in (streams[0][1] if streams else [])
        ]

    async def claim(self, entry_ids: Sequence[bytes]) -> list[bool]:
        """For each event, whether it is this store's: the first store that claims an event owns it.

        Safe to repeat. A claim is kept as long as an event is recognized. Raises StoreUnavailable or
        StoreFault.
        """
        pipeline = self._redis.pipeline(transaction=False)
        for entry_id in entry_ids:
            key = self._owner_prefix.encode() + entry_id
            pipeline.set(key, self._owner, nx=True, get=True, ex=max(1, self._keep_s))
        with redis_errors():
            owners = await pipeline.execute()
        return [owner in (None, self._owner) for owner in owners]


def _text(raw: bytes) -> str:
    """Text of any bytes, as others may have written them. Such text names no page."""
    return raw.decode("utf-8", "surrogateescape")
