"""Geometry against closed forms, Jacobians and the points where naive formulas break."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.functional import jacobian
from torch.testing import assert_close

from spherear.sphere.geometry import angle, inner, log_sphere_area, project, split, to_tangent
from tests.sphere.truth import DIMS, points, pole, units

# project -------------------------------------------------------------------------------------------------


@given(st.integers(2, 64), st.floats(-300, 300), st.floats(1e-3, 1e3), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_project_gives_every_finite_vector_the_radius_and_its_direction(dim, exponent, radius, seed):
    z = units(dim, seed=seed)
    projected = project(z * 10.0**exponent, radius)
    assert_close(projected, radius * z, rtol=1e-12, atol=1e-12 * radius)


@pytest.mark.parametrize("dim", DIMS)
def test_projecting_twice_is_projecting_once(dim):
    once = project(points(5, dim), radius=4.0)
    assert_close(project(once, radius=4.0), once)


@pytest.mark.parametrize("dim", [2, 16])
def test_project_has_the_jacobian_of_the_paper(dim):
    z, radius = points(dim), 4.0
    u = z / z.norm()
    expected = radius / z.norm() * (torch.eye(dim, dtype=torch.float64) - torch.outer(u, u))
    assert_close(jacobian(lambda x: project(x, radius), z), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_project_at_zero_and_next_to_it_is_finite(dtype):
    for size in (0.0, float(torch.finfo(dtype).tiny), float(torch.finfo(dtype).smallest_normal) / 4):
        z = torch.full((3, 8), size, dtype=dtype, requires_grad=True)
        out = project(z, 4.0)
        (gradient,) = torch.autograd.grad(out.sum(), z)
        assert out.isfinite().all()
        assert not gradient.isnan().any()
        if size == 0:
            assert (out == 0).all()
            assert (gradient == 4).all()


def test_project_keeps_the_dtype_and_works_in_float32_inside():
    z = (1e3 * points(4, 16)).half()
    assert project(z).dtype == torch.half
    assert_close(project(z), (z.float() / z.float().norm(dim=-1, keepdim=True)).half())


@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan])
def test_project_refuses_a_radius_that_is_none(radius):
    with pytest.raises(ValueError, match=f"radius must be positive, got {radius}"):
        project(points(3), radius)


# split ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", DIMS)
def test_split_adds_up_and_is_orthogonal(dim):
    error, at = points(6, dim), points(6, dim, seed=1)
    radial, tangential = split(error, at)
    assert_close(radial + tangential, error)
    assert_close((tangential * at).sum(-1), torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)
    assert_close(radial, torch.linalg.matmul(at * error, torch.ones(dim, 1).double()) * at / (at * at).sum(-1, True))


def test_projection_keeps_the_tangential_part_of_an_error_and_drops_the_radial_one():
    at, error = 4 * units(5, 16), points(5, 16, seed=1)
    step = 1e-6
    moved = (project(at + step * error, 4.0) - at) / step
    assert_close(moved, split(error, at)[1], atol=1e-5, rtol=0)


# angle ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theta", [0.0, 1e-12, 1e-7, 0.3, math.pi / 2, 3.0, math.pi - 1e-7, math.pi])
@pytest.mark.parametrize("dim", [2, 16])
def test_angle_keeps_its_digits_at_both_ends(theta, dim):
    x = pole(dim)
    y = math.cos(theta) * x + math.sin(theta) * torch.eye(dim, dtype=torch.float64)[1]
    assert_close(angle(x, y).item(), theta, rtol=1e-9, atol=1e-15)


def test_angle_has_a_unit_gradient_and_a_zero_one_at_its_corners():
    x, y = units(4, 8), units(4, 8, seed=1)
    y.requires_grad_()
    (gradient,) = torch.autograd.grad(angle(x, y).sum(), y)
    tangential = split(gradient, y)[1]
    assert_close(tangential, -project(split(x, y)[1]))
    for other in (x.clone(), -x):
        other.requires_grad_()
        (gradient,) = torch.autograd.grad(angle(x, other).sum(), other)
        assert (split(gradient, x)[1].abs() < 1e-12).all()


# area ----------------------------------------------------------------------------------------------------


def test_sphere_area_is_that_of_the_known_spheres_and_recurs():
    known = {1: 2, 2: 2 * math.pi, 3: 4 * math.pi, 4: 2 * math.pi**2}
    for dim, area in known.items():
        assert log_sphere_area(dim) == pytest.approx(math.log(area), abs=1e-14)
    for dim in (5, 16, 64, 1000):
        step = math.log(2 * math.pi / dim)
        assert log_sphere_area(dim + 2) - log_sphere_area(dim) == pytest.approx(step, abs=1e-11)
    with pytest.raises(ValueError, match="got 0"):
        log_sphere_area(0)


# the tangent space ---------------------------------------------------------------------------------------


def rotate_pole(v, mu):
    """v_1 mu + T(mu) (v_2, ..., v_dim): takes the pole e1 to mu, and the rest into the tangent space at mu."""
    return v[..., :1] * mu + to_tangent(v[..., 1:], mu)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_pole_and_its_tangents_map_orthogonally_onto_mu_and_its_own(dim, sign):
    mu = units(9, dim)
    mu[:, 0] = sign * mu[:, 0].abs()
    identity = torch.eye(dim, dtype=torch.float64)
    matrix = rotate_pole(identity.expand(9, dim, dim), mu.unsqueeze(1)).mT
    assert_close(matrix @ pole(dim), mu)
    assert_close(matrix.mT @ matrix, identity.expand(9, dim, dim))
    assert_close(torch.linalg.det(matrix), torch.full((9,), sign, dtype=torch.float64))


def test_to_tangent_is_a_householder_reflection_from_the_farther_pole():
    mu, v = units(20, 8), points(20, 7, seed=1)
    normal = project(mu + mu[:, :1].sign() * pole(8))
    flat = torch.nn.functional.pad(v, (1, 0))
    assert_close(to_tangent(v, mu), flat - 2 * (flat * normal).sum(-1, keepdim=True) * normal)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("offset", [0.0, 1e-8, 1e-4, 1e-2])
def test_to_tangent_loses_no_digit_next_to_a_pole_in_float32(offset, sign):
    mu = project(pole(16, sign) + offset * pole(16).roll(1)).float()
    v = points(100, 16).float()
    assert_close(rotate_pole(v, mu).double(), rotate_pole(v.double(), mu.double()), atol=2e-6, rtol=0)
    assert_close(rotate_pole(v, mu).norm(dim=-1), v.norm(dim=-1), rtol=5e-7, atol=0)


@pytest.mark.parametrize("dim", [2, 3, 16])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_to_tangent_has_exact_gradients_at_the_poles(dim, sign):
    mu = pole(dim, sign).requires_grad_()
    v = points(dim).requires_grad_()
    assert torch.autograd.gradcheck(rotate_pole, (v, mu))
    assert torch.autograd.gradcheck(to_tangent, (points(dim - 1), mu))


# half precision ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 3e4])
def test_half_precision_is_widened_before_it_is_multiplied(dtype, size):
    """float32 results within its rounding of those of float64; in half precision, 3e4 squared is infinite."""
    x, y, mu = (
        (size * points(9, 16)).clamp(-3e4, 3e4).to(dtype),
        points(9, 16, seed=1).to(dtype),
        units(9, 16).to(dtype),
    )
    wide_x, wide_y, wide_mu = x.double(), y.double(), mu.double()
    cases = [
        (inner(x, x), inner(wide_x, wide_x)),
        (inner(x, y), (wide_x * wide_y).sum(-1)),
        (to_tangent(x[:, 1:], mu), to_tangent(wide_x[:, 1:], wide_mu)),
        *zip(split(x, y), split(wide_x, wide_y), strict=True),
        (angle(mu, mu.roll(1, 0)), angle(wide_mu, wide_mu.roll(1, 0))),
    ]
    for ours, exact in cases:
        assert ours.dtype == torch.float32
        assert_close(ours.double(), exact, rtol=1e-5, atol=2e-6 * size)


def test_mixed_precision_takes_the_wider_of_both():
    error, at = points(5, 16), points(5, 16, seed=1).bfloat16()
    radial, tangential = split(error, at)
    assert radial.dtype == tangential.dtype == torch.float64
    assert_close(radial, split(error, at.double())[0], rtol=1e-6, atol=1e-6)
