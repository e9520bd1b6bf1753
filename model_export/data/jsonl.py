"""Read JSON lines: one object on each line. Errors name the file, the line and a remedy."""

import ast
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from model_export.data.dataset import DataError
from service.core.json_lines import JsonLinesError, parse_json, read_json_lines, shown


class Line(NamedTuple):
    """One object of a file."""

    path: Path
    number: int  # counted from 1, as in editors
    record: dict[str, Any]

    def wrong(self, problem: str) -> DataError:
        """The error for a problem in this line. `problem` should end with a remedy."""
        return DataError(f"{self.path}: line {self.number}: {problem}")

    def text(self, field: str) -> str:
        """The string at `field`. Raises DataError if it is missing, empty or not a string."""
        if field not in self.record:
            raise self.wrong(
                f"has no {field!r}. Every line needs one, but this line has {shown(list(self.record))}."
            )
        value = self.record[field]
        if not isinstance(value, str):
            raise self.wrong(f"{field!r} is {shown(value)}, which is not a string. Write it in quotes.")
        if not value.strip():
            raise self.wrong(f"{field!r} is empty. Give every line a unique name.")
        return value


def read_lines(path: Path, parse: Callable[[str], Any] = parse_json) -> Iterator[Line]:
    """Yield the objects of a file in order. Blank lines and a byte order mark are skipped.

    `parse` may also be `parse_literal`. Raises DataError at a line that is not an object.
    """
    try:
        for number, value in read_json_lines(path, parse=parse):
            line = Line(path, number, value)
            if not isinstance(value, dict):
                raise line.wrong(f"{shown(value)} is not an object. Write one {{...}} on each line.")
            yield line
    except JsonLinesError as error:
        where = path if error.number is None else f"{path}: line {error.number}"
        raise DataError(f"{where}: {error.problem}. {error.remedy}") from None


def parse_literal(text: str) -> Any:
    """One value in JSON or, as in Amazon's files of 2014, as a Python literal. Raises ValueError.

    A Python literal is read without running anything.
    """
    try:
        return parse_json(text)
    except ValueError as error:
        problem = error
    if not text.startswith("{"):
        raise problem
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # backslashes that Python finds odd
            value = ast.literal_eval(text)
        json.dumps(
            value, ensure_ascii=False, allow_nan=False
        ).encode()  # it must be possible to write it again
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise problem from None
    return value
