"""Which fields and values of a catalog get numbers, which fields are the default, and clear refusals."""

import numpy as np
import pytest

from model_export.data.item_fields import (
    default_fields,
    first_categories,
    levels_of,
    read_fields,
    tells_apart,
)
from service.core.item_fields import UNKNOWN
from service.errors import GlyphrecError


def item(number: int, brand: str = "", *categories: str, **others) -> dict:
    return {"item_id": str(number), "brand": brand, "categories": list(categories), **others}


ITEMS = [
    item(0, "Acme", "Tools", "Tapes", "Adhesives & Sealants", "Duct", colors=["red", "blue"], size=3),
    item(1, "acme ", "Tools", "Tapes", "Adhesives & Sealants", "Duct", colors=["red", "blue"], size=3),
    item(2, "Zenith", "Tools", "Tapes", "Adhesives & Sealants", "Masking", colors=["red"], size=4),
    item(3, "Bolt", "Tools", "Screws", "Wood", colors=["red"], size=4),
    item(4, "Bolt", "Tools", "Screws", "Wood", size=None),
    item(5, "", "Tools", "Nails", "Wood"),
]


def numbers(name: str, items=ITEMS) -> list[int]:
    return read_fields(items, [name]).numbers[:, 1].tolist()


def test_the_item_itself_comes_first_and_the_known_ones_have_numbers_of_their_own():
    found = read_fields(ITEMS, ["brand"])
    assert found.vocabulary.names == ("item_id", "brand")
    assert found.vocabulary.num_values == (7, 3)
    assert found.numbers[:, 0].tolist() == [1, 2, 3, 4, 5, 6]
    some = read_fields(ITEMS, ["brand"], np.array([True, False, True, False, False, True]))
    assert some.numbers[:, 0].tolist() == [1, UNKNOWN, 2, UNKNOWN, UNKNOWN, 3]


def test_rare_and_absent_values_are_unknown():
    assert numbers("brand") == [1, 1, UNKNOWN, 2, 2, UNKNOWN], "spelling and spaces do not matter"
    assert numbers("size") == [1, 1, 2, 2, UNKNOWN, UNKNOWN]
    assert sorted(numbers("colors")) == [UNKNOWN, UNKNOWN, 1, 1, 2, 2]


def test_a_level_is_the_path_to_it_and_torn_names_are_one_level():
    assert numbers("categories.2") == [2, 2, 2, 1, 1, UNKNOWN]
    assert numbers("categories.3") == [1, 1, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN]
    with pytest.raises(GlyphrecError, match="no item has the field 'categories.4'"):
        numbers("categories.4")


def test_a_node_is_one_level_with_its_only_child_unless_items_end_there():
    paths = [("a", "b", "c"), ("a", "b", "d"), ("a", "e", "f", "g"), ("h", "i"), ("h",)]
    assert levels_of(paths) == {
        ("a",): 1, ("a", "b"): 2, ("a", "b", "c"): 3, ("a", "b", "d"): 3,
        ("a", "e"): 2, ("a", "e", "f"): 2, ("a", "e", "f", "g"): 2,
        ("h",): 1, ("h", "i"): 2,
    }  # fmt: skip
    assert levels_of([]) == {}


def test_every_name_of_a_joined_level_is_known_so_a_new_name_below_it_is_no_surprise():
    vocabulary = read_fields(ITEMS, ["categories.2"]).vocabulary
    for path in (
        ["Tools", "Tapes"],
        ["Tools", "Tapes", "Others"],
        ["Tools", "Tapes", "Adhesives & Sealants"],
    ):
        assert vocabulary.read({"categories": path}).tolist() == [UNKNOWN, 2]


def test_by_default_fields_tell_items_apart_and_most_items_have_them():
    assert default_fields(ITEMS) == ["brand", "categories.2", "categories.3"], "level 1 is the same for all"
    assert default_fields([item(number) for number in range(4)]) == []
    assert default_fields([item(0, "Acme"), item(1, "Bolt"), item(2), item(3), item(4)]) == []
    deep = [item(n, "", *(f"{level}-{(n + level) % 2}" for level in range(6))) for n in range(8)]
    assert default_fields(deep) == ["categories.1"], "below, each node has one child"
    wide = [item(n, "", *(f"{level}-{n >> level & 1}" for level in range(6))) for n in range(64)]
    assert default_fields(wide) == ["categories.1", "categories.2", "categories.3"]


def test_the_category_of_an_item_is_its_node_on_the_first_level_that_tells_items_apart():
    assert first_categories(ITEMS).tolist() == [2, 2, 2, 1, 1, 0]
    without = [{**each, "categories": []} for each in ITEMS]
    assert first_categories(without).tolist() == [0, 0, 2, 1, 1, -1], "by the brand"
    assert first_categories([{"item_id": "a"}, {"item_id": "b"}]).tolist() == [-1, -1]


def test_a_field_can_be_a_code_if_it_tells_items_apart():
    assert tells_apart(ITEMS, "category")
    assert tells_apart(ITEMS, "brand")
    assert not tells_apart(ITEMS, "maker")
    assert not tells_apart(ITEMS[:1] * 3, "category")
    assert not tells_apart([{"item_id": "a"}, {"item_id": "b"}], "category")


def test_a_further_field_is_a_default_if_its_values_come_again_and_again():
    items = [
        item(n, tone=f"tone {n % 4}", parts=["a", f"{n % 3}"], sku=f"sku {n // 2}", price=n % 2, note="all")
        for n in range(40)
    ]
    assert default_fields(items) == ["parts", "tone"]
    assert "tone" not in default_fields(items[:30]), "fewer than ten items for each value"


@pytest.mark.parametrize(
    ("name", "why"),
    [("maker", "no item has"), ("categories.1", "all items share"), ("categories.0", "no item has")],
)
def test_a_field_that_says_nothing_is_refused(name, why):
    with pytest.raises(GlyphrecError, match=f"{why}.*{name}.*'brand' or 'categories.2'"):
        numbers(name)


def test_the_order_of_the_items_does_not_change_the_numbers_of_values():
    for name in ("brand", "categories.2"):
        assert numbers(name, ITEMS[::-1])[::-1] == numbers(name)
