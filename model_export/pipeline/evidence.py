"""What each opinion of a search says of every item, for the users who decide what it counts for."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from torch import Tensor

from model_export.configs import TreeConfig
from model_export.data.splits import Targets
from model_export.evaluation.baselines.counts import purchases, weights_of_items
from model_export.evaluation.baselines.text_cosines import text_vectors
from model_export.evaluation.metrics import gains_of_ranks
from model_export.evaluation.ranking import NeighborsOfItems, left_padded
from model_export.generators.item_scores import item_scores
from model_export.generators.likeness import About, Likeness, unit_vectors
from model_export.generators.seen_prefixes import ROOT
from model_export.generators.tree import TreeGenerator
from model_export.pipeline.counts import count_pairs
from model_export.pipeline.run import Run
from service.core.co_counts import CoCountSpec
from service.core.graphs import PADDING
from service.core.render import item_text
from service.core.sid import SidSpec

TOP_K = 10
USERS_AT_ONCE = 64


@dataclass(frozen=True)
class Opinions:
    """What each opinion of a search counts for. The learned one counts 1.

    Likeness is a softmax of a sum: of the cosines of the history's items, and of popularity.
    The defaults are near the best of three data sets (docs/log.md).
    """

    likeness: float = 2.5  # power of its probabilities; 0: none
    head: float = 2.0  # in likeness: weight of the cosine of the head's vectors
    content: float = 0.5  # in likeness: weight of the cosine of the encoder's features
    text: float = 0.5  # in likeness: weight of the cosine of the texts' TF-IDF
    photo: float = 0.0  # in likeness: weight of the cosine of the photos' features, if any were read
    popularity: float = 0.25  # in likeness: power of how often an item was taken
    recency: float = 0.5  # factor of the cosine for each step into the past
    counts: float = 7.5  # weight of the counts; 0: none
    smoothing: float = 0.3  # mass of an item without a count
    decay: float = 0.8  # factor of a count for each step into the past

    def figures(self) -> dict[str, float]:
        """The opinions by name. A weight of photos that nobody read is left out."""
        return asdict(self) if self.photo else {k: v for k, v in asdict(self).items() if k != "photo"}


class Candidates(NamedTuple):
    """The items between which each user chooses, and which is the target."""

    items: NDArray[np.int64]  # [user, candidate]
    chosen: NDArray[np.int64]  # [user]  the place of the target
    users: NDArray[np.int64]  # [user]  rows of the users whose target is a candidate


class Evidence:
    """The scores of all items for some users, by opinion."""

    def __init__(
        self,
        run: Run,
        generator: TreeGenerator,
        codes: NDArray[np.int64],
        vectors: NDArray[np.float32],
        features: NDArray[np.float32],
        users: Targets,
        photos: NDArray[np.float32] | None = None,
    ) -> None:
        """codes [item, level]; vectors [item, dim]: those of the head; features, photos [item, feature]."""
        assert run.config.opinions is not None
        self._run, self._generator, self._codes, self._users = run, generator, codes, users
        self._config = run.config.opinions
        texts = [item_text(item, run.config.render) for item in run.dataset.items]
        self._blocks = {
            "head": unit_vectors(vectors),
            "content": unit_vectors(features[:, : self._config.content_dim]),
            "text": unit_vectors(principal_terms(texts, self._config.text_dim)),
        }  # [item, dim] each
        if photos is not None:
            self._blocks["photo"] = unit_vectors(photos[:, : self._config.content_dim])
        self.in_likeness = (*self._blocks, "popularity")
        self._bought = np.maximum(purchases(run.split.train, len(codes)), 1)  # [item]
        self._masses: dict[float, NDArray[np.float32]] = {}
        self.rows = count_pairs(run.split.train, run.dataset.item_ids, CoCountSpec())
        padding = np.full((1, codes.shape[1]), PADDING)
        newest = left_padded([history[-run.config.history_length :] for history in users.histories])
        self._histories = np.concatenate([codes, padding])[newest]  # [user, position, level]
        generator.likeness = None
        self.learned = item_scores(generator, codes, self._histories)  # [user, item]

    def masses(self, decay: float) -> NDArray[np.float32]:
        """The mass of the counts of each item for each user, in units of one count: [user, item]"""
        if decay not in self._masses:
            self._masses[decay] = self._sum_of_masses(decay)
        return self._masses[decay]

    def _sum_of_masses(self, decay: float) -> NDArray[np.float32]:
        spec = CoCountSpec(decay=decay, smoothing=1.0)
        place = np.arange(len(self._codes))
        table = NeighborsOfItems(self.rows, spec, self._run.dataset.item_ids, place)
        found = table(self._users.histories)
        dense = np.zeros((len(found.mass), len(place) + 1), np.float32)  # the last is PADDING
        np.put_along_axis(dense, found.prefixes, found.mass, axis=1)
        return dense[:, :-1]

    def total(self, opinions: Opinions) -> NDArray[np.float32]:
        """The weighed sum of all opinions, without the spread over the levels of a search: [user, item]"""
        total: NDArray[np.float32] = self.learned + opinions.counts * np.log1p(
            self.masses(opinions.decay) / np.float32(opinions.smoothing)
        )
        about = opinions.popularity * np.log(self._bought)
        for name, block in self._blocks.items():
            about = about + getattr(opinions, name) * (self._query(block, opinions.recency) @ block.T)
        total += opinions.likeness * about
        self._hide_histories(total)
        return total

    def candidates(self, opinions: Opinions, limit: int) -> Candidates:
        """The `limit` best items of each user, for the users whose target is one of them.

        A target in the history of a user is hidden, so that user decides nothing.
        """
        total = self.total(opinions)
        limit = min(limit, total.shape[1])
        items = np.argpartition(-total, limit - 1, axis=1)[:, :limit]
        items.sort(axis=1)
        is_target = items == self._users.targets[:, None]
        is_target &= np.isfinite(np.take_along_axis(total, items, axis=1))
        users = np.flatnonzero(is_target.any(axis=1))
        return Candidates(items[users], is_target[users].argmax(axis=1), users)

    def scores_of(self, found: Candidates, recency: float) -> dict[str, NDArray[np.float32]]:
        """What each part but the counts says of the candidates: [user, candidate] each.

        Items of the history have a learned score of -inf.
        """
        hidden = self.learned[found.users]
        self._hide_histories(hidden, found.users)
        scores = {
            "learned": np.take_along_axis(hidden, found.items, axis=1),
            "popularity": np.log(self._bought)[found.items],
        }
        for name, block in self._blocks.items():
            query = self._query(block, recency)[found.users]
            part = np.empty(found.items.shape, np.float32)
            for first in range(0, len(part), USERS_AT_ONCE):
                some = slice(first, first + USERS_AT_ONCE)
                part[some] = (block[found.items[some]] @ query[some, :, None])[..., 0]
            scores[name] = part
        return scores

    def gains(self, opinions: Opinions) -> NDArray[np.float64]:
        """What each user adds to NDCG@10, as a search finds it: [user]. Equal scores share their ranks."""
        total = self.learned.copy()
        if likeness := self.likeness_of(opinions):
            alone = _LikenessAlone(likeness, self._generator.spec)
            total += item_scores(alone, self._codes, self._histories)
        if opinions.counts:
            total += opinions.counts * np.log1p(self.masses(opinions.decay) / np.float32(opinions.smoothing))
        self._hide_histories(total)
        own = total[np.arange(len(total)), self._users.targets][:, None]
        rank = (total > own).sum(axis=1) + ((total == own).sum(axis=1) - 1) // 2
        return gains_of_ranks(np.minimum(rank, TOP_K + 1), TOP_K)

    def likeness_of(self, opinions: Opinions) -> Likeness | None:
        """The generator's likeness with these opinions, or None if it has no weight."""
        if not opinions.likeness:
            return None
        tree = self._run.config.generator
        assert isinstance(tree, TreeConfig)
        seen = np.unique(np.concatenate(self._run.split.train))
        blocks = [getattr(opinions, name) ** 0.5 * block[seen] for name, block in self._blocks.items()]
        vectors = compressed(np.concatenate(blocks, axis=1), self._config.max_dim)
        return Likeness(
            replace(tree, likeness=1.0, recency=opinions.recency),
            self._generator.prefixes,
            self._codes[seen],
            vectors,
            self._run.config.history_length,
            power=opinions.likeness,
            item_weights=(self._bought[seen] ** opinions.popularity).astype(np.float32),
        ).eval()

    def _query(self, block: NDArray[np.float32], recency: float) -> NDArray[np.float32]:
        newest = [history[-self._run.config.history_length :] for history in self._users.histories]
        query: NDArray[np.float32] = weights_of_items(newest, len(block), recency) @ block
        return query

    def _hide_histories(
        self, scores: NDArray[np.float32], rows: Sequence[int] | NDArray[np.int64] | None = None
    ) -> None:
        """Set the scores [user, item] of what the users have to -inf. `rows`: the users, if not all.

        If most targets are among these items, they stay: they are answers, too.
        """
        if self._users.are_repeats:
            return
        for row, user in zip(scores, range(len(scores)) if rows is None else rows, strict=True):
            row[self._users.histories[user]] = -np.inf


def principal_terms(texts: Sequence[str], dim: int) -> NDArray[np.float32]:
    """The TF-IDF of the letters of texts, on its first axes: [item, at most dim]. Zeros for too few terms."""
    terms = text_vectors(texts, "letters")
    dim = 0 if terms is None else min(dim, *(size - 1 for size in terms.shape))
    if dim < 1:
        return np.zeros((len(texts), 1), np.float32)
    found: NDArray[np.float32] = TruncatedSVD(dim, random_state=0).fit_transform(terms).astype(np.float32)
    return found


def compressed(vectors: NDArray[np.float32], max_dim: int) -> NDArray[np.float32]:
    """Vectors of at most `max_dim` numbers whose products are nearest to those of vectors [item, dim]."""
    if vectors.shape[1] <= max_dim:
        return vectors.astype(np.float32)
    _, axes = np.linalg.eigh((vectors.T @ vectors).astype(np.float64))  # ascending
    found: NDArray[np.float32] = vectors @ axes[:, -max_dim:].astype(np.float32)
    return found


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
