"""RQ-VAE against its definition, and on vectors with known clusters."""

import numpy as np
import pytest
import torch

from model_export.configs import QuantizerConfig
from model_export.quantizers.base import measure
from model_export.quantizers.rq_vae import RqVae, _revive_dead_codes, train_rq_vae
from service.core.sid import SidSpec
from tests.model_export.quantizers.explained import explained_variance

SPEC = SidSpec(levels=(8, 6, 4))
CONFIG = QuantizerConfig(
    hidden_dims=(32,), latent_dim=8, num_epochs=60, batch_size=128, revive_every_epochs=5, settle_epochs=20
)


def clustered(num_items: int, *, num_clusters: int = 8, dim: int = 16, seed: int = 0):
    """Unit vectors around well separated centers, like item vectors, and the cluster of each."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(num_clusters, dim))
    cluster = rng.integers(0, num_clusters, size=num_items)
    vectors = centers[cluster] + 0.3 * rng.normal(size=(num_items, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), cluster


def untrained(spec: SidSpec = SPEC, dim: int = 16) -> RqVae:
    torch.manual_seed(0)
    return RqVae(vector_dim=dim, spec=spec, config=CONFIG).eval()


@pytest.fixture(scope="module")
def trained():
    vectors, cluster = clustered(600)
    model, report = train_rq_vae(vectors, SPEC, CONFIG, seed=0, progress=False)
    return model, report, vectors, cluster


def test_each_code_is_the_codeword_nearest_to_the_residual():
    model, vectors = untrained(), torch.from_numpy(clustered(50)[0])
    with torch.no_grad():
        codes, residual = model.encode(vectors), model.latents(vectors)
        for level, codebook in enumerate(model.codebooks):
            for item in range(50):
                distance = [float((residual[item] - codeword).square().sum()) for codeword in codebook]
                assert distance[codes[item, level]] == pytest.approx(min(distance), abs=1e-5)
            residual = residual - codebook[codes[:, level]]
    assert codes.dtype == torch.int64


def test_equal_distances_go_to_the_smallest_code():
    model = untrained()
    with torch.no_grad():
        for codebook in model.codebooks:
            codebook.fill_(0.5)
        assert (model.encode(torch.randn(20, 16)) == 0).all()


@torch.no_grad()
def test_the_loss_is_reconstruction_plus_codebook_and_commitment_terms():
    model, vectors = untrained(), torch.from_numpy(clustered(30)[0])
    latents = model.latents(vectors)
    codes = model.encode(vectors)
    residual, expected = latents, 0.0
    for level, codebook in enumerate(model.codebooks):
        left = residual - codebook[codes[:, level]]
        expected += (1 + CONFIG.commitment) * float(left.square().mean()) / SPEC.num_levels
        residual = left
    expected += float((model.decode(codes) - vectors).square().mean())
    assert float(model.autoencode(vectors).loss) == pytest.approx(expected, rel=1e-5)


def test_the_encoder_gets_a_gradient_from_every_level_and_one_from_the_decoder():
    model, vectors = untrained(), torch.from_numpy(clustered(30)[0])
    latents = model.latents(vectors).detach().requires_grad_()
    (commitment,) = torch.autograd.grad(model.quantize(latents).loss, latents)
    residual, expected = latents.detach(), torch.zeros_like(latents)
    for level, codebook in enumerate(model.codebooks):
        residual = residual - codebook[model.encode(vectors)[:, level]].detach()
        expected += 2 * CONFIG.commitment * residual / residual.numel() / SPEC.num_levels
    torch.testing.assert_close(commitment, expected)

    # The latents get exactly the gradient of the decoder's input.
    total = model.quantize(latents).total.detach().requires_grad_()
    (at_decoder,) = torch.autograd.grad((model.decoder(total) - vectors).square().mean(), total)
    whole = (model.decoder(latents + (total - latents).detach()) - vectors).square().mean()
    (at_encoder,) = torch.autograd.grad(whole, latents)
    torch.testing.assert_close(at_encoder, at_decoder)


def test_training_uses_the_codes_evenly_and_keeps_clusters_together(trained):
    model, report, vectors, cluster = trained
    last = report.history[-1]
    assert last.use == (1.0, 1.0, 1.0)
    assert min(last.entropy) >= 0.85
    assert explained_variance(model, vectors) > 0.7
    assert len(report.history) == CONFIG.num_epochs
    assert last.loss < report.history[0].loss
    first = model.encode(torch.from_numpy(vectors))[:, 0].numpy()
    pure = np.mean([np.bincount(cluster[first == code]).max() for code in np.unique(first)])
    assert pure * len(np.unique(first)) / len(vectors) > 0.9, "a first code should hold items of one cluster"


def test_a_seed_gives_the_same_quantizer_and_leaves_the_callers_randomness_alone(trained):
    model, _, vectors, _ = trained
    torch.manual_seed(5)
    expected_next = torch.rand(3)
    torch.manual_seed(5)
    again, _ = train_rq_vae(vectors, SPEC, CONFIG, seed=0, progress=False)
    assert torch.equal(torch.rand(3), expected_next)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_the_statistics_describe_the_codes():
    spec = SidSpec(levels=(4, 2))
    codes = torch.tensor([[0, 0], [0, 0], [1, 1], [1, 0]])
    stats = measure(3, 0.5, codes, spec, 2)
    assert stats.use == (0.5, 1.0)
    assert stats.entropy == pytest.approx((0.5, 0.8112781))
    assert stats.fullest == (2.0, 1.5)
    assert stats.collision_rate == 0.5
    assert (stats.epoch, stats.loss, stats.num_revived) == (3, 0.5, 2)


def test_dead_codes_are_revived_and_get_items():
    vectors = torch.from_numpy(clustered(200)[0])
    model = untrained()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.autoencode(vectors).loss.backward()
    optimizer.step()
    with torch.no_grad():
        for codebook in model.codebooks:
            codebook[2:] = 100.0  # far from everything
    before = measure(1, 0.0, model.encode(vectors), SPEC, 0)
    assert before.use[0] <= 2 / 8
    torch.manual_seed(0)
    assert _revive_dead_codes(model, vectors, optimizer) >= sum(k - 2 for k in SPEC.levels)
    after = measure(1, 0.0, model.encode(vectors), SPEC, 0)
    # A revived code has at least the item that it came from. A code that was in use may lose all its items.
    assert all(use >= (k - 2) / k for use, k in zip(after.use, SPEC.levels, strict=True))


def test_no_code_is_revived_while_codes_settle(trained):
    _, report, _, _ = trained
    settling = report.history[-CONFIG.settle_epochs :]
    assert all(stats.num_revived == 0 for stats in settling)


@pytest.mark.parametrize("num_items", [1, 2, 5])
def test_fewer_items_than_codes_still_get_codes(num_items):
    vectors, _ = clustered(num_items)
    model, report = train_rq_vae(vectors, SPEC, CONFIG, seed=0, progress=False)
    codes = model.encode(torch.from_numpy(vectors))
    assert codes.shape == (num_items, 3)
    assert all(0 <= code < k for row in codes.tolist() for code, k in zip(row, SPEC.levels, strict=True))
    assert len(report.history) == CONFIG.num_epochs


def test_identical_items_a_constant_dimension_and_a_level_of_one_code_are_no_error():
    vectors = np.tile(np.float32([1.0, 0.0, 0.0]), (10, 1))
    model, _ = train_rq_vae(vectors, SidSpec(levels=(4, 1, 4)), CONFIG, seed=0, progress=False)
    codes = model.encode(torch.from_numpy(vectors))
    assert (codes == codes[0]).all()
    assert codes[0, 1] == 0


def test_no_items_are_refused():
    with pytest.raises(ValueError, match="no vectors"):
        train_rq_vae(np.zeros((0, 4), dtype=np.float32), SPEC, CONFIG, seed=0, progress=False)
