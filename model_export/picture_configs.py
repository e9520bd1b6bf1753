"""The typed configurations of photos: how they are read, how they meet the text, and their joint space."""

from dataclasses import dataclass, field
from typing import Literal

ImageEncoderKind = Literal["efficientnet-lite0", "mobilenet-v2", "clip", "siglip2"]
# How text and photo of an item become one. The first are early fusion: one vector, then one Semantic ID.
#   head     both vectors side by side, through the head, which is trained on co-purchases
#   concat   both vectors side by side, projected to their principal axes; no training
#   sum      a projection of each, trained on co-purchases, and their sum
#   photo    the photo alone, through the head
# The others are late: each of the two is quantized on its own. No service can run them.
#   late_both     the codes of the text, then the codes of the photo
#   late_levels   the first levels from the text, the last one from the photo
#   late_history  the generator reads the codes of both in the history, and generates those of the text
Fusion = Literal["head", "concat", "sum", "photo", "late_both", "late_levels", "late_history"]


@dataclass(frozen=True)
class PicturesConfig:
    """How the photos of items are read, and how they are fused with the text (encoders/fusion.py)."""

    kind: ImageEncoderKind = "efficientnet-lite0"
    checkpoint: str = ""  # a folder or a name on the model hub, for the kinds that need one
    size_px: int = 224  # side of the square that the encoder reads
    fusion: Fusion = "head"
    photo_dim: int = 256  # principal axes of the photos' features that are kept
    weight: float = 0.5  # length of the photo's vector beside the text's, which has length 1
    hidden_share: float = 0.1  # of the items of a step whose photo is hidden; as many lose their text

    @property
    def is_late(self) -> bool:
        """Whether text and photo are quantized apart."""
        return self.fusion.startswith("late_")


CardNeighbors = Literal["collaborative", "content", "none"]


@dataclass(frozen=True)
class CardConfig(PicturesConfig):
    """CARD's visual semantic unit (service/core/unit.py) is read in place of the photo.

    The text is in the unit, so nothing else of it is read.
    """

    size_px: int = 512
    fusion: Fusion = "photo"
    # Who is shown below an item of the catalog. A new item is shown alone (docs/study.md).
    neighbors: CardNeighbors = "collaborative"


@dataclass(frozen=True)
class SpaceConfig:
    """Our joint space: drawn text on one side, the photo on the other (joint_space.py)."""

    num_grams: int = 16_384  # of letters, see CompactConfig
    text_dim: int = 512  # axes of the texts' TF-IDF
    size_px: int = 224  # side of the square that the encoder of photos reads
    dim: int = 128  # of the space
    hidden_dim: int = 512
    dropout: float = 0.3
    ridge: float = 0.3  # of the canonical correlations from which training starts
    temperature: float = 0.07
    batch_size: int = 512
    max_epochs: int = 60
    patience: int = 8  # training stops after this many epochs without a better validation MRR
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    short_share: float = 0.25  # of the pairs of a step that show only the title and the categories


@dataclass(frozen=True)
class JointPicturesConfig(PicturesConfig):
    """Photos as in PicturesConfig. A search compares vectors of a joint space of texts and photos
    (vl_clip/joined.py).
    """

    space: SpaceConfig = field(default_factory=SpaceConfig)
    # A folder that `glyphrec vl-clip` wrote. Empty: the space is learned on the catalog's own pairs.
    space_folder: str = ""
