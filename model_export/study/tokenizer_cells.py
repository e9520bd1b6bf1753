"""The cells that compare further quantizers: flattened latents (CARD), and a tree with anchors (ReSID).

They are rows of the table "quantizers". Only the quantizer differs from the cell `learnt`, unless the label
says something else. Their names begin with `nu_` (non-uniform) and `gaoq`. FAMAE, which has learned from
purchases, is in place of the encoder and the head.
"""

from dataclasses import replace
from typing import Any

from model_export.configs import (
    FamaeConfig,
    FlattenedConfig,
    GaoqConfig,
    LetterConfig,
    MiniLmConfig,
    QuantizerConfig,
    RqKMeansConfig,
    RunConfig,
)
from model_export.study.cell import Cell
from service.core.sid import SidSpec

# The rule of GAOQ's paper: ten to twenty items below each first two codes. With 64x64x32
# most items of a small catalog are alone below their first two codes, and their last code tells nothing.
NARROW = SidSpec(levels=(16, 24, 64))

# They run on data sets with photos too, where `pictures_drawn` is the cell that they are compared with.
ON_ALL = {"nu_kumaraswamy", "gaoq", "gaoq_narrow", "gaoq_famae", "famae"}


def tokenizer_cells(learnt: RunConfig) -> list[Cell]:
    """Every kind of cell. `learnt` is the default without likeness and counts, and quantized by RQ-VAE."""
    rq_vae = learnt.quantizer
    assert isinstance(rq_vae, QuantizerConfig)
    balanced = RqKMeansConfig(balanced=True)

    def cell(name: str, label: str, **changes: Any) -> Cell:
        return Cell(name, label, ("quantizers",), replace(learnt, **changes), on_all=name in ON_ALL)

    quantizers = [
        ("nu_kumaraswamy", "RQ-VAE, flattened by Kumaraswamy", FlattenedConfig(rq_vae)),
        ("nu_logistic", "RQ-VAE, flattened by a logistic curve", FlattenedConfig(rq_vae, "logistic")),
        ("nu_rq_kmeans", "RQ-k-means, flattened by Kumaraswamy", FlattenedConfig(RqKMeansConfig())),
        ("nu_rq_kmeans_balanced", "the same, balanced", FlattenedConfig(balanced)),
        ("nu_letter", "LETTER, flattened by Kumaraswamy", FlattenedConfig(LetterConfig(rq_vae))),
        ("gaoq", "GAOQ", GaoqConfig()),
    ]
    return [
        *(cell(name, label, quantizer=quantizer) for name, label, quantizer in quantizers),
        cell("gaoq_narrow", "GAOQ, codes 16x24x64", quantizer=GaoqConfig(), sid=NARROW),
        cell("gaoq_text", "GAOQ on MiniLM text", quantizer=GaoqConfig(), encoder=MiniLmConfig()),
        cell(
            "gaoq_famae",
            "GAOQ on FAMAE's vectors, codes 16x24x64",
            quantizer=GaoqConfig(),
            sid=NARROW,
            encoder=FamaeConfig(),
        ),
        cell("famae", "RQ-VAE on FAMAE's vectors", encoder=FamaeConfig()),
    ]
