"""Health, latency by stage and replica, freshness, live quality, and the last changes."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.panels import (
    Query,
    Row,
    framed,
    lines,
    mean,
    number,
    or_zero,
    quantile,
    rate,
    rows,
    share,
    total,
    where,
)

# The requests of clients, as the objectives of deploy/prometheus/rules/recording.yml count them.
ASKED = "~/recommend|/rank|/search|/items.*|/events|unread"
REQUESTS = "glyphrec_http_requests_total"
SECONDS = "glyphrec_http_request_seconds"
ALL = rate(REQUESTS, route=ASKED, status="!~40[135]")
# 503 and 429 ask the client to come again later, so they have a share of their own.
ERRORS = share(rate(REQUESTS, route=ASKED, status="~50[^3]"), ALL)
REFUSED = share(rate(REQUESTS, route=ASKED, status="~429|503"), ALL)
BURN = [(1, "yellow"), (6, "orange"), (14.4, "red")]


def build() -> Dashboard:
    """The first dashboard to open: is the service healthy, and if not, which of its objectives suffers."""
    return framed(
        "glyphrec-service",
        "Service",
        "Start here: the golden signals of the service, its objectives, and what changed last.",
        [
            Row("Now", NOW),
            Row("Traffic, errors, latency, saturation", GOLDEN),
            Row("Objectives, of the whole service", OBJECTIVES),
            Row("Which replica, and what changed", REPLICAS),
        ],
    )


NOW = [
    number(
        "Replicas that answer",
        "Replicas that are loaded and ready. If some are missing, see the alerts and /health/ready.",
        "short",
        total("glyphrec_ready"),
        [(0, "red"), (1, "green")],
    ),
    number(
        "Alerts",
        "Alerts that fire now; docs/runbook.md has an entry for each.",
        "short",
        'count(ALERTS{alertname=~"Glyphrec.*",alertstate="firing"}) or vector(0)',
        [(1, "red")],
    ),
    number(
        "Requests",
        "Requests of clients per second: recommendations, rankings, searches, items, events.",
        "reqps",
        ALL,
    ),
    number(
        "Errors",
        "Share of requests that failed through our own fault: 5xx without 503. The objective allows 0.1 %.",
        "percentunit",
        or_zero(ERRORS, ALL),
        [(0.0005, "yellow"), (0.001, "red")],
    ),
    number(
        "Refused",
        "Share of requests that were refused for now: 429 and 503. The objective allows 1 %.",
        "percentunit",
        or_zero(REFUSED, ALL),
        [(0.005, "yellow"), (0.01, "red")],
    ),
    number(
        "POST /recommend, p99",
        "99 of 100 answered recommendations took at most this; refusals do not count. The objective: 100 ms.",
        "s",
        quantile(0.99, SECONDS, route="/recommend", outcome="answered"),
        [(0.05, "yellow"), (0.1, "red")],
        without="no requests",
    ),
    number(
        "Catalog behind",
        "The delay of the slowest replica, because it cannot reach Redis or is late with the log.",
        "s",
        f"max(glyphrec_catalog_stale_seconds{where()} > glyphrec_catalog_lag_seconds{where()} "
        f"or glyphrec_catalog_lag_seconds{where()})",
        [(2, "yellow"), (10, "red")],
    ),
    number(
        "Hit@10, live",
        "Share of reported events whose item was among the first ten of its page.",
        "percentunit",
        share(
            rate("glyphrec_feedback_hits_total", recommender_id="~$model", k="10"),
            rate("glyphrec_feedback_attributed_total", recommender_id="~$model"),
        ),
        without="no events",
    ),
]

GOLDEN = [
    lines(
        "Requests by route",
        "Traffic by route template and method.",
        "reqps",
        Query(rate(REQUESTS, "method", "route"), "{{method}} {{route}}"),
    ),
    lines(
        "Errors and refusals",
        "Share of the requests of clients. Dashed lines show the limits of the objectives.",
        "percentunit",
        Query(ERRORS, "errors (5xx without 503)"),
        Query(REFUSED, "refused (429, 503)"),
        steps=[(0.001, "yellow"), (0.01, "red")],
    ),
    lines(
        "Refusals by reason",
        "The slug of the problem document: overloaded, took-too-long, store-unavailable and others.",
        "reqps",
        Query(rate("glyphrec_rejections_total", "reason"), "{{reason}}"),
        steps=[(1, "yellow")],
    ),
    lines(
        "POST /recommend",
        "From the first byte read to the last byte sent. The dashed line is the objective for 99 of 100.",
        "s",
        *(
            Query(quantile(q, SECONDS, route="/recommend", outcome="answered"), f"p{100 * q:.0f}")
            for q in (0.5, 0.9, 0.99)
        ),
        steps=[(0.1, "red")],
    ),
    lines(
        "POST /recommend, mean by stage",
        "Mean time by stage. The history's encoder is part of decode, because they are one graph.",
        "s",
        Query(mean("glyphrec_stage_seconds", "stage", flow="recommend"), "{{stage}}"),
        stacked=True,
    ),
    lines(
        "Saturation: how busy the graphs are",
        "Share of the time during which a batch runs, on the busiest replica. Near 1, requests wait, and "
        "those that would wait too long are refused. Scale by it.",
        "percentunit",
        Query(
            f"max by (queue) (rate(glyphrec_batch_seconds_sum{where()}[$__rate_interval]))",
            "{{queue}}",
        ),
        most=1,
        steps=[(0.7, "yellow"), (0.9, "red")],
    ),
]

OBJECTIVES = [
    lines(
        "Error budget burn, 1 hour",
        "How many times faster than allowed the budget is spent; 1 spends it exactly. Above 14.4, also over "
        "the last 5 minutes, an alert pages. Always for all replicas.",
        "x",
        Query('glyphrec:burn:rate1h{job=~"$job"}', "{{objective}}"),
        steps=BURN,
    ),
    lines(
        "Error budget burn, 6 hours",
        "Above 6, also over the last 30 minutes, an alert pages. Always for all replicas.",
        "x",
        Query('glyphrec:burn:rate6h{job=~"$job"}', "{{objective}}"),
        steps=BURN[:2],
    ),
    lines(
        "Error budget burn, 3 days",
        "Above 1, also over the last 6 hours, an alert opens a ticket. Always for all replicas.",
        "x",
        Query('glyphrec:burn:rate3d{job=~"$job"}', "{{objective}}"),
        steps=BURN[:1],
    ),
]

REPLICAS = [
    lines(
        "POST /recommend by replica, p99",
        "If one replica stands out, look at its CPU, its queue and the other programs on its host.",
        "s",
        Query(quantile(0.99, SECONDS, "instance", route="/recommend", outcome="answered"), "{{instance}}"),
        steps=[(0.1, "red")],
    ),
    lines(
        "Requests by replica",
        "Unequal if the load balancer is uneven or if clients keep few connections open.",
        "reqps",
        Query(rate(REQUESTS, "instance", route=ASKED), "{{instance}}"),
    ),
    lines(
        "Catalog behind, by replica",
        "Seconds from a change in Redis until the replica applies it.",
        "s",
        Query(total("glyphrec_catalog_lag_seconds", "instance", func="max"), "{{instance}}"),
        Query(total("glyphrec_catalog_stale_seconds", "instance", func="max"), "{{instance}}, out of touch"),
        steps=[(10, "red")],
    ),
    rows(
        "What is served",
        "Replicas differ only while a change of the model is under way.",
        "dateTimeFromNow",
        f"1000 * glyphrec_bundle_loaded_timestamp_seconds{where()} "
        f"* on (instance, job) group_left (recommender_id, tokenizer_id, generator, data) "
        f"glyphrec_model_info{where()}",
        {
            "instance": "Replica",
            "recommender_id": "Model version",
            "tokenizer_id": "Tokenizer",
            "generator": "Generator",
            "data": "Data",
            "Value": "Since",
        },
        width=16,
    ),
    number(
        "Last change of the model",
        "Time since a replica loaded a bundle, at its start or later. A purple line marks it in every panel.",
        "s",
        f"time() - max(glyphrec_bundle_loaded_timestamp_seconds{where()})",
        width=4,
        height=8,
    ),
    number(
        "Last start of a replica",
        "Time since a replica's process began. If nobody restarted it, it crashed or ran out of memory.",
        "s",
        f"time() - max(process_start_time_seconds{where()})",
        [(0, "yellow"), (600, "green")],
        width=4,
        height=8,
    ),
]
