"""The score of every item, without a search: what opinions are weighed on."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_export.generators.base import Scorer

MAX_LOG_PROBS = 20_000_000  # of one step: 80 MB


@torch.no_grad()
def item_scores(
    scorer: Scorer, codes: NDArray[np.int64], histories: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Score every item for each history: [history, item]

    codes [item, level]; histories: codes [history, position, level]. Each prefix of the catalog has a beam of
    its own.
    """
    prefixes = [np.unique(prefix) for prefix in scorer.spec.prefixes_of(codes)]
    largest = max(
        len(parents) * num_codes
        for parents, num_codes in zip([np.zeros(1), *prefixes[:-1]], scorer.spec.levels, strict=True)
    )
    batch = max(1, MAX_LOG_PROBS // largest)
    item = torch.from_numpy(np.searchsorted(prefixes[-1], scorer.spec.prefixes_of(codes)[-1]))
    found = np.empty((len(histories), len(codes)), np.float32)
    for first in range(0, len(histories), batch):
        part = torch.from_numpy(histories[first : first + batch])
        found[first : first + batch] = _scores(scorer, part, prefixes)[:, item].numpy()
    return found


def _scores(scorer: Scorer, history: Tensor, prefixes: list[NDArray[np.int64]]) -> Tensor:
    """The score of each full prefix: [history, prefix]. `prefixes`: those of each level, ascending."""
    state = scorer.start(history)
    parents = np.zeros(1, np.int64)
    score = torch.zeros(len(history), 1)
    for level, (children, num_codes) in enumerate(zip(prefixes, scorer.spec.levels, strict=True)):
        beams = torch.from_numpy(parents).expand(len(history), -1)
        log_probs, state = scorer.step(level, state, beams)  # [history, parent, code]
        parent = np.searchsorted(parents, children // num_codes)
        place = torch.from_numpy(parent * num_codes + children % num_codes)
        score = (log_probs + score[..., None]).flatten(1)[:, place]
        state = scorer.reorder(state, torch.from_numpy(parent).expand(len(history), -1))
        parents = children
    return score
