"""The table of counts against plain dictionaries, and the file of a bundle's counts."""

import gzip
import json
import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.bundle_co_counts import read_co_counts, write_co_counts
from service.core.co_counts import (
    ROWS_PER_STEP,
    CoCounts,
    CoCountSpec,
    CoRow,
    increments,
    padded,
    strongest,
    table_of,
)
from service.core.graphs import PADDING
from service.errors import ContractMismatch

SPEC = CoCountSpec(num_positions=3, decay=0.5, smoothing=0.1, window=3, backward=0.25, max_neighbors=2)
IDS = [f"item-{number}" for number in range(6)]

ids = st.sampled_from(IDS)
amounts = st.floats(0.01, 1000)


def slow_mass(rows, places, history, spec):
    """The mass of each prefix, by the definition."""
    found = defaultdict(float)
    for age, item_id in enumerate(list(reversed(history))[: spec.num_positions]):
        own, counts = rows.get(item_id, (0.0, {}))
        for other, count in strongest(counts, spec.max_neighbors).items():
            if other in rows and places.get(other) is not None:
                cosine = count / math.sqrt(own * rows[other][0])
                found[places[other]] += cosine * spec.decay**age / spec.smoothing
    return found


def mass_of(table, history):
    """Of a history that has others beside it, which must not matter."""
    found = defaultdict(float)
    _, gathered, _ = table.neighbors_of_each([history[::-1], history, []])
    for prefix, mass in zip(*map(np.ndarray.tolist, gathered), strict=True):
        assert mass > 0
        found[prefix] += mass
    return found


edits = st.one_of(
    st.tuples(st.just("set"), ids, amounts, st.dictionaries(ids, amounts, max_size=4)),
    st.tuples(st.just("drop"), ids),
    st.tuples(st.just("place"), ids, st.none() | st.integers(0, 3)),
)


@given(st.lists(edits, max_size=20), st.lists(ids, max_size=5))
def test_the_table_knows_what_dictionaries_know(steps, history):
    table, rows, places = CoCounts(SPEC), {}, {}
    for what, item_id, *values in steps:
        if what == "set":
            table.set_row(item_id, *values)
            rows[item_id] = tuple(values)
        elif what == "drop":
            table.drop_row(item_id)
            rows.pop(item_id, None)
        else:
            table.place(item_id, *values)
            places[item_id] = values[0]
    assert table.num_rows == len(rows)
    assert mass_of(table, history) == pytest.approx(slow_mass(rows, places, history, SPEC), rel=1e-5)


@given(st.lists(ids, max_size=6), ids, st.integers(1, 5), st.sampled_from([0.0, 0.25, 1.0]))
def test_an_event_adds_what_its_pairs_add_one_by_one(history, taken, window, backward):
    expected = defaultdict(float)
    for place, earlier in enumerate(history):
        distance = len(history) - place
        if distance <= window and earlier != taken:
            expected[earlier, taken] += 1 / distance
            expected[taken, earlier] += backward / distance
    spec = CoCountSpec(window=window, backward=backward)
    added = increments(history, taken, spec)
    assert added.popularity == {taken: 1.0}
    assert added.pairs == pytest.approx({pair: amount for pair, amount in expected.items() if amount})


def test_the_unit_of_a_row_changes_nothing_if_all_rows_have_it_and_fades_older_rows_otherwise():
    rows = [CoRow("a", 4.0, {"b": 2.0}), CoRow("b", 1.0, {})]
    for unit in (0.0, 300.0):
        table = CoCounts(SPEC, prefix_of=lambda _: 7)
        for row in rows:
            table.set_row(*row, log2_unit=unit)
        assert mass_of(table, ["a"]) == pytest.approx({7: 2 / math.sqrt(4) / SPEC.smoothing})
    table.set_row("a", 4.0, {"b": 2.0}, log2_unit=302.0)  # 4 times all numbers of this row
    assert mass_of(table, ["a"]) == pytest.approx({7: 8 / math.sqrt(16) / SPEC.smoothing})


def test_a_new_item_has_the_place_that_the_catalog_gives_and_moves_with_it():
    places = {"a": 1, "b": 2}
    table = CoCounts(SPEC, prefix_of=lambda item_id: places.get(item_id, -1))
    table.set_row("a", 1.0, {"b": 1.0, "c": 1.0})
    table.set_row("b", 1.0, {})
    table.set_row("c", 1.0, {})
    assert set(mass_of(table, ["a"])) == {2}
    places |= {"b": 5, "c": 6}
    table.place("b", 5)
    assert set(mass_of(table, ["a"])) == {5}
    table.place_all()
    assert set(mass_of(table, ["a"])) == {5, 6}
    table.place("b", None)
    assert set(mass_of(table, ["a"])) == {6}


def test_growth_keeps_what_was_there():
    table = CoCounts(SPEC, prefix_of=lambda item_id: int(item_id))
    num_items = 2 * ROWS_PER_STEP + 5
    for number in range(num_items):
        table.set_row(str(number), 1.0, {str((number + 1) % num_items): 1.0})
    assert table.num_rows == num_items
    for number in (0, ROWS_PER_STEP - 1, ROWS_PER_STEP, num_items - 1):
        assert list(mass_of(table, [str(number)])) == [(number + 1) % num_items]


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_numbers_that_no_count_has_are_refused_and_change_nothing(bad):
    table = CoCounts(SPEC, prefix_of=lambda _: 0)
    table.set_row("b", 1.0, {})
    table.set_row("a", 1.0, {"b": 1.0})
    before = mass_of(table, ["a"])
    for popularity, counts in ((bad, {}), (1.0, {"b": bad})):
        with pytest.raises(ValueError, match="not finite and above 0"):
            table.set_row("a", popularity, counts)
    assert mass_of(table, ["a"]) == before


def test_no_row_makes_a_mass_infinite():
    table = CoCounts(SPEC, prefix_of=lambda _: 0)
    table.set_row("a", 1e-300, {"b": 1e300})
    table.set_row("b", 1e-300, {}, log2_unit=-1e300)
    assert np.isfinite(table.neighbors_of(["a"]).mass).all()


def test_histories_of_a_batch_are_padded_to_one_width():
    table = table_of([CoRow("a", 1.0, {"b": 1.0}), CoRow("b", 1.0, {})], SPEC)
    table.place("b", 3)
    batch = padded(table.neighbors_of_each([["a"], ["b"], []]))
    assert batch.prefixes.tolist() == [[3], [PADDING], [PADDING]]
    assert batch.mass.tolist() == [[pytest.approx(1 / SPEC.smoothing)], [0], [0]]
    assert padded([table.neighbors_of([])]).prefixes.shape == (1, 1)


def test_a_bundles_counts_are_read_as_they_were_written(tmp_path):
    rows = [CoRow("ä", 3.0, {"b": 0.5, "c": 0.25}), CoRow("b", 1.0, {})]
    path = tmp_path / "co_counts.jsonl.gz"
    write_co_counts(path, rows)
    assert read_co_counts(path, 2) == rows
    with pytest.raises(ContractMismatch, match=r":1: not a row of counts \(2 neighbors; 1 is the limit"):
        read_co_counts(path, 1)


@pytest.mark.parametrize(
    "line",
    [
        [1],
        {"item_id": "a", "popularity": 1},
        {"item_id": "", "popularity": 1, "neighbors": {}},
        {"item_id": 5, "popularity": 1, "neighbors": {}},
        {"item_id": "a", "popularity": 0, "neighbors": {}},
        {"item_id": "a", "popularity": "x", "neighbors": {}},
        {"item_id": "a", "popularity": 1, "neighbors": []},
        {"item_id": "a", "popularity": 1, "neighbors": {"b": -1}},
        {"item_id": "a", "popularity": 1, "neighbors": {"": 1}},
        {"item_id": "twice", "popularity": 1, "neighbors": {}},
    ],
)
def test_a_line_that_is_no_row_is_refused_with_its_place(tmp_path, line):
    path = tmp_path / "co_counts.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for value in ({"item_id": "twice", "popularity": 1, "neighbors": {}}, line):
            file.write(json.dumps(value) + "\n")
    with pytest.raises(ContractMismatch, match=r"co_counts.jsonl.gz:2: not a row of counts .*Export again"):
        read_co_counts(path, 2)


def test_a_missing_or_damaged_file_is_refused(tmp_path):
    path = tmp_path / "co_counts.jsonl.gz"
    with pytest.raises(ContractMismatch, match="not whole"):
        read_co_counts(path, 2)
    write_co_counts(path, [CoRow("a", 1.0, {})])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ContractMismatch, match="not whole"):
        read_co_counts(path, 2)
