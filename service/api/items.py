"""The routes under /items. They only shape HTTP; the flow is service/flows/indexing.py.

An item id is any text, so it may have slashes. Routes with a suffix after the id therefore come first.
"""

import asyncio
from contextlib import nullcontext
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from service.api.conditions import OF_A_CONDITION, WITH_ETAG, IfMatchDep, etag_of
from service.api.dependencies import JSON_ONLY, NEEDS_REDIS, CallDep, MergeDep, ModelDep, StateDep
from service.api.direct import ApiRoute
from service.api.filters import FilterDep, filter_of
from service.api.policies import policy
from service.api.schemas import (
    Deleted,
    ItemPage,
    ItemResult,
    ItemsBody,
    ItemsRequest,
    ItemsResponse,
    PatchedItem,
    SimilarItem,
    SimilarResponse,
    StoredItemOut,
    UnusedValueOut,
)
from service.catalog.neighbors import neighbors, shared_levels
from service.core.items import MAX_ID_CHARS, check_item_id
from service.core.sid import Sid
from service.errors import InvalidCondition, InvalidItem, ItemNotFound, TooManyItems
from service.flows.item_search import FoundItems, Which
from service.flows.outcomes import Outcome, Patched
from service.http.problems import OF_A_PUT, OF_A_QUEUE, OF_AN_ITEM, OF_VECTORS, problem_of
from service.http.security import Scope
from service.lifecycle.model import Model
from service.store.records import StoredItem

router = APIRouter(tags=["items"], route_class=ApiRoute)

ItemIdPath = Annotated[str, Path(min_length=1, max_length=MAX_ID_CHARS)]
Limit = Annotated[int, Query(ge=1, le=1_000)]


@router.post("/items", dependencies=[JSON_ONLY, NEEDS_REDIS], responses=OF_A_PUT | OF_A_CONDITION | WITH_ETAG)
@policy(Scope.WRITE)
async def put_items(
    body: ItemsBody,
    request: Request,
    response: Response,
    model: ModelDep,
    state: StateDep,
    call: CallDep,
    if_match: IfMatchDep,
) -> ItemsResponse:
    """Add or replace items. Each item has its own outcome, in the order of the request.

    A batch is answered with 200 even if some of its items failed. A single item that failed is answered with
    its problem. The answer to a single item has its ETag, and only a single item can come with If-Match.
    """
    call.stages.stop("parse")
    items = body.items if isinstance(body, ItemsRequest) else [body]
    if if_match is not None and isinstance(body, ItemsRequest):
        raise InvalidCondition("is about one item, and the request has a batch. Send the item alone.")
    if len(items) > state.options.max_items_per_request:
        raise TooManyItems(len(items), state.options.max_items_per_request)
    indexed = await model.indexer.index(items, call.stages, call.deadline, if_match)
    call.stages.start("write")
    if not isinstance(body, ItemsRequest):
        if error := indexed.outcomes[0].error:
            raise error
        response.headers.update(etag_of(indexed.outcomes[0].revision))
    results = [_result(outcome, request) for outcome in indexed.outcomes]
    return ItemsResponse(items=results, catalog_version=indexed.version)


@router.get("/items", dependencies=[NEEDS_REDIS])
@policy(Scope.READ)
async def list_items(
    model: ModelDep,
    cursor: Annotated[
        str | None,
        Query(
            max_length=2_000, pattern=r"^[A-Za-z0-9_-]+$", description="`next_cursor` of the previous page"
        ),
    ] = None,
    limit: Limit = 100,
) -> ItemPage:
    """All items, page by page, in trie order: items that look alike to the tokenizer are neighbors."""
    page = await model.store.page(cursor, limit)
    return ItemPage(items=[stored_out(item) for item in page.items], next_cursor=page.next_cursor)


@router.get("/items/{item_id:path}/similar", responses=OF_AN_ITEM | OF_A_QUEUE | OF_VECTORS)
@policy(Scope.READ)
async def similar_items(
    item_id: ItemIdPath,
    model: ModelDep,
    state: StateDep,
    asked: FilterDep,
    call: CallDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
    by: Annotated[Literal["vector", "codes"] | None, Query()] = None,
) -> SimilarResponse:
    """The items whose vectors are nearest to that of this one, or those that share the most leading codes.

    Without `by`, by vector where the item has one. By codes, popular items come first among equals. With a
    filter, as in POST /recommend, only items that pass it. The item itself need not pass.
    """
    catalog, conditions = model.catalog, filter_of(asked)
    excluded = frozenset((asked and asked.exclude_item_ids) or ())
    if by == "vector" or (by is None and model.searcher.has_vector(item_id)):
        found_items = await model.searcher.like_item(
            item_id, Which(limit, excluded, conditions), call.stages, call.deadline
        )
        state.metrics.observe_recommendation(
            "similar", exact=found_items.is_exact, filtered=conditions is not None
        )
        assert found_items.like is not None
        return _alike(found_items.like, item_id, found_items)
    find = partial(neighbors, catalog, model.popularity, item_id, limit, conditions, excluded)
    # The view of a filter takes time in a large catalog, so it is made in a thread, which needs the lock.
    async with nullcontext() if conditions is None else catalog.lock:
        sid, version = catalog.sid_of(item_id), catalog.version
        if sid is None:
            raise ItemNotFound(item_id)
        found = find() if conditions is None else await asyncio.to_thread(find)
    state.metrics.observe_recommendation("similar", exact=True, filtered=conditions is not None)
    return SimilarResponse(
        item_id=item_id,
        semantic_id=str(sid),
        by="codes",
        items=[
            SimilarItem(
                item_id=each.item_id,
                semantic_id=str(each.sid),
                shared_levels=each.shared_levels,
                score=None,
            )
            for each in found
        ],
        catalog_version=version,
    )


@router.get("/items/{item_id:path}", dependencies=[NEEDS_REDIS], responses=OF_AN_ITEM | WITH_ETAG)
@policy(Scope.READ)
async def get_item(item_id: ItemIdPath, response: Response, model: ModelDep) -> StoredItemOut:
    """The item as it was posted, without null fields, and the Semantic ID that the tokenizer gave it."""
    stored = await find_item(model, item_id)
    response.headers.update(etag_of(stored.revision))
    return stored_out(stored)


@router.patch(
    "/items/{item_id:path}",
    dependencies=[NEEDS_REDIS],
    responses=OF_AN_ITEM | OF_A_PUT | OF_A_CONDITION | WITH_ETAG,
    openapi_extra={
        "requestBody": {"content": {"application/merge-patch+json": {"schema": {"type": "object"}}}}
    },
)
@policy(Scope.WRITE)
async def patch_item(
    item_id: ItemIdPath,
    body: dict[str, Any],
    response: Response,
    model: ModelDep,
    call: CallDep,
    if_match: IfMatchDep,
    merge: MergeDep,
) -> PatchedItem:
    """Replace some fields of an item. A null removes one. The item is read again only if its text changed.

    As application/json, each given field replaces the whole field. As application/merge-patch+json, objects
    are merged at every depth (RFC 7396).

    Patches of one item at the same moment are merged: each field has the value of the patch that was done
    last. An item that is deleted meanwhile stays deleted, and the answer is 404.
    """
    call.stages.stop("parse")
    if body.get("item_id", item_id) != item_id:
        raise InvalidItem("item_id", "cannot be changed. DELETE the item, and POST it with its new id")
    patched = await model.indexer.patch(
        check_item_id(item_id),
        lambda item: merge(item, {**body, "item_id": item_id}),
        call.stages,
        call.deadline,
        if_match,
    )
    call.stages.start("write")
    response.headers.update(etag_of(patched.outcome.revision))
    return patched_item(patched)


@router.delete("/items/{item_id:path}", dependencies=[NEEDS_REDIS], responses=OF_AN_ITEM | OF_A_CONDITION)
@policy(Scope.WRITE)
async def delete_item(item_id: ItemIdPath, model: ModelDep, if_match: IfMatchDep) -> Deleted:
    """Delete an item. The next search on this replica does not find it."""
    version = await model.indexer.drop(check_item_id(item_id), if_match)
    if version is None:
        raise ItemNotFound(item_id)
    return Deleted(item_id=item_id, catalog_version=version)


def _alike(sid: Sid, item_id: str, found: FoundItems) -> SimilarResponse:
    return SimilarResponse(
        item_id=item_id,
        semantic_id=str(sid),
        by="vector",
        items=[
            SimilarItem(
                item_id=each.item_id,
                semantic_id=str(each.sid),
                shared_levels=shared_levels(sid.codes, each.sid.codes),
                score=each.score,
            )
            for each in found.items
        ],
        catalog_version=found.catalog_version,
    )


async def find_item(model: Model, item_id: str) -> StoredItem:
    """The stored item. Raises ItemNotFound, and InvalidItem for what is no id."""
    stored = await model.store.get(check_item_id(item_id))
    if stored is None:
        raise ItemNotFound(item_id)
    return stored


def patched_item(patched: Patched) -> PatchedItem:
    """The answer to a change of one item."""
    outcome = patched.outcome
    assert outcome.sid is not None
    assert outcome.item is not None
    assert outcome.status != "failed"
    return PatchedItem(
        item=outcome.item,
        semantic_id=str(outcome.sid),
        codes=list(outcome.sid.codes),
        status=outcome.status,
        unused_values=_unused(outcome),
        catalog_version=patched.version,
    )


def stored_out(item: StoredItem) -> StoredItemOut:
    """The answer that shows an item."""
    return StoredItemOut(item=item.item, semantic_id=str(item.sid), codes=list(item.sid.codes))


def _unused(outcome: Outcome) -> list[UnusedValueOut]:
    return [UnusedValueOut(field=each.field, reason=each.reason) for each in outcome.unused]


def _result(outcome: Outcome, request: Request) -> ItemResult:
    error = outcome.error
    return ItemResult(
        item_id=outcome.item_id,
        status=outcome.status,
        semantic_id=str(outcome.sid) if outcome.sid else None,
        codes=list(outcome.sid.codes) if outcome.sid else None,
        truncated=outcome.truncated,
        missing_characters=outcome.missing,
        unused_values=_unused(outcome),
        error=problem_of(error, instance=request.scope["path"], request_id=request.state.request_id)
        if error
        else None,
    )
