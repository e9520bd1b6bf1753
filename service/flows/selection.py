"""Selects the items of a page: items are offered best first, and taken if they are allowed on it. Pure."""

from collections import Counter
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import NamedTuple


class Ranked(NamedTuple):
    """A candidate for a page. `score` is a sum of log-probabilities, so it is never positive."""

    item_id: str
    packed_sid: int  # as the catalog holds it; sorts in trie order
    score: float | None  # None: a popular item that the model did not score
    ranker_score: float | None = None  # log-odds; None: the ranker has no say


@dataclass(frozen=True)
class Diversity:
    """How many similar items a page may have; None: no limit."""

    max_per_first_code: int | None = None
    max_per_category: int | None = None

    @property
    def has_limits(self) -> bool:
        """Whether it keeps any item from a page."""
        return self.max_per_first_code is not None or self.max_per_category is not None


class Selection:
    """Whether an item is taken depends only on the items offered before it.

    So the page of the best items is the beginning of the page of all items, and the same proof holds for it.
    """

    def __init__(
        self,
        limit: int,
        excluded: AbstractSet[str],
        diversity: Diversity,
        *,
        first_code_of: Callable[[int], int],
        category_of: Callable[[str], str | None],
    ) -> None:
        """`first_code_of` a packed sid, and `category_of` an item id, for the limits of `diversity`."""
        self.page: list[Ranked] = []
        self._limit = limit
        self._shown = set(excluded)
        self._diversity = diversity
        self._has_limits = diversity.has_limits
        self._first_code_of = first_code_of
        self._category_of = category_of
        self._per_first_code = Counter[int]()
        self._per_category = Counter[str | None]()

    def offer(self, items: Iterable[Ranked]) -> None:
        """Take allowed items until the page is full. `items` is read no further."""
        page, shown, fits = self.page, self._shown, self._fits if self._has_limits else None
        if len(page) >= self._limit:
            return
        for item in items:
            if item.item_id in shown or (fits is not None and not fits(item)):
                continue
            shown.add(item.item_id)
            page.append(item)
            if len(page) == self._limit:
                return

    def _fits(self, item: Ranked) -> bool:
        """Count the item unless its kind is at its limit. Items without a category have no such limit."""
        first_code, most = self._first_code_of(item.packed_sid), self._diversity.max_per_first_code
        if most is not None and self._per_first_code[first_code] >= most:
            return False
        if (most := self._diversity.max_per_category) is not None:
            category = self._category_of(item.item_id)
            if category is not None and self._per_category[category] >= most:
                return False
            self._per_category[category] += 1
        self._per_first_code[first_code] += 1
        return True
