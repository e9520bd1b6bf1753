"""The order of events, ties, and the k-core."""

import numpy as np
import pytest

from model_export.data.events import Events, first_of_each, histories, in_order, k_core

USERS = [f"user {n}" for n in range(6)]
ITEMS = [f"item {n}" for n in range(8)]


def random_events(seed: int, count: int = 60) -> Events:
    rng = np.random.default_rng(seed)
    return Events(rng.integers(0, 6, count), rng.integers(0, 8, count), rng.integers(0, 5, count))


def rows(events: Events) -> list[tuple[int, int, int]]:
    return list(zip(events.user.tolist(), events.item.tolist(), events.time.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_events_are_sorted_by_user_and_time_for_any_order_of_the_source(seed):
    events = random_events(seed)
    ordered = in_order(events, USERS, ITEMS)
    assert [(user, time) for user, _, time in rows(ordered)] == sorted(
        (user, time) for user, _, time in rows(events)
    )
    shuffled = np.random.default_rng(seed).permutation(len(events))
    again = Events(events.user[shuffled], events.item[shuffled], events.time[shuffled])
    assert rows(in_order(again, USERS, ITEMS)) == rows(ordered)


def test_ties_have_no_common_order():
    """2,000 users buy the same two items at once. For about half of them the first item comes first."""
    users = [str(n) for n in range(2000)]
    events = Events(np.repeat(np.arange(2000), 2), np.tile([0, 1], 2000), np.zeros(4000, dtype=np.int64))
    first = in_order(events, users, ["a", "b"]).item[::2]
    assert 0.45 < first.mean() < 0.55


def test_ties_do_not_depend_on_how_the_source_numbers_users_and_items():
    events = Events(np.zeros(3, dtype=np.int64), np.array([0, 1, 2]), np.zeros(3, dtype=np.int64))
    names = ["a", "b", "c"]
    order = [names[n] for n in in_order(events, ["u"], names).item]
    reversed_names = names[::-1]
    assert [reversed_names[n] for n in in_order(events, ["u"], reversed_names).item] == order


@pytest.mark.parametrize("seed", range(5))
def test_first_of_each_keeps_a_users_earliest_event_with_an_item(seed):
    ordered = in_order(random_events(seed), USERS, ITEMS)
    seen: set[tuple[int, int]] = set()
    expected = [row for row in rows(ordered) if row[:2] not in seen and not seen.add(row[:2])]
    assert rows(first_of_each(ordered)) == expected


def test_histories_include_users_without_events():
    events = Events(np.array([0, 0, 2]), np.array([5, 3, 1]), np.array([1, 2, 1]))
    found = [(user, items.tolist()) for user, items in histories(events, ["a", "b", "c", "d"])]
    assert found == [("a", [5, 3]), ("b", []), ("c", [1]), ("d", [])]


def core_by_hand(pairs: list[tuple[int, int]], core: int) -> list[tuple[int, int]]:
    """The slow way: remove one user or item with too few events at a time until there is none."""
    pairs = list(pairs)
    while True:
        for side in (0, 1):
            names = [pair[side] for pair in pairs]
            few = next((name for name in names if names.count(name) < core), None)
            if few is not None:
                pairs = [pair for pair in pairs if pair[side] != few]
                break
        else:
            return pairs


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("core", [1, 2, 3, 5])
def test_the_k_core_equals_slow_removal_one_by_one(seed, core):
    rng = np.random.default_rng(seed)
    pairs = sorted({(int(u), int(i)) for u, i in rng.integers(0, 9, size=(rng.integers(10, 45), 2))})
    user, item = np.array(pairs).T
    kept = k_core(Events(user, item, np.zeros_like(user)), core)
    assert [pair for pair, keep in zip(pairs, kept, strict=True) if keep] == core_by_hand(pairs, core)


def test_the_k_core_of_no_events_is_empty():
    nothing = np.empty(0, dtype=np.int64)
    assert k_core(Events(nothing, nothing, nothing), 5).tolist() == []


@pytest.mark.parametrize("seed", range(5))
def test_times_too_far_apart_for_one_number_with_the_user_are_sorted_alike(seed):
    events = random_events(seed)
    far = Events(events.user, events.item, (events.time - 2) * 2**61)
    expected = [(user, item, (time - 2) * 2**61) for user, item, time in rows(in_order(events, USERS, ITEMS))]
    assert rows(in_order(far, USERS, ITEMS)) == expected


def test_no_events_are_in_order():
    assert len(in_order(random_events(0, count=0), USERS, ITEMS)) == 0
