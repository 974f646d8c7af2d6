"""State of one training run: weights, optimiser, EMA, step count, and the folder they are stored in.

It resumes exactly from the last checkpoint: bit for bit on the same number of processes, and up to the rounding of sums
(1e-7) on another. The training loops are in `spherear.train`.

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

from spherear import signals
from spherear.models.pretrained import CONFIG_FILE, WEIGHTS_FILE, Pretrained, fingerprint
from spherear.models.tensor_files import read_tensors
from spherear.training.checkpoint import Checkpoints, State, read_state, remove_partial_files
from spherear.training.data.dataset import ImageData
from spherear.training.data.feed import Feed, MicroBatch, Stopped
from spherear.training.flops import peak_teraflops, training_flops
from spherear.training.jobs import PLAIN, Execution
from spherear.training.recipes import ARRecipe, Recipe
from spherear.training.run_file import (
    METRICS_FILE,
    RUN_FILE,
    SKIPPED,
    check_agreement,
    check_model_alone,
    cut_metrics,
    holds_model_alone,
    is_visible,
    locked_run,
    open_facts,
)
from spherear.world import World, as_split, gathered, local, put_weights, whole

__all__ = ["METRICS_FILE", "RUN_FILE", "Run", "TrainState", "fingerprint", "keyed_generator", "make_optimizer"]

NOT_DECAYED = ("proj_in.", "cls_embedding.")


@dataclass(frozen=True)
class TrainState:
    """State of a run after a step.

    step, total: steps done, and in the whole run.  losses: scalars still on the device, read by `metrics`.
    learning_rate: of this step.  rate: steps per second since the run started or resumed.
    model: the weights to evaluate or sample from: the EMA if there is one.
    world: the processes of the run.  waiting: share of the elapsed time spent waiting for data.
    epoch: images trained on, over those of the data set.  gradient_norm: before clipping.
    images_per_second: on all processes, since the run started or resumed.
    image_flops: operations of the model per image, forward and backward.  peak: 10^12 operations per second that a
    device can do; 0 if unknown.
    """

    step: int
    total: int
    losses: Mapping[str, Tensor]
    learning_rate: float
    rate: float
    model: nn.Module = field(repr=False)
    world: World = field(default_factory=World, repr=False)
    waiting: float = 0.0
    epoch: float = 0.0
    images_per_second: float = 0.0
    gradient_norm: Tensor | None = None
    image_flops: int = 0
    peak: float = 0.0

    def metrics(self) -> dict[str, float]:
        """The losses as numbers; waits for the device."""
        return {name: float(value) for name, value in self.losses.items()}

    def numbers(self) -> dict[str, float]:
        """What is logged beside the losses, by name; waits for the device."""
        found = {"learning_rate": self.learning_rate, "epoch": self.epoch}
        if self.gradient_norm is not None:
            found["gradient_norm"] = float(self.gradient_norm)
        found |= {"rate": self.rate, "images_per_second": self.images_per_second, "waiting": self.waiting}
        teraflops = self.image_flops * self.images_per_second / self.world.size / 1e12  # of each device
        return found | {"teraflops": teraflops} | ({"utilisation": teraflops / self.peak} if self.peak else {})

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
        self.step, self._saved = 0, -1
        self.ema = copy.deepcopy(model).requires_grad_(False).eval() if recipe.ema_decay else None
        self.world.shard(model, recipe.precision)
        if self.ema is not None:
            self.world.shard(self.ema.to(execution.average_on) if execution.average_on else self.ema, recipe.precision)
        self._parameters = list(model.parameters())  # walking a model's modules takes milliseconds
        self._averages = [] if self.ema is None else list(self.ema.parameters())
        self._buffers = [] if self.ema is None else list(zip(self.ema.buffers(), model.buffers(), strict=True))
        self.optimizer = make_optimizer(model, recipe)
        self.others = dict(others or {})
        self.skipped = torch.zeros(2, device=next(model.parameters()).device)  # skipped steps: consecutive, total
        self.image_flops = training_flops(model, recipe.repeats if isinstance(recipe, ARRecipe) else 1)
        self.peak = peak_teraflops(self.skipped.device, execution.peak_teraflops)
        self._feed: Feed | None = None
        self._losses: list[dict[str, Tensor]] = []
        self._lock: BaseFileLock | None = None
        self._checkpoints: Checkpoints | None = None
        self._between_steps = True  # whether all that is stored belongs to one step
        if self.folder is not None:
            try:
                self._open(self.folder, execution)
            except BaseException:  # whoever keeps the error, as a notebook does, keeps this run
                self._release()
                raise
        self._start_time, self._start_step = time.monotonic(), self.step

    def _open(self, folder: Path, execution: Execution) -> None:
        def prepare() -> None:
            self._lock = locked_run(folder)
            if not holds_model_alone(folder):
                open_facts(folder, self.facts, execution.override)
            else:  # there is nothing to override with
                check_model_alone(folder, self.facts)
            remove_partial_files(folder)

        def clean() -> None:
            cut_metrics(folder / METRICS_FILE, self.step)
            if not self.done:  # a model of fewer steps must not pass for this run's
                (folder / CONFIG_FILE).unlink(missing_ok=True)

        device = next(self.model.parameters()).device
        self.world.first_does(prepare)
        state = read_state(folder, "cpu" if self.world.sharded else device) if is_visible(folder) else None
        alone = state is None and holds_model_alone(folder)
        resumed = (0, "a model" if alone else "none") if state is None else (state.step, f"{state.digest:08x}")
        check_agreement(self.world, folder, self.facts, *resumed)
        if state is not None:
            self._resume(state)
        elif alone:
            self._take_model(folder)
        good = None if state is None else state.step
        self._checkpoints = Checkpoints(folder, self.world, execution.keep_every, device.type != "cpu", good)
        self.world.first_does(clean)

    @property
    def result(self) -> nn.Module:
        """The weights to use: the EMA if there is one."""
        return self.ema if self.ema is not None else self.model

    @property
    def done(self) -> bool:
        """Whether all steps of the recipe are done."""
        return self.step >= self.recipe.steps

    def generator(self, device: torch.device | str, number: int = 0) -> torch.Generator:
        """Random generator for a micro-batch of the next step; depends on (seed, step, number) alone."""
        return keyed_generator(self.recipe.seed, self.step, device, number)

    def feed(self, data: ImageData, device: torch.device | str, workers: int = 0) -> Feed:
        """The batches of the remaining steps; broken images are logged to `skipped-RANK.jsonl`."""
        feed = Feed(data, self.recipe, range(self.step, self.recipe.steps), self.world, device, workers)
        if self.folder is not None:
            feed.log = self.folder / SKIPPED.format(self.world.rank)
        self._feed = feed
        return feed

    def micro_batches(self, objective: nn.Module, batch: list[MicroBatch]) -> Iterator[MicroBatch]:
        """The micro-batches of a step; processes exchange gradients only with the last one."""
        self._between_steps = False
        for micro_batch in batch:
            with self.world.synchronised(objective, last=micro_batch is batch[-1]):
                yield micro_batch

    def accumulate(self, losses: Mapping[str, Tensor], count: int = 1) -> None:
        """Add the gradient of one micro-batch, out of `count` on this process (gradient accumulation)."""
        if not self._losses:
            for optimizer in (self.optimizer, *(other for _, other in self.others.values())):
                optimizer.zero_grad(set_to_none=True)
        (losses["loss"] / count).backward()
        self._losses.append({name: value.detach() for name, value in losses.items()})

    def update(self) -> TrainState:
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
        norm = whole(nn.utils.clip_grad_norm_(self._parameters, self.recipe.clip))
        self._step_optimizers(finite & torch.isfinite(norm))
        self.step += 1
        self._between_steps = True
        state = self._state(losses, rate, norm)
        if self.step % self.recipe.log_every == 0 or self.done:
            self._log(state)
        elif self.skipped.device.type == "cpu":
            self._check_skipped(state)
        if self.step % self.recipe.save_every == 0 and not self.done:
            self.save()
        return state

    @contextmanager
    def checkpointed(self) -> Iterator["Run"]:
        """Context for the training loop: a stop signal, or leaving the loop at a `yield`, saves a checkpoint.

        So does an error between two steps, such as data that cannot be read. After an error within a step, the last
        saved checkpoint stays the good one.
        """
        try:
            with signals.deferred():
                try:
                    yield self
                    self._finish()
                except (Stopped, GeneratorExit) as reason:
                    self._save_to_disk()
                    if isinstance(reason, GeneratorExit):
                        raise
                except (OSError, ValueError, RuntimeError) as error:
                    self._save_after(error)
                    raise
        finally:
            self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def save(self) -> None:
        """Write a checkpoint atomically; from a GPU, in the background. All processes must call it."""
        if self._checkpoints is not None:
            self._checkpoints.write(self.step, dict(self._tensors()), {"facts": json.dumps(self.facts)})
            self._saved = self.step

    def _save_to_disk(self) -> None:
        """Save unless it is done, and wait until all processes have written their shares."""
        if self._checkpoints is not None:
            if self._saved != self.step:
                self.save()
            self._checkpoints.wait()
            self.world.wait()
            self._checkpoints.rotate()

    def _save_after(self, error: Exception) -> None:
        """Save after an error between two steps; the error says that it was done."""
        if self._checkpoints is None or not self._between_steps:
            return
        try:
            if self._saved != self.step:
                self.save()
            self._checkpoints.wait()
            error.add_note(f"{self.folder} holds step {self.step}; once this is mended, the same command goes on")
        except OSError as second:
            error.add_note(f"{second}; {self.folder} holds an earlier step")

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
        """Mean over the step's micro-batches on all processes."""
        found, self._losses = self._losses, []
        if len(found) == 1:
            return self.world.mean(found[0])
        return self.world.mean({name: torch.stack([one[name] for one in found]).mean() for name in found[0]})

    def _step_optimizers(self, finite: Tensor) -> None:
        """Step the optimisers if `finite`, without waiting for the device, then update the EMA."""
        bad = (~finite).float()
        for _, model, optimizer in self._trained():
            sharded = model is self.model  # modules trained beside it never are
            found_inf = self.world.replicated(bad) if sharded else bad
            optimizer.found_inf = found_inf  # type: ignore[attr-defined]  # as a gradient scaler does
            optimizer.step()
        self.skipped = torch.stack((bad * (self.skipped[0] + 1), self.skipped[1] + bad))
        self._update_ema()

    def _state(self, losses: Mapping[str, Tensor], learning_rate: float, norm: Tensor) -> TrainState:
        elapsed = max(1e-9, time.monotonic() - self._start_time)
        rate, size = (self.step - self._start_step) / elapsed, self.recipe.batch_size
        waited, images = (self._feed.waited, len(self._feed.data)) if self._feed is not None else (0.0, 0)
        return TrainState(
            self.step, self.recipe.steps, losses, learning_rate, rate, self.result, self.world, waited / elapsed,
            self.step * size / images if images else 0.0, rate * size, norm.detach(), self.image_flops, self.peak,
        )  # fmt: skip

    @torch.no_grad()
    def _update_ema(self) -> None:
        """ema = decay ema + (1 - decay) weights; also after a skipped step, with unchanged weights."""
        if self.ema is None:
            return
        averages = [local(p) for p in self._averages]
        weights = [local(p).to(a.device) for p, a in zip(self._parameters, averages, strict=True)]
        torch._foreach_lerp_(averages, weights, 1 - self.recipe.ema_decay)
        for average, buffer in self._buffers:
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
            numbers = state.metrics() | state.numbers()
            line = {"step": state.step, **{k: v if math.isfinite(v) else None for k, v in numbers.items()}}
            if self.skipped[1] > 0:
                line["skipped_steps"] = int(self.skipped[1])
            if self._feed is not None and self._feed.broken:
                line["skipped_images"] = len(self._feed.broken)
            with (self.folder / METRICS_FILE).open("a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(line) + "\n")

    def _finish(self) -> None:
        self._save_to_disk()
        if self.folder is not None:
            model = gathered(self.result)
            assert isinstance(model, Pretrained)
            if self.world.first:
                model.save_pretrained(self.folder)
            self.world.wait()

    def _take_model(self, folder: Path) -> None:
        """The finished model of a run whose checkpoints are gone; there is no step left to take."""
        weights, _ = read_tensors(folder / WEIGHTS_FILE)
        for model in (self.model, self.ema):
            if model is not None:
                put_weights(model, weights, str(folder / WEIGHTS_FILE))
        self.step = self._saved = self.recipe.steps

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
        self._saved = self.step


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


def keyed_generator(seed: int, step: int, device: torch.device | str = "cpu", number: int = 0) -> torch.Generator:
    """A generator whose stream depends on (seed, step, number) alone; number: of a micro-batch."""
    words = [seed, step, number] if number else [seed, step]
    key = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(key >> 1)
