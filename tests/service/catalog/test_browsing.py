"""Branches and listings of the tree of codes equal what a walk over all items finds."""

import random

import pytest

from service.catalog.browsing import branches, items_below
from service.catalog.catalog import Catalog
from service.core.filters import Attributes, Filter
from service.core.sid import Sid
from tests.service.catalogs import SPEC, random_codes

FILTERS = [None, Filter(categories_any=frozenset({"a"})), Filter(categories_any=frozenset({"nothing"}))]


@pytest.fixture(scope="module")
def shop() -> tuple[Catalog, dict[str, Sid]]:
    """A catalog after edits, and the Semantic ID of each item in it. Even numbers have the category a."""
    rng, catalog, sids = random.Random(3), Catalog(SPEC), {}
    num_at: dict[tuple[int, ...], int] = {}
    for number in range(80):
        codes = random_codes(rng)
        slot = num_at[codes] = num_at.get(codes, -1) + 1
        item_id = f"i{number}"
        sids[item_id] = Sid(codes, slot)
        catalog.put(item_id, sids[item_id], Attributes(("a",) if number % 2 == 0 else ("b",), True, {}))
    for item_id in rng.sample(sorted(sids), 20):
        catalog.drop(item_id)
        del sids[item_id]
    return catalog, sids


def passing(sids: dict[str, Sid], asked: Filter | None, codes: tuple[int, ...]) -> list[tuple[Sid, str]]:
    wanted = None if asked is None else asked.categories_any
    return sorted(
        (sid, item_id)
        for item_id, sid in sids.items()
        if sid.codes[: len(codes)] == codes
        and (wanted is None or ("a" if int(item_id[1:]) % 2 == 0 else "b") in wanted)
    )


def prefixes() -> list[tuple[int, ...]]:
    return [
        (),
        *((code,) for code in range(4)),
        *((first, second) for first in range(4) for second in range(3)),
    ]


@pytest.mark.parametrize("asked", FILTERS, ids=str)
@pytest.mark.parametrize("codes", prefixes(), ids=str)
def test_branches_count_the_items_below_and_show_some_of_them(shop, codes, asked):
    catalog, sids = shop
    found = branches(catalog, codes, asked, first_code=0, limit=100, num_examples=3)
    below = passing(sids, asked, codes)
    assert found.num_items == len(below)
    assert found.next_code is None
    assert [each.code for each in found.branches] == sorted({sid.codes[len(codes)] for sid, _ in below})
    for each in found.branches:
        inside = {item_id for sid, item_id in below if sid.codes[len(codes)] == each.code}
        assert each.num_items == len(inside)
        assert 1 <= len(each.example_ids) <= 3
        assert inside.issuperset(each.example_ids)
        assert len(set(each.example_ids)) == len(each.example_ids)


@pytest.mark.parametrize("asked", FILTERS, ids=str)
@pytest.mark.parametrize("codes", [*prefixes(), (1, 2, 3), (3, 0, 4)], ids=str)
@pytest.mark.parametrize("limit", [1, 7, 100])
def test_pages_of_items_follow_one_another_in_trie_order(shop, codes, asked, limit):
    catalog, sids = shop
    below, after, listed = passing(sids, asked, codes), None, []
    while True:
        page = items_below(catalog, codes, asked, after=after, limit=limit)
        assert page.num_items == len(below)
        listed += [(each.sid, each.item_id) for each in page.items]
        if not page.has_more:
            break
        after = page.items[-1].sid
    assert listed == below


def test_more_branches_than_fit_continue_at_the_next_code(shop):
    catalog, sids = shop
    listed, first = [], 0
    while first is not None:
        found = branches(catalog, (), None, first_code=first, limit=1, num_examples=0)
        listed += [each.code for each in found.branches]
        first = found.next_code
    assert listed == sorted({sid.codes[0] for sid in sids.values()})


def test_an_empty_catalog_has_no_branches_and_no_items():
    catalog = Catalog(SPEC)
    assert branches(catalog, (), None, first_code=0, limit=9, num_examples=3).branches == []
    assert items_below(catalog, (), None, after=None, limit=9).items == []
