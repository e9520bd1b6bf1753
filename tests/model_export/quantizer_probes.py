"""The probes of the quantizers, for probes.py."""

from collections.abc import Callable
from functools import partial
from types import ModuleType

import numpy as np
import torch

from model_export.configs import (
    AnyQuantizerConfig,
    FlattenedConfig,
    GaoqConfig,
    LetterConfig,
    QuantizerConfig,
    ReadableConfig,
    RqKMeansConfig,
)
from model_export.quantizers import choose, flattened, gaoq, letter, readable, rq_kmeans, rq_vae
from model_export.quantizers.readable import with_first_codes
from tests.model_export.probe_inputs import SID, Output, vectors

SHORT = QuantizerConfig(
    hidden_dims=(16,), latent_dim=6, num_epochs=12, batch_size=8, revive_every_epochs=3, settle_epochs=4
)


def _train(config: AnyQuantizerConfig) -> Output:
    collaborative = vectors(dim=6, seed=2)
    collaborative[3] = np.nan
    found, report = choose.train_quantizer(
        vectors(), SID, config, seed=0, collaborative=collaborative, progress=False
    )
    with torch.no_grad():
        data = torch.from_numpy(vectors())
        codes = found.encode(data)
        return {
            "codes": codes.tolist(),
            "lengths": [codebook.norm(dim=1).sort().values.tolist() for codebook in found.codebooks],
            "decoded": found.decode(codes)[:4].tolist(),
            "losses": [epoch.loss for epoch in report.history],
        }


def _train_readable() -> Output:
    kinds = np.arange(len(vectors())) % 3
    divided = with_first_codes(vectors(), kinds)
    found, _ = choose.train_quantizer(divided, SID, ReadableConfig(RqKMeansConfig()), seed=0, progress=False)
    with torch.no_grad():
        codes = found.encode(torch.from_numpy(divided))
        return {"codes": codes.tolist(), "decoded": found.decode(codes)[:4].tolist()}


def _train_all(*configs: AnyQuantizerConfig) -> Output:
    return [_train(config) for config in configs]


QUANTIZER_PROBES: dict[str, tuple[ModuleType, Callable[[], Output]]] = {
    "readable": (readable, _train_readable),
    "rq_vae": (rq_vae, partial(_train, SHORT)),
    "rq_kmeans": (
        rq_kmeans,
        partial(_train_all, *(RqKMeansConfig(balanced=balanced) for balanced in (False, True))),
    ),
    "letter": (
        letter,
        partial(
            _train, LetterConfig(rq_vae=SHORT, alpha=0.1, beta=0.01, num_groups=2, regroup_every_epochs=3)
        ),
    ),
    "flattened": (
        flattened,
        partial(
            _train_all,
            FlattenedConfig(SHORT),
            FlattenedConfig(SHORT, "logistic"),
            FlattenedConfig(RqKMeansConfig(balanced=True)),
            FlattenedConfig(RqKMeansConfig(), "logistic"),
        ),
    ),
    "gaoq": (gaoq, partial(_train, GaoqConfig())),
}
