"""From a query to the vector that is compared with those of items: a text, a picture, or both.

The query takes the way of an item: its text is drawn as a title, and the tokenizer's graph reads the pixels.
In a bundle with a joint space, the graph gives texts and photos vectors of that space (decision 25).

Reading a text costs more than finding its items, and people search for the same texts again and again. So the
vectors of the last texts are remembered. A text always has the same vector under one tokenizer.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.core.bundle import Manifest
from service.core.drawn_fields import draw_fields
from service.core.item_fields import Vocabulary
from service.core.items import check_item
from service.core.limits import MAX_ITEM_CHARS
from service.core.render import Rendered, item_text, render_text
from service.core.vectors import quantized
from service.errors import InvalidItem, ServiceError
from service.flows.pictures import PictureReader
from service.inference.batching import MicroBatcher, Reservation
from service.inference.runtime import Tokenizer, TokenizerInput
from service.telemetry.stages import Stages

Vector = NDArray[np.int8]  # [dim]


class InvalidQuery(ServiceError):
    """Raised if a query of POST /search cannot be read."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    slug = "invalid-query"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}.")


@dataclass(frozen=True)
class Likeness:
    """What items shall be like."""

    text: str = ""
    image: str = ""  # base64 of a JPEG, a PNG or a WebP

    @property
    def by(self) -> str:
        """Which kind of query it is, for metrics."""
        return "both" if self.text and self.image else "picture" if self.image else "text"


class Encoded(NamedTuple):
    """A query as a vector, and what was seen of its text."""

    vector: Vector  # zero if nothing of the query was recognized
    truncated: bool  # the text is longer than what is read
    missing: str  # characters that the font lacks
    was_remembered: bool = False


def encode_in_batches(tokenizer: Tokenizer) -> Callable[[list[TokenizerInput]], list[Vector]]:
    """The function that the batcher of queries runs."""

    def run(inputs: list[TokenizerInput]) -> list[Vector]:
        return list(quantized(tokenizer.run(inputs).vectors))

    return run


class QueryEncoder:
    """Encodes queries with the tokenizer of one bundle. Its queue is not that of items, which may be long."""

    def __init__(
        self,
        manifest: Manifest,
        pictures: PictureReader,
        batcher: MicroBatcher[TokenizerInput, Vector],
        num_remembered: int,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        """`num_remembered`: texts whose vectors are kept. `vocabulary`: of a tokenizer that reads fields."""
        self._render = manifest.render
        self._spec = manifest.pictures  # None: this tokenizer reads no photos
        self._reads_pixels = manifest.reads_pixels
        self._draws_fields = manifest.draws_fields
        self._vocabulary = vocabulary
        self._pictures = pictures
        self._batcher = batcher
        self._num_remembered = num_remembered
        self._remembered: OrderedDict[str, Encoded] = OrderedDict()  # by text, the last used at the end

    async def encode(
        self, query: Likeness, stages: Stages, deadline: float, reservation: Reservation | None
    ) -> Encoded:
        """The vector of a query. Raises InvalidQuery, Overloaded, TimeoutError."""
        if not query.image and (remembered := self._remembered.get(query.text)) is not None:
            self._remembered.move_to_end(query.text)
            if reservation is not None:
                reservation.release()
            return remembered
        fields, text = self._checked(query)
        kept: bytes | None = None
        if query.image:
            kept = await self._kept(query.image, stages)
        with stages.time("render"):
            rendered, taken = await self._drawn(fields, text, kept)
        is_admitted = reservation is not None and reservation.is_held
        if reservation is not None:
            reservation.release()
        answer = await self._batcher.submit(taken, is_admitted=is_admitted, deadline=deadline)
        stages.add_row(queue=answer.queue_s, encode=answer.run_s)
        encoded = Encoded(answer.result, rendered.truncated, rendered.missing)
        if not query.image:
            self._remember(query.text, encoded)
        return encoded

    async def _drawn(
        self, fields: dict[str, Any], text: str, kept: bytes | None
    ) -> tuple[Rendered, TokenizerInput]:
        """The query as an unknown item: its text, and what the tokenizer takes. Raises InvalidQuery."""
        if self._draws_fields:
            assert self._vocabulary is not None, "the bundle has it"
            drawn = await asyncio.to_thread(draw_fields, fields, self._vocabulary, self._render)
            return drawn.text, TokenizerInput.of_drawn(drawn)
        rendered, seen = await asyncio.to_thread(render_text, text, self._render), None
        if self._spec is not None:
            (seen,) = await self._pictures.pixels([fields], [kept], self._spec, self._render)
        if isinstance(seen, InvalidItem):
            raise InvalidQuery("image", "cannot be read. Send another picture")
        numbers = None if self._vocabulary is None else self._vocabulary.read(fields)
        return rendered, TokenizerInput(rendered.strips, seen, numbers)

    def _remember(self, text: str, encoded: Encoded) -> None:
        # A copy: the vector is a row of its batch, and would keep all of the batch in memory.
        self._remembered[text] = encoded._replace(vector=encoded.vector.copy(), was_remembered=True)
        if len(self._remembered) > self._num_remembered:
            self._remembered.popitem(last=False)

    def _checked(self, query: Likeness) -> tuple[dict[str, Any], str]:
        """The query as an item with a title, and the text that is drawn. Raises InvalidQuery."""
        if not self._reads_pixels:
            raise InvalidQuery(
                "query",
                "cannot be read, as the served bundle reads fields of items. Ask GET /items/{id}/similar for "
                "items like an item",
            )
        if query.image and self._spec is None:
            raise InvalidQuery("image", "cannot be searched for, as the served bundle reads no pictures")
        try:
            fields = check_item({"item_id": "query", "title": query.text}, MAX_ITEM_CHARS)
        except InvalidItem as error:
            raise InvalidQuery("query", str(error).partition(": ")[2]) from error
        text = item_text(fields, self._render)
        if not text and not query.image:
            raise InvalidQuery("query", "has nothing to read. Send a text, or a picture as `image`")
        return fields, text

    async def _kept(self, image: str, stages: Stages) -> bytes:
        try:
            with stages.time("picture"):
                return (await self._pictures.keep(image)).data
        except InvalidItem as error:
            raise InvalidQuery("image", str(error).partition(": ")[2]) from error
