"""The overlap of two modalities' neighborhoods, against a full sort and in cases that are known."""

import numpy as np
import pytest

from model_export.study import overlap
from model_export.study.overlap import neighborhood_overlap

RNG = np.random.default_rng(0)


def by_hand(left: np.ndarray, right: np.ndarray, count: int) -> float:
    shares = []
    for item in range(len(left)):
        near = []
        for vectors in (left, right):
            cosine = vectors @ vectors[item] / np.linalg.norm(vectors, axis=1)
            cosine[item] = -np.inf
            near.append(set(np.argsort(-cosine)[:count].tolist()))
        shares.append(len(near[0] & near[1]) / count)
    return float(np.mean(shares))


def vectors(count: int, dim: int) -> np.ndarray:
    return RNG.normal(size=(count, dim)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 3, 10, 39])
def test_it_equals_the_overlap_by_a_full_sort(count, monkeypatch):
    monkeypatch.setattr(overlap, "ROWS_PER_BLOCK", 7)
    left = vectors(40, 5)
    right = np.concatenate([left[:, :3] + 0.3 * vectors(40, 3), vectors(40, 2)], axis=1)
    assert neighborhood_overlap(left, right, count) == pytest.approx(by_hand(left, right, count))


def test_a_modality_has_its_own_neighborhoods_whatever_its_scale_and_rotation():
    left = vectors(60, 4)
    rotation, _ = np.linalg.qr(vectors(4, 4))
    scales = RNG.uniform(0.1, 9, size=(60, 1)).astype(np.float32)
    assert neighborhood_overlap(left, scales * (left @ rotation).astype(np.float32)) == 1.0


def test_unrelated_modalities_overlap_by_chance():
    found = neighborhood_overlap(vectors(600, 8), vectors(600, 30))
    assert found == pytest.approx(10 / 599, abs=0.006)


def test_groups_of_eleven_that_both_modalities_tell_apart_overlap_fully():
    groups = np.repeat(np.eye(7, dtype=np.float32), 11, axis=0)
    assert neighborhood_overlap(groups + 0.01 * vectors(77, 7), groups + 0.01 * vectors(77, 7)) == 1.0


def test_other_items_or_too_few_are_refused():
    with pytest.raises(ValueError, match="12 items on the left and 13 on the right"):
        neighborhood_overlap(vectors(12, 3), vectors(13, 3))
    with pytest.raises(ValueError, match="10 items are too few to have 10 neighbors each"):
        neighborhood_overlap(vectors(10, 3), vectors(10, 3))
