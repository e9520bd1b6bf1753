"""The cells that compare further quantizers: flattened latents (CARD), and a tree with anchors (ReSID).

They are rows of the table "quantizers". Only the quantizer differs from the cell `learnt`, unless the label
says something else. Their names begin with `nu_` (non-uniform) and `gaoq`. FAMAE, which has learned from
purchases, is in place of the encoder and the head.
"""

from dataclasses import replace
from typing import Any

from model_export.configs import (
    FamaeConfig,
    FamaePicturesConfig,
    FlattenedConfig,
    GaoqConfig,
    LetterConfig,
    MiniLmConfig,
    QuantizerConfig,
    ReadableConfig,
    RqKMeansConfig,
    RunConfig,
)
from model_export.study.cell import Cell
from service.core.sid import SidSpec

# The rule of GAOQ's paper: ten to twenty items below each first two codes. With 64x64x32
# most items of a small catalog are alone below their first two codes, and their last code tells nothing.
NARROW = SidSpec(levels=(16, 24, 64))

# They run on data sets with photos too, where `pictures_drawn` is the cell that they are compared with.
ON_ALL = {"nu_kumaraswamy", "gaoq", "gaoq_narrow", "gaoq_famae", "famae", "famae_pictures", "readable"}


def tokenizer_cells(default: RunConfig, learnt: RunConfig, num_seeds: int) -> list[Cell]:
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
        ("readable", "the category first, RQ-VAE below", ReadableConfig(rq_vae)),
        ("readable_brand", "the brand first, RQ-VAE below", ReadableConfig(rq_vae, "brand")),
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
        cell("famae_pictures", "RQ-VAE on FAMAE, fields as pictures", encoder=FamaePicturesConfig()),
        *_resid_cells(default, learnt, num_seeds),
    ]


def _resid_cells(default: RunConfig, learnt: RunConfig, num_seeds: int) -> list[Cell]:
    """ReSID as it is served, the same with fields as pictures, and both on cold items.

    `gaoq_famae` is ReSID without likeness and counts. Conclusions rest on what is compared with the default,
    and on what finds new items. So these cells have several seeds.
    """
    tables: dict[str, Any] = {"encoder": FamaeConfig(), "quantizer": GaoqConfig(), "sid": NARROW}
    pictures = tables | {"encoder": FamaePicturesConfig()}
    of_pictures = "ReSID, fields as pictures"
    found = [
        Cell(
            "resid",
            "the configuration `resid`",
            ("quantizers",),
            replace(default, **tables),
            num_seeds=num_seeds,
        ),
        Cell("resid_pictures", of_pictures, ("quantizers",), replace(learnt, **pictures)),
    ]
    served = replace(default, opinions=None)
    for name, label, changes in (("resid", "ReSID", tables), ("resid_pictures", of_pictures, pictures)):
        config = replace(served, **changes)
        found.append(
            Cell(f"{name}_cold", label, ("cold",), config, question="cold", num_seeds=num_seeds),
        )
    return [replace(cell, on_all=True) for cell in found]
