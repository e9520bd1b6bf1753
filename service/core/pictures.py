"""Photos of items: from the bytes of a client to one canonical picture, and from that to an encoder's pixels.

Training reads a file with the same two functions, so it sees what serving sees. A canonical picture is small
and of one form, so it can be kept for every item and read again by a later tokenizer.

Pure: the same bytes give the same picture with the same release of Pillow. Colors are taken as sRGB; profiles
are not applied. Whatever decides how much work the decoder has is read from the bytes before it starts: type,
size, pixels, scans and frames.
"""

import hashlib
import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from service.core.bundle import PictureSpec
from service.core.limits import (
    MAX_JPEG_SCANS,
    MAX_PICTURE_BYTES,
    MAX_PICTURE_FRAMES,
    MAX_PICTURE_PIXELS,
    MAX_SCANNED_PIXELS,
)
from service.errors import InvalidItem

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py

# Longer side of a kept picture. A picture is never enlarged before it is kept.
KEPT_PX = 256
# benchmarks/pictures.py measures the bytes of other sizes and qualities (decision 14).
KEPT_QUALITY = 80
KEPT_EFFORT = 2  # of the encoder, 0 to 6
FORMATS = ("JPEG", "PNG", "WEBP")
MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
WHITE = 255

_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF's orientation -> what makes the picture upright
# Markers of JPEG's frame headers: all of C0 to CF but DHT, JPG and DAC.
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length


class KeptPicture(NamedTuple):
    """A canonical picture: an opaque, upright RGB picture as WebP, no side longer than KEPT_PX."""

    data: bytes
    width: int
    height: int
    sha256: str  # hex, of `data`


class _Size(NamedTuple):
    width: int
    height: int


def keep_picture(
    data: bytes, *, max_bytes: int = MAX_PICTURE_BYTES, max_pixels: int = MAX_PICTURE_PIXELS
) -> KeptPicture:
    """Check a JPEG, PNG or WebP and make the canonical picture. Raises InvalidItem with the reason.

    Of an animation, the first frame is kept. Transparent parts become white.
    """
    format_name = _check_before_decoding(data, max_bytes, max_pixels)
    try:
        picture = _small_and_upright(data, format_name, max_pixels)
        kept = io.BytesIO()
        picture.save(kept, format="WEBP", quality=KEPT_QUALITY, method=KEPT_EFFORT)
    except InvalidItem:
        raise
    except Exception as error:  # Pillow has no common base: OSError, SyntaxError, ValueError, struct.error, …
        raise InvalidItem("image", f"is a broken {format_name} ({_reason(error)}). Save it again") from error
    written = kept.getvalue()
    return KeptPicture(written, picture.width, picture.height, hashlib.sha256(written).hexdigest())


def picture_pixels(kept: bytes, spec: PictureSpec) -> NDArray[np.uint8]:
    """The pixels that the encoder reads of a kept picture: uint8 [size, size, 3], rows first, RGB.

    Raises InvalidItem if these are not the bytes of a kept picture.
    """
    return on_square(open_kept(kept), spec.size_px)


def on_square(picture: Image.Image, side: int) -> NDArray[np.uint8]:
    """An RGB picture on a square of `side` pixels: uint8 [side, side, 3], rows first.

    The picture is scaled to fit into the square with its aspect kept (bicubic, antialiased) and centered on
    white.
    """
    scale = side / max(picture.size)
    fitted = _Size(max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    scaled = picture.resize(fitted, Image.Resampling.BICUBIC)
    square = Image.new("RGB", (side, side), (WHITE, WHITE, WHITE))
    square.paste(scaled, ((side - fitted.width) // 2, (side - fitted.height) // 2))
    return np.asarray(square)


def open_kept(kept: bytes) -> Image.Image:
    """A kept picture as RGB. Raises InvalidItem if these are not the bytes of a kept picture."""
    size = _size_of_webp(kept) if format_of(kept) == "WEBP" else None
    if size is None or not 1 <= min(size) <= max(size) <= KEPT_PX:
        raise InvalidItem("image", "is kept, but its bytes are not ours. Send the picture again")
    try:
        with Image.open(io.BytesIO(kept), formats=("WEBP",)) as picture:
            return picture.convert("RGB")
    except Exception as error:  # as in keep_picture
        raise InvalidItem(
            "image", f"is kept, but damaged ({_reason(error)}). Send the picture again"
        ) from error


def _check_before_decoding(data: bytes, max_bytes: int, max_pixels: int) -> str:
    """The format's name. Raises InvalidItem for what must not reach the decoder."""
    if not data:
        raise InvalidItem("image", "has no bytes")
    if len(data) > max_bytes:
        raise InvalidItem("image", f"has {len(data)} bytes; {max_bytes} is the limit. Send a smaller picture")
    format_name = format_of(data)
    if format_name is None:
        raise InvalidItem("image", f"is no JPEG, PNG or WebP: its first bytes are {data[:8].hex(' ')}")
    size = _SIZE_OF[format_name](data)
    if size is None:
        raise InvalidItem("image", f"is a broken {format_name} (it does not say its size). Save it again")
    _check_size(size, max_pixels)
    if format_name == "JPEG":
        _check_scans(data, size)
    return format_name


def format_of(data: bytes) -> str | None:
    """The name of the format by the first bytes, of which 12 suffice; None if it is none of FORMATS.

    Neither a file's name nor a Content-Type has a say.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def _check_size(size: _Size, max_pixels: int) -> None:
    if min(size) < 1:
        raise InvalidItem("image", f"is {size.width} x {size.height} pixels, which is empty")
    if size.width * size.height > max_pixels:
        raise InvalidItem(
            "image",
            f"is {size.width} x {size.height} pixels; {max_pixels} pixels are the limit. "
            "Send a smaller picture",
        )


def _check_scans(data: bytes, size: _Size) -> None:
    num_scans = data.count(b"\xff\xda")  # at most too many: metadata may have the same bytes
    if num_scans > MAX_JPEG_SCANS or num_scans * size.width * size.height > MAX_SCANNED_PIXELS:
        raise InvalidItem(
            "image",
            f"is a JPEG of {num_scans} scans, which takes too long to decode. Save it as baseline JPEG",
        )


def _size_of_png(data: bytes) -> _Size | None:
    if data[12:16] != b"IHDR" or len(data) < 24:
        return None
    return _Size(int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))


def _size_of_jpeg(data: bytes) -> _Size | None:
    """The largest size that a frame header before the first scan gives."""
    found: _Size | None = None
    place = 2
    while place + 4 <= len(data):
        if data[place] != 0xFF:  # what Pillow skips too
            place += 1
            continue
        marker = data[place + 1]
        if marker in (0xFF, 0x00) or marker in _STANDALONE:
            place += 1 if marker == 0xFF else 2
            continue
        if marker in (0xDA, 0xD9):
            break
        if marker in _FRAME_HEADERS and place + 9 <= len(data):
            height, width = (int.from_bytes(data[place + i : place + i + 2], "big") for i in (5, 7))
            if found is None or width * height > found.width * found.height:
                found = _Size(width, height)
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return found


def _size_of_webp(data: bytes) -> _Size | None:
    """The size of the canvas, in the container's first chunk (RFC 9649, section 2)."""
    kind, body = data[12:16], data[20:]
    if kind == b"VP8X" and len(body) >= 10:
        return _Size(1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little"))
    if kind == b"VP8 " and len(body) >= 10 and body[3:6] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(body[i : i + 2], "little") & 0x3FFF for i in (6, 8))
        return _Size(width, height)
    if kind == b"VP8L" and len(body) >= 5 and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return _Size(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    return None


_SIZE_OF: dict[str, Callable[[bytes], _Size | None]] = {
    "JPEG": _size_of_jpeg,
    "PNG": _size_of_png,
    "WEBP": _size_of_webp,
}


def _small_and_upright(data: bytes, format_name: str, max_pixels: int) -> Image.Image:
    """Opaque RGB, the first frame, no side longer than KEPT_PX."""
    with Image.open(io.BytesIO(data), formats=(format_name,)) as picture:
        _check_size(_Size(*picture.size), max_pixels)  # Pillow may find another header than we did
        num_frames = getattr(picture, "n_frames", 1)
        if num_frames > MAX_PICTURE_FRAMES:
            raise InvalidItem("image", f"has {num_frames} frames; {MAX_PICTURE_FRAMES} is the limit")
        # A JPEG decodes at half, a quarter or an eighth of its size. Twice the kept size is left.
        picture.draft(None, (2 * KEPT_PX, 2 * KEPT_PX))
        picture.load()
        orientation = _orientation(picture)
        small = _on_white(_shrunk(_eight_bits(picture)))
    turn = _TURN.get(orientation)
    return small if turn is None else small.transpose(turn)


def _orientation(picture: Image.Image) -> int:
    """EXIF's orientation, 1 to 8. A picture with broken metadata is still a picture: upright."""
    try:
        found = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as in keep_picture
        return 1
    return found if isinstance(found, int) else 1


def _eight_bits(picture: Image.Image) -> Image.Image:
    """In one of the modes L, RGB and RGBA. Of 16 bits, the high byte."""
    clear = picture.info.get("transparency")
    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture)  # [row, column]
        if values.dtype != np.uint16:
            values = np.clip(values, 0, 65_535).astype(np.uint16)
        gray = (values >> 8).astype(np.uint8)
        if isinstance(clear, int):
            gray[values == clear] = WHITE
        return Image.fromarray(gray)
    if isinstance(clear, tuple) and max(clear, default=0) > WHITE:  # of a picture of 16 bits
        picture.info["transparency"] = tuple(value >> 8 for value in clear)
    if picture.has_transparency_data:
        return picture.convert("RGBA")
    if picture.mode == "1":
        return picture.convert("L")
    return picture if picture.mode in ("L", "RGB") else picture.convert("RGB")


def _shrunk(picture: Image.Image) -> Image.Image:
    """No side longer than KEPT_PX (Lanczos, after averaging blocks). Pillow weighs colors by their alpha."""
    scale = KEPT_PX / max(picture.size)
    if scale >= 1:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    white = Image.new("RGBA", picture.size, (WHITE, WHITE, WHITE, WHITE))
    return Image.alpha_composite(white, picture).convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its message has only the address of a buffer
        return "it cannot be read"
    first_line = str(error).partition("\n")[0]
    return first_line[:120] if first_line else type(error).__name__
