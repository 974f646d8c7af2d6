"""One run's state: weights, optimiser, average, step count, and the folder they are kept in.

Knows: how to take an optimiser step, write a checkpoint that is whole, and go on exactly from it.
Does not know: what is trained or on what; the loops in `spherear.train` do.

A run folder holds `run.json` (what the run is), `metrics.jsonl` (one line every few steps),
`state.safetensors` (all it takes to resume; no pickle) and, once finished, `config.json` and
`model.safetensors` (the weights to use, read by `from_pretrained`).
"""

import copy
import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from spherear.models.files import read_json, read_tensors, write_json, write_tensors, write_text
from spherear.models.pretrained import Pretrained, load_weights
from spherear.training.recipes import Recipe

RUN_FILE = "run.json"
STATE_FILE = "state.safetensors"
METRICS_FILE = "metrics.jsonl"
NOT_DECAYED = ("proj_in.", "cls_embedding.")


@dataclass(frozen=True)
class TrainState:
    """Where a run stands after a step.

    step, total: done and to do.  losses: scalars still on the device, read by `metrics`.
    learning_rate: of this step.  rate: steps a second since the run began or resumed.
    model: the weights to look at or sample from, averaged where an average is kept.
    """

    step: int
    total: int
    losses: Mapping[str, Tensor]
    learning_rate: float
    rate: float
    model: nn.Module = field(repr=False)

    def metrics(self) -> dict[str, float]:
        """The losses as numbers; waits for the device."""
        return {name: float(value) for name, value in self.losses.items()}

    @property
    def seconds_left(self) -> float:
        """At the rate so far."""
        return (self.total - self.step) / self.rate


class Run:
    """A model in training. `folder` None keeps everything in memory.

    facts: what the run is, as JSON; a folder that holds a run of other facts is refused.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, facts: Mapping[str, Any], folder: str | Path | None = None
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.facts = json.loads(json.dumps({**facts, "recipe": recipe.to_dict()}))
        self.folder = Path(folder) if folder is not None else None
        self.step = 0
        self.ema = copy.deepcopy(model).requires_grad_(False).eval() if recipe.ema_decay else None
        self.optimizer = make_optimizer(model, recipe)
        if self.folder is not None:
            self._open(self.folder)
        self._began, self._first = time.monotonic(), self.step

    @property
    def result(self) -> nn.Module:
        """The weights to use: averaged where an average is kept."""
        return self.ema if self.ema is not None else self.model

    @property
    def done(self) -> bool:
        """Whether the recipe's steps are all taken."""
        return self.step >= self.recipe.steps

    def generator(self, device: torch.device | str) -> torch.Generator:
        """The randomness of the coming step, which depends on (seed, step) alone."""
        return keyed_generator(self.recipe.seed, self.step, device)

    def update(self, losses: Mapping[str, Tensor]) -> TrainState:
        """Descend along the gradient of `losses["loss"]`; log; checkpoint when it is time."""
        rate = self.recipe.learning_rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self._average()
        self.step += 1
        state = self._state({k: v.detach() for k, v in losses.items()}, rate)
        if self.step % self.recipe.log_every == 0 or self.done:
            self._log(state)
        if self.step % self.recipe.save_every == 0 and not self.done:
            self.save()
        return state

    @contextmanager
    def kept(self) -> Iterator["Run"]:
        """Around the loop: leaving it early at a `yield` writes a checkpoint, an error does not.

        An error may come in the middle of a step, so the last checkpoint stays the last good one.
        """
        try:
            yield self
        except GeneratorExit:
            if not self.done:
                self.save()
            raise
        self._finish()

    def save(self) -> None:
        """Write `state.safetensors`, whole or not at all."""
        if self.folder is None:
            return
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema/{k}": v for k, v in self.ema.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer/{name}/{key}"] = value
        facts = {"step": str(self.step), "facts": json.dumps(self.facts)}
        write_tensors(self.folder / STATE_FILE, tensors, facts)

    def _state(self, losses: Mapping[str, Tensor], learning_rate: float) -> TrainState:
        rate = (self.step - self._first) / max(1e-9, time.monotonic() - self._began)
        return TrainState(self.step, self.recipe.steps, losses, learning_rate, rate, self.result)

    @torch.no_grad()
    def _average(self) -> None:
        if self.ema is None:
            return
        average = get_ema_multi_avg_fn(self.recipe.ema_decay)
        average(list(self.ema.parameters()), list(self.model.parameters()), self.step)
        for kept, newest in zip(self.ema.buffers(), self.model.buffers(), strict=True):
            kept.copy_(newest)  # a codebook is an average already

    def _log(self, state: TrainState) -> None:
        metrics = state.metrics()
        if not math.isfinite(metrics["loss"]):
            kept = f"the last checkpoint in {self.folder} is good" if self.folder else "nothing was saved"
            raise FloatingPointError(f"the loss is {metrics['loss']} at step {state.step}; {kept}")
        if self.folder is not None:
            line = {"step": state.step, **metrics, "learning_rate": state.learning_rate, "rate": state.rate}
            with (self.folder / METRICS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _finish(self) -> None:
        self.save()
        if self.folder is not None:
            assert isinstance(self.result, Pretrained)
            self.result.save_pretrained(self.folder)

    def _open(self, folder: Path) -> None:
        if not (folder / RUN_FILE).exists():
            write_json(folder / RUN_FILE, self.facts)
            return
        check_facts(folder, self.facts)
        if (folder / STATE_FILE).exists():
            self._resume(folder)
        _cut_metrics(folder / METRICS_FILE, self.step)

    def _resume(self, folder: Path) -> None:
        device = next(self.model.parameters()).device
        tensors, metadata = read_tensors(folder / STATE_FILE, device)
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition("/")
            groups.setdefault(group, {})[rest] = tensor
        load_weights(self.model, groups["model"], str(folder / STATE_FILE))
        if self.ema is not None:
            load_weights(self.ema, groups["ema"], str(folder / STATE_FILE))
        parameters = dict(self.model.named_parameters())
        for name, tensor in groups["optimizer"].items():
            owner, _, key = name.rpartition("/")
            self.optimizer.state[parameters[owner]][key] = tensor
        self.step = int(metadata["step"])


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; 1-D tensors, the input projection and the class embedding are not decayed."""
    decayed: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        decayed[parameter.ndim > 1 and not name.startswith(NOT_DECAYED)].append(parameter)
    groups = [
        {"params": decayed[True], "weight_decay": recipe.weight_decay},
        {"params": decayed[False], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(recipe.beta1, recipe.beta2), fused=True)


def keyed_generator(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream depends on (seed, step) alone."""
    key = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(key >> 1)


def fingerprint(model: nn.Module) -> str:
    """A short hash of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Refuse a run folder whose run is another one, naming what differs."""
    found = _flat(read_json(folder / RUN_FILE))
    asked = _flat(facts)
    differ = sorted(k for k in found.keys() | asked.keys() if found.get(k) != asked.get(k))
    if differ:
        listed = "; ".join(f"{k} is {found.get(k)!r}, asked for {asked.get(k)!r}" for k in differ[:4])
        raise ValueError(f"{folder} holds another run ({listed}); expected the same run, or an empty folder")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return out


def _cut_metrics(path: Path, step: int) -> None:
    """Drop the lines a run wrote after the checkpoint it resumes from."""
    if path.exists():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        write_text(path, "".join(line + "\n" for line in lines))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError):
        return math.inf  # half a line, from a run that was killed as it wrote
