"""The catalog in Redis, which is the source of truth.

A change is one script. So an item is in items, codes, trie and log, or in none of them, and a repeated call
changes nothing. lua/put.lua describes keys and values. Needs Redis 7, or Valkey.
"""

import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

from redis.asyncio import Redis, RedisCluster

from service.core.filters import NO_ATTRIBUTES, Attributes, DeclaredFields
from service.core.sid import NUM_SLOTS, Codes, SidSpec
from service.errors import (
    CatalogInUse,
    DamagedCatalog,
    GlyphrecError,
    ItemChanged,
    ItemNotFound,
    PreconditionFailed,
    ServiceError,
    SidSpaceFull,
)
from service.store.client import (
    PIPELINE_LENGTH,
    RESPONSE_TIMEOUT_S,
    Script,
    chunks,
    connect,
    observing,
    redis_errors,
)
from service.store.log_position import position_of
from service.store.persistence import Persistence, read_persistence
from service.store.picture_records import HEADER, unpack_header
from service.store.pictures import PictureStore
from service.store.records import (
    HASH_LENGTH,
    Change,
    DropResult,
    Held,
    HeldWithPicture,
    IfMatch,
    ItemListing,
    ItemRecord,
    Position,
    PutResult,
    RecordCodec,
    RedisKeys,
    StoredItem,
    TrieEntry,
    to_bytes,
)
from service.store.standing import sizes_of
from service.store.vectors import VectorStore

__all__ = [
    "Change",
    "DropResult",
    "Held",
    "IfMatch",
    "ItemRecord",
    "ItemStore",
    "ItemListing",
    "Position",
    "PutResult",
    "StoredItem",
    "TrieEntry",
    "connect",
]

NO_FIELDS = DeclaredFields()
TRIE_PAGE = 5_000  # members in one reply: about 100 KB
OLDEST_REDIS = 7


class ItemStore:
    """The catalog `catalog` as the tokenizer `tokenizer_id` reads it. Any number of writers may exist."""

    def __init__(
        self,
        redis: Redis | RedisCluster,
        *,
        catalog: str,
        tokenizer_id: str,
        spec: SidSpec,
        log_length: int = 100_000,
        num_slots: int = NUM_SLOTS,
        fields: DeclaredFields = NO_FIELDS,
        vector_dim: int | None = None,
    ) -> None:
        """`vector_dim`: numbers of an item's vector; None: no vectors are kept."""
        self._redis: Any = redis  # redis-py's types differ between releases and between RESP 2 and 3
        self._codec = RecordCodec(spec, fields)
        self._tokenizer_id = tokenizer_id
        self._log_length = log_length
        self._num_slots = num_slots
        keys = RedisKeys.of(catalog, tokenizer_id)
        self._items, self._codes, self._trie, self._log, *_, self._active = keys
        self._all_keys, self._keys = keys, keys.of_items
        self.pictures = PictureStore(redis, keys.pictures)
        self.vectors = VectorStore(redis, keys, vector_dim)
        self._put = Script("put")
        self._drop = Script("drop")
        self._held = Script("held")

    @property
    def num_unreadable(self) -> int:
        """How many values were skipped because another program wrote them."""
        return self._codec.num_unreadable + self.vectors.num_unreadable

    async def put(
        self, records: Sequence[tuple[ItemRecord, Codes | None]], if_match: IfMatch | None = None
    ) -> list[PutResult | ServiceError]:
        """Add or replace items, in order. One script each, so that an error affects only its own item.

        Unchanged content keeps its sid, whatever the codes. Codes may be None if the caller knows from `held`
        that the content is unchanged. If that is no longer true, the result is ItemChanged: read the item and
        put it with codes. The result is also ItemChanged if the picture differs from the one that
        `ItemRecord.picture` expects. With `if_match`, the result is ItemNotFound for an item that does not
        exist, and PreconditionFailed for one of another revision; then nothing was done. Raises
        StoreUnavailable if Redis took no item; it may also be the result of some.
        """
        values = [(self._codec.pack_item(each), self._codec.pack_attributes(each)) for each, _ in records]
        return await self._put_all(records, values, if_match=if_match)

    async def seed(self, records: Sequence[tuple[ItemRecord, Codes]]) -> list[PutResult | ServiceError]:
        """Put items into a new catalog. The result is CatalogInUse as soon as a tokenizer is active."""
        values = [(self._codec.pack_item(each), self._codec.pack_attributes(each)) for each, _ in records]
        return await self._put_all(records, values, seeds=True)

    async def assign(
        self, records: Sequence[tuple[ItemRecord, Codes | None]], *, tell: bool = False
    ) -> list[PutResult | ServiceError]:
        """Give codes to items that are in Redis already, as a new tokenizer does. The items do not change.

        The result is ItemChanged if an item was posted again or dropped since the caller read it. `tell` also
        logs an item that has its codes already: its attributes may have changed under another tokenizer.
        """
        # Without attributes: those that the caller has read may be older than those in Redis.
        values = [(self._codec.pack_hash(record), b"") for record, _ in records]
        return await self._put_all(records, values, tell=tell)

    async def _put_all(
        self,
        records: Sequence[tuple[ItemRecord, Codes | None]] | Sequence[tuple[ItemRecord, Codes]],
        values: Sequence[tuple[bytes, bytes]],
        *,
        tell: bool = False,
        if_match: IfMatch | None = None,
        seeds: bool = False,
    ) -> list[PutResult | ServiceError]:
        calls: list[list[Any]] = []
        allowed = "" if if_match is None else if_match.pack()
        for (record, codes), (value, attributes) in zip(records, values, strict=True):
            packed = b"" if codes is None else self._codec.pack_codes(codes)
            item_id = to_bytes(record.item_id)
            calls.append(
                [
                    item_id,
                    value,
                    packed,
                    self._num_slots,
                    _new_mark(),
                    self._log_length,
                    attributes,
                    int(tell),
                    allowed,
                    *record.picture,
                    record.vector if self.vectors.dim is not None else b"",
                ]
            )
        keys = (*self._keys, self._active) if seeds else self._keys
        replies = await self._put.run(self._redis, keys, calls)
        return [
            self._read_put(record.item_id, value, codes, reply)
            for (record, codes), (value, _), reply in zip(records, values, replies, strict=True)
        ]

    def _read_put(
        self, item_id: str, value: bytes, codes: Codes | None, reply: Any
    ) -> PutResult | ServiceError:
        if isinstance(reply, ServiceError):
            return reply
        status, sid, version = reply[0].decode(), reply[1], reply[2]
        match status:
            case "changed":
                return ItemChanged(item_id)
            case "absent":
                return ItemNotFound(item_id)
            case "damaged":
                return DamagedCatalog("its codes or its trie are gone")
            case "settled":
                return CatalogInUse()
            case "conflict":
                return PreconditionFailed(item_id)
            case "full":
                return SidSpaceFull(codes or (), self._num_slots)
        revision = self._codec.revision_of(value, sid) if len(value) > HASH_LENGTH else ""
        return PutResult(item_id, self._codec.unpack_sid(sid), status, version, revision)

    async def drop(self, item_ids: Sequence[str], if_match: IfMatch | None = None) -> list[DropResult]:
        """Remove items, in order. An absent item changes nothing.

        Raises the first error: with `if_match`, PreconditionFailed for an item of another revision.
        """
        return await self._drop_all(item_ids, spare_items=False, if_match=if_match)

    async def forget(self, item_ids: Sequence[str]) -> list[DropResult]:
        """Remove the codes of items that no longer exist: a writer of another tokenizer dropped them."""
        return await self._drop_all(item_ids, spare_items=True)

    async def _drop_all(
        self, item_ids: Sequence[str], *, spare_items: bool, if_match: IfMatch | None = None
    ) -> list[DropResult]:
        allowed = "" if if_match is None else if_match.pack()
        calls = [[to_bytes(i), _new_mark(), self._log_length, int(spare_items), allowed] for i in item_ids]
        results = []
        for item_id, reply in zip(
            item_ids, await self._drop.run(self._redis, self._keys, calls), strict=True
        ):
            if isinstance(reply, ServiceError):
                raise reply
            if reply[0] == -2:
                raise DamagedCatalog("its codes or its trie are gone")
            if reply[0] == -1:
                raise PreconditionFailed(item_id)
            results.append(DropResult(item_id, bool(reply[0]), reply[1]))
        return results

    async def held(self, item_ids: Sequence[str]) -> dict[str, Held]:
        """The sids of these items with the hash of the text they come from. Absent items are left out."""
        found: dict[str, Held] = {}
        for ids in chunks(item_ids, PIPELINE_LENGTH):
            with redis_errors():
                values = await self._redis.hmget(self._codes, [to_bytes(i) for i in ids])
            for item_id, value in zip(ids, values, strict=True):
                if value is not None and (held := self._codec.read_held(value)):
                    found[item_id] = held
        return found

    async def held_with_pictures(self, item_ids: Sequence[str]) -> dict[str, HeldWithPicture]:
        """Of each of these items, what this tokenizer has read of it, and which picture is kept for it."""
        ids = [to_bytes(i) for i in item_ids]
        keys = (self._codes, self._all_keys.pictures)
        calls = [[HEADER.size, *part] for part in chunks(ids, PIPELINE_LENGTH)]
        found: list[HeldWithPicture] = []
        for reply in await self._held.run(self._redis, keys, calls):
            if isinstance(reply, ServiceError):
                raise reply
            found += [
                HeldWithPicture(
                    None if codes is None else self._codec.read_held(codes),
                    None if header is None else unpack_header(header),
                )
                for codes, header in reply
            ]
        return dict(zip(item_ids, found, strict=True))

    async def get(self, item_id: str) -> StoredItem | None:
        """`get_many` for one item. None if it is not in this tokenizer's catalog.

        Raises StoreUnavailable, and DamagedCatalog if Redis has lost so much that nobody can tell.
        """
        found = (await self.get_many([item_id])).get(item_id)
        if found is None:
            await self._check_damage()
            # What was lost may have been built anew just before the check.
            found = (await self.get_many([item_id])).get(item_id)
        return found

    async def get_many(self, item_ids: Sequence[str]) -> dict[str, StoredItem]:
        """These items, each at one moment. Items outside this tokenizer's catalog are left out."""
        found: dict[str, StoredItem] = {}
        for ids in chunks(item_ids, PIPELINE_LENGTH):
            keys = [to_bytes(i) for i in ids]
            with redis_errors():
                async with self._redis.pipeline(transaction=True) as pipe:
                    pipe.hmget(self._items, keys)
                    pipe.hmget(self._codes, keys)
                    with observing(self._redis, "hmget", 2):
                        values, codes = await pipe.execute()
            for item_id, value, held_value in zip(ids, values, codes, strict=True):
                if value is None or held_value is None:
                    continue
                record, held = self._codec.read_item(item_id, value), self._codec.read_held(held_value)
                if record and held:
                    revision = self._codec.revision_of(value, held_value[:-HASH_LENGTH])
                    found[item_id] = StoredItem(item_id, dict(record.item), held.sid, revision)
        return found

    async def page(self, cursor: str | None, limit: int) -> ItemListing:
        """Up to `limit` items in trie order, after the page that gave the cursor.

        An item that exists during all calls is on exactly one page, unless its text changes meanwhile. A page
        may have fewer than `limit` items, but none only if it is the last; only the last page has no
        next_cursor. Raises InvalidCursor, and DamagedCatalog if Redis has lost a part of the catalog.
        """
        after, is_sure = self._codec.read_cursor(cursor), False
        while True:
            members = await self._members(after, limit + 1)
            shown = members[:limit]
            entries = [entry for member in shown if (entry := self._codec.read_member(member))]
            found = await self.get_many([entry.item_id for entry in entries])
            items = [
                StoredItem(entry.item_id, found[entry.item_id].item, entry.sid)
                for entry in entries
                if entry.item_id in found
            ]
            if not items:
                await self._check_damage()
                if not is_sure:  # what was lost may have been built anew just before the check
                    is_sure = True
                    continue
            if items or len(members) <= limit:
                break
            after, is_sure = shown[-1], False
        return ItemListing(items, self._codec.pack_cursor(shown[-1]) if len(members) > limit else None)

    async def check_loadable(self) -> None:
        """Raise DamagedCatalog if the trie or the codes are gone: what a replica has in memory is better."""
        sizes = await sizes_of(self._redis, self._all_keys)
        if sizes.is_torn:
            raise DamagedCatalog(sizes.damage)

    async def _check_damage(self) -> None:
        if damage := (await sizes_of(self._redis, self._all_keys)).damage:
            raise DamagedCatalog(damage)

    async def snapshot(self) -> AsyncIterator[list[TrieEntry]]:
        """All items in trie order, page by page.

        An item that moves meanwhile may occur twice or not at all: replay `changes` since before the call.
        An item that Redis no longer has is left out, although it still has its place in the trie.
        """
        last: bytes | None = None
        while members := await self._members(last, TRIE_PAGE):
            entries = [entry for member in members if (entry := self._codec.read_member(member))]
            keys = [to_bytes(entry.item_id) for entry in entries]
            present, vectors = await self._attributes_of(keys), await self.vectors.of(keys)
            yield [
                TrieEntry(entry.item_id, entry.sid, present[key], vectors.get(key, b""))
                for entry, key in zip(entries, keys, strict=True)
                if key in present
            ]
            last = members[-1]

    async def _attributes_of(self, keys: Sequence[bytes]) -> dict[bytes, Attributes]:
        """The attributes of these items now. An unreadable item has none, and absent items are left out."""
        found: dict[bytes, Attributes] = {}
        for part in chunks(keys, PIPELINE_LENGTH):  # so that decoding them does not block the event loop
            with redis_errors():
                values = await self._redis.hmget(self._items, part)
            for key, value in zip(part, values, strict=True):
                if value is not None:
                    found[key] = self._codec.read_attributes(value) or NO_ATTRIBUTES
        return found

    async def _members(self, after: bytes | None, limit: int) -> list[bytes]:
        start = b"-" if after is None else b"(" + after
        with redis_errors():
            found: list[bytes] = await self._redis.zrange(
                self._trie, start, b"+", bylex=True, offset=0, num=limit
            )
        return found

    async def num_items(self) -> int:
        """Members of this tokenizer's trie in Redis, in O(1). Raises StoreUnavailable."""
        with redis_errors():
            return int(await self._redis.zcard(self._trie))

    async def position(self) -> Position:
        """The end of the log now; version 0 if nothing was ever changed."""
        return await position_of(self._redis, self._log)

    async def last_version(self) -> int:
        """The version of `position`, for callers that do not compare marks."""
        return (await self.position()).version

    async def changes(self, after: int, block_ms: int | None = None, limit: int = 1_000) -> list[Change]:
        """The oldest changes after a version, in order. If none, waits up to `block_ms` for the first one.

        A put has the item's present vector: if a later change made it newer, that change follows in the log.
        It has the attributes of its version. The log may lack them: after `assign`, or if the writer is an
        older release or declares other fields. Then it has the present attributes. These are never older, and
        the change that made them newer follows in the log. Such a put of an item that Redis no longer has is
        told as a drop: it was dropped later, or its record is lost.
        """
        if block_ms is not None and not 0 < block_ms < 1_000 * RESPONSE_TIMEOUT_S:
            raise ValueError(f"block_ms must be below the {RESPONSE_TIMEOUT_S:g} s that a reply may take")
        with redis_errors():
            streams = await self._redis.xread({self._log: f"{after}-0"}, count=limit, block=block_ms)
        entries = streams[0][1] if streams else []
        puts = [fields for _, fields in entries if fields.get(b"op") == b"put" and b"id" in fields]
        untold = {fields[b"id"] for fields in puts if not self._codec.tells_attributes(fields)}
        present = await self._attributes_of(list(untold))
        vectors = await self.vectors.of(list({fields[b"id"] for fields in puts}))
        return [self._codec.read_change(entry_id, fields, present, vectors) for entry_id, fields in entries]

    async def unread_items(self) -> AsyncIterator[list[ItemRecord]]:
        """Items whose present text this tokenizer has not read, page by page. `assign` stores their codes."""
        async for records in self._all_records():
            held = await self.held([record.item_id for record in records])
            unread = [
                record
                for record in records
                if record.item_id not in held or held[record.item_id].content_hash != record.content_hash
            ]
            if unread:
                yield unread

    async def items_without_vector(self) -> AsyncIterator[list[ItemRecord]]:
        """Items that have no vector of their present content, page by page. `assign` stores their vectors."""
        async for records in self._all_records():
            if found := await self.vectors.lacking(records):
                yield found

    async def _all_records(self) -> AsyncIterator[list[ItemRecord]]:
        cursor = 0
        while True:
            with redis_errors():
                cursor, values = await self._redis.hscan(self._items, cursor, count=PIPELINE_LENGTH)
            yield [
                record
                for key, value in values.items()
                if (item_id := self._codec.read_id(key)) and (record := self._codec.read_item(item_id, value))
            ]
            if cursor == 0:
                return

    async def records(self, item_ids: Sequence[str]) -> list[ItemRecord]:
        """Those of these items that exist, no matter which tokenizers have read them."""
        found: list[ItemRecord] = []
        for ids in chunks(item_ids, PIPELINE_LENGTH):
            with redis_errors():
                values = await self._redis.hmget(self._items, [to_bytes(i) for i in ids])
            read = (self._codec.read_item(i, v) for i, v in zip(ids, values, strict=True) if v is not None)
            found += [record for record in read if record]
        return found

    async def some_records(self, limit: int) -> list[ItemRecord]:
        """Up to `limit` different items, drawn at random."""
        with redis_errors():
            flat = await self._redis.hrandfield(self._items, limit, withvalues=True) or []
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return [
            record
            for key, value in pairs
            if (item_id := self._codec.read_id(key)) and (record := self._codec.read_item(item_id, value))
        ]

    async def forget_dropped(self) -> None:
        """Remove all codes whose items were dropped under another tokenizer."""
        cursor = 0
        while True:
            with redis_errors():
                cursor, codes = await self._redis.hscan(self._codes, cursor, count=PIPELINE_LENGTH)
                items = await self._redis.hmget(self._items, list(codes)) if codes else []
            gone = [item_id for item_id, item in zip(codes, items, strict=True) if item is None]
            await self.forget([item_id for item_id in map(self._codec.read_id, gone) if item_id])
            if cursor == 0:
                return

    async def activate(self) -> None:
        """Make this tokenizer the served one, without the items that were dropped under another tokenizer."""
        await self.forget_dropped()
        with redis_errors():
            await self._redis.set(self._active, self._tokenizer_id)

    async def active(self) -> str | None:
        """The served tokenizer, or None for a new catalog."""
        with redis_errors():
            value = await self._redis.get(self._active)
        return None if value is None else value.decode(errors="replace")

    async def ping(self) -> None:
        """Raise StoreUnavailable unless Redis answers."""
        with redis_errors():
            await self._redis.ping()

    async def check_server(self) -> None:
        """Raise GlyphrecError if the server is too old for the scripts."""
        with redis_errors():
            info = await self._redis.info("server")
        version = str(info.get("redis_version", "0"))
        if int(version.split(".")[0]) < OLDEST_REDIS:
            raise GlyphrecError(f"Redis {version} is too old: use Redis {OLDEST_REDIS} or later, or Valkey.")

    async def persistence(self) -> Persistence:
        """Whether acknowledged items survive a failure of the server: for /info, metrics and warnings."""
        return await read_persistence(self._redis, self._items)


def _new_mark() -> str:
    return os.urandom(8).hex()
