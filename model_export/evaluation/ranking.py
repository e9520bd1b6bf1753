"""From beams of codes to ranked items, offline: the same rules as the service's, over whole test sets."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from service.core.graphs import FILLER, PADDING, beam_widths
from service.core.sid import SidSpec
from service.core.trie import SidTrie
from service.inference.runtime import RecommenderSession


class Found(NamedTuple):
    codes: NDArray[np.int64]  # [batch, beam, level]
    scores: NDArray[np.float32]  # [batch, beam], best first, fillers below FILLER


Search = Callable[[NDArray[np.int64], int], Found]  # histories [batch, position, level], num_beams


@dataclass(frozen=True)
class ItemsOfCodes:
    """Which items live at which codes. Items that share codes come in the order of their index."""

    spec: SidSpec
    codes: NDArray[np.int64]  # [item + 1, level]; the last row is PADDING, so that item -1 is padding
    trie: SidTrie
    order: NDArray[np.int64]  # items sorted by full prefix
    prefixes: NDArray[np.int64]  # their full prefixes, sorted

    @classmethod
    def build(cls, spec: SidSpec, codes: NDArray[np.int64]) -> "ItemsOfCodes":
        prefix = spec.prefixes_of(codes)[-1]
        order = np.argsort(prefix, kind="stable")
        padded = np.concatenate([codes, np.full((1, spec.num_levels), PADDING, dtype=np.int64)])
        return cls(spec, padded, SidTrie.from_codes(spec, codes), order, prefix[order])

    def items_at(self, prefix: int) -> NDArray[np.int64]:
        first, last = np.searchsorted(self.prefixes, [prefix, prefix + 1])
        return self.order[first:last]


def search_by(session: RecommenderSession, catalogue: ItemsOfCodes) -> Search:
    """A search by an exported graph."""

    def search(history: NDArray[np.int64], num_beams: int) -> Found:
        widths = beam_widths(catalogue.spec, num_beams)
        beams = session.run(history, catalogue.trie.tables, widths)
        return Found(beams.codes, beams.scores)

    return search


def rank_items(
    search: Search,
    catalogue: ItemsOfCodes,
    histories: list[NDArray[np.int32]],
    *,
    k: int,
    history_length: int,
    num_beams: int,
    beam_limit: int,
    batch_size: int,
    exclude_history: bool = True,
    progress: str | None = None,
) -> NDArray[np.int32]:
    """The best k items for each history [user, k], -1 where fewer were found.

    The model sees the newest `history_length` items; the whole history is excluded. Where that leaves a
    page short, the search is repeated twice as wide, up to `beam_limit`.
    """
    ranked = np.full((len(histories), k), -1, dtype=np.int32)
    waiting = np.arange(len(histories))
    bar = tqdm(total=len(histories), desc=progress, unit="user", disable=progress is None)
    while waiting.size:
        short = []
        for first in range(0, len(waiting), batch_size):
            rows = waiting[first : first + batch_size]
            window = left_padded([histories[row][-history_length:] for row in rows])
            codes, scores = search(catalogue.codes[window], num_beams)
            prefixes = catalogue.spec.prefixes_of(codes.reshape(-1, codes.shape[-1]))[-1].reshape(
                scores.shape
            )
            for row, prefix, score in zip(rows, prefixes, scores, strict=True):
                excluded = set(histories[row].tolist()) if exclude_history else set()
                found = _take(catalogue, prefix[score > FILLER], excluded, k)
                ranked[row, : len(found)] = found
                if len(found) < k and (score > FILLER).all():
                    short.append(row)
                else:
                    bar.update()
        if num_beams >= beam_limit:
            bar.update(len(short))
            break
        num_beams = min(2 * num_beams, beam_limit)
        waiting = np.array(short, dtype=np.int64)
    bar.close()
    return ranked


def _take(catalogue: ItemsOfCodes, prefixes: NDArray[Any], excluded: set[int], k: int) -> list[int]:
    found: list[int] = []
    for prefix in prefixes:
        for item in catalogue.items_at(int(prefix)).tolist():
            if item not in excluded:
                found.append(item)
                if len(found) == k:
                    return found
    return found


def left_padded(sequences: list[NDArray[np.int32]]) -> NDArray[np.int64]:
    """Ragged item indices -> [row, position] with -1 on the left; at least one position."""
    window = np.full((len(sequences), max([1, *map(len, sequences)])), -1, dtype=np.int64)
    for row, items in enumerate(sequences):
        if len(items):
            window[row, -len(items) :] = items
    return window
