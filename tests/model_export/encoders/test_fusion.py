"""Text and photo as one vector: what is missing, what is hidden, and that no item depends on another."""

from functools import partial

import numpy as np
import pytest
import torch

from model_export.configs import HeadConfig
from model_export.encoders.fusion import Fusion, Photos, make_head, without_photos, without_texts
from model_export.encoders.head import train_head
from model_export.picture_configs import PicturesConfig

NUM_ITEMS, TEXT_DIM, PHOTO_DIM = 60, 12, 20
HEAD = HeadConfig(
    vector_dim=8, hidden_dim=32, num_epochs=100, max_steps=150, batch_size=64, window=1, dropout=0.0
)
KINDS = np.arange(NUM_ITEMS) % 6


@pytest.fixture(scope="module")
def texts() -> np.ndarray:
    rng = np.random.default_rng(0)
    means = rng.normal(size=(6, TEXT_DIM))
    return (means[KINDS] + 0.3 * rng.normal(size=(NUM_ITEMS, TEXT_DIM))).astype(np.float32)


@pytest.fixture(scope="module")
def photos() -> Photos:
    """All items but the last ten have a photo. Photos are far from zero, as those of real encoders are."""
    rng = np.random.default_rng(1)
    means = 3 + rng.normal(size=(6, PHOTO_DIM))
    features = (means[KINDS] + 0.3 * rng.normal(size=(NUM_ITEMS, PHOTO_DIM))).astype(np.float32)
    photo_of = np.where(np.arange(NUM_ITEMS) < NUM_ITEMS - 10, np.arange(NUM_ITEMS), -1)
    return Photos(features[: NUM_ITEMS - 10], photo_of)


def fitted(photos: Photos, config: PicturesConfig) -> Fusion:
    fusion = Fusion(text_dim=TEXT_DIM, dim=PHOTO_DIM, config=config)
    fusion.fit(photos.features)
    return fusion


def trained(fusion: Fusion, config: PicturesConfig, features: np.ndarray, head: HeadConfig = HEAD):
    """A head that learned that items of one kind are bought together."""
    rng = np.random.default_rng(2)
    sequences = [rng.choice(np.flatnonzero(n % 6 == KINDS), 4).astype(np.int32) for n in range(60)]
    return train_head(features, sequences, head, 0, partial(make_head, fusion, head, config))


def test_both_have_their_length_and_what_is_missing_is_zero(texts, photos):
    config = PicturesConfig(photo_dim=7, weight=0.5)
    texts = np.where((np.arange(NUM_ITEMS) == 3)[:, None], 0, texts).astype(np.float32)
    features = fitted(photos, config).fuse(texts, photos)
    assert features.shape == (NUM_ITEMS, TEXT_DIM + 7 + 2)
    words = np.linalg.norm(features[:, :TEXT_DIM], axis=1)
    seen = np.linalg.norm(features[:, TEXT_DIM:-2], axis=1)
    np.testing.assert_allclose(words, np.arange(NUM_ITEMS) != 3, atol=1e-6)
    np.testing.assert_allclose(seen, 0.5 * (photos.photo_of >= 0), atol=1e-6)
    np.testing.assert_array_equal(features[:, -2:], np.stack([words > 0, seen > 0], axis=1))


def test_the_axes_keep_the_geometry_of_centered_photos(texts, photos):
    config = PicturesConfig(photo_dim=PHOTO_DIM, weight=1.0)
    features = fitted(photos, config).fuse(texts, photos)[: NUM_ITEMS - 10, TEXT_DIM:-2]
    centered = photos.features - photos.features.mean(axis=0)
    centered /= np.linalg.norm(centered, axis=1, keepdims=True)
    np.testing.assert_allclose(features @ features.T, centered @ centered.T, atol=1e-4)


def test_a_catalog_with_fewer_photos_than_axes_is_fitted(texts):
    few = Photos(np.ones((1, PHOTO_DIM), np.float32), np.array([0] + [-1] * (NUM_ITEMS - 1)))
    config = PicturesConfig(photo_dim=16)
    features = fitted(few, config).fuse(texts, few)
    assert np.isfinite(trained(fitted(few, config), config, features).vectors(features)).all()


@pytest.mark.parametrize("how", ["head", "sum"])
def test_the_vector_of_an_item_does_not_depend_on_the_others(texts, photos, how):
    config = PicturesConfig(fusion=how)
    fusion = fitted(photos, config)
    features = fusion.fuse(texts, photos)
    head = trained(fusion, config, features)
    alone = np.concatenate([head.vectors(features[place : place + 1]) for place in range(NUM_ITEMS)])
    np.testing.assert_allclose(head.vectors(features), alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("how", ["head", "sum"])
def test_an_item_without_one_of_the_two_is_near_its_kind(texts, photos, how):
    config = PicturesConfig(fusion=how, hidden_share=0.2)
    fusion = fitted(photos, config)
    features = fusion.fuse(texts, photos)
    head = trained(fusion, config, features)
    vectors = head.vectors(features)
    for hidden in (without_photos(features, fusion), without_texts(features, fusion)):
        has_rest = hidden[:, -2:].any(axis=1)
        cosines = head.vectors(hidden)[has_rest] @ vectors.T
        cosines[np.arange(has_rest.sum()), np.flatnonzero(has_rest)] = -1
        assert (KINDS[cosines.argmax(axis=1)] == KINDS[has_rest]).mean() > 0.95


def test_hidden_in_training_an_item_stays_nearer_to_itself(texts, photos):
    """The photo tells more than the text here, so a head that never lacked it leans on it."""
    near = {}
    for share in (0.0, 0.3):
        config = PicturesConfig(hidden_share=share, weight=2.0)
        fusion = fitted(photos, config)
        features = fusion.fuse(texts, photos)
        head = trained(fusion, config, features)
        hidden = without_photos(features, fusion)
        near[share] = float((head.vectors(hidden) * head.vectors(features)).sum(axis=1).mean())
    assert near[0.3] > near[0.0] + 0.05


def test_a_stand_in_is_learnt_for_what_is_missing(texts, photos):
    config = PicturesConfig(hidden_share=0.2)
    fusion = fitted(photos, config)
    head = trained(fusion, config, fusion.fuse(texts, photos))
    assert head.no_text.abs().max() > 1e-3
    assert head.no_photo.abs().max() > 1e-3


def test_without_training_the_vector_is_the_projection_of_both(texts, photos):
    config, head_config = PicturesConfig(fusion="concat", photo_dim=8), HeadConfig(vector_dim=20, max_steps=0)
    fusion = fitted(photos, config)
    features = fusion.fuse(texts, photos)
    head = trained(fusion, config, features, head_config)
    with torch.no_grad():
        head.mlp[-1].weight.zero_()  # it begins as noise that is almost nothing
    both = features[:, :-2] / np.linalg.norm(features[:, :-2], axis=1, keepdims=True)
    found = head.vectors(features)
    np.testing.assert_allclose(found @ found.T, both @ both.T, atol=1e-4)


def test_the_photo_alone_leaves_the_text_out(texts, photos):
    config = PicturesConfig(fusion="photo")
    fusion = Fusion(text_dim=0, dim=PHOTO_DIM, config=config)
    fusion.fit(photos.features)
    features = fusion.fuse(texts, photos)
    np.testing.assert_array_equal(features, fusion.fuse(texts + 1, photos))
    head = trained(fusion, config, features)
    lacking = head.vectors(features)[photos.photo_of < 0]
    np.testing.assert_allclose(lacking, np.broadcast_to(lacking[0], lacking.shape), atol=1e-6)
