"""What a search finds: queries made from titles, and the place of their item among all items.

    python -m benchmarks.search_quality --data FOLDER
    python -m benchmarks.search_quality --data FOLDER --config NAME --cache FOLDER
    python -m benchmarks.search_quality --bundle FOLDER

A query is half of the words of an item's title, next to each other, of 500 items of the data set. Four more
kinds of query are the same words with a typo for each 40 letters, with every quantity in another unit or
spelling (`32 oz` as `907 g`), in another order, and with all of these (model_export/study/perturb.py). An
answer is right if it has the item's title. The figure is the mean of 1 / place of the best right answer
(MRR); an answer with the same score as others has the mean place of them.

`drawn` are the vectors that the tokenizer's graph gives and the service searches: what the encoder read, half
whitened. `drawn_int8` is what Redis keeps. Beside them stand what else the tokenizer has of a text: the
encoder's `features`, wholly whitened, the `head`'s vectors, and the quantizer's `latents`. Baselines in the
same run: the vectors of MiniLM, which reads text, and BM25 over words (bm25s). The last line is JSON:
`drawn_mrr_typos` and so on, and `drawn_mrr`, the mean of the kinds.

`--bundle` measures a finished bundle, also one that reads photos: its items with their vectors, and queries
through its graph, as `served`.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.workload import bundles
from model_export.bundle.tokenizer import search_vectors
from model_export.config_changes import chosen
from model_export.configs import FamaeConfig, MiniLmConfig, RunConfig
from model_export.data.tables import read_dataset
from model_export.encoders.choose import make_encoder
from model_export.encoders.minilm import MiniLm
from model_export.pipeline import stages
from model_export.pipeline.run import Run
from model_export.pipeline.stages import Coded, Read
from model_export.study.perturb import mistyped, with_units_rewritten
from service.core.bundle import TOKENIZER, Bundle, RenderSpec, load_bundle
from service.core.bundle_vocabulary import bundle_vocabulary
from service.core.drawn_fields import draw_fields
from service.core.item_fields import Vocabulary
from service.core.render import font_sha256, item_text, render_text
from service.core.vectors import from_text, quantized, unpacked
from service.errors import GlyphrecError
from service.inference.runtime import Tokenizer, TokenizerInput

NUM_QUERIES = 500
MIN_WORDS = 4  # of a title
TEXTS_PER_RUN = 32

Rows = NDArray[np.float32]
Score = Callable[[Sequence[str]], Rows]  # queries -> [query, item]


class Way(NamedTuple):
    """One way to search: vectors of the items, and a function from texts to vectors like them."""

    items: Rows  # [item, dim]
    encode: Callable[[Sequence[str]], Rows]

    def score(self, queries: Sequence[str]) -> Rows:
        found: Rows = _unit(self.encode(queries)) @ _unit(self.items).T
        return found


def main(argv: Sequence[str]) -> int:
    parser = report.arguments(__doc__)
    parser.add_argument("--data", help="a folder with items.jsonl and interactions.jsonl")
    parser.add_argument("--config", default="base", help="whose tokenizer reads; default base")
    parser.add_argument("--cache", type=Path, help="where finished stages are kept for the next run")
    parser.add_argument("--bundle", type=Path, help="a finished bundle in place of --data and --config")
    args = parser.parse_args(argv)
    if args.bundle is not None:
        return tell(argv, *measure_bundle(load_bundle(args.bundle)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, config = args.data, args.config
        if args.tiny and data is None:
            data, config = str(bundles.tiny_data(bundles.tiny_bundle(folder), folder / "data")), "tiny"
        if data is None:
            raise GlyphrecError("Which items? Give --data FOLDER.")
        run = Run.of(read_dataset(data), _as_exported(chosen(config, [])), args.cache or folder, print)
        figures, baseline = measure(run)
    return tell(argv, figures, baseline)


def tell(argv: Sequence[str], figures: dict[str, float], baseline: dict[str, float]) -> int:
    """Print the figures. The exit status."""
    rows = [(name, f"{value:.3f}", "") for name, value in figures.items()]
    rows += [(name, f"{value:.3f}", "baseline") for name, value in baseline.items()]
    report.table(("", "MRR", ""), rows)
    report.finish("search_quality", argv, figures, baseline)
    return 0


def _as_exported(config: RunConfig) -> RunConfig:
    """With the hash of its font, so that the stages of an export are found in its cache."""
    font = font_sha256(config.render)
    return replace(config, render=config.render.model_copy(update={"font_sha256": font}))


def measure(run: Run) -> tuple[dict[str, float], dict[str, float]]:
    """The figures of the tokenizer's vectors, and those of the baselines."""
    return _measured(run.dataset.items, run.config.render, ways_of(run))


def measure_bundle(bundle: Bundle) -> tuple[dict[str, float], dict[str, float]]:
    """The figures of the vectors that a service searches, and those of the baselines."""
    items = [row["item"] for row in bundles.catalog_of(bundle)]
    return _measured(items, bundle.manifest.render, {"served": way_of_bundle(bundle).score})


def _measured(
    items: Sequence[dict[str, Any]], render: RenderSpec, ours: dict[str, Score]
) -> tuple[dict[str, float], dict[str, float]]:
    titles = [str(item.get("title") or "").lower() for item in items]
    rng = np.random.default_rng(0)
    titled = [place for place, title in enumerate(titles) if len(title.split()) >= MIN_WORDS]
    titled = titled or list(range(len(items)))
    places = rng.choice(titled, min(NUM_QUERIES, len(titled)), replace=False).tolist()
    right = [np.flatnonzero([title == titles[place] for title in titles]) for place in places]
    texts = [item_text(item, render) for item in items]
    ways = ours | {"minilm": minilm(texts), "bm25": bm25(texts)}
    found: dict[str, dict[str, float]] = {name: {} for name in ways}
    for kind, change in CHANGES.items():
        drawn = np.random.default_rng(1)
        queries = [change(str(items[place].get("title") or ""), drawn) for place in places]
        for name, score in ways.items():
            found[name][f"{name}_mrr_{kind}"] = mean_reciprocal_rank(score(queries), right)
    for name, of_kinds in found.items():
        of_kinds[f"{name}_mrr"] = float(np.mean(list(of_kinds.values())))
    baseline = found.pop("minilm") | found.pop("bm25")
    return {name: value for each in found.values() for name, value in each.items()}, baseline


def mean_reciprocal_rank(scores: Rows, right: Sequence[NDArray[np.int64]]) -> float:
    """scores [query, item]; right [query]: the places of its right answers."""
    found = []
    for row, answers in zip(scores, right, strict=True):
        best = row[answers].max()
        num_others = int((row == best).sum() - (row[answers] == best).sum())
        found.append(1 / (1 + int((row > best).sum()) + num_others / 2))
    return float(np.mean(found))


# --- queries ---


def _part(title: str, rng: np.random.Generator) -> list[str]:
    words = title.split()
    count = max(3, -(-len(words) // 2))
    start = int(rng.integers(0, max(1, len(words) - count + 1)))
    return words[start : start + count]


def _typed(text: str, rng: np.random.Generator) -> str:
    return str(mistyped({"title": text}, rng).get("title", text))


def _other_units(text: str, rng: np.random.Generator) -> str:
    return str(with_units_rewritten({"title": text}, rng)["title"])


def _all_of_it(title: str, rng: np.random.Generator) -> str:
    words = _part(_other_units(title, rng), rng)
    return _typed(" ".join(rng.permutation(words).tolist()), rng)


CHANGES: dict[str, Callable[[str, np.random.Generator], str]] = {
    "part": lambda title, rng: " ".join(_part(title, rng)),
    "typos": lambda title, rng: _typed(" ".join(_part(title, rng)), rng),
    "units": lambda title, rng: " ".join(_part(_other_units(title, rng), rng)),
    "order": lambda title, rng: " ".join(rng.permutation(_part(title, rng)).tolist()),
    "all": _all_of_it,
}


# --- ways to search ---


def ways_of(run: Run) -> dict[str, Score]:
    """The vectors that the tokenizer has of a drawn text, from the encoder to the quantizer."""
    read = stages.read(run)
    coded = stages.code(run, read)
    features_of = _reader(run.config, read)

    def heads_of(texts: Sequence[str]) -> Rows:
        return coded.head.vectors(features_of(texts))

    assert read.pooling is not None
    scale, items = read.pooling.search_scale().numpy(), search_vectors(read, coded)
    ways = {
        "drawn": Way(items, lambda texts: features_of(texts) * scale),
        "drawn_int8": Way(_kept(items), lambda texts: _kept(features_of(texts) * scale)),
        "features": Way(read.features, features_of),
        "head": Way(coded.vectors, heads_of),
        "latents": Way(_latents(coded, coded.vectors), lambda texts: _latents(coded, heads_of(texts))),
    }
    return {name: way.score for name, way in ways.items()}


def way_of_bundle(bundle: Bundle) -> Way:
    """The vectors of the bundle's items, and its graph for queries, which it reads as titles."""
    manifest = bundle.manifest
    if manifest.fields is not None and not manifest.draws_fields:
        raise GlyphrecError(
            f"{bundle.path}: its tokenizer reads values of fields, which a query does not have."
        )
    vocabulary = bundle_vocabulary(bundle)
    tokenizer = Tokenizer(bundle.file(TOKENIZER), manifest.tokenizer, threads=1)
    rows = [from_text(row["vector"]) for row in bundles.catalog_of(bundle)]

    def encode(texts: Sequence[str]) -> Rows:
        found = []
        for start in range(0, len(texts), TEXTS_PER_RUN):
            part = [
                _taken(text, manifest.render, vocabulary) for text in texts[start : start + TEXTS_PER_RUN]
            ]
            found.append(tokenizer.run(part).vectors)
        return _kept(np.concatenate(found))

    return Way(unpacked(rows, manifest.vector_dim).astype(np.float32), encode)


def _taken(text: str, render: RenderSpec, vocabulary: Vocabulary | None) -> TokenizerInput:
    """What the tokenizer takes of a query. `vocabulary`: of fields that are drawn."""
    if vocabulary is None:
        return TokenizerInput(render_text(text, render).strips)
    return TokenizerInput.of_drawn(draw_fields({"title": text}, vocabulary, render))


def _reader(config: RunConfig, read: Read) -> Callable[[Sequence[str]], Rows]:
    if (
        isinstance(config.encoder, MiniLmConfig | FamaeConfig)
        or read.pooling is None
        or read.fusion is not None
    ):
        raise GlyphrecError(
            f"configuration {config.name}: this measures tokenizers that read drawn text alone. Export it, "
            "and give --bundle FOLDER."
        )
    encoder = make_encoder(config.render, config.encoder, config.seed)
    body = onnxruntime.InferenceSession(
        encoder.body().SerializeToString(), providers=["CPUExecutionProvider"]
    )
    pooling = read.pooling

    @torch.no_grad()
    def read_texts(texts: tuple[str, ...]) -> Rows:
        rows = []
        for start in range(0, len(texts), TEXTS_PER_RUN):
            drawn = [render_text(text, config.render).strips for text in texts[start : start + TEXTS_PER_RUN]]
            first = np.cumsum([0, *(len(strips) for strips in drawn[:-1])])
            strips = np.concatenate(drawn)
            frames = body.run(["frames"], {"strips": strips})[0]
            inputs: list[Any] = [strips, frames, first]
            rows.append(pooling(*map(torch.from_numpy, inputs)).numpy())
        found: Rows = np.concatenate(rows)
        return found

    once = lru_cache(maxsize=1)(read_texts)  # the ways ask for the same queries one after the other
    return lambda texts: once(tuple(texts))


def _kept(vectors: Rows) -> Rows:
    return quantized(vectors).astype(np.float32)


@torch.no_grad()
def _latents(coded: Coded, vectors: Rows) -> Rows:
    found: Rows = coded.quantizer.latents(torch.from_numpy(vectors)).numpy()
    return found


def minilm(texts: Sequence[str]) -> Score:
    encoder = MiniLm()
    return Way(encoder.features(texts), encoder.features).score


def bm25(texts: Sequence[str]) -> Score:
    import bm25s  # here, as only this benchmark needs it

    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(texts), show_progress=False), show_progress=False)

    def score(queries: Sequence[str]) -> Rows:
        words = bm25s.tokenize(list(queries), return_ids=False, show_progress=False)
        nothing = np.zeros(len(texts), np.float32)  # a query may have only words that BM25 skips
        return np.stack([index.get_scores(each) if each else nothing for each in words])

    return score


def _unit(rows: Rows) -> Rows:
    found: Rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return found


if __name__ == "__main__":
    report.run(main)
