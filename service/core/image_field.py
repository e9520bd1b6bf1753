"""The field `image` of an item: what a request wants done with the picture that is kept for the item. Pure.

A picture comes as bytes. Its place in the stored item is a reference: what the picture is, without its bytes.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from service.core.filters import UnusedValue
from service.errors import InvalidItem

FIELD = "image"
_REFERENCE = frozenset({"sha256", "width", "height"})
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HOW = 'Send the picture as {"data": "<base64>"}, or its bytes with PUT /items/{id}/image'


class PictureReference(NamedTuple):
    """Which picture is kept for an item. The item has it in its field `image`."""

    sha256: str  # hex, of the kept bytes
    width: int
    height: int

    def as_field(self) -> dict[str, Any]:
        """The value of the field `image`."""
        return self._asdict()


class ImageWish(NamedTuple):
    """What a request wants done with the item's picture.

    leave: it stays, if there is one. same: it stays, and must be the one with this SHA-256. remove: it goes.
    replace: these bytes take its place.
    """

    kind: Literal["leave", "same", "remove", "replace"]
    data: bytes | str = b""  # to replace it: the bytes, or base64
    sha256: str = ""
    is_named: bool = False  # the field has a URL or another value that is no picture


LEAVE, REMOVE = ImageWish("leave"), ImageWish("remove")


def split_image(raw: Mapping[str, Any]) -> tuple[dict[str, Any], ImageWish]:
    """The item without its picture, and what is wanted of the picture. Raises InvalidItem.

    A value that only names a picture, such as a URL, stays in the item.
    """
    item = dict(raw)
    if FIELD not in item:
        return item, LEAVE
    value = item.pop(FIELD)
    if value is None:
        return item, REMOVE
    if isinstance(value, bytes):
        return item, ImageWish("replace", data=value)
    if not isinstance(value, dict):
        item[FIELD] = value
        return item, ImageWish("leave", is_named=True)
    return item, _wish_of(value)


def reference_in(item: Mapping[str, Any]) -> PictureReference | None:
    """The reference that a stored item has. None if no picture is kept for it."""
    value = item.get(FIELD)
    if not isinstance(value, dict) or value.keys() != _REFERENCE:
        return None
    sha256, width, height = value["sha256"], value["width"], value["height"]
    is_one = isinstance(sha256, str) and _SHA256.fullmatch(sha256) and type(width) is type(height) is int
    return PictureReference(sha256, width, height) if is_one else None


def with_reference(fields: Mapping[str, Any], picture: PictureReference | None) -> dict[str, Any]:
    """The item as it is stored: with the reference of its picture, if there is one."""
    return {**fields, FIELD: picture.as_field()} if picture else dict(fields)


def without_reference(item: Mapping[str, Any]) -> dict[str, Any]:
    """The item without the reference of a picture that is not kept here."""
    return {name: value for name, value in item.items() if name != FIELD or not reference_in(item)}


def names_a_picture(item: Mapping[str, Any]) -> bool:
    """Whether the item tells of a picture that is not kept, as a URL or a path does."""
    return bool(item.get(FIELD)) and reference_in(item) is None


def after_change(item: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """`item`, made from the whole `stored` item, as a request that means the same change of the picture.

    A reference that is still there wants nothing, and one that is gone wants the picture removed.
    """
    if reference_in(stored) is None:
        return dict(item)
    if FIELD not in item:
        return {**item, FIELD: None}
    return {name: value for name, value in item.items() if name != FIELD or value != stored[FIELD]}


def notes_on(wish: ImageWish, kept: PictureReference | None, *, reads_pictures: bool) -> list[UnusedValue]:
    """What the result of an item says about its field `image`, if anything."""
    if wish.is_named:
        stays = "the picture that is kept stays" if kept else "it is stored as it is"
        return [UnusedValue(FIELD, f"is not a picture and is not fetched; {stays}. {_HOW}")]
    if wish.kind == "replace" and not reads_pictures:
        return [UnusedValue(FIELD, "is kept, but the served bundle reads no pictures; a later one may")]
    return []


def _wish_of(value: dict[str, Any]) -> ImageWish:
    if unknown := value.keys() - _REFERENCE - {"data"}:
        raise InvalidItem(FIELD, f"has {min(unknown)!r}, which is not known there. {_HOW}")
    if "data" in value:
        if not isinstance(value["data"], str):
            raise InvalidItem(FIELD, f"has `data` that is no text. {_HOW}")
        return ImageWish("replace", data=value["data"])
    sha256 = value.get("sha256")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise InvalidItem(FIELD, f"has neither `data` nor a `sha256` of 64 hex characters. {_HOW}")
    return ImageWish("same", sha256=sha256)
