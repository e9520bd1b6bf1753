import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract import NUM_SLOTS, SidSpec
from service.trie import CountTrie

SPEC = SidSpec(levels=(3, 4, 2))
ALL_CODES = list(itertools.product(*(range(k) for k in SPEC.levels)))
codes_lists = st.lists(st.sampled_from(ALL_CODES), max_size=40)


def assert_holds(trie: CountTrie, items: Counter) -> None:
    """Every cell of every level against a plain count."""
    for length in range(1, SPEC.num_levels + 1):
        for prefix in itertools.product(*(range(k) for k in SPEC.levels[:length])):
            expected = sum(n for codes, n in items.items() if codes[:length] == prefix)
            assert trie.count(prefix) == expected
    assert len(trie) == trie.count(()) == items.total()


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(ALL_CODES)), max_size=60))
def test_tables_count_what_was_inserted_and_not_deleted(edits):
    trie, items = CountTrie(SPEC), Counter()
    for is_insert, codes in edits:
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


@given(codes_lists)
def test_bulk_build_equals_one_insert_at_a_time(codes):
    one_by_one = CountTrie(SPEC)
    for item in codes:
        one_by_one.insert(item)
    bulk = CountTrie.from_codes(SPEC, np.array(codes, dtype=np.int64).reshape(-1, SPEC.num_levels))
    for ours, theirs in zip(bulk.tables, one_by_one.tables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


@given(codes_lists, st.randoms())
def test_digest_depends_on_contents_alone(codes, random):
    first, second = CountTrie(SPEC), CountTrie(SPEC)
    for item in codes:
        first.insert(item)
    random.shuffle(codes)
    for item in codes:
        second.insert(item)
    assert first.digest() == second.digest()
    second.insert(ALL_CODES[0])
    assert first.digest() != second.digest()


def test_a_prefix_seen_alive_has_a_living_item_below_it_at_every_moment_of_an_edit():
    """Record the order of the writes themselves: another thread may look between any two."""
    trie, seen = CountTrie(SPEC), []

    class Watched(np.ndarray):
        def __setitem__(self, key, value):
            super().__setitem__(key, value)
            seen.append([bool(table[0] > 0) for table in trie.tables])

    trie.tables = tuple(table.view(Watched) for table in trie.tables)
    trie.insert((0, 0, 0))
    trie.delete((0, 0, 0))
    assert len(seen) == 2 * SPEC.num_levels
    for alive in seen:  # root level first: once alive, everything below is alive too
        assert alive == sorted(alive)


def test_codes_outside_the_levels_are_refused():
    trie = CountTrie(SPEC)
    for codes in ((3, 0, 0), (0, 0), (0, 0, 0, 0), (-1, 0, 0)):
        with pytest.raises(ValueError, match="do not fit"):
            trie.insert(codes)
    assert len(trie) == 0


def test_a_full_code_refuses_one_more_and_stays_whole():
    trie = CountTrie.from_codes(SPEC, np.tile([[1, 1, 1]], (NUM_SLOTS, 1)))
    with pytest.raises(OverflowError, match=str(NUM_SLOTS)):
        trie.insert((1, 1, 1))
    assert trie.count((1, 1, 1)) == trie.count((1,)) == NUM_SLOTS
    with pytest.raises(ValueError, match="share one code"):
        CountTrie.from_codes(SPEC, np.tile([[1, 1, 1]], (NUM_SLOTS + 1, 1)))
