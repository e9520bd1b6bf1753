"""The bundle's catalogue on its way into Redis: the whole of it if that is new, else only its codes."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import perf_counter

from service.core.bundle import RenderSpec
from service.core.bundle_items import BundledItem
from service.core.render import content_hash, item_text
from service.core.sid import Codes
from service.errors import ItemChanged, ServiceError
from service.flows.indexing import Indexer
from service.store.client import chunks
from service.store.items import ItemStore
from service.store.records import ItemRecord, PutResult

log = logging.getLogger(__name__)

SEED_CHUNK = 1_000
CHUNK = 32  # items read before `pace` may hold the next ones up

Pace = Callable[[float], Awaitable[None]]  # takes the seconds that were spent


async def _at_once(_spent_s: float) -> None:
    pass


async def seed(store: ItemStore, items: Sequence[BundledItem], render: RenderSpec) -> None:
    """Put the whole catalogue of the bundle, in its order, with the codes of the export."""
    for chunk in chunks(items, SEED_CHUNK):
        results = await store.put([(_record(each, render), each.codes) for each in chunk])
        _raise_first(results)
    log.info("put %d items of the bundle into the new catalogue", len(items))


async def read_the_unread(
    store: ItemStore,
    indexer: Indexer | None,
    items: Sequence[BundledItem],
    render: RenderSpec,
    pace: Pace = _at_once,
) -> int:
    """Give codes to the items of Redis that this tokenizer has not read -> how many remain unread.

    Content that the bundle knows takes the codes of the export; anything else is drawn and read by the
    `indexer`, or left for later where there is none. `pace` is awaited after each few items.
    """
    num_read = num_left = 0
    known: dict[str, Codes] | None = None
    async for page in store.unread_items():
        if known is None:  # only now: most starts find nothing unread
            known = {content_hash(item_text(each.item, render)): each.codes for each in items}
        for records in chunks(page, CHUNK):
            started_at = perf_counter()
            codes = _known_codes(records, known, render)
            others = [each for each in records if each.item_id not in codes]
            if indexer is not None and others:
                codes |= zip((each.item_id for each in others), await indexer.read(others), strict=True)
            else:
                num_left += len(others)
            taken = [(each, codes[each.item_id]) for each in records if each.item_id in codes]
            _raise_first(await store.assign(taken))
            num_read += len(taken)
            await pace(perf_counter() - started_at)
    if num_read:
        log.info("gave codes to %d items that this tokenizer had not read", num_read)
    return num_left


def _known_codes(
    records: Sequence[ItemRecord], known: Mapping[str, Codes], render: RenderSpec
) -> dict[str, Codes]:
    """By this tokenizer's own hash of the text: another one's may be of other fields."""
    hashes = {each.item_id: content_hash(item_text(each.item, render)) for each in records}
    return {item_id: known[text] for item_id, text in hashes.items() if text in known}


def _record(each: BundledItem, render: RenderSpec) -> ItemRecord:
    return ItemRecord(each.item_id, content_hash(item_text(each.item, render)), each.item)


def _raise_first(results: Sequence[PutResult | ServiceError]) -> None:
    for result in results:
        # Somebody posted it anew meanwhile, and so has read it already.
        if isinstance(result, ServiceError) and not isinstance(result, ItemChanged):
            raise result
