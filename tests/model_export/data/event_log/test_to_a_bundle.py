"""From the files as they are published to a bundle: `prepare`, `export`, and an evaluation split by time."""

import json

import numpy as np
import pytest

from model_export.data.tables import read_dataset
from service.cli import main
from service.core.bundle import load_bundle
from tests.model_export.data.event_log import other_shapes, public_forms

NUM_USERS, NUM_ITEMS = 40, 24
WAYS = {"published": public_forms.FORMS, "saved anew": other_shapes.SHAPES}


@pytest.fixture(autouse=True)
def larger_shop(monkeypatch):
    """Users walk through the catalog from somewhere on, so there is something to learn."""
    rng = np.random.default_rng(0)
    starts = rng.integers(0, NUM_ITEMS, NUM_USERS)
    took = {
        str(100 + user): [str(1 + (start + step) % NUM_ITEMS) for step in range(4 + user % 5)]
        for user, start in enumerate(starts.tolist())
    }
    monkeypatch.setattr(public_forms, "TOOK", took)
    monkeypatch.setattr(
        public_forms, "TITLES", {str(n): f"Bolt M{n} x {5 * n} mm, steel" for n in range(1, NUM_ITEMS + 1)}
    )
    monkeypatch.setattr(public_forms, "GENRES", {str(n): "Drama" for n in range(1, NUM_ITEMS + 1)})


def run(*args: object) -> None:
    assert main([str(arg) for arg in args]) == 0


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """A folder for bundles and their cache. Forms that say the same of the shop share a bundle in it."""
    return tmp_path_factory.mktemp("bundles")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", public_forms.FORMS)
def test_a_log_in_each_published_form_reaches_a_bundle(form, way, bundles, tmp_path):
    (tmp_path / "in").mkdir()
    source = WAYS[way][form](tmp_path / "in")
    run("prepare", "--data", source, "--out", tmp_path / "data")
    fingerprint = read_dataset(str(tmp_path / "data")).fingerprint
    bundle = bundles / fingerprint
    export = ("export", "--data", tmp_path / "data", "--out", bundle, "--cache", bundles / "cache")
    run(*export, "--config", "tiny")
    manifest = load_bundle(bundle).manifest
    assert manifest.num_items == NUM_ITEMS
    assert manifest.data_fingerprint == fingerprint


@pytest.mark.slow
def test_a_csv_reaches_a_bundle_and_what_came_later_judges_it(tmp_path, capsys):
    source = public_forms.csv_log(tmp_path)
    moment = public_forms.iso(public_forms.START + 4500, "%Y-%m-%dT%H:%M:%S")  # after five events of each
    run("prepare", "--data", source, "--until", moment, "--out", tmp_path / "before")
    run("prepare", "--data", source, "--out", tmp_path / "all")
    run(
        *("export", "--data", tmp_path / "before", "--out", tmp_path / "bundle"),
        *("--config", "tiny", "--cache", tmp_path / "cache"),
    )
    capsys.readouterr()
    evaluate = ("evaluate", "--bundle", tmp_path / "bundle", "--json", tmp_path / "figures.json")
    run(*evaluate, "--data", tmp_path / "all", "--split-at", moment)
    said = capsys.readouterr().out
    assert f"split at {moment}, all items ranked" in said
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["test_users"] == sum(len(items) > 5 for items in public_forms.TOOK.values())
    # A bundle that knows the later events is refused.
    assert main([str(arg) for arg in (*evaluate, "--data", tmp_path / "before", "--split-at", moment)]) == 2
    assert "was exported from all of these events, also those after" in capsys.readouterr().err
