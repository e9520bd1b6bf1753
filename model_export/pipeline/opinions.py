"""Weighs the opinions of a search against each other, on validation users.

A search adds up to three opinions: what the generator learned, how alike items are (generators/likeness.py),
and the counts of what was taken together (NeighborOpinion). Catalogs differ in what each is worth, so the
export decides. It scores every item for some users, once for each opinion, and then only adds.

The users who decided when training stops see the learned opinion too well. So other validation users decide
here, if there are enough. A weight leaves its default only if the users' gain is larger than its standard
error, because small differences on one sample of users are mostly chance.
"""

from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_export.configs import OpinionsConfig, TreeConfig
from model_export.data.splits import Targets
from model_export.evaluation.metrics import gains_of_ranks
from model_export.evaluation.ranking import NeighborsOfItems, left_padded
from model_export.generators.item_scores import item_scores
from model_export.generators.likeness import About, Likeness, unit_vectors
from model_export.generators.seen_prefixes import ROOT
from model_export.generators.training import some_users
from model_export.generators.tree import TreeGenerator
from model_export.pipeline.counts import count_pairs
from model_export.pipeline.run import Run
from service.core.co_counts import CoCountSpec, CoRow
from service.core.graphs import PADDING
from service.core.sid import SidSpec

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
TOP_K = 10
ROUNDS = 2
MIN_FRESH_USERS = 500  # fewer than these decide nothing, so the users of early stopping do
SHARPNESS = 12.0  # of likeness, if the generator was trained without it


@dataclass(frozen=True)
class Opinions:
    """What each opinion of a search counts for, beside the learned one.

    The defaults were best on the validation users of two data sets together (docs/log.md).
    """

    likeness: float = 0.5  # power of its probabilities; 0: none
    recency: float = 0.5  # factor of likeness for each step into the past
    content: float = 2.0  # weight of the cosine of the encoder's features in likeness
    counts: float = 1.5  # weight of the counts; 0: none
    smoothing: float = 0.1  # mass of an item without a count
    decay: float = 0.7  # factor of a count for each step into the past


GRID: dict[str, tuple[float, ...]] = {
    "counts": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0),
    "likeness": (0.0, 0.25, 0.5, 0.75, 1.0, 1.5),
    "content": (0.0, 2.0, 4.0),
    "recency": (0.5, 0.8),
    "smoothing": (0.03, 0.1, 0.3, 1.0),
    "decay": (0.5, 0.7, 0.9),
}


class Weighed(NamedTuple):
    """The opinions of a search, ready for use."""

    opinions: Opinions
    rows: list[CoRow]  # the counts of the training part
    spec: CoCountSpec
    quality: float  # NDCG@10 with the chosen opinions, on the users that decided
    learned_quality: float  # NDCG@10 of the learned opinion alone, on the same users
    num_users: int

    def neighbors(
        self, sid: SidSpec, codes: NDArray[np.int64], item_ids: list[str]
    ) -> NeighborsOfItems | None:
        """The neighbors for a Ranker, or None if counts have no weight. codes [item, level]"""
        if not self.opinions.counts:
            return None
        return NeighborsOfItems(self.rows, self.spec, item_ids, sid.prefixes_of(codes)[-1])


def weigh(
    run: Run,
    generator: TreeGenerator,
    codes: NDArray[np.int64],
    vectors: NDArray[np.float32],
    features: NDArray[np.float32],
) -> Weighed:
    """Choose the opinions, and give the generator its likeness.

    Every item is scored, which no other generator does in reasonable time. codes [item, level]; vectors
    [item, dim]: those of the head; features [item, feature]: those of the encoder.
    """
    config = run.config.opinions
    assert config is not None
    scores = _Scores(run, generator, codes, vectors, features, _deciding_users(run, config))
    best = Opinions()
    gains = scores.gains(best)
    for _ in range(ROUNDS):
        for name, values in GRID.items():
            tried = [replace(best, **{name: value}) for value in values if value != getattr(best, name)]
            found = [(scores.gains(each), each) for each in tried]
            better, opinions = max(found, key=lambda pair: float(pair[0].mean()))
            if _is_surely_better(better, gains):
                best, gains = opinions, better
    learned = scores.gains(replace(best, likeness=0.0, counts=0.0))
    generator.likeness = scores.likeness_of(best)
    chosen = ", ".join(f"{name} {value:g}" for name, value in asdict(best).items())
    run.say(
        f"      opinions: {chosen}. NDCG@10 of {len(gains)} validation users is {gains.mean():.4f}, and "
        f"{learned.mean():.4f} by what was learned alone"
    )
    return Weighed(
        best,
        scores.rows,
        CoCountSpec(decay=best.decay, smoothing=best.smoothing),
        float(gains.mean()),
        float(learned.mean()),
        len(gains),
    )


def _is_surely_better(gains: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    """Whether the mean of [user] is larger than that of others [user] by more than one standard error."""
    difference = gains - others
    return bool(difference.mean() > difference.std() / np.sqrt(max(1, len(difference))))


def _deciding_users(run: Run, config: OpinionsConfig) -> Targets:
    """Validation users that did not decide when training stopped, if there are enough."""
    validation = run.split.validation
    stopped = some_users(validation, run.config.training.max_validation_users, run.config.seed)
    fresh = np.flatnonzero(~np.isin(validation.users, stopped.users))
    if len(fresh) >= MIN_FRESH_USERS:
        validation = Targets(
            validation.users[fresh],
            [validation.histories[row] for row in fresh],
            validation.targets[fresh],
        )
    limit = min(config.max_users, max(1, config.max_scores // run.dataset.num_items))
    return some_users(validation, limit, run.config.seed)


class _Scores:
    """The score of every item for some users, by opinion. Each is computed when it is first needed."""

    def __init__(
        self,
        run: Run,
        generator: TreeGenerator,
        codes: NDArray[np.int64],
        vectors: NDArray[np.float32],
        features: NDArray[np.float32],
        users: Targets,
    ) -> None:
        self._run, self._generator, self._codes, self._users = run, generator, codes, users
        self._vectors, self._features = vectors, features
        self._likeness: dict[tuple[float, float], NDArray[np.float32]] = {}
        self._mass: dict[float, NDArray[np.float32]] = {}
        self.rows = count_pairs(run.split.train, run.dataset.item_ids, CoCountSpec())
        padding = np.full((1, codes.shape[1]), PADDING)
        newest = left_padded([history[-run.config.history_length :] for history in users.histories])
        self._histories = np.concatenate([codes, padding])[newest]  # [user, position, level]
        generator.likeness = None
        self._learned = item_scores(generator, codes, self._histories)  # [user, item]

    def gains(self, opinions: Opinions) -> NDArray[np.float64]:
        """What each user adds to NDCG@10: [user]. Equal scores share their ranks.

        Items of the history are left out, unless most targets are among them.
        """
        total = self._learned.copy()
        if opinions.likeness:
            total += opinions.likeness * self._likeness_scores(opinions)
        if opinions.counts:
            total += opinions.counts * np.log1p(self._masses(opinions.decay) / np.float32(opinions.smoothing))
        if not self._users.are_repeats:
            for row, history in zip(total, self._users.histories, strict=True):
                row[history] = -np.inf
        own = total[np.arange(len(total)), self._users.targets][:, None]
        rank = (total > own).sum(axis=1) + ((total == own).sum(axis=1) - 1) // 2
        return gains_of_ranks(np.minimum(rank, TOP_K + 1), TOP_K)

    def likeness_of(self, opinions: Opinions) -> Likeness | None:
        """The generator's likeness with these opinions, or None if it has no weight."""
        if not opinions.likeness:
            return None
        tree = self._run.config.generator
        assert isinstance(tree, TreeConfig)
        assert self._run.config.opinions is not None
        sharpness = tree.likeness or SHARPNESS
        vectors = unit_vectors(self._vectors)
        if opinions.content:
            content = unit_vectors(self._features[:, : self._run.config.opinions.content_dim])
            vectors = np.concatenate([vectors, (opinions.content / sharpness) ** 0.5 * content], axis=1)
        seen = np.unique(np.concatenate(self._run.split.train))
        return Likeness(
            replace(tree, likeness=sharpness + opinions.content, recency=opinions.recency),
            self._generator.prefixes,
            self._codes[seen],
            vectors[seen].astype(np.float32),
            self._run.config.history_length,
            power=opinions.likeness,
        ).eval()

    def _likeness_scores(self, opinions: Opinions) -> NDArray[np.float32]:
        key = (opinions.recency, opinions.content)
        if key not in self._likeness:
            likeness = self.likeness_of(replace(opinions, likeness=1.0))
            assert likeness is not None
            alone = _LikenessAlone(likeness, self._generator.spec)
            self._likeness[key] = item_scores(alone, self._codes, self._histories)
        return self._likeness[key]

    def _masses(self, decay: float) -> NDArray[np.float32]:
        """The mass of each item for each user, in units of one count."""
        if decay not in self._mass:
            spec = CoCountSpec(decay=decay, smoothing=1.0)
            place = np.arange(len(self._codes))
            found = NeighborsOfItems(self.rows, spec, self._run.dataset.item_ids, place)(
                self._users.histories
            )
            dense = np.zeros((len(found.mass), len(place) + 1), np.float32)  # the last is PADDING
            np.put_along_axis(dense, found.prefixes, found.mass, axis=1)
            self._mass[decay] = dense[:, :-1]
        return self._mass[decay]


class _LikenessState(NamedTuple):
    about: About
    row: Tensor  # [batch, beam]


class _LikenessAlone:
    """Likeness as a scorer of its own."""

    def __init__(self, likeness: Likeness, spec: SidSpec) -> None:
        self.spec, self._likeness = spec, likeness

    def start(self, history: Tensor) -> _LikenessState:
        return _LikenessState(self._likeness.start(history), torch.full_like(history[:, :1, 0], ROOT))

    def step(self, level: int, state: _LikenessState, prefix: Tensor) -> tuple[Tensor, _LikenessState]:
        prefixes, row = self._likeness.prefixes[0], state.row
        if level > 0:
            row = prefixes[level - 1].rows(row, prefix % self.spec.levels[level - 1])
        log_probs = self._likeness.log_probs(level, state.about, row, prefixes[level].rows_below(row))
        return log_probs, state._replace(row=row)

    def reorder(self, state: _LikenessState, parent: Tensor) -> _LikenessState:
        return state._replace(row=state.row.gather(1, parent))
