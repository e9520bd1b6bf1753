"""The configuration of a ranker, which configs.py puts into a run."""

from dataclasses import dataclass
from typing import Literal

# How codes or ids become rows of an embedding table (rankers/parameterizations.py).
ParameterizationKind = Literal[
    "trigram", "fourgram", "all-bigrams", "prefix", "all-ngrams", "plain-sum", "random-hash", "individual"
]
AggregationKind = Literal["bypass", "transformer", "pooling"]  # rankers/aggregations.py


@dataclass(frozen=True)
class RankerConfig:
    """rankers/ranker.py: scores given candidates after a history (arXiv 2504.02137)."""

    parameterization: ParameterizationKind = "prefix"  # how items become rows of the table
    depth: int = 0  # the longest prefix; 0: all levels
    items_per_row: float = 3.0  # the table has a row for so many items of the catalog
    aggregation: AggregationKind = "pooling"  # how the history is read
    width: int = 32
    num_heads: int = 2
    num_seeds: int = 8  # of pooling
    hidden_dim: int = 64  # of the layers that score
    history_length: int = 20
    num_non_events: int = 8  # beside each event: rankers/impressions.py, and pipeline/ranking.py in an export
    num_epochs: int = 4
    max_events: int = 200_000  # that teach: the newest where there are times, and random ones in an export
    batch_size: int = 128
    learning_rate: float = 3e-3
