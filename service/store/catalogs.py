"""All catalogs in one Redis: which there are, what each takes, and how one is deleted."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import ResponseError

from service.errors import GlyphrecError
from service.store.client import chunks, redis_errors
from service.store.rollout import RolloutStore

SCAN_COUNT = 1_000
DELETE_CHUNK = 500
# Keys of a catalog, as docs/architecture.md lists them. A key of another program may have braces, too.
_KEY = re.compile(
    r"\{(?P<catalog>[A-Za-z0-9._:-]{1,64})\}:"
    r"(?:items|pictures|(?:codes|trie|log|vectors):[^:]+|active|owner|rollout(?::leader)?|replicas|retired"
    r"|event_ids|events|event_owner:.+|co_counts|co_log|co_counted|co_seeded)"
)
_MARKER = "event_owner"  # of which there may be many small ones, so their sizes are not asked for


class CatalogSummary(NamedTuple):
    """What Redis holds of one catalog."""

    name: str
    num_items: int
    num_keys: int
    num_bytes: int | None  # as Redis estimates it; None if it does not tell
    tokenizer_id: str  # the active one; '' for none
    bundle: str  # by which the catalog is in use; '' if unknown
    replicas: tuple[str, ...]  # that have reported within the last seconds


class CatalogInService(GlyphrecError):
    """Replicas serve the catalog, and would put a part of it back."""


async def all_catalogs(redis: Redis | RedisCluster) -> list[CatalogSummary]:
    """Every catalog, by name. Scans the names of all keys. Raises StoreUnavailable or StoreFault."""
    keys = await _keys_by_catalog(redis, "{*}:*")
    return [await _summary(redis, name, keys[name]) for name in sorted(keys)]


async def one_catalog(redis: Redis | RedisCluster, name: str) -> CatalogSummary | None:
    """One catalog; None if Redis has no key of it. `name`: as in `Settings.catalog`."""
    keys = await _keys_by_catalog(redis, f"{{{name}}}:*")
    return await _summary(redis, name, keys[name]) if name in keys else None


async def delete_catalog(redis: Redis | RedisCluster, name: str) -> int:
    """Delete every key of a catalog -> number of keys. May be repeated if it was interrupted.

    The key that says whose catalog it is goes last: until then no start takes the rest for a new catalog.
    Raises CatalogInService, and then has deleted nothing.
    """
    summary = await one_catalog(redis, name)
    if summary is None:
        return 0
    if summary.replicas:
        raise CatalogInService(
            f"The catalog {name!r} is served by {', '.join(summary.replicas)}. Stop these first; one that "
            "was killed counts for five seconds more. Nothing was deleted."
        )
    keys = (await _keys_by_catalog(redis, f"{{{name}}}:*"))[name]
    last = f"{{{name}}}:owner"
    ordered = [key for key in keys if key != last] + [key for key in keys if key == last]
    num_deleted = 0
    client: Any = redis
    with redis_errors():
        for chunk in chunks(ordered, DELETE_CHUNK):
            num_deleted += int(await client.unlink(*chunk))
    return num_deleted


async def _keys_by_catalog(redis: Redis | RedisCluster, pattern: str) -> dict[str, list[str]]:
    found: dict[str, set[str]] = defaultdict(set)  # a scan may name a key twice
    client: Any = redis
    with redis_errors():
        async for raw in client.scan_iter(match=pattern, count=SCAN_COUNT):
            key = raw.decode(errors="replace")
            if match := _KEY.fullmatch(key):
                found[match["catalog"]].add(key)
    return {name: sorted(keys) for name, keys in found.items()}


async def _summary(redis: Redis | RedisCluster, name: str, keys: Sequence[str]) -> CatalogSummary:
    client: Any = redis
    with redis_errors():
        active = await client.get(f"{{{name}}}:active")
        bundle = await client.hget(f"{{{name}}}:owner", "bundle")
        num_items = int(await client.hlen(f"{{{name}}}:items"))
    seen = await RolloutStore(redis, catalog=name, replica_id="").look()
    return CatalogSummary(
        name,
        num_items,
        len(keys),
        await _size(client, [key for key in keys if not key.startswith(f"{{{name}}}:{_MARKER}:")]),
        _text(active),
        _text(bundle),
        tuple(sorted(each.replica_id for each in seen.replicas)),
    )


async def _size(client: Any, keys: Sequence[str]) -> int | None:
    """None where the user may not ask. Redis samples the members of large keys."""
    num_bytes = 0
    with redis_errors():
        for key in keys:
            try:
                num_bytes += await client.memory_usage(key) or 0
            except ResponseError:  # hosted Redis may forbid MEMORY
                return None
    return num_bytes


def _text(raw: bytes | None) -> str:
    return "" if raw is None else raw.decode(errors="replace")


def lines(catalogs: Sequence[CatalogSummary]) -> Iterator[str]:
    """A table for people."""
    rows = [("catalog", "items", "MB", "keys", "replicas", "tokenizer", "bundle")]
    for each in catalogs:
        size = "?" if each.num_bytes is None else f"{each.num_bytes / 1e6:,.1f}"
        counts = f"{each.num_items:,}", size, f"{each.num_keys:,}", f"{len(each.replicas)}"
        rows.append((each.name, *counts, each.tokenizer_id or "-", each.bundle or "-"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
