"""The cells that the study runs. Each has a name, its tables, and a configuration or a counting baseline.

Adding a cell takes one entry here. A cell runs on every data set, with its number of seeds. Cells share
stages, for example a reading, a head or codes. The stage cache keeps these.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from model_export.configs import (
    CompactConfig,
    FamaeConfig,
    FamaePicturesConfig,
    LetterConfig,
    MiniLmConfig,
    PpOcrConfig,
    QuantizerConfig,
    RqKMeansConfig,
    RunConfig,
    SasRecConfig,
    TigerConfig,
    TrainingConfig,
    TreeConfig,
    base,
    deepseek_ocr2_base,
    donut_base,
    sasrec_training,
    tiny,
    trocr_base,
)
from model_export.study.cell import Cell, Counting
from model_export.study.history_cells import history_cells
from model_export.study.picture_cells import LIKE_OTHERS as LIKE_OTHER_PICTURES
from model_export.study.picture_cells import picture_cells
from model_export.study.tokenizer_cells import tokenizer_cells
from model_export.vl_clip.configs import VlClipPictures
from service.core.bundle import RenderSpec


@dataclass(frozen=True)
class Plan:
    """The cells of one study."""

    name: str
    cells: tuple[Cell, ...]

    def only(self, names: list[str]) -> "Plan":
        """The plan with only the named cells, or with all cells if `names` is empty."""
        return replace(self, cells=tuple(cell for cell in self.cells if not names or cell.name in names))


# Height of a strip in pixels and squeeze of its letters, from generous to unreadable.
RESOLUTIONS = (
    (32, 1.0),
    (24, 1.0),
    (24, 0.6),
    (16, 1.0),
    (16, 0.6),
    (12, 0.6),
    (12, 0.4),
    (8, 0.6),
    (8, 0.4),
    (8, 0.25),
)


def recipe(height_px: int, squeeze: float, default: RenderSpec) -> RenderSpec:
    """`default` at another resolution. A strip holds about as many letters as before."""
    scale = height_px * squeeze / (default.height_px * default.squeeze)
    width_px = max(32, round(default.width_px * scale))
    return default.model_copy(update={"height_px": height_px, "squeeze": squeeze, "width_px": width_px})


def full() -> Plan:
    """The plan of docs/study.md.

    TIGER is smaller than in its paper, so that two cores can train it. The cell `tiger_text_paper` has the
    size of the paper, and needs a GPU.
    """
    return Plan(
        "full",
        cells_of(
            base(),
            tiger=TigerConfig(width=96, num_layers=2, num_heads=4, head_dim=24, ffn_dim=384),
            tiger_training=TrainingConfig(
                max_epochs=40, learning_rate=2e-3, validate_every_epochs=2.0, patience=4
            ),
            num_seeds=3,
            resolutions=RESOLUTIONS,
        ),
    )


# Cells that run the same code as other cells of the plan, and cells that need a checkpoint of the model hub.
LIKE_OTHERS = {
    "tiger_text_rq_kmeans", "tiger_text_paper", "markov_popular_ties", "sasrec_64", "sasrec_slow",
    "sasrec_dropout_3", "sasrec_long", "learnt_text", "text_frozen", "pp_ocr_frozen", "tiger_codes",
    "tree_noise", "donut", "trocr", "deepseek_ocr2",
    "nu_rq_kmeans_balanced", "nu_letter", "gaoq_narrow", "gaoq_text", "famae", "readable_brand",
    "famae_pictures", "resid", "resid_pictures",
    "history_trigram", "history_all_bigrams", "history_all_ngrams", "history_random_hash",
} | LIKE_OTHER_PICTURES  # fmt: skip


def tiny_plan() -> Plan:
    """Every kind of cell, short enough for a test."""
    config = replace(tiny(), training=replace(tiny().training, max_steps=40))
    small = TigerConfig(width=16, num_layers=1, num_heads=2, head_dim=8, ffn_dim=32)
    cells = cells_of(
        config, tiger=small, tiger_training=config.training, num_seeds=1, resolutions=RESOLUTIONS[-1:]
    )
    cells = (replace(cells[0], num_seeds=2), *cells[1:])
    max_steps = config.training.max_steps
    return Plan("tiny", tuple(_short(cell, max_steps) for cell in cells if cell.name not in LIKE_OTHERS))


def _short(cell: Cell, max_steps: int) -> Cell:
    """The cell with at most `max_steps` steps of training, even if it has a training of its own."""
    training, encoder = replace(cell.config.training, max_steps=max_steps), cell.config.encoder
    if isinstance(encoder, FamaeConfig):
        encoder = replace(encoder, width=16, num_layers=1, ffn_dim=32, history_length=5, max_epochs=1)
    if isinstance(encoder, FamaePicturesConfig):
        encoder = replace(encoder, reader=CompactConfig(num_grams=1024, feature_dim=32))
    pictures = cell.config.pictures
    if isinstance(pictures, VlClipPictures):
        small = replace(pictures.space, num_grams=512, text_dim=16, size_px=64, dim=16, hidden_dim=16)
        pictures = replace(pictures, space=replace(small, max_epochs=2))
    return replace(cell, config=replace(cell.config, training=training, encoder=encoder, pictures=pictures))


PLANS: dict[str, Callable[[], Plan]] = {"full": full, "tiny": tiny_plan}


def cells_of(
    default: RunConfig,
    *,
    tiger: TigerConfig,
    tiger_training: TrainingConfig,
    num_seeds: int,
    resolutions: Sequence[tuple[int, float]],
) -> tuple[Cell, ...]:
    """Every kind of cell, derived from one default configuration.

    `resolutions`: pairs of height in pixels and squeeze.
    """
    tree = default.generator
    assert isinstance(tree, TreeConfig)
    untrained = replace(default.head, max_steps=0)
    without_counts = replace(default, opinions=None)
    text = replace(without_counts, encoder=MiniLmConfig())
    # The default without likeness and counts. Single parts are compared on this configuration.
    learnt = replace(without_counts, generator=replace(tree, likeness=0.0))
    with_tiger = replace(without_counts, generator=tiger, training=tiger_training)
    tiger_text = replace(with_tiger, encoder=MiniLmConfig(), head=untrained, collisions="suffix")
    plain_tree = replace(tree, likeness=0.0, start_scale=0.0, has_bonus=False)

    def other(**changes: Any) -> RunConfig:
        return replace(learnt, **changes)

    cells = [
        Cell(
            "default",
            "glyphrec, the default",
            ("headline", "ablation"),
            default,
            num_seeds=num_seeds,
        ),
        Cell(
            "without_counts",
            "the default without counts, opinions not weighed",
            ("headline", "ablation"),
            without_counts,
            num_seeds=num_seeds,
        ),
        Cell("text", "without counts, on MiniLM text", ("headline",), text, num_seeds=num_seeds),
        Cell(
            "sasrec",
            "SASRec, full cross-entropy, tuned",
            ("headline", "tuning"),
            sasrec(default),
            num_seeds=num_seeds,
        ),
        Cell(
            "tiger_text",
            "TIGER on MiniLM text, RQ-VAE, suffix",
            ("headline", "ablation"),
            replace(tiger_text, quantizer=QuantizerConfig()),
        ),
        Cell(
            "tiger_text_rq_kmeans",
            "TIGER on MiniLM text, RQ-k-means, suffix",
            ("headline",),
            replace(tiger_text, quantizer=RqKMeansConfig()),
        ),
        Cell(
            "tiger_text_paper",
            "TIGER on MiniLM text at its paper's size",
            ("headline",),
            replace(tiger_text, generator=TigerConfig(), training=TrainingConfig(validate_every_epochs=2.0)),
        ),
        *counting_cells(default),
        *sasrec_variants(default, num_seeds),
        # Question 1: pictures or text, without a head and with one that is trained on the catalog.
        Cell("frozen", "compact reader, no head", ("encoders",), other(head=untrained)),
        Cell(
            "learnt_text",
            "MiniLM on text, head",
            ("encoders",),
            other(encoder=MiniLmConfig()),
            num_seeds=num_seeds,
        ),
        Cell("text_frozen", "MiniLM, no head", ("encoders",), other(encoder=MiniLmConfig(), head=untrained)),
        Cell("pp_ocr", "PP-OCRv6, head", ("encoders",), other(encoder=PpOcrConfig())),
        Cell(
            "pp_ocr_frozen",
            "PP-OCRv6, no head",
            ("encoders",),
            other(encoder=PpOcrConfig(), head=untrained),
        ),
        *hub_cells(learnt),
        Cell("shuffled", "the same codes, dealt out at random", ("encoders",), learnt, shuffled=True),
        # Question 6: the gain of each part.
        Cell("tiger_codes", "TIGER on the default's codes", ("ablation", "generators"), with_tiger),
        Cell(
            "tiger_items",
            "the same, a vector for each history item",
            ("generators",),
            replace(with_tiger, generator=replace(tiger, reads="items")),
        ),
        Cell(
            "tiger_temperature",
            "TIGER, temperature 0.7",
            ("generators",),
            replace(with_tiger, generator=replace(tiger, temperature=0.7)),
        ),
        Cell(
            "learnt",
            "tree, vectors per prefix that begin as content",
            ("encoders", "ablation", "generators", "quantizers", "resolution"),
            learnt,
            num_seeds=num_seeds,
        ),
        Cell(
            "tree_plain",
            "tree, no vectors per prefix",
            ("ablation", "generators"),
            other(generator=plain_tree),
        ),
        Cell(
            "tree_noise",
            "tree, vectors per prefix that begin as noise",
            ("ablation", "generators"),
            other(generator=replace(tree, likeness=0.0, start_scale=0.0)),
        ),
        *history_cells(learnt),
        # Quantizers and collisions.
        Cell("rq_kmeans", "RQ-k-means", ("quantizers",), other(quantizer=RqKMeansConfig())),
        Cell(
            "rq_kmeans_balanced",
            "RQ-k-means, balanced",
            ("quantizers",),
            other(quantizer=RqKMeansConfig(balanced=True)),
        ),
        Cell("letter", "LETTER", ("quantizers",), other(quantizer=LetterConfig())),
        Cell("collisions_left", "collisions left", ("quantizers",), other(collisions="none")),
        Cell("sinkhorn", "collisions spread by Sinkhorn", ("quantizers",), other(collisions="sinkhorn")),
        # Questions 4 and 5.
        Cell("robustness", "the default", ("robustness",), without_counts, question="robustness"),
        Cell("robustness_text", "the same on MiniLM text", ("robustness",), text, question="robustness"),
        Cell("cold", "without counts", ("cold",), without_counts, question="cold"),
        Cell("cold_text", "the same on MiniLM text", ("cold",), text, question="cold"),
        *tokenizer_cells(default, learnt, num_seeds),
        *picture_cells(default, learnt, num_seeds),
    ]
    # Question 2.
    for height_px, squeeze in resolutions:
        if (height_px, squeeze) == (default.render.height_px, default.render.squeeze):
            continue  # this is the default itself
        render = recipe(height_px, squeeze, default.render)
        cells.append(
            Cell(
                f"resolution_{height_px}px_{squeeze:g}",
                f"{height_px} px high, letters {squeeze:g} wide",
                ("resolution",),
                other(render=render),
            )
        )
    return tuple(cells)


def hub_cells(learnt: RunConfig) -> list[Cell]:
    """Encoders of the model hub. If a checkpoint cannot be loaded, the study says so and skips its cell."""
    labels = {
        "donut": ("Donut, head", donut_base()),
        "trocr": ("TrOCR, head", trocr_base()),
        "deepseek_ocr2": ("DeepSeek-OCR-2, head", deepseek_ocr2_base()),
    }
    return [
        Cell(name, label, ("encoders",), replace(learnt, encoder=read.encoder, render=read.render))
        for name, (label, read) in labels.items()
    ]


def counting_cells(default: RunConfig) -> list[Cell]:
    """The baselines that count."""
    labels: dict[Counting, str] = {
        "popularity": "popularity",
        "markov": "first-order Markov, then popularity",
        "markov_popular_ties": "the same, equal counts by popularity",
        "item_knn": "nearest items by the default's vectors",
        "tgh": "TGH: three hops of the transition graph, not trained",
        "sum": "weighted sum of counts, text and popularity, not trained",
    }
    return [Cell(name, label, ("headline",), default, counting=name) for name, label in labels.items()]


def sasrec_variants(default: RunConfig, num_seeds: int) -> list[Cell]:
    """The variants of SASRec from its tuning, one change at a time."""
    tuned = sasrec(default)
    model = SasRecConfig()
    changes: dict[str, tuple[str, dict[str, Any]]] = {
        "sasrec_slow": ("learning rate 1e-3", {"training": replace(tuned.training, learning_rate=1e-3)}),
        "sasrec_dropout_3": ("dropout 0.3", {"generator": replace(model, dropout=0.3)}),
        "sasrec_long": ("history of 50", {"history_length": 50}),
    }
    narrow = replace(tuned, generator=model)
    return [
        Cell("sasrec_64", "SASRec, width 64", ("tuning",), narrow, num_seeds=num_seeds),
        *(
            Cell(name, f"SASRec, width 64, {label}", ("tuning",), replace(narrow, **changed))
            for name, (label, changed) in changes.items()
        ),
    ]


def sasrec(default: RunConfig) -> RunConfig:
    """SASRec with the tuned configuration. docs/log.md and the cells of `sasrec_variants` show the tuning."""
    wide = SasRecConfig(width=128, ffn_dim=128)
    return replace(default, generator=wide, training=sasrec_training(), opinions=None, history_length=20)
