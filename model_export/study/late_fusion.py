"""Late fusion: text and photo are quantized apart, and meet in the Semantic ID or in the generator's input.

arXiv 2601.14697 compares several late forms by letters and does not say what they are. These are ours, named
by what they do. They exist for the study: no service runs them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_export.configs import TreeConfig
from model_export.data.dataset import ItemSequence
from model_export.generators.base import Modules
from model_export.generators.seen_prefixes import ROOT, SeenPrefixes, item_vectors, seen_prefixes
from model_export.generators.tree import TreeGenerator
from model_export.picture_configs import Fusion, PicturesConfig
from model_export.pipeline import stages
from model_export.pipeline.generating import Generated, generate
from model_export.pipeline.run import Run
from model_export.pipeline.stages import Coded
from service.core.graphs import PADDING
from service.core.sid import SidSpec

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
BOTH_LEVELS = (32, 32)  # of each of the two, in late_both: as many codes in all as the default has, and more


@dataclass(frozen=True)
class LateCodes:
    """The codes of a catalog under a late form."""

    spec: SidSpec
    codes: NDArray[np.int64]  # [item, level]  what is generated
    vectors: NDArray[np.float32]  # [item, dim]  behind the codes
    photos: Coded | None  # codes that the history has too; None unless the form is late_history


def is_late(pictures: PicturesConfig | None) -> bool:
    """Whether the configuration fuses late."""
    return pictures is not None and pictures.is_late


def late_codes(run: Run) -> LateCodes:
    """The codes of the configuration's late form. Items may share codes, unless the form is late_history."""
    pictures, levels = run.config.pictures, run.config.sid.levels
    assert pictures is not None
    match pictures.fusion:
        case "late_history":
            text, photos = _coded(run, levels, "text"), _coded(run, levels[:-1], "photo")
            return LateCodes(text.spec, text.codes, text.vectors, photos)
        case "late_both":
            text, photos = _coded(run, BOTH_LEVELS, "text"), _coded(run, BOTH_LEVELS, "photo")
        case _:
            text, photos = _coded(run, levels[:-1], "text"), _coded(run, levels[-1:], "photo")
    return LateCodes(
        SidSpec(levels=(*text.spec.levels, *photos.spec.levels)),
        np.concatenate([text.codes, photos.codes], axis=1),
        np.concatenate([text.vectors, photos.vectors], axis=1),
        None,
    )


def _coded(run: Run, levels: Sequence[int], what: str) -> Coded:
    """The codes of texts or of photos alone."""
    config = run.config
    assert config.pictures is not None
    photo: Fusion = "photo"
    is_generated_alone = what == "text" and config.pictures.fusion == "late_history"
    run = replace(
        run,
        config=replace(
            config,
            sid=SidSpec(levels=tuple(levels)),
            pictures=replace(config.pictures, fusion=photo) if what == "photo" else None,
            collisions=config.collisions if is_generated_alone else "none",
        ),
    )
    return stages.code(run, stages.read(run))


def generate_late(run: Run, found: LateCodes) -> Generated:
    """The trained generator of the form."""
    if found.photos is None:
        return generate(run, found.codes, found.spec, vectors=found.vectors)
    tree = run.config.generator
    assert isinstance(tree, TreeConfig)
    make = partial(_make_tree, run, tree, found, run.split.train)
    inputs = (found.photos.codes, {"late_fusion": VERSION})
    return generate(run, found.codes, found.spec, vectors=found.vectors, make=make, more_inputs=inputs)


def _make_tree(run: Run, tree: TreeConfig, found: LateCodes, train: Sequence[ItemSequence]) -> "PhotoHistory":
    assert found.photos is not None
    seen = np.unique(np.concatenate(train))
    return PhotoHistory(
        found.photos.spec,
        found.photos.codes[seen],
        config=tree,
        spec=found.spec,
        history_length=run.config.history_length,
        seen_codes=found.codes[seen],
        seen_vectors=found.vectors[seen],
    )


class PhotoHistory(TreeGenerator):
    """`tree` whose history has the codes of photos too. The vectors of both prefixes of an item are added.

    It knows the photos of the items that training has seen, by their text's codes, which must be unique.
    """

    photos_of: Tensor  # [row of the last level, level of the photo]

    def __init__(self, photo_spec: SidSpec, seen_photos: NDArray[np.integer[Any]], **tree: Any) -> None:
        """`seen_photos` [item, level]: the photos' codes of the seen items; `tree`: see TreeGenerator."""
        super().__init__(**tree)
        width = tree["config"].width
        self.photo_prefixes: Modules[SeenPrefixes] = Modules(seen_prefixes(photo_spec, seen_photos, width))
        rows = self._rows(torch.from_numpy(np.asarray(tree["seen_codes"], dtype=np.int64)))  # [item]
        photos_of = torch.full((self.prefixes[-1].num_rows + 1, photo_spec.num_levels), PADDING)
        photos_of[rows] = torch.from_numpy(np.asarray(seen_photos, dtype=np.int64))
        self.register_buffer("photos_of", photos_of)

    def _items(self, history: Tensor, hidden: Tensor | None) -> Tensor:
        photos = nn.functional.embedding(self._rows(history.clamp(min=0)), self.photos_of)
        is_known = photos[..., :1] != PADDING
        return super()._items(history, hidden) + item_vectors(self.photo_prefixes, photos) * is_known

    def _rows(self, codes: Tensor) -> Tensor:
        """The row of the last level: codes [..., level] -> [...]"""
        row = torch.full_like(codes[..., 0], ROOT)
        for level, own in enumerate(self.prefixes):
            row = own.rows(row, codes[..., level])
        return row
