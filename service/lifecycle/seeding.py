"""Brings the bundle's items into Redis: all of them into a new catalog, otherwise only their codes."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter

from service.core.bundle import Manifest, RenderSpec
from service.core.bundle_items import BundledItem
from service.core.image_field import names_a_picture, reference_in, without_reference
from service.core.render import content_hash, item_text
from service.errors import ItemChanged, ServiceError
from service.flows.drawing import Tokenized
from service.flows.indexing import Indexer
from service.store.client import chunks
from service.store.items import ItemStore
from service.store.records import ItemRecord, PutResult

log = logging.getLogger(__name__)

SEED_CHUNK = 1_000
CHUNK = 32  # items that are read between two calls of `pace`

Pace = Callable[[float], Awaitable[None]]  # gets the seconds that the last chunk took


async def _at_once(_spent_s: float) -> None:
    pass


async def seed(store: ItemStore, items: Sequence[BundledItem], render: RenderSpec) -> None:
    """Put every item of the bundle into Redis, in the bundle's order, with the codes of the export.

    Raises CatalogInUse if the catalog was put into use meanwhile.
    """
    for chunk in chunks(items, SEED_CHUNK):
        results = await store.seed([(_record(each, render), each.codes) for each in chunk])
        _raise_first(results)


async def read_the_unread(
    store: ItemStore,
    indexer: Indexer | None,
    items: Sequence[BundledItem],
    manifest: Manifest,
    pace: Pace = _at_once,
) -> int:
    """Give codes to the items in Redis that this tokenizer has not read -> number of those left unread.

    Content that the bundle has gets the codes of the export. The `indexer` draws and reads all other content;
    without an indexer it is left for later. `pace` is awaited after each chunk of items.

    A tokenizer that reads fields may know the ids of items. So its codes are those of an item, and not those
    of a content.

    A bundle ships no pictures. If its tokenizer reads pictures, an item with a kept picture is read, although
    the bundle has codes for its text. An item that names a picture, but has none that is kept, is read by its
    text alone until its picture is posted.
    """
    num_read = num_left = num_without = 0
    reads_pictures = manifest.pictures is not None
    known: dict[str, Tokenized] | None = None
    async for page in store.unread_items():
        if known is None:  # hashed only now, as most starts find nothing unread
            known = _tokenized(items, manifest)
        for records in chunks(page, CHUNK):
            started_at = perf_counter()
            codes = _known_of(
                [each for each in records if not (reads_pictures and reference_in(each.item))],
                known,
                manifest,
            )
            others = [each for each in records if each.item_id not in codes]
            if indexer is not None and others:
                codes |= zip((each.item_id for each in others), await indexer.read(others), strict=True)
                num_without += sum(names_a_picture(each.item) for each in others)
            else:
                num_left += len(others)
            taken = [(each, codes[each.item_id]) for each in records if each.item_id in codes]
            _raise_first(
                await store.assign([(replace(each, vector=read.vector), read.codes) for each, read in taken])
            )
            num_read += len(taken)
            await pace(perf_counter() - started_at)
    if num_read:
        log.info("gave codes to %d items that this tokenizer had not read", num_read)
    if num_without and reads_pictures:
        log.warning(
            "%d of them name a picture, but none is kept for them, so they were read by their text alone. "
            "Post their pictures.",
            num_without,
        )
    return num_left


async def give_vectors(
    store: ItemStore, indexer: Indexer, items: Sequence[BundledItem], manifest: Manifest, pace: Pace
) -> int:
    """Give vectors to items that have codes and no vector -> how many got one.

    Such items come from an older release, or from a bundle or file without vectors. Their codes stay.
    """
    num_given = 0
    known: dict[str, Tokenized] | None = None
    async for page in store.items_without_vector():
        if known is None:
            known = _tokenized([each for each in items if each.vector], manifest)
        for records in chunks(page, CHUNK):
            started_at = perf_counter()
            plain = [each for each in records if not reference_in(each.item)]
            found = _known_of(plain, known, manifest)
            others = [each for each in records if each.item_id not in found]
            found |= zip((each.item_id for each in others), await indexer.read(others), strict=True)
            # Without codes: an item whose content has changed meanwhile is left to whoever changed it.
            taken = [(replace(each, vector=found[each.item_id].vector), None) for each in records]
            _raise_first(await store.assign(taken))
            num_given += len(taken)
            await pace(perf_counter() - started_at)
    if num_given:
        log.info("gave vectors to %d items that had none, so that searches find them", num_given)
    return num_given


def _tokenized(items: Sequence[BundledItem], manifest: Manifest) -> dict[str, Tokenized]:
    return {_content_of(each, manifest): Tokenized(each.codes, each.vector) for each in items}


def _known_of(
    records: Sequence[ItemRecord], known: Mapping[str, Tokenized], manifest: Manifest
) -> dict[str, Tokenized]:
    """What the bundle knows of these items, by the content that this tokenizer reads.

    Another tokenizer may draw other fields.
    """
    contents = {each.item_id: _content_of(each, manifest) for each in records}
    return {item_id: known[content] for item_id, content in contents.items() if content in known}


def _content_of(each: BundledItem | ItemRecord, manifest: Manifest) -> str:
    """Items of the bundle and of Redis with the same content have the same codes."""
    of_text = content_hash(item_text(each.item, manifest.render))
    return of_text if manifest.fields is None else f"{of_text} {each.item_id}"


def _record(each: BundledItem, render: RenderSpec) -> ItemRecord:
    item = without_reference(each.item)  # a bundle ships no pictures
    return ItemRecord(each.item_id, content_hash(item_text(item, render)), item, vector=each.vector)


def _raise_first(results: Sequence[PutResult | ServiceError]) -> None:
    for result in results:
        # Somebody has posted the item again meanwhile, so it is read already.
        if isinstance(result, ServiceError) and not isinstance(result, ItemChanged):
            raise result
