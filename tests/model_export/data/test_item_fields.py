"""Fields of items as numbers: what counts as a value, which fields are the default, and clear refusals."""

import pytest

from model_export.data.item_fields import MISSING, OTHER, default_fields, read_fields
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


def values(name: str) -> list[int]:
    return read_fields(ITEMS, [name])[1].value.tolist()


def test_the_item_itself_comes_first_and_has_a_value_of_its_own():
    itself, brand = read_fields(ITEMS, ["brand"])
    assert (itself.name, itself.value.tolist(), itself.num_values) == ("item_id", list(range(6)), 6)
    assert (brand.name, brand.num_values) == ("brand", 4)


def test_rare_values_count_as_one_and_missing_ones_as_another():
    assert values("brand") == [2, 2, OTHER, 3, 3, MISSING], "spelling and spaces do not matter"
    assert values("size") == [2, 2, 3, 3, MISSING, MISSING]
    assert values("colors") == [3, 3, 2, 2, MISSING, MISSING] or values("colors") == [2, 2, 3, 3, 0, 0]


def test_a_level_is_the_path_to_it_and_torn_names_are_one_level():
    assert values("categories.2") == [3, 3, 3, 2, 2, OTHER]
    third = values("categories.3")
    assert third[0] == third[1] != third[2] == OTHER
    assert third[3] == third[4] != third[5], "Wood below Screws is not Wood below Nails"
    with pytest.raises(GlyphrecError, match="no item has the field 'categories.4'"):
        values("categories.4")


def test_by_default_fields_tell_items_apart_and_most_items_have_them():
    assert default_fields(ITEMS) == ["brand", "categories.2", "categories.3"], "level 1 is the same for all"
    assert default_fields([item(number) for number in range(4)]) == []
    assert default_fields([item(0, "Acme"), item(1, "Bolt"), item(2), item(3), item(4)]) == []
    deep = [item(n, "", *(f"{level}-{n % 2}" for level in range(6))) for n in range(4)]
    assert default_fields(deep) == ["categories.1", "categories.2", "categories.3"]


@pytest.mark.parametrize(
    ("name", "why"),
    [("maker", "no item has"), ("categories.1", "all items share"), ("categories.0", "no item has")],
)
def test_a_field_that_says_nothing_is_refused(name, why):
    with pytest.raises(GlyphrecError, match=f"{why}.*{name}.*'brand' or 'categories.2'"):
        values(name)


def test_the_order_of_the_items_does_not_change_the_values():
    brand = read_fields(ITEMS[::-1], ["brand"])[1]
    assert brand.value[::-1].tolist() == values("brand")
