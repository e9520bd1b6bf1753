"""Cells of the study are loaded as they were saved, and the error for a damaged file says what to do."""

import json

import numpy as np
import pytest

from model_export.study.cells import CellResult, DamagedCell, load, path_of, save
from tests.model_export.study.stored import stored_cells

RANKS = np.array([0, 10, 3, 10], dtype=np.uint8)


def cell(name: str = "default", seed: int = 0, **changes) -> CellResult:
    given = {
        "dataset": "shop",
        "label": "The default – ours",
        "groups": ("headline", "encoders"),
        "key": "0123456789abcdef",
        "made_with": {"drawing": 1, "tree": 2},
        "ranks_excluded": RANKS,
        "ranks_included": RANKS[::-1].copy(),
        "code_ranks": None,
        "figures": {"train_seconds": 12.5, "collision_rate": np.float32(0.25)},
    }
    return CellResult(name=name, seed=seed, **(given | changes))


def test_a_cell_comes_back_as_it_was_saved(tmp_path):
    saved = cell(code_ranks=np.array([1, 2, 10, 10], dtype=np.uint8))
    assert save(tmp_path, saved) == tmp_path / "shop" / "default-0.json"
    found = load(tmp_path, "shop", "default", 0)
    for name in ("dataset", "name", "label", "groups", "seed", "key", "made_with", "figures"):
        assert getattr(found, name) == getattr(saved, name)
    for name in ("ranks_excluded", "ranks_included", "code_ranks"):
        assert getattr(found, name).tolist() == getattr(saved, name).tolist()
        assert getattr(found, name).dtype == np.uint8


def test_a_missing_cell_is_none_and_a_cell_without_users_is_a_cell(tmp_path):
    assert load(tmp_path, "shop", "default", 0) is None
    assert stored_cells(tmp_path) == []
    figures_only = CellResult("shop", "typos", "Typos", ("robustness",), 0, "k" * 16, {"robustness": 1})
    save(tmp_path, figures_only)
    found = load(tmp_path, "shop", "typos", 0)
    assert len(found.ranks_excluded) == 0
    assert found.code_ranks is None


def test_all_come_in_one_order_and_a_half_written_file_is_no_cell(tmp_path):
    for name, seed in (("sasrec", 1), ("default", 2), ("sasrec", 0)):
        save(tmp_path, cell(name, seed))
    path_of(tmp_path, "shop", "default", 3).with_suffix(".partial").write_text("{")
    assert [(found.name, found.seed) for found in stored_cells(tmp_path)] == [
        ("default", 2),
        ("sasrec", 0),
        ("sasrec", 1),
    ]


def test_equal_cells_are_equal_bytes_whatever_the_order_of_their_figures(tmp_path):
    first = save(tmp_path / "one", cell(figures={"a": 1.0, "b": 2.0})).read_bytes()
    assert save(tmp_path / "two", cell(figures={"b": 2.0, "a": 1.0})).read_bytes() == first
    assert first.endswith(b"}\n")


def _without_key(text: str) -> str:
    return json.dumps({name: value for name, value in json.loads(text).items() if name != "key"})


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text[:0] + "[]",
        _without_key,
        lambda text: text.replace('"ranks_excluded": "eN', '"ranks_excluded": "AA'),  # not zlib
        lambda text: text.replace('"ranks_excluded": "', '"ranks_excluded": "%'),  # not base64
        lambda text: text.replace('"default"', '"another"'),
        lambda text: text.replace('"figures": {', '"figures": {"odd": "many",'),
    ],
)
def test_a_damaged_file_is_named_and_says_to_delete_it(tmp_path, damage):
    path = save(tmp_path, cell())
    text = path.read_text(encoding="utf-8")
    assert damage(text) != text
    path.write_text(damage(text), encoding="utf-8")
    with pytest.raises(DamagedCell, match=r"default-0\.json.*Delete it"):
        load(tmp_path, "shop", "default", 0)


def test_an_impossible_cell_is_refused(tmp_path):
    with pytest.raises(ValueError, match="name a file"):
        cell("../default")
    with pytest.raises(ValueError, match="at most 10"):
        cell(ranks_excluded=np.array([0, 11, 0, 0], dtype=np.uint8))
    with pytest.raises(ValueError, match="at most 10"):
        cell(ranks_excluded=np.zeros(4, dtype=np.int64))
    with pytest.raises(ValueError, match="ranks_excluded has 4 users, and ranks_included has 3"):
        cell(ranks_included=RANKS[:3])
    with pytest.raises(ValueError, match="not JSON compliant"):
        save(tmp_path, cell(figures={"train_seconds": float("nan")}))
    assert stored_cells(tmp_path) == []
