"""The engine's errors as one sentence: with the file, the line and a remedy."""

import csv
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from model_export.data.dataset import DataError
from model_export.data.event_log.files import TableFile
from model_export.data.event_log.lines import damaged, decoded_lines, unpacked
from model_export.data.jsonl import parse_literal, read_lines

MEMORY_LIMIT = "1GB"  # of the engine; the arrays of the events come on top of it
CSV_LINE = re.compile(r"CSV Error on Line: (\d+)")
CELLS = re.compile(r"Expected Number of Columns: (\d+) Found: (\d+)")


@contextmanager
def errors_of(table: list[TableFile]) -> Iterator[None]:
    """Turn the engine's errors about the files of `table` into DataError."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        message = str(error)
        if isinstance(error, duckdb.OutOfMemoryException) or "No space left" in message:
            raise DataError(
                f"{table[0].path}: reading needs more space than there is in memory ({MEMORY_LIMIT}) and in "
                f"{tempfile.gettempdir()} ({_first_line(message)}). Set TMPDIR to a larger disk."
            ) from None
        raise _explained(message, table) from None


def place_of(file: TableFile, row: int) -> str:
    """The place of a row, counted from 1, as an editor counts."""
    if file.kind == "parquet":
        return f"row {row}"
    seen = 0
    with unpacked(file) as source:
        lines = decoded_lines(file, source)
        if file.kind == "text" and file.quote:
            reader = csv.reader((line for _, line in lines), delimiter=file.delimiter)
            rows = ((reader.line_num, cells) for cells in reader)
        else:
            rows = ((number, line.strip()) for number, line in lines)  # type: ignore[misc]
        for number, content in rows:
            if not content:
                continue
            if file.nested is not None:
                seen += len(parse_literal(cast(str, content)).get(file.nested) or [])
            else:
                seen += 1
            if seen >= row + (file.kind == "text" and file.header):
                return f"line {number}"
    return f"row {row}"


def _explained(message: str, table: list[TableFile]) -> DataError:
    """The engine's error in one line, with the file, the line and a remedy."""
    file = next((file for file in table if str(file.path) in message), table[0])
    if "gzip" in message.lower():
        return damaged(file)
    if file.kind == "parquet":
        return DataError(
            f"{file.path}: not a whole Parquet file ({_first_line(message)}). Write the file again."
        )
    if file.kind == "json" and not file.literals:
        try:
            for _ in read_lines(file.path):
                pass
        except DataError as error:
            return error
    line = CSV_LINE.search(message)
    where = f"{file.path}: line {line[1]}" if line else f"{file.path}"
    if cells := CELLS.search(message):
        expected, found = int(cells[1]), int(cells[2])  # it stops counting at the first that is too many
        count = f"{found} of {expected}" if found < expected else f"more than {expected}"
        return DataError(
            f"{where}: has {count} cells. Correct the line, or put quotation marks around "
            "cells that hold the delimiter."
        )
    if "unicode" in message.lower() or "utf-8 encoded" in message:
        return DataError(
            f"{where}: not UTF-8. Name the encoding of the file, for example --encoding latin-1."
        )
    if "quote" in message.lower() and line:
        return DataError(f"{where}: a quotation mark is not closed. Close it, or double it inside a cell.")
    return DataError(
        f"{where}: cannot be read ({_first_line(message, skip='CSV Error on Line')}). Correct the file."
    )


def _first_line(message: str, skip: str = "\0") -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip() and skip not in line]
    return lines[0].partition("Error: ")[2] or lines[0] if lines else "no reason given"
