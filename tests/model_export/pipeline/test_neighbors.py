"""Neighbors: the nearest items with a picture, found without the targets."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model_export.configs import tiny
from model_export.data.dataset import Dataset, make_dataset
from model_export.pipeline import neighbors
from model_export.pipeline.neighbors import NO_ITEM, Neighbors, nearest_with_picture
from model_export.pipeline.run import Run
from model_export.pipeline.units import find_neighbors

NUM_ITEMS, NUM_GROUPS, NUM_USERS = 49, 4, 300
UNKNOWN = NUM_ITEMS - 1  # nobody takes it
CONTENT = np.random.default_rng(5).normal(size=(NUM_ITEMS, 8)).astype(np.float32)


def by_hand(vectors: np.ndarray, has_picture: np.ndarray, num_scanned: int) -> list[list[int]]:
    found = []
    for place, vector in enumerate(vectors):
        cosine = [float(vector @ other / np.linalg.norm(vector) / np.linalg.norm(other)) for other in vectors]
        others = sorted((each for each in range(len(vectors)) if each != place), key=lambda n: -cosine[n])
        chosen = [other for other in others[:num_scanned] if has_picture[other]][:3]
        found.append(chosen + [NO_ITEM] * (3 - len(chosen)))
    return found


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_the_nearest_items_with_a_picture_equal_those_of_a_full_sort(share, monkeypatch):
    monkeypatch.setattr(neighbors, "ROWS_PER_BLOCK", 7)
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(80, 6)).astype(np.float32)
    has_picture = rng.random(80) < share
    found = nearest_with_picture(vectors, has_picture)
    assert found.tolist() == by_hand(vectors, has_picture, 50)
    if share == 1.0:
        assert (found != NO_ITEM).all()


def test_only_the_fifty_nearest_items_are_looked_at():
    angle = np.linspace(0, np.pi / 2, 60)
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    has_picture = np.zeros(60, dtype=bool)
    has_picture[[50, 51]] = True
    assert nearest_with_picture(vectors, has_picture)[0].tolist() == [50, NO_ITEM, NO_ITEM]


def test_of_equally_near_items_the_first_of_the_catalog_are_chosen():
    found = nearest_with_picture(np.ones((70, 2), np.float32), np.ones(70, dtype=bool))
    assert found[[0, 2, 69]].tolist() == [[1, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_a_small_catalog_has_fewer_neighbors_and_none_is_the_item_itself():
    everything = np.ones(3, dtype=bool)
    found = nearest_with_picture(np.eye(3, 2, dtype=np.float32), everything)  # one vector is zero
    assert [sorted(row) for row in found.tolist()] == [[-1, 1, 2], [-1, 0, 2], [-1, 0, 1]]
    assert nearest_with_picture(np.ones((1, 2), np.float32), everything[:1]).tolist() == [[-1, -1, -1]]
    assert nearest_with_picture(np.ones((0, 2), np.float32), everything[:0]).shape == (0, 3)


def shop(last: int) -> Dataset:
    """Users who stay in one group of items. `last` decides their last two items, which are the targets."""
    rng = np.random.default_rng(0)
    histories = []
    for user in range(NUM_USERS):
        group = np.arange(user % NUM_GROUPS, NUM_ITEMS - 1, NUM_GROUPS)
        taken = rng.permutation(group)[:5].tolist()
        targets = [(user * 7 + last) % (NUM_ITEMS - 1), (user * 5 + 3 * last) % (NUM_ITEMS - 1)]
        histories.append((f"user-{user}", [*taken, *targets]))
    items = [{"item_id": f"item-{item}", "title": f"bolt {item}"} for item in range(NUM_ITEMS)]
    images = {item: Path(f"{item}.png") for item in range(NUM_ITEMS) if item % 5}
    return make_dataset("planted", items, histories, {}, images=images)


def found_in(dataset: Dataset, folder: Path) -> Neighbors:
    return find_neighbors(Run.of(dataset, replace(tiny(), history_length=6), folder), CONTENT)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Neighbors:
    return found_in(shop(1), tmp_path_factory.mktemp("cache"))


def test_neighbors_are_taken_together_in_the_training_part_and_have_a_picture(planted):
    known = planted.items[:UNKNOWN]
    assert planted.is_collaborative[:UNKNOWN].all()
    assert (known >= 0).all()
    assert (known % 5 != 0).all()
    same_group = known % NUM_GROUPS == np.arange(UNKNOWN)[:, None] % NUM_GROUPS
    assert same_group.mean() > 0.8  # by chance it would be 0.25


def test_an_item_that_nobody_took_has_the_nearest_by_content(planted):
    assert not planted.is_collaborative[UNKNOWN]
    has_picture = np.arange(NUM_ITEMS) % 5 != 0
    assert planted.items[UNKNOWN].tolist() == by_hand(CONTENT, has_picture, 50)[UNKNOWN]
    assert UNKNOWN not in planted.items[:UNKNOWN]


def test_other_targets_change_no_neighbor(planted, tmp_path):
    other = found_in(shop(2), tmp_path)
    np.testing.assert_array_equal(other.items, planted.items)
    np.testing.assert_array_equal(other.is_collaborative, planted.is_collaborative)
