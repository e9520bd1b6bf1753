"""The cells that compare further quantizers: flattened latents (CARD), and a tree with anchors (ReSID).

They are rows of the table "quantizers". Only the quantizer differs from the cell `learnt`, unless the label
says something else. Their names begin with `nu_` (non-uniform) and `gaoq`.
"""

from dataclasses import replace
from typing import Any

from model_export.configs import (
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


def tokenizer_cells(learnt: RunConfig) -> list[Cell]:
    """Every kind of cell. `learnt` is the default without likeness and counts, and quantized by RQ-VAE."""
    rq_vae = learnt.quantizer
    assert isinstance(rq_vae, QuantizerConfig)
    balanced = RqKMeansConfig(balanced=True)

    def cell(name: str, label: str, **changes: Any) -> Cell:
        return Cell(name, label, ("quantizers",), replace(learnt, **changes))

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
        # The paper's rule for the first two levels is a tenth to a twentieth of the items.
        cell("gaoq_32", "GAOQ, codes 32x32x32", quantizer=GaoqConfig(), sid=SidSpec(levels=(32, 32, 32))),
        cell("gaoq_text", "GAOQ on MiniLM text", quantizer=GaoqConfig(), encoder=MiniLmConfig()),
    ]
