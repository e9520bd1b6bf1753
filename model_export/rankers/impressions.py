"""Events with times as impressions: what a user took, and what others took at that time.

The sources have no record of what was shown. A non-event of an event is an item that somebody else took
among the events around it (`EVENTS_PER_BLOCK`, in the order of their times), and that this user never takes.
So an item is a non-event as often as its popularity of these days says, new items included, and popularity
alone predicts little.

A history has only items from before the moment of the event, so a basket never shows itself. The dense
features know only what happened before the block of the event.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model_export.data.dataset import DataError, Dataset
from model_export.rankers.training import Examples

EVENTS_PER_BLOCK = 1000
ROUNDS = 20  # of drawing a non-event anew, if the user takes it
MS_PER_DAY = 86_400_000
FEATURES = ("count so far", "days since it was last taken", "items so far", "days since the last event")


@dataclass(frozen=True)
class Impressions:
    """All events of a data set in the order of their times, with their non-events."""

    examples: Examples
    users: NDArray[np.int64]  # [event]
    num_items: int

    def __len__(self) -> int:
        return len(self.users)

    def shown(self, events: range) -> NDArray[np.int64]:
        """How often each item was a candidate of these events: [item]"""
        candidates = self.examples.candidates[events.start : events.stop]
        return np.bincount(candidates.ravel(), minlength=self.num_items)


def impressions_of(
    dataset: Dataset, *, history_length: int, num_non_events: int, seed: int = 0
) -> Impressions:
    """The impressions of a data set with times. Raises DataError if it has none."""
    if dataset.times is None:
        raise DataError(f"{dataset.name}: has no times, and a ranker is judged in the order of times.")
    lengths = [len(sequence) for sequence in dataset.sequences]
    user = np.repeat(np.arange(len(lengths)), lengths)
    item = np.concatenate(dataset.sequences).astype(np.int64)
    time = np.concatenate(dataset.times).astype(np.int64)
    history = np.concatenate(
        [
            _histories(sequence, times, history_length)
            for sequence, times in zip(dataset.sequences, dataset.times, strict=True)
        ]
    )
    before = np.concatenate([np.searchsorted(times, times) for times in dataset.times])  # [event]
    since = np.concatenate([_since_last(times) for times in dataset.times])  # [event], ms
    order = np.lexsort((item, user, time))
    user, item, time, history = user[order], item[order], time[order], history[order]
    candidates = _with_non_events(user, item, dataset.num_items, num_non_events, np.random.default_rng(seed))
    dense = _dense(candidates, item, time, before[order], since[order], dataset.num_items)
    return Impressions(Examples(history, candidates, dense), user, dataset.num_items)


def with_copies(
    impressions: Impressions, copied: NDArray[np.int64], seed: int
) -> tuple[Impressions, NDArray[np.int64]]:
    """The impressions as they were if some items had two ids, of which each event shows one at random.

    copied [copy]: items that get a second id. Returns the impressions, and the item behind each id [id]: the
    items keep their ids, and the copies follow. Dense features stay those of the item.
    """
    rng = np.random.default_rng(seed)
    second = np.full(impressions.num_items, -1, dtype=np.int64)
    second[copied] = impressions.num_items + np.arange(len(copied))

    def dealt(items: NDArray[np.int64]) -> NDArray[np.int64]:
        other = np.where(items >= 0, second[items], -1)
        return np.where((other >= 0) & (rng.random(items.shape) < 0.5), other, items)

    examples = impressions.examples
    changed = replace(examples, history=dealt(examples.history), candidates=dealt(examples.candidates))
    item_of = np.concatenate([np.arange(impressions.num_items), copied])
    return replace(impressions, examples=changed, num_items=len(item_of)), item_of


def _histories(sequence: NDArray[np.int32], times: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """What a user had taken before the moment of each event: [event, position], -1 on the left."""
    padded = np.concatenate([np.full(length, -1, dtype=np.int64), sequence])
    first = np.searchsorted(times, times)  # [event]  events before this moment
    found: NDArray[np.int64] = padded[first[:, None] + np.arange(length)]
    return found


def _since_last(times: NDArray[np.int64]) -> NDArray[np.int64]:
    """The time from the user's last event of an earlier moment, 0 for the first: [event]"""
    first = np.searchsorted(times, times)
    return np.where(first > 0, times - times[np.maximum(first - 1, 0)], 0)


def _with_non_events(
    user: NDArray[np.int64],
    item: NDArray[np.int64],
    num_items: int,
    num_non_events: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """[event, candidate]: the item of each event, and items of other events of its block."""
    taken = np.unique(user * num_items + item)
    found = np.empty((len(item), 1 + num_non_events), dtype=np.int64)
    found[:, 0] = item
    for first in range(0, len(item), EVENTS_PER_BLOCK):
        block = slice(first, first + EVENTS_PER_BLOCK)
        own = found[block, 1:]
        own[:] = rng.choice(item[block], size=own.shape)
        for round_ in range(ROUNDS):
            pairs = user[block, None] * num_items + own
            wrong = taken[np.minimum(np.searchsorted(taken, pairs), len(taken) - 1)] == pairs
            if not wrong.any():
                break
            # A user who takes most of what is around is shown anything at last.
            pool = item[block] if round_ < ROUNDS - 2 else np.arange(num_items)
            own[wrong] = rng.choice(pool, size=int(wrong.sum()))
    return found


def _dense(
    candidates: NDArray[np.int64],
    item: NDArray[np.int64],
    time: NDArray[np.int64],
    num_before: NDArray[np.int64],
    since: NDArray[np.int64],
    num_items: int,
) -> NDArray[np.float32]:
    """[event, candidate, feature], in the order of FEATURES; counts and days as log(1 + x)."""
    found = np.empty((*candidates.shape, len(FEATURES)), dtype=np.float32)
    count, last = np.zeros(num_items), np.full(num_items, time[0])
    for first in range(0, len(item), EVENTS_PER_BLOCK):
        block = slice(first, first + EVENTS_PER_BLOCK)
        shown = candidates[block]
        relative = count[shown] / max(count.mean(), 1.0)
        days = np.maximum(time[block][0] - last[shown], 0) / MS_PER_DAY
        found[block, :, 0], found[block, :, 1] = np.log1p(relative), np.log1p(days)
        np.add.at(count, item[block], 1)
        last[item[block]] = time[block]  # ascending, so the newest stays
    found[:, :, 2] = np.log1p(num_before)[:, None]
    found[:, :, 3] = np.log1p(since / MS_PER_DAY)[:, None]
    return found
