"""The two Bessel functions against scipy, closed forms and the golden table, from kappa = 0 to 1e6."""

import math

import numpy as np
import pytest
import torch
from scipy import special
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from spherear.sphere.bessel import log_moment, scaled_ratio
from tests.sphere.truth import GOLDEN

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
