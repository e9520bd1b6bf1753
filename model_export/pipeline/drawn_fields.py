"""The fields of items as pictures, for FAMAE: each value is drawn, read by the compact reader, and pooled.

The text of an item stands for its id. So new items, rare brands and new categories have features too. Only a
field that an item lacks has none.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_export.configs import FamaePicturesConfig, RunConfig
from model_export.encoders.base import Pooling
from model_export.encoders.choose import make_encoder
from service.core.drawn_fields import text_of
from service.core.item_fields import CATEGORIES, ITEM_ID, Vocabulary
from service.core.render import item_text, render_text, value_text

Features = NDArray[np.float32]


class DrawnFields(NamedTuple):
    """The fields of some items, as the reader sees them."""

    features: Features  # [item, field, feature], 0 where an item has no value
    has_value: NDArray[np.bool_]  # [item, field]


@dataclass(frozen=True)
class FieldDrawer:
    """Draws and reads the fields of a vocabulary."""

    config: RunConfig  # of which `encoder` is a FamaePicturesConfig
    vocabulary: Vocabulary
    pooling: Pooling  # fitted to the texts of the catalog

    def of_items(self, items: Sequence[Mapping[str, Any]]) -> DrawnFields:
        """The fields of items. Each different text is read once."""
        texts = [
            [text_of(item, name, self.vocabulary, self.config.render) for name in self.vocabulary.names]
            for item in items
        ]
        has_value = np.array([[bool(text) for text in row] for row in texts], dtype=bool)
        return DrawnFields(self._features(texts) * has_value[..., None], has_value)

    def of_values(self, items: Sequence[Mapping[str, Any]]) -> list[Features]:
        """The features [value, feature] of the vocabulary's values, field by field. `items` have the ids.

        Row 0 is for what is unknown, and holds zeros.
        """
        by_id = {item[ITEM_ID]: item for item in items}
        found = []
        for name, known in self.vocabulary.numbers.items():
            word = {
                number: value for value, number in known.items()
            }  # the longest path of a level comes last
            texts = [""] + [
                item_text(by_id[str(word[number])], self.config.render)
                if name == ITEM_ID
                else value_text(CATEGORIES, word[number])
                for number in range(1, len(word) + 1)
            ]
            features = self._features([[text] for text in texts])[:, 0]  # [value, feature]
            features[0] = 0
            found.append(features)
        return found

    def _features(self, texts: Sequence[Sequence[str]]) -> Features:
        """The features of texts [row][column] -> [row, column, feature]."""
        encoder_config = self.config.encoder
        assert isinstance(encoder_config, FamaePicturesConfig)
        encoder = make_encoder(self.config.render, encoder_config.reader, self.config.seed)
        different = sorted(_all(texts))
        drawn = [render_text(text, self.config.render).strips for text in different]
        pooled = self.pooling.pool(encoder.read(drawn))  # [text, feature]
        place = {text: row for row, text in enumerate(different)}
        rows = np.array([[place[text] for text in row] for row in texts])  # [row, column]
        result: Features = pooled[rows]
        return result


def _all(texts: Iterable[Iterable[str]]) -> set[str]:
    return {text for row in texts for text in row}
