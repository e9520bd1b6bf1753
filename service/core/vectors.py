"""Vectors of items as they are kept: whole numbers of 8 bits, so that an item costs as many bytes as numbers.

Vectors are compared by the cosine of their angle, so the length of a vector says nothing. Each is scaled so
that its largest number is 127 or -127. The sum of products of such numbers is a whole number that float32
holds exactly, in whatever order it is added up. So equal vectors have equal scores on every machine.
"""

import base64
import binascii
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LARGEST = 127
MAX_DIM = 2**24 // LARGEST**2  # float32 holds each whole number up to 2**24


def quantized(vectors: NDArray[np.float32]) -> NDArray[np.int8]:
    """Vectors [any, dim] -> int8 [any, dim] of about the same directions.

    A zero vector stays zero, and what is no finite number counts as 0.
    """
    finite = np.nan_to_num(vectors, nan=0.0, posinf=0.0, neginf=0.0)
    largest = np.abs(finite).max(axis=-1, keepdims=True, initial=0.0)  # [any, 1]
    return np.rint(finite / np.where(largest > 0, largest, 1.0) * LARGEST).astype(np.int8)


def packed(vectors: NDArray[np.float32]) -> list[bytes]:
    """Vectors [item, dim] -> for each the `dim` bytes that are kept of it."""
    return [row.tobytes() for row in quantized(vectors)]


def unpacked(values: Sequence[bytes], dim: int) -> NDArray[np.int8]:
    """The inverse of `packed` -> int8 [item, dim]. Raises ValueError if a value has another length."""
    if any(len(value) != dim for value in values):
        raise ValueError(f"a vector has not {dim} bytes")
    return np.frombuffer(b"".join(values), dtype=np.int8).reshape(len(values), dim)


def lengths(vectors: NDArray[np.int8]) -> NDArray[np.float32]:
    """The lengths of vectors [any, dim] -> [any]."""
    squares = np.square(vectors, dtype=np.int32).sum(axis=-1, dtype=np.int64)  # [any]
    found: NDArray[np.float32] = np.sqrt(squares).astype(np.float32)
    return found


def as_text(value: bytes) -> str:
    """A kept vector as base64, for a line of JSON."""
    return base64.b64encode(value).decode("ascii")


def from_text(text: object) -> bytes:
    """The inverse of `as_text`. Raises ValueError for anything else."""
    if not isinstance(text, str):
        raise ValueError("its vector is no text")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"its vector is not base64 ({error})") from error
