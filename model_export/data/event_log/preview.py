"""What was understood of an event log, for people: ten rows, the columns, the counts."""

from dataclasses import dataclass, field

from model_export.data.dataset import Dataset
from model_export.data.event_log.columns import Columns
from model_export.data.event_log.files import TableFile

CELL_WIDTH = 22
MAX_COLUMNS = 8


@dataclass
class Preview:
    """Filled in as the log is read."""

    files: list[TableFile]
    columns: Columns
    rows: list[tuple[str | None, ...]]
    num_rows: int = 0
    time_words: str = ""
    span: str = ""
    kinds: list[tuple[str | None, int]] = field(default_factory=list)
    items: list[TableFile] = field(default_factory=list)
    item_words: str = ""
    dataset: Dataset | None = None

    def text(self) -> str:
        """Lines for the terminal."""
        file = self.files[0]
        lines = [f"events: {_paths(self.files)}: {file.description}, {self.num_rows:,} events"]
        lines += _table(file.columns, self.rows)
        lines.append(f"  user   = {self.columns.user}")
        lines.append(f"  item   = {self.columns.item}")
        span = f", {self.span}" if self.span else ""
        lines.append(f"  time   = {self.columns.time or 'none'}: {self.time_words}{span}")
        if self.columns.event is not None:
            lines.append(f"  event  = {self.columns.event}: {_kinds(self.kinds)}")
        if self.columns.rating is not None:
            lines.append(f"  rating = {self.columns.rating}")
        if unused := [name for name in file.columns if name not in self.columns]:
            lines.append(f"  other  = {', '.join(unused)}")
        if self.items:
            lines.append(f"items: {_paths(self.items)}: {self.items[0].description}: {self.item_words}")
        elif self.item_words:
            lines.append(f"items: {self.item_words}")
        if self.dataset is not None:
            lines.append(self.dataset.summary())
        return "\n".join(lines)


def _paths(files: list[TableFile]) -> str:
    return str(files[0].path) + (f" and {len(files) - 1} more" if len(files) > 1 else "")


def _kinds(kinds: list[tuple[str | None, int]]) -> str:
    return ", ".join(f"{'none' if kind is None else kind} {count:,}" for kind, count in kinds[:8]) + (
        ", …" if len(kinds) > 8 else ""
    )


def _table(names: tuple[str, ...], rows: list[tuple[str | None, ...]]) -> list[str]:
    shown = [names, *rows]
    cells = [[_cut(cell) for cell in row[:MAX_COLUMNS]] for row in shown]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    more = " …" if len(names) > MAX_COLUMNS else ""
    return [
        "  | " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + f" |{more}"
        for row in cells
    ]


def _cut(cell: str | None) -> str:
    text = "" if cell is None else " ".join(str(cell).split())
    return text if len(text) <= CELL_WIDTH else text[: CELL_WIDTH - 1] + "…"
