"""The tables of study.md, in Markdown.

Each function takes cells of one dataset, one per name, and writes their figures from study.json.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from model_export.evaluation.reach import Kinds
from model_export.evaluation.statistics import Interval
from model_export.study.cells import CellResult
from model_export.study.summary import SegmentFigures

NOTHING = "–"
OUTDATED = "†"

Figures = Mapping[str, float]
Format = Callable[[float], str]


def rate(value: float) -> str:
    """A rate as papers print it: `.0871`."""
    return f"{value:.4f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.4f}"


def signed(value: float) -> str:
    """A rate with its sign: +.012."""
    return ("" if value < 0 else "+") + rate(value)


def percent(value: float) -> str:
    """A share as a percentage with one digit after the point."""
    return f"{100 * value:.1f} %"


def whole(value: float) -> str:
    """A number without digits after the point, thousands marked."""
    return f"{value:,.0f}"


def brief(value: float) -> str:
    """A number with three significant digits, or whole from 1,000 on."""
    return f"{value:.3g}" if abs(value) < 1000 else whole(value)


# Title, format and name of the figure. A name that ends in _ stands for one figure per level.
COLUMNS: tuple[tuple[str, Format, str], ...] = (
    ("items in collision", percent, "collision_rate"),
    ("codes used, by level", percent, "use_level_"),
    ("entropy in bits, by level", lambda value: f"{value:.2f}", "entropy_bits_level_"),
    ("variance of the vectors lost", percent, "lost_variance"),
    ("Recall@10 of ids, all fields masked", rate, "famae_recall_all_masked"),
    ("Recall@10 of ids, only the id masked", rate, "famae_recall_id_masked"),
    ("first code kept without the photo", percent, "kept_first_code_without_photo"),
    ("first code kept without the text", percent, "kept_first_code_without_text"),
    ("pixels per item", whole, "pixels_per_item"),
    ("characters read correctly", percent, "reading_accuracy"),
    ("ms to encode an item", brief, "encode_ms_per_item"),
    ("tokenizer, MB", brief, "tokenizer_mb"),
    ("fitting the quantizer, core s", brief, "quantizer_seconds"),
    ("ten nearest shared by text and photo", percent, "text_photo_overlap"),
    ("by chance", percent, "text_photo_overlap_chance"),
    ("training, core s", whole, "train_seconds"),
    ("training, s on a GPU", whole, "train_gpu_seconds"),
    ("parameters", whole, "num_parameters"),
    ("ms per request", brief, "ms_per_request"),
    ("validation NDCG@10", rate, "validation_ndcg@10"),
    ("code-level Hit@10", rate, "code_hit@10"),
    ("code-level NDCG@10", rate, "code_ndcg@10"),
)
PROBES: tuple[tuple[str, Format, str], ...] = (
    ("co-purchased pairs with one prefix, by depth", percent, "alignment_co_purchase_"),
    ("by chance", percent, "chance_co_purchase_"),
    ("pairs of one prefix with one category, by depth", percent, "alignment_category_"),
    ("by chance", percent, "chance_category"),
    ("entropy of purchases, by level", lambda value: f"{value:.2f}", "popularity_entropy_"),
    ("cosine of directions with one code, by level from 2", brief, "cosine_same_code_"),
    ("of all directions", brief, "chance_cosine_"),
    ("largest group of one code", whole, "largest_group"),
)
COLD: tuple[tuple[str, Format, str], ...] = (
    ("users with a cold target", whole, "cold_num_targets"),
    ("Hit@10", rate, "cold_hit@10"),
    ("by chance", rate, "cold_hit@10_chance"),
    ("with random codes", rate, "cold_hit@10_random_codes"),
    ("same first code as the nearest trained item", percent, "cold_shares_first_code"),
    ("by chance", percent, "cold_shares_first_code_chance"),
)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def title(cell: CellResult, outdated: frozenset[str]) -> str:
    """The label and the name of a cell, with a dagger if the cell is outdated."""
    return f"{cell.label} `{cell.name}`" + (OUTDATED if cell.name in outdated else "")


def quality(cells: Sequence[CellResult], figures: Mapping[str, Figures], outdated: frozenset[str]) -> str:
    """A row of quality figures for each cell. `figures`: cell -> figure -> value."""
    header = ["", "Hit@10", "NDCG@10", "Hit@5", "NDCG@5"]
    header += ["Hit@10, history included", "NDCG@10, history included", "seeds"]
    plain = ["item_hit@5", "item_ndcg@5", "item_hit@10_history_included", "item_ndcg@10_history_included"]
    return markdown(
        header,
        [
            [
                title(cell, outdated),
                *(with_interval(figures[cell.name], name) for name in ("item_hit@10", "item_ndcg@10")),
                *(rate(figures[cell.name][name]) for name in plain),
                str(figures[cell.name]["num_seeds"]),
            ]
            for cell in cells
        ],
    )


def costs(
    cells: Sequence[CellResult],
    figures: Mapping[str, Figures],
    outdated: frozenset[str],
    columns: Sequence[tuple[str, Format, str]] = COLUMNS,
) -> str | None:
    """A row for each cell, a column for each figure that at least one cell has. None if there is no such
    figure.

    `figures`: cell -> figure -> value.
    """
    shown = [column for column in columns if any(_found(figures[cell.name], column[2]) for cell in cells)]
    if not shown:
        return None
    rows = [
        [title(cell, outdated)]
        + [" / ".join(map(form, _found(figures[cell.name], name))) or NOTHING for _, form, name in shown]
        for cell in cells
    ]
    return markdown(["", *(heading for heading, _, _ in shown)], rows)


def reach(
    cells: Sequence[CellResult], figures: Mapping[str, Figures], kinds: Kinds, outdated: frozenset[str]
) -> str:
    """A row for each cell: its coverage, and Hit@10 by kind of target. `figures`: cell -> figure -> value."""
    words = ("transition seen", "not seen", "popular third", "middle third", "rare third")
    header = ["", "coverage@10"]
    header += [f"{name} ({whole(mask.sum())} users)" for name, mask in zip(words, kinds, strict=True)]
    rows = [
        [title(cell, outdated), "".join(map(percent, _found(figures[cell.name], "coverage@10"))) or NOTHING]
        + [
            "".join(map(rate, _found(figures[cell.name], f"item_hit@10:{kind}"))) or NOTHING
            for kind in kinds._fields
        ]
        for cell in cells
    ]
    return markdown(header, rows)


def differences(cells: Sequence[CellResult], found: Mapping[str, Figures], reference: str) -> str | None:
    """The reference minus each other cell. None if `found` has no other cell.

    `found`: cell -> figure -> value, one of the "differences" of study.json.
    """
    rows = [
        [f"minus {cell.label} `{cell.name}`"]
        + [_difference(found[cell.name], name) for name in ("item_hit@10", "item_ndcg@10")]
        for cell in cells
        if cell.name in found
    ]
    return markdown([f"`{reference}`", "Hit@10", "NDCG@10"], rows) if rows else None


def segments(found: Mapping[str, SegmentFigures | None]) -> str:
    """A row for each segment. None stands for a segment without users."""
    header = ["target", "users", "`default`, Hit@10", "`text`, Hit@10", "`default` minus `text`"]
    rows = [
        [name.replace("_", " "), "0", NOTHING, NOTHING, NOTHING]
        if figures is None
        else [
            name.replace("_", " "),
            whole(figures.num_users),
            _interval(figures.ours, rate),
            _interval(figures.theirs, rate),
            _interval(figures.difference, signed),
        ]
        for name, figures in found.items()
    ]
    return markdown(header, rows)


def robustness(
    cells: Sequence[CellResult], figures: Mapping[str, Figures], outdated: frozenset[str]
) -> str | None:
    """A row for each change of the text. None if the cells have no change."""
    changes = changes_of(cells, figures)
    header = ["change"] + [
        f"{title(cell, outdated)}, {what}" for cell in cells for what in ("all codes", "first code")
    ]
    rows = [
        [change.replace("_", " ")]
        + [
            " / ".join(map(percent, _found(figures[cell.name], f"{kept}:{change}"))) or NOTHING
            for cell in cells
            for kept in ("kept_all_codes", "kept_first_code")
        ]
        for change in changes
    ]
    return markdown(header, rows) if rows else None


def changes_of(cells: Sequence[CellResult], figures: Mapping[str, Figures]) -> list[str]:
    """The names of the text changes that the cells were tested on, sorted."""
    names = [name for cell in cells for name in figures[cell.name] if name.startswith("kept_all_codes:")]
    return sorted({name.split(":", 1)[1] for name in names})


def with_interval(figures: Figures, name: str) -> str:
    """`.1040 [.0980, .1100] ± .0012`: the mean, its 95 % interval and, with several seeds, their spread."""
    interval = Interval(figures[name], figures[f"{name}_low"], figures[f"{name}_high"])
    spread = figures.get(f"{name}_seed_sd")
    return _interval(interval, rate) + ("" if spread is None else f" ± {rate(spread)}")


def _difference(figures: Figures, name: str) -> str:
    interval = Interval(figures[name], figures[f"{name}_low"], figures[f"{name}_high"])
    relative = figures.get(f"{name}_relative")
    return _interval(interval, signed) + ("" if relative is None else f", {100 * relative:+.1f} %")


def _interval(interval: Interval, form: Format) -> str:
    return f"{form(interval.mean)} [{form(interval.low)}, {form(interval.high)}]"


def _found(figures: Figures, name: str) -> list[float]:
    """One figure, or the figures of all levels. Empty if there is none."""
    if not name.endswith("_"):
        return [figures[name]] if name in figures else []
    levels = sorted(int(key[len(name) :]) for key in figures if key.startswith(name))
    return [figures[f"{name}{level}"] for level in levels]
