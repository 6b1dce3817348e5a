"""The BentoML service, for ``bentoml serve serving.service:Nli``; ``python -m serving`` also keeps BentoML from phoning home."""

import logging
import os
from threading import Thread

import bentoml
from bentoml.exceptions import BentoMLConfigException
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from conlst.contract.errors import ConlstError
from serving.http import create_app
from serving.lane import Lane
from serving.models import Catalogue, find_sources
from serving.settings import Settings


async def _mounted(scope: Scope, receive: Receive, send: Send) -> None:
    # BentoML mounts an application when this module is imported, ours is built with the service and its settings
    await bentoml.get_current_service().app(scope, receive, send)


@bentoml.service(
    name="conlst",
    # one process computes with all threads; more of them would hold the models several times
    workers=1,
    # BentoML's own label every path that anyone asks for; ours are in serving/metrics.py and serving/http.py
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    envs=[{"name": "BENTOML_DO_NOT_TRACK", "value": "True"}],
)
@bentoml.asgi_app(_mounted, path="/")
class Nli:
    """Natural language inference in the languages whose models were promoted. See /openapi.json."""

    def __init__(self) -> None:
        # the root logger only shows warnings; one line a request is wanted
        logging.getLogger("serving").setLevel(logging.INFO)
        settings = Settings.from_environment(os.environ)
        self.catalogue = Catalogue()
        self.app = create_app(settings, self.catalogue, Lane(settings.max_waiting))
        # loading in the background lets the probes answer meanwhile
        Thread(target=self.catalogue.load, args=(settings,), name="conlst-load", daemon=True).start()

    @bentoml.on_deployment
    def refuse_to_start_without_models() -> None:
        """Runs once, before the worker process: a server without anything to serve ends here, with the reason."""
        try:
            find_sources(Settings.from_environment(os.environ))
        except ConlstError as error:
            raise BentoMLConfigException(str(error)) from error

    async def __is_ready__(self) -> bool:
        if self.catalogue.problem is not None:
            # rather than returning False, whose answer has no reason
            raise HTTPException(503, self.catalogue.problem, headers={"Retry-After": "5"})
        return True
