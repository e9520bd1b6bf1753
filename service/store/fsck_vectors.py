"""Checks that items and vectors agree, and drops vectors that no search may use.

A vector that is missing is no fault: an older release or a bundle without vectors leaves items without one,
and a replica gives them one after its start. The report counts those that are there.
"""

from typing import Any

from redis.asyncio import Redis, RedisCluster

from service.errors import ServiceError
from service.store.client import Script, hash_pages, redis_errors
from service.store.fsck_report import Finding, FsckReport
from service.store.records import HASH_LENGTH, RedisKeys, shown_id
from service.store.vectors import MARK_LENGTH, VECTORS_AT_ONCE


async def check_vectors(
    redis: Redis | RedisCluster, keys: RedisKeys, vector_dim: int, report: FsckReport, *, repair: bool = False
) -> None:
    """Add to the report where vectors are wrong. `vector_dim`: numbers of a vector, each of one byte.

    Raises ServiceError if Redis fails.
    """
    await _Checker(redis, keys, vector_dim, report, repair).run()


class _Checker:
    def __init__(
        self, redis: Redis | RedisCluster, keys: RedisKeys, vector_dim: int, report: FsckReport, repair: bool
    ) -> None:
        self._redis: Any = redis
        self._keys = keys
        self._length = MARK_LENGTH + vector_dim
        self._report = report
        self._repair = repair
        self._drop = Script("drop_field")
        self._judged: set[bytes] = set()  # a field may come twice

    async def run(self) -> None:
        num_whole = 0
        async for page in hash_pages(self._redis, self._keys.vectors, VECTORS_AT_ONCE):
            with redis_errors():
                codes = await self._redis.hmget(self._keys.codes, list(page)) if page else []
            for (item_id, value), held in zip(page.items(), codes, strict=True):
                if self._kind(value, held):
                    await self._judge(item_id)
                else:
                    num_whole += 1
        self._report.num_vectors = num_whole

    async def _judge(self, item_id: bytes) -> None:
        """Judge a vector by what there is at one moment, and drop it only if that is still so."""
        if item_id in self._judged:
            return
        with redis_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hget(self._keys.vectors, item_id)
                pipe.hget(self._keys.codes, item_id)
                value, held = await pipe.execute()
        kind = None if value is None else self._kind(value, held)
        if kind is None:
            return
        self._judged.add(item_id)
        is_mended = False
        if self._repair:
            keys = (self._keys.codes, self._keys.vectors)
            (reply,) = await self._drop.run(self._redis, keys, [[item_id, held or b"", value]])
            if isinstance(reply, ServiceError):
                raise reply
            is_mended = bool(reply)
        self._report.add(Finding(kind, shown_id(item_id), is_mended))

    def _kind(self, value: bytes, held: bytes | None) -> str | None:
        """What is wrong with a vector; None if nothing is."""
        if held is None:
            return "vector_without_codes"
        if len(value) != self._length:
            return "unreadable_vector"
        return None if value[:MARK_LENGTH] == held[-HASH_LENGTH:][:MARK_LENGTH] else "outdated_vector"
