"""The tables of the documents. Cells are templates that name every figure: no number is typed by hand.

`{serving.http_p50_ms:.1f}` is the figure `http_p50_ms` of the run that docs/figures.json keeps as `serving`.
`{scientific[default][item_hit@10]:rate}` is a figure of a cell of docs/study.json, `[a/b]` the ratio of two.
"""

from collections.abc import Mapping
from typing import NamedTuple

from benchmarks.table_rows import (
    CATALOG_SIZES,
    CERTIFIED_BEAMS,
    DEMO_SYSTEMS,
    EXACTNESS,
    GPU_RUNS,
    OVERLOADS,
    RANK_REQUESTS,
    RANKED,
    RERANKING,
    SEARCH_HTTP,
    SEARCH_HTTP_SIZES,
    SEARCH_INDEX,
    SEARCH_KINDS,
    SEARCH_SIZES,
    SEARCH_WAYS,
    STUDY_CELLS,
    SYSTEMS,
    chaos_row,
)


class Table(NamedTuple):
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def _decode_row(system: str, label: str) -> tuple[str, ...]:
    ms, many = f"{{decode.{system}_ms:.2f}}", f"{{decode.{system}_batch32_ms:.2f}}"
    if system == "generate":
        return label, ms, many, "1 / 1"
    speedup = f"{system}_speedup_vs_generate", f"{system}_batch32_speedup_vs_generate"
    return label, ms, many, f"{{decode.{speedup[0]}:.0f}} / {{decode.{speedup[1]}:.0f}}"


def _study_row(cell: str, label: str) -> tuple[str, ...]:
    mark = "**" if cell == "default" else ""
    hit, ndcg = (f"{mark}{{DATA[{cell}][{each}]:rate}}{mark}" for each in ("item_hit@10", "item_ndcg@10"))
    return label, *(f"{hit} / {ndcg}".replace("DATA", data) for data in ("scientific", "office"))


def _gpu_cell(run: str, batch: int) -> str:
    return f"{{gpu.{run}_batch{batch}_rps:,.0f}} ({{gpu.{run}_batch{batch}_ms:short}} ms)"


def _overload_row(label: str, template: str) -> tuple[str, ...]:
    return label, *(template.replace("RUN", run) for run in OVERLOADS)


def _exactness(model: str) -> Table:
    rows = [
        (label, *(cell.replace("RUN", f"exactness.{model}_{size}") for size in CATALOG_SIZES))
        for label, cell in EXACTNESS
    ]
    return Table(("one core, items:", *(f"{size:,}" for size in CATALOG_SIZES)), tuple(rows))


def _search_quality(run: str) -> Table:
    rows = [
        (label, *(f"{{{run}[{way}_mrr_{kind}]:.3f}}" for kind in SEARCH_KINDS))
        for way, label in SEARCH_WAYS.items()
    ]
    return Table(("MRR of 500 queries", *SEARCH_KINDS.values()), tuple(rows))


TABLES: Mapping[str, Table] = {
    "headline": Table(
        ("", "glyphrec", "baseline in the same run", "printed by"),
        (
            (
                "quality: Hit@10 / NDCG@10 on Amazon scientific",
                "**{scientific[default][item_hit@10]:rate}** / **{scientific[default][item_ndcg@10]:rate}**",
                "tuned SASRec: {scientific[sasrec][item_hit@10]:rate} / "
                "{scientific[sasrec][item_ndcg@10]:rate}; a weighted sum, not trained: "
                "{scientific[sum][item_hit@10]:rate} / {scientific[sum][item_ndcg@10]:rate}",
                "`glyphrec study --data DIR/scientific --data DIR/office`",
            ),
            (
                "speed: one search of 50 beams among 100,000 items",
                "**{decode.tree_ms:.2f} ms**",
                "`transformers.generate`: {decode.generate_ms:.2f} ms",
                "`{decode.command}`",
            ),
            (
                "scale: a replica with {scale.items:,.0f} items, until ready / memory above an empty one",
                "**{scale.replica_ready_s:short} s** / **{scale.replica_mb:.0f} MB**",
                "{scale.tenth_items:,.0f} items: {scale.tenth_replica_ready_s:short} s / "
                "{scale.tenth_replica_mb:.0f} MB",
                "`{scale.command}`",
            ),
        ),
    ),
    "quality": Table(
        ("Hit@10 / NDCG@10, history excluded", "Amazon scientific", "Amazon office"),
        tuple(_study_row(*each) for each in STUDY_CELLS.items()),
    ),
    "cold": Table(
        ("", "Amazon scientific", "Amazon office"),
        (
            (
                "such items are found among ten, times as often as by chance",
                *(
                    f"{{{data}[cold][cold_hit@10/cold_hit@10_chance]:.0f}}"
                    for data in ("scientific", "office")
                ),
            ),
        ),
    ),
    "demo": Table(
        ("", "Recall@5", "Recall@10", "NDCG@5", "NDCG@10"),
        tuple(
            (
                label,
                *(
                    f"{{demo[{system}_{each}]:rate}}"
                    for each in ("recall@5", "recall@10", "ndcg@5", "ndcg@10")
                ),
            )
            for system, label in DEMO_SYSTEMS.items()
        ),
    ),
    "reranking": Table(
        ("", *RERANKING),
        tuple(
            (label, *(cell.replace("RUN", run) for cell in RERANKING.values()))
            for run, label in RANKED.items()
        ),
    ),
    "serving": Table(
        ("", "glyphrec", "baseline in the same run"),
        (
            (
                "`POST /recommend`, one caller, p50",
                "{serving.http_p50_ms:short} ms, {serving.overhead_ms_p50:short} of them around the graph",
                "the graph in a loop {serving.graph_p50_ms:.2f} ms; "
                "a FastAPI route that answers the same bytes {serving.bare_p50_ms:.2f} ms",
            ),
            (
                "at saturation",
                "{serving.saturation_rps:,.0f} a second, {serving.saturation_share:.0%} of the graph alone; "
                "{serving.cpu_s_per_1000:.2f} s of CPU for 1,000",
                "the graph in batches of {serving.graph_best_batch:.0f}, one thread "
                "{serving.graph_best_rps:,.0f}; that route {serving.bare_saturation_rps:,.0f}",
            ),
            (
                "processor time of one of these, without the graph",
                "{serving.python_us_per_request:.0f} µs",
                "a protocol without limits, metrics and queue {serving.floor_us:.0f} µs",
            ),
            (
                "at 70 % of it, p50 / p99",
                "{serving.p50_ms_at_70pct:short} / {serving.p99_ms_at_70pct:short} ms",
                "",
            ),
            (
                "new items, read in bulk (`glyphrec import`)",
                "{serving.bulk_items_per_s:.0f} a second",
                "the tokenizer graph in its best batches {serving.tokenizer_items_per_s:.0f}",
            ),
            ("one new item, `POST /items`, p50", "{serving.items_p50_ms:short} ms", ""),
            (
                "p99 at 30 % of saturation, 10 new items per second beside it",
                "{serving.p99_while_ingesting_ms:short} ms",
                "without them {serving.p99_without_ingest_ms:short} ms",
            ),
            ("from the start of the process to ready", "{serving.ready_s_100k:short} s", ""),
        ),
    ),
    "two_tower": Table(
        ("search", "one request", "requests per second, in batches", "memory", "of the exact ten"),
        (
            (
                "exact",
                "{serving.two_tower_exact_p50_ms:short} ms",
                "{serving.two_tower_exact_best_rps:,.0f}",
                "",
                "{serving.two_tower_exact_recall:.0%}",
            ),
            (
                "HNSW",
                "**{serving.two_tower_hnsw_p50_ms:.2f} ms**",
                "**{serving.two_tower_hnsw_best_rps:,.0f}**",
                "{serving.two_tower_hnsw_index_mb:.0f} MB",
                "{serving.two_tower_hnsw_recall:.0%}",
            ),
        ),
    ),
    "soak": Table(
        ("`python -m benchmarks.soak`, {soak.minutes:.0f} minutes", ""),
        (
            ("requests per second", "{soak.offered_rps:,.0f}"),
            ("puts and deletes of items", "{soak.changes:,.0f}"),
            (
                "resident memory, first third and last",
                "{soak.first_memory_mb:.0f} MB and {soak.memory_mb:.0f} MB",
            ),
            ("p99 in the last third, against the first", "{soak.p99_ms:.0f} ms, {soak.p99_drift:+.0%}"),
            ("requests that failed", "{soak.failed:.0f}"),
            ("requests that were refused", "{soak.refused_share:.1%}"),
        ),
    ),
    "reading": Table(
        ("", "items per second", "one new item", "letters right, real text", "graph"),
        tuple(
            (
                label,
                f"{{reading.{name}_items_per_second:short}}",
                f"{{reading.{name}_one_item_ms:.0f}} ms",
                f"{{reading.{name}_accuracy_real:.2%}}",
                f"{{reading.{name}_graph_mb:.1f}} MB",
            )
            for name, label in (("pp_ocr", "PP-OCRv6 (`pp-ocr-base`)"), ("compact", "compact reader"))
        ),
    ),
    "search_groceries": _search_quality("search_groceries"),
    "search_scientific": _search_quality("search_scientific"),
    "search_index": Table(
        ("", *SEARCH_SIZES.values()),
        tuple(
            (label, *(cell.replace("AT", size) if size in sizes else "–" for size in SEARCH_SIZES))
            for cells, sizes in ((SEARCH_INDEX, SEARCH_SIZES), (SEARCH_HTTP, SEARCH_HTTP_SIZES))
            for label, cell in cells.items()
        ),
    ),
    "rank": Table(
        ("one caller, p50; answers a second of 32", "", ""),
        tuple(
            (label, f"{{rank.{name}_ms_p50:short}} ms", f"{{rank.{name}_rps:,.0f}} a second")
            for name, label in RANK_REQUESTS.items()
        ),
    ),
    "decode": Table(
        (
            "ms per request, at the better of one and two threads",
            "one at a time",
            "32 at once",
            "times faster than generate, one / 32",
        ),
        tuple(_decode_row(*each) for each in SYSTEMS.items()),
    ),
    "gpu": Table(
        ("", "1 at a time", "64 at once", "256 at once"),
        tuple((label, *(_gpu_cell(run, batch) for batch in (1, 64, 256))) for run, label in GPU_RUNS.items()),
    ),
    "gpu_nodes": Table(
        ("", "nodes", "on the GPU"),
        tuple(
            (f"`{kind}`", f"{{gpu.{kind}_nodes:.0f}}", f"{{gpu.{kind}_nodes_on_device:.0f}}")
            for kind in ("tree", "tiger")
        ),
    ),
    "trie": Table(
        ("", "1,000 items", "100,000", "10,000,000", "bytes at 10,000,000", "edit at 10,000,000"),
        (
            (
                "rows of bits",
                *(f"{{trie.step_us_{size}:,.0f}} µs" for size in ("1k", "100k", "10m")),
                "{trie.index_bytes_10m:mega} MB",
                "{trie.edit_us_10m:.0f} µs, in and out",
            ),
            (
                "CSR table",
                *(f"{{trie.csr_step_us_{size}:,.0f}} µs" for size in ("1k", "100k", "10m")),
                "{trie.csr_bytes_10m:mega} MB",
                "{trie.csr_rebuild_s_10m:.0f} s rebuild",
            ),
            (
                "Python dictionaries",
                *(f"{{trie.dict_step_us_{size}:,.0f}} µs" for size in ("1k", "100k", "10m")),
                "{trie.dict_bytes_10m:mega} MB",
                "{trie.dict_edit_us_10m:.0f} µs",
            ),
        ),
    ),
    "trie_share": Table(
        ("", "`tiger`", "`tree`"),
        (
            (
                "the constraint's share of a request",
                "{trie.share_of_request:.1%}",
                "{trie.share_of_tree_request:.1%}",
            ),
        ),
    ),
    "filters": Table(
        ("`{filters.command}`", ""),
        (
            (
                "a filtered request against an unfiltered one, its view cached",
                "{filters.filtered_cost_ratio:.2f} times",
            ),
            ("building a view of 100,000 items that was not cached", "{filters.cold_view_ms:.0f} ms"),
            (
                "an edit that changes all of 10 cached views",
                "{filters.edit_us_with_10_views:.0f} µs",
            ),
        ),
    ),
    "certificate": Table(
        ("beams", *map(str, CERTIFIED_BEAMS)),
        (
            ("ten best proven", *(f"{{certificate.exact_at_{beams}:.1%}}" for beams in CERTIFIED_BEAMS)),
            (
                "ms per request, one thread",
                *(f"{{certificate.ms_at_{beams}:.2f}}" for beams in CERTIFIED_BEAMS),
            ),
        ),
    ),
    "exactness_trained": _exactness("trained"),
    "exactness_random": _exactness("random"),
    "certificate_exact": Table(
        ("with `guarantee: exact`", ""),
        (
            ("ten best proven", "{certificate.guaranteed_exact:.1%}"),
            ("searches a request, on average", "{certificate.guaranteed_searches:.2f}"),
        ),
    ),
    "fsck": Table(
        ("{fsck.items:,.0f} items", ""),
        (
            ("`glyphrec fsck`", "{fsck.fsck_s:short} s"),
            ("building a replica's tables", "{fsck.tables_s:short} s"),
            ("of that, the digest", "{fsck.of_it_digest_s:.2f} s"),
            ("reading the digest", "{fsck.read_digest_us:.1f} µs"),
        ),
    ),
    "co_counts": Table(
        ("", "{co_counts_tenth.items:,.0f} items", "{co_counts.items:,.0f} items"),
        (
            ("memory of the table", "{co_counts_tenth.table_mb:.0f} MB", "{co_counts.table_mb:.0f} MB"),
            ("reading all rows at the start", "{co_counts_tenth.load_s:.0f} s", "{co_counts.load_s:.0f} s"),
            (
                "the neighbors of a request",
                "{co_counts_tenth.gather_us:.0f} µs",
                "{co_counts.gather_us:.0f} µs",
            ),
            (
                "a search with them, and without",
                "{co_counts_tenth.search_ms:.1f} / {co_counts_tenth.search_without_counts_ms:.1f} ms",
                "{co_counts.search_ms:.1f} / {co_counts.search_without_counts_ms:.1f} ms",
            ),
        ),
    ),
    "event_log": Table(
        ("{event_log.events:,.0f} events", "DuckDB", "csv module"),
        (
            ("seconds", "{event_log.duckdb_s:.0f}", "{event_log.csv_module_s:.0f}"),
            (
                "events a second",
                "{event_log.duckdb_events_per_s:,.0f}",
                "{event_log.csv_module_events_per_s:,.0f}",
            ),
            ("peak memory", "{event_log.duckdb_peak_mb:,.0f} MB", "{event_log.csv_module_peak_mb:,.0f} MB"),
        ),
    ),
    "scale": Table(
        ("", "{scale.tenth_items:,.0f} items", "{scale.items:,.0f} items", "growth"),
        (
            (
                "`glyphrec import --tokenized`, check and start included",
                "{scale.tenth_import_s:short} s",
                "{scale.import_s:short} s ({scale.import_items_per_s:,.0f} items/s)",
                "{scale.import_s_growth:.1f}",
            ),
            (
                "memory of Redis",
                "{scale.tenth_redis_mb:.0f} MB",
                "{scale.redis_mb:.0f} MB ({scale.redis_bytes_per_item:.0f} bytes per item)",
                "{scale.redis_mb_growth:.1f}",
            ),
            (
                "its append-only file",
                "{scale.tenth_append_only_mb:.0f} MB",
                "{scale.append_only_mb:.0f} MB",
                "{scale.append_only_mb_growth:.1f}",
            ),
            (
                "Redis, from its start until loaded",
                "{scale.tenth_redis_restart_s:.1f} s",
                "{scale.redis_restart_s:.1f} s",
                "{scale.redis_restart_s_growth:.1f}",
            ),
            (
                "a fresh replica, from its start until ready",
                "{scale.tenth_replica_ready_s:short} s",
                "{scale.replica_ready_s:short} s",
                "{scale.replica_ready_s_growth:.1f}",
            ),
            (
                "its memory, above that of an empty one",
                "{scale.tenth_replica_mb:.0f} MB",
                "{scale.replica_mb:.0f} MB ({scale.replica_bytes_per_item:.0f} bytes per item)",
                "{scale.replica_mb_growth:.1f}",
            ),
            (
                "`glyphrec fsck`",
                "{scale.tenth_fsck_s:short} s",
                "{scale.fsck_s:short} s",
                "{scale.fsck_s_growth:.1f}",
            ),
            (
                "`POST /recommend`, history 20, p50 / p99",
                "{scale.tenth_recommend_p50_ms:.1f} / {scale.tenth_recommend_p99_ms:.0f} ms",
                "{scale.recommend_p50_ms:.1f} / {scale.recommend_p99_ms:.0f} ms",
                "-",
            ),
            (
                "`POST /items`, one item, without reading its picture, p50 / p99",
                "{scale.tenth_put_p50_ms:.1f} / {scale.tenth_put_p99_ms:.0f} ms",
                "{scale.put_p50_ms:.1f} / {scale.put_p99_ms:.0f} ms",
                "-",
            ),
        ),
    ),
    "scale_tables": Table(
        ("", "{scale_tables.tenth_items:,.0f} items", "{scale_tables.items:,.0f} items", "growth"),
        (
            (
                "import",
                "{scale_tables.tenth_import_s:,.0f} s",
                "{scale_tables.import_s:,.0f} s ({scale_tables.import_items_per_s:,.0f} items/s)",
                "{scale_tables.import_s_growth:.1f}",
            ),
            (
                "memory of Redis",
                "{scale_tables.tenth_redis_mb:,.0f} MB",
                "{scale_tables.redis_mb:,.0f} MB ({scale_tables.redis_bytes_per_item:.0f} bytes per item)",
                "{scale_tables.redis_mb_growth:.1f}",
            ),
            (
                "its append-only file",
                "{scale_tables.tenth_append_only_mb:,.0f} MB",
                "{scale_tables.append_only_mb:,.0f} MB",
                "{scale_tables.append_only_mb_growth:.1f}",
            ),
            (
                "Redis, from its start until loaded",
                "{scale_tables.tenth_redis_restart_s:short} s",
                "{scale_tables.redis_restart_s:short} s",
                "{scale_tables.redis_restart_s_growth:.1f}",
            ),
            (
                "a replica's tables, built from Redis",
                "{scale_tables.tenth_tables_load_s:.1f} s",
                "{scale_tables.tables_load_s:.0f} s",
                "{scale_tables.tables_load_s_growth:.1f}",
            ),
            (
                "their memory",
                "{scale_tables.tenth_tables_mb:,.0f} MB",
                "{scale_tables.tables_mb:,.0f} MB ({scale_tables.tables_bytes_per_item:.0f} bytes per item), "
                "at the peak {scale_tables.tables_peak_mb:,.0f} MB",
                "{scale_tables.tables_mb_growth:.1f}",
            ),
        ),
    ),
    "overload": Table(
        _overload_row("offered, times the capacity", "{RUN.times:.0f}"),
        (
            _overload_row(
                "requests per second, offered / accepted", "{RUN.offered_rps:,.0f} / {RUN.accepted_rps:,.0f}"
            ),
            _overload_row("accepted, of the capacity", "{RUN.goodput_share:.0%}"),
            _overload_row("processors that the load itself takes", "{RUN.generator_cpus:.2f}"),
            _overload_row(
                "accepted, p50 / p99", "{RUN.overloaded_p50_ms:.0f} / {RUN.overloaded_p99_ms:.0f} ms"
            ),
            _overload_row(
                "target: 4 times the unloaded p99 and the allowed wait", "{RUN.limit_p99_ms:.0f} ms"
            ),
            _overload_row("a refusal, p50 / p99", "{RUN.reject_p50_ms:short} / {RUN.reject_p99_ms:.0f} ms"),
            _overload_row("connections that failed", "{RUN.failed:,.0f}"),
            _overload_row("memory, against before", "{RUN.memory_growth:+.1%}"),
        ),
    ),
    "chaos": Table(
        (
            "seed",
            "acknowledged",
            "faults",
            "lost",
            "bad_sids",
            "diverged",
            "wrong",
            "answers, of them refused",
            "seconds",
        ),
        tuple(chaos_row(f"chaos_{seed}") for seed in (1, 2, 3)),
    ),
}
