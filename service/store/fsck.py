"""Checks that a catalog in Redis is consistent while it is served and written to, and repairs it on demand.

Each pass looks for items that seem wrong, page by page. So memory grows with the log and with the number of
faults, never with the catalog. lua/mend.lua then judges each suspect atomically, and repairs it in the same
script if asked to. So concurrent writes are never taken for faults, and never overwritten.
"""

import secrets
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis, RedisCluster

from service.core.filters import DeclaredFields
from service.core.sid import NUM_SLOTS, SidSpec
from service.errors import GlyphrecError, ServiceError
from service.store.client import PIPELINE_LENGTH, Script, chunks, redis_errors
from service.store.fsck_co_counts import check_co_counts
from service.store.fsck_pictures import check_pictures
from service.store.fsck_rebuild import rebuild
from service.store.fsck_report import Finding, FsckReport
from service.store.fsck_vectors import check_vectors
from service.store.records import HASH_LENGTH, RecordCodec, RedisKeys, to_str, version_of
from service.store.schema import check_schema

SCAN_COUNT = 1_000  # members or changes in one reply
KEEP_LOG = 2**53  # a repair trims nothing: the log's length is a setting of the service


class _Suspect(NamedTuple):
    item_id: bytes  # b"" for members without an id
    members: tuple[bytes, ...] = ()
    log_is_wrong: bool = False


class _LastChange(NamedTuple):
    op: bytes
    sid: bytes


async def served_tokenizer(redis: Redis | RedisCluster, catalog: str) -> str | None:
    """The tokenizer with which the catalog is served; None for a new catalog. Raises StoreUnavailable."""
    with redis_errors():
        value: Any = await redis.get(RedisKeys.of(catalog, "").active)
    return None if value is None else to_str(value)


async def check(
    redis: Redis | RedisCluster,
    *,
    catalog: str,
    tokenizer_id: str,
    spec: SidSpec,
    vector_dim: int | None = None,
    repair: bool = False,
) -> FsckReport:
    """Check all invariants of a catalog as one tokenizer reads it. Without `vector_dim`, not its vectors.

    Raises GlyphrecError if there is no such catalog, ServiceError if Redis fails.
    """
    await check_schema(redis, catalog)
    served, keys = await served_tokenizer(redis, catalog), RedisKeys.of(catalog, tokenizer_id)
    with redis_errors():
        if served != tokenizer_id and not await redis.exists(keys.codes, keys.trie, keys.log):
            held = f"it is served by {served}" if served else "and no catalog of this name"
            raise GlyphrecError(
                f"Redis has nothing of the tokenizer {tokenizer_id} in the catalog {catalog!r}; {held}. "
                "Check GLYPHREC_CATALOG, REDIS_URL and the bundle."
            )
    report = FsckReport(catalog, tokenizer_id, served in (None, tokenizer_id))
    if repair:
        await rebuild(redis, keys, RecordCodec(spec, DeclaredFields()), report)
    await _Checker(redis, keys, spec, report, repair).run()
    await check_pictures(redis, keys, spec, report, repair=repair)
    if vector_dim is not None:
        await check_vectors(redis, keys, vector_dim, report, repair=repair)
    await check_co_counts(redis, catalog=catalog, report=report, repair=repair)
    return report


class _Checker:
    def __init__(
        self, redis: Redis | RedisCluster, keys: RedisKeys, spec: SidSpec, report: FsckReport, repair: bool
    ) -> None:
        self._redis: Any = redis
        self._keys = keys
        self._codec = RecordCodec(spec, DeclaredFields())
        self._levels = "-".join(map(str, spec.levels))
        self._sid_length = 2 * spec.num_levels + 2
        self._report = report
        self._repair = repair
        self._mend = Script("mend")
        self._wrong: dict[bytes, set[str]] = {}  # id -> kinds found so far; later passes know less of it

    async def run(self) -> None:
        keys, report = self._keys, self._report
        with redis_errors():
            report.num_items = await self._redis.hlen(keys.items)
            report.num_codes = await self._redis.hlen(keys.codes)
            report.num_members = await self._redis.zcard(keys.trie)
            report.num_changes = await self._redis.xlen(keys.log)
        # In this order: the pass that knows most about an item judges it first.
        async for suspects in self._suspects_by_score():
            await self._judge(suspects)
        async for suspects in self._suspects_in_trie():
            await self._judge(suspects)
        await self._judge(await self._suspects_in_log(), again=False)
        async for suspects in self._suspects_in_codes():
            await self._judge(suspects, again=False)
        async for suspects in self._suspects_in_items():
            await self._judge(suspects, again=False)

    async def _judge(self, suspects: Sequence[_Suspect], *, again: bool = True) -> None:
        """Report what is wrong with each. `again`: also for items that had a finding before."""
        asked = [each for each in suspects if again or each.item_id not in self._wrong]
        calls = [
            [each.item_id, secrets.token_hex(8), KEEP_LOG, NUM_SLOTS, self._levels]
            + [int(self._report.is_served), int(self._repair), int(each.log_is_wrong), *each.members]
            for each in asked
        ]
        replies = await self._mend.run(self._redis, self._keys.changed, calls)
        for suspect, reply in zip(asked, replies, strict=True):
            if isinstance(reply, ServiceError):
                raise reply
            for kind, is_mended in reply:
                self._found(suspect, kind.decode(), bool(is_mended))

    def _found(self, suspect: _Suspect, kind: str, is_mended: bool) -> None:
        if not suspect.item_id:
            self._report.add(Finding("unreadable_member", repr(suspect.members[0]), is_mended))
            return
        kinds = self._wrong.setdefault(suspect.item_id, set())
        if kind not in kinds or kind == "stray_member":  # an item may have many of these
            kinds.add(kind)
            self._report.add(Finding(kind, to_str(suspect.item_id), is_mended))

    async def _suspects_by_score(self) -> AsyncIterator[list[_Suspect]]:
        for low, high in (("-inf", "(0"), ("(0", "+inf")):
            offset = 0
            while True:
                with redis_errors():
                    members = await self._redis.zrangebyscore(
                        self._keys.trie, low, high, start=offset, num=SCAN_COUNT
                    )
                if not members:
                    break
                yield [self._suspect_of(member) for member in members]
                offset += 0 if self._repair else len(members)  # repaired members have left the range

    async def _suspects_in_trie(self) -> AsyncIterator[list[_Suspect]]:
        """Members that do not match the codes, and members that share a slot, which are adjacent."""
        last = b""
        while True:
            with redis_errors():
                members: list[bytes] = await self._redis.zrange(
                    self._keys.trie, b"(" + last if last else b"-", b"+", bylex=True, offset=0, num=SCAN_COUNT
                )
            if not members or members[-1] <= last:  # out of order: the scores are wrong
                return
            suspects = [self._suspect_of(member) for member in members]
            codes = await self._codes_of([each.item_id for each in suspects])
            last_sids = [last[: self._sid_length], *(member[: self._sid_length] for member in members)]
            yield [
                each
                for each, member, value, sid_before in zip(suspects, members, codes, last_sids, strict=False)
                if self._sid_in(value) != member[: self._sid_length]
                or member[: self._sid_length] == sid_before
            ]
            last = members[-1]

    async def _suspects_in_codes(self) -> AsyncIterator[list[_Suspect]]:
        async for page in self._scan(self._keys.codes):
            ids = list(page)
            members = [(self._sid_in(page[i]) or b"") + i for i in ids]
            with redis_errors():
                scores = await self._redis.zmscore(self._keys.trie, members) if ids else []
                # Whole values: no single command tells for many fields whether they exist.
                items = await self._redis.hmget(self._keys.items, ids) if ids else []
            yield [
                _Suspect(item_id)
                for item_id, score, item in zip(ids, scores, items, strict=True)
                if score is None or item is None
            ]

    async def _suspects_in_items(self) -> AsyncIterator[list[_Suspect]]:
        async for page in self._scan(self._keys.items):
            held = dict(zip(page, await self._codes_of(list(page)), strict=True))
            unread = [i for i, value in held.items() if not self._is_of(value, page[i])]
            self._report.num_unread += len(unread)
            if self._report.is_served:  # otherwise the service reads them before it serves
                yield [_Suspect(item_id) for item_id in unread]
            for item_id in [i for i, value in page.items() if not self._codec.read_item(to_str(i), value)]:
                with redis_errors():
                    now = await self._redis.hget(self._keys.items, item_id)
                if now is not None and not self._codec.read_item(to_str(item_id), now):
                    self._report.add(Finding("unreadable_item", to_str(item_id), False))

    async def _suspects_in_log(self) -> list[_Suspect]:
        """Items whose last change in the log does not match their codes."""
        reader = _LogReader(self._redis, self._keys.log, self._codec, self._report, self._repair)
        end = await reader.last_version()
        while reader.version < end and await reader.read():
            pass
        self._report.version = reader.version
        suspects = []
        for ids in chunks(list(reader.last), PIPELINE_LENGTH):
            values = dict(zip(ids, await self._codes_of(ids), strict=True))
            differing = [i for i in ids if not self._agrees(reader.last.get(i), values[i])]
            if differing:
                values = await self._as_of_one_moment(reader, differing)
            for item_id in differing:
                change = reader.last.get(item_id)
                if change and not self._agrees(change, values[item_id]):
                    suspects.append(_Suspect(item_id, (change.sid + item_id,), log_is_wrong=True))
        if self._repair and reader.broken_until is not None:
            with redis_errors():
                await self._redis.xtrim(self._keys.log, minid=f"{reader.broken_until}-0", approximate=False)
        return suspects

    async def _as_of_one_moment(
        self, reader: "_LogReader", ids: Sequence[bytes]
    ) -> dict[bytes, bytes | None]:
        """The codes of these items at exactly the version that the reader has reached."""
        while True:
            with redis_errors():
                async with self._redis.pipeline(transaction=True) as pipe:
                    pipe.xrange(self._keys.log, f"({reader.version}-0", count=SCAN_COUNT)
                    pipe.hmget(self._keys.codes, ids)
                    entries, values = await pipe.execute()
            await reader.take(entries)
            if len(entries) < SCAN_COUNT:
                return dict(zip(ids, values, strict=True))

    def _agrees(self, change: _LastChange | None, codes: bytes | None) -> bool:
        return change is None or self._sid_in(codes) == (change.sid if change.op == b"put" else None)

    def _suspect_of(self, member: bytes) -> _Suspect:
        entry = self._codec.read_member(member)
        return _Suspect(member[self._sid_length :] if entry and entry.item_id else b"", (member,))

    def _sid_in(self, codes: bytes | None) -> bytes | None:
        if codes is None or len(codes) != self._sid_length + HASH_LENGTH or not self._codec.read_held(codes):
            return None
        return codes[: self._sid_length]

    def _is_of(self, codes: bytes | None, item: bytes) -> bool:
        return bool(self._sid_in(codes)) and codes is not None and codes[-HASH_LENGTH:] == item[:HASH_LENGTH]

    async def _codes_of(self, ids: Sequence[bytes]) -> list[bytes | None]:
        if not ids:
            return []
        with redis_errors():
            found: list[bytes | None] = await self._redis.hmget(self._keys.codes, ids)
        return found

    async def _scan(self, key: str) -> AsyncIterator[Mapping[bytes, bytes]]:
        """A hash, page by page, without fields that are not ids. Some fields may occur twice."""
        cursor = 0
        while True:
            with redis_errors():
                cursor, page = await self._redis.hscan(key, cursor, count=PIPELINE_LENGTH)
            for item_id in [each for each in page if not _is_id(each)]:
                del page[item_id]
                if item_id not in self._wrong:
                    self._wrong[item_id] = set()
                    self._report.add(Finding("unreadable_id", repr(item_id), False))
            yield page
            if cursor == 0:
                return


class _LogReader:
    """Reads the log from its first entry on, and checks that each entry follows the previous one."""

    def __init__(self, redis: Any, key: str, codec: RecordCodec, report: FsckReport, repair: bool) -> None:
        self._redis, self._key, self._codec = redis, key, codec
        self._report, self._repair = report, repair
        self.last: dict[bytes, _LastChange] = {}  # item id -> its last change since the last gap
        self.version = 0  # the last version read
        self.broken_until: int | None = None  # entries from this version on are consistent
        self._mark: bytes | None = None  # of the previous entry; None: unknown

    async def last_version(self) -> int:
        """Of the log as it is now. Reading ends there: while others write, no page is the last one."""
        info = await self._info()
        return version_of(info["last-generated-id"]) if info else 0

    async def read(self) -> bool:
        """Read one page. False at the end."""
        with redis_errors():
            entries = await self._redis.xrange(self._key, f"({self.version}-0", count=SCAN_COUNT)
        await self.take(entries)
        if not entries:
            await self._check_end()
        return bool(entries)

    async def take(self, entries: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> None:
        for entry_id, fields in entries:
            version = version_of(entry_id)
            if self.version and version != self.version + 1:
                self._mark = None
                self.last.clear()
                if not await self._was_trimmed(version):
                    self._break("log_gap", version)
            if self._codec.read_change(entry_id, fields, {}).op == "unreadable":
                self._break("unreadable_change", version)
            else:
                if self._mark is not None and fields[b"after"] != self._mark:
                    self._break("log_gap", version)
                self.last[fields[b"id"]] = _LastChange(fields[b"op"], fields[b"sid"])
            self.version, self._mark = version, fields.get(b"mark", b"")

    async def _was_trimmed(self, version: int) -> bool:
        """Whether the entries before this one were trimmed after the previous page was read."""
        with redis_errors():
            first = await self._redis.xrange(self._key, count=1)
        return not first or version_of(first[0][0]) >= version

    async def _check_end(self) -> None:
        info = await self._info()
        if info is None:
            return
        end = version_of(info["last-generated-id"])
        if info["last-entry"] is None:  # a trimmed log may be empty
            self.version = end
        elif version_of(info["last-entry"][0]) < end:
            self._break("log_gap", end)

    async def _info(self) -> Any:
        """None where there is no log."""
        with redis_errors():
            return await self._redis.xinfo_stream(self._key) if await self._redis.exists(self._key) else None

    def _break(self, kind: str, version: int) -> None:
        self.last.clear()
        self.broken_until = version if kind == "log_gap" else version + 1
        self._report.add(Finding(kind, f"version {version}", self._repair))


def _is_id(raw: bytes) -> bool:
    try:
        return bool(to_str(raw))
    except UnicodeDecodeError:
        return False
