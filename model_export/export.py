"""The pipeline from data to bundle, top to bottom.

    items ─ draw ─ read (OCR) ─ pool ─ head ─ RQ-VAE ─ codes ─ collisions ─ generator ─ graphs ─ checks ─
    bundle

Each stage is kept under a key of its inputs, its configuration and its code, so an interrupted or changed run
repeats only what must be. Only `split.train` goes into anything that is fitted; validation users decide when
the generator stops; test users are met first by `evaluate`, on the exported graphs.
"""

import gzip
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_export import beam_search, evaluate, precision, ranking, recommender, tokenizer, training
from model_export.cache import StageCache, key_of
from model_export.configs import RunConfig, TreeConfig
from model_export.data.dataset import DataError, Dataset
from model_export.data.splits import Split, leave_one_out
from model_export.encoders import head as head_module
from model_export.encoders import pp_ocr, visual_words
from model_export.encoders.base import Pooling, Reading
from model_export.encoders.head import ItemHead, train_head
from model_export.encoders.pp_ocr import PpOcr
from model_export.generators import base as generator_base
from model_export.generators import seen_prefixes, tiger, tree
from model_export.generators.base import Generator
from model_export.generators.tiger import TigerGenerator
from model_export.generators.tree import TreeGenerator
from model_export.precision import Agreement
from model_export.quantizers import base as quantizer_base
from model_export.quantizers import collisions, rq_vae, sinkhorn
from model_export.quantizers.base import QuantizerReport, ResidualQuantizer
from model_export.quantizers.collisions import CollisionReport, assign_slots, reassign_collisions
from model_export.quantizers.rq_vae import train_rq_vae
from model_export.recommender import check_recommender, export_recommender
from model_export.report import Example, write_report
from model_export.tokenizer import check_tokenizer, export_tokenizer
from model_export.training import Curve, train_generator
from service import contract, render
from service.contract import (
    FORMAT_VERSION,
    ITEMS,
    MANIFEST,
    RECOMMENDER,
    TOKENIZER,
    Bundle,
    FileRecord,
    GraphSpec,
    Manifest,
    beam_widths,
    load_bundle,
    sha256_of,
)
from service.errors import GlyphrecError
from service.render import item_text, render_text
from service.runtime import RecommenderSession
from service.trie import SidTrie

NUM_CHECKED_ITEMS = 64  # read again by the finished tokenizer graph
NUM_CALIBRATION_RUNS = 64  # histories that set the scales of int8
NUM_EXAMPLES = 5
NUM_DRAWN = 12

Say = Callable[[str], None]


@dataclass(frozen=True)
class Tokenized:
    """The catalogue with its codes, and all that made them."""

    strips: list[NDArray[np.uint8]]  # of each item [strip, height, width]
    features: NDArray[np.float32]  # [item, feature]
    pooling: Pooling
    head: ItemHead
    quantizer: ResidualQuantizer
    quantizer_report: QuantizerReport
    codes: NDArray[np.int64]  # [item, level], after reassignment
    slots: NDArray[np.int64]  # [item]
    collisions: CollisionReport


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
    holds anything else.
    """
    config = _with_font_hash(config)
    key = key_of(FORMAT_VERSION, dataset.fingerprint, config, *CODE)
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

    with _deterministic():
        tokenized = _tokenize(dataset.items, split.train, config, cache, say)
        generator, curve = _train_generator(tokenized.codes, split, config, cache, say)

    partial = out.with_name(f".partial-{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    bundle = _write_graphs(partial, key, dataset, split, tokenized, generator, config, say)
    say("[7/7] evaluate the exported graphs")
    figures = evaluate.evaluate(bundle, dataset)
    write_report(
        partial / "report",
        title=f"{dataset.name}, configuration {config.name}",
        figures=figures,
        collisions=tokenized.collisions,
        quantizer=tokenized.quantizer_report.history,
        curve=curve,
        page=tokenized.strips[:NUM_DRAWN],
        examples=_examples(bundle, dataset, split, tokenized.codes),
    )
    _seal(bundle, figures)
    partial.rename(out)
    return load_bundle(out)


def _tokenize(
    items: Sequence[dict[str, Any]],
    train: list[NDArray[np.int32]],
    config: RunConfig,
    cache: StageCache,
    say: Say,
) -> Tokenized:
    """Everything up to codes. `train` holds the training parts of the sequences and nothing else."""
    spec, seed = config.render, config.seed
    texts = [item_text(item, spec) for item in items]
    say(f"[1/7] draw {len(texts):,} items and read them")
    rendered = [render_text(text, spec) for text in texts]
    _report_drawing(rendered, say)
    strips = [drawn.strips for drawn in rendered]
    encoder = PpOcr(spec, config.encoder, seed)

    inputs: tuple[Any, ...] = (texts, spec, seed, pp_ocr.model_file(), render, pp_ocr)
    path = cache.path("reading", ".npz", *inputs)
    if not path.exists():
        parts = cache.path("reading", ".parts", *inputs)
        parts.mkdir(exist_ok=True)
        encoder.read(strips, parts).save(path)
        shutil.rmtree(parts)
    reading = Reading.load(path)

    say("[2/7] pool what was read into visual words")
    inputs = (*inputs, config.encoder, visual_words)
    pooling: Pooling = _stage(cache, "pooling", inputs, lambda: encoder.fit(reading))
    features: NDArray[np.float32] = _stage(cache, "features", inputs, lambda: pooling.pool(reading))

    say("[3/7] train the head on what was bought close together")
    inputs = (*inputs, config.head, train, head_module)
    head: ItemHead = _stage(cache, "head", inputs, lambda: train_head(features, train, config.head, seed))
    vectors = head.vectors(features)

    say("[4/7] train the RQ-VAE")
    inputs = (*inputs, config.quantizer, config.sid, rq_vae, quantizer_base)
    quantizer, report = _stage(
        cache, "rq-vae", inputs, lambda: train_rq_vae(vectors, config.sid, config.quantizer, seed=seed)
    )
    item_ids = [item["item_id"] for item in items]
    codes, collided = _codes(quantizer, vectors, item_ids)
    say(f"      {collided.summary()}")
    slots = assign_slots(codes)
    return Tokenized(strips, features, pooling, head, quantizer, report, codes, slots, collided)


@torch.no_grad()
def _codes(
    quantizer: ResidualQuantizer, vectors: NDArray[np.float32], item_ids: Sequence[str]
) -> tuple[NDArray[np.int64], CollisionReport]:
    """Codes [item, level] with collisions reassigned at the last level."""
    data = torch.from_numpy(vectors)  # [item, dim]
    reassigned = reassign_collisions(
        quantizer.encode(data).numpy(),
        quantizer.latents(data).numpy(),
        [codebook.numpy() for codebook in quantizer.codebooks],
        item_ids,
    )
    return reassigned.codes, reassigned.report


def _train_generator(
    codes: NDArray[np.int64], split: Split, config: RunConfig, cache: StageCache, say: Say
) -> tuple[Generator, Curve]:
    say(f"[5/7] train the {generator_name(config)} generator")
    torch.manual_seed(config.seed)
    generator = make_generator(config, codes, split.train)
    inputs = (
        codes, split.train, split.validation.targets, config.sid, config.generator, config.training,
        config.history_length, config.seed, training, ranking, beam_search, generator_base,
        seen_prefixes, tree, tiger,
    )  # fmt: skip
    path = cache.path("generator", ".pt", *inputs)
    if not path.exists():
        curve = train_generator(
            generator,
            codes=codes,
            split=split,
            config=config.training,
            history_length=config.history_length,
            seed=config.seed,
            checkpoint=cache.path("generator", ".checkpoint", *inputs),
        )
        cache.make(path, lambda target: torch.save((generator.state_dict(), curve), target))
        cache.path("generator", ".checkpoint", *inputs).unlink(missing_ok=True)
    weights, curve = torch.load(path, weights_only=False)  # this user's own cache
    generator.load_state_dict(weights)
    return generator.eval(), curve


def make_generator(config: RunConfig, codes: NDArray[np.int64], train: list[NDArray[np.int32]]) -> Generator:
    """An untrained generator of the configuration. Seed torch before."""
    seen_codes = codes[np.unique(np.concatenate(train))]
    if isinstance(config.generator, TreeConfig):
        return TreeGenerator(
            config=config.generator,
            spec=config.sid,
            history_length=config.history_length,
            seen_codes=seen_codes,
        )
    return TigerGenerator(config=config.generator, spec=config.sid, seen_codes=seen_codes)


def generator_name(config: RunConfig) -> str:
    return "tree" if isinstance(config.generator, TreeConfig) else "tiger"


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
    say("[6/7] export the two graphs and check them")
    body = PpOcr(config.render, config.encoder, config.seed).body()
    parts = (body, tokenized.pooling, tokenized.head, tokenized.quantizer)
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
        SidTrie.from_codes(config.sid, tokenized.codes),
        history_length=config.history_length,
        beam_limit=config.beam_limit,
        seed=config.seed,
    )
    say("      " + ", ".join(f"{name} {value:.2g}" for name, value in checks.items()))
    chosen = "float32"
    if config.precision == "int8":
        found = _try_int8(folder / RECOMMENDER, recommender_graph, tokenized.codes, split, config)
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
        def search(history: NDArray[np.int64], num_beams: int) -> ranking.Found:
            beams = session.run(history, tables, beam_widths(config.sid, num_beams))
            return ranking.Found(beams.codes, beams.scores)

        return ranking.rank_items(
            search,
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
                "codes": tokenized.codes[place].tolist(),
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

    def search(history: NDArray[np.int64], num_beams: int) -> ranking.Found:
        beams = session.run(history, catalogue.trie.tables, beam_widths(manifest.sid, num_beams))
        return ranking.Found(beams.codes, beams.scores)

    ranked = ranking.rank_items(
        search,
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


@contextmanager
def _deterministic() -> Iterator[None]:
    """A seed gives the same bundle again. Otherwise threads add up gradients in whatever order they end."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # a GPU lacks some; it warns and goes on
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _stage(cache: StageCache, name: str, inputs: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """What `make` returns, from the cache where these inputs were seen before."""
    path = cache.path(name, ".pt", *inputs)
    if not path.exists():
        value = make()
        cache.make(path, lambda target: torch.save(value, target))
    return torch.load(path, weights_only=False)  # this user's own cache


def _report_drawing(rendered: Sequence[render.Rendered], say: Say) -> None:
    num_strips = sum(len(drawn.strips) for drawn in rendered)
    truncated = sum(drawn.truncated for drawn in rendered)
    missing = sorted(set("".join(drawn.missing for drawn in rendered)))
    say(f"      {num_strips:,} strips; {truncated:,} items too long, cut at the end")
    if missing:
        shown = " ".join(f"{char} (U+{ord(char):04X})" for char in missing[:10])
        say(f"      {len(missing)} characters the font lacks, drawn as their code points: {shown}")


# A change to any of these makes another bundle.
CODE = (
    pp_ocr, visual_words, head_module, quantizer_base, rq_vae, collisions, sinkhorn, seen_prefixes, tree,
    tiger, generator_base, beam_search, training, ranking, recommender, precision, tokenizer, evaluate,
    contract, render,
)  # fmt: skip
