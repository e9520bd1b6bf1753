"""Writes the report/ folder of a bundle, which only people read.

It has a table of metrics, curves, the use of the codebooks, a page of drawn items, and recommendations in
words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from model_export.data.dataset import Dataset
from model_export.data.splits import Targets
from model_export.evaluation.evaluate import neighbors_for, ranker_of, table
from model_export.evaluation.ranking import ItemsOfCodes
from model_export.generators.training import Curve
from model_export.quantizers.base import EpochStats
from model_export.quantizers.collisions import CollisionReport
from service.core.bundle import RECOMMENDER, Bundle
from service.core.item_fields import Value, Vocabulary, values_of
from service.core.render import item_text
from service.inference.runtime import RecommenderSession

NUM_EXAMPLES = 5
NUM_RECOMMENDED = 5
NUM_SHOWN_OF_HISTORY = 5


# Words, name of the figure without its depth, form.
PROBE_ROWS = (
    ("co-purchased pairs that share their prefix", "alignment_co_purchase_", "{:.1%}"),
    ("the same by chance, at the same popularity", "chance_co_purchase_", "{:.1%}"),
    ("pairs of one prefix that have one category", "alignment_category_", "{:.1%}"),
    ("spread of purchases over the codes of the level (1 is even)", "popularity_entropy_", "{:.2f}"),
    ("cosine of two directions with one code of the level", "cosine_same_code_", "{:.3f}"),
    ("cosine of any two directions", "chance_cosine_", "{:.3f}"),
)


class Cost(NamedTuple):
    """What a tokenizer costs."""

    ms_per_item: float  # of the graph
    megabytes: float  # of the graph
    seconds: float  # from the items to their codes, on all cores


@dataclass(frozen=True)
class Example:
    """The texts of one test user's items."""

    history: Sequence[str]  # oldest first
    recommended: Sequence[str]  # best first
    target: str  # the item that the user took next


def write_report(
    folder: Path,
    *,
    title: str,
    changes: Sequence[str],
    figures: dict[str, float],
    collisions: CollisionReport,
    quantizer: Sequence[EpochStats],
    curve: Curve,
    probes: Mapping[str, float],
    cost: Cost,
    page: Sequence[NDArray[np.uint8]] | None,
    read: Sequence[str],
    examples: Sequence[Example],
) -> None:
    """Write report.md and its pictures into the new folder `folder`.

    `changes`: what differs from the named configuration. `probes`: the figures of evaluation/code_probes.py.
    `page`: the strips [strip, height, width] of some items, or None if fields are read; `read` has them in
    words then.
    """
    folder.mkdir(parents=True)
    if page is not None:
        draw_page(page).save(folder / "items.png")
    _draw_codebooks(quantizer, folder / "codebooks.png")
    _draw_curve(curve, folder / "training.png")
    last = quantizer[-1]
    used = ", ".join(f"{use:.0%}" for use in last.use)
    entropy = ", ".join(f"{share:.2f}" for share in last.entropy)
    lines = [
        f"# {title}",
        "",
        *(
            ["Settings that differ from the named configuration, with its own values in brackets:", ""]
            if changes
            else []
        ),
        *(f"- `{change}`" for change in changes),
        *([""] if changes else []),
        "## Quality of the exported graphs",
        "",
        table(figures),
        "",
        "Some sources list the purchases of one day in catalog order, for example the Amazon sets. With "
        "these, part of every next-item figure is an artifact of that order.",
        "",
        "## Codes",
        "",
        f"Codes used per level: {used}. Entropy per level (1 is uniform): {entropy}. Items in collision: "
        f"{collisions.rate_before:.2%} before reassignment and {collisions.rate_after:.2%} after it. "
        f"{collisions.num_reassigned} items moved at the last level.",
        "",
        "![codebook use and collisions by epoch](codebooks.png)",
        "",
        *_probes(probes),
        f"An item takes {cost.ms_per_item:.3g} ms to tokenize on one core, without drawing. The graph of the "
        f"tokenizer has {cost.megabytes:.3g} MB. Reading, fitting and quantizing the catalog took "
        f"{cost.seconds:.0f} s in this run, less where stages came from the cache.",
        "",
        "## Training",
        "",
        f"{curve.step[-1]} steps in {curve.seconds:.0f} s. The reason for the end: {curve.stopped}.",
        "",
        "![loss and validation NDCG@10](training.png)",
        "",
        "## Items as the encoder sees them",
        "",
        *(f"- {item}" for item in read),
        *([] if page is None else ["![rendered items](items.png)"]),
        "",
        "## Some test users",
        "",
    ]
    for example in examples:
        lines += ["History, oldest first:", ""]
        lines += [f"- {text}" for text in example.history]
        lines += ["", "Recommended, best first:", ""]
        lines += [f"{rank}. {text}" for rank, text in enumerate(example.recommended, start=1)]
        lines += ["", f"Taken next: {example.target}", "", "---", ""]
    (folder / "report.md").write_text("\n".join(lines), encoding="utf-8")


def _probes(probes: Mapping[str, float]) -> list[str]:
    """A table of what the codes tell, with a column for each depth, and how to read it."""
    deepest = max(
        (int(depth) for name in probes if (depth := name.rpartition("_")[2]).isdecimal()), default=0
    )
    rows = []
    for words, name, form in PROBE_ROWS:
        values = [probes.get(f"{name}{depth}") for depth in range(1, deepest + 1)]
        if any(value is not None for value in values):
            rows.append([words, *("–" if value is None else form.format(value) for value in values)])
    if not rows:
        return []
    header = ["", *(f"depth {depth}" for depth in range(1, deepest + 1))]
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    note = "A pair of items is co-purchased if one follows the other in a user's purchases."
    if "chance_category" in probes:
        note += f" Of all pairs of items, {probes['chance_category']:.1%} have one category."
    return [*lines, "", note, ""]


def examples_of(bundle: Bundle, dataset: Dataset, test: Targets, codes: NDArray[np.int64]) -> list[Example]:
    """The graphs' recommendations to some test users, in words. codes [item, level]"""
    manifest = bundle.manifest
    session = RecommenderSession(bundle.file(RECOMMENDER), manifest.recommender, threads=1)
    catalog = ItemsOfCodes.build(manifest.sid, codes)
    users = np.random.default_rng(0).choice(
        len(test.users), size=min(NUM_EXAMPLES, len(test.users)), replace=False
    )
    neighbors = neighbors_for(bundle, dataset, codes)
    ranker = ranker_of(session, catalog, manifest.history_length, manifest.beam_limit, neighbors)
    ranked = ranker.rank([test.histories[user] for user in users], NUM_RECOMMENDED)
    words = [item_text(item, manifest.render)[:100] for item in dataset.items]
    return [
        Example(
            history=[words[item] for item in test.histories[user][-NUM_SHOWN_OF_HISTORY:]],
            recommended=[words[item] for item in items if item >= 0],
            target=words[test.targets[user]],
        )
        for user, items in zip(users, ranked, strict=True)
    ]


def fields_in_words(item: Mapping[str, Any], vocabulary: Vocabulary) -> str:
    """The fields of an item as its tokenizer reads them: name and value, or that nothing is known."""
    found = []
    for name, known in vocabulary.numbers.items():
        values = [value for value in values_of(item, name) if value in known]
        found.append(f"{name}: {_words(values[-1]) if values else 'unknown'}")
    return "; ".join(found)


def _words(value: Value) -> str:
    return " > ".join(value) if isinstance(value, tuple) else value


def draw_page(items: Sequence[NDArray[np.uint8]], scale: int = 3) -> Image.Image:
    """The strips [strip, height, width] of several items, one below the other.

    They are enlarged without smoothing, and a gray line separates the items.
    """
    width = items[0].shape[2]
    rule = np.full((1, width), 160, dtype=np.uint8)
    rows = [row for strips in items for row in (*strips, rule)]
    page = Image.fromarray(np.concatenate(rows))
    return page.resize((page.width * scale, page.height * scale), Image.Resampling.NEAREST)


def _draw_codebooks(history: Sequence[EpochStats], path: Path) -> None:
    figure = Figure(figsize=(10, 3.5))
    left, right = figure.subplots(1, 2)
    epochs = [stats.epoch for stats in history]
    for level in range(len(history[0].use)):
        left.plot(epochs, [stats.use[level] for stats in history], label=f"level {level + 1}")
    left.set(xlabel="epoch", ylabel="share of codes in use", ylim=(0, 1.05))
    left.legend()
    right.plot(epochs, [stats.collision_rate for stats in history], color="tab:red")
    right.set(xlabel="epoch", ylabel="items in collision", ylim=(0, None))
    _save(figure, path)


def _draw_curve(curve: Curve, path: Path) -> None:
    figure = Figure(figsize=(7, 3.5))
    left = figure.subplots()
    left.plot(curve.step, curve.train_loss, color="tab:blue")
    left.set(xlabel="step", ylabel="training loss (nats per item)")
    right = left.twinx()
    right.plot(curve.step, curve.validation_ndcg_at_10, color="tab:orange")
    right.set(ylabel="validation NDCG@10 (orange)", ylim=(0, None))
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
