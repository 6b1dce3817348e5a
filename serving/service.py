"""The BentoML service. Start it with ``python -m serving``, which keeps BentoML from phoning home."""

import gc
import logging
import os
from pathlib import Path

import bentoml
import yaml
from bentoml.exceptions import BentoMLConfigException
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from conlst.contract.errors import ConlstError
from serving import connections
from serving.detection import Detector
from serving.drift import Drift
from serving.ending import FLUSH_SECONDS
from serving.feedback import Feedback
from serving.http import Parts, create_app
from serving.keys import open_keys
from serving.models import Catalogue, check_models
from serving.scheduler import Scheduler
from serving.settings import Settings
from serving.watch import Watcher


class _Never(float):
    """A time limit that BentoML takes for none: its own keeps a timer of every request, 7 kB each, until the limit has passed."""

    def __bool__(self) -> bool:
        return False


# `bentoml build` writes the service's settings into the Bento
yaml.SafeDumper.add_representer(_Never, lambda dumper, value: dumper.represent_float(float(value)))

# before BentoML configures the server of this process
connections.install()

_STARTED_IN = "CONLST_STARTED_IN"
"""Tells the worker process the folder that the server was started in: relative paths are meant from there, in the settings and
in what MLflow and boto3 read from the environment, but BentoML starts the worker where the code is."""

_NEW_OBJECTS = 20_000
"""How many there may be before Python looks for garbage among them: those of some hundred requests."""


async def _mounted(scope: Scope, receive: Receive, send: Send) -> None:
    # BentoML mounts an application when this module is imported, ours is built with the service and its settings
    await bentoml.get_current_service().app(scope, receive, send)


@bentoml.service(
    name="conlst",
    # one process computes with all threads; more of them would hold the models several times, and count apart
    workers=1,
    # our own deadline ends a request, in our own form
    traffic={"timeout": _Never("inf")},
    # BentoML's own label every path that anyone asks for; ours are in serving/metrics.py and serving/middleware.py
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    # and its spans, which nobody collects, cost as much as all that we do around a model's run
    tracing={"excluded_urls": "."},
    envs=[{"name": "BENTOML_DO_NOT_TRACK", "value": "True"}],
)
@bentoml.asgi_app(_mounted, path="/")
class Nli:
    """Natural language inference in the languages whose models were promoted. See /openapi.json."""

    def __init__(self) -> None:
        # the root logger only shows warnings; one line a request is wanted
        logging.getLogger("serving").setLevel(logging.INFO)
        # a request leaves dozens of objects in cycles; to look for them at every 700 takes much of a busy event loop's time
        gc.set_threshold(_NEW_OBJECTS)
        if started_in := os.environ.get(_STARTED_IN):
            os.chdir(started_in)
        settings = Settings.from_environment(os.environ)
        self.catalogue = Catalogue(settings)
        self.scheduler = Scheduler(settings.max_waiting, settings.max_waiting_tokens, settings.batch_tokens, settings.runs)
        self.feedback = Feedback(settings)
        self.watcher = Watcher(self.catalogue, settings)
        drift = Drift(self.catalogue)
        self.app = create_app(Parts(settings, self.catalogue, self.scheduler, Detector(), self.feedback, drift, self.watcher))
        # loading in the background lets the probes answer meanwhile
        self.watcher.start()

    @bentoml.on_deployment
    def refuse_to_start_when_it_cannot_serve() -> None:
        """Runs once, before the worker process, which would only be started again and again: ends here, with the reason.

        The registry is not asked: one that is away for a while, or has no champion yet, is asked again until it has.
        """
        os.environ[_STARTED_IN] = str(Path.cwd())
        try:
            settings = Settings.from_environment(os.environ)
            open_keys(settings)
            check_models(settings)
            Feedback(settings).close()
        except ConlstError as error:
            raise BentoMLConfigException(str(error)) from error

    @bentoml.on_shutdown
    def finish(self) -> None:
        """Runs when every request has its answer: the server took no new ones since it was told to end."""
        self.watcher.stop()
        self.scheduler.close()
        self.feedback.close(FLUSH_SECONDS)

    async def __is_ready__(self) -> bool:
        if self.catalogue.problem is not None:
            # not the reason: this needs no key, and that may name buckets, folders and addresses
            told = "no answers yet; the server's log and GET /models say why"
            raise HTTPException(503, told, headers={"Retry-After": "5"})
        return True
