"""The stage that trains a generator on codes. The validation users decide when the training stops.

It is stored as the stages before it are (stages.py). Everything is fitted on `Split.train` alone.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.configs import (
    HashedTreeConfig,
    RunConfig,
    SasRecConfig,
    TigerConfig,
    TreeConfig,
    sasrec_training,
)
from model_export.data.dataset import ItemSequence
from model_export.generators.base import Generator
from model_export.generators.hashed_history import HashedHistoryTree
from model_export.generators.sasrec import SasRecGenerator, codes_of_items
from model_export.generators.tiger import TigerGenerator
from model_export.generators.training import Curve, train_generator
from model_export.generators.tree import TreeGenerator
from model_export.pipeline import versions
from model_export.pipeline.run import Run
from service.core.sid import SidSpec

Sequences = list[ItemSequence]


def collaborative_vectors(run: Run) -> NDArray[np.float32]:
    """The vectors that SASRec learns in the training part: [item, dim], NaN for items that are not in it."""
    num_items = run.dataset.num_items
    config = replace(run.config, generator=SasRecConfig(), training=sasrec_training())
    spec, codes = SidSpec(levels=(num_items,)), codes_of_items(num_items)
    generator = generate(replace(run, config=config), codes, spec).generator
    assert isinstance(generator, SasRecGenerator)
    found = generator.item_embeddings()
    return np.where(found.is_learnt[:, None], found.vectors, np.nan).astype(np.float32)


class Generated(NamedTuple):
    """A trained generator and the course of its training."""

    generator: Generator
    curve: Curve


def generate(
    run: Run,
    codes: NDArray[np.int64],
    spec: SidSpec,
    *,
    vectors: NDArray[np.float32] | None = None,
    make: Callable[[], Generator] | None = None,
    more_inputs: tuple[Any, ...] = (),
) -> Generated:
    """Train the configuration's generator on codes [item, level].

    `vectors` [item, dim]: the vectors behind the codes, for a generator that starts from them. `make` makes
    another generator than the configuration's; `more_inputs` are what it depends on besides.
    """
    split, config, cache = run.split, run.config, run.cache
    torch.manual_seed(config.seed)
    generator = make() if make else make_generator(config, codes, spec, split.train, vectors)
    inputs: tuple[Any, ...] = (
        codes, vectors, split.train, split.validation.targets, spec, config.generator, config.training,
        config.history_length, config.seed, versions.of_generator(config.generator),
    )  # fmt: skip
    if split.validation.are_repeats:  # earlier releases validated without the history here too
        inputs = (*inputs, "repeats")
    inputs = (*inputs, *more_inputs)
    checkpoint = cache.path("generator", ".checkpoint", *inputs)

    def train(target: Path) -> None:
        curve = train_generator(
            generator,
            codes=codes,
            split=split,
            config=config.training,
            history_length=config.history_length,
            seed=config.seed,
            checkpoint=checkpoint,
        )
        torch.save((generator.state_dict(), curve), target)

    weights, curve = cache.get(cache.path("generator", ".pt", *inputs), train, _load)
    checkpoint.unlink(missing_ok=True)
    generator.load_state_dict(weights)
    return Generated(generator.eval(), curve)


def make_generator(
    config: RunConfig,
    codes: NDArray[np.int64],
    spec: SidSpec,
    train: Sequences,
    vectors: NDArray[np.float32] | None = None,
) -> Generator:
    """An untrained generator of the configuration. Seed torch before the call.

    codes [item, level]; vectors [item, dim]; `train`: the sequences of item indices.
    """
    seen = np.unique(np.concatenate(train))
    match config.generator:
        case HashedTreeConfig() as hashed_config:
            return HashedHistoryTree(
                config=hashed_config,
                spec=spec,
                history_length=config.history_length,
                seen_codes=codes[seen],
                seen_vectors=None if vectors is None else vectors[seen],
            )
        case TreeConfig() as tree_config:
            return TreeGenerator(
                config=tree_config,
                spec=spec,
                history_length=config.history_length,
                seen_codes=codes[seen],
                seen_vectors=None if vectors is None else vectors[seen],
            )
        case SasRecConfig() as sasrec_config:
            return SasRecGenerator(
                config=sasrec_config, spec=spec, history_length=config.history_length, seen_codes=codes[seen]
            )
        case TigerConfig() as tiger_config:
            return TigerGenerator(config=tiger_config, spec=spec, seen_codes=codes[seen])


def _load(path: Path) -> Any:
    return torch.load(path, weights_only=False)  # this user's own cache
