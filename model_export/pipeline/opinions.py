"""Weighs the opinions of a search against each other, on validation users.

A search adds up to three opinions: what the generator learned, how alike and how popular items are
(generators/likeness.py), and the counts of what was taken together (NeighborOpinion). Catalogs differ in what
each is worth, so the export decides: it takes the weights under which the targets of validation users are
most likely among the best candidates (conditional_logit.py). Likelihood tells apart what NDCG@10 of two
thousand users cannot, and what it finds is better by NDCG@10 on other users (docs/log.md).

The users who decided when training stops see the learned opinion too well. So other validation users decide
here, if there are enough.
"""

from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_export.configs import OpinionsConfig
from model_export.data.splits import Targets
from model_export.evaluation.ranking import NeighborsOfItems
from model_export.generators.training import some_users
from model_export.generators.tree import TreeGenerator
from model_export.pipeline.conditional_logit import fit
from model_export.pipeline.evidence import Candidates, Evidence, Opinions
from model_export.pipeline.run import Run
from service.core.co_counts import CoCountSpec, CoRow
from service.core.sid import SidSpec

VERSION = 3  # raised when the output changes; see model_export/pipeline/versions.py
ROUNDS = 3  # the candidates follow from the weights, and the weights from the candidates
MIN_FRESH_USERS = 500  # fewer than these decide nothing, so the users of early stopping do
RECENCIES = (0.3, 0.5, 0.7)
DECAYS = (0.6, 0.8, 0.9)
SMOOTHINGS = (0.1, 0.3, 1.0)
MIN_START = 0.25  # of a weight in likeness, before it is fitted
MIN_LEARNED = 0.05  # of the learned opinion's weight beside the others


class Weighed(NamedTuple):
    """The opinions of a search, ready for use."""

    opinions: Opinions
    rows: list[CoRow]  # the counts of the training part
    spec: CoCountSpec
    quality: float  # NDCG@10 with the chosen opinions, on the users that decided
    learned_quality: float  # NDCG@10 of the learned opinion alone, on the same users
    num_users: int

    @property
    def counting(self) -> CoCountSpec | None:
        """How a service counts, or None if counts have no weight, so that a bundle has none."""
        return self.spec if self.opinions.counts else None

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
    photos: NDArray[np.float32] | None = None,
) -> Weighed:
    """Choose the opinions, and give the generator its likeness.

    Every item is scored, which no other generator does in reasonable time. codes [item, level]; vectors
    [item, dim]: those of the head; features [item, feature]: those of the encoder of texts; photos [item,
    feature]: those of the photos, if there are any.
    """
    config = run.config.opinions
    assert config is not None
    evidence = Evidence(run, generator, codes, vectors, features, _deciding_users(run, config), photos)
    best = Opinions()
    for _ in range(ROUNDS):
        best = _most_likely(evidence, evidence.candidates(best, config.num_candidates), best)
    gains = evidence.gains(best)
    learned = evidence.gains(replace(best, likeness=0.0, counts=0.0))
    generator.likeness = evidence.likeness_of(best)
    chosen = ", ".join(f"{name} {value:.3g}" for name, value in best.figures().items())
    run.say(
        f"      opinions: {chosen}. NDCG@10 of {len(gains)} validation users is {gains.mean():.4f}, and "
        f"{learned.mean():.4f} by what was learned alone"
    )
    return Weighed(
        best,
        evidence.rows,
        CoCountSpec(decay=best.decay, smoothing=best.smoothing),
        float(gains.mean()),
        float(learned.mean()),
        len(gains),
    )


def _most_likely(evidence: Evidence, candidates: Candidates, now: Opinions) -> Opinions:
    """The opinions under which the users' targets are most likely among their candidates."""
    default, in_likeness = Opinions(), evidence.in_likeness
    start = np.array(
        [
            1 / default.likeness,
            default.counts / default.likeness,
            *(max(getattr(default, name), MIN_START) for name in in_likeness),
        ]
    )
    masses = {decay: evidence.masses(decay)[candidates.users] for decay in DECAYS}
    best, highest = now, -np.inf
    for recency in RECENCIES:
        scores = evidence.scores_of(candidates, recency)
        for decay, smoothing in product(DECAYS, SMOOTHINGS):
            mass = np.take_along_axis(masses[decay], candidates.items, axis=1)
            counted = np.log1p(mass / np.float32(smoothing))
            parts = [scores["learned"], counted, *(scores[name] for name in in_likeness)]
            found = fit(np.stack(parts, axis=-1), candidates.chosen, start)
            if found.log_likelihood > highest:
                highest = found.log_likelihood
                learned, counts, *inside = found.weights.tolist()
                power = 1 / max(learned, MIN_LEARNED)
                best = Opinions(
                    likeness=power,
                    counts=counts * power,
                    recency=recency,
                    smoothing=smoothing,
                    decay=decay,
                    **dict(zip(in_likeness, inside, strict=True)),
                )
    return best


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
