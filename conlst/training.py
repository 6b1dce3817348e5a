"""What the training stages share: one optimiser step, its precision and its checkpoint. Their loops stay their own.

Every step seeds itself from the run's seed and its own number (:func:`step_generator`), dropout included. A resumed run needs
no state of any random generator, and walks on exactly as an uninterrupted one.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from conlst.contract.artifacts import Manifest, publish, verify
from conlst.contract.config import Compute, Config, Optimisation, Precision, with_settings
from conlst.contract.errors import ArtifactError, ConfigError, TrainingError
from conlst.data.batching import shuffled_batches
from conlst.parallel import world
from conlst.runtime.cpu import available_cpus
from conlst.runtime.heap import give_back

log = logging.getLogger(__name__)

# Steps. Batches of ever new shapes leave holes in the heap, which grows to a multiple of what a step needs. To return freed
# memory at every step would cost more: the next one asks for it again.
_GIVE_BACK_EVERY = 8

# as torch calls them, on x86 and on Arm
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")


@dataclass(frozen=True)
class Checkpoint:
    """What :meth:`Trainer.save` kept.

    Attributes:
        step: optimiser steps done.
        tensors: weights, Adam's moments and averaged weights.
        stage: the stage's own tensors, for example its pseudo-labels.
        state: the stage's own JSON facts, for example its losses so far.
    """

    step: int
    tensors: dict[str, Tensor]
    stage: dict[str, Tensor]
    state: dict[str, Any]


@dataclass(frozen=True)
class Checkpoints:
    """Where a stage keeps its last checkpoint.

    Attributes:
        folder: holds the last checkpoint until the stage has published its result.
        every: optimiser steps between two checkpoints, 0 for none.
        identity: digest of everything the run depends on.
    """

    folder: Path
    every: int
    identity: str

    def load(self) -> Checkpoint | None:
        """The last checkpoint, or ``None`` at the beginning of a run; of several processes all must ask.

        Raises:
            ArtifactError: if the checkpoint is damaged or belongs to another run.
            TrainingError: if the processes do not all find the same one.
        """
        manifest = verify(self.folder, "checkpoint") if self.folder.exists() else None
        self._require_one_run(manifest)
        if manifest is None:
            return None
        meta = manifest.meta
        if meta["identity"] != self.identity:
            raise ArtifactError(f"{self.folder} is the checkpoint of another run (config, data or model differ); remove it")
        tensors = load_file(self.folder / "checkpoint.safetensors")
        stage = {name.removeprefix("stage/"): tensors.pop(name) for name in list(tensors) if name.startswith("stage/")}
        log.info("resuming at step %d from %s", meta["step"], self.folder)
        return Checkpoint(meta["step"], tensors, stage, meta["state"])

    def _require_one_run(self, manifest: Manifest | None) -> None:
        """Only the first process writes: what another finds on a disk of its own is missing, or of an earlier attempt."""
        if world().size == 1:
            return
        found: list[tuple[int, str]] = [(0, "")] * world().size
        dist.all_gather_object(found, (manifest.meta["step"], manifest.digest) if manifest else (0, ""))
        if len(set(found)) > 1:
            raise TrainingError(
                f"{self.folder} holds other checkpoints for some processes than for others (steps"
                f" {', '.join(str(step) for step, _ in found)}); put --out on a volume that all processes share, or remove the"
                " checkpoint"
            )

    def discard(self) -> None:
        """Remove what is kept, when every process has read it."""
        world().wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def device_of(compute: Compute) -> torch.device:
    """The device that a run computes on.

    Raises:
        ConfigError: if the configuration asks for a GPU that this process cannot see.
    """
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("compute.device is cuda, but torch sees no GPU: check the node's accelerator, or set it to auto")
    use_gpu = compute.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if use_gpu else "cpu")


def set_up_compute(compute: Compute) -> torch.device:
    """Choose the device and the number of threads.

    Raises:
        ConfigError: if the configuration asks for a GPU that this process cannot see.
    """
    device = device_of(compute)
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(compute.threads or int(os.environ.get("OMP_NUM_THREADS") or max(1, available_cpus() // beside)))
    # denormal gradients of a nearly solved loss slow a float32 backward pass down several times
    torch.set_flush_denormal(True)
    return device


def require_one_process(config: Config, what: str) -> None:
    """Refuse several processes for a training that does not share its batches among them.

    Raises:
        ConfigError: if there are several, or will be.
    """
    if max(config.compute.processes, world().size, int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ConfigError(f"{what} trains in one process; set compute.processes to 1, and start it without a launcher")


def settled(config: Config) -> Config:
    """The configuration with the precision that ``auto`` takes on this machine, so that what a run makes tells what made it.

    Several processes take bf16 only if all of them have instructions for it.

    Raises:
        ConfigError: as :func:`device_of`.
    """
    if config.compute.precision != "auto":
        return config
    device = device_of(config.compute)
    have = torch.tensor([float(precision_on(config.compute, device) == "bf16")], device=device)
    world().average([have])
    return with_settings(config, {"compute.precision": "bf16" if have.item() == 1 else "fp32"})


def precision_on(compute: Compute, device: torch.device) -> Precision:
    """What a device computes a step in.

    A CPU without instructions for bf16 emulates it, slower than it computes in float32 (``benchmarks/train_step.py``). Old GPUs
    emulate it as well; what that costs was not measured.
    """
    if compute.precision != "auto":
        return compute.precision
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name) for name in _BF16_INSTRUCTIONS)
    return "bf16" if native else "fp32"


def autocast(compute: Compute, device: torch.device) -> AbstractContextManager[Any]:
    """bf16 autocast for matrix products, or nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision_on(compute, device) == "bf16")


def derived_seed(*parts: int | str) -> int:
    """A seed that depends on every part, for example on (seed, "calibrate", 17)."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def step_generator(*parts: int | str) -> torch.Generator:
    """Seed everything random in a step: the global state (dropout) and the returned generator (draws).

    The draws are the same in all processes of a training, dropout is each one's own.
    """
    seed = derived_seed(*parts)
    torch.manual_seed(seed if world().is_first else derived_seed(*parts, "process", world().rank))
    return torch.Generator().manual_seed(seed)


def plan_batches(lengths: Tensor, budget: int, epochs: int, *seed: int | str) -> list[Tensor]:
    """The batches of all epochs, known before the first step, so that a resumed run finds its place by number.

    Args:
        budget: padded tokens of each process.
    """
    whole = budget * world().size
    return [batch for epoch in range(epochs) for batch in shuffled_batches(lengths, whole, step_generator(*seed, "epoch", epoch))]


class Trainable(Protocol):
    """What a :class:`Trainer` can train: a classifier, or one with what learns beside it."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def heads(self) -> list[nn.Parameter]: ...


class Trainer:
    """Adam with a linear schedule over the parameters that train, their moving average, and its checkpoints.

    Args:
        model: trained in place; frozen parameters take no part, in the checkpoint neither.
        optimisation: rates, warm-up, decay, gradient norm and the average's decay.
        total_steps: length of the schedule.
        checkpoints: where to save; ``None`` keeps none.

    Attributes:
        step: optimiser steps done so far.
    """

    def __init__(
        self,
        model: Trainable,
        optimisation: Optimisation,
        total_steps: int,
        checkpoints: Checkpoints | None = None,
    ):
        self._model = model
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._checkpoints = checkpoints
        self._max_norm = optimisation.max_grad_norm
        self._ema = optimisation.ema
        self._averages = {name: p.detach().clone() for name, p in self._parameters.items()} if self._ema else {}
        self._total = max(1, total_steps)
        self._warmup = round(optimisation.warmup * self._total)
        self.step = 0
        heads = {id(parameter) for parameter in model.heads()}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self._parameters.values() if id(p) not in heads], "lr": optimisation.lr},
            {"params": [p for p in model.heads() if p.requires_grad], "lr": optimisation.head_lr or optimisation.lr},
        ]
        self._optimizer = torch.optim.AdamW(groups, weight_decay=optimisation.weight_decay, fused=True)
        self._rates: list[float] = [group["lr"] for group in groups]

    def update(self, loss: Tensor, pairs: Iterable[int]) -> float:
        """One optimiser step on ``loss``.

        Args:
            loss: scalar; of several processes each one's own, which count alike.
            pairs: indices of the batch, named if the step must be refused.

        Returns:
            The loss as a float, the mean of all processes'.

        Raises:
            TrainingError: if the loss or its gradient is not finite; the weights are left as they were.
        """
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._schedule()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        loss = loss.detach()
        world().average([loss, *(p.grad for p in self._parameters.values() if p.grad is not None)])
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._max_norm)
        if not torch.isfinite(loss) or not torch.isfinite(norm):
            raise TrainingError(
                f"step {self.step}: loss {loss.item()}, gradient norm {norm.item()}; lower the rate or look at the pairs"
                f" {list(pairs)[:8]}"
            )
        self._optimizer.step()
        self._average()
        self.step += 1
        if loss.device.type == "cpu" and self.step % _GIVE_BACK_EVERY == 0:
            give_back()
        return loss.item()

    @torch.no_grad()
    def _average(self) -> None:
        # a constant decay would hold on to the weights before the first step for its first 1 / (1 - ema) steps
        decay = min(self._ema, (1 + self.step) / (10 + self.step))
        for name, average in self._averages.items():
            average.lerp_(self._parameters[name], 1 - decay)

    @torch.no_grad()
    def finish(self) -> None:
        """Put the averaged weights into the model, if ``optimisation.ema`` asks for them: every stage's last call.

        Checkpoints keep the weights and the average apart, so a stage that was killed after its last step finishes alike.
        """
        for name, average in self._averages.items():
            self._parameters[name].copy_(average)

    def _schedule(self) -> float:
        if self.step < self._warmup:
            return (self.step + 1) / self._warmup
        return (self._total - self.step) / max(1, self._total - self._warmup)

    def checkpoint_due(self) -> bool:
        """Whether the stage should call :meth:`save` now."""
        every = self._checkpoints.every if self._checkpoints else 0
        return every > 0 and self.step % every == 0

    def save(self, stage: dict[str, Tensor] | None = None, state: dict[str, Any] | None = None) -> None:
        """Publish a checkpoint in place of the last one.

        Args:
            stage: tensors that the stage needs beside the weights.
            state: small JSON facts of the stage.
        """
        if self._checkpoints is None or not world().is_first:
            return
        tensors = {f"model/{name}": p.detach() for name, p in self._parameters.items()}
        for name, parameter in self._parameters.items():
            for key, moment in self._optimizer.state[parameter].items():
                tensors[f"adam/{name}/{key}"] = moment
        tensors |= {f"ema/{name}": average for name, average in self._averages.items()}
        tensors |= {f"stage/{name}": tensor for name, tensor in (stage or {}).items()}
        meta = {"identity": self._checkpoints.identity, "step": self.step, "state": state or {}}
        with publish(self._checkpoints.folder, kind="checkpoint", meta=meta) as staging:
            save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, staging / "checkpoint.safetensors")

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take weights, moments, averages and step from a checkpoint of the same run, and its tensors away from it."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(checkpoint.tensors[f"model/{name}"])
                prefix = f"adam/{name}/"
                self._optimizer.state[parameter] = {
                    key.removeprefix(prefix): moment.to(parameter.device)
                    for key, moment in checkpoint.tensors.items()
                    if key.startswith(prefix)
                }
            for name, average in self._averages.items():
                average.copy_(checkpoint.tensors[f"ema/{name}"])
        # the stage holds its checkpoint while it trains, and would hold every weight twice
        checkpoint.tensors.clear()
        self.step = checkpoint.step
