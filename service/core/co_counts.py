"""Counts of the items that were taken together: what an event adds to them, and the table that a search asks.

A count matters only relative to the popularity of its two items (a cosine, as in item-based collaborative
filtering: Sarwar et al., "Item-based collaborative filtering recommendation algorithms", WWW 2001, section
3.1.1). So counts that fade with time need no correction: all that was known at one time fades alike.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from service.core.graphs import PADDING, Neighbors
from service.core.sid import Frozen

ROWS_PER_STEP = 4096  # the table grows by this many rows
# No row, whoever wrote it, makes a score infinite.
MAX_MASS = 1e12
MAX_LOG2 = 500.0
MAX_NEIGHBORS = 1024  # of a row; a spec asks for fewer
NOBODY = 0  # the number of an entry without an item
NO_PLACE = -1  # the prefix of an item that is not in the catalog
# Both together, as a search reads them at a thousand random places.
ITEM = np.dtype(
    [
        ("prefix", np.int64),  # full prefix
        ("inverse_root", np.float64),  # 1 / sqrt(popularity); 0 without a row
    ]
)


class CoCountSpec(Frozen):
    """How items that were taken together are counted, and how much the items of a history tell."""

    num_positions: int = Field(default=10, ge=1, le=1000, description="the newest items of a history count")
    decay: float = Field(default=0.7, gt=0, le=1, description="factor for each step into the past")
    smoothing: float = Field(default=0.1, gt=0, le=1e6, description="mass of an item without a count")
    window: int = Field(default=5, ge=1, le=100, description="two items at most this far apart are a pair")
    backward: float = Field(
        default=1.0, ge=0, le=1, description="share that the row of the later item gets of an increment"
    )
    max_neighbors: int = Field(
        default=64, ge=1, le=MAX_NEIGHBORS, description="a row keeps its strongest neighbors"
    )


class Increments(NamedTuple):
    """What one event adds to the counts."""

    popularity: dict[str, float]  # item -> how much
    pairs: dict[tuple[str, str], float]  # (item of the row, its neighbor) -> how much


class CoRow(NamedTuple):
    """What is known of one item: how often it was taken, and what was taken near it."""

    item_id: str
    popularity: float
    neighbors: dict[str, float]  # item -> count


class Gathered(NamedTuple):
    """The neighbors of one history."""

    prefixes: NDArray[np.int64]  # [neighbor]  full prefixes, ascending, each once
    mass: NDArray[np.float32]  # [neighbor]  above 0; the sum over the items of the history


def increments(history: Sequence[str], taken: str, spec: CoCountSpec) -> Increments:
    """What it adds that `taken` was taken after `history` (item ids, oldest first).

    The item is one more popular. It makes a pair with each other item at most `spec.window` before it. A pair
    at distance d adds 1/d to the row of the earlier item, and `spec.backward` of that to the row of
    the later one.
    """
    pairs: dict[tuple[str, str], float] = {}
    for distance, earlier in enumerate(reversed(history[-spec.window :]), start=1):
        if earlier != taken:
            for pair, share in (((earlier, taken), 1.0), ((taken, earlier), spec.backward)):
                if share:
                    pairs[pair] = pairs.get(pair, 0.0) + share / distance
    return Increments({taken: 1.0}, pairs)


def strongest(neighbors: Mapping[str, float], num_kept: int) -> dict[str, float]:
    """The `num_kept` neighbors with the highest counts, highest first; equal counts by item id."""
    ranked = sorted(neighbors.items(), key=lambda pair: (-pair[1], pair[0]))
    return dict(ranked[:num_kept])


def are_counts(numbers: Sequence[float]) -> bool:
    """Whether all of these are finite and above 0. There is at least one. Fast, as each row is checked."""
    return math.isfinite(sum(numbers)) and min(numbers) > 0


def padded(gathered: Sequence[Gathered]) -> Neighbors:
    """The neighbors of a batch of histories, as the recommender graph takes them."""
    width = max([1, *(len(each.mass) for each in gathered)])
    prefixes = np.full((len(gathered), width), PADDING, dtype=np.int64)
    mass = np.zeros((len(gathered), width), dtype=np.float32)
    for place, each in enumerate(gathered):
        prefixes[place, : len(each.mass)] = each.prefixes
        mass[place, : len(each.mass)] = each.mass
    return Neighbors(prefixes, mass)


def _nowhere(_item_id: str) -> int:
    return NO_PLACE


class CoCounts:
    """A row of neighbors for each item, and where each item is in the catalog.

    Items have numbers here. A row's counts are held as shares of its popularity, so that counts which were
    written long ago and counts of today are numbers of one size. Edits and searches exclude each other
    (Catalog.lock).
    """

    def __init__(self, spec: CoCountSpec, prefix_of: Callable[[str], int] = _nowhere) -> None:
        """`prefix_of` gives the full prefix of an item that the table hears of for the first time, or -1."""
        self.spec = spec
        self._prefix_of = prefix_of
        self._number_of: dict[str, int] = {}
        self._num_rows = 0
        self._log2_unit: float | None = None  # that of the first row; all popularities are in this unit
        self._items = np.array([(NO_PLACE, 0.0)], dtype=ITEM)  # [number]
        self._neighbors = np.zeros((1, spec.max_neighbors), dtype=np.int32)  # [number, place]  numbers
        self._shares = np.zeros((1, spec.max_neighbors), dtype=np.float32)  # [number, place]
        self._ages = spec.decay ** np.arange(spec.num_positions) / spec.smoothing

    @property
    def num_rows(self) -> int:
        """How many items have a row."""
        return self._num_rows

    @property
    def num_bytes(self) -> int:
        """Memory of the arrays; the ids of the items come on top."""
        return sum(array.nbytes for array in self._arrays)

    def knows(self, item_id: str) -> bool:
        """Whether the item has a row, is a neighbor in one, or has been placed."""
        return item_id in self._number_of

    def has_pair(self, item_id: str, other: str) -> bool:
        """Whether `other` is among the neighbors of the item."""
        number, wanted = self._number_of.get(item_id), self._number_of.get(other)
        return number is not None and wanted is not None and wanted in self._neighbors[number]

    def set_row(
        self, item_id: str, popularity: float, neighbors: Mapping[str, float], log2_unit: float = 0.0
    ) -> None:
        """Replace what is known of an item by these counts, of which the strongest are kept.

        All numbers are in units of 2**`log2_unit`: a way to write numbers that grow without limit. Raises
        ValueError unless all of them are finite and above 0.
        """
        if not (are_counts((popularity, *neighbors.values())) and math.isfinite(log2_unit)):
            raise ValueError(f"the counts of {item_id!r} are not finite and above 0")
        if len(neighbors) > self.spec.max_neighbors:
            neighbors = strongest(neighbors, self.spec.max_neighbors)
        if self._log2_unit is None:
            self._log2_unit = log2_unit
        for other in (item_id, *neighbors):
            if other not in self._number_of:
                self._add(other)  # may grow the table
        number = self._number_of[item_id]
        entries = [self._number_of[other] for other in neighbors]
        self._clear(number)
        self._neighbors[number, : len(entries)] = entries
        counts = np.fromiter(neighbors.values(), np.float64, len(entries))
        self._shares[number, : len(entries)] = np.minimum(counts, MAX_MASS * popularity) / popularity
        log2_popularity = math.log2(popularity) + log2_unit - self._log2_unit
        self._items["inverse_root"][number] = 2.0 ** (-min(max(log2_popularity, -MAX_LOG2), MAX_LOG2) / 2)
        self._num_rows += 1

    def drop_row(self, item_id: str) -> None:
        """Forget an item's popularity and neighbors. If it has none, nothing changes."""
        number = self._number_of.get(item_id)
        if number is not None:
            self._clear(number)

    def place(self, item_id: str, prefix: int | None) -> None:
        """Say where the item is now: its full prefix, or None or -1 while it is not in the catalog."""
        if item_id not in self._number_of:
            self._add(item_id)
        self._items["prefix"][self._number_of[item_id]] = NO_PLACE if prefix is None else prefix

    def place_all(self) -> None:
        """Ask `prefix_of` anew for every item."""
        self.set_places(self.places_by(self._prefix_of))

    def places_by(self, prefix_of: Callable[[str], int]) -> NDArray[np.int64]:
        """Where all items are, for `set_places`. Takes about a second for a million items."""
        return np.fromiter(map(prefix_of, self._number_of), np.int64, len(self._number_of))

    def set_places(self, places: NDArray[np.int64]) -> None:
        """Take these places. Nothing may have changed since `places_by` gave them."""
        self._items["prefix"][1 : len(places) + 1] = places

    def neighbors_of(self, history: Sequence[str]) -> Gathered:
        """`neighbors_of_each` of one history."""
        return self.neighbors_of_each([history])[0]

    def neighbors_of_each(self, histories: Sequence[Sequence[str]]) -> list[Gathered]:
        """The items that were taken together with those of each history (known items, oldest first).

        An item j that was counted n times with item i, which is `age` items before the newest, has the mass
        n / sqrt(popularity(i) * popularity(j)) * decay**age / smoothing. Items outside the catalog and items
        whose popularity is not known are left out.

        All histories go through the same few array operations, as each of them costs more than its work.
        """
        positions, number_of = self.spec.num_positions, self._number_of
        # An item that is not in the table is nobody, and nobody has neighbors.
        numbers = np.full((len(histories), positions), NOBODY, dtype=np.intp)
        for row, history in enumerate(histories):
            newest = history[: -positions - 1 : -1]
            numbers[row, : len(newest)] = [number_of.get(item_id, NOBODY) for item_id in newest]
        inverse_root = self._items["inverse_root"][numbers]  # [history, position]
        weight = np.zeros(numbers.shape)
        np.divide(self._ages, inverse_root, out=weight, where=inverse_root > 0)
        others = self._items.take(self._neighbors[numbers])  # [history, position, place]
        mass = self._shares[numbers] * weight[..., None] * others["inverse_root"]
        counts = (mass > 0) & (others["prefix"] >= 0)
        prefixes = others["prefix"][counts]
        span = int(prefixes.max(initial=0)) + 1
        keys = np.nonzero(counts)[0] * span + prefixes  # by history, then by prefix
        found, place = np.unique(keys, return_inverse=True)
        total = np.bincount(place, weights=mass[counts], minlength=len(found))
        merged = np.minimum(total, MAX_MASS).astype(np.float32)
        of_history, prefixes = np.divmod(found, span)
        ends = np.searchsorted(of_history, np.arange(len(histories) + 1))
        return [Gathered(prefixes[a:b], merged[a:b]) for a, b in pairwise(ends.tolist())]

    def _clear(self, number: int) -> None:
        inverse_root = self._items["inverse_root"]
        self._num_rows -= bool(inverse_root[number])
        inverse_root[number] = 0
        self._neighbors[number] = NOBODY
        self._shares[number] = 0

    def _add(self, item_id: str) -> None:
        """Give the item a number. It must have none."""
        number = self._number_of[item_id] = len(self._number_of) + 1
        if number >= len(self._items):
            self._grow()
        self._items[number] = (self._prefix_of(item_id), 0.0)

    @property
    def _arrays(self) -> tuple[NDArray[Any], ...]:
        return self._items, self._neighbors, self._shares

    def _grow(self) -> None:
        """In place: the C library moves the pages of an array this large, and copies nothing."""
        length = len(self._items) + ROWS_PER_STEP
        for array in self._arrays:
            array.resize((length, *array.shape[1:]), refcheck=False)


def table_of(rows: Iterable[CoRow], spec: CoCountSpec) -> CoCounts:
    """A table with these rows. No item has a place yet."""
    table = CoCounts(spec)
    for row in rows:
        table.set_row(*row)
    return table
