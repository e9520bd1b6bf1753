"""JSON lines, plain or gzipped, one object at a time. Whatever is wrong is said with file, line, remedy."""

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from model_export.data.dataset import DataError

GZIP_MAGIC = b"\x1f\x8b"
MAX_SHOWN = 60  # characters of a wrong value that a message repeats


class Line(NamedTuple):
    path: Path
    number: int  # from 1, as editors count
    record: dict[str, Any]

    def wrong(self, problem: str) -> DataError:
        return DataError(f"{self.path}: line {self.number}: {problem}")

    def text(self, field: str) -> str:
        """The non-empty string at `field`."""
        if field not in self.record:
            raise self.wrong(
                f"has no {field!r}. Every line needs one; this one has {shown(list(self.record))}."
            )
        value = self.record[field]
        if not isinstance(value, str):
            raise self.wrong(f"{field!r} is {shown(value)}, which is not a string. Write it in quotes.")
        if not value.strip():
            raise self.wrong(f"{field!r} is empty. Give every line a name of its own.")
        return value


def read_lines(path: Path) -> Iterator[Line]:
    """The objects of a file, in order. Blank lines and a byte order mark are passed over."""
    number = 0
    try:
        with _open(path) as file:
            for number, raw in enumerate(file, start=1):
                if line := _parse(path, number, raw):
                    yield line
    except FileNotFoundError:
        raise DataError(f"{path}: not found. Check the path.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: line {number + 1}: the gzip file is cut off or damaged ({error}). Copy it again."
        ) from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}). Check the path and its permissions."
        ) from None


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a gzipped file, whole or not at all. The same records give the same bytes."""
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    os.replace(unfinished, path)


def shown(value: object) -> str:
    """A wrong value as a message repeats it: cut, on one line."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    if packed:
        return gzip.open(path, "rb")  # type: ignore[return-value]  # it reads as IO does
    return path.open("rb")


def _parse(path: Path, number: int, raw: bytes) -> Line | None:
    where = f"{path}: line {number}"
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 (byte {error.start + 1}). Save the file as UTF-8.") from None
    if not text:
        return None
    try:
        record = json.loads(text, parse_constant=_refuse_constant)
        if "\\u" in text:  # an escape can hold half a character, which nothing can write again
            json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{where}: a \\u escape is half of a surrogate pair. Write the character itself."
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: not JSON ({error}): {shown(text)}. Write one whole JSON object a line."
        ) from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: {shown(record)} is not an object. Write one {{...}} a line.")
    return Line(path, number, record)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")
