"""The pipeline from data to bundle, top to bottom.

    items ─ stages.py: draw, read, pool, head, quantise, generate ─ graphs ─ checks ─ evaluation ─ bundle

Only `split.train` goes into anything that is fitted; validation users decide when the generator stops; test
users are met first by `evaluate`, on the exported graphs.
"""

import gzip
import json
import shutil
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_export.bundle import precision, recommender, tokenizer
from model_export.bundle.precision import Agreement
from model_export.bundle.recommender import check_recommender, export_recommender
from model_export.bundle.report import Example, write_report
from model_export.bundle.tokenizer import check_tokenizer, export_tokenizer
from model_export.configs import MiniLmConfig, RunConfig, SasRecConfig, TreeConfig
from model_export.data.dataset import DataError, Dataset
from model_export.data.splits import Split, leave_one_out
from model_export.encoders import choose as choose_encoder
from model_export.encoders.base import Pooling
from model_export.encoders.choose import make_encoder
from model_export.evaluation import evaluate, ranking
from model_export.generators import training
from model_export.generators.base import Generator
from model_export.pipeline import stages
from model_export.pipeline.cache import StageCache, key_of
from model_export.pipeline.stages import Coded, Say, Strips
from model_export.quantizers.collisions import assign_slots
from service.core import bundle as contract
from service.core import render
from service.core.bundle import (
    FORMAT_VERSION,
    ITEMS,
    MANIFEST,
    RECOMMENDER,
    TOKENIZER,
    Bundle,
    FileRecord,
    Manifest,
    load_bundle,
    sha256_of,
)
from service.core.graphs import GraphSpec, beam_widths
from service.core.render import item_text
from service.core.trie import SidTrie
from service.errors import GlyphrecError
from service.inference.runtime import RecommenderSession

NUM_CHECKED_ITEMS = 64  # read again by the finished tokenizer graph
NUM_CALIBRATION_RUNS = 64  # histories that set the scales of int8
NUM_EXAMPLES = 5
NUM_DRAWN = 12


@dataclass(frozen=True)
class Tokenized:
    """The catalogue with its codes, and all that made them."""

    strips: Strips
    pooling: Pooling
    coded: Coded
    slots: NDArray[np.int64]  # [item]


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

    A bundle of exactly this data, configuration and code is kept as it is. Raises GlyphrecError where `out`
    holds anything else, or where a service could not run the configuration.
    """
    _check_servable(config)
    config = _with_font_hash(config)
    key = key_of(
        FORMAT_VERSION, dataset.fingerprint, config, *choose_encoder.encoder_files(config.encoder),
        *stages.modules_of(config), *CODE,
    )  # fmt: skip
    if named_by_key:
        out = out / f"{config.name}-{key}"
    if (kept := _kept_bundle(out, key)) is not None:
        say(f"{out}: unchanged data, configuration and code; kept as it is.")
        return kept
    cache = StageCache(cache_folder)
    split = leave_one_out(dataset)
    if not any(len(items) > 1 for items in split.train) or not len(split.test):
        raise DataError(
            f"{dataset.name}: too little to learn from. Of a user's items the last two are for validation "
            "and test, so some users must have four or more."
        )
    say(f"{dataset.summary()}\nconfiguration {config.name}, seed {config.seed}")

    with stages.deterministic():
        say("[1/5] draw the items, read them, pool what was read")
        read = stages.read(dataset.items, config, cache, say)
        assert read.pooling is not None
        say("[2/5] train the head and the quantiser")
        coded = stages.code(read.features, dataset.item_ids, split, config, cache)
        say(f"      {coded.collisions.summary()}")
        say(f"[3/5] train the {generator_name(config)} generator")
        generator, curve = stages.generate(
            coded.codes, coded.spec, split, config, cache, vectors=coded.vectors
        )
    strips = stages.draw(dataset.items, config)
    tokenized = Tokenized(strips, read.pooling, coded, assign_slots(coded.codes))

    partial = out.with_name(f".partial-{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    bundle = _write_graphs(partial, key, dataset, split, tokenized, generator, config, say)
    say("[5/5] evaluate the exported graphs")
    figures = evaluate.evaluate(bundle, dataset)
    write_report(
        partial / "report",
        title=f"{dataset.name}, configuration {config.name}",
        figures=figures,
        collisions=coded.collisions,
        quantizer=coded.quantizer_report.history,
        curve=curve,
        page=strips[:NUM_DRAWN],
        examples=_examples(bundle, dataset, split, coded.codes),
    )
    _seal(bundle, figures)
    partial.rename(out)
    return load_bundle(out)


def _write_graphs(
    folder: Path,
    key: str,
    dataset: Dataset,
    split: Split,
    tokenized: Tokenized,
    generator: Generator,
    config: RunConfig,
    say: Say,
) -> Bundle:
    """Write both graphs and the items, and hold the graphs to the models they came from."""
    say("[4/5] export the two graphs and check them")
    coded = tokenized.coded
    body = make_encoder(config.render, config.encoder, config.seed).body()
    parts = (body, tokenized.pooling, coded.head, coded.quantizer)
    tokenizer_graph = export_tokenizer(folder / TOKENIZER, *parts, sid=config.sid, render=config.render)
    rng = np.random.default_rng(config.seed)
    sample = rng.choice(len(dataset.items), min(NUM_CHECKED_ITEMS, len(dataset.items)), replace=False)
    strips = [tokenized.strips[item] for item in sample]
    checks = {
        "max_vector_difference": check_tokenizer(
            folder / TOKENIZER, *parts, graph=tokenizer_graph, items=strips
        )
    }
    recommender_graph = export_recommender(
        folder / RECOMMENDER, generator, history_length=config.history_length, beam_limit=config.beam_limit
    )
    checks |= check_recommender(
        folder / RECOMMENDER,
        generator,
        SidTrie.from_codes(config.sid, coded.codes),
        history_length=config.history_length,
        beam_limit=config.beam_limit,
        seed=config.seed,
    )
    say("      " + ", ".join(f"{name} {value:.2g}" for name, value in checks.items()))
    chosen = "float32"
    if config.precision == "int8":
        found = _try_int8(folder / RECOMMENDER, recommender_graph, coded.codes, split, config)
        chosen = "int8" if found.holds else "float32"
        checks |= {f"int8_{name}": value for name, value in asdict(found).items()}
        say(
            f"      int8: {found.overlap_at_10:.1%} of the ten best as in float32, Recall@10 on validation "
            f"{found.recall_at_10:.4f} after {found.recall_at_10_float32:.4f}; {chosen} is kept"
        )
    _write_items(folder / ITEMS, dataset, split, tokenized)
    tokenizer_id = key_of(folder / TOKENIZER, config.render, render)[:12]
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        export_key=key,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        config=config.name,
        sid=config.sid,
        render=config.render,
        tokenizer_id=tokenizer_id,
        recommender_id=key_of(folder / RECOMMENDER)[:12],
        trained_for_tokenizer_id=tokenizer_id,
        tokenizer=tokenizer_graph,
        recommender=recommender_graph,
        generator=generator_name(config),
        precision=chosen,
        history_length=config.history_length,
        beam_limit=config.beam_limit,
        data_fingerprint=dataset.fingerprint,
        data_name=dataset.name,
        num_items=len(dataset.items),
        metrics=checks,
        files={},
    )
    return Bundle(folder, manifest)


def _try_int8(
    path: Path, graph: GraphSpec, codes: NDArray[np.int64], split: Split, config: RunConfig
) -> Agreement:
    """Put an int8 graph in the place of the float32 one at `path` if they agree on validation users."""
    users = training.some_users(split.validation, config.training.max_validation_users, config.seed)
    catalogue = ranking.ItemsOfCodes.build(config.sid, codes)
    tables, num_beams = catalogue.trie.tables, min(evaluate.NUM_BEAMS, config.beam_limit)

    def pages(session: RecommenderSession) -> NDArray[np.int32]:
        return ranking.rank_items(
            ranking.search_by(session, catalogue),
            catalogue,
            users.histories,
            k=precision.PAGE,
            history_length=config.history_length,
            num_beams=num_beams,
            beam_limit=config.beam_limit,
            batch_size=evaluate.BATCH,
        )

    float32 = RecommenderSession(path, graph, threads=1)
    windows = [history[-config.history_length :] for history in users.histories[:NUM_CALIBRATION_RUNS]]
    widths = beam_widths(config.sid, num_beams)
    runs = [float32.feeds(codes[window][None], tables, widths) for window in windows if len(window)]
    int8 = path.with_suffix(".int8.onnx")
    precision.write_int8(path, int8, runs)
    found = precision.agreement(
        pages(RecommenderSession(int8, graph, threads=1)), pages(float32), users.targets
    )
    if found.holds:
        int8.replace(path)
    int8.unlink(missing_ok=True)
    return found


def _write_items(path: Path, dataset: Dataset, split: Split, tokenized: Tokenized) -> None:
    """The catalogue with its codes, one JSON object a line; popularity counts the training part."""
    popularity = np.bincount(np.concatenate(split.train), minlength=len(dataset.items))
    with path.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file:
        for place, item in enumerate(dataset.items):
            row = {
                "item_id": item["item_id"],
                "codes": tokenized.coded.codes[place].tolist(),
                "slot": int(tokenized.slots[place]),
                "popularity": int(popularity[place]),
                "item": item,
            }
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _examples(bundle: Bundle, dataset: Dataset, split: Split, codes: NDArray[np.int64]) -> list[Example]:
    manifest, test = bundle.manifest, split.test
    session = RecommenderSession(bundle.file(RECOMMENDER), manifest.recommender, threads=1)
    catalogue = ranking.ItemsOfCodes.build(manifest.sid, codes)
    users = np.random.default_rng(0).choice(
        len(test.users), size=min(NUM_EXAMPLES, len(test.users)), replace=False
    )

    ranked = ranking.rank_items(
        ranking.search_by(session, catalogue),
        catalogue,
        [test.histories[user] for user in users],
        k=5,
        history_length=manifest.history_length,
        num_beams=min(evaluate.NUM_BEAMS, manifest.beam_limit),
        beam_limit=manifest.beam_limit,
        batch_size=NUM_EXAMPLES,
    )
    words = [item_text(item, manifest.render)[:100] for item in dataset.items]
    return [
        Example(
            history=[words[item] for item in test.histories[user][-5:]],
            recommended=[words[item] for item in items if item >= 0],
            target=words[test.targets[user]],
        )
        for user, items in zip(users, ranked, strict=True)
    ]


def _seal(bundle: Bundle, figures: dict[str, float]) -> None:
    """Write the manifest, last of all: a folder without one is no bundle."""
    files = {
        str(path.relative_to(bundle.path)): FileRecord(sha256=sha256_of(path), num_bytes=path.stat().st_size)
        for path in sorted(bundle.path.rglob("*"))
        if path.is_file()
    }
    manifest = bundle.manifest.model_copy(
        update={"files": files, "metrics": bundle.manifest.metrics | figures}
    )
    bundle.file(MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _kept_bundle(out: Path, key: str) -> Bundle | None:
    if not out.exists():
        return None
    if not (out / MANIFEST).is_file():
        raise GlyphrecError(f"{out}: exists and is no bundle. Give another --out, or delete it.")
    bundle = load_bundle(out)
    if bundle.manifest.export_key != key:
        raise GlyphrecError(
            f"{out}: holds another bundle (configuration {bundle.manifest.config}, data "
            f"{bundle.manifest.data_name}), and bundles are never edited. Give another --out, or delete it."
        )
    return bundle


def _with_font_hash(config: RunConfig) -> RunConfig:
    font_sha256 = sha256_of(render.FONTS / config.render.font)
    return replace(config, render=config.render.model_copy(update={"font_sha256": font_sha256}))


def generator_name(config: RunConfig) -> str:
    return "tree" if isinstance(config.generator, TreeConfig) else "tiger"


def _check_servable(config: RunConfig) -> None:
    """Some configurations exist for comparison only."""
    if isinstance(config.encoder, MiniLmConfig):
        reason = "its encoder reads text, and a service draws pictures"
    elif isinstance(config.generator, SasRecConfig):
        reason = "its generator knows no Semantic IDs"
    elif config.collisions == "suffix":
        reason = "a suffix numbers the items of one catalogue, so a new item could have none"
    else:
        return
    raise GlyphrecError(
        f"configuration {config.name}: {reason}. It can be studied (glyphrec study) but not exported."
    )


# A change to any of these makes another bundle, beside the modules of the configuration's stages.
CODE = (
    recommender, precision, tokenizer, evaluate, contract, render, stages,
)  # fmt: skip
