"""Fields of items as numbers: what an item has in a field, and what its vocabulary knows of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.item_fields import UNKNOWN, Vocabulary, category_path, values_of

VOCABULARY = Vocabulary(
    {
        "item_id": {"a": 1, "b": 2},
        "brand": {"acme": 1, "zenith": 2},
        # "Tapes" has one child, so both are one node of the second level.
        "categories.2": {("tools", "screws"): 1, ("tools", "tapes"): 2, ("tools", "tapes", "sealants"): 2},
        "categories.3": {("tools", "screws", "wood"): 1},
        "colors": {"red, blue": 1},
    }
)


def read(**item: object) -> list[int]:
    return VOCABULARY.read(item).tolist()


def test_known_values_have_their_numbers_whatever_their_case_and_spaces():
    path = ["Tools", "Screws", "Wood"]
    assert read(item_id="b", brand=" ACME ", categories=path, colors=["Red", "blue"]) == [2, 1, 1, 1, 1]
    assert VOCABULARY.num_values == (3, 3, 3, 2, 2)


def test_what_is_absent_or_new_is_unknown():
    assert read() == [UNKNOWN] * 5
    assert read(item_id="c", brand="Bolt", categories=["Garden"], colors=["red"]) == [UNKNOWN] * 5
    assert read(item_id="A", brand=None, categories=None) == [UNKNOWN] * 5, "the case of an id matters"


def test_a_new_category_below_a_known_one_still_has_the_known_one():
    assert read(categories=["Tools", "Screws", "Steel"])[2:4] == [1, UNKNOWN]
    assert read(categories=["Tools", "Tapes", "Sealants", "Duct"])[2:4] == [2, UNKNOWN]
    assert read(categories=["Tools", "Tapes", "Others"])[2:4] == [2, UNKNOWN]
    assert read(categories=["Tools"])[2:4] == [UNKNOWN, UNKNOWN]


@pytest.mark.parametrize(
    ("categories", "path"),
    [
        (["Tools", "Nails"], ("tools", "nails")),
        ([["Tools", "Nails"], ["Sale"]], ("tools", "nails")),
        ("Tools", ("tools",)),
        (["Tools", "", None, 3], ("tools", "3")),
        ({"a": 1}, ()),
        (7, ()),
        (True, ()),
        (None, ()),
        ([[]], ()),
    ],
)
def test_a_path_of_categories_is_read_in_every_form_that_an_item_may_have(categories, path):
    assert category_path({"categories": categories}) == path


def test_values_are_the_text_that_would_be_drawn():
    assert values_of({"size": 12.0}, "size") == ["12"]
    assert values_of({"new": True}, "new") == ["yes"]
    assert values_of({"categories": ["A", "B"]}, "categories") == ["a > b"]
    assert values_of({"size": ""}, "size") == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=4), inside, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["item_id", "brand", "categories", "colors", "other"]), JSON))
def test_whatever_an_item_has_it_is_read_and_what_is_told_is_unknown(item):
    found = VOCABULARY.read(item)
    assert found.shape == (5,)
    assert ((found >= 0) & (found < VOCABULARY.num_values)).all()
    names = dict(zip(VOCABULARY.names, found.tolist(), strict=True))
    assert all(names[name] == UNKNOWN for name in VOCABULARY.unknown_in(item))


def test_new_values_are_told_by_their_fields_and_absent_ones_are_not():
    def told(**item: object) -> list[str]:
        return list(VOCABULARY.unknown_in(item))

    assert told(item_id="new") == []
    assert told(brand="Bolt", colors="green") == ["brand", "colors"]
    assert told(categories=["Tools", "Screws", "Steel"]) == ["categories.3"]
    assert told(categories=["Garden", "Hoses", "Long"]) == ["categories.2", "categories.3"]
    assert told(categories=["Tools", "Tapes", "Sealants"]) == [], "nothing is below this node"
    assert told(categories=["Tools"]) == []
