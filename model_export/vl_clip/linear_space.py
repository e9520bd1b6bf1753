"""Canonical correlations (Hotelling, 1936): the linear joint space of two sets of features.

It is the baseline of the joint spaces, with the words' TF-IDF on the side of texts. On the side of our own
features it is also the start of the training (joint_space.py).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
MIN_TEXTS = 2  # that have a word
MAX_WORDS = 20_000
MIN_SPREAD = 1e-6

Matrix = NDArray[np.float32]


class LinearSpace(NamedTuple):
    """Centers and projections of both sides. Equal weight goes to each pair of the training."""

    left_mean: Matrix  # [left]
    right_mean: Matrix  # [right]
    left: Matrix  # [left, dim]
    right: Matrix  # [right, dim]

    def of_left(self, features: Matrix) -> Matrix:
        """Features [any, left] -> vectors [any, dim] of length 1."""
        return unit((features - self.left_mean) @ self.left)

    def of_right(self, features: Matrix) -> Matrix:
        """Features [any, right] -> vectors [any, dim] of length 1."""
        return unit((features - self.right_mean) @ self.right)


def unit(rows: NDArray[np.floating[Any]]) -> Matrix:
    """The rows at length 1. Rows of zeros stay."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    found: Matrix = (rows / np.maximum(length, 1e-12)).astype(np.float32)
    return found


def fit_linear_space(left: Matrix, right: Matrix, dim: int, ridge: float) -> LinearSpace:
    """Fit to pairs: left [pair, feature] and right [pair, feature]. At most `dim` numbers.

    `ridge` is added to the variance of each feature, in units of the mean variance of its side. The
    directions are scaled by their correlations, so a direction that the two sides hardly share counts little.
    """
    left_mean, right_mean = left.mean(axis=0), right.mean(axis=0)
    x, y = (left - left_mean).astype(np.float64), (right - right_mean).astype(np.float64)
    x_root, y_root = _root(x, ridge), _root(y, ridge)
    between = x.T @ y / len(x)  # [left, right]
    white = solve_triangular(x_root, between, lower=True)
    white = solve_triangular(y_root, white.T, lower=True).T  # whitened on both sides
    u, correlations, v = np.linalg.svd(white, full_matrices=False)
    scale = np.sqrt(correlations[:dim])
    return LinearSpace(
        left_mean,
        right_mean,
        (solve_triangular(x_root.T, u[:, :dim]) * scale).astype(np.float32),
        (solve_triangular(y_root.T, v[:dim].T) * scale).astype(np.float32),
    )


def _root(rows: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    """The Cholesky factor of the covariance with the ridge."""
    covariance = rows.T @ rows / len(rows)
    mean_variance = max(np.trace(covariance) / len(covariance), MIN_SPREAD)
    found: NDArray[np.float64] = np.linalg.cholesky(
        covariance + (ridge * mean_variance + MIN_SPREAD) * np.eye(len(covariance))
    )
    return found


class WordSpace:
    """The baseline: words' TF-IDF, reduced to `text_dim` axes, and photos in one linear space."""

    def __init__(
        self, texts: Sequence[str], photos: Matrix, *, dim: int, text_dim: int, ridge: float, seed: int
    ) -> None:
        """Fit to pairs of texts and features of photos [pair, feature]."""
        self._words = TfidfVectorizer(sublinear_tf=True, min_df=MIN_TEXTS, max_features=MAX_WORDS)
        counts = self._words.fit_transform(texts)
        text_dim = max(1, min(text_dim, len(texts) - 1, counts.shape[1] - 1))
        self._axes = TruncatedSVD(text_dim, random_state=seed).fit(counts)
        self._space = fit_linear_space(self._features(texts), photos, dim, ridge)

    def texts(self, texts: Sequence[str]) -> Matrix:
        """Vectors [text, dim] of length 1."""
        return self._space.of_left(self._features(texts))

    def photos(self, features: Matrix) -> Matrix:
        """Features of photos [photo, feature] -> vectors [photo, dim] of length 1."""
        return self._space.of_right(features)

    def _features(self, texts: Sequence[str]) -> Matrix:
        found: Matrix = self._axes.transform(self._words.transform(texts)).astype(np.float32)
        return found
