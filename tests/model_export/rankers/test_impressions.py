import numpy as np
import pytest

from model_export.data.dataset import DataError, make_dataset
from model_export.rankers.impressions import impressions_of, with_copies

DAY = 86_400_000
NUM_ITEMS = 30


@pytest.fixture
def dataset():
    rng = np.random.default_rng(0)
    histories = [(f"u{user}", rng.permutation(NUM_ITEMS)[:8]) for user in range(20)]
    times = [np.sort(rng.integers(0, 50, 8)) * DAY for _ in range(20)]
    items = [{"item_id": str(item), "title": str(item)} for item in range(NUM_ITEMS)]
    return make_dataset("shop", items, histories, {}, times=times)


def test_events_are_in_the_order_of_their_times_and_each_is_there_once(dataset):
    made = impressions_of(dataset, history_length=5, num_non_events=3)
    pairs = {(user, item) for user, items in enumerate(dataset.sequences) for item in items.tolist()}
    found = list(zip(made.users.tolist(), made.examples.candidates[:, 0].tolist(), strict=True))
    assert len(found) == len(pairs)
    assert set(found) == pairs
    time_of = {
        (user, item): time
        for user in range(20)
        for item, time in zip(dataset.sequences[user].tolist(), dataset.times[user].tolist(), strict=True)
    }
    moments = [time_of[pair] for pair in found]
    assert moments == sorted(moments)


def test_a_history_has_only_items_from_before_the_moment_and_the_newest_last(dataset):
    made = impressions_of(dataset, history_length=5, num_non_events=1)
    for row, user in enumerate(made.users.tolist()):
        items, times = dataset.sequences[user], dataset.times[user]
        moment = times[items.tolist().index(made.examples.candidates[row, 0])]
        before = items[times < moment][-5:].tolist()
        assert made.examples.history[row].tolist() == [-1] * (5 - len(before)) + before


def test_a_non_event_is_never_an_item_that_the_user_takes(dataset):
    made = impressions_of(dataset, history_length=5, num_non_events=4)
    for user, candidates in zip(made.users.tolist(), made.examples.candidates.tolist(), strict=True):
        assert not set(candidates[1:]) & set(dataset.sequences[user].tolist())


def test_the_first_block_of_events_knows_no_counts_and_the_history_counts_itself(dataset):
    made = impressions_of(dataset, history_length=5, num_non_events=1)
    assert not made.examples.dense[:, :, 0].any()  # 160 events are one block
    first = made.examples.history[:, -1] < 0
    assert not made.examples.dense[first, :, 2].any()
    assert made.examples.dense[~first, :, 2].all()


def test_copies_share_the_events_of_their_item(dataset):
    made = impressions_of(dataset, history_length=5, num_non_events=1)
    copied, item_of = with_copies(made, np.array([3, 4]), seed=0)
    assert item_of[NUM_ITEMS:].tolist() == [3, 4]
    assert np.array_equal(item_of[copied.examples.candidates], made.examples.candidates)
    shown = copied.shown(range(len(copied)))
    assert shown[3] > 0
    assert shown[NUM_ITEMS] > 0


def test_data_without_times_are_refused(dataset):
    items = dataset.items
    timeless = make_dataset("shop", items, [("u", [1, 2])], {})
    with pytest.raises(DataError, match="has no times"):
        impressions_of(timeless, history_length=5, num_non_events=1)
