"""Views against the slow truth: each item is checked by itself, and a trie is built from those that pass."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.catalog.columns import SEGMENT
from service.catalog.views import EDITS_PER_CHECK, MAX_VIEWS, FilterViews, Placed, View
from service.core.filters import Attributes, Condition, Equals, Filter, Range, Value
from service.core.sid import SidSpec
from service.core.trie import SidTrie

SPEC = SidSpec(levels=(3, 2, 4))
PLENTY = 2**30
IDS = [f"i{i}" for i in range(8)]
Items = dict[str, tuple[int, Attributes]]

categories = st.sets(st.sampled_from("xyz"), max_size=2).map(frozenset)
# Among them 1.0 and True, which are equal in Python and in no filter.
values: st.SearchStrategy[Value] = st.one_of(
    st.sampled_from(["Acme", "Best"]), st.sampled_from([0.0, 1.0, 2.5]), st.booleans()
)
bounds = st.none() | st.sampled_from([0.0, 1.0, 2.5])
conditions: st.SearchStrategy[Condition] = st.one_of(
    st.builds(Equals, values), st.builds(Range, bounds, bounds, bounds, bounds)
)
filters = st.builds(
    Filter,
    categories_any=categories,
    categories_all=categories,
    categories_none=categories,
    attributes=st.lists(st.tuples(st.sampled_from(["f", "g"]), conditions), max_size=2).map(tuple),
    available=st.none() | st.booleans(),
    item_ids=st.none() | st.sets(st.sampled_from(IDS), max_size=5).map(frozenset),
)
attributes = st.builds(
    Attributes,
    categories=st.lists(st.sampled_from("xyz"), max_size=3, unique=True).map(tuple),
    available=st.booleans(),
    values=st.dictionaries(st.sampled_from(["f", "g"]), values),
)
puts = st.tuples(st.sampled_from(IDS), st.integers(0, 23), attributes)
edits = st.lists(puts | st.sampled_from(IDS), max_size=25)  # an id alone is dropped


def assert_true(view: View, asked: Filter, items: Items) -> None:
    passing = {item_id for item_id, (_, each) in items.items() if asked.passes(item_id, each)}
    assert {item_id for item_id in [*IDS, "nobody"] if view.passes(item_id)} == passing
    leaves = np.array([items[item_id][0] for item_id in passing], dtype=np.int64)
    assert view.trie.digest() == SidTrie.from_prefixes(SPEC, leaves).digest()
    assert view.num_items == len(view.trie) == len(passing)


@given(before=st.lists(puts, max_size=12), steps=edits, asked=st.lists(filters, min_size=1, max_size=4))
@settings(deadline=None, max_examples=150)
@pytest.mark.parametrize("max_bytes", [0, PLENTY])
def test_views_hold_what_passes_after_any_edits(
    max_bytes: int, before: list[tuple[str, int, Attributes]], steps: list[object], asked: list[Filter]
) -> None:
    views, items = FilterViews(SPEC, max_bytes), dict[str, tuple[int, Attributes]]()
    items.update({item_id: (leaf, each) for item_id, leaf, each in before})
    placed = [Placed(item_id, leaf, each) for item_id, (leaf, each) in items.items()]
    views.load(placed[:5])
    views.load(placed[5:])
    for each in asked:
        assert_true(views.view_of(each), each, items)
    for step in steps:
        if isinstance(step, tuple):
            item_id, leaf, given_attributes = step
            views.put(item_id, leaf, given_attributes)
            items[item_id] = (leaf, given_attributes)
        else:
            views.drop(str(step))
            items.pop(str(step), None)
        for each in asked if max_bytes else asked[-1:]:
            assert_true(views.view_of(each), each, items)
    for item_id, (_, each) in items.items():
        assert views.attributes_of(item_id) == each
        assert views.category_of(item_id) == (each.categories[0] if each.categories else None)
    if max_bytes:
        assert (views.num_misses, views.num_views) == (len(set(asked)), len(set(asked)))
        assert views.num_evictions == 0
    for each in asked:
        assert_true(views.view_of(each), each, items)


def test_items_that_do_not_live_have_no_attributes() -> None:
    views = FilterViews(SPEC, PLENTY)
    views.put("a", 3, Attributes(("x",), True, {"f": 1.0}))
    views.drop("a")
    views.drop("a")
    assert views.category_of("a") is None
    with pytest.raises(KeyError):
        views.attributes_of("a")
    views.put("b", 3, Attributes((), True, {}))  # where `a` was
    assert views.attributes_of("b") == Attributes((), True, {})


def test_a_filter_in_another_order_is_the_same_view() -> None:
    views = FilterViews(SPEC, PLENTY)
    conditions = [("f", Equals("Acme")), ("g", Range(gte=1))]
    view = views.view_of(Filter(attributes=tuple(conditions)))
    assert views.view_of(Filter(attributes=tuple(reversed(conditions)))) is view
    assert (views.num_hits, views.num_misses, views.num_views) == (1, 1, 1)


def test_an_impossible_filter_has_an_empty_view() -> None:
    views = FilterViews(SPEC, PLENTY)
    views.put("a", 3, Attributes(("x",), True, {"f": 1.0, "g": "Acme"}))
    impossible = [
        Filter(categories_any=frozenset(["never seen"])),
        Filter(categories_all=frozenset(["x", "y"])),
        Filter(categories_all=frozenset("x"), categories_none=frozenset("x")),
        Filter(attributes=(("never seen", Equals(1)),)),
        Filter(attributes=(("f", Equals("1.0")),)),
        Filter(attributes=(("f", Range(gt=1)),)),
        Filter(attributes=(("g", Equals("other")),)),
        Filter(attributes=(("g", Range(gt=0)),)),
        Filter(available=False),
        Filter(item_ids=frozenset()),
        Filter(item_ids=frozenset(["never seen"])),
    ]
    for asked in impossible:
        view = views.view_of(asked)
        assert (view.num_items, view.passes("a"), view.trie.digest()) == (0, False, SidTrie(SPEC).digest())


def test_the_least_recently_asked_views_go_first() -> None:
    room = FilterViews(SPEC, PLENTY).view_of(Filter(available=True)).num_bytes
    views = FilterViews(SPEC, 3 * room)
    asked = [Filter(categories_any=frozenset([name])) for name in "abcd"]
    for each in [*asked[:3], asked[0], asked[3]]:
        views.view_of(each)
    assert (views.num_views, views.num_evictions) == (3, 1)
    assert views.num_bytes == 3 * room
    num_misses = views.num_misses
    for each in (asked[0], asked[2], asked[3]):
        views.view_of(each)
    assert views.num_misses == num_misses
    views.view_of(asked[1])
    assert views.num_misses == num_misses + 1


def test_small_views_are_limited_in_number_as_every_edit_looks_at_each() -> None:
    views = FilterViews(SPEC, PLENTY)
    asked = [Filter(item_ids=frozenset([f"{i}"])) for i in range(MAX_VIEWS + 1)]
    for each in asked:
        views.view_of(each)
    assert (views.num_views, views.num_evictions) == (MAX_VIEWS, 1)
    views.view_of(asked[1])
    assert views.num_hits == 1
    views.view_of(asked[0])
    assert (views.num_misses, views.num_evictions) == (MAX_VIEWS + 2, 2)


def test_a_view_that_was_evicted_remains_of_use_until_the_next_edit() -> None:
    views = FilterViews(SPEC, 0)
    views.put("a", 3, Attributes(("x",), True, {}))
    view = views.view_of(Filter(categories_any=frozenset("x")))
    views.view_of(Filter(categories_any=frozenset("y")))
    assert (views.num_views, views.num_evictions) == (1, 1)
    assert view.passes("a")
    assert list(view.trie.living()) == [3]


def test_views_that_edits_have_made_too_large_go_too() -> None:
    views = FilterViews(SPEC, PLENTY)
    asked = [Filter(available=True), Filter(item_ids=frozenset(["a"]))]
    empty = sum(views.view_of(each).num_bytes for each in asked)
    views = FilterViews(SPEC, empty)
    for each in asked:
        views.view_of(each)
    for i in range(EDITS_PER_CHECK):
        assert views.num_views == 2
        views.put(f"i{i}", i % 24, Attributes((), True, {}))
    assert (views.num_views, views.num_evictions) == (1, 1)


def test_adopted_items_are_seen_by_every_filter_and_counters_go_on() -> None:
    views, fresh = FilterViews(SPEC, PLENTY), FilterViews(SPEC, PLENTY)
    asked = Filter(categories_any=frozenset("x"))
    views.put("old", 1, Attributes(("x",), True, {}))
    views.view_of(asked)
    fresh.load([Placed("new", 2, Attributes(("x",), True, {"f": 1.0}))])
    views.adopt(fresh)
    assert (views.num_views, views.num_bytes, views.num_misses) == (0, 0, 1)
    view = views.view_of(asked)
    assert [view.passes(item_id) for item_id in ("old", "new")] == [False, True]
    views.put("newer", 2, Attributes(("x",), True, {}))
    assert views.view_of(asked).trie.count((0, 0, 2)) == 2


@pytest.mark.parametrize("is_loaded", [False, True])
def test_columns_grow_by_segments_and_places_are_used_again(is_loaded: bool) -> None:
    views, spec = FilterViews(SidSpec(levels=(16, 16, 16)), PLENTY), SidSpec(levels=(16, 16, 16))
    rng, cheap = random.Random(0), Filter(attributes=(("price", Range(lt=1)),))
    num_items = SEGMENT + 5
    leaves = [rng.randrange(4096) for _ in range(num_items)]
    first = SEGMENT - 5 if is_loaded else 0
    placed = [Placed(f"{i}", leaves[i], Attributes((), True, {"price": float(i % 3)})) for i in range(first)]
    views.load(placed[:50_000])
    views.load(placed[50_000:])
    views.view_of(cheap)
    for i in range(first, num_items):
        views.put(f"{i}", leaves[i], Attributes((), True, {"price": float(i % 3)} if i % 2 else {}))
    for i in range(0, num_items, 2):
        views.drop(f"{i}")
        views.put(f"again {i}", leaves[i], Attributes((), True, {"price": 0.0}))
    passing = [leaves[i] for i in range(num_items) if i % 2 == 0 or i % 3 == 0]
    truth = SidTrie.from_prefixes(spec, np.array(passing, dtype=np.int64)).digest()
    assert views.view_of(cheap).trie.digest() == truth
    views.adopt(views)  # forgets the view that the edits have made
    assert views.view_of(cheap).trie.digest() == truth
