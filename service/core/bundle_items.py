"""The items of a bundle with their codes: the only reader of items.jsonl.gz, for service and export."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from service.core.bundle import ITEMS, Bundle
from service.core.json_lines import FileUnreadable, JsonLinesError, LineTooLong, read_json_lines
from service.core.sid import Codes, SidSpec
from service.core.vectors import from_text
from service.errors import ContractMismatch

# No export unpacks to more: catalogs shrink to a tenth, the emptiest lines to a hundredth.
MAX_INFLATION = 200


class BundledItem(NamedTuple):
    """One line of items.jsonl.gz. The store assigns slots itself, so the line's slot is not read."""

    item_id: str
    codes: Codes
    popularity: float  # interactions in the training data
    item: dict[str, Any]
    vector: bytes = b""  # see core/vectors.py; empty in bundles of older releases


def bundle_items(bundle: Bundle) -> list[BundledItem]:
    """The catalog that was exported. Raises ContractMismatch with the line at fault."""
    manifest = bundle.manifest
    return read_items(bundle.file(ITEMS), manifest.sid, manifest.num_items, manifest.vector_dim)


def read_items(path: Path, spec: SidSpec, num_items: int, vector_dim: int) -> list[BundledItem]:
    """The `num_items` lines of a file. Raises ContractMismatch with the line at fault."""
    found: list[BundledItem] = []
    try:
        for number, value in read_json_lines(path, max_bytes=_max_bytes(path), allow_blank=False):
            where = f"{path}:{number}"
            if len(found) == num_items:
                raise ContractMismatch(f"{where}: more items than the manifest's {num_items}. Export again.")
            found.append(_item_at(where, value, spec, vector_dim))
    except FileUnreadable as error:
        raise ContractMismatch(
            f"{path}: not whole after {len(found)} items ({error.problem}). Copy it again, or export again."
        ) from error
    except LineTooLong as error:
        raise ContractMismatch(
            f"{error.where}: inflates to more than any catalog does ({error.problem}). Export again."
        ) from error
    except JsonLinesError as error:
        raise ContractMismatch(
            f"{error.where}: not an item of a bundle ({error.problem}). Export again."
        ) from error
    if len(found) != num_items:
        raise ContractMismatch(f"{path}: {len(found)} items, manifest says {num_items}. Export again.")
    return found


def parse_item(value: Any, spec: SidSpec, vector_dim: int) -> BundledItem:
    """A line's value as an item. A line without a vector gives an item without one.

    Raises ValueError where it is no item with codes of these levels, or its vector is of another length.
    """
    try:
        item_id, codes, popularity = value["item_id"], tuple(value["codes"]), float(value["popularity"])
        spec.check(codes)
        if not all(type(code) is int for code in codes):
            raise ValueError("a code is no whole number")
        if not (isinstance(item_id, str) and item_id and math.isfinite(popularity)):
            raise ValueError("its item_id or popularity is none")
        vector = b"" if value.get("vector") is None else from_text(value["vector"])
        if len(vector) not in (0, vector_dim):
            raise ValueError(f"its vector has {len(vector)} bytes, and those of the tokenizer {vector_dim}")
        return BundledItem(item_id, codes, popularity, {**value["item"], "item_id": item_id}, vector)
    except KeyError as error:
        raise ValueError(f"it has no {error}") from error
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error


def _item_at(where: str, value: Any, spec: SidSpec, vector_dim: int) -> BundledItem:
    try:
        return parse_item(value, spec, vector_dim)
    except ValueError as error:
        raise ContractMismatch(f"{where}: not an item of a bundle ({error}). Export again.") from error


def _max_bytes(path: Path) -> int | None:
    """None where there is no file; the reader says so."""
    try:
        return MAX_INFLATION * path.stat().st_size
    except OSError:
        return None
