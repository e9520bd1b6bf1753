"""`tiger` agrees with transformers' T5 with the same weights, and beams and padding do not change scores."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peers.t5 import as_t5
from model_export.bundle.recommender import random_histories
from model_export.configs import TigerConfig, TrainingConfig
from model_export.data.splits import Split, Targets
from model_export.generators.tiger import TigerGenerator
from model_export.generators.training import train_generator, validate
from service.core.graphs import PADDING
from service.core.sid import SidSpec

SPEC = SidSpec(levels=(5, 3, 7))
CONFIG = TigerConfig(width=12, num_layers=2, num_heads=3, head_dim=4, ffn_dim=20, dropout=0.2)


@pytest.fixture(scope="module")
def generator() -> TigerGenerator:
    """A generator with random weights, also in the norms, so that a mix-up of two weights shows."""
    torch.manual_seed(0)
    generator = TigerGenerator(config=CONFIG, spec=SPEC)
    with torch.no_grad():
        for weight in generator.parameters():
            weight.mul_(1.3).add_(0.1 * torch.randn_like(weight))
    return generator.eval()


@pytest.fixture(scope="module")
def t5(generator) -> Any:
    return as_t5(generator)


def log_probs_of_t5(t5: Any, history: Tensor, codes: Tensor) -> list[Tensor]:
    """Teacher-forced: history [row, position, level], codes [row, level] -> per level [row, code]"""
    first = 1 + torch.tensor([0, *np.cumsum(SPEC.levels)[:-1]])
    tokens = (codes + first)[:, :-1]
    logits = t5(
        input_ids=torch.where(history >= 0, history + first, 0).flatten(1),
        attention_mask=(history >= 0).flatten(1).long(),
        decoder_input_ids=torch.cat([torch.zeros_like(tokens[:, :1]), tokens], dim=1),
    ).logits
    return [
        F.log_softmax(logits[:, level, start : start + num_codes], dim=-1)
        for level, (start, num_codes) in enumerate(zip(first.tolist(), SPEC.levels, strict=True))
    ]


def random_history(seed: int, batch: int, positions: int) -> Tensor:
    return torch.from_numpy(random_histories(SPEC, np.random.default_rng(seed), batch, positions))


@torch.no_grad()
def scores_of(generator: TigerGenerator, history: Tensor, codes: Tensor) -> Tensor:
    """The log-probability of each of codes [batch, beam, level], each in a beam of its own."""
    batch, num_beams, _ = codes.shape
    state, prefix, scores = generator.start(history), torch.zeros(batch, 1, dtype=torch.int64), []
    for level, num_codes in enumerate(SPEC.levels):
        log_probs, state = generator.step(level, state, prefix)
        code = codes[..., level]
        scores.append(log_probs.expand(-1, num_beams, -1).gather(2, code[..., None])[..., 0])
        if level == 0:
            state = generator.reorder(state, torch.zeros_like(code))
        prefix = prefix * num_codes + code
    return torch.stack(scores, dim=-1)


def random_codes(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(
        np.random.default_rng(seed).integers(0, SPEC.levels, size=(*shape, len(SPEC.levels)))
    )


# 60 positions are 180 tokens. That is more than the largest distance with a bucket of its own.
@pytest.mark.parametrize("positions", [1, 7, 60])
def test_steps_of_shuffled_beams_equal_t5_on_the_same_codes(generator, t5, positions):
    """The cache is right: incremental decoding with random parents equals T5's full decoding of the paths."""
    batch, num_beams = 3, 4
    rng = np.random.default_rng(positions)
    history = random_history(positions, batch, positions)
    with torch.no_grad():
        state = generator.start(history)
        prefix, paths = torch.zeros(batch, 1, dtype=torch.int64), torch.zeros(batch, 1, 0, dtype=torch.int64)
        for level, num_codes in enumerate(SPEC.levels):
            log_probs, state = generator.step(level, state, prefix)  # [batch, beam, code]
            for beam in range(prefix.shape[1]):
                told = F.pad(paths[:, beam], (0, len(SPEC.levels) - level))
                expected = log_probs_of_t5(t5, history, told)[level]
                torch.testing.assert_close(log_probs[:, beam], expected, atol=1e-5, rtol=1e-5)
            parent = torch.from_numpy(rng.integers(0, prefix.shape[1], size=(batch, num_beams)))
            code = torch.from_numpy(rng.integers(0, num_codes, size=(batch, num_beams)))
            state = generator.reorder(state, parent)
            prefix = prefix.gather(1, parent) * num_codes + code
            paths = torch.cat([paths[torch.arange(batch)[:, None], parent], code[..., None]], dim=-1)


def test_training_equals_t5_dropout_and_gradients_included(generator, t5):
    """With the same seed both drop the same places, because they draw the same numbers in the same order."""
    history, target = random_history(1, 6, 5), random_codes(2, 6)
    generator.train()
    t5.train()
    try:
        torch.manual_seed(5)
        ours = generator.loss(torch.cat([history, target[:, None]], dim=1))
        torch.manual_seed(5)
        per_level = log_probs_of_t5(t5, history, target)
        theirs = sum(F.nll_loss(log_probs, target[:, level]) for level, log_probs in enumerate(per_level))
        torch.testing.assert_close(ours, theirs)
        of_embedding = (
            torch.autograd.grad(loss, w)
            for loss, w in ((ours, generator.embed.weight), (theirs, t5.shared.weight))
        )
        torch.testing.assert_close(*of_embedding, atol=1e-5, rtol=1e-4)
    finally:
        generator.eval()
        t5.eval()


def test_loss_is_the_negative_sum_of_step_scores(generator):
    window = torch.cat([random_history(3, 5, 4), random_codes(4, 5, 1)], dim=1)
    scores = scores_of(generator, window[:, :-1], window[:, -1:])
    torch.testing.assert_close(generator.loss(window).detach(), -scores.sum(dim=(1, 2)).mean())


def test_a_score_depends_on_its_own_history_and_path_alone(generator):
    history, codes = random_history(5, 4, 6), random_codes(6, 4, 5)
    together = scores_of(generator, history, codes)
    for row in range(4):
        own = history[row][history[row, :, 0] != PADDING][None]
        for beam in range(5):
            alone = scores_of(generator, own, codes[row : row + 1, beam : beam + 1])
            torch.testing.assert_close(alone[0, 0], together[row, beam], atol=1e-5, rtol=1e-5)


def test_an_empty_history_scores_the_same_with_any_padding(generator):
    codes = random_codes(7, 1, 5)
    short, long = (
        scores_of(generator, torch.full((1, positions, len(SPEC.levels)), PADDING), codes)
        for positions in (1, 40)
    )
    assert torch.isfinite(short).all()
    torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-5)


def test_the_order_of_a_history_matters(generator):
    history, codes = random_codes(8, 1, 6), random_codes(9, 1, 3)
    assert (
        scores_of(generator, history, codes) - scores_of(generator, history.flip(1), codes)
    ).abs().max() > 1e-3


@pytest.mark.parametrize("temperature", [0.5, 0.8, 2.0])
def test_temperature_divides_the_logits_of_the_loss_and_no_score(generator, temperature):
    """A score gives the logits up to a constant, and a constant does not change a softmax."""
    warm = TigerGenerator(config=replace(CONFIG, temperature=temperature), spec=SPEC)
    warm.load_state_dict(generator.state_dict())
    warm.eval()
    window = torch.cat([random_history(11, 5, 4), random_codes(12, 5, 1)], dim=1)
    target, expected = window[:, -1], torch.zeros(())
    with torch.no_grad():
        state, prefix = warm.start(window[:, :-1]), torch.zeros(5, 1, dtype=torch.int64)
        plain = generator.start(window[:, :-1])
        for level, num_codes in enumerate(SPEC.levels):
            log_probs, state = warm.step(level, state, prefix)  # [batch, 1, code]
            unchanged, plain = generator.step(level, plain, prefix)
            assert torch.equal(log_probs, unchanged)
            expected = expected + F.cross_entropy(log_probs[:, 0] / temperature, target[:, level])
            prefix = prefix * num_codes + target[:, level, None]
        torch.testing.assert_close(warm.loss(window), expected)


def test_training_learns_to_repeat_the_newest_item():
    """The initial weights have a scale that can learn, and the target can be found from the history."""
    torch.manual_seed(1)
    config = TigerConfig(width=32, num_layers=1, num_heads=2, head_dim=16, ffn_dim=64, dropout=0.0)
    generator = TigerGenerator(config=config, spec=SPEC)
    assert generator.loss(random_codes(10, 64, 4)).item() < 2 * np.log(SPEC.num_prefixes[-1])
    optimizer = torch.optim.Adam(generator.parameters(), lr=3e-3)
    for seed in range(300):
        items = random_codes(100 + seed, 64, 3)
        loss = generator.loss(torch.cat([items, items[:, -1:]], dim=1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 * np.log(SPEC.num_prefixes[-1])


@pytest.mark.parametrize("reads", ["codes", "items"])
def test_codes_with_a_number_within_their_group_train_and_decode(reads, tmp_path):
    """TIGER's own way with collisions, a last level that only counts. Everybody walks in circles, past items
    that differ in nothing else.
    """
    spec = SidSpec(levels=(2, 2, 2, 4))
    items = np.arange(12)
    codes = np.stack([items % 2, items // 2 % 2, np.zeros_like(items), items // 4], axis=1)
    torch.manual_seed(0)
    config = TigerConfig(reads, width=16, num_layers=1, num_heads=2, head_dim=8, ffn_dim=32, dropout=0.0)
    generator = TigerGenerator(config=config, spec=spec, seen_codes=codes)
    walks = [((items[:9] + start) % 12).astype(np.int32) for start in items]
    everybody = Targets(items, [walk[:-1] for walk in walks], np.array([walk[-1] for walk in walks]))
    training = TrainingConfig(
        max_epochs=60, batch_positions=128, learning_rate=1e-2, warmup_steps=5, validate_every_epochs=20
    )
    train_generator(
        generator,
        codes=codes,
        split=Split([walk[:-1] for walk in walks], everybody, everybody),
        config=training,
        history_length=4,
        seed=0,
        checkpoint=tmp_path / "run.checkpoint",
    )
    assert validate(generator, codes, everybody, history_length=4) > 0.99
