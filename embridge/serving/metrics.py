"""Prometheus metrics, in a registry of their own for each service."""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counts of requests and rows, latencies, what is in progress, and the maps in force.

    Attributes
    ----------
    requests : Counter by route, method and status
    seconds : Histogram by route
    rows : Counter by route
        Vectors and texts that were taken in.
    in_flight : Gauge
    reloads : Counter by kind, name and result
    maps : Gauge by map, fingerprint, source, target and method; always 1
    """

    media_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter("embridge_requests", "Requests answered.", ("route", "method", "status"), registry=registry)
        self.seconds = Histogram("embridge_request_seconds", "Seconds a request.", ("route",), buckets=_SECONDS, registry=registry)
        self.rows = Counter("embridge_rows", "Vectors and texts taken in.", ("route",), registry=registry)
        self.in_flight = Gauge("embridge_in_flight", "Requests in progress.", registry=registry)
        self.reloads = Counter("embridge_reloads", "Files read again.", ("kind", "name", "result"), registry=registry)
        names = ("map", "fingerprint", "source", "target", "method")
        self.maps = Gauge("embridge_map_info", "The maps in force.", names, registry=registry)

    def render(self) -> bytes:
        """The text of ``/metrics``."""
        return generate_latest(self._registry)
