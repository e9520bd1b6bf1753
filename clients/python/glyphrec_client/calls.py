"""One function for each route: arguments -> the request, and how its answer is read. Nothing here sends.

Client and AsyncClient have each function of ROUTES as a method. The examples are those of Client; with
AsyncClient, `await` stands before the call.
"""

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import httpx

from glyphrec_client.answers import read_bytes, read_json, reader
from glyphrec_client.errors import UnexpectedAnswer
from glyphrec_client.inputs import Diversity, Event, Filter, Item
from glyphrec_client.models import (
    BundlesResponse,
    Deleted,
    EventsResponse,
    InfoResponse,
    ItemPage,
    ItemsResponse,
    Live,
    PatchedItem,
    RankResponse,
    Ready,
    RecommendBatchResponse,
    RecommendResponse,
    SearchResponse,
    ShownItem,
    SimilarResponse,
)

T_co = TypeVar("T_co", covariant=True)

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
PICTURES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"RIFF": "image/webp"}
REQUEST_ID = re.compile(r"[!#-\[\]-~]{1,128}")  # what the service keeps; it replaces any other id


class Repeat(Enum):
    """When a request may be sent a second time."""

    ALWAYS = "always"  # the second time changes nothing more and gives the same answer
    IF_NOT_BEGUN = "if not begun"  # only where the service cannot have begun to work on it
    NEVER = "never"


@dataclass(frozen=True)
class Call(Generic[T_co]):
    """A request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[httpx.Response], T_co]
    params: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeat: Repeat = Repeat.ALWAYS


def recommend(
    history: Iterable[str],
    *,
    limit: int = 10,
    exclude_item_ids: Iterable[str] = (),
    exclude_history: bool = True,
    guarantee: Literal["none", "exact"] = "none",
    filter: Filter | None = None,
    diversity: Diversity | None = None,
    rerank: bool = False,
    request_id: str | None = None,
) -> Call[RecommendResponse]:
    """The next items after a history of item ids, oldest first. Without a known item, popular items.

    With `rerank`, the bundle's ranker orders the items of the page. Raises NoRanker if it has none.
    `request_id` is the id that the answer gets, for example that of a trace.

    >>> page = client.recommend(["item-0", "item-1"], limit=3, guarantee="exact")
    >>> len(page.items), page.source, page.exact
    (3, 'model', True)
    >>> page = client.recommend([], filter={"item_ids": ["item-4"]})
    >>> [item.item_id for item in page.items]
    ['item-4']
    """
    body: dict[str, Any] = {
        "history": _ids(history, "history"),
        "limit": limit,
        "exclude_history": exclude_history,
        "guarantee": guarantee,
    }
    if rerank:
        body["rerank"] = True
    if excluded := _ids(exclude_item_ids, "exclude_item_ids"):
        body["exclude_item_ids"] = excluded
    if filter is not None:
        body["filter"] = filter
    if diversity is not None:
        body["diversity"] = diversity
    headers = {} if request_id is None else {"X-Request-ID": _request_id(request_id)}
    return _with_json("POST", "/recommend", body, reader(RecommendResponse), headers)


def rank(
    history: Iterable[str],
    item_ids: Iterable[str],
    *,
    limit: int = 1_000,
    filter: Filter | None = None,
) -> Call[RankResponse]:
    """Up to 1,000 given items in the order in which a user with this history would take them next.

    >>> answer = client.rank(["item-0"], ["item-3", "item-4", "gone"])
    >>> sorted(item.item_id for item in answer.items), answer.unknown_item_ids
    (['item-3', 'item-4'], ['gone'])
    >>> answer.ranked_by, answer.items[0].score > answer.items[1].score
    ('generator', True)
    """
    body: dict[str, Any] = {
        "history": _ids(history, "history"),
        "item_ids": _ids(item_ids, "item_ids"),
        "limit": limit,
    }
    if filter is not None:
        body["filter"] = filter
    return _with_json("POST", "/rank", body, reader(RankResponse))


def recommend_batch(queries: Sequence[Mapping[str, Any]]) -> Call[RecommendBatchResponse]:
    """Up to 256 queries in one request, each with the fields of `recommend`, and each with its own outcome.

    Ask again for those whose problem has the status 429 or 503.

    >>> answer = client.recommend_batch([{"history": ["item-0"], "limit": 2}, {"history": 1}])
    >>> [len(each.page.items) if each.page else each.problem.status for each in answer.results]
    [2, 422]
    """
    body = {"queries": list(queries)}
    return _with_json("POST", "/recommend/batch", body, reader(RecommendBatchResponse))


def search(
    query: str | None = None,
    *,
    image: bytes | None = None,
    limit: int = 10,
    exclude_item_ids: Iterable[str] = (),
    filter: Filter | None = None,
) -> Call[SearchResponse]:
    """The items most like a text, a picture, or both. `image` is the bytes of a JPEG, a PNG or a WebP.

    >>> page = client.search("Thing number 7", filter={"item_ids": ["item-7"]})
    >>> [item.item_id for item in page.items]
    ['item-7']
    """
    body: dict[str, Any] = {"limit": limit}
    if query is not None:
        body["query"] = query
    if image is not None:
        body["image"] = picture(image)
    if excluded := _ids(exclude_item_ids, "exclude_item_ids"):
        body["exclude_item_ids"] = excluded
    if filter is not None:
        body["filter"] = filter
    return _with_json("POST", "/search", body, reader(SearchResponse))


def put_items(items: Sequence[Item]) -> Call[ItemsResponse]:
    """Add or replace items in one request. Each has its own result, and a bad one does not fail the others.

    The service limits the items and bytes of one request; `put_many` splits any number.

    >>> answer = client.put_items([{"item_id": "a1", "title": "Oat milk 32 oz"}, {"item_id": "a2"}])
    >>> [(result.item_id, result.status) for result in answer.items]
    [('a1', 'created'), ('a2', 'failed')]
    >>> answer.items[1].error.type
    'urn:glyphrec:problem:invalid-item'
    """
    if isinstance(items, Mapping):
        raise TypeError("items is one item. Give a list of items, or call put_item.")
    return put_encoded([encoded(item) for item in items])


def put_encoded(items: Sequence[bytes]) -> Call[ItemsResponse]:
    """As `put_items`, of items that `encoded` has made."""
    read_results = reader(ItemsResponse)

    def read(response: httpx.Response) -> ItemsResponse:
        answer = read_results(response)
        if len(answer.items) != len(items):
            reason = f"with {len(answer.items)} results for {len(items)} items"
            raise UnexpectedAnswer(response, reason, answer.model_dump())
        return answer

    content = b'{"items":[' + b",".join(items) + b"]}"
    return Call("POST", "/items", read, content=content, headers={"Content-Type": JSON})


def put_item(item: Item, *, if_match: str | None = None) -> Call[ItemsResponse]:
    """Add or replace one item. Raises the item's problem if it failed.

    >>> answer = client.put_item({"item_id": "a3", "title": "Oat milk 64 oz"})
    >>> answer.items[0].item_id, bool(answer.etag)
    ('a3', True)
    """
    return _with_json("POST", "/items", item, reader(ItemsResponse), _condition(if_match))


def list_items(*, cursor: str | None = None, limit: int = 100) -> Call[ItemPage]:
    """One page of all items, in trie order. `all_items` reads all pages.

    >>> page = client.list_items(limit=2)
    >>> len(page.items), page.next_cursor is None
    (2, False)
    """
    params = {"limit": str(limit)} | ({} if cursor is None else {"cursor": cursor})
    return Call("GET", "/items", reader(ItemPage), params=params)


def get_item(item_id: str) -> Call[ShownItem]:
    """The item as it was posted, without null fields. Raises ItemNotFound.

    >>> client.get_item("item-3").item["title"]
    'Thing number 3'
    """
    return Call("GET", path_of(item_id), reader(ShownItem))


def patch_item(
    item_id: str, changes: Mapping[str, Any], *, merge: bool = False, if_match: str | None = None
) -> Call[PatchedItem]:
    """Replace some fields of an item; None removes one. With `merge`, objects are merged (RFC 7396).

    Raises ItemNotFound, and PreconditionFailed if the item is not of the ETag `if_match`.

    >>> shown = client.get_item("item-3")
    >>> client.patch_item("item-3", {"price": 3}, if_match=shown.etag).item["price"]
    3
    """
    headers = {**_condition(if_match), "Content-Type": MERGE_PATCH if merge else JSON}
    return _with_json("PATCH", path_of(item_id), changes, reader(PatchedItem), headers)


def delete_item(item_id: str, *, if_match: str | None = None) -> Call[Deleted]:
    """Delete an item. Raises ItemNotFound.

    A request whose answer was lost is not repeated: the second answer would be ItemNotFound for an item that
    the first one has deleted.

    >>> _ = client.put_item({"item_id": "b1", "title": "Soon gone"})
    >>> client.delete_item("b1").item_id
    'b1'
    """
    headers = _condition(if_match)
    return Call("DELETE", path_of(item_id), reader(Deleted), headers=headers, repeat=Repeat.IF_NOT_BEGUN)


def similar_items(
    item_id: str,
    *,
    limit: int = 10,
    by: Literal["vector", "codes"] | None = None,
    filter: Filter | None = None,
) -> Call[SimilarResponse]:
    """The items with the nearest vectors, or those that share the most leading codes. Raises ItemNotFound.

    Without `by`, by vector where the item has one.

    >>> client.similar_items("item-3", limit=2).item_id
    'item-3'
    """
    params = {"limit": str(limit)} | ({} if by is None else {"by": by})
    if filter is not None:
        params["filter"] = encoded(filter).decode()
    return Call("GET", f"{path_of(item_id)}/similar", reader(SimilarResponse), params=params)


def get_image(item_id: str, *, part: Literal["all", "text", "photo", "kept"] = "all") -> Call[bytes]:
    """What the encoder sees of an item, as PNG; with part="kept" the kept photo, as WebP.

    Raises ItemNotFound, and PictureNotFound if there is none.

    >>> client.get_image("item-3")[1:4]
    b'PNG'
    """
    return Call("GET", f"{path_of(item_id)}/image", read_bytes, params={"part": part})


def put_image(item_id: str, data: bytes, *, if_match: str | None = None) -> Call[PatchedItem]:
    """Give an item its photo: the bytes of a JPEG, a PNG or a WebP. Raises ItemNotFound."""
    headers = {**_condition(if_match), "Content-Type": media_type_of(data)}
    return Call("PUT", f"{path_of(item_id)}/image", reader(PatchedItem), content=bytes(data), headers=headers)


def delete_image(item_id: str, *, if_match: str | None = None) -> Call[PatchedItem]:
    """Take an item's photo away. Raises ItemNotFound."""
    return Call("DELETE", f"{path_of(item_id)}/image", reader(PatchedItem), headers=_condition(if_match))


def send_events(events: Iterable[Event]) -> Call[EventsResponse]:
    """Tell which recommended items users took. Each `event_id` counts once, so it can be sent again.

    >>> page = client.recommend(["item-0"])
    >>> event = {"event_id": "order-7", "request_id": page.request_id, "item_id": page.items[0].item_id}
    >>> client.send_events([event]).accepted
    1
    >>> client.send_events([event]).duplicates
    1
    """
    return _with_json("POST", "/events", {"events": list(events)}, reader(EventsResponse))


def info() -> Call[InfoResponse]:
    """The models, the catalog and the limits of the replica.

    >>> client.info().catalog.name
    'glyphrec'
    """
    return Call("GET", "/info", reader(InfoResponse))


def ready() -> Call[Ready]:
    """Whether the replica takes requests. It is asked once, and a replica that is not ready is no error.

    >>> client.ready().status
    'ready'
    """
    return Call("GET", "/health/ready", reader(Ready, also=frozenset({503})), repeat=Repeat.NEVER)


def live() -> Call[Live]:
    """Whether the process answers. It is asked once.

    >>> client.live().status
    'alive'
    """
    return Call("GET", "/health/live", reader(Live), repeat=Repeat.NEVER)


def bundles() -> Call[BundlesResponse]:
    """The bundle that the replica serves, and the last change of the model. It needs an admin key."""
    return Call("GET", "/admin/bundles", reader(BundlesResponse))


def change_bundle(bundle: str) -> Call[BundlesResponse]:
    """Change to another bundle in the service's folder of bundles. It needs an admin key."""
    return _with_json("POST", "/admin/bundles", {"bundle": bundle}, reader(BundlesResponse))


def any_json(method: str, path: str, body: Any = None) -> Call[Any]:
    """A request whose answer is JSON of any form. `path` is percent-encoded."""
    if body is None:
        return Call(method, path, read_json)
    return _with_json(method, path, body, read_json)


def picture(data: bytes) -> dict[str, str]:
    r"""A photo as the field `image` of an item: the bytes of a JPEG, a PNG or a WebP.

    >>> picture(b"\x89PNG")
    {'data': 'iVBORw=='}
    """
    return {"data": base64.b64encode(data).decode()}


def encoded(value: Any) -> bytes:
    """A value as JSON in UTF-8. Raises ValueError for what JSON does not have, such as NaN."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot be written as JSON: {error}") from error


def path_of(item_id: str) -> str:
    """The path of an item. Every sign of its id that has a meaning in a path is encoded.

    >>> path_of("a/similar"), path_of("..")
    ('/items/a%2Fsimilar', '/items/%2E%2E')
    """
    if not item_id:
        raise ValueError("the id of an item is empty.")
    return f"/items/{quote(item_id, safe='').replace('.', '%2E')}"  # httpx takes `..` for a step up


def media_type_of(data: bytes) -> str:
    """The media type of a photo by its first bytes. Raises ValueError for other formats."""
    for start, media_type in PICTURES.items():
        if data.startswith(start):
            return media_type
    raise ValueError("the photo is not a JPEG, a PNG or a WebP.")


def _with_json(
    method: str,
    path: str,
    body: Any,
    read: Callable[[httpx.Response], T_co],
    headers: Mapping[str, str] | None = None,
) -> Call[T_co]:
    return Call(method, path, read, content=encoded(body), headers={"Content-Type": JSON, **(headers or {})})


def _condition(if_match: str | None) -> dict[str, str]:
    return {} if if_match is None else {"If-Match": if_match}


def _ids(ids: Iterable[str], name: str) -> list[str]:
    if isinstance(ids, str):
        raise TypeError(f"{name} is one text. Give a list of item ids.")
    return list(ids)


def _request_id(request_id: str) -> str:
    if not REQUEST_ID.fullmatch(request_id):
        raise ValueError(
            f"request_id {request_id!r}: give up to 128 visible ASCII characters without quotes."
        )
    return request_id
