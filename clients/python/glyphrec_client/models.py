"""What the service answers, as frozen models. The names of their fields are those of its OpenAPI document.

A field that this release of the client does not know is left out, so a newer service can still be asked. The
fields `request_id` and `etag` come from headers of the answer.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """A part of an answer. It cannot be changed."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Answer(Model):
    """A whole answer, with the id of its request."""

    request_id: str = ""  # header X-Request-ID; the service's log has it, and POST /events takes it


class FieldError(Model):
    """One value of a request that is wrong, and why."""

    field: str
    message: str


class Problem(Model):
    """An RFC 9457 problem document. `type` is stable, and `detail` says what is wrong and what to do."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    errors: list[FieldError]


# --- items ---


class UnusedValue(Model):
    """A value that is stored, but that filters or the tokenizer cannot use."""

    field: str
    reason: str


class ItemResult(Model):
    """The outcome for one posted item. `error` tells why it failed, and is None if it did not."""

    item_id: str | None
    status: Literal["created", "moved", "updated", "unchanged", "failed"]
    semantic_id: str | None  # codes and slot
    codes: list[int] | None
    truncated: bool | None
    missing_characters: str | None
    unused_values: list[UnusedValue]
    error: Problem | None


class ItemsResponse(Answer):
    """One result for each posted item, in the order of the request."""

    items: list[ItemResult]
    catalog_version: int
    etag: str = ""  # of a single item


class StoredItem(Model):
    """An item as it was posted, without null fields, and the Semantic ID that the tokenizer gave it."""

    item: dict[str, Any]
    semantic_id: str
    codes: list[int]


class ShownItem(StoredItem, Answer):
    """A stored item with its ETag, which `if_match` of a later change takes."""

    etag: str = ""


class PatchedItem(ShownItem):
    """The whole item after a change."""

    status: Literal["created", "moved", "updated", "unchanged"]
    unused_values: list[UnusedValue]
    catalog_version: int


class ItemPage(Answer):
    """A page of stored items in trie order. `next_cursor` is None on the last page."""

    items: list[StoredItem]
    next_cursor: str | None


class Deleted(Answer):
    """The deleted item, and a version of the catalog without it."""

    item_id: str
    catalog_version: int


class SimilarItem(Model):
    """A similar item. `score` is the cosine of both vectors; None by codes."""

    item_id: str
    semantic_id: str
    shared_levels: int
    score: float | None


class SimilarResponse(Answer):
    """Other items, most similar first: those with the nearest vectors, or those that share the most codes."""

    item_id: str
    semantic_id: str
    by: Literal["vector", "codes"]
    items: list[SimilarItem]
    catalog_version: int


# --- search, recommendations, rankings and events ---


class FoundItem(Model):
    """One item of a page. `score` is the cosine of its vector and that of the query."""

    item_id: str
    score: float
    semantic_id: str


class SearchResponse(Answer):
    """The items most like a query, best first. `exact`: all items were compared."""

    items: list[FoundItem]
    exact: bool
    matching_items: int | None
    truncated: bool
    missing_characters: str
    tokenizer_id: str
    catalog_version: int


class Recommendation(Model):
    """One item of a page. `score` is a sum of log-probabilities; None for popular items.

    `ranker_score` is the ranker's log-odds; None unless the page was reranked.
    """

    item_id: str
    score: float | None
    ranker_score: float | None
    semantic_id: str


class SearchInfo(Model):
    """How wide the search for the page was."""

    num_beams: int
    widened: int
    beam_limit_reached: bool


class RecommendResponse(Answer):
    """A page of recommended items, best first, and how it was found.

    `exact_for` says whether `exact` speaks of the page, or only of which items are on it.
    """

    items: list[Recommendation]
    exact: bool
    exact_for: Literal["page", "candidates"]
    search: SearchInfo | None
    matching_items: int | None
    source: Literal["model", "popular"]
    unknown_item_ids: list[str]
    model_version: str
    ranker_version: str | None
    catalog_version: int


class RankedItem(Model):
    """One of the given items. `score` is of what `ranked_by` names; None by popularity."""

    item_id: str
    score: float | None
    semantic_id: str


class RankResponse(Answer):
    """The given items in order, best first, and what ordered them."""

    items: list[RankedItem]
    ranked_by: Literal["ranker", "generator", "popularity"]
    matching_items: int | None
    unknown_item_ids: list[str]
    unknown_history_ids: list[str]
    model_version: str
    ranker_version: str | None
    catalog_version: int


class BatchedPage(Model):
    """The outcome of one query of a batch: a page, or the problem that it would have alone.

    `request_id` is that of the query, for `send_events`.
    """

    request_id: str
    page: RecommendResponse | None
    problem: Problem | None


class RecommendBatchResponse(Answer):
    """One outcome for each query, in their order."""

    results: list[BatchedPage]


class EventsResponse(Answer):
    """How many of the posted events were new. The two numbers add up to the events of the request."""

    accepted: int
    duplicates: int


# --- the service itself ---


class CatalogInfo(Model):
    """The catalog as the replica serves it from its memory."""

    name: str
    items: int
    version: int
    digest: str
    stale_for_s: float


class PicturesInfo(Model):
    """Whether the served bundle reads photos, and what Redis keeps of them."""

    size_px: int | None
    kept: int | None
    kept_bytes: int | None


class VectorsInfo(Model):
    """The vectors by which `search` finds items. `dim` is None if searches are off."""

    dim: int | None
    items: int
    items_without: int
    way: Literal["exact", "graph", "off"]
    recall_at_10: float | None
    pending: int
    bytes: int


class RankerInfo(Model):
    """The ranker of the served bundle, which orders the items of `rank` and of reranked pages."""

    ranker_id: str
    history_length: int
    parameterization: str
    aggregation: str


class LimitsInfo(Model):
    """The limits of one request."""

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


class ReplicaInfo(Model):
    """How far one replica is with the change of the tokenizer."""

    replica: str
    tokenizer_id: str
    is_prepared: bool
    trouble: str


class ChangeInfo(Model):
    """The last change of the tokenizer."""

    bundle: str
    tokenizer_id: str
    phase: str
    reason: str
    read_items: int
    items: int
    replicas: list[ReplicaInfo]


class ServedBundle(Model):
    """A bundle that answers requests. The ids name its models by their content."""

    bundle: str
    tokenizer_id: str
    recommender_id: str
    ranker_id: str | None  # None: the bundle has no ranker


class BundlesResponse(Answer):
    """The bundle that answers now, and the last change of the tokenizer; None if there was none."""

    serving: ServedBundle
    change: ChangeInfo | None


class InfoResponse(Answer):
    """The models, the catalog and the limits of the replica."""

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
    filter_fields: dict[str, str]
    render: dict[str, Any]
    fields: list[str] | None
    ranker: RankerInfo | None
    metrics: dict[str, float]
    catalog: CatalogInfo
    pictures: PicturesInfo
    vectors: VectorsInfo
    limits: LimitsInfo
    change: ChangeInfo | None
    redis: dict[str, Any]


class WorkerReady(Answer):
    """Whether one process of the replica takes requests."""

    worker: int
    pid: int | None
    status: Literal["ready", "starting", "stopping", "damaged", "silent"]
    phase: str


class Ready(Answer):
    """Whether the replica takes requests, and how current its catalog is."""

    status: Literal["ready", "starting", "stopping", "damaged"]
    phase: str
    warnings: list[str]
    stale: bool
    stale_for_s: float
    catalog_items: int
    catalog_version: int
    workers: list[WorkerReady] | None  # None: a replica of one process


class Live(Answer):
    """The process answers."""

    status: Literal["alive"]
