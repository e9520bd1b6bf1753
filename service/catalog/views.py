"""Filter views: for each filter in use, the trie of the items that pass it. Every change updates all views.

A new view is made by comparing whole columns (columns.py), not by walking over the items. Edits and searches
exclude each other (Catalog.lock): a view is valid until the next edit. Then the caller asks for it again,
which costs one look-up while it is cached.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.catalog.columns import (
    SEGMENT,
    CategoryColumn,
    Column,
    FlagColumn,
    NumberColumn,
    Test,
    TextColumn,
    ValueColumn,
    nothing,
)
from service.core.filters import Attributes, Equals, FieldKind, Filter, Value, kind_of
from service.core.sid import Codes, SidSpec
from service.core.trie import SidTrie

NOWHERE = -1  # the leaf of a place that no item has
EDITS_PER_CHECK = 1_000  # of the memory limit
# An edit visits every view. With small tables the memory limit alone would allow thousands of them.
MAX_VIEWS = 128
VIEW_BYTES = 1_000  # of the objects around a view
ID_BYTES = 120  # of one id in an allow list


class View:
    """The items that pass one filter."""

    def __init__(self, asked: Filter, trie: SidTrie, members: bytearray, place_of: dict[str, int]) -> None:
        self.filter = asked
        self.trie = trie
        self._members = members  # [place] -> 1 if the item there passes
        self._place_of = place_of
        self._own_bytes = VIEW_BYTES + ID_BYTES * len(asked.item_ids or ())

    def passes(self, item_id: str) -> bool:
        """Whether the item exists and passes the filter. O(1)."""
        place = self._place_of.get(item_id)
        return place is not None and self.has(place)

    def has(self, place: int) -> bool:
        """Whether the item at this place passes the filter. O(1)."""
        return place < len(self._members) and self._members[place] == 1

    @property
    def num_items(self) -> int:
        """How many items pass the filter."""
        return len(self.trie)

    @property
    def members(self) -> bytearray:
        """[place] -> 1 if the item there passes, until the next edit. It may end before the last place."""
        return self._members

    @property
    def num_bytes(self) -> int:
        """An estimate of the view's memory: its trie, one byte per place, and its allow list."""
        return self.trie.num_bytes + len(self._members) + self._own_bytes

    def enter(self, place: int, codes: Codes) -> None:
        """Add the item at this place, which must not be in the view yet. O(levels)."""
        if place >= len(self._members):
            self._members.extend(bytes(place // SEGMENT * SEGMENT + SEGMENT - len(self._members)))
        self._members[place] = 1
        self.trie.insert(codes)

    def leave(self, place: int, codes: Codes) -> None:
        """Remove the item at this place. `codes` are the codes with which it entered. O(levels)."""
        self._members[place] = 0
        self.trie.delete(codes)


class Placed(NamedTuple):
    """An item to load, with its leaf in the trie and its attributes."""

    item_id: str
    leaf: int  # the full prefix of its codes
    attributes: Attributes


class FilterViews:
    """The attributes of all items that filters use, and the views that were used last."""

    def __init__(self, spec: SidSpec, max_bytes: int) -> None:
        self.num_hits = 0
        self.num_misses = 0
        self.num_evictions = 0
        self._spec = spec
        self._max_bytes = max_bytes
        self._views: dict[Filter, View] = {}  # the last one used is last
        self._place_of: dict[str, int] = {}
        self._free_places: list[int] = []
        self._next_place = 0  # the first place that no item has ever had
        self._num_edits = 0
        self._leaf = Column(np.int64, NOWHERE)
        self._available = Column(np.bool_, False)
        self._categories = CategoryColumn()
        self._values: dict[tuple[str, FieldKind], ValueColumn] = {}

    @property
    def num_views(self) -> int:
        """Views that are cached now."""
        return len(self._views)

    @property
    def num_bytes(self) -> int:
        """Memory of the cached views."""
        return sum(view.num_bytes for view in list(self._views.values()))  # metrics read it during a search

    def view_of(self, asked: Filter) -> View:
        """The view of a filter, cached or new. It is valid until the next edit."""
        view = self._views.pop(asked, None)
        if view is not None:
            self.num_hits += 1
            self._views[asked] = view
            return view
        self.num_misses += 1
        view = self._views[asked] = self._build(asked)
        self._evict()
        return view

    def attributes_of(self, item_id: str) -> Attributes:
        """Raises KeyError if there is no such item."""
        return self._attributes_at(self._place_of[item_id])

    def place_of(self, item_id: str) -> int:
        """The place of an item in every column. Raises KeyError if there is no such item."""
        return self._place_of[item_id]

    def category_of(self, item_id: str) -> str | None:
        """The item's first category, or None."""
        place = self._place_of.get(item_id)
        categories = () if place is None else self._categories.at(place)
        return categories[0] if categories else None

    def num_below(
        self, first: int, span: int, num_children: int, view: View | None = None
    ) -> NDArray[np.int64]:
        """How many items, or items of a view, have a leaf in each of `num_children` ranges [child].

        The ranges follow one another from the leaf `first` on, and each has `span` leaves. It compares whole
        columns, so call it in a thread where the catalog is large, and hold the catalog's lock.
        """
        found = np.zeros(num_children, dtype=np.int64)
        members = None if view is None else np.frombuffer(bytes(view.members), dtype=np.bool_)
        for number, leaves in enumerate(self._leaf.segments):
            below = (leaves >= first) & (leaves < first + span * num_children)
            if members is not None:
                passing = members[number * SEGMENT : (number + 1) * SEGMENT]
                below[len(passing) :] = False
                below[: len(passing)] &= passing
            found += np.bincount((leaves[below] - first) // span, minlength=num_children)
        return found

    def num_by_category(self) -> dict[str, int]:
        """How many items have each category. It visits each different list of categories once."""
        return self._categories.num_by_category()

    def load(self, items: Sequence[Placed]) -> None:
        """Add many items at once, none of which is there yet. May be called again. Drops all views."""
        place, found = self._next_place, [each.attributes for each in items]
        self._views.clear()
        self._place_of.update(zip((each.item_id for each in items), count(place), strict=False))
        assert len(self._place_of) + len(self._free_places) == place + len(items), "an id was there before"
        self._next_place += len(items)
        for key in {(name, kind_of(value)) for each in found for name, value in each.values.items()}:
            if key not in self._values:
                self._add_values(key)
        self._leaf.extend(place, [each.leaf for each in items])
        self._available.extend(place, [each.available for each in found])
        self._categories.fill(place, (each.categories for each in found))
        for key, column in self._values.items():
            column.fill(place, (_of_kind(each.values, key) for each in found))

    def adopt(self, other: "FilterViews") -> None:
        """Take over the items of `other`, which must not be used afterwards. Counters stay, views go."""
        self._views.clear()
        self._place_of, self._free_places = other._place_of, other._free_places
        self._next_place, self._leaf, self._available = other._next_place, other._leaf, other._available
        self._categories, self._values = other._categories, other._values

    def put(self, item_id: str, leaf: int, attributes: Attributes) -> None:
        """Give the item this full prefix and these attributes; they replace the old ones. Safe to repeat."""
        place = self._place_of.get(item_id)
        if place is None:
            place = self._place_of[item_id] = self._take_place()
        elif self._leaf[place] == leaf and self._attributes_at(place) == attributes:
            return
        held = self._leaf[place]
        self._leaf[place] = leaf
        self._available[place] = attributes.available
        self._categories.set(place, attributes.categories)
        self._set_values(place, attributes.values)
        if not self._views:
            return
        codes = self._spec.codes_of(leaf)
        held_codes = codes if held in (leaf, NOWHERE) else self._spec.codes_of(held)
        for view in self._views.values():
            had, has = view.has(place), view.filter.passes(item_id, attributes)
            if had and not (has and held == leaf):
                view.leave(place, held_codes)
            if has and not (had and held == leaf):
                view.enter(place, codes)
        self._count_edit()

    def drop(self, item_id: str) -> None:
        """Remove the item. If it is absent, nothing changes."""
        place = self._place_of.pop(item_id, None)
        if place is None:
            return
        held_codes = self._spec.codes_of(self._leaf[place])
        for view in self._views.values():
            if view.has(place):
                view.leave(place, held_codes)
        self._leaf[place] = NOWHERE
        self._categories.set(place, ())
        for column in self._values.values():
            column.set(place, None)
        self._free_places.append(place)

    def _count_edit(self) -> None:
        """Check the memory limit now and then: a sum over all views takes longer than an edit."""
        self._num_edits += 1
        if self._num_edits % EDITS_PER_CHECK == 0:
            self._evict()

    def _evict(self) -> None:
        """Drop views until the rest fits. The one that was used last is kept."""
        num_bytes = self.num_bytes
        while len(self._views) > 1 and (num_bytes > self._max_bytes or len(self._views) > MAX_VIEWS):
            num_bytes -= self._views.pop(next(iter(self._views))).num_bytes
            self.num_evictions += 1

    def _attributes_at(self, place: int) -> Attributes:
        found = ((name, column.at(place)) for (name, _), column in self._values.items())
        values = {name: value for name, value in found if value is not None}
        return Attributes(self._categories.at(place), bool(self._available[place]), values)

    def _take_place(self) -> int:
        if self._free_places:
            return self._free_places.pop()
        place = self._next_place
        self._next_place += 1
        if place % SEGMENT == 0:
            for column in (self._leaf, self._available, self._categories):
                column.grow()
            for values in self._values.values():
                values.grow()
        return place

    def _set_values(self, place: int, values: Mapping[str, Value]) -> None:
        for name, value in values.items():
            key = (name, kind_of(value))
            if key not in self._values:
                self._add_values(key)
        for key, column in self._values.items():
            column.set(place, _of_kind(values, key))

    def _add_values(self, key: tuple[str, FieldKind]) -> None:
        """Add a column without a value for the items so far."""
        column = self._values[key] = _COLUMN_OF[key[1]]()
        for _ in self._leaf.segments:
            column.grow()

    def _build(self, asked: Filter) -> View:
        tests = list(self._tests(asked))
        members, leaves = bytearray(), [np.empty(0, dtype=np.int64)]
        for segment in range(len(self._leaf.segments)):
            passing = self._leaf.segments[segment] != NOWHERE
            for test in tests:
                passing &= test(segment)
            members += passing.tobytes()
            leaves.append(self._leaf.segments[segment][passing])
        trie = SidTrie.from_prefixes(self._spec, np.concatenate(leaves))
        return View(asked, trie, members, self._place_of)

    def _tests(self, asked: Filter) -> Iterator[Test]:
        if asked.item_ids is not None:
            yield self._is_one_of(asked.item_ids)
        if asked.available is not None:
            yield self._available.equal(asked.available)
        if asked.categories_any or asked.categories_all or asked.categories_none:
            yield self._categories.passing(asked)
        for name, condition in asked.attributes:
            kind = condition.kind if isinstance(condition, Equals) else "number"
            column = self._values.get((name, kind))
            yield column.holding(condition) if column else nothing

    def _is_one_of(self, item_ids: frozenset[str]) -> Test:
        found = (self._place_of.get(item_id, NOWHERE) for item_id in item_ids)
        places = np.fromiter(found, dtype=np.int64, count=len(item_ids))
        allowed = np.zeros(len(self._leaf.segments) * SEGMENT, dtype=np.bool_)
        allowed[places[places != NOWHERE]] = True
        return lambda segment: allowed[segment * SEGMENT : (segment + 1) * SEGMENT]


_COLUMN_OF: dict[FieldKind, type[ValueColumn]] = {
    "text": TextColumn,
    "number": NumberColumn,
    "boolean": FlagColumn,
}


def _of_kind(values: Mapping[str, Value], key: tuple[str, FieldKind]) -> Value | None:
    value = values.get(key[0])
    return value if value is not None and kind_of(value) == key[1] else None
