"""Solvers against closed forms: order of convergence, exactness, and the law they draw from."""

import math
from itertools import pairwise

import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from spherear import SamplingSettings
from spherear.sampling.solvers import SOLVERS, SPACINGS

STEPS = (128, 256, 512, 1024)


def solve(name, velocity, steps, noise=None, last_step=0.04, spacing="even"):
    solver = SOLVERS[name]
    noise = torch.ones(solver.draws(steps), 1, 1, dtype=torch.float64) if noise is None else noise
    return solver.integrate(velocity, noise, solver.grid(steps, last_step, spacing))


@pytest.mark.parametrize("spacing", sorted(SPACINGS))
@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2), ("adams_bashforth", 2)])
def test_order_of_convergence(name, order, spacing):
    """dx/dt = x cos t from 1 ends at exp(sin 1), whatever the steps' lengths."""
    field, end = (lambda x, t: x * math.cos(t)), math.exp(math.sin(1))
    errors = [abs(solve(name, field, n, spacing=spacing).item() - end) for n in STEPS]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(abs(slope - order) < 0.1 for slope in slopes[1:]), slopes


@pytest.mark.parametrize(("spacing", "order"), [("even", 2), ("annealed", 2), ("late", 2), ("early", 3), ("ends", 3)])
def test_three_steps_are_of_third_order_where_the_first_step_is_short(spacing, order):
    """The first step is an Euler step, with an error of its length squared: 1/n^2, or 1/n^4 with early spacing."""
    field, end = (lambda x, t: x * math.cos(t)), math.exp(math.sin(1))
    errors = [abs(solve("adams_bashforth_3", field, n, spacing=spacing).item() - end) for n in STEPS]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(abs(slope - order) < 0.15 for slope in slopes[1:]), slopes


def test_adams_bashforth_is_exact_for_a_linear_slope_whatever_the_steps():
    """dx/dt = t: after the first step, a Euler step, every step adds (end^2 - t^2)/2, by the ratio of the steps."""
    times = [0.0, 0.1, 0.5, 0.6, 1.0]
    x = SOLVERS["adams_bashforth"].integrate(lambda x, t: torch.full_like(x, t), torch.zeros(1, 1, 1).double(), times)
    assert_close(x.item(), (1.0 - 0.1**2) / 2, rtol=1e-12, atol=0)


def test_three_steps_of_adams_bashforth_are_exact_for_a_parabola_whatever_the_steps():
    """dx/dt = t^2: from the third step on, every step adds (end^3 - t^3) / 3; the first two have what they know."""
    times = [0.0, 0.1, 0.3, 0.35, 0.8, 1.0]
    solver = SOLVERS["adams_bashforth_3"]
    x = solver.integrate(lambda x, t: torch.full_like(x, t * t), torch.zeros(1, 1, 1).double(), times)
    second = 0.2 * (0.1**2 + (0.1**2 - 0.0) / 0.1 * 0.2 / 2)
    assert_close(x.item(), 0.0 + second + (1.0 - 0.3**3) / 3, rtol=1e-12, atol=0)


def test_the_classic_coefficients_of_three_equal_steps():
    """23/12, -16/12, 5/12 (Hairer, Norsett & Wanner, Solving Ordinary Differential Equations I, III.1)."""
    slopes = {0.0: 2.0, 0.25: -1.0, 0.5: 7.0}
    solver = SOLVERS["adams_bashforth_3"]
    whole, before = (
        solver.integrate(lambda x, t: torch.full_like(x, slopes[t]), torch.zeros(1, 1, 1).double(), times).item()
        for times in ([0.0, 0.25, 0.5, 0.75], [0.0, 0.25, 0.5])
    )
    assert_close(whole - before, 0.25 * (23 * 7.0 - 16 * -1.0 + 5 * 2.0) / 12, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["euler", "heun", "midpoint", "adams_bashforth"])
def test_one_uneven_step_after_another_by_hand(name):
    """x' = x + t from 1 over the times 0, 0.2, 1, written out."""
    first = 1.0 + 0.2 * 1.0
    slope = first + 0.2
    expected = {
        "euler": first + 0.8 * slope,
        "adams_bashforth": first + 0.8 * (slope + (slope - 1.0) * (0.8 / 0.2) / 2),
    }
    start = 1.0 + 0.2 * (1.0 + (first + 0.2)) / 2
    slope = start + 0.2
    expected["heun"] = start + 0.8 * (slope + (start + 0.8 * slope + 1.0)) / 2
    start = 1.0 + 0.2 * (1.0 + 0.1 * 1.0 + 0.1)
    expected["midpoint"] = start + 0.8 * (start + 0.4 * (start + 0.2) + 0.6)
    x = SOLVERS[name].integrate(lambda x, t: x + t, torch.ones(1, 1, 1).double(), [0.0, 0.2, 1.0])
    assert_close(x.item(), expected[name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("last_step", [0.04, 0.25])
def test_spacings_are_their_formulas(last_step):
    u = torch.linspace(0, 1, 9, dtype=torch.float64)
    formulas = {"even": u, "early": u**2, "late": u * (2 - u), "ends": torch.sin(math.pi * u / 2) ** 2, "annealed": u}
    assert formulas.keys() == SPACINGS.keys()
    for name, expected in formulas.items():
        plain = torch.tensor(SOLVERS["euler"].grid(8, last_step, name), dtype=torch.float64)
        noisy = torch.tensor(SOLVERS["euler_maruyama"].grid(8, last_step, name), dtype=torch.float64)
        assert_close(plain, expected, atol=1e-7, rtol=0)
        assert_close(noisy, torch.cat((expected * (1 - last_step), torch.ones(1).double())), atol=1e-7, rtol=0)


@pytest.mark.parametrize("spacing", sorted(SPACINGS))
@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_grids_rise_from_0_to_1_in_float32(name, spacing):
    for steps in (1, 2, 7, 100):
        times = SOLVERS[name].grid(steps, 0.04, spacing)
        assert len(times) == steps + 1 + SOLVERS[name].noisy
        assert (times[0], times[-1]) == (0.0, 1.0)
        assert all(a < b for a, b in pairwise(times))
        assert torch.tensor(times).tolist() == times


@pytest.mark.parametrize("steps", [1, 4, 6, 10, 25])
@pytest.mark.parametrize("tokens", [1, 2, 16, 256])
def test_annealed_tokens_take_as_many_steps_on_average(steps, tokens):
    counts = [len(SOLVERS["euler"].grid(steps, 0.04, "annealed", i, tokens)) - 1 for i in range(tokens)]
    assert counts == sorted(counts, reverse=True)
    assert min(counts) >= 1
    if steps > 1:
        assert sum(counts) == steps * tokens
        assert tokens == 1 or (counts[0], counts[-1]) == (round(1.5 * steps), round(0.5 * steps))


def test_spacings_are_dense_where_they_say():
    lengths = {name: [b - a for a, b in pairwise(SOLVERS["euler"].grid(10, 0.04, name))] for name in SPACINGS}
    assert max(lengths["even"]) - min(lengths["even"]) < 1e-6
    assert lengths["early"] == sorted(lengths["early"])
    assert lengths["late"] == sorted(lengths["late"], reverse=True)
    assert lengths["ends"][0] < lengths["ends"][5] > lengths["ends"][9]


@pytest.mark.parametrize("steps", [5, 100, 1000])
def test_times_that_add_up_their_steps_would_differ_by_rounding(steps):
    """The published code adds the steps up; `load_published` says by how much a grid that is rounded once differs."""
    step, added = torch.tensor(0.96 / steps), [torch.tensor(0.0)]
    for _ in range(steps):
        added.append(added[-1] + step)
    ours = torch.tensor(SOLVERS["euler_maruyama"].grid(steps, 0.04, "even"))
    difference = (torch.stack(added) - ours[:-1]).abs().max()
    assert difference < (1e-6 if steps <= 100 else 2e-5)


def test_evaluations_are_counted():
    calls = []
    for name in SOLVERS:
        calls.clear()
        settings = SamplingSettings(solver=name, steps=6)
        settings.method.integrate(lambda x, t: calls.append(t) or x, torch.ones(7, 1, 1), settings.times())
        assert settings.evaluations == len(calls)


@pytest.mark.parametrize("name", ["euler", "heun", "midpoint", "adams_bashforth", "adams_bashforth_3"])
def test_a_straight_path_is_exact(name):
    z = torch.tensor([[2.5]], dtype=torch.float64)
    start = torch.ones(1, 1, 1, dtype=torch.float64)
    assert_close(solve(name, lambda x, t: z - start[0], 7, start), z)


def gaussian_velocity(mean, std):
    """v(x, t) of the flow from N(0, 1) to N(mean, std^2): E[z - noise | x_t = x], in closed form."""

    def velocity(x, t):
        variance = (1 - t) ** 2 + (t * std) ** 2
        gain = (t * std**2 - (1 - t)) / variance
        return mean + gain * (x - t * mean)

    return velocity


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_law_of_the_samples(name):
    """Solving the exact velocity of a Gaussian draws that Gaussian: mean, variance and shape."""
    steps, rows = 200, 20_000
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(SOLVERS[name].draws(steps), rows, 1, generator=generator, dtype=torch.float64)
    x = solve(name, gaussian_velocity(1.5, 0.5), steps, noise).flatten()
    assert abs(x.mean() - 1.5) < 0.02
    assert abs(x.std() - 0.5) < 0.02
    assert stats.kstest(((x - x.mean()) / x.std()).numpy(), "norm").pvalue > 0.01


def test_euler_maruyama_is_the_published_step():
    """One step and the last, written out with the score."""
    v, noise, last = (lambda x, t: 0.3 * x + t), torch.randn(2, 4, 3, dtype=torch.float64), 0.25
    t, dt, x = 0.0, 0.75, noise[0]
    score = (t * v(x, t) - x) / (1 - t)
    x = x + (v(x, t) + (1 - t) * score) * dt + math.sqrt(2 * (1 - t) * dt) * noise[1]
    expected = x + v(x, 0.75) * last
    assert_close(solve("euler_maruyama", v, 1, noise, last), expected)


def test_euler_maruyama_takes_drift_and_noise_at_the_start_of_every_step():
    """Three uneven steps with different noise, written out with the score."""
    times, noise = [0.0, 0.1, 0.4, 0.9, 1.0], torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0)).double()
    x = noise[0]
    for i, (t, dt) in enumerate([(0.0, 0.1), (0.1, 0.3), (0.4, 0.5)]):
        v = 0.3 * x + t
        score = (t * v - x) / (1 - t)
        x = x + (v + (1 - t) * score) * dt + math.sqrt(2 * (1 - t) * dt) * noise[i + 1]
    expected = x + (0.3 * x + 0.9) * (1.0 - 0.9)
    assert_close(SOLVERS["euler_maruyama"].integrate(lambda x, t: 0.3 * x + t, noise, times), expected)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_grids(name):
    settings = SamplingSettings(solver=name, steps=10, last_step=0.1)
    times = settings.times()
    assert times[0] == 0.0
    assert times[-1] == 1.0
    assert times == sorted(set(times))
    assert len(times) == (12 if name == "euler_maruyama" else 11)
    assert settings.draws == (11 if name == "euler_maruyama" else 1)
    if name == "euler_maruyama":
        assert_close(times[-2], 0.9, atol=1e-6, rtol=0)
