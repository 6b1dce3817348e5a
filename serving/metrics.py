"""What Prometheus may ask. Labels come from fixed sets only: a label that clients choose would grow without end."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from serving.lane import Lane

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class Metrics:
    """The counters of this process. A service has one process, which computes with many threads; pods are counted apart."""

    def __init__(self, lane: Lane) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = Counter("conlst_requests", "Requests answered", ["route", "status"], registry=self._registry)
        self.seconds = Histogram("conlst_request_seconds", "Time to the answer", ["route"], registry=self._registry)
        self.predictions = Counter("conlst_predictions", "Pairs answered", ["language", "label"], registry=self._registry)
        waiting = Gauge("conlst_waiting_requests", "Requests waiting for the computing thread", registry=self._registry)
        waiting.set_function(lambda: lane.waiting)

    def exposition(self) -> bytes:
        return generate_latest(self._registry)
