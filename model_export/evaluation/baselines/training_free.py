"""The training-free sum: counts, text and popularity, added up with weights that validation users choose.

    score = co-purchases + transitions + text + popularity, each times its weight

Three parts look at the history. Each item of the history gives a score to the items near to it, and each step
into the past multiplies what it gives by a decay. Each part has a decay of its own:

- co-purchases: how often and how close two items were bought, in both directions (counts.co_purchases)
- transitions: the logarithm of how often the item came right after another
- text: the cosine of the TF-IDF vectors, by words or by letters

Popularity is the logarithm of an item's purchases. The weight of the text is 1, as only ratios count. Nothing
is trained: `tuned` tries weights and decays one after the other and keeps what ranks the validation targets
better. It is deterministic.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from model_export.data.splits import Targets
from model_export.evaluation.baselines import counts
from model_export.evaluation.baselines.counting import Popularity
from model_export.evaluation.baselines.ranked import (
    USERS_AT_ONCE,
    Ranked,
    Sequences,
    best_of_scores,
    first_candidates,
)
from model_export.evaluation.baselines.text_cosines import TERMS, Terms, text_cosines
from model_export.evaluation.metrics import gains_of_ranks

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
K = 10  # of the NDCG that chooses
WEIGHTS = (
    0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0,
)  # fmt: skip
DECAYS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
MAX_ROUNDS = 4
MAX_CELLS = 20_000_000  # users x items that the search looks at, 80 MB for each of four arrays
CHUNK = 128  # users whose scores stay in the processor's cache

Part = Literal["co_purchases", "transitions", "text"]
PARTS: tuple[Part, ...] = ("co_purchases", "transitions", "text")
Scores = NDArray[np.float32]  # [user, item], items by popularity


@dataclass(frozen=True)
class SumWeights:
    """Everything that the validation users choose."""

    co_purchases: float = 1.0
    transitions: float = 0.2
    popularity: float = 0.05
    co_purchases_decay: float = 0.7
    transitions_decay: float = 0.6
    text_decay: float = 0.4
    terms: Terms = "words"

    @property
    def text(self) -> float:
        """The unit of the other weights."""
        return 1.0

    def figures(self) -> dict[str, float]:
        """All fields as numbers. `letters` is 1 if the text is compared by letters, and 0 if by words."""
        numbers = asdict(self)
        return {"letters": float(numbers.pop("terms") == "letters"), **numbers}


class Step(NamedTuple):
    """One step of the search: a field takes every value of its grid while the others stay."""

    field: str  # of SumWeights
    part: Part | None  # whose score changes with the field; None for popularity
    grid: tuple[Any, ...]


STEPS = (
    Step("transitions", "transitions", WEIGHTS),
    Step("transitions_decay", "transitions", DECAYS),
    Step("co_purchases", "co_purchases", WEIGHTS),
    Step("co_purchases_decay", "co_purchases", DECAYS),
    Step("terms", "text", tuple(TERMS)),
    Step("text_decay", "text", DECAYS),
    Step("popularity", None, WEIGHTS),
)


class TrainingFreeSum:
    """Ranks by a weighted sum of co-purchases, transitions, text and popularity."""

    name = "weighted sum of counts, text and popularity"

    def __init__(self, texts: Sequence[str], weights: SumWeights | None = None) -> None:
        """`texts`: of each item."""
        self.texts = texts
        self.weights = weights or SumWeights()
        self._cosines: dict[Terms, NDArray[np.float32]] = {}

    @classmethod
    def tuned(cls, texts: Sequence[str], train: Sequences, validation: Targets) -> Self:
        """A fitted sum with the weights that rank the targets of the validation users best, by NDCG@10.

        If users and items are many, the search looks at every n-th user, so that time and memory stay
        bounded.
        """
        found = cls(texts).fit(train, len(texts))
        found.weights = _search(found, validation)
        return found

    def fit(self, sequences: Sequences, num_items: int) -> Self:
        """Count in the sequences [user][position]. Raises ValueError if an item has no text."""
        if num_items != len(self.texts):
            raise ValueError(f"{len(self.texts)} texts cannot rank {num_items} items. Give each item a text.")
        self.popular = np.array(Popularity().fit(sequences, num_items).order)
        bought = counts.purchases(sequences, num_items)
        self.popularity = np.log1p(bought)[self.popular].astype(np.float32)
        self._counted = {
            "co_purchases": counts.co_purchases(sequences, num_items)[:, self.popular],
            "transitions": counts.transitions(sequences, num_items).log1p()[:, self.popular],
        }
        return self

    def part(self, name: Part, weights: SumWeights, histories: Sequences) -> Scores:
        """The score of one part, without its weight: [user, item], items by popularity."""
        decay = getattr(weights, f"{name}_decay")
        query = counts.weights_of_items(histories, len(self.popular), decay)
        if name == "text":
            found: Scores = query @ self._cosines_of(weights.terms)
        else:
            found = (query @ self._counted[name]).toarray()
        return found.round(5)  # otherwise the last bit of a sum would order ties

    def rank(self, histories: Sequences, k: int, exclude_history: bool = True) -> Ranked:
        """Rank every item for each history. Of equal scores the more popular item wins."""
        candidates = zip(self._best(histories, k), histories, strict=True)
        return first_candidates(candidates, len(histories), k, exclude_history)

    def scores(self, histories: Sequences) -> Scores:
        """The weighted sum for each history: [user, item], items by popularity."""
        weights = self.weights
        total = np.repeat(weights.popularity * self.popularity[None], len(histories), axis=0)
        for name in PARTS:
            total += np.float32(getattr(weights, name)) * self.part(name, weights, histories)
        return total

    def _best(self, histories: Sequences, k: int) -> Iterator[list[int]]:
        for first in range(0, len(histories), USERS_AT_ONCE):
            part = histories[first : first + USERS_AT_ONCE]
            for history, score in zip(part, self.scores(part), strict=True):
                yield self.popular[best_of_scores(score, k + len(history))].tolist()

    def _cosines_of(self, terms: Terms) -> NDArray[np.float32]:
        if terms not in self._cosines:
            self._cosines[terms] = text_cosines(self.texts, terms)[:, self.popular]
        return self._cosines[terms]


def _search(model: TrainingFreeSum, validation: Targets) -> SumWeights:
    """Coordinate ascent over STEPS, until no change of one field ranks the targets better."""
    users = _some_users(validation, len(model.popular))
    weights, best = model.weights, 0.0
    for _ in range(MAX_ROUNDS):
        before = best
        for step in STEPS:
            tried = {value: replace(weights, **{step.field: value}) for value in step.grid}
            for value, quality in zip(
                tried, _qualities(model, users, step, weights, tried.values()), strict=True
            ):
                if quality > best:
                    best, weights = quality, tried[value]
        if best == before:
            break
    return weights


def _some_users(validation: Targets, num_items: int) -> Targets:
    step = max(1, -(-len(validation) * num_items // MAX_CELLS))
    kept = slice(None, None, step)
    return Targets(validation.users[kept], validation.histories[kept], validation.targets[kept])


def _qualities(
    model: TrainingFreeSum, users: Targets, step: Step, weights: SumWeights, tried: Iterable[SumWeights]
) -> Iterator[float]:
    """NDCG@10 of each of `tried`, which differ from `weights` in the field of the step.

    The parts that do not change are added up once.
    """
    rest = np.zeros((len(users), len(model.popular)), dtype=np.float32)
    for part in PARTS:
        if part != step.part:
            rest += np.float32(getattr(weights, part)) * model.part(part, weights, users.histories)
    if step.part is not None:
        rest += np.float32(weights.popularity) * model.popularity
    column = np.argsort(model.popular)  # [item]
    for row, history in enumerate(users.histories):
        rest[row, column[history]] = -np.inf
    targets = column[users.targets]
    moved: Scores | None = None
    for each in tried:
        if step.part is None:
            moved = np.broadcast_to(model.popularity, rest.shape)
        elif moved is None or step.field != step.part:  # a weight does not change the part itself
            moved = model.part(step.part, each, users.histories)
        weight = np.float32(getattr(each, step.part or "popularity"))
        gains = gains_of_ranks(_ranks(rest, moved, weight, targets), K)  # [user]
        yield float(gains.sum()) / max(1, len(gains))


def _ranks(rest: Scores, moved: Scores, weight: np.float32, targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rank of each target [user] by `rest + weight * moved`, from 0. Of equal scores the first wins."""
    ranks = np.empty(len(targets), dtype=np.int64)
    for first in range(0, len(targets), CHUNK):
        rows = slice(first, first + CHUNK)
        column = targets[rows]
        score = weight * moved[rows]
        score += rest[rows]
        own = np.take_along_axis(score, column[:, None], axis=1)  # [user, 1]
        ranks[rows] = np.count_nonzero(score > own, axis=1)
        equal = np.count_nonzero(score == own, axis=1)
        for row in np.flatnonzero(equal > 1):
            ranks[first + row] += np.count_nonzero(score[row, : column[row]] == own[row])
    return ranks
