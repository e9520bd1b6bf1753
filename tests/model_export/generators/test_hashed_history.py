"""`tree` with other history embeddings."""

import numpy as np
import pytest
import torch

from model_export.configs import HashedTreeConfig
from model_export.generators.hashed_history import HashedHistoryTree
from model_export.rankers.parameterizations import KINDS
from service.core.sid import SidSpec

SPEC = SidSpec(levels=(5, 3, 7))


def make(kind, vectors=None, items_per_row=1.0):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    codes = np.stack(np.unravel_index(rng.choice(105, 40, replace=False), SPEC.levels), axis=1)
    config = HashedTreeConfig(
        history=kind, items_per_row=items_per_row, width=8, num_layers=1, ffn_dim=8, dropout=0.0, likeness=0.0
    )
    made = HashedHistoryTree(
        config=config, spec=SPEC, history_length=4, seen_codes=codes, seen_vectors=vectors
    )
    return made.eval(), torch.from_numpy(codes)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fourgram"])
def test_the_history_embedding_learns_from_the_loss_and_the_prefixes_learn_from_decoding(kind):
    generator, codes = make(kind)
    generator.loss(codes[None, :4]).backward()
    assert generator.table.weight.grad.abs().sum() > 0
    assert generator.prefixes[0].embedding.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_a_row_starts_as_the_mean_of_the_vectors_of_its_items():
    vectors = np.random.default_rng(1).normal(size=(40, 8)).astype(np.float32)
    with_start, codes = make("plain-sum", vectors)
    without, _ = make("plain-sum")
    first = codes[:, 0] == codes[0, 0]
    moved = with_start.table.weight - without.table.weight
    alike = torch.cosine_similarity(moved[codes[0, 0]], moved, dim=-1)
    assert alike[codes[0, 0]] == pytest.approx(1.0)
    assert 1 < first.sum() < 40
    assert moved.norm(dim=-1).max() < 1.01  # a mean of unit vectors
