"""Events with a user, an item and a time become sequences.

Events of one user at the same time have no natural order. A source mostly lists them in catalog order, and a
model could learn this artifact. We therefore order them by a seeded hash of user and item. The result is the
same on every machine and for every order of the source.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

N = TypeVar("N", bound=np.generic)

SEED = b"glyphrec"  # of the hash; another seed gives another order of ties, which is equally good

Names = Sequence[str]


@dataclass(frozen=True)
class Events:
    """Three arrays [event]. `user` and `item` are indices into lists of names."""

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    time: NDArray[np.int64]  # any unit

    def where(self, keep: NDArray[np.bool_] | NDArray[np.int64]) -> "Events":
        """The events of a mask [event], or the events at given places, in the order of the places."""
        return Events(self.user[keep], self.item[keep], self.time[keep])

    def __len__(self) -> int:
        return len(self.user)


def in_order(events: Events, users: Names, items: Names) -> Events:
    """Sort the events by user, then by time, then by the hash of user and item."""
    if not len(events):
        return events
    tie = _mix(_mix(_hashes(users))[events.user] ^ _hashes(items)[events.item])
    first, last = int(events.time.min()), int(events.time.max())
    span = last - first + 1
    if (int(events.user.max()) + 1) * span >= 2**63:
        return events.where(np.lexsort((tie, events.time, events.user)))
    # User and time in one number sort several times as fast as three keys, and few events have a tie.
    moment = events.user * span + (events.time - first)
    order = np.argsort(moment, kind="stable")
    moment = moment[order]
    same = moment[1:] == moment[:-1]
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
    order[tied] = order[tied][np.lexsort((tie[order[tied]], moment[tied]))]
    return events.where(order)


def first_of_each(ordered: Events) -> Events:
    """Keep each user's first event with each item. The events must be in order and stay so."""
    pair = ordered.user * (ordered.item.max(initial=0) + 1) + ordered.item
    _, first = np.unique(pair, return_index=True)
    return ordered.where(np.sort(first))


def histories(ordered: Events, users: Names) -> Iterator[tuple[str, NDArray[np.int32]]]:
    """Yield (user id, item indices [position]) for every user, also for users without events.

    The events must be in order.
    """
    return zip(users, _by_user(ordered.item.astype(np.int32), ordered, len(users)), strict=True)


def times_of(ordered: Events, num_users: int) -> list[NDArray[np.int64]]:
    """The times [position] of every user, beside `histories`. The events must be in order."""
    return _by_user(ordered.time, ordered, num_users)


def _by_user(values: NDArray[N], ordered: Events, num_users: int) -> list[NDArray[N]]:
    """The values [event] of each user, also of users without events."""
    ends = np.cumsum(np.bincount(ordered.user, minlength=num_users))
    return np.split(values, ends[:-1]) if num_users else []


def k_core(events: Events, core: int) -> NDArray[np.bool_]:
    """True for the events of the k-core (Seidman, 1983) -> [event].

    The k-core is the largest part of the events in which each user and each item has at least `core` events.
    """
    keep = np.ones(len(events), dtype=bool)
    while True:
        of_user = np.bincount(events.user[keep], minlength=events.user.max(initial=0) + 1)
        of_item = np.bincount(events.item[keep], minlength=events.item.max(initial=0) + 1)
        stays = keep & (of_user[events.user] >= core) & (of_item[events.item] >= core)
        if stays.sum() == keep.sum():
            return keep
        keep = stays


def _hashes(names: Names) -> NDArray[np.uint64]:
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8, key=SEED).digest() for name in names)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele et al., 2014): every input bit affects every output bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
