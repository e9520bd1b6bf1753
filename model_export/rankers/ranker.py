"""The ranker: a DLRM-style model of whether a candidate is taken after a history (arXiv 2504.02137 §4.1).

Candidates and history share one embedding table, whose rows come from a Parameterization. The products of
the candidate's embedding with each output of the aggregation and with the dense features are the
interactions (DLRM: Naumov et al., arXiv 1906.00091). Two layers turn them into log-odds.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.ranker_config import RankerConfig
from model_export.rankers.aggregations import AGGREGATIONS, Aggregation

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
START = 0.1  # deviation of an embedding's numbers at the start


class Batch(NamedTuple):
    """Histories with their candidates."""

    history: Tensor  # [batch, position, gram]  rows of the items, oldest first
    is_item: Tensor  # [batch, position]  False for padding, which is on the left
    candidates: Tensor  # [batch, candidate, gram]  rows
    dense: Tensor  # [batch, candidate, feature]


class Ranker(nn.Module):
    """The model."""

    def __init__(self, config: RankerConfig, *, num_rows: int, num_grams: int, num_dense: int) -> None:
        """`num_grams`: the rows of an item, whose embeddings are added up."""
        super().__init__()
        self.config, width = config, config.width
        self.table = nn.Embedding(num_rows, width)
        nn.init.normal_(self.table.weight, std=START * num_grams**-0.5)
        self.padding = nn.Parameter(torch.zeros(width))
        self.aggregation: Aggregation = AGGREGATIONS[config.aggregation](config)
        self.bottom = nn.Sequential(
            nn.Linear(num_dense, width), nn.ReLU(), nn.Linear(width, width), nn.LayerNorm(width)
        )
        num_interactions = self.aggregation.num_outputs + 1
        self.top = nn.Sequential(
            nn.Linear(num_interactions + 3 * width, config.hidden_dim),
            nn.ReLU(),
            nn.Linear(config.hidden_dim, 1),
        )

    def forward(self, batch: Batch) -> Tensor:
        """-> log-odds [batch, candidate]"""
        shown = self.table(batch.candidates).sum(dim=-2)  # [batch, candidate, width]
        outputs = self.aggregation(self.read(batch))  # [batch, output, width]
        dense = self.bottom(batch.dense)  # [batch, candidate, width]
        products = shown @ outputs.transpose(-1, -2)  # [batch, candidate, output]
        product = (shown * dense).sum(dim=-1, keepdim=True)  # [batch, candidate, 1]
        mean = outputs.mean(dim=-2, keepdim=True).expand_as(shown)
        log_odds: Tensor = self.top(torch.cat([products, product, shown, mean, dense], dim=-1))[..., 0]
        return log_odds

    def read(self, batch: Batch) -> Tensor:
        """The embeddings of the items of histories, and the learned vector for padding.

        -> [batch, position, width]
        """
        embedded = self.table(batch.history).sum(dim=-2)
        return torch.where(batch.is_item[..., None], embedded, self.padding)

    def loss(self, batch: Batch) -> Tensor:
        """The mean cross-entropy of the candidates, of which the first of each history is the event."""
        log_odds = self(batch)
        taken = torch.zeros_like(log_odds)
        taken[:, 0] = 1.0
        return F.binary_cross_entropy_with_logits(log_odds, taken)
