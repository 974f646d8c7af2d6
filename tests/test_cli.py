"""The command line as a person meets it: real processes, real folders, real signals."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from PIL import Image

from spherear import VAE, Pipeline, SphereAR, cli, train
from spherear.models.files import read_json
from spherear.study.design import GRIDS
from spherear.training.jobs.arguments import parse_job
from tests.conftest import TINY_AR, randomise

SHORT = ["--vae-steps", "4", "--ar-steps", "4", "--guidance", "3"]


def command(*args, **options):
    return subprocess.run([sys.executable, "-m", "spherear.cli", *args], capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A demonstration of a few steps: everything but the learning."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    done = command("demo", "--run", str(folder), *SHORT, check=True)
    return folder, done


def test_demo_leaves_a_run_a_figure_and_a_table(run):
    folder, done = run
    assert "recognised" in done.stdout
    results = read_json(folder / "results.json")
    assert results["command"].endswith(f"demo --run {folder} {' '.join(SHORT)}")
    assert [row["guidance_scale"] for row in results["results"]] == [3.0]
    assert results["against"] == "355 held-out images of digits, in features of its judge"
    assert set(results["results"][0]) == {
        "guidance_scale", "accuracy", "frechet", "kernel", "inception_score", "precision", "recall", "diversity",
        "saturation_shift", "contrast_shift",
    }  # fmt: skip
    with Image.open(folder / "samples.png") as figure:
        assert figure.width > figure.height > 300  # the real digits and one sheet
    assert Pipeline.from_pretrained(folder).vae.config.bottleneck == "power_spherical"
    for part, steps in (("vae", 4), ("ar", 4)):
        lines = (folder / part / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["step"] == steps


def test_demo_shows_loss_rate_and_time_left(run):
    bars = run[1].stderr
    assert "1/3 VAE" in bars
    assert "loss=" in bars
    assert "step/s" in bars or "s/step" in bars


@pytest.mark.slow
def test_demo_again_trains_nothing_and_draws_the_same(run):
    folder, _ = run
    before = {p: p.read_bytes() for p in (folder / "vae" / "model.safetensors", folder / "samples.png")}
    results = read_json(folder / "results.json")["results"]
    command("demo", "--run", str(folder), *SHORT, check=True)
    assert read_json(folder / "results.json")["results"] == results
    assert {p: p.read_bytes() for p in before} == before


def test_demo_refuses_another_run(run):
    done = command("demo", "--run", str(run[0]), "--bottleneck", "gaussian", *SHORT)
    assert done.returncode == 2
    assert "model.bottleneck: expected 'power_spherical', got 'gaussian'" in done.stderr
    assert "Traceback" not in done.stderr


def test_sample_writes_the_sheet_that_python_draws(run, tmp_path):
    folder, _ = run
    sheet = tmp_path / "sheet.png"
    options = ["--labels", "3", "8", "--seed", "5", "--zoom", "1", "--steps", "3", "--guidance-scale", "2"]
    assert cli.main(["sample", "--run", str(folder), "--count", "2", "--out", str(sheet), *options]) == 0
    from spherear import SamplingSettings, tile

    images = Pipeline.from_pretrained(folder).sample([3, 8, 3, 8], SamplingSettings(2.0, steps=3), seeds=5)
    with Image.open(sheet) as picture:
        assert list(picture.tobytes()) == tile(images, 2).flatten().tolist()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sample", "--run", "nowhere"], "'nowhere' is not a folder here; expected a folder"),
        (["sample", "--guidance-scale", "-1"], "guidance_scale is -1.0; expected"),
        (["sample", "--labels", "12"], "label 12 is out of range; expected 0 to 9, or 'none'"),
        (["sample", "--count", "0"], "count is 0; expected at least 1"),
        (["sample", "--device", "abacus"], "device is 'abacus'; expected auto, cpu, cuda"),
        (["train", "vae", "--preset", "cats"], "preset is 'cats'; expected one of 'digits'"),
        (
            ["train", "vae", "--data", "cats"],
            "data is 'cats'; expected one of 'digits', 'folder', 'hub', 'mnist', 'shapes', 'tar'",
        ),
        (["train", "ar", "--vae", "nowhere"], "'nowhere' is not a folder here"),
        (["demo", "--guidance", "1", "nan"], "guidance_scale is nan; expected a finite number"),
        (["demo", "--guidance"], "guidance is empty; expected at least one scale"),
        (["demo", "--vae-steps", "0"], "steps is 0; expected at least 1"),
        (["bench", "decode", "--threads", "-1"], "threads is -1; expected 0 or more"),
        (["lab", "mine", "--port", "70000"], "port is 70000; expected 0 (any that is free) to 65535"),
        (["page", "--port", "-1"], "port is -1; expected 0"),
        (["evaluate", "digits-vq", "--seed", "-1"], "seed is -1; expected 0 to 2^64"),
        (["evaluate", "~nobody-has-this-name/x"], "path is '~nobody-has-this-name/x'; expected a home that exists"),
        (["train", "vae", "--dry-run", "--teraflops", "0"], "teraflops is 0.0; expected a finite number above 0"),
        (["train", "vae", "--average-on", "zz"], "device is 'zz'"),
        (
            ["train", "vae", "--data", "folder:~nobody-has-this-name"],
            "path is '~nobody-has-this-name'; expected a home",
        ),
    ],
)
def test_what_a_person_can_mend_is_one_line(run, args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if args[0] == "sample" and "--run" not in args:
        args = [*args, "--run", str(run[0])]
    assert cli.main(args) == 2
    errors = capsys.readouterr().err
    assert f"error: {message}" in errors
    assert list(tmp_path.iterdir()) == []


def test_classes_are_requested_and_told_by_name(tmp_path, capsys, tiny_vae):
    names = ("cat", "dog", "cow", "hen", "pig", "owl", "rat", "ant", "bee", "fox")
    Pipeline(tiny_vae, randomise(SphereAR(replace(TINY_AR, classes=names)))).save_pretrained(tmp_path / "model")
    args = ["sample", "--run", str(tmp_path / "model"), "--steps", "2", "--zoom", "1"]
    for labels, path in ((("fox", "cat"), "names.png"), (("9", "#0"), "numbers.png")):
        assert cli.main([*args, "--labels", *labels, "--out", str(tmp_path / path)]) == 0
        assert capsys.readouterr().out == f"{tmp_path / path}: fox, cat\n"
    assert (tmp_path / "names.png").read_bytes() == (tmp_path / "numbers.png").read_bytes()
    assert cli.main([*args, "--labels", "cats", "--out", str(tmp_path / "x.png")]) == 2
    assert "class is 'cats'; expected one of 'cat'" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_a_recipe_that_cannot_be_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "vae", "--steps", "0"])
    assert stop.value.code == 2
    assert "steps is 0; expected at least 1" in capsys.readouterr().err


def test_train_commands_and_their_defaults(tmp_path):
    job = parse_job(["vae", "--preset", "shapes", "--batch-size", "3", "--run", str(tmp_path)])
    assert (job.preset, job.data, job.recipe.batch_size, job.recipe.steps) == ("shapes", "shapes", 3, 6000)
    assert parse_job(["vae", "--out", str(tmp_path)]).run == tmp_path
    assert parse_job(["vae", f"--out={tmp_path}"]).run == tmp_path
    big = parse_job(["vae", "--preset", "imagenet256", "--workers", "4", "--sharded"])
    assert (big.recipe.lpips_weight, big.recipe.gan_weight, big.recipe.gan_start) == (1.0, 0.5, 20_000)
    assert (big.execution.workers, big.execution.sharded) == (4, True)
    job = parse_job(["ar", "--preset=imagenet256-L"])
    assert (str(job.vae), job.recipe.batch_size) == ("runs/imagenet256-L/vae", 512)


@pytest.mark.skipif(os.name != "posix", reason="needs SIGINT")
def test_ctrl_c_leaves_a_run_that_resumes(tmp_path):
    folder = tmp_path / "vae"
    args = ["train", "vae", "--run", str(folder), "--batch-size", "4", "--log-every", "1", "--save-every", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "spherear.cli", *args, "--steps", "100000"], stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command goes on" in out
    done = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    job = parse_job([*args[1:], "--steps", "100000"])
    assert next(train.states_of(job)[0]).step == done[-1] + 1


@pytest.mark.parametrize(
    ("args", "known"),
    [(["study", "huge"], "quick"), (["demo", "--bottleneck", "cats"], "power_spherical"), (["sampel"], "'sample'")],
)
def test_an_unknown_word_gets_the_known_ones(args, known, capsys):
    try:
        status = cli.main(args)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert known in capsys.readouterr().err


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"spherear {cli.__version__}\n"


def test_train_to_the_end(tmp_path, capsys):
    assert cli.main(["train", "vae", "--run", str(tmp_path / "v"), "--batch-size", "4", "--steps", "2"]) == 0
    assert f"finished: {tmp_path / 'v'}" in capsys.readouterr().out
    assert VAE.from_pretrained(tmp_path / "v").config.image_size == 16
    assert (
        train.main(
            ["ar", "--vae", str(tmp_path / "v"), "--run", str(tmp_path / "a"), "--steps", "2", "--batch-size", "4"]
        )
        == 0
    )
    assert (tmp_path / "a" / "model.safetensors").exists()


def test_doctor(capsys):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "torch 2." in out
    assert "CPU:" in out
    assert "lab: ready" in out


def test_doctor_names_what_the_lab_misses(monkeypatch, capsys):
    monkeypatch.setattr("spherear.live.commands.LAB", ("matplotlib", "no-such-library"))
    assert cli.main(["doctor"]) == 0
    assert 'lab: not ready, no-such-library missing: pip install "spherear[lab]"' in capsys.readouterr().out


def test_demo_without_matplotlib_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["demo", "--run", str(tmp_path / "run")]) == 2
    assert 'matplotlib is not installed; expected it: pip install "spherear[lab]"' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "args", [[], ["demo"], ["sample"], ["evaluate"], ["doctor"], ["train"], ["train", "vae"], ["train", "ar"]]
)
def test_help_is_there(args, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*args, "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "usage: spherear" in printed
    assert args or "--import MODULE" in " ".join(printed.split())


@pytest.mark.slow
def test_demo_learns_digits(tmp_path):
    """The whole demonstration with its defaults: recognised at guidance 2 as often as promised, in memory.

    On one thread, as every test: beside another worker two threads would wait for each other.
    """
    command("demo", "--run", str(tmp_path / "run"), check=True)
    rows = {row["guidance_scale"]: row for row in read_json(tmp_path / "run" / "results.json")["results"]}
    assert rows[2.0]["accuracy"] >= 0.9
    assert rows[2.0]["diversity"] > 0.6
    assert rows[2.0]["recall"] > 0.5
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # GiB, where ru_maxrss is in KiB
    assert peak < 4


@pytest.mark.slow
def test_study_draws_what_it_measured_and_goes_on(tmp_path, monkeypatch, capfd):
    tiny = replace(
        GRIDS["quick"], preset="digits", variants=("S-04", "G-04"), seeds=(0,), vae_steps=2, ar_steps=2, images=40,
        solver_steps=2, scales=(1.0, 3.0), ablation_scales=(), methods=("euler-1",),
    )  # fmt: skip
    monkeypatch.setitem(GRIDS, "quick", tiny)
    monkeypatch.setattr(sys, "argv", ["spherear", "study", "quick"])
    assert cli.main(["study", "quick", "--out", str(tmp_path)]) == 0
    out, err = capfd.readouterr()
    assert "S-04 seed 0: " in err
    written = ("results.jsonl", *(f"figures/{name}" for name in ("guidance.png", "drift.png", "claims.md", "heads.md")))
    for name in written:
        assert str(tmp_path / name) in out
        assert (tmp_path / name).stat().st_size > 0
    assert "S is below G" in (tmp_path / "figures" / "claims.md").read_text()
    assert read_json(tmp_path / "grid.json")["command"] == "spherear study quick"
    assert cli.main(["study", "quick", "--out", str(tmp_path), "--budget", "0.001"]) == 0  # goes on as it began
    assert "seed 0: " not in capfd.readouterr().err
    assert cli.main(["study", "full", "--out", str(tmp_path)]) == 2
    assert "holds the study 'quick'; expected 'full'" in capfd.readouterr().err


def test_a_study_of_recorded_cells_trains_nothing(tmp_path, capfd):
    assert cli.main(["study", "doubled", "--recorded", "--out", str(tmp_path)]) == 0
    out, err = capfd.readouterr()
    assert "4 cells are taken from the records that ship" in err
    assert "seed 6" not in err
    assert str(tmp_path / "figures" / "claims.md") in out
    assert cli.main(["study", "heads", "--recorded", "--out", str(tmp_path / "heads")]) == 0  # not all take its solver
    out, err = capfd.readouterr()
    assert "30 cells are taken from the records that ship" in err
    assert "geodesic mean velocity" in (tmp_path / "heads" / "figures" / "heads.md").read_text()
    assert cli.main(["study", "quick", "--recorded", "--out", str(tmp_path / "quick")]) == 2
    assert "study is 'quick'; expected one of 'dim2', 'dim8', 'doubled'" in capfd.readouterr().err
    assert cli.main(["study", "doubled", "--recorded", "--judge", "mine", "--out", str(tmp_path / "quick")]) == 2
    assert "judge is 'mine'; expected none" in capfd.readouterr().err
    assert not (tmp_path / "quick").exists()


@pytest.mark.slow
def test_a_study_with_a_broken_cell_says_so(tmp_path, monkeypatch, capfd):
    tiny = replace(GRIDS["quick"], preset="digits", variants=("S-04",), seeds=(0,), vae_steps=2, ar_steps=2, images=40)
    monkeypatch.setitem(GRIDS, "quick", tiny)
    broken = tmp_path / "S-04" / "seed-0" / "vae" / "run.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{}")
    assert cli.main(["study", "quick", "--out", str(tmp_path)]) == 1
    assert "S-04 seed 0 failed (ValueError:" in capfd.readouterr().err


def test_sample_says_engine_dtype_and_device(tmp_path, capsys):
    sheet = str(tmp_path / "x.png")
    begin = ["sample", "--run", "digits-power_spherical", "--steps", "1", "--device", "cpu", "--out", sheet]
    assert cli.main(begin) == 0
    assert capsys.readouterr().err.splitlines()[0] == (
        "digits-power_spherical: AR model of 0.7 million parameters, 4 MiB of weights; engine eager, float32, on cpu"
    )
    assert cli.main([*begin, "--engine", "packed", "--dtype", "float32"]) == 0
    assert "engine packed, float32, on cpu" in capsys.readouterr().err


def test_demo_and_evaluate_say_it_too(run, tmp_path, capsys):
    folder, done = run
    assert "digits are drawn with engine eager, float32, on c" in done.stderr
    options = ["--count", "4", "--steps", "1", "--engine", "packed", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert cli.main(["evaluate", str(folder), *options, "--data", "digits"]) == 0
    assert "engine packed, float32, on cpu" in capsys.readouterr().err
    facts = read_json(tmp_path / "out" / "samples.json")
    assert (facts["engine"], facts["dtype"], facts["device"]) == ("packed", "float32", "cpu")


@pytest.mark.parametrize("word", [["sample", "--run", "digits-vq"], ["evaluate", "digits-vq"], ["demo"], ["study"]])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--engine", "warp"], "engine is 'warp'; expected one of"),
        (["--dtype", "float16"], "dtype is 'float16'; expected one of"),
        (["--device", "cpu", "--engine", "cuda_graphs"], "engine is 'cuda_graphs' on cpu; expected cuda"),
    ],
)
def test_what_a_model_cannot_be_run_with_is_refused_first(word, option, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*word, *option]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
