"""The properties that every quantizer must have. As a program, this file prints the codes of each."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from model_export.configs import FlattenedConfig, GaoqConfig, LetterConfig, QuantizerConfig, RqKMeansConfig
from model_export.onnx_graphs import to_onnx
from model_export.quantizers.base import QuantizerReport, ResidualQuantizer, nearest
from model_export.quantizers.choose import train_quantizer
from model_export.quantizers.collisions import treat_collisions
from service.core.sid import SidSpec

ROOT = Path(__file__).parents[3]
SPEC = SidSpec(levels=(8, 8, 32))
NUM_ITEMS, DIM = 240, 16
RQ_VAE = QuantizerConfig(hidden_dims=(32,), latent_dim=8, num_epochs=20, batch_size=128, settle_epochs=5)
CONFIGS = {
    "rq-vae": RQ_VAE,
    "rq-k-means": RqKMeansConfig(num_starts=1),
    "balanced": RqKMeansConfig(balanced=True, num_starts=1),
    "letter": LetterConfig(rq_vae=RQ_VAE),
    "nu-rq-vae": FlattenedConfig(quantizer=RQ_VAE),
    "nu-balanced": FlattenedConfig(quantizer=RqKMeansConfig(balanced=True, num_starts=1)),
    "nu-letter": FlattenedConfig(quantizer=LetterConfig(rq_vae=RQ_VAE), transform="logistic"),
    "gaoq": GaoqConfig(),
}


class Trained(NamedTuple):
    model: ResidualQuantizer
    report: QuantizerReport
    vectors: torch.Tensor  # [item, dim]
    codes: torch.Tensor  # [item, level]


def train(name: str) -> Trained:
    """Train on unit vectors around a few centers. Some vectors are almost copies of others."""
    rng = np.random.default_rng(0)
    vectors = (
        rng.normal(size=(12, DIM))[rng.integers(0, 12, NUM_ITEMS)] + rng.normal(size=(NUM_ITEMS, DIM)) / 3
    )
    vectors[40:50] = vectors[0] + rng.normal(size=(10, DIM)) / 1000
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    collaborative = rng.normal(size=(NUM_ITEMS, 12)).astype(np.float32)
    model, report = train_quantizer(
        vectors, SPEC, CONFIGS[name], seed=3, collaborative=collaborative, progress=False
    )
    data = torch.from_numpy(vectors)
    return Trained(model, report, data, model.encode(data))


@pytest.fixture(scope="module", params=CONFIGS)
def trained(request) -> tuple[str, Trained]:
    return request.param, train(request.param)


@pytest.fixture(scope="module")
def codes_of_another_process() -> dict[str, list[list[int]]]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "5"}
    command = [sys.executable, __file__, str(torch.get_num_threads())]
    found = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=120)
    return json.loads(found.stdout)


def test_a_quantizer_has_the_interface_that_the_pipeline_needs(trained):
    _, (model, report, vectors, codes) = trained
    latents = model.latents(vectors)
    assert model.spec == SPEC
    assert [len(codebook) for codebook in model.codebooks] == list(SPEC.levels)
    assert {codebook.shape[1] for codebook in model.codebooks} == {latents.shape[1]}
    assert codes.dtype == torch.int64
    assert codes.shape == (NUM_ITEMS, SPEC.num_levels)
    assert model.decode(codes).shape == vectors.shape
    assert not any(weight.requires_grad for weight in model.parameters())
    assert report.history[-1].collision_rate == pytest.approx(
        np.mean([int((codes == row).all(dim=1).sum()) > 1 for row in codes])
    )
    unexplained = (model.decode(codes) - vectors).square().sum() / (vectors - vectors.mean(0)).square().sum()
    assert float(unexplained) < 0.9


def test_codes_do_not_depend_on_the_rest_of_the_batch(trained):
    _, (model, _, vectors, codes) = trained
    apart = torch.cat([model.encode(vectors[item : item + 1]) for item in range(100)])
    assert (apart == codes[:100]).all()
    assert (model.encode(vectors.flip(0)).flip(0) == codes).all()


def test_a_seed_gives_the_same_codes_in_another_process(trained, codes_of_another_process):
    name, (_, _, _, codes) = trained
    assert codes.tolist() == codes_of_another_process[name]


def test_training_leaves_the_callers_randomness_alone(trained):
    name, _ = trained
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(name)
    assert torch.equal(torch.rand(3), expected)


def test_the_exported_graph_gives_the_same_codes_for_any_number_of_items(trained):
    _, (model, _, vectors, codes) = trained

    class Encode(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, vectors):
            return self.model.encode(vectors)

    graph = to_onnx(
        Encode(),
        (vectors[:5],),
        inputs=["vectors"],
        outputs=["codes"],
        dynamic_shapes=({0: torch.export.Dim("item")},),
    )
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for num_items in (1, 2, 33, NUM_ITEMS):
        (found,) = session.run(None, {"vectors": vectors[:num_items].numpy()})
        assert found.dtype == np.int64
        assert (found == codes[:num_items].numpy()).all()


@pytest.mark.parametrize("how", ["none", "sinkhorn", "zcr", "suffix"])
def test_collisions_are_treated_with_the_quantizers_latents(trained, how):
    name, (model, _, vectors, codes) = trained
    found = treat_collisions(
        how,
        codes.numpy(),
        model.latents(vectors).numpy(),
        [codebook.numpy() for codebook in model.codebooks],
        [f"{item:03}" for item in range(NUM_ITEMS)],
    )
    assert (found.codes[:, :2] == codes[:, :2].numpy()).all()
    for row in found.codes.tolist():
        found.spec.check(tuple(row))
    before, after = found.report.rate_before, found.report.rate_after
    if name == "gaoq":
        assert before == after == 0.0, "its codes are unique by construction"
        return
    assert before > 0.1
    if how == "none":
        assert after == before
    elif how == "sinkhorn":
        assert after < before / 3
    else:
        assert after == 0.0


def test_a_price_adds_to_the_squared_distance():
    residual, codebook = torch.tensor([[0.0], [0.9]]), torch.tensor([[0.0], [1.0]])
    assert nearest(residual, codebook).tolist() == [0, 1]
    assert nearest(residual, codebook, torch.tensor([1.1, 0.0])).tolist() == [1, 1]
    assert nearest(residual, codebook, torch.tensor([1.0, 0.0])).tolist() == [0, 1], "the first of equals"


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    json.dump({name: train(name).codes.tolist() for name in CONFIGS}, sys.stdout)
