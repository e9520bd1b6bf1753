"""The ranker of a bundle at work: scores of given items after given histories (decision 20).

A score depends on its own history and item alone, so lists of different lengths may share a run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.catalog.catalog import SLOT_BITS, Catalog
from service.core.graphs import PADDING
from service.errors import ServiceError
from service.flows.histories import History, neighbors_of, newest
from service.inference.runtime import RankerSession


class NoRanker(ServiceError):
    """Raised if a page shall be reranked, and the bundle has no ranker."""

    status = HTTPStatus.CONFLICT
    slug = "no-ranker"

    def __init__(self) -> None:
        super().__init__(
            "The served bundle has no ranker, so it cannot rerank a page. Send the request without `rerank`, "
            "or export a bundle with a ranker and change to it: docs/export.md says how."
        )


class Candidates(NamedTuple):
    """Items to score after one history."""

    history: History
    item_ids: Sequence[str]  # that the catalog has


@dataclass(frozen=True)
class Ranker:
    """Scores items by the bundle's ranker."""

    session: RankerSession
    history_length: int  # it reads so many of the newest items
    popularity: Mapping[str, float]  # of the training data; a new item has none

    def scores(self, catalog: Catalog, asked: Sequence[Candidates]) -> list[NDArray[np.float32]]:
        """The log-odds of each list's items: [candidate] each. The caller holds the lock of the catalog."""
        runs: dict[int, list[int]] = {}
        for place, each in enumerate(asked):  # a short list is not padded to more than twice its length
            runs.setdefault(len(each.item_ids).bit_length(), []).append(place)
        found = [np.zeros(0, np.float32)] * len(asked)
        for size, places in runs.items():
            if size:
                scores = self._run(catalog, [asked[place] for place in places])
                for place, row in zip(places, scores, strict=True):
                    found[place] = row[: len(asked[place].item_ids)]
        return found

    def _run(self, catalog: Catalog, asked: Sequence[Candidates]) -> NDArray[np.float32]:
        longest = max(len(each.item_ids) for each in asked)
        codes = np.full((len(asked), longest, catalog.spec.num_levels), PADDING, np.int64)
        popularity = np.zeros((len(asked), longest), np.float32)
        for row, each in enumerate(asked):
            count = len(each.item_ids)
            prefixes = catalog.packed_sids_of(each.item_ids) >> SLOT_BITS
            codes[row, :count] = catalog.spec.codes_of_prefixes(prefixes)
            popularity[row, :count] = [self.popularity.get(item_id, 0.0) for item_id in each.item_ids]
        histories = [each.history for each in asked]
        history, neighbors = newest(histories, self.history_length), neighbors_of(histories)
        return self.session.run(history, codes, popularity, neighbors)
