"""`glyphrec import --tokenized`: puts items with known codes from a file directly into Redis.

The file is read twice and never kept in memory: first to check all lines, then to put the items. Batches keep
the file's order, so the last line of an id that occurs twice counts. The next batch is read while Redis takes
the previous one. The import may be repeated: items that are there already are `unchanged`.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from service.commands.unused_values import UnusedValues
from service.core.bundle import Manifest, load_bundle
from service.core.bundle_items import parse_item
from service.core.image_field import PictureReference, names_a_picture, split_image, with_reference
from service.core.items import Item, check_item
from service.core.json_lines import LineNotJson, read_json_lines
from service.core.progress import ProgressBar
from service.core.render import content_hash, item_text
from service.core.sid import Codes
from service.errors import (
    GlyphrecError,
    InvalidItem,
    ItemChanged,
    ServiceError,
    SidSpaceFull,
    StoreUnavailable,
)
from service.lifecycle.stores import item_store
from service.settings import Settings
from service.store.client import connect_to_any
from service.store.items import ItemStore
from service.store.picture_records import PictureChange
from service.store.records import ItemRecord, PutResult
from service.store.retry import retry
from service.store.standing import Owner, StandingStore

BATCH = 1_000  # items; several round trips
TURN = 50  # lines that are read before the event loop may handle Redis' answer
MAX_TRIES = 30
FIRST_WAIT_S, MAX_WAIT_S = 1.0, 2.0  # between two tries
MAX_NAMED = 20  # items without a free slot; all are counted, so many are named

AGAIN = "Give the same command again: items are not put twice."


class Line(NamedTuple):
    """One checked line of the file. `number` counts from 1."""

    number: int
    item: Item  # without a picture: a file of items with codes has none
    text: str
    codes: Codes
    vector: bytes  # empty: the file has none

    @property
    def item_id(self) -> str:
        """The id of the item."""
        item_id: str = self.item["item_id"]
        return item_id

    def record(self, kept: PictureReference | None) -> ItemRecord:
        """The item as it is put beside the picture that is kept for it, which stays."""
        found = content_hash(self.text, kept.sha256 if kept else None)
        item = with_reference(self.item, kept)
        return ItemRecord(self.item_id, found, item, PictureChange.none_but(kept), self.vector)


class TokenizedFile:
    """Lines like those of a bundle's items.jsonl.gz, checked as the service would check their items."""

    def __init__(self, path: Path, manifest: Manifest, max_item_chars: int) -> None:
        self._path = path
        self._spec, self._vector_dim = manifest.sid, manifest.vector_dim
        self._render = manifest.render
        self._reads_pictures = manifest.pictures is not None
        self._max_item_chars = max_item_chars

    def __iter__(self) -> Iterator[Line]:
        """All lines. Raises GlyphrecError with the line at fault."""
        try:
            for number, value in read_json_lines(self._path):
                try:
                    yield self._parse(number, value)
                except (ValueError, InvalidItem) as error:
                    where = f"{self._path}:{number}"
                    if (
                        isinstance(value, dict)
                        and "item_id" in value
                        and not {"codes", "item"} & value.keys()
                    ):
                        raise GlyphrecError(
                            f"{where}: an item without codes. Import such a file without --tokenized: a "
                            "service reads the items."
                        ) from None
                    raise _not_an_item(where, str(error)) from None
        except LineNotJson as error:
            raise _not_an_item(error.where, error.problem) from None

    def _parse(self, number: int, value: Any) -> Line:
        read = parse_item(value, self._spec, self._vector_dim)
        fields, wish = split_image(read.item)
        if wish.kind == "replace":
            raise InvalidItem("image", "has bytes. Import pictures without --tokenized: a service reads them")
        item = check_item(fields, self._max_item_chars)
        text = item_text(item, self._render)
        if not text and not (self._reads_pictures and names_a_picture(item)):
            raise InvalidItem("item", "has no text")  # a later tokenizer must read the text
        return Line(number, item, text, read.codes, read.vector)


def _not_an_item(where: str, problem: str) -> GlyphrecError:
    return GlyphrecError(
        f"{where}: not an item with codes of this bundle: {problem}. Give the bundle that read it, or lines "
        "like those of its items.jsonl.gz."
    )


async def run(path: Path, settings: Settings) -> Counter[str]:
    """Import a file. Returns how many items were created, moved, updated, unchanged, failed.

    Raises GlyphrecError. Nothing was put if a line is at fault or another tokenizer is served.
    """
    if settings.redis_url is None:
        raise GlyphrecError("Which Redis? Set REDIS_URL, or give --redis-url.")
    if not path.is_file():  # noqa: ASYNC240  nothing else runs in this loop
        raise GlyphrecError(f"{path}: not a file. It is read twice, so a pipe will not do.")
    manifest = load_bundle(settings.bundle).manifest
    redis = await connect_to_any(settings.redis_url)
    try:
        store = item_store(redis, settings, manifest)
        await store.check_server()
        name = settings.bundle.resolve().name
        mine = Owner(manifest.tokenizer_id, name, manifest.data_name, manifest.created_at)
        standings = StandingStore(redis, catalog=settings.catalog, mine=mine)
        return await _Import(path, manifest, store, standings, settings).run()
    finally:
        await redis.aclose()


class _Import:
    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        store: ItemStore,
        standings: StandingStore,
        settings: Settings,
    ) -> None:
        self._path = path
        self._standings = standings
        self._file = TokenizedFile(path, manifest, settings.max_item_chars)
        self._store = store
        self._catalog = settings.catalog
        self._tokenizer_id = manifest.tokenizer_id
        self._filter_fields = settings.filter_fields
        self._counts: Counter[str] = Counter()
        self._unused = UnusedValues()
        self._num_without_vector = 0

    async def run(self) -> Counter[str]:
        await self._check_served()
        num_items = sum(1 for _ in ProgressBar(self._file, desc=f"checking {self._path.name}", unit=" items"))
        with ProgressBar(total=num_items, desc=f"importing {self._path.name}", unit=" items") as bar:
            try:
                await self._put_all(bar)
            except ServiceError as error:
                raise GlyphrecError(f"{error} {bar.n} of {num_items} items were put. {AGAIN}") from error
        self._unused.tell()
        if self._num_without_vector and self._store.vectors.dim is not None:
            print(
                f"{self._num_without_vector} lines have no vector, so no search finds these items until a "
                "replica gives them one. Restart a replica: it does so in the background.",
                file=sys.stderr,
            )
        # Only now: a tokenizer becomes active when the whole file is in.
        if (standing := await self._standings.look()).active is None:
            await self._standings.settle(standing)
        return self._counts

    async def _put_all(self, bar: ProgressBar) -> None:
        lines = iter(self._file)
        batch = await _take(lines)
        while batch:
            results, following = await asyncio.gather(self._put(batch), _take(lines))
            # After the batch: the served tokenizer may have changed meanwhile.
            await self._check_served()
            self._count(batch, results)
            bar.update(len(batch))
            batch = following

    async def _put(self, batch: Sequence[Line]) -> list[PutResult | ServiceError]:
        """Put a batch. Retries while Redis does not take all of it."""

        async def attempt() -> list[PutResult | ServiceError]:
            present = await self._store.held_with_pictures([line.item_id for line in batch])
            records = [(line.record(present[line.item_id].picture), line.codes) for line in batch]
            results = await self._store.put(records)
            for each in results:
                if isinstance(each, StoreUnavailable | ItemChanged):  # its picture was changed
                    raise each
            return results

        return await retry(
            attempt,
            on=(StoreUnavailable, ItemChanged),
            first_s=FIRST_WAIT_S,
            max_s=MAX_WAIT_S,
            max_tries=MAX_TRIES,
        )

    def _count(self, batch: Sequence[Line], results: Sequence[PutResult | ServiceError]) -> None:
        for line, result in zip(batch, results, strict=True):
            if isinstance(result, PutResult):
                self._counts[result.status] += 1
                self._num_without_vector += not line.vector
                for value in self._filter_fields.unused_in(line.item):
                    self._unused.add(f"{self._path}:{line.number}", value.field, value.reason)
                continue
            if not isinstance(result, SidSpaceFull):
                raise result
            self._counts["failed"] += 1
            if self._counts["failed"] <= MAX_NAMED:
                ProgressBar.write(f"{self._path}:{line.number}: {line.item_id}: {result}", file=sys.stderr)

    async def _check_served(self) -> None:
        """Raise GlyphrecError if another tokenizer is served: these codes are not its codes."""
        served = (await self._standings.look()).whose(self._tokenizer_id)
        if served not in (None, self._tokenizer_id):
            done = f" {self._counts.total()} items were put before." if self._counts else ""
            raise GlyphrecError(
                f"The catalog {self._catalog!r} is served with the tokenizer {served}, and the bundle has "
                f"{self._tokenizer_id}.{done} Import the served tokenizer's codes with its bundle, or let a "
                "service read the items: `glyphrec import` without --tokenized."
            )


async def _take(lines: Iterator[Line]) -> list[Line]:
    """The next batch; empty at the end. Gives other tasks a turn while it reads."""
    batch: list[Line] = []
    while len(batch) < BATCH and (part := list(islice(lines, TURN))):
        batch += part
        await asyncio.sleep(0)
    return batch
