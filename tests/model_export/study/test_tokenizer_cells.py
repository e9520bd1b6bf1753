"""The cells of further quantizers differ from `learnt` by what their labels say."""

from dataclasses import replace
from pathlib import Path

import pytest

from model_export.configs import FlattenedConfig, GaoqConfig, tiny
from model_export.data.dataset import Dataset
from model_export.data.splits import leave_one_out
from model_export.pipeline.cache import StageCache
from model_export.pipeline.versions import versions_of
from model_export.study.plan import PLANS
from model_export.study.run import Work, run_cell

FULL = {cell.name: cell for cell in PLANS["full"]().cells}
TINY = {cell.name: cell for cell in PLANS["tiny"]().cells}
PLAIN = {"quantizer": tiny().quantizer}  # RQ-VAE
OURS = [name for name in FULL if name.startswith(("nu_", "gaoq"))]


def test_only_the_quantizer_differs_from_the_cell_they_are_compared_with():
    learnt = FULL["learnt"].config
    for name in set(OURS) - {"gaoq_narrow", "gaoq_text", "gaoq_famae"}:
        config = FULL[name].config
        assert replace(config, quantizer=learnt.quantizer) == learnt
        assert config.quantizer != learnt.quantizer
        assert FULL[name].groups == ("quantizers",)
        assert not FULL[name].has_photos
    assert FULL["gaoq_narrow"].config.sid == FULL["gaoq_famae"].config.sid != learnt.sid


def test_the_tiny_plan_has_each_transform_and_the_tree():
    quantizers = [TINY[name].config.quantizer for name in OURS if name in TINY]
    transforms = {each.transform for each in quantizers if isinstance(each, FlattenedConfig)}
    assert transforms == {"kumaraswamy", "logistic"}
    assert any(isinstance(each, GaoqConfig) for each in quantizers)


def test_their_versions_name_the_transform_and_the_quantizer_inside():
    def stages(name: str) -> set[str]:
        return set(versions_of(FULL[name].config)) - set(versions_of(replace(FULL[name].config, **PLAIN)))

    assert stages("gaoq") == {"gaoq"}
    assert stages("gaoq_famae") == {"gaoq"}
    of_famae = set(versions_of(FULL["gaoq_famae"].config))
    assert of_famae - set(versions_of(FULL["gaoq"].config)) == {"fields", "famae"}
    assert not {"head", "compact", "drawing"} & set(versions_of(FULL["famae"].config))
    assert stages("nu_kumaraswamy") == {"flattened"}
    assert stages("nu_rq_kmeans") == {"flattened", "rq_kmeans"}
    assert stages("nu_letter") == {"flattened", "letter", "sasrec"}


@pytest.mark.parametrize("name", ["nu_logistic", "nu_rq_kmeans", "gaoq", "gaoq_famae"])
def test_a_cell_reports_use_entropy_and_reconstruction(name: str, small_dataset: Dataset, tmp_path: Path):
    work = Work(TINY[name], small_dataset, 0)
    figures = run_cell(work, leave_one_out(small_dataset), StageCache(tmp_path), lambda _line: None).figures
    assert 0.0 <= figures["lost_variance"] < 1.0
    assert figures["collision_rate"] == 0.0, "collisions are treated"
    assert figures["alignment_co_purchase_1"] > figures["alignment_co_purchase_2"] >= 0
    assert 0 <= figures["popularity_entropy_1"] <= 1
    for level in (1, 2, 3):
        assert 0 < figures[f"use_level_{level}"] <= 1
        # Few items are not alone below two codes of the tree, so their last codes are mostly 0.
        assert figures[f"entropy_bits_level_{level}"] >= (0 if level == 3 else 1)
    if name == "gaoq_famae":
        assert 0 < figures["famae_recall_all_masked"] <= 1
        assert 0 < figures["famae_recall_id_masked"] <= 1
    if name == "gaoq":
        assert figures["use_level_1"] == 1.0
        assert figures["lost_variance"] < 1e-6, "each item is a leaf of its own"
