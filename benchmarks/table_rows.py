"""The rows of the documents' tables (tables.py): labels, and templates of cells."""

SYSTEMS = {
    "generate": "`transformers.generate`, `prefix_allowed_tokens_fn`",
    "tiger_eager": "`tiger` in eager PyTorch",
    "tiger_float32": "`tiger`, float32",
    "tiger": "`tiger`, int8",
    "tree_float32": "`tree`, float32",
    "tree": "`tree`, int8",
}
STUDY_CELLS = {
    "markov": "first-order Markov, then popularity",
    "tiger_text": "TIGER on MiniLM text, RQ-VAE, suffix (one seed)",
    "item_knn": "nearest items by the default's vectors",
    "sasrec": "SASRec with full cross-entropy, tuned (three seeds)",
    "tgh": "TGH, three hops of the transition graph, not trained",
    "sum": "weighted sum of counts, text and popularity, not trained",
    "text": "`base` without counts, on MiniLM text (three seeds)",
    "without_counts": "`base` without counts (three seeds)",
    "default": "glyphrec, `base` (three seeds)",
}
DEMO_SYSTEMS = {
    "model": "the demo's model, `tree` after 1,000 steps",
    "markov": "first-order Markov, then popularity",
    "markov_popular_ties": "the same, equal counts by popularity",
    "popularity": "popularity",
}
RERANKING = {
    "test users": "{RUN.test_users:,.0f}",
    "NDCG@10 of the search": "{RUN[candidates_ndcg@10]:rate}",
    "reranked": "{RUN[reranked_ndcg@10]:rate}",
    "change": "{RUN.rerank_gain_mean:+.4f} [{RUN.rerank_gain_low:+.4f}, {RUN.rerank_gain_high:+.4f}]",
    "targets among the 50": "{RUN[model_recall@50]:.1%}",
    "search, ms": "{RUN.search_ms_per_request:short}",
    "ranker, ms more": "{RUN.rerank_ms_per_request:short}",
}
RANKED = {
    "ranked_films": "MovieTweetings, by what came later",
    "ranked_groceries": "Complete Journey, by what came later",
    "ranked_office": "Amazon office",
    "ranked_scientific": "Amazon scientific",
}
RANK_REQUESTS = {
    "rank_100": "`POST /rank`, 100 items",
    "rank_1000": "`POST /rank`, 1,000 items",
    "recommend": "`POST /recommend`, a page of ten",
}
GPU_RUNS = {
    "tree_cpu": "`tree`, the CPU beside it, {gpu.cores:.0f} cores",
    "tree_plain": "`tree`, as the service calls it",
    "tree_replayed": "`tree`, tables resident, one CUDA graph replayed",
    "tiger_cpu": "`tiger`, the CPU beside it",
    "tiger_plain": "`tiger`, as the service calls it",
}
SEARCH_SIZES = {"10k": "10,000 items", "100k": "100,000 items", "1m": "1,000,000 items"}
SEARCH_HTTP_SIZES = ("10k", "100k", "1m")
SEARCH_INDEX = {
    "a search by the graph, every row compared, faiss alone": "{search.graph_ms_p50_AT:.2f} / "
    "{search.exact_ms_p50_AT:.2f} / {search.faiss_ms_p50_AT:.2f} ms",
    "the ten nearest that the graph finds, of so many candidates": "{search.recall_at_10_AT:.1%} of "
    "{search.candidates_AT:,.0f}",
    "building the graph": "{search.build_s_AT:short} s",
    "an edit": "{search.edit_us_AT:.0f} µs",
    "memory of an item in a replica": "{search.bytes_per_item_AT:,.0f} bytes",
}
SEARCH_HTTP = {
    "`POST /search` of a new text, of a text of before, `POST /recommend`; one caller, p50": (
        "{search_http.search_ms_p50_AT:short} / {search_http.search_again_ms_p50_AT:short} / "
        "{search_http.recommend_ms_p50_AT:short} ms"
    ),
    "answers a second of 32 callers": "{search_http.search_rps_AT:,.0f} / "
    "{search_http.search_again_rps_AT:,.0f} / {search_http.recommend_rps_AT:,.0f}",
}
SEARCH_KINDS = {
    "part": "half of a title",
    "typos": "with typos",
    "units": "other units",
    "order": "another order",
    "all": "all of it",
}
SEARCH_WAYS = {
    "drawn": "**drawn text, as served**",
    "drawn_int8": "the same in int8, as Redis keeps it",
    "features": "what was read, wholly whitened",
    "head": "the head's vectors, from which the codes come",
    "minilm": "MiniLM",
    "bm25": "BM25 over words",
}
OVERLOADS = ("overload_2", "overload_5", "overload_10")
CERTIFIED_BEAMS = (10, 20, 50, 100, 200)
CATALOG_SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
EXACTNESS = (
    ("different codes", "{RUN_codes:,.0f}"),
    ("one search of 50 beams, ms", "{RUN_beam_ms:.2f}"),
    ("… its pages that are proven", "{RUN_beam_proven:.1%}"),
    ("`guarantee: exact`, ms, p50 / p95", "{RUN_exact_ms:.2f} / {RUN_exact_p95_ms:.1f}"),
    ("… its pages that are proven", "{RUN_exact_proven:.1%}"),
    ("RecJPQPrune, numpy, ms", "{RUN_pruned_ms:.2f}"),
    ("… the items that it scores", "{RUN_pruned_scored:.1%}"),
    ("all sub-items, numpy / faiss, ms", "{RUN_sub_items_ms:.2f} / {RUN_sub_items_faiss_ms:.2f}"),
    ("all vectors, numpy, ms", "{RUN_vectors_ms:.2f}"),
    (
        "MB: beam / RecJPQPrune / sub-items / vectors",
        "{RUN_beam_mb:,.0f} / {RUN_pruned_mb:,.0f} / {RUN_sub_items_mb:,.0f} / {RUN_vectors_mb:,.0f}",
    ),
)


def chaos_row(run: str) -> tuple[str, ...]:
    counts = ("acknowledged", "faults", "lost", "bad_sids", "diverged", "wrong")
    cells = [f"{{{run}.{name}:,.0f}}" for name in counts]
    return (
        f"{{{run}.seed:.0f}}",
        *cells,
        f"{{{run}.answers:,.0f}}, {{{run}.refused:,.0f}}",
        f"{{{run}.seconds:.0f}}",
    )
