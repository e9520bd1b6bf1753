"""Where the flows spend their time: stages, batches, the event loop, Redis."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.panels import Query, Row, framed, lines, mean, number, quantile, rate

SECONDS = "glyphrec_http_request_seconds"
STAGE = "glyphrec_stage_seconds"


def build() -> Dashboard:
    """The dashboard that shows where a request spends its time."""
    return framed(
        "glyphrec-latency",
        "Latency by stage",
        "Each stage of POST /recommend, POST /rank, POST /search and POST /items, and what can delay them.",
        [
            Row("Recommendations", RECOMMEND),
            Row("Rankings", RANKINGS),
            Row("Searches", SEARCHES),
            Row("Posted items", ITEMS),
            Row("Batches", BATCHES),
            Row("Around the stages", AROUND),
        ],
    )


RECOMMEND = [
    number(
        "p50",
        "Half of all recommendations are answered within this.",
        "s",
        quantile(0.5, SECONDS, route="/recommend", outcome="answered"),
        [(0.025, "yellow"), (0.1, "red")],
        width=6,
        without="no requests",
    ),
    number(
        "p99",
        "99 of 100 are answered within this; the objective is 100 ms.",
        "s",
        quantile(0.99, SECONDS, route="/recommend", outcome="answered"),
        [(0.05, "yellow"), (0.1, "red")],
        width=6,
        without="no requests",
    ),
    number(
        "Within the objective",
        "Share of the answered recommendations that took at most 100 ms; the objective is 99 %.",
        "percentunit",
        f"{rate(SECONDS + '_bucket', route='/recommend', outcome='answered', le='0.1')} / "
        f"({rate(SECONDS + '_count', route='/recommend', outcome='answered')} > 0)",
        [(0, "red"), (0.99, "yellow"), (0.995, "green")],
        width=6,
        without="no requests",
    ),
    number(
        "Outside the graph",
        "Share of the time that is spent outside the recommender's graph: waiting, HTTP, JSON, look-ups.",
        "percentunit",
        f"clamp_min(1 - ({rate(STAGE + '_sum', flow='recommend', stage='decode')}) / "
        f"({rate(SECONDS + '_sum', route='/recommend', outcome='answered')} > 0), 0)",
        [(0.6, "yellow"), (0.85, "red")],
        width=6,
        without="no requests",
    ),
    lines(
        "POST /recommend: mean by stage",
        "Stacked: the height is the mean time in all stages. decode includes the history's encoder.",
        "s",
        Query(mean(STAGE, "stage", flow="recommend"), "{{stage}}"),
        stacked=True,
        width=12,
    ),
    lines(
        "POST /recommend: p99 by stage",
        "If queue grows with the load, the replica is saturated. If decode grows, batches are larger or "
        "other work uses its cores.",
        "s",
        Query(quantile(0.99, STAGE, "stage", flow="recommend"), "{{stage}}"),
        steps=[(0.1, "red")],
        width=12,
    ),
]

RANKINGS = [
    lines(
        "POST /rank: mean by stage",
        "Stacked. decode is the graph that scores the items: the ranker, or the recommender without one.",
        "s",
        Query(mean(STAGE, "stage", flow="rank"), "{{stage}}"),
        stacked=True,
    ),
    lines(
        "POST /rank: p99 by stage",
        "If queue grows with the load, the replica is saturated. If decode grows, requests have more items.",
        "s",
        Query(quantile(0.99, STAGE, "stage", flow="rank"), "{{stage}}"),
        steps=[(0.1, "red")],
    ),
    lines(
        "What orders the items",
        "Rankings by what gave the order: the ranker; the generator, if the bundle has no ranker; "
        "popularity, if also the history has no known item.",
        "reqps",
        Query(rate("glyphrec_rankings_total", "by"), "{{by}}"),
    ),
    lines(
        "Items of a ranking",
        "Known items that pass the filter, of up to 1,000 that a request may name.",
        "short",
        Query(quantile(0.5, "glyphrec_ranked_items"), "p50"),
        Query(quantile(0.99, "glyphrec_ranked_items"), "p99"),
        width=12,
    ),
    lines(
        "Unknown items in rankings",
        "Ids that belong to no living item, a second. Many of them mean that the caller's list is old.",
        "short",
        Query(rate("glyphrec_unknown_ranked_items_total"), "unknown"),
        width=12,
    ),
]

SEARCHES = [
    lines(
        "POST /search: mean by stage",
        "Stacked. encode is the tokenizer's graph on the drawn query, find the comparison of vectors. "
        "Similar items by vector have no query.",
        "s",
        Query(mean(STAGE, "stage", flow="search"), "{{stage}}"),
        stacked=True,
    ),
    lines(
        "POST /search: p99 by stage",
        "If queue or wait grow with the load, the replica is saturated. If find grows, see the graph of "
        "neighbors on the dashboard of the catalog.",
        "s",
        Query(quantile(0.99, STAGE, "stage", flow="search"), "{{stage}}"),
        steps=[(0.1, "red")],
    ),
    lines(
        "Searches by vectors",
        "By what was searched for: a text, a picture, both, or an item. A remembered text is not read again.",
        "reqps",
        Query(rate("glyphrec_item_searches_total", "by"), "{{by}}"),
        Query(rate("glyphrec_remembered_queries_total"), "of them remembered"),
    ),
]

ITEMS = [
    lines(
        "POST /items: mean by stage",
        "Stacked. A request may have 1,000 items. Chunks overlap, so the sum exceeds its time.",
        "s",
        Query(mean(STAGE, "stage", flow="index"), "{{stage}}"),
        stacked=True,
    ),
    lines(
        "POST /items: p99 by stage",
        "follow is the wait until this replica has seen its own change in the log.",
        "s",
        Query(quantile(0.99, STAGE, "stage", flow="index"), "{{stage}}"),
        steps=[(60, "yellow"), (600, "red")],
    ),
    lines(
        "All routes, p99",
        "By route template, from the first byte read to the last byte sent.",
        "s",
        Query(quantile(0.99, SECONDS, "method", "route"), "{{method}} {{route}}"),
        steps=[(10, "red")],
    ),
]

BATCHES = [
    lines(
        "Requests or items in a batch, mean",
        "Near 1, the device is idle when work arrives. Near the limit, it is saturated.",
        "short",
        Query(mean("glyphrec_batch_jobs", "queue"), "{{queue}}"),
    ),
    lines(
        "Beams or strips in a batch, mean",
        "The limits are GLYPHREC_MAX_BATCH_BEAMS and GLYPHREC_MAX_BATCH_STRIPS.",
        "short",
        Query(mean("glyphrec_batch_units", "queue"), "{{queue}}"),
    ),
    lines(
        "Time of one batch",
        "The run of the graph and the look-ups around it.",
        "s",
        Query(quantile(0.5, "glyphrec_batch_seconds", "queue"), "{{queue}}, p50"),
        Query(quantile(0.99, "glyphrec_batch_seconds", "queue"), "{{queue}}, p99"),
        steps=[(0.1, "yellow"), (1, "red")],
    ),
]

AROUND = [
    lines(
        "Waiting in the queue by replica, p99",
        "How long recommendations wait. GLYPHREC_MAX_WAIT_MS limits it.",
        "s",
        Query(quantile(0.99, STAGE, "instance", flow="recommend", stage="queue"), "{{instance}}"),
        steps=[(0.02, "yellow"), (0.1, "red")],
    ),
    lines(
        "Event loop lag, p99",
        "How late a timer fires. All requests wait that long. If it is high, the process is overloaded.",
        "s",
        Query(quantile(0.99, "glyphrec_event_loop_lag_seconds", "instance"), "{{instance}}"),
        steps=[(0.02, "yellow"), (0.1, "red")],
    ),
    lines(
        "Redis, p99 by command",
        "Scripts are shown by their names. No recommendation waits for Redis.",
        "s",
        Query(quantile(0.99, "glyphrec_redis_call_seconds", "command"), "{{command}}"),
        steps=[(0.1, "yellow"), (2, "red")],
    ),
]
