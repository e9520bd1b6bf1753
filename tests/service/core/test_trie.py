"""The trie against a plain Counter, in rows and in pages."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.graphs import trie_tables
from service.core.sid import NUM_SLOTS, SidSpec
from service.core.trie import PAGES_PER_STEP, SidTrie

SPECS = [
    SidSpec(levels=levels, paged=paged)
    for levels in [(3, 4, 2), (2, 9, 11), (1, 3, 2), (3, 1, 9), (2, 3, 1), (10,), (1,)]
    for paged in (False, True)
]
LARGE = SidSpec(levels=(256, 256, 256, 256))

specs = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.levels}{'p' * spec.is_paged}")


def all_codes(spec):
    return list(itertools.product(*(range(num_codes) for num_codes in spec.levels)))


def some_codes(spec):
    """Few different codes, so that items share them."""
    return st.sampled_from(all_codes(spec)[::3])


def bulk(spec, codes):
    return SidTrie.from_codes(spec, np.array(list(codes), dtype=np.int64).reshape(-1, spec.num_levels))


def living_by_bits(trie):
    """The living prefixes of each level, read from the tables as the graph reads them."""
    found = []
    *_, leaves = tables = list(trie.tables)
    if trie.spec.is_paged:
        page_of = tables.pop(-2)
        assert not leaves[0].any(), "page 0 is nobody's"
        tables[-1] = leaves[page_of]
    for table, num_codes in zip(tables, trie.spec.levels, strict=True):
        bits = np.unpackbits(table, axis=1, bitorder="little")
        assert not bits[:, num_codes:].any(), "no code beyond the level's"
        found.append(set(np.flatnonzero(bits[:, :num_codes]).tolist()))
    return found


def assert_holds(trie, items):
    """All queries of a trie, against a count of its items."""
    spec = trie.spec
    living = [codes for codes in all_codes(spec) if items[codes]]
    assert living_by_bits(trie) == [
        {spec.prefixes(codes)[level] for codes in living} for level in range(spec.num_levels)
    ]
    assert all(trie.count(codes) == items[codes] for codes in all_codes(spec))
    assert len(trie) == items.total()
    for length in range(spec.num_levels + 1):
        for start in itertools.product(*(range(num_codes) for num_codes in spec.levels[:length])):
            below = [codes for codes in living if codes[:length] == start]
            assert list(trie.living(start)) == [spec.prefixes(codes)[-1] for codes in below]
            if length < spec.num_levels:
                parent = np.ravel_multi_index(start, spec.levels[:length]) if start else 0
                assert trie.children(length, parent).tolist() == sorted({codes[length] for codes in below})
    used = tuple(len({codes[level] for codes in living}) for level in range(spec.num_levels))
    assert trie.num_used_codes() == used
    for table, promised in zip(trie.tables, trie_tables(spec), strict=True):
        assert table.dtype == promised.dtype
        sizes = zip(promised.shape, table.shape, strict=True)
        assert all(isinstance(size, str) or size == found for size, found in sizes)


@specs
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_tables_hold_what_was_inserted_and_not_deleted(spec, data):
    trie, items = SidTrie(spec), Counter()
    for is_insert, codes in data.draw(st.lists(st.tuples(st.booleans(), some_codes(spec)), max_size=60)):
        if is_insert:
            trie.insert(codes)
            items[codes] += 1
        elif items[codes]:
            trie.delete(codes)
            items[codes] -= 1
        else:
            with pytest.raises(KeyError):
                trie.delete(codes)
    assert_holds(trie, items)
    assert trie.digest() == bulk(spec, items.elements()).digest()


@specs
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_built_at_once_or_one_by_one_in_any_order_it_is_the_same_and_can_be_edited(spec, data):
    codes = data.draw(st.lists(some_codes(spec), max_size=40))
    at_once, one_by_one = bulk(spec, codes), SidTrie(spec)
    for each in data.draw(st.permutations(codes)):
        one_by_one.insert(each)
    assert_holds(at_once, Counter(codes))
    assert at_once.digest() == one_by_one.digest()
    for trie in (at_once, one_by_one):
        trie.insert(all_codes(spec)[0])
    assert at_once.digest() == one_by_one.digest() != bulk(spec, codes).digest()
    for each in [*codes, all_codes(spec)[0]]:
        at_once.delete(each)
    assert_holds(at_once, Counter())
    assert at_once.digest() == SidTrie(spec).digest()


def test_two_items_at_one_code_are_another_digest_than_one():
    spec = SPECS[0]
    assert bulk(spec, [(1, 1, 1)]).digest() != bulk(spec, [(1, 1, 1)] * 2).digest()


def test_a_catalog_too_large_for_rows_is_paged_by_itself_and_grows_without_moving():
    assert LARGE.is_paged
    assert not SidSpec(levels=(256, 256, 256)).is_paged
    trie = SidTrie(LARGE)
    rng = np.random.default_rng(0)
    codes = np.unique(rng.integers(0, 256, size=(PAGES_PER_STEP + 500, 4)), axis=0)
    first_tables = trie.tables
    assert first_tables[-1].shape == (PAGES_PER_STEP, 32)
    for each in codes.tolist():
        trie.insert(tuple(each))
    assert trie.tables[-1].shape == (2 * PAGES_PER_STEP, 32), "the graph sees pages in steps"
    assert np.shares_memory(trie.tables[-1], first_tables[-1]), "nothing is copied"
    assert trie.num_bytes < 2**27
    assert list(trie.living()) == sorted(LARGE.prefixes_of(codes)[-1].tolist())
    assert trie.digest() == SidTrie.from_codes(LARGE, codes).digest()
    for each in codes.tolist():
        assert trie.count(tuple(each)) == 1
        trie.delete(tuple(each))
    assert list(trie.living()) == []
    assert not any(table.any() for table in trie.tables)


def test_pages_of_the_dead_are_used_again():
    trie = SidTrie(LARGE)
    for step in range(3 * PAGES_PER_STEP):
        codes = (step % 256, step // 256, step % 7, 9)
        trie.insert(codes)
        assert list(trie.living()) == [LARGE.prefixes(codes)[-1]]
        trie.delete(codes)
    assert len(trie.tables[-1]) == PAGES_PER_STEP


def test_a_view_of_the_tables_taken_before_an_edit_shows_the_edit():
    """The tables are the live arrays, so that an edit costs the graph nothing."""
    for spec in SPECS[:2]:
        trie = SidTrie(spec)
        tables = trie.tables
        trie.insert((2, 3, 1))
        assert all(table.any() for table in tables)


@specs
def test_codes_outside_the_levels_are_refused(spec):
    trie = SidTrie(spec)
    inside = tuple(num_codes - 1 for num_codes in spec.levels)
    for codes in ((*inside[:-1], spec.levels[-1]), inside[:-1], (*inside, 0), (-1, *inside[1:])):
        for edit in (trie.insert, trie.delete, trie.count):
            with pytest.raises(ValueError, match="do not fit"):
                edit(codes)
    assert len(trie) == 0


@pytest.mark.parametrize("spec", SPECS[:2])
def test_a_full_code_refuses_one_more_and_stays_whole(spec):
    full = np.tile([[1, 1, 1]], (NUM_SLOTS, 1))
    trie = SidTrie.from_codes(spec, full)
    with pytest.raises(OverflowError, match=str(NUM_SLOTS)):
        trie.insert((1, 1, 1))
    assert trie.count((1, 1, 1)) == len(trie) == NUM_SLOTS
    assert trie.digest() == SidTrie.from_codes(spec, full).digest()
    trie.delete((1, 1, 1))
    trie.insert((1, 1, 1))
    with pytest.raises(ValueError, match="share one code"):
        SidTrie.from_codes(spec, np.tile([[1, 1, 1]], (NUM_SLOTS + 1, 1)))
