"""Where each test user's target comes, by the eager beam search of a trained generator."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.configs import RunConfig
from model_export.data.splits import Targets
from model_export.evaluation.evaluate import NUM_BEAMS
from model_export.evaluation.metrics import target_ranks
from model_export.evaluation.ranking import Found, ItemsOfCodes, Search, left_padded, rank_items
from model_export.generators.base import Generator
from model_export.generators.beam_search import BeamSearch, search_eagerly
from service.core.graphs import FILLER, beam_widths

K = 10
BATCH = 128


class Ranks(NamedTuple):
    """From 0; K where the target is not among the first K."""

    excluded: NDArray[np.uint8]  # [user]  the history left out
    included: NDArray[np.uint8]  # [user]
    codes: NDArray[np.uint8] | None  # [user]  of the target's codes among the beams, history in


@torch.no_grad()
def rank_targets(generator: Generator, codes: NDArray[np.int64], users: Targets, config: RunConfig) -> Ranks:
    """Ranks of the users' targets among all items; codes [item, level]."""
    generator.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    catalogue = ItemsOfCodes.build(generator.spec, codes)
    search = remembered(eager_search(generator, catalogue))
    excluded, included = (
        rank_items(
            search,
            catalogue,
            users.histories,
            k=K,
            history_length=config.history_length,
            num_beams=min(NUM_BEAMS, config.beam_limit),
            beam_limit=config.beam_limit,
            batch_size=BATCH,
            exclude_history=exclude,
            progress="test users",
        )
        for exclude in (True, False)
    )
    return Ranks(
        target_ranks(excluded, users.targets, K).astype(np.uint8),
        target_ranks(included, users.targets, K).astype(np.uint8),
        _code_ranks(search, catalogue, users, config),
    )


def remembered(search: Search) -> Search:
    """Each history is searched once, however it is then counted."""
    known: dict[tuple[bytes, int], Found] = {}

    def run(history: NDArray[np.int64], num_beams: int) -> Found:
        key = (history.tobytes(), num_beams)
        if key not in known:
            known[key] = search(history, num_beams)
        return known[key]

    return run


def eager_search(generator: Generator, catalogue: ItemsOfCodes) -> Search:
    search = BeamSearch(generator)

    @torch.no_grad()
    def run(history: NDArray[np.int64], num_beams: int) -> Found:
        widths = beam_widths(generator.spec, num_beams)
        beams = search_eagerly(search, history, catalogue.trie.tables, widths)
        return Found(beams.codes.cpu().numpy(), beams.scores.cpu().numpy())

    return run


def _code_ranks(
    search: Search, catalogue: ItemsOfCodes, users: Targets, config: RunConfig
) -> NDArray[np.uint8]:
    """As many papers count: a hit is the target's codes, whoever else has them."""
    found = []
    for first in range(0, len(users.histories), BATCH):
        part = slice(first, first + BATCH)
        window = left_padded([history[-config.history_length :] for history in users.histories[part]])
        codes, scores = search(catalogue.codes[window], min(NUM_BEAMS, config.beam_limit))
        same = (codes[:, :K] == catalogue.codes[users.targets[part]][:, None]).all(axis=-1)  # [user, beam]
        same &= scores[:, :K] > FILLER
        found.append(np.where(same.any(axis=1), same.argmax(axis=1), K).astype(np.uint8))
    return np.concatenate(found)
