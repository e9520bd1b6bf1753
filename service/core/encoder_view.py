"""What the image encoder of a bundle sees of an item: its photo, or CARD's unit of photo and text. Pure."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.core.bundle import PictureSpec, RenderSpec
from service.core.pictures import open_kept, picture_pixels
from service.core.unit import compose_unit, unit_text


def encoder_view(
    item: Mapping[str, Any], kept: bytes | None, spec: PictureSpec, render: RenderSpec
) -> NDArray[np.uint8] | None:
    """The pixels [size, size, 3] of an item and its kept picture. None if there is nothing to see.

    A unit shows the item alone: a new item was never bought, so it has no neighbors by purchases. Raises
    InvalidItem if the kept picture is damaged.
    """
    if spec.shows == "unit":
        return compose_unit(None if kept is None else open_kept(kept), unit_text(item, render))
    return None if kept is None else picture_pixels(kept, spec)
