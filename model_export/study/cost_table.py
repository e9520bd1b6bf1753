"""The costs of all cells, in one file beside the cells.

Cells may come from different machines, and times of two machines cannot be compared. So all costs in the
file are of one machine. A run on another machine replaces them.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from model_export.configs import SasRecConfig
from model_export.pipeline.cache import key_of
from model_export.pipeline.run import Run
from model_export.study import timing
from model_export.study.cells import CellResult
from model_export.study.late_fusion import is_late
from model_export.study.run import Work
from model_export.study.vl_clip import is_vl_clip
from service.core.progress import ProgressBar

FILE = "costs.json"
ASKED_FOR_SPEED = {"ablation", "generators"}  # cells of other groups have the graph of the default


def measure_costs(works: Sequence[Work], *, folder: Path, cache_folder: Path) -> None:
    """Measure the costs of the first seed of each of `works`, and write them to `folder`/costs.json.

    The costs of other cells stay in the file if they were measured on this machine.
    """
    known: dict[str, Mapping[str, float]] = {}  # many cells read items in the same way
    cells = _measured_here(folder / FILE)
    for work in ProgressBar([work for work in works if work.config.seed == 0], desc="costs", unit="cell"):
        cell, dataset, config = work.cell, work.dataset, work.config
        if cell.counting or cell.question or isinstance(config.generator, SasRecConfig):
            continue
        if is_vl_clip(config.pictures):  # which reads photos in a way of its own, and which no export writes
            continue
        run = Run.of(dataset, config, cache_folder)
        key = key_of(dataset.fingerprint, config.encoder, config.render)
        if key not in known:
            known[key] = timing.of_reading(run)
        figures = dict(known[key])
        if config.pictures is not None:
            figures = _with_photos(figures, run)
        if cell.has_photos and not is_late(config.pictures):
            figures |= timing.of_tokenizer(run)
        if "quantizers" in cell.groups and not is_late(config.pictures):
            figures |= timing.of_quantizer(run)
        if ASKED_FOR_SPEED & set(cell.groups):
            figures |= timing.of_request(run)
        cells.setdefault(dataset.name, {})[cell.name] = {"key": work.key, "figures": figures}
    text = json.dumps({"machine": _machine(), "cells": cells}, indent=1, sort_keys=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def _measured_here(path: Path) -> dict[str, dict[str, object]]:
    """The costs in the file, by data set and cell, if they were measured on this machine."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    found: dict[str, dict[str, object]] = content["cells"]
    return found if content["machine"] == _machine() else {}


def _with_photos(of_text: Mapping[str, float], run: Run) -> dict[str, float]:
    """The costs of texts and photos together. An encoder of photos alone reads no text."""
    pictures, found = run.config.pictures, timing.of_photos(run)
    if pictures is not None and pictures.fusion == "photo":
        return found
    return dict(of_text) | {name: value + of_text.get(name, 0.0) for name, value in found.items()}


def with_costs(results: Sequence[CellResult], folder: Path) -> tuple[list[CellResult], str | None]:
    """The results, with their costs where these were measured, and the machine that measured them.

    A result gets costs only if they were measured for the same key. The machine is None if no costs are
    stored.
    """
    path = folder / FILE
    if not path.exists():
        return list(results), None
    content = json.loads(path.read_text(encoding="utf-8"))
    found = []
    for result in results:
        costs = content["cells"].get(result.dataset, {}).get(result.name)
        is_first = result.seed == 0 and costs is not None and costs["key"] == result.key
        found.append(replace(result, figures=result.figures | costs["figures"]) if is_first else result)
    return found, content["machine"]


def _machine() -> str:
    """The machine in words for the report: its processor and its number of cores."""
    names = [
        line.split(":", 1)[1].strip()
        for line in _lines(Path("/proc/cpuinfo"))
        if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
