"""The explorer: a page for people at `/`, its files, and the routes that only this page uses.

Page and files hold no secrets and are open. All that they show comes from routes that need a key where keys
are set. The person gives the key to the page, which sends it in a header. GLYPHREC_EXPLORER turns all off.
"""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Path, Query, Request, Response

from service.api.dependencies import JSON_ONLY, NEEDS_REDIS, CallDep, ModelDep
from service.api.direct import ApiRoute
from service.api.explorer_schemas import (
    BeamOut,
    BeamRequest,
    BranchesOut,
    BranchOut,
    CategoriesOut,
    CategoryOut,
    ContentsOut,
    ContentsRequest,
    ItemsBelow,
    TracedLevelOut,
    TracedPrefixOut,
)
from service.api.filters import FilterDep, filter_of
from service.api.items import stored_out
from service.api.policies import Admission, policy
from service.api.recommend import query_of
from service.api.schemas import StoredItemOut
from service.catalog.browsing import branches, items_below
from service.core.sid import Codes, Sid, SidSpec
from service.errors import ServiceError
from service.flows.beam_trace import BeamTrace, TracedLevel, TracedPrefix
from service.http.security import Scope
from service.lifecycle.model import Model

router = APIRouter(route_class=ApiRoute, include_in_schema=False)

MAX_BRANCHES = 256  # of one answer
MAX_SHOWN = 100  # surviving prefixes of a level that the page gets
MAX_CATEGORIES = 500
NUM_EXAMPLES = 3
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# No inline script or style, nothing from elsewhere, no frame around it, and no form that is sent.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asks each time, and the ETag answers
}


class NoSuchPrefix(ServiceError):
    """Raised if codes of the address do not fit the levels of the bundle."""

    status = HTTPStatus.NOT_FOUND
    slug = "no-such-prefix"

    def __init__(self, given: str, levels: Sequence[int]) -> None:
        super().__init__(
            f"{given!r} is no prefix of a Semantic ID here. "
            f"The levels have {', '.join(map(str, levels))} codes."
        )


class NoSuchFile(ServiceError):
    """Raised if the explorer has no file of that name."""

    status = HTTPStatus.NOT_FOUND
    slug = "no-such-file"

    def __init__(self, name: str) -> None:
        super().__init__(f"The explorer has no file {name[:60]!r}. Load the page again.")


class _File(NamedTuple):
    content: bytes
    media_type: str
    etag: str


@cache
def _files() -> Mapping[str, _File]:
    """All files of the page, by name. There are few, and they are small."""
    found = {}
    for each in files("service").joinpath("explorer").iterdir():
        if media_type := TYPES.get(each.name.rpartition(".")[2]):
            content = each.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'
            found[each.name] = _File(content, media_type, etag)
    return found


Prefix = Annotated[str, Query(max_length=100, pattern=r"^(\d{1,6}(-\d{1,6})*)?$")]
SidText = Annotated[str | None, Query(max_length=100, pattern=r"^\d{1,6}(-\d{1,6})+$")]


@router.get("/")
@policy(Scope.OPEN)
async def page(request: Request) -> Response:
    """The page. Its scripts ask the routes of the API."""
    return _answer(_files()["index.html"], request)


@router.get("/explorer/files/{name}")
@policy(Scope.OPEN)
async def file(name: Annotated[str, Path(max_length=100)], request: Request) -> Response:
    """A script, a style sheet or a drawing of the page."""
    if (found := _files().get(name)) is None:
        raise NoSuchFile(name)
    return _answer(found, request)


@router.get("/explorer/items", dependencies=[NEEDS_REDIS])
@policy(Scope.READ)
async def list_below(
    model: ModelDep,
    asked: FilterDep,
    codes: Prefix = "",
    after: SidText = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 24,
) -> ItemsBelow:
    """The items below a prefix that pass the filter, page by page."""
    prefix = _codes_of(codes, model.manifest.sid)
    begins = None if after is None else _sid_of(after, model.manifest.sid)
    conditions, catalog = filter_of(asked), model.catalog
    async with catalog.lock:
        found = await asyncio.to_thread(items_below, catalog, prefix, conditions, after=begins, limit=limit)
    contents = await _contents(model, [each.item_id for each in found.items])
    return ItemsBelow(
        num_items=found.num_items,
        items=contents,
        next_after=str(found.items[-1].sid) if found.has_more else None,
        catalog_version=found.catalog_version,
    )


@router.get("/explorer/branches", dependencies=[NEEDS_REDIS])
@policy(Scope.READ)
async def list_branches(
    model: ModelDep,
    asked: FilterDep,
    codes: Prefix = "",
    first_code: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    examples: Annotated[int, Query(ge=0, le=10)] = NUM_EXAMPLES,
) -> BranchesOut:
    """The codes below a prefix, with how many items each has and some of them."""
    spec, catalog = model.manifest.sid, model.catalog
    prefix, conditions = _codes_of(codes, spec), filter_of(asked)
    if len(prefix) == spec.num_levels:
        raise NoSuchPrefix(codes, spec.levels[:-1])
    async with catalog.lock:
        found = await asyncio.to_thread(
            branches,
            catalog,
            prefix,
            conditions,
            first_code=first_code,
            limit=MAX_BRANCHES,
            num_examples=examples,
        )
    wanted = [item_id for each in found.branches for item_id in each.example_ids]
    content_of = {each.item["item_id"]: each for each in await _contents(model, wanted)}
    return BranchesOut(
        num_items=found.num_items,
        branches=[
            BranchOut(
                code=each.code,
                num_items=each.num_items,
                examples=[content_of[item_id] for item_id in each.example_ids if item_id in content_of],
            )
            for each in found.branches
        ],
        next_code=found.next_code,
        catalog_version=found.catalog_version,
    )


@router.get("/explorer/categories")
@policy(Scope.READ)
async def list_categories(model: ModelDep) -> CategoriesOut:
    """The categories that most items have, for the filter."""
    async with model.catalog.lock:
        found = await asyncio.to_thread(model.catalog.views.num_by_category)
    ranked = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:MAX_CATEGORIES]
    return CategoriesOut(categories=[CategoryOut(category=name, num_items=num) for name, num in ranked])


@router.post("/explorer/contents", dependencies=[JSON_ONLY, NEEDS_REDIS])
@policy(Scope.READ)
async def contents(body: ContentsRequest, model: ModelDep) -> ContentsOut:
    """Many items at once, as GET /items/{id} tells one."""
    return ContentsOut(items=await _contents(model, body.item_ids))


@router.post("/explorer/beam", dependencies=[JSON_ONLY])
@policy(Scope.READ, admission=Admission(queue=lambda model: model.traces, units=lambda _model: 1))
async def beam(body: BeamRequest, model: ModelDep, call: CallDep) -> BeamOut:
    """How the search of that many beams goes for a request of POST /recommend, level by level."""
    num_beams = min(body.num_beams, model.manifest.beam_limit)
    found = await model.tracer.trace(query_of(body), num_beams, call.deadline, call.reservation)
    shown = [each for level in found.levels for each in (*level.kept[:MAX_SHOWN], *level.pruned)]
    titles = {}
    if model.follower.lost is None:  # without Redis the codes are told, and no titles
        wanted = list(dict.fromkeys(each.example_id for each in shown if each.example_id is not None))
        titles = {each.item["item_id"]: _title(each) for each in await _contents(model, wanted)}
    return _beam_out(found, titles)


def _beam_out(found: BeamTrace, titles: dict[str, str]) -> BeamOut:
    def told(each: TracedPrefix) -> TracedPrefixOut:
        example = None if each.example_id is None else titles.get(each.example_id, each.example_id)
        return TracedPrefixOut(codes=list(each.codes), score=each.score, example=example)

    def level_out(level: TracedLevel) -> TracedLevelOut:
        return TracedLevelOut(
            num_children=level.num_children,
            num_kept=len(level.kept),
            kept=[told(each) for each in level.kept[:MAX_SHOWN]],
            pruned=[told(each) for each in level.pruned],
        )

    return BeamOut(
        num_beams=found.num_beams,
        levels=[level_out(level) for level in found.levels],
        catalog_version=found.catalog_version,
    )


def _title(stored: StoredItemOut) -> str:
    return str(stored.item.get("title") or stored.item["item_id"])


async def _contents(model: Model, item_ids: Sequence[str]) -> list[StoredItemOut]:
    """The items that still exist, in that order."""
    found = await model.store.get_many(item_ids)
    return [stored_out(found[item_id]) for item_id in item_ids if item_id in found]


def _codes_of(given: str, spec: SidSpec) -> Codes:
    codes = tuple(map(int, given.split("-"))) if given else ()
    fits = all(code < num_codes for code, num_codes in zip(codes, spec.levels, strict=False))
    if len(codes) > spec.num_levels or not fits:
        raise NoSuchPrefix(given, spec.levels)
    return codes


def _sid_of(given: str, spec: SidSpec) -> Sid:
    codes, _, slot = given.rpartition("-")
    found = _codes_of(codes, spec)
    if len(found) < spec.num_levels:
        raise NoSuchPrefix(given, spec.levels)
    return Sid(found, int(slot))


def _answer(found: _File, request: Request) -> Response:
    headers = {**HEADERS, "ETag": found.etag}
    if request.headers.get("if-none-match") == found.etag:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=headers)
