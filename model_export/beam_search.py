"""Trie-constrained beam search, written to be exported: the loop over levels unrolls into one graph.

At each level the children of every beam are scored, dead ones are masked by the trie's count table, and the
best `num_beams` survive. The best score that did *not* survive, at any level, is the `bound`:
log-probabilities are never positive, so no item outside the answer can score above it. A returned score
above the bound is therefore certain.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model_export.generators.base import Generator
from service.contract import FILLER

NEG_INF = -1e9  # finite, as -inf minus -inf is nan; well below FILLER


class Beams(NamedTuple):
    codes: Tensor  # [batch, beam, level]
    scores: Tensor  # [batch, beam]  sum of log-probabilities, best first; below FILLER nothing was found
    bound: (
        Tensor  # [batch]  no live codes outside the beams score above this; below FILLER nothing was pruned
    )


class BeamSearch(nn.Module):
    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, history: Tensor, beams: Tensor, counts: list[Tensor]) -> Beams:
        """
        history: codes [batch, position, level], PADDING (-1) on the left.
        beams: [beam], of which only the length counts: the width of the search.
        counts: per level the trie's table [K1*…*Kl].
        """
        levels = self.generator.spec.levels
        batch, num_beams = history.shape[0], beams.shape[0]
        state = self.generator.start(history)
        prefix = history.new_zeros(
            batch, 1
        )  # one live beam at the root, or every beam would pick the same code
        score = torch.zeros(batch, 1, dtype=torch.float32, device=history.device)
        bound = torch.full((batch,), NEG_INF, dtype=torch.float32, device=history.device)
        # So that there are always num_beams + 1 to choose from.
        filler = torch.full((1, 1), NEG_INF, device=history.device).expand(batch, num_beams + 1)
        for level, num_codes in enumerate(levels):
            log_probs, state = self.generator.step(level, state, prefix)  # [batch, beam, code]
            live = counts[level].view(-1, num_codes)[prefix].to(torch.int32) > 0  # [batch, beam, code]
            live = live & (score > FILLER)[..., None]  # a filler beam has no children
            # Rounding may leave a log-probability a hair above 0; the bound needs it not to be.
            total = torch.where(live, score[..., None] + log_probs.clamp(max=0.0), NEG_INF)
            candidates = torch.cat([total.flatten(1), filler], dim=1)  # [batch, beam * code + filler]
            best, place = candidates.topk(num_beams + 1)  # [batch, beam + 1]
            bound = torch.maximum(bound, best[:, -1])
            score, place = best[:, :-1], place[:, :-1]
            is_filler = score < FILLER
            parent = torch.where(is_filler, 0, place // num_codes)  # [batch, beam]
            code = torch.where(is_filler, 0, place % num_codes)
            prefix = prefix.gather(1, parent) * num_codes + code
            if level + 1 < len(levels):
                state = self.generator.reorder(state, parent)
        return Beams(codes_of(prefix, levels), score, bound)


def codes_of(prefix: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Full prefixes [...] -> codes [..., level]"""
    codes = []
    for num_codes in reversed(levels):
        codes.append(prefix % num_codes)
        prefix = prefix // num_codes
    return torch.stack(codes[::-1], dim=-1)
