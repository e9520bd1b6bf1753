"""README and docs/: links lead somewhere; files, tests, commands and settings that they name exist."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.anchors import anchors_plugin

from service.core.secret_files import FILE_VARIABLES
from service.settings import CLIENT_KEY, PREFIX, Settings

ROOT = Path(__file__).parents[1]
# Parts of study.md and of embeddings.md, which have their links.
NOTES = (ROOT / "docs/study/notes", ROOT / "docs/embeddings/notes")
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent not in NOTES),
]
FOLDERS = ("benchmarks", "clients", "deploy", "docs", "model_export", "service", "tests")
PACKAGES = ("service", "model_export")
NO_TITLES = ("page", "ticket", "Targets")  # how urgent an alert is; a page of Prometheus
MAX_README_LINES = 120
# An anchor of a heading is spelled as forges and MyST spell it.
PARSER = MarkdownIt("commonmark").enable("table").use(anchors_plugin, max_level=6)

TEST_NAME = re.compile(r"(test_\w+)(\[.*\])?")
CODE_NAME = re.compile(r"[A-Z]\w+(\.\w+)?|[a-z]+_\w+")  # a class, its method, a function
MODULE = re.compile(r"python -m ([\w.]+)")
MAKE = re.compile(r"\bmake ([a-z-]+)")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@cache
def tokens_of(page: Path) -> list[Token]:
    blocks = PARSER.parse(page.read_text(encoding="utf-8"))
    return [token for block in blocks for token in (block, *(block.children or ()))]


def anchors_of(page: Path) -> set[str]:
    return {str(token.attrs["id"]) for token in tokens_of(page) if token.type == "heading_open"}


def links_of(page: Path) -> Iterator[str]:
    for token in tokens_of(page):
        target = token.attrs.get("href") or token.attrs.get("src")
        if target and not re.match(r"[a-z]+:", str(target)):
            yield str(target)


def code_of(page: Path) -> Iterator[str]:
    """Code spans and the lines of code blocks."""
    for token in tokens_of(page):
        if token.type == "code_inline":
            yield token.content
        elif token.type == "fence":
            yield from token.content.splitlines()


@cache
def names_in_rooms() -> set[str]:
    """Names of files, and of folders with a slash behind them, in the root and in all rooms."""
    found = [*ROOT.glob("*"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]
    return {path.name + "/" * path.is_dir() for path in found}


def names_a_missing_file(span: str) -> bool:
    """Whether a code span looks like a file or folder of the repository, and there is none."""
    if span.startswith(tuple(f"{folder}/" for folder in FOLDERS)) and re.fullmatch(r"[\w./*-]+", span):
        return not list(ROOT.glob(span.rstrip("/")))
    if re.fullmatch(r"[\w-]+\.(py|lua|md)|[\w-]+/", span):  # in the room that the text is about
        return span not in names_in_rooms()
    return False


def test_the_readme_can_be_read_in_one_go() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


@each_page
def test_a_link_leads_to_a_file_and_a_heading_that_exist(page: Path) -> None:
    broken = []
    for link in links_of(page):
        name, _, anchor = unquote(link).partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    assert broken == []


@each_page
def test_a_file_that_is_named_exists(page: Path) -> None:
    spans = [token.content for token in tokens_of(page) if token.type == "code_inline"]
    assert [span for span in spans if names_a_missing_file(span)] == []


@pytest.fixture(scope="module")
def tests_that_exist() -> set[str]:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")]
    return {name for source in sources for name in re.findall(r"def (test_\w+)\(", source)}


@each_page
def test_a_test_that_is_named_exists(page: Path, tests_that_exist: set[str]) -> None:
    named = [match[1] for code in code_of(page) if (match := TEST_NAME.fullmatch(code))]
    assert [name for name in named if name not in tests_that_exist] == []


def test_the_walks_name_classes_and_functions_that_exist() -> None:
    sources = [path.read_text(encoding="utf-8") for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    defined = {name for source in sources for name in re.findall(r"\b(?:class|def) (\w+)", source)}
    spans = [
        token.content for token in tokens_of(ROOT / "docs/architecture.md") if token.type == "code_inline"
    ]
    named = {part for span in spans if CODE_NAME.fullmatch(span) for part in span.split(".")}
    assert {"Indexer", "index", "TrieMask"} <= named
    assert named - defined - set(PACKAGES) == set()


@each_page
def test_a_command_that_is_shown_can_be_run(page: Path) -> None:
    modules = [name for code in code_of(page) for name in MODULE.findall(code)]
    files = {name: ROOT / f"{name.replace('.', '/')}.py" for name in modules}
    assert [name for name, file in files.items() if not file.is_file()] == []
    rules = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    shown = [name for code in code_of(page) for name in MAKE.findall(code)]
    assert [name for name in shown if name not in rules] == []


@each_page
def test_a_setting_that_is_named_exists(page: Path) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {CLIENT_KEY} | FILE_VARIABLES
    named = re.findall(PREFIX + r"[A-Z_]*[A-Z]", page.read_text(encoding="utf-8"))
    assert [name for name in named if name not in known] == []


def emphasized(page: Path) -> Iterator[str]:
    source = tokens_of(page)
    for start, token in enumerate(source):
        if token.type == "em_open":
            end = next(place for place in range(start, len(source)) if source[place].type == "em_close")
            yield "".join(each.content or " " for each in source[start + 1 : end])


@pytest.mark.parametrize("name", ["operations", "runbook"])
def test_a_dashboard_or_panel_that_a_guide_names_exists(name: str) -> None:
    """As in *Latency by stage*, and *Resources: Memory per item*; a long title may be cut."""
    titles = set()
    for path in ROOT.glob("deploy/grafana/dashboards/*.json"):
        dashboard = json.loads(path.read_text(encoding="utf-8"))
        titles |= {dashboard["title"].removeprefix("glyphrec: ")}
        titles |= {panel["title"] for panel in dashboard["panels"]}
    named = [each for each in emphasized(ROOT / f"docs/{name}.md") if each.rstrip(".") not in NO_TITLES]
    assert len(named) > 5
    parts = {part for each in named for part in each.split(": ")}
    assert [part for part in parts if not any(title.startswith(part) for title in titles)] == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """As `make docs` builds it. Sphinx warns of broken links, and of pages that the menu leaves out."""
    pytest.importorskip("furo", reason="the site needs glyphrec[docs]")
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going"]
        + ["-d", str(tmp_path / "doctrees"), str(ROOT / "docs"), str(tmp_path / "site")],
        capture_output=True,
        text=True,
    )
    assert built.stderr == ""
    assert built.returncode == 0
    site = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "site").glob("*.html"))
    loaded = re.findall(
        r'<(?:script|img|link rel="(?:stylesheet|preload)")[^>]*(?:src|href)="(\w+://[^"]*)"', site
    )
    assert loaded == []  # it can be read without a network
