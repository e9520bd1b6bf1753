"""Each stage gives the output that is pinned to its version.

A change of the output needs a new version, and a new version needs a new pin.
"""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest

from model_export.bundle.writing import versions_of_bundle
from model_export.configs import RUNS, HubEncoderConfig, base
from model_export.picture_configs import PicturesConfig
from model_export.pipeline.versions import of_photos, versions_of
from model_export.study.plan import PLANS
from model_export.study.run import versions_of_cell
from model_export.vl_clip import clutter
from model_export.vl_clip.configs import ClipConfig, GroundingConfig
from model_export.vl_clip.versions import of_grounding, of_space
from tests.model_export.pin import COMMAND, pinned, problem, written
from tests.model_export.probe_inputs import one_thread
from tests.model_export.probes import PROBES, Probe


@pytest.mark.slow
@pytest.mark.parametrize("stage", PROBES)
def test_a_stage_gives_the_output_that_is_pinned_to_its_version(stage):
    probe = PROBES[stage]
    with one_thread():
        wrong = problem(stage, probe, pinned().get(stage), written(probe.run()))
    assert wrong is None, wrong


def test_every_stage_of_every_run_and_cell_is_pinned():
    hub = [
        versions_of(replace(base(), encoder=HubEncoderConfig(kind=kind, checkpoint="folder")))
        for kind in ("donut", "trocr", "deepseek-ocr-2")
    ]
    photos = [
        of_photos(PicturesConfig(kind=kind, checkpoint="folder"))
        for kind in ("mobilenet-v2", "clip", "siglip2")
    ]
    runs = [versions_of_bundle(run()) for run in RUNS.values()]
    cells = [versions_of_cell(cell) for plan in PLANS.values() for cell in plan().cells]
    joint = [
        of_space(ClipConfig("folder")),
        *(of_grounding(GroundingConfig(way)) for way in ("classes", "regions", "detector")),
        {"clutter": clutter.VERSION},
    ]
    named = {
        stage: version
        for versions in (*hub, *photos, *joint, *runs, *cells)
        for stage, version in versions.items()
    }
    assert named == {stage: probe.module.VERSION for stage, probe in PROBES.items()}
    assert pinned().keys() == PROBES.keys()


def stage_of(version: int) -> Probe:
    return Probe(SimpleNamespace(VERSION=version, __file__="/somewhere/generators/tree.py"), dict)


def test_another_output_without_a_new_version_is_reported_with_the_remedy():
    output = {"loss": 0.5, "codes": [[1, 2], [3, 4]], "text": "bolt"}
    pin = {"version": 1, "output": output}
    assert problem("tree", stage_of(1), pin, {**output, "loss": 0.5004}) is None
    for change in ({"loss": 0.52}, {"codes": [[1, 2], [3, 5]]}, {"codes": [[1, 2]]}, {"text": "nut"}):
        wrong = problem("tree", stage_of(1), pin, {**copy.deepcopy(output), **change})
        assert "raise VERSION in generators/tree.py to 2" in wrong
        assert f"run `{COMMAND}`" in wrong


def test_a_new_version_needs_a_new_pin():
    pin = {"version": 1, "output": {"loss": 0.5}}
    assert "is version 2, pinned is version 1" in problem("tree", stage_of(2), pin, {"loss": 0.5})
    assert "nothing is pinned" in problem("tree", stage_of(1), None, {"loss": 0.5})
