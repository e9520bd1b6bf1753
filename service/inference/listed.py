"""The scores of listed codes, by the graph of the beam search.

A search loses items only where it prunes. So the trie of the listed codes alone is searched, with a beam for
each prefix that they have: every beam survives, and each score is the sum that the model gives to the codes.
It is the same graph and the same arithmetic as in a search of the whole catalog, so a code has one score
(decision 21).
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from service.core.graphs import Neighbors
from service.core.sid import SidSpec
from service.core.trie import SidTrie
from service.inference.runtime import RecommenderSession


def score_listed(
    session: RecommenderSession,
    spec: SidSpec,
    history: NDArray[np.int64],
    prefixes: NDArray[np.int64],
    *,
    beam_limit: int,
    neighbors: Neighbors | None = None,
) -> NDArray[np.float32]:
    """The score of each of `prefixes` after each history: [batch, prefix]

    history [batch, position, level]: codes, with PADDING on the left. prefixes [prefix]: full prefixes,
    ascending, each once, whether or not the catalog has them. beam_limit: the most beams of a run, as the
    bundle's manifest has it; a longer list takes several runs.
    """
    found = np.empty((len(history), len(prefixes)), np.float32)
    for part in _parts(len(prefixes), beam_limit):
        listed = prefixes[part]
        widths = [len(each) for each in _distinct(spec, listed)]
        tables = SidTrie.from_prefixes(spec, listed).tables
        beams = session.run(history, tables, widths, neighbors)
        batch, width, num_levels = beams.codes.shape
        codes = spec.prefixes_of(beams.codes.reshape(-1, num_levels))[-1].reshape(batch, width)
        # All listed codes are there, so their ascending order is that of the list.
        found[:, part] = np.take_along_axis(beams.scores, codes.argsort(axis=1), axis=1)
    return found


def _parts(count: int, most: int) -> Iterator[slice]:
    """Slices of equal size, within one, that cover `count` places, each with at most `most` of them."""
    num_parts = -(-count // most)
    ends = [count * part // num_parts for part in range(num_parts + 1)] if num_parts else []
    return (slice(first, end) for first, end in zip(ends, ends[1:], strict=False))


def _distinct(spec: SidSpec, prefixes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The prefixes of each level above ascending full prefixes, outermost first, each once."""
    found = [prefixes]
    for num_codes in reversed(spec.levels[1:]):
        parents = found[0] // num_codes
        found.insert(0, parents[np.diff(parents, prepend=-1) > 0])
    return found
