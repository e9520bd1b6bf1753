"""Whose catalog this is: what Redis holds of it when a replica starts, and the bundle by which it is in use.

A start reads all of this before it changes anything. lua/claim.lua and lua/settle.lua describe the keys.
"""

import re
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

from redis.asyncio import Redis, RedisCluster

from service.errors import ServiceError
from service.store.client import Script, redis_errors
from service.store.records import RedisKeys
from service.store.schema import check_schema, mark_schema

OWNER_FIELDS = ("tokenizer", "bundle", "data", "created", "since", "settled")
_TOKENIZER_ID = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class Owner:
    """The bundle by which a catalog is in use."""

    tokenizer_id: str
    bundle: str  # name of its folder
    data_name: str
    created_at: str  # when it was exported; '' if unknown


class Sizes(NamedTuple):
    """How much Redis holds of a catalog as one tokenizer reads it."""

    items: int  # of all tokenizers
    codes: int
    members: int  # of the trie

    @property
    def is_torn(self) -> bool:
        """Whether the codes or the trie are gone while the other is there."""
        return bool(self.codes) != bool(self.members)

    @property
    def damage(self) -> str:
        """What is missing that no script of ours removes; '' if nothing is.

        Scripts change codes and trie together. They remove an item before its codes only for a moment, under
        another tokenizer. So a key that is gone, or was begun anew, was evicted or deleted.
        """
        if self.is_torn:
            return f"it has the codes of {self.codes} items, but {self.members} places in the trie"
        if 2 * self.items < self.codes:
            return f"it has the codes of {self.codes} items, but only {self.items} of the items"
        return ""


class Standing(NamedTuple):
    """The catalog in Redis at one moment, as a replica sees it that starts."""

    active: str | None  # the active tokenizer; None for a new catalog, or for a value that is none
    raw_active: bytes  # as `settle` compares it; b"" for none
    owner: Owner | None
    is_settled: bool  # whether `owner` has put all its items into the catalog
    since_s: int  # since when it is the owner, in seconds of Redis' clock; 0 if unknown
    others: tuple[str, ...]  # tokenizers with keys; only looked for if neither `active` nor `owner` is known
    mine: Sizes
    has_log: bool  # of changes under this tokenizer; it stays after the last item is gone

    def whose(self, tokenizer_id: str) -> str | None:
        """The tokenizer by which the catalog is in use; None if it is new.

        `tokenizer_id`: that of this replica.
        """
        if self.active is not None:
            return self.active
        if self.owner is not None:
            return self.owner.tokenizer_id
        if self.mine.codes or self.mine.members or self.has_log:
            return tokenizer_id
        return min(self.others, default=None)


class StandingStore:
    """The catalog `catalog`, for a replica that starts with the bundle `mine`."""

    def __init__(self, redis: Redis | RedisCluster, *, catalog: str, mine: Owner) -> None:
        self._redis: Any = redis
        self._catalog = catalog
        self._mine = mine
        self._keys = RedisKeys.of(catalog, mine.tokenizer_id)
        tag = f"{{{catalog}}}"
        self._tag, self._owner = tag, f"{tag}:owner"
        self._rollout, self._retired = f"{tag}:rollout", f"{tag}:retired"
        self._claim, self._settle = Script("claim"), Script("settle")

    async def look(self, *, find_others: bool = True) -> Standing:
        """Read everything, and change nothing. Raises StoreUnavailable or StoreFault."""
        with redis_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.get(self._keys.active)
                pipe.hmget(self._owner, *OWNER_FIELDS)  # redis-py cannot pipeline HGETALL on a cluster
                pipe.exists(self._keys.log)
                _ask_sizes(pipe, self._keys)
                raw_active, fields, has_log, *sizes = await pipe.execute()
        active = None if raw_active is None else raw_active.decode(errors="replace")
        if active is not None and not _TOKENIZER_ID.fullmatch(active):
            active = None  # another program's value
        tokenizer, bundle, data, created, since, settled = (
            (value or b"").decode(errors="replace") for value in fields
        )
        owner = None
        if _TOKENIZER_ID.fullmatch(tokenizer):
            owner = Owner(tokenizer, bundle, data, created)
        return Standing(
            active,
            raw_active or b"",
            owner,
            settled == "1",
            int(since) if since.isdecimal() else 0,
            await self._others() if find_others and active is None and owner is None else (),
            Sizes(*sizes),
            bool(has_log),
        )

    async def sizes(self, tokenizer_id: str) -> Sizes:
        """How much there is of the catalog as this tokenizer reads it."""
        return await sizes_of(self._redis, RedisKeys.of(self._catalog, tokenizer_id))

    async def check_schema(self) -> None:
        """Raise NewerCatalog if an older release must leave this catalog alone. Changes nothing."""
        await check_schema(self._redis, self._catalog)

    async def mark_schema(self) -> None:
        """Note the layout that this release writes, before it writes. Raises NewerCatalog."""
        await mark_schema(self._redis, self._catalog)

    async def claim(self) -> bool:
        """Claim a new catalog for this bundle. False if it is not new, or claimed by another tokenizer."""
        keys = [self._keys.active, self._owner, *self._keys.changed]
        return await self._run(self._claim, keys, astuple(self._mine))

    async def settle(
        self, standing: Standing, *, force: bool = False, read_to: int = 0, keep_old_s: int = 0
    ) -> bool:
        """Make this tokenizer the active one, if the catalog is in use as `standing` says.

        False, and nothing is changed, if another tokenizer came into use, or unless `force` is given, if a
        change to another is under way. `read_to`: version of the replaced tokenizer's log up to which this
        one has everything. `keep_old_s`: for how long the keys of the replaced one are kept.
        """
        keys = [self._keys.active, self._owner, self._rollout, self._retired]
        args = (standing.raw_active, *astuple(self._mine), int(force), read_to, keep_old_s)
        return await self._run(self._settle, keys, args)

    async def _others(self) -> tuple[str, ...]:
        """Tokenizers that have codes, a trie or a log here.

        This scans the names of all keys, so it is only for a catalog that seems to be new.
        """
        node = {}
        if isinstance(self._redis, RedisCluster):
            node = {"target_nodes": self._redis.get_node_from_key(self._keys.items)}
        found = set()
        with redis_errors():
            async for key in self._redis.scan_iter(match=f"{self._tag}:*:*", count=1_000, **node):
                kind, _, tokenizer_id = key.decode(errors="replace").removeprefix(self._tag).rpartition(":")
                if kind in (":codes", ":trie", ":log") and _TOKENIZER_ID.fullmatch(tokenizer_id):
                    found.add(tokenizer_id)
        return tuple(sorted(found))

    async def _run(self, script: Script, keys: list[str], args: tuple[Any, ...]) -> bool:
        (reply,) = await script.run(self._redis, keys, [args])
        if isinstance(reply, ServiceError):
            raise reply
        return bool(reply)


def _ask_sizes(pipe: Any, keys: RedisKeys) -> None:
    pipe.hlen(keys.items)
    pipe.hlen(keys.codes)
    pipe.zcard(keys.trie)


async def sizes_of(redis: Any, keys: RedisKeys) -> Sizes:
    """The sizes at one moment, each in O(1). Raises StoreUnavailable or StoreFault."""
    with redis_errors():
        async with redis.pipeline(transaction=True) as pipe:
            _ask_sizes(pipe, keys)
            return Sizes(*await pipe.execute())
