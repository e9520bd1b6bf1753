"""The splits by leave-one-out and by time, checked position by position."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.data.dataset import DataError, Dataset
from model_export.data.splits import events_before, leave_one_out, split_by_time, training_fingerprint


def dataset_of(lengths: list[int]) -> Dataset:
    """Each position holds a different item, so that a test can see where each position goes."""
    ends = np.cumsum(lengths)
    sequences = [np.arange(end - n, end, dtype=np.int32) for n, end in zip(lengths, ends, strict=True)]
    items = [{"item_id": str(item), "title": f"item {item}"} for item in range(sum(lengths))]
    return Dataset("made", items, sequences, [f"u{n}" for n in range(len(lengths))], {})


@given(st.lists(st.integers(0, 12), min_size=1, max_size=30))
def test_no_position_of_a_target_reaches_training(lengths):
    dataset = dataset_of(lengths)
    split = leave_one_out(dataset)
    trained = {item for sequence in split.train for item in sequence.tolist()}
    validated, tested = set(split.validation.targets.tolist()), set(split.test.targets.tolist())
    assert not trained & validated
    assert not trained & tested
    assert not validated & tested
    # Nothing is lost: every position is trained on or is a target.
    assert trained | validated | tested == {item for row in dataset.sequences for item in row.tolist()}


@given(st.lists(st.integers(0, 12), min_size=1, max_size=30))
def test_a_target_is_the_next_item_after_its_history(lengths):
    dataset = dataset_of(lengths)
    split = leave_one_out(dataset)
    for targets, from_end in ((split.validation, 2), (split.test, 1)):
        assert targets.users.tolist() == [user for user, length in enumerate(lengths) if length >= 3]
        for user, history, target in zip(targets.users, targets.histories, targets.targets, strict=True):
            sequence = dataset.sequences[user].tolist()
            assert [*history.tolist(), target] == sequence[: len(sequence) - from_end + 1]


def test_users_with_fewer_than_three_items_are_only_in_training():
    split = leave_one_out(dataset_of([2, 3]))
    assert [row.tolist() for row in split.train] == [[0, 1], [2]]
    assert split.validation.users.tolist() == split.test.users.tolist() == [1]


def test_the_first_targets_make_a_smaller_evaluation():
    some = leave_one_out(dataset_of([4, 4, 4])).test.first(2)
    assert len(some) == 2
    assert some.targets.tolist() == [3, 7]
    assert [row.tolist() for row in some.histories] == [[0, 1, 2], [4, 5, 6]]


def targets_of(*sequences):
    items = [{"item_id": str(item), "title": f"item {item}"} for item in range(9)]
    rows = [np.array(sequence, dtype=np.int32) for sequence in sequences]
    return leave_one_out(Dataset("made", items, rows, [f"u{n}" for n in range(len(rows))], {}))


def test_targets_know_how_many_of_them_are_in_their_own_history():
    split = targets_of([1, 2, 1, 2], [1, 2, 3, 4], [1, 2, 3, 3], [5, 6])
    assert split.validation.repeated_share == 1 / 3
    assert split.test.repeated_share == 2 / 3
    assert not split.validation.are_repeats
    assert split.test.are_repeats
    assert targets_of([1, 2]).test.repeated_share == 0


def test_the_fingerprint_of_the_training_part_sees_training_items_and_no_targets():
    def of(*sequences, names="abcdefghi"):
        items = [{"item_id": name, "title": "t"} for name in names]
        rows = [np.array([names.index(each) for each in sequence], dtype=np.int32) for sequence in sequences]
        dataset = Dataset("made", items, rows, [f"u{n}" for n in range(len(rows))], {})
        return training_fingerprint(dataset, leave_one_out(dataset))

    same = of("abcd", "efg")
    assert of("abef", "eab") == same  # other targets
    assert of("abcd", "efg", names="ihgfedcba") == same  # the items in another order
    assert of("abc", "efg") != same  # a target of before is gone, so another one was trained on
    assert of("bacd", "efg") != same


def timed(times: list[list[int]]) -> Dataset:
    return replace(dataset_of([len(row) for row in times]), times=[np.array(row, np.int64) for row in times])


@given(
    st.lists(st.lists(st.integers(0, 20), max_size=8).map(sorted), min_size=1, max_size=20),
    st.integers(0, 21),
)
def test_by_time_a_target_is_the_first_item_from_the_moment_on_and_nothing_later_is_learned(times, moment):
    dataset = timed(times)
    have_both = [user for user, row in enumerate(times) if row and row[0] < moment <= row[-1]]
    if not have_both:
        with pytest.raises(DataError, match="no user has items both before and after"):
            split_by_time(dataset, moment)
        return
    split = split_by_time(dataset, moment)
    assert split.test.users.tolist() == have_both
    for user, history, target in zip(have_both, split.test.histories, split.test.targets, strict=True):
        before = sum(time < moment for time in times[user])
        assert history.tolist() == dataset.sequences[user][:before].tolist()
        assert target == dataset.sequences[user][before]
    # What is learned is what an export of the events before the moment learns, without users of one event.
    counts = [sum(time < moment for time in its) for its in times]
    earlier = [row[: count if count > 1 else 0] for row, count in zip(dataset.sequences, counts, strict=True)]
    expected = leave_one_out(replace(dataset, sequences=earlier))
    assert [row.tolist() for row in split.train] == [row.tolist() for row in expected.train]
    assert split.validation.targets.tolist() == expected.validation.targets.tolist()


def test_an_export_of_the_events_before_a_moment_learns_what_a_split_by_time_says():
    dataset = timed([[1, 2, 3, 9, 9], [3, 4], [2, 8, 9], [1, 5], [2, 3, 4, 5, 6, 7]])
    earlier = events_before(dataset, 5, "day five")
    assert earlier.items == dataset.items
    assert [row.tolist() for row in earlier.sequences] == [[0, 1, 2], [5, 6], [12, 13, 14]]
    assert [row.tolist() for row in earlier.times] == [[1, 2, 3], [3, 4], [2, 3, 4]]
    assert earlier.exclusions == {"events from day five on": 8, "users with fewer than 2 known items": 2}
    assert training_fingerprint(earlier, leave_one_out(earlier)) == training_fingerprint(
        dataset, split_by_time(dataset, 5)
    )


def test_a_split_by_time_needs_times():
    for split in (split_by_time, lambda dataset, moment: events_before(dataset, moment, "day five")):
        with pytest.raises(DataError, match="made: has no times to split by"):
            split(dataset_of([4, 4]), 5)
