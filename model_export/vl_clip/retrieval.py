"""From a text to the right photo: the figures of VL-CLIP (arXiv 2507.17080, section 5.2)."""

import numpy as np
from numpy.typing import NDArray

CUTS = (1, 5, 10, 50)
ROWS_AT_ONCE = 1024

Vectors = NDArray[np.float32]  # [any, dim], of length 1


def ranks_of_pairs(texts: Vectors, photos: Vectors) -> NDArray[np.int64]:
    """The rank [pair] of each text's own photo among all photos, from 0. Equal photos rank before it.

    So a space that gives all photos the same vector has the worst rank everywhere.
    """
    found = []
    for start in range(0, len(texts), ROWS_AT_ONCE):
        scores = texts[start : start + ROWS_AT_ONCE] @ photos.T  # [text, photo]
        own = scores[np.arange(len(scores)), np.arange(start, start + len(scores))]
        found.append((scores >= own[:, None]).sum(axis=1) - 1)
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def figures_of(ranks: NDArray[np.int64]) -> dict[str, float]:
    """HITS@k, the share of texts whose photo is among the first k, and the mean reciprocal rank."""
    if not len(ranks):
        return {}
    figures = {f"hits@{cut}": float((ranks < cut).mean()) for cut in CUTS}
    return figures | {"mrr": float((1 / (ranks + 1)).mean())}
