"""Data-parallel training: every process has the whole model and a part of each batch; gradients are averaged.

A batch is planned for all processes together and cut afterwards, so that ``n`` processes with a budget of ``b`` tokens walk
through the very batches of one process with ``n * b``. Pseudo-labels and draws are the first process' or come from a generator
that all share; dropout differs. Only the first process writes.

One pod with several GPUs: ``compute.processes``, which :func:`in_processes` starts. Several pods: a launcher starts them
(torchrun, a Kubeflow TrainJob) and sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
"""

import importlib
import os
import pickle
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

from conlst.contract.config import Config
from conlst.contract.errors import ConfigError, ConlstError, TrainingError
from conlst.contract.logs import set_up_logging

MetricSink = Callable[[dict[str, float], int], None]


@dataclass(frozen=True)
class Share:
    """This process' part of a batch.

    Attributes:
        rows: positions within the batch; at least one.
        weight: what this process' mean over ``rows`` counts, so that the average over the processes is the mean over the batch.
    """

    rows: Tensor
    weight: float


@dataclass(frozen=True)
class World:
    """The processes of a training, of which this one is number ``rank``."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def share(self, count: int) -> Share:
        """The rows of this process of a batch of ``count``: every ``size``-th, so that lengths are alike everywhere."""
        rows = torch.arange(count)[self.rank :: self.size]
        if not len(rows):
            # a batch of fewer rows than processes: all must take part, but this one counts nothing
            return Share(torch.zeros(1, dtype=torch.int64), 0.0)
        return Share(rows, len(rows) * self.size / count)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.size == 1:
            return
        tensors = list(tensors)
        # one message for all: a call for each of some two hundred would wait two hundred times
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def agree(self, tensor: Tensor) -> Tensor:
        """The first process' tensor: what all must decide alike may differ in the last bit between devices."""
        if self.size > 1:
            device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
            shared = tensor.to(device).contiguous()
            dist.broadcast(shared, 0)
            return shared.to(tensor.device)
        return tensor

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()


def world() -> World:
    """The processes that train together; one if nobody started more."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


def in_processes(stage: Callable[..., None]) -> Callable[..., None]:
    """Let a stage that takes a configuration first run in ``compute.processes`` processes, or join those of a launcher.

    The metric sink, ``sink``, is called in the process that called the stage.

    Raises:
        TrainingError: if a process ends without a result.
        ConlstError: that a process raised, as it is.
    """

    @wraps(stage)
    def run(config: Config, *arguments: Any, sink: MetricSink | None = None, **more: Any) -> None:
        if world().size > 1:
            stage(config, *arguments, sink=sink if world().is_first else None, **more)
        elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
            with _joined(config):
                stage(config, *arguments, sink=sink if world().is_first else None, **more)
        elif config.compute.processes > 1:
            _start(stage, config, arguments, more, sink)
        else:
            stage(config, *arguments, sink=sink, **more)

    return run


@contextmanager
def _joined(config: Config) -> Iterator[None]:
    """Take part in the group that the environment describes."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.device_count() if config.compute.device != "cpu" else 0
    if gpus:
        if local >= gpus:
            raise ConfigError(f"process {local} of this pod finds {gpus} GPUs; start as many processes as there are GPUs")
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if gpus else "gloo")
    try:
        yield
        world().wait()
    finally:
        dist.destroy_process_group()


def _start(
    stage: Callable[..., None], config: Config, arguments: tuple[Any, ...], more: dict[str, Any], sink: MetricSink | None
) -> None:
    context = multiprocessing.get_context("spawn")
    told = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # the stage's module and name, since the decorated function stands where pickle would look for the bare one
    named = (stage.__module__, stage.__qualname__)
    work = (named, config, arguments, more, config.compute.processes, port, told, sink is not None)
    started = multiprocessing.start_processes(_work, work, config.compute.processes, join=False, start_method="spawn")
    errors: list[ConlstError] = []
    try:
        ended = False
        while not ended:
            # joined in short turns, so that metrics are passed on while the processes work
            ended = started.join(timeout=0.2)
            errors += _passed_on(told, sink)
    except (multiprocessing.ProcessExitedException, multiprocessing.ProcessRaisedException) as failed:
        # join raises as soon as a process is gone, and what that one told is still in the queue
        errors += _passed_on(told, sink)
        if errors:
            raise errors[0] from failed
        how = "failed" if isinstance(failed, multiprocessing.ProcessRaisedException) else "ended without a result"
        raise TrainingError(f"process {failed.error_index} of the training {how}: {failed}") from failed


def _passed_on(told: Any, sink: MetricSink | None) -> list[ConlstError]:
    """Give the sink the metrics that the processes told by now; returns the errors that they told."""
    errors = []
    while not told.empty():
        kind, content = told.get()
        if kind == "error":
            errors.append(pickle.loads(content))
        elif sink:
            sink(*content)
    return errors


def _work(
    rank: int,
    named: tuple[str, str],
    config: Config,
    arguments: tuple[Any, ...],
    more: dict[str, Any],
    size: int,
    port: int,
    told: Any,
    with_sink: bool,
) -> None:
    set_up_logging(prefix=f"[{rank}] ")
    os.environ |= {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)},
        **{"LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }
    stage = getattr(importlib.import_module(named[0]), named[1])
    sink = (lambda metrics, step: told.put(("metrics", (metrics, step)))) if with_sink else None
    try:
        stage(config, *arguments, sink=sink, **more)
    except ConlstError as error:
        told.put(("error", pickle.dumps(error)))
        raise
