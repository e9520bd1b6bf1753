"""The shapes of the explorer's own routes, which only its page uses: they may change with any release."""

from typing import Annotated

from pydantic import Field

from service.api.recommend_schemas import RecommendRequest
from service.api.schemas import WHOLE, ItemId, StoredItemOut, _In, _Out

MAX_CONTENTS = 1_000


class ItemsBelow(_Out):
    """Items below a prefix of codes, in trie order."""

    num_items: int = Field(description="that there are in all")
    items: list[StoredItemOut]
    next_after: str | None = Field(description="`after` of the next page; null: this is the last")
    catalog_version: int


class BranchOut(_Out):
    """One code below a prefix."""

    code: int
    num_items: int
    examples: list[StoredItemOut] = Field(description="from places that are far apart")


class BranchesOut(_Out):
    """The codes below a prefix that have items."""

    num_items: int
    branches: list[BranchOut]
    next_code: int | None
    catalog_version: int


class CategoryOut(_Out):
    """A category, and how many items have it."""

    category: str
    num_items: int


class CategoriesOut(_Out):
    """The categories that most items have."""

    categories: list[CategoryOut]


class ContentsRequest(_In):
    """The items whose contents are wanted."""

    item_ids: list[ItemId] = Field(max_length=MAX_CONTENTS)


class ContentsOut(_Out):
    """The items that exist among those that were asked for, in that order."""

    items: list[StoredItemOut]


class BeamRequest(RecommendRequest):
    """A request of POST /recommend, and the number of beams of the search that answered it."""

    num_beams: Annotated[int, Field(ge=1), WHOLE]


class TracedPrefixOut(_Out):
    """A prefix of codes that the search scored."""

    codes: list[int]
    score: float
    example: str | None = Field(description="the title of an item that begins with it")


class TracedLevelOut(_Out):
    """What one level of the search chose from."""

    num_children: int
    num_kept: int
    kept: list[TracedPrefixOut]
    pruned: list[TracedPrefixOut] = Field(description="the best of those that were pruned")


class BeamOut(_Out):
    """A search, level by level. No levels: there was nothing to search for."""

    num_beams: int
    levels: list[TracedLevelOut]
    catalog_version: int
