"""The shapes of POST /recommend: a history, and a page of items after it."""

from typing import Annotated, Literal

from pydantic import Field

from service.api.schemas import WHOLE, FilterIn, ItemId, _In, _Out
from service.core.limits import MAX_EXCLUDED, MAX_HISTORY, MAX_LIMIT

AtLeastOne = Annotated[int, Field(ge=1), WHOLE]


class DiversityIn(_In):
    """Limits on similar items on one page. Null means no limit."""

    max_per_first_code: AtLeastOne | None = Field(
        default=None, description="largest number of items with the same first code"
    )
    max_per_category: AtLeastOne | None = Field(
        default=None,
        description="largest number of items with the same first category; items without one are not limited",
    )


class RecommendRequest(_In):
    """The items that a user took before, and which items the page may have."""

    history: list[ItemId] = Field(
        max_length=MAX_HISTORY, description="item ids, oldest first; only the newest known items count"
    )
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT), WHOLE] = 10
    exclude_item_ids: list[ItemId] | None = Field(default=None, max_length=MAX_EXCLUDED)
    exclude_history: bool = Field(default=True, description="do not recommend items of the history")
    guarantee: Literal["none", "exact"] = Field(
        default="none",
        description="exact: widen the search until the page is proven, or up to the bundle's beam limit",
    )
    filter: FilterIn | None = None
    diversity: DiversityIn | None = None
    rerank: bool = Field(
        default=False,
        description="let the bundle's ranker order the items of the page; without a ranker the answer is 409",
    )


class Recommendation(_Out):
    """One item of the page. `semantic_id` has its codes and its slot."""

    item_id: str
    score: float | None = Field(
        description="a sum of log-probabilities, never positive; only its order has a meaning. "
        "Items with the same codes have the same score. Null for popular items"
    )
    ranker_score: float | None = Field(
        description="with `rerank`, the log-odds that the user takes the item; they give the order. Else null"
    )
    semantic_id: str


class SearchInfo(_Out):
    """How wide the search for the page was. A beam is one sequence of codes that the search keeps."""

    num_beams: int = Field(description="beams of the search that found the page")
    widened: int = Field(description="number of times that the search was repeated with more beams")
    beam_limit_reached: bool = Field(
        description="true if the widest search left the page short, or unproven although `guarantee` is exact"
    )


class RecommendResponse(_Out):
    """A page of recommended items, and how it was found."""

    items: list[Recommendation] = Field(
        description="best first; items with the same codes in slot order; popular items fill the rest. With "
        "`rerank`, all of them by `ranker_score`"
    )
    exact: bool = Field(
        description="true if this is proven to be the model's best page, of all items that pass the filter "
        "and are not excluded; `exact_for` says of what"
    )
    exact_for: Literal["page", "candidates"] = Field(
        description="page: `exact` speaks of the items and their order. candidates: with `rerank`, it speaks "
        "of which items are on the page alone, as their order is the ranker's"
    )
    search: SearchInfo | None = Field(
        description="null if no search was needed: no item passes, or no item of the history is known"
    )
    matching_items: int | None = Field(
        description="number of items that pass the filter, including excluded ones; null without a filter"
    )
    source: Literal["model", "popular"] = Field(description="popular if no item of the history is known")
    unknown_item_ids: list[str]
    model_version: str
    ranker_version: str | None = Field(description="the ranker that gave the order; null without `rerank`")
    catalog_version: int
