from dataclasses import dataclass

import numpy as np
import pytest

from model_export.evaluation import ranking
from model_export.pipeline.cache import StageCache, key_of
from service.core.sid import SidSpec


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


def test_a_stage_is_made_once(tmp_path):
    cache = StageCache(tmp_path)
    path = cache.path("stage", ".txt", 1)
    assert cache.make(path, lambda target: target.write_text("made"))
    assert not cache.make(path, lambda target: target.write_text("made again"))
    assert path.read_text() == "made"


def test_an_interrupted_stage_leaves_nothing_that_looks_finished(tmp_path):
    cache = StageCache(tmp_path)
    path = cache.path("stage", ".txt", 1)

    def fail(target):
        target.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.make(path, fail)
    assert not path.exists()
    assert cache.make(path, lambda target: target.write_text("whole"))
    assert path.read_text() == "whole"


def test_a_known_key_does_not_change():
    """The study's stored cells are found by keys. If this key changes, all cells are computed again."""
    values = ["a", 1, None, ("b", 2.5), Config(), SidSpec(levels=(2, 3)), np.arange(3, dtype=np.int32)]
    assert key_of(*values) == "0234a1a35617658e"
