"""Nothing that learns sees a cold item, and a live service and the offline path agree about cold items."""

from dataclasses import replace

import numpy as np
import pytest

from model_export.configs import MiniLmConfig, tiny
from model_export.data.dataset import DataError, Dataset, make_dataset
from model_export.data.splits import Split, Targets, leave_one_out
from model_export.pipeline.cache import StageCache
from model_export.pipeline.run import Run
from model_export.study import cold as cold_module
from model_export.study.cold import CUTOFFS, Outcome, Removed, cold, rank, remove, served

SHARE = 0.15  # more than in the study, so that there are enough cold items to measure chance


CONFIG = replace(tiny(), opinions=None)


def nothing(_: str) -> None:
    """Does nothing with the progress text."""


@pytest.fixture(scope="module")
def split(small_dataset: Dataset) -> Split:
    """The data with few test users, because each of them costs a request over HTTP."""
    found = leave_one_out(small_dataset)
    rows = np.arange(0, len(found.test), 5)
    test = found.test
    few = Targets(test.users[rows], [test.histories[row] for row in rows], test.targets[rows])
    return replace(found, test=few)


@pytest.fixture(scope="module")
def removed(small_dataset: Dataset, split: Split) -> Removed:
    return remove(small_dataset, split, share=SHARE, seed=0)


@pytest.fixture(scope="module")
def run(small_dataset: Dataset, split: Split, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(small_dataset, split, CONFIG, StageCache(tmp_path_factory.mktemp("cold")))


@pytest.fixture(scope="module")
def live(removed: Removed, run: Run) -> Outcome:
    return served(removed, run)


def ids_of(dataset: Dataset, items: np.ndarray) -> list[str]:
    return [dataset.item_ids[item] for item in items]


def test_cold_items_are_in_no_sequence_and_are_the_targets_of_cold_users(removed, small_dataset, split):
    reduced = removed.dataset
    cold_ids = {item["item_id"] for item in removed.items}
    assert len(cold_ids) == len(removed.items) == round(SHARE * small_dataset.num_items)
    assert not cold_ids & set(reduced.item_ids)
    assert len(reduced.items) + len(cold_ids) == small_dataset.num_items
    remaining = dict(zip(reduced.user_ids, reduced.sequences, strict=True))
    for user_id, sequence in zip(small_dataset.user_ids, small_dataset.sequences, strict=True):
        left = [item_id for item_id in ids_of(small_dataset, sequence) if item_id not in cold_ids]
        assert ids_of(reduced, remaining[user_id]) == left if len(left) > 1 else user_id not in remaining
    target_of = dict(zip(split.test.users.tolist(), ids_of(small_dataset, split.test.targets), strict=True))
    assert {user for user in target_of if target_of[user] in cold_ids} == set(removed.cold.users.tolist())


def test_users_keep_their_whole_history_and_no_target_is_trained_on(removed, small_dataset, split):
    ids, reduced = removed.item_ids, leave_one_out(removed.dataset)
    trained = dict(zip(removed.dataset.user_ids, reduced.train, strict=True))
    originals = {user: row for row, user in enumerate(split.test.users.tolist())}
    for users in (removed.cold, removed.warm):
        assert len(users)
        for user, history, target in zip(users.users, users.histories, users.targets, strict=True):
            row = originals[user]
            assert [ids[item] for item in history] == ids_of(small_dataset, split.test.histories[row])
            assert ids[target] == small_dataset.item_ids[split.test.targets[row]]
            learnt = trained.get(small_dataset.user_ids[user], np.zeros(0, np.int32))
            assert len(learnt) <= len(history)  # it is the start of the history, so it lacks the target
            warm = history[history < removed.dataset.num_items]
            np.testing.assert_array_equal(learnt, warm[: len(learnt)])


def test_a_warm_user_whose_target_would_be_trained_on_is_left_out():
    items = [{"item_id": str(item), "title": f"bolt {item}"} for item in range(4)]
    sequences = [("a", [0, 1, 2]), ("b", [1, 2, 3]), ("c", [1, 2, 0, 3]), ("d", [2, 1, 2])]
    dataset = make_dataset("four", items, sequences, {})
    split = leave_one_out(dataset)
    for seed in range(5):
        removed = remove(dataset, split, share=0.25, seed=seed)
        (gone,) = (int(item["item_id"]) for item in removed.items)
        short = {row for row, (_, sequence) in enumerate(sequences) if sum(i != gone for i in sequence) < 3}
        last = {row for row, (_, sequence) in enumerate(sequences) if sequence[-1] == gone}
        assert set(removed.cold.users.tolist()) == last
        assert set(removed.warm.users.tolist()) == set(range(4)) - last - short


def test_without_test_users_the_measurement_is_refused():
    dataset = make_dataset("short", [{"item_id": "1"}, {"item_id": "2"}], [("a", [0, 1])], {})
    with pytest.raises(DataError, match="no user can be tested"):
        remove(dataset, leave_one_out(dataset), share=0.5, seed=0)


def test_the_offline_path_finds_what_the_live_service_answers(removed, live):
    offline = rank(live.model, live.codes, removed.cold, CONFIG)
    assert (live.ranked >= 0).all()
    assert (live.ranked >= removed.dataset.num_items).any()  # cold items are recommended
    assert (offline == live.ranked).mean() > 0.99  # rounding may swap items with equal scores
    for history, page in zip(removed.cold.histories, live.ranked, strict=True):
        assert not set(history.tolist()) & set(page.tolist())


@pytest.mark.usefixtures("live")  # makes the bundle
@pytest.mark.parametrize("encoder", [CONFIG.encoder, MiniLmConfig()], ids=["pictures", "text"])
def test_the_figures_are_rates_beside_their_controls(encoder, removed, run):
    config = replace(CONFIG, encoder=encoder)
    figures = cold(replace(run, config=config), share=SHARE, seed=0)
    assert figures["cold_num_items"] == len(removed.items)
    assert figures["cold_num_targets"] == len(removed.cold)
    for what in ("", "_random_codes", "_chance"):
        rates = [figures[f"cold_hit@{k}{what}"] for k in CUTOFFS]
        assert rates == sorted(rates)
        assert 0 <= rates[0] <= rates[-1] <= 1
    for k in CUTOFFS:
        error = figures[f"cold_hit@{k}_random_codes_se"]
        assert figures[f"cold_hit@{k}_random_codes"] < figures[f"cold_hit@{k}_chance"] + 4 * error + 0.05
    assert figures["cold_shares_first_code"] > figures["cold_shares_first_code_chance"]
    assert figures["cold_shares_first_code"] >= figures["cold_shares_two_codes"]
    assert 0 < figures["warm_hit@10"] <= 1


def test_chance_is_the_hit_rate_of_random_pages(removed):
    rng = np.random.default_rng(0)
    num_items, found = len(removed.item_ids), []
    for _ in range(50):
        for history, target in zip(removed.cold.histories, removed.cold.targets, strict=True):
            page = np.setdiff1d(rng.permutation(num_items), history)
            found.append(target in rng.permutation(page)[:10])
    assert cold_module._chance(removed, 10) == pytest.approx(np.mean(found), abs=0.01)


def test_users_of_one_target_count_as_one_draw():
    ranked = np.full((8, cold_module.TOP_K), -1, dtype=np.int32)
    ranked[:4, 0] = 3
    apart = cold_module._hits("{}", ranked, np.array([3, 3, 3, 3, 4, 5, 6, 7], dtype=np.int32))
    assert apart["10"] == 0.5
    assert apart["10_se"] == pytest.approx(np.sqrt((4 * 0.5) ** 2 + 4 * 0.5**2) / 8)
