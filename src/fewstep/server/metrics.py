"""What the server counts, as Prometheus reads it."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

REGISTRY = CollectorRegistry()
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)

REQUESTS = Counter("fewstep_requests", "Requests answered.", ("route", "status"), registry=REGISTRY)
PICTURES = Counter("fewstep_pictures", "Pictures drawn.", registry=REGISTRY)
WAITING = Gauge("fewstep_waiting_pictures", "Pictures that wait to be drawn.", registry=REGISTRY)
BATCH = Histogram(
    "fewstep_batch_pictures", "Pictures drawn at once.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=REGISTRY
)
WAITED_S = Histogram("fewstep_waited_seconds", "Time a picture waited.", buckets=SECONDS, registry=REGISTRY)
DRAWING_S = Histogram("fewstep_drawing_seconds", "Time a batch took to draw.", buckets=SECONDS, registry=REGISTRY)


def text() -> bytes:
    """All of it, in Prometheus' text format."""
    return generate_latest(REGISTRY)
