"""Normalized entropies of stored cells, with intervals by bootstrap over groups of users."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_export.evaluation.statistics import HIGH, LOW, Interval
from model_export.study.embedding_cells import NUM_GROUPS, SEGMENTS, EmbeddingResult

NUM_RESAMPLES = 10_000


class Sums(NamedTuple):
    """The sums of one segment, or of all items, for each group of users."""

    loss: NDArray[np.float64]  # [seed, group]
    shown: NDArray[np.float64]  # [group]
    taken: NDArray[np.float64]  # [group]

    @classmethod
    def of(cls, results: Sequence[EmbeddingResult], segments: Sequence[str] = SEGMENTS) -> "Sums":
        """The sums of several seeds of one cell. All seeds judge the same impressions."""
        return cls(
            np.array([np.sum([each.loss[name] for name in segments], axis=0) for each in results]),
            np.sum([results[0].shown[name] for name in segments], axis=0).astype(float),
            np.sum([results[0].taken[name] for name in segments], axis=0).astype(float),
        )

    def entropy(self, draws: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """The normalized entropy, the mean of the seeds: [draw]. nan for draws with one label.

        draws [draw, group]: how often each group was drawn; None: each group once.
        """
        counts = np.ones((1, NUM_GROUPS)) if draws is None else draws
        loss, shown, taken = counts @ self.loss.mean(axis=0), counts @ self.shown, counts @ self.taken
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = taken / shown
            base = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
            entropy: NDArray[np.float64] = loss / shown / base
        return entropy


def draws(seed: int = 0) -> NDArray[np.float64]:
    """[draw, group]: bootstrap samples of the groups."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(NUM_GROUPS, np.full(NUM_GROUPS, 1 / NUM_GROUPS), NUM_RESAMPLES).astype(float)


def change(ours: Sums, theirs: Sums, drawn: NDArray[np.float64]) -> Interval | None:
    """By which share our normalized entropy differs from theirs, paired; None where there is too little."""
    plain = float((ours.entropy() / theirs.entropy() - 1)[0])
    resampled = ours.entropy(drawn) / theirs.entropy(drawn) - 1
    if not np.isfinite(plain) or np.isfinite(resampled).mean() < 0.9:
        return None
    low, high = np.nanquantile(resampled, [LOW, HIGH])
    return Interval(plain, float(low), float(high))


def gain_difference(
    first: tuple[Sums, Sums], second: tuple[Sums, Sums], drawn: NDArray[np.float64]
) -> Interval:
    """The first pair's change minus the second pair's change, paired by groups of users."""

    def difference(counts: NDArray[np.float64] | None) -> NDArray[np.float64]:
        changes = [ours.entropy(counts) / theirs.entropy(counts) for ours, theirs in (first, second)]
        return changes[0] - changes[1]

    low, high = np.nanquantile(difference(drawn), [LOW, HIGH])
    return Interval(float(difference(None)[0]), float(low), float(high))
