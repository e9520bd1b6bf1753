"""JSON lines of data: one object a line, with the fields it needs. Errors name file, line and remedy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from model_export.data.dataset import DataError
from service.core.json_lines import JsonLinesError, read_json_lines, shown


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
    try:
        for number, value in read_json_lines(path):
            line = Line(path, number, value)
            if not isinstance(value, dict):
                raise line.wrong(f"{shown(value)} is not an object. Write one {{...}} a line.")
            yield line
    except JsonLinesError as error:
        where = path if error.number is None else f"{path}: line {error.number}"
        raise DataError(f"{where}: {error.problem}. {error.remedy}") from None
