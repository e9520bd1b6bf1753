"""Training and search make each tensor on the device of the model: on `meta`, which computes nothing and
refuses a tensor from elsewhere, so that no GPU is needed to find one that was left on the CPU.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.fx.experimental import _config as fx_config

from model_export.configs import SasRecConfig, TigerConfig, TreeConfig, base
from model_export.generators.beam_search import BeamSearch
from model_export.pipeline import generating
from service.core.graphs import beam_widths
from service.core.sid import SidSpec
from service.core.trie import SidTrie

NUM_ITEMS = 300
GENERATORS = {
    "tree": TreeConfig(width=32),
    "tree_plain": TreeConfig(width=32, start_scale=0.0, has_bonus=False),
    "tiger": TigerConfig(width=16, num_layers=1, num_heads=2, head_dim=8, ffn_dim=32),
    "tiger_items": TigerConfig(width=16, num_layers=1, num_heads=2, head_dim=8, ffn_dim=32, reads="items"),
    "sasrec": SasRecConfig(width=32),
}


@pytest.mark.parametrize("name", GENERATORS)
@fx_config.patch("meta_nonzero_assume_all_nonzero", True)
def test_everything_is_made_on_the_device_of_the_model(name):
    rng = np.random.default_rng(0)
    spec = SidSpec(levels=(NUM_ITEMS,)) if name == "sasrec" else SidSpec(levels=(16, 16, 8))
    codes = np.arange(NUM_ITEMS)[:, None]
    if name != "sasrec":
        codes = rng.integers(0, spec.levels, size=(NUM_ITEMS, 3))
    train = [rng.integers(0, NUM_ITEMS, size=12).astype(np.int32) for _ in range(50)]
    vectors = rng.normal(size=(NUM_ITEMS, 32)).astype(np.float32)
    config = replace(base(), generator=GENERATORS[name])
    generator = generating.make_generator(config, codes, spec, train, vectors).to("meta")

    loss = generator.train().loss(torch.zeros(8, 12, len(spec.levels), dtype=torch.int64, device="meta"))
    loss.backward()
    assert loss.device.type == "meta"

    tables = [torch.from_numpy(table).to("meta") for table in SidTrie.from_codes(spec, codes).tables]
    history = torch.zeros(8, 10, len(spec.levels), dtype=torch.int64, device="meta")
    widths = beam_widths(spec, 20)
    neighbors = torch.zeros(8, 9, dtype=torch.int64, device="meta")
    beams = BeamSearch(generator.eval())(
        history, neighbors, neighbors.float(), [torch.arange(width) for width in widths], tables
    )
    assert beams.scores.device.type == "meta"
    assert beams.codes.shape == (8, 20, len(spec.levels))
