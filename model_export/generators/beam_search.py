"""Beam search constrained by a trie. It can be exported: the loop over levels unrolls into one graph.

At each level the search scores the children of every beam. The trie's rows of bits mask the dead ones, and
the best children survive. The `bound` is the best score that did *not* survive, at any level.
Log-probabilities are never positive, so no item outside the answer can score above the bound. A returned
score above the bound is therefore certain.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.evaluation.ranking import ItemsOfCodes, SearchFunction, SearchResult, Window
from model_export.generators.base import Generator
from service.core.graphs import Neighbors, beam_widths
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


class NeighborState(NamedTuple):
    """Where the neighbors are among the beams of a search."""

    beam: Tensor  # [batch, neighbor]  the beam that is a prefix of the neighbor; the number of beams: none
    term: Tensor  # [batch, beam]  of the heaviest neighbor below


class NeighborOpinion(nn.Module):
    """The opinion of the counts: items that were taken together with those of the history score higher.

    An item of mass m gets the term weight * log(1 + m). It is spread over the levels: a child c of the prefix
    p gets weight * (log(1 + m(pc)) - log(1 + m(p))), where m(p) is the mass of the heaviest neighbor below p.
    The sum over an item's levels is its own term, less that of the heaviest neighbor of all. So the order of
    items does not depend on the levels, and items without mass keep the order that they have without counts.
    No term of a level is above 0, and a prefix has the term of its best item, which is the tightest bound.
    """

    def __init__(self, spec: SidSpec, weight: float) -> None:
        super().__init__()
        self.levels, self.weight = spec.levels, weight

    def of_items(self, mass: Tensor) -> Tensor:
        """The term of each neighbor: [batch, neighbor]"""
        term: Tensor = self.weight * mass.log1p()
        return term

    def start(self, prefixes: Tensor, of_items: Tensor) -> NeighborState:
        """All neighbors are below the one beam at the root. prefixes and of_items [batch, neighbor]"""
        return NeighborState((prefixes < 0).long(), of_items.amax(dim=1, keepdim=True))

    def below(
        self, level: int, prefixes: Tensor, of_items: Tensor, state: NeighborState
    ) -> tuple[Tensor, Tensor]:
        """The term of the heaviest neighbor below each child of each beam [batch, beam * code], and each
        neighbor's index in it.

        The index of a neighbor below no beam is past the end.
        """
        num_codes = self.levels[level]
        code = quotient(prefixes.clamp(min=0), math.prod(self.levels[level + 1 :])) % num_codes
        place = state.beam * num_codes + code  # [batch, neighbor]
        num_children = state.term.shape[1] * num_codes
        none = of_items.new_zeros(of_items.shape[0], num_children + num_codes)
        children: Tensor = none.scatter_reduce(1, place, of_items, "amax")
        return children[:, :num_children], place

    def terms(self, level: int, children: Tensor, state: NeighborState) -> Tensor:
        """What the level adds for each child: [batch, beam, code]"""
        of_children: Tensor = children.unflatten(1, (-1, self.levels[level]))
        return of_children - state.term[..., None]

    def follow(self, level: int, children: Tensor, place: Tensor, chosen: Tensor) -> NeighborState:
        """The state after the search has chosen children. chosen [batch, beam] are indices of `children`."""
        num_beams = chosen.shape[1]
        beam = torch.arange(num_beams, device=chosen.device).expand_as(chosen)
        none = chosen.new_full((chosen.shape[0], children.shape[1] + self.levels[level]), num_beams)
        return NeighborState(none.scatter(1, chosen, beam).gather(1, place), children.gather(1, chosen))


class BeamSearch(nn.Module):
    """The whole search with a generator, as one module that can be exported."""

    def __init__(self, generator: Generator, neighbor_weight: float = 1.0) -> None:
        super().__init__()
        self.generator = generator
        self.mask = TrieMask(generator.spec).to(next(generator.parameters()).device)
        self.opinion = NeighborOpinion(generator.spec, neighbor_weight)

    def forward(
        self,
        history: Tensor,
        neighbors: Tensor,
        neighbor_mass: Tensor,
        beams: list[Tensor],
        tables: list[Tensor],
    ) -> BeamState:
        """Search the trie and return the best beams.

        history: codes [batch, position, level], with PADDING (-1) on the left.
        neighbors, neighbor_mass [batch, neighbor]: see graphs.Neighbors.
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
        of_items = self.opinion.of_items(neighbor_mass)
        counted = self.opinion.start(neighbors, of_items)
        for level, num_codes in enumerate(levels):
            log_probs, state = self.generator.step(level, state, prefix)  # [batch, beam, code]
            children, of_neighbor = self.opinion.below(level, neighbors, of_items, counted)
            log_probs = log_probs + self.opinion.terms(level, children, counted)
            # Rounding can leave a log-probability slightly above 0, but the bound needs at most 0.
            total = log_probs.clamp(max=0.0) + score[..., None] + self.mask(level, prefix, tables)
            k = beams[level].shape[0] + 1
            # One NOTHING would do, to be pruned if all children survive. With k of them the exporter sees
            # that there are always at least k candidates.
            candidates = torch.cat([total.flatten(1), nothing.expand(batch, k)], dim=1)
            best, place = candidates.topk(k)  # [batch, beam + 1]
            bound = torch.maximum(bound, best[:, -1])
            score, place = best[:, :-1], place[:, :-1]
            parent = quotient(place, num_codes)  # [batch, beam]
            prefix = prefix.gather(1, parent) * num_codes + place % num_codes
            if level + 1 < len(levels):
                state = self.generator.reorder(state, parent)
                counted = self.opinion.follow(level, children, of_neighbor, place)
        return BeamState(codes_of(prefix, levels), score, bound)


@torch.no_grad()
def search_eagerly(
    search: BeamSearch,
    history: NDArray[np.int64],
    tables: Tables,
    widths: tuple[int, ...],
    neighbors: Neighbors | None = None,
) -> BeamState:
    """Run the search in PyTorch, on the device of its weights, with the arguments of RecommenderSession.run.

    history [batch, position, level]; `widths`: the number of beams of each level.
    """
    device = next(search.parameters()).device
    result: BeamState = search(
        torch.from_numpy(history).to(device),
        *(torch.from_numpy(each).to(device) for each in neighbors or Neighbors.none(len(history))),
        [torch.arange(width) for width in widths],
        [torch.from_numpy(table).to(device) for table in tables],
    )
    return result


def eager_search(generator: Generator, catalog: ItemsOfCodes, neighbor_weight: float = 1.0) -> SearchFunction:
    """A search function for a Ranker that runs a generator in PyTorch, on the device of its weights."""
    search = BeamSearch(generator, neighbor_weight)

    def run(window: Window, num_beams: int) -> SearchResult:
        widths = beam_widths(generator.spec, num_beams)
        beams = search_eagerly(search, window.history, catalog.trie.tables, widths, window.neighbors)
        return SearchResult(beams.codes.cpu().numpy(), beams.scores.cpu().numpy())

    return run


def codes_of(prefix: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Full prefixes [...] -> codes [..., level]"""
    codes = []
    for num_codes in reversed(levels):
        codes.append(prefix % num_codes)
        prefix = quotient(prefix, num_codes)
    return torch.stack(codes[::-1], dim=-1)


def quotient(dividend: Tensor, divisor: int) -> Tensor:
    """The whole part of the quotient, of numbers that are not negative. `//` takes seven ONNX nodes."""
    return torch.div(dividend, divisor, rounding_mode="trunc")
