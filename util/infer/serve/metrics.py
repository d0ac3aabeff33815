"""Metrics of the service, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

import prometheus_client

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST


class Metrics:
    """Metrics of one service, in a registry of their own.

    Args:
        batch_size: largest batch.
        queue: returns the number of pictures that are being read, wait or are computed.
    """

    def __init__(self, batch_size: int, queue: Callable[[], float]) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        self.requests = prometheus_client.Counter(
            "mae_requests",
            "requests (499: the client closed the connection)",
            ["route", "status"],
            registry=self.registry,
        )
        self.seconds = prometheus_client.Histogram(
            "mae_request_seconds",
            "time from the head of a request to its answer",
            ["route"],
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
            registry=self.registry,
        )
        sizes = [size for size in (1, 2, 4, 8, 16, 32, 64, 128, 256) if size < batch_size]
        self.batches = prometheus_client.Histogram(
            "mae_batch_images",
            "pictures computed together",
            buckets=[*sizes, batch_size],
            registry=self.registry,
        )
        self.images = prometheus_client.Counter("mae_images", "pictures received", registry=self.registry)
        self.unreadable = prometheus_client.Counter(
            "mae_images_unreadable", "pictures that cannot be read", registry=self.registry
        )
        prometheus_client.Gauge(
            "mae_queue_images", "pictures that are being read, wait or are computed", registry=self.registry
        ).set_function(queue)
        prometheus_client.ProcessCollector(registry=self.registry)

    def text(self) -> bytes:
        """Return the values of all metrics."""
        return prometheus_client.generate_latest(self.registry)
