"""The typed configurations of VL-CLIP's steps (arXiv 2507.17080). The paper names none of these numbers."""

from dataclasses import dataclass, field
from typing import Literal

from model_export.picture_configs import PicturesConfig, SpaceConfig
from service.core.bundle import RenderSpec

# Texts are read to their ends. A tokenizer reads fewer strips, and a long description is cut there.
RENDER = RenderSpec(max_strips=16)

# How the product is found in its photo.
#   none       the whole photo is read
#   classes    maps of ImageNet's classes that stand for the product type (class_maps.py)
#   regions    regions compared with the phrase in the learned space (regions.py)
#   detector   a zero-shot detector from a folder or the model hub, such as Grounding DINO (detector.py)
GroundingWay = Literal["none", "classes", "regions", "detector"]
# What is looked for: the last level of an item's categories, or the whole text of the item.
Phrase = Literal["type", "text"]


@dataclass(frozen=True)
class GroundingConfig:
    """How a photo is cropped to its product (grounding.py)."""

    way: GroundingWay = "none"
    checkpoint: str = ""  # a folder or a name on the model hub, for the detector
    phrase: Phrase = "type"
    threshold: float | None = None  # a box below this confidence is not used; None: that of the way
    margin: float = 0.05  # of the box's sides, added on each side
    size_px: int = 384  # side of the square that class maps and regions read


@dataclass(frozen=True)
class ClipConfig:
    """CLIP's towers from a checkpoint, fine-tuned on pairs (clip_space.py)."""

    checkpoint: str  # a folder or a name on the model hub
    batch_size: int = 128
    max_epochs: int = 10  # 0: the checkpoint as it is
    patience: int = 2
    learning_rate: float = 1e-5
    weight_decay: float = 0.1


@dataclass(frozen=True)
class VlClipConfig:
    """One run of the pipeline (run.py)."""

    space: SpaceConfig | ClipConfig = field(default_factory=SpaceConfig)
    grounding: GroundingConfig = field(default_factory=GroundingConfig)
    seed: int = 0
    validation_share: float = 0.1  # of the pairs that decide when the training stops
    test_share: float = 0.2  # of a catalog that is its own source of pairs
    num_cluttered: int = 400  # test photos that are also shown beside another product; 0: none
    only_clutter: bool = False  # these alone are grounded, and nothing is learned from crops


@dataclass(frozen=True)
class VlClipPictures(PicturesConfig):
    """For the study: Semantic IDs from the vectors of text and photo in our joint space.

    The space is trained on the catalog's own pairs. No service can run it.
    """

    space: SpaceConfig = field(default_factory=SpaceConfig)
    grounding: GroundingConfig = field(default_factory=GroundingConfig)
