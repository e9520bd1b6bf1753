"""What a model reads of a history: the codes of its known items, and what was taken together with them."""

from collections.abc import Sequence
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


def read_history(catalog: Catalog, item_ids: Sequence[str]) -> History:
    """Look a history up (item ids, oldest first). The caller holds the lock of the catalog."""
    codes = catalog.codes_of(item_ids)
    unknown = [item_id for item_id in dict.fromkeys(item_ids) if not catalog.has(item_id)]
    neighbors = None
    if catalog.co_counts is not None and len(codes):
        neighbors = catalog.co_counts.neighbors_of(list(filter(catalog.has, item_ids)))
    return History(codes, neighbors, unknown)


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
