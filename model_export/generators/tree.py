"""`tree`: a causal transformer over items, whose last state is all that decoding needs.

An item's vector is the sum of the embeddings of its prefixes (c1; c1c2; c1c2c3: prefix-ngram, arXiv
2504.02137 §3), so an item never seen shares what its prefixes learnt. With h the state of the newest item,
level l scores

    logit(c | p) = W_l[c] · (h + MLP_l(h + E[p])) + h · Q_l[p, c]

where p is the prefix so far and Q_l holds one vector per prefix seen in training and zero for others.
Decoding has no attention and no cache, and every position of every sequence trains at once.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.configs import TreeConfig
from model_export.generators.base import Generator
from service.contract import SidSpec

MASKED = -1e9  # finite: a row with every key masked must not become nan


class TreeState(NamedTuple):
    h: Tensor  # [batch, width]
    bonus: tuple[
        Tensor, ...
    ]  # per level h · Q_l for every seen prefix [batch, row]; row 0 is 0, for the unseen


class PrefixTable(nn.Module):
    """One vector for each prefix seen in training, zero for all others."""

    def __init__(self, *, seen: NDArray[np.int64], num_prefixes: int, width: int) -> None:
        super().__init__()
        row_of = np.zeros(num_prefixes, dtype=np.int32)
        row_of[seen] = np.arange(1, len(seen) + 1)
        self.register_buffer("row_of", torch.from_numpy(row_of))
        self.vectors = nn.Embedding(len(seen) + 1, width, padding_idx=0)
        nn.init.normal_(self.vectors.weight, std=0.02)
        with torch.no_grad():
            self.vectors.weight[0] = 0.0

    def forward(self, prefix: Tensor) -> Tensor:
        """[...] -> [..., width]"""
        return self.vectors(self.rows(prefix))

    def rows(self, prefix: Tensor) -> Tensor:
        return self.row_of[prefix].long()

    def rows_of_children(self, prefix: Tensor, num_codes: int) -> Tensor:
        """The rows of all children of each prefix of the level above: [...] -> [..., code]"""
        return self.row_of.view(-1, num_codes)[prefix].long()


class Block(nn.Module):
    """Pre-norm causal attention with a learnt bias by distance, so that left padding moves nothing."""

    def __init__(self, config: TreeConfig, max_positions: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.max_positions = max_positions
        self.norm_attention = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.distance_bias = nn.Parameter(torch.zeros(config.num_heads, max_positions))
        self.norm_ffn = nn.LayerNorm(config.width)
        self.ffn = nn.Sequential(
            nn.Linear(config.width, config.ffn_dim),
            nn.GELU(),
            nn.Linear(config.ffn_dim, config.width),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, is_item: Tensor) -> Tensor:
        """x [batch, position, width], is_item [batch, position] bool"""
        batch, positions, width = x.shape
        heads = self.qkv(self.norm_attention(x)).view(batch, positions, 3, self.num_heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # [batch, head, position, dim]
        place = torch.arange(positions, device=x.device)
        distance = place[:, None] - place[None, :]  # [query, key]
        bias = self.distance_bias[:, distance.clamp(0, self.max_positions - 1)]  # [head, query, key]
        visible = (distance >= 0) & is_item[:, None, None, :]  # [batch, 1, query, key]
        logits = query @ key.transpose(-1, -2) * key.shape[-1] ** -0.5 + bias
        weights = torch.where(visible, logits, MASKED).softmax(dim=-1)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, positions, width)
        x = x + self.dropout(self.out(mixed))
        return x + self.dropout(self.ffn(self.norm_ffn(x)))


class TreeGenerator(Generator):
    learns_every_position = True

    def __init__(
        self, *, config: TreeConfig, spec: SidSpec, history_length: int, seen_codes: NDArray[np.integer[Any]]
    ) -> None:
        """`seen_codes` [item, level]: the codes of the items that occur in the training sequences."""
        super().__init__()
        self.spec = spec
        width = config.width
        seen = [np.unique(prefix) for prefix in spec.prefixes_of(np.asarray(seen_codes))]
        tables = zip(seen, spec.num_prefixes, strict=True)
        self.embed = nn.ModuleList(PrefixTable(seen=s, num_prefixes=n, width=width) for s, n in tables)
        tables = zip(seen, spec.num_prefixes, strict=True)
        self.bonus = nn.ModuleList(PrefixTable(seen=s, num_prefixes=n, width=width) for s, n in tables)
        self.code = nn.ParameterList(
            nn.Parameter(torch.randn(num_codes, width) * width**-0.5) for num_codes in spec.levels
        )
        self.mix = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in spec.levels
        )
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, history_length) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width)

    def start(self, history: Tensor) -> TreeState:
        h = self._read(history)[:, -1]
        return TreeState(h, self._bonus_of(h))

    def step(self, level: int, state: TreeState, prefix: Tensor) -> tuple[Tensor, TreeState]:
        h = state.h[:, None, :].expand(-1, prefix.shape[1], -1)  # [batch, beam, width]
        rows = self.bonus[level].rows_of_children(prefix, self.spec.levels[level])  # [batch, beam, code]
        bonus = state.bonus[level].gather(1, rows.flatten(1)).view(rows.shape)
        logits = self._common(level, h, prefix) + bonus
        return F.log_softmax(logits, dim=-1), state

    def reorder(self, state: TreeState, parent: Tensor) -> TreeState:  # noqa: ARG002  the state has no beams
        return state

    def loss(self, window: Tensor) -> Tensor:
        history, target = window[:, :-1], window[:, 1:]
        is_pair = (history[..., 0] >= 0) & (target[..., 0] >= 0)  # [batch, position]
        h, target = self._read(history)[is_pair], target[is_pair]  # [pair, width], [pair, level]
        bonus = self._bonus_of(h)
        total = h.new_zeros(())
        prefix = torch.zeros_like(target[:, 0])
        for level, num_codes in enumerate(self.spec.levels):
            rows = self.bonus[level].rows_of_children(prefix, num_codes)  # [pair, code]
            logits = self._common(level, h, prefix) + bonus[level].gather(1, rows)
            total = total + F.cross_entropy(logits, target[:, level])
            prefix = prefix * num_codes + target[:, level]
        return total

    def _read(self, history: Tensor) -> Tensor:
        """Codes [batch, position, level] -> states [batch, position, width]"""
        is_item = history[..., 0] >= 0
        codes = history.clamp(min=0)
        prefix = torch.zeros_like(codes[..., 0])
        x = None
        for level, num_codes in enumerate(self.spec.levels):
            prefix = prefix * num_codes + codes[..., level]
            vector = self.embed[level](prefix)
            x = vector if x is None else x + vector
        x = self.dropout(x * is_item[..., None])
        for block in self.blocks:
            x = block(x, is_item)
        return self.norm(x)

    def _bonus_of(self, h: Tensor) -> tuple[Tensor, ...]:
        """[batch, width] -> per level [batch, row]. One product with every seen prefix, instead of a gather
        of one vector for each code of each beam, most of which no item has.
        """
        return tuple(h @ table.vectors.weight.T for table in self.bonus)

    def _common(self, level: int, h: Tensor, prefix: Tensor) -> Tensor:
        """What all prefixes share: h [..., width], prefix [...] -> [..., code]"""
        mixed = h if level == 0 else h + self.embed[level - 1](prefix)
        return (h + self.mix[level](mixed)) @ self.code[level].T
