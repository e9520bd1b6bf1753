"""The cosine of the TF-IDF vectors of item texts, by words or by letters. Nothing is trained."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

Terms = Literal["words", "letters"]

# Words and pairs of words, or runs of four letters within a word.
TERMS: dict[Terms, dict[str, Any]] = {
    "words": {"ngram_range": (1, 2), "token_pattern": r"\w+"},
    "letters": {"analyzer": "char_wb", "ngram_range": (4, 4)},
}
MAX_SHARE = 0.1  # a term of more items says little, and would take most of the time
MIN_ITEMS_FOR_SHARE = 100  # of fewer items, a tenth would be too few


def text_cosines(texts: Sequence[str], terms: Terms) -> NDArray[np.float32]:
    """The cosine of each pair of texts: [item, item], 4 bytes a pair. It is 0 for a text without terms."""
    vectors = text_vectors(texts, terms)
    if vectors is None:
        return np.zeros((len(texts), len(texts)), dtype=np.float32)
    cosines: NDArray[np.float32] = (vectors @ vectors.T).toarray()
    return cosines


def text_vectors(texts: Sequence[str], terms: Terms) -> csr_matrix | None:
    """The TF-IDF vector of each text, of length 1: [item, term]. None if no text has a term."""
    max_share = MAX_SHARE if len(texts) >= MIN_ITEMS_FOR_SHARE else 1.0
    vectorizer = TfidfVectorizer(sublinear_tf=True, max_df=max_share, dtype=np.float32, **TERMS[terms])
    analyze = vectorizer.build_analyzer()
    if not any(analyze(text) for text in texts):
        return None
    return vectorizer.fit_transform(texts)
