"""PP-OCR, visual words and the head. Reading uses the real recognizer; a fake one would prove nothing."""

from difflib import SequenceMatcher

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from model_export.configs import HeadConfig, PpOcrConfig
from model_export.encoders import ctc, pp_ocr
from model_export.encoders.base import Reading
from model_export.encoders.head import ItemHead, close_pairs, train_head
from model_export.encoders.pp_ocr import PpOcr, model_file
from model_export.encoders.visual_words import (
    VisualWords,
    fit_visual_words,
    inked_frames,
    make_windows,
    nearest,
    spike_stats,
)
from service.core.bundle import RenderSpec
from service.core.render import render_text
from service.errors import GlyphrecError

SPEC = RenderSpec(max_strips=2)
CONFIG = PpOcrConfig(projection_dim=16, num_words=256, word_dim=24, stats_dim=8)
KINDS = ("steel bolt", "copper pipe", "wood screw", "paint brush", "duct tape", "glass jar")
EXTRAS = (
    "12 mm",
    "3/4 in.",
    "pack of 100",
    "black",
    "white (2 qt)",
    "heavy duty",
    "5 lb",
    "XL",
    "18 V",
    "blue",
)


def titles(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [
        ", ".join(
            [rng.choice(KINDS), *rng.choice(EXTRAS, 3, replace=False), f"no. {rng.integers(1000, 9999)}"]
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def encoder() -> PpOcr:
    return PpOcr(SPEC, CONFIG, seed=0)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return titles(60)


@pytest.fixture(scope="module")
def reading(encoder, texts) -> Reading:
    return encoder.read([render_text(text, SPEC).strips for text in texts])


@pytest.fixture(scope="module")
def pooling(encoder, reading) -> VisualWords:
    return encoder.fit(reading)


def random_reading(seed: int, num_items: int = 40, dim: int = 10) -> Reading:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 30, num_items)
    first_frame = np.concatenate([[0], np.cumsum(counts)])
    frames = rng.normal(size=(first_frame[-1], dim)).astype(np.float16)
    return Reading(frames, first_frame, rng.normal(size=dim + 1).astype(np.float32))


@pytest.mark.slow
def test_the_recognizer_reads_the_texts_that_we_draw(encoder):
    expected = titles(40, seed=1)
    strips = np.concatenate([render_text(text[:45].strip(), SPEC).strips[:1] for text in expected])
    read = encoder.transcribe(strips)
    right = sum(
        sum(block.size for block in SequenceMatcher(None, text[:45].strip(), found).get_matching_blocks())
        for text, found in zip(expected, read, strict=True)
    )
    assert right / sum(len(text[:45].strip()) for text in expected) > 0.97


@pytest.mark.slow
def test_the_gate_finds_about_as_many_letters_as_were_drawn(reading, texts):
    num_frames = np.diff(reading.first_frame)
    np.testing.assert_allclose(num_frames, [len(text) for text in texts], rtol=0.2, atol=3)


def test_reading_an_item_does_not_depend_on_the_other_items(encoder, reading, texts):
    """Both times the gate is the same, because it is fitted to all items."""
    strips = render_text(texts[7], SPEC).strips
    alone = encoder.read_items([strips], reading.gate)
    among = reading.of_items(7, 8)
    assert alone.num_items == 1
    np.testing.assert_allclose(alone.frames, among.frames, atol=0.02)


def test_an_interrupted_reading_continues_where_it_stopped(encoder, reading, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(ctc, "ITEMS_PER_PART", 25)
    strips = [render_text(text, SPEC).strips for text in texts]
    first = encoder.read(strips, tmp_path)
    (tmp_path / "items_00000050.npz").unlink()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    second = encoder.read(strips, tmp_path)
    for found in (first, second):
        np.testing.assert_array_equal(found.frames, reading.frames)
        np.testing.assert_array_equal(found.first_frame, reading.first_frame)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (tmp_path / "items_00000050.npz").is_file()


def test_a_reading_survives_saving_cutting_and_joining(tmp_path):
    reading = random_reading(0)
    reading.save(tmp_path / "reading.npz")
    parts = [Reading.load(tmp_path / "reading.npz").of_items(start, start + 10) for start in range(0, 40, 10)]
    joined = Reading.join(parts)
    for name in ("frames", "first_frame", "gate"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(reading, name))


def test_items_with_similar_texts_have_similar_features(pooling, reading, texts):
    """Similarity by visual words is compared with similarity by character n-grams of the drawn texts."""
    features = pooling.pool(reading)
    found = features @ features.T
    truth_table = TfidfVectorizer(analyzer="char", ngram_range=(4, 4), sublinear_tf=True).fit_transform(texts)
    truth = (truth_table @ truth_table.T).toarray()
    off_diagonal = ~np.eye(len(texts), dtype=bool)
    assert np.corrcoef(found[off_diagonal], truth[off_diagonal])[0, 1] > 0.6


def test_pooling_depends_on_the_order_of_letters(encoder, pooling, reading):
    """The same letters in another order give other features. A mean over frames would hardly differ."""

    def features(text):
        return pooling.pool(encoder.read_items([render_text(text, SPEC).strips], reading.gate))[0]

    same, moved = features("steel bolt, 12 mm, black"), features("leets tlob, 21 mm, calbk")
    near = features("steel bolt, 12 mm, blue")
    words = slice(0, pooling.word_basis.shape[1])
    assert same[words] @ near[words] > same[words] @ moved[words]


def test_fitting_again_gives_the_same_features(encoder, pooling, reading):
    np.testing.assert_array_equal(encoder.fit(reading).pool(reading), pooling.pool(reading))


def test_features_are_finite_for_an_item_without_a_single_letter():
    reading = random_reading(3)
    empty = Reading(reading.frames[:0], np.zeros(2, np.int64), reading.gate)
    assert np.isfinite(fit_visual_words(reading, CONFIG, seed=0).pool(empty)).all()


def test_a_catalog_without_letters_is_refused_with_the_remedy():
    nothing = Reading(np.zeros((0, 10), np.float16), np.zeros(6, np.int64), np.zeros(11, np.float32))
    with pytest.raises(GlyphrecError, match="Give the items titles"):
        fit_visual_words(nothing, CONFIG, seed=0)


def test_a_tiny_catalog_gets_fewer_words_and_dimensions():
    reading = random_reading(1, num_items=3)
    features = fit_visual_words(reading, CONFIG, seed=0).pool(reading)
    assert features.shape[0] == 3
    assert np.isfinite(features).all()


def test_windows_never_cross_items():
    item = torch.tensor([0, 0, 0, 1, 3, 3])
    vectors = torch.arange(1.0, 7.0)[:, None]
    assert make_windows(vectors, item, 3).tolist() == [
        [1, 2, 3],
        [2, 3, 0],
        [3, 0, 0],
        [4, 0, 0],
        [5, 6, 0],
        [6, 0, 0],
    ]


@pytest.mark.parametrize("seed", range(3))
def test_the_nearest_centroid_has_the_smallest_distance(seed):
    torch.manual_seed(seed)
    windows, centroids = torch.randn(50, 6, dtype=torch.float64), torch.randn(20, 6, dtype=torch.float64)
    assert nearest(windows, centroids).tolist() == torch.cdist(windows, centroids).argmin(dim=1).tolist()


def test_each_items_statistics_use_only_its_own_frames():
    frames = torch.randn(7, 3, dtype=torch.float64).float()
    stats = spike_stats(frames, torch.tensor([0, 0, 0, 0, 2, 2, 2]), 3)
    torch.testing.assert_close(stats[0, :3], frames[:4].mean(dim=0))
    torch.testing.assert_close(stats[2, 3:], frames[4:].std(dim=0, correction=0), atol=1e-3, rtol=1e-3)
    assert stats[1, :3].tolist() == [0, 0, 0]


def test_frames_after_the_last_letter_have_no_ink():
    strips = np.full((3, 4, 12), 255, np.uint8)
    strips[0, 2, 5] = 0
    strips[1, 0, 11] = 0
    assert inked_frames(torch.from_numpy(strips), 4).tolist() == [
        [True, True, False, False],
        [True] * 4,
        [False] * 4,
    ]


def test_the_error_for_a_missing_model_has_the_pip_line(monkeypatch):
    monkeypatch.setattr(pp_ocr, "find_spec", lambda _: None)
    with pytest.raises(GlyphrecError, match=r"pip install --no-deps rapidocr=="):
        model_file()


HEAD = HeadConfig(
    vector_dim=8,
    hidden_dim=32,
    max_steps=200,
    num_epochs=1000,
    batch_size=20,
    dropout=0.1,
    learning_rate=1e-2,
)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def bought_in_pairs(seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Random features, and sequences in which item 2i is bought with item 2i + 1."""
    features = unit(np.random.default_rng(seed).normal(size=(40, 32))).astype(np.float32)
    return features, [np.array([i, i + 1], np.int32) for i in range(0, 40, 2)]


def test_the_head_places_items_that_were_bought_together_close_together():
    features, sequences = bought_in_pairs(0)
    vectors = train_head(features, sequences, HEAD, seed=0).vectors(features)
    similarity = vectors @ vectors.T - 2 * np.eye(40)
    assert (similarity.argmax(axis=1) == np.arange(40) ^ 1).mean() > 0.9
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_head_without_purchases_keeps_the_geometry_of_the_features():
    features = unit(np.random.default_rng(0).normal(size=(30, 6))).astype(np.float32)
    vectors = train_head(features, [np.array([3], np.int32)], HEAD, seed=0).vectors(features)
    np.testing.assert_allclose(vectors @ vectors.T, features @ features.T, atol=0.02)


def test_training_a_head_again_gives_the_same_head():
    features, sequences = bought_in_pairs(1)
    first, second = (train_head(features, sequences, HEAD, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.vectors(features), second.vectors(features))


def test_pairs_are_different_items_within_the_window():
    sequence = np.array([4, 2, 2, 7], np.int32)
    found = sorted(map(tuple, close_pairs([sequence, sequence[:0]], window=2).tolist()))
    assert found == [(2, 7), (2, 7), (4, 2), (4, 2)]


def test_a_head_has_the_dimensions_of_its_configuration():
    assert ItemHead(feature_dim=5, config=HEAD)(torch.randn(3, 5)).shape == (3, 8)
