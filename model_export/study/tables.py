"""The tables of study.md, in Markdown. Each takes cells of one dataset, one for each name, and writes the
figures that study.json has for them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from model_export.evaluation.statistics import Interval
from model_export.study.cells import CellResult
from model_export.study.summary import SegmentFigures

NOTHING = "–"
OUTDATED = "†"

Figures = Mapping[str, float]
Format = Callable[[float], str]


def rate(value: float) -> str:
    """.0871, as the literature prints them."""
    return f"{value:.4f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.4f}"


def signed(value: float) -> str:
    return ("" if value < 0 else "+") + rate(value)


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def whole(value: float) -> str:
    return f"{value:,.0f}"


def brief(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else whole(value)


# Title, how it is written, and the figure; a name that ends in _ stands for one figure a level.
COLUMNS: tuple[tuple[str, Format, str], ...] = (
    ("items in collision", percent, "collision_rate"),
    ("codes used, by level", percent, "use_level_"),
    ("entropy in bits, by level", lambda value: f"{value:.2f}", "entropy_bits_level_"),
    ("pixels an item", whole, "pixels_per_item"),
    ("read right", percent, "reading_accuracy"),
    ("ms to encode an item", brief, "encode_ms_per_item"),
    ("training, core s", whole, "train_seconds"),
    ("training, s on a GPU", whole, "train_gpu_seconds"),
    ("parameters", whole, "num_parameters"),
    ("ms a request", brief, "ms_per_request"),
    ("validation NDCG@10", rate, "validation_ndcg@10"),
    ("code-level Hit@10", rate, "code_hit@10"),
    ("code-level NDCG@10", rate, "code_ndcg@10"),
)
COLD: tuple[tuple[str, Format, str], ...] = (
    ("users with a cold target", whole, "cold_num_targets"),
    ("Hit@10", rate, "cold_hit@10"),
    ("by chance", rate, "cold_hit@10_chance"),
    ("with random codes", rate, "cold_hit@10_random_codes"),
    ("shares the first code with its nearest trained relative", percent, "cold_shares_first_code"),
    ("by chance", percent, "cold_shares_first_code_chance"),
)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def title(cell: CellResult, outdated: frozenset[str]) -> str:
    return f"{cell.label} `{cell.name}`" + (OUTDATED if cell.name in outdated else "")


def quality(cells: Sequence[CellResult], figures: Mapping[str, Figures], outdated: frozenset[str]) -> str:
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
    """The columns that some cell has a figure for; None where there is none."""
    shown = [column for column in columns if any(_found(figures[cell.name], column[2]) for cell in cells)]
    if not shown:
        return None
    rows = [
        [title(cell, outdated)]
        + [" / ".join(map(form, _found(figures[cell.name], name))) or NOTHING for _, form, name in shown]
        for cell in cells
    ]
    return markdown(["", *(heading for heading, _, _ in shown)], rows)


def differences(cells: Sequence[CellResult], found: Mapping[str, Figures], reference: str) -> str | None:
    """The reference minus each other cell."""
    rows = [
        [f"minus {cell.label} `{cell.name}`"]
        + [_difference(found[cell.name], name) for name in ("item_hit@10", "item_ndcg@10")]
        for cell in cells
        if cell.name in found
    ]
    return markdown([f"`{reference}`", "Hit@10", "NDCG@10"], rows) if rows else None


def segments(found: Mapping[str, SegmentFigures | None]) -> str:
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
    """A row for each change of the text."""
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
    names = [name for cell in cells for name in figures[cell.name] if name.startswith("kept_all_codes:")]
    return sorted({name.split(":", 1)[1] for name in names})


def with_interval(figures: Figures, name: str) -> str:
    """.1040 [.0980, .1100] ± .0012: the mean, its 95 % interval, the spread over seeds where there is one."""
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
    """One figure, or those of all levels; empty where there is none."""
    if not name.endswith("_"):
        return [figures[name]] if name in figures else []
    levels = sorted(int(key[len(name) :]) for key in figures if key.startswith(name))
    return [figures[f"{name}{level}"] for level in levels]
