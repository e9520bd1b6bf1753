"""Checks that items and kept pictures agree, and drops pictures that no item refers to.

Each pass looks for suspects page by page. A suspect is judged by what Redis has of it at one moment, and a
picture is dropped only if nothing of that has changed since.
"""

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis, RedisCluster

from service.core.filters import DeclaredFields
from service.core.image_field import PictureReference, reference_in
from service.core.sid import SidSpec
from service.errors import ServiceError
from service.store.client import PIPELINE_LENGTH, Script, hash_pages, redis_errors
from service.store.fsck_report import Finding, FsckReport
from service.store.picture_records import unpack_picture
from service.store.pictures import PICTURES_AT_ONCE
from service.store.records import RecordCodec, RedisKeys, shown_id, to_str

MARK = b'"image":{'  # in every value of an item that refers to a picture


async def check_pictures(
    redis: Redis | RedisCluster, keys: RedisKeys, spec: SidSpec, report: FsckReport, *, repair: bool = False
) -> None:
    """Add to the report where items and pictures disagree. Raises ServiceError if Redis fails."""
    await _Checker(redis, keys, spec, report, repair).run()


class _Checker:
    def __init__(
        self, redis: Redis | RedisCluster, keys: RedisKeys, spec: SidSpec, report: FsckReport, repair: bool
    ) -> None:
        self._redis: Any = redis
        self._keys = keys
        self._codec = RecordCodec(spec, DeclaredFields())
        self._report = report
        self._repair = repair
        self._drop = Script("drop_field")
        self._judged: set[bytes] = set()  # a field may come twice

    async def run(self) -> None:
        async for page in hash_pages(self._redis, self._keys.pictures, PICTURES_AT_ONCE):
            with redis_errors():
                items = await self._redis.hmget(self._keys.items, list(page)) if page else []
            self._report.num_pictures += len(page)
            self._report.picture_bytes += sum(map(len, page.values()))
            for (item_id, picture), item in zip(page.items(), items, strict=True):
                if self._kind(item_id, item, picture):
                    await self._judge(item_id)
        async for page in hash_pages(self._redis, self._keys.items, PIPELINE_LENGTH):
            named = [item_id for item_id, value in page.items() if MARK in value]
            for item_id, length in zip(named, await self._lengths(named), strict=True):
                if not length and self._reference(item_id, page[item_id]):
                    await self._judge(item_id)

    async def _judge(self, item_id: bytes) -> None:
        if item_id in self._judged:
            return
        with redis_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hget(self._keys.items, item_id)
                pipe.hget(self._keys.pictures, item_id)
                item, picture = await pipe.execute()
        kind = self._kind(item_id, item, picture)
        if kind is None:
            return
        self._judged.add(item_id)
        is_mended = False
        if self._repair and kind == "picture_without_item":
            keys = (self._keys.items, self._keys.pictures)
            (reply,) = await self._drop.run(self._redis, keys, [[item_id, item or b"", picture]])
            if isinstance(reply, ServiceError):
                raise reply
            is_mended = bool(reply)
        self._report.add(Finding(kind, shown_id(item_id), is_mended))

    def _kind(self, item_id: bytes, item: bytes | None, value: bytes | None) -> str | None:
        """What is wrong with an item and its picture; None if nothing is."""
        reference = None if item is None else self._reference(item_id, item)
        if value is None:
            return "lost_picture" if reference else None
        if reference is None:
            return "picture_without_item"
        picture = unpack_picture(value)
        if picture is None or not picture.is_whole:
            return "damaged_picture"
        return None if picture.reference == reference else "other_picture"

    def _reference(self, item_id: bytes, item: bytes) -> PictureReference | None:
        if MARK not in item:
            return None
        try:
            record = self._codec.read_item(to_str(item_id), item)
        except UnicodeDecodeError:
            return None
        return reference_in(record.item) if record else None

    async def _lengths(self, item_ids: Sequence[bytes]) -> list[int]:
        if not item_ids:
            return []
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                for item_id in item_ids:
                    pipe.hstrlen(self._keys.pictures, item_id)
                found: list[int] = await pipe.execute()
        return found
