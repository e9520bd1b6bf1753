"""From beams of codes to ranked items, offline, for whole test sets. The rules are those of the service."""

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_export.evaluation.metrics import NO_ITEM
from service.core.co_counts import CoCounts, CoCountSpec, CoRow, padded, table_of
from service.core.graphs import FILLER_SCORE, PADDING, Neighbors, beam_widths
from service.core.progress import ProgressBar
from service.core.sid import SidSpec
from service.core.trie import SidTrie
from service.inference.runtime import RecommenderSession


class SearchResult(NamedTuple):
    """The beams of a search."""

    codes: NDArray[np.int64]  # [batch, beam, level]
    scores: NDArray[np.float32]  # [batch, beam], best first, fillers below FILLER_SCORE


class Window(NamedTuple):
    """What a search gets to see of some histories."""

    history: NDArray[np.int64]  # [batch, position, level]  codes, padded on the left
    neighbors: Neighbors | None = None  # None: the counts have no say


SearchFunction = Callable[[Window, int], SearchResult]  # takes the number of beams


@dataclass(frozen=True)
class ItemsOfCodes:
    """The items at each code. Items that share codes come in the order of their index."""

    spec: SidSpec
    codes: NDArray[np.int64]  # [item + 1, level]  the last row is PADDING, so item -1 is padding
    trie: SidTrie
    order: NDArray[np.int64]  # [item]  items sorted by full prefix
    prefixes: NDArray[np.int64]  # [item]  their full prefixes, sorted

    @classmethod
    def build(cls, spec: SidSpec, codes: NDArray[np.int64]) -> "ItemsOfCodes":
        """The catalog of the items with codes [item, level]."""
        prefix = spec.prefixes_of(codes)[-1]
        order = np.argsort(prefix, kind="stable")
        padded = np.concatenate([codes, np.full((1, spec.num_levels), PADDING, dtype=np.int64)])
        return cls(spec, padded, SidTrie.from_codes(spec, codes), order, prefix[order])

    def items_at(self, prefix: int) -> NDArray[np.int64]:
        """The items with this full prefix."""
        first, last = np.searchsorted(self.prefixes, [prefix, prefix + 1])
        return self.order[first:last]

    def first_items(self, prefixes: NDArray[np.int64], excluded: AbstractSet[int], k: int) -> list[int]:
        """The first `k` items with full prefixes [beam], in that order, without the excluded items."""
        found: list[int] = []
        for prefix in prefixes.tolist():
            found += [item for item in self.items_at(prefix).tolist() if item not in excluded]
            if len(found) >= k:
                break
        return found[:k]


class NeighborsOfItems:
    """The neighbors of histories of item indices, from a table of counts as a service has it."""

    def __init__(
        self, rows: Iterable[CoRow], spec: CoCountSpec, item_ids: Sequence[str], places: NDArray[np.int64]
    ) -> None:
        """places [item]: the full prefix of each item."""
        self._item_ids = item_ids
        self._table: CoCounts = table_of(rows, spec)
        for item_id, place in zip(item_ids, places.tolist(), strict=True):
            if self._table.knows(item_id):
                self._table.place(item_id, place)

    def __call__(self, histories: Sequence[NDArray[np.int32]]) -> Neighbors:
        """The neighbors of each history."""
        return padded(
            [self._table.neighbors_of([self._item_ids[item] for item in items]) for items in histories]
        )


@dataclass(frozen=True)
class Ranker:
    """Ranks the items of a catalog for histories, with one search function."""

    search: SearchFunction
    catalog: ItemsOfCodes
    history_length: int  # the model sees this many of the newest items
    num_beams: int  # of the first search
    beam_limit: int  # of the widest search
    batch_size: int  # histories per search
    neighbors: NeighborsOfItems | None = None  # None: the counts have no say

    def rank(
        self,
        histories: list[NDArray[np.int32]],
        k: int,
        *,
        exclude_history: bool = True,
        progress: str | None = None,
    ) -> NDArray[np.int32]:
        """The best `k` items for each history: [user, k], filled up with NO_ITEM.

        The whole history is excluded, even the items that the model does not see. If a page is then too
        short, the search is repeated with twice as many beams, up to the beam limit. `progress` labels a
        progress bar.
        """
        ranked = np.full((len(histories), k), NO_ITEM, dtype=np.int32)
        num_beams, waiting = self.num_beams, np.arange(len(histories))
        bar = ProgressBar(total=len(histories), desc=progress, unit="user", disable=progress is None)
        while waiting.size:
            short = []
            for first in range(0, len(waiting), self.batch_size):
                rows = waiting[first : first + self.batch_size]
                codes, scores = self.search(self.window([histories[row] for row in rows]), num_beams)
                for row, row_codes, score in zip(rows, codes, scores, strict=True):
                    prefix = self.catalog.spec.prefixes_of(row_codes)[-1]  # [beam]
                    excluded = set(histories[row].tolist()) if exclude_history else set()
                    found = self.catalog.first_items(prefix[score > FILLER_SCORE], excluded, k)
                    ranked[row, : len(found)] = found
                    if len(found) < k and (score > FILLER_SCORE).all():
                        short.append(row)
                    else:
                        bar.update()
            if num_beams >= self.beam_limit:
                bar.update(len(short))
                break
            num_beams = min(2 * num_beams, self.beam_limit)
            waiting = np.array(short, dtype=np.int64)
        bar.close()
        return ranked

    def window(self, histories: Sequence[NDArray[np.int32]]) -> Window:
        """What a search sees of histories of items."""
        seen = left_padded([history[-self.history_length :] for history in histories])
        return Window(self.catalog.codes[seen], None if self.neighbors is None else self.neighbors(histories))


def search_by(session: RecommenderSession, catalog: ItemsOfCodes) -> SearchFunction:
    """A search function that runs an exported graph."""

    def search(window: Window, num_beams: int) -> SearchResult:
        widths = beam_widths(catalog.spec, num_beams)
        beams = session.run(window.history, catalog.trie.tables, widths, window.neighbors)
        return SearchResult(beams.codes, beams.scores)

    return search


def left_padded(sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.int64]:
    """Rows of item indices -> [row, position], with NO_ITEM on the left. There is at least one position."""
    window = np.full((len(sequences), max([1, *map(len, sequences)])), NO_ITEM, dtype=np.int64)
    for row, items in enumerate(sequences):
        if len(items):
            window[row, -len(items) :] = items
    return window
