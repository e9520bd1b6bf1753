"""`sasrec` agrees with torch's own transformer layer, and works with the shared training loop and search."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model_export.configs import SasRecConfig, TrainingConfig
from model_export.data.splits import Split, Targets
from model_export.generators.beam_search import BeamSearch, search_eagerly
from model_export.generators.sasrec import Block, SasRecGenerator, codes_of_items
from model_export.generators.training import train_generator, validate
from service.core.graphs import PADDING, beam_widths
from service.core.sid import SidSpec
from service.core.trie import SidTrie

NUM_ITEMS = 12
HISTORY = 6


def make_sasrec(num_items: int = NUM_ITEMS, *, num_seen: int | None = None) -> SasRecGenerator:
    torch.manual_seed(0)
    return SasRecGenerator(
        config=SasRecConfig(width=16, num_layers=2, num_heads=2, ffn_dim=24, dropout=0.1),
        spec=SidSpec(levels=(num_items,)),
        history_length=HISTORY,
        seen_codes=codes_of_items(num_items)[:num_seen],
    ).eval()


def histories(seed: int, *shape: int, num_items: int = NUM_ITEMS) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, num_items, size=(*shape, 1)))


@torch.no_grad()
def scores_of(generator: SasRecGenerator, history: Tensor) -> Tensor:
    """[batch, item]"""
    log_probs, _ = generator.step(0, generator.start(history), history.new_zeros(len(history), 1))
    return log_probs[:, 0]


@pytest.mark.parametrize("num_heads", [1, 2, 4])
@torch.no_grad()
def test_a_block_equals_torchs_pre_norm_layer_with_the_same_weights(num_heads):
    torch.manual_seed(0)
    block = Block(SasRecConfig(width=16, num_heads=num_heads, ffn_dim=24, dropout=0.3)).eval()
    theirs = nn.TransformerEncoderLayer(16, num_heads, 24, batch_first=True, norm_first=True).eval()
    inputs = (block.query, block.key, block.value)
    theirs.self_attn.in_proj_weight.copy_(torch.cat([linear.weight for linear in inputs]))
    theirs.self_attn.in_proj_bias.copy_(torch.cat([linear.bias for linear in inputs]))
    for ours, other in (
        (block.out, theirs.self_attn.out_proj),
        (block.norm_attention, theirs.norm1),
        (block.norm_ffn, theirs.norm2),
        (block.ffn[0], theirs.linear1),
        (block.ffn[3], theirs.linear2),
    ):
        other.load_state_dict(ours.state_dict())
    x = torch.randn(3, 5, 16)
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    expected = theirs(x, src_mask=~causal)
    torch.testing.assert_close(block(x, causal[None, None]), expected, atol=1e-5, rtol=1e-5)


def test_untrained_embeddings_of_zero_cost_the_logarithm_of_the_catalog():
    """This shows that the loss is cross-entropy over every item, and not over sampled items."""
    generator = make_sasrec()
    nn.init.zeros_(generator.embed.weight)
    assert generator.loss(histories(0, 4, 5)).item() == pytest.approx(math.log(NUM_ITEMS))


def test_loss_is_the_mean_over_every_pair_and_over_no_padding():
    generator = make_sasrec()
    window = histories(1, 1, 2)
    expected = -scores_of(generator, window[:, :1])[0, window[0, 1, 0]]
    torch.testing.assert_close(generator.loss(window).detach(), expected)
    padded = torch.cat([torch.full((1, 4, 1), PADDING), window], dim=1)
    torch.testing.assert_close(generator.loss(padded).detach(), expected)

    window = histories(2, 1, 4)
    logits = generator._logits(generator._read(window[:, :-1])).log_softmax(-1)  # [1, position, item]
    every = logits.gather(2, window[:, 1:]).mean()
    torch.testing.assert_close(generator.loss(window), -every)


def test_a_state_does_not_depend_on_later_items():
    generator, window = make_sasrec(), histories(3, 2, HISTORY)
    other = window.clone()
    other[:, 4:] = (other[:, 4:] + 1) % NUM_ITEMS
    with torch.no_grad():
        ours, theirs = generator._read(window), generator._read(other)
    torch.testing.assert_close(ours[:, :4], theirs[:, :4])
    assert (ours[:, 4:] - theirs[:, 4:]).abs().amax(dim=-1).min() > 1e-3


@pytest.mark.parametrize("positions", range(HISTORY))
def test_padding_on_the_left_changes_nothing(positions):
    generator, history = make_sasrec(), histories(4, 3, positions)
    short = torch.cat([torch.full((3, 1, 1), PADDING), history], dim=1)  # an empty history is one padding
    long = torch.cat([torch.full((3, HISTORY - positions, 1), PADDING), history], dim=1)
    scores = scores_of(generator, long)
    assert torch.isfinite(scores).all()
    torch.testing.assert_close(scores_of(generator, short), scores, atol=1e-5, rtol=1e-5)


def test_the_order_of_a_history_matters():
    generator, history = make_sasrec(), histories(5, 1, 5)
    assert (scores_of(generator, history) - scores_of(generator, history.flip(1))).abs().max() > 1e-3


@pytest.mark.parametrize("num_items", [1, 7, 5000])
def test_the_search_finds_the_best_living_items_of_one_level_of_thousands(num_items):
    generator = make_sasrec(num_items)
    spec, rng = generator.spec, np.random.default_rng(0)
    living = np.sort(rng.choice(num_items, size=-(-num_items // 2), replace=False))
    trie = SidTrie.from_codes(spec, living[:, None])
    history = histories(6, 4, 5, num_items=num_items)
    beams = search_eagerly(BeamSearch(generator), history.numpy(), trie.tables, beam_widths(spec, 20))
    expected, place = scores_of(generator, history)[:, living].topk(min(20, len(living)))
    found = expected.shape[1]
    torch.testing.assert_close(beams.scores[:, :found], expected)
    assert (beams.codes[:, :found, 0].numpy() == living[place.numpy()]).all()
    assert (beams.scores[:, found:] < -1e8).all()


def test_a_certain_next_item_is_learnt(tmp_path):
    """All users go through the catalog in circles. Eight of twelve items are excluded as history."""
    generator, items = make_sasrec(), np.arange(NUM_ITEMS)
    walks = [((items[:9] + start) % NUM_ITEMS).astype(np.int32) for start in items]
    everybody = Targets(items, [walk[:-1] for walk in walks], np.array([walk[-1] for walk in walks]))
    train_generator(
        generator,
        codes=codes_of_items(NUM_ITEMS),
        split=Split([walk[:-1] for walk in walks], everybody, everybody),
        config=TrainingConfig(
            max_epochs=80, batch_positions=128, learning_rate=1e-2, warmup_steps=5, validate_every_epochs=20
        ),
        history_length=HISTORY,
        seed=0,
        checkpoint=tmp_path / "run.checkpoint",
    )
    assert validate(generator, codes_of_items(NUM_ITEMS), everybody, history_length=HISTORY) > 0.99


def test_only_items_in_training_have_embeddings():
    found = make_sasrec(num_seen=9).item_embeddings()
    assert found.is_learnt.tolist() == [True] * 9 + [False] * 3
    assert found.vectors.shape == (NUM_ITEMS, 16)
    assert found.vectors.dtype == np.float32
    assert (found.vectors[9:] == 0).all()
    assert (found.vectors[:9] != 0).all()


def test_codes_of_several_levels_are_refused():
    spec = SidSpec(levels=(4, 4))
    with pytest.raises(ValueError, match=r"one level .* got levels \(4, 4\)"):
        SasRecGenerator(config=SasRecConfig(), spec=spec, history_length=5, seen_codes=np.zeros((1, 1), int))
