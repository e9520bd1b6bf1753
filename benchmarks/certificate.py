"""How often a beam proves its page on a real test set, and what it costs to ask for proof.

    python -m benchmarks.certificate --bundle FOLDER --data DATA

For searches of 10, 20, 50, 100 and 200 beams: the share of test users whose ten best codes are certainly the
best of the whole catalog, and the time of a request; also with fewer beams kept after the first level. Then
`guarantee: exact` as the service does it, doubling from 50 beams to the bundle's limit: how many pages it
proves, and its cost. The baseline is one search at 50 beams. The last line is JSON.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.timing import Times, each_ms
from benchmarks.workload.bundles import tiny_bundle, tiny_data
from model_export.data.splits import leave_one_out
from model_export.data.tables import read_dataset
from model_export.evaluation.evaluate import codes_for
from model_export.evaluation.ranking import ItemsOfCodes, left_padded
from service.core.bundle import RECOMMENDER, load_bundle
from service.core.graphs import FILLER_SCORE, beam_widths
from service.flows.recommend import widths
from service.inference.runtime import RecommenderSession

BEAMS = (10, 20, 50, 100, 200)
FIRST_LEVEL_BEAMS = (10, 25)
START = 50
TOP_K = 10

Codes = NDArray[np.int64]  # [batch, position, level]


class Searches:
    """One search for each test user, on the exported graph."""

    def __init__(self, bundle_folder: Path, data: str, num_users: int) -> None:
        bundle, dataset = load_bundle(bundle_folder), read_dataset(data)
        self.manifest = bundle.manifest
        self.levels = self.manifest.sid
        catalog = ItemsOfCodes.build(self.levels, codes_for(bundle, dataset))
        test = leave_one_out(dataset).test
        users = np.random.default_rng(0).permutation(len(test.histories))[:num_users]
        newest = [test.histories[user][-self.manifest.history_length :] for user in users]
        self.histories: list[Codes] = [catalog.codes[left_padded([each])] for each in newest]
        self._session = RecommenderSession(bundle.file(RECOMMENDER), self.manifest.recommender, threads=1)
        self._tables = catalog.trie.tables
        self.description = (
            f"{dataset.name}: {len(users)} of {len(test.users)} test users, {len(dataset.items)} items, "
            f"levels {self.levels.levels}, {self.manifest.generator} in {self.manifest.precision}"
        )

    def is_proven(self, user: int, kept: tuple[int, ...]) -> bool:
        """Whether the ten best are certainly the best, with so many beams kept after each level."""
        beams = self._session.run(self.histories[user], self._tables, kept)
        last = beams.scores[0, min(TOP_K, beams.scores.shape[1]) - 1]
        return bool(last > beams.bound[0] or beams.bound[0] < FILLER_SCORE)

    def measure(self, kept: tuple[int, ...]) -> tuple[float, Times]:
        """The share of users with proof, and milliseconds of each request."""
        proven: list[bool] = []
        took_ms = each_ms(lambda user: proven.append(self.is_proven(user, kept)), len(self.histories))
        return float(np.mean(proven)), took_ms

    def guarantee(self) -> tuple[list[bool], list[int], Times]:
        """As the service does it: proven or not, the searches that it took, milliseconds; of each user."""
        proven: list[bool] = []
        searches: list[int] = []

        def search(user: int) -> None:
            tries = 0
            for num_beams in widths(START, self.manifest.beam_limit):
                tries += 1
                if is_proven := self.is_proven(user, beam_widths(self.levels, num_beams)):
                    break
            proven.append(is_proven)
            searches.append(tries)

        took_ms = each_ms(search, len(self.histories))
        return proven, searches, took_ms


def main(argv: Sequence[str]) -> int:
    parser = report.arguments(__doc__)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--data", help="what the bundle was exported from")
    parser.add_argument("--users", type=int, default=2_000, help="test users, drawn at random")
    args = parser.parse_args(argv)
    if not args.tiny and not (args.bundle and args.data):
        parser.error("--bundle and --data are needed, or --tiny")
    with tempfile.TemporaryDirectory() as name:
        if args.tiny:
            bundle = tiny_bundle(Path(name))
            searches = Searches(bundle.path, str(tiny_data(bundle, Path(name) / "data")), args.users)
        else:
            searches = Searches(args.bundle, args.data, args.users)
        figures, baseline = measure(searches)
    report.finish("certificate", argv, figures, baseline)
    return 0


def measure(searches: Searches) -> tuple[dict[str, float], dict[str, float]]:
    print(searches.description)
    levels, limit = searches.levels, searches.manifest.beam_limit
    figures: dict[str, float] = {"users": len(searches.histories)}
    rows = []
    plain_ms = float("nan")
    for num_beams in (each for each in BEAMS if each <= limit):
        kept = beam_widths(levels, num_beams)
        share, took_ms = searches.measure(kept)
        figures |= {f"exact_at_{num_beams}": share, f"ms_at_{num_beams}": float(np.median(took_ms))}
        rows.append((str(kept), f"{share:.1%}", f"{np.median(took_ms):.3f}"))
        if num_beams == START:
            plain_ms = float(np.mean(took_ms))
    for first in FIRST_LEVEL_BEAMS:
        kept = (min(first, levels.levels[0]), *beam_widths(levels, START)[1:])
        share, took_ms = searches.measure(kept)
        figures[f"exact_at_{first}_then_{START}"] = share
        rows.append((str(kept), f"{share:.1%}", f"{np.median(took_ms):.3f}"))
    report.table(("beams kept after each level", "proven", "ms p50"), rows)

    proven, tries, took_ms = searches.guarantee()
    figures |= {
        "guaranteed_exact": float(np.mean(proven)),
        "guaranteed_searches": float(np.mean(tries)),
        "guaranteed_ms_mean": float(np.mean(took_ms)),
        "guaranteed_cost_ratio": float(np.mean(took_ms)) / plain_ms,
    }
    print(
        f"guarantee exact, {START} beams up to {limit}: {figures['guaranteed_exact']:.1%} proven after "
        f"{figures['guaranteed_searches']:.2f} searches, {figures['guaranteed_cost_ratio']:.2f} times the "
        f"mean time of one at {START}"
    )
    return figures, {"plain_ms_mean": plain_ms}


if __name__ == "__main__":
    report.run(main)
