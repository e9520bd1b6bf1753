"""The typed configurations of a run. A function returns each named run. Derive others with `replace`."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from model_export.picture_configs import CardConfig, JointPicturesConfig, PicturesConfig
from model_export.ranker_config import ParameterizationKind, RankerConfig
from service.core.bundle import RenderSpec
from service.core.sid import SidSpec


@dataclass(frozen=True)
class CompactConfig:
    """Our own small reader (encoders/compact/reader.py), and the letter grams pooled from its frames
    (encoders/compact/letter_grams.py).
    """

    num_grams: int = 16_384  # number of hashed runs of letters
    feature_dim: int = 320  # dimensions of the SVD of the TF-IDF table


@dataclass(frozen=True)
class PpOcrConfig:
    """Frozen PP-OCRv6 (encoders/pp_ocr.py) and the visual words pooled from its frames
    (encoders/visual_words.py).
    """

    projection_dim: int = 32  # dimensions of a projected spike frame, from which windows are made
    window: int = 4  # consecutive spikes in one visual word
    num_words: int = 4096  # k-means centroids of windows
    word_dim: int = 256  # dimensions of the SVD of the TF-IDF table
    stats_dim: int = 64  # dimensions of the whitened mean and deviation of the spike frames
    max_fit_items: int = 4000  # the projection, the gate and the centroids are fitted on these items' frames


HubEncoderKind = Literal["donut", "trocr", "deepseek-ocr-2"]


@dataclass(frozen=True)
class HubEncoderConfig:
    """A frozen encoder of a `transformers` checkpoint (encoders/hub/)."""

    kind: HubEncoderKind
    checkpoint: str  # a folder, or a name on the model hub
    strips_per_run: int = 4  # read at once; DeepSeek-OCR-2 needs some gigabytes for each full page


@dataclass(frozen=True)
class MiniLmConfig:
    """all-MiniLM-L6-v2 on the text itself (encoders/minilm.py), to compare pictures with. No service can run
    it.
    """


@dataclass(frozen=True)
class FamaeConfig:
    """FAMAE (encoders/famae.py; ReSID, 2026): vectors learnt from purchases and fields.

    It reads fields and no pixels. The vectors go to the quantizer as they are, without the head.
    """

    # Beside the item's id: "brand", "categories.2" for a level, or any field. (): chosen by the data
    # (data/item_fields.py).
    fields: tuple[str, ...] = ()
    width: int = 128  # of each field's embeddings
    num_layers: int = 2
    num_heads: int = 4
    ffn_dim: int = 512
    dropout: float = 0.1
    history_length: int = 31
    max_epochs: int = 500
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    patience: int = 3  # training stops after this many epochs without a better mean of both diagnostics
    max_validation_users: int = 2000


@dataclass(frozen=True)
class FamaePicturesConfig(FamaeConfig):
    """FAMAE with each field read as a picture (pipeline/drawn_fields.py), in place of a table of its values.

    The item's text stands for its id. So new items and new values have vectors.
    """

    reader: CompactConfig = field(default_factory=CompactConfig)


@dataclass(frozen=True)
class HeadConfig:
    """The head trained on co-purchase pairs of the training part (encoders/head.py)."""

    vector_dim: int = 128
    hidden_dim: int = 512
    window: int = 3  # two items are a pair if they are at most this far apart in a sequence
    num_epochs: int = 8
    max_steps: int = 3000  # 0: no training; the head projects to the principal axes
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    temperature: float = 0.07
    dropout: float = 0.3


@dataclass(frozen=True)
class QuantizerConfig:
    """RQ-VAE (quantizers/rq_vae.py; Lee et al., 2022; TIGER, Rajput et al., 2023)."""

    hidden_dims: tuple[int, ...] = (256, 128)
    latent_dim: int = 32
    num_epochs: int = 200
    batch_size: int = 1024
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    commitment: float = 0.25
    revive_every_epochs: int = 10
    settle_epochs: int = 60  # at the end; no code is revived in these epochs


@dataclass(frozen=True)
class RqKMeansConfig:
    """Residual k-means (quantizers/rq_kmeans.py)."""

    balanced: bool = False  # every code of a level gets the same number of items
    num_starts: int = 4  # k-means runs at each level, of which the best is used
    balanced_rounds: int = 30  # at most this many updates of the balanced centroids


@dataclass(frozen=True)
class LetterConfig:
    """LETTER (quantizers/letter.py; Wang et al., 2024).

    It is an RQ-VAE whose loss also has collaborative vectors and code diversity.
    """

    rq_vae: QuantizerConfig = field(default_factory=QuantizerConfig)
    alpha: float = 0.02  # weight of the alignment with collaborative vectors
    beta: float = 1e-4  # weight of the diversity of codewords
    num_groups: int = 10  # groups of codewords; the loss pulls the codewords of a group together
    regroup_every_epochs: int = 5


Transform = Literal["kumaraswamy", "logistic"]


@dataclass(frozen=True)
class FlattenedConfig:
    """A quantizer on latents that a transform has flattened (quantizers/flattened.py; CARD, 2026)."""

    quantizer: QuantizerConfig | RqKMeansConfig | LetterConfig = field(default_factory=QuantizerConfig)
    transform: Transform = "kumaraswamy"
    # The two weights in the loss count for RQ-VAE and LETTER.
    consistency: float = 1.0  # of the distance of h^-1(h(z)) from z
    penalty: float = 1.0  # of sums of codewords that no item of the training has


@dataclass(frozen=True)
class GaoqConfig:
    """GAOQ (quantizers/gaoq.py; ReSID, 2026): a tree of balanced clusters, whose codes mean directions."""

    num_starts: int = 3  # balanced k-means runs at each node of the tree, of which the best is used
    max_rounds: int = 30  # at most this many updates of the centroids of a run


@dataclass(frozen=True)
class ReadableConfig:
    """A field of the item as its first code, and learnt codes below it (quantizers/readable.py)."""

    quantizer: QuantizerConfig | RqKMeansConfig | LetterConfig | GaoqConfig = field(
        default_factory=QuantizerConfig
    )
    # "category": the deepest level of the category whose values fit into the first codes; "brand",
    # "categories.2" or any field. If it has more values than there are codes, the most frequent have one.
    field: str = "category"


AnyQuantizerConfig = (
    QuantizerConfig | RqKMeansConfig | LetterConfig | FlattenedConfig | GaoqConfig | ReadableConfig
)


@dataclass(frozen=True)
class TreeConfig:
    """generators/tree.py: a causal transformer over items, with one position per item."""

    width: int = 64
    num_layers: int = 2
    num_heads: int = 2
    ffn_dim: int = 256
    dropout: float = 0.5
    has_bonus: bool = True  # each prefix seen in training has a vector of its own that scores it
    hidden_share: float = 0.05  # share of the items that count as unseen in a step, drawn anew each step
    start_scale: float = 1.0  # prefixes start as means of item vectors of this length; 0: they start as noise
    likeness: float = 12.0  # weight of the cosine in likeness.py, beside the learnt score; 0: no likeness
    recency: float = 0.5  # factor of likeness for each step into the past


@dataclass(frozen=True)
class HashedTreeConfig(TreeConfig):
    """generators/hashed_history.py: `tree` that embeds the items of a history in another way."""

    history: ParameterizationKind = "plain-sum"
    items_per_row: float = 1.0  # of the table, for so many of the items in training


@dataclass(frozen=True)
class TigerConfig:
    """generators/tiger.py: T5 encoder-decoder over code tokens (TIGER, NeurIPS 2023)."""

    # "codes": the encoder reads one token per code of the history. "items": one vector per item.
    reads: Literal["codes", "items"] = "codes"
    width: int = 128
    num_layers: int = 4  # of the encoder and of the decoder
    num_heads: int = 6
    head_dim: int = 64
    ffn_dim: int = 1024
    dropout: float = 0.1
    temperature: float = 1.0  # of the training loss alone; below 1, likely wrong codes weigh more


@dataclass(frozen=True)
class SasRecConfig:
    """generators/sasrec.py: a causal transformer over items without codes (SASRec, arXiv 1808.09781)."""

    width: int = 64
    num_layers: int = 2
    num_heads: int = 1
    ffn_dim: int = 64
    dropout: float = 0.5


@dataclass(frozen=True)
class TrainingConfig:
    """The loop that trains a generator (generators/training.py)."""

    max_epochs: int = 60
    max_steps: int = 100_000
    batch_positions: int = 2048  # of all windows of a step, with padding, so steps cost about the same
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 100
    clip_norm: float = 1.0
    patience: int = 5  # training stops after this many validations without a better item-level NDCG@10
    validate_every_epochs: float = 1.0
    max_validation_users: int = 2000
    time_limit_s: float = 6 * 3600.0


@dataclass(frozen=True)
class OpinionsConfig:
    """How the opinions of a search are weighed against each other (pipeline/opinions.py)."""

    content_dim: int = 64  # the first axes of the encoder's features, which likeness may compare
    text_dim: int = 128  # the first axes of the texts' TF-IDF, which likeness may compare
    max_dim: int = 192  # of the vectors that likeness compares: the axes that keep most of all three
    num_candidates: int = 200  # of a user, between which the weights decide
    max_users: int = 2000  # validation users whose targets decide
    max_scores: int = 20_000_000  # users times items: fewer users decide if the catalog is large


@dataclass(frozen=True)
class RunConfig:
    """The configuration of one run, from the drawing of items to the precision of the graph."""

    name: str
    sid: SidSpec
    generator: TreeConfig | TigerConfig | SasRecConfig
    seed: int = 0
    render: RenderSpec = field(default_factory=RenderSpec)
    encoder: CompactConfig | PpOcrConfig | HubEncoderConfig | MiniLmConfig | FamaeConfig = field(
        default_factory=CompactConfig
    )
    pictures: PicturesConfig | None = None  # None: only the text is read
    head: HeadConfig = field(default_factory=HeadConfig)
    quantizer: AnyQuantizerConfig = field(default_factory=QuantizerConfig)
    collisions: Literal["none", "sinkhorn", "zcr", "suffix"] = "zcr"
    training: TrainingConfig = field(default_factory=TrainingConfig)
    # For `tree` alone. None: the generator searches as it was trained, and counts have no say.
    opinions: OpinionsConfig | None = None
    history_length: int = 20
    beam_limit: int = 400
    precision: Literal["float32", "int8"] = "float32"  # of the recommender; int8 is used if its answers agree


@dataclass(frozen=True)
class RankedRunConfig(RunConfig):
    """A run that also trains a ranker, the third graph of a bundle."""

    ranker: RankerConfig = field(default_factory=RankerConfig)


def with_ranker(config: RunConfig, ranker: RankerConfig | None) -> RunConfig:
    """The same run with another ranker beside its generator, or with none."""
    same = {field.name: getattr(config, field.name) for field in fields(RunConfig)}
    return RunConfig(**same) if ranker is None else RankedRunConfig(**same, ranker=ranker)


def base() -> RunConfig:
    """Full size, with the default generator."""
    return RunConfig(
        name="base",
        sid=SidSpec(levels=(64, 64, 32)),
        generator=TreeConfig(),
        training=TrainingConfig(max_epochs=40, learning_rate=2e-3, validate_every_epochs=2.0, patience=4),
        opinions=OpinionsConfig(),
        precision="int8",
    )


def demo() -> RunConfig:
    """The configuration of `make demo`, which takes minutes on two CPU cores.

    The next item of a household depends more on popularity than on content. Content only slows a short
    training down, so the generator starts from noise and is trained without likeness.
    """
    return replace(
        base(),
        name="demo",
        head=HeadConfig(max_steps=400),
        # Popular items are near each other, and with RQ-VAE they collide.
        quantizer=RqKMeansConfig(balanced=True),
        generator=TreeConfig(dropout=0.2, start_scale=0.0, likeness=0.0),
        training=TrainingConfig(
            max_epochs=40,
            max_steps=1000,
            batch_positions=3200,
            learning_rate=2e-3,
            validate_every_epochs=2.0,
            max_validation_users=1000,
        ),
        precision="float32",  # at width 64 int8 saves little
        history_length=200,  # the next item is never an earlier one, so the model sees many
    )


def tiger_base() -> RunConfig:
    """TIGER at the size of the papers: T5 with 4+4 layers and d=128. It needs a GPU or much time on a CPU."""
    return replace(
        base(), name="tiger-base", generator=TigerConfig(), training=TrainingConfig(), opinions=None
    )


def pp_ocr_base() -> RunConfig:
    """`base` with PP-OCRv6 instead of the compact reader. Reading costs ten times as much.

    It is for text that the compact reader was not trained on.
    """
    return replace(base(), name="pp-ocr-base", encoder=PpOcrConfig())


def donut_base() -> RunConfig:
    """`base` with Donut's encoder, which reads a page per item. The checkpoint comes from the model hub."""
    page = RenderSpec(height_px=512, width_px=384, lines_per_strip=32, max_strips=1, squeeze=1.0)
    return _read_by("donut-base", "donut", "naver-clova-ix/donut-base", page)


def trocr_base() -> RunConfig:
    """`base` with TrOCR's encoder, which reads line by line. The checkpoint comes from the model hub."""
    line = RenderSpec(height_px=32, width_px=512, max_strips=16, squeeze=1.0)
    return _read_by("trocr-base", "trocr", "microsoft/trocr-base-printed", line)


def deepseek_ocr2_base() -> RunConfig:
    """`base` with DeepSeek-OCR-2, which reads a page per item. The checkpoint comes from the model hub."""
    page = RenderSpec(height_px=512, width_px=512, lines_per_strip=32, max_strips=1, squeeze=1.0)
    return _read_by("deepseek-ocr-2-base", "deepseek-ocr-2", "deepseek-community/DeepSeek-OCR-2", page)


def _read_by(name: str, kind: HubEncoderKind, checkpoint: str, render: RenderSpec) -> RunConfig:
    return replace(base(), name=name, render=render, encoder=HubEncoderConfig(kind, checkpoint))


def sasrec_training() -> TrainingConfig:
    """The training that tuning found for SASRec (docs/log.md)."""
    return TrainingConfig(learning_rate=3e-3, patience=8)


def pictures() -> RunConfig:
    """`base` for a catalog with product photos: the text and the photo of an item become one vector."""
    return replace(base(), name="pictures", pictures=PicturesConfig())


def vl_clip() -> RunConfig:
    """`pictures` with a joint space: a search finds photos by a text, and texts by a photo.

    A text is read to its end, because what a photo shows is often said in the description.
    """
    return replace(base(), name="vl-clip", render=RenderSpec(max_strips=16), pictures=JointPicturesConfig())


def card() -> RunConfig:
    """`base` on CARD's visual semantic unit: one picture of an item's photo, its text and its neighbors."""
    return replace(base(), name="card", pictures=CardConfig())


def resid() -> RunConfig:
    """ReSID: `base` on fields in place of pixels, with codes that separate the items of a small catalog.

    Its paper has ten to twenty items below each first two codes, and as many codes at the last level.
    """
    return replace(
        base(),
        name="resid",
        sid=SidSpec(levels=(16, 24, 64)),
        encoder=FamaeConfig(),
        quantizer=GaoqConfig(),
    )


def resid_pictures() -> RunConfig:
    """`resid` with each field read as a picture, so that new items, brands and categories have vectors."""
    return replace(resid(), name="resid-pictures", encoder=FamaePicturesConfig())


def ranked() -> RunConfig:
    """`base` with a ranker of given candidates."""
    return replace(with_ranker(base(), RankerConfig()), name="ranked")


def tiny() -> RunConfig:
    """A configuration for tests, which takes under a minute. Its parts are real, but too small to be good."""
    return replace(
        base(),
        name="tiny",
        sid=SidSpec(levels=(16, 16, 8)),
        render=RenderSpec(max_strips=1),
        encoder=CompactConfig(num_grams=1024, feature_dim=32),
        head=HeadConfig(vector_dim=32, hidden_dim=64, max_steps=60, batch_size=64),
        quantizer=QuantizerConfig(hidden_dims=(64,), latent_dim=16, num_epochs=60, settle_epochs=20),
        generator=TreeConfig(width=32, num_layers=1, ffn_dim=64),
        training=TrainingConfig(
            max_steps=150, batch_positions=512, warmup_steps=10, max_validation_users=200
        ),
        history_length=10,
    )


RUNS: dict[str, Callable[[], RunConfig]] = {
    "tiny": tiny,
    "demo": demo,
    "base": base,
    "tiger-base": tiger_base,
    "pictures": pictures,
    "vl-clip": vl_clip,
    "card": card,
    "resid": resid,
    "resid-pictures": resid_pictures,
    "ranked": ranked,
    "pp-ocr-base": pp_ocr_base,
    "donut-base": donut_base,
    "trocr-base": trocr_base,
    "deepseek-ocr-2-base": deepseek_ocr2_base,
}
