"""How near the neighborhoods of two modalities are: the overlap of each item's nearest items in the two.

Text and photo that agree about what is alike leave little for a fusion to gain.
"""

import numpy as np
from numpy.typing import NDArray

from model_export.encoders.fusion import NUM_FLAGS
from model_export.pipeline import stages
from model_export.pipeline.run import Run

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
NUM_NEAREST = 10
ROWS_PER_BLOCK = 1024


def of_text_and_photo(run: Run) -> dict[str, float]:
    """The overlap of texts and photos, as their encoders see them, over the items that have both."""
    read = stages.read(run)
    assert read.photos is not None
    has_both = (read.features[:, -NUM_FLAGS:] > 0).all(axis=1)
    text, photos = read.text[has_both], read.photos[has_both]
    return {
        "text_photo_overlap": neighborhood_overlap(text, photos),
        "text_photo_overlap_chance": NUM_NEAREST / (len(text) - 1),
    }


def neighborhood_overlap(
    left: NDArray[np.float32], right: NDArray[np.float32], count: int = NUM_NEAREST
) -> float:
    """The mean share of an item's `count` nearest items that both modalities have in common, from 0 to 1.

    left [item, dim] and right [item, other dim] are the vectors of the same items. Near is by cosine; an item
    is no neighbor of itself. Unrelated modalities have about `count` / (number of items - 1). Raises
    ValueError if the items are not the same or are too few.
    """
    if len(left) != len(right):
        raise ValueError(
            f"{len(left)} items on the left and {len(right)} on the right are not the same items"
        )
    if len(left) <= count:
        raise ValueError(f"{len(left)} items are too few to have {count} neighbors each")
    left, right = _units(left), _units(right)
    num_common = 0
    for start in range(0, len(left), ROWS_PER_BLOCK):
        rows = slice(start, start + ROWS_PER_BLOCK)
        both = np.concatenate([_nearest(left, rows, count), _nearest(right, rows, count)], axis=1)
        both.sort(axis=1)  # [row, 2 * count]; an item of both stands beside itself
        num_common += int(np.count_nonzero(both[:, 1:] == both[:, :-1]))
    return num_common / (len(left) * count)


def _units(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: NDArray[np.float32] = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return result


def _nearest(units: NDArray[np.float32], rows: slice, count: int) -> NDArray[np.int64]:
    """The `count` nearest other items of each row [row, count], in no order."""
    cosine = units[rows] @ units.T  # [row, item]
    here = np.arange(len(cosine))
    cosine[here, here + rows.start] = -np.inf
    return np.argpartition(-cosine, count - 1, axis=1)[:, :count]
