"""How often a beam proves its page, on a real test set, and what asking for proof costs.

    python benchmarks/certificate.py --bundle FOLDER --data DATA

For searches of 10, 20, 50, 100 and 200 beams: the share of test users whose ten best codes are certainly the
best of the whole catalogue, and the time of a request; also with fewer beams kept after the first level. Then
`guarantee: exact` as the service does it, doubling from 50 beams to the bundle's limit: how many pages it
proves, and its cost. The last line is JSON.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_export.data.splits import leave_one_out
from model_export.data.tables import read_dataset
from model_export.evaluation.evaluate import codes_for
from model_export.evaluation.ranking import ItemsOfCodes, left_padded
from service.core.bundle import RECOMMENDER, load_bundle
from service.core.graphs import FILLER_SCORE, beam_widths
from service.errors import GlyphrecError
from service.flows.recommend import widths
from service.inference.runtime import RecommenderSession

BEAMS = (10, 20, 50, 100, 200)
START = 50
PAGE = 10


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", required=True, help="what the bundle was exported from")
    parser.add_argument("--users", type=int, default=2000, help="test users, drawn at random")
    args = parser.parse_args()
    bundle, dataset = load_bundle(args.bundle), read_dataset(args.data)
    manifest = bundle.manifest
    catalogue = ItemsOfCodes.build(manifest.sid, codes_for(bundle, dataset))
    test = leave_one_out(dataset).test
    chosen = np.random.default_rng(0).permutation(len(test.histories))[: args.users]
    histories = [
        catalogue.codes[left_padded([test.histories[user][-manifest.history_length :]])] for user in chosen
    ]
    session = RecommenderSession(bundle.file(RECOMMENDER), manifest.recommender, threads=1)
    tables = catalogue.trie.tables

    def search(history: NDArray[np.int64], kept: tuple[int, ...]) -> bool:
        """Whether the ten best are proven."""
        beams = session.run(history, tables, kept)
        last = beams.scores[0, min(PAGE, beams.scores.shape[1]) - 1]
        return bool(last > beams.bound[0] or beams.bound[0] < FILLER_SCORE)

    def measure(kept: tuple[int, ...]) -> tuple[float, NDArray[np.float64]]:
        """The share of users with proof, and milliseconds of each request."""
        proven, took = [], []
        for history in histories:
            started = time.perf_counter()
            proven.append(search(history, kept))
            took.append(time.perf_counter() - started)
        return float(np.mean(proven)), 1000 * np.array(took)

    print(
        f"{dataset.name}: {len(histories)} of {len(test.users)} test users, {len(dataset.items)} items, "
        f"levels {manifest.sid.levels}, {manifest.generator} in {manifest.precision}"
    )
    figures: dict[str, float] = {}
    plain_ms = float("nan")
    print(f"{'kept after each level':24} proven   ms p50")
    for num_beams in (each for each in BEAMS if each <= manifest.beam_limit):
        full = beam_widths(manifest.sid, num_beams)
        figures[f"exact_at_{num_beams}"], ms = measure(full)
        figures[f"ms_at_{num_beams}"] = float(np.median(ms))
        if num_beams == START:
            plain_ms = float(np.mean(ms))
        print(f"{full!s:24} {figures[f'exact_at_{num_beams}']:6.1%} {figures[f'ms_at_{num_beams}']:8.3f}")
    for first in (10, 25):
        narrow = (min(first, manifest.sid.levels[0]), *beam_widths(manifest.sid, START)[1:])
        share, ms = measure(narrow)
        figures[f"exact_at_{first}_then_{START}"] = share
        print(f"{narrow!s:24} {share:6.1%} {np.median(ms):8.3f}")

    proven, searches, took = [], [], []
    for history in histories:
        started = time.perf_counter()
        tries = 0
        for num_beams in widths(START, manifest.beam_limit):
            tries += 1
            if is_proven := search(history, beam_widths(manifest.sid, num_beams)):
                break
        proven.append(is_proven)
        searches.append(tries)
        took.append(time.perf_counter() - started)
    figures |= {
        "guaranteed_exact": float(np.mean(proven)),
        "guaranteed_searches": float(np.mean(searches)),
        "guaranteed_ms_mean": 1000 * float(np.mean(took)),
        "guaranteed_cost_ratio": 1000 * float(np.mean(took)) / plain_ms,
    }
    print(
        f"guarantee exact, {START} beams up to {manifest.beam_limit}: {figures['guaranteed_exact']:.1%} "
        f"proven after {figures['guaranteed_searches']:.2f} searches, "
        f"{figures['guaranteed_cost_ratio']:.2f} times the mean time of one at {START}"
    )
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GlyphrecError as error:
        sys.exit(f"certificate.py: {error}")
