"""`glyphrec study`: run the cells of a plan that are missing, then write the report of all finished cells."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_export.configs import base
from model_export.data.dataset import Dataset
from model_export.data.splits import leave_one_out
from model_export.data.tables import read_dataset
from model_export.evaluation.reach import kinds_of_targets
from model_export.files import check_folder
from model_export.pipeline.run import Say
from model_export.study.cost_table import measure_costs, with_costs
from model_export.study.embedding_command import PLAN as EMBEDDINGS
from model_export.study.embedding_command import study_embeddings
from model_export.study.plan import PLANS, Plan
from model_export.study.run import kept_result, kept_results, run_study, works_of
from model_export.study.segments import segments_of
from model_export.study.write import read_notes, write_study
from service.core.render import item_text
from service.errors import GlyphrecError


def study(
    data: Sequence[str],
    *,
    plan_name: str,
    only: Sequence[str],
    out: Path,
    cache_folder: Path,
    report_only: bool = False,
    costs: bool = False,
    say: Say,
) -> None:
    """Run the cells of a plan that are missing, and write the report of all finished cells into `out`.

    `data` names one source per data set. `only` names the cells to run; if it is empty, all cells run. With
    `report_only` no cell runs. With `costs` the costs of these cells are measured too, if they are finished.
    Raises GlyphrecError for an unknown plan or cell.
    """
    if plan_name == EMBEDDINGS:
        check_folder(out, "--out")
        study_embeddings(
            _by_name(data), only=only, out=out, cache_folder=cache_folder, report_only=report_only, say=say
        )
        return
    if plan_name not in PLANS:
        raise GlyphrecError(
            f"there is no plan {plan_name!r}. Choose one of {', '.join((*PLANS, EMBEDDINGS))}."
        )
    plan = PLANS[plan_name]()
    if unknown := set(only) - {cell.name for cell in plan.cells}:
        raise GlyphrecError(
            f"plan {plan_name} has no cell {sorted(unknown)[0]!r}. "
            f"Its cells are {', '.join(cell.name for cell in plan.cells)}."
        )
    check_folder(out, "--out")
    datasets = _by_name(data)
    store = out / "study" / "cells"
    chosen = plan.only(list(only))
    if not report_only:
        run_study(chosen, datasets, store=store, cache_folder=cache_folder, say=say)
    if costs:
        works = [work for work in works_of(chosen, datasets) if kept_result(work, store) is not None]
        measure_costs(works, folder=store.parent, cache_folder=cache_folder)
    report(plan, datasets, out, say)


def _by_name(data: Sequence[str]) -> dict[str, Dataset]:
    """The data sets by their names, under which the study keeps its cells. Raises GlyphrecError."""
    datasets: dict[str, Dataset] = {}
    source_of: dict[str, str] = {}
    for source in data:
        dataset = read_dataset(source)
        if dataset.name in datasets:
            raise GlyphrecError(
                f"--data {source}: has the same name as {source_of[dataset.name]}, {dataset.name!r}, and the "
                "study keeps its cells by name. Rename one of the folders."
            )
        datasets[dataset.name], source_of[dataset.name] = dataset, source
    return datasets


def report(plan: Plan, datasets: dict[str, Dataset], out: Path, say: Say) -> None:
    """Write the report of every finished cell of the plan. It does not matter which machine ran a cell."""
    works = works_of(plan, datasets)
    results, machine = with_costs(kept_results(works, out / "study" / "cells"), out / "study")
    write_study(
        results,
        out,
        cost_machine=machine,
        notes=read_notes(out),
        segments={name: segments_of_targets(dataset) for name, dataset in datasets.items()},
        kinds={
            name: kinds_of_targets(leave_one_out(dataset), dataset.num_items)
            for name, dataset in datasets.items()
        },
        versions_now={work.cell.name: work.made_with for work in works},
    )
    say(f"{len(results)} of {len(works)} cells are finished. The report is {out / 'study.md'}")


def segments_of_targets(dataset: Dataset) -> dict[str, NDArray[np.bool_]]:
    """For each kind of item, the mask [user] of the test users who have a target of that kind."""
    split = leave_one_out(dataset)
    texts = [item_text(item, base().render) for item in dataset.items]
    kinds = segments_of(texts, split.train)._asdict()
    return {name.replace("_", " "): mask[split.test.targets] for name, mask in kinds.items()}
