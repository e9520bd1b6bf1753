"""JSON lines, plain or gzipped: the only reader and the only writer.

The reader limits the size of lines and files. It refuses values that JSON does not allow or that cannot be
written again: NaN, infinite numbers, half of a surrogate pair. Each error names file, line and remedy.
"""

import codecs
import gzip
import io
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn, cast

from service.core.strict_json import strict_json
from service.core.whole_files import write_whole
from service.errors import GlyphrecError

GZIP_MAGIC = b"\x1f\x8b"
MAX_LINE_BYTES = 16 * 2**20
MAX_SHOWN = 60  # characters of a wrong value that a message repeats
JSON_SPACE = " \t\r\n"


class JsonLine(NamedTuple):
    """One parsed line and its number, for error messages."""

    number: int  # from 1, as editors count; blank lines count too
    value: Any


class JsonLinesError(GlyphrecError):
    """A file of JSON lines that cannot be read."""

    def __init__(self, path: Path, number: int | None, problem: str, remedy: str) -> None:
        self.path, self.number, self.problem, self.remedy = path, number, problem, remedy
        super().__init__(f"{self.where}: {problem}. {remedy}")

    @property
    def where(self) -> str:
        """`path:line`, or only the path if the error is not about one line."""
        return f"{self.path}" if self.number is None else f"{self.path}:{self.number}"


class FileUnreadable(JsonLinesError):
    """The file is missing, may not be read, or is a damaged archive."""


class LineTooLong(JsonLinesError):
    """A line, or the whole file, has more bytes than any such file has."""


class LineNotJson(JsonLinesError):
    """A line is not one JSON value."""


def read_json_lines(
    path: Path,
    *,
    max_bytes: int | None = None,
    allow_blank: bool = True,
    parse: Callable[[str], Any] | None = None,
) -> Iterator[JsonLine]:
    """The values of a file, in order. An archive is known by its first bytes, whatever its name.

    `max_bytes` bounds the unpacked file. Blank lines are skipped, unless they are errors; so is a byte order
    mark at the start of a line. `parse` stands in for `parse_json`, and raises ValueError as it does. Raises
    JsonLinesError.
    """
    number, left = 0, math.inf if max_bytes is None else max_bytes
    try:
        with path.open("rb") as raw, _unpacked(raw) as file:
            while line := file.readline(int(min(left, MAX_LINE_BYTES)) + 1):
                number += 1
                left -= len(line)
                if left < 0:
                    raise LineTooLong(path, number, f"the file has over {max_bytes} bytes", "Make it again.")
                if len(line) > MAX_LINE_BYTES:
                    raise LineTooLong(path, number, f"over {MAX_LINE_BYTES} bytes", "Split it.")
                text = _decode(path, number, line)
                if text:
                    yield JsonLine(number, _parse(path, number, text, parse or parse_json))
                elif not allow_blank:
                    raise LineNotJson(path, number, "a blank line", "Take it out.")
    except FileNotFoundError:
        raise FileUnreadable(path, None, "not found", "Check the path.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        problem = f"the gzip file is cut off or damaged ({error})"
        raise FileUnreadable(path, number + 1, problem, "Copy it again.") from None
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise FileUnreadable(path, None, problem, "Check the path and its permissions.") from None


def write_json_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Write a gzipped file, whole or not at all. The same values give the same bytes."""

    def write(partial: Path) -> None:
        with partial.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
            for value in values:
                file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")

    write_whole(path, write)


def parse_json(text: str, *, strict: bool = False) -> Any:
    """One JSON value. Raises ValueError, also for what Python reads but nothing can write as JSON.

    `strict` refuses what the API refuses, too; see strict_json.py. It is slower.
    """
    try:
        value = strict_json(text) if strict else _DECODER.decode(text)
        if "\\u" in text:  # an escape can be half of a surrogate pair, which cannot be written again
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a \\u escape is half of a surrogate pair; write the character itself") from None
    except RecursionError as error:
        raise ValueError(str(error)) from None
    return value


def shown(value: object) -> str:
    """A wrong value as a message repeats it: cut, on one line."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


def _unpacked(raw: io.BufferedReader) -> IO[bytes]:
    if raw.peek(len(GZIP_MAGIC))[: len(GZIP_MAGIC)] != GZIP_MAGIC:
        return raw
    # Line by line a gzip file is slow by itself.
    return io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=raw)))


def _decode(path: Path, number: int, line: bytes) -> str:
    try:
        text = line.decode("utf-8-sig")  # a file may be several ones, each with its byte order mark
    except UnicodeDecodeError as error:
        is_utf_16 = number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        problem = "not UTF-8 but UTF-16" if is_utf_16 else f"not UTF-8 (byte {error.start + 1})"
        raise LineNotJson(path, number, problem, "Save the file as UTF-8.") from None
    return text.strip(JSON_SPACE)


def _parse(path: Path, number: int, text: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        problem = f"not JSON ({error}): {shown(text)}"
        remedy = "Write one whole JSON value a line."
        if number == 1 and text.startswith(("[", "{")):  # a list or an object over several lines
            remedy = (
                f"Write one whole JSON value a line: jq -c '{'.[]' if text[0] == '[' else '.'}' {path.name}"
            )
        raise LineNotJson(path, number, problem, remedy) from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large for a number")
    return value


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)
