"""The lines of a text file as Python reads them, for what the engine cannot read itself."""

import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

from model_export.data.dataset import DataError
from model_export.data.event_log.files import TableFile
from model_export.data.jsonl import parse_literal
from service.core.json_lines import shown


@contextmanager
def unpacked(file: TableFile) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked."""
    with gzip.open(file.path, "rb") if file.gzipped else file.path.open("rb") as source:
        yield cast(IO[bytes], source)


def decoded_lines(file: TableFile, source: IO[bytes]) -> Iterator[tuple[int, str]]:
    """Each line with its number, counted from 1. Raises DataError where the encoding is another."""
    try:
        number = 0
        # A line ends at a line feed and at none of the other signs that Unicode has for it.
        with io.TextIOWrapper(source, encoding=file.encoding, newline="\n") as text:
            for number, line in enumerate(text, start=1):
                yield number, line
    except UnicodeDecodeError:
        raise DataError(
            f"{file.path}: line {number + 1}: not {file.encoding}. Name the right --encoding."
        ) from None


def as_json(file: TableFile, number: int, line: str) -> str:
    """A line of JSON or of a Python literal as a line of JSON. Raises DataError if it is neither."""
    text = line.strip()
    if not text:
        return "\n"
    try:
        value = parse_literal(text)
        if not isinstance(value, dict):
            raise ValueError("no object")
        return json.dumps(value) + "\n"
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{file.path}: line {number}: neither JSON nor a Python literal ({error}): {shown(text)}. "
            "Write one object on each line."
        ) from None


def damaged(file: TableFile) -> DataError:
    """The error for a gzip file that does not unpack."""
    return DataError(f"{file.path}: the gzip file is cut off or damaged. Copy it again.")
