"""The dense features that a service can give a ranker: no times, and what the bundle knows of items.

They are computed inside the exported graph, and by the same module in training.
"""

import torch
from torch import Tensor, nn

from service.core.sid import SidSpec

NUM_PLAIN = 3  # popularity, mass and length of the history; one for each level follows


class ServiceFeatures(nn.Module):
    """Popularity, co-purchases, the length of the history, and how recently a like item was taken."""

    mean_popularity: Tensor

    def __init__(self, spec: SidSpec, mean_popularity: float) -> None:
        """`mean_popularity`: of the catalog's items; the unit of popularity."""
        super().__init__()
        self.spec = spec
        self.num_features = NUM_PLAIN + spec.num_levels
        self.register_buffer("mean_popularity", torch.tensor(max(mean_popularity, 1e-6)))

    def forward(
        self, history: Tensor, candidates: Tensor, popularity: Tensor, neighbors: Tensor, mass: Tensor
    ) -> Tensor:
        """The tensors of graphs.ranker_graph, of any number of positions -> [batch, candidate, feature]

        The feature of a level is 1 / (1 + age) of the newest item of the history that shares the candidate's
        prefix up to there; age counts items. It is 0 if none does.
        """
        prefix = torch.zeros_like(candidates[..., 0])  # [batch, candidate]
        is_item = history[..., 0] >= 0  # [batch, position]
        age = torch.arange(history.shape[1] - 1, -1, -1, device=history.device)
        same = is_item[:, None, :].expand(-1, candidates.shape[1], -1)  # [batch, candidate, position]
        recency = []
        for level, num_codes in enumerate(self.spec.levels):
            prefix = prefix * num_codes + candidates[..., level]
            same = same & (candidates[:, :, None, level] == history[:, None, :, level])
            recency.append((same / (1.0 + age)).amax(dim=-1))
        is_neighbor = (prefix[:, :, None] == neighbors[:, None, :]) & (neighbors[:, None, :] >= 0)
        own_mass = (is_neighbor * mass[:, None, :]).sum(dim=-1)
        length = is_item.sum(dim=-1, keepdim=True).to(popularity.dtype).expand_as(popularity)
        plain = [popularity / self.mean_popularity, own_mass, length]
        return torch.stack([*(torch.log1p(each) for each in plain), *recency], dim=-1)
