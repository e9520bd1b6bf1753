"""Coverage, and the kinds of targets, agree with counting by hand."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.data.dataset import make_dataset
from model_export.data.splits import leave_one_out
from model_export.evaluation.metrics import NO_ITEM
from model_export.evaluation.reach import coverage, kinds_of_targets, popularity_thirds


def test_coverage_counts_each_item_once_and_no_empty_places():
    assert coverage(np.array([[0, 3], [3, NO_ITEM]]), 8) == 2 / 8
    assert coverage(np.full((2, 3), NO_ITEM), 8) == 0
    assert coverage(np.arange(8)[None], 8) == 1


def test_a_transition_is_seen_only_if_it_is_in_the_training_part_in_this_direction():
    histories = [
        ("a", [0, 1, 2, 3, 4]),  # its own last steps, 2 -> 3 and 3 -> 4, are not in the training part
        ("b", [3, 4, 5, 2, 1]),  # only 1 -> 2 was seen, not 2 -> 1
        ("c", [5, 3, 0, 3, 4]),  # b went from 3 to 4 in the training part
    ]
    data = make_dataset("steps", [{"item_id": str(item)} for item in range(6)], histories, {})
    split = leave_one_out(data)
    kinds = kinds_of_targets(split, 6)
    # The training part is [0, 1, 2], [3, 4, 5], [5, 3, 0].
    assert kinds.seen_transition.tolist() == [True, False, True]
    assert kinds.unseen_transition.tolist() == [False, True, False]


def test_each_third_has_a_third_of_the_purchases():
    train = [np.repeat(np.arange(5), [6, 3, 3, 2, 4])]  # 18 purchases, a third is 6
    # By count: item 0 has 6, item 4 has 4, items 1 and 2 have 3 each, item 3 has 2, item 5 has none.
    assert popularity_thirds(train, 6).tolist() == [0, 1, 1, 2, 1, 2]
    assert popularity_thirds([], 3).tolist() == [2, 2, 2]


@given(train=st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=20), min_size=1, max_size=10))
def test_thirds_never_part_equal_counts_and_the_head_is_as_small_as_can_be(train):
    third = popularity_thirds([np.array(row, dtype=np.int32) for row in train], 12)
    count = Counter(item for row in train for item in row)
    total = sum(count.values())
    for one in range(12):
        for other in range(12):
            if count[one] >= count[other]:
                assert third[one] <= third[other]
    for last in (0, 1):
        inside = [count[item] for item in range(12) if third[item] <= last and count[item]]
        assert sum(inside) >= (last + 1) * total / 3
        least = min(inside)
        assert sum(number for number in inside if number > least) < (last + 1) * total / 3 or last == 1
    assert all(third[item] == 2 for item in range(12) if not count[item])


@pytest.mark.parametrize("seed", range(3))
def test_every_user_has_one_kind_of_transition_and_one_third(seed):
    rng = np.random.default_rng(seed)
    histories = [(f"user-{user}", rng.integers(0, 9, 6)) for user in range(30)]
    data = make_dataset("random", [{"item_id": str(item)} for item in range(9)], histories, {})
    kinds = kinds_of_targets(leave_one_out(data), 9)
    assert (kinds.seen_transition ^ kinds.unseen_transition).all()
    assert (np.sum([kinds.head, kinds.middle, kinds.tail], axis=0) == 1).all()
    assert 0 < kinds.seen_transition.sum() < 30
