"""What the pipeline needs of a catalog: texts, product type and photo of each item that has them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_export.data.dataset import Dataset
from model_export.data.photos import kept_of
from model_export.vl_clip.text_reader import product_type, short_spec
from service.core.bundle import RenderSpec
from service.core.pictures import open_kept
from service.core.render import item_text
from service.errors import GlyphrecError


@dataclass(frozen=True)
class PairedItems:
    """The items of a data set that have a text and a photo, in the order of the data set."""

    dataset: Dataset
    items: NDArray[np.int64]  # [pair] places in the data set
    texts: list[str]  # [pair]
    short_texts: list[str]  # [pair]  title and categories, or the text where both are missing
    types: list[str]  # [pair]

    def __len__(self) -> int:
        return len(self.items)

    def some(self, places: Sequence[int] | NDArray[np.int64]) -> "PairedItems":
        """Only these pairs, in this order."""
        chosen = [int(place) for place in places]
        return PairedItems(
            self.dataset,
            self.items[chosen],
            [self.texts[place] for place in chosen],
            [self.short_texts[place] for place in chosen],
            [self.types[place] for place in chosen],
        )

    def with_texts(self, texts: Sequence[str]) -> "PairedItems":
        """The same pairs with other texts [pair]."""
        assert len(texts) == len(self)
        return PairedItems(self.dataset, self.items, list(texts), self.short_texts, self.types)

    def hashes(self) -> list[str]:
        """SHA-256 of each photo's bytes [pair]."""
        return [self.dataset.image_hashes[int(item)] for item in self.items]

    def photo(self, pair: int) -> Image.Image | None:
        """The photo as a service keeps it. None if it cannot be used."""
        kept = kept_of(self.dataset, int(self.items[pair]))
        return None if kept is None else open_kept(kept)


def paired_items(dataset: Dataset, render: RenderSpec) -> PairedItems:
    """The items with both. Raises GlyphrecError if there are fewer than two."""
    read_short = partial(item_text, spec=short_spec(render))
    places, texts, shorts, types = [], [], [], []
    for place in sorted(dataset.images):
        item = dataset.items[place]
        if text := item_text(item, render):
            places.append(place)
            texts.append(text)
            shorts.append(read_short(item) or text)
            types.append(product_type(item))
    if len(places) < 2:
        raise GlyphrecError(
            f"{dataset.name}: {len(places)} items have both a text and a photo, but pairs of them are what "
            "the joint space learns from. Give items an `image`, the path of a JPEG, PNG or WebP file."
        )
    return PairedItems(dataset, np.array(places, np.int64), texts, shorts, types)


def without_copies(pairs: PairedItems, kept: PairedItems) -> PairedItems:
    """The pairs that share neither id nor text nor photo with those of `kept`."""
    ids = {kept.dataset.item_ids[int(item)] for item in kept.items}
    texts, photos = set(kept.texts), set(kept.hashes())
    item_ids, hashes = pairs.dataset.item_ids, pairs.hashes()
    return pairs.some(
        [
            place
            for place in range(len(pairs))
            if item_ids[int(pairs.items[place])] not in ids
            and pairs.texts[place] not in texts
            and hashes[place] not in photos
        ]
    )
