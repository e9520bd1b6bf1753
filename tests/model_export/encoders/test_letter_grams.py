"""Letter grams against grams that Python counts in the drawn text."""

import numpy as np
import pytest
import torch

from model_export.configs import CompactConfig
from model_export.encoders.base import Reading
from model_export.encoders.compact.letter_grams import (
    LENGTHS,
    LetterGrams,
    buckets,
    fit_letter_grams,
    symbols_of,
)
from model_export.encoders.compact.reader import ALPHABET, CompactReader
from service.core.bundle import RenderSpec
from service.core.render import render_text
from service.errors import GlyphrecError

SPEC = RenderSpec(max_strips=2)
TEXTS = [
    "Hex nuts M3 zinc plated, 500 ct; fasteners > nuts",
    "Hex nuts M4 zinc plated, 250 ct; fasteners > nuts",
    "HEX NUTS M3 ZINC PLATED, 500 CT; FASTENERS > NUTS",
    "Beaker 250 ml borosilicate glass; labware > beakers",
    "Beaker 500 ml borosilicate glass; labware > beakers",
    "Nitrile gloves, powder free, large, box of 100",
]


class Spelled(torch.nn.Linear):
    """A classifier for frames that are one-hot letters."""

    def __init__(self) -> None:
        super().__init__(len(ALPHABET), len(ALPHABET))
        with torch.no_grad():
            self.weight.copy_(torch.eye(len(ALPHABET)))
            self.bias.zero_()


def spelled(texts: list[str]) -> Reading:
    letters = [ALPHABET.index(letter) for text in texts for letter in text]
    frames = np.eye(len(ALPHABET), dtype=np.float16)[letters]
    first = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    return Reading(frames, first, np.zeros(len(ALPHABET) + 1, np.float32))


def fitted(texts: list[str], **changes: int) -> LetterGrams:
    config = CompactConfig(**{"num_grams": 100_000, "feature_dim": 4} | changes)
    return fit_letter_grams(spelled(texts), Spelled(), ALPHABET, config, seed=0)


def grams_of(text: str) -> set[str]:
    text = text.casefold()
    return {text[at : at + length] for length in LENGTHS for at in range(len(text) - length + 1)}


@torch.no_grad()
def test_counts_equal_the_counts_in_the_text():
    pooling, reading = fitted(TEXTS), spelled(TEXTS)
    frames = torch.from_numpy(reading.frames.astype(np.float32))
    counts = pooling.counts(frames, torch.from_numpy(reading.item_of_frame()), len(TEXTS))
    known = set().union(*map(grams_of, TEXTS))
    assert counts.shape[1] == pytest.approx(len(known), abs=2), "hardly any two grams should share a bucket"
    for row, text in zip(counts, TEXTS, strict=True):
        assert int((row > 0).sum()) == pytest.approx(len(grams_of(text)), abs=2)
        assert int(row.sum()) == sum(len(text) - length + 1 for length in LENGTHS)


def test_case_accents_and_typography_are_folded_but_letters_stay_distinct():
    symbols = dict(zip(ALPHABET, symbols_of(ALPHABET).tolist(), strict=True))
    assert symbols["A"] == symbols["a"] == symbols["\N{LATIN SMALL LETTER A WITH ACUTE}"]
    assert symbols["-"] == symbols["\N{EN DASH}"]
    assert symbols["x"] == symbols["\N{MULTIPLICATION SIGN}"]
    assert len({symbols[letter] for letter in "abcdefghijklmnopqrstuvwxyz0123456789 .,;/-"}) == 42
    features = fitted(TEXTS).pool(spelled(TEXTS))
    np.testing.assert_allclose(features[0], features[2], atol=1e-5)
    assert features[0] @ features[1] > features[0] @ features[3]


def test_runs_never_cross_items():
    symbols, item = torch.tensor([1, 2, 3, 1, 2, 3, 4]), torch.tensor([0, 0, 0, 1, 1, 1, 1])
    bucket, is_whole = buckets(symbols, item, 3)
    assert is_whole.tolist() == [True, False, False, True, True, False, False]
    assert bucket[0] == bucket[3] != bucket[4]


def test_only_the_most_common_grams_are_kept():
    pooling = fitted(TEXTS, num_grams=40)
    assert pooling.num_grams == 40
    counts = [sum(gram in grams_of(text) for text in TEXTS) for gram in set().union(*map(grams_of, TEXTS))]
    assert np.exp(pooling.idf.max().item() - 1) <= (1 + len(TEXTS)) / (1 + sorted(counts)[-40]) + 1e-3


def test_an_item_without_letters_has_finite_features_and_a_catalog_without_letters_is_refused():
    empty = Reading(np.zeros((0, len(ALPHABET)), np.float16), np.zeros(2, np.int64), np.zeros(1, np.float32))
    assert np.isfinite(fitted(TEXTS).pool(empty)).all()
    with pytest.raises(GlyphrecError, match="Give the items titles"):
        fit_letter_grams(empty, Spelled(), ALPHABET, CompactConfig(), seed=0)


def test_texts_without_a_run_of_three_letters_in_common_are_told_apart_by_shorter_runs():
    features = fitted(["12", "21", "12", "7"], feature_dim=3).pool(spelled(["12", "21", "12", "7"]))
    np.testing.assert_allclose(features[0], features[2], atol=1e-5)
    assert features[0] @ features[1] < 0.99  # the same letters in another order
    assert features[0] @ features[1] > features[0] @ features[3]
    with pytest.raises(GlyphrecError, match="Give the items titles or descriptions"):
        fitted(["7", "7", "7"])


@torch.no_grad()
def test_items_that_are_drawn_and_read_show_the_grams_of_their_texts():
    """This uses the real reader. It does not see a space at the end of a line."""
    encoder = CompactReader(SPEC, CompactConfig(num_grams=100_000, feature_dim=5), seed=0)
    reading = encoder.read([render_text(text, SPEC).strips for text in TEXTS])
    pooling = encoder.fit(reading)
    frames = torch.from_numpy(reading.frames.astype(np.float32))
    counts = pooling.counts(frames, torch.from_numpy(reading.item_of_frame()), len(TEXTS)).numpy()
    for row, text in zip(counts, TEXTS, strict=True):
        assert (row > 0).sum() == pytest.approx(len(grams_of(text)), rel=0.1)
    shared = np.minimum(counts[0], counts).sum(axis=1) / counts[0].sum()  # [item]
    expected = [len(grams_of(TEXTS[0]) & grams_of(text)) / len(grams_of(TEXTS[0])) for text in TEXTS]
    np.testing.assert_allclose(shared, expected, atol=0.12)


@torch.no_grad()
def test_without_whitening_the_axes_have_the_spread_of_the_texts_and_a_search_takes_half_of_the_way():
    pooling, reading = fitted(TEXTS, feature_dim=3), spelled(TEXTS)
    frames, item = (
        torch.from_numpy(reading.frames.astype(np.float32)),
        torch.from_numpy(reading.item_of_frame()),
    )
    weights = pooling.counts(frames, item, len(TEXTS)).log1p() * pooling.idf
    weights /= weights.norm(dim=1, keepdim=True)  # [item, gram]
    spread = torch.linalg.svdvals(weights)[:3]
    own = weights @ pooling.with_own_spread().basis  # [item, axis]
    torch.testing.assert_close(own.norm(dim=0), spread, rtol=1e-3, atol=1e-3)
    scale = pooling.search_scale()
    torch.testing.assert_close(scale.square(), spread / spread[0], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_features_of_few_items_are_those_of_many():
    """The graph of the tokenizer pools in another way than the offline stages, and both must agree."""
    texts = [*TEXTS, "no run of it is known: qzxj", "aaaaaaaa", ""]
    pooling, reading = fitted(TEXTS, num_grams=60), spelled(texts)
    frames, item = (
        torch.from_numpy(reading.frames.astype(np.float32)),
        torch.from_numpy(reading.item_of_frame()),
    )
    many = pooling.features(frames, item, len(texts))
    torch.testing.assert_close(pooling.features_of_few(frames, item, len(texts)), many, rtol=0, atol=1e-6)
    assert many[: len(TEXTS)].norm(dim=1).min() > 0.99
    assert not many[-1].any()
