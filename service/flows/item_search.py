"""Items by their vectors: the flows of POST /search and of GET /items/{id}/similar. They need no Redis.

    query ─ query_encoder.py ─▶ vector ─┐
    item id ────────────────────────────┴─ queue ─ catalog/vectors.py ─▶ the nearest items

The queue's batches hold the lock of the catalog, so an answer belongs to one version of it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple

from service.catalog.catalog import Catalog
from service.core.filters import DeclaredFields, Filter
from service.core.sid import Sid
from service.errors import ItemNotFound, ServiceError
from service.flows.deadlines import within
from service.flows.query_encoder import Encoded, Likeness, QueryEncoder, Vector
from service.inference.batching import MicroBatcher, Reservation
from service.telemetry.metrics import Metrics
from service.telemetry.stages import Stages

WHAT = "The search"  # the subject of an error about time


class SearchOff(ServiceError):
    """Raised if items shall be found by vectors, and the settings want none."""

    status = HTTPStatus.CONFLICT
    slug = "search-off"

    def __init__(self) -> None:
        super().__init__(
            "This service keeps no vectors, as GLYPHREC_SEARCH is false. Start it with GLYPHREC_SEARCH=true: "
            "it then gives each item a vector."
        )


class NoVectors(ServiceError):
    """Raised if no item can be compared, or the item that was asked for has no vector yet."""

    status = HTTPStatus.CONFLICT
    slug = "no-vectors"
    retry_after_s = 60

    def __init__(self, num_vectors: int, num_items: int) -> None:
        super().__init__(
            f"{num_vectors} of {num_items} items have a vector yet. Items of an older release or of a bundle "
            "without vectors get theirs from a replica after its start, and GET /info counts them. Send the "
            "request again later."
        )


@dataclass(frozen=True)
class Which:
    """Which items may be found, and how many."""

    limit: int
    exclude_item_ids: frozenset[str] = frozenset()
    filter: Filter | None = None


class Finding(NamedTuple):
    """A job of the queue: the items nearest to a vector, or to the vector of an item."""

    like: Vector | str
    which: Which


class FoundItem(NamedTuple):
    """An item, and the cosine of its vector and the one that was asked for."""

    item_id: str
    sid: Sid
    score: float


@dataclass(frozen=True)
class FoundItems:
    """The nearest items under one version of the catalog."""

    items: list[FoundItem]  # best first; equal scores in the order of their ids
    is_exact: bool  # every item was compared
    matching_items: int | None  # items that pass the filter; None without a filter
    catalog_version: int
    like: Sid | None = None  # of the item that was asked for; None for a query


@dataclass(frozen=True)
class Searched:
    """The answer to a query."""

    found: FoundItems
    query: Encoded


def find_in_batches(catalog: Catalog) -> Callable[[list[Finding]], list[FoundItems | ServiceError]]:
    """The function that the queue's batcher runs while it holds `catalog.lock`."""

    def run(findings: list[Finding]) -> list[FoundItems | ServiceError]:
        return [_find(catalog, finding) for finding in findings]

    return run


def work_of_findings(catalog: Catalog) -> Callable[[Finding], int]:
    """How much work a finding is: 1, and more where it compares many rows, as while a graph is being built.

    So a batch, which holds the lock of the catalog, is short at any size.
    """

    def work_of(_finding: Finding) -> int:
        vectors = catalog.vectors
        return 1 if vectors is None else 1 + vectors.num_compared // vectors.exact_up_to

    return work_of


def _find(catalog: Catalog, finding: Finding) -> FoundItems | ServiceError:
    which, vectors = finding.which, catalog.vectors
    assert vectors is not None
    left_out, query = which.exclude_item_ids, finding.like
    like = catalog.sid_of(query) if isinstance(query, str) else None
    if isinstance(query, str):
        if not catalog.has(query):
            return ItemNotFound(query)
        row = vectors.row_of(catalog.views.place_of(query))
        if row is None:
            return NoVectors(vectors.num_vectors, catalog.num_items)
        left_out, query = left_out | {query}, row
    view = None if which.filter is None else catalog.views.view_of(which.filter)
    nearest = vectors.nearest(
        query,
        which.limit,
        None if view is None else view.members,
        0 if view is None else view.num_items,
        [catalog.views.place_of(each) for each in left_out if catalog.has(each)],
    )
    items = []
    for place, score in zip(nearest.places, nearest.scores, strict=True):
        item_id = vectors.id_at(place)
        assert item_id is not None, "a place with a vector has an item"
        sid = catalog.sid_of(item_id)
        assert sid is not None, "the catalog's maps agree"
        items.append(FoundItem(item_id, sid, score))
    num_matching = None if view is None else view.num_items
    return FoundItems(items, nearest.is_exact, num_matching, catalog.version, like)


class ItemSearcher:
    """Finds items for one model. `timeout_s` limits each search, including its time in the queues."""

    def __init__(
        self,
        encoder: QueryEncoder,
        catalog: Catalog,
        batcher: MicroBatcher[Finding, FoundItems | ServiceError],
        *,
        fields: DeclaredFields,
        timeout_s: float,
        metrics: Metrics,
    ) -> None:
        self._encoder = encoder
        self._catalog = catalog
        self._batcher = batcher
        self._fields = fields
        self._timeout_s = timeout_s
        self._metrics = metrics

    def has_vector(self, item_id: str) -> bool:
        """Whether `like_item` can answer for this item."""
        catalog = self._catalog
        if catalog.vectors is None or not catalog.has(item_id):
            return False
        return catalog.vectors.row_of(catalog.views.place_of(item_id)) is not None

    async def search(
        self,
        query: Likeness,
        which: Which,
        stages: Stages,
        deadline: float = math.inf,
        reservation: Reservation | None = None,
    ) -> Searched:
        """The items most like a query, by the deadline (of the event loop's clock) or the timeout.

        Raises InvalidQuery, UnknownFilterField, InvalidFilter, SearchOff, NoVectors, Overloaded, TookTooLong.
        """
        self._check(which)
        async with within(deadline, self._timeout_s, WHAT) as deadline:
            encoded = await self._encoder.encode(query, stages, deadline, reservation)
            found = await self._find(Finding(encoded.vector, which), stages, deadline, is_admitted=True)
        self._note(query.by, found, which, stages)
        if encoded.was_remembered:
            self._metrics.remembered_queries.inc()
        return Searched(found, encoded)

    async def like_item(
        self, item_id: str, which: Which, stages: Stages, deadline: float = math.inf
    ) -> FoundItems:
        """The other items most like an item. Raises ItemNotFound, and what `search` raises."""
        self._check(which)
        async with within(deadline, self._timeout_s, WHAT) as deadline:
            found = await self._find(Finding(item_id, which), stages, deadline, is_admitted=False)
        self._note("item", found, which, stages)
        return found

    def _check(self, which: Which) -> None:
        if which.filter is not None:
            self._fields.check(which.filter)
        vectors = self._catalog.vectors
        if vectors is None:
            raise SearchOff
        if not vectors.num_vectors and self._catalog.num_items:
            raise NoVectors(0, self._catalog.num_items)

    async def _find(
        self, finding: Finding, stages: Stages, deadline: float, *, is_admitted: bool
    ) -> FoundItems:
        answer = await self._batcher.submit(finding, is_admitted=is_admitted, deadline=deadline)
        stages.add_row(wait=answer.queue_s, find=answer.run_s)
        if isinstance(answer.result, ServiceError):
            raise answer.result
        return answer.result

    def _note(self, by: str, found: FoundItems, which: Which, stages: Stages) -> None:
        self._metrics.observe_item_search(by, exact=found.is_exact, filtered=which.filter is not None)
        stages.flow = "search"
