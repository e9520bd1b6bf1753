"""The kept pictures in Redis: one hash beside the items, which all tokenizers share.

lua/put.lua writes a picture together with its item, and lua/drop.lua removes both. What a replica loads of
the catalog has no bytes of pictures.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import ResponseError

from service.store.client import chunks, redis_errors
from service.store.picture_records import StoredPicture, unpack_picture
from service.store.records import to_bytes

PICTURES_AT_ONCE = 64  # in one reply: half a megabyte


class PicturesSize(NamedTuple):
    """How much is kept."""

    num_pictures: int
    num_bytes: int | None  # of Redis' memory, estimated from a sample; None if this user may not ask


class PictureStore:
    """Reads the pictures of one catalog. `ItemStore.put` and `ItemStore.drop` change them."""

    def __init__(self, redis: Redis | RedisCluster, key: str) -> None:
        self._redis: Any = redis
        self._key = key

    async def get_many(self, item_ids: Sequence[str]) -> dict[str, StoredPicture]:
        """The pictures of these items. Items without one are left out, as is what another program wrote."""
        found: dict[str, StoredPicture] = {}
        for ids in chunks(item_ids, PICTURES_AT_ONCE):
            with redis_errors():
                values = await self._redis.hmget(self._key, [to_bytes(i) for i in ids])
            for item_id, value in zip(ids, values, strict=True):
                if value is not None and (picture := unpack_picture(value)):
                    found[item_id] = picture
        return found

    async def size(self) -> PicturesSize:
        """How much is kept, in O(1). Raises StoreUnavailable."""
        with redis_errors():
            count = int(await self._redis.hlen(self._key))
            try:
                num_bytes = await self._redis.memory_usage(self._key, samples=20) if count else 0
            except ResponseError:  # hosted Redis may forbid MEMORY
                num_bytes = None
        return PicturesSize(count, None if num_bytes is None else int(num_bytes))
