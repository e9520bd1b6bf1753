"""Writes a bundle: its graphs, the items, the report and the manifest. Each graph is checked against its
model.

folder.py says how the folder of a bundle comes into being.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model_export.bundle import precision, recommender, tokenizer
from model_export.bundle import ranker as ranker_graph
from model_export.bundle.folder import files_of, partial_folder, seal
from model_export.bundle.precision import try_int8
from model_export.bundle.ranker import check_ranker, export_ranker
from model_export.bundle.recommender import check_recommender, export_recommender
from model_export.bundle.report import Cost, examples_of, fields_in_words, write_report
from model_export.bundle.tokenizer import check_tokenizer, export_tokenizer, parts_of, search_vectors
from model_export.bundle.tokenizer_id import tokenizer_id
from model_export.config_changes import differences
from model_export.configs import (
    FamaeConfig,
    FamaePicturesConfig,
    MiniLmConfig,
    RankedRunConfig,
    ReadableConfig,
    RunConfig,
    TreeConfig,
)
from model_export.data.item_fields import first_categories
from model_export.data.photos import seen_of
from model_export.data.splits import training_fingerprint
from model_export.encoders import choose as choose_encoder
from model_export.encoders.famae import FieldPictures
from model_export.encoders.images.choose import image_encoder_files
from model_export.evaluation import evaluate
from model_export.evaluation.code_probes import probe_codes
from model_export.generators.base import Generator
from model_export.picture_configs import JointPicturesConfig
from model_export.pipeline.cache import key_of
from model_export.pipeline.generating import Generated
from model_export.pipeline.opinions import Weighed
from model_export.pipeline.photos import spec_of
from model_export.pipeline.ranking import TrainedRanker, versions_of_ranker
from model_export.pipeline.run import Run
from model_export.pipeline.stages import Coded, Read, Strips
from model_export.pipeline.versions import Versions, versions_of
from model_export.vl_clip.joined import JointlyRead, versions_of_joined
from model_export.vl_clip.stored_space import space_file
from service.core.bundle import (
    CO_COUNTS,
    ITEMS,
    RANKER,
    RECOMMENDER,
    TOKENIZER,
    VOCABULARY,
    Bundle,
    FormatVersion,
    Manifest,
    PictureSpec,
    RankerSpec,
    format_version_of,
    load_bundle,
)
from service.core.bundle_co_counts import write_co_counts
from service.core.bundle_vocabulary import write_vocabulary
from service.core.drawn_fields import draw_fields
from service.core.item_fields import Vocabulary
from service.core.json_lines import write_json_lines
from service.core.trie import SidTrie
from service.core.vectors import as_text, packed
from service.inference.runtime import NO_STRIPS, Tokenizer, TokenizerInput

NUM_CHECKED_ITEMS = 64  # the finished tokenizer graph reads them again
NUM_DRAWN = 12  # items on the report's page of drawings


@dataclass(frozen=True)
class TokenizedCatalog:
    """The catalog with its codes, and everything that made them."""

    strips: Strips | None  # None if fields are read, by their values or as pictures
    read: Read
    coded: Coded
    weighed: Weighed | None  # None: the counts have no say
    slots: NDArray[np.int64]  # [item]  the number of an item among those with its codes
    seconds: float  # from the items to their codes
    joint: JointlyRead | None = None  # None: there is no joint space

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The values of the fields that are read, or of the field that is the first code."""
        if self.read.famae is not None:
            return self.read.famae.vocabulary
        return None if self.coded.first is None else self.coded.first.vocabulary

    @property
    def draws_fields(self) -> bool:
        """Whether fields are read as pictures."""
        return self.read.famae is not None and isinstance(self.read.famae.tables, FieldPictures)

    @property
    def search_vectors(self) -> NDArray[np.float32]:
        """The vectors of the items that a search compares [item, dim]."""
        return search_vectors(self.read, self.coded) if self.joint is None else self.joint.vectors


def write_bundle(
    out: Path,
    key: str,
    run: Run,
    tokenized: TokenizedCatalog,
    generated: Generated,
    ranked: TrainedRanker | None = None,
) -> Bundle:
    """Write the bundle to a folder beside `out`, and rename that folder to `out` at the end.

    `key`: the result of `key_of_bundle`. `ranked`: None if the bundle has no ranker. `out` must be
    `reserved`. Raises ContractMismatch if a graph differs from its model, and GlyphrecError if another
    program changed what was written.
    """
    partial = partial_folder(out)
    partial.mkdir()
    try:
        _write_into(partial, key, run, tokenized, generated, ranked)
        if out.is_dir():
            out.rmdir()  # it is empty
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return load_bundle(out)


def _write_into(
    partial: Path,
    key: str,
    run: Run,
    tokenized: TokenizedCatalog,
    generated: Generated,
    ranked: TrainedRanker | None,
) -> None:
    bundle = _write_graphs(partial, key, run, tokenized, generated.generator)
    if ranked is not None:
        bundle = _write_ranker(bundle, run, ranked)
    written = files_of(partial)
    run.say("[5/5] evaluating the exported graphs")
    figures = evaluate.evaluate(bundle, run.dataset)
    coded = tokenized.coded
    write_report(
        partial / "report",
        title=f"{run.dataset.name}, configuration {run.config.name}",
        changes=differences(run.config),
        figures=figures,
        collisions=coded.collisions,
        quantizer=coded.quantizer_report.history,
        curve=generated.curve,
        probes=probe_codes(coded.codes, run.split.train, first_categories(run.dataset.items), coded.vectors),
        cost=_cost_of(bundle, run, tokenized),
        page=_page(run, tokenized),
        read=_read_fields(run, tokenized),
        examples=examples_of(bundle, run.dataset, run.split.test, coded.codes),
    )
    seal(bundle, figures, written)


def key_of_bundle(run: Run) -> str:
    """A key that is equal for equal data, configuration and versions of the stages.

    `run.config` must hold the hash of the font.
    """
    config = run.config
    encoder = config.encoder
    assert not isinstance(encoder, MiniLmConfig)
    if isinstance(encoder, FamaePicturesConfig):
        files = choose_encoder.encoder_files(encoder.reader)
    else:  # FAMAE is learnt from the data, so it has no files
        files = [] if isinstance(encoder, FamaeConfig) else choose_encoder.encoder_files(encoder)
    if config.pictures is not None:
        files = [*files, *image_encoder_files(config.pictures)]
    if isinstance(config.pictures, JointPicturesConfig) and config.pictures.space_folder:
        files.append(space_file(config.pictures.space_folder))
    return key_of(
        _format_version(config), run.dataset.fingerprint, config, *files, versions_of_bundle(config)
    )


def _format_version(config: RunConfig) -> FormatVersion:
    reads_fields = isinstance(config.encoder, FamaeConfig) or isinstance(config.quantizer, ReadableConfig)
    return format_version_of(
        reads_text_alone=config.pictures is None and not reads_fields,
        has_ranker=isinstance(config, RankedRunConfig),
        draws_fields=isinstance(config.encoder, FamaePicturesConfig),
    )


def versions_of_bundle(config: RunConfig) -> Versions:
    """The versions of everything that decides the content of a bundle."""
    ranking = {}
    if isinstance(config, RankedRunConfig):
        ranking = versions_of_ranker() | {"ranker_graph": ranker_graph.VERSION}
    joint = {}
    if isinstance(config.pictures, JointPicturesConfig):
        joint = versions_of_joined(config.pictures.space)
    return (
        versions_of(config)
        | ranking
        | joint
        | {
            "tokenizer_graph": tokenizer.VERSION,
            "recommender_graph": recommender.VERSION,
            "precision": precision.VERSION,
            "evaluation": evaluate.VERSION,
        }
    )


def generator_name(config: RunConfig) -> str:
    """The name of the generator in the manifest: "tree" or "tiger"."""
    return "tree" if isinstance(config.generator, TreeConfig) else "tiger"


def _write_graphs(
    folder: Path, key: str, run: Run, tokenized: TokenizedCatalog, generator: Generator
) -> Bundle:
    """Write both graphs and the items, and check each graph against its model."""
    dataset, config, say = run.dataset, run.config, run.say
    say("[4/5] exporting and checking the two graphs")
    coded, weighed = tokenized.coded, tokenized.weighed
    counts = 0.0 if weighed is None else weighed.opinions.counts
    joint = tokenized.joint
    parts = parts_of(config, tokenized.read, coded, None if joint is None else joint.part)
    pictures = None if config.pictures is None else spec_of(config.pictures)
    tokenizer_graph = export_tokenizer(
        folder / TOKENIZER, parts, sid=config.sid, render=config.render, pictures=pictures
    )
    rng = np.random.default_rng(config.seed)
    sample = rng.choice(len(dataset.items), min(NUM_CHECKED_ITEMS, len(dataset.items)), replace=False)
    inputs = _inputs_of(run, tokenized, sample.tolist(), pictures)
    checks = {
        "max_vector_difference": check_tokenizer(
            folder / TOKENIZER, parts, graph=tokenizer_graph, items=inputs
        )
    }
    if joint is not None:
        checks["joint_space_mrr"] = joint.mrr
    recommender_graph = export_recommender(
        folder / RECOMMENDER,
        generator,
        history_length=config.history_length,
        beam_limit=config.beam_limit,
        neighbor_weight=counts,
    )
    checks |= check_recommender(
        folder / RECOMMENDER,
        generator,
        SidTrie.from_codes(config.sid, coded.codes),
        history_length=config.history_length,
        beam_limit=config.beam_limit,
        seed=config.seed,
        neighbor_weight=counts,
    )
    say("      " + ", ".join(f"{name} {value:.2g}" for name, value in checks.items()))
    chosen: Literal["float32", "int8"] = "float32"
    if config.precision == "int8":
        neighbors = weighed and weighed.neighbors(coded.spec, coded.codes, dataset.item_ids)
        found = try_int8(
            folder / RECOMMENDER, recommender_graph, coded.codes, run.split.validation, config, neighbors
        )
        chosen = "int8" if found.holds else "float32"
        checks |= {f"int8_{name}": value for name, value in asdict(found).items()}
        say(
            f"      int8: {found.overlap_at_10:.1%} of the ten best items are the same as in float32. "
            f"Recall@10 on validation is {found.recall_at_10:.4f}, and {found.recall_at_10_float32:.4f} in "
            f"float32. The bundle gets {chosen}."
        )
    _write_items(folder / ITEMS, run, tokenized)
    if weighed is not None:
        checks |= {f"opinion_{name}": value for name, value in weighed.opinions.figures().items()}
        checks |= {"opinions_ndcg@10": weighed.quality, "learned_ndcg@10": weighed.learned_quality}
        checks["opinions_users"] = float(weighed.num_users)
        if counts:
            write_co_counts(folder / CO_COUNTS, weighed.rows)
    vocabulary, fields = tokenized.vocabulary, None
    if vocabulary is not None:
        drawn = tokenized.draws_fields
        beside_pixels = drawn or tokenized.strips is not None
        fields = write_vocabulary(folder / VOCABULARY, vocabulary, beside_pixels=beside_pixels, drawn=drawn)
    own_id = tokenizer_id(folder / TOKENIZER, config.render, pictures, vocabulary)
    manifest = Manifest(
        format_version=_format_version(config),
        export_key=key,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        config=config.name,
        sid=config.sid,
        render=config.render,
        pictures=pictures,
        fields=fields,
        tokenizer_id=own_id,
        recommender_id=key_of(folder / RECOMMENDER)[:12],
        trained_for_tokenizer_id=own_id,
        tokenizer=tokenizer_graph,
        recommender=recommender_graph,
        generator=generator_name(config),
        precision=chosen,
        history_length=config.history_length,
        beam_limit=config.beam_limit,
        co_counts=weighed.spec if weighed is not None and counts else None,
        data_fingerprint=dataset.fingerprint,
        items_fingerprint=dataset.items_fingerprint,
        training_fingerprint=training_fingerprint(dataset, run.split),
        data_name=dataset.name,
        num_items=len(dataset.items),
        metrics=checks,
        files={},
    )
    return Bundle(folder, manifest)


def _write_ranker(bundle: Bundle, run: Run, ranked: TrainedRanker) -> Bundle:
    """Write the third graph beside the other two, check it, and name it in the manifest."""
    path, config, manifest = bundle.file(RANKER), run.config, bundle.manifest
    graph = export_ranker(path, ranked.ranker, history_length=config.history_length)
    checks = check_ranker(path, ranked.ranker, history_length=config.history_length, seed=config.seed)
    run.say("      " + ", ".join(f"{name} {value:.2g}" for name, value in checks.items()))
    spec = RankerSpec(
        ranker_id=key_of(path)[:12],
        trained_for_tokenizer_id=manifest.tokenizer_id,
        graph=graph,
        history_length=min(ranked.ranker.history_length, config.history_length),
        parameterization=str(ranked.ranker.parameterization),
        aggregation=ranked.ranker.ranker.config.aggregation,
        num_rows=ranked.ranker.parameterization.num_rows,
    )
    metrics = manifest.metrics | checks | {"ranker_loss": ranked.loss}
    return bundle._replace(manifest=manifest.model_copy(update={"ranker": spec, "metrics": metrics}))


def _page(run: Run, tokenized: TokenizedCatalog) -> Strips | None:
    """Some items as pictures, or None if the tokenizer reads none."""
    if tokenized.strips is None and not tokenized.draws_fields:
        return None
    items = range(min(NUM_DRAWN, len(run.dataset.items)))
    return [each.strips for each in _inputs_of(run, tokenized, items, None)]


def _read_fields(run: Run, tokenized: TokenizedCatalog) -> list[str]:
    """Some items as a tokenizer of fields reads them, in words."""
    if tokenized.read.famae is None or tokenized.draws_fields:
        return []
    return [fields_in_words(item, tokenized.read.famae.vocabulary) for item in run.dataset.items[:NUM_DRAWN]]


def _cost_of(bundle: Bundle, run: Run, tokenized: TokenizedCatalog) -> Cost:
    """What the tokenizer costs, measured on some items, one at a time and on one core."""
    manifest, path = bundle.manifest, bundle.file(TOKENIZER)
    tokenizer = Tokenizer(path, manifest.tokenizer, threads=1)
    items = range(min(NUM_CHECKED_ITEMS, len(run.dataset.items)))
    inputs = _inputs_of(run, tokenized, items, manifest.pictures)
    tokenizer.run(inputs[:1])  # warm-up
    started_at = perf_counter()
    for each in inputs:
        tokenizer.run([each])
    taken_ms = 1e3 * (perf_counter() - started_at)
    return Cost(taken_ms / len(inputs), path.stat().st_size / 1e6, tokenized.seconds)


def _inputs_of(
    run: Run, tokenized: TokenizedCatalog, items: Sequence[int], pictures: PictureSpec | None
) -> list[TokenizerInput]:
    """What the tokenizer takes of some items."""
    vocabulary, strips = tokenized.vocabulary, tokenized.strips
    if tokenized.draws_fields:
        assert vocabulary is not None
        drawn = (draw_fields(run.dataset.items[item], vocabulary, run.config.render) for item in items)
        return [TokenizerInput.of_drawn(each) for each in drawn]
    fields = [None if vocabulary is None else vocabulary.read(run.dataset.items[item]) for item in items]
    if strips is None:
        return [TokenizerInput(NO_STRIPS, None, each) for each in fields]
    photos = seen_of(run.dataset, items, pictures, run.config.render)
    return [
        TokenizerInput(strips[item], photo, each)
        for item, photo, each in zip(items, photos, fields, strict=True)
    ]


def _write_items(path: Path, run: Run, tokenized: TokenizedCatalog) -> None:
    """Write the catalog with its codes and vectors, one JSON object per line.

    Popularity counts the training part.
    """
    vectors = packed(tokenized.search_vectors)
    popularity = np.bincount(np.concatenate(run.split.train), minlength=run.dataset.num_items)
    write_json_lines(
        path,
        (
            {
                "item_id": item["item_id"],
                "codes": tokenized.coded.codes[place].tolist(),
                "slot": int(tokenized.slots[place]),
                "vector": as_text(vectors[place]),
                "popularity": int(popularity[place]),
                "item": item,
            }
            for place, item in enumerate(run.dataset.items)
        ),
    )
