"""Writes the report of a study from its cells: study.md, study.json and the plots.

Equal cells give equal bytes, so a run without new results changes no file.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_export.evaluation.reach import Kinds
from model_export.evaluation.statistics import Interval
from model_export.pipeline.versions import Versions
from model_export.study import plots, sections, tables
from model_export.study.cells import CellResult
from model_export.study.sections import Section
from model_export.study.summary import (
    OURS,
    REFERENCES,
    SegmentFigures,
    has_users,
    of_segment,
    study_json,
)
from service.errors import GlyphrecError

TEXT = "text"
NOT_YET = "The cells of this section are not computed yet. `glyphrec study` computes them."

SegmentMasks = Mapping[str, NDArray[np.bool_]]  # segment -> [user]


def read_notes(folder: Path) -> dict[str, str]:
    """Read the conclusions, which are written by hand in `<folder>/study/notes/<section>.md`.

    Returns section -> Markdown.
    """
    files = sorted((folder / "study" / "notes").glob("*.md"))
    return {path.stem: path.read_text(encoding="utf-8") for path in files}


def write_study(
    results: Sequence[CellResult],
    folder: Path,
    *,
    notes: Mapping[str, str] | None = None,
    segments: Mapping[str, SegmentMasks] | None = None,
    kinds: Mapping[str, Kinds] | None = None,
    versions_now: Mapping[str, Versions] | None = None,
    cost_machine: str | None = None,
) -> None:
    """Write study.md, study.json and study/*.svg into `folder`. The tables keep the order of `results`.

    `notes`: section -> Markdown, from `read_notes`. `segments`: dataset -> segment -> mask [user] of the test
    users who have a target of that kind. `kinds`: dataset -> the kinds of targets of the section on reach.
    `versions_now`: cell -> today's versions of its stages. A cell that was computed with other versions gets
    a footnote. `cost_machine` names the machine that measured the costs. Raises GlyphrecError if a note has
    the name of no section.
    """
    study = _Study(
        results,
        segments or {},
        kinds or {},
        versions_now or {},
        study_json(results, kinds),
        notes or {},
        folder / "study",
    )
    study.pictures.mkdir(parents=True, exist_ok=True)
    shown = (*sections.SECTIONS, *sections.further({group for cell in results for group in cell.groups}))
    known = {"summary", "method", *(section.key for section in shown)}
    if unknown := sorted(set(study.notes) - known):
        raise GlyphrecError(
            f"No section of the study has the name {unknown[0]!r}. The sections are "
            f"{', '.join(sorted(known))}. Rename the file of the note."
        )
    parts = ["# The study", *study.note("summary"), "## How to reproduce it", sections.REPRODUCE]
    parts += ["## What is measured", sections.METHOD]
    parts += [text for dataset, text in sections.DATA_NOTES.items() if dataset in study.figures]
    if cost_machine:
        parts.append(sections.COSTS.format(machine=cost_machine))
    parts += study.note("method")
    for section in shown:
        parts += [f"## {section.title}", *([section.intro] if section.intro else [])]
        parts += [*study.note(section.key), *(study.answer(section) or [NOT_YET])]
    if study.outdated:
        parts.append(
            f"{tables.OUTDATED} This cell was computed from the same data and configuration, but with an "
            f"older version of a stage. The new version gives other results: {study.changed_stages}. To "
            "compute the cell again, delete its file and run `glyphrec study`."
        )
    (folder / "study.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    text = json.dumps(study.figures, indent=1, sort_keys=True, ensure_ascii=False)
    (folder / "study.json").write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Study:
    results: Sequence[CellResult]
    segments: Mapping[str, SegmentMasks]
    kinds: Mapping[str, Kinds]
    versions_now: Mapping[str, Versions]
    figures: dict[str, Any]  # the content of study.json
    notes: Mapping[str, str]
    pictures: Path

    def note(self, key: str) -> list[str]:
        text = self.notes.get(key, "").strip()
        return [text] if text else []

    @property
    def outdated(self) -> frozenset[str]:
        return frozenset(
            cell.name
            for cell in self.results
            if self.versions_now.get(cell.name, cell.made_with) != cell.made_with
        )

    @property
    def changed_stages(self) -> str:
        """The changes in words, for example "tree (1, now 2)". Version 0 means that the stage is not run."""
        changes = {
            (stage, cell.made_with.get(stage, 0), now.get(stage, 0))
            for cell in self.results
            if (now := self.versions_now.get(cell.name)) is not None
            for stage in {*cell.made_with, *now}
            if cell.made_with.get(stage, 0) != now.get(stage, 0)
        }
        return ", ".join(f"{stage} ({then}, now {now})" for stage, then, now in sorted(changes))

    def cells(self, section: Section) -> dict[str, list[CellResult]]:
        """The section's cells of each dataset, one per name, in the order of the results."""
        found: dict[str, dict[str, CellResult]] = {}
        for cell in self.results:
            if set(cell.groups) & set(section.groups):
                found.setdefault(cell.dataset, {}).setdefault(cell.name, cell)
        return {dataset: list(cells.values()) for dataset, cells in found.items()}

    def answer(self, section: Section) -> list[str]:
        """The section's tables and its plot. Empty if the section has no cells."""
        if section is sections.SEGMENTS:
            return self._segments()
        cells = self.cells(section)
        if not cells:
            return []
        if section is sections.ROBUSTNESS:
            return self._robustness(cells)
        if section is sections.REACH:
            return self._reach(cells)
        parts = []
        for dataset, rows in cells.items():
            parts += [f"### {dataset}", *self._tables(section, dataset, rows)]
        ranked = {
            dataset: kept
            for dataset, rows in cells.items()
            if (kept := [cell for cell in rows if "item_hit@10" in self.figures[dataset][cell.name]])
        }
        return parts + (self._plot(section, ranked) if ranked else [])

    def _tables(self, section: Section, dataset: str, cells: Sequence[CellResult]) -> list[str]:
        figures = self.figures[dataset]
        ranked = [cell for cell in cells if "item_hit@10" in figures[cell.name]]
        written = [
            tables.quality(ranked, figures, self.outdated) if ranked else None,
            tables.differences(ranked, figures.get(REFERENCES[section.reference], {}), section.reference),
            tables.costs(cells, figures, self.outdated),
            tables.costs(cells, figures, self.outdated, tables.PROBES)
            if section is sections.QUANTIZERS
            else None,
            tables.costs(cells, figures, self.outdated, tables.COLD)
            if section in (sections.COLD, sections.PICTURE_COLD)
            else None,
        ]
        return [table for table in written if table]

    def _plot(self, section: Section, cells: Mapping[str, Sequence[CellResult]]) -> list[str]:
        path = self.pictures / f"{section.key}.svg"
        if section is sections.RESOLUTION:
            known = {
                dataset: [
                    plots.Resolution(
                        is_ours=cell.name == section.reference,
                        pixels=figures["pixels_per_item"],
                        ndcg=_interval(figures, "item_ndcg@10"),
                        reading_accuracy=figures.get("reading_accuracy"),
                        encode_ms=figures.get("encode_ms_per_item"),
                    )
                    for cell, figures in self._with_figures(dataset, rows)
                    if "pixels_per_item" in figures
                ]
                for dataset, rows in cells.items()
            }
            known = {dataset: points for dataset, points in known.items() if points}
            if not known:
                return []
            plots.resolution(path, known)
            return [_picture(path, "quality, reading accuracy and time to encode against pixels per item")]
        if section is sections.ABLATION:
            steps = {
                dataset: [
                    plots.Step(
                        label=cell.label,
                        ndcg=_interval(figures, "item_ndcg@10"),
                        train_seconds=figures.get("train_gpu_seconds", figures.get("train_seconds")),
                        ms_per_request=figures.get("ms_per_request"),
                    )
                    for cell, figures in self._with_figures(dataset, rows)
                ]
                for dataset, rows in cells.items()
            }
            plots.ablation(path, steps)
            return [_picture(path, "NDCG@10 of each step, and its costs")]
        rows = {
            dataset: [
                plots.Dot(cell.label, _interval(figures, "item_ndcg@10"), cell.name == section.reference)
                for cell, figures in self._with_figures(dataset, kept)
            ]
            for dataset, kept in cells.items()
        }
        plots.dots(path, rows, "NDCG@10")
        return [_picture(path, "NDCG@10 with its interval")]

    def _segments(self) -> list[str]:
        """Tables and plot of the segments. Empty unless both `default` and `text` have users."""
        parts, panels = [], {}
        for dataset, masks in self.segments.items():
            ours, theirs = (
                [cell for cell in self.results if (cell.dataset, cell.name) == (dataset, name)]
                for name in (OURS, TEXT)
            )
            if not (masks and ours and theirs and has_users(ours) and has_users(theirs)):
                continue
            found = {name: of_segment(ours, theirs, mask) for name, mask in masks.items()}
            parts += [f"### {dataset}", tables.segments(found)]
            panels[dataset] = {name.replace("_", " "): _both(row) for name, row in found.items() if row}
        panels = {dataset: rows for dataset, rows in panels.items() if rows}
        if panels:
            path = self.pictures / "segments.svg"
            plots.pairs(path, panels, (OURS, TEXT))
            parts.append(_picture(path, "Hit@10 by kind of target"))
        return parts

    def _reach(self, cells: Mapping[str, Sequence[CellResult]]) -> list[str]:
        """The table of each dataset whose kinds of targets are known."""
        parts = []
        for dataset, rows in cells.items():
            ranked = [cell for cell in rows if "item_hit@10" in self.figures[dataset][cell.name]]
            if ranked and dataset in self.kinds:
                table = tables.reach(ranked, self.figures[dataset], self.kinds[dataset], self.outdated)
                parts += [f"### {dataset}", table]
        return parts

    def _robustness(self, cells: Mapping[str, Sequence[CellResult]]) -> list[str]:
        parts, shares = [], {}
        changes = sorted(
            {
                change
                for dataset, rows in cells.items()
                for change in tables.changes_of(rows, self.figures[dataset])
            }
        )
        for dataset, rows in cells.items():
            table = tables.robustness(rows, self.figures[dataset], self.outdated)
            parts += [f"### {dataset}", table] if table else []
            shares[dataset] = {
                cell.label: [
                    (
                        figures.get(f"kept_all_codes:{change}", np.nan),
                        figures.get(f"kept_first_code:{change}", np.nan),
                    )
                    for change in changes
                ]
                for cell, figures in self._with_figures(dataset, rows)
            }
        if changes:
            path = self.pictures / "robustness.svg"
            plots.robustness(path, shares, [change.replace("_", " ") for change in changes])
            parts.append(_picture(path, "share of items that keep their codes after each change"))
        return parts

    def _with_figures(
        self, dataset: str, cells: Sequence[CellResult]
    ) -> list[tuple[CellResult, dict[str, float]]]:
        return [(cell, self.figures[dataset][cell.name]) for cell in cells]


def _both(figures: SegmentFigures) -> tuple[Interval, Interval]:
    return figures.ours, figures.theirs


def _interval(figures: Mapping[str, float], metric: str) -> Interval:
    return Interval(figures[metric], figures[f"{metric}_low"], figures[f"{metric}_high"])


def _picture(path: Path, words: str) -> str:
    return f"![{words}]({path.parent.name}/{path.name})"
