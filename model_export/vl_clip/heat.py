"""From a map of how much each cell of a photo shows something to the box around it."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, label

from model_export.vl_clip.boxes import Box

CUT = 0.5  # of the range of the map, between its lowest and its highest cell


def boxes_of_heat(heat: NDArray[np.float32]) -> list[Box]:
    """The connected areas of a map [row, column] above the cut, the one with the most heat first.

    Their confidence is their share of the heat above the cut. A flat map has no box.
    """
    low, high = float(heat.min()), float(heat.max())
    if not high > low:
        return []
    above = np.clip((heat - low) / (high - low) - CUT, 0, None)  # [row, column]
    areas, num_areas = label(above > 0)
    mass = np.array([above[areas == area].sum() for area in range(1, num_areas + 1)])
    rows, columns = heat.shape
    boxes = [
        Box(
            place[1].start / columns, place[0].start / rows, place[1].stop / columns, place[0].stop / rows,
            float(share),
        )
        for place, share in zip(find_objects(areas), mass / mass.sum(), strict=True)
    ]  # fmt: skip
    return sorted(boxes, key=lambda box: -box.confidence)
