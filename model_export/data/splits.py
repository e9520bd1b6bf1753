"""Two splits of the users' sequences. Nothing that learns may see more than `Split.train`.

Leave-one-out: a user's last item is the test target, and the item before it is the validation target. All
other items are for training.

By time: the test target is a user's first item from a moment on, and what was before it is split as above, as
an export of the earlier events splits it. Leave-one-out lets a model learn from what other users did after
the target, and a split by time does not (Meng et al., "Exploring data splitting strategies for the evaluation
of recommendation models", RecSys 2020).
"""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from model_export.data.dataset import MIN_ITEMS_PER_USER, DataError, Dataset, ItemSequence, make_dataset

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
    """SHA-256 of the users with the ids of their training items, in hex. Users without any are left out."""
    digest, item_ids = hashlib.sha256(), dataset.item_ids
    for user_id, sequence in zip(dataset.user_ids, split.train, strict=True):
        if len(sequence):
            digest.update(json.dumps([user_id, *(item_ids[item] for item in sequence)]).encode() + b"\n")
    return digest.hexdigest()


def split_by_time(dataset: Dataset, moment: int) -> Split:
    """Split at a moment in milliseconds since 1970. Users without items on both sides have no test target.

    Raises DataError if the dataset has no times, or if nobody has a test target.
    """
    num_before = _num_before(dataset, moment)
    before = [sequence[:count] for sequence, count in zip(dataset.sequences, num_before, strict=True)]
    # An export of the earlier events leaves out who has too few of them, so these users teach nothing.
    taught = [sequence if len(sequence) >= MIN_ITEMS_PER_USER else sequence[:0] for sequence in before]
    earlier = leave_one_out(replace(dataset, sequences=taught, times=None))
    users = np.array(
        [user for user, count in enumerate(num_before) if 0 < count < len(dataset.sequences[user])],
        dtype=np.int64,
    )
    if not len(users):
        raise DataError(
            f"{dataset.name}: no user has items both before and after the moment of the split. Change it."
        )
    test = Targets(
        users=users,
        histories=[before[user] for user in users],
        targets=np.array([dataset.sequences[user][num_before[user]] for user in users], dtype=np.int32),
    )
    return Split(earlier.train, earlier.validation, test)


def events_before(dataset: Dataset, moment: int, said: str) -> Dataset:
    """The dataset as it was at a moment in milliseconds since 1970, with all items.

    `said`: the moment in the user's words. What came later is counted in the exclusions. Raises DataError if
    the dataset has no times, or if nobody remains.
    """
    num_before = _num_before(dataset, moment)
    assert dataset.times is not None
    late = sum(map(len, dataset.sequences)) - sum(num_before)
    return make_dataset(
        dataset.name,
        dataset.items,
        (
            (user_id, sequence[:count])
            for user_id, sequence, count in zip(dataset.user_ids, dataset.sequences, num_before, strict=True)
        ),
        dataset.exclusions | {f"events from {said} on": late},
        times=[times[:count] for times, count in zip(dataset.times, num_before, strict=True)],
        notes=dataset.notes,
        images=dataset.images,
    )


def _num_before(dataset: Dataset, moment: int) -> list[int]:
    """[user]: how many of a user's events came before the moment. Raises DataError if there are no times."""
    if dataset.times is None:
        raise DataError(
            f"{dataset.name}: has no times to split by. Write it with prepare --data events:…, with times."
        )
    return [int(np.searchsorted(times, moment)) for times in dataset.times]


def _targets(sequences: list[ItemSequence], users: NDArray[np.int64], from_end: int) -> Targets:
    return Targets(
        users=users,
        histories=[sequences[user][:-from_end] for user in users],
        targets=np.array([sequences[user][-from_end] for user in users], dtype=np.int32),
    )
