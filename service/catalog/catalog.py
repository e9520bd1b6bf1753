"""This replica's view of the catalog: the trie, the maps between items and Semantic IDs, and the vectors.

Only the event loop's thread edits it, and only while it holds `Catalog.lock`. A reader in another thread
holds the lock too, so it sees one version of the catalog from start to end.
"""

import gc
import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from service.catalog.vectors import VectorIndex
from service.catalog.views import FilterViews, Placed, View
from service.core.co_counts import NO_PLACE, CoCounts
from service.core.filters import NO_ATTRIBUTES, Attributes, Value
from service.core.sid import Codes, Sid, SidSpec
from service.core.trie import SidTrie
from service.core.turns import TurnLock
from service.store.items import TrieEntry

SLOT_BITS = 16
SLOT_MASK = (1 << SLOT_BITS) - 1
MAX_VIEW_BYTES = 2**28


class Catalog:
    """Knows the sid of each item, and which items pass a filter.

    A sid is one integer here: its full prefix, then 16 bits of slot. So sids sort in trie order.
    """

    def __init__(
        self,
        spec: SidSpec,
        popularity: Mapping[str, float] | None = None,
        *,
        max_view_bytes: int = MAX_VIEW_BYTES,
        vector_dim: int | None = None,
    ) -> None:
        """`vector_dim`: numbers of an item's vector; None: no vectors are kept."""
        self.spec = spec
        self.lock = TurnLock()  # held by a batch of searches; an edit comes between two of them
        self.trie = SidTrie(spec)
        self.views = FilterViews(spec, max_view_bytes)
        self.vectors = None if vector_dim is None else VectorIndex(vector_dim)
        self.version = 0  # of the log: all changes up to this one are in
        self.co_counts: CoCounts | None = None  # of CoCountFollower; None: counts have no say in a search
        self._sid_of: dict[str, int] = {}
        self._first_code_span = math.prod(spec.levels[1:]) << SLOT_BITS
        self._items_of: dict[int, list[str]] = {}  # full prefix -> items in slot order
        self._num_at_slot: list[int] = []  # [slot] -> items with this slot; the last count is not 0
        self._digest = 0  # the sum of all items' hashes, so that an edit costs one item's hash
        counts = popularity or {}
        ranking = sorted(counts, key=lambda item_id: (-counts[item_id], item_id))
        self._rank_of = {item_id: rank for rank, item_id in enumerate(ranking)}  # in order of rank

    @classmethod
    def from_entries(cls, spec: SidSpec, entries: Sequence[TrieEntry]) -> "Catalog":
        """Build in one go. The last entry of an item that occurs twice counts."""
        last = {entry.item_id: entry for entry in entries}
        loading = Loading(spec)
        loading.add(sorted(last.values(), key=attrgetter("sid")))
        return loading.end()

    def adopt(self, other: "Catalog", places: NDArray[np.int64] | None = None) -> None:
        """Take over the contents of `other`, which must not be used again. Readers see all or nothing.

        `places` is what `co_counts.places_by(other.prefix_of)` gave, which is too slow for the event loop.
        """
        self._sid_of, self._items_of = other._sid_of, other._items_of
        self._num_at_slot = other._num_at_slot
        self.trie, self.version, self._digest = other.trie, other.version, other._digest
        self.views.adopt(other.views)
        if self.vectors is not None and other.vectors is not None:
            self.vectors.adopt(other.vectors)
        if self.co_counts is not None and places is not None:
            self.co_counts.set_places(places)
        elif self.co_counts is not None:
            self.co_counts.place_all()

    @property
    def num_items(self) -> int:
        """Items in this replica's memory, in O(1). Redis may have more or fewer until the log is applied."""
        return len(self._sid_of)

    @property
    def lacks_vectors(self) -> bool:
        """Whether vectors are kept, and some items have none."""
        return self.vectors is not None and self.vectors.num_vectors < len(self._sid_of)

    @property
    def num_colliding(self) -> int:
        """Items that share their codes with another item."""
        return len(self._sid_of) - len(self._items_of) + self.trie.num_shared

    @property
    def num_slots_in_use(self) -> int:
        """The largest slot of all items, plus 1."""
        return len(self._num_at_slot)

    @property
    def digest(self) -> str:
        """Equal for equal items, SIDs and attributes, whatever happened before. Two replicas compare it."""
        return f"{self._digest % 2**64:016x}"

    @property
    def has(self) -> Callable[[str], bool]:
        """`has(item_id)`: whether this replica knows the item. O(1), and no Python runs for it."""
        return self._sid_of.__contains__

    def prefix_of(self, item_id: str) -> int:
        """The item's full prefix, or -1 if this replica does not know the item. O(1)."""
        packed = self._sid_of.get(item_id)
        return NO_PLACE if packed is None else packed >> SLOT_BITS

    def sid_of(self, item_id: str) -> Sid | None:
        """The item's Semantic ID, or None if this replica does not know the item. O(levels)."""
        packed = self._sid_of.get(item_id)
        return None if packed is None else self.unpacked(packed)

    def unpacked(self, packed: int) -> Sid:
        """The Semantic ID that is held as this integer. O(levels)."""
        return Sid(self.spec.codes_of(packed >> SLOT_BITS), packed & SLOT_MASK)

    def unpacked_all(self, packed: NDArray[np.int64]) -> list[Sid]:
        """`unpacked` of many [item], several times as fast as one by one."""
        codes = self.spec.codes_of_prefixes(packed >> SLOT_BITS).tolist()
        return [
            Sid(tuple(each), slot) for each, slot in zip(codes, (packed & SLOT_MASK).tolist(), strict=True)
        ]

    def first_code_of(self, packed: int) -> int:
        """The first code of a sid that is held as this integer. O(1)."""
        return packed // self._first_code_span

    def packed_sid_of(self, item_id: str) -> int:
        """The sid of an existing item as one integer, which sorts in trie order. Raises KeyError. O(1)."""
        return self._sid_of[item_id]

    def codes_of(self, item_ids: Iterable[str]) -> NDArray[np.int64]:
        """The codes [item, level] of those items that exist, in order."""
        sids = [sid for item_id in item_ids if (sid := self._sid_of.get(item_id)) is not None]
        return self.spec.codes_of_prefixes(np.array(sids, dtype=np.int64) >> SLOT_BITS)

    def packed_sids_of(self, item_ids: Sequence[str]) -> NDArray[np.int64]:
        """The sids of existing items as integers [item], which sort in trie order. Raises KeyError."""
        return np.fromiter(map(self._sid_of.__getitem__, item_ids), np.int64, len(item_ids))

    def items_at(self, codes: Codes) -> list[str]:
        """The items with these codes, in order of slot."""
        return list(self._items_of.get(self.spec.prefixes(codes)[-1], ()))

    def items_of(self, prefix: int) -> Sequence[str]:
        """The items of a full prefix, in order of slot. It changes with the next edit."""
        return self._items_of.get(prefix, ())

    def put(
        self, item_id: str, sid: Sid, attributes: Attributes = NO_ATTRIBUTES, vector: bytes = b""
    ) -> None:
        """Give the item this sid, these attributes and this vector instead of its old ones.

        O(levels). Safe to repeat. An empty vector is none.
        """
        packed, held = self._pack(sid), self._sid_of.get(item_id)
        before = 0 if held is None else self._hash_of(item_id, held)
        if packed != held:
            self._place(item_id, sid, packed, held)
            self._place_in_co_counts(item_id)
        self.views.put(item_id, packed >> SLOT_BITS, attributes)
        if self.vectors is not None:
            self.vectors.put(self.views.place_of(item_id), item_id, vector)
        self._digest += self._hash_of(item_id, packed) - before

    def _place(self, item_id: str, sid: Sid, packed: int, held: int | None) -> None:
        self.trie.insert(sid.codes)  # first, because it fails if the code is full
        if held is not None:
            self._remove(item_id, held)
        self._sid_of[item_id] = packed
        self._count_slot(packed & SLOT_MASK, 1)
        insort(self._items_of.setdefault(packed >> SLOT_BITS, []), item_id, key=self._sid_of.__getitem__)

    def drop(self, item_id: str) -> None:
        """Remove the item. If it is absent, nothing changes."""
        held = self._sid_of.get(item_id)
        if held is not None:
            self._digest -= self._hash_of(item_id, held)
            self._remove(item_id, held)
            del self._sid_of[item_id]
            if self.vectors is not None:
                self.vectors.drop(self.views.place_of(item_id))
            self.views.drop(item_id)
            self._place_in_co_counts(item_id)

    def by_popularity(self, view: View | None = None) -> Iterator[str]:
        """All items, or those of a view: by popularity, then items without popularity in trie order."""
        trie, passes = (view.trie, view.passes) if view is not None else (self.trie, self.has)

        def in_trie_order() -> Iterator[str]:
            for prefix in trie.living():
                yield from filter(passes, self._items_of[prefix])

        is_few = len(trie) ** 2 < len(self._rank_of)  # sorting them is cheaper than walking past all others
        if is_few:
            known = (item_id for item_id in in_trie_order() if item_id in self._rank_of)
            yield from sorted(known, key=self._rank_of.__getitem__)
        else:
            yield from filter(passes, self._rank_of)
        yield from (item_id for item_id in in_trie_order() if item_id not in self._rank_of)

    def ranks_of(self, item_ids: Sequence[str]) -> NDArray[np.float64]:
        """The places of items by popularity [item], lowest first; infinite for an item without any."""
        ranks = (self._rank_of.get(item_id, math.inf) for item_id in item_ids)
        return np.fromiter(ranks, np.float64, len(item_ids))

    def _place_in_co_counts(self, item_id: str) -> None:
        if self.co_counts is not None and self.co_counts.knows(item_id):
            self.co_counts.place(item_id, self.prefix_of(item_id))

    def _remove(self, item_id: str, held: int) -> None:
        prefix = held >> SLOT_BITS
        self.trie.delete(self.spec.codes_of(prefix))
        items = self._items_of[prefix]
        place = bisect_left(items, held, key=self._sid_of.__getitem__)
        while items[place] != item_id:  # two items share a slot only while a log is replayed
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
    """Builds a catalog page by page. No page is kept, and nothing is sorted."""

    def __init__(self, spec: SidSpec, vector_dim: int | None = None) -> None:
        self._catalog = Catalog(spec, vector_dim=vector_dim)
        self._last = -1  # the sid of the previous item
        self._late: dict[str, TrieEntry] = {}

    def add(self, page: Sequence[TrieEntry]) -> None:
        """Add items in trie order. An item that moved meanwhile may occur twice; it is kept for `end`."""
        catalog, taken, vectors = self._catalog, list[Placed](), list[bytes]()
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
            vectors.append(entry.vector)
        catalog.views.load(taken)
        if catalog.vectors is not None:
            ids = [each.item_id for each in taken]
            catalog.vectors.load(list(map(catalog.views.place_of, ids)), ids, vectors)
        # These objects live long. Without this, each full garbage collection visits all of them and the rest
        # waits: a third of the loading time, and later 0.1 s each time with 400,000 items.
        gc.freeze()

    def end(self) -> Catalog:
        """The catalog. The last place of an item that occurred twice counts."""
        catalog = self._catalog
        packed = np.fromiter(catalog._sid_of.values(), dtype=np.int64, count=len(catalog._sid_of))  # [item]
        catalog.trie = SidTrie.from_prefixes(catalog.spec, packed >> SLOT_BITS)
        catalog._num_at_slot = np.bincount(packed & SLOT_MASK).tolist()
        for entry in self._late.values():
            catalog.put(*entry)
        return catalog

    def _pack(self, page: Sequence[TrieEntry]) -> list[int]:
        """`Catalog._pack` of many entries."""
        spec = self._catalog.spec
        codes = np.array([entry.sid.codes for entry in page], dtype=np.int64).reshape(-1, spec.num_levels)
        slots = np.array([entry.sid.slot for entry in page], dtype=np.int64)
        packed: list[int] = (spec.prefixes_of(codes)[-1] << SLOT_BITS | slots).tolist()
        return packed


def hash_of_item(item_id: str, packed_sid: int, attributes: Attributes) -> int:
    """A 64-bit hash of an item with everything that a search or a filter knows about it."""
    values = [(name, _canonical(value)) for name, value in sorted(attributes.values.items())]
    told = repr((item_id, packed_sid, attributes.categories, attributes.available, values))
    return int.from_bytes(blake2b(told.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _canonical(value: Value) -> Value:
    """The same spelling for equal values, also for -0.0 and 0."""
    return value if isinstance(value, str | bool) else value + 0.0
