"""Pictures for tests, drawn from a seed and written in each format."""

import io
import random

import numpy as np
from PIL import Image


def drawn(seed: int = 0, size: tuple[int, int] = (300, 200)) -> Image.Image:
    """A smooth RGB picture, so that a lossy format keeps it nearly as it is. `size`: width and height."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def written(picture: Image.Image, format_name: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, format=format_name, **options)
    return file.getvalue()


def photo(seed: int = 0, format_name: str = "JPEG", size: tuple[int, int] = (300, 200)) -> bytes:
    """A photo as a client sends it."""
    return written(drawn(seed, size), format_name)


def damaged(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """`data` cut, with flipped bytes, or crossed with another file."""
    place = rng.randrange(1, len(data))
    match rng.randrange(4):
        case 0:
            return data[:place]
        case 1:
            return data[:place] + other[rng.randrange(len(other)) :]
        case 2:
            return data[:place] + rng.randbytes(rng.randrange(1, 40)) + data[place:]
    flipped = bytearray(data)
    for _ in range(rng.randrange(1, 30)):
        flipped[rng.randrange(len(flipped))] = rng.randrange(256)
    return bytes(flipped)
