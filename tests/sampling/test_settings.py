"""Settings as data, guidance schedules, and noise from seeds."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.testing import assert_close

from spherear import SamplingSettings, seeded_noise
from spherear.sampling.settings import NAMED_SETTINGS, SCHEDULES
from spherear.sampling.solvers import SOLVERS

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
        ('{"solver": "rk4"}', "solver is 'rk4'; expected one of 'adams_bashforth', 'euler', 'euler_maruyama', 'heun'"),
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
    for name, steps in {"balanced": 10, "fast": 6}.items():
        expected = SamplingSettings(solver="adams_bashforth", steps=steps, spacing="early")
        assert SamplingSettings.named(name) == expected
        assert expected.times() == pytest.approx([(i / steps) ** 2 for i in range(steps + 1)], abs=1e-7)
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
