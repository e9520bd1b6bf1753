"""The counts of the training part are those that a service would have if every purchase had been an event."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model_export.pipeline.counts import count_pairs
from service.core.co_counts import CoCountSpec, increments

ITEM_IDS = [f"item-{item}" for item in range(8)]


@given(
    st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=12), min_size=1, max_size=6),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_the_rows_are_those_of_events_one_by_one(sequences, window, backward):
    spec = CoCountSpec(window=window, backward=backward)
    popularity, pairs = Counter[str](), Counter[tuple[str, str]]()
    for items in sequences:
        for place, item in enumerate(items):
            event = increments([ITEM_IDS[each] for each in items[:place]], ITEM_IDS[item], spec)
            popularity.update(event.popularity)
            for pair, amount in event.pairs.items():
                pairs[pair] += amount
    rows = count_pairs([np.array(items, np.int32) for items in sequences], ITEM_IDS, spec)
    assert {row.item_id: row.popularity for row in rows} == dict(popularity)
    found = {(row.item_id, other): count for row in rows for other, count in row.neighbors.items()}
    assert found.keys() == pairs.keys()
    for pair, count in found.items():
        assert abs(count - pairs[pair]) < 1e-9


def test_a_row_keeps_its_strongest_neighbors():
    items = np.array([0, 1, 0, 1, 0, 2, 0, 3], np.int32)
    rows = {
        row.item_id: row for row in count_pairs([items], ITEM_IDS, CoCountSpec(window=1, max_neighbors=2))
    }
    assert rows["item-0"].neighbors == {"item-1": 4.0, "item-2": 2.0}
    assert rows["item-3"].neighbors == {"item-0": 1.0}
    assert "item-7" not in rows
