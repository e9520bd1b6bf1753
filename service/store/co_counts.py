"""The counts of items that were taken together, in Redis. lua/count.lua describes keys and values.

All models and tokenizers of a catalog share them: they are about items, not about codes.
"""

import logging
import math
import os
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis, RedisCluster

from service.core.co_counts import CoCountSpec, CoRow, are_counts, increments
from service.errors import ServiceError
from service.store.client import PIPELINE_LENGTH, RESPONSE_TIMEOUT_S, Script, chunks, redis_errors
from service.store.log_position import position_of
from service.store.records import Position, to_bytes, to_str, version_of

log = logging.getLogger(__name__)

ROWS_PER_CALL = 100  # of a seed; a row takes up to some kilobytes
LATEST_S = 1e11  # Redis' clock does not get there: about the year 5000
FAINTEST, LARGEST = 1e-30, 1e30  # counts that 4 bytes hold

_HEAD = struct.Struct(">dd")
_POPULARITY = struct.Struct(">d")
_ENTRY = struct.Struct(">fH")
_LENGTH = struct.Struct(">H")


class StoredRow(NamedTuple):
    """A row as it is in Redis."""

    row: CoRow  # its numbers at the time of the row
    at_s: float  # by Redis' clock


class Taken(NamedTuple):
    """An item that was taken after a history, as an event told."""

    event: str  # counts once
    history: Sequence[str]  # oldest first
    item_id: str


class RowsChanged(NamedTuple):
    """One entry of the log. `item_ids` is None if the entry cannot be read."""

    version: int
    item_ids: list[str] | None
    after: str  # the mark of the previous change
    mark: str


class CoCountKeys(NamedTuple):
    """The names of the keys, as lua/seed_counts.lua takes them."""

    rows: str
    log: str
    counted: str
    seeded: str

    @classmethod
    def of(cls, catalog: str) -> "CoCountKeys":
        """The keys of a catalog. They have the same hash tag as all keys of the catalog."""
        return cls(*(f"{{{catalog}}}:{kind}" for kind in ("co_counts", "co_log", "co_counted", "co_seeded")))


class CoCountStore:
    """The counts of the catalog `catalog`. Any number of writers may exist."""

    def __init__(
        self,
        redis: Redis | RedisCluster,
        *,
        catalog: str,
        half_life_s: float,
        keep_s: float,
        log_length: int = 100_000,
    ) -> None:
        """`keep_s`: for how many seconds, at least, an event that comes again is recognized."""
        self._redis: Any = redis
        self._keys = CoCountKeys.of(catalog)
        self._half_life_s = half_life_s
        self._keep_s = math.ceil(keep_s)
        self._log_length = log_length
        self._count = Script("count")
        self._seed = Script("seed_counts")
        self.num_unreadable = 0  # values that were skipped because another program wrote them

    def log2_unit(self, at_s: float) -> float:
        """log2 of how much more an event counts at a time than at the clock's zero (CoCounts.set_row)."""
        return at_s / self._half_life_s

    async def count(self, taken: Sequence[Taken], spec: CoCountSpec) -> int:
        """Add these events to the counts -> how many were new. Safe to repeat.

        Raises StoreUnavailable or StoreFault; some events may be counted then.
        """
        calls = []
        for event, history, item_id in taken:
            added = increments(history, item_id, spec)
            call = [to_bytes(event), self._keep_s, self._half_life_s, spec.max_neighbors, _new_mark()]
            call += [self._log_length, len(added.popularity)]
            for each, amount in added.popularity.items():
                call += [to_bytes(each), amount]
            for (row, neighbor), amount in added.pairs.items():
                call += [to_bytes(row), to_bytes(neighbor), amount]
            calls.append(call)
        replies = await self._count.run(self._redis, self._keys[:3], calls)
        _raise_first(replies)
        return sum(reply[0] for reply in replies)

    async def is_seeded(self) -> bool:
        """Whether the rows of a bundle have been written once."""
        with redis_errors():
            return bool(await self._redis.exists(self._keys.seeded))

    async def seed(self, rows: Sequence[CoRow]) -> int:
        """Write rows of a bundle for items that have none yet -> how many were written. Safe to repeat."""
        num_written = 0
        parts = list(chunks(rows, ROWS_PER_CALL)) or [[]]
        for place, part in enumerate(parts, start=1):
            call: list[Any] = [_new_mark(), self._log_length, int(place == len(parts))]
            for row in part:
                call += [
                    to_bytes(row.item_id),
                    _POPULARITY.pack(row.popularity),
                    pack_neighbors(row.neighbors),
                ]
            replies = await self._seed.run(self._redis, self._keys, [call])
            _raise_first(replies)
            num_written += replies[0]
        return num_written

    async def rows(self, item_ids: Sequence[str]) -> dict[str, StoredRow]:
        """The rows of these items. Items without a readable row are left out."""
        found: dict[str, StoredRow] = {}
        for ids in chunks(item_ids, PIPELINE_LENGTH):
            keys = [to_bytes(item_id) for item_id in ids]
            with redis_errors():
                values = await self._redis.hmget(self._keys.rows, keys)
            for key, value in zip(keys, values, strict=True):
                if value is not None and (row := self._read(key, value)):
                    found[row.row.item_id] = row
        return found

    async def snapshot(self) -> AsyncIterator[list[StoredRow]]:
        """All rows, page by page. A row may occur twice; a row that is new meanwhile may be missing."""
        cursor = 0
        while True:
            with redis_errors():
                cursor, values = await self._redis.hscan(self._keys.rows, cursor, count=PIPELINE_LENGTH)
            yield [row for key, value in values.items() if (row := self._read(key, value))]
            if cursor == 0:
                return

    async def position(self) -> Position:
        """The end of the log now; version 0 if nothing was ever counted."""
        return await position_of(self._redis, self._keys.log)

    async def changes(self, after: int, block_ms: int | None = None, limit: int = 1_000) -> list[RowsChanged]:
        """The oldest changes after a version, in order. If none, waits up to `block_ms` for the first one."""
        if block_ms is not None and not 0 < block_ms < 1_000 * RESPONSE_TIMEOUT_S:
            raise ValueError(f"block_ms must be below the {RESPONSE_TIMEOUT_S:g} s that a reply may take")
        with redis_errors():
            streams = await self._redis.xread({self._keys.log: f"{after}-0"}, count=limit, block=block_ms)
        return [_read_change(entry_id, fields) for entry_id, fields in (streams[0][1] if streams else [])]

    def _read(self, key: bytes, value: bytes) -> StoredRow | None:
        try:
            return read_row(key, value)
        except (ValueError, struct.error) as error:
            self.num_unreadable += 1
            log.warning("the counts: a row that is not ours, skipped: %r (%s)", key[:80], error)
            return None


def pack_neighbors(neighbors: Mapping[str, float]) -> bytes:
    """The neighbors of a row as lua/count.lua describes them."""
    parts = []
    for item_id, count in neighbors.items():
        if count > FAINTEST:
            name = to_bytes(item_id)
            parts += [_ENTRY.pack(min(count, LARGEST), len(name)), name]
    return b"".join(parts)


def read_row(key: bytes, value: bytes) -> StoredRow:
    """A field and its value in the hash of rows. Raises ValueError or struct.error if it is not a row."""
    popularity, at_s = _HEAD.unpack_from(value)
    neighbors: dict[str, float] = {}
    place = _HEAD.size
    while place < len(value):
        count, length = _ENTRY.unpack_from(value, place)
        place += _ENTRY.size
        name = value[place : place + length]
        place += length
        if len(name) < length:
            raise ValueError("an item id is cut off")
        neighbors[to_str(name)] = count
    item_id = to_str(key)
    if not (item_id and all(neighbors) and are_counts((popularity, *neighbors.values()))):
        raise ValueError("a number is not finite and above 0, or an item id is empty")
    if not 0 <= at_s < LATEST_S:
        raise ValueError("its time is not one of Redis' clock")
    return StoredRow(CoRow(item_id, popularity, neighbors), at_s)


def _read_change(entry_id: bytes, fields: Mapping[bytes, bytes]) -> RowsChanged:
    version = version_of(entry_id)
    try:
        if fields[b"op"] != b"rows":
            raise ValueError("not a change of rows")
        ids, told, place = [], fields[b"id"], 0
        while place < len(told):
            (length,) = _LENGTH.unpack_from(told, place)
            place += _LENGTH.size
            ids.append(to_str(told[place : place + length]))
            place += length
        return RowsChanged(version, ids, fields[b"after"].decode(), fields[b"mark"].decode())
    except (ValueError, KeyError, struct.error) as error:
        log.warning("the log of the counts: an entry that is not ours: %r (%s)", entry_id, error)
        return RowsChanged(version, None, "", "")


def _raise_first(replies: Sequence[Any]) -> None:
    for reply in replies:
        if isinstance(reply, ServiceError):
            raise reply


def _new_mark() -> str:
    return os.urandom(8).hex()
