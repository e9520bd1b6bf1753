"""A second opinion for `tree`: it ranks items by how near their content is to the content of the history.

Nothing here is trained. It is the study's item_knn, spread over the levels of the codes.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_export.configs import TreeConfig
from model_export.generators.base import Modules
from model_export.generators.seen_prefixes import ROOT, UNSEEN, PrefixBonus, SeenPrefixes, prefix_means

MASKED = -1e9  # finite: a row with every code masked must not become nan


class About(NamedTuple):
    """The content of a history."""

    query: Tensor  # [batch, dim + 1]  the last entry is 1: it adds the log of a prefix's number of items
    of_rows: tuple[Tensor | None, ...]  # per level, PrefixBonus.of_rows(query)


class Likeness(nn.Module):
    """Scores the children of a prefix by how near their items are to the history.

    The likeness of a child is the softmax of log n + q · m over the seen children and one more choice, "a new
    one". For a seen child, n is the number of its items, or the sum of their weights if popular items weigh
    more, and m is the mean of their vectors. For the new one, n is 1, and m is the mean over all items of the
    prefix. q is the weighted sum of the history's vectors. Each step into the past multiplies the weight by
    `recency`.
    """

    weight: Tensor  # [position]  oldest first
    middle: Tensor  # [dim]  mean of all items' vectors

    def __init__(
        self,
        config: TreeConfig,
        prefixes: Modules[SeenPrefixes],
        codes: NDArray[np.integer[Any]],
        vectors: NDArray[np.float32],
        history_length: int,
        power: float = 1.0,
        item_weights: NDArray[np.float32] | None = None,
    ) -> None:
        """codes [item, level] and vectors [item, dim] of seen items. Their products are the likeness.

        `power`: of the probabilities, above 1 if likeness weighs more than what was learned. item_weights
        [item]: how often each item counts, by default once.
        """
        super().__init__()
        self.power = power
        self.prefixes = [prefixes]  # in a list, because its weights belong to another module
        seen = torch.from_numpy(vectors)
        weights = torch.ones(len(codes)) if item_weights is None else torch.from_numpy(item_weights).float()
        weight = config.likeness * config.recency ** torch.arange(history_length - 1, -1, -1.0)
        self.register_buffer("weight", weight)
        self.register_buffer("middle", seen.mean(dim=0))
        self.contents: Modules[PrefixBonus] = Modules(
            PrefixBonus(own, vectors.shape[1] + 1).requires_grad_(False) for own in prefixes
        )
        row = torch.full((len(codes),), ROOT)
        means = prefix_means(prefixes, torch.from_numpy(codes.astype(np.int64)), seen)
        for level, (own, children) in enumerate(zip(prefixes, self.contents, strict=True)):
            row = own.rows(row, torch.from_numpy(codes[:, level].astype(np.int64)))
            count = torch.zeros(own.num_rows + 1).index_add(0, row, weights)
            count[count == 0] = 1.0
            children.vectors.weight.zero_()
            children.start_from(torch.cat([means[level], count.log()[:, None]], dim=1))

    def start(self, history: Tensor) -> About:
        """Read histories of codes [batch, position, level], with PADDING on the left."""
        codes = history.clamp(min=0)
        row = torch.full_like(codes[..., 0], ROOT)
        vectors = self.middle.expand(*row.shape, -1)
        for level, own in enumerate(self.prefixes[0]):  # an unseen item gets its deepest seen prefix
            row = own.rows(row, codes[..., level])
            found = self.contents[level].vectors(row)[..., :-1]
            vectors = torch.where((row != UNSEEN)[..., None], found, vectors)
        weight = self.weight[-history.shape[1] :] * (history[..., 0] >= 0)  # [batch, position]
        query = (weight[:, None] @ vectors)[:, 0]
        query = torch.cat([query, torch.ones_like(query[:, :1])], dim=1)
        return About(query, tuple(children.of_rows(query) for children in self.contents))

    def log_probs(self, level: int, about: About, row: Tensor, rows: Tensor) -> Tensor:
        """The log-probabilities [batch, beam, code] of the children of prefixes.

        `row` [batch, beam]: the rows of the prefixes. `rows` [batch, beam, code]: the rows of their children.
        """
        logits = self.contents[level].of_children(about.query, about.of_rows[level], row, rows)
        query = about.query[:, :-1]
        if level == 0:
            new = (query @ self.middle)[:, None]
        else:
            own = self.contents[level - 1].vectors(row)[..., :-1]  # [batch, beam, dim]
            new = (own @ query[..., None])[..., 0]
        log_probs = shared_with_a_new_one(logits, new[..., None], rows != UNSEEN)
        return log_probs if self.power == 1 else self.power * log_probs


def unit_vectors(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors [item, dim] of length 1. A vector of zeros stays one."""
    found: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return found


def shared_with_a_new_one(logits: Tensor, new: Tensor, is_seen: Tensor) -> Tensor:
    """Log-probabilities [..., code], shared between the seen codes and "a new one".

    logits [..., code]: only those of seen codes count. new [..., 1]: the logit of "a new one". Every unseen
    code gets the whole probability of "a new one".
    """
    among = torch.cat([torch.where(is_seen, logits, MASKED), new], dim=-1)
    log_probs = among.log_softmax(dim=-1)  # ONNX Runtime takes several times as long for a logsumexp
    return torch.where(is_seen, log_probs[..., :-1], log_probs[..., -1:])
