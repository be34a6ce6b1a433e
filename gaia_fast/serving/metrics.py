"""What Prometheus reads of the service: requests, batches, replicas, and how far the scores have drifted."""

from collections.abc import Iterable, Mapping
from typing import Any

from gaia_fast import extras
from gaia_fast.monitoring import DriftMonitor


class Metrics:
    """Counters of one service, in a registry of their own.

    Attributes:
        requests: counter of answers, by HTTP status.
        seconds: histogram of the time from a request's last byte to its answer.
        batch: histogram of images in a batch.
        in_service: gauge of images that are received, decoded, wait or are scored.
        replicas: gauge of replicas that are ready.
    """

    def __init__(self, monitors: Mapping[str, DriftMonitor]) -> None:
        self._prometheus: Any = extras.load("prometheus_client", "serve", "gaia-fast serve")
        self._monitors = monitors
        self._registry = registry = self._prometheus.CollectorRegistry()
        self.requests = self._prometheus.Counter(
            "gaia_fast_requests", "Requests to /score answered, by HTTP status.", ["status"], registry=registry
        )
        self.seconds = self._prometheus.Histogram(
            "gaia_fast_request_seconds",
            "From the last byte of a picture to its score.",
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
            registry=registry,
        )
        self.batch = self._prometheus.Histogram(
            "gaia_fast_batch_images",
            "Images that were scored together.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.in_service = self._prometheus.Gauge(
            "gaia_fast_images_in_service", "Images that are received, decoded, wait or are scored.", registry=registry
        )
        self.replicas = self._prometheus.Gauge("gaia_fast_replicas_ready", "Replicas that score.", registry=registry)
        registry.register(self)

    def collect(self) -> Iterable[Any]:
        """The drift reports, as they are when Prometheus asks; for its client."""
        gauge = extras.load("prometheus_client.core", "serve", "gaia-fast serve").GaugeMetricFamily
        images = gauge("gaia_fast_window_images", "Images in the rolling window.", labels=["score"])
        share = gauge("gaia_fast_ood_share", "Share of the window's images above the threshold.", labels=["score"])
        distance = gauge(
            "gaia_fast_drift_distance",
            "Kolmogorov-Smirnov distance of the window's scores from those of the calibration.",
            labels=["score"],
        )
        drifted = gauge("gaia_fast_drifted", "1 where that is more than chance explains.", labels=["score"])
        quantiles = gauge("gaia_fast_score_quantile", "Quantiles of scores.", labels=["score", "of", "quantile"])
        for name, monitor in self._monitors.items():
            report = monitor.report()
            images.add_metric([name], report.images)
            if report.ood_share is not None:
                share.add_metric([name], report.ood_share)
            if report.distance is not None:
                distance.add_metric([name], report.distance)
                drifted.add_metric([name], float(report.drifted))
            for of, values in (("window", report.quantiles), ("calibration", report.calibration_quantiles)):
                for quantile, value in values.items():
                    quantiles.add_metric([name, of, f"{quantile:g}"], value)
        return (images, share, distance, drifted, quantiles)

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        page: bytes = self._prometheus.generate_latest(self._registry)
        return page

    @property
    def content_type(self) -> str:
        """Its type."""
        return str(self._prometheus.CONTENT_TYPE_LATEST)
