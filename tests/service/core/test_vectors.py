"""Vectors as they are kept: their directions stay, and equal vectors have equal bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from service.core.vectors import MAX_DIM, as_text, from_text, lengths, packed, quantized, unpacked

FLOATS = st.floats(-1e3, 1e3, width=32)


@given(arrays(np.float32, (3, 8), elements=FLOATS))
def test_the_largest_number_is_127_and_the_direction_stays(vectors):
    found = quantized(vectors)
    for row, kept in zip(vectors.astype(np.float64), found.astype(np.float64), strict=True):
        if not row.any():
            assert not kept.any()
            continue
        assert np.abs(kept).max() == 127
        assert np.abs(kept - row * 127 / np.abs(row).max()).max() <= 0.5 + 1e-4


def test_what_is_no_number_counts_as_nothing():
    assert quantized(np.array([[np.nan, 1, -np.inf]], np.float32)).tolist() == [[0, 127, 0]]


def test_what_is_packed_is_unpacked():
    vectors = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    assert np.array_equal(unpacked(packed(vectors), 16), quantized(vectors))
    assert [from_text(as_text(value)) for value in packed(vectors)] == packed(vectors)


def test_a_value_of_another_length_is_refused():
    with pytest.raises(ValueError, match="not 4 bytes"):
        unpacked([b"abcd", b"abc"], 4)


@pytest.mark.parametrize("text", [7, None, "§", "abc"])
def test_what_is_no_base64_is_no_vector(text):
    with pytest.raises(ValueError, match="vector"):
        from_text(text)


def test_float32_holds_the_products_of_the_longest_vectors_exactly():
    longest = np.full((2, MAX_DIM), 127, np.int8)
    exact = int(longest[0].astype(np.int64) @ longest[1].astype(np.int64))
    assert exact == float(longest[0].astype(np.float32) @ longest[1].astype(np.float32))
    assert lengths(longest)[0] == np.float32(exact**0.5)
