"""Computes the figures of a study from its cells. They are the content of study.json and of study.md's
tables.

Quality is the mean over all test users and the seeds of a cell, for example `item_hit@10`. Its 95 % interval
over users is `…_low` to `…_high`. With several seeds, `…_seed_sd` is the spread over seeds.
`_history_included` in a name, before these endings, means that the ranking includes the items of the history.
`item_hit@10:seen_transition` and the like are means over the users with that kind of target
(evaluation/reach.py). `code_hit@10` and `code_ndcg@10` count codes and are for reference only. Every other
figure of a cell is its mean over seeds.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_export.evaluation.metrics import gains_of_ranks, hits_of_ranks
from model_export.evaluation.reach import Kinds
from model_export.evaluation.statistics import Interval, intervals, spread_over_seeds
from model_export.study.cells import CellResult

CUTOFFS = (5, 10)
RULES = {"": "ranks_excluded", "_history_included": "ranks_included"}
OURS = "default"
# The cells that others are compared with -> the name of their differences in study.json.
REFERENCES = {
    OURS: "differences",
    "learnt": "differences_of_learnt",
    "pictures_early": "differences_of_pictures",
}
DIGITS = 6

Values = NDArray[np.float64]  # [seed, user]
Figures = dict[str, float]


METRICS = {"hit": hits_of_ranks, "ndcg": gains_of_ranks}


def study_json(results: Sequence[CellResult], kinds: Mapping[str, Kinds] | None = None) -> dict[str, Any]:
    """The figures as dataset -> cell -> metric -> number. `kinds`: dataset -> kinds of its test targets.

    dataset -> "differences" -> cell -> metric has the default minus each other cell, absolute and relative to
    the other cell's mean. "differences_of_learnt" has the same for the cell `learnt`.
    """
    datasets: dict[str, dict[str, list[CellResult]]] = {}
    for result in results:
        datasets.setdefault(result.dataset, {}).setdefault(result.name, []).append(result)
    found = {dataset: _of_dataset(cells) for dataset, cells in datasets.items()}
    for dataset, masks in (kinds or {}).items():
        for name, seeds in datasets.get(dataset, {}).items():
            if has_users(seeds):
                found[dataset][name] |= _by_kind(seeds, masks)
    return found


def _by_kind(seeds: Sequence[CellResult], kinds: Kinds) -> Figures:
    """Hit@10 of the users with each kind of target. A kind without users has no figure."""
    hits = values_of(seeds, "hit", 10).mean(axis=0)  # [user]
    return {
        f"item_hit@10:{kind}": _rate(float(hits[mask].mean()))
        for kind, mask in kinds._asdict().items()
        if mask.any()
    }


def values_of(cells: Sequence[CellResult], metric: str, k: int, ranks: str = "ranks_excluded") -> Values:
    """The contribution of each user and seed to the metric, [seed, user], from the cells of one name."""
    return METRICS[metric](np.stack([getattr(cell, ranks) for cell in cells]), k)


class SegmentFigures(NamedTuple):
    """Hit@10 of the users whose target is of one kind."""

    num_users: int
    ours: Interval
    theirs: Interval
    difference: Interval  # ours minus theirs, paired


def of_segment(
    ours: Sequence[CellResult], theirs: Sequence[CellResult], mask: NDArray[np.bool_]
) -> SegmentFigures | None:
    """Compare two cells, each given by its seeds, over the users of `mask` [user]. None if there are none."""
    if not mask.any():
        return None
    a, b = (values_of(cells, "hit", 10)[:, mask].mean(axis=0) for cells in (ours, theirs))
    return SegmentFigures(int(mask.sum()), *intervals(np.stack([a, b, a - b])))


def _of_dataset(cells: dict[str, list[CellResult]]) -> dict[str, Any]:
    """The figures of one dataset. All its intervals come from the same draws of its users."""
    quality = {  # (cell, figure) -> values
        (name, f"item_{metric}@{k}{suffix}"): values_of(seeds, metric, k, ranks)
        for name, seeds in cells.items()
        if has_users(seeds)
        for (suffix, ranks), metric, k in product(RULES.items(), METRICS, CUTOFFS)
    }
    rows = {key: values.mean(axis=0) for key, values in quality.items()}
    pairs = {
        (reference, name, metric): rows[reference, metric] - rows[name, metric]
        for reference, name, metric in product(REFERENCES, cells, ("item_hit@10", "item_ndcg@10"))
        if name != reference and (name, metric) in rows and (reference, metric) in rows
    }
    found: dict[str, Any] = {name: _costs(seeds) for name, seeds in cells.items()}
    if not rows:
        return found
    computed = iter(intervals(np.stack([*rows.values(), *pairs.values()])))
    for (name, metric), values in quality.items():
        spread = spread_over_seeds(values)
        found[name] |= _written(metric, next(computed)) | (
            {} if spread is None else {f"{metric}_seed_sd": _rate(spread)}
        )
    differences: dict[str, dict[str, Figures]] = {}
    for reference, name, metric in pairs:
        interval = next(computed)
        relative = _relative(interval.mean, float(rows[name, metric].mean()))
        differences.setdefault(REFERENCES[reference], {}).setdefault(name, {}).update(
            _written(metric, interval) | ({} if relative is None else {f"{metric}_relative": _rate(relative)})
        )
    return found | differences


def _costs(seeds: Sequence[CellResult]) -> Figures:
    """The figures that have no interval."""
    found: Figures = {"num_seeds": len(seeds)}
    with_codes = [cell.code_ranks for cell in seeds if cell.code_ranks is not None and len(cell.code_ranks)]
    if with_codes:
        ranks = np.stack(with_codes)
        found |= {f"code_{name}@10": _rounded(of_rank(ranks, 10).mean()) for name, of_rank in METRICS.items()}
    for name in sorted({name for cell in seeds for name in cell.figures}):
        found[name] = _rounded(np.mean([cell.figures[name] for cell in seeds if name in cell.figures]))
    return found


def has_users(seeds: Sequence[CellResult]) -> bool:
    """Whether the cell ranks items, so that it has quality figures."""
    return all(len(cell.ranks_excluded) for cell in seeds)


def _written(metric: str, interval: Interval) -> Figures:
    return {
        metric: _rate(interval.mean),
        f"{metric}_low": _rate(interval.low),
        f"{metric}_high": _rate(interval.high),
    }


def _relative(change: float, base: float) -> float | None:
    return change / base if base else None


def _rounded(value: Any) -> float:
    """The value to DIGITS significant digits. The last bits of a sum differ between machines."""
    return float(f"{float(value):.{DIGITS}g}")


def _rate(value: float) -> float:
    """The value to DIGITS decimal places, for values that can be 0 except for their last bits."""
    return round(value, DIGITS) + 0.0  # no minus zero
