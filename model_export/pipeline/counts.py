"""Counts which items users took near each other in the training part, as a service counts events."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from model_export.evaluation.baselines.counts import pairs, purchases
from service.core.co_counts import CoCountSpec, CoRow, strongest

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py


def count_pairs(
    sequences: Sequence[NDArray[np.int32]], item_ids: Sequence[str], spec: CoCountSpec
) -> list[CoRow]:
    """A row for each item that occurs in the sequences [user][position].

    The counts are those of co_counts.increments, as if every item of a sequence were an event after the items
    before it. The only difference is that an event is also weighed by its age, and a sequence has no times.
    """
    num_items = len(item_ids)
    counts = csr_matrix((num_items, num_items))
    for distance in range(1, spec.window + 1):
        forward = pairs(sequences, num_items, distance).astype(np.float64) / distance
        counts = counts + forward + spec.backward * forward.T
    counts = counts.tocsr()
    counts.setdiag(0)  # an item makes no pair with itself
    counts.eliminate_zeros()
    popularity = purchases(sequences, num_items)
    return [
        CoRow(item_ids[item], float(popularity[item]), _row(counts, item, item_ids, spec.max_neighbors))
        for item in np.flatnonzero(popularity).tolist()
    ]


def _row(counts: csr_matrix, item: int, item_ids: Sequence[str], num_kept: int) -> dict[str, float]:
    start, end = counts.indptr[item : item + 2]
    others, values = counts.indices[start:end].tolist(), counts.data[start:end].tolist()
    return strongest({item_ids[other]: value for other, value in zip(others, values, strict=True)}, num_kept)
