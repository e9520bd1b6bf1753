"""Each change does what its name says, and nothing else."""

from collections import Counter

import numpy as np
import pytest

from model_export.study.perturb import (
    BESIDE,
    CHANGES,
    cut_to_half,
    in_capitals,
    mistyped,
    with_units_rewritten,
)
from service.core.bundle import RenderSpec
from service.core.render import item_text

SPEC = RenderSpec()
ITEM = {
    "item_id": "7",
    "title": "Hex Bolt Assortment Kit of Stainless Steel, 1/2 in, Black",
    "brand": "Acme",
    "categories": ["Fasteners", "Bolts"],
    "description": "Holds what has to hold. 12 pack.",
    "price": 3.5,
    "sizes": {"box": ["16 oz"]},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_pure_and_changes_the_text(name):
    before = repr(ITEM)
    first, again = (CHANGES[name](ITEM, SPEC, np.random.default_rng(3)) for _ in range(2))
    assert first == again
    assert first != item_text(ITEM, SPEC)
    assert repr(ITEM) == before


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("item", [{"item_id": "1"}, {"title": "7"}, {"title": None}, {"title": "Å ß"}])
def test_an_item_with_little_to_change_is_accepted(name, item):
    CHANGES[name](item, SPEC, np.random.default_rng(0))


@pytest.mark.parametrize("seed", range(20))
def test_a_typo_swaps_two_neighbors_or_hits_the_key_beside(seed):
    typed = mistyped({"title": "Stainless bolt", "brand": "Acme"}, np.random.default_rng(seed))
    title, original = typed["title"], "Stainless bolt"
    wrong = [place for place in range(len(original)) if title[place] != original[place]]
    assert typed["brand"] == "Acme"
    if len(wrong) == 2:
        assert wrong[1] == wrong[0] + 1
        assert title[wrong[0]] + title[wrong[1]] == original[wrong[1]] + original[wrong[0]]
    else:
        (place,) = wrong
        assert title[place].lower() in BESIDE[original[place].lower()]
        assert title[place].isupper() == original[place].isupper()


def test_there_is_one_typo_in_forty_letters_and_digits_stay():
    rng = np.random.default_rng(0)
    for letters, expected in ((1, 1), (39, 1), (61, 2), (400, 10)):
        original = "ab" * 200
        changed = mistyped({"title": original[:letters] + "0123456789"}, rng)["title"]
        wrong = sum(a != b for a, b in zip(original[:letters], changed, strict=False))
        assert expected <= wrong <= 2 * expected
        assert changed.endswith("0123456789")


def test_units_change_in_every_text_and_nothing_else_does():
    changed = with_units_rewritten(ITEM, np.random.default_rng(0))
    assert "1/2 in" not in changed["title"]
    assert "12 pack" not in changed["description"]
    assert changed["sizes"]["box"] != ["16 oz"]
    assert all(changed[name] == ITEM[name] for name in ("brand", "categories", "price"))


def test_capitals_reach_nested_texts_but_no_names():
    changed = in_capitals(ITEM)
    assert changed["sizes"] == {"box": ["16 OZ"]}
    assert changed["categories"] == ["FASTENERS", "BOLTS"]


def test_half_of_the_words_of_each_field_stay():
    changed = cut_to_half(ITEM)
    assert changed["title"] == "Hex Bolt Assortment Kit of"
    assert changed["brand"] == "Acme"
    assert changed["description"] == "Holds what has to"
    assert changed["categories"] == ITEM["categories"]


def test_another_order_has_the_same_parts():
    parts = Counter(item_text(ITEM, SPEC).split("; "))
    for name in ("short fields shuffled", "description first"):
        for seed in range(5):
            text = CHANGES[name](ITEM, SPEC, np.random.default_rng(seed))
            assert Counter(text.split("; ")) == parts
            assert text.startswith("Holds") == (name == "description first")
            assert text.endswith(ITEM["description"]) == (name != "description first")
