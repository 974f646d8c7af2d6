"""The Bessel functions against 60 digits, scipy, closed forms and the golden table, from kappa = 0 to 1e8."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from scipy import special
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from spherear.sphere.bessel import gap, information, log_moment, peak, scaled_ratio, slope
from tests.sphere.truth import GOLDEN, bessel

KAPPAS = torch.tensor([1e-3, 0.1, 1.0, 3.0, 10.0, 100.0, 1e3, 1e4, 1e6], dtype=torch.float64)


@pytest.mark.parametrize("dim", [2, 3, 5, 8, 16, 64])
def test_agrees_with_scipy_where_scipy_has_digits(dim):
    kappa, order = KAPPAS.numpy(), dim / 2 - 1
    scaled = special.ive(order, kappa)
    safe = torch.from_numpy(scaled > 1e-250)
    ratio = special.ive(order + 1, kappa) / scaled
    moment = np.log(scaled) + kappa - order * np.log(kappa / 2) + special.gammaln(dim / 2)
    ours = KAPPAS * scaled_ratio(KAPPAS, dim)
    assert safe.sum() > 4
    assert_close(ours[safe], torch.from_numpy(ratio)[safe], rtol=1e-12, atol=0)
    assert_close(log_moment(KAPPAS, dim)[safe], torch.from_numpy(moment)[safe], rtol=1e-12, atol=2e-13)


def test_agrees_with_the_closed_forms_of_three_dimensions():
    kappa = KAPPAS[1:]
    log_sinh = kappa + torch.log(-torch.expm1(-2 * kappa)) - math.log(2)
    assert_close(log_moment(kappa, 3), log_sinh - kappa.log(), rtol=1e-13, atol=1e-15)
    assert_close(kappa * scaled_ratio(kappa, 3), 1 / torch.tanh(kappa) - 1 / kappa, rtol=1e-13, atol=0)


@pytest.mark.parametrize("dim", [2, 3, 16, 128, 1000])
def test_starts_as_its_power_series(dim):
    kappa = torch.tensor([0.0, 1e-6, 1e-3], dtype=torch.float64)
    series = kappa**2 / (2 * dim) - kappa**4 / (4 * dim**2 * (dim + 2))
    assert_close(log_moment(kappa, dim), series, rtol=1e-9, atol=1e-15)
    assert_close(scaled_ratio(kappa, dim), 1 / dim - kappa**2 / (dim**2 * (dim + 2)), rtol=1e-13, atol=0)


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: f"{row['dim']}-{row['concentration']}")
def test_agrees_with_the_golden_mean_length(row):
    kappa = torch.tensor(row["concentration"], dtype=torch.float64)
    expected = row["von_mises_fisher"]["mean_length"]
    assert (kappa * scaled_ratio(kappa, row["dim"])).item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("dim", [3, 16, 128, 1000])
def test_neighbouring_orders_obey_the_recurrence(dim):
    """I_{n-1} = I_{n+1} + (2n/x) I_n, on either side of the order where the expansion takes over."""
    here, above = scaled_ratio(KAPPAS, dim), scaled_ratio(KAPPAS, dim + 2)
    assert_close(here * (dim + KAPPAS**2 * above), torch.ones_like(KAPPAS), rtol=1e-13, atol=0)
    step = log_moment(KAPPAS, dim) - log_moment(KAPPAS, dim + 2)
    assert_close(step, torch.log1p(KAPPAS**2 * above / dim), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dim", [2, 16, 64])
def test_derivatives_of_every_order(dim):
    kappa = torch.tensor([0.0, 0.5, 7.0, 40.0], dtype=torch.float64, requires_grad=True)
    for function in (log_moment, scaled_ratio):
        assert gradcheck(lambda k, f=function: f(k, dim), kappa)
        assert gradgradcheck(lambda k, f=function: f(k, dim), kappa)


@pytest.mark.parametrize("dim", [2, 16, 64])
def test_slope_of_the_ratio_follows_its_differential_equation(dim):
    kappa = KAPPAS.clone().requires_grad_()
    mean = kappa * scaled_ratio(kappa, dim)
    (slope,) = torch.autograd.grad(mean.sum(), kappa)
    assert_close(slope, 1 - mean**2 - (dim - 1) * mean / kappa, rtol=1e-11, atol=2e-12)
    assert_close(slope[-1].item(), (dim - 1) / (2 * KAPPAS[-1].item() ** 2), rtol=3e-3, atol=0)


# the error bounds of the module's first lines --------------------------------------------------------------

EDGES = [2, 3, 16, 49, 50, 64, 2048]


@pytest.mark.parametrize("dim", EDGES)
@pytest.mark.parametrize("kappa", [1e-6, 1e-2, 1.0, 20.0, 100.0, 1e4, 1e6, 1e8])
def test_error_bounds_against_sixty_digits(dim, kappa):
    k, true = torch.tensor(kappa, dtype=torch.float64), bessel(kappa, dim)
    x = Decimal(kappa)

    def relative(ours, theirs):
        return abs(Decimal(ours.item()) / theirs - 1)

    def absolute(ours, theirs):
        return abs(Decimal(ours.item()) - theirs) / (1 + abs(theirs))

    assert relative(scaled_ratio(k, dim), true.A / x) < 2e-15
    assert relative(gap(k, dim), 1 - true.A) < 2e-15
    assert relative(slope(k, dim), true.slope) < 1e-12
    assert absolute(log_moment(k, dim), true.M) < 2e-14
    assert absolute(information(k, dim), x * true.A - true.M) < 2e-14
    assert absolute(peak(k, dim), x - true.M) < 2e-14


@pytest.mark.parametrize("dim", EDGES)
@pytest.mark.parametrize("kappa", [1e-6, 1.0, 100.0, 1e4, 1e8])
def test_first_derivatives_against_sixty_digits(dim, kappa):
    """M' = A, (kappa A - M)' = kappa A', (kappa - M)' = 1 - A, r' = (A' - r)/kappa, A'' from its equation."""
    k, true = torch.tensor(kappa, dtype=torch.float64, requires_grad=True), bessel(kappa, dim)
    with localcontext(prec=60):
        x = Decimal(kappa)
        ratio_slope = (true.slope - true.A / x) / x
        bend = -2 * true.A * true.slope - (dim - 1) * ratio_slope
    expected = {
        log_moment: (true.A, 2e-15),
        information: (x * true.slope, 1e-12),
        peak: (1 - true.A, 2e-15),
        gap: (-true.slope, 1e-12),
        scaled_ratio: (ratio_slope, 1e-12),
        slope: (bend, 1e-12 * (kappa + dim)),
    }
    for function, (value, bound) in expected.items():
        (ours,) = torch.autograd.grad(function(k, dim), k)
        assert abs(Decimal(ours.item()) / value - 1) < bound, function.__name__


@pytest.mark.parametrize("dim", [2, 16, 2048])
def test_all_functions_start_at_zero_and_end_at_the_largest_concentration(dim):
    ends = torch.tensor([0.0, 1e75], dtype=torch.float64, requires_grad=True)
    for function, start in {
        log_moment: 0,
        scaled_ratio: 1 / dim,
        slope: 1 / dim,
        gap: 1,
        information: 0,
        peak: 0,
    }.items():
        values = function(ends, dim)
        assert values[0].item() == pytest.approx(start, rel=1e-15)
        assert values.isfinite().all()
        assert torch.autograd.grad(values.sum(), ends)[0].isfinite().all()


@pytest.mark.parametrize("function", [slope, gap, information, peak])
def test_derivatives_of_every_order_of_the_differences(function):
    kappa = torch.tensor([0.0, 40.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda k: function(k, 16), kappa)
    assert gradgradcheck(lambda k: function(k, 16), kappa)
