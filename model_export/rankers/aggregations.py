"""How a ranker reads a history: bypass, transformer, pooling by learned seeds (arXiv 2504.02137 §4.3).

Each turns the embeddings of a history's items into a fixed number of outputs. The history always has the same
length: positions without an item hold one learned vector, and attention may look at them. The paper reports
how much it does (evaluation/click_measures.py).
"""

import torch
from torch import Tensor, nn

from model_export.ranker_config import RankerConfig


class Attention(nn.Module):
    """Attention of queries to the positions of a history, with several heads."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def weights(self, asking: Tensor, x: Tensor) -> Tensor:
        """asking [batch, query, width], x [batch, position, width] -> [batch, head, query, position]"""
        query, key = self._split(self.query(asking)), self._split(self.key(x))
        found: Tensor = (query @ key.transpose(-1, -2) * key.shape[-1] ** -0.5).softmax(dim=-1)
        return found

    def forward(self, asking: Tensor, x: Tensor) -> Tensor:
        """asking [batch, query, width], x [batch, position, width] -> [batch, query, width]"""
        mixed = (self.weights(asking, x) @ self._split(self.value(x))).transpose(1, 2).flatten(2)
        result: Tensor = self.out(mixed)
        return result

    def _split(self, x: Tensor) -> Tensor:
        """[batch, position, width] -> [batch, head, position, dim]"""
        result: Tensor = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return result


class Bypass(nn.Module):
    """One linear layer for every item, and no attention. One output for each position."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.num_outputs = config.history_length
        self.linear = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, position, width] -> [batch, position, width]"""
        result: Tensor = self.linear(x)
        return result

    def weights(self, _x: Tensor) -> Tensor | None:
        """None: it has no attention."""
        return None


class TransformerLayer(nn.Module):
    """One pre-norm transformer layer. One output for each position."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        width = config.width
        self.num_outputs = config.history_length
        self.place = nn.Parameter(torch.randn(config.history_length, width) * 0.02)
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, config.num_heads)
        self.norm_ffn = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, position, width] -> [batch, position, width]"""
        x = x + self.place
        normed = self.norm_attention(x)
        x = x + self.attention(normed, normed)
        mixed: Tensor = x + self.ffn(self.norm_ffn(x))
        return mixed

    def weights(self, x: Tensor) -> Tensor | None:
        """x [batch, position, width] -> [batch, head, position, position]"""
        normed = self.norm_attention(x + self.place)
        return self.attention.weights(normed, normed)


class Pooling(nn.Module):
    """Pooling by multi-head attention: learned seeds ask for what they need. One output for each seed."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        width = config.width
        self.num_outputs = config.num_seeds
        self.place = nn.Parameter(torch.randn(config.history_length, width) * 0.02)
        self.seeds = nn.Parameter(torch.randn(config.num_seeds, width) * width**-0.5)
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, config.num_heads)
        self.norm_ffn = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, position, width] -> [batch, seed, width]"""
        asking = self.seeds.expand(x.shape[0], -1, -1)
        pooled = self.attention(asking, self.norm(x + self.place))
        mixed: Tensor = pooled + self.ffn(self.norm_ffn(pooled))
        return mixed

    def weights(self, x: Tensor) -> Tensor | None:
        """x [batch, position, width] -> [batch, head, seed, position]"""
        return self.attention.weights(self.seeds.expand(x.shape[0], -1, -1), self.norm(x + self.place))


Aggregation = Bypass | TransformerLayer | Pooling
AGGREGATIONS: dict[str, type[Aggregation]] = {
    "bypass": Bypass,
    "transformer": TransformerLayer,
    "pooling": Pooling,
}
