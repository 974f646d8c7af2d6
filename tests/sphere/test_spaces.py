"""Spaces: great circles, transport and paths against integrated differential equations, and where they are hard."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch.testing import assert_close

from spherear.sphere.geometry import angle, inner, project
from spherear.sphere.spaces import Flat, Sphere

R = 2.0
SPHERE = Sphere(R)
F64 = torch.float64


def points(seed, rows=20, dim=4):
    """Points of the sphere, and tangent vectors there of lengths up to about 5."""
    generator = torch.Generator().manual_seed(seed)
    x = project(torch.randn(rows, dim, generator=generator, dtype=F64), R)
    v = SPHERE.tangent(2 * torch.randn(rows, dim, generator=generator, dtype=F64), x)
    return x, v


def integrated(x, step, carried=None):
    """The geodesic equation x'' = -|x'|^2 x / R^2 and V' = -(V · x') x / R^2, by Runge-Kutta, for one point."""
    carried = np.zeros_like(x) if carried is None else carried
    dim = len(x)

    def slope(_, y):
        at, speed, vector = y[:dim], y[dim : 2 * dim], y[2 * dim :]
        return np.concatenate((speed, -(speed @ speed) * at / R**2, -(vector @ speed) * at / R**2))

    end = solve_ivp(slope, (0, 1), np.concatenate((x, step, carried)), rtol=1e-11, atol=1e-12).y[:, -1]
    return end[:dim], end[2 * dim :]


@pytest.mark.parametrize("seed", range(3))
def test_moves_and_transport_solve_their_equations(seed):
    x, step = points(seed)
    _, vector = points(seed + 10)
    vector = SPHERE.tangent(vector, x)
    there, carried = SPHERE.move(x, step), SPHERE.carry(vector, x, step)
    for row in range(len(x)):
        end, transported = integrated(x[row].numpy(), step[row].numpy(), vector[row].numpy())
        assert_close(there[row].numpy(), end, atol=1e-8, rtol=0)
        assert_close(carried[row].numpy(), transported, atol=1e-8, rtol=0)
    assert_close(SPHERE.carry_back(carried, x, step), vector)
    assert_close(carried.norm(dim=-1), vector.norm(dim=-1))
    assert inner(carried, there).abs().max() < 1e-12


def test_a_step_is_the_shortest_move_to_a_point():
    (x, _), (y, _) = points(0), points(1)
    step = SPHERE.step(x, y)
    assert_close(SPHERE.move(x, step), y)
    assert_close(step.norm(dim=-1), R * angle(x / R, y / R))
    assert inner(step, x).abs().max() < 1e-12


@pytest.mark.parametrize("space", [Flat(), SPHERE])
def test_the_velocity_is_the_derivative_of_the_path(space):
    generator = torch.Generator().manual_seed(0)
    noise, (target, _) = torch.randn(20, 4, generator=generator, dtype=F64), points(0)
    for t in (0.0, 0.3, 0.9, 1 - 1e-9, 1.0):
        times = torch.full((20, 1), t, dtype=F64)
        (x, velocity), (_, change) = torch.func.jvp(
            lambda t: space.path(noise, target, t), (times,), (torch.ones_like(times),)
        )
        _, moving = torch.func.jvp(lambda t: space.path(noise, target, t)[0], (times,), (torch.ones_like(times),))
        assert_close(velocity, moving)
        if space.curved:
            assert_close(x.norm(dim=-1), torch.full((20,), R, dtype=F64))
            assert inner(x, velocity).abs().max() < 1e-12
            assert_close(velocity.norm(dim=-1), R * angle(project(noise), target / R))
            assert inner(change, velocity).abs().max() < 1e-9  # the speed does not change
    assert_close(space.path(noise, target, torch.zeros(20, 1, dtype=F64))[0], space.start(noise))
    assert_close(x, target)


@pytest.mark.parametrize("gap", [0.0, 1e-14, 1e-9, 1e-5])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_equal_and_opposite_points_have_a_path(side, gap, dtype):
    """At the same point it rests; at the opposite one it has length pi R in some direction, and stays on the sphere."""
    x, v = points(3)
    end = project(side * x + gap * project(v), R).to(dtype)
    x = x.to(dtype)
    for t in (0.0, 0.5, 1 - 1e-6, 1.0):
        at, velocity = SPHERE.path(x, end, torch.full((20, 1), t, dtype=dtype))
        assert torch.isfinite(velocity).all()
        assert_close(at.norm(dim=-1), torch.full((20,), R, dtype=dtype))
        length = gap if side > 0 else R * math.pi - gap
        assert_close(velocity.norm(dim=-1), torch.full((20,), length, dtype=dtype), atol=2e-6, rtol=1e-5)
    assert_close(at, end, atol=1e-5 if dtype == torch.float32 else 1e-7, rtol=0)
    assert_close(SPHERE.move(x, SPHERE.step(x, end)), end, atol=1e-5 if dtype == torch.float32 else 1e-7, rtol=0)


def test_a_step_to_a_fixed_point_shrinks_as_it_says():
    """-D(log_x y)/dt while x moves with velocity v, by central differences carried back to x."""
    (x, v), (y, _) = points(4), points(5)
    step, h = SPHERE.step(x, y), 1e-5
    ahead, behind = SPHERE.move(x, h * v), SPHERE.move(x, -h * v)
    ahead = SPHERE.carry_back(SPHERE.step(ahead, y), x, h * v)
    behind = SPHERE.carry_back(SPHERE.step(behind, y), x, -h * v)
    far = angle(x / R, -y / R) > 0.7  # away from the opposite point, where the answer has no bound
    assert far.sum() > 10
    assert_close(SPHERE.pulled(v, x, step)[far], ((behind - ahead) / (2 * h))[far], atol=1e-6, rtol=1e-6)
    assert_close(Flat().pulled(v, x, step), v)


def test_a_point_that_moves_to_rest_is_exact_in_float32():
    """Zero steps, tiny steps and whole turns."""
    x, v = (part.float() for part in points(6))
    unit = project(v)
    for length in (0.0, 1e-20, 1e-9, 2 * math.pi * R):
        assert_close(SPHERE.move(x, length * unit), x, atol=4e-6, rtol=0)
    assert_close(SPHERE.carry(unit, x, torch.zeros_like(x)), unit)
    assert_close(SPHERE.pulled(v, x, torch.zeros_like(x)), v)
