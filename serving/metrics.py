"""What Prometheus may ask. Labels come from fixed sets only: a label that clients choose would grow without end."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from serving.choice import Choice
from serving.compute import Timing
from serving.drift import Drift
from serving.feedback import Feedback
from serving.keys import Keys
from serving.models import Catalogue
from serving.scheduler import Scheduler
from serving.watch import Watcher

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The counters of this process. A service has one process, which computes with many threads; pods are counted apart."""

    def __init__(
        self,
        scheduler: Scheduler,
        catalogue: Catalogue,
        feedback: Feedback,
        drift: Drift,
        watcher: Watcher,
        keys: Keys | None,
    ) -> None:
        self._registry = registry = CollectorRegistry()
        self._catalogue = catalogue
        ProcessCollector(registry=registry)
        for collector in (_Models(catalogue, watcher), _Feedback(feedback), _Keys(keys), drift):
            registry.register(collector)
        self.requests = Counter(
            "conlst_requests",
            "Requests answered, by the type of their error, empty without one",
            ["route", "status", "error"],
            registry=registry,
        )
        self.seconds = Histogram("conlst_request_seconds", "Time to the answer", ["route"], registry=registry, buckets=_SECONDS)
        self.predictions = Counter("conlst_predictions", "Pairs answered", ["language", "label"], registry=registry)
        self._stages = Histogram(
            "conlst_stage_seconds", "Time of a request by what it went into", ["stage"], registry=registry, buckets=_SECONDS
        )
        self._languages = Counter(
            "conlst_text_languages",
            "Texts by their own language, other if it is not served, and by how it was found",
            ["language", "source"],
            registry=registry,
        )
        waiting = Gauge("conlst_waiting_requests", "Requests waiting to be tokenised or computed", registry=registry)
        waiting.set_function(lambda: scheduler.waiting)
        tokens = Gauge("conlst_waiting_tokens", "Tokens waiting to be computed", registry=registry)
        tokens.set_function(lambda: scheduler.waiting_tokens)

    def chosen(self, choices: Iterable[Choice]) -> None:
        served = self._catalogue.languages
        for choice in choices:
            self._languages.labels(choice.own if choice.own in served else "other", choice.source).inc()

    def timed(self, timing: Timing) -> None:
        for stage, seconds in timing.stages().items():
            self._stages.labels(stage).observe(seconds)

    def exposition(self) -> bytes:
        return generate_latest(self._registry)


class _Models(Collector):
    """What is served, and what was promoted but is not."""

    def __init__(self, catalogue: Catalogue, watcher: Watcher) -> None:
        self._catalogue = catalogue
        self._watcher = watcher

    def collect(self) -> Iterable[Metric]:
        info = GaugeMetricFamily("conlst_model_info", "A served model", labels=["language", "version", "precision"])
        for served in self._catalogue.all():
            version = "" if served.source.version is None else str(served.source.version)
            info.add_metric([served.source.language, version, served.predictor.precision], 1)
        yield info
        refused = GaugeMetricFamily("conlst_refused_promotions", "Promoted versions that are not served", labels=["language"])
        for language in self._catalogue.refusals:
            refused.add_metric([language], 1)
        yield refused
        orphaned = GaugeMetricFamily(
            "conlst_without_champion", "Served languages that the registry has no champion for any more", labels=["language"]
        )
        for language in self._watcher.without_champion:
            orphaned.add_metric([language], 1)
        yield orphaned
        if self._watcher.last_success is not None:
            name, help_text = "conlst_registry_last_success_timestamp_seconds", "When the registry last answered"
            yield GaugeMetricFamily(name, help_text, value=self._watcher.last_success)
        failing = "The registry's last answer could not be used, the log says why"
        yield GaugeMetricFamily("conlst_registry_failing", failing, value=self._watcher.problem is not None)


class _Feedback(Collector):
    def __init__(self, feedback: Feedback) -> None:
        self._feedback = feedback

    def collect(self) -> Iterable[Metric]:
        counts = CounterMetricFamily("conlst_feedback_pairs", "Pairs that callers let us keep", labels=["state"])
        for state in ("offered", "kept", "dropped", "written"):
            counts.add_metric([state], getattr(self._feedback, state))
        yield counts
        failing = "The last file of feedback could not be written, the log says why"
        yield GaugeMetricFamily("conlst_feedback_failing", failing, value=self._feedback.problem is not None)


class _Keys(Collector):
    def __init__(self, keys: Keys | None) -> None:
        self._keys = keys

    def collect(self) -> Iterable[Metric]:
        problem = None
        if self._keys is not None:
            # nobody may have asked since the file changed
            self._keys.refresh()
            problem = self._keys.problem
        failing = "The file of keys cannot be used, those before it stay valid, the log says why"
        yield GaugeMetricFamily("conlst_keys_failing", failing, value=problem is not None)
