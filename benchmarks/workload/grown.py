"""Catalogs of any size for two models: one trained on real purchases, and one with random weights.

No public data set has purchases of ten million items that two cores can learn from. So `trained` learns from
a small set and gets more items: near copies, as shops add them every day in another size or color. The vector
of a copy is the vector of its original and noise, and the trained quantizer gives the copy its codes. The
copies have no purchases, so the model has never seen them.

The baselines score the same vectors, on their 64 principal axes: the request's vector is the weighted sum of
the history's vectors, as in the study's item_knn. For sub-items, product quantization splits the vectors into
parts, and replaces each part by one of 256 sub-items, as in RecJPQ (arXiv 2312.06165). RecJPQ trains a model
with its sub-items, and here nothing is trained.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.peers.sub_items import NUM_CODES, NUM_SPLITS, imported_faiss
from benchmarks.workload import skewed
from model_export.bundle.recommender import export_recommender
from model_export.configs import RunConfig, base
from model_export.data.tables import read_dataset
from model_export.evaluation.near_copies import shared_levels
from model_export.evaluation.ranking import left_padded
from model_export.pipeline import generating, stages
from model_export.pipeline.run import Run
from model_export.quantizers.base import ResidualQuantizer
from service.core.sid import SidSpec

LEVELS = (256, 256, 256)  # enough codes for ten million items
BEAM_LIMIT = 400
EPOCHS = 8
COSINE = 0.98  # of a copy's vector and the original's; real near copies are still nearer
WIDTH = 64  # of the vectors that the baselines score
RECENCY = 0.5  # weight of an item of the history, for each step into the past
CHUNK = 20_000
FIT_ITEMS = 20_000  # that the sub-items are fitted on, at least


class Catalog(NamedTuple):
    """The items of one size, as each system sees them."""

    codes: NDArray[np.int32]  # [item, level]
    vectors: NDArray[np.float32]  # [item, dim]
    sub_items: NDArray[np.uint8]  # [item, split]


class Model(Protocol):
    """A recommender, the requests to it, and catalogs of any size."""

    spec: SidSpec
    histories: list[NDArray[np.int64]]  # of each request: codes [1, position, level]
    queries: NDArray[np.float32]  # [request, dim], to score the vectors with
    sub_embeddings: NDArray[np.float32]  # [split, code, part of dim], the vectors of the sub-items
    description: str

    def export(self, path: Path) -> None:
        """Write the recommender's graph."""

    def catalog(self, num_items: int) -> Catalog:
        """A catalog of so many items, the same at each call."""


class Trained:
    """`tree` on the training part of a data set, and near copies of its items."""

    def __init__(self, data: str, folder: Path, config: RunConfig, num_requests: int) -> None:
        """`folder` keeps the trained stages, so only the first run trains."""
        dataset = read_dataset(data)
        run = Run.of(dataset, config, folder, print)
        with stages.deterministic():
            coded = stages.code(run, stages.read(run))
            self._tree = generating.generate(run, coded.codes, coded.spec, vectors=coded.vectors).generator
        self.spec, self._codes, self._vectors = coded.spec, coded.codes, coded.vectors
        self._quantizer, self._history_length = coded.quantizer, config.history_length
        self._middle = coded.vectors.mean(axis=0)
        axes = np.linalg.svd(coded.vectors - self._middle, full_matrices=False)[2]
        self._axes = axes[:WIDTH]  # [axis, dim]
        test = run.split.test
        users = np.random.default_rng(0).permutation(len(test))[:num_requests]
        newest = [test.histories[user][-config.history_length :] for user in users]
        self.histories = [self._codes[left_padded([each])] for each in newest]
        known = self._projected(self._vectors)
        weights = RECENCY ** np.arange(config.history_length, dtype=np.float32)[::-1]  # the last is 1
        self.queries = np.stack([weights[-len(each) :] @ known[each] for each in newest])
        copies = self._near(np.tile(self._vectors, (-(-FIT_ITEMS // len(known)), 1)), seed=0)
        self.sub_embeddings = fit_sub_embeddings(self._projected(copies))
        shared = shared_levels(self._encode(copies[: len(known)]), self._codes)
        self.description = (
            f"{dataset.name}: {len(known):,} items and near copies of them, levels {self.spec.levels}, "
            f"{len(users)} test users; {(shared >= 1).mean():.0%} of the copies share the first code, "
            f"{(shared >= 2).mean():.0%} the first two"
        )

    def export(self, path: Path) -> None:
        """Write the recommender's graph in float32."""
        export_recommender(path, self._tree, history_length=self._history_length, beam_limit=BEAM_LIMIT)

    def catalog(self, num_items: int) -> Catalog:
        """The items of the data set first, then near copies of them in turn."""
        num_known = len(self._codes)
        codes = np.empty((num_items, self.spec.num_levels), np.int32)
        vectors = np.empty((num_items, len(self._axes)), np.float32)
        sub_items = np.empty((num_items, NUM_SPLITS), np.uint8)
        for chunk, places in _chunks(num_items):
            near = self._near(self._vectors[places % num_known], seed=1 + chunk.start)
            codes[chunk] = self._encode(near)
            known = places[places < num_known]
            near[: len(known)], codes[known] = self._vectors[known], self._codes[known]
            vectors[chunk] = self._projected(near)
            sub_items[chunk] = nearest_sub_items(self.sub_embeddings, vectors[chunk])
        return Catalog(codes, vectors, sub_items)

    def _projected(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """vectors [item, dim] -> [item, axis], each of length 1"""
        found = (vectors - self._middle) @ self._axes.T
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)

    def _encode(self, vectors: NDArray[np.float32]) -> NDArray[np.int64]:
        quantizer: ResidualQuantizer = self._quantizer
        with torch.no_grad():
            found: NDArray[np.int64] = quantizer.encode(torch.from_numpy(vectors)).numpy()
        return found

    def _near(self, vectors: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
        """Vectors [item, dim] of the same length, at about COSINE of the given ones."""
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        noise = np.random.default_rng(seed).standard_normal(vectors.shape, dtype=np.float32)
        noise *= length / vectors.shape[1] ** 0.5  # about as long as the vector
        return np.asarray(COSINE * vectors + (1 - COSINE**2) ** 0.5 * noise, np.float32)


class Random:
    """`tree` with random weights over skewed codes, and random sub-items: no model knows what is better."""

    def __init__(self, num_requests: int) -> None:
        self.spec = skewed.SPEC
        rng = np.random.default_rng(0)
        codes = skewed.draw_codes(num_requests * skewed.HISTORY, seed=0)
        self.histories = [each[None] for each in codes.reshape(num_requests, skewed.HISTORY, -1)]
        self.queries = rng.standard_normal((num_requests, WIDTH), dtype=np.float32)
        shape = (NUM_SPLITS, NUM_CODES, WIDTH // NUM_SPLITS)
        self.sub_embeddings = rng.standard_normal(shape, dtype=np.float32)
        self.description = f"random weights, skewed codes, {num_requests} random histories"

    def export(self, path: Path) -> None:
        """Write the recommender's graph in float32."""
        skewed.export_untrained(path)

    def catalog(self, num_items: int) -> Catalog:
        """Skewed codes; sub-items from a Zipf distribution, each split by itself."""
        codes = np.empty((num_items, self.spec.num_levels), np.int32)
        vectors = np.empty((num_items, WIDTH), np.float32)
        sub_items = np.empty((num_items, NUM_SPLITS), np.uint8)
        share = np.arange(1, NUM_CODES + 1) ** -skewed.EXPONENTS[0]
        for chunk, places in _chunks(num_items):
            codes[chunk] = skewed.draw_codes(len(places), seed=chunk.start)
            rng = np.random.default_rng(chunk.start)
            drawn = rng.choice(NUM_CODES, size=(len(places), NUM_SPLITS), p=share / share.sum())
            sub_items[chunk] = drawn
            parts = [self.sub_embeddings[split][drawn[:, split]] for split in range(NUM_SPLITS)]
            vectors[chunk] = np.concatenate(parts, axis=1)
        return Catalog(codes, vectors, sub_items)


def large() -> RunConfig:
    """`base` with levels for a large catalog, trained for a fifth of its epochs.

    Collisions are not treated, because the copies' codes are not either.
    """
    return replace(
        base(),
        name="large",
        sid=SidSpec(levels=LEVELS),
        collisions="none",
        training=replace(base().training, max_epochs=EPOCHS),
        beam_limit=BEAM_LIMIT,
    )


def _chunks(num_items: int) -> Iterator[tuple[slice, NDArray[np.int64]]]:
    for start in range(0, num_items, CHUNK):
        end = min(start + CHUNK, num_items)
        yield slice(start, end), np.arange(start, end)


def fit_sub_embeddings(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sub-items for vectors [item, dim], by k-means in each split -> [split, code, part of dim]

    Raises NotAvailable without faiss.
    """
    faiss = imported_faiss()
    quantizer = faiss.ProductQuantizer(vectors.shape[1], NUM_SPLITS, 8)
    quantizer.train(np.ascontiguousarray(vectors))
    width = vectors.shape[1] // NUM_SPLITS
    found: NDArray[np.float32] = faiss.vector_to_array(quantizer.centroids)
    return found.reshape(NUM_SPLITS, NUM_CODES, width)


def nearest_sub_items(embeddings: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
    """embeddings [split, code, part of dim], vectors [item, dim] -> [item, split]"""
    num_splits, _, width = embeddings.shape
    found = np.empty((len(vectors), num_splits), np.uint8)
    for split, own in enumerate(embeddings):
        part = vectors[:, split * width : (split + 1) * width]
        # |x|² does not depend on the sub-item.
        found[:, split] = ((own**2).sum(axis=1) - 2 * part @ own.T).argmin(axis=1)
    return found
