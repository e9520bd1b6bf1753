"""Runs the cells that are missing, in the order of the plan, and stores each as soon as it is finished."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.bundle import tokenizer
from model_export.bundle.writing import versions_of_bundle
from model_export.configs import (
    HubEncoderConfig,
    SasRecConfig,
)
from model_export.data.dataset import Dataset
from model_export.data.item_fields import first_categories
from model_export.data.splits import Split, Targets, leave_one_out
from model_export.encoders.fusion import NUM_FLAGS, without_photos, without_texts
from model_export.evaluation.baselines import counting, training_free, transition_hops
from model_export.evaluation.baselines.counting import Markov, Neighbors, Popularity
from model_export.evaluation.baselines.training_free import TrainingFreeSum
from model_export.evaluation.baselines.transition_hops import TransitionHops
from model_export.evaluation.code_probes import probe_codes
from model_export.evaluation.metrics import codebook_use, collisions, ndcg_at, target_ranks
from model_export.evaluation.reach import coverage
from model_export.generators.sasrec import codes_of_items
from model_export.generators.tree import TreeGenerator
from model_export.pipeline import generating, stages, versions
from model_export.pipeline.cache import StageCache, key_of
from model_export.pipeline.opinions import weigh
from model_export.pipeline.run import Run, Say
from model_export.pipeline.stages import Coded, Read
from model_export.pipeline.versions import Versions
from model_export.quantizers.base import lost_variance
from model_export.study import cells, cold, late_fusion, overlap, ranks, robustness
from model_export.study.cell import Cell
from model_export.study.cells import CellResult
from model_export.study.late_fusion import generate_late, is_late, late_codes
from model_export.study.plan import Plan
from model_export.study.ranks import K, Ranks
from model_export.study.vl_clip import is_vl_clip, read_jointly, versions_of_space
from service.core import render
from service.core.bundle import RenderSpec
from service.core.progress import ProgressBar
from service.core.render import item_text
from service.core.sid import SidSpec
from service.errors import GlyphrecError

NO_RANKS = np.zeros(0, np.uint8)
COVERAGE = f"coverage@{K}"

Baseline = Popularity | Markov | Neighbors | TransitionHops | TrainingFreeSum


class Work:
    """One cell with one seed on one data set."""

    def __init__(self, cell: Cell, dataset: Dataset, seed: int) -> None:
        self.cell, self.dataset = cell, dataset
        self.config = replace(cell.config, seed=seed)

    @property
    def key(self) -> str:
        """A hash of everything that the figures depend on. If it differs, the cell is run again."""
        cell, config = self.cell, self.config
        opinions = () if config.opinions is None else (config.opinions,)
        pictures = () if config.pictures is None else (config.pictures,)
        codes = (
            config.encoder, config.render, config.head, config.quantizer, config.sid, config.collisions,
        )  # fmt: skip
        generator = (config.generator, config.training, config.history_length, config.beam_limit, config.seed)
        if isinstance(config.generator, SasRecConfig):
            parts: tuple[Any, ...] = generator
        elif cell.question == "robustness":
            parts = (*codes, config.seed)
        elif cell.question == "overlap":
            parts = (*codes[:2], *pictures)
        elif cell.counting == "item_knn":
            parts = (*codes[:3], config.seed)
        elif cell.counting:
            parts = ()
        else:
            parts = (*codes, *generator, *opinions, *pictures)
        return key_of(self.dataset.fingerprint, cell.counting, cell.question, cell.shuffled, *parts)

    @property
    def made_with(self) -> Versions:
        """Today's versions of the stages behind the figures. The report marks cells with other versions."""
        return versions_of_cell(self.cell)


def versions_of_cell(cell: Cell) -> Versions:
    """The versions of the stages that the cell runs, and of the code that computes figures from them."""
    config = cell.config
    reads_pictures = not isinstance(config.encoder, cold.Offline)
    match cell.question:
        case "robustness":
            graph = {"tokenizer_graph": tokenizer.VERSION} if reads_pictures else {}
            return versions.of_codes(config) | graph | {"robustness": robustness.VERSION}
        case "overlap":
            assert config.pictures is not None
            read = versions.of_reading(config) | versions.of_photos(config.pictures)
            return read | {"overlap": overlap.VERSION}
        case "cold":
            found = versions_of_bundle(config) if reads_pictures else versions.versions_of(config)
            found.pop("evaluation", None)  # the report of the bundle; `cold` computes its own figures
            return found | {"cold": cold.VERSION}
        case "cold_units":
            return versions.versions_of(config) | {"cold": cold.VERSION}
    match cell.counting:
        case "item_knn":
            return versions.of_vectors(config) | {"baselines": counting.VERSION}
        case "tgh":
            return {"drawing": render.VERSION, "transition_hops": transition_hops.VERSION}
        case "sum":
            return {"drawing": render.VERSION, "training_free": training_free.VERSION}
        case None:
            late = {"late_fusion": late_fusion.VERSION} if is_late(config.pictures) else {}
            joint = versions_of_space(config.pictures) if is_vl_clip(config.pictures) else {}
            return versions.versions_of(config) | late | joint | {"ranks": ranks.VERSION}
    return {"baselines": counting.VERSION}


def works_of(plan: Plan, datasets: Mapping[str, Dataset]) -> list[Work]:
    """The work of a plan. The first seeds of all cells come before all second seeds."""
    most = max((cell.num_seeds for cell in plan.cells), default=0)
    return [
        Work(cell, dataset, seed)
        for seed in range(most)
        for cell in plan.cells
        for dataset in datasets.values()
        if seed < cell.num_seeds and cell.runs_on(dataset)
    ]


def run_study(
    plan: Plan, datasets: Mapping[str, Dataset], *, store: Path, cache_folder: Path, say: Say
) -> None:
    """Run the cells of the plan that `store` lacks, and save their results there."""
    works = works_of(plan, datasets)
    cache = StageCache(cache_folder)
    splits = {name: leave_one_out(dataset) for name, dataset in datasets.items()}
    missing = [work for work in works if kept_result(work, store) is None]
    say(f"{len(works)} cells, {len(works) - len(missing)} of them already finished")
    for work in ProgressBar(missing, desc="cells", unit="cell"):
        say(f"{work.dataset.name}, {work.cell.label} ({work.cell.name}), seed {work.config.seed}")
        try:
            result = run_cell(work, splits[work.dataset.name], cache, say)
        except GlyphrecError as error:
            if not isinstance(work.config.encoder, HubEncoderConfig):
                raise
            say(f"      left out: {error}")
            continue
        cells.save(store, result)


def kept_result(work: Work, store: Path) -> CellResult | None:
    """The stored result, or None if there is none for today's configuration and data.

    Label and groups are those of the plan.
    """
    kept = cells.load(store, work.dataset.name, work.cell.name, work.config.seed)
    if kept is None or kept.key != work.key:
        return None
    return replace(kept, label=work.cell.label, groups=work.cell.groups)


def kept_results(works: Sequence[Work], store: Path) -> list[CellResult]:
    """The stored results of `works`, without those that are missing."""
    found = (kept_result(work, store) for work in works)
    return [result for result in found if result is not None]


def run_cell(work: Work, split: Split, cache: StageCache, say: Say) -> CellResult:
    """Compute one cell."""
    cell, dataset, config = work.cell, work.dataset, work.config
    run = Run(dataset, split, config, cache, say)
    found = Ranks(NO_RANKS, NO_RANKS, None, None)
    with stages.deterministic():
        if cell.question == "robustness":
            figures = robustness.robustness(run)
        elif cell.question in ("cold", "cold_units"):
            figures = cold.cold(run, units_with_neighbors=cell.question == "cold_units")
        elif cell.question == "overlap":
            figures = overlap.of_text_and_photo(run)
        elif cell.counting:
            found, figures = _count(cell, run)
        else:
            found, figures = _train(cell, run)
    if found.coverage is not None:
        figures[COVERAGE] = found.coverage
    return CellResult(
        dataset=dataset.name,
        name=cell.name,
        label=cell.label,
        groups=cell.groups,
        seed=config.seed,
        key=work.key,
        made_with=work.made_with,
        ranks_excluded=found.excluded,
        ranks_included=found.included,
        code_ranks=found.codes,
        figures=figures,
    )


def _count(cell: Cell, run: Run) -> tuple[Ranks, dict[str, float]]:
    dataset, split = run.dataset, run.split
    baseline, figures = _fitted(cell, run)
    excluded, included = (
        baseline.rank(split.test.histories, K, exclude_history=exclude) for exclude in (True, False)
    )
    found = Ranks(
        target_ranks(excluded, split.test.targets, K).astype(np.uint8),
        target_ranks(included, split.test.targets, K).astype(np.uint8),
        None,
        coverage(excluded, dataset.num_items),
    )
    return found, figures


def _fitted(cell: Cell, run: Run) -> tuple[Baseline, dict[str, float]]:
    """The cell's baseline, fitted to the training part, and what the validation users chose."""
    train, validation, num_items = run.split.train, run.split.validation, run.dataset.num_items
    match cell.counting:
        case "popularity":
            return Popularity().fit(train, num_items), {}
        case "markov":
            return Markov().fit(train, num_items), {}
        case "markov_popular_ties":
            return Markov(ties="popularity").fit(train, num_items), {}
        case "tgh":
            hops = TransitionHops.tuned(_texts(run), train, validation)
            return hops, {"decay": hops.decay, "validation_ndcg@10": _quality(hops, validation)}
        case "sum":
            weighted = TrainingFreeSum.tuned(_texts(run), train, validation)
            chosen = {f"chosen_{name}": value for name, value in weighted.weights.figures().items()}
            return weighted, {**chosen, "validation_ndcg@10": _quality(weighted, validation)}
        case _:
            _, vectors = stages.vectors_of(run, stages.read(run))
            near = Neighbors.tuned(vectors, train, validation)
            return near, {"decay": near.decay}


def _quality(baseline: Baseline, users: Targets) -> float:
    return ndcg_at(baseline.rank(users.histories, K), users.targets, K)


def _texts(run: Run) -> list[str]:
    """The text of each item, with its fields in the default order: the configuration has no say in it."""
    return [item_text(item, RenderSpec()) for item in run.dataset.items]


def _train(cell: Cell, run: Run) -> tuple[Ranks, dict[str, float]]:
    dataset, config = run.dataset, run.config
    figures: dict[str, float] = {}
    vectors, read = None, None
    if isinstance(config.generator, SasRecConfig):
        codes, spec = codes_of_items(dataset.num_items), SidSpec(levels=(dataset.num_items,))
        generated = generating.generate(run, codes, spec)
    elif is_late(config.pictures):
        late = late_codes(run)
        codes, spec = late.codes, late.spec
        figures |= _figures_of_codes(codes, spec)
        generated = generate_late(run, late)
    else:
        if is_vl_clip(config.pictures):
            read = read_jointly(run)
            coded = stages.code(replace(run, config=replace(config, pictures=None)), read)
        else:
            read = stages.read(run)
            coded = stages.code(run, read)
        codes, spec, vectors = coded.codes, coded.spec, coded.vectors
        if cell.shuffled:
            codes, vectors = np.random.default_rng(config.seed).permutation(codes), None
        figures |= _figures_of_codes(codes, spec) | _figures_of_fusion(read, coded)
        figures |= {"lost_variance": _lost_variance(coded)} | read.figures
        figures |= probe_codes(codes, run.split.train, first_categories(dataset.items), vectors)
        generated = generating.generate(run, codes, spec, vectors=vectors)
    generator, curve = generated
    if curve.device == "cuda":
        figures["train_gpu_seconds"] = curve.seconds
    else:
        figures["train_seconds"] = curve.core_seconds
    figures["num_parameters"] = float(sum(weights.numel() for weights in generator.parameters()))
    figures["validation_ndcg@10"] = max(curve.validation_ndcg_at_10)
    if config.opinions is None:
        return ranks.rank_targets(generator, codes, run.split.test, config), figures
    assert isinstance(generator, TreeGenerator)
    assert vectors is not None
    assert read is not None
    weighed = weigh(run, generator, codes, vectors, read.text, read.photos)
    figures |= {f"opinion_{name}": value for name, value in weighed.opinions.figures().items()}
    neighbors = weighed.neighbors(spec, codes, dataset.item_ids)
    found = ranks.rank_targets(
        generator,
        codes,
        run.split.test,
        config,
        neighbor_weight=weighed.opinions.counts,
        neighbors=neighbors,
    )
    return found, figures


def _figures_of_fusion(read: Read, coded: Coded) -> dict[str, float]:
    """How many items with both text and photo keep their first code with only one of the two."""
    fusion = read.fusion
    if fusion is None or fusion.text_dim == 0:
        return {}
    whole = read.features[(read.features[:, -NUM_FLAGS:] > 0).all(axis=1)]  # [item, feature]
    if not len(whole):
        return {}
    first = coded.codes_of(whole)[:, 0]
    return {
        f"kept_first_code_without_{name}": float((coded.codes_of(hidden)[:, 0] == first).mean())
        for name, hidden in (("photo", without_photos(whole, fusion)), ("text", without_texts(whole, fusion)))
    }


def _lost_variance(coded: Coded) -> float:
    """The share of the variance of the head's vectors that the codes lose, without a suffix."""
    codes = torch.from_numpy(coded.codes[:, : coded.quantizer.spec.num_levels])  # [item, level]
    return lost_variance(coded.quantizer, torch.from_numpy(coded.vectors), codes)


def _figures_of_codes(codes: NDArray[np.int64], spec: SidSpec) -> dict[str, float]:
    found = collisions(codes)
    figures = {
        "collision_rate": found.shared_rate,
        "missing_rate": found.missing_rate,
        "largest_group": float(found.largest_group),
    }
    for level, use in enumerate(codebook_use(codes, spec.levels), start=1):
        figures[f"use_level_{level}"] = use.num_used / use.num_codes
        figures[f"entropy_bits_level_{level}"] = use.entropy_bits
    return figures
