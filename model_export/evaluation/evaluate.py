"""Measures the quality of a bundle on its exported graphs over all test users, next to baselines.

The protocol is leave-one-out. The whole catalog is ranked without the user's history, and every figure counts
items. This is the protocol of arXiv 2602.02338 without its removal of cold items. In the Amazon sets,
the purchases of one day are in catalog order, and their times are not known. Part of every next-item figure
there is an artifact of that order.
"""

import numpy as np
from numpy.typing import NDArray

from model_export.data.dataset import DataError, Dataset, make_dataset
from model_export.data.photos import kept_of
from model_export.data.splits import Split, leave_one_out, training_fingerprint
from model_export.evaluation.baselines.counting import Markov, Popularity
from model_export.evaluation.metrics import collisions, gains_at, hits_at, ndcg_at, recall_at
from model_export.evaluation.near_copies import near_copy, shared_levels
from model_export.evaluation.ranking import ItemsOfCodes, NeighborsOfItems, Ranker, search_by
from model_export.evaluation.reach import Kinds, coverage, kinds_of_targets
from model_export.evaluation.reranking import NUM_CANDIDATES, rerank
from model_export.evaluation.statistics import intervals
from service.core.bundle import RANKER, RECOMMENDER, TOKENIZER, Bundle
from service.core.bundle_co_counts import bundle_co_counts
from service.core.bundle_items import bundle_items
from service.core.bundle_vocabulary import bundle_vocabulary
from service.core.cpus import usable_cpus
from service.core.drawn_fields import draw_fields
from service.core.encoder_view import encoder_view
from service.core.graphs import FILLER_SCORE, beam_widths
from service.core.render import item_text, render_text
from service.inference.runtime import (
    NO_STRIPS,
    RankerSession,
    RecommenderSession,
    Tokenizer,
    TokenizerInput,
)

VERSION = 3  # raised when the output changes; see model_export/pipeline/versions.py
NUM_BEAMS = 50  # of the first search
BATCH = 64  # users searched at once
TOP_K = 10  # ranks that count
NEAR_COPIES = 300


def codes_for(bundle: Bundle, dataset: Dataset) -> NDArray[np.int64]:
    """The bundle's codes [item, level] of the dataset's items. Raises DataError if the bundle lacks one."""
    codes = {each.item_id: each.codes for each in bundle_items(bundle)}
    missing = [item_id for item_id in dataset.item_ids if item_id not in codes]
    if missing:
        raise DataError(
            f"{bundle.path}: lacks {len(missing)} of the {len(dataset.items)} items, for example "
            f"{missing[0]!r}. Evaluate with the data that the bundle was exported from."
        )
    return np.array([codes[item_id] for item_id in dataset.item_ids], dtype=np.int64)


def differences(bundle: Bundle, dataset: Dataset, split: Split | None = None) -> list[str]:
    """What is different from the data that the bundle was exported from, in lines for people; often none.

    With a `split` that stands in for leave-one-out, only the users' training parts must be the same.
    """
    manifest = bundle.manifest
    if manifest.data_fingerprint == dataset.fingerprint:
        return []
    training = training_fingerprint(dataset, split or leave_one_out(dataset))
    is_same_training = manifest.training_fingerprint == training
    if split is not None and is_same_training:
        return []
    found = [f"warning: {dataset.name}: not the data that the bundle was exported from."]
    if split is None and manifest.items_fingerprint not in ("", dataset.items_fingerprint):
        found.append("  Items differ. The bundle has its own codes of their texts at the time of the export.")
    if not manifest.training_fingerprint:
        found.append("  The bundle does not tell what it was trained on. Export it again to compare.")
    elif is_same_training:
        found.append("  The users' training parts are the same, so no target was trained on.")
    else:
        found.append(
            "  The users' training parts differ. Targets may be interactions that the model was trained on. "
            "Then all figures of the model are too high."
        )
    return found


def evaluate(
    bundle: Bundle, dataset: Dataset, *, split: Split | None = None, progress: bool = True
) -> dict[str, float]:
    """All figures of the report: name -> value. Rates are shares of users or items, from 0 to 1.

    `split` stands in for leave-one-out. Raises DataError if the bundle was exported from other data.
    """
    split = split or leave_one_out(dataset)
    figures = evaluate_model(bundle, dataset, split, progress=progress)
    figures |= evaluate_baselines(split, len(dataset.items))
    return figures | evaluate_near_copies(bundle, dataset)


def known_to(bundle: Bundle, dataset: Dataset) -> Dataset:
    """The dataset without the items that the bundle lacks, such as those that came after its export.

    The exclusions tell how many are left out. Raises DataError if nothing remains.
    """
    held = {each.item_id for each in bundle_items(bundle)}
    known = np.array([item_id in held for item_id in dataset.item_ids], dtype=bool)
    place = np.cumsum(known) - 1  # [item]
    kept = [known[sequence] for sequence in dataset.sequences]
    lacking = int(np.count_nonzero(~known))
    return make_dataset(
        dataset.name,
        [item for item, is_known in zip(dataset.items, known, strict=True) if is_known],
        (
            (user_id, place[sequence[mask]])
            for user_id, sequence, mask in zip(dataset.user_ids, dataset.sequences, kept, strict=True)
        ),
        dataset.exclusions | ({"items that the bundle lacks": lacking} if lacking else {}),
        times=dataset.times and [times[mask] for times, mask in zip(dataset.times, kept, strict=True)],
        notes=dataset.notes,
        images={int(place[item]): path for item, path in dataset.images.items() if known[item]},
    )


def evaluate_model(
    bundle: Bundle, dataset: Dataset, split: Split, *, progress: bool = True
) -> dict[str, float]:
    """The figures of the bundle's recommender over the test users, and its share of items in collision."""
    manifest, test = bundle.manifest, split.test
    session = RecommenderSession(
        bundle.file(RECOMMENDER), manifest.recommender, threads=usable_cpus().num_threads
    )
    codes = codes_for(bundle, dataset)
    catalog = ItemsOfCodes.build(manifest.sid, codes)
    neighbors = neighbors_for(bundle, dataset, codes)
    ranker = ranker_of(session, catalog, manifest.history_length, manifest.beam_limit, neighbors)
    widths = beam_widths(manifest.sid, ranker.num_beams)
    certified = []

    kinds = kinds_of_targets(split, dataset.num_items)
    figures = {"test_users": float(len(test.users)), "items": float(dataset.num_items)}
    figures["repeated_targets"] = test.repeated_share
    figures |= {f"{kind}_users": float(mask.sum()) for kind, mask in kinds._asdict().items()}
    for name, exclude in (("", True), ("history_included_", False)):
        told = f"test users, history {'excluded' if exclude else 'included'}" if progress else None
        ranked = ranker.rank(test.histories, TOP_K, exclude_history=exclude, progress=told)
        figures |= _figures(f"{name}model", ranked, test.targets)
        if exclude:
            figures |= _reach("model", ranked, test.targets, kinds, dataset.num_items)
    if manifest.ranker is not None:
        figures |= _reranked(bundle, dataset, ranker, split)
    for first in range(0, len(test.histories), BATCH):
        window = ranker.window(test.histories[first : first + BATCH])
        beams = session.run(window.history, catalog.trie.tables, widths, window.neighbors)
        last = beams.scores[:, min(TOP_K, beams.scores.shape[1]) - 1]
        certified.append((last > beams.bound) | (beams.bound < FILLER_SCORE))
    figures["exact_rate"] = float(np.concatenate(certified).mean())
    figures["collision_rate"] = collisions(codes).shared_rate
    return figures


def _reranked(bundle: Bundle, dataset: Dataset, ranker: Ranker, split: Split) -> dict[str, float]:
    """The figures of the generator's candidates in its own order and in that of the bundle's ranker.

    The history is excluded. `rerank_gain_…` is the difference in NDCG@10 with its interval over users.
    """
    spec = bundle.manifest.ranker
    assert spec is not None
    popularity = {each.item_id: each.popularity for each in bundle_items(bundle)}
    found = rerank(
        ranker,
        RankerSession(bundle.file(RANKER), spec.graph, threads=1),
        split.test.histories,
        np.array([popularity[item_id] for item_id in dataset.item_ids]),
        history_length=spec.history_length,
    )
    targets = split.test.targets
    figures = _figures("candidates", found.found, targets) | _figures("reranked", found.ordered, targets)
    figures[f"model_recall@{NUM_CANDIDATES}"] = recall_at(found.found, targets, NUM_CANDIDATES)
    gain = gains_at(found.ordered, targets, TOP_K) - gains_at(found.found, targets, TOP_K)  # [user]
    for name, value in intervals(gain[None])[0]._asdict().items():
        figures[f"rerank_gain_{name}"] = value
    return figures | {"search_ms_per_request": found.search_ms, "rerank_ms_per_request": found.ranker_ms}


def neighbors_for(bundle: Bundle, dataset: Dataset, codes: NDArray[np.int64]) -> NeighborsOfItems | None:
    """The neighbors of the dataset's items by the bundle's counts. None if the bundle has no counts.

    codes [item, level]
    """
    spec = bundle.manifest.co_counts
    if spec is None:
        return None
    places = bundle.manifest.sid.prefixes_of(codes)[-1]
    return NeighborsOfItems(bundle_co_counts(bundle), spec, dataset.item_ids, places)


def ranker_of(
    session: RecommenderSession,
    catalog: ItemsOfCodes,
    history_length: int,
    beam_limit: int,
    neighbors: NeighborsOfItems | None = None,
) -> Ranker:
    """A ranker that searches with an exported graph. All figures of a bundle are measured with it."""
    return Ranker(
        search_by(session, catalog),
        catalog,
        history_length=history_length,
        num_beams=min(NUM_BEAMS, beam_limit),
        beam_limit=beam_limit,
        batch_size=BATCH,
        neighbors=neighbors,
    )


def evaluate_baselines(split: Split, num_items: int) -> dict[str, float]:
    """The figures of popularity and of first-order Markov then popularity, counted in the training part."""
    figures: dict[str, float] = {}
    kinds = kinds_of_targets(split, num_items)
    baselines: dict[str, Popularity | Markov] = {
        "popularity": Popularity(),
        "markov": Markov(),
        "markov_popular_ties": Markov(ties="popularity"),
    }
    for name, baseline in baselines.items():
        ranked = baseline.fit(split.train, num_items).rank(split.test.histories, TOP_K)
        figures |= _figures(name, ranked, split.test.targets)
        figures |= _reach(name, ranked, split.test.targets, kinds, num_items)
    return figures


def evaluate_near_copies(bundle: Bundle, dataset: Dataset, *, seed: int = 0) -> dict[str, float]:
    """How often an unseen near copy of a known item gets the item's first code, and its first two codes."""
    manifest, rng = bundle.manifest, np.random.default_rng(seed)
    chosen = rng.choice(len(dataset.items), size=min(NEAR_COPIES, len(dataset.items)), replace=False)
    tokenizer = Tokenizer(bundle.file(TOKENIZER), manifest.tokenizer, threads=usable_cpus().num_threads)
    found, vocabulary = [], bundle_vocabulary(bundle)
    for place in chosen.tolist():
        copy, spec = near_copy(dataset.items[place], rng), manifest.pictures
        if manifest.draws_fields:
            assert vocabulary is not None
            drawn = draw_fields(copy, vocabulary, manifest.render)
            found.append(tokenizer.run([TokenizerInput.of_drawn(drawn)]).codes[0])
            continue
        fields = None if vocabulary is None else vocabulary.read(copy)
        if not manifest.reads_pixels:
            found.append(tokenizer.run([TokenizerInput(NO_STRIPS, None, fields)]).codes[0])
            continue
        # A copy has the photo of its item.
        photo = None if spec is None else encoder_view(copy, kept_of(dataset, place), spec, manifest.render)
        strips = render_text(item_text(copy, manifest.render), manifest.render).strips
        found.append(tokenizer.run([TokenizerInput(strips, photo, fields)]).codes[0])
    known = codes_for(bundle, dataset)[chosen]
    shared = shared_levels(np.stack(found), known)
    # For comparison, the codes that random pairs of items share.
    chance = shared_levels(known[rng.permutation(len(known))], known)
    return {
        "near_copies": float(len(chosen)),
        "near_copy_first_code": float((shared >= 1).mean()),
        "near_copy_two_codes": float((shared >= 2).mean()),
        "near_copy_first_code_by_chance": float((chance >= 1).mean()),
    }


def _figures(name: str, ranked: NDArray[np.int32], targets: NDArray[np.int32]) -> dict[str, float]:
    return {
        f"{name}_{metric}@{k}": value
        for k in (5, 10)
        for metric, value in (
            ("recall", recall_at(ranked, targets, k)),
            ("ndcg", ndcg_at(ranked, targets, k)),
        )
    }


def _reach(
    name: str, ranked: NDArray[np.int32], targets: NDArray[np.int32], kinds: Kinds, num_items: int
) -> dict[str, float]:
    """The share of the catalog on the pages, and recall by kind of target. A kind without users has none."""
    hits = hits_at(ranked, targets, TOP_K)  # [user]
    return {f"{name}_coverage@{TOP_K}": coverage(ranked[:, :TOP_K], num_items)} | {
        f"{name}_{kind}_recall@{TOP_K}": float(hits[mask].mean())
        for kind, mask in kinds._asdict().items()
        if mask.any()
    }


def table(figures: dict[str, float], split: str = "leave-one-out") -> str:
    """The figures as text for people, with the name of the split. The tables are also valid Markdown."""
    lines = ["|  | Recall@5 | Recall@10 | NDCG@5 | NDCG@10 |", "|---|---|---|---|---|"]
    for name, label in (
        ("model", "model, history excluded"),
        ("markov", "first-order Markov, then popularity"),
        ("markov_popular_ties", "the same, equal counts by popularity"),
        ("popularity", "popularity"),
        ("history_included_model", "model, history included"),
        ("candidates", f"the model's first {NUM_CANDIDATES}, history excluded"),
        ("reranked", "the same, reranked"),
    ):
        if f"{name}_ndcg@10" not in figures:
            continue  # the bundle has no ranker
        cells = [figures[f"{name}_{metric}@{k}"] for metric in ("recall", "ndcg") for k in (5, 10)]
        lines.append(f"| {label} | " + " | ".join(f"{cell:.4f}" for cell in cells) + " |")
    lines += ["", *_reach_table(figures)]
    lines += [
        "",
        f"{figures['test_users']:.0f} test users, {figures['items']:.0f} items, {split}, all items ranked.",
        f"{figures['collision_rate']:.2%} of the items are in collision. With {NUM_BEAMS} beams, the ten "
        f"best codes are proven exact for {figures['exact_rate']:.1%} of users.",
    ]
    if figures.get("repeated_targets"):
        lines.append(
            f"{figures['repeated_targets']:.1%} of the targets are in the user's own history. Rows with the "
            "history excluded cannot have them."
        )
    if "rerank_gain_mean" in figures:
        mean, low, high = (figures[f"rerank_gain_{name}"] for name in ("mean", "low", "high"))
        lines.append(
            f"Reranking changes NDCG@10 of the {NUM_CANDIDATES} candidates by {mean:+.4f} [{low:+.4f}, "
            f"{high:+.4f}], 95 % over users. The search for {NUM_CANDIDATES} candidates of a history takes "
            f"{figures['search_ms_per_request']:.2g} ms, and the ranker "
            f"{figures['rerank_ms_per_request']:.2g} ms more (medians of one at a time; the ranker with one "
            "thread). Of the targets, "
            f"{figures[f'model_recall@{NUM_CANDIDATES}']:.1%} are among the candidates."
        )
    if "near_copies" in figures:
        lines.append(
            f"Of {figures['near_copies']:.0f} unseen near copies (another number or color), "
            f"{figures['near_copy_first_code']:.1%} got the first code of their original and "
            f"{figures['near_copy_two_codes']:.1%} the first two "
            f"(random pairs of items share the first: {figures['near_copy_first_code_by_chance']:.1%})."
        )
    return "\n".join(lines)


def _reach_table(figures: dict[str, float]) -> list[str]:
    kinds = {
        "seen_transition": "transition seen in training",
        "unseen_transition": "not seen",
        "head": "popular third",
        "middle": "middle third",
        "tail": "rare third",
    }
    header = ["Recall@10 by target, history excluded", f"coverage@{TOP_K}"]
    header += [f"{words} ({figures[f'{kind}_users']:.0f} users)" for kind, words in kinds.items()]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for name, label in (
        ("model", "model"),
        ("markov_popular_ties", "first-order Markov, equal counts by popularity"),
        ("popularity", "popularity"),
    ):
        found = [figures[f"{name}_coverage@{TOP_K}"]]
        found += [figures.get(f"{name}_{kind}_recall@{TOP_K}", np.nan) for kind in kinds]
        cells = ["–" if np.isnan(value) else f"{value:.4f}" for value in found]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return [
        *lines,
        "",
        f"coverage@{TOP_K} is the share of the items that at least one test user is shown. A transition "
        "leads from the last item of the history to the target. The items of each third have a third of the "
        "purchases.",
    ]
