"""The pipeline from data to bundle, top to bottom.

    items ─ stages.py: draw, read, pool, head, quantize, generate ─ graphs ─ checks ─ evaluation ─ bundle

Only `split.train` goes into anything that is fitted. Validation users decide when the generator stops. Test
users are met first by `evaluate`, on the exported graphs.
"""

from dataclasses import replace
from pathlib import Path

from model_export.bundle.writing import (
    TokenizedCatalog,
    generator_name,
    kept_bundle,
    key_of_bundle,
    write_bundle,
)
from model_export.configs import MiniLmConfig, RunConfig, SasRecConfig
from model_export.data.dataset import DataError, Dataset
from model_export.pipeline import stages
from model_export.pipeline.run import Run, Say
from model_export.quantizers.collisions import assign_slots
from service.core import render
from service.core.bundle import Bundle, sha256_of
from service.errors import GlyphrecError


def export(
    dataset: Dataset,
    out: Path,
    config: RunConfig,
    *,
    cache_folder: Path,
    say: Say,
    named_by_key: bool = False,
) -> Bundle:
    """Train and write a bundle to `out`, or to a folder of its own below `out` where `named_by_key`.

    A bundle of the same data, configuration and versions of the stages is kept as it is. Raises GlyphrecError
    where `out` holds anything else, or where a service could not run the configuration.
    """
    _check_servable(config)
    run = Run.of(dataset, _with_font_hash(config), cache_folder, say)
    key = key_of_bundle(run)
    if named_by_key:
        out = out / f"{config.name}-{key}"
    if (kept := kept_bundle(out, key)) is not None:
        say(f"{out}: unchanged data, configuration and code; kept as it is.")
        return kept
    if not any(len(items) > 1 for items in run.split.train) or not len(run.split.test):
        raise DataError(
            f"{dataset.name}: too little to learn from. Of a user's items the last two are for validation "
            "and test, so some users must have four or more."
        )
    say(f"{dataset.summary()}\nconfiguration {config.name}, seed {config.seed}")

    with stages.deterministic():
        say("[1/5] draw the items, read them, pool what was read")
        read = stages.read(run)
        assert read.pooling is not None
        say("[2/5] train the head and the quantizer")
        coded = stages.code(run, read.features)
        say(f"      {coded.collisions.summary()}")
        say(f"[3/5] train the {generator_name(config)} generator")
        generated = stages.generate(run, coded.codes, coded.spec, vectors=coded.vectors)
    strips = stages.draw(dataset.items, run.config)
    tokenized = TokenizedCatalog(strips, read.pooling, coded, assign_slots(coded.codes))
    return write_bundle(out, key, run, tokenized, generated)


def _with_font_hash(config: RunConfig) -> RunConfig:
    font_sha256 = sha256_of(render.FONTS / config.render.font)
    return replace(config, render=config.render.model_copy(update={"font_sha256": font_sha256}))


def _check_servable(config: RunConfig) -> None:
    """Some configurations exist for comparison only."""
    if isinstance(config.encoder, MiniLmConfig):
        reason = "its encoder reads text, and a service draws pictures"
    elif isinstance(config.generator, SasRecConfig):
        reason = "its generator knows no Semantic IDs"
    elif config.collisions == "suffix":
        reason = "a suffix numbers the items of one catalog, so a new item could have none"
    else:
        return
    raise GlyphrecError(
        f"configuration {config.name}: {reason}. It can be studied (glyphrec study) but not exported."
    )
