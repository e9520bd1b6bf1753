"""Counts of the training sequences as sparse matrices, and histories as weights of items."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags

from model_export.evaluation.baselines.ranked import Sequences

CO_PURCHASE_WINDOW = 5  # positions


def purchases(train: Sequences, num_items: int) -> NDArray[np.float32]:
    """How often each item occurs, [item]."""
    bought = np.concatenate([*train, np.empty(0, np.int32)])
    return np.bincount(bought, minlength=num_items).astype(np.float32)


def transitions(train: Sequences, num_items: int) -> csr_matrix:
    """How often an item came right after another: [item before, item after]."""
    return pairs(train, num_items, 1)


def co_purchases(train: Sequences, num_items: int) -> csr_matrix:
    """How close two items were bought, in both directions: [item, item].

    A pair adds 1 / distance, up to CO_PURCHASE_WINDOW positions apart. The sum is divided by the root of the
    product of both items' purchases, so popular items are not near to everything.
    """
    near = sum(
        (pairs(train, num_items, distance) / distance for distance in range(1, CO_PURCHASE_WINDOW + 1)),
        start=csr_matrix((num_items, num_items), dtype=np.float32),
    )
    scale = diags(1 / np.sqrt(np.maximum(purchases(train, num_items), 1)))
    return (scale @ (near + near.T) @ scale).tocsr().astype(np.float32)


def weights_of_items(histories: Sequences, num_items: int, decay: float) -> csr_matrix:
    """The weight of each item of each history: [user, item].

    The last item weighs 1, and each step into the past multiplies the weight by `decay`. With 0 only the last
    item counts. The weights of an item that occurs several times are added.
    """
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    items = np.concatenate([*histories, np.empty(0, np.int32)]).astype(np.int64)
    user = np.repeat(np.arange(len(histories)), lengths)
    age = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(items)) - 1  # 0 for the last item
    weight = np.power(decay, age).astype(np.float32)
    kept = weight > 0
    return csr_matrix((weight[kept], (user[kept], items[kept])), shape=(len(histories), num_items))


def pairs(train: Sequences, num_items: int, distance: int) -> csr_matrix:
    """How often an item came `distance` positions after another: [item before, item after]."""
    none = np.empty(0, np.int64)
    before = np.concatenate([*(sequence[:-distance] for sequence in train), none])
    after = np.concatenate([*(sequence[distance:] for sequence in train), none])
    ones = np.ones(len(before), dtype=np.float32)
    return csr_matrix((ones, (before, after)), shape=(num_items, num_items))
