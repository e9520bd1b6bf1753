"""Amazon reviews and product metadata (McAuley Lab): raw lines in the layout of 2014, 2018 or 2023.

A review counts as a purchase. Reviews of products without metadata or without text are left out. If a user
reviews a product several times, only the first review counts. Then users and products with fewer than `core`
reviews are removed, repeatedly, until none has fewer. The times of 2014 and 2018 are days, so there are ties.
events.py explains how ties are ordered.
"""

from array import array
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Container, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model_export.data.amazon_products import is_product, product, product_id
from model_export.data.dataset import DataError, Dataset, Item, make_dataset
from model_export.data.events import Events, first_of_each, histories, in_order, k_core
from model_export.data.jsonl import Line, parse_literal, read_lines
from service.core.bundle import RenderSpec
from service.core.json_lines import GZIP_MAGIC, shown
from service.core.render import item_text

DEFAULT_CORE = 5


class Reviews(NamedTuple):
    """The field names of a review."""

    item: str
    user: str
    time: str


# 2023 comes first, because its reviews may also have the fields of the older ones.
LAYOUTS = {
    "2023": Reviews("parent_asin", "user_id", "timestamp"),
    "2014 and 2018": Reviews("asin", "reviewerID", "unixReviewTime"),
}


def read_amazon(reviews: Path, metadata: Path, core: int = DEFAULT_CORE) -> Dataset:
    """Read a file of reviews and a file of metadata in any layout. Both may be gzipped.

    Raises DataError if a file is not readable or not in a known layout, or if no review remains.
    """
    if _starts_without_brace(reviews):
        raise DataError(
            f"{reviews}: is no raw file of reviews. A table of ratings is read as events:{reviews},{metadata}"
        )
    left_out: Counter[str] = Counter()
    user_of: dict[str, int] = {}
    item_of: dict[str, int] = {}
    user, item, time = array("q"), array("q"), array("q")
    for line, names in _with_layout(reviews):
        user.append(user_of.setdefault(line.text(names.user), len(user_of)))
        item.append(item_of.setdefault(line.text(names.item), len(item_of)))
        time.append(_whole_number(line, names.time))
    events = Events(np.array(user, np.int64), np.array(item, np.int64), np.array(time, np.int64))

    described = described_products(metadata, item_of, left_out)
    has_text = np.array([item_id in described for item_id in item_of], dtype=bool)
    left_out["reviews of products without metadata or text"] = int(np.count_nonzero(~has_text[events.item]))
    events = events.where(has_text[events.item])

    users, item_ids = list(user_of), list(item_of)
    num_reviews = len(events)
    events = first_of_each(in_order(events, users, item_ids))
    left_out["later reviews of a product by the same user"] = num_reviews - len(events)
    in_core = k_core(events, core)
    left_out[f"reviews outside the {core}-core"] = int(np.count_nonzero(~in_core))
    events = events.where(in_core)

    present_items, item_index = np.unique(events.item, return_inverse=True)
    present_users, user_index = np.unique(events.user, return_inverse=True)
    items = [described[item_ids[old]] for old in present_items]
    kept = Events(user_index, item_index, events.time)
    if not len(kept):
        raise DataError(
            f"{reviews}: none of the {num_reviews:,} reviews of described products is in the {core}-core. "
            f"Ask for a smaller core, or check that {metadata} describes the same products."
        )
    return make_dataset(
        "amazon-" + reviews.name.split(".")[0].lower(),
        items,
        histories(kept, [users[old] for old in present_users]),
        left_out,
    )


def described_products(metadata: Path, wanted: Container[str], left_out: Counter[str]) -> dict[str, Item]:
    """The products of `wanted` that have text, by id. Repeated lines are counted in `left_out`.

    Raises DataError if the file is not readable or not in a known layout.
    """
    described: dict[str, Item] = {}
    line = None
    for line in read_lines(metadata, parse_literal):
        if not is_product(line.record):
            raise line.wrong(
                f"has no 'asin' or 'parent_asin', but {shown(list(line.record))}. Give the raw metadata."
            )
        item_id = product_id(line)
        if item_id not in wanted:
            continue
        if item_id in described:
            left_out["repeated metadata lines"] += 1
            continue
        item = product(line)
        if item_text(item, RenderSpec()):
            described[item_id] = item
    if line is None:
        raise DataError(f"{metadata}: the file is empty. Give the raw file.")
    return described


def _with_layout(path: Path) -> Iterator[tuple[Line, Reviews]]:
    """Yield each line with the field names of its file's layout. The first line decides the layout."""
    names = None
    for line in read_lines(path, parse_literal):
        if names is None:
            names = next(
                (found for found in LAYOUTS.values() if all(name in line.record for name in found)), None
            )
        if names is None:
            known = " or ".join(f"{'+'.join(found)} ({years})" for years, found in reversed(LAYOUTS.items()))
            raise line.wrong(
                f"has fields of no known layout: {shown(list(line.record))} instead of {known}. "
                "Give the raw file."
            )
        yield line, names
    if names is None:
        raise DataError(f"{path}: the file is empty. Give the raw file.")


def _starts_without_brace(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError:
        return False  # the reader has the words for it
    return not start.startswith(GZIP_MAGIC) and start.removeprefix(BOM_UTF8).strip()[:1] not in (b"{", b"")


def _whole_number(line: Line, field: str) -> int:
    value = line.record.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**63:
        raise line.wrong(f"{field!r} is {shown(value)}, which is not a whole number. Give the raw file.")
    return value
