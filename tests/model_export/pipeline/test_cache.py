import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from model_export.encoders.base import Reading
from model_export.evaluation import ranking
from model_export.files import read_or_remove
from model_export.pipeline.cache import StageCache, key_of
from service.core.sid import SidSpec
from service.errors import GlyphrecError


@dataclass(frozen=True)
class Config:
    rate: float = 0.1


def test_equal_inputs_have_equal_keys_and_any_change_gives_another_key():
    inputs = [np.arange(6), Config(), SidSpec(levels=(2, 3)), "a", 1, ("a", 1), {"tree": 1, "head": 2}]
    key = key_of(*inputs)
    again = [np.arange(6), Config(), SidSpec(levels=(2, 3)), "a", 1, ("a", 1), {"head": 2, "tree": 1}]
    assert key == key_of(*again)
    changes = [
        np.arange(6, dtype=np.int32),
        Config(rate=0.2),
        SidSpec(levels=(3, 2)),
        "b",
        2,
        ("a", 2),
        {"tree": 2, "head": 2},
    ]
    others = {
        key_of(*[*inputs[:place], change, *inputs[place + 1 :]]) for place, change in enumerate(changes)
    }
    assert len(others | {key}) == len(changes) + 1


@pytest.mark.parametrize(
    "code",
    [ranking, ranking.left_padded, Config, lambda: None, object(), np.array([Config()], dtype=object)],
    ids=["module", "function", "class", "lambda", "object", "array of objects"],
)
def test_an_input_without_a_value_is_refused(code, tmp_path):
    with pytest.raises(TypeError, match="cannot be part of a key"):
        key_of("a", [1, code])
    with pytest.raises(TypeError, match="cannot be part of a key"):
        key_of(Config(rate=code))
    with pytest.raises(TypeError, match="VERSION of its stage"):
        StageCache(tmp_path).path("stage", ".txt", {"of": code})


def test_a_file_counts_by_its_content(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("same")
    second.write_text("same")
    assert key_of(first) == key_of(second)
    second.write_text("other")
    assert key_of(first) != key_of(second)


def read_text(path):
    if not (text := path.read_text()).endswith("."):
        raise ValueError("cut")
    return text


def test_a_stage_is_made_once(tmp_path):
    cache = StageCache(tmp_path)
    path = cache.path("stage", ".txt", 1)
    for text in ("made.", "made again."):
        assert cache.get(path, lambda target, text=text: target.write_text(text), read_text) == "made."
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_an_interrupted_stage_leaves_nothing_that_looks_finished(tmp_path):
    cache = StageCache(tmp_path)
    path = cache.path("stage", ".txt", 1)

    def fail(target):
        target.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get(path, fail, read_text)
    assert not list(tmp_path.iterdir())
    assert cache.get(path, lambda target: target.write_text("whole."), read_text) == "whole."


def test_a_damaged_stage_is_made_again(tmp_path, capsys):
    cache = StageCache(tmp_path)
    path = cache.path("stage", ".txt", 1)
    path.write_text("who")
    assert cache.get(path, lambda target: target.write_text("whole."), read_text) == "whole."
    assert f"{path}: damaged (ValueError), so it is made again" in capsys.readouterr().err


@pytest.mark.parametrize("num_bytes", [0, 1, 100, 1_000])
def test_arrays_and_weights_that_were_cut_are_read_as_damaged(tmp_path, num_bytes):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "arrays.npz", frames=rng.random((40, 40)))
    np.save(tmp_path / "array.npy", rng.random((40, 40)))
    torch.save({"weights": torch.ones(40, 40)}, tmp_path / "weights.pt")
    for name, read in (
        ("arrays.npz", Reading.load),
        ("array.npy", np.load),
        ("weights.pt", lambda path: torch.load(path, weights_only=False)),
        ("weights.pt", lambda path: torch.load(path, weights_only=True)),
    ):
        cut = tmp_path / f"cut-{name}"
        cut.write_bytes((tmp_path / name).read_bytes()[:num_bytes])
        assert read_or_remove(cut, read) is None
        assert not cut.exists()


def test_of_two_exports_one_makes_a_stage_and_the_other_waits_for_it(tmp_path):
    said: list[str] = []
    began, may_end = threading.Event(), threading.Event()
    path = StageCache(tmp_path).path("stage", ".txt", 1)

    def slowly(target):
        began.set()
        assert may_end.wait(10)
        target.write_text("by the first.")

    def say(line):
        said.append(line)
        may_end.set()

    with ThreadPoolExecutor() as pool:
        first = pool.submit(StageCache(tmp_path).get, path, slowly, read_text)
        assert began.wait(10)
        second = pool.submit(
            StageCache(tmp_path, say).get, path, lambda target: target.write_text("by the second."), read_text
        )
        assert first.result(10) == second.result(10) == "by the first."
    assert said == [f"      another export is making {path.name}; waiting for it"]


def test_a_cache_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(GlyphrecError, match=r"--cache .*: cannot be written .*Choose another folder"):
        StageCache(tmp_path / "file" / "cache")
