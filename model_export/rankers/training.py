"""Trains a ranker on events and sampled non-events, in the order that the caller gives."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_export.rankers.ranker import Batch, Ranker

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py


@dataclass(frozen=True)
class Examples:
    """Events, each with the items that were not taken then. Items are indices."""

    history: NDArray[np.int64]  # [event, position]  oldest first, -1 on the left
    candidates: NDArray[np.int64]  # [event, candidate]  the first is the item of the event
    dense: NDArray[np.float32]  # [event, candidate, feature]

    def __len__(self) -> int:
        return len(self.history)

    def batch(self, rows: Tensor, events: NDArray[np.int64] | slice) -> Batch:
        """Some events, for a ranker. rows [item, gram]: the rows of each item in the table."""
        history = torch.from_numpy(self.history[events])
        return Batch(
            rows[history.clamp(min=0)],
            history >= 0,
            rows[torch.from_numpy(self.candidates[events])],
            torch.from_numpy(self.dense[events]),
        )


def train_ranker(
    ranker: Ranker, examples: Examples, rows: Tensor, order: Iterable[NDArray[np.int64] | slice]
) -> float:
    """One step for each batch of events in `order`. Returns the mean loss of the last tenth of the steps.

    rows [item, gram]
    """
    optimizer = torch.optim.Adam(ranker.parameters(), lr=ranker.config.learning_rate)
    losses = []
    ranker.train()
    for events in order:
        loss = ranker.loss(examples.batch(rows, events))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    ranker.eval()
    return float(np.mean(losses[-max(1, len(losses) // 10) :])) if losses else float("nan")


def in_time_order(events: range, batch_size: int) -> Iterator[slice]:
    """One pass over the events as they happened."""
    for first in range(events.start, events.stop, batch_size):
        yield slice(first, min(first + batch_size, events.stop))


def shuffled(num_events: int, batch_size: int, num_epochs: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Several passes, each in an order of its own."""
    rng = np.random.default_rng(seed)
    for _ in range(num_epochs):
        order = rng.permutation(num_events)
        for first in range(0, num_events, batch_size):
            yield order[first : first + batch_size]


@torch.no_grad()
def log_odds_of(
    ranker: Ranker, examples: Examples, rows: Tensor, events: range, batch_size: int = 512
) -> NDArray[Any]:
    """The log-odds of the candidates of some events: [event, candidate]"""
    found = [ranker(examples.batch(rows, part)).numpy() for part in in_time_order(events, batch_size)]
    return np.concatenate(found) if found else np.zeros((0, examples.candidates.shape[1]), np.float32)
