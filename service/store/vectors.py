"""The vectors of items in Redis, by which POST /search finds them. lua/put.lua and lua/drop.lua write them.

A vector is of one content, and its value says of which. So a vector that an older release left behind when it
stored a new text is never taken for that of the new text.
"""

import logging
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis, RedisCluster

from service.store.client import chunks, observing, redis_errors
from service.store.records import HASH_LENGTH, ItemRecord, RedisKeys, to_bytes

log = logging.getLogger(__name__)

MARK_LENGTH = 8  # characters of the content hash before a vector, as in lua/put.lua
VECTORS_AT_ONCE = 1_000


class VectorStore:
    """The vectors of one catalog as one tokenizer reads it."""

    def __init__(self, redis: Redis | RedisCluster, keys: RedisKeys, dim: int | None) -> None:
        """`dim`: numbers of a vector, each of one byte. None: no vectors are kept, and none are read."""
        self._redis: Any = redis
        self._keys = keys
        self.dim = dim
        self.num_unreadable = 0

    async def of(self, item_ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """The vectors of those of these items that have one of their present content."""
        found: dict[bytes, bytes] = {}
        if self.dim is None:
            return found
        for part in chunks(item_ids, VECTORS_AT_ONCE):
            with redis_errors():
                async with self._redis.pipeline(transaction=True) as pipe:
                    pipe.hmget(self._keys.vectors, list(part))
                    pipe.hmget(self._keys.codes, list(part))
                    with observing(self._redis, "hmget", 2):
                        vectors, codes = await pipe.execute()
            for item_id, value, held in zip(part, vectors, codes, strict=True):
                if value is None or held is None:
                    continue
                if value[:MARK_LENGTH] == held[-HASH_LENGTH:][:MARK_LENGTH]:
                    if len(value) == MARK_LENGTH + self.dim:
                        found[item_id] = value[MARK_LENGTH:]
                    else:
                        self.num_unreadable += 1
                        log.warning("the vectors: a value that is not ours, skipped: %r", value[:80])
        return found

    async def lacking(self, records: Sequence[ItemRecord]) -> list[ItemRecord]:
        """Those of these items that have codes of their content, but no vector of it."""
        if self.dim is None:
            return []
        ids = [to_bytes(record.item_id) for record in records]
        found = await self.of(ids)
        return [record for item_id, record in zip(ids, records, strict=True) if item_id not in found]
