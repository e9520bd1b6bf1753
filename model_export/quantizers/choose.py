"""Choose the quantizer of a configuration."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from model_export.configs import (
    AnyQuantizerConfig,
    FlattenedConfig,
    GaoqConfig,
    LetterConfig,
    QuantizerConfig,
    ReadableConfig,
    RqKMeansConfig,
)
from model_export.quantizers import flattened, gaoq, letter, readable, rq_kmeans, rq_vae
from model_export.quantizers.base import QuantizerReport, ResidualQuantizer
from model_export.quantizers.flattened import train_flattened
from model_export.quantizers.gaoq import train_gaoq
from model_export.quantizers.letter import train_letter
from model_export.quantizers.readable import train_readable
from model_export.quantizers.rq_kmeans import train_rq_kmeans
from model_export.quantizers.rq_vae import train_rq_vae
from service.core import item_fields
from service.core.sid import SidSpec

TRAIN: dict[type, Callable[..., tuple[ResidualQuantizer, QuantizerReport]]] = {
    QuantizerConfig: train_rq_vae,
    RqKMeansConfig: train_rq_kmeans,
    LetterConfig: train_letter,
    FlattenedConfig: train_flattened,
    GaoqConfig: train_gaoq,
}
VERSIONS = {
    QuantizerConfig: {"rq_vae": rq_vae.VERSION},
    RqKMeansConfig: {"rq_kmeans": rq_kmeans.VERSION},
    LetterConfig: {"letter": letter.VERSION},
    FlattenedConfig: {"flattened": flattened.VERSION},
    GaoqConfig: {"gaoq": gaoq.VERSION},
    ReadableConfig: {"readable": readable.VERSION, "fields": item_fields.VERSION},
}


def wrapped_in(config: AnyQuantizerConfig) -> AnyQuantizerConfig | None:
    """The quantizer inside another one, or None."""
    return config.quantizer if isinstance(config, FlattenedConfig | ReadableConfig) else None


def versions_of_quantizer(config: AnyQuantizerConfig) -> dict[str, int]:
    """The versions of the quantizer, and of the one inside it."""
    wrapped = wrapped_in(config)
    inside = {} if wrapped is None else versions_of_quantizer(wrapped)
    return inside | VERSIONS[type(config)]


def fits_few_items(config: AnyQuantizerConfig, spec: SidSpec, num_items: int) -> bool:
    """Whether the quantizer treats residuals that are alike as one, which earlier releases did not."""
    of_kmeans = isinstance(wrapped_in(config) or config, RqKMeansConfig)
    return of_kmeans and rq_kmeans.is_few(num_items, max(spec.levels))


def learns_from_purchases(config: AnyQuantizerConfig) -> bool:
    """Whether the quantizer needs collaborative vectors, beside the vectors that it divides."""
    return isinstance(wrapped_in(config) or config, LetterConfig)


def train_quantizer(
    vectors: NDArray[np.float32],
    spec: SidSpec,
    config: AnyQuantizerConfig,
    *,
    seed: int,
    collaborative: NDArray[np.float32] | None = None,
    progress: bool = True,
) -> tuple[ResidualQuantizer, QuantizerReport]:
    """Fit the quantizer of `config` to vectors [item, dim]. For readable codes they end in the first code.

    Only LETTER uses the collaborative vectors [item, any], and it raises ValueError without them.
    """
    if isinstance(config, ReadableConfig):
        return train_readable(
            vectors, spec, config, seed=seed, train=TRAIN[type(config.quantizer)],
            collaborative=collaborative, progress=progress,
        )  # fmt: skip
    train = TRAIN[type(config)]
    result: tuple[ResidualQuantizer, QuantizerReport] = train(
        vectors, spec, config, seed=seed, collaborative=collaborative, progress=progress
    )
    return result
