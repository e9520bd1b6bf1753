"""Ranks, the linear space, the training of the projections, and the features of photos and their regions."""

import numpy as np
import pytest
import torch

from model_export.picture_configs import SpaceConfig
from model_export.vl_clip.boxes import WHOLE, Box
from model_export.vl_clip.joint_space import TextPhotoPairs, train_projections
from model_export.vl_clip.linear_space import WordSpace, fit_linear_space, unit
from model_export.vl_clip.photo_reader import PhotoReader, class_logits, features_of
from model_export.vl_clip.retrieval import figures_of, ranks_of_pairs
from model_export.vl_clip.space import symmetric_contrastive_loss
from service.core.pictures import on_square
from tests.model_export.vl_clip.shop import draw

SIZE_PX = 64


def test_ranks_are_those_of_a_full_sort_and_equal_photos_come_first():
    rng = np.random.default_rng(0)
    texts, photos = (unit(rng.normal(size=(50, 4)).astype(np.float32)) for _ in range(2))
    order = np.argsort(-(texts @ photos.T), axis=1)
    expected = [np.flatnonzero(order[row] == row)[0] for row in range(50)]
    assert ranks_of_pairs(texts, photos).tolist() == expected
    assert ranks_of_pairs(texts, np.repeat(photos[:1], 50, axis=0)).tolist() == [49] * 50


def test_figures_of_known_ranks():
    found = figures_of(np.array([0, 4, 5, 99]))
    assert found == {"hits@1": 0.25, "hits@5": 0.5, "hits@10": 0.75, "hits@50": 0.75,
                     "mrr": pytest.approx((1 + 1 / 5 + 1 / 6 + 1 / 100) / 4)}  # fmt: skip
    assert figures_of(np.zeros(0, np.int64)) == {}


def test_the_loss_is_the_mean_of_both_directions():
    texts = torch.nn.functional.normalize(torch.randn(5, 3), dim=1)
    photos = torch.nn.functional.normalize(torch.randn(5, 3), dim=1)
    logits = (texts @ photos.T / 0.1).double()
    rows = (logits.exp() / logits.exp().sum(dim=1, keepdim=True)).diagonal().log().mean()
    columns = (logits.exp() / logits.exp().sum(dim=0, keepdim=True)).diagonal().log().mean()
    loss = symmetric_contrastive_loss(texts, photos, 0.1)
    assert loss.item() == pytest.approx(-(rows + columns).item() / 2, rel=1e-4)


def pairs_of(count: int, seed: int, noise: float = 0.3, *, is_bent: bool = False) -> TextPhotoPairs:
    """Two views of the same hidden numbers, each with noise of its own. The maps are those of every seed."""
    maps = np.random.default_rng(0)
    of_text, of_photo = maps.normal(size=(4, 12)), maps.normal(size=(4, 20))
    rng = np.random.default_rng(seed + 1)
    hidden = rng.normal(size=(count, 4))
    text = hidden @ of_text + noise * rng.normal(size=(count, 12))
    seen = np.maximum(hidden, 0) + 0.2 * hidden if is_bent else hidden  # bent: no linear map fits it
    photo = seen @ of_photo + noise * rng.normal(size=(count, 20))
    return TextPhotoPairs(*(side.astype(np.float32) for side in (text, text, photo)))


def test_the_linear_space_finds_what_two_views_share():
    train, test = pairs_of(400, 0), pairs_of(60, 1)
    space = fit_linear_space(train.texts, train.photos, 4, ridge=0.01)
    found = figures_of(ranks_of_pairs(space.of_left(test.texts), space.of_right(test.photos)))
    assert found["hits@5"] > 0.6
    lengths = np.linalg.norm(space.of_left(test.texts), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)


def test_one_direction_is_the_canonical_correlation():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 1)).astype(np.float32)
    y = np.concatenate([rng.normal(size=(2000, 1)), 3 * x + rng.normal(size=(2000, 1))], axis=1).astype(
        np.float32
    )
    space = fit_linear_space(x, y, 1, ridge=0.0)
    left, right = (x - x.mean(0)) @ space.left, (y - y.mean(0)) @ space.right
    assert np.corrcoef(left[:, 0], right[:, 0])[0, 1] == pytest.approx(np.sqrt(0.9), abs=0.02)


def test_words_are_the_baseline():
    colors = ["red", "green", "blue", "gold"] * 10
    texts = [f"a {color} thing" for color in colors]
    photos = np.eye(4, dtype=np.float32)[[["red", "green", "blue", "gold"].index(color) for color in colors]]
    space = WordSpace(texts, photos, dim=3, text_dim=8, ridge=0.1, seed=0)
    likeness = space.texts(["red thing", "gold"]) @ space.photos(np.eye(4, dtype=np.float32)).T
    assert likeness.argmax(axis=1).tolist() == [0, 3]


CONFIG = SpaceConfig(
    dim=8,
    hidden_dim=32,
    dropout=0.1,
    batch_size=100,
    max_epochs=30,
    patience=5,
    learning_rate=3e-3,
    ridge=0.1,
)


def test_training_starts_at_the_linear_space_and_improves_on_it():
    train, validation, test = (pairs_of(n, seed, is_bent=True) for seed, n in enumerate((600, 100, 100)))
    found = train_projections(train, validation, CONFIG, seed=0)
    start = figures_of(
        ranks_of_pairs(*(space(side) for space, side in _linear(train, test)))
    )["mrr"]  # fmt: skip
    ranks = ranks_of_pairs(found.text.vectors(test.texts), found.photo.vectors(test.photos))
    assert figures_of(ranks)["mrr"] > start + 0.02
    kept = figures_of(
        ranks_of_pairs(found.text.vectors(validation.texts), found.photo.vectors(validation.photos))
    )
    assert kept["mrr"] == pytest.approx(max(found.curve))
    again = train_projections(train, validation, CONFIG, seed=0)
    assert again.curve == found.curve


def _linear(train: TextPhotoPairs, test: TextPhotoPairs):
    space = fit_linear_space(train.texts, train.photos, 8, ridge=0.1)
    return (space.of_left, test.texts), (space.of_right, test.photos)


def test_training_stops_when_validation_does_not_improve():
    rng = np.random.default_rng(0)
    noise = [
        TextPhotoPairs(*(rng.normal(size=(n, 6)).astype(np.float32) for _ in range(3))) for n in (50, 40)
    ]
    found = train_projections(*noise, SpaceConfig(dim=4, hidden_dim=8, max_epochs=200, patience=3), seed=0)
    assert len(found.curve) < 100


def test_without_validation_pairs_all_epochs_run():
    train = pairs_of(40, 0)
    empty = TextPhotoPairs(*(side[:0] for side in train))
    config = SpaceConfig(dim=4, hidden_dim=8, max_epochs=3, patience=1)
    assert len(train_projections(train, empty, config, seed=0).curve) == 4


@pytest.fixture(scope="module")
def reader() -> PhotoReader:
    return PhotoReader(SIZE_PX)


def squares(*photos) -> torch.Tensor:
    return torch.from_numpy(np.stack([on_square(photo, SIZE_PX) for photo in photos]))


@torch.no_grad()
def test_the_features_of_a_photo_follow_from_its_cells(reader):
    photos = squares(draw("navy", "ball"), draw("gold", "kite"))
    cells = reader.cells(photos)
    assert cells.shape == (2, 2, 2, reader.feature_dim)
    averages = cells.flatten(1, 2).mean(dim=1)
    torch.testing.assert_close(reader(photos), features_of(averages))
    classifier = reader.network(
        (photos.permute(0, 3, 1, 2).to(torch.float32) - 127) / 128
    )  # what EfficientNet says itself
    logits = class_logits(cells.numpy()).mean(axis=(1, 2))
    np.testing.assert_allclose(logits, classifier.numpy(), atol=1e-3)


@torch.no_grad()
def test_early_features_tell_colors_apart_better_than_the_last_map(reader):
    navy, gold, other_navy = reader(
        squares(draw("navy", "ball"), draw("gold", "ball"), draw("navy", "ball", 3))
    ).numpy()
    early = slice(1280, None)
    assert np.linalg.norm((navy - gold)[early]) > 2 * np.linalg.norm((navy - other_navy)[early])


def test_a_span_has_at_least_one_cell_and_ends_with_the_photo():
    from model_export.vl_clip.joint_space import _span

    assert _span(0.0, 1.0, 12) == (0, 12)
    assert _span(0.5, 1.0, 12) == (6, 12)
    assert _span(0.99, 1.0, 2) == (1, 2)
    assert _span(0.3, 0.3, 2) == (1, 2)
    assert WHOLE.area == 1
    assert Box(0.5, 0, 1, 0.5).area == 0.25
