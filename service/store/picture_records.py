"""The values of kept pictures in Redis, and what a change of an item does with its picture. Pure."""

import hashlib
import struct
from typing import Literal, NamedTuple

from service.core.image_field import PictureReference
from service.core.pictures import KeptPicture

HEADER = struct.Struct(">32sHH")  # SHA-256, width, height; the picture's bytes follow
NONE = b"none"


class PictureChange(NamedTuple):
    """What a put does with the item's picture, as lua/put.lua takes it."""

    action: Literal["leave", "set", "drop"] = "leave"
    value: bytes = b""

    @classmethod
    def none_but(cls, reference: PictureReference | None) -> "PictureChange":
        """Leave the picture, which must be this one, or absent for None. Else the result is ItemChanged."""
        return cls("leave", NONE if reference is None else bytes.fromhex(reference.sha256))

    @classmethod
    def set(cls, kept: KeptPicture) -> "PictureChange":
        """Put this picture in the place of any other."""
        return cls("set", pack_picture(kept))

    @classmethod
    def drop(cls) -> "PictureChange":
        """Remove the picture, if there is one."""
        return cls("drop")


class StoredPicture(NamedTuple):
    """A kept picture as it lies in Redis."""

    reference: PictureReference
    data: bytes

    @property
    def is_whole(self) -> bool:
        """Whether the bytes are those that were kept."""
        return hashlib.sha256(self.data).hexdigest() == self.reference.sha256


def pack_picture(kept: KeptPicture) -> bytes:
    """The value of a picture in Redis."""
    return HEADER.pack(bytes.fromhex(kept.sha256), kept.width, kept.height) + kept.data


def unpack_header(value: bytes) -> PictureReference | None:
    """The reference in a picture's value, or in its first bytes. None if another program wrote it."""
    if len(value) < HEADER.size:
        return None
    sha256, width, height = HEADER.unpack_from(value)
    return PictureReference(sha256.hex(), width, height)


def unpack_picture(value: bytes) -> StoredPicture | None:
    """A picture's value. None if another program wrote it."""
    reference = unpack_header(value)
    return None if reference is None else StoredPicture(reference, value[HEADER.size :])
