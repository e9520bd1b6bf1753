"""The pipeline from data to a bundle, from top to bottom.

    items ─ stages.py: draw, read, pool, head, quantize, generate ─ graphs ─ checks ─ evaluation ─ bundle

Everything is fitted on `split.train` alone. The validation users decide when the training of the generator
stops, and whether int8 is used. The test users are first used by `evaluate`, on the exported graphs.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from model_export.bundle.folder import kept_bundle, reserved
from model_export.bundle.writing import TokenizedCatalog, generator_name, key_of_bundle, write_bundle
from model_export.config_changes import differences
from model_export.configs import (
    CompactConfig,
    FamaeConfig,
    MiniLmConfig,
    RankedRunConfig,
    ReadableConfig,
    RunConfig,
    SasRecConfig,
    TreeConfig,
)
from model_export.data.dataset import DataError, Dataset
from model_export.data.item_fields import default_fields, field_as_codes
from model_export.data.splits import Targets
from model_export.encoders.compact.scripts import untaught_scripts
from model_export.generators.tree import TreeGenerator
from model_export.picture_configs import JointPicturesConfig
from model_export.pipeline import generating, stages
from model_export.pipeline.opinions import weigh
from model_export.pipeline.ranking import rank
from model_export.pipeline.run import Run, Say
from model_export.quantizers.collisions import assign_slots
from model_export.rankers.parameterizations import OF_IDS
from model_export.vl_clip import joined
from model_export.vl_clip.configs import VlClipPictures
from model_export.vl_clip.photo_reader import PX_PER_CELL
from service.core import render
from service.core.bundle import Bundle, sha256_of
from service.core.item_fields import source_of
from service.core.render import is_drawn, item_text
from service.errors import GlyphrecError

MANY_UNTAUGHT = 0.02  # a share of the letters
MANY_REPEATS = 0.05  # a share of targets in their own history that is worth a line


def export(
    dataset: Dataset,
    out: Path,
    config: RunConfig,
    *,
    cache_folder: Path,
    say: Say,
    named_by_key: bool = False,
) -> Bundle:
    """Train and write a bundle to `out`. With `named_by_key` it goes to its own folder below `out`.

    An existing bundle of the same data, configuration and versions of the stages is kept as it is. Raises
    GlyphrecError if `out` holds anything else, cannot be written or is being written by another export, or if
    no service could run the configuration. Raises DataError if the data are too few to learn from.
    """
    _check_servable(config)
    run = Run.of(dataset, _with_font_hash(config), cache_folder, say)
    key = key_of_bundle(run)
    if named_by_key:
        out = out / f"{config.name}-{key}"
    kept = kept_bundle(out, key)
    if kept is None:
        with reserved(out):
            kept = kept_bundle(out, key)  # another export may just have written it
            if kept is None:
                return _make(out, key, run)
    say(f"{out}: data, configuration and code have not changed, so the bundle is kept as it is.")
    return kept


def _make(out: Path, key: str, run: Run) -> Bundle:
    dataset, config, say = run.dataset, run.config, run.say
    if not any(len(items) > 1 for items in run.split.train) or not len(run.split.test):
        raise DataError(
            f"{dataset.name}: there is too little to learn from. The last two items of a user are for "
            "validation and test, so some users must have four or more items."
        )
    say(f"{dataset.summary()}\nconfiguration {config.name}, seed {config.seed}")
    for line in differences(config):
        say(f"  {line}")
    if (validation := run.split.validation).repeated_share > MANY_REPEATS:
        say(_repeats(validation))

    _check_noticed(run)
    if isinstance(config.encoder, CompactConfig) and (warning := _untaught(run)):
        say(warning)
    if dataset.images and config.pictures is None:
        say(
            f"  note: {len(dataset.images):,} items have a photo, which the configuration {config.name} does "
            "not read. To read photos too, export with --config pictures."
        )

    with stages.deterministic():
        started_at = perf_counter()
        say("[1/5] reading the items")
        read = stages.read(run)
        say("[2/5] training the head and the quantizer")
        coded = stages.code(run, read)
        joint = joined.read_jointly(run) if isinstance(config.pictures, JointPicturesConfig) else None
        seconds = perf_counter() - started_at
        say(f"      {coded.collisions.summary()}")
        say(f"[3/5] training the {generator_name(config)} generator")
        generated = generating.generate(run, coded.codes, coded.spec, vectors=coded.vectors)
        weighed = None
        if run.config.opinions is not None:
            assert isinstance(generated.generator, TreeGenerator)
            weighed = weigh(run, generated.generator, coded.codes, coded.vectors, read.text, read.photos)
        ranked = None
        if isinstance(run.config, RankedRunConfig):
            ranked = rank(run, coded.codes, coded.spec, weighed and weighed.counting)
            say(f"      the ranker's loss at the end is {ranked.loss:.4f}")
    strips = None if read.famae is not None else stages.draw(dataset.items, run.config)
    tokenized = TokenizedCatalog(strips, read, coded, weighed, assign_slots(coded.codes), seconds, joint)
    return write_bundle(out, key, run, tokenized, generated, ranked)


def _untaught(run: Run) -> str | None:
    """A warning about letters that the compact reader was not taught, if there are many."""
    scripts = untaught_scripts(item_text(item, run.config.render) for item in run.dataset.items)
    if (share := sum(scripts.values())) <= MANY_UNTAUGHT:
        return None
    named = ", ".join(f"{script} {part:.0%}" for script, part in list(scripts.items())[:3])
    return (
        f"  warning: the compact reader was not taught {share:.0%} of the letters ({named}). It tells such "
        "texts apart less well. Export with --config pp-ocr-base, and compare."
    )


def _check_noticed(run: Run) -> None:
    """Raise GlyphrecError if an item could change in a field that is read, and its text would stay the same.

    A service reads an item again if its text has changed.
    """
    config, items = run.config, run.dataset.items
    names: Sequence[str] = ()
    if isinstance(config.encoder, FamaeConfig):
        names = config.encoder.fields or default_fields(items)
    elif isinstance(config.quantizer, ReadableConfig):
        names = field_as_codes(items, config.quantizer.field, config.sid.levels[0]).vocabulary.names
    read = {source_of(name) for name in names}
    if lacking := sorted(name for name in read if not is_drawn(name, run.config.render)):
        raise GlyphrecError(
            f"render.fields lacks {', '.join(lacking)}, which the tokenizer reads, so a service would not "
            f"see that an item has changed there. Add {'it' if len(lacking) == 1 else 'them'}, or '*' for "
            "all fields."
        )


def _repeats(validation: Targets) -> str:
    found = f"{validation.repeated_share:.0%} of the validation targets are in the user's own history."
    if validation.are_repeats:
        return (
            f"{found} So the model is validated with the history among the answers. Ask POST /recommend with "
            '"exclude_history": false.'
        )
    return f"{found} Pages without the history cannot have them."


def _with_font_hash(config: RunConfig) -> RunConfig:
    font_sha256 = sha256_of(render.FONTS / config.render.font)
    return replace(config, render=config.render.model_copy(update={"font_sha256": font_sha256}))


def _check_servable(config: RunConfig) -> None:
    """Raise GlyphrecError for configurations that exist for comparison only."""
    if isinstance(config.encoder, FamaeConfig) and config.pictures is not None:
        reason = "its encoder reads fields, and a tokenizer reads either those or photos"
    elif isinstance(config.encoder, FamaeConfig) and isinstance(config.quantizer, ReadableConfig):
        reason = "its encoder reads fields, and its first code is one of them"
    elif isinstance(config.encoder, MiniLmConfig):
        reason = "its encoder reads text, but a service draws pictures"
    elif isinstance(config.generator, SasRecConfig):
        reason = "its generator does not use Semantic IDs"
    elif config.pictures is not None and config.pictures.is_late:
        reason = "its late fusion is not in the tokenizer graph"
    elif isinstance(config.pictures, VlClipPictures):
        reason = "its codes come from a joint space, which is not in the tokenizer graph"
    elif isinstance(config, RankedRunConfig) and config.ranker.parameterization in OF_IDS:
        reason = "its ranker reads the ids of items, which a new item does not have in the table"
    elif config.collisions == "suffix":
        reason = "a suffix numbers the items of one catalog, so a new item cannot get one"
    elif isinstance(config.pictures, JointPicturesConfig) and (problem := _joint_problem(config)):
        raise GlyphrecError(f"configuration {config.name}: {problem}")
    elif config.opinions is not None and not isinstance(config.generator, TreeConfig):
        raise GlyphrecError(
            f"configuration {config.name}: opinions are weighed for the generator `tree` only. Set "
            "opinions=None."
        )
    else:
        return
    raise GlyphrecError(
        f"configuration {config.name}: {reason}. `glyphrec study` can run it, but it cannot be exported. "
        "Choose another configuration."
    )


def _joint_problem(config: RunConfig) -> str | None:
    """What keeps a tokenizer graph from holding the joint space, with the remedy. None if nothing does."""
    pictures = config.pictures
    assert isinstance(pictures, JointPicturesConfig)
    if not isinstance(config.encoder, CompactConfig):
        return "the joint space reads texts with the compact reader. Set encoder.type=compact."
    if pictures.kind != "efficientnet-lite0":
        return "the joint space reads photos with EfficientNet-Lite0. Set pictures.kind=efficientnet-lite0."
    if pictures.size_px % PX_PER_CELL:
        return f"pictures.size_px = {pictures.size_px}: the joint space wants a multiple of {PX_PER_CELL}."
    if not pictures.space_folder and pictures.space.size_px != pictures.size_px:
        return (
            f"pictures.size_px = {pictures.size_px} and pictures.space.size_px = {pictures.space.size_px}: "
            "both read the same photo. Set them to the same number."
        )
    return None
