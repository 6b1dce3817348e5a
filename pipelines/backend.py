"""Runs and schedules on a Kubeflow Pipelines 2 backend, through its own client.

The backend's address is given, or stands in ``KF_PIPELINES_ENDPOINT``, or is the one that a pod or a kubeconfig knows. Its token
is the service account's: the file in ``KF_PIPELINES_SA_TOKEN_PATH``, in a pod the projected one. No token is ever an argument.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api
import urllib3
from kfp.client import KF_PIPELINES_SA_TOKEN_ENV, KF_PIPELINES_SA_TOKEN_PATH, ServiceAccountTokenVolumeCredentials
from kfp.client.client import KF_PIPELINES_ENDPOINT_ENV

from conlst.contract.errors import BackendError, ConfigError

EXPERIMENT = "conlst"
_PAGE = 100


@dataclass(frozen=True)
class Backend:
    """Where runs go.

    Attributes:
        host: address of the KFP API, empty for the one that the environment, the pod or the kubeconfig knows.
        namespace: of the runs; empty on a backend for a single user.
        service_account: that the pods run as; empty for the backend's default.
    """

    host: str = ""
    namespace: str = ""
    service_account: str = ""

    @contextmanager
    def client(self) -> Iterator[kfp.Client]:
        """A client whose failures are told with the address and what to do.

        Raises:
            BackendError: if the backend cannot be reached, refuses, or the token cannot be read.
        """
        where = self.host or os.environ.get(KF_PIPELINES_ENDPOINT_ENV) or "the cluster of this pod or kubeconfig"
        token = os.environ.get(KF_PIPELINES_SA_TOKEN_ENV) or KF_PIPELINES_SA_TOKEN_PATH
        credentials = ServiceAccountTokenVolumeCredentials(token) if Path(token).is_file() else None
        if credentials is None and os.environ.get(KF_PIPELINES_SA_TOKEN_ENV):
            raise BackendError(f"{KF_PIPELINES_SA_TOKEN_ENV} names {token}, which is no file; correct it or unset it")
        try:
            with warnings.catch_warnings():
                # that it needs a backend of version 2
                warnings.simplefilter("ignore", FutureWarning)
                client = kfp.Client(host=self.host or None, namespace=self.namespace or "kubeflow", credentials=credentials)
            yield client
        except kfp_server_api.ApiException as error:
            raise BackendError(f"Kubeflow Pipelines at {where} answered {error.status} {error.reason}: {_told(error)}") from error
        except TimeoutError as error:
            # how kfp.Client says that /healthz refused it five times; the reason is in the log alone
            raise BackendError(
                f"Kubeflow Pipelines at {where} did not pass its health check: check address and token, the log says more; "
                "on a backend for several users give --namespace"
            ) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise BackendError(
                f"Kubeflow Pipelines at {where} cannot be reached ({error}); give --host or set {KF_PIPELINES_ENDPOINT_ENV}"
            ) from error


@dataclass(frozen=True)
class Schedule:
    """A recurring run.

    Attributes:
        cron: six fields, seconds first.
        enabled: whether it starts runs; a paused one is kept.
    """

    name: str
    id: str
    cron: str
    enabled: bool


def submit(backend: Backend, package: Path, arguments: dict[str, Any], name: str) -> str:
    """Start a run of a compiled pipeline; returns its id.

    Args:
        package: what ``conlst compile`` wrote.
        arguments: parameters of the pipeline without a default, for example ``store``.
    """
    with backend.client() as client:
        experiment = client.create_experiment(EXPERIMENT, namespace=backend.namespace or None)
        run = client.run_pipeline(
            experiment.experiment_id, name, str(package), arguments, service_account=backend.service_account or None
        )
        return str(run.run_id)


def create_schedule(backend: Backend, package: Path, arguments: dict[str, Any], name: str, cron: str) -> Schedule:
    """Run a compiled pipeline at the times of ``cron``: one run at a time, and missed times are not made up for.

    Args:
        cron: five fields as crontab has them, or six with seconds first; UTC.

    Raises:
        ConfigError: if ``cron`` has another number of fields, or a schedule of this name exists.
    """
    with backend.client() as client:
        if _find(client, backend, name) is not None:
            raise ConfigError(f"there is a schedule {name!r}; delete it first, or take another name")
        experiment = client.create_experiment(EXPERIMENT, namespace=backend.namespace or None)
        made = client.create_recurring_run(
            experiment.experiment_id,
            name,
            cron_expression=_six_fields(cron),
            max_concurrency=1,
            no_catchup=True,
            params=arguments,
            pipeline_package_path=str(package),
            service_account=backend.service_account or None,
        )
        return _schedule(made)


def list_schedules(backend: Backend) -> list[Schedule]:
    """The schedules of conlst's experiment, by name."""
    with backend.client() as client:
        return sorted(_schedules(client, backend), key=lambda schedule: schedule.name)


def pause_schedule(backend: Backend, name: str, pause: bool = True) -> Schedule:
    """Stop a schedule from starting runs, or let it start them again; a run that goes on is not touched."""
    with backend.client() as client:
        schedule = _existing(client, backend, name)
        (client.disable_recurring_run if pause else client.enable_recurring_run)(schedule.id)
        return _existing(client, backend, name)


def delete_schedule(backend: Backend, name: str) -> Schedule:
    """Forget a schedule; its runs and their record stay."""
    with backend.client() as client:
        schedule = _existing(client, backend, name)
        client.delete_recurring_run(schedule.id)
        return schedule


def _existing(client: kfp.Client, backend: Backend, name: str) -> Schedule:
    found = _find(client, backend, name)
    if found is None:
        names = ", ".join(schedule.name for schedule in _schedules(client, backend)) or "none"
        raise ConfigError(f"there is no schedule {name!r}; there are: {names}")
    return found


def _find(client: kfp.Client, backend: Backend, name: str) -> Schedule | None:
    return next((schedule for schedule in _schedules(client, backend) if schedule.name == name), None)


def _schedules(client: kfp.Client, backend: Backend) -> Iterator[Schedule]:
    # created rather than looked up: a backend that has no such experiment yet has no schedule either
    experiment = client.create_experiment(EXPERIMENT, namespace=backend.namespace or None)
    token = ""
    while True:
        page = client.list_recurring_runs(page_token=token, page_size=_PAGE, experiment_id=experiment.experiment_id)
        for found in page.recurring_runs or ():
            yield _schedule(found)
        token = page.next_page_token
        if not token:
            return


def _schedule(found: kfp_server_api.V2beta1RecurringRun) -> Schedule:
    cron = found.trigger.cron_schedule.cron if found.trigger and found.trigger.cron_schedule else ""
    return Schedule(found.display_name, found.recurring_run_id, cron, found.status == "ENABLED")


def _six_fields(cron: str) -> str:
    fields = cron.split()
    if len(fields) not in (5, 6):
        raise ConfigError(f"--cron {cron!r} has {len(fields)} fields; give five, for example '0 3 * * 1' for Monday at 3:00 UTC")
    return " ".join(["0", *fields] if len(fields) == 5 else fields)


def _told(error: kfp_server_api.ApiException) -> str:
    advice = {401: "; the token is missing or expired", 403: "; this account has no right to do that in this namespace"}
    body = str(error.body or "")[:300]
    return f"{body}{advice.get(error.status, '')}"
