"""A model out of a checkpoint: of a run that is not finished, or of an earlier step of one."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from spherear.models.ar import ARConfig, SphereAR
from spherear.models.config import require
from spherear.models.files import read_json
from spherear.models.pretrained import CONFIG_FILE, WEIGHTS_FILE
from spherear.models.vae import VAE, VAEConfig
from spherear.train import latent_deviation
from spherear.training.checkpoint import State, read_state, steps_of
from spherear.training.data.catalog import load_data
from spherear.training.run_file import RUN_FILE

PARTS = ("vae", "ar")


def export(run: Path, out: Path, step: int | None = None) -> dict[str, int]:
    """Write the models of a run's checkpoints to `out`, where `from_pretrained` reads them -> part: its step.

    run: the folder of one run, or one with `vae` and `ar` in it; `out` has the same layout. Weights are the EMA if
    there is one. Of the second kind, a VAE that is finished is copied.
    step: which checkpoint, of the AR model in the second kind; None: the newest.
    Errors: ValueError if `run` holds no run or no such checkpoint, or `out` holds another model.
    """
    if (run / RUN_FILE).exists():
        return {"": _export(run, out, step)}
    missing = [name for name in PARTS if not (run / name / RUN_FILE).exists()]
    require(not missing, f"{run} has no run in {', '.join(missing)}; expected a run's folder, or one with vae/ and ar/")
    found = {}
    for name in PARTS:
        if name == "vae" and (run / name / CONFIG_FILE).exists():
            _require_empty(out / name)
            (out / name).mkdir(parents=True, exist_ok=True)
            for file in (WEIGHTS_FILE, CONFIG_FILE):
                shutil.copy2(run / name / file, out / name / file)
            found[name] = steps_of(run / name)[-1]
        else:
            found[name] = _export(run / name, out / name, step if name == "ar" else None)
    return found


def _export(run: Path, out: Path, step: int | None) -> int:
    state = read_state(run, step=step)
    if state is None:
        raise ValueError(f"{run} has no checkpoint{'' if step is None else f' of step {step}'}; it has {steps_of(run)}")
    _require_empty(out)
    facts = json.loads(state.metadata["facts"])
    model = _model(state, facts)
    if isinstance(model, VAE) and model.bottleneck.radius is None:
        model.rescale(1.0)
        data = load_data(facts["data"], model.config.image_size)
        model.rescale(1.0 / latent_deviation(model, data, facts["recipe"]["seed"], "cpu"))
    model.save_pretrained(out)
    return state.step


def _model(state: State, facts: dict[str, Any]) -> VAE | SphereAR:
    """The model that a run samples from: its EMA if there is one."""
    prefix = "ema/" if facts["recipe"]["ema_decay"] else "model/"
    weights: dict[str, torch.Tensor] = {
        name.removeprefix(prefix): state[name] for name in state.names() if name.startswith(prefix)
    }
    if facts["kind"] == "vae":
        return VAE.from_weights(VAEConfig.from_dict(facts["model"]), weights, state.source)
    return SphereAR.from_weights(ARConfig.from_dict(facts["model"]), weights, state.source)


def _require_empty(out: Path) -> None:
    require(
        not (out / CONFIG_FILE).exists() and not (out / RUN_FILE).exists(),
        f"{out} holds {'a run' if (out / RUN_FILE).exists() else 'a model'}; expected a new folder",
    )


def described(run: Path, out: Path, found: dict[str, int]) -> str:
    """One line per exported model."""
    return "\n".join(f"{out / name}: step {step} of {read_json(run / name / RUN_FILE)['recipe']['steps']}"
                     for name, step in found.items())  # fmt: skip
