"""The transforms against their formulas, their inverses in both precisions, and what they do to codes."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model_export.bundle.tokenizer import TokenizerParts, check_tokenizer, export_tokenizer
from model_export.configs import (
    FlattenedConfig,
    HeadConfig,
    LetterConfig,
    QuantizerConfig,
    RqKMeansConfig,
)
from model_export.encoders.head import ItemHead
from model_export.onnx_graphs import to_onnx
from model_export.quantizers.choose import train_quantizer
from model_export.quantizers.flattened import LOGISTIC_STD, FlattenedRqVae
from model_export.quantizers.flattening import (
    KUMARASWAMY_BOUNDS,
    LARGEST,
    SLOPE_BOUNDS,
    Kumaraswamy,
    ScaledLogistic,
    fit_flattening,
    make_flattening,
)
from service.core.sid import SidSpec
from service.inference.runtime import TokenizerInput
from tests.model_export.probe_inputs import RECIPE, Columns, SumOfFrames, strips
from tests.model_export.quantizers.explained import explained_variance

SPEC = SidSpec(levels=(16, 8))
TRANSFORMS = ("kumaraswamy", "logistic")
RQ_VAE = QuantizerConfig(
    hidden_dims=(32,), latent_dim=6, num_epochs=40, batch_size=128, revive_every_epochs=5, settle_epochs=10
)
EXTREMES = (-50.0, -0.5, 0.0, 0.5, 50.0)  # of raw parameters; the outer ones are at the bounds


def raised(value: float) -> float:
    """The raw parameter whose softplus is `value`."""
    return float(np.log(np.expm1(value)))


def at_every_extreme(transform: str) -> torch.nn.Module:
    """A transform with one dimension for each pair of raw parameters."""
    pairs = torch.tensor(list(product(EXTREMES, EXTREMES)))
    found = make_flattening(transform, len(pairs)).requires_grad_(False)
    for parameter, raw in zip(found.parameters(), pairs.T, strict=True):
        parameter.copy_(raw)
    return found


def vectors_of(name: str, num_items: int = 600) -> np.ndarray:
    """`even`: uniform in each dimension. `skewed`: most items in one corner."""
    rng = np.random.default_rng(0)
    if name == "even":
        return rng.uniform(-1, 1, (num_items, 6)).astype(np.float32)
    return (rng.exponential(size=(num_items, 6)) ** 1.5).astype(np.float32)


def fit(vectors, quantizer, transform=None):
    config = quantizer if transform is None else FlattenedConfig(quantizer=quantizer, transform=transform)
    return train_quantizer(vectors, SPEC, config, seed=0, progress=False)


def test_kumaraswamy_is_its_distribution_function_of_the_sigmoid():
    transform = Kumaraswamy(3).double()
    with torch.no_grad():
        transform.raw_b.copy_(torch.tensor([raised(0.7), raised(1.0), raised(1.4)]))
        transform.raw_a.copy_(torch.tensor([raised(1.2), raised(1.0), raised(0.6)]))
        latents = torch.linspace(-5, 5, 21, dtype=torch.float64)[:, None].expand(-1, 3)
        u = latents.sigmoid()
        expected = 1 - (1 - u ** torch.tensor([1.2, 1.0, 0.6])) ** torch.tensor([0.7, 1.0, 1.4])
        torch.testing.assert_close(transform(latents), expected, atol=1e-7, rtol=0)
        assert torch.allclose(transform(latents)[:, 1], latents[:, 0].sigmoid()), "a = b = 1 is the sigmoid"


def test_the_logistic_transform_leads_the_training_range_to_0_and_1():
    transform = ScaledLogistic(2)
    train = torch.tensor([[-3.0, 10.0], [1.0, 30.0], [0.0, 11.0]])
    transform.fit_range(train)
    with torch.no_grad():
        flat = transform(torch.tensor([[-3.0, 10.0], [1.0, 30.0], [-1.0, 20.0]]))
    expected = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]])
    torch.testing.assert_close(flat, expected, atol=1e-6, rtol=0)
    slope = float(np.log(2))  # softplus(0), over the whole range: almost a straight line
    curve = 1 / (1 + np.exp(-slope * (np.array([0.25, 0.0, 1.0]) - 0.5)))
    with torch.no_grad():
        quarter = float(transform(torch.tensor([[-2.0, 15.0]]))[0, 0])
    assert quarter == pytest.approx((curve[0] - curve[1]) / (curve[2] - curve[1]), abs=1e-6)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-3), (torch.float64, 1e-9)])
@pytest.mark.parametrize("reach", [6.0, 2.0])
def test_the_inverse_inverts_whatever_was_learned(transform, dtype, allowed, reach):
    """`reach`: the training items' largest value, which the latents of new items may exceed."""
    found = at_every_extreme(transform).to(dtype)
    within = torch.linspace(-6, 6, 2001, dtype=dtype)[:, None].expand(-1, len(EXTREMES) ** 2)
    if transform == "logistic":
        found.fit_range(within * reach / 6)
        within = within * min(reach * 1.2, 6) / 6  # a steep curve is flat far outside its range
    assert float((found.inverse(found(within)) - within).abs().max()) < allowed
    assert (found(within).diff(dim=0) >= 0).all(), "an increasing transform"


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_values_without_an_inverse_and_far_latents_stay_finite(transform):
    found = at_every_extreme(transform)
    flat = torch.tensor([-5.0, 0.0, 1.0, 7.0])[:, None].expand(-1, len(EXTREMES) ** 2)
    assert found.inverse(flat).isfinite().all()
    assert found(torch.tensor([-1e4, 1e4])[:, None].expand(-1, len(EXTREMES) ** 2)).isfinite().all()
    found.requires_grad_(True)
    latents = torch.tensor([-1e4, -20.0, 0.0, 20.0, 1e4])[:, None].repeat(1, len(EXTREMES) ** 2)
    found.inverse(found(latents.requires_grad_())).sum().backward()
    assert latents.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in found.parameters())


def test_parameters_keep_their_bounds():
    extreme = at_every_extreme("kumaraswamy")
    for exponent in (extreme.a, extreme.b):
        assert (float(exponent.min()), float(exponent.max())) == KUMARASWAMY_BOUNDS
    slope, _ = at_every_extreme("logistic")._shape()
    bounds = (float(slope.min()), float(slope.max()))
    assert bounds == pytest.approx([bound / 2 for bound in SLOPE_BOUNDS]), (
        "the range before any training is from -1 to 1"
    )


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_fitting_makes_values_more_nearly_uniform(transform, shape):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4000, 2)) if shape == "normal" else rng.exponential(size=(4000, 2))
    latents = torch.from_numpy(((values - values.mean(0)) / values.std(0) * LOGISTIC_STD).astype(np.float32))
    before, after = make_flattening(transform, 2), make_flattening(transform, 2)
    before.fit_range(latents)
    fit_flattening(after, latents)

    @torch.no_grad()
    def distance_from_uniform(found):
        """Kolmogorov and Smirnov's statistic of the flat values."""
        flat = found(latents).sort(dim=0).values
        return float((flat - torch.linspace(0, 1, len(flat))[:, None]).abs().max())

    assert distance_from_uniform(after) < 0.9 * distance_from_uniform(before)
    assert distance_from_uniform(after) < (0.15 if shape == "normal" else 0.4)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("balanced", [False, True])
def test_rq_k_means_uses_the_first_codes_more_evenly_on_skewed_vectors(balanced, transform):
    vectors = vectors_of("skewed")
    plain_report = fit(vectors, RqKMeansConfig(num_starts=1))[1]
    model, report = fit(vectors, RqKMeansConfig(num_starts=1, balanced=balanced), transform)
    assert report.history[-1].entropy[0] > plain_report.history[-1].entropy[0] + 0.1
    assert explained_variance(model, vectors) > 0.3


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ["even", "skewed"])
def test_rq_vae_still_restores_vectors(name, transform):
    vectors = vectors_of(name)
    assert explained_variance(fit(vectors, RQ_VAE, transform)[0], vectors) > 0.4


@torch.no_grad()
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_sum_of_codewords_outside_the_training_range_decodes_to_its_edge(transform):
    vectors = vectors_of("even")
    model, _ = fit(vectors, RqKMeansConfig(num_starts=1), transform)
    for codebook in model.codebooks:
        codebook.fill_(50.0)
    restored = model.decode(torch.zeros(1, 2, dtype=torch.int64))[0].numpy()
    np.testing.assert_allclose(restored, vectors.max(axis=0), atol=1e-3)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_even_vectors_lose_little(transform):
    vectors = vectors_of("even")
    quantizer = RqKMeansConfig(num_starts=1)
    plain, _ = fit(vectors, quantizer)
    model, report = fit(vectors, quantizer, transform)
    assert report.history[-1].entropy[0] > 0.97
    assert explained_variance(model, vectors) > explained_variance(plain, vectors) - 0.05


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_training_learns_the_transform_and_then_freezes_its_range(transform):
    vectors = vectors_of("skewed", 200)
    model, report = fit(vectors, RQ_VAE, transform)
    assert isinstance(model, FlattenedRqVae)
    assert all((parameter != 0).any() for parameter in model.flattening.parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert report.history[-1].loss < 0.7 * report.history[0].loss
    before = {name: value.clone() for name, value in model.flattening.state_dict().items()}
    data = torch.from_numpy(vectors)
    codes = model.encode(data)
    assert (model.encode(data[:3]) == codes[:3]).all()
    assert (torch.cat([model.encode(item[None]) for item in data]) == codes).all()
    assert all(torch.equal(before[name], value) for name, value in model.flattening.state_dict().items())


@torch.no_grad()
def test_the_loss_adds_consistency_and_a_penalty_to_that_of_rq_vae():
    def loss(consistency: float, penalty: float, bias: float = 0.0) -> float:
        torch.manual_seed(0)
        config = FlattenedConfig(quantizer=RQ_VAE, consistency=consistency, penalty=penalty)
        model = FlattenedRqVae(vector_dim=6, spec=SPEC, config=RQ_VAE, flattened=config)
        model.codebooks[1].fill_(-3.0)  # all sums leave the range
        model.encoder[-1].bias.fill_(bias)
        return float(model.autoencode(torch.from_numpy(vectors_of("even", 50))).loss)

    assert loss(0.0, 1.0) > loss(0.0, 0.0) + 0.1
    assert loss(0.0, 0.5) == pytest.approx((loss(0.0, 0.0) + loss(0.0, 1.0)) / 2, rel=1e-5)
    assert loss(1.0, 0.0) == pytest.approx(loss(0.0, 0.0), abs=1e-6), "an inverse is consistent"
    too_large = loss(1.0, 0.0, bias=LARGEST + 2) - loss(0.0, 0.0, bias=LARGEST + 2)
    assert too_large == pytest.approx(4.0, rel=0.3), "latents that the transform clips are not restored"


def test_letter_inside_needs_its_collaborative_vectors():
    letter = LetterConfig(rq_vae=RQ_VAE)
    with pytest.raises(ValueError, match="collaborative vector"):
        fit(vectors_of("even", 50), letter, "kumaraswamy")


@pytest.mark.parametrize("num_items", [1, 3])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("quantizer", [RQ_VAE, RqKMeansConfig(balanced=True)], ids=["rq-vae", "balanced"])
def test_few_items_and_constant_dimensions_are_no_error(quantizer, transform, num_items):
    vectors = vectors_of("even", num_items)
    vectors[:, 2] = 0.5
    model, _ = fit(vectors, quantizer, transform)
    restored = model.decode(model.encode(torch.from_numpy(vectors)))
    assert restored.isfinite().all()


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_tokenizer_graph_gives_the_codes_of_torch(transform, tmp_path: Path):
    torch.manual_seed(0)
    head = ItemHead(feature_dim=RECIPE.height_px, config=HeadConfig(vector_dim=6, hidden_dim=16))
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    body = to_onnx(
        Columns(),
        (torch.zeros(3, RECIPE.height_px, RECIPE.width_px, dtype=torch.uint8),),
        inputs=["strips"],
        outputs=["frames"],
        dynamic_shapes=({0: torch.export.Dim("strip")},),
    )
    model, _ = fit(vectors_of("skewed", 200), RQ_VAE, transform)
    parts = TokenizerParts(body, SumOfFrames(), head.eval(), model)
    path = tmp_path / "tokenizer.onnx"
    graph = export_tokenizer(path, parts, sid=SPEC, render=RECIPE)
    assert check_tokenizer(path, parts, graph=graph, items=[TokenizerInput(each) for each in strips()]) < 1e-4
