"""Every metric there is. One that is not declared here does not exist; labels are few and bounded."""

from functools import lru_cache

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest

REQUESTS = Counter("dashgate_requests_total", "Requests answered, by route template and status.", ["route", "status"])
REQUEST_SECONDS = Histogram(
    "dashgate_request_seconds",
    "Time to answer, by route template.",
    ["route"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
UPSTREAM_CALLS = Counter(
    "dashgate_upstream_calls_total",
    "Calls to the upstream, by operation and what came of them.",
    ["operation", "outcome"],
)
FINISH_SEEN_SECONDS = Histogram(
    "dashgate_finish_seen_seconds",
    "Time from a task's end upstream until it was seen, by the upstream's own durations.",
    buckets=(0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3600, 21600),
)
TASKS_FINISHED = Counter("dashgate_tasks_finished_total", "Tasks that ended, by final state.", ["state"])
TASKS_RESCUED = Counter("dashgate_tasks_rescued_total", "Marked tasks whose sender died; they became doubtful.")
DOUBTS_SETTLED = Counter("dashgate_doubts_settled_total", "Doubts that ended, by verdict.", ["verdict"])
TASKS_POISONED = Counter("dashgate_tasks_poisoned_total", "Work given up because five processes died of it.")
UPSTREAM_ORPHANS = Counter("dashgate_upstream_orphans_total", "Upstream tasks under our keys that are nobody's.")
UPSTREAM_ODDITIES = Counter(
    "dashgate_upstream_oddities_total", "Things the upstream said of tasks that it never should, by kind.", ["kind"]
)
LEASES_LOST = Counter(
    "dashgate_leases_lost_total", "Write-backs that found their lease gone, by kind of work.", ["kind"]
)
ASSETS_STORED = Counter("dashgate_assets_stored_total", "Files copied to a destination and verified.")
ASSET_BYTES = Counter("dashgate_asset_bytes_total", "Bytes copied to destinations.")
ASSETS_FAILED = Counter("dashgate_asset_failures_total", "Copies that failed, by fixed reason.", ["reason"])

# Read from Postgres when /metrics is asked, so that any process tells the same.
TASKS_OPEN = Gauge("dashgate_tasks_open", "Tasks that have not ended, by state.", ["state"])
WORK_DUE = Gauge("dashgate_work_due", "Rows of work that are due, by kind.", ["kind"])
WORK_OLDEST_SECONDS = Gauge("dashgate_work_oldest_seconds", "Age of the oldest due work, by kind.", ["kind"])


@lru_cache(maxsize=1_000)
def route_meters(route: str, status: int) -> tuple[Counter, Histogram]:
    """Find the meters of a route once: looking them up costs more than using them."""
    return REQUESTS.labels(route, status), REQUEST_SECONDS.labels(route)


def exposition() -> bytes:
    """Return all metrics in Prometheus' text format."""
    return generate_latest(REGISTRY)
