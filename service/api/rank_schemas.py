"""The shapes of POST /rank: given items, and their order after a history."""

from typing import Annotated, Literal

from pydantic import Field

from service.api.schemas import WHOLE, FilterIn, ItemId, _In, _Out
from service.core.limits import MAX_CANDIDATES, MAX_HISTORY


class RankRequest(_In):
    """The items that a user took before, and the items to put in order."""

    history: list[ItemId] = Field(
        max_length=MAX_HISTORY, description="item ids, oldest first; only the newest known items count"
    )
    item_ids: list[ItemId] = Field(
        max_length=MAX_CANDIDATES,
        description="the items to rank, in any order; one that comes twice counts once",
    )
    limit: Annotated[
        int, Field(ge=1, le=MAX_CANDIDATES, description="the best so many; by default all"), WHOLE
    ] = MAX_CANDIDATES
    filter: FilterIn | None = Field(default=None, description="only items that pass it are ranked")


class RankedItemOut(_Out):
    """One of the given items. `semantic_id` has its codes and its slot."""

    item_id: str
    score: float | None = Field(
        description="by `ranked_by`: log-odds of the ranker; or the generator's sum of log-probabilities, "
        "the score that POST /recommend gives the item; null by popularity. Only its order has a meaning"
    )
    semantic_id: str


class RankResponse(_Out):
    """The given items in order, and what ordered them. Those that are unknown or do not pass are left out."""

    items: list[RankedItemOut] = Field(description="best first; equal scores in trie order")
    ranked_by: Literal["ranker", "generator", "popularity"] = Field(
        description="the bundle's ranker; without one the generator; without a ranker and a known item "
        "in the history, popularity"
    )
    matching_items: int | None = Field(
        description="number of the given items that are known and pass the filter, including excluded ones; "
        "null without a filter"
    )
    unknown_item_ids: list[str] = Field(description="of `item_ids`: no item of the catalog has them")
    unknown_history_ids: list[str] = Field(description="of `history`: no item of the catalog has them")
    model_version: str
    ranker_version: str | None = Field(description="the ranker that gave the order; null if none did")
    catalog_version: int
