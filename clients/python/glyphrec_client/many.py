"""What takes several requests: all pages of a listing, and items in batches. Nothing here sends.

A flow is a generator. It yields a Call and gets back its answer, or the error of it. It yields a Found for
each value that the caller gets. So a flow is written once for both clients.
"""

import json
from collections.abc import Generator, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from glyphrec_client.calls import Call, encoded, info, list_items, put_encoded
from glyphrec_client.inputs import Item
from glyphrec_client.models import ItemResult, ItemsResponse, Problem, StoredItem
from glyphrec_client.problems import BodyTooLarge

T = TypeVar("T")

BODY_ROOM = len(b'{"items":[]}')  # bytes of a body around its items


class Found(Generic[T]):
    """A value for the caller."""

    def __init__(self, value: T) -> None:
        self.value = value


Flow = Generator[Call[Any] | Found[T], Any, None]


class Limits(NamedTuple):
    """How much one request may have."""

    num_items: int
    num_bytes: int


def all_items(*, page_size: int = 100) -> Flow[StoredItem]:
    """Every stored item, in trie order. A page is asked for when the one before it is used up.

    >>> len(list(client.all_items(page_size=7))) == client.info().catalog.items
    True
    """
    cursor: str | None = None
    while True:
        page = yield list_items(cursor=cursor, limit=page_size)
        for item in page.items:
            yield Found(item)
        cursor = page.next_cursor
        if cursor is None:
            return


def put_many(items: Iterable[Item], *, batch: int | None = None) -> Flow[ItemResult]:
    """Add or replace any number of items -> one result for each, in their order.

    Each request has as many items as the service takes, or at most `batch`. A request is sent when its
    results are wanted, so nothing is posted unless the results are read. If a request fails, its error is
    raised; the items of the results so far are stored. The same items can be given again: what is there
    already is `unchanged`. An item that is too large for any request is a result that failed.

    >>> items = ({"item_id": f"c{n}", "title": f"Cup {n} oz"} for n in range(5))
    >>> [result.status for result in client.put_many(items, batch=2)]
    ['created', 'created', 'created', 'created', 'created']
    """
    if batch is not None and batch < 1:
        raise ValueError(f"batch is {batch}. At least one item must be in a request.")
    found = (yield info()).limits
    at_most = found.items_per_request if batch is None else min(batch, found.items_per_request)
    for each in batches(items, Limits(at_most, found.body_bytes)):
        try:
            answer: ItemsResponse = yield put_encoded(each)
        except BodyTooLarge as error:
            if len(each) > 1:
                raise  # the limit is another than the service has told
            yield Found(_too_large(each[0], error))
            continue
        for result in answer.items:
            yield Found(result)


def batches(items: Iterable[Item], limits: Limits) -> Iterator[list[bytes]]:
    """The items as JSON, in order: as many in a batch as the limits allow, and at least one.

    Only one batch is in memory.
    """
    batch: list[bytes] = []
    num_bytes = BODY_ROOM
    for item in items:
        data = encoded(item)
        size = len(data) + 1  # and a comma
        if batch and (len(batch) == limits.num_items or num_bytes + size > limits.num_bytes):
            yield batch
            batch, num_bytes = [], BODY_ROOM
        batch.append(data)
        num_bytes += size
    if batch:
        yield batch


def _too_large(item: bytes, error: BodyTooLarge) -> ItemResult:
    item_id = json.loads(item).get("item_id")
    return ItemResult(
        item_id=item_id if isinstance(item_id, str) else None,
        status="failed",
        semantic_id=None,
        codes=None,
        truncated=None,
        missing_characters=None,
        unused_values=[],
        error=Problem.model_validate(error.document),
    )
