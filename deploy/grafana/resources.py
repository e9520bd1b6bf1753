"""The resources that a replica uses: CPU, memory, files, queues, and the GPU if there is one."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.panels import Query, Row, framed, lines, number, quantile, rate, total, where


def build() -> Dashboard:
    """The dashboard for capacity: what each replica uses, and how full its queues are."""
    return framed(
        "glyphrec-resources",
        "Resources",
        "CPU, memory, files, queues and admission by replica, Redis, and the GPU if there is one.",
        [
            Row("Process", PROCESS),
            Row("Workers, where there are several", WORKERS),
            Row("Queues and admission", QUEUES),
            Row("GPU, where there is one", GPU),
        ],
    )


PROCESS = [
    lines(
        "CPU by replica",
        "Cores in use. Each worker has one event loop and GLYPHREC_THREADS for each of its graphs.",
        "short",
        Query(f"rate(process_cpu_seconds_total{where()}[$__rate_interval])", "{{instance}}"),
    ),
    lines(
        "Memory by replica",
        "Resident memory. Grows with items and filter views, then stays. Endless growth is a leak.",
        "bytes",
        Query(f"process_resident_memory_bytes{where()}", "{{instance}}"),
    ),
    lines(
        "Memory per item",
        "Resident memory divided by items. Useful for planning once the catalog is large.",
        "bytes",
        Query(
            f"process_resident_memory_bytes{where()} / on (instance, job) "
            f"(glyphrec_catalog_items{where()} > 0)",
            "{{instance}}",
        ),
    ),
    lines(
        "Open files",
        "Share of the files that the process may open. Each connection takes one.",
        "percentunit",
        Query(f"process_open_fds{where()} / process_max_fds{where()}", "{{instance}}"),
        steps=[(0.5, "yellow"), (0.8, "red")],
        most=1,
    ),
    lines(
        "Event loop lag, p99",
        "How late a timer fires. If it is near the time of a batch, the process has too little CPU.",
        "s",
        Query(quantile(0.99, "glyphrec_event_loop_lag_seconds", "instance"), "{{instance}}"),
        steps=[(0.02, "yellow"), (0.1, "red")],
    ),
    lines(
        "Time since start",
        "A step down is a restart.",
        "s",
        Query(f"time() - process_start_time_seconds{where()}", "{{instance}}"),
    ),
]

WORKERS = [
    lines(
        "Workers that answer",
        "Of a replica with several processes, those that answered the scrape. It should be all of them.",
        "short",
        Query(total("glyphrec_worker_up", "instance"), "{{instance}}"),
        Query(f"glyphrec_workers{where()}", "{{instance}}, wanted"),
        width=12,
    ),
    lines(
        "Workers that were started again",
        "A worker ended by itself, and another took its place. The log says how it ended.",
        "short",
        Query(
            "sum by (instance, worker) "
            f"(increase(glyphrec_worker_restarts_total{where()}[$__rate_interval]))",
            "{{instance}}, worker {{worker}}",
        ),
        steps=[(1, "yellow")],
        width=12,
    ),
]

QUEUES = [
    lines(
        "Requests in flight",
        "Requests that each replica is answering now.",
        "short",
        Query(total("glyphrec_http_requests_in_flight", "instance"), "{{instance}}"),
        steps=[(500, "yellow"), (1_000, "red")],
    ),
    lines(
        "Work waiting and running",
        "In beams for the recommender, in strips for the tokenizer.",
        "short",
        Query(total("glyphrec_queue_units", "queue"), "{{queue}}, waiting"),
        Query(total("glyphrec_reserved_units", "queue"), "{{queue}}, promised a place"),
        Query(total("glyphrec_running_units", "queue"), "{{queue}}, running"),
    ),
    lines(
        "Fullest queue",
        "Share of the work that a queue accepts before it answers 429.",
        "percentunit",
        Query(
            "max by (instance) ((glyphrec_queue_units{0} + glyphrec_reserved_units{0}) / "
            "glyphrec_queue_limit_units{0})".format(where()),
            "{{instance}}",
        ),
        steps=[(0.5, "yellow"), (0.9, "red")],
    ),
    lines(
        "Taken in",
        "Jobs per second that a queue accepted.",
        "ops",
        Query(rate("glyphrec_admissions_total", "queue"), "{{queue}}"),
    ),
    lines(
        "Refused, by reason",
        "429 and 503. For overloaded, add replicas. For store-unavailable, look at Redis.",
        "reqps",
        Query(rate("glyphrec_rejections_total", "reason"), "{{reason}}"),
        steps=[(1, "yellow")],
    ),
    lines(
        "Redis calls",
        "Calls by replica. A recommendation makes none.",
        "ops",
        Query(rate("glyphrec_redis_calls_total", "instance"), "{{instance}}"),
    ),
]

GPU = [
    number(
        "GPU: memory in use",
        "Share of the memory in use on the fullest GPU.",
        "percentunit",
        f"max(glyphrec_gpu_memory_used_bytes{where()} / glyphrec_gpu_memory_total_bytes{where()})",
        [(0.8, "yellow"), (0.95, "red")],
        width=4,
        height=8,
    ),
    lines(
        "GPU: memory",
        "Memory that all processes on the GPU use.",
        "bytes",
        Query(f"glyphrec_gpu_memory_used_bytes{where()}", "{{instance}}, GPU {{gpu}}"),
        width=10,
    ),
    lines(
        "GPU: use",
        "Share of the time during which the GPU computed something.",
        "percentunit",
        Query(f"glyphrec_gpu_utilization_ratio{where()}", "{{instance}}, GPU {{gpu}}"),
        width=10,
        most=1,
    ),
]
