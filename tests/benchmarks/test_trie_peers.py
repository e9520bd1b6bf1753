"""The peers in benchmarks/trie.py are right, or their times would say nothing."""

import numpy as np
import pytest
import torch

from benchmarks.peers.t5 import DictTrie
from benchmarks.peers.tries import CsrStep, CsrTrie, dict_delete
from benchmarks.trie import TrieStep, parents_of
from benchmarks.workload.shapes import random_codes
from service.core.sid import SidSpec
from service.core.trie import SidTrie


@pytest.mark.parametrize("levels", [(4, 8, 16), (5, 3, 9, 7)])
@pytest.mark.parametrize("num_items", [1, 40])
def test_every_trie_allows_exactly_the_codes_that_follow_in_the_catalog(levels, num_items):
    spec = SidSpec(levels=levels)
    codes = random_codes(num_items, seed=0, of=spec)
    prefixes = parents_of(spec, codes, [num_items] * spec.num_levels)
    truth = [
        [{row[level] for row in codes.tolist() if row[:level] == of[:level]} for of in codes.tolist()]
        for level in range(spec.num_levels)
    ]
    ours = TrieStep(spec)(
        [torch.from_numpy(prefix) for prefix in prefixes],
        [torch.from_numpy(table) for table in SidTrie.from_codes(spec, codes).tables],
    )
    csr = CsrTrie(spec, codes)
    inputs = [torch.from_numpy(array) for array in csr.inputs(prefixes)]
    depth, num_tables = spec.num_levels, len(csr.tables)
    theirs = CsrStep(spec)(inputs[:depth], inputs[depth : depth + num_tables], inputs[depth + num_tables :])
    dictionaries = DictTrie(spec, codes)
    for level, sets in enumerate(truth):
        assert allowed(ours[level]) == sets
        rows = allowed(theirs[level])
        assert rows == (sets if level else sets[:1])  # CSR's root is one row for all
        for of, expected in zip((codes + dictionaries.first).tolist(), sets, strict=True):
            first = dictionaries.first[level]
            assert {token - first for token in dictionaries.allowed(of[:level])} == expected


def test_a_deleted_path_leaves_nothing_behind_in_the_dictionaries():
    codes = np.array([[1, 2, 3], [1, 2, 4], [0, 2, 3]])
    trie = DictTrie(SidSpec(levels=(4, 8, 16)), codes)
    for left in (2, 1, 0):
        dict_delete(trie, codes[left].tolist())
        assert trie.root == DictTrie(SidSpec(levels=(4, 8, 16)), codes[:left]).root


def allowed(mask: torch.Tensor) -> list[set[int]]:
    return [set(torch.nonzero(row == 0)[:, 0].tolist()) for row in mask[0]]
