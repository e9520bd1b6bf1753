"""LETTER's two losses against known answers, their sum, and the effect of alignment."""

from math import exp, log

import numpy as np
import pytest
import torch

from model_export.configs import LetterConfig, QuantizerConfig
from model_export.quantizers.letter import (
    LetterLoss,
    alignment_loss,
    diversity_loss,
    group_mates,
    in_latent_dim,
    train_letter,
)
from model_export.quantizers.rq_vae import RqVae, train_rq_vae
from service.core.sid import SidSpec

SPEC = SidSpec(levels=(8, 6, 4))
RQ_VAE = QuantizerConfig(
    hidden_dims=(32,), latent_dim=8, num_epochs=60, batch_size=128, revive_every_epochs=5, settle_epochs=20
)
NAN = torch.nan


def two_views(num_items: int = 400, *, seed: int = 0):
    """Vectors from one clustering, and collaborative vectors from another that the vectors barely show."""
    rng = np.random.default_rng(seed)
    look, taste = rng.integers(0, 8, num_items), rng.integers(0, 6, num_items)
    vectors = rng.normal(size=(8, 16))[look] + 0.3 * rng.normal(size=(6, 16))[taste]
    vectors = vectors + 0.1 * rng.normal(size=(num_items, 16))
    wanted = rng.normal(size=(6, 8))[taste] + 0.1 * rng.normal(size=(num_items, 8))
    return vectors.astype(np.float32), wanted.astype(np.float32)


def test_alignment_is_the_cross_entropy_of_inner_products_within_the_batch():
    total = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    collaborative = torch.tensor([[1.0, 0.0], [0.0, 2.0]])  # logits [[1, 0], [0, 2]]
    expected = (log(1 + exp(-1)) + log(1 + exp(-2))) / 2
    assert float(alignment_loss(total, collaborative)) == pytest.approx(expected)


def test_alignment_ignores_items_that_were_never_bought():
    total = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0]])
    collaborative = torch.tensor([[NAN, NAN], [1.0, 0.0], [0.0, 2.0]])
    assert alignment_loss(total, collaborative) == alignment_loss(total[1:], collaborative[1:])
    assert alignment_loss(total, torch.full((3, 2), NAN)) == 0.0


def test_diversity_is_the_cross_entropy_of_finding_a_mate_among_all_other_codewords():
    codebook = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 3.0]])  # inner products 0-1: 2, 0-2: 0, 1-2: 3
    mates = torch.tensor([[False, True, False], [True, False, False], [False, False, False]])
    of_first = log(exp(2) + exp(0)) - 2  # its mate is the second, not the third; itself is no answer
    of_second = log(exp(2) + exp(3)) - 2
    assert float(diversity_loss(codebook, torch.tensor([0]), mates)) == pytest.approx(of_first)
    found = diversity_loss(codebook, torch.tensor([0, 1, 1]), mates)
    assert float(found) == pytest.approx((of_first + 2 * of_second) / 3)


def test_codewords_without_a_mate_are_left_out():
    codebook, nobody = torch.randn(3, 2), torch.zeros(3, 3, dtype=torch.bool)
    assert diversity_loss(codebook, torch.tensor([0, 1, 2]), nobody) == 0.0
    pair = nobody.clone()
    pair[0, 1] = pair[1, 0] = True
    with_third = diversity_loss(codebook, torch.tensor([0, 2]), pair)
    assert with_third == diversity_loss(codebook, torch.tensor([0]), pair)


@pytest.mark.parametrize(
    ("num_codes", "num_groups", "sizes"),
    [(40, 10, {4}), (32, 10, {3, 4}), (16, 10, {2}), (3, 10, {3}), (1, 10, {1})],
)
def test_groups_have_nearly_equal_sizes_of_at_least_two(num_codes, num_groups, sizes):
    torch.manual_seed(0)
    mates = group_mates(torch.randn(num_codes, 5), num_groups, seed=0)
    assert not mates.diagonal().any()
    assert (mates == mates.T).all()
    assert {size + 1 for size in mates.sum(dim=1).tolist()} == sizes


def test_codewords_that_are_close_share_a_group():
    centers = torch.tensor([[10.0, 0.0], [0.0, 10.0], [-10.0, 0.0]])
    torch.manual_seed(0)
    codebook = centers.repeat(4, 1) + 0.1 * torch.randn(12, 2)
    cluster = torch.arange(12) % 3
    expected = (cluster[:, None] == cluster) & ~torch.eye(12, dtype=torch.bool)
    assert (group_mates(codebook, 3, seed=0) == expected).all()


def test_the_loss_is_rq_vaes_loss_plus_both_weighted_terms():
    vectors, wanted = (torch.from_numpy(part[:50]) for part in two_views())
    torch.manual_seed(0)
    spec = SidSpec(levels=(4, 8))  # two and four groups of two, so each codeword has one possible mate
    model = RqVae(vector_dim=16, spec=spec, config=RQ_VAE)
    config = LetterConfig(rq_vae=RQ_VAE, alpha=0.3, beta=0.2, num_groups=4)
    items = torch.arange(50)
    found = model.autoencode(vectors)
    diversity = [
        diversity_loss(codebook, codes, group_mates(codebook, 4, seed=0))
        for codebook, codes in zip(model.codebooks, found.codes.unbind(dim=1), strict=True)
    ]
    expected = found.loss + 0.3 * alignment_loss(found.total, wanted) + 0.2 * sum(diversity) / 2
    loss = LetterLoss(model, vectors, wanted, config, seed=0)(items, 1)
    torch.testing.assert_close(loss, expected)


def test_alignment_trains_the_encoder_but_not_the_codebooks_or_the_decoder():
    vectors, wanted = (torch.from_numpy(part[:50]) for part in two_views())
    torch.manual_seed(0)
    model = RqVae(vector_dim=16, spec=SPEC, config=RQ_VAE)
    alignment_loss(model.autoencode(vectors).total, wanted).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.encoder.parameters())
    assert all(
        weight.grad is None for part in (model.codebooks, model.decoder) for weight in part.parameters()
    )


def test_aligned_codes_reflect_purchases():
    vectors, wanted = two_views()
    known = wanted.copy()
    known[::10] = np.nan  # never bought
    config = LetterConfig(rq_vae=RQ_VAE, alpha=0.5)
    letter, report = train_letter(vectors, SPEC, config, seed=0, collaborative=known, progress=False)
    plain, _ = train_rq_vae(vectors, SPEC, RQ_VAE, seed=0, progress=False)
    data, target = torch.from_numpy(vectors), torch.from_numpy(wanted)

    def alignment(model: RqVae) -> float:
        return float(alignment_loss(model.autoencode(data).total, target))

    assert alignment(letter) < alignment(plain) - 0.5
    assert np.isfinite(report.history[-1].loss)
    assert min(report.history[-1].use) >= 0.75


def test_vectors_of_the_latents_width_do_not_change():
    vectors = torch.tensor([[1.0, 2.0], [NAN, 3.0], [5.0, 6.0]])
    expected = torch.tensor([[1.0, 2.0], [NAN, NAN], [5.0, 6.0]])
    torch.testing.assert_close(in_latent_dim(vectors, 2), expected, equal_nan=True)


def test_narrower_vectors_keep_their_geometry_and_wider_ones_their_principal_axes():
    torch.manual_seed(0)
    flat = torch.randn(30, 3) @ torch.randn(3, 10)  # rank 3 in ten dimensions
    flat[4] = NAN
    known = torch.arange(30) != 4
    centered = flat[known] - flat[known].mean(dim=0)
    for latent_dim in (3, 5, 16):
        found = in_latent_dim(flat, latent_dim)
        assert found.shape == (30, latent_dim)
        assert found[4].isnan().all()
        torch.testing.assert_close(found[known] @ found[known].T, centered @ centered.T, atol=1e-4, rtol=1e-4)
    kept = in_latent_dim(flat, 1)[known].square().sum()
    torch.testing.assert_close(kept, torch.linalg.svdvals(centered)[0].square(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("collaborative", [None, np.zeros((3, 8), dtype=np.float32)])
def test_letter_without_a_collaborative_vector_for_each_item_is_refused(collaborative):
    vectors, _ = two_views(20)
    with pytest.raises(ValueError, match="LETTER needs a collaborative vector for each of the 20 items"):
        train_letter(vectors, SPEC, LetterConfig(rq_vae=RQ_VAE), seed=0, collaborative=collaborative)
