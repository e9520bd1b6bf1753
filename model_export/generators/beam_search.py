"""Beam search constrained by a trie. It can be exported: the loop over levels unrolls into one graph.

At each level the search scores the children of every beam. The trie's rows of bits mask the dead ones, and
the best children survive. The `bound` is the best score that did *not* survive, at any level.
Log-probabilities are never positive, so no item outside the answer can score above the bound. A returned
score above the bound is therefore certain.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.evaluation.ranking import ItemsOfCodes, SearchFunction, SearchResult
from model_export.generators.base import Generator
from service.core.graphs import beam_widths
from service.core.sid import SidSpec
from service.core.trie import Tables

NEG_INF = -1e9  # finite, because -inf minus -inf is nan; well below FILLER_SCORE
NOTHING = -1e30  # below every sum of NEG_INFs, so it is chosen only if nothing else is left


class BeamState(NamedTuple):
    """The result of a search."""

    codes: Tensor  # [batch, beam, level]
    scores: Tensor  # [batch, beam]  sum of log-probabilities, best first; a filler is below FILLER_SCORE
    bound: Tensor  # [batch]  no other codes score above it; if it is below FILLER_SCORE, none were pruned


class TrieMask(nn.Module):
    """Turns the bits of trie rows into terms to add to the scores of their codes: 0 or NEG_INF.

    Each byte is looked up in a table, because the CUDA provider has no bitwise operators.
    """

    mask_of_byte: Tensor  # [byte, bit]

    def __init__(self, spec: SidSpec) -> None:
        super().__init__()
        self.levels, self.is_paged = spec.levels, spec.is_paged
        is_live = torch.arange(256)[:, None] >> torch.arange(8) & 1  # [byte, bit]
        self.register_buffer("mask_of_byte", (1.0 - is_live) * NEG_INF, persistent=False)

    def forward(self, level: int, prefix: Tensor, tables: list[Tensor]) -> Tensor:
        """The mask of the children of each prefix: [batch, beam] of the level above -> [batch, beam, code]

        tables: the tables of service.core.trie.SidTrie, in the order of graphs.trie_tables.
        """
        live, row = tables[level], prefix
        if self.is_paged and level == len(self.levels) - 1:
            page_of, live = tables[-2:]
            row = F.embedding(prefix, page_of[:, None])[..., 0]
        bytes_of_row = F.embedding(row, live)  # [batch, beam, byte]
        mask = F.embedding(bytes_of_row.to(torch.int32), self.mask_of_byte)  # [batch, beam, byte, bit]
        return mask.flatten(2)[..., : self.levels[level]]


class BeamSearch(nn.Module):
    """The whole search with a generator, as one module that can be exported."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator
        self.mask = TrieMask(generator.spec).to(next(generator.parameters()).device)

    def forward(self, history: Tensor, beams: list[Tensor], tables: list[Tensor]) -> BeamState:
        """Search the trie and return the best beams.

        history: codes [batch, position, level], with PADDING (-1) on the left.
        beams: one tensor [beam] per level. Only its length counts: it is the number of prefixes that survive
        the level (graphs.beam_widths).
        tables: the tables of service.core.trie.SidTrie.
        """
        levels = self.generator.spec.levels
        batch = history.shape[0]
        state = self.generator.start(history)
        prefix = history.new_zeros(batch, 1)  # one beam at the root: several would pick the same code
        score = torch.zeros(batch, 1, device=history.device)
        bound = torch.full((batch,), NEG_INF, device=history.device)
        nothing = torch.full((1, 1), NOTHING, device=history.device)
        for level, num_codes in enumerate(levels):
            log_probs, state = self.generator.step(level, state, prefix)  # [batch, beam, code]
            # Rounding can leave a log-probability slightly above 0, but the bound needs at most 0.
            total = log_probs.clamp(max=0.0) + score[..., None] + self.mask(level, prefix, tables)
            k = beams[level].shape[0] + 1
            # One NOTHING would do, to be pruned if all children survive. With k of them the exporter sees
            # that there are always at least k candidates.
            candidates = torch.cat([total.flatten(1), nothing.expand(batch, k)], dim=1)
            best, place = candidates.topk(k)  # [batch, beam + 1]
            bound = torch.maximum(bound, best[:, -1])
            score, place = best[:, :-1], place[:, :-1]
            parent = place // num_codes  # [batch, beam]
            prefix = prefix.gather(1, parent) * num_codes + place % num_codes
            if level + 1 < len(levels):
                state = self.generator.reorder(state, parent)
        return BeamState(codes_of(prefix, levels), score, bound)


@torch.no_grad()
def search_eagerly(
    search: BeamSearch, history: NDArray[np.int64], tables: Tables, widths: tuple[int, ...]
) -> BeamState:
    """Run the search in PyTorch, on the device of its weights, with the arguments of RecommenderSession.run.

    history [batch, position, level]; `widths`: the number of beams of each level.
    """
    device = next(search.parameters()).device
    result: BeamState = search(
        torch.from_numpy(history).to(device),
        [torch.arange(width) for width in widths],
        [torch.from_numpy(table).to(device) for table in tables],
    )
    return result


def eager_search(generator: Generator, catalog: ItemsOfCodes) -> SearchFunction:
    """A search function for a Ranker that runs a generator in PyTorch, on the device of its weights."""
    search = BeamSearch(generator)

    def run(history: NDArray[np.int64], num_beams: int) -> SearchResult:
        beams = search_eagerly(search, history, catalog.trie.tables, beam_widths(generator.spec, num_beams))
        return SearchResult(beams.codes.cpu().numpy(), beams.scores.cpu().numpy())

    return run


def codes_of(prefix: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Full prefixes [...] -> codes [..., level]"""
    codes = []
    for num_codes in reversed(levels):
        codes.append(prefix % num_codes)
        prefix = prefix // num_codes
    return torch.stack(codes[::-1], dim=-1)
