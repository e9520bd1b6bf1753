"""From the content of items to what the tokenizer takes: drawn texts and photos, or the numbers of fields."""

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from service.core.bundle import Manifest
from service.core.drawn_fields import draw_fields
from service.core.image_field import reference_in
from service.core.item_fields import FieldNumbers, Vocabulary
from service.core.render import Rendered, render_text
from service.core.sid import Codes
from service.core.vectors import packed
from service.errors import InvalidItem
from service.flows.pictures import PictureReader
from service.inference.runtime import NO_STRIPS, Tokenizer, TokenizerInput
from service.store.pictures import PictureStore
from service.store.records import ItemRecord

# A photo takes about as long to encode as so many strips (benchmarks/pictures.py).
PICTURE_STRIPS = 8


class Drawn(NamedTuple):
    """An item as the tokenizer takes it. `input` is the error of an item whose kept picture is damaged."""

    rendered: Rendered | None  # None if the tokenizer reads no pixels
    input: TokenizerInput | InvalidItem


class Tokenized(NamedTuple):
    """What the tokenizer read of one item."""

    codes: Codes
    vector: bytes  # see core/vectors.py


def work_of(item: TokenizerInput) -> int:
    """How much work the item is for the tokenizer, in strips. An item of fields alone is as one strip."""
    return max(1, len(item.strips)) + (0 if item.picture is None else PICTURE_STRIPS)


def tokenize_in_batches(tokenizer: Tokenizer) -> Callable[[list[TokenizerInput]], list[Tokenized]]:
    """The function that the tokenizer's batcher runs."""

    def run(items: list[TokenizerInput]) -> list[Tokenized]:
        tokens = tokenizer.run(items)
        codes = map(tuple, tokens.codes.tolist())
        return [Tokenized(*each) for each in zip(codes, packed(tokens.vectors), strict=True)]

    return run


class ItemDrawer:
    """Draws items for one tokenizer, and reads their fields, as far as it takes them."""

    def __init__(
        self,
        manifest: Manifest,
        store: PictureStore,
        pictures: PictureReader,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        """`vocabulary`: of a tokenizer that reads fields."""
        self._render = manifest.render
        self._spec = manifest.pictures  # None: this tokenizer reads no photos
        self._vocabulary = vocabulary
        self._reads_pixels = manifest.reads_pixels
        self._draws_fields = manifest.draws_fields
        self._store = store
        self._pictures = pictures

    async def kept_of(self, records: Sequence[ItemRecord]) -> dict[str, bytes]:
        """The pictures that these items refer to, if this tokenizer reads pictures and they are kept."""
        wanted = {record.item_id: reference_in(record.item) for record in records}
        ids = [item_id for item_id, reference in wanted.items() if reference is not None]
        if self._spec is None or not ids:
            return {}
        found = await self._store.get_many(ids)
        return {i: each.data for i, each in found.items() if each.reference == wanted[i]}

    async def draw(
        self, records: Sequence[ItemRecord], texts: Sequence[str], kept: Sequence[bytes | None]
    ) -> list[Drawn]:
        """Draw the texts of items, and what the image encoder sees of them if this tokenizer has one.

        `kept` has the kept picture of each item that has one. A tokenizer of fields alone needs neither.
        """
        if not records:
            return []
        if self._draws_fields:
            return await asyncio.to_thread(lambda: [self._drawn(record) for record in records])
        fields = [self._fields(record) for record in records]
        if not self._reads_pixels:
            return [Drawn(None, TokenizerInput(NO_STRIPS, None, each)) for each in fields]
        rendered = await asyncio.to_thread(lambda: [render_text(text, self._render) for text in texts])
        if self._spec is None:
            return [
                Drawn(each, TokenizerInput(each.strips, None, numbers))
                for each, numbers in zip(rendered, fields, strict=True)
            ]
        pixels = await self._pictures.pixels(
            [record.item for record in records], kept, self._spec, self._render
        )
        return [
            Drawn(
                each,
                found if isinstance(found, InvalidItem) else TokenizerInput(each.strips, found, numbers),
            )
            for each, found, numbers in zip(rendered, pixels, fields, strict=True)
        ]

    def _drawn(self, record: ItemRecord) -> Drawn:
        assert self._vocabulary is not None, "the bundle has it"
        drawn = draw_fields(record.item, self._vocabulary, self._render)
        return Drawn(drawn.text, TokenizerInput.of_drawn(drawn))

    def _fields(self, record: ItemRecord) -> FieldNumbers | None:
        return None if self._vocabulary is None else self._vocabulary.read(record.item)
