"""Small files that say or unpack to much more than they are."""

import struct
import zlib

from tests.service.core.photos import drawn, photo, written


def png_of(width: int, height: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG that says this size, with other chunks after its head."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", head), *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with_much_text() -> bytes:
    """Its compressed text unpacks to 64 MiB."""
    return png_of(4, 4, b"\x00" * 13 * 4, chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(bytes(2**26), 9)))


def webp_canvas(width: int, height: int) -> bytes:
    """A tiny picture on a canvas that is said to be large."""
    small = written(drawn(0, (4, 4)), "WEBP")[12:]
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<II", 10, 0) + sides + small
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg_of(width: int, height: int) -> bytes:
    """A tiny JPEG whose head says another size."""
    data = photo(0, "JPEG", (8, 8))
    place = data.index(b"\xff\xc0")
    return data[: place + 5] + struct.pack(">HH", height, width) + data[place + 9 :]


def jpeg_of_scans(num_scans: int, size: tuple[int, int] = (64, 64)) -> bytes:
    """A progressive JPEG with so many scans, each of which touches every pixel."""
    data = written(drawn(0, size), "JPEG", progressive=True, quality=1)
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * (num_scans - data.count(b"\xff\xda")) + data[-2:]


def too_large() -> list[bytes]:
    """Files that say more pixels than are allowed."""
    return [
        png_of(60_000, 60_000, bytes(2**24)),
        png_of(2**31 - 1, 2**31 - 1, b""),
        webp_canvas(16_000, 16_000),
        jpeg_of(65_000, 65_000),
    ]
