"""Each stage runs on a small fixed input (probe_inputs.py). Its output is pinned to its version (pin.py)."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from model_export.bundle import precision, recommender, tokenizer
from model_export.bundle.tokenizer_id import PROBES as DRAWN
from model_export.configs import (
    CompactConfig,
    FamaeConfig,
    HashedTreeConfig,
    HeadConfig,
    HubEncoderConfig,
    PpOcrConfig,
    SasRecConfig,
    TigerConfig,
    TrainingConfig,
    TreeConfig,
    tiny,
)
from model_export.data.dataset import make_dataset
from model_export.data.item_fields import read_fields
from model_export.data.splits import leave_one_out
from model_export.encoders import famae, head, minilm, pp_ocr
from model_export.encoders.base import Encoder
from model_export.encoders.compact import reader as compact
from model_export.encoders.hub import deepseek_ocr2, donut, trocr
from model_export.evaluation import evaluate, near_copies
from model_export.evaluation.baselines import counting, training_free, transition_hops
from model_export.generators import hashed_history, sasrec, tiger, training, tree
from model_export.generators.beam_search import eager_search
from model_export.onnx_graphs import to_onnx
from model_export.pipeline import counts, opinions
from model_export.pipeline.cache import StageCache
from model_export.pipeline.generating import make_generator
from model_export.pipeline.run import Run
from model_export.quantizers import collisions
from model_export.study import cold, perturb, ranks, robustness
from service.core import item_fields, render
from service.core.bundle import RenderSpec, load_bundle
from service.core.co_counts import CoCountSpec
from service.core.graphs import PADDING, beam_widths
from service.core.sid import SidSpec
from service.core.trie import SidTrie
from service.inference.runtime import RecommenderSession, Tokenizer, TokenizerInput
from tests.known_bundle import KNOWN_ITEMS, write_known_bundle
from tests.model_export.photo_probes import PHOTO_PROBES
from tests.model_export.probe_inputs import (
    BEAM_LIMIT,
    CODES,
    HISTORY_LENGTH,
    NUM_ITEMS,
    RECIPE,
    SID,
    TEXTS,
    Codewords,
    Columns,
    Lookup,
    Output,
    SumOfFrames,
    cosines,
    dataset,
    split,
    strips,
    vectors,
)
from tests.model_export.quantizer_probes import QUANTIZER_PROBES
from tests.model_export.ranker_probes import RANKER_PROBES
from tests.model_export.vl_clip_probes import VL_CLIP_PROBES


class Probe(NamedTuple):
    module: ModuleType  # the module whose VERSION is pinned
    run: Callable[[], Output]


def drawing() -> Output:
    """The lines of text, and the darkness of each piece of eight columns."""
    found = {}
    page = RenderSpec(height_px=48, width_px=120, lines_per_strip=3, squeeze=0.9, max_strips=1)
    for name, spec in (("lines", RenderSpec(max_strips=3)), ("pages", page)):
        for place, item in enumerate(DRAWN):
            text = render.item_text(item, spec)
            drawn = render.render_text(text, spec)
            pieces = (255.0 - drawn.strips).reshape(*drawn.strips.shape[:2], -1, 8).mean(axis=(1, 3))
            found[f"{name} {place}"] = [
                text if name == "lines" else "", drawn.missing, drawn.truncated, pieces.tolist()
            ]  # fmt: skip
    return found


def _read_by(encoder: Encoder) -> Output:
    reading = encoder.read(strips())
    return {
        "frames": np.diff(reading.first_frame).tolist(),
        "strength": np.abs(reading.frames.astype(np.float32)).mean(axis=0)[:16].tolist(),
        "cosines": cosines(encoder.fit(reading).pool(reading)),
    }


def _read_by_compact() -> Output:
    return _read_by(compact.CompactReader(RECIPE, CompactConfig(num_grams=256, feature_dim=8), 0))


def _read_by_pp_ocr() -> Output:
    config = PpOcrConfig(projection_dim=8, window=2, num_words=24, word_dim=8, stats_dim=4)
    return _read_by(pp_ocr.PpOcr(RECIPE, config, 0))


def _read_by_hub(kind: str) -> Output:
    from tests.model_export.encoders import hub_checkpoints

    save, encoder = {
        "donut": (hub_checkpoints.save_donut, donut.Donut),
        "trocr": (hub_checkpoints.save_trocr, trocr.TrOcr),
        "deepseek-ocr-2": (hub_checkpoints.save_deepseek_ocr2, deepseek_ocr2.DeepseekOcr2),
    }[kind]
    # All three encoders accept strips of these proportions.
    recipe = RenderSpec(height_px=32, width_px=48, lines_per_strip=2, max_strips=2)
    pages = [item.reshape(-1, 32, item.shape[2])[:, :, :48] for item in map(_of_two_strips, strips()[:6])]
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        reader = encoder(recipe, HubEncoderConfig(kind=kind, checkpoint=folder))  # type: ignore[arg-type]  one of the three
        reading = reader.read(pages)
        return {
            "frames": reading.frames.astype(np.float32)[:, :16].tolist(),
            "features": reader.fit(reading).pool(reading)[:, :16].tolist(),
        }


def _of_two_strips(item: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.concatenate([item, item])[:2]


def _read_by_minilm() -> Output:
    return cosines(minilm.MiniLm().features([*TEXTS[:6], "word " * 300]))


def _train_head() -> Output:
    config = HeadConfig(vector_dim=8, hidden_dim=16, max_steps=12, batch_size=32, learning_rate=1e-2)
    found = head.train_head(vectors(), split().train, config, 0)
    untrained = head.train_head(vectors(), split().train, replace(config, max_steps=0), 0)
    return {"trained": cosines(found.vectors(vectors())), "untrained": cosines(untrained.vectors(vectors()))}


def _read_fields() -> Output:
    """Values of every kind, known and new, absent and torn."""
    vocabulary = item_fields.Vocabulary(
        {
            "item_id": {"a": 1, "B": 2},
            "brand": {"acme": 1, "7": 2},
            "categories.2": {("x", "y"): 1, ("x", "y", "z"): 1},
            "colors": {"red, blue": 1},
            "new": {"yes": 1},
        }
    )
    items: list[dict[str, Any]] = [
        {"item_id": "a", "brand": " ACME", "categories": ["X", "Y", "Z", "W"], "colors": ["Red", "blue"]},
        {"item_id": "b", "brand": 7.0, "categories": [["x", "y"], ["q"]], "new": True},
        {"item_id": "B", "brand": "", "categories": "x", "colors": ["blue", "red"]},
    ]
    return [
        [vocabulary.read(item).tolist(), list(vocabulary.unknown_in(item)), item_fields.category_path(item)]
        for item in items
    ]


def _learn_famae() -> Output:
    config = FamaeConfig(
        width=8, num_layers=1, num_heads=2, ffn_dim=16, history_length=6, max_epochs=4, batch_size=32
    )
    data = split()
    found = famae.train_famae(
        read_fields(dataset().items, ["brand"]), data.train, data.validation, config, seed=0
    )
    return {"fields": found.fields, "history": found.history, "cosines": cosines(found.vectors)}


def _treat_collisions() -> Output:
    codes = np.array([[item % 4, item % 3] for item in range(NUM_ITEMS)], dtype=np.int64)
    rng = np.random.default_rng(4)
    codebooks = [rng.normal(size=(count, 5)).astype(np.float32) for count in SID.levels]
    latents = (
        codebooks[0][codes[:, 0]] + codebooks[1][codes[:, 1]] + rng.normal(scale=0.2, size=(NUM_ITEMS, 5))
    )
    found = {}
    for how in ("none", "sinkhorn", "zcr", "suffix"):
        treated = collisions.treat_collisions(
            how, codes, latents.astype(np.float32), codebooks, dataset().item_ids
        )
        found[how] = [treated.codes.tolist(), list(treated.spec.levels), treated.report.distance_increase]
    return found


def _generate(*configs: TreeConfig | TigerConfig | SasRecConfig) -> Output:
    """For each configuration, the loss and gradients in training, and the scores of each level."""
    found = []
    train = split().train
    window = np.full((3, HISTORY_LENGTH + 1), -1)
    for row, items in enumerate(train[:3]):
        window[row, -len(items[row:]) :] = items[row:]
    for config in configs:
        codes, spec = CODES, SID
        if isinstance(config, SasRecConfig):
            codes, spec = sasrec.codes_of_items(NUM_ITEMS), SidSpec(levels=(NUM_ITEMS,))
        run_config = replace(tiny(), generator=config, history_length=HISTORY_LENGTH)
        torch.manual_seed(0)
        generator = make_generator(run_config, codes, spec, train[:8], vectors())
        with_padding = np.concatenate([codes, np.full((1, spec.num_levels), PADDING)])
        history = torch.from_numpy(with_padding[window])  # [batch, position, level]
        loss = generator.train().loss(history)
        loss.backward()
        gradients = [weights.grad.norm() for weights in generator.parameters() if weights.grad is not None]
        with torch.no_grad():
            state = generator.eval().start(history[:, 1:])
            prefix = torch.zeros(3, 1, dtype=torch.int64)
            scores = []
            for level, num_codes in enumerate(spec.levels):
                log_probs, state = generator.step(level, state, prefix)
                scores.append(log_probs[:, 0].tolist())
                if level + 1 < spec.num_levels:
                    parent = torch.zeros(3, 2, dtype=torch.int64)
                    prefix = prefix[:, :1] * num_codes + torch.tensor([[1, 2]])
                    state = generator.reorder(state, parent)
        found.append(
            {"loss": loss.item(), "gradient": torch.stack(gradients).norm().item(), "scores": scores}
        )
    return found


def _count_pairs() -> Output:
    rows = counts.count_pairs(split().train, dataset().item_ids, CoCountSpec(backward=0.5, max_neighbors=4))
    return [row._asdict() for row in rows]


def _weigh() -> Output:
    """The chosen opinions, and how good they are."""
    config = replace(tiny(), generator=SMALL_TREE, sid=SID, history_length=HISTORY_LENGTH)
    run = Run(dataset(), split(), config, StageCache(Path("unused")))
    torch.manual_seed(0)
    generator = make_generator(config, CODES, SID, run.split.train, vectors()).eval()
    found = opinions.weigh(run, generator, CODES, vectors(), vectors(seed=2))
    return [found.opinions.figures(), found.quality, found.learned_quality, found.num_users]


def _train_generators() -> Output:
    """Training with windows by target, as for Lookup, and with whole windows, as for other generators."""
    config = TrainingConfig(
        max_epochs=3, batch_positions=64, learning_rate=3e-2, warmup_steps=4, max_validation_users=20
    )
    found = []
    for every_position in (False, True):
        generator = Lookup()
        generator.learns_every_position = every_position
        with tempfile.TemporaryDirectory() as folder:
            curve = training.train_generator(
                generator,
                codes=CODES,
                split=split(),
                config=config,
                history_length=3,
                seed=0,
                checkpoint=Path(folder) / "checkpoint",
            )
        first = generator.tables[0].weight.detach()
        found.append([curve.step, curve.train_loss, curve.validation_ndcg_at_10, first.tolist()])
    return found


def _tokenizer_graph() -> Output:
    torch.manual_seed(0)
    item_head = head.ItemHead(feature_dim=RECIPE.height_px, config=HeadConfig(vector_dim=8, hidden_dim=16))
    weights = np.random.default_rng(5)
    for parameter in item_head.parameters():
        parameter.data = torch.from_numpy(weights.normal(scale=0.3, size=parameter.shape).astype(np.float32))
    body = to_onnx(
        Columns(),
        (torch.zeros(3, RECIPE.height_px, RECIPE.width_px, dtype=torch.uint8),),
        inputs=["strips"],
        outputs=["frames"],
        dynamic_shapes=({0: torch.export.Dim("strip")},),
    )
    sid = SidSpec(levels=(6, 6))
    parts = tokenizer.TokenizerParts(body, SumOfFrames(), item_head.eval(), Codewords())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.onnx"
        graph = tokenizer.export_tokenizer(path, parts, sid=sid, render=RECIPE)
        found = Tokenizer(path, graph, threads=1).run([TokenizerInput(each) for each in strips()])
    return {"codes": found.codes.tolist(), "vectors": found.vectors.tolist()}


class _Graph(NamedTuple):
    path: Path
    session: RecommenderSession
    history: NDArray[np.int64]
    trie: SidTrie


@contextmanager
def _exported() -> Iterator[_Graph]:
    history = np.stack([CODES[[1, 2, 3]], CODES[[9, 7, 8]]])  # [batch, position, level]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recommender.onnx"
        graph = recommender.export_recommender(
            path, Lookup().eval(), history_length=HISTORY_LENGTH, beam_limit=BEAM_LIMIT
        )
        trie = SidTrie.from_codes(SID, CODES[:20])
        yield _Graph(path, RecommenderSession(path, graph, threads=1), history, trie)


def _recommender_graph() -> Output:
    with _exported() as graph:
        beams = graph.session.run(graph.history, graph.trie.tables, beam_widths(SID, 5))
        return {
            "codes": beams.codes.tolist(),
            "scores": beams.scores.tolist(),
            "bound": beams.bound.tolist(),
        }


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        weights = np.random.default_rng(6).normal(size=(8, 12)).astype(np.float32)
        self.weights = nn.Parameter(torch.from_numpy(weights))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs @ self.weights).relu()


def _int8() -> Output:
    """The stored content of the int8 graph. Its kernels are not ours, so they do not run here."""
    inputs = vectors(dim=8)
    graph = to_onnx(
        Product(),
        (torch.from_numpy(inputs[:3]),),
        inputs=["inputs"],
        outputs=["outputs"],
        dynamic_shapes=({0: torch.export.Dim("row")},),
    )
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        onnx.save(graph, source)
        precision.write_int8(source, target, [{"inputs": inputs[:12]}, {"inputs": inputs[12:]}])
        stored = [numpy_helper.to_array(weights) for weights in onnx.load(target).graph.initializer]
    pages = np.arange(40, dtype=np.int32).reshape(4, 10)
    agreed = precision.agreement(pages, pages + np.arange(4, dtype=np.int32)[:, None], pages[:, 3])
    return {
        "stored": sorted([str(array.dtype), *np.ravel(array).astype(float).tolist()] for array in stored),
        "agreement": [agreed.overlap_at_10, agreed.recall_at_10, agreed.standard_error, agreed.holds],
    }


def _evaluate() -> Output:
    rng = np.random.default_rng(7)
    items = [known.item for known in KNOWN_ITEMS]
    histories = [(f"user-{user}", rng.integers(0, len(items), 6)) for user in range(20)]
    data = make_dataset("known", items, histories, {})
    with tempfile.TemporaryDirectory() as folder:
        bundle = load_bundle(write_known_bundle(Path(folder) / "bundle", KNOWN_ITEMS))
        figures = evaluate.evaluate_model(bundle, data, leave_one_out(data), progress=False)
    copies = [near_copies.near_copy(item, np.random.default_rng(8)) for item in dataset().items[:6]]
    return figures | evaluate.evaluate_baselines(split(), NUM_ITEMS) | {"copies": copies}


def _count() -> Output:
    data = split()
    near = counting.Neighbors.tuned(vectors(), data.train, data.validation)
    found = {"decay": near.decay}
    for name, baseline in (
        ("popularity", counting.Popularity()),
        ("markov", counting.Markov()),
        ("markov_popular_ties", counting.Markov(ties="popularity")),
        ("item_knn", near),
    ):
        baseline.fit(data.train, NUM_ITEMS)
        for exclude in (True, False):
            ranked = baseline.rank(data.test.histories[:10], 5, exclude_history=exclude)
            found[f"{name}, history {'excluded' if exclude else 'included'}"] = ranked.tolist()
    return found


def _hops() -> Output:
    data = split()
    found = transition_hops.TransitionHops.tuned(_texts(), data.train, data.validation)
    return {"decay": found.decay, "ranked": found.rank(data.test.histories[:10], 5).tolist()}


def _training_free() -> Output:
    data = split()
    found = training_free.TrainingFreeSum.tuned(_texts(), data.train, data.validation)
    return found.weights.figures() | {"ranked": found.rank(data.test.histories[:10], 5).tolist()}


def _texts() -> list[str]:
    return [f"{item['title']} {item['brand']}" for item in dataset().items]


def _rank() -> Output:
    config = replace(tiny(), history_length=HISTORY_LENGTH, beam_limit=BEAM_LIMIT)
    shared = CODES[np.arange(NUM_ITEMS) % 20]  # some items share their codes
    found = ranks.rank_targets(Lookup(), shared, split().test, config)
    # The coverage is a figure beside the ranks, so its first appearance did not change them.
    return {name: part.tolist() for name, part in found._asdict().items() if name != "coverage"}


def _codes_of(texts: list[str]) -> NDArray[np.int64]:
    """Codes that depend on the number of letters of a text, and on its number of vowels."""
    return np.array([[len(text) % 4, sum(letter in "aeiou" for letter in text) % 6] for text in texts])


def _robust() -> Output:
    data = dataset()
    with tempfile.TemporaryDirectory() as folder:
        run = Run.of(data, tiny(), Path(folder))
        figures = robustness.kept_codes(run, _codes_of, num_items=20, seed=0)
    rng = np.random.default_rng(9)
    changed = {name: change(data.items[5], RECIPE, rng) for name, change in perturb.CHANGES.items()}
    return {"figures": figures, "changed": changed}


def _cold() -> Output:
    data = dataset()
    config = replace(tiny(), history_length=HISTORY_LENGTH, beam_limit=BEAM_LIMIT)
    removed = cold.remove(data, leave_one_out(data), share=0.2, seed=0)
    num_cold = len(removed.items)
    model = cold.ColdModel(SID, CODES[num_cold:], partial(eager_search, Lookup()))
    codes = CODES[:num_cold]
    outcome = cold.Outcome(model, codes, cold.rank(model, codes, removed.cold, config))
    return {
        "removed": [item["item_id"] for item in removed.items],
        "trained": [sequence.tolist() for sequence in removed.dataset.sequences[:5]],
        "ranked": outcome.ranked[:5, :10].tolist(),
        "figures": cold.figures_of(removed, outcome, config, seed=0),
    }


SMALL_TREE = TreeConfig(width=8, num_layers=1, num_heads=2, ffn_dim=16)
SMALL_TIGER = TigerConfig(width=8, num_layers=1, num_heads=2, head_dim=4, ffn_dim=16)
SMALL_SASREC = SasRecConfig(width=8, num_layers=2, ffn_dim=8)
PROBES: dict[str, Probe] = {
    "drawing": Probe(render, drawing),
    "compact": Probe(compact, _read_by_compact),
    "pp_ocr": Probe(pp_ocr, _read_by_pp_ocr),
    "donut": Probe(donut, partial(_read_by_hub, "donut")),
    "trocr": Probe(trocr, partial(_read_by_hub, "trocr")),
    "deepseek_ocr2": Probe(deepseek_ocr2, partial(_read_by_hub, "deepseek-ocr-2")),
    "minilm": Probe(minilm, _read_by_minilm),
    "fields": Probe(item_fields, _read_fields),
    "famae": Probe(famae, _learn_famae),
    "head": Probe(head, _train_head),
    **{stage: Probe(*probe) for stage, probe in QUANTIZER_PROBES.items()},
    "collisions": Probe(collisions, _treat_collisions),
    "tree": Probe(
        tree,
        partial(
            _generate,
            SMALL_TREE,
            replace(SMALL_TREE, likeness=0.0),
            replace(SMALL_TREE, likeness=0.0, start_scale=0.0),
            replace(SMALL_TREE, likeness=0.0, start_scale=0.0, has_bonus=False),
        ),
    ),
    "hashed_history": Probe(
        hashed_history, partial(_generate, HashedTreeConfig(width=8, num_layers=1, ffn_dim=16))
    ),
    "tiger": Probe(
        tiger, partial(_generate, SMALL_TIGER, replace(SMALL_TIGER, reads="items", temperature=0.7))
    ),
    "sasrec": Probe(sasrec, partial(_generate, SMALL_SASREC)),
    "training": Probe(training, _train_generators),
    "counts": Probe(counts, _count_pairs),
    "opinions": Probe(opinions, _weigh),
    "tokenizer_graph": Probe(tokenizer, _tokenizer_graph),
    "recommender_graph": Probe(recommender, _recommender_graph),
    "precision": Probe(precision, _int8),
    "evaluation": Probe(evaluate, _evaluate),
    "baselines": Probe(counting, _count),
    "transition_hops": Probe(transition_hops, _hops),
    "training_free": Probe(training_free, _training_free),
    "ranks": Probe(ranks, _rank),
    "robustness": Probe(robustness, _robust),
    "cold": Probe(cold, _cold),
    **{stage: Probe(*probe) for stage, probe in (PHOTO_PROBES | RANKER_PROBES | VL_CLIP_PROBES).items()},
}
