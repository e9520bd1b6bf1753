"""Runs the cells of the plan `embeddings`: a ranker in the order of times, judged on what comes after.

The items get codes from their content alone, before any training: the compact reader, no head, and residual
k-means. The events are the newest of the data set. The last tenth is the test window. What comes
before it teaches in one pass, all of it or the newest fifth.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.configs import HeadConfig, RqKMeansConfig, RunConfig, base
from model_export.data.dataset import Dataset
from model_export.data.splits import leave_one_out
from model_export.evaluation.click_measures import (
    aa_variance,
    attention_figures,
    click_loss,
    cross_entropies,
    drift_sensitivity,
    drift_windows,
    normalized_entropy,
    segments,
)
from model_export.pipeline import stages, versions
from model_export.pipeline.cache import StageCache, key_of
from model_export.pipeline.run import Run, Say
from model_export.rankers import ranker as ranker_module
from model_export.rankers import training
from model_export.rankers.impressions import Impressions, impressions_of, with_copies
from model_export.rankers.parameterizations import Parameterization, rows_for
from model_export.rankers.ranker import Ranker
from model_export.rankers.training import in_time_order, log_odds_of, train_ranker
from model_export.study.embedding_cells import (
    DEPTH,
    NUM_GROUPS,
    SEGMENTS,
    EmbeddingCell,
    EmbeddingResult,
)
from service.core.bundle import RenderSpec
from service.core.sid import SidSpec

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
TEST_SHARE, SHORT_SHARE = 0.1, 0.2  # of the events; of the training
MAX_USERS = 500  # of a data set with more events than MANY: its users are sampled
MANY = 200_000
COPIED_SHARE = 0.2  # of the items have a second id: half of them exact copies, half near ones
NUM_CODES = 16  # of each level


def codes_config() -> RunConfig:
    """The run whose codes are used: content alone, as the paper's codes are frozen before the training."""
    return replace(
        base(),
        name="embeddings",
        sid=SidSpec(levels=(NUM_CODES,) * DEPTH),
        render=RenderSpec(max_strips=2),  # the fields that come first
        head=HeadConfig(max_steps=0),
        quantizer=RqKMeansConfig(),
        collisions="none",
        opinions=None,
    )


@dataclass(frozen=True)
class Prepared:
    """A data set with its codes and impressions."""

    name: str
    fingerprint: str
    codes: NDArray[np.int64]  # [item, level]
    impressions: Impressions
    train: range  # events
    test: range

    @property
    def train_short(self) -> range:
        """The newest part of the training."""
        return range(self.train.stop - round(SHORT_SHARE * len(self.train)), self.train.stop)


def sampled(dataset: Dataset, seed: int = 0) -> Dataset:
    """The data set without photos: MAX_USERS random users of it, if it has more than MANY events."""
    dataset = replace(dataset, images={})  # the text alone is read
    if sum(map(len, dataset.sequences)) <= MANY or dataset.times is None:
        return dataset
    users = np.sort(np.random.default_rng(seed).permutation(len(dataset.user_ids))[:MAX_USERS])
    return replace(
        dataset,
        user_ids=[dataset.user_ids[user] for user in users],
        sequences=[dataset.sequences[user] for user in users],
        times=[dataset.times[user] for user in users],
    )


def prepare(dataset: Dataset, cache: StageCache, default: EmbeddingCell, say: Say) -> Prepared:
    """Codes and impressions. Raises DataError if the data set has no times."""
    dataset = sampled(dataset)
    ranker = default.ranker
    made = impressions_of(dataset, history_length=ranker.history_length, num_non_events=ranker.num_non_events)
    run = Run(dataset, leave_one_out(dataset), codes_config(), cache, say)
    with stages.deterministic():
        codes = stages.code(run, stages.read(run)).codes
    first = max(0, len(made) - ranker.max_events)
    begin = len(made) - round(TEST_SHARE * (len(made) - first))
    return Prepared(
        dataset.name, dataset.fingerprint, codes, made, range(first, begin), range(begin, len(made))
    )


def key_of_cell(fingerprint: str, cell: EmbeddingCell, seed: int) -> str:
    """A hash of everything that the figures depend on."""
    return key_of(fingerprint, codes_config(), cell.ranker, cell.horizon, cell.has_copies, seed)


def versions_of_cells() -> versions.Versions:
    """Today's versions of the stages behind the figures."""
    return versions.of_codes(codes_config()) | {
        "ranker": ranker_module.VERSION,
        "ranker_training": training.VERSION,
        "embeddings": VERSION,
    }


def run_cell(prepared: Prepared, cell: EmbeddingCell, seed: int) -> EmbeddingResult:
    """Train and judge one cell."""
    impressions, codes = prepared.impressions, prepared.codes
    ids_of_pairs: dict[str, NDArray[np.int64]] = {}
    if cell.has_copies:
        impressions, codes, ids_of_pairs = _copied(impressions, codes)
    train = prepared.train if cell.horizon == "long" else prepared.train_short
    with stages.deterministic():
        ranker, rows = _trained(impressions, codes, cell, train, seed)
    examples = impressions.examples
    log_odds = log_odds_of(ranker, examples, rows, prepared.test)
    figures, sums = _judged(impressions, prepared, train, log_odds)
    if not cell.has_copies:
        figures |= _drift(ranker, impressions, rows, train)
        figures |= _attention(ranker, impressions, rows, prepared.test)
    for name, pairs in ids_of_pairs.items():
        figures[f"aa_variance_{name}"] = _aa_variance(ranker, impressions, rows, prepared.test, pairs)
    return EmbeddingResult(
        prepared.name,
        cell.name,
        seed,
        key_of_cell(prepared.fingerprint, cell, seed),
        versions_of_cells(),
        figures,
        *sums,
    )


def swaps(prepared: Prepared, seed: int = 0) -> dict[str, float]:
    """The click loss when shown items are swapped for others of the same prefix, by depth.

    No ranker is asked. An impression of the test window counts as taken if the user takes the item in that
    window. The item is swapped for a random other one that shares the first codes, of those that are shown in
    the window. At depth 0 it may be any.
    """
    rng = np.random.default_rng(seed)
    test, made = prepared.test, prepared.impressions
    users = made.users[test.start : test.stop]
    candidates = made.examples.candidates[test.start : test.stop]  # [event, candidate]
    pool = np.unique(candidates)
    taken = {(user, item) for user, item in zip(users.tolist(), candidates[:, 0].tolist(), strict=True)}
    figures: dict[str, float] = {}
    for depth in range(DEPTH + 1):
        alike: dict[tuple[int, ...], list[int]] = {}
        for item in pool.tolist():
            alike.setdefault(tuple(prepared.codes[item, :depth].tolist()), []).append(item)
        shown, swapped = [], []
        for user, row in zip(users.tolist(), candidates.tolist(), strict=True):
            for item in row:
                others = alike[tuple(prepared.codes[item, :depth].tolist())]
                if len(others) < 2:
                    continue  # nothing to swap it for
                other = item
                while other == item:
                    other = others[int(rng.integers(len(others)))]
                shown.append((user, item) in taken)
                swapped.append((user, other) in taken)
        figures[f"swapped_{depth}"] = float(len(shown))
        if any(shown):
            figures[f"click_loss_{depth}"] = click_loss(np.array(shown, float), np.array(swapped, float))
    return figures


def _trained(
    impressions: Impressions, codes: NDArray[np.int64], cell: EmbeddingCell, train: range, seed: int
) -> tuple[Ranker, torch.Tensor]:
    torch.manual_seed(seed)
    config = cell.ranker
    num_rows = rows_for(impressions.num_items, config.items_per_row)
    way = Parameterization(config.parameterization, (NUM_CODES,) * DEPTH, num_rows, config.depth)
    # Another seed is another hash.
    ids = torch.arange(impressions.num_items)
    ids = ids + seed * 1_000_003 if config.parameterization == "random-hash" else ids
    rows = way.rows(ids, torch.from_numpy(codes))
    ranker = Ranker(
        config,
        num_rows=num_rows,
        num_grams=rows.shape[-1],
        num_dense=impressions.examples.dense.shape[-1],
    )
    train_ranker(ranker, impressions.examples, rows, in_time_order(train, config.batch_size))
    return ranker, rows


def _copied(
    impressions: Impressions, codes: NDArray[np.int64]
) -> tuple[Impressions, NDArray[np.int64], dict[str, NDArray[np.int64]]]:
    """Impressions with copies, the codes of all ids [id, level], and the pairs of ids [pair, 2] by kind.

    A near copy differs in its last code.
    """
    rng = np.random.default_rng(0)
    count = round(COPIED_SHARE * len(codes))
    copied = rng.permutation(len(codes))[:count]
    made, item_of = with_copies(impressions, copied, seed=0)
    codes = codes[item_of].copy()
    near = np.arange(len(item_of) - count // 2, len(item_of))
    codes[near, -1] = (codes[near, -1] + rng.integers(1, NUM_CODES, len(near))) % NUM_CODES
    pairs = np.stack([copied, len(item_of) - count + np.arange(count)], axis=1)
    return made, codes, {"exact": pairs[: count - len(near)], "near": pairs[count - len(near) :]}


def _judged(
    impressions: Impressions, prepared: Prepared, train: range, log_odds: NDArray[np.float32]
) -> tuple[dict[str, float], tuple[dict[str, list[float]], dict[str, list[int]], dict[str, list[int]]]]:
    """The normalized entropy of the test window, and the sums by segment and group of users."""
    test = prepared.test
    labels, odds = _labels(log_odds), _probabilities(log_odds)
    loss = cross_entropies(labels, odds)
    candidates = impressions.examples.candidates[test.start : test.stop]
    group = np.broadcast_to(impressions.users[test.start : test.stop, None] % NUM_GROUPS, labels.shape)
    figures = {"ne": normalized_entropy(labels, odds)}
    sums: tuple[dict[str, list[float]], dict[str, list[int]], dict[str, list[int]]] = ({}, {}, {})
    of_item = segments(impressions.shown(train))
    for segment in SEGMENTS:
        mask = of_item[segment][candidates]  # [event, candidate]
        places = group[mask]
        sums[0][segment] = np.bincount(places, loss[mask], NUM_GROUPS).tolist()
        sums[1][segment] = np.bincount(places, minlength=NUM_GROUPS).tolist()
        sums[2][segment] = np.bincount(places, labels[mask], NUM_GROUPS).astype(int).tolist()
        figures[f"items_{segment}"] = float(of_item[segment].sum())
    return figures, sums


def _drift(ranker: Ranker, impressions: Impressions, rows: torch.Tensor, train: range) -> dict[str, float]:
    """The drift sensitivity of all items and of each segment that both windows have."""
    windows = drift_windows(len(train))
    of_item = segments(impressions.shown(train))
    found: list[dict[str, float]] = []
    for window in windows:
        events = range(train.start + window.start, train.start + window.stop)
        log_odds = log_odds_of(ranker, impressions.examples, rows, events)
        labels, odds = _labels(log_odds), _probabilities(log_odds)
        candidates = impressions.examples.candidates[events.start : events.stop]
        entropies = {"all": normalized_entropy(labels, odds)}
        for segment in SEGMENTS[:-1]:
            mask = of_item[segment][candidates]
            entropies[segment] = normalized_entropy(labels[mask], odds[mask])
        found.append(entropies)
    drift = {name: drift_sensitivity(found[0][name], found[1][name]) for name in found[0]}
    return {f"drift_{name}": value for name, value in drift.items() if np.isfinite(value)}


@torch.no_grad()
def _attention(
    ranker: Ranker, impressions: Impressions, rows: torch.Tensor, test: range
) -> Mapping[str, float]:
    batch = impressions.examples.batch(rows, slice(test.start, min(test.start + 512, test.stop)))
    weights = ranker.aggregation.weights(ranker.read(batch))
    if weights is None:
        return {}
    found = attention_figures(weights.numpy(), batch.is_item.numpy())
    return {f"attention_{name}": value for name, value in found.items()}


def _aa_variance(
    ranker: Ranker,
    impressions: Impressions,
    rows: torch.Tensor,
    test: range,
    pairs: NDArray[np.int64],
) -> float:
    """The variance between the predictions for two ids of an item, where one of the two was shown."""
    examples = impressions.examples
    other = np.full(impressions.num_items, -1, dtype=np.int64)
    other[pairs[:, 0]], other[pairs[:, 1]] = pairs[:, 1], pairs[:, 0]
    candidates = examples.candidates.copy()
    part = candidates[test.start : test.stop]
    is_pair = other[part] >= 0
    part[is_pair] = other[part[is_pair]]
    swapped = replace(examples, candidates=candidates)
    first = _probabilities(log_odds_of(ranker, examples, rows, test))[is_pair]
    second = _probabilities(log_odds_of(ranker, swapped, rows, test))[is_pair]
    return aa_variance(first, second)


def _labels(log_odds: NDArray[np.float32]) -> NDArray[np.float64]:
    labels = np.zeros(log_odds.shape)
    labels[:, 0] = 1.0
    return labels


def _probabilities(log_odds: NDArray[np.float32]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = 1 / (1 + np.exp(-log_odds.astype(np.float64)))
    return found
