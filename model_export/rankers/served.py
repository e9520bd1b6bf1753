"""A ranker as a service runs it: codes, popularity and neighbors in, log-odds out."""

import torch
from torch import Tensor, nn

from model_export.ranker_config import RankerConfig
from model_export.rankers.parameterizations import Parameterization
from model_export.rankers.ranker import Batch, Ranker
from model_export.rankers.service_features import ServiceFeatures
from service.core.graphs import PADDING
from service.core.sid import SidSpec


class ServedRanker(nn.Module):
    """The whole of `ranker.onnx`. Its inputs and output are those of graphs.ranker_graph."""

    def __init__(self, config: RankerConfig, spec: SidSpec, *, num_rows: int, mean_popularity: float) -> None:
        super().__init__()
        self.spec, self.history_length = spec, config.history_length
        self.parameterization = Parameterization(
            config.parameterization, spec.levels, num_rows, min(config.depth, spec.num_levels)
        )
        self.features = ServiceFeatures(spec, mean_popularity)
        probe = torch.zeros(1, spec.num_levels, dtype=torch.int64)
        num_grams = self.parameterization.rows(probe[:, 0], probe).shape[-1]
        self.ranker = Ranker(
            config, num_rows=num_rows, num_grams=num_grams, num_dense=self.features.num_features
        )

    def forward(
        self, history: Tensor, candidates: Tensor, popularity: Tensor, neighbors: Tensor, mass: Tensor
    ) -> Tensor:
        """-> log-odds [batch, candidate]"""
        batch, _, num_levels = history.shape
        none = torch.full((batch, self.history_length, num_levels), PADDING, dtype=torch.int64)
        history = torch.cat([none.to(history.device), history], dim=1)[:, -self.history_length :]
        dense = self.features(history, candidates, popularity, neighbors, mass)
        log_odds: Tensor = self.ranker(
            Batch(self._rows(history), history[..., 0] >= 0, self._rows(candidates), dense)
        )
        return log_odds

    def _rows(self, codes: Tensor) -> Tensor:
        known = codes.clamp(min=0)
        return self.parameterization.rows(known[..., 0], known)
