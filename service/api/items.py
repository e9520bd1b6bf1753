"""The routes under /items: HTTP shapes only; the flow is service/flows/indexing.py.

An item id is any text, so it may hold slashes; the routes with something after the id come first.
"""

from io import BytesIO
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Query, Request, Response
from PIL import Image

from service.api.dependencies import JSON_ONLY, NEEDS_REDIS, CallDep, PartsDep, ServingDep
from service.api.schemas import (
    Deleted,
    ItemPage,
    ItemResult,
    ItemsBody,
    ItemsRequest,
    ItemsResponse,
    Neighbour,
    PatchedItem,
    SimilarResponse,
    StoredItemOut,
)
from service.catalog.neighbours import neighbours
from service.core.items import MAX_ID_CHARS, check_item_id, merge
from service.core.render import item_text, render_text
from service.errors import InvalidItem, ItemNotFound, TooManyItems
from service.flows.indexing import Outcome
from service.http.json_body import JsonRoute
from service.http.problems import OF_A_PUT, OF_AN_ITEM, problem_of
from service.store.records import StoredItem

router = APIRouter(tags=["items"], route_class=JsonRoute)

ItemIdPath = Annotated[str, Path(min_length=1, max_length=MAX_ID_CHARS)]
PNG = {"type": "string", "format": "binary"}
Limit = Annotated[int, Query(ge=1, le=1_000)]


@router.post("/items", dependencies=[JSON_ONLY, NEEDS_REDIS], responses=OF_A_PUT)
async def put_items(
    body: ItemsBody,
    request: Request,
    parts: PartsDep,
    serving: ServingDep,
    call: CallDep,
) -> ItemsResponse:
    """Add or replace items. Each has an outcome of its own, in order; a bad one harms no other.

    The answer is 200 also where some items failed; a bare item that fails is answered with its own problem.
    """
    call.stages.stop("parse")
    items = body.items if isinstance(body, ItemsRequest) else [body]
    if len(items) > serving.settings.max_items_per_request:
        raise TooManyItems(len(items), serving.settings.max_items_per_request)
    indexed = await parts.indexer.index(items, call.stages, call.deadline)
    call.stages.start("write")
    if not isinstance(body, ItemsRequest) and (error := indexed.outcomes[0].error):
        raise error
    results = [_result(outcome, request) for outcome in indexed.outcomes]
    return ItemsResponse(items=results, catalog_version=indexed.version)


@router.get("/items", dependencies=[NEEDS_REDIS])
async def list_items(
    parts: PartsDep,
    cursor: Annotated[
        str | None,
        Query(max_length=2_000, pattern=r"^[A-Za-z0-9_-]+$", description="`next_cursor` of the page before"),
    ] = None,
    limit: Limit = 100,
) -> ItemPage:
    """All items in trie order, page by page: neighbours look alike to the tokenizer."""
    page = await parts.store.page(cursor, limit)
    return ItemPage(items=[_stored(item) for item in page.items], next_cursor=page.next_cursor)


@router.get("/items/{item_id:path}/similar", responses=OF_AN_ITEM)
async def similar_items(
    item_id: ItemIdPath,
    parts: PartsDep,
    serving: ServingDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
) -> SimilarResponse:
    """The items whose codes share most with this one's: longest common prefix first, then popular ones."""
    catalog = parts.catalog
    sid = catalog.sid_of(item_id)
    if sid is None:
        raise ItemNotFound(item_id)
    found = neighbours(catalog, parts.popularity, item_id, limit)
    serving.metrics.observe_recommendation("similar", exact=True, filtered=False)
    return SimilarResponse(
        item_id=item_id,
        semantic_id=str(sid),
        items=[
            Neighbour(item_id=each.item_id, semantic_id=str(each.sid), shared_levels=each.shared_levels)
            for each in found
        ],
        catalog_version=catalog.version,
    )


@router.get(
    "/items/{item_id:path}/image",
    response_class=Response,
    dependencies=[NEEDS_REDIS],
    responses=OF_AN_ITEM | {200: {"description": "OK", "content": {"image/png": {"schema": PNG}}}},
)
async def item_image(item_id: ItemIdPath, parts: PartsDep) -> Response:
    """What the tokenizer sees of the item: its strips of text, one below the other, as PNG."""
    stored = await _find(parts, item_id)
    render = parts.manifest.render
    strips = render_text(item_text(stored.item, render), render).strips  # [strip, height, width]
    png = BytesIO()
    Image.fromarray(np.concatenate(list(strips))).save(png, format="PNG")
    return Response(png.getvalue(), media_type="image/png")


@router.get("/items/{item_id:path}", dependencies=[NEEDS_REDIS], responses=OF_AN_ITEM)
async def get_item(item_id: ItemIdPath, parts: PartsDep) -> StoredItemOut:
    return _stored(await _find(parts, item_id))


@router.patch("/items/{item_id:path}", dependencies=[JSON_ONLY, NEEDS_REDIS], responses=OF_AN_ITEM | OF_A_PUT)
async def patch_item(
    item_id: ItemIdPath, body: dict[str, Any], parts: PartsDep, call: CallDep
) -> PatchedItem:
    """Replace some fields; null removes one. The item is read anew only where its text changed.

    Two patches of one item at the same moment are not merged: the later one wins.
    """
    call.stages.stop("parse")
    if body.get("item_id", item_id) != item_id:
        raise InvalidItem("item_id", "cannot be changed. DELETE the item and POST it under its new id")
    stored = await _find(parts, item_id)
    merged = merge(stored.item, {**body, "item_id": item_id})
    indexed = await parts.indexer.index([merged], call.stages, call.deadline)
    call.stages.start("write")
    outcome = indexed.outcomes[0]
    if outcome.error is not None:
        raise outcome.error
    assert outcome.sid is not None
    assert outcome.status != "failed"
    return PatchedItem(
        item=merged,
        semantic_id=str(outcome.sid),
        codes=list(outcome.sid.codes),
        status=outcome.status,
        catalog_version=indexed.version,
    )


@router.delete("/items/{item_id:path}", dependencies=[NEEDS_REDIS], responses=OF_AN_ITEM)
async def delete_item(item_id: ItemIdPath, parts: PartsDep) -> Deleted:
    """Take an item away; the next search on this replica does not know it any more."""
    version = await parts.indexer.drop(check_item_id(item_id))
    if version is None:
        raise ItemNotFound(item_id)
    return Deleted(item_id=item_id, catalog_version=version)


async def _find(parts: PartsDep, item_id: str) -> StoredItem:
    stored = await parts.store.get(check_item_id(item_id))
    if stored is None:
        raise ItemNotFound(item_id)
    return stored


def _stored(item: StoredItem) -> StoredItemOut:
    return StoredItemOut(item=item.item, semantic_id=str(item.sid), codes=list(item.sid.codes))


def _result(outcome: Outcome, request: Request) -> ItemResult:
    error = outcome.error
    return ItemResult(
        item_id=outcome.item_id,
        status=outcome.status,
        semantic_id=str(outcome.sid) if outcome.sid else None,
        codes=list(outcome.sid.codes) if outcome.sid else None,
        truncated=outcome.truncated,
        missing_characters=outcome.missing,
        error=problem_of(error, instance=request.scope["path"], request_id=request.state.request_id)
        if error
        else None,
    )
