"""The shapes of requests and answers. Inputs forbid unknown fields; outputs have no defaults."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    WithJsonSchema,
)

from service.core.items import MAX_ID_CHARS
from service.http.problems import Problem

MAX_HISTORY = 500
MAX_EXCLUDED = 1_000
MAX_ALLOWED = 10_000
MAX_CATEGORIES = 100
MAX_CONDITIONS = 20
MAX_LIMIT = 100
MAX_EVENTS = 1_000


def _whole(value: Any) -> Any:
    """JSON knows one kind of number, so 10.0 is as whole as 10."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Bounds stand before it, or the schema does not tell them.
WHOLE = BeforeValidator(_whole)
ItemId = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_CHARS)]
EventText = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class _In(BaseModel):
    # A misspelt field or "10" for 10 is a 422, not a silent guess.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Out(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Item(BaseModel):
    """Any fields beside the id. `render.fields` of GET /info says in which order they are read.

    A new value of a field that is read, be it `available`, reads the item again and may move it.
    """

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"examples": [{"item_id": "a1", "title": "Oat milk"}]}
    )

    item_id: ItemId


class ItemsRequest(_In):
    # Every item is checked on its own, so that a bad one does not fail its neighbours.
    items: list[Any] = Field(
        min_length=1,
        json_schema_extra={
            "items": {
                "anyOf": [Item.model_json_schema(), {"description": "or anything: it fails, and alone"}]
            }
        },
    )


def _bare_or_batch(body: Any) -> str:
    return "bare" if isinstance(body, dict) and "item_id" in body else "batch"


ItemsBody = Annotated[
    Annotated[ItemsRequest, Tag("batch")]
    | Annotated[dict[str, Any], Tag("bare"), WithJsonSchema(Item.model_json_schema())],
    Discriminator(_bare_or_batch),
]


class ItemResult(_Out):
    item_id: str | None = Field(description="null where the posted item had no usable id")
    status: Literal["created", "moved", "updated", "unchanged", "failed"]
    semantic_id: str | None = Field(description="codes and slot")
    codes: list[int] | None
    truncated: bool | None = Field(
        description="the text did not fit its picture; null where it was not read now"
    )
    missing_characters: str | None = Field(
        description="characters no font here can draw; null where not read now"
    )
    error: Problem | None


class ItemsResponse(_Out):
    items: list[ItemResult] = Field(description="in the order of the request")
    catalog_version: int = Field(description="this replica serves at least this version of the catalogue")


class StoredItemOut(_Out):
    item: dict[str, Any] = Field(description="as it was posted, without its null fields")
    semantic_id: str
    codes: list[int]


class PatchedItem(StoredItemOut):
    status: Literal["created", "moved", "updated", "unchanged"]
    catalog_version: int


class ItemPage(_Out):
    items: list[StoredItemOut] = Field(description="in trie order: neighbours look alike")
    next_cursor: str | None


class Deleted(_Out):
    item_id: str
    catalog_version: int


class Neighbour(_Out):
    item_id: str
    semantic_id: str
    shared_levels: int = Field(description="how many leading codes it has in common")


class SimilarResponse(_Out):
    item_id: str
    semantic_id: str
    items: list[Neighbour]
    catalog_version: int


Category = Annotated[str, StringConstraints(min_length=1, max_length=1_000)]
Categories = Annotated[list[Category], Field(max_length=MAX_CATEGORIES)]


class RangeIn(_In):
    """A number within all bounds that are given, of which there is at least one."""

    gte: float | None = None
    gt: float | None = None
    lte: float | None = None
    lt: float | None = None


def _range_or_value(condition: Any) -> str:
    return "<range>" if isinstance(condition, dict) else "<value>"


Condition = Annotated[
    Annotated[RangeIn, Tag("<range>")] | Annotated[str | bool | int | float, Tag("<value>")],
    Discriminator(_range_or_value),
]


class FilterIn(_In):
    """Items must meet all of it. What is left out, or an empty list of categories, asks nothing."""

    categories_any: Categories = Field(default=[], description="has one of these")
    categories_all: Categories = Field(default=[], description="has every one of these")
    categories_none: Categories = Field(default=[], description="has none of these")
    attributes: dict[str, Condition] = Field(
        default={},
        max_length=MAX_CONDITIONS,
        description="declared fields, each with the value that it equals or the bounds of a number; GET "
        "/info names the fields. An item without the field does not pass",
    )
    available: bool | None = Field(default=None, description="items count as available unless they say false")
    item_ids: list[ItemId] | None = Field(
        default=None, max_length=MAX_ALLOWED, description="the only ones that pass; an empty list allows none"
    )
    exclude_item_ids: list[ItemId] = Field(default=[], max_length=MAX_EXCLUDED)


AtLeastOne = Annotated[int, Field(ge=1), WHOLE]


class DiversityIn(_In):
    """Limits of how many items of one page may be alike; null sets none."""

    max_per_first_code: AtLeastOne | None = Field(
        default=None, description="items whose first code is the same"
    )
    max_per_category: AtLeastOne | None = Field(
        default=None, description="items whose first category is the same; those without one are not limited"
    )


class RecommendRequest(_In):
    history: list[ItemId] = Field(
        max_length=MAX_HISTORY, description="item ids, oldest first; the newest known ones count"
    )
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT), WHOLE] = 10
    exclude_item_ids: list[ItemId] = Field(default=[], max_length=MAX_EXCLUDED)
    exclude_history: bool = Field(default=True, description="never recommend what the history holds")
    guarantee: Literal["none", "exact"] = Field(
        default="none",
        description="exact: widen the search until the page is proven, or the bundle's beam limit",
    )
    filter: FilterIn | None = None
    diversity: DiversityIn = DiversityIn()


class Recommendation(_Out):
    item_id: str
    score: float | None = Field(
        description="a sum of log-probabilities, never positive, of which only the order means something; "
        "items that share codes share it; null for popular items"
    )
    semantic_id: str


class SearchInfo(_Out):
    num_beams: int = Field(description="of the search that found the page")
    widened: int = Field(description="how often the search was repeated with more beams")
    beam_limit_reached: bool = Field(
        description="the widest search left the page short, or unproven where a proof was asked for"
    )


class RecommendResponse(_Out):
    items: list[Recommendation] = Field(
        description="best first, items of the same codes in slot order; popular items fill up what is left"
    )
    exact: bool = Field(
        description="provably the model's best page of all items that pass the filter and are not excluded"
    )
    search: SearchInfo | None = Field(
        description="null where none was needed: nothing passes, or no item of the history is known"
    )
    matching_items: int | None = Field(
        description="living items that pass the filter, the excluded ones among them; null without a filter"
    )
    source: Literal["model", "popular"] = Field(description="popular: no item of the history is known")
    unknown_item_ids: list[str]
    model_version: str
    catalog_version: int


class EventIn(_In):
    event_id: EventText = Field(description="one for each event, the same where it is sent again")
    request_id: EventText = Field(description="X-Request-ID of the answer that held the page")
    item_id: ItemId = Field(description="that was taken: clicked, bought, played")


class EventsRequest(_In):
    events: list[EventIn] = Field(min_length=1, max_length=MAX_EVENTS)


class EventsResponse(_Out):
    accepted: int = Field(description="events that were new")
    duplicates: int = Field(description="events whose event_id had been posted before; they changed nothing")


class CatalogInfo(_Out):
    name: str
    items: int
    version: int
    digest: str = Field(description="equal on two replicas that serve the same items")
    stale_for_s: float = Field(description="since Redis was lost; 0 while in touch")


class LimitsInfo(_Out):
    items_per_request: int
    item_chars: int
    body_bytes: int
    history: int
    limit: int
    num_beams: int
    beam_limit: int


class BundleRequest(_In):
    bundle: str = Field(
        pattern=r"^[\w+@=-][\w.+@=-]{0,127}$", description="name of a folder under GLYPHREC_BUNDLES_DIR"
    )


class ServedBundle(_Out):
    bundle: str
    tokenizer_id: str
    recommender_id: str


class ReplicaInfo(_Out):
    replica: str
    tokenizer_id: str = Field(description="that it serves")
    is_prepared: bool = Field(description="it can switch to the new tokenizer, or has")
    trouble: str = Field(description="why it stays behind; empty where it does not")


class ChangeInfo(_Out):
    """The last change to another tokenizer."""

    bundle: str
    tokenizer_id: str
    phase: str = Field(
        description="reading: the catalogue is read anew; joining: the replicas load it; switched; failed"
    )
    reason: str = Field(description="why it failed; else empty")
    read_items: int
    items: int
    replicas: list[ReplicaInfo]


class BundlesResponse(_Out):
    serving: ServedBundle = Field(description="on this replica")
    change: ChangeInfo | None


class InfoResponse(_Out):
    service_version: str
    bundle: str
    tokenizer_id: str
    recommender_id: str
    generator: str
    config: str
    data_name: str
    created_at: str
    levels: list[int]
    history_length: int
    filter_fields: dict[str, str] = Field(description="what `filter.attributes` may name, with its kind")
    render: dict[str, Any]
    metrics: dict[str, float] = Field(description="measured on the exported graphs")
    catalog: CatalogInfo
    limits: LimitsInfo
    change: ChangeInfo | None
    redis: dict[str, Any] = Field(
        description="how safe an acknowledged item is; empty while Redis is out of reach"
    )


class Live(_Out):
    status: Literal["alive"]


class Ready(_Out):
    status: Literal["ready", "starting", "stopping"]
    phase: str = Field(description="what the start is doing, or that it is done")
    stale: bool = Field(description="Redis is out of reach: recommendations go on, changes are refused")
    stale_for_s: float
    catalog_items: int
    catalog_version: int
