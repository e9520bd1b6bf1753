"""Writes embeddings.md from the stored cells of the plan `embeddings`. Equal cells give equal bytes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_export.evaluation.statistics import Interval
from model_export.study.embedding_cells import DEPTH, SEGMENTS, EmbeddingCell, EmbeddingResult
from model_export.study.embedding_claims import claims
from model_export.study.embedding_figures import Sums, change, draws
from model_export.study.tables import NOTHING, markdown

Results = Mapping[str, Sequence[EmbeddingResult]]  # cell -> its seeds
NOT_YET = "The cells of this section are not computed yet."


def write_embeddings(
    found: Mapping[str, Results],
    swapped: Mapping[str, Mapping[str, float]],
    cells: Sequence[EmbeddingCell],
    folder: Path,
) -> None:
    """Write `folder`/embeddings.md. `found` and `swapped`: data set -> results, figures of `swaps`.

    The notes of `folder`/embeddings/notes are copied in: intro.md first, and NAME.md into the section NAME.
    """
    notes = {path.stem: path.read_text(encoding="utf-8").strip() for path in _notes(folder)}
    drawn = draws()
    lines = ["# Embeddings of Semantic IDs in a ranker", ""]
    if "intro" in notes:
        lines += [notes["intro"], ""]
    for name, title in SECTIONS:
        lines += [f"## {title}", ""]
        if name in notes:
            lines += [notes[name], ""]
        written = False
        for dataset, results in found.items():
            table = _table(name, results, swapped.get(dataset, {}), cells, drawn)
            if table is not None:
                lines += [f"`{dataset}`:", "", table, ""]
                written = True
        if not written and name not in TEXT_ALONE:
            lines += [NOT_YET, ""]
    (folder / "embeddings.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


SECTIONS = (
    ("claims", "The paper's claims, and what we found"),
    ("parameterizations", "Parameterizations"),
    ("segments", "Head, torso, tail and unseen items"),
    ("drift", "Drift"),
    ("horizon", "A longer training"),
    ("copies", "Copies of an item"),
    ("swaps", "Swapping an item for one of its prefix"),
    ("depth", "Depth"),
    ("factor", "Items for each row"),
    ("reading", "How the history is read"),
    ("generator", "The generator's embeddings"),
    ("reranking", "What reranking buys"),
)
TEXT_ALONE = ("generator", "reranking")  # their figures come from other commands, which their notes name


def _notes(folder: Path) -> list[Path]:
    return sorted((folder / "embeddings" / "notes").glob("*.md"))


def _table(
    section: str,
    results: Results,
    swapped: Mapping[str, float],
    cells: Sequence[EmbeddingCell],
    drawn: NDArray[np.float64],
) -> str | None:
    shown = [cell for cell in cells if section in cell.groups and cell.name in results]
    match section:
        case "claims":
            return claims(results, drawn)
        case "swaps":
            return _swaps(swapped)
        case "segments":
            return _segments(results, drawn)
        case "parameterizations" | "depth" | "factor" | "reading":
            return _entropies(shown, results, drawn, with_attention=section == "reading")
        case "drift":
            return _figures(shown, results, {f"drift_{name}": name for name in ("all", *SEGMENTS[:-1])})
        case "copies":
            return _figures(
                shown, results, {f"aa_variance_{name}": f"{name} copies" for name in ("exact", "near")}
            )
        case "horizon":
            return _horizon(results, drawn)
    return None


def _entropies(
    cells: Sequence[EmbeddingCell], results: Results, drawn: NDArray[np.float64], *, with_attention: bool
) -> str | None:
    """A row for each cell: its normalized entropy, and the changes against the two references."""
    if not cells:
        return None
    header = ["", "NE", "± seeds", "against random hash", "against individual", "seeds"]
    attention = {
        "newest": "newest",
        "padding": "padding",
        "entropy_bits": "entropy, bits",
        "itself": "itself",
    }
    header += list(attention.values()) if with_attention else []
    rows = []
    for cell in cells:
        seeds = results[cell.name]
        row = [f"{cell.label} `{cell.name}`", f"{Sums.of(seeds).entropy()[0]:.5f}", _spread(seeds, "ne")]
        row += [
            _change(results, cell.name, reference, SEGMENTS, drawn)
            for reference in ("random_hash", "individual")
        ]
        row.append(str(len(seeds)))
        if with_attention:
            row += [_mean(seeds, f"attention_{name}", "{:.3f}") for name in attention]
        rows.append(row)
    return markdown(header, rows)


def _segments(results: Results, drawn: NDArray[np.float64]) -> str | None:
    names = [name for name in ("random_hash", "individual", "prefix") if name in results]
    if "prefix" not in names:
        return None
    parts: dict[str, tuple[str, ...]] = {name: (name,) for name in SEGMENTS}
    parts |= {"all seen": SEGMENTS[:-1], "all": SEGMENTS}
    seeds = results["prefix"]
    rows = []
    for label, part in parts.items():
        num_items = sum(seeds[0].figures[f"items_{name}"] for name in part)
        sums = Sums.of(seeds, part)
        row = [label, f"{num_items:,.0f}", f"{sums.shown.sum():,.0f}"]
        row += [_entropy(Sums.of(results[name], part)) for name in names]
        row += [
            _change(results, "prefix", reference, part, drawn) for reference in ("random_hash", "individual")
        ]
        rows.append(row)
    words = {"random_hash": "random hash", "individual": "individual", "prefix": "prefix-ngram"}
    header = ["", "items", "impressions", *(words[name] for name in names)]
    return markdown([*header, "prefix against random hash", "against individual"], rows)


def _horizon(results: Results, drawn: NDArray[np.float64]) -> str | None:
    rows = []
    for name, label in (("random_hash", "random hash"), ("individual", "individual"), ("prefix", "prefix")):
        if name in results and f"{name}_short" in results:
            both = [results[name], results[f"{name}_short"]]
            row = [label, *(f"{Sums.of(seeds).entropy()[0]:.5f}" for seeds in reversed(both))]
            rows.append([*row, _change(results, name, f"{name}_short", SEGMENTS, drawn)])
    header = ["", "NE, the newest fifth", "NE, all", "change by the longer training"]
    return markdown(header, rows) if rows else None


def _swaps(swapped: Mapping[str, float]) -> str | None:
    if not swapped:
        return None
    rows = []
    for depth in range(DEPTH + 1):
        loss = swapped.get(f"click_loss_{depth}")
        shown = NOTHING if loss is None else f"{100 * loss:.1f} %"
        rows.append([str(depth), f"{swapped[f'swapped_{depth}']:,.0f}", shown])
    return markdown(["codes shared", "swapped impressions", "click loss"], rows)


def _figures(cells: Sequence[EmbeddingCell], results: Results, columns: Mapping[str, str]) -> str | None:
    rows = [
        [f"{cell.label} `{cell.name}`"]
        + [
            _mean(results[cell.name], name, "{:.4f}") + " ± " + _spread(results[cell.name], name)
            for name in columns
        ]
        for cell in cells
    ]
    return markdown(["", *columns.values()], rows) if rows else None


def _change(
    results: Results,
    name: str,
    reference: str,
    part: Sequence[str],
    drawn: NDArray[np.float64],
) -> str:
    if name == reference or reference not in results:
        return NOTHING
    found = change(Sums.of(results[name], part), Sums.of(results[reference], part), drawn)
    return NOTHING if found is None else in_percent(found)


def in_percent(found: Interval) -> str:
    """`-0.41 % [-0.60, -0.22]`."""
    return f"{100 * found.mean:+.2f} % [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def _entropy(sums: Sums) -> str:
    value = float(sums.entropy()[0])
    return f"{value:.5f}" if np.isfinite(value) else NOTHING


def _mean(seeds: Sequence[EmbeddingResult], name: str, form: str) -> str:
    values = [each.figures[name] for each in seeds if name in each.figures]
    return form.format(np.mean(values)) if values else NOTHING


def _spread(seeds: Sequence[EmbeddingResult], name: str) -> str:
    values = [each.figures[name] for each in seeds if name in each.figures]
    return f"{np.std(values, ddof=1):.5f}" if len(values) > 1 else NOTHING
