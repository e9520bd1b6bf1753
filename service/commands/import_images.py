"""The photos of an import: where a line's `image` names a file beside the items, its bytes are posted."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from service.commands.asking import picture
from service.core.image_field import FIELD
from service.core.json_lines import JsonLine

BODY_ROOM = 1_000  # bytes of a body around its items


class Limits(NamedTuple):
    """What the service takes in one request."""

    body_bytes: int
    picture_bytes: int | None  # None: this release of the service keeps no pictures

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> "Limits":
        """The limits in an answer of GET /info."""
        limits = info["limits"]
        return cls(limits["body_bytes"], limits.get("picture_bytes"))


class Prepared(NamedTuple):
    """A line as it is posted."""

    line: JsonLine
    num_bytes: int  # as JSON
    note: str  # why its picture is left out; '' if it is not


def names_a_file(line: JsonLine) -> bool:
    """Whether the line's image is a path, and not a URL or a picture."""
    value = line.value.get(FIELD) if isinstance(line.value, dict) else None
    return isinstance(value, str) and bool(value.strip()) and "://" not in value and value[:5] != "data:"


def with_picture(line: JsonLine, folder: Path, limits: Limits) -> Prepared:
    """The line with the bytes of its picture in place of the path. Without them, the path stays."""
    if not names_a_file(line):
        return Prepared(line, _size(line.value), "")
    if limits.picture_bytes is None:
        return Prepared(line, _size(line.value), "is not sent: this release of the service keeps no pictures")
    named = line.value[FIELD]
    most = min(limits.picture_bytes, (limits.body_bytes - BODY_ROOM - _size(line.value)) * 3 // 4)
    data = _read(folder, named, most)
    if isinstance(data, str):
        return Prepared(line, _size(line.value), f"{named!r} is not sent: {data}")
    value = line.value | {FIELD: picture(data)}
    return Prepared(line._replace(value=value), _size(value), "")


def batches(
    lines: Iterable[JsonLine], folder: Path, limits: Limits | None, num_at_once: int
) -> Iterator[list[Prepared]]:
    """The lines in order, so many in a batch, or fewer if their pictures would not fit into a body.

    `limits` None: no line names a file. Only the pictures of one batch are in memory.
    """
    batch: list[Prepared] = []
    num_bytes = BODY_ROOM
    for line in lines:
        prepared = Prepared(line, 0, "") if limits is None else with_picture(line, folder, limits)
        is_full = limits is not None and num_bytes + prepared.num_bytes > limits.body_bytes
        if batch and (len(batch) == num_at_once or is_full):
            yield batch
            batch, num_bytes = [], BODY_ROOM
        batch.append(prepared)
        num_bytes += prepared.num_bytes
    if batch:
        yield batch


def _read(folder: Path, named: str, most_bytes: int) -> bytes | str:
    """The bytes of a file in the folder, or why they are not read."""
    try:
        path = (folder / named).resolve()
        if not path.is_relative_to(folder.resolve()):
            return "it lies outside the folder of the items"
        if not path.is_file():
            return "there is no such file beside the items"
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, a loop of links, no permission
        return f"it cannot be read ({error})"
    if len(data) > most_bytes:
        return f"it has over {most_bytes} bytes, which the service does not take"
    return data


def _size(value: object) -> int:
    """Bytes of a value as httpx writes it, and a comma."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")) + 1
