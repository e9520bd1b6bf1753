"""The training loop makes correct epochs, learns, resumes and stops early."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from model_export.configs import TigerConfig, TrainingConfig, TreeConfig
from model_export.data.splits import Split, Targets
from model_export.generators.tiger import TigerGenerator
from model_export.generators.training import _batches, train_generator, validate
from model_export.generators.tree import TreeGenerator
from service.core.sid import SidSpec

SPEC = SidSpec(levels=(4, 4))
NUM_ITEMS = 12
CODES = np.array([[item % 4, item // 4] for item in range(NUM_ITEMS)])
CONFIG = TrainingConfig(
    max_epochs=80, batch_positions=128, learning_rate=1e-2, warmup_steps=5, validate_every_epochs=10
)


def make_tree(seed: int = 0) -> TreeGenerator:
    torch.manual_seed(seed)
    config = TreeConfig(width=16, num_layers=1, num_heads=2, ffn_dim=32, dropout=0.1)
    return TreeGenerator(config=config, spec=SPEC, history_length=6, seen_codes=CODES)


def make_tiger(seed: int = 0) -> TigerGenerator:
    torch.manual_seed(seed)
    return TigerGenerator(
        config=TigerConfig(width=16, num_layers=1, num_heads=2, head_dim=8, ffn_dim=32, dropout=0.0),
        spec=SPEC,
    )


@pytest.fixture
def cycle() -> Split:
    """All users go through the catalog in circles, so the next item is certain."""
    sequences = [(np.arange(9) + start).astype(np.int32) % NUM_ITEMS for start in range(NUM_ITEMS)]
    users = np.arange(len(sequences))

    def targets(from_end: int) -> Targets:
        last = np.array([sequence[-from_end] for sequence in sequences])
        return Targets(users, [sequence[:-from_end] for sequence in sequences], last)

    return Split([sequence[:-2] for sequence in sequences], targets(2), targets(1))


@pytest.mark.parametrize("make", [make_tree, make_tiger])
@pytest.mark.parametrize("length", [3, 6, 50])
def test_an_epoch_has_each_target_once_with_the_items_right_before_it(make, length):
    """Items have consecutive numbers, so a window can be checked by itself."""
    ends = np.cumsum([1, 2, 3, 7, 20, 41])
    sequences = [np.arange(a, b, dtype=np.int32) for a, b in zip([0, *ends], ends, strict=False)]
    generator = make()
    seen: Counter[int] = Counter()
    for window in _batches(sequences, length, generator, CONFIG, np.random.default_rng(0)):
        assert window.size <= CONFIG.batch_positions or len(window) == 1
        for row in window:
            items = row[row >= 0]
            assert (row[: len(row) - len(items)] == -1).all(), "padding must be on the left"
            assert (np.diff(items) == 1).all()
            assert 2 <= len(items) <= length
            targets = items[1:] if generator.learns_every_position else items[-1:]
            seen.update(targets.tolist())
    expected = [item for sequence in sequences for item in sequence[1:].tolist()]
    assert seen == Counter(expected)


@pytest.mark.parametrize("make", [make_tree, make_tiger])
def test_a_certain_next_item_is_learnt(make, cycle, tmp_path):
    generator = make()
    before = validate(generator, CODES, cycle.test, history_length=6)
    curve = train_generator(
        generator,
        codes=CODES,
        split=cycle,
        config=CONFIG,
        history_length=6,
        seed=0,
        checkpoint=tmp_path / "run.checkpoint",
    )
    # Eight of twelve items are excluded as history, so even chance is not far below.
    assert validate(generator, CODES, cycle.test, history_length=6) > max(before, 0.99)
    assert curve.train_loss[-1] < curve.train_loss[0] / 3


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_run(cycle, tmp_path):
    def train(config: TrainingConfig, name: str) -> TreeGenerator:
        generator = make_tree()
        train_generator(
            generator,
            codes=CODES,
            split=cycle,
            config=config,
            history_length=6,
            seed=0,
            checkpoint=tmp_path / name,
        )
        return generator

    # Without a gain to wait for, the run is the same however long the search for a best takes.
    config = replace(CONFIG, max_epochs=30, patience=100)
    whole = train(config, "whole")

    class Interrupted(Exception):
        pass

    saves = []

    def interrupt_after_the_first(self):
        save(self)
        saves.append(1)
        if len(saves) == 1:
            raise Interrupted

    from model_export.generators.training import _Progress

    save, _Progress.save = _Progress.save, interrupt_after_the_first
    try:
        with pytest.raises(Interrupted):
            train(config, "parts")
    finally:
        _Progress.save = save
    parts = train(config, "parts")
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], weight, msg=name)


def test_patience_ends_a_run_that_no_longer_gains(cycle, tmp_path):
    config = replace(CONFIG, max_epochs=500, patience=2)
    curve = train_generator(
        make_tree(),
        codes=CODES,
        split=cycle,
        config=config,
        history_length=6,
        seed=0,
        checkpoint=tmp_path / "run.checkpoint",
    )
    assert "no better NDCG@10 in 2 validations" in curve.stopped
    assert len(curve.step) < 50
