"""The version of the layout of a catalog's keys in Redis: an older release must not misread a newer one.

A release that changes a key so that older ones cannot read or write it raises `SCHEMA`. Keys that older
releases do not touch leave it as it is. The version is a field of the hash `{cat}:owner`, and never sinks.
"""

from redis.asyncio import Redis, RedisCluster

from service.errors import GlyphrecError, ServiceError
from service.store.client import Script, redis_errors

SCHEMA = 1
FIELD = "schema"


class NewerCatalog(GlyphrecError):
    """A newer release has written the catalog in a layout that this one cannot read."""

    def __init__(self, catalog: str, found: int, known: int) -> None:
        super().__init__(
            f"The catalog {catalog!r} has the layout {found} of a newer release; this one knows {known}. "
            "Nothing was changed. Start that release again, or restore a backup from before the upgrade."
        )


async def check_schema(redis: Redis | RedisCluster, catalog: str, *, known: int = SCHEMA) -> None:
    """Raise NewerCatalog if the layout is newer than `known`. Reads only. Raises StoreUnavailable."""
    with redis_errors():
        raw = await redis.hget(_owner(catalog), FIELD)
    found = int(raw) if raw is not None and raw.isdigit() else 0
    if found > known:
        raise NewerCatalog(catalog, found, known)


async def mark_schema(redis: Redis | RedisCluster, catalog: str, *, known: int = SCHEMA) -> None:
    """Note that the catalog has the layout `known` from now on. Raises as `check_schema` does."""
    (found,) = await Script("schema").run(redis, [_owner(catalog)], [[known]])
    if isinstance(found, ServiceError):
        raise found
    if found > known:
        raise NewerCatalog(catalog, found, known)


def _owner(catalog: str) -> str:
    return f"{{{catalog}}}:owner"
