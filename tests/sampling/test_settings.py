"""Settings as data, guidance schedules, and noise from seeds."""

import inspect
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.testing import assert_close

from spherear import Pipeline, SamplingSettings, SphereAR, decode, seeded_noise
from spherear.live.picture import Picture, png_bytes
from spherear.sampling.decode import trace
from spherear.sampling.engines import engine_named
from spherear.sampling.settings import NAMED_SETTINGS, SCHEDULES, TABLES
from spherear.sampling.solvers import SOLVERS, SPACINGS
from spherear.sphere.geometry import project
from tests.conftest import TINY_AR, randomise

SETTINGS = st.fixed_dictionaries(
    {
        "guidance_scale": st.floats(0, 100),
        "schedule": st.sampled_from(sorted(SCHEDULES)),
        "solver": st.sampled_from(sorted(SOLVERS)),
        "steps": st.integers(1, 1000),
        "last_step": st.floats(1e-3, 0.999),
        "project": st.booleans(),
        "temperature": st.floats(0, 10),
    }
)


@given(SETTINGS)
def test_json_round_trip(fields):
    settings = SamplingSettings(**fields)
    assert SamplingSettings.from_json(settings.to_json()) == settings


def test_file_round_trip(tmp_path):
    settings = SamplingSettings(guidance_scale=3.5, solver="heun", steps=12)
    settings.save(tmp_path / "settings.json")
    assert SamplingSettings.load(tmp_path / "settings.json") == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"guidance_scale": -1.0}', "guidance_scale is -1.0; expected a finite number, 0 or more"),
        ('{"guidance_scale": Infinity}', "guidance_scale is inf"),
        ('{"guidance_scale": NaN}', "guidance_scale is nan"),
        ('{"schedule": "cosine"}', "schedule is 'cosine'; expected one of 'constant', 'linear'"),
        (
            '{"solver": "rk4"}',
            "solver is 'rk4'; expected one of 'adams_bashforth', 'adams_bashforth_3', 'euler', 'euler_maruyama', "
            "'heun', 'midpoint'",
        ),
        ('{"steps": 0}', "steps is 0; expected at least 1"),
        ('{"steps": 1000000000000}', "steps is 1000000000000; expected at most 100000"),
        ('{"steps": ' + "9" * 5000 + "}", "expected JSON"),
        ("[" * 99_000, "expected JSON"),
        ('{"last_step": 0.0}', "last_step is 0.0; expected a number between 0 and 1"),
        ('{"temperature": -0.5}', "temperature is -0.5"),
        ('{"cfg": 2}', r"SamplingSettings has no field \['cfg'\]"),
        ("{", "expected JSON"),
        ("[]", "expected a JSON object"),
    ],
)
def test_bad_settings(text, message, as_users_do):
    with pytest.raises(ValueError, match=message):
        SamplingSettings.from_json(text)


def test_wrong_types_are_type_errors(as_users_do):
    with pytest.raises(TypeError, match="SamplingSettings.steps is 2.5; expected int"):
        SamplingSettings.from_json('{"steps": 2.5}')
    for name in ("steps", "guidance_scale"):  # beyond 64 bits, which no tensor holds
        with pytest.raises(TypeError, match=f"SamplingSettings.{name} is 10000000"):
            SamplingSettings.from_json(f'{{"{name}": {10**30}}}')


def test_the_defaults_are_the_published_settings():
    published = SamplingSettings(
        guidance_scale=4.5, schedule="linear", solver="euler_maruyama", steps=100, last_step=0.04, project=True,
        temperature=1.0, spacing="even",
    )  # fmt: skip
    assert SamplingSettings() == SamplingSettings.named("reference") == published
    assert published.evaluations == 101


def test_named_settings_are_those_of_the_comparison():
    """What `balanced` and `fast` mean in records, in the table of solvers and in the README."""
    assert NAMED_SETTINGS.keys() == {"reference", "balanced", "fast"}
    for name, (solver, steps) in {"balanced": ("adams_bashforth", 10), "fast": ("adams_bashforth_3", 6)}.items():
        expected = SamplingSettings(solver=solver, steps=steps, spacing="even")
        assert SamplingSettings.named(name) == expected
        assert expected.times() == pytest.approx([i / steps for i in range(steps + 1)], abs=1e-7)
        assert expected.evaluations == steps


def test_schedules():
    linear = SamplingSettings(guidance_scale=5.0)
    assert [linear.scale_at(i, 4) for i in range(4)] == [1.0, 2.0, 3.0, 4.0]
    constant = SamplingSettings(guidance_scale=5.0, schedule="constant")
    assert [constant.scale_at(i, 4) for i in range(4)] == [5.0] * 4


def test_noise_is_standard_normal_and_keyed_by_seed_and_token():
    noise = seeded_noise([0, 1, 2**63])
    drawn = torch.stack([noise(token, (11, 3, 500)) for token in range(3)])  # (token, draws, batch, dim)
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > 0.01
    streams = drawn.permute(0, 2, 1, 3).flatten(0, 1).flatten(1)  # one row a (token, seed)
    correlation = torch.corrcoef(streams) - torch.eye(9)
    assert correlation.abs().max() < 5 / math.sqrt(streams.shape[1])


def test_noise_does_not_depend_on_batch_mates_order_or_solver():
    alone = seeded_noise([7])(5, (4, 1, 8))
    batch = seeded_noise([3, 7])
    batch(0, (4, 2, 8))
    assert_close(batch(5, (4, 2, 8))[:, 1:], alone, atol=0, rtol=0)
    assert_close(seeded_noise([7])(5, (1, 1, 8)), alone[:1], atol=0, rtol=0)


def test_noise_is_the_same_everywhere():
    """Frozen numbers: a seed means the same noise on every machine and in every release."""
    expected = torch.tensor(FROZEN)
    assert_close(seeded_noise([123])(4, (2, 1, 3))[:, 0], expected, atol=1e-6, rtol=0)


FROZEN = [
    [-0.07330138981342316, 0.26102414727211, -0.19154763221740723],
    [-1.4365381002426147, 0.37836363911628723, 1.004845142364502],
]


def test_bad_seeds():
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match=rf"seed is {seed}; expected an integer from 0"):
            seeded_noise([seed])
    with pytest.raises(ValueError, match="batch is 2; expected 1, one image per seed"):
        seeded_noise([1])(0, (1, 2, 4))


@pytest.fixture
def own_rows():
    """Tables as they ship, after the test."""
    before = {name: dict(table) for name, table in TABLES.items()}
    yield
    for name, table in TABLES.items():
        table.clear()
        table.update(before[name])


def halfway(velocity, noise, times):
    """x += v(x + v dt / 2, t + dt / 2) dt: evaluates between the grid's times."""
    x = noise[0]
    for t, end in pairwise(times):
        x = x + velocity(x + velocity(x, t) * (end - t) / 2, (t + end) / 2) * (end - t)
    return x


def drawn(ar, settings, engine="eager", **options):
    noise = options.pop("noise", seeded_noise([1, 2]))
    steps = decode(ar, torch.tensor([3, 7]), settings, noise, lambda z: project(z, 2.0), engine=engine_named(engine))
    return torch.stack([step.token for step in steps], dim=1)


def test_a_schedule_of_ones_own_is_a_function(tiny_ar, as_users_do):
    """As the row that says the same; of the time, piece by piece."""
    base = SamplingSettings(guidance_scale=3.0, solver="euler", steps=4)
    same = replace(base, schedule=lambda index, tokens: 1 + 2 * index / tokens)
    assert_close(drawn(tiny_ar, same), drawn(tiny_ar, base), atol=0, rtol=0)
    same = replace(base, schedule=lambda scale, index, tokens, t: 1 + (scale - 1) * index / tokens)
    assert_close(drawn(tiny_ar, same), drawn(tiny_ar, base), atol=1e-5, rtol=0)
    none = replace(base, schedule=lambda index: 1.0, guidance_scale=7.0)
    assert_close(drawn(tiny_ar, none), drawn(tiny_ar, replace(base, guidance_scale=1.0)), atol=0, rtol=0)


@pytest.mark.parametrize("solver", ["euler", "heun", "euler_maruyama", halfway])
def test_guidance_in_an_interval_is_the_formula(tiny_ar, solver, as_users_do):
    """Against the solver on a velocity that is guided by hand, from teacher-forced conditions."""
    ar = tiny_ar.double()
    settings = SamplingSettings(solver=solver, steps=4, schedule=lambda t: 3.0 if 0.2 < t < 0.7 else 0.0)
    tokens, noise = drawn(ar, settings).double(), seeded_noise([1, 2])
    for index in (0, 9):
        labels = torch.tensor([3, 7])
        cond, null = ar(tokens, labels)[:, index], ar(tokens, torch.full_like(labels, 10))[:, index]

        def velocity(x, t, cond=cond, null=null):
            v, v_null = (ar.head(x, torch.full((2,), t).double(), c) for c in (cond, null))
            return v if 0.2 < t < 0.7 and settings.schedule(t) == 1 else v_null + settings.schedule(t) * (v - v_null)

        times = settings.times()
        raw = settings.method(velocity, noise(index, (settings.draws, 2, 4)).double(), times)
        assert_close(tokens[:, index], project(raw, 2.0), atol=1e-6, rtol=0)
    expected = sum((end - t) * settings.schedule(t) for t, end in pairwise(settings.times()))
    assert settings.scale_at(0, 16) == pytest.approx(expected)


def test_a_solver_of_ones_own_takes_any_times(tiny_ar, as_users_do):
    """Also times that its first run did not show."""

    def wandering(velocity, noise, times):
        x = noise[0]
        for t, end in pairwise(times):
            late = t + (end - t) * float(x.abs().mean() / (1 + x.abs().mean()))
            x = x + velocity(x, late) * (end - t)
        return x

    settings = SamplingSettings(solver=halfway, steps=5)
    assert settings.evaluations == 10
    assert drawn(tiny_ar, settings).isfinite().all()
    wander = SamplingSettings(solver=wandering, steps=3, schedule="constant", guidance_scale=2.0)
    found, ar = drawn(tiny_ar, wander), tiny_ar
    cond, null = (ar(found, labels)[:, 0] for labels in (torch.tensor([3, 7]), torch.tensor([10, 10])))

    def velocity(x, t):
        v, v_null = (ar.head(x, torch.full((2,), t), c) for c in (cond, null))
        return v_null + 2.0 * (v - v_null)

    with torch.no_grad():
        raw = wandering(velocity, seeded_noise([1, 2])(0, (1, 2, 4)), wander.times())
    assert_close(found[:, 0], project(raw, 2.0), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="the solver evaluates at t = .*; expected the same times for every token"):
        drawn(tiny_ar, replace(wander, schedule=lambda t: 1 + t))


def test_times_can_change_from_token_to_token(tiny_ar, as_users_do):
    """Fewer steps for later tokens: each token is the one that its own number of steps draws."""

    def annealed(steps, index, tokens):
        return torch.linspace(0, 1, steps - (steps - 2) * index // tokens + 1)

    base = SamplingSettings(guidance_scale=2.0, steps=6)
    settings = replace(base, spacing=annealed)
    counts = [len(settings.times(index, 16)) - 2 for index in range(16)]
    assert (counts[0], counts[-1]) == (6, 3)
    assert counts == sorted(counts, reverse=True)
    shapes = []
    noise = seeded_noise([1, 2])
    drawn(tiny_ar, settings, noise=lambda index, shape: shapes.append(shape) or noise(index, shape))
    assert [shape[0] for shape in shapes] == [count + 1 for count in counts]
    assert_close(drawn(tiny_ar, settings)[:, 0], drawn(tiny_ar, base)[:, 0], atol=1e-5, rtol=0)
    assert settings.evaluations_at(15, 16) == 4 < settings.evaluations_at(0, 16) == 7
    squared = replace(base, solver="euler", spacing=lambda u: u**2)
    assert squared.times() == replace(squared, spacing="early").times()


def test_own_rows_are_registered_in_one_line(own_rows, as_users_do):
    """And are then known by name: in JSON, too."""
    SOLVERS.register(halfway)
    SPACINGS.register(lambda u: u**3, "cubed")

    @SCHEDULES.register
    def late(scale, index, tokens):
        return scale if 2 * index >= tokens else 1.0

    settings = SamplingSettings(guidance_scale=3.0, schedule="late", solver="halfway", spacing="cubed", steps=4)
    assert SamplingSettings.from_json(settings.to_json()) == settings
    assert [settings.scale_at(index, 4) for index in range(4)] == [1.0, 1.0, 3.0, 3.0]
    by_function = replace(settings, schedule=late, solver=halfway)
    assert by_function.to_json() == settings.to_json()
    SCHEDULES.register(late)  # a cell that runs again
    with pytest.raises(ValueError, match="the name 'linear' is taken by a row that ships"):
        SCHEDULES.register(late, "linear")
    with pytest.raises(ValueError, match="the name is '<lambda>'; expected one that can stand in code"):
        SCHEDULES.register(lambda index: 1.0)
    with pytest.raises(TypeError, match="schedule takes i; expected a function of some of scale, index, tokens, t"):
        SCHEDULES.register(lambda i: 1.0, "mine")


@pytest.mark.parametrize(
    ("field", "function"),
    [("schedule", lambda index: 2.0), ("solver", halfway), ("spacing", lambda u: u)],
)
def test_a_function_without_a_name_is_not_saved(field, function, tmp_path, as_users_do):
    settings = SamplingSettings(**{field: function})
    message = f"{field} is the function .*, which has no name to save it under; expected one that is registered"
    with pytest.raises(ValueError, match=message):
        settings.to_json()
    with pytest.raises(ValueError, match=message):
        settings.save(tmp_path / "settings.json")
    assert list(tmp_path.iterdir()) == []
    picture = Picture(("digits-power_spherical",), (1,), 0, settings, 1)
    with pytest.raises(ValueError, match=message):
        png_bytes(np.zeros((8, 8, 3), np.uint8), picture)


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        ("schedule", 3, TypeError, "SamplingSettings.schedule is 3; expected Literal"),
        ("schedule", lambda i, n: 1.0, TypeError, "schedule takes i, n; expected a function of some of scale, index"),
        ("spacing", lambda x: x, TypeError, "spacing takes x; expected a function of some of u, steps, index, tokens"),
        ("schedule", lambda index: math.inf, ValueError, "the guidance scale of token 0 is inf; expected a finite"),
        ("schedule", lambda t: None, ValueError, "the guidance scale of token 0 at time 0 is None"),
        ("spacing", lambda u: 1 - u, ValueError, r"times of token 0 are 1, 0.5, 0; expected two or more, rising from"),
        ("spacing", lambda u: u * math.nan, ValueError, "times of token 0 are nan, nan, nan"),
        ("spacing", lambda index: [0.0, 1.0] if index < 5 else [0.0], ValueError, "times of token 5 are 0; expected"),
    ],
)
def test_functions_that_cannot_be_used_are_refused_before_the_first_token(
    tiny_ar, field, value, error, message, as_users_do
):
    noise = pytest.fail
    with pytest.raises(error, match=message):
        decode(tiny_ar, torch.tensor([1]), SamplingSettings(steps=2, **{field: value}), noise, lambda z: z)


def test_a_schedule_of_time_needs_a_solver(as_users_do):
    ar = randomise(SphereAR(replace(TINY_AR, codes=8)))
    with pytest.raises(ValueError, match="the guidance schedule depends on t, and a categorical head has no solver"):
        drawn(ar, SamplingSettings(schedule=lambda t: 1 + t))


def test_noise_null_labels_and_projection_of_a_pipeline(tiny_vae, tiny_ar, as_users_do):
    pipeline, quick = Pipeline(tiny_vae, tiny_ar), SamplingSettings(guidance_scale=3.0, steps=2)
    plain = pipeline.sample([1, 2], quick, 5)
    assert_close(pipeline.sample([1, 2], quick, noise=seeded_noise([5, 6])), plain, atol=0, rtol=0)
    assert_close(pipeline.sample([1, 2], quick, 5, null_labels=[10, 10]), plain, atol=0, rtol=0)
    assert_close(pipeline.sample([1, 2], quick, 5, project=tiny_vae.project), plain, atol=0, rtol=0)
    assert (pipeline.sample([1, 2], quick, 5, null_labels=[4, 4]) - plain).abs().max() > 1e-3
    short = trace(pipeline.steps([1, 2], quick, 5, project=lambda z: project(z, 1.0))).tokens
    assert_close(short.norm(dim=-1), torch.ones(2, 16))
    *_, last = pipeline.stream([1, 2], quick, noise=seeded_noise([5, 6]))
    assert_close(last.images, plain, atol=0, rtol=0)
    with pytest.raises(ValueError, match="noise and seeds are both given; expected one of them"):
        pipeline.sample([1, 2], quick, 5, noise=seeded_noise([5, 6]))
    with pytest.raises(ValueError, match=r"null_labels have shape \(1,\); expected \(2,\)"):
        pipeline.sample([1, 2], quick, null_labels=[3])


def test_a_function_is_inspected_once_however_many_times_it_is_asked(monkeypatch, as_users_do):
    """A schedule of the solver's time is asked at every token and time: 64 x 101 of them here."""
    inspected, real = [], inspect.signature
    monkeypatch.setattr(inspect, "signature", lambda f, **options: (inspected.append(f), real(f, **options))[1])
    settings = SamplingSettings(schedule=lambda scale, t: scale if t > 0.5 else 1.0)
    scales = [scale for index in range(64) for scale in settings.scales_at(index, 64)]
    assert len(scales) == 64 * 101
    assert inspected.count(settings.schedule) == 1
