"""Counts of terms (visual words, letter grams) -> TF-IDF, reduced by an SVD (latent semantic analysis)."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD
from sklearn.preprocessing import normalize

MIN_SPREAD = 1e-2  # of the widest axis; whitening a narrower axis would amplify rounding errors


class TfIdf(NamedTuple):
    """The fitted transformation of counts [item, term] to features [item, dim]."""

    idf: NDArray[np.float32]  # [term]
    basis: NDArray[np.float32]  # [term, dim]


def fit_tf_idf(
    counts: csr_matrix, items_with: NDArray[np.int64], num_items: int, max_dim: int, seed: int
) -> TfIdf:
    """Fit to counts [item, term]. items_with [term] is the number of items that have each term.

    There are max_dim axes, or fewer if items or terms are few. The axes are whitened. Otherwise the terms
    that nearly all items share would outweigh the terms that distinguish items.
    """
    num_terms = len(items_with)
    idf = (np.log((1 + num_items) / (1 + items_with)) + 1).astype(np.float32)
    weights = normalize(counts.log1p().multiply(idf).tocsr())  # [item, term]
    dim = max(1, min(max_dim, num_items - 1, num_terms - 1))
    svd = TruncatedSVD(dim, random_state=seed).fit(weights)
    scale = svd.singular_values_.clip(min=MIN_SPREAD * svd.singular_values_[0])
    return TfIdf(idf, svd.components_.T * (svd.singular_values_[0] / scale))
