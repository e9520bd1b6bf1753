"""The vectors of all items in memory: which items are nearest to a vector. Pure but for `changed`.

An item's vector is a row of int8 at the item's place (views.py gives out places). The nearest rows are found
in one of two ways:

- exactly: the query is compared with every row. This is the faster way for few rows, and the only one while
  the graph is being built, or for a filter that few items pass.
- by a graph of neighbors (HNSW, nearest.py), above EXACT_UP_TO rows. A graph takes an edit in the time of
  some searches, so edits wait for it in `pending`, and their rows are compared one by one until then. So an
  edit costs a copy of its row, and the next search knows it.

Only the event loop's thread edits, and only while it holds `Catalog.lock`, as in catalog.py.
"""

import asyncio
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.catalog.columns import SEGMENT
from service.catalog.nearest import MAX_EXPANSION, NearestGraph
from service.core.vectors import lengths, unpacked

EXACT_UP_TO = 5_000  # rows; above it the graph is faster (benchmarks/search.py)
ABSENT, EMPTY = -1.0, 0.0  # in place of 1 / length: no vector; a vector of zeros, which is like nothing
# How many more neighbors the graph is asked for than are wanted, as some of them may not be on the page.
SPARE = 10
MAX_ASKED = 1_000  # neighbors; a filter that needs more is compared exactly
RECALL_WANTED = 0.98  # of the graph's ten nearest; its searches keep more candidates until they have it


class Nearest(NamedTuple):
    """The places that are nearest to a query, best first."""

    places: list[int]
    scores: list[float]  # cosines, 1 for the same direction
    is_exact: bool  # False: found by the graph, which may miss some


@dataclass
class Following:
    """A graph, and the edits that it does not have yet."""

    graph: NearestGraph
    pending: dict[int, int]  # place -> number of its last edit


class PendingEdit(NamedTuple):
    """A row that the graph does not have yet."""

    place: int
    number: int  # of the edit; a later edit of the same place has another
    row: NDArray[np.int8] | None  # None: the place has no vector any more


class VectorIndex:
    """The rows of one tokenizer's vectors, each of `dim` numbers."""

    def __init__(self, dim: int, *, exact_up_to: int = EXACT_UP_TO) -> None:
        self.dim = dim
        self.exact_up_to = exact_up_to
        self.num_vectors = 0
        self.active: Following | None = None  # the graph of searches; None: they are exact
        self.building: Following | None = None  # a graph that no search uses yet
        self.recall: float | None = None  # of the graph's ten nearest, by samples; None before it is built
        self.changed = asyncio.Event()  # there are pending edits
        self._rows: list[NDArray[np.int8]] = []  # segments [place, dim]
        self._inverse: list[NDArray[np.float32]] = []  # segments [place]: 1 / length, ABSENT or EMPTY
        self._ids: list[str | None] = []  # [place]
        self._num_edits = 0

    @property
    def num_pending(self) -> int:
        """Rows that the graph of searches does not have yet."""
        return 0 if self.active is None else len(self.active.pending)

    @property
    def is_exact(self) -> bool:
        """Whether a search without a filter compares the query with every row."""
        return self.active is None or self.num_vectors <= self.exact_up_to

    @property
    def num_compared(self) -> int:
        """Rows that a search without a filter compares with its query."""
        if self.active is None or self.is_exact:
            return self.num_vectors
        return self.num_pending + self.active.graph.expansion

    @property
    def num_bytes(self) -> int:
        """Memory of the rows and of the graph."""
        rows = sum(
            rows.nbytes + inverse.nbytes for rows, inverse in zip(self._rows, self._inverse, strict=True)
        )
        graphs = [each.graph.num_bytes for each in (self.active, self.building) if each is not None]
        return rows + 8 * len(self._ids) + sum(graphs)

    def id_at(self, place: int) -> str | None:
        """The id of the item whose vector is at this place."""
        return self._ids[place] if place < len(self._ids) else None

    def row_of(self, place: int) -> NDArray[np.int8] | None:
        """The vector at this place [dim]; None if there is none."""
        if place >= len(self._ids) or self._inverse[place // SEGMENT][place % SEGMENT] == ABSENT:
            return None
        row: NDArray[np.int8] = self._rows[place // SEGMENT][place % SEGMENT].copy()
        return row

    # --- edits ---

    def load(self, places: Sequence[int], item_ids: Sequence[str], values: Sequence[bytes]) -> None:
        """Set many vectors at once. An empty value is none."""
        given = [row for row, value in enumerate(values) if value]
        if not given:
            return
        rows = unpacked([values[row] for row in given], self.dim)  # [given, dim]
        inverse = _inverse_lengths(rows)
        for row, found, each in zip(given, rows, inverse, strict=True):
            self._set(places[row], item_ids[row], found, float(each))

    def put(self, place: int, item_id: str, value: bytes) -> None:
        """Set or replace the vector at a place; an empty value removes it. Safe to repeat."""
        if not value:
            self.drop(place)
            return
        row = unpacked([value], self.dim)  # [1, dim]
        held = self.row_of(place)
        if held is None or self._ids[place] != item_id or not np.array_equal(held, row[0]):
            self._set(place, item_id, row[0], float(_inverse_lengths(row)[0]))

    def drop(self, place: int) -> None:
        """Remove the vector at a place. If there is none, nothing changes."""
        if self.row_of(place) is None:
            return
        self._inverse[place // SEGMENT][place % SEGMENT] = ABSENT
        self._ids[place] = None
        self.num_vectors -= 1
        self._note_edit(place)

    def adopt(self, other: "VectorIndex") -> None:
        """Take over the rows of `other`, which must not be used again. The graph is built anew."""
        self._rows, self._inverse, self._ids = other._rows, other._inverse, other._ids
        self.num_vectors = other.num_vectors
        self.active, self.building, self.recall = None, None, None
        self.changed.set()

    def _set(self, place: int, item_id: str, row: NDArray[np.int8], inverse: float) -> None:
        while place >= len(self._rows) * SEGMENT:
            self._rows.append(np.zeros((SEGMENT, self.dim), np.int8))
            self._inverse.append(np.full(SEGMENT, ABSENT, np.float32))
        if place >= len(self._ids):
            self._ids.extend([None] * (place + 1 - len(self._ids)))
        segment, at = divmod(place, SEGMENT)
        self.num_vectors += self._inverse[segment][at] == ABSENT
        self._rows[segment][at], self._inverse[segment][at] = row, inverse
        self._ids[place] = item_id
        self._note_edit(place)

    def _note_edit(self, place: int) -> None:
        self._num_edits += 1
        for each in (self.active, self.building):
            if each is not None:
                each.pending[place] = self._num_edits
        self.changed.set()

    # --- the graph, which catches up behind the edits ---

    @property
    def wants_graph(self) -> bool:
        """Whether a new graph is to be built: there is none for so many rows, or it is worn."""
        if self.building is not None or self.num_vectors <= self.exact_up_to:
            return False
        return self.active is None or self.active.graph.is_worn

    def begin(self, graph: NearestGraph) -> None:
        """Begin to build with an empty graph.

        It takes the rows in a random order. Near copies often have places next to each other, and a graph
        that gets them one after another links them to each other and to nothing else.
        """
        living = np.fromiter(self._living(), dtype=np.int64)
        order = np.random.default_rng(0).permutation(living).tolist()
        self.building = Following(graph, dict.fromkeys(order, 0))

    def take_pending(self, following: Following, count: int) -> list[PendingEdit]:
        """Up to `count` of the oldest pending edits. They stay pending until `settle`."""
        taken = list(islice(following.pending.items(), count))
        return [PendingEdit(place, number, self._row_for_graph(place)) for place, number in taken]

    def settle(self, following: Following, edits: Sequence[PendingEdit]) -> None:
        """Note that the graph has these edits. Those with a later edit stay pending.

        A graph that has all of them takes the place of the one that searches use.
        """
        for edit in edits:
            if following.pending.get(edit.place) == edit.number:
                del following.pending[edit.place]
        if following is self.building and not following.pending:
            self.active, self.building, self.recall = following, None, None

    def sample(self, count: int, rng: np.random.Generator) -> NDArray[np.int8]:
        """Up to `count` vectors of different items, drawn at random [vector, dim]."""
        living = np.fromiter(self._living(), dtype=np.int64)
        chosen = rng.choice(living, min(count, len(living)), replace=False).tolist()
        return np.array([row for place in chosen if (row := self.row_of(place)) is not None])

    def truth_of(self, query: NDArray[np.int8], count: int) -> Nearest:
        """The `count` nearest, compared with every row."""
        return self._exactly(query, count, None, ())

    def widen(self, graph: NearestGraph, queries: NDArray[np.int8], truths: Sequence[Nearest]) -> float:
        """Let searches of this graph keep more candidates until they find RECALL_WANTED -> their recall.

        `truths`: `truth_of` each of the queries [query, dim]. The recall is the mean share that is found.
        """
        while True:
            recall = float(np.mean(list(map(partial(self._share_found, graph), queries, truths))))
            if recall >= RECALL_WANTED or graph.expansion >= MAX_EXPANSION:
                return recall
            graph.expansion = min(2 * graph.expansion, MAX_EXPANSION)

    def _share_found(self, graph: NearestGraph, query: NDArray[np.int8], truth: Nearest) -> float:
        """Equal scores are as good as each other."""
        if not truth.places:
            return 1.0
        found = self._scored(query, graph.nearest(query, len(truth.places) + SPARE))
        return min(1.0, sum(score >= truth.scores[-1] for score in found.scores) / len(truth.places))

    def _row_for_graph(self, place: int) -> NDArray[np.int8] | None:
        """A vector of zeros has no direction, so the graph has none of them."""
        row = self.row_of(place)
        return row if row is not None and row.any() else None

    def _living(self) -> Iterator[int]:
        for segment, inverse in enumerate(self._inverse):
            yield from (np.flatnonzero(inverse > EMPTY) + segment * SEGMENT).tolist()

    # --- searches ---

    def nearest(
        self,
        query: NDArray[np.int8],
        count: int,
        members: bytearray | None = None,
        num_members: int = 0,
        left_out: Collection[int] = (),
    ) -> Nearest:
        """Up to `count` places with the largest cosines to the query [dim], without those left out.

        `members` [place] tells which of `num_members` places may be found; None: all.
        """
        if not count or not query.any():
            return Nearest([], [], is_exact=True)
        if self.is_exact or (members is not None and num_members <= self.exact_up_to):
            return self._exactly(query, count, members, left_out)
        return self._by_graph(query, count, members, num_members, left_out)

    def _exactly(
        self,
        query: NDArray[np.int8],
        count: int,
        members: bytearray | None,
        left_out: Collection[int],
    ) -> Nearest:
        places = [np.empty(0, np.int64)]
        scores = [np.empty(0, np.float32)]
        out = np.fromiter(left_out, np.int64, len(left_out))
        for segment, inverse in enumerate(self._inverse):
            start = segment * SEGMENT
            passing = inverse > EMPTY  # [place]
            if members is not None:
                allowed = np.frombuffer(members, np.uint8)[start : start + SEGMENT]
                passing[len(allowed) :] = False
                passing[: len(allowed)] &= allowed.astype(np.bool_)
            passing[out[(out >= start) & (out < start + SEGMENT)] - start] = False
            at = np.flatnonzero(passing)
            found = self._cosines(query, segment, at)
            if len(found) > count:  # equal scores stay, so that the order of places decides nothing
                best = found >= np.partition(found, -count)[-count]
                at, found = at[best], found[best]
            places.append(at + start)
            scores.append(found)
        return self._ranked(np.concatenate(places), np.concatenate(scores), count, is_exact=True)

    def _by_graph(
        self,
        query: NDArray[np.int8],
        count: int,
        members: bytearray | None,
        num_members: int,
        left_out: Collection[int],
    ) -> Nearest:
        assert self.active is not None
        graph, pending = self.active.graph, self.active.pending
        share = 1.0 if members is None else num_members / max(1, self.num_vectors)
        asked = int((count + len(left_out) + SPARE) / share) + 1
        if asked > min(MAX_ASKED + len(left_out), self.num_vectors // 2):
            return self._exactly(query, count, members, left_out)
        candidates = {place for place in graph.nearest(query, asked) if place not in pending}
        candidates.update(pending)
        candidates.difference_update(left_out)
        if members is not None:
            candidates = {place for place in candidates if place < len(members) and members[place]}
        scored = self._scored(query, candidates)
        if len(scored.places) < count:  # the filter's items are not spread as evenly as its share says
            return self._exactly(query, count, members, left_out)
        return Nearest(scored.places[:count], scored.scores[:count], is_exact=False)

    def _scored(self, query: NDArray[np.int8], candidates: Collection[int]) -> Nearest:
        """These places in the order of their cosines."""
        places = np.sort(np.fromiter(candidates, np.int64, len(candidates)))
        if not len(places):
            return Nearest([], [], is_exact=False)
        segments, at = np.divmod(places, SEGMENT)
        rows = np.empty((len(places), self.dim), np.int8)
        inverse = np.empty(len(places), np.float32)
        ends = [*(np.flatnonzero(np.diff(segments)) + 1).tolist(), len(places)]
        for begin, end in pairwise([0, *ends]):  # the places of one segment
            rows[begin:end] = self._rows[segments[begin]][at[begin:end]]
            inverse[begin:end] = self._inverse[segments[begin]][at[begin:end]]
        kept = inverse > EMPTY
        scores = _products(query, rows) * inverse / lengths(query)
        return self._ranked(places[kept], scores[kept], len(places), is_exact=False)

    def _cosines(self, query: NDArray[np.int8], segment: int, at: NDArray[np.int64]) -> NDArray[np.float32]:
        """The cosines of the query [dim] and the rows `at` places of a segment -> [at]."""
        inverse = self._inverse[segment][at]
        if not len(at):
            return inverse
        dense = len(at) == at[-1] - at[0] + 1  # without a gap, so nothing is copied
        rows = self._rows[segment][at[0] : at[-1] + 1] if dense else self._rows[segment][at]
        return _products(query, rows) * inverse / lengths(query)

    def _ranked(
        self, places: NDArray[np.int64], scores: NDArray[np.float32], count: int, *, is_exact: bool
    ) -> Nearest:
        """The best places. Equal scores are in the order of the items' ids, so that all replicas agree."""
        if len(scores) > count:
            best = scores >= np.partition(scores, -count)[-count]
            places, scores = places[best], scores[best]
        pairs = sorted(
            zip(scores.tolist(), places.tolist(), strict=True),
            key=lambda pair: (-pair[0], self._ids[pair[1]] or ""),
        )[:count]
        return Nearest([place for _, place in pairs], [score for score, _ in pairs], is_exact)


def _products(query: NDArray[np.int8], rows: NDArray[np.int8]) -> NDArray[np.float32]:
    """The query [dim] times each row [row, dim]: whole numbers, see core/vectors.py."""
    found: NDArray[np.float32] = rows.astype(np.float32) @ query.astype(np.float32)
    return found


def _inverse_lengths(rows: NDArray[np.int8]) -> NDArray[np.float32]:
    """1 / length of each row [any, dim] -> [any]; EMPTY for a row of zeros."""
    found = lengths(rows)
    return np.divide(1, found, out=np.full_like(found, EMPTY), where=found > 0)
