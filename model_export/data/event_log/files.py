"""What a file of a table is: text with delimiters, JSON lines or Parquet. Its first bytes tell it."""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model_export.data.dataset import DataError
from model_export.data.jsonl import parse_literal
from service.core.json_lines import GZIP_MAGIC, shown

HEAD_BYTES = 256 * 2**10
HEAD_LINES = 200
PARQUET_MAGIC = b"PAR1"
ARCHIVES = {
    b"PK\x03\x04": ("a zip archive", "unzip"),
    b"\x28\xb5\x2f\xfd": ("packed by zstd", "zstd -d"),
    b"7z\xbc\xaf": ("a 7z archive", "7z x"),
    b"BZh": ("packed by bzip2", "bunzip2"),
    b"\xfd7zXZ": ("packed by xz", "unxz"),
}
BOMS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
DELIMITERS = ("\t", "::", ",", ";", "|")
QUOTED = ",;"  # with the others, a quotation mark is mostly a letter, so cells have to show that it is not
TYPED = re.compile(r"(.+):(token|float|token_seq|float_seq)")  # a cell of RecBole's headers
NOT_A_NAME = re.compile(r"\s*(?:[-+]?[\d.]+(?:[eE][-+]?\d+)?|\d{4}-\d\d-\d\d.*)?\s*")
LATIN_1_FILES = {"u.item", "movies.dat"}  # as GroupLens wrote the older ones; the newer ones are UTF-8


@dataclass(frozen=True)
class TableFile:
    """A file and how to read it."""

    path: Path
    kind: Literal["text", "json", "parquet"]
    columns: tuple[str, ...]
    head: tuple[dict[str, Any], ...] = ()  # the first rows of JSON lines
    rows: tuple[tuple[str, ...], ...] = ()  # the first lines of text, without the header
    delimiter: str = ","
    quote: str = '"'
    header: bool = True
    encoding: str = "utf-8"
    gzipped: bool = False
    literals: bool = False  # Python literals in place of JSON
    nested: str | None = None  # the JSON field with a list of events
    inner: tuple[str, ...] = ()  # the fields of those

    @property
    def description(self) -> str:
        """A few words for the preview."""
        if self.kind == "text":
            name = {",": "CSV", "\t": "TSV"}.get(
                self.delimiter, f"text with {self.delimiter!r} between cells"
            )
            name += "" if self.header else " without a header"
        elif self.kind == "json":
            name = "Python literals" if self.literals else "JSON lines"
            name += f", a list of events in {self.nested!r}" if self.nested else ""
        else:
            name = "Parquet"
        return (
            name
            + (", gzipped" if self.gzipped else "")
            + ("" if self.encoding in ("utf-8", "utf-8-sig") else f", {self.encoding}")
        )


def sniff(
    path: Path, *, names: tuple[str, ...] = (), delimiter: str | None = None, encoding: str | None = None
) -> TableFile:
    """Find out what a file is. `names` are the columns of a text file without a header.

    Raises DataError if the file cannot be read or is no table.
    """
    raw, gzipped, whole = _head(path)
    if raw.startswith(PARQUET_MAGIC):
        return TableFile(path, "parquet", ())
    encoding = encoding or _encoding(path, raw)
    text = _decoded(path, raw, encoding)
    lines = [line + "\n" for line in text.split("\n")]
    if not whole and len(lines) > 1:
        lines = lines[:-1]  # which may be cut
    lines = [line for line in lines if line.strip()][:HEAD_LINES]
    if not lines:
        raise DataError(f"{path}: the file is empty. Give a file with one event or item on each line.")
    start = lines[0].lstrip()
    if start.startswith("{"):
        return _json(path, lines, encoding, gzipped)
    if start.startswith("["):
        raise DataError(
            f"{path}: line 1: is a JSON list. Write one object on each line: jq -c '.[]' {path.name}"
        )
    return _text(path, lines, names, delimiter, encoding, gzipped)


def _head(path: Path) -> tuple[bytes, bool, bool]:
    """The first bytes, unpacked; whether the file is gzipped; whether these bytes are all."""
    try:
        with path.open("rb") as file:
            raw = file.read(HEAD_BYTES)
        gzipped = raw.startswith(GZIP_MAGIC)
        if gzipped:
            with gzip.open(path, "rb") as unpacked:
                raw = unpacked.read(HEAD_BYTES)
    except FileNotFoundError:
        raise DataError(f"{path}: not found. Check the path.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the gzip file is cut off or damaged ({error}). Copy it again.") from None
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be read ({reason}). Check the path and its permissions.") from None
    for magic, (what, program) in ARCHIVES.items():
        if raw.startswith(magic):
            raise DataError(f"{path}: is {what}. Unpack it first: {program} {path.name}")
    return raw, gzipped, len(raw) < HEAD_BYTES


def _encoding(path: Path, raw: bytes) -> str:
    if (by_bom := next((name for bom, name in BOMS.items() if raw.startswith(bom)), None)) is not None:
        return by_bom
    if path.name.removesuffix(".gz") in LATIN_1_FILES:
        try:
            codecs.getincrementaldecoder("utf-8")().decode(raw)
        except UnicodeDecodeError:
            return "latin-1"
    return "utf-8-sig"


def _decoded(path: Path, raw: bytes, encoding: str) -> str:
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(raw)  # the last character may be cut
    except LookupError:
        raise DataError(f"--encoding {encoding}: Python knows no such encoding. Try latin-1.") from None
    except UnicodeDecodeError as error:
        if b"\0" in raw:
            raise _no_table(path) from None
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}: line {line}: not {encoding.removesuffix('-sig')}. Name the encoding of the file, for "
            "example --encoding latin-1."
        ) from None
    if "\0" in text:
        raise _no_table(path)
    return text


def _no_table(path: Path) -> DataError:
    return DataError(f"{path}: is neither text nor Parquet. Give CSV, TSV, JSON lines or Parquet.")


def _json(path: Path, lines: list[str], encoding: str, gzipped: bool) -> TableFile:
    head: list[dict[str, Any]] = []
    literals = False
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        try:
            record = json.loads(text)
        except ValueError:
            try:
                record, literals = parse_literal(text), True
            except ValueError as error:
                raise DataError(
                    f"{path}: line {number}: not JSON ({error}): {shown(text)}. Write one object a line."
                ) from None
        if not isinstance(record, dict):
            raise DataError(f"{path}: line {number}: {shown(record)} is not an object. Write {{...}}.")
        head.append(record)
    columns = dict.fromkeys(str(name) for record in head for name in record)
    nested = next((name for name in columns if any(_has_events(record.get(name)) for record in head)), None)
    inner: dict[str, None] = {}
    if nested is not None:
        inner = dict.fromkeys(
            name
            for record in head
            for event in record.get(nested) or []
            if isinstance(event, dict)
            for name in event
        )
        del columns[nested]
    return TableFile(
        path,
        "json",
        (*columns, *inner),
        head=tuple(head),
        encoding=encoding,
        gzipped=gzipped,
        literals=literals,
        nested=nested,
        inner=tuple(inner),
    )


def _has_events(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict) for part in value)


def _text(
    path: Path,
    lines: list[str],
    names: tuple[str, ...],
    delimiter: str | None,
    encoding: str,
    gzipped: bool,
) -> TableFile:
    delimiter = delimiter or _delimiter(lines)
    cells = (cell for row in _cells(lines, delimiter, "") for cell in row)
    quote = '"' if delimiter in QUOTED or any(re.fullmatch('".*"', cell) for cell in cells) else ""
    rows = _cells(lines, delimiter, quote)
    first = rows[0]
    header = not names and _is_header(first)
    if names:
        columns = names
        if len(names) != len(first):
            raise DataError(
                f"{path}: line 1: has {len(first)} columns, but --columns names {len(names)}. Name them all."
            )
    elif header:
        columns = tuple(
            (typed[1] if (typed := TYPED.fullmatch(name.strip())) else name.strip()) or f"column_{place}"
            for place, name in enumerate(first, start=1)
        )
        twice = next((name for place, name in enumerate(columns) if name in columns[:place]), None)
        if twice is not None:
            raise DataError(f"{path}: line 1: the column {twice!r} occurs twice. Rename one of the two.")
    else:
        columns = tuple(f"column_{place}" for place in range(1, len(first) + 1))
    return TableFile(
        path,
        "text",
        columns,
        rows=tuple(rows[1:] if header else rows),
        delimiter=delimiter,
        quote=quote,
        header=header,
        encoding=encoding,
        gzipped=gzipped,
    )


def _is_header(cells: tuple[str, ...]) -> bool:
    """Names are neither numbers nor dates. The first may be empty, as pandas writes it."""
    first, *others = cells
    return not any(map(NOT_A_NAME.fullmatch, others)) and not (first.strip() and NOT_A_NAME.fullmatch(first))


def _delimiter(lines: list[str]) -> str:
    """The one that gives most lines as many cells as the first line, and as many as possible."""
    best, best_rank = ",", (False, 1)
    for delimiter in DELIMITERS:
        counts = [len(row) for row in _cells(lines, delimiter, '"' if delimiter in QUOTED else "")]
        rank = (counts[0] > 1 and counts.count(counts[0]) > 0.6 * len(counts), counts[0])
        if rank > best_rank:
            best, best_rank = delimiter, rank
    return best


def _cells(lines: list[str], delimiter: str, quote: str) -> list[tuple[str, ...]]:
    if len(delimiter) > 1 or not quote:
        return [tuple(line.rstrip("\r\n").split(delimiter)) for line in lines]
    return [tuple(row) for row in csv.reader(io.StringIO("".join(lines)), delimiter=delimiter) if row]
