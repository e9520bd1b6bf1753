"""The counts of a bundle: the only reader and writer of co_counts.jsonl.gz, for service and export."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from service.core.bundle import CO_COUNTS, Bundle
from service.core.bundle_items import MAX_INFLATION
from service.core.co_counts import CoRow, are_counts
from service.core.json_lines import JsonLinesError, read_json_lines, write_json_lines
from service.errors import ContractMismatch


def bundle_co_counts(bundle: Bundle) -> list[CoRow]:
    """The counts of the training data, one row an item; none if the bundle has no counts.

    Raises ContractMismatch with the line at fault.
    """
    if bundle.manifest.co_counts is None:
        return []
    return read_co_counts(bundle.file(CO_COUNTS), bundle.manifest.co_counts.max_neighbors)


def read_co_counts(path: Path, max_neighbors: int) -> list[CoRow]:
    """The rows of a file, each of at most `max_neighbors`. Raises ContractMismatch with the line at fault."""
    found: dict[str, CoRow] = {}
    try:
        # As for the items: no export unpacks to more.
        max_bytes = MAX_INFLATION * path.stat().st_size if path.is_file() else None
        for number, value in read_json_lines(path, max_bytes=max_bytes, allow_blank=False):
            try:
                row = _row(value, max_neighbors)
                if row.item_id in found:
                    raise ValueError(f"{row.item_id!r} has a row already")
            except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
                raise ContractMismatch(
                    f"{path}:{number}: not a row of counts ({error}). Export again."
                ) from error
            found[row.item_id] = row
    except JsonLinesError as error:
        raise ContractMismatch(
            f"{error.where}: not whole ({error.problem}). Copy it again, or export again."
        ) from error
    return list(found.values())


def write_co_counts(path: Path, rows: Iterable[CoRow]) -> None:
    """Write the rows, one JSON object per line, whole or not at all. The same rows give the same bytes."""
    write_json_lines(path, (row._asdict() for row in rows))


def _row(value: Any, max_neighbors: int) -> CoRow:
    item_id, popularity, neighbors = value["item_id"], float(value["popularity"]), value["neighbors"]
    counts = {other: float(count) for other, count in neighbors.items()}
    if not (isinstance(item_id, str) and item_id and all(counts)):
        raise ValueError("an item id is no text or empty")
    if not are_counts((popularity, *counts.values())):
        raise ValueError("a popularity or a count is not above 0")
    if len(counts) > max_neighbors:
        raise ValueError(f"{len(counts)} neighbors; {max_neighbors} is the limit")
    return CoRow(item_id, popularity, counts)
