"""The pairs of a catalog from which its own joint space is learned."""

from typing import NamedTuple

import numpy as np

from model_export.vl_clip.catalog import PairedItems

VALIDATION_SHARE = 0.1  # of the pairs decide when the training ends


class OwnPairs(NamedTuple):
    """The pairs of a catalog, in two parts."""

    train: PairedItems
    validation: PairedItems


def split_pairs(pairs: PairedItems, seed: int) -> OwnPairs:
    """Divide pairs at random. All of them are learned from, or decide when the training ends."""
    order = np.random.default_rng(seed).permutation(len(pairs))
    num_validation = round(VALIDATION_SHARE * len(pairs))
    return OwnPairs(pairs.some(order[num_validation:]), pairs.some(order[:num_validation]))
