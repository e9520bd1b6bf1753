"""`glyphrec study --plan embeddings`: run the missing cells, then write embeddings.md of the finished."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from model_export.data.dataset import Dataset
from model_export.pipeline.cache import StageCache
from model_export.pipeline.run import Say
from model_export.study.embedding_cells import (
    EmbeddingCell,
    EmbeddingResult,
    embedding_cells,
    load,
    save,
    small,
)
from model_export.study.embedding_write import write_embeddings
from model_export.study.embeddings import Prepared, key_of_cell, prepare, run_cell, sampled, swaps
from service.core.progress import ProgressBar
from service.core.whole_files import write_whole
from service.errors import GlyphrecError

PLAN = "embeddings"
NUM_SEEDS = 3
MAIN = ("prefix", "random_hash", "individual")


def study_embeddings(
    datasets: Mapping[str, Dataset],
    *,
    only: Sequence[str],
    out: Path,
    cache_folder: Path,
    report_only: bool,
    say: Say,
) -> None:
    """Run the cells that `out`/embeddings/cells lacks, and write `out`/embeddings.md.

    The arguments are those of command.study. Raises GlyphrecError for an unknown cell, and DataError for
    data without times.
    """
    cells = embedding_cells(small())
    if unknown := set(only) - {cell.name for cell in cells}:
        raise GlyphrecError(
            f"plan {PLAN} has no cell {sorted(unknown)[0]!r}. "
            f"Its cells are {', '.join(cell.name for cell in cells)}."
        )
    store = out / "embeddings" / "cells"
    if not report_only:
        chosen = [cell for cell in cells if not only or cell.name in only]
        _run(chosen, cells[0], datasets, store, StageCache(cache_folder, say), say)
    found: dict[str, dict[str, list[EmbeddingResult]]] = {}
    swapped: dict[str, dict[str, float]] = {}
    for name, dataset in datasets.items():
        fingerprint = sampled(dataset).fingerprint
        found[name] = {}
        for cell in cells:
            kept = [_kept(store, name, fingerprint, cell, seed) for seed in range(NUM_SEEDS)]
            if results := [each for each in kept if each is not None]:
                found[name][cell.name] = results
        path = _swaps_path(store, name)
        swapped[name] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_embeddings(found, swapped, cells, out)
    num_finished = sum(len(seeds) for results in found.values() for seeds in results.values())
    say(
        f"{num_finished} of {len(cells) * NUM_SEEDS * len(datasets)} cells are finished. The report is "
        f"{out / 'embeddings.md'}"
    )


def _run(
    chosen: Sequence[EmbeddingCell],
    default: EmbeddingCell,
    datasets: Mapping[str, Dataset],
    store: Path,
    cache: StageCache,
    say: Say,
) -> None:
    """The cells of the main claims come first, with all seeds, then the first seeds of all others."""
    prepared: dict[str, Prepared] = {}
    for name, dataset in datasets.items():
        say(f"{name}: reading and codes")
        prepared[name] = prepare(dataset, cache, default, say)
        if not _swaps_path(store, name).exists():
            text = json.dumps(swaps(prepared[name]), indent=1) + "\n"
            _swaps_path(store, name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(_swaps_path(store, name), partial(Path.write_text, data=text))
    works = [(each, cell, seed) for seed in range(NUM_SEEDS) for cell in chosen for each in prepared.values()]
    works.sort(key=lambda work: work[1].name not in MAIN)
    missing = [
        (each, cell, seed)
        for each, cell, seed in works
        if _kept(store, each.name, each.fingerprint, cell, seed) is None
    ]
    say(f"{len(works)} cells, {len(works) - len(missing)} of them already finished")
    for each, cell, seed in ProgressBar(missing, desc="cells", unit="cell"):
        save(store, run_cell(each, cell, seed))


def _kept(
    store: Path, dataset: str, fingerprint: str, cell: EmbeddingCell, seed: int
) -> EmbeddingResult | None:
    kept = load(store, dataset, cell.name, seed)
    return None if kept is None or kept.key != key_of_cell(fingerprint, cell, seed) else kept


def _swaps_path(store: Path, dataset: str) -> Path:
    return store / dataset / "swaps.json"
