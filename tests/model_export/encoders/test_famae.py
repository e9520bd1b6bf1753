"""FAMAE against its definition, and on purchases whose rule is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model_export.configs import FamaeConfig
from model_export.data.item_fields import ItemFields
from model_export.data.splits import Targets
from model_export.encoders import famae
from model_export.encoders.famae import (
    PADDING,
    Diagnostics,
    Famae,
    batches_of,
    diagnose,
    draw_masks,
    train_famae,
    windows_of,
    without_padding,
)
from service.core.item_fields import UNKNOWN, Vocabulary

NUM_ITEMS = 40
WORDS = ("item_id", "brand", "categories.1")
COUNTS = (NUM_ITEMS, 8, 4)
NUMBERS = np.stack([np.arange(NUM_ITEMS), np.arange(NUM_ITEMS) % 8, np.arange(NUM_ITEMS) // 10], axis=1) + 1
FIELDS = ItemFields(
    Vocabulary(
        {name: {f"v{n}": n for n in range(1, 1 + num)} for name, num in zip(WORDS, COUNTS, strict=True)}
    ),
    NUMBERS,
)
CONFIG = FamaeConfig(
    width=16, num_layers=1, num_heads=2, ffn_dim=32, dropout=0.0, history_length=4,
    max_epochs=12, batch_size=64, learning_rate=1e-2,
)  # fmt: skip


def sequences(num_users: int = 150, length: int = 8):
    """The item after next is bought next: an even item leads through the even ones, with some noise."""
    rng = np.random.default_rng(0)
    steps = np.where(
        rng.random((num_users, length)) < 0.9, 2, rng.integers(1, NUM_ITEMS, (num_users, length))
    )
    start = rng.integers(0, NUM_ITEMS, num_users)
    return [
        ((first + step) % NUM_ITEMS).astype(np.int32)
        for first, step in zip(start, steps.cumsum(1), strict=True)
    ]


def targets_of(found) -> Targets:
    return Targets(
        np.arange(len(found)), [items[:-1] for items in found], np.array([items[-1] for items in found])
    )


@pytest.fixture
def model() -> Famae:
    torch.manual_seed(0)
    found = Famae(FIELDS, CONFIG).eval()
    for parameter in found.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)  # at its start all states are nearly equal
    return found


def masked(*fields: int) -> torch.Tensor:
    return torch.tensor([[place in fields for place in range(len(WORDS))]])


@pytest.fixture(scope="module")
def trained():
    found = sequences()
    return train_famae(FIELDS, found[:100], targets_of(found[100:]), CONFIG, seed=0)


def test_each_item_but_the_first_is_a_target_after_the_items_before_it():
    windows = windows_of([np.array([7, 8, 9]), np.array([3]), np.array([4, 5])], 2)
    assert windows.tolist() == [[PADDING, 7, 8], [7, 8, 9], [PADDING, 4, 5]]
    assert windows_of([np.array([3])], 2).shape == (0, 3)


def test_first_the_number_of_masked_fields_is_uniform_and_then_the_fields_are():
    torch.manual_seed(0)
    drawn = draw_masks(30_000, 3)
    counts = torch.bincount(drawn.sum(dim=1), minlength=4) / 30_000
    torch.testing.assert_close(counts, torch.tensor([0, 1, 1, 1]) / 3, atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.float().mean(dim=0), torch.full((3,), 2 / 3), atol=0.01, rtol=0)
    single = drawn[drawn.sum(dim=1) == 1].float().mean(dim=0)
    torch.testing.assert_close(single, torch.full((3,), 1 / 3), atol=0.02, rtol=0)


@torch.no_grad()
def test_a_masked_field_of_the_target_is_hidden_and_an_open_one_is_seen(model):
    window = torch.tensor([[PADDING, 1, 2, 3, 4]])
    other_brand = torch.tensor([[PADDING, 1, 2, 3, 5]])  # of the same category, so id and brand differ
    assert torch.equal(model(window, masked(0, 1)), model(other_brand, masked(0, 1)))
    assert not torch.allclose(model(window, masked(0)), model(other_brand, masked(0)))
    assert not torch.allclose(model(window, masked(0)), model(window, masked(0, 1)))


@torch.no_grad()
def test_the_history_and_its_order_count_and_padding_does_not(model):
    everything = masked(0, 1, 2)
    window = torch.tensor([[PADDING, 1, 2, 3, 4]])
    assert not torch.allclose(
        model(window, everything), model(torch.tensor([[PADDING, 2, 1, 3, 4]]), everything)
    )
    shorter = model(torch.tensor([[1, 2, 3, 4]]), everything)
    torch.testing.assert_close(model(window, everything), shorter, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_last_block_computes_the_state_of_the_target_as_the_whole_block_does(model):
    torch.manual_seed(2)
    block = model.blocks[-1]
    states, is_padding = torch.randn(3, 5, 16), torch.tensor([[0] * 5, [1, 1, 0, 0, 0], [1] * 4 + [0]]).bool()
    expected = block(states, src_key_padding_mask=is_padding)[:, -1]
    torch.testing.assert_close(famae._last_state(block, states, is_padding), expected, atol=1e-5, rtol=0)


def test_every_window_is_in_one_batch_of_an_epoch_beside_windows_of_about_its_length():
    torch.manual_seed(0)
    found = [np.arange(length) for length in np.random.default_rng(0).integers(2, 21, 60)]
    windows = torch.from_numpy(windows_of(found, 20))
    batches = batches_of(windows, 8)
    assert torch.cat(batches).sort().values.equal(torch.arange(len(windows)))
    assert max(map(len, batches)) == 8
    lengths = [(windows[batch] != PADDING).sum(dim=1) for batch in batches]
    assert (
        sum(int(each.max() * len(each) - each.sum()) for each in lengths) < 0.1 * (windows == PADDING).sum()
    )
    assert [each.tolist() for each in batches] != [each.tolist() for each in batches_of(windows, 8)]


def test_columns_that_are_padding_in_all_windows_are_dropped_and_no_others():
    windows = torch.tensor([[PADDING, PADDING, 5, 6], [PADDING, 3, 4, 5]])
    assert without_padding(windows).tolist() == [[PADDING, 5, 6], [3, 4, 5]]


@torch.no_grad()
def test_the_loss_is_the_cross_entropy_of_scaled_cosines_of_the_masked_fields(model):
    windows = torch.from_numpy(windows_of(sequences(5), 4))
    torch.manual_seed(1)
    hidden = draw_masks(len(windows), 3)
    expected = 0.0
    for window, fields in zip(windows, hidden, strict=True):
        state = model(window[None], fields[None])[0]
        for place in fields.nonzero()[:, 0].tolist():
            cosine = F.cosine_similarity(state, model.embed.tables[place][1:], dim=-1)  # [value]
            value = int(NUMBERS[window[-1], place]) - 1
            expected -= float((4.0 * cosine).log_softmax(dim=-1)[value])  # the root of the width is 4
    assert float(model.loss(windows, hidden)) == pytest.approx(expected / len(windows), rel=1e-5)


@torch.no_grad()
def test_the_diagnostics_are_recall_at_10_with_all_fields_or_only_the_id_masked(model):
    users = targets_of(sequences(60))
    expected = []
    for fields in (masked(0, 1, 2), masked(0)):
        hits = 0
        for history, target in zip(users.histories, users.targets, strict=True):
            window = torch.tensor([[*history[-4:], target]])
            score = F.cosine_similarity(model(window, fields), model.embed.tables[0][1:], dim=-1)  # [item]
            hits += int((score > score[target]).sum()) < 10
        expected.append(hits / 60)
    assert diagnose(model, users, 4) == pytest.approx(expected)
    assert diagnose(model, users.first(0), 4) == Diagnostics(0.0, 0.0)


def test_training_learns_the_rule_and_the_other_fields_help(trained):
    assert trained.diagnostics.all_masked > 0.7, "ten of forty items by chance are a quarter"
    assert trained.diagnostics.id_masked > trained.history[0].id_masked
    assert trained.diagnostics.id_masked > 0.9
    assert trained.diagnostics == max(trained.history, key=lambda epoch: epoch.mean)


def test_a_vector_is_the_embeddings_of_its_fields_side_by_side(trained):
    vectors = trained.vectors.reshape(NUM_ITEMS, 3, 16)
    assert trained.fields == ("item_id", "brand", "categories.1")
    assert (vectors[0, 1] == vectors[8, 1]).all(), "one brand"
    assert (vectors[0, 2] == vectors[9, 2]).all(), "one category"
    assert (vectors[0, 0] != vectors[8, 0]).any()
    assert np.ptp(np.linalg.norm(trained.vectors, axis=1)) > 0.01, "lengths are kept"


def test_what_is_not_known_of_an_item_has_the_mask_vector_of_its_field():
    numbers = NUMBERS.copy()
    numbers[30:, 0] = UNKNOWN
    found = train_famae(
        ItemFields(FIELDS.vocabulary, numbers), sequences(40), targets_of(sequences(9)),
        replace(CONFIG, max_epochs=1), seed=0,
    )  # fmt: skip
    vectors = found.vectors.reshape(NUM_ITEMS, 3, 16)
    mask = found.tables.tables[0][UNKNOWN].numpy()
    assert (vectors[30:, 0] == mask).all()
    assert (vectors[:30, 0] != mask).any(axis=1).all()
    assert (vectors[30, 1] == vectors[22, 1]).all(), "its brand is known"
    new = found.tables.vectors(torch.tensor([[UNKNOWN, 7, UNKNOWN]])).reshape(3, 16).numpy()
    assert (new[0] == mask).all()
    assert (new[1] == vectors[30, 1]).all()
    assert (new[2] == found.tables.tables[2][UNKNOWN].numpy()).all()


@torch.no_grad()
def test_what_is_not_known_is_neither_asked_nor_answered(model):
    windows = torch.from_numpy(windows_of(sequences(5), 4))
    hidden = masked(0, 1, 2).expand(len(windows), -1)
    whole = model.loss(windows, hidden)
    model.numbers[:, 1] = UNKNOWN
    rest = sum(
        F.cross_entropy(model.logits(model(windows, hidden), field), model.numbers[windows[:, -1], field])
        for field in (0, 2)
    )
    torch.testing.assert_close(model.loss(windows, hidden), rest)
    assert model.loss(windows, hidden) < whole
    assert (model.logits(model(windows, hidden), 1)[:, UNKNOWN] == -torch.inf).all()


def test_training_stops_after_epochs_without_a_better_mean_and_keeps_the_best(monkeypatch):
    recalls, seen = iter([0.1, 0.3, 0.2, 0.4, 0.4, 0.3, 0.4, 0.9]), []

    def told(model, *_):
        seen.append(model.embed.vectors(model.numbers).detach().numpy().copy())
        return Diagnostics(next(recalls), 0.0)

    monkeypatch.setattr(famae, "diagnose", told)
    found = sequences(150)
    result = train_famae(FIELDS, found, targets_of(found), CONFIG, seed=0)
    assert [epoch.all_masked for epoch in result.history] == [0.1, 0.3, 0.2, 0.4, 0.4, 0.3, 0.4]
    assert result.diagnostics.all_masked == 0.4
    assert (result.vectors == seen[3]).all()
    assert (result.vectors != seen[-1]).any()


def test_a_seed_gives_the_same_vectors_and_leaves_the_callers_randomness_alone():
    found, config = sequences(20), replace(CONFIG, max_epochs=2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    once, again, other = (
        train_famae(FIELDS, found, targets_of(found), config, seed=seed).vectors for seed in (0, 0, 1)
    )
    assert torch.equal(torch.rand(3), expected)
    assert (once == again).all()
    assert (once != other).any()


def test_sequences_without_a_next_item_are_refused():
    with pytest.raises(ValueError, match="two items"):
        train_famae(FIELDS, [np.array([3])], targets_of(sequences(3)), CONFIG, seed=0)
