"""The peers of the trie in benchmarks/trie.py: a CSR table laid out like STATIC's, and dictionaries."""

import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.peers.t5 import DictTrie
from model_export.generators.beam_search import NEG_INF
from service.core.sid import SidSpec

INT_BYTES = 32  # of a key of a dictionary


class CsrTrie:
    """Laid out as STATIC (arXiv 2602.22647): two dense levels, below them rows of (code, next state)."""

    def __init__(self, spec: SidSpec, codes: NDArray[np.int64]) -> None:
        """codes [item, level], at least three levels"""
        nodes = [np.unique(spec.prefixes_of(codes)[-1])]  # for each level its living prefixes, ascending
        for num_codes in reversed(spec.levels[1:]):
            parent = nodes[0] // num_codes
            nodes.insert(0, parent[np.diff(parent, prepend=-1) != 0])
        self.num_codes, self.nodes = spec.levels, nodes
        # State 0 is nobody's; behind it come the prefixes of the second level, then those of the third, …
        self.first_state = [0, *np.cumsum([1, *(len(level) for level in nodes[1:])])]
        start, dense = np.zeros(spec.levels[0], bool), np.zeros(spec.levels[:2], bool)
        dense_states = np.zeros(spec.levels[0] * spec.levels[1], np.int32)
        start[nodes[0]], dense.reshape(-1)[nodes[1]] = True, True
        dense_states[nodes[1]] = self.states_of(1, nodes[1])
        children, edges = [np.zeros(1, np.int64)], []
        for level in range(2, spec.num_levels):
            parent, code = np.divmod(nodes[level], spec.levels[level])
            children.append(np.bincount(np.searchsorted(nodes[level - 1], parent)))
            edges.append(np.stack([code, self.states_of(level, nodes[level])], axis=1).astype(np.int32))
        self.max_branch = [int(count.max()) for count in children[1:]]
        row_ptr = np.cumsum([0, *np.concatenate(children)], dtype=np.int32)  # [state + 1]
        edges.append(
            np.zeros((max(self.max_branch), 2), np.int32)
        )  # so that the last row can be read too far
        self.tables = (start, dense, dense_states, row_ptr, np.concatenate(edges))

    @property
    def num_bytes(self) -> int:
        return sum(table.nbytes for table in self.tables)

    def states_of(self, level: int, prefix: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of living prefixes of the second level or a deeper one."""
        return np.asarray(self.first_state[level] + np.searchsorted(self.nodes[level], prefix))

    def inputs(self, prefixes: list[NDArray[np.int64]]) -> list[NDArray[Any]]:
        """What CsrStep takes. Deeper states come with the candidates, so they are found off the clock."""
        deep = [self.states_of(level - 1, prefixes[level]) for level in range(3, len(prefixes))]
        return [*prefixes[:3], *deep, *self.tables, *(np.zeros(width, np.int64) for width in self.max_branch)]


class CsrStep(nn.Module):
    """Masks of all levels from a CsrTrie: rows are read up to the largest branching of their level."""

    def __init__(self, spec: SidSpec) -> None:
        super().__init__()
        self.levels = spec.levels

    def forward(
        self, states: list[Tensor], tables: list[Tensor], branches: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """states [1, beam] of each level: prefixes in the first three. branches: only their lengths count."""
        start, dense, dense_states, row_ptr, edges = tables
        dead = torch.tensor(NEG_INF)
        masks = [
            torch.where(start, 0.0, dead)[None, None],
            torch.where(dense.index_select(0, states[1][0]), 0.0, dead)[None],
        ]
        for level in range(2, len(states)):
            state, num_codes = states[level][0], self.levels[level]
            if level == 2:
                state = dense_states.index_select(0, state)
            first = row_ptr.index_select(0, state)  # [beam]
            place = torch.arange(branches[level - 2].shape[0], dtype=torch.int32)  # [branch]
            is_child = place < (row_ptr.index_select(0, state + 1) - first)[:, None]  # [beam, branch]
            rows = (first[:, None] + place).flatten()
            code = edges.index_select(0, rows).view(*is_child.shape, 2)[..., 0].long()
            code = torch.where(is_child, code, num_codes)
            mask = torch.full((state.shape[0], num_codes + 1), NEG_INF).scatter(1, code, 0.0)
            masks.append(mask[None, :, :num_codes])
        return tuple(masks)


def dict_masks(trie: DictTrie, vocabulary: int, sentences: list[Tensor]) -> list[Tensor]:
    """As transformers' PrefixConstrainedLogitsProcessor does; sentences [beam, token] of each level."""
    masks = []
    for tokens in sentences:
        mask = torch.full((len(tokens), vocabulary), NEG_INF)
        for beam, sentence in enumerate(tokens):
            mask[beam, trie.allowed(sentence.tolist())] = 0.0
        masks.append(mask)
    return masks


def dict_delete(trie: DictTrie, codes: list[int]) -> None:
    path = [trie.root]
    tokens = [first + code for first, code in zip(trie.first, codes, strict=True)]
    for token in tokens:
        path.append(path[-1][token])
    for node, token in zip(reversed(path[:-1]), reversed(tokens), strict=True):
        del node[token]
        if node:
            break


def dict_bytes(node: dict[int, Any]) -> int:
    return sys.getsizeof(node) + sum(INT_BYTES + dict_bytes(child) for child in node.values())
