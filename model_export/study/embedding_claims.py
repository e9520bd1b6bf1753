"""The claims of the paper (arXiv 2504.02137, Tables 2 to 5), each with its published figure and ours.

A claim counts as found if its figure has the published sign and its interval lies on that side of zero.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from model_export.evaluation.statistics import Interval
from model_export.study.embedding_cells import SEGMENTS, EmbeddingResult
from model_export.study.embedding_figures import Sums, change, gain_difference
from model_export.study.tables import markdown

Results = Mapping[str, Sequence[EmbeddingResult]]
OTHERS = ("trigram", "fourgram", "all_bigrams")
Found = Callable[[Results, NDArray[np.float64]], Interval | None]


def claims(results: Results, drawn: NDArray[np.float64]) -> str | None:
    """A row for each claim that the results can judge. Negative is as published, in every row."""
    rows = []
    for words, published, find in CLAIMS:
        found = find(results, drawn)
        if found is None:
            continue
        ours = f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
        rows.append([words, published, ours, verdict(found)])
    return markdown(["claim", "published", "ours", ""], rows) if rows else None


def verdict(found: Interval) -> str:
    """In words, for a figure that is negative as published."""
    if found.high < 0:
        return "as published"
    return "**the other way**" if found.low > 0 else "not decided"


def _against(name: str, reference: str, part: Sequence[str] = SEGMENTS) -> Found:
    def find(results: Results, drawn: NDArray[np.float64]) -> Interval | None:
        if name not in results or reference not in results:
            return None
        return change(Sums.of(results[name], part), Sums.of(results[reference], part), drawn)

    return find


def _more_than(part: str, other: str) -> Found:
    """How much more prefixes gain over a random hash in one segment than in another."""

    def find(results: Results, drawn: NDArray[np.float64]) -> Interval | None:
        if "prefix" not in results or "random_hash" not in results:
            return None
        pairs = [
            (Sums.of(results["prefix"], [each]), Sums.of(results["random_hash"], [each]))
            for each in (part, other)
        ]
        if change(*pairs[0], drawn) is None or change(*pairs[1], drawn) is None:
            return None
        return gain_difference(pairs[0], pairs[1], drawn)

    return find


def _of_seeds(name: str, reference: str, figure: str) -> Found:
    """The difference of a figure without users, with an interval over seeds (Student's t)."""

    def find(results: Results, _drawn: NDArray[np.float64]) -> Interval | None:
        pairs = [
            [each.figures[figure] for each in results.get(cell, ()) if figure in each.figures]
            for cell in (name, reference)
        ]
        count = min(map(len, pairs))
        if count < 2:
            return None
        differences = np.array(pairs[0][:count]) - np.array(pairs[1][:count])
        wide = T_975[count] * float(differences.std(ddof=1)) / count**0.5
        mean = float(differences.mean())
        return Interval(mean, mean - wide, mean + wide)

    return find


def _horizon(results: Results, drawn: NDArray[np.float64]) -> Interval | None:
    needed = ("prefix", "prefix_short", "random_hash", "random_hash_short")
    if not all(name in results for name in needed):
        return None
    prefix, prefix_short, hashed, hashed_short = (Sums.of(results[name]) for name in needed)
    return gain_difference((prefix, prefix_short), (hashed, hashed_short), drawn)


T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t for the number of seeds

CLAIMS: tuple[tuple[str, str, Found], ...] = (
    ("prefixes against random hash, all items", "-0.0005", _against("prefix", "random_hash")),
    ("prefixes against individual, all items", "-0.0003", _against("prefix", "individual")),
    ("prefixes against random hash, tail", "-0.0004", _against("prefix", "random_hash", ["tail"])),
    ("prefixes against random hash, unseen", "-0.0041", _against("prefix", "random_hash", ["unseen"])),
    ("prefixes against individual, unseen", "-0.0033", _against("prefix", "individual", ["unseen"])),
    *((f"prefixes against {name.replace('_', ' ')}", "below 0", _against("prefix", name)) for name in OTHERS),
    ("deeper prefixes: 4 against 3", "below 0", _against("prefix", "prefix_3")),
    (
        "the gain over random hash is larger in the tail than in the head",
        "-0.0004",
        _more_than("tail", "head"),
    ),
    (
        "the gain over random hash is larger for unseen items than in the head",
        "-0.0041",
        _more_than("unseen", "head"),
    ),
    (
        "drift sensitivity, prefixes minus random hash",
        "-0.0010",
        _of_seeds("prefix", "random_hash", "drift_all"),
    ),
    (
        "drift sensitivity, individual minus random hash",
        "-0.0009",
        _of_seeds("individual", "random_hash", "drift_all"),
    ),
    ("a longer training gains more with prefixes than with random hash", "-0.0005", _horizon),
    (
        "A/A variance of near copies, prefixes minus random hash",
        "below 0 (-43 %)",
        _of_seeds("prefix_copies", "random_hash_copies", "aa_variance_near"),
    ),
)
