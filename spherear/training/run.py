"""State of one training run: weights, optimiser, EMA, step count, and the folder they are stored in.

It resumes exactly from the last checkpoint. The training loops are in `spherear.train`.

A run folder holds `run.json` (what the run is), `metrics.jsonl` (one line every few steps), checkpoints
(see `training.checkpoint`; no pickle) and, once finished, `config.json` and `model.safetensors` (the weights
to use, read by `from_pretrained`).
"""

import copy
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import BaseFileLock
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from spherear.models.pretrained import CONFIG_FILE, Pretrained, fingerprint
from spherear.training.checkpoint import State, read_state, remove_partial_files, write_shard, write_state
from spherear.training.data.dataset import ImageData
from spherear.training.data.feed import Feed, Part
from spherear.training.jobs import PLAIN, Execution
from spherear.training.recipes import Recipe
from spherear.training.run_file import METRICS_FILE, RUN_FILE, cut_metrics, locked_run, open_facts
from spherear.training.world import World, as_split, gathered, local, put_weights

__all__ = ["METRICS_FILE", "RUN_FILE", "Run", "TrainState", "fingerprint", "keyed_generator", "make_optimizer"]

NOT_DECAYED = ("proj_in.", "cls_embedding.")


@dataclass(frozen=True)
class TrainState:
    """State of a run after a step.

    step, total: steps done, and in the whole run.  losses: scalars still on the device, read by `metrics`.
    learning_rate: of this step.  rate: steps per second since the run started or resumed.
    model: the weights to evaluate or sample from: the EMA if there is one.
    world: the processes of the run.  waiting: share of the elapsed time spent waiting for data.
    """

    step: int
    total: int
    losses: Mapping[str, Tensor]
    learning_rate: float
    rate: float
    model: nn.Module = field(repr=False)
    world: World = field(default_factory=World, repr=False)
    waiting: float = 0.0

    def metrics(self) -> dict[str, float]:
        """The losses as numbers; waits for the device."""
        return {name: float(value) for name, value in self.losses.items()}

    @property
    def seconds_left(self) -> float:
        """Estimate from the rate so far."""
        return (self.total - self.step) / self.rate


class Run:
    """A model in training. With `folder` None, nothing is written.

    facts: description of the run, as JSON; a folder that holds a run with other facts is a ValueError.
    world: the processes of the run.  others: modules trained beside the model, by name, with their optimisers.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        facts: Mapping[str, Any],
        folder: str | Path | None = None,
        world: World | None = None,
        execution: Execution = PLAIN,
        others: Mapping[str, tuple[nn.Module, torch.optim.Optimizer]] | None = None,
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.world = world or World()
        self.facts = json.loads(json.dumps({**facts, "recipe": recipe.to_dict()}))
        self.folder = Path(folder) if folder is not None else None
        self.step = 0
        self.ema = copy.deepcopy(model).requires_grad_(False).eval() if recipe.ema_decay else None
        self.world.shard(model)
        if self.ema is not None:
            self.world.shard(self.ema.to(execution.average_on) if execution.average_on else self.ema)
        self.optimizer = make_optimizer(model, recipe)
        self.others = dict(others or {})
        self.skipped = torch.zeros(2, device=next(model.parameters()).device)  # skipped steps: consecutive, total
        self._feed: Feed | None = None
        self._losses: list[dict[str, Tensor]] = []
        self._lock: BaseFileLock | None = None
        if self.folder is not None:
            self._open(self.folder, execution.override)
        self._start_time, self._start_step = time.monotonic(), self.step

    def _open(self, folder: Path, override: bool) -> None:
        if self.world.first:
            self._lock = locked_run(folder)
            open_facts(folder, self.facts, override)
            remove_partial_files(folder)
        self.world.wait()
        state = read_state(folder, "cpu" if self.world.sharded else next(self.model.parameters()).device)
        if state is not None:
            self._resume(state)
        if self.world.first:
            cut_metrics(folder / METRICS_FILE, self.step)
            if not self.done:  # a model of fewer steps must not pass for this run's
                (folder / CONFIG_FILE).unlink(missing_ok=True)
        self.world.wait()

    @property
    def result(self) -> nn.Module:
        """The weights to use: the EMA if there is one."""
        return self.ema if self.ema is not None else self.model

    @property
    def done(self) -> bool:
        """Whether all steps of the recipe are done."""
        return self.step >= self.recipe.steps

    def generator(self, device: torch.device | str, part: int = 0) -> torch.Generator:
        """Random generator for a part of the next step; depends on (seed, step, part) alone."""
        return keyed_generator(self.recipe.seed, self.step, device, part)

    def feed(self, data: ImageData, device: torch.device | str, workers: int = 0) -> Feed:
        """The batches of the remaining steps; broken images are logged to `skipped-RANK.jsonl`."""
        feed = Feed(data, self.recipe, range(self.step, self.recipe.steps), self.world, device, workers)
        if self.folder is not None:
            feed.log = self.folder / f"skipped-{self.world.rank}.jsonl"
        self._feed = feed
        return feed

    def each(self, objective: nn.Module, parts: list[Part]) -> Iterator[Part]:
        """The parts of a step (gradient accumulation); processes exchange gradients only with the last part."""
        for part in parts:
            self.world.sync(objective, last=part is parts[-1])
            yield part

    def accumulate(self, losses: Mapping[str, Tensor], parts: int = 1) -> None:
        """Add the gradient of one part, out of `parts` on this process (gradient accumulation)."""
        if not self._losses:
            for optimizer in (self.optimizer, *(other for _, other in self.others.values())):
                optimizer.zero_grad(set_to_none=True)
        (losses["loss"] / parts).backward()
        self._losses.append({name: value.detach() for name, value in losses.items()})

    def descend(self) -> TrainState:
        """Take an optimiser step; log and save a checkpoint when due.

        A step with a non-finite loss or gradient only changes the step count; `skip_limit` consecutive ones
        raise a FloatingPointError that names the last checkpoint.
        """
        rate = self.recipe.learning_rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = self._mean_losses()
        finite = torch.isfinite(losses["loss"])
        for other, _ in self.others.values():
            self.world.average(other)
            finite = finite & torch.isfinite(nn.utils.clip_grad_norm_(other.parameters(), self.recipe.clip))
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self._step_optimizers(finite & torch.isfinite(norm.full_tensor() if isinstance(norm, DTensor) else norm))
        self.step += 1
        state = self._state(losses, rate)
        if self.step % self.recipe.log_every == 0 or self.done:
            self._log(state)
        elif self.skipped.device.type == "cpu":
            self._check_skipped(state)
        if self.step % self.recipe.save_every == 0 and not self.done:
            self.save()
        return state

    @contextmanager
    def checkpointed(self) -> Iterator["Run"]:
        """Context for the training loop: leaving it early at a `yield` saves a checkpoint, an error does not.

        An error may occur in the middle of a step, so the last saved checkpoint stays the good one.
        """
        try:
            yield self
            self._finish()
        except GeneratorExit:
            self.save()
            raise
        finally:
            if self._lock is not None:
                self._lock.release()

    def save(self) -> None:
        """Write a checkpoint atomically. All processes must call it."""
        if self.folder is None:
            return
        metadata = {"step": str(self.step), "facts": json.dumps(self.facts)}
        tensors = dict(self._tensors())
        if self.world.sharded:
            metadata["replicated"] = " ".join(name for name, t in tensors.items() if not isinstance(t, DTensor))
            write_shard(self.folder, self.step, self.world, {k: local(t) for k, t in tensors.items()}, metadata)
            return
        if self.world.first:
            write_state(self.folder, tensors, metadata)
        self.world.wait()

    def _trained(self) -> Iterable[tuple[str, nn.Module, torch.optim.Optimizer]]:
        """Name prefix in a checkpoint, model and optimiser of every trained module."""
        yield "model/", self.model, self.optimizer
        for name, (model, optimizer) in self.others.items():
            yield f"{name}/", model, optimizer

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for prefix, model, optimizer in self._trained():
            yield from ((prefix + name, tensor) for name, tensor in model.state_dict().items())
            optimizer_prefix = "optimizer/" if prefix == "model/" else f"optimizer-{prefix}"
            for name, parameter in model.named_parameters():
                yield from ((f"{optimizer_prefix}{name}/{k}", v) for k, v in optimizer.state[parameter].items())
        if self.ema is not None:
            yield from ((f"ema/{name}", tensor) for name, tensor in self.ema.state_dict().items())

    def _mean_losses(self) -> dict[str, Tensor]:
        """Mean over the step's parts on all processes."""
        parts, self._losses = self._losses, []
        if len(parts) == 1:
            return self.world.mean(parts[0])
        return self.world.mean({name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]})

    def _step_optimizers(self, finite: Tensor) -> None:
        """Step the optimisers if `finite` (waiting for the device only when sharded), then update the EMA."""
        for optimizer in (self.optimizer, *(other for _, other in self.others.values())):
            if not self.world.sharded:
                optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # as a gradient scaler does
                optimizer.step()
            elif finite:
                optimizer.step()
        bad = (~finite).float()
        self.skipped = torch.stack((bad * (self.skipped[0] + 1), self.skipped[1] + bad))
        self._update_ema()

    def _state(self, losses: Mapping[str, Tensor], learning_rate: float) -> TrainState:
        elapsed = max(1e-9, time.monotonic() - self._start_time)
        rate, waited = (self.step - self._start_step) / elapsed, self._feed.waited if self._feed is not None else 0.0
        return TrainState(
            self.step, self.recipe.steps, losses, learning_rate, rate, self.result, self.world, waited / elapsed
        )

    @torch.no_grad()
    def _update_ema(self) -> None:
        """ema = decay ema + (1 - decay) weights; also after a skipped step, with unchanged weights."""
        if self.ema is None:
            return
        averages = [local(p) for p in self.ema.parameters()]
        weights = [local(p).to(a.device) for p, a in zip(self.model.parameters(), averages, strict=True)]
        torch._foreach_lerp_(averages, weights, 1 - self.recipe.ema_decay)
        for average, buffer in zip(self.ema.buffers(), self.model.buffers(), strict=True):
            average.copy_(buffer)  # a buffer such as the codebook is a moving average already

    def _check_skipped(self, state: TrainState) -> None:
        consecutive = int(self.skipped[0])
        if consecutive >= self.recipe.skip_limit:
            saved = f"the last checkpoint in {self.folder} is good" if self.folder else "nothing was saved"
            raise FloatingPointError(
                f"the loss is {state.metrics()['loss']} at step {state.step}; {saved}. "
                f"{consecutive} steps in a row had a loss or gradient that is not finite, and were skipped"
            )

    def _log(self, state: TrainState) -> None:
        self._check_skipped(state)
        if self.folder is not None and self.world.first:
            metrics = {k: v if math.isfinite(v) else None for k, v in state.metrics().items()}
            line = {"step": state.step, **metrics, "learning_rate": state.learning_rate, "rate": state.rate}
            if self.skipped[1] > 0:
                line["skipped_steps"] = int(self.skipped[1])
            if self._feed is not None and self._feed.data.broken:
                line["skipped_images"] = len(self._feed.data.broken)
            with (self.folder / METRICS_FILE).open("a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(line) + "\n")

    def _finish(self) -> None:
        self.save()
        if self.folder is not None:
            model = gathered(self.result)
            assert isinstance(model, Pretrained)
            if self.world.first:
                model.save_pretrained(self.folder)
            self.world.wait()

    def _resume(self, state: State) -> None:
        names = state.names()

        def group(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): state[name] for name in names if name.startswith(prefix)}

        for prefix, model, optimizer in self._trained():
            put_weights(model, group(prefix), state.source)
            parameters = dict(model.named_parameters())
            optimizer_prefix = "optimizer/" if prefix == "model/" else f"optimizer-{prefix}"
            for name, tensor in group(optimizer_prefix).items():
                parameter_name, _, key = name.rpartition("/")
                parameter = parameters[parameter_name]
                value = as_split(tensor, parameter) if tensor.ndim else tensor
                # a CPU tensor is mapped from the file, which Windows would then not replace
                optimizer.state[parameter][key] = value.clone() if value.device.type == "cpu" else value
        if self.ema is not None:
            put_weights(self.ema, group("ema/"), state.source)
        self.step = state.step


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; no weight decay on 1-D tensors, the input projection and the class embedding."""
    decayed: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        decayed[parameter.ndim > 1 and not name.startswith(NOT_DECAYED)].append(parameter)
    groups = [
        {"params": decayed[True], "weight_decay": recipe.weight_decay},
        {"params": decayed[False], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(recipe.beta1, recipe.beta2), fused=True)


def keyed_generator(seed: int, step: int, device: torch.device | str = "cpu", part: int = 0) -> torch.Generator:
    """A generator whose stream depends on (seed, step, part) alone."""
    words = [seed, step, part] if part else [seed, step]
    key = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(key >> 1)
