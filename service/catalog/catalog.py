"""This replica's view of the catalogue: trie, item maps, and the follower that keeps them level with the log.

Only the event loop's thread edits it, and only while it holds `Catalog.turns`. Whoever reads it in another
thread holds that too, and so sees one version of the catalogue from begin to end.
"""

import asyncio
import gc
import logging
import math
import random
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.catalog.views import FilterViews, Placed, View
from service.core.filters import NO_ATTRIBUTES, Attributes, Value
from service.core.sid import Codes, Sid, SidSpec
from service.core.trie import SidTrie
from service.errors import StoreFault, StoreUnavailable
from service.store.client import is_cancelled
from service.store.items import Change, ItemStore, Position, TrieEntry

log = logging.getLogger(__name__)

BLOCK_MS = 1_000  # how long one read waits for a change; also how soon a flushed Redis is noticed
# How old the follower's knowledge of the log's end may get. It reads on sooner, unless something holds it up.
LOOK_S = 1.5
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 2.0
SLOT_BITS = 16
SLOT_MASK = (1 << SLOT_BITS) - 1
# Changes that are taken in without letting a search in between: 0.6 ms of them; with a hundred cached filters
# 2 ms where they pass the same ones as before, 20 ms where all move (benchmarks/filters.py).
CHANGES_PER_TURN = 20
CHANGES_PER_READ = 1_000
MAX_VIEW_BYTES = 2**28


class Catalog:
    """Which item has which sid, and which pass a filter.

    A sid is kept as one integer, its full prefix followed by 16 bits of slot, so sids sort in trie order.
    """

    def __init__(
        self,
        spec: SidSpec,
        popularity: Mapping[str, float] | None = None,
        *,
        max_view_bytes: int = MAX_VIEW_BYTES,
    ) -> None:
        self.spec = spec
        self.turns = asyncio.Lock()  # edits and searches take turns, in the order in which they ask
        self.trie = SidTrie(spec)
        self.views = FilterViews(spec, max_view_bytes)
        self.version = 0  # of the log: every change up to here is in
        self._sid_of: dict[str, int] = {}
        self._items_of: dict[int, list[str]] = {}  # full prefix -> items in slot order
        self._num_at_slot: list[int] = []  # [slot] -> items with it; the last one is not 0
        self._digest = 0  # the sum of all items' hashes, so that an edit costs as little as the item
        counts = popularity or {}
        ranking = sorted(counts, key=lambda item_id: (-counts[item_id], item_id))
        self._rank_of = {item_id: rank for rank, item_id in enumerate(ranking)}  # in its order

    @classmethod
    def from_entries(cls, spec: SidSpec, entries: Sequence[TrieEntry]) -> "Catalog":
        """Build at once. Of an item that comes twice the last counts."""
        last = {entry.item_id: entry for entry in entries}
        loading = Loading(spec)
        loading.add(sorted(last.values(), key=attrgetter("sid")))
        return loading.end()

    def adopt(self, other: "Catalog") -> None:
        """Take over the contents of `other`, not to be used afterwards. Readers see all or nothing."""
        self._sid_of, self._items_of = other._sid_of, other._items_of
        self._num_at_slot = other._num_at_slot
        self.trie, self.version, self._digest = other.trie, other.version, other._digest
        self.views.adopt(other.views)

    @property
    def num_items(self) -> int:
        return len(self._sid_of)

    @property
    def num_colliding(self) -> int:
        """Items that share their codes with another one."""
        return len(self._sid_of) - len(self._items_of) + self.trie.num_shared

    @property
    def num_slots_in_use(self) -> int:
        """The largest slot of any item, plus 1."""
        return len(self._num_at_slot)

    @property
    def digest(self) -> str:
        """Equal for equal items, SIDs and attributes, whatever was before: what two replicas compare."""
        return f"{self._digest % 2**64:016x}"

    def has(self, item_id: str) -> bool:
        return item_id in self._sid_of

    def sid_of(self, item_id: str) -> Sid | None:
        packed = self._sid_of.get(item_id)
        if packed is None:
            return None
        return Sid(self.spec.codes_of(packed >> SLOT_BITS), packed & SLOT_MASK)

    def codes_of(self, item_ids: Iterable[str]) -> NDArray[np.int64]:
        """The codes [item, level] of those that live, in order."""
        sids = [sid for item_id in item_ids if (sid := self._sid_of.get(item_id)) is not None]
        prefix = np.array(sids, dtype=np.int64) >> SLOT_BITS
        codes = np.empty((len(sids), self.spec.num_levels), dtype=np.int64)
        for level in reversed(range(self.spec.num_levels)):
            prefix, codes[:, level] = np.divmod(prefix, self.spec.levels[level])
        return codes

    def items_at(self, codes: Codes) -> list[str]:
        """The items with these codes, by slot."""
        return list(self._items_of.get(self.spec.prefixes(codes)[-1], ()))

    def items_of(self, prefix: int) -> Iterator[str]:
        """The items of a full prefix, by slot."""
        return iter(self._items_of.get(prefix, ()))

    def put(self, item_id: str, sid: Sid, attributes: Attributes = NO_ATTRIBUTES) -> None:
        """Give the item this sid and these attributes, in place of what it had. O(levels). Safe to repeat."""
        packed, held = self._pack(sid), self._sid_of.get(item_id)
        before = 0 if held is None else self._hash_of(item_id, held)
        if packed != held:
            self._place(item_id, sid, packed, held)
        self.views.put(item_id, packed >> SLOT_BITS, attributes)
        self._digest += self._hash_of(item_id, packed) - before

    def _place(self, item_id: str, sid: Sid, packed: int, held: int | None) -> None:
        self.trie.insert(sid.codes)  # first, as it fails where the code is full
        if held is not None:
            self._remove(item_id, held)
        self._sid_of[item_id] = packed
        self._count_slot(packed & SLOT_MASK, 1)
        insort(self._items_of.setdefault(packed >> SLOT_BITS, []), item_id, key=self._sid_of.__getitem__)

    def drop(self, item_id: str) -> None:
        """Take the item away. An absent one changes nothing."""
        held = self._sid_of.get(item_id)
        if held is not None:
            self._digest -= self._hash_of(item_id, held)
            self._remove(item_id, held)
            del self._sid_of[item_id]
            self.views.drop(item_id)

    def by_popularity(self, view: View | None = None) -> Iterator[str]:
        """Every living item, or those of a view: by popularity, then the unknown ones in trie order."""
        trie, passes = (view.trie, view.passes) if view is not None else (self.trie, self.has)

        def in_trie_order() -> Iterator[str]:
            for prefix in trie.living():
                yield from filter(passes, self._items_of[prefix])

        is_few = len(trie) ** 2 < len(self._rank_of)  # to sort them is less than to walk past all others
        if is_few:
            known = (item_id for item_id in in_trie_order() if item_id in self._rank_of)
            yield from sorted(known, key=self._rank_of.__getitem__)
        else:
            yield from filter(passes, self._rank_of)
        yield from (item_id for item_id in in_trie_order() if item_id not in self._rank_of)

    def _remove(self, item_id: str, held: int) -> None:
        prefix = held >> SLOT_BITS
        self.trie.delete(self.spec.codes_of(prefix))
        items = self._items_of[prefix]
        place = bisect_left(items, held, key=self._sid_of.__getitem__)
        while items[place] != item_id:  # two items hold one slot only while a log is replayed
            place += 1
        del items[place]
        if not items:
            del self._items_of[prefix]
        self._count_slot(held & SLOT_MASK, -1)

    def _count_slot(self, slot: int, change: int) -> None:
        counts = self._num_at_slot
        counts.extend([0] * (slot + 1 - len(counts)))
        counts[slot] += change
        while counts and not counts[-1]:
            counts.pop()

    def _hash_of(self, item_id: str, packed: int) -> int:
        return hash_of_item(item_id, packed, self.views.attributes_of(item_id))

    def _pack(self, sid: Sid) -> int:
        return self.spec.prefixes(sid.codes)[-1] << SLOT_BITS | sid.slot


class Loading:
    """A catalogue that is built page by page: no page outlives its turn, and nothing is sorted."""

    def __init__(self, spec: SidSpec) -> None:
        self._catalog = Catalog(spec)
        self._last = -1  # the sid of the item before
        self._late: dict[str, TrieEntry] = {}

    def add(self, page: Sequence[TrieEntry]) -> None:
        """Items in trie order. Late is what comes twice, as it moved meanwhile, or out of order."""
        catalog, taken = self._catalog, list[Placed]()
        for entry, packed in zip(page, self._pack(page), strict=True):
            item_id = entry.item_id
            if packed <= self._last or item_id in catalog._sid_of or item_id in self._late:
                self._late[item_id] = entry
                continue
            self._last = catalog._sid_of[item_id] = packed
            leaf = packed >> SLOT_BITS
            catalog._items_of.setdefault(leaf, []).append(item_id)
            catalog._digest += hash_of_item(item_id, packed, entry.attributes)
            taken.append(Placed(item_id, leaf, entry.attributes))
        catalog.views.load(taken)
        # What is loaded lives long. Unless told so, every full collection looks at all of it, and everything
        # waits: a third of the time to load, 0.1 s each for 400,000 items later.
        gc.freeze()

    def end(self) -> Catalog:
        """The catalogue. Of an item that came twice the last place counts."""
        catalog = self._catalog
        packed = np.fromiter(catalog._sid_of.values(), dtype=np.int64, count=len(catalog._sid_of))  # [item]
        catalog.trie = SidTrie.from_prefixes(catalog.spec, packed >> SLOT_BITS)
        catalog._num_at_slot = np.bincount(packed & SLOT_MASK).tolist()
        for entry in self._late.values():
            catalog.put(*entry)
        return catalog

    def _pack(self, page: Sequence[TrieEntry]) -> list[int]:
        """`Catalog._pack` of many."""
        spec = self._catalog.spec
        codes = np.array([entry.sid.codes for entry in page], dtype=np.int64).reshape(-1, spec.num_levels)
        slots = np.array([entry.sid.slot for entry in page], dtype=np.int64)
        packed: list[int] = (spec.prefixes_of(codes)[-1] << SLOT_BITS | slots).tolist()
        return packed


def hash_of_item(item_id: str, packed_sid: int, attributes: Attributes) -> int:
    """64 bits of one item and all that a search or a filter knows of it."""
    values = [(name, _canonical(value)) for name, value in sorted(attributes.values.items())]
    told = repr((item_id, packed_sid, attributes.categories, attributes.available, values))
    return int.from_bytes(blake2b(told.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _canonical(value: Value) -> Value:
    """Equal values are spelled alike, -0.0 and 0 too."""
    return value if isinstance(value, str | bool) else value + 0.0


class Lag(NamedTuple):
    """How far a catalogue is behind its log, as far as its follower knows."""

    num_changes: int
    seconds: float  # since it had all of them; 0 while it has


class _LogBroken(Exception):
    """The log does not go on where this replica stands, so the catalogue must be loaded anew."""


class CatalogFollower:
    """Keeps a catalogue level with Redis. Without Redis the catalogue stays as it is, and this says so."""

    def __init__(
        self,
        catalog: Catalog,
        store: ItemStore,
        *,
        block_ms: int = BLOCK_MS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.catalog = catalog
        self.num_loads = 0  # over one: the log was trimmed before it was read, or Redis lost data
        self._store = store
        self._block_ms = block_ms
        self._clock = clock
        self._mark = ""  # of the change that made the catalogue's version
        self._needs_load = True
        self._is_level = False
        self._level_at: float | None = None
        self._log_version = 0  # of the last change that is known to be in the log
        self._looked_at = -math.inf  # when that was all there was
        self._caught_up_at = clock()  # when the catalogue had that
        self.lost: StoreUnavailable | None = None  # why Redis is out of reach; None while it answers
        self._moved = asyncio.Condition()

    @property
    def is_loaded(self) -> bool:
        return self.num_loads > 0

    @property
    def is_stale(self) -> bool:
        """Whether changes may go unseen: nothing is loaded yet, or Redis does not answer, or it lost data."""
        return not self._is_level

    @property
    def stale_for_s(self) -> float:
        """Seconds since the catalogue last had every change; 0 while it follows, infinite before a load."""
        if self._is_level:
            return 0.0
        return math.inf if self._level_at is None else self._clock() - self._level_at

    @property
    def lag(self) -> Lag:
        num_changes = max(0, self._log_version - self.catalog.version)
        is_caught_up = self._is_level and not num_changes
        return Lag(num_changes, 0.0 if is_caught_up else self._clock() - self._caught_up_at)

    @property
    def num_unreadable(self) -> int:
        """How many values of Redis were skipped since the start, as somebody else has written them."""
        return self._store.num_unreadable

    async def load(self) -> None:
        """Read the whole catalogue into fresh tables and swap them in. Raises StoreUnavailable."""
        start = self._clock()
        while True:
            try:
                fresh, mark = await self._read_all()
                break
            except _LogBroken as error:
                log.warning("the log broke off while the catalogue was read (%s); reading again", error)
        async with self.catalog.turns:
            self.catalog.adopt(fresh)
        self._mark, self._needs_load = mark, False
        self.num_loads += 1
        self._saw_end(fresh.version)
        await self._now_level()
        log.info(
            "loaded %d items in %.2f s, version %d", fresh.num_items, self._clock() - start, fresh.version
        )

    async def run(self) -> None:
        """Follow the log until cancelled; loads first where `load` was not called."""
        watching = asyncio.create_task(self._watch_end(), name="end of the log")
        try:
            await self._run()
        finally:
            watching.cancel()
            await asyncio.wait([watching])

    async def _run(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while not is_cancelled():
            try:
                if self._needs_load:
                    await self.load()
                await self._check_position()
                backoff_s = FIRST_BACKOFF_S
                while not is_cancelled():
                    await self._follow()
            except _LogBroken as error:
                log.warning("cannot go on from version %d (%s); loading again", self.catalog.version, error)
                self._needs_load, self._is_level = True, False
            except (StoreUnavailable, StoreFault) as error:
                self.lost = error if isinstance(error, StoreUnavailable) else None
                if self._is_level:
                    log.warning("lost Redis at version %d, serving on: %s", self.catalog.version, error)
                self._is_level = False
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1))  # replicas must not return as one
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
        raise asyncio.CancelledError

    async def wait_for(self, version: int, timeout_s: float) -> bool:
        """Wait until the catalogue has this version. False where that took longer."""
        if self.catalog.version >= version:
            return True
        try:
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(lambda: self.catalog.version >= version)
        except TimeoutError:
            return False
        return True

    async def _read_all(self) -> tuple[Catalog, str]:
        """A fresh catalogue and its mark."""
        version, mark = await self._position()  # before the first page: what changes later is replayed
        loading = Loading(self.catalog.spec)
        async for page in self._store.snapshot():
            await asyncio.to_thread(loading.add, page)
        fresh = await asyncio.to_thread(loading.end)
        fresh.version = version
        while changes := await self._store.changes(fresh.version):
            mark = _replay(fresh, mark, changes)
        return fresh, mark

    async def _follow(self) -> None:
        changes = await self._store.changes(self.catalog.version, self._block_ms, CHANGES_PER_READ)
        self.lost = None
        if changes and len(changes) < CHANGES_PER_READ:
            self._saw_end(changes[-1].version)
        elif changes:
            await self._position()  # there may be many more
        for start in range(0, len(changes), CHANGES_PER_TURN):
            async with self.catalog.turns:
                part = changes[start : start + CHANGES_PER_TURN]
                self._mark = _replay(self.catalog, self._mark, part)
            await self._now_level()
            self._note_catching_up()
        if not changes:
            await self._check_position()

    async def _check_position(self) -> None:
        """A flushed or restored Redis gives no changes to read; its position shows that it is another one."""
        version, mark = await self._position()
        if version < self.catalog.version:
            raise _LogBroken(f"the log is at version {version}")
        if version == self.catalog.version and mark != self._mark:
            raise _LogBroken("the log has another change of this version")
        if version == self.catalog.version:
            await self._now_level()

    async def _position(self) -> Position:
        position = await self._store.position()
        self.lost = None
        self._saw_end(position.version)
        return position

    async def _watch_end(self) -> None:
        """Know the log's end also while changes wait to be taken in, as for a long search."""
        while not is_cancelled():
            await asyncio.sleep(LOOK_S / 3)
            if self._is_level and self._clock() - self._looked_at > LOOK_S:
                with suppress(StoreUnavailable, StoreFault):  # which the follower notices too
                    self._saw_end(await self._store.last_version())

    def _saw_end(self, version: int) -> None:
        self._log_version, self._looked_at = version, self._clock()
        self._note_catching_up()

    def _note_catching_up(self) -> None:
        if self.catalog.version >= self._log_version:
            self._caught_up_at = self._clock()

    async def _now_level(self) -> None:
        self._is_level, self._level_at = True, self._clock()
        async with self._moved:
            self._moved.notify_all()


def _replay(catalog: Catalog, mark: str, changes: Sequence[Change]) -> str:
    """Apply changes that must follow on the one with `mark`; gives the mark of the last."""
    for change in changes:
        if change.op == "unreadable":
            raise _LogBroken(f"change {change.version} cannot be read")
        if change.version != catalog.version + 1:
            raise _LogBroken(f"the next change in the log is {change.version}")
        if change.after != mark:
            raise _LogBroken(f"change {change.version} follows another history")
        if change.op == "put":
            catalog.put(change.item_id, change.sid, change.attributes)
        else:
            catalog.drop(change.item_id)
        catalog.version, mark = change.version, change.mark
    return mark
