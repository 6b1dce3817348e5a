"""What a stage tells while it runs: step, loss, throughput."""

import logging
import time

from conlst.parallel import MetricSink

log = logging.getLogger(__name__)


class Progress:
    """Logs a line every few seconds and hands metrics on.

    Args:
        stage: name in the log line.
        sink: receives every step's metrics and its number, for example an MLflow run's.
        seconds: between two lines.
    """

    def __init__(self, stage: str, sink: MetricSink | None = None, seconds: float = 10.0):
        self._stage, self._sink, self._seconds = stage, sink, seconds
        self._since = time.monotonic()
        self._pairs = 0

    def step(self, done: int, total: int, pairs: int, metrics: dict[str, float]) -> None:
        """Count a finished step of ``pairs`` pairs."""
        self._pairs += pairs
        if self._sink:
            self._sink({f"{self._stage}/{name}": value for name, value in metrics.items()}, done)
        elapsed = time.monotonic() - self._since
        if elapsed < self._seconds and done < total:
            return
        values = " ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        log.info("%s %d/%d  %s  %.0f pairs/s", self._stage, done, total, values, self._pairs / max(elapsed, 1e-9))
        self._since, self._pairs = time.monotonic(), 0
