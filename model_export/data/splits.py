"""Leave one out: a user's last item is the test target, the one before it the validation target, the rest
trains.

Nothing that learns may see more than `Split.train`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_export.data.dataset import Dataset, ItemSequence

MIN_ITEMS_TO_EVALUATE = 3  # one to train on, two targets


@dataclass(frozen=True)
class Targets:
    users: NDArray[np.int64]  # [target] indices into the dataset's users
    histories: list[ItemSequence]  # [target] everything before the target
    targets: NDArray[np.int32]  # [target]

    def __len__(self) -> int:
        return len(self.users)

    def first(self, count: int) -> "Targets":
        """The first `count` of them: a smaller evaluation."""
        return Targets(self.users[:count], self.histories[:count], self.targets[:count])


@dataclass(frozen=True)
class Split:
    train: list[ItemSequence]  # one a user
    validation: Targets
    test: Targets


def leave_one_out(dataset: Dataset) -> Split:
    """Users with fewer than three items give all of them to training and are not evaluated."""
    sequences = dataset.sequences
    users = np.array([n for n, s in enumerate(sequences) if len(s) >= MIN_ITEMS_TO_EVALUATE], dtype=np.int64)
    evaluated = set(users.tolist())
    train = [sequence[:-2] if user in evaluated else sequence for user, sequence in enumerate(sequences)]
    return Split(train, validation=_targets(sequences, users, 2), test=_targets(sequences, users, 1))


def _targets(sequences: list[ItemSequence], users: NDArray[np.int64], from_end: int) -> Targets:
    return Targets(
        users=users,
        histories=[sequences[user][:-from_end] for user in users],
        targets=np.array([sequences[user][-from_end] for user in users], dtype=np.int32),
    )
