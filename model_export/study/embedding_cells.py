"""The cells of the plan `embeddings`, and how they are kept: one JSON file per data set, name and seed.

A cell keeps the sums of its losses by segment and by group of users, and no means, because intervals and
paired differences need them. Users are dealt into NUM_GROUPS groups, and the bootstrap draws groups.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from model_export.ranker_config import AggregationKind, ParameterizationKind, RankerConfig
from model_export.study.cells import DamagedCell, path_of
from service.core.whole_files import write_whole

NUM_GROUPS = 32
SEGMENTS = ("head", "torso", "tail", "unseen")
Horizon = Literal["long", "short"]
DEPTH = 4  # levels of the codes


@dataclass(frozen=True)
class EmbeddingCell:
    """One way to learn embeddings."""

    name: str
    label: str
    groups: tuple[str, ...]  # the tables that show the cell
    ranker: RankerConfig
    horizon: Horizon = "long"  # how much of the time before the test window teaches
    has_copies: bool = False  # some items have two ids


@dataclass(frozen=True)
class EmbeddingResult:
    """The result of a cell with one seed on one data set. `key` and `made_with` as in cells.CellResult."""

    dataset: str
    name: str
    seed: int
    key: str
    made_with: Mapping[str, int]
    figures: Mapping[str, float]
    loss: Mapping[str, list[float]]  # segment -> sum of the cross-entropies of each group of users, in nats
    shown: Mapping[str, list[int]]  # segment -> impressions of each group
    taken: Mapping[str, list[int]]  # segment -> events of each group


def small() -> RankerConfig:
    """What all cells start from: the paper's settings at the size of these data."""
    return RankerConfig(
        items_per_row=3.0,
        aggregation="bypass",
        width=16,
        hidden_dim=32,
        num_non_events=3,
        num_epochs=1,
        max_events=30_000,
        learning_rate=1e-2,
    )


def embedding_cells(default: RankerConfig) -> tuple[EmbeddingCell, ...]:
    """All cells, those that the paper's main claims need first."""
    hashed = replace(default, parameterization="random-hash")
    own = replace(default, parameterization="individual", items_per_row=1.0)
    names: dict[str, tuple[str, RankerConfig]] = {
        "prefix": ("prefix-ngram", default),
        "random_hash": ("random hash", hashed),
        "individual": ("individual", own),
    }
    cells = [
        EmbeddingCell(
            name, label, ("parameterizations", "segments", "drift", "depth", "factor", "reading"), config
        )
        for name, (label, config) in names.items()
    ]
    words: dict[ParameterizationKind, str] = {
        "trigram": "trigram",
        "fourgram": "fourgram",
        "all-bigrams": "all bigrams",
        "all-ngrams": "all n-grams",
        "plain-sum": "plain sum of a vector a level",
    }
    for kind, label in words.items():
        config = replace(default, parameterization=kind)
        cells.append(EmbeddingCell(kind.replace("-", "_"), label, ("parameterizations",), config))
    for name, (label, config) in names.items():
        cells.append(
            EmbeddingCell(f"{name}_short", f"{label}, a fifth of the training", ("horizon",), config, "short")
        )
        cells.append(
            EmbeddingCell(f"{name}_copies", f"{label}, with copies", ("copies",), config, has_copies=True)
        )
    for depth in range(1, DEPTH):
        config = replace(default, depth=depth)
        cells.append(EmbeddingCell(f"prefix_{depth}", f"prefixes up to {depth}", ("depth",), config))
    for factor in (1.0, 10.0):
        for name in ("prefix", "random_hash"):
            label, config = names[name]
            cells.append(
                EmbeddingCell(
                    f"{name}_factor_{factor:g}",
                    f"{label}, {factor:g} items a row",
                    ("factor",),
                    replace(config, items_per_row=factor),
                )
            )
    kinds: tuple[AggregationKind, ...] = get_args(AggregationKind)
    for aggregation in kinds:
        if aggregation == default.aggregation:
            continue
        for name in ("prefix", "random_hash"):
            label, config = names[name]
            cells.append(
                EmbeddingCell(
                    f"{name}_{aggregation}",
                    f"{label}, {aggregation}",
                    ("reading",),
                    replace(config, aggregation=aggregation),
                )
            )
    return tuple(cells)


def save(folder: Path, result: EmbeddingResult) -> Path:
    """Write the cell whole or not at all. Returns its path."""
    path = path_of(folder, result.dataset, result.name, result.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        **vars(result),
        "made_with": dict(result.made_with),
        "figures": {name: round(float(value), 7) for name, value in sorted(result.figures.items())},
        "loss": {name: [round(each, 4) for each in sums] for name, sums in result.loss.items()},
    }
    # A line for each name keeps 32 numbers together.
    lines = json.dumps(content, allow_nan=False).replace('], "', '],\n "').replace('}, "', '},\n "')
    write_whole(path, lambda partial: partial.write_text(lines + "\n", encoding="utf-8"))
    return path


def load(folder: Path, dataset: str, name: str, seed: int) -> EmbeddingResult | None:
    """The stored cell, or None if there is none yet. Raises DamagedCell if its file cannot be read."""
    path = path_of(folder, dataset, name, seed)
    if not path.exists():
        return None
    try:
        return EmbeddingResult(**_checked(json.loads(path.read_text(encoding="utf-8"))))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise DamagedCell(path, str(error)) from error


def _checked(content: dict[str, Any]) -> dict[str, Any]:
    versions = {str(name): int(value) for name, value in content["made_with"].items()}
    for name in ("loss", "shown", "taken"):
        for segment, sums in content[name].items():
            if len(sums) != NUM_GROUPS:
                raise ValueError(f"{name} of {segment} has {len(sums)} groups")
    return content | {"made_with": versions, "seed": int(content["seed"])}
