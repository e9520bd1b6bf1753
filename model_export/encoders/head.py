"""The head maps an item's features, which describe its text, to a vector that also reflects purchases.

It is the sum of a linear map and an MLP. The linear map keeps the geometry of the text, also for an item that
is unlike everything sold so far. Training uses InfoNCE (van den Oord et al., 2018) in both directions: for an
item, the head must find an item bought close to it among the items of a batch.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.configs import HeadConfig
from service.core.progress import ProgressBar

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
MASKED = -1e9


class ItemHead(nn.Module):
    """Features [item, feature_dim] -> unit vectors [item, vector_dim]."""

    def __init__(self, *, feature_dim: int, config: HeadConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(feature_dim, config.vector_dim, bias=False)
        hidden = nn.Linear(feature_dim, config.hidden_dim)
        last = nn.Linear(config.hidden_dim, config.vector_dim)
        self.mlp = nn.Sequential(
            nn.Dropout(config.dropout), hidden, nn.GELU(), nn.Dropout(config.dropout), last
        )
        # The MLP adds almost nothing at first, so training starts from the geometry of the text.
        nn.init.normal_(last.weight, std=1e-3)
        nn.init.zeros_(last.bias)
        self.dropout = nn.Dropout(config.dropout)
        self.vector_dim = config.vector_dim

    def forward(self, features: Tensor) -> Tensor:
        """Features [item, feature_dim] -> unit vectors [item, vector_dim]."""
        return F.normalize(
            self.linear(self.dropout(features)) + self.mlp(features), dim=-1
        )  # [item, vector_dim]

    @torch.no_grad()
    def start_from_principal_axes(self, features: Tensor) -> None:
        """Set the linear part to the first vector_dim principal axes, which keep the most of the geometry."""
        set_principal_axes(self.linear, features)

    @torch.no_grad()
    def vectors(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features [item, feature_dim] of a whole catalog -> unit vectors [item, vector_dim]."""
        result: NDArray[np.float32] = self.eval()(torch.from_numpy(features)).numpy()
        return result


class UnchangedFeatures(ItemHead):
    """Gives the features back, of whatever length, for an encoder that has learned from purchases itself."""

    def __init__(self, *, feature_dim: int, config: HeadConfig) -> None:
        super().__init__(feature_dim=feature_dim, config=config)
        self.vector_dim = feature_dim

    def forward(self, features: Tensor) -> Tensor:
        """Features [item, feature_dim] -> the same."""
        return features


def set_principal_axes(linear: nn.Linear, features: Tensor) -> None:
    """Make `linear` a projection of features [item, feature] on their first principal axes."""
    _, _, axes = torch.linalg.svd(features, full_matrices=False)  # [axis, feature]
    linear.weight.zero_()
    linear.weight[: len(axes)] = axes[: linear.out_features]


def train_head(
    features: NDArray[np.float32],
    sequences: Sequence[NDArray[np.int32]],
    config: HeadConfig,
    seed: int,
    make: Callable[[], ItemHead] | None = None,
) -> ItemHead:
    """Fit a head to features [item, feature_dim] and to sequences of items, oldest first.

    The sequences must be those of the training part only. Without any pair or training step the head stays at
    its start, which is a projection of the features on their principal axes. `make` makes another kind of
    head.
    """
    inputs = torch.from_numpy(features)
    pairs = torch.from_numpy(close_pairs(sequences, config.window))  # [pair, 2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = ItemHead(feature_dim=features.shape[1], config=config) if make is None else make()
        head.start_from_principal_axes(inputs)
        if len(pairs) and config.max_steps:
            _train(head, inputs, pairs, config)
    return head.eval()


def close_pairs(sequences: Sequence[NDArray[np.int32]], window: int) -> NDArray[np.int64]:
    """Pairs [pair, 2] of different items that are at most `window` places apart in a sequence.

    A pair that occurs several times is listed several times.
    """
    found: list[NDArray[np.int32]] = []
    for step in range(1, window + 1):
        found.extend(np.stack([sequence[:-step], sequence[step:]], axis=1) for sequence in sequences)
    pairs = np.concatenate(found) if found else np.zeros((0, 2))
    result: NDArray[np.int64] = pairs[pairs[:, 0] != pairs[:, 1]].astype(np.int64)
    return result


def _train(head: ItemHead, features: Tensor, pairs: Tensor, config: HeadConfig) -> None:
    optimizer = torch.optim.AdamW(head.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    batch_size = min(config.batch_size, len(pairs))
    steps_per_epoch = len(pairs) // batch_size
    num_steps = min(config.max_steps, config.num_epochs * steps_per_epoch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    bought_together = _bought_together(pairs, len(features))
    head.train()
    progress = ProgressBar(range(num_steps), desc="Training the head", unit="step", mininterval=1.0)
    for step in progress:
        place = step % steps_per_epoch
        if place == 0:
            order = torch.randperm(len(pairs))
        batch = pairs[order[place * batch_size : (place + 1) * batch_size]]  # [pair, 2]
        loss = _info_nce(head, features, batch, bought_together, config.temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")


def _info_nce(
    head: ItemHead, features: Tensor, pairs: Tensor, bought_together: csr_matrix, temperature: float
) -> Tensor:
    """Mean InfoNCE loss in nats over pairs [pair, 2] and both directions.

    Each item must find its partner among the partners of the whole batch.
    """
    left, right = pairs.T  # [pair] each
    vectors = head(features[torch.cat([left, right])])  # [2 * pair, vector_dim]
    logits = vectors[: len(pairs)] @ vectors[len(pairs) :].T / temperature  # [pair, pair]
    # The item itself and other items that were bought with it are not wrong answers.
    known = torch.from_numpy(bought_together[left.numpy()].toarray()[:, right.numpy()])  # [pair, pair]
    masked = (known | (left[:, None] == right)) & ~torch.eye(len(pairs), dtype=torch.bool)
    logits = logits.masked_fill(masked, MASKED)
    answer = torch.arange(len(pairs))
    return (F.cross_entropy(logits, answer) + F.cross_entropy(logits.T, answer)) / 2


def _bought_together(pairs: Tensor, num_items: int) -> csr_matrix:
    """A matrix [item, item] that is True where the two items are a pair."""
    left, right = pairs.numpy().T
    ones = np.ones(2 * len(pairs), dtype=bool)
    places = (np.concatenate([left, right]), np.concatenate([right, left]))
    return csr_matrix((ones, places), shape=(num_items, num_items))
