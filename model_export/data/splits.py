"""The leave-one-out split of the users' sequences.

A user's last item is the test target, and the item before it is the validation target. All other items are
for training. Nothing that learns may see more than `Split.train`.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from model_export.data.dataset import Dataset, ItemSequence

MIN_ITEMS_TO_EVALUATE = 3  # one item for training and two targets
MAX_REPEATED_SHARE = 0.5


@dataclass(frozen=True)
class Targets:
    """Items that a model should predict, each from the user's items before it."""

    users: NDArray[np.int64]  # [target] indices into the dataset's users
    histories: list[ItemSequence]  # [target] all items before the target
    targets: NDArray[np.int32]  # [target] item indices

    def __len__(self) -> int:
        return len(self.users)

    @cached_property
    def repeated_share(self) -> float:
        """The share of targets in their own history. A search without the history cannot find them."""
        repeated = [target in history for target, history in zip(self.targets, self.histories, strict=True)]
        return float(np.mean(repeated)) if repeated else 0.0

    @property
    def are_repeats(self) -> bool:
        """Whether most targets repeat an item. Then a model is judged with the history among the answers."""
        return self.repeated_share > MAX_REPEATED_SHARE

    def first(self, count: int) -> "Targets":
        """The first `count` targets, for a smaller evaluation."""
        return Targets(self.users[:count], self.histories[:count], self.targets[:count])


@dataclass(frozen=True)
class Split:
    """A dataset's sequences in three parts."""

    train: list[ItemSequence]  # one per user
    validation: Targets
    test: Targets


def leave_one_out(dataset: Dataset) -> Split:
    """Split each user's sequence. Users with fewer than three items are only in the training part."""
    sequences = dataset.sequences
    users = np.array([n for n, s in enumerate(sequences) if len(s) >= MIN_ITEMS_TO_EVALUATE], dtype=np.int64)
    evaluated = set(users.tolist())
    train = [sequence[:-2] if user in evaluated else sequence for user, sequence in enumerate(sequences)]
    return Split(train, validation=_targets(sequences, users, 2), test=_targets(sequences, users, 1))


def training_fingerprint(dataset: Dataset, split: Split) -> str:
    """SHA-256 of the users with the ids of their training items, in hex."""
    digest, item_ids = hashlib.sha256(), dataset.item_ids
    for user_id, sequence in zip(dataset.user_ids, split.train, strict=True):
        digest.update(json.dumps([user_id, *(item_ids[item] for item in sequence)]).encode() + b"\n")
    return digest.hexdigest()


def _targets(sequences: list[ItemSequence], users: NDArray[np.int64], from_end: int) -> Targets:
    return Targets(
        users=users,
        histories=[sequences[user][:-from_end] for user in users],
        targets=np.array([sequences[user][-from_end] for user in users], dtype=np.int32),
    )
