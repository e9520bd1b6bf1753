"""The stage that trains a bundle's ranker on the training part, where there are no times.

An event is an item of a user's sequence after its first. Half of its non-events are drawn as often as items
are taken, and the other half from the items with the same first code, so that a ranker also learns to tell
apart what a search finds together. Neither is an item that the user takes anywhere in the training part.

What a feature knows of an event must not contain the event. So popularity is counted without the user's own
purchase, and neighbors are counted on other users (`NUM_FOLDS`).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.configs import RankedRunConfig
from model_export.data.dataset import ItemSequence
from model_export.evaluation.ranking import NeighborsOfItems, left_padded
from model_export.pipeline import counts
from model_export.pipeline.counts import count_pairs
from model_export.pipeline.run import Run
from model_export.ranker_config import RankerConfig
from model_export.rankers import ranker as ranker_module
from model_export.rankers import training
from model_export.rankers.parameterizations import rows_for
from model_export.rankers.served import ServedRanker
from model_export.rankers.training import Examples, shuffled, train_ranker
from service.core.co_counts import CoCountSpec
from service.core.graphs import PADDING, Neighbors
from service.core.sid import SidSpec

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
NUM_FOLDS = 4  # of the users: the neighbors of one fold are counted on the others
ROUNDS = 20  # of drawing a non-event anew, if the user takes it
HISTORIES_AT_ONCE = 256  # whose neighbors are looked up together

Progress = Callable[[str], None]


class TrainedRanker(NamedTuple):
    """A ranker and the mean loss of the last tenth of its training."""

    ranker: ServedRanker
    loss: float


def rank(run: Run, codes: NDArray[np.int64], spec: SidSpec, counting: CoCountSpec | None) -> TrainedRanker:
    """Train the configuration's ranker. codes [item, level]; `counting`: None if a service has no counts."""
    assert isinstance(run.config, RankedRunConfig)
    config, train = run.config.ranker, run.split.train
    torch.manual_seed(run.config.seed)
    popularity = np.bincount(np.concatenate(train), minlength=run.dataset.num_items)
    num_rows = rows_for(run.dataset.num_items, config.items_per_row)
    made = ServedRanker(config, spec, num_rows=num_rows, mean_popularity=float(popularity.mean()))
    inputs = (codes, train, spec, counting, config, run.config.seed, versions_of_ranker())

    def fit(target: Path) -> None:
        examples = examples_of(
            train, codes, spec, config, popularity, made, counting, run.dataset.item_ids, run.config.seed
        )
        known = torch.from_numpy(codes)
        rows = made.parameterization.rows(known[:, 0], known)
        order = shuffled(len(examples), config.batch_size, config.num_epochs, run.config.seed)
        loss = train_ranker(made.ranker, examples, rows, order)
        torch.save((made.state_dict(), loss), target)

    weights, loss = run.cache.get(run.cache.path("ranker", ".pt", *inputs), fit, _load)
    made.load_state_dict(weights)
    return TrainedRanker(made.eval(), loss)


def versions_of_ranker() -> dict[str, int]:
    """The versions of everything between codes and a trained ranker."""
    return {
        "counts": counts.VERSION,
        "ranker": ranker_module.VERSION,
        "ranker_training": training.VERSION,
        "ranking": VERSION,
    }


@torch.no_grad()
def examples_of(
    train: Sequence[ItemSequence],
    codes: NDArray[np.int64],
    spec: SidSpec,
    config: RankerConfig,
    popularity: NDArray[np.int64],
    made: ServedRanker,
    counting: CoCountSpec | None,
    item_ids: Sequence[str],
    seed: int,
) -> Examples:
    """The events of the training sequences with their non-events and features.

    At most `config.max_events` of them, drawn at random.
    """
    rng = np.random.default_rng(seed)
    events = [(user, place) for user, items in enumerate(train) for place in range(1, len(items))]
    chosen = np.sort(rng.permutation(len(events))[: config.max_events])
    users = np.array([events[row][0] for row in chosen], dtype=np.int64)
    histories = [train[user][:place] for user, place in (events[row] for row in chosen)]
    items = np.array([train[events[row][0]][events[row][1]] for row in chosen], dtype=np.int64)
    taken = np.unique(
        np.concatenate([user * len(codes) + sequence.astype(np.int64) for user, sequence in enumerate(train)])
    )
    candidates = _with_non_events(users, items, codes[:, 0], taken, config.num_non_events, rng)
    of_others = popularity[candidates].astype(np.float32)
    of_others[:, 0] -= 1
    seen = left_padded([history[-config.history_length :] for history in histories])
    padded = np.full((len(seen), config.history_length), -1, dtype=np.int64)
    padded[:, -seen.shape[1] :] = seen
    codes_of = np.concatenate([codes, np.full((1, codes.shape[1]), PADDING)])
    dense = np.empty((*candidates.shape, made.features.num_features), dtype=np.float32)
    folds = users % NUM_FOLDS
    for fold in range(NUM_FOLDS):
        find = _neighbors_without(train, fold, counting, item_ids, spec.prefixes_of(codes)[-1])
        rows = np.flatnonzero(folds == fold)
        for first in range(0, len(rows), HISTORIES_AT_ONCE):
            part = rows[first : first + HISTORIES_AT_ONCE]
            neighbors = find([histories[row] for row in part])
            dense[part] = made.features(
                torch.from_numpy(codes_of[padded[part]]),
                torch.from_numpy(codes[candidates[part]]),
                torch.from_numpy(of_others[part]),
                torch.from_numpy(neighbors.prefixes),
                torch.from_numpy(neighbors.mass),
            ).numpy()
    return Examples(padded, candidates, dense)


def _neighbors_without(
    train: Sequence[ItemSequence],
    fold: int,
    counting: CoCountSpec | None,
    item_ids: Sequence[str],
    places: NDArray[np.int64],
) -> Callable[[Sequence[NDArray[np.int32]]], Neighbors]:
    """The neighbors by the counts of all users but those of one fold."""
    if counting is None:
        return lambda histories: Neighbors.none(len(histories))
    others = [sequence for user, sequence in enumerate(train) if user % NUM_FOLDS != fold]
    return NeighborsOfItems(count_pairs(others, item_ids, counting), counting, item_ids, places)


def _with_non_events(
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    first_code: NDArray[np.int64],
    taken: NDArray[np.int64],
    num_non_events: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """[event, candidate]: the item of each event, then its non-events.

    first_code [item]; taken: user * number of items + item, ascending.
    """
    num_items = len(first_code)
    by_code = np.argsort(first_code, kind="stable")
    begins = np.searchsorted(first_code[by_code], first_code[items])  # [event]
    ends = np.searchsorted(first_code[by_code], first_code[items], side="right")
    found = np.empty((len(items), 1 + num_non_events), dtype=np.int64)
    found[:, 0] = items
    for place in range(1, 1 + num_non_events):
        wrong = np.arange(len(items))
        for round_ in range(ROUNDS):
            if round_ == ROUNDS - 1:  # of a user who takes all of a code
                drawn = rng.integers(0, num_items, len(wrong))
            elif place % 2:
                drawn = rng.choice(items, len(wrong))
            else:
                drawn = by_code[rng.integers(begins[wrong], ends[wrong])]
            found[wrong, place] = drawn
            pairs = users[wrong] * num_items + drawn
            at = np.minimum(np.searchsorted(taken, pairs), len(taken) - 1)
            wrong = wrong[taken[at] == pairs]
            if not len(wrong):
                break
    return found


def _load(path: Path) -> Any:
    return torch.load(path, weights_only=True)
