"""Parts of one's own, in a module outside the package: known everywhere, saved by name, missed by name."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from spherear import VAE, Pipeline, SamplingSettings, SphereAR, cli, registry
from spherear.evaluation.judge_inputs import JUDGES
from spherear.live import GuidanceExplorer
from spherear.models.config import one_of
from spherear.models.files import read_json
from spherear.models.sizes import HEADS, ARConfig
from spherear.registry import Table, import_part
from spherear.sampling.placement import Placement
from spherear.sampling.settings import SCHEDULES
from spherear.sampling.solvers import SOLVERS, SPACINGS
from spherear.sphere.families import FAMILIES, family_of_letter
from spherear.study.design import GRIDS, Grid, find_grid
from spherear.study.judges import find_judge
from spherear.study.records import read_records
from spherear.train import train_ar, train_vae
from spherear.training.data.catalog import LOADERS, load_data
from spherear.training.data.propose import look_at, propose_recipes, propose_sizes
from tests.conftest import TINY_AR, TINY_VAE, draw, randomise
from tests.live.test_panels import settled
from tests.own.made import command, write_module
from tests.test_house import PACKAGE

pytestmark = pytest.mark.usefixtures("as_users_do")  # the checks of the tests know the names that ship
TABLES = (FAMILIES, HEADS, SCHEDULES, SOLVERS, SPACINGS, LOADERS, JUDGES, GRIDS)
NAMES = ("cube", "doubled", "rising", "leap", "cubed", "stripes", "brightness", "tiny")


def forget(module):
    """The tables without the rows of a module, and the module not imported."""
    for table in TABLES:
        for name in [name for name, owner in table.modules.items() if owner == module]:
            del table[name], table.modules[name]
    sys.modules.pop(module, None)


@pytest.fixture
def path(tmp_path, monkeypatch):
    """The file of a module that nobody has imported."""
    monkeypatch.setenv("SPHEREAR_IMPORT", "")
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE.parent))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield write_module(tmp_path)
    forget("my_parts")


@pytest.fixture
def parts(path):
    """The module, imported."""
    import_part(str(path))
    return sys.modules["my_parts"]


def test_every_kind_of_part_is_registered_in_one_way(parts):
    for table, name in zip(TABLES, NAMES, strict=True):
        assert [part for part, module in table.modules.items() if module == "my_parts"] == [name]
        one_of("name", name, table)


def test_letter_colour_and_marker_come_by_default(parts):
    row = FAMILIES["cube"]
    assert (row.letter, row.label) == ("C", "C cube")
    others = [other for other in FAMILIES.values() if other.name != "cube"]
    assert row.color not in {other.color for other in others}
    assert row.marker not in {other.marker for other in others}
    assert family_of_letter("C") is row
    again = FAMILIES.register(parts.Cube, letter="Q", title="dice", color="#123456", marker="8")
    assert again is parts.Cube
    assert (FAMILIES["cube"].letter, FAMILIES["cube"].color) == ("Q", "#123456")


@pytest.mark.parametrize(
    ("table", "part", "options", "error"),
    [
        (FAMILIES, object, {}, "family is .*; expected a subclass of Bottleneck with a name"),
        (FAMILIES, "cube", {"letter": "S"}, "the letter of 'cube' is 'S'; expected one without '-' that is not taken"),
        (FAMILIES, "cube", {"colour": "red"}, "a family has no field .'colour'.; expected some of"),
        (HEADS, int, {}, "head is .*; expected a subclass of VelocityHead or CategoricalHead"),
        (LOADERS, "x", {"name": "x"}, "data set is 'x'; expected a function"),
        (LOADERS, lambda split, image_size: 0, {"name": "x", "splits": ("test",)}, "splits are .*; expected `train`"),
        (JUDGES, "x", {"name": "x"}, "judge is 'x'; expected a function"),
        (GRIDS, 3, {"name": "x"}, "grid is 3; expected a Grid"),
        (SCHEDULES, lambda scale: scale, {"name": "linear"}, "the name 'linear' is taken by a row that ships"),
        (SCHEDULES, lambda scale: scale, {"name": "rising"}, "the name 'rising' is taken by the module my_parts"),
    ],
)
def test_what_cannot_be_a_part_is_refused(parts, as_users_do, table, part, options, error):
    before = dict(table)
    with pytest.raises((TypeError, ValueError), match=error):
        table.register(parts.Cube if part == "cube" else part, **options)
    assert table == before


def test_the_option_makes_parts_known_to_a_command(path, capsys, monkeypatch):
    monkeypatch.chdir(path.parent)
    with pytest.raises(SystemExit):
        cli.main(["sample", "--help", "--import", "my_parts"])
    out = capsys.readouterr().out
    assert "rising" in out
    assert "leap" in out
    with pytest.raises(SystemExit):
        cli.main(["demo", "--help"])
    assert "cube" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--import"], "--import is followed by ''; expected a module or a .py file"),
        (["--import", "no_such_parts"], "the module 'no_such_parts' cannot be imported (ModuleNotFoundError"),
        (["--import", "no/such.py"], "is not a file; expected a Python module"),
    ],
)
def test_what_cannot_be_imported_is_one_line(args, message, path, capsys):
    assert cli.main(["sample", *args]) == 2
    assert message in capsys.readouterr().err


def test_an_entry_point_is_loaded_when_a_name_is_missing(path, monkeypatch):
    monkeypatch.setattr(registry, "_plugins", [])
    good = SimpleNamespace(name="mine", value="my_parts", load=lambda: import_part(str(path)))
    bad = SimpleNamespace(name="theirs", value="theirs", load=lambda: 1 / 0)
    monkeypatch.setattr(registry, "entry_points", lambda group: [bad, good] if group == "spherear" else [])
    with pytest.warns(UserWarning, match=r"the entry point theirs \(theirs\) cannot be loaded: division by zero"):
        assert SamplingSettings(schedule="rising").scale_at(2, 4) == pytest.approx(1 + 3.5 / 4)


def test_the_variable_is_read_when_a_name_is_missing(path, monkeypatch):
    with pytest.raises(ValueError, match="solver is 'leap'; expected one of"):
        SamplingSettings(solver="leap")
    monkeypatch.setenv("SPHEREAR_IMPORT", str(path))
    assert SamplingSettings(solver="leap", spacing="cubed").evaluations == 1


def test_saved_settings_name_the_module(parts, path):
    text = SamplingSettings(schedule="rising", solver="leap").to_json()
    assert SamplingSettings.from_json(text).to_dict()["modules"] == ["my_parts"]
    assert "modules" not in SamplingSettings().to_dict()
    forget("my_parts")
    message = (
        "schedule is 'rising'; expected one of .* the module my_parts, .*: `import my_parts`, or --import my_parts"
    )
    with pytest.raises(ValueError, match=message):
        SamplingSettings.from_json(text)


def test_saved_models_name_the_module(parts, tmp_path):
    vae = randomise(VAE(replace(TINY_VAE, bottleneck="cube")))
    ar = randomise(SphereAR(replace(TINY_AR, head="doubled")))
    Pipeline(vae, ar).save_pretrained(tmp_path / "model")
    assert read_json(tmp_path / "model" / "ar" / "config.json")["modules"] == ["my_parts"]
    again = Pipeline.from_pretrained(tmp_path / "model")
    assert type(again.ar.head).__name__ == "Doubled"
    forget("my_parts")
    for model, part in ((VAE, "vae"), (SphereAR, "ar")):
        with pytest.raises(ValueError, match="was registered by the module my_parts, which is not imported"):
            model.from_pretrained(tmp_path / "model" / part)
    with pytest.raises(ValueError, match="--import my_parts on the command line"):
        Pipeline.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("engine", ["eager", "packed"])
def test_a_head_of_ones_own_is_drawn_from(parts, tiny_vae, engine):
    """One Euler step of twice the velocity is as long as one of a head whose last layer is twice as large."""
    own = randomise(SphereAR(replace(TINY_AR, head="doubled")))
    plain = SphereAR(TINY_AR).eval()
    plain.load_state_dict(own.state_dict())
    with torch.no_grad():
        plain.head.final_linear.weight *= 2
        plain.head.final_linear.bias *= 2
    settings = SamplingSettings(2.0, solver="euler", steps=2)
    place = Placement("cpu", "float32", engine)
    images = [Pipeline(tiny_vae, ar).place(place).sample([1, 2], settings, seeds=3) for ar in (own, plain)]
    assert_close(images[0], images[1], rtol=1e-4, atol=1e-4)
    x, t, condition = draw("x", 5, 4).float(), torch.rand(5), draw("c", 5, TINY_AR.width).float()
    assert_close(own.head(x, t, condition), plain.head(x, t, condition))


def test_a_head_fits_its_tokens(parts):
    with pytest.raises(ValueError, match="head is 'doubled' and codes is 8; expected a head of codes"):
        ARConfig(head="doubled", codes=8)
    with pytest.raises(ValueError, match="head is 'twice'; expected one of"):
        ARConfig(head="twice")


def test_a_data_set_and_a_judge_of_ones_own(parts):
    data = load_data("stripes", 16)
    assert load_data("stripes:test", 16).spec == "stripes:test"
    judge = find_judge("brightness", "stripes", 16)
    images, labels = data.batch(torch.arange(20))
    assert (judge.network.classify(judge.network.features(images)).argmax(1) == labels).all()
    grid = find_grid("tiny")
    assert (grid.variants, grid.data_spec) == (("S-02", "C-02"), "stripes")
    values = grid.to_dict()
    assert values["modules"] == ["my_parts"]
    forget("my_parts")
    with pytest.raises(ValueError, match="family is 'C'; expected one of .* --import my_parts"):
        Grid.from_dict(values)


def test_a_grid_in_a_file_may_leave_its_data_to_the_command_line(tmp_path):
    values = {
        "name": "mine", "preset": "proposed", "variants": ["S-02"], "seeds": [0], "vae_steps": 20, "ar_steps": 20,
        "images": 100, "solver_steps": 2, "scales": [1.0],
    }  # fmt: skip
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(values))
    assert find_grid(str(path), "folder:pics").data == "folder:pics"
    with pytest.raises(ValueError, match="preset is 'proposed' without data; expected some"):
        find_grid(str(path))
    path.write_text(json.dumps(values | {"data": "digits"}))
    assert find_grid(str(path), "folder:pics").data == "digits"  # its own; Grid.on replaces it


def test_a_notebook_or_script_is_named_too():
    table = Table({"a": 1}, lambda part: part)
    table.modules["b"] = "__main__"
    with pytest.raises(ValueError, match="It was registered by a script or notebook: run that first"), \
            registry.reading(["__main__"]):  # fmt: skip
        one_of("thing", "b", table)


@pytest.fixture
def cube_run(parts, tmp_path):
    """A run of the family, trained for a few steps on the data set of the module."""
    sizes, plan = propose_sizes(look_at("stripes"), 16), propose_recipes("stripes", 64)
    data, folder = load_data("stripes", 16), tmp_path / "run"
    config = replace(sizes.vae, bottleneck="cube")
    for _ in train_vae(config, data, replace(plan.vae, steps=2, batch_size=8), folder / "vae"):
        pass
    ar = replace(sizes.ar, tokens=config.tokens, num_classes=2, head="doubled")
    recipe = replace(plan.ar, steps=2, batch_size=8)
    for _ in train_ar(ar, VAE.from_pretrained(folder / "vae"), data, recipe, folder / "ar"):
        pass
    return folder


def test_a_family_of_ones_own_trains_and_is_shown_live(cube_run):
    facts = read_json(cube_run / "vae" / "run.json")["model"]
    assert (facts["bottleneck"], facts["modules"]) == ("cube", ["my_parts"])
    panel = settled(GuidanceExplorer(ar=cube_run, images=1))
    try:
        assert "rising" in panel.schedule.options
        panel.schedule.value = "rising"
        assert settled(panel).read().picture.settings.schedule == "rising"
    finally:
        panel.close()


@pytest.mark.slow
def test_a_family_of_ones_own_is_sampled_after_a_restart(cube_run, tmp_path):
    args = ["sample", "--run", str(cube_run), "--labels", "dark", "--steps", "2", "--schedule", "linear"]
    missing = command(*args, cwd=tmp_path, check=False)
    assert missing.returncode == 2
    assert "bottleneck is 'cube'; expected one of" in missing.stderr
    assert "the module my_parts, which is not imported" in missing.stderr
    assert "Traceback" not in missing.stderr
    assert not (tmp_path / "samples.png").exists()
    command(*args, "--import", "my_parts", cwd=tmp_path)
    assert (tmp_path / "samples.png").exists()


@pytest.mark.slow
def test_a_family_of_ones_own_is_studied_beside_s_and_drawn(path, tmp_path):
    done = command("study", "tiny", "--import", "my_parts", "--jobs", "1", "--out", "study", cwd=tmp_path)
    records = read_records(tmp_path / "study" / "results.jsonl")
    assert {(record.family, record.data) for record in records} == {("power_spherical", "stripes"), ("cube", "stripes")}
    for name in ("guidance.png", "drift.png", "claims.md"):
        assert (tmp_path / "study" / "figures" / name).stat().st_size > 0
        assert name in done.stdout


@pytest.mark.slow
def test_a_family_that_fails_fails_alone(path, tmp_path, monkeypatch):
    monkeypatch.setenv("CUBE_BREAKS", "1")
    done = command("study", "tiny", "--import", "my_parts", "--jobs", "1", "--out", "study", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "C-02 seed 0 failed (ValueError: the cube is broken" in done.stderr
    assert {record.family for record in read_records(tmp_path / "study" / "results.jsonl")} == {"power_spherical"}
    assert (tmp_path / "study" / "figures" / "guidance.png").exists()
