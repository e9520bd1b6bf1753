"""Every benchmark runs: each with --tiny, in this process, which has imported what they share."""

import importlib
import json
import math
import pkgutil
from pathlib import Path

import pytest

import benchmarks
from benchmarks.report import NotAvailable

NOT_A_BENCHMARK = {"figures", "report", "table_rows", "tables", "timing"}
NAMES = sorted(
    each.name
    for each in pkgutil.iter_modules(benchmarks.__path__)
    if not each.ispkg and each.name not in NOT_A_BENCHMARK
)
SHARE_GRAPHS = {"decode", "filters", "gpu", "trie"}
# What a machine may lack, so that the benchmark says how to get it and is skipped.
MAY_BE_MISSING = {"serving": "h2load", "soak": "h2load", "overload": "h2load"}
MAY_BE_MISSING |= {"search": "h2load", "rank": "h2load", "workers": "h2load"}
OPTIONS = {"gpu": ["--provider", "CPUExecutionProvider"]}  # the same code where there is no GPU


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported graphs that benchmarks leave for each other."""
    return tmp_path_factory.mktemp("graphs")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs_and_ends_with_its_figures_as_json(name, graphs, capsys):
    options = OPTIONS.get(name, []) + (["--graphs", str(graphs)] if name in SHARE_GRAPHS else [])
    lacks = ""
    try:
        status = importlib.import_module(f"benchmarks.{name}").main(["--tiny", *options])
    except NotAvailable as error:
        lacks = str(error)
    if lacks:
        assert MAY_BE_MISSING.get(name, "nothing that may be missing") in lacks
        pytest.skip(lacks)
    assert status == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["benchmark"] == name
    assert line["command"].startswith(f"python -m benchmarks.{name} --tiny")
    assert line["machine"]["cores"] >= 1
    assert line["figures"]
    values = line["figures"] | line["baseline"]
    assert line["units"].keys() == values.keys()
    assert [each for each, value in values.items() if not math.isfinite(value)] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_says_how_to_run_it(name):
    said = importlib.import_module(f"benchmarks.{name}").__doc__
    assert f"python -m benchmarks.{name}" in said
    assert "The last line is JSON" in said.replace("\n", " ") or "the last line is JSON" in said.replace(
        "\n", " "
    )
