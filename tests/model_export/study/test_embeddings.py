"""The plan `embeddings`: its cells on a small shop, its store, its figures by hand, and its page."""

from dataclasses import replace

import numpy as np
import pytest

from model_export.data.dataset import make_dataset
from model_export.evaluation.statistics import Interval
from model_export.rankers.impressions import impressions_of
from model_export.study import embedding_cells, embeddings
from model_export.study.cells import DamagedCell
from model_export.study.embedding_cells import NUM_GROUPS, SEGMENTS, EmbeddingResult
from model_export.study.embedding_cells import embedding_cells as plan
from model_export.study.embedding_claims import verdict
from model_export.study.embedding_figures import Sums, change, draws
from model_export.study.embedding_write import write_embeddings
from model_export.study.embeddings import DEPTH, NUM_CODES, Prepared, run_cell, sampled, swaps

NUM_ITEMS = 60
DAY = 86_400_000
SMALL = replace(embedding_cells.small(), width=4, hidden_dim=16, num_seeds=2, history_length=4, batch_size=64)
CELLS = {cell.name: cell for cell in plan(SMALL)}


@pytest.fixture(scope="module")
def shop() -> Prepared:
    rng = np.random.default_rng(0)
    histories = [(f"u{user}", rng.permutation(NUM_ITEMS)[:12]) for user in range(50)]
    times = [np.sort(rng.integers(0, 90, 12)) * DAY for _ in range(50)]
    items = [{"item_id": str(item), "title": str(item)} for item in range(NUM_ITEMS)]
    dataset = make_dataset("shop", items, histories, {}, times=times)
    made = impressions_of(dataset, history_length=4, num_non_events=3)
    codes = rng.integers(0, NUM_CODES, (NUM_ITEMS, DEPTH))
    return Prepared("shop", dataset.fingerprint, codes, made, range(540), range(540, 600))


def test_the_sums_of_a_cell_give_its_normalized_entropy_and_are_read_as_they_were_written(shop, tmp_path):
    result = run_cell(shop, CELLS["prefix"], seed=0)
    assert Sums.of([result]).entropy()[0] == pytest.approx(result.figures["ne"])
    assert sum(sum(result.shown[name]) for name in SEGMENTS) == 4 * 60
    assert {"drift_all", "items_unseen"} <= result.figures.keys()
    embedding_cells.save(tmp_path, result)
    kept = embedding_cells.load(tmp_path, "shop", "prefix", 0)
    assert kept.key == result.key
    assert Sums.of([kept]).entropy()[0] == pytest.approx(result.figures["ne"], abs=1e-5)
    assert embedding_cells.load(tmp_path, "shop", "prefix", 1) is None


def test_a_cell_that_was_cut_off_is_reported_with_the_remedy(tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "prefix-0.json").write_text('{"dataset": "shop"}')
    with pytest.raises(DamagedCell, match="Delete it"):
        embedding_cells.load(tmp_path, "shop", "prefix", 0)


def test_codes_cannot_tell_exact_copies_apart_and_hashes_of_ids_can(shop):
    by_codes = run_cell(shop, CELLS["prefix_copies"], seed=0).figures
    by_ids = run_cell(shop, CELLS["random_hash_copies"], seed=0).figures
    assert by_codes["aa_variance_exact"] == 0
    assert by_ids["aa_variance_exact"] > 0
    assert by_ids["aa_variance_near"] > 0


def test_a_short_training_sees_a_fifth_of_the_events(shop):
    assert (shop.train_short.start, shop.train_short.stop) == (432, 540)


def test_a_swap_within_codes_that_only_one_item_has_is_left_out(shop):
    alone = replace(shop, codes=np.arange(NUM_ITEMS)[:, None] // [1, 1, 1, 1])  # every item has its own codes
    found = swaps(alone)
    assert found["swapped_0"] == 4 * 60
    assert found["click_loss_0"] < 0
    assert found["swapped_1"] == 0
    assert "click_loss_1" not in found
    with_pairs = replace(shop, codes=np.arange(NUM_ITEMS)[:, None] // [NUM_ITEMS, 2, 2, 2])
    assert swaps(with_pairs)["swapped_1"] == 4 * 60


def test_a_data_set_with_many_events_is_sampled_by_users_and_a_small_one_is_whole(monkeypatch):
    items = [{"item_id": "a", "title": "a"}, {"item_id": "b", "title": "b"}]
    times = [np.array([1, 2])] * 9
    dataset = make_dataset("s", items, [(f"u{user}", [0, 1]) for user in range(9)], {}, times=times)
    assert len(sampled(dataset).user_ids) == 9
    monkeypatch.setattr(embeddings, "MANY", 10)
    monkeypatch.setattr(embeddings, "MAX_USERS", 4)
    few = sampled(dataset)
    assert len(few.user_ids) == len(few.times) == 4


def made_up(name: str, seed: int, loss: float) -> EmbeddingResult:
    """A cell whose impressions have this loss, of which a quarter were taken."""
    return EmbeddingResult(
        "shop",
        name,
        seed,
        "key",
        {},
        {"ne": loss, "drift_all": loss, **{f"items_{part}": 3.0 for part in SEGMENTS}},
        {part: [4 * loss] * NUM_GROUPS for part in SEGMENTS},
        {part: [4] * NUM_GROUPS for part in SEGMENTS},
        {part: [1] * NUM_GROUPS for part in SEGMENTS},
    )


def test_a_loss_that_is_one_percent_lower_everywhere_is_a_change_of_exactly_one_percent():
    base = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    ours, theirs = Sums.of([made_up("a", 0, 0.99 * base)]), Sums.of([made_up("b", 0, base)])
    assert theirs.entropy()[0] == pytest.approx(1.0)
    assert change(ours, theirs, draws()) == pytest.approx((-0.01, -0.01, -0.01))


def test_a_claim_is_found_only_if_its_interval_is_on_the_published_side():
    assert verdict(Interval(-0.2, -0.3, -0.1)) == "as published"
    assert verdict(Interval(0.2, 0.1, 0.3)) == "**the other way**"
    assert verdict(Interval(-0.2, -0.5, 0.1)) == "not decided"


def test_the_page_has_the_notes_and_the_finished_cells_and_is_the_same_every_time(tmp_path):
    (tmp_path / "embeddings" / "notes").mkdir(parents=True)
    (tmp_path / "embeddings" / "notes" / "intro.md").write_text("About this page.\n")
    found = {
        "shop": {
            name: [made_up(name, seed, loss + seed / 100) for seed in range(3)]
            for name, loss in (("prefix", 0.5), ("random_hash", 0.51), ("individual", 0.5))
        }
    }
    write_embeddings(found, {}, plan(SMALL), tmp_path)
    page = (tmp_path / "embeddings.md").read_text()
    assert "About this page." in page
    assert "random hash, all items | -0.0005 | -0.0192 [-0.0192, -0.0192] | as published |" in page
    assert "individual, all items | -0.0003 | +0.0000 [+0.0000, +0.0000] | not decided |" in page
    assert page.count("The cells of this section are not computed yet.") == 3  # horizon, copies, swaps
    write_embeddings(found, {}, plan(SMALL), tmp_path)
    assert (tmp_path / "embeddings.md").read_text() == page
