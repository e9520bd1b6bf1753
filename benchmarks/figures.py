"""Figures of the documents: kept in docs/figures.json, written into the documents, and checked there.

    python -m benchmarks.serving | python -m benchmarks.figures record serving -
    python -m benchmarks.figures fill         # writes every table anew
    python -m benchmarks.figures check        # fails where a document shows something else

A table stands between `<!-- figures:NAME -->` and `<!-- /figures -->`; benchmarks/tables.py has its layout. A
figure in a sentence stands between `<!-- figure {trie.share_of_request:.1%} -->` and `<!-- /figure -->`.
docs/study.json has the study's figures.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from string import Formatter
from typing import Any

from benchmarks import report
from benchmarks.tables import TABLES, Table
from service.errors import GlyphrecError

ROOT = Path(__file__).parents[1]
FIGURES = Path("docs/figures.json")
STUDY = Path("docs/study.json")
TABLE = re.compile(r"(<!-- figures:([\w-]+) -->\n)(.*?)(<!-- /figures -->)", re.DOTALL)
SENTENCE = re.compile(r"(<!-- figure (\{[^{}]+\}) -->)(.*?)(<!-- /figure -->)", re.DOTALL)
EVALUATE = "glyphrec evaluate --bundle BUNDLE --data {} --json figures.json"
EVALUATIONS = {  # runs that are no benchmarks -> their commands
    "demo": EVALUATE.format("completejourney"),
    "ranked_films": EVALUATE.format("DIR/movietweetings_posters --split-at 2013-08-01"),
    "ranked_groceries": EVALUATE.format("completejourney --split-at 2017-11-01"),
    "ranked_office": EVALUATE.format("DIR/office"),
    "ranked_scientific": EVALUATE.format("DIR/scientific"),
}
MEGA = 1_000_000
SHORT_BELOW = 10


class FigureError(GlyphrecError):
    """A document, a table or a result names a figure that is not there."""


class Number(float):
    """A figure with the formats of the documents: besides those of a float `rate`, `short` and `mega`."""

    def __format__(self, spec: str) -> str:
        if spec == "rate":  # .0879
            return f"{float(self):.4f}".removeprefix("0")
        if spec == "short":  # two digits below ten, and none behind the point above
            decimals = 0 if abs(self) >= SHORT_BELOW else 1 if abs(self) >= 1 else 2
            return f"{float(self):,.{decimals}f}"
        if spec == "mega":  # bytes as megabytes
            return f"{float(self) / MEGA:,.0f}"
        return super().__format__(spec).replace("%", " %")


class Values:
    """Figures by name, as a template reaches them: `run.name`, `run[name]`, or the ratio `run[name/name]`."""

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        self._name, self._values = name, values

    def __getitem__(self, key: str) -> Any:
        over, is_ratio, under = key.partition("/")
        if is_ratio:
            return Number(self[over] / self[under])
        if key not in self._values:
            raise FigureError(
                f"{self._name} has no figure {key!r}. Record a run that has: see benchmarks/tables.py"
            )
        value = self._values[key]
        if isinstance(value, Mapping):
            return Values(f"{self._name}.{key}", value)
        return value if isinstance(value, str) else Number(value)

    def __getattr__(self, key: str) -> Any:
        return self[key]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)  # for tests
    commands = parser.add_subparsers(dest="command", required=True)
    record_parser = commands.add_parser("record", help="keep the last line of a run")
    record_parser.add_argument("name", help="under which the tables know it, such as serving or chaos_1")
    record_parser.add_argument("result", help="a file with the run's output, or - for what comes in")
    commands.add_parser("fill", help="write the tables of all documents")
    commands.add_parser("check", help="fail where a document differs from what fill writes")
    args = parser.parse_args(argv)
    if args.command == "record":
        text = sys.stdin.read() if args.result == "-" else Path(args.result).read_text(encoding="utf-8")
        record(args.root, args.name, text)
        return 0
    changed = dict(documents(args.root))
    if args.command == "fill":
        for path, text in changed.items():
            path.write_text(text, encoding="utf-8")
            print(f"written: {path.relative_to(args.root)}")
        return 0
    for path in changed:
        print(
            f"{path.relative_to(args.root)} differs from docs/figures.json: python -m benchmarks.figures fill"
        )
    return 1 if changed else 0


def record(root: Path, name: str, text: str) -> None:
    """Keep a run under `name`: a benchmark's output, or what one of EVALUATIONS wrote."""
    known = names_of_runs(root)
    if name not in known:
        raise FigureError(f"no table shows {name!r}. Known are {', '.join(sorted(known))}.")
    run = _parsed(text)
    if name in EVALUATIONS and "figures" not in run:
        run = _run_of_evaluation(EVALUATIONS[name], run)
    if not {"command", "figures"} <= run.keys():
        raise FigureError("the last line is not a benchmark's: it has no command and figures.")
    if "--tiny" in run["command"]:
        raise FigureError("--tiny only shows that a benchmark works; run it without.")
    kept = read_runs(root)
    kept[name] = run
    path = root / FIGURES
    path.write_text(
        json.dumps(dict(sorted(kept.items())), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def read_runs(root: Path) -> dict[str, Any]:
    path = root / FIGURES
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def documents(root: Path) -> Iterator[tuple[Path, str]]:
    """Each document that is not as `fill` writes it, and how it is then."""
    values = namespace(root)
    for path in pages(root):
        text = path.read_text(encoding="utf-8")
        filled = TABLE.sub(lambda found: found[1] + rendered(found[2], values) + found[4], text)
        filled = SENTENCE.sub(lambda found: found[1] + formatted(found[2], values) + found[4], filled)
        if filled != text:
            yield path, filled


def pages(root: Path) -> list[Path]:
    """All documents that may show figures."""
    readme = root / "README.md"
    return [*([readme] if readme.exists() else []), *sorted((root / "docs").rglob("*.md"))]


def namespace(root: Path) -> dict[str, Values]:
    """What a template may name: the recorded runs, and the data sets of the study."""
    runs = {
        name: Values(
            name,
            run["machine"] | run["figures"] | run.get("baseline", {}) | {"command": run["command"]},
        )
        for name, run in read_runs(root).items()
    }
    study = root / STUDY
    cells = json.loads(study.read_text(encoding="utf-8")) if study.exists() else {}
    return {name: Values(name, of_data) for name, of_data in cells.items()} | runs


def rendered(name: str, values: Mapping[str, Values]) -> str:
    """A table as Markdown."""
    if name not in TABLES:
        raise FigureError(f"no table is called {name!r}. benchmarks/tables.py has {', '.join(TABLES)}.")
    table = TABLES[name]
    lines = [table.header, *table.rows]
    cells = [[formatted(cell, values) for cell in line] for line in lines]
    header, *rows = ["|" + "|".join(f" {cell} " if cell else " " for cell in row) + "|\n" for row in cells]
    return header + "|" + "---|" * len(table.header) + "\n" + "".join(rows)


def formatted(template: str, values: Mapping[str, Values]) -> str:
    try:
        return template.format_map(values)
    except KeyError as error:
        raise FigureError(
            f"{template}: no run {error} is recorded. python -m benchmarks.figures record"
        ) from error


def names_of_runs(root: Path) -> set[str]:
    """Of all runs that a table names, or a sentence of a document."""
    in_tables = {name for table in TABLES.values() for name in _named(table)}
    in_sentences = {
        _run_of(found[2].strip("{}"))
        for path in pages(root)
        for found in SENTENCE.finditer(path.read_text(encoding="utf-8"))
    }
    return (in_tables | in_sentences) - {"scientific", "office"}


def _named(table: Table) -> Iterator[str]:
    for cell in (*table.header, *(cell for row in table.rows for cell in row)):
        for _, field, _, _ in Formatter().parse(cell):
            if field:
                yield _run_of(field)


def _run_of(field: str) -> str:
    """The run that a template's field begins with."""
    return re.split(r"[.\[]", field)[0]


def _parsed(text: str) -> dict[str, Any]:
    """The whole text as JSON, or its last line."""
    for each in (text, (text.splitlines() or [""])[-1]):
        try:
            found = json.loads(each)
        except json.JSONDecodeError:
            continue
        if isinstance(found, dict):
            return found
    raise FigureError("the result does not end with a line of JSON.")


def _run_of_evaluation(command: str, figures: dict[str, float]) -> dict[str, Any]:
    date = datetime.now(UTC).date().isoformat()
    return {"command": command, "date": date, "machine": report.machine(), "figures": figures}


if __name__ == "__main__":
    report.run(main)
