"""Every choice of a training run, typed. A named run is a function that returns one; derive by `replace`."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from service.core.bundle import RenderSpec
from service.core.sid import SidSpec


@dataclass(frozen=True)
class CompactConfig:
    """Our own small reader, and the letter grams pooled from its frames (encoders/compact.py)."""

    num_grams: int = 16_384  # hashed runs of letters that are kept
    feature_dim: int = 320  # SVD of the TF-IDF table


@dataclass(frozen=True)
class PpOcrConfig:
    """Frozen PP-OCRv6 and the visual words pooled from its frames (encoders/pp_ocr.py)."""

    projection_dim: int = 32  # a spike frame is projected to this before windows are made
    window: int = 4  # consecutive spikes in one visual word
    num_words: int = 4096  # k-means centroids of windows
    word_dim: int = 256  # SVD of the TF-IDF table
    stats_dim: int = 64  # whitened mean and deviation of the spike frames
    max_fit_items: int = 4000  # items whose frames fit the projection, the gate and the centroids


HubEncoderKind = Literal["donut", "trocr", "deepseek-ocr-2"]


@dataclass(frozen=True)
class HubEncoderConfig:
    """A frozen encoder of a `transformers` checkpoint (encoders/hub/)."""

    kind: HubEncoderKind
    checkpoint: str  # a folder, or a name on the model hub
    strips_per_run: int = 4  # read at once; of full pages, DeepSeek-OCR-2 wants some gigabytes for each


@dataclass(frozen=True)
class MiniLmConfig:
    """all-MiniLM-L6-v2 on the text itself (encoders/minilm.py): what pictures are compared with. No service
    can run it.
    """


@dataclass(frozen=True)
class HeadConfig:
    """The head trained on co-purchase pairs of the training part (encoders/head.py)."""

    vector_dim: int = 128
    hidden_dim: int = 512
    window: int = 3  # items at most this far apart in a sequence are a pair
    num_epochs: int = 8
    max_steps: int = 3000  # 0: no training, a projection to the principal axes
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    temperature: float = 0.07
    dropout: float = 0.3


@dataclass(frozen=True)
class QuantizerConfig:
    """RQ-VAE, methods.md §1.2."""

    hidden_dims: tuple[int, ...] = (256, 128)
    latent_dim: int = 32
    num_epochs: int = 200
    batch_size: int = 1024
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    commitment: float = 0.25
    revive_every_epochs: int = 10
    settle_epochs: int = 60  # no code is revived in the last so many epochs


@dataclass(frozen=True)
class RqKMeansConfig:
    """Residual k-means (quantizers/rq_kmeans.py)."""

    balanced: bool = False  # every code of a level gets the same number of items
    num_starts: int = 4  # of k-means at each level; the best is kept
    balanced_rounds: int = 30  # at most, of moving the centroids under balance


@dataclass(frozen=True)
class LetterConfig:
    """LETTER, methods.md §2.3: an RQ-VAE that also hears of purchases and of how codes are spread."""

    rq_vae: QuantizerConfig = field(default_factory=QuantizerConfig)
    alpha: float = 0.02  # weight of the alignment with collaborative vectors
    beta: float = 1e-4  # weight of the diversity of codewords
    num_groups: int = 10  # of codewords that are drawn together
    regroup_every_epochs: int = 5


@dataclass(frozen=True)
class TreeConfig:
    """generators/tree.py: a causal transformer over items, one position each."""

    width: int = 64
    num_layers: int = 2
    num_heads: int = 2
    ffn_dim: int = 256
    dropout: float = 0.5
    has_bonus: bool = True  # each prefix seen in training has a vector of its own that scores it
    hidden_share: float = 0.05  # of the items, other ones each step, count as never seen: new ones can come
    start_scale: float = 1.0  # length of the item vectors that prefixes begin as the means of; 0: noise
    likeness: float = 12.0  # of the cosine with what a history is about, beside what is learnt; 0: none
    recency: float = 0.5  # what each step into the past counts of the one before, in that


@dataclass(frozen=True)
class TigerConfig:
    """generators/tiger.py: T5 encoder-decoder over code tokens (TIGER, NeurIPS 2023)."""

    reads: Literal["codes", "items"] = (
        "codes"  # of a history: a token for each code, or a vector for each item
    )

    width: int = 128
    num_layers: int = 4  # of the encoder and of the decoder
    num_heads: int = 6
    head_dim: int = 64
    ffn_dim: int = 1024
    dropout: float = 0.1
    temperature: float = 1.0  # of the training loss alone: below 1 the nearest wrong codes weigh more


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
    """The one loop that trains a generator (training.py)."""

    max_epochs: int = 60
    max_steps: int = 100_000
    batch_positions: int = 2048  # of all windows of a step, with padding, so that steps cost the same
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 100
    clip_norm: float = 1.0
    patience: int = 5  # validations without a better item-level NDCG@10
    validate_every_epochs: float = 1.0
    max_validation_users: int = 2000
    time_limit_s: float = 6 * 3600.0


@dataclass(frozen=True)
class RunConfig:
    name: str
    sid: SidSpec
    generator: TreeConfig | TigerConfig | SasRecConfig
    seed: int = 0
    render: RenderSpec = field(default_factory=RenderSpec)
    encoder: CompactConfig | PpOcrConfig | HubEncoderConfig | MiniLmConfig = field(
        default_factory=CompactConfig
    )
    head: HeadConfig = field(default_factory=HeadConfig)
    quantizer: QuantizerConfig | RqKMeansConfig | LetterConfig = field(default_factory=QuantizerConfig)
    collisions: Literal["none", "sinkhorn", "zcr", "suffix"] = "zcr"
    training: TrainingConfig = field(default_factory=TrainingConfig)
    history_length: int = 20
    beam_limit: int = 400
    precision: Literal["float32", "int8"] = "float32"  # of the recommender; int8 where its answers agree


def base() -> RunConfig:
    """Full size with the default generator."""
    return RunConfig(
        name="base",
        sid=SidSpec(levels=(64, 64, 32)),
        generator=TreeConfig(),
        training=TrainingConfig(max_epochs=40, learning_rate=2e-3, validate_every_epochs=2.0, patience=4),
        precision="int8",
    )


def demo() -> RunConfig:
    """Minutes on two CPU cores: what `make demo` trains. What a household buys next depends little on what it
    is like and much on how popular it is: content only holds a short training back.
    """
    return replace(
        base(),
        name="demo",
        head=HeadConfig(max_steps=400),
        quantizer=RqKMeansConfig(balanced=True),  # RQ-VAE lets popular items, all near each other, collide
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
        history_length=200,  # what a household has bought before is no longer new to it
    )


def tiger_base() -> RunConfig:
    """The papers' backbone at the papers' size, T5 4+4, d=128: for a GPU or a patient CPU."""
    return replace(base(), name="tiger-base", generator=TigerConfig(), training=TrainingConfig())


def pp_ocr_base() -> RunConfig:
    """`base` read by PP-OCRv6 in place of the compact reader: for text that the latter was not taught, at ten
    times the cost.
    """
    return replace(base(), name="pp-ocr-base", encoder=PpOcrConfig())


def donut_base() -> RunConfig:
    """`base` read by Donut's encoder, a page for each item. The checkpoint comes from the model hub."""
    page = RenderSpec(height_px=512, width_px=384, lines_per_strip=32, max_strips=1, squeeze=1.0)
    return _read_by("donut-base", "donut", "naver-clova-ix/donut-base", page)


def trocr_base() -> RunConfig:
    """`base` read by TrOCR's encoder, line by line. The checkpoint comes from the model hub."""
    line = RenderSpec(height_px=32, width_px=512, max_strips=16, squeeze=1.0)
    return _read_by("trocr-base", "trocr", "microsoft/trocr-base-printed", line)


def deepseek_ocr2_base() -> RunConfig:
    """`base` read by DeepSeek-OCR-2's encoder, a page for each item. Its checkpoint is on the model hub."""
    page = RenderSpec(height_px=512, width_px=512, lines_per_strip=32, max_strips=1, squeeze=1.0)
    return _read_by("deepseek-ocr-2-base", "deepseek-ocr-2", "deepseek-community/DeepSeek-OCR-2", page)


def _read_by(name: str, kind: HubEncoderKind, checkpoint: str, render: RenderSpec) -> RunConfig:
    return replace(base(), name=name, render=render, encoder=HubEncoderConfig(kind, checkpoint))


def sasrec_training() -> TrainingConfig:
    """What SASRec turned out to want (docs/log.md)."""
    return TrainingConfig(learning_rate=3e-3, patience=8)


def tiny() -> RunConfig:
    """Under a minute, for tests: every part real, nothing large enough to be good."""
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
    "pp-ocr-base": pp_ocr_base,
    "donut-base": donut_base,
    "trocr-base": trocr_base,
    "deepseek-ocr-2-base": deepseek_ocr2_base,
}
