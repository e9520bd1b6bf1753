"""Some photos that clients send, and what of them is kept: for a model in memory of items with photos."""

import base64
from collections.abc import Mapping
from typing import Any

from service.core.pictures import keep_picture
from tests.service.core.photos import photo

BYTES = [photo(1, "JPEG", (40, 30)), photo(2, "PNG", (30, 40)), photo(3, "WEBP", (33, 33))]
SENT = [{"data": base64.b64encode(each).decode()} for each in BYTES]
_KEPT = [keep_picture(each) for each in BYTES]
REFERENCES = [{"sha256": each.sha256, "width": each.width, "height": each.height} for each in _KEPT]
_DATA_OF = {each.sha256: each.data for each in _KEPT}


def as_stored(posted: Mapping[str, Any], was: Mapping[str, Any] | None) -> dict[str, Any]:
    """The item that is stored after this one is posted, where it was `was` before."""
    item = {name: value for name, value in posted.items() if name != "image"}
    image = posted["image"] if "image" in posted else (was or {}).get("image")
    if image in SENT:
        image = REFERENCES[SENT.index(image)]
    return item if image is None else item | {"image": image}


def kept_of(item: Mapping[str, Any]) -> bytes | None:
    """The bytes that are kept for a stored item; None without a photo."""
    return _DATA_OF[item["image"]["sha256"]] if "image" in item else None
