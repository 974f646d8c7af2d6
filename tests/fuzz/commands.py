"""The door of the command line: one option with a bad value, an unknown option, or an unknown command."""

import contextlib
import io
import random
from collections.abc import Callable
from pathlib import Path

from spherear import cli
from tests.fuzz.world import Accepted, World, words

SAYS = 8  # letters of the shortest message that can be clear
NUMBERS = {
    "count": ["0", "-3", "x", "1.5", "nan"], "natural": ["-1", "x", "1.5"], "float": ["nan", "-1", "x", "inf", "-inf"],
    "seed": ["-1", "x", "1.5", str(2**64), "-99999999999999999999"], "word": ["zz", "", "None", "digit s", "../x"],
}  # fmt: skip
DEVICES = ["zz", "cuda:x", "cuda:99", "meta:1:2"]
PLACES = {"device": DEVICES, "dtype": ["zz", "float16", ""], "engine": ["zz", "cuda_graphs", ""]}
MODELS = {"ar": ["zz", "no/such", "../x", "~zz", "{models}/ar/config.json"], "vae": ["zz", "{models}/ar/config.json"]}
SAMPLE = {
    "labels": ["-1", "11", "x", "1.5", str(10**30), "#99", ""], "count": NUMBERS["count"], "zoom": NUMBERS["count"],
    "seed": NUMBERS["seed"], "guidance-scale": NUMBERS["float"], "steps": NUMBERS["count"],
    "solver": NUMBERS["word"], "spacing": NUMBERS["word"], "schedule": NUMBERS["word"],
    "temperature": NUMBERS["float"], "last-step": ["0", "1", "nan", "x", "2"], **PLACES,
    "run": ["zz", "no/such", "../x", "a/b/c", "~zz", "{models}/ar/config.json"], "vae": MODELS["vae"],
}  # fmt: skip
SHARED = ("guidance-scale", "steps", "solver", "temperature", "vae", "seed", *PLACES)
EVALUATE = {name: SAMPLE[name] for name in SHARED} | {
    "count": ["0", "-3", "3", "x"], "shard": NUMBERS["count"], "data": NUMBERS["word"],
    "reference": ["zz", "x.npz", "folder:zz", "~zz/x", "{folder}", "{models}/vae/config.json"],
}  # fmt: skip
RECIPE = {
    "steps": NUMBERS["count"], "batch-size": NUMBERS["count"], "learning-rate": [*NUMBERS["float"], "0"],
    "ema-decay": ["1", "nan", "-1"], "weight-decay": ["nan", "inf", "-1", "x"], "beta1": ["1", "nan", "-0.1"],
    "clip": ["0", "nan", "inf"], "parts": ["0", "7", "-2"], "precision": NUMBERS["word"],
    "seed": ["-1", "x", str(2**63)], "save-every": NUMBERS["count"], "log-every": NUMBERS["count"],
    "warmup-steps": NUMBERS["natural"], "skip-limit": NUMBERS["count"], "max-broken": ["nan", "-1", "x"],
    "preset": NUMBERS["word"], "data": ["zz", "digits:zz", "folder:/zz", "tar:/zz", "hub:/zz", "folder:~zz"],
    "device": ["zz", "cuda:x"], "teraflops": ["nan", "0", "-1", "x"], "workers": ["-1", "x"], "average-on": ["zz"],
    "preview-every": ["-1", "x"], "crop": ["0.5", "nan", "inf"], "fade-start": ["-7", "x"],
}  # fmt: skip
VAE = {"l1-weight": ["nan", "-1"], "kl-weight": ["nan", "-1", "inf"], "gan-weight": ["nan", "-1"], "gan-start": ["-1"]}
AR = {"vae": ["zz", "{models}/ar"], "label-dropout": ["1", "nan", "-1"], "repeats": NUMBERS["count"]}
TRAINED = ("steps", "batch-size", "learning-rate", "ema-decay", "seed", "precision", "device")
DISTILL = {name: RECIPE[name] for name in TRAINED} | {
    "objective": NUMBERS["word"], "teacher-steps": ["0", "-3", "x", "1.5", "100000"], "vae": MODELS["vae"],
    "largest-scale": ["0.5", "nan", "inf", "x"], "repeats": NUMBERS["count"], "data": ["zz", "folder:/zz"],
}  # fmt: skip
COMMANDS: dict[tuple[str, ...], dict[str, list[str]]] = {
    ("sample", "--run", "{models}", "--steps", "1", "--out", "{folder}/x.png"): SAMPLE,
    ("evaluate", "{models}", "--data", "digits", "--steps", "1", "--out", "{folder}/out"): EVALUATE,
    ("train", "vae", "--dry-run", "--run", "{folder}/run"): RECIPE | VAE | {"bottleneck": NUMBERS["word"]},
    ("train", "ar", "--dry-run", "--run", "{folder}/run", "--vae", "{models}/vae"): RECIPE
    | AR
    | {"cached-copies": ["-1", "x"]},
    ("distill", "{models}", "--data", "digits", "--out", "{folder}/out"): DISTILL,
    ("demo", "--run", "{folder}/run"): {
        "guidance": NUMBERS["float"], "bottleneck": NUMBERS["word"], "seed": ["-1", "x"], **PLACES,
        "vae-steps": NUMBERS["count"], "ar-steps": NUMBERS["count"],
    },
    ("study", "quick", "--out", "{folder}/study"): {
        "jobs": ["-1", "x"], "budget": ["nan", "0", "-1", "x", "-inf"], **PLACES,
    },
    ("film", "--out", "{folder}/x.gif"): {
        "scales": NUMBERS["float"], "families": [*NUMBERS["word"], "VQ"], "labels": SAMPLE["labels"],
        "seed": ["-1", "x"],
        "zoom": NUMBERS["count"], "pause": NUMBERS["count"], "out": ["{folder}/x.mp4", "x"],
    },
    ("bench", "decode", "--out", "{folder}/x.json"): {
        "batches": ["0", "-1", "x"], "tokens": ["-1", "x"], "steps": ["-1", "x"], "repeats": ["-1", "x"],
        "threads": ["-1", "x"], "dtypes": NUMBERS["word"], "presets": NUMBERS["word"], "device": ["zz"],
    },
    ("notebooks",): {"folder": ["/zz"], "only": ["zz"]},
    ("lab", "{folder}/mine"): {"port": ["x", "1.5", "-1", "70000"], **MODELS, **PLACES},
    ("page",): {**MODELS, **PLACES, "port": ["x", "-1", "70000"], "visits": ["0", "-1", "x"], "idle": ["0", "-3", "x"]},
}  # fmt: skip


def door_options(rng: random.Random, world: World, folder: Path) -> Callable[[], object]:
    """A command with one option that has a bad value, an unknown option, or an unknown command."""
    begin = rng.choice(list(COMMANDS))
    options = COMMANDS[begin]
    name = rng.choice(sorted(options))
    args = [*begin, f"--{name}", rng.choice(options[name])]
    chance = rng.random()
    if chance < 0.05:
        args = [*begin, "--" + words(rng).replace(" ", ""), "1"]
    elif chance < 0.08:
        args = [words(rng), *begin[1:]]
    for mark, place in {"{models}": str(world.models), "{folder}": str(folder)}.items():
        args = [arg.replace(mark, place) for arg in args]
    return lambda: run_command(args)


def run_command(args: list[str]) -> None:
    """Exit status 2 and a message on stderr without a traceback, or Accepted."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(args)
    except SystemExit as stop:
        status = stop.code
    text = err.getvalue() + out.getvalue()
    if status == 0:
        raise Accepted(f"spherear {' '.join(args)}")
    assert status == 2, f"exit status {status}: {text[-300:]}"
    assert len(text.strip()) > SAYS, text
    assert "Traceback" not in text, text[-300:]
