"""The shapes of requests and answers. Inputs forbid unknown fields, and outputs have no defaults."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)

from service.core.items import MAX_ID_CHARS
from service.core.limits import MAX_EXCLUDED
from service.http.problems import Problem

MAX_ALLOWED = 10_000
MAX_CATEGORIES = 100
MAX_CONDITIONS = 20
MAX_EVENTS = 1_000


def _whole(value: Any) -> Any:
    """JSON has one kind of number, so 10.0 is as whole as 10."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# The bounds of a field stand before it, or the schema does not have them.
WHOLE = BeforeValidator(_whole)
ItemId = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_CHARS)]
EventText = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class _In(BaseModel):
    # A misspelled field or "10" for 10 is a 422, not a silent guess.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Out(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Item(BaseModel):
    """An id and any other fields. `render.fields` of GET /info lists the fields that are read, in order.

    `image` is the item's picture: `{"data": "<base64>"}` of a JPEG, a PNG or a WebP. Without the field, a
    picture that is kept stays; null removes it. Nothing is fetched from a URL. In an answer, `image` is a
    reference: sha256, width and height of what is kept.

    A new value of a field that is read makes the service read the item again, and the item may move. This is
    also true of `available`, if it is one of these fields.
    """

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"examples": [{"item_id": "a1", "title": "Oat milk"}]}
    )

    item_id: ItemId


class ItemsRequest(_In):
    """A batch of items to add or replace. GET /info tells how many one request may have."""

    # Each item is checked on its own, so that a bad one does not fail the others.
    items: list[Any] = Field(
        min_length=1,
        json_schema_extra={
            "items": {
                "anyOf": [Item.model_json_schema(), {"description": "or anything else: only this item fails"}]
            }
        },
    )


def _bare_or_batch(body: Any) -> str:
    """What has fields but no `items` is told what a single item lacks, unless it holds a list of objects."""
    if not isinstance(body, dict):
        return "batch"
    if "item_id" in body:
        return "bare"
    holds_items = any(isinstance(each, list) and isinstance((each or [0])[0], dict) for each in body.values())
    return "batch" if not body or "items" in body or holds_items else "bare"


def _no_list(body: Any) -> Any:
    if isinstance(body, list):
        raise ValueError('is a list. Send several items as {"items": […]}')
    return body


ItemsBody = Annotated[
    Annotated[
        Annotated[ItemsRequest, Tag("batch")]
        | Annotated[dict[str, Any], Tag("bare"), WithJsonSchema(Item.model_json_schema())],
        Discriminator(_bare_or_batch),
    ],
    BeforeValidator(_no_list),
]


class UnusedValueOut(_Out):
    """A value of an item that filters cannot use, or an `image` that the tokenizer cannot read.

    Filters treat the item as if it did not have the value.
    """

    field: str
    reason: str


Unused = Annotated[
    list[UnusedValueOut],
    Field(description="values that are stored, but that filters or the tokenizer cannot use; usually empty"),
]


class ItemResult(_Out):
    """The outcome for one posted item. `error` tells why it failed, and is null if it did not."""

    item_id: str | None = Field(description="null if the posted item had no usable id")
    status: Literal["created", "moved", "updated", "unchanged", "failed"]
    semantic_id: str | None = Field(description="codes and slot")
    codes: list[int] | None
    truncated: bool | None = Field(
        description="true if the text did not fit into its picture; null if the item was not read now"
    )
    missing_characters: str | None = Field(
        description="characters that no font of the service can draw; null if the item was not read now"
    )
    unused_values: Unused
    error: Problem | None


class ItemsResponse(_Out):
    """One result for each posted item, and the version of the catalog that has the stored items."""

    items: list[ItemResult] = Field(description="in the order of the request")
    catalog_version: int = Field(description="this replica serves at least this version of the catalog")


class StoredItemOut(_Out):
    """A stored item, the codes that the tokenizer read from its text, and its Semantic ID: codes and slot."""

    item: dict[str, Any] = Field(description="the item as it was posted, without null fields")
    semantic_id: str
    codes: list[int]


class PatchedItem(StoredItemOut):
    """The whole item after the change. `status` is moved if its new text gave it another Semantic ID."""

    status: Literal["created", "moved", "updated", "unchanged"]
    unused_values: Unused
    catalog_version: int


class ItemPage(_Out):
    """A page of stored items, perhaps fewer than `limit`. `next_cursor` is null on the last page."""

    items: list[StoredItemOut] = Field(description="in trie order: items that look alike are neighbors")
    next_cursor: str | None


class Deleted(_Out):
    """The deleted item, and a version of the catalog without it."""

    item_id: str
    catalog_version: int


class SimilarItem(_Out):
    """A similar item."""

    item_id: str
    semantic_id: str
    shared_levels: int = Field(description="number of leading codes that both items share")
    score: float | None = Field(description="cosine of both vectors, at most 1; null by codes")


class SimilarResponse(_Out):
    """Other items: those with the nearest vectors, or those that share the most codes, at least the first."""

    item_id: str
    semantic_id: str
    by: Literal["vector", "codes"]
    items: list[SimilarItem] = Field(description="most similar first")
    catalog_version: int


Category = Annotated[str, StringConstraints(min_length=1, max_length=1_000)]
Categories = Annotated[list[Category], Field(max_length=MAX_CATEGORIES)]


def _as_given(bound: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """The checked bound. An int stays one: as a float, a large one would be its neighbor."""
    number = check(bound)
    return bound if isinstance(bound, int) else number


# Not `int | float`: an error would be told once for each of the two.
Bound = Annotated[float, WrapValidator(_as_given)]


class RangeIn(_In):
    """A number within all given bounds. At least one bound is needed."""

    gte: Bound | None = None
    gt: Bound | None = None
    lte: Bound | None = None
    lt: Bound | None = None


def _range_or_value(condition: Any) -> str:
    return "<range>" if isinstance(condition, dict) else "<value>"


Condition = Annotated[
    Annotated[RangeIn, Tag("<range>")] | Annotated[str | bool | int | float, Tag("<value>")],
    Discriminator(_range_or_value),
]


class FilterIn(_In):
    """An item must meet all conditions. A missing field, null or an empty list of categories sets none."""

    categories_any: Categories | None = Field(default=None, description="the item has at least one of these")
    categories_all: Categories | None = Field(default=None, description="the item has all of these")
    categories_none: Categories | None = Field(default=None, description="the item has none of these")
    attributes: dict[str, Condition] | None = Field(
        default=None,
        max_length=MAX_CONDITIONS,
        description="conditions on declared fields: for each, a value that it equals, or bounds of a number. "
        "GET /info lists the declared fields. An item without the field does not pass",
    )
    available: bool | None = Field(
        default=None, description="an item is available unless its field `available` is false"
    )
    item_ids: list[ItemId] | None = Field(
        default=None, max_length=MAX_ALLOWED, description="only these items pass; with an empty list, none"
    )
    exclude_item_ids: list[ItemId] | None = Field(default=None, max_length=MAX_EXCLUDED)


class EventIn(_In):
    """A user took an item from a page of POST /recommend."""

    event_id: EventText = Field(description="a unique id of the event; the same if the event is sent again")
    request_id: EventText = Field(description="X-Request-ID of the answer with the page")
    item_id: ItemId = Field(description="the item that was taken: clicked, bought, played")


class EventsRequest(_In):
    """Events to count. The service accepts all of them or none."""

    events: list[EventIn] = Field(min_length=1, max_length=MAX_EVENTS)


class EventsResponse(_Out):
    """How many of the posted events were new. The two numbers add up to the events of the request."""

    accepted: int = Field(description="number of new events")
    duplicates: int = Field(
        description="number of events whose event_id was known already; they changed nothing"
    )


class CatalogInfo(_Out):
    """The catalog as this replica serves it from its memory."""

    name: str
    items: int
    version: int
    digest: str = Field(description="equal on replicas that serve the same items")
    stale_for_s: float = Field(description="seconds since Redis was lost; 0 while it is connected")


class PicturesInfo(_Out):
    """The photos of items: whether the served bundle reads them, and what Redis keeps of them."""

    size_px: int | None = Field(description="side of the square that is read; null: the tokenizer reads none")
    kept: int | None = Field(description="pictures that Redis keeps; null while Redis is lost")
    kept_bytes: int | None = Field(description="their memory, as Redis estimates it; null if it is not told")


class VectorsInfo(_Out):
    """The vectors by which POST /search finds items, in the memory of this replica."""

    dim: int | None = Field(description="numbers of a vector; null: GLYPHREC_SEARCH is off")
    items: int = Field(description="items that have a vector")
    items_without: int = Field(description="items without one, which are not found; a replica gives them one")
    way: Literal["exact", "graph", "off"] = Field(
        description="how a search without a filter goes: it compares all items, or it asks a graph of "
        "neighbors (HNSW)"
    )
    recall_at_10: float | None = Field(
        description="share of the ten nearest items that the graph finds, measured on items of the catalog; "
        "null without a graph"
    )
    pending: int = Field(description="changes that the graph does not have yet and that are compared apart")
    bytes: int = Field(description="memory of the vectors and of the graph")


class RankerInfo(_Out):
    """The ranker of the served bundle, which orders the items of POST /rank and of reranked pages."""

    ranker_id: str
    history_length: int = Field(description="it reads so many of the newest items of a history")
    parameterization: str = Field(description="how the codes of an item become rows of its table")
    aggregation: str = Field(description="how it reads the history")


class LimitsInfo(_Out):
    """The limits of one request, and the numbers of beams of the first and of the widest search.

    `rank_items`: ids that one POST /rank may give.
    """

    items_per_request: int
    item_chars: int
    body_bytes: int
    picture_bytes: int
    picture_pixels: int
    history: int
    limit: int
    rank_items: int
    num_beams: int
    beam_limit: int


class BundleRequest(_In):
    """The bundle to serve from now on."""

    bundle: str = Field(
        pattern=r"^[\w+@=-][\w.+@=-]{0,127}$", description="the name of a folder in GLYPHREC_BUNDLES_DIR"
    )


class ServedBundle(_Out):
    """A bundle that answers requests. The ids name its models by their content."""

    bundle: str
    tokenizer_id: str
    recommender_id: str
    ranker_id: str | None = Field(description="null: the bundle has no ranker")


class ReplicaInfo(_Out):
    """How far one living replica is with the change of the tokenizer."""

    replica: str
    tokenizer_id: str = Field(description="the tokenizer that the replica serves")
    is_prepared: bool = Field(
        description="true if the replica can switch to the new tokenizer, or has switched"
    )
    trouble: str = Field(description="why the replica cannot switch; empty if it can")


class ChangeInfo(_Out):
    """The last change of the tokenizer."""

    bundle: str
    tokenizer_id: str
    phase: str = Field(
        description="reading: the catalog is read for the new tokenizer; joining: the replicas load it; "
        "switched; failed"
    )
    reason: str = Field(description="why the change failed; else empty")
    read_items: int
    items: int
    replicas: list[ReplicaInfo]


class BundlesResponse(_Out):
    """The bundle that answers now, and the last change of the tokenizer; null if there was none."""

    serving: ServedBundle = Field(description="on this replica")
    change: ChangeInfo | None


class InfoResponse(_Out):
    """The models, the catalog and the limits of this replica, and how the models were made."""

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
    filter_fields: dict[str, str] = Field(
        description="the declared fields that `filter.attributes` may name, with their kinds"
    )
    render: dict[str, Any]
    fields: list[str] | None = Field(
        description="the fields that the tokenizer reads, by their values or as pictures; null: it reads "
        "texts and photos alone"
    )
    ranker: RankerInfo | None = Field(description="null: the bundle has no ranker")
    metrics: dict[str, float] = Field(description="measured on the exported graphs")
    catalog: CatalogInfo
    pictures: PicturesInfo
    vectors: VectorsInfo
    limits: LimitsInfo
    change: ChangeInfo | None
    redis: dict[str, Any] = Field(
        description="how safe Redis keeps an item that was accepted; empty while Redis is lost"
    )
