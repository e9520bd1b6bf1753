"""The shapes of POST /search: what items shall be like, and the items that were found."""

from typing import Annotated

from pydantic import Field

from service.api.schemas import WHOLE, FilterIn, ItemId, _In, _Out
from service.core.limits import MAX_EXCLUDED, MAX_LIMIT, MAX_QUERY_CHARS


class ImageIn(_In):
    """A picture: a JPEG, a PNG or a WebP. Nothing is fetched from a URL."""

    data: str = Field(min_length=1, description="its bytes as base64")


class SearchRequest(_In):
    """What items shall be like: a text, a picture, or both as one. At least one of them is needed."""

    query: str | None = Field(
        default=None, max_length=MAX_QUERY_CHARS, description='for example "oat milk 32 oz"'
    )
    image: ImageIn | None = Field(
        default=None, description="only for a bundle that reads pictures; see `pictures` of GET /info"
    )
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT), WHOLE] = 10
    exclude_item_ids: list[ItemId] | None = Field(default=None, max_length=MAX_EXCLUDED)
    filter: FilterIn | None = None


class FoundItemOut(_Out):
    """One item of the page. `semantic_id` has its codes and its slot."""

    item_id: str
    score: float = Field(description="cosine of its vector and that of the query, at most 1")
    semantic_id: str


class SearchResponse(_Out):
    """The items most like the query.

    The page is shorter than `limit` only if fewer items pass, have a vector and are not excluded. It is empty
    if nothing of the query was recognized.
    """

    items: list[FoundItemOut] = Field(description="best first; equal scores in the order of their ids")
    exact: bool = Field(description="true if all items were compared; false if a graph of neighbors was used")
    matching_items: int | None = Field(
        description="number of items that pass the filter, including excluded ones; null without a filter"
    )
    truncated: bool = Field(description="true if the text did not fit into its picture")
    missing_characters: str = Field(description="characters that no font of the service can draw")
    tokenizer_id: str
    catalog_version: int
