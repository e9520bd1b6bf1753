"""Builds a lost trie from the codes, or lost codes from the trie, as after an eviction of the key.

The new key is built beside the catalog and takes its place in one step. Until then put.lua and drop.lua
refuse every change, as one of the two is gone. So no item can take a slot that belongs to another one.
"""

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis, RedisCluster

from service.store.client import PIPELINE_LENGTH, redis_errors
from service.store.fsck_report import Finding, FsckReport
from service.store.records import HASH_LENGTH, RecordCodec, RedisKeys, to_str
from service.store.standing import sizes_of

LIFE_S = 3_600  # of a half-built key, after its last addition, if its fsck is killed
SCAN_COUNT = 1_000


async def rebuild(
    redis: Redis | RedisCluster, keys: RedisKeys, codec: RecordCodec, report: FsckReport
) -> None:
    """Build what is lost, if the codes or the trie are gone while the other is there. Raises ServiceError."""
    sizes = await sizes_of(redis, keys)
    if sizes.is_torn:
        builder = _Builder(redis, keys, codec, report)
        await (builder.codes() if sizes.members else builder.trie())


class _Builder:
    def __init__(
        self, redis: Redis | RedisCluster, keys: RedisKeys, codec: RecordCodec, report: FsckReport
    ) -> None:
        self._redis: Any = redis
        self._keys = keys
        self._codec = codec
        self._report = report

    async def trie(self) -> None:
        """The members of all items with readable codes."""
        built, cursor = await self._begin(self._keys.trie), 0
        while True:
            with redis_errors():
                cursor, page = await self._redis.hscan(self._keys.codes, cursor, count=PIPELINE_LENGTH)
            members = {
                item_id: value[:-HASH_LENGTH] + item_id
                for item_id, value in page.items()
                if self._codec.read_id(item_id) and self._codec.read_held(value)
            }
            if members:
                with redis_errors():
                    await self._redis.zadd(built, dict.fromkeys(members.values(), 0))
                    await self._redis.expire(built, LIFE_S)
                self._found("missing_member", list(members))
            if cursor == 0:
                return await self._end(built, self._keys.trie)

    async def codes(self) -> None:
        """The codes of all members whose items are there."""
        built, last = await self._begin(self._keys.codes), b"-"
        while True:
            with redis_errors():
                members = await self._redis.zrange(
                    self._keys.trie, last, b"+", bylex=True, offset=0, num=SCAN_COUNT
                )
            if not members:
                return await self._end(built, self._keys.codes)
            sid_length = self._codec.sid_length
            sids = {m[sid_length:]: m[:sid_length] for m in members if self._codec.read_member(m)}
            with redis_errors():
                items = await self._redis.hmget(self._keys.items, list(sids)) if sids else []
            values = {
                item_id: sids[item_id] + item[:HASH_LENGTH]
                for item_id, item in zip(sids, items, strict=True)
                if item is not None and self._codec.read_item(to_str(item_id), item)
            }
            if values:
                with redis_errors():
                    await self._redis.hset(built, mapping=values)
                    await self._redis.expire(built, LIFE_S)
                self._found("missing_codes", list(values))
            last = b"(" + members[-1]

    async def _begin(self, key: str) -> str:
        built = f"{key}:rebuilt"
        with redis_errors():
            await self._redis.delete(built)
        return built

    async def _end(self, built: str, key: str) -> None:
        with redis_errors():
            if await self._redis.exists(built):
                await self._redis.persist(built)
                await self._redis.rename(built, key)

    def _found(self, kind: str, item_ids: Sequence[bytes]) -> None:
        for item_id in item_ids:
            self._report.add(Finding(kind, to_str(item_id), True))
