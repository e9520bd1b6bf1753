"""What a model reads of a history: the codes of its known items, and what was taken together with them."""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.catalog.catalog import Catalog
from service.core.co_counts import Gathered, padded
from service.core.graphs import PADDING, Neighbors

Codes = NDArray[np.int64]  # [position, level], oldest first


class History(NamedTuple):
    """A history as one version of the catalog knows it."""

    codes: Codes  # of all known items
    neighbors: Gathered | None  # None if counts have no say, or no item is known
    unknown_item_ids: list[str]  # each once, in the order of the request

    @property
    def is_known(self) -> bool:
        """Whether the catalog has any of its items."""
        return len(self.codes) > 0


def read_histories(catalog: Catalog, histories: Sequence[Sequence[str]]) -> list[History]:
    """Look histories up (item ids, oldest first). The caller holds the lock of the catalog.

    One pass over all of them, as an array operation costs more than the few items of one history.
    """
    has = catalog.has
    known = [list(filter(has, item_ids)) for item_ids in histories]
    unknown = [
        [] if len(kept) == len(item_ids) else [each for each in dict.fromkeys(item_ids) if not has(each)]
        for item_ids, kept in zip(histories, known, strict=True)
    ]
    codes = catalog.codes_of(list(chain.from_iterable(known)))
    neighbors: Sequence[Gathered | None] = [None] * len(known)
    if catalog.co_counts is not None and len(codes):
        neighbors = catalog.co_counts.neighbors_of_each(known)
    found, end = [], 0
    for kept, missing, gathered in zip(known, unknown, neighbors, strict=True):
        begin, end = end, end + len(kept)
        found.append(History(codes[begin:end], gathered if kept else None, missing))
    return found


def read_history(catalog: Catalog, item_ids: Sequence[str]) -> History:
    """`read_histories` of one."""
    return read_histories(catalog, [item_ids])[0]


def newest(histories: Sequence[History], length: int) -> NDArray[np.int64]:
    """The newest `length` known items of each -> codes [batch, position, level], at least one position."""
    return pad_left([each.codes[-length:] for each in histories])


def neighbors_of(histories: Sequence[History]) -> Neighbors | None:
    """The neighbors of a batch; None if counts have no say in any of it."""
    nobody = Gathered(np.zeros(0, np.int64), np.zeros(0, np.float32))
    if all(each.neighbors is None for each in histories):
        return None
    return padded([each.neighbors or nobody for each in histories])


def pad_left(histories: Sequence[Codes]) -> NDArray[np.int64]:
    """Histories of different lengths -> [batch, position, level], each ending in the last position.

    There is at least one position, so that of nothing known is PADDING.
    """
    longest = max([1, *map(len, histories)])
    filled = np.full((len(histories), longest, histories[0].shape[1]), PADDING, dtype=np.int64)
    for row, history in zip(filled, histories, strict=True):
        row[longest - len(history) :] = history
    return filled
