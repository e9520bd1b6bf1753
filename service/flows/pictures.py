"""Decodes pictures in threads of their own, few at once and within a time, and makes the encoder's pixels.

A thread cannot be ended. So a picture that takes too long keeps its thread until the decoder is done, and
the limits of core/pictures.py bound how long that can be.
"""

import asyncio
import base64
import binascii
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.core.bundle import PictureSpec, RenderSpec
from service.core.encoder_view import encoder_view
from service.core.pictures import KeptPicture, keep_picture
from service.errors import InvalidItem
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


class PictureReader:
    """All pictures that this process decodes go through one reader."""

    def __init__(
        self, *, threads: int, max_bytes: int, max_pixels: int, timeout_s: float, metrics: Metrics
    ) -> None:
        """`timeout_s`: how long one picture may take, without its wait for a thread."""
        self._max_bytes, self._max_pixels = max_bytes, max_pixels
        self._timeout_s = timeout_s
        self._metrics = metrics
        self._free = asyncio.Semaphore(threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="picture")

    @property
    def max_bytes(self) -> int:
        """How many bytes one picture may have."""
        return self._max_bytes

    async def keep(self, data: bytes | str) -> KeptPicture:
        """The canonical picture of the bytes, or of their base64. Raises InvalidItem with the reason."""
        await self._free.acquire()
        started_at = perf_counter()
        future = asyncio.get_running_loop().run_in_executor(self._pool, self._keep, data)
        # The thread is free when the decoder is done, which may be after this caller has given up.
        future.add_done_callback(lambda _: self._free.release())
        try:
            kept = await asyncio.wait_for(asyncio.shield(future), self._timeout_s)
        except TimeoutError:
            self._metrics.pictures.labels("too_slow").inc()
            future.add_done_callback(lambda late: late.exception())  # nobody else asks for it
            raise InvalidItem(
                "image",
                f"took longer than {self._timeout_s:g} s to decode. Send a smaller or simpler picture",
            ) from None
        except InvalidItem:
            self._metrics.pictures.labels("refused").inc()
            raise
        self._metrics.pictures.labels("kept").inc()
        self._metrics.picture_seconds.labels("decode").observe(perf_counter() - started_at)
        return kept

    async def pixels(
        self,
        items: Sequence[Mapping[str, Any]],
        kept: Sequence[bytes | None],
        spec: PictureSpec,
        render: RenderSpec,
    ) -> list[NDArray[np.uint8] | InvalidItem | None]:
        """What the encoder sees of each item: [size, size, 3], or the error of a damaged kept picture."""
        if spec.shows == "photo" and not any(kept):
            return [None] * len(items)
        started_at = perf_counter()
        found = await asyncio.to_thread(
            lambda: [_seen(*each, spec, render) for each in zip(items, kept, strict=True)]
        )
        num_pictures = sum(each is not None for each in found)
        for _ in range(num_pictures):
            self._metrics.picture_seconds.labels("pixels").observe(
                (perf_counter() - started_at) / num_pictures
            )
        return found

    def stop(self) -> None:
        """Start no more decoders."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _keep(self, data: bytes | str) -> KeptPicture:
        raw = self._decoded(data) if isinstance(data, str) else data
        return keep_picture(raw, max_bytes=self._max_bytes, max_pixels=self._max_pixels)

    def _decoded(self, text: str) -> bytes:
        if text.startswith("data:"):
            raise InvalidItem(
                "image", "has a `data` that is a data: URL. Send only the base64 after its comma"
            )
        if len(text) // 4 * 3 > self._max_bytes + 3:
            raise InvalidItem(
                "image", f"has over {self._max_bytes} bytes, which is the limit. Send a smaller picture"
            )
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidItem("image", f"has a `data` that is not base64 ({error})") from None


def _seen(
    item: Mapping[str, Any], kept: bytes | None, spec: PictureSpec, render: RenderSpec
) -> NDArray[np.uint8] | InvalidItem | None:
    try:
        return encoder_view(item, kept, spec, render)
    except InvalidItem as error:
        log.warning("a kept picture cannot be read: %s", error)
        return error
