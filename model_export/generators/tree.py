"""`tree`: a causal transformer over items. Decoding needs only its last state.

An item's vector is the sum of the embeddings of its prefixes c1, c1c2, c1c2c3 (prefix-ngram, arXiv 2504.02137
§3). So an unseen item uses the embeddings of its seen prefixes. Let h be the state of the newest item and p
the prefix so far. Then level l scores

    logit(c | p) = W_l[c] · (h + MLP_l(h + E[p])) + h · Q_l[p, c]

where E[p] is the embedding of p, and Q_l has one vector per prefix seen in training. Decoding has no
attention and no cache, and every position of every sequence trains at once.

If codes that are unseen below p competed, training would only push their probability to zero, and new items
could never be recommended. So they do not compete. The seen children of p and one more choice, "a new one",
share the probability. Every code that is unseen below p gets the whole probability of "a new one". The model
learns this choice because items are hidden: in each step of training, some items, chosen at random, count as
unseen.

E and Q do not have to start as noise. If the vectors behind the codes are given, a prefix starts in both E
and Q as the mean of its items' vectors. An untrained model then already ranks items by how near they are to
the items of the history. Rare items, which training hardly changes, keep that rank.

Training still moves the prefixes away from this start, and most of what it learns about rare items is noise.
So a search also asks a second opinion (likeness.py) and adds the two log-probabilities. This is a product of
experts. Training sees only the first expert, because experts that train together would make the same mistakes
(docs/log.md). Neither log-probability is ever positive, so the proof of a beam still holds.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.configs import TreeConfig
from model_export.generators.base import Generator, Modules
from model_export.generators.likeness import About, Likeness, shared_with_a_new_one, unit_vectors
from model_export.generators.seen_prefixes import (
    ROOT,
    UNSEEN,
    PrefixBonus,
    SeenPrefixes,
    item_vectors,
    prefix_means,
    seen_prefixes,
)
from service.core.sid import SidSpec

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
MASKED = -1e9  # finite: a row with every key masked must not become nan


class TreeState(NamedTuple):
    """The state of a search."""

    h: Tensor  # [batch, width]  after the newest item
    bonus: tuple[Tensor | None, ...]  # per level, PrefixBonus.of_rows(h)
    about: About | None  # the content of the history, for Likeness
    row: Tensor  # [batch, beam]  row of the prefix above the last code, see seen_prefixes.py


class Block(nn.Module):
    """Pre-norm causal attention. A learnt bias depends on the distance, so left padding changes nothing."""

    def __init__(self, config: TreeConfig, max_positions: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.max_positions = max_positions
        self.norm_attention = nn.LayerNorm(config.width)
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.out = nn.Linear(config.width, config.width)
        self.distance_bias = nn.Parameter(torch.zeros(config.num_heads, max_positions))
        self.norm_ffn = nn.LayerNorm(config.width)
        self.ffn = nn.Sequential(
            nn.Linear(config.width, config.ffn_dim),
            nn.GELU(),
            nn.Linear(config.ffn_dim, config.width),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, is_item: Tensor, *, last_only: bool) -> Tensor:
        """x [batch, position, width], is_item [batch, position] bool -> [batch, position, width]

        With `last_only` only the last position is computed: [batch, 1, width].
        """
        positions, width = x.shape[1:]
        normed = self.norm_attention(x)
        place = torch.arange(positions, device=x.device)
        asking = place
        if last_only:
            x, asking = x[:, -1:], place[-1:]
        query = self._split(self.query(normed[:, -1:] if last_only else normed))  # [batch, head, query, dim]
        key, value = self._split(self.key(normed)), self._split(self.value(normed))
        distance = asking[:, None] - place[None, :]  # [query, key]
        bias = self.distance_bias[:, distance.clamp(0, self.max_positions - 1)]  # [head, query, key]
        visible = (distance >= 0) & is_item[:, None, None, :]  # [batch, 1, query, key]
        logits = query @ key.transpose(-1, -2) * key.shape[-1] ** -0.5 + bias
        weights = torch.where(visible, logits, MASKED).softmax(dim=-1)
        mixed = (weights @ value).transpose(1, 2).flatten(2)  # [batch, query, width]
        x = x + self.dropout(self.out(mixed))
        mixed_in: Tensor = x + self.dropout(self.ffn(self.norm_ffn(x)))
        return mixed_in

    def _split(self, x: Tensor) -> Tensor:
        """[batch, position, width] -> [batch, head, position, dim]"""
        result: Tensor = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return result


class TreeGenerator(Generator):
    """`tree` as a generator."""

    learns_every_position = True

    def __init__(
        self,
        *,
        config: TreeConfig,
        spec: SidSpec,
        history_length: int,
        seen_codes: NDArray[np.integer[Any]],
        seen_vectors: NDArray[np.float32] | None = None,
    ) -> None:
        """`seen_codes` [item, level]: the codes of the items that occur in the training sequences.

        `seen_vectors` [item, dim]: the vectors of these items. Prefixes start from them, and likeness
        compares them, if the configuration says so.
        """
        super().__init__()
        self.spec = spec
        width = config.width
        self.prefixes: Modules[SeenPrefixes] = Modules(seen_prefixes(spec, seen_codes, width))
        self.has_bonus, self.hidden_share = config.has_bonus, config.hidden_share
        self.bonus: Modules[PrefixBonus] = Modules(
            PrefixBonus(prefixes, width) for prefixes in self.prefixes if config.has_bonus
        )
        self.code = nn.ParameterList(
            nn.Parameter(torch.randn(num_codes + 1, width) * width**-0.5) for num_codes in spec.levels
        )  # the last row is "a new one"
        self.mix = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in spec.levels
        )
        self.dropout = nn.Dropout(config.dropout)
        self.blocks: Modules[Block] = Modules(Block(config, history_length) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width)
        if config.start_scale and seen_vectors is not None:
            self._start_from(seen_codes, config.start_scale * principal_axes(seen_vectors, width))
        self.likeness = None
        if config.likeness and seen_vectors is not None:
            self.likeness = Likeness(
                config, self.prefixes, seen_codes, unit_vectors(seen_vectors), history_length
            )

    @torch.no_grad()
    def _start_from(self, codes: NDArray[np.integer[Any]], vectors: NDArray[np.float32]) -> None:
        """Add to each prefix the mean of its items' vectors. codes [item, level], vectors [item, width]"""
        found = prefix_means(
            self.prefixes, torch.from_numpy(codes.astype(np.int64)), torch.from_numpy(vectors)
        )
        for level, (prefixes, means) in enumerate(zip(self.prefixes, found, strict=True)):
            prefixes.embedding.weight += means
            if self.has_bonus:
                self.bonus[level].start_from(means)

    def start(self, history: Tensor) -> TreeState:
        """Keep the state after the newest item and what depends on it alone; see Generator.start."""
        h = self._read(history, last_only=True)[:, 0]
        about = None if self.likeness is None else self.likeness.start(history)
        return TreeState(h, self._bonus_of(h), about, torch.full_like(history[:, :1, 0], ROOT))

    def step(self, level: int, state: TreeState, prefix: Tensor) -> tuple[Tensor, TreeState]:
        """Score the codes below each prefix from the one state; see Generator.step."""
        row = state.row
        if level > 0:
            row = self.prefixes[level - 1].rows(row, prefix % self.spec.levels[level - 1])
        rows = self.prefixes[level].rows_below(row)  # [batch, beam, code]
        bonus = None
        if self.has_bonus:
            bonus = self.bonus[level].of_children(state.h, state.bonus[level], row, rows)
        log_probs = self._log_probs(level, state.h[:, None], row, bonus, rows != UNSEEN)
        if self.likeness is not None and state.about is not None:
            log_probs = log_probs + self.likeness.log_probs(level, state.about, row, rows)
        return log_probs, state._replace(row=row)

    def reorder(self, state: TreeState, parent: Tensor) -> TreeState:
        """Take the rows of the parents; see Generator.reorder."""
        return state._replace(row=state.row.gather(1, parent))

    def loss(self, window: Tensor) -> Tensor:
        """The sum over levels of the negative log-likelihood at every position, in nats per item."""
        history, target = window[:, :-1], window[:, 1:]
        is_pair = (history[..., 0] >= 0) & (target[..., 0] >= 0)  # [batch, position]
        hidden = self._hide()
        h, target = self._read(history, hidden)[is_pair], target[is_pair]  # [pair, width], [pair, level]
        total = h.new_zeros(())
        row = torch.full_like(target[:, 0], ROOT)  # [pair]  row of the true prefix so far
        for level, prefixes in enumerate(self.prefixes):
            rows = prefixes.rows_below(row)  # [pair, code]
            bonus = self.bonus[level].of_own_children(h, row, rows) if self.has_bonus else None
            is_seen = rows != UNSEEN
            if level == len(self.prefixes) - 1:
                is_seen = is_seen & ~hidden[rows]
            log_probs = self._log_probs(level, h, row, bonus, is_seen)
            code = target[:, level]
            total = total + F.nll_loss(log_probs, code)
            row = prefixes.rows(row, code)
        return total

    def _hide(self) -> Tensor:
        """A mask [row] of the rows of the last level that count as unseen in this step of training."""
        draw = torch.rand(self.prefixes[-1].num_rows + 1, device=self.norm.weight.device)
        return draw < (self.hidden_share if self.training else 0.0)

    def _read(self, history: Tensor, hidden: Tensor | None = None, *, last_only: bool = False) -> Tensor:
        """Codes [batch, position, level] -> states [batch, position, width]

        With `last_only` only the state of the last position: [batch, 1, width].
        """
        is_item = history[..., 0] >= 0
        x = self.dropout(self._items(history, hidden) * is_item[..., None])
        for i, block in enumerate(self.blocks):
            x = block(x, is_item, last_only=last_only and i == len(self.blocks) - 1)
        result: Tensor = self.norm(x[:, -1:] if last_only else x)
        return result

    def _items(self, history: Tensor, hidden: Tensor | None) -> Tensor:
        """The vectors of a history's items: codes [batch, position, level] -> [batch, position, width]"""
        return item_vectors(self.prefixes, history, hidden)

    def _bonus_of(self, h: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(bonus.of_rows(h) for bonus in self.bonus)

    def _log_probs(self, level: int, h: Tensor, row: Tensor, bonus: Tensor | None, is_seen: Tensor) -> Tensor:
        """Log-probabilities [..., code] for states h [..., width] below the prefixes row [...].

        bonus and is_seen [..., code] belong to the children of the prefixes.
        """
        mixed = h if level == 0 else h + self.prefixes[level - 1].embedding(row)
        logits = (h + self.mix[level](mixed)) @ self.code[level].T  # [..., code + 1]
        logits, new = logits[..., :-1], logits[..., -1:]
        if bonus is not None:
            logits = logits + bonus
        return shared_with_a_new_one(logits, new, is_seen)


def principal_axes(vectors: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Project vectors [item, dim] to their principal axes -> [item, width]. Each row has length 1.

    If dim or the number of items is smaller than width, the last columns are zero.
    """
    centered = vectors - vectors.mean(axis=0)
    _, _, axes = np.linalg.svd(centered, full_matrices=False)  # [axis, dim]
    found = np.zeros((len(vectors), width), np.float32)
    found[:, : len(axes[:width])] = centered @ axes[:width].T
    return unit_vectors(found)
