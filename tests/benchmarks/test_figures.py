"""No figure of the documents is typed by hand: a run is recorded, and the tables are filled from it."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.figures import TABLE, FigureError, Number, main, names_of_runs, read_runs, record
from benchmarks.report import finish
from benchmarks.tables import TABLES

ROOT = Path(__file__).parents[2]
FILTERS = {"filtered_cost_ratio": 1.25, "cold_view_ms": 7.4, "edit_us_with_10_views": 99.6}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Documents with one table and one figure in a sentence, not filled yet."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# Title\n", encoding="utf-8")
    (tmp_path / "docs/page.md").write_text(
        "Before\n<!-- figures:filters -->\n| old |\n<!-- /figures -->\n"
        "It takes <!-- figure {filters.cold_view_ms:.1f} -->9<!-- /figure --> ms.\n",
        encoding="utf-8",
    )
    return tmp_path


def recorded(root: Path, *argv: str) -> str:
    """The command's exit status is 0, and what docs/page.md says then."""
    assert main(["--root", str(root), *argv]) == 0
    return (root / "docs/page.md").read_text(encoding="utf-8")


def line(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    finish("filters", argv, FILTERS, {"unfiltered_ms": 1.0})
    return capsys.readouterr().out


def test_what_a_run_prints_is_what_the_table_shows(root, tmp_path, capsys):
    result = tmp_path / "result"
    result.write_text("some table\n" + line(capsys), encoding="utf-8")
    recorded(root, "record", "filters", str(result))
    text = recorded(root, "fill")
    assert "| a filtered request against an unfiltered one, its view cached | 1.25 times |" in text
    assert "| an edit that changes all of 10 cached views | 100 µs |" in text
    assert "It takes <!-- figure {filters.cold_view_ms:.1f} -->7.4<!-- /figure --> ms." in text
    assert "| old |" not in text
    assert text.startswith(
        "Before\n<!-- figures:filters -->\n| `python -m benchmarks.filters` | |\n|---|---|\n"
    )


def test_check_fails_until_the_tables_are_filled_and_after_a_figure_was_typed(root, capsys):
    record(root, "filters", line(capsys))
    page = root / "docs/page.md"
    assert main(["--root", str(root), "check"]) == 1
    assert "docs/page.md differs" in capsys.readouterr().out
    recorded(root, "fill")
    assert main(["--root", str(root), "check"]) == 0
    page.write_text(page.read_text(encoding="utf-8").replace("1.25", "1.04"), encoding="utf-8")
    assert main(["--root", str(root), "check"]) == 1


def test_what_a_table_names_must_have_been_measured(root, capsys):
    with pytest.raises(FigureError, match="record"):
        main(["--root", str(root), "fill"])
    record(root, "filters", line(capsys).replace("cold_view_ms", "other_ms"))
    with pytest.raises(FigureError, match="cold_view_ms"):
        main(["--root", str(root), "fill"])


def test_only_what_a_table_shows_is_recorded_and_no_tiny_run(root, capsys):
    with pytest.raises(FigureError, match="'nothing'"):
        record(root, "nothing", line(capsys))
    with pytest.raises(FigureError, match="--tiny"):
        record(root, "filters", line(capsys, "--tiny"))
    with pytest.raises(FigureError, match="JSON"):
        record(root, "filters", "no json")
    assert read_runs(root) == {}


def test_an_evaluation_of_the_demo_is_recorded_as_it_is_written(root):
    record(root, "demo", json.dumps({"model_recall@5": 0.03}, indent=1))
    assert read_runs(root)["demo"]["figures"] == {"model_recall@5": 0.03}


@pytest.mark.parametrize(
    ("value", "spec", "shown"),
    [
        (0.0879, "rate", ".0879"),
        (0.096, ".1%", "9.6 %"),
        (0.28, "short", "0.28"),
        (2.44, "short", "2.4"),
        (1501.0, "short", "1,501"),
        (1_035_000_000, "mega", "1,035"),
        (-0.13, "+.0%", "-13 %"),
    ],
)
def test_a_figure_is_shown_as_the_documents_write_it(value, spec, shown):
    assert format(Number(value), spec) == shown


def test_the_documents_show_the_figures_that_are_kept(capsys):
    assert main(["check"]) == 0, capsys.readouterr().out


def test_every_table_is_shown_in_a_document():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = {name for page in pages for _, name, *_ in TABLE.findall(page.read_text(encoding="utf-8"))}
    assert shown == TABLES.keys()


def test_every_run_that_a_table_names_is_kept_with_its_command_date_and_machine():
    runs = read_runs(ROOT)
    assert runs.keys() == names_of_runs(ROOT)
    assert [name for name, run in runs.items() if not {"command", "date", "machine"} <= run.keys()] == []
    assert [name for name, run in runs.items() if "--tiny" in run["command"]] == []


def test_no_cell_of_a_table_holds_a_measured_number():
    """Counts that name a row or a load may stand there; units of measurement may not."""
    measured = re.compile(r"\d[\d.,]* ?(?:ms|µs|s|MB|%|times)\b")
    cells = [cell for table in TABLES.values() for row in table.rows for cell in row[1:]]
    assert [cell for cell in cells if measured.search(re.sub(r"\{[^}]*\}", "", cell))] == []
