"""A bundle is measured as a service would search it."""

import numpy as np

from benchmarks.search_quality import way_of_bundle
from service.core.bundle import load_bundle
from tests.known_bundle import KNOWN_ITEMS, write_known_bundle


def test_the_title_of_an_item_has_the_vector_of_the_item(tmp_path):
    way = way_of_bundle(load_bundle(write_known_bundle(tmp_path / "known", KNOWN_ITEMS)))
    scores = way.score([known.item["title"] for known in KNOWN_ITEMS])
    np.testing.assert_allclose(scores.diagonal(), 1, atol=1e-5)
    assert scores.min() < 0.99  # others have other vectors
