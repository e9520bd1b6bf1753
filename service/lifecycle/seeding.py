"""The bundle's catalogue on its way into Redis: the whole of it if that is new, else only its codes."""

import gzip
import json
import logging
import math
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from service.core.bundle import RenderSpec
from service.core.render import content_hash, item_text
from service.core.sid import Codes, SidSpec
from service.errors import ContractMismatch, ItemChanged, ServiceError
from service.flows.indexing import Indexer
from service.store.client import chunks
from service.store.items import ItemStore
from service.store.records import ItemRecord, PutResult

log = logging.getLogger(__name__)

SEED_CHUNK = 1_000
CHUNK = 32  # items read before `pace` may hold the next ones up
# Beyond these nobody has exported a file: catalogues shrink to a tenth, the emptiest lines to a hundredth.
MAX_INFLATION = 200
MAX_LINE_BYTES = 16 * 2**20

Pace = Callable[[float], Awaitable[None]]  # takes the seconds that were spent


async def _at_once(_spent_s: float) -> None:
    pass


class BundledItem(NamedTuple):
    """One line of items.jsonl.gz."""

    item_id: str
    codes: Codes
    popularity: float  # interactions in the training data
    item: dict[str, Any]


def read_items(path: Path, spec: SidSpec, num_items: int) -> list[BundledItem]:
    """The exported catalogue, which has `num_items`. Raises ContractMismatch with the line at fault."""
    found: list[BundledItem] = []
    try:
        left = MAX_INFLATION * path.stat().st_size
        with gzip.open(path) as file:
            while line := file.readline(min(left, MAX_LINE_BYTES) + 1):
                where = f"{path}:{len(found) + 1}"
                left -= len(line)
                if left < 0 or len(line) > MAX_LINE_BYTES:
                    raise ContractMismatch(
                        f"{where}: inflates to more than any catalogue does. Export again."
                    )
                if len(found) == num_items:
                    raise ContractMismatch(
                        f"{where}: more items than the manifest's {num_items}. Export again."
                    )
                found.append(_read_item(where, line, spec))
    except (OSError, EOFError, zlib.error) as error:
        raise ContractMismatch(
            f"{path}: not whole after {len(found)} items ({error}). Copy it again, or export again."
        ) from error
    if len(found) != num_items:
        raise ContractMismatch(f"{path}: {len(found)} items, manifest says {num_items}. Export again.")
    return found


def _read_item(where: str, line: bytes, spec: SidSpec) -> BundledItem:
    try:
        return parse_item(line, spec)
    except ValueError as error:
        raise ContractMismatch(f"{where}: not an item of a bundle ({error}). Export again.") from error


def parse_item(line: bytes, spec: SidSpec) -> BundledItem:
    """Raises ValueError where the line is no item with codes of these levels."""
    try:
        raw = json.loads(line.decode("utf-8"))
        item_id, codes, popularity = raw["item_id"], tuple(raw["codes"]), float(raw["popularity"])
        spec.check(codes)
        if not all(type(code) is int for code in codes):
            raise ValueError("a code is no whole number")
        if not (isinstance(item_id, str) and item_id and math.isfinite(popularity)):
            raise ValueError("its item_id or popularity is none")
        return BundledItem(item_id, codes, popularity, {**raw["item"], "item_id": item_id})
    except KeyError as error:
        raise ValueError(f"it has no {error}") from error
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from error


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
