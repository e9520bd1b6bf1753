"""`sasrec`: the baseline to beat. Self-attention over items, scored against every item (arXiv 1808.09781).

It does not use Semantic IDs. As a generator it has one level with a code for each item, so it shares the
training loop, the search and the ranking with the other generators. As in the paper, a block is x +
dropout(f(norm(x))), positions have learnt embeddings, and input and output share the item embeddings.
Positions are counted from the newest item. Unlike the paper, it learns from cross-entropy over the whole
catalog, and not from one sampled negative. Without that it is a weak baseline (methods §0.2).
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.configs import SasRecConfig
from model_export.generators.base import Generator, Modules
from service.core.sid import SidSpec

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py


class SasRecState(NamedTuple):
    """The state of a search."""

    h: Tensor  # [batch, width]  after the newest item


class ItemEmbeddings(NamedTuple):
    """The vectors that the model has learnt from purchases alone."""

    vectors: NDArray[np.float32]  # [item, width]  zero for items that were not learnt
    is_learnt: NDArray[np.bool_]  # [item]  whether the item occurs in the training sequences


def codes_of_items(num_items: int) -> NDArray[np.int64]:
    """Codes [item, 1] for SidSpec(levels=(num_items,)). An item's code is its index."""
    return np.arange(num_items, dtype=np.int64)[:, None]


class Block(nn.Module):
    """Causal self-attention, then two layers that work on each position separately."""

    def __init__(self, config: SasRecConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.attention_dropout = config.dropout
        self.norm_attention = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm_ffn = nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, config.ffn_dim),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.ffn_dim, width),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """x [batch, position, width], visible [batch, 1, position, position] -> [batch, position, width]"""
        normed = self.norm_attention(x)
        query, key, value = (self._split(f(normed)) for f in (self.query, self.key, self.value))
        dropped = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropped)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        result: Tensor = x + self.dropout(self.ffn(self.norm_ffn(x)))
        return result

    def _split(self, x: Tensor) -> Tensor:
        """[batch, position, width] -> [batch, head, position, dim]"""
        result: Tensor = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return result


class SasRecGenerator(Generator):
    """SASRec as a generator of one level."""

    is_seen: Tensor  # [item]  whether the item occurs in the training sequences
    learns_every_position = True

    def __init__(
        self,
        *,
        config: SasRecConfig,
        spec: SidSpec,
        history_length: int,
        seen_codes: NDArray[np.integer[Any]],
    ) -> None:
        """`seen_codes` [item, 1]: the items that occur in the training sequences.

        Raises ValueError if `spec` has more than one level.
        """
        super().__init__()
        if spec.num_levels != 1:
            raise ValueError(f"sasrec needs one level with a code for each item, got levels {spec.levels}")
        self.spec = spec
        self.embed = nn.Embedding(spec.levels[0], config.width)
        self.place = nn.Embedding(history_length, config.width)  # row 0 is the newest item's
        nn.init.normal_(self.embed.weight, std=config.width**-0.5)
        nn.init.normal_(self.place.weight, std=0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks: Modules[Block] = Modules(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width)
        is_seen = np.isin(np.arange(spec.levels[0]), seen_codes)
        self.register_buffer("is_seen", torch.from_numpy(is_seen))

    def start(self, history: Tensor) -> SasRecState:
        """Keep the state after the newest item; see Generator.start."""
        return SasRecState(self._read(history)[:, -1])

    def step(self, level: int, state: SasRecState, prefix: Tensor) -> tuple[Tensor, SasRecState]:  # noqa: ARG002  there is only one level
        """Score every item; there is one level."""
        return F.log_softmax(self._logits(state.h), dim=-1)[:, None], state  # [batch, 1, code]

    def reorder(self, state: SasRecState, parent: Tensor) -> SasRecState:  # noqa: ARG002  all beams are the root
        """Nothing depends on a beam."""
        return state

    def loss(self, window: Tensor) -> Tensor:
        """Cross-entropy over all items at every position, in nats."""
        history, target = window[:, :-1], window[:, 1:, 0]  # [batch, position, 1], [batch, position]
        is_pair = (history[..., 0] >= 0) & (target >= 0)
        h = self._read(history)[is_pair]  # [pair, width]
        return F.cross_entropy(self._logits(h), target[is_pair])

    def item_embeddings(self) -> ItemEmbeddings:
        """The learnt vector of each item."""
        vectors = self.embed.weight.detach() * self.is_seen[:, None]
        return ItemEmbeddings(vectors.cpu().numpy(), self.is_seen.cpu().numpy())

    def _read(self, history: Tensor) -> Tensor:
        """Codes [batch, position, 1] -> states [batch, position, width]"""
        item = history[..., 0]
        positions = item.shape[1]
        is_item = item >= 0
        x = self.embed(item.clamp(min=0)) * self.embed.embedding_dim**0.5  # as in the authors' code
        x = x + self.place.weight[:positions].flip(0)
        x = self.dropout(x * is_item[..., None])
        causal = torch.ones(positions, positions, dtype=torch.bool, device=item.device).tril()
        # Each position sees itself, because padding that sees nothing would give nan.
        itself = torch.eye(positions, dtype=torch.bool, device=item.device)
        visible = (causal & is_item[:, None, None, :]) | itself  # [batch, 1, position, position]
        for block in self.blocks:
            x = block(x, visible)
        result: Tensor = self.norm(x)
        return result

    def _logits(self, h: Tensor) -> Tensor:
        """[..., width] -> [..., item]"""
        return h @ self.embed.weight.T
