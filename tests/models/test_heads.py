"""The contract of heads, their table, and what each computes: against integrals, derivatives and laws."""

import math
from dataclasses import replace
from statistics import fmean

import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.stats import kstest
from torch.testing import assert_close

from spherear import SphereAR
from spherear.models.heads.contract import Head
from spherear.models.heads.mean_velocity import mean_flow_loss, shortcut_loss
from spherear.models.heads.table import HEADS
from spherear.models.presets import check_pair
from spherear.models.pretrained import fingerprint
from spherear.models.published_weights import to_published
from spherear.sampling.solvers import SOLVERS
from spherear.sphere.geometry import inner, project
from spherear.sphere.spaces import Flat, Sphere
from tests.conftest import TINY_AR, TINY_VAE, draw, randomise

F64 = torch.float64
CONTINUOUS = [name for name, row in HEADS.items() if not row.discrete]


def head_of(kind, **sizes):
    sizes = {"latent_dim": 4, "condition_width": 8, "width": 32, "depth": 2, "groups": 1} | sizes
    return randomise(HEADS[kind].make(*sizes.values()), seed=2)


@pytest.mark.parametrize("name", HEADS)
def test_every_row_says_what_its_class_says(name):
    head, row = HEADS[name].make(4, 8, 32, 2, 1), HEADS[name]
    assert isinstance(head, Head)
    assert (row.discrete, row.curved, row.takes_scale) == (head.discrete, head.curved, head.takes_scale)
    others = [other for key, other in HEADS.items() if key != name]
    for field in ("letter", "color", "marker", "title"):
        assert getattr(row, field) not in [getattr(other, field) for other in others]
    if not row.discrete:
        assert head.space.curved == row.curved


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_model_keeps_its_head(name, tmp_path):
    ar = randomise(SphereAR(replace(TINY_AR, head=name)), seed=1)
    ar.save_pretrained(tmp_path)
    again = SphereAR.from_pretrained(tmp_path)
    assert type(again.head) is type(ar.head)
    assert fingerprint(again) == fingerprint(ar)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_loss_is_that_of_its_draws(name):
    """Random numbers drawn apart, for compiled code, are those that the loss draws itself."""
    ar = randomise(SphereAR(replace(TINY_AR, head=name)), seed=1)
    tokens, labels = project(draw("tokens", 3, 16, 4).float(), 2.0), torch.arange(3)
    drawn = ar.head.draws(tokens, 2, torch.Generator().manual_seed(0))
    apart = ar.loss(tokens, labels, repeats=2, label_dropout=0.0, **drawn)
    inside = ar.loss(tokens, labels, repeats=2, label_dropout=0.0, generator=torch.Generator().manual_seed(0))
    assert_close(apart, inside, atol=0, rtol=0)
    apart.backward()
    assert all(torch.isfinite(p.grad).all() for p in ar.head.parameters() if p.grad is not None)


def test_a_span_has_both_of_its_times():
    ar, tokens = SphereAR(replace(TINY_AR, head="mean_velocity")), draw("tokens", 1, 16, 4).float()
    with pytest.raises(ValueError, match=r"the draws given are \['times'\]; expected all of \['ends', 'noise', "):
        ar.loss(tokens, torch.tensor([1]), torch.rand(16), repeats=1)


def test_half_of_the_rows_are_not_guided():
    """Unless the caller says otherwise, as distillation does: then the scales are uniform."""
    head, tokens = head_of("mean_velocity"), torch.zeros(50, 16, 4)
    scales = head.draws(tokens, 4, torch.Generator().manual_seed(0))["scales"]
    assert abs((scales == 1).double().mean().item() - 0.5) < 4 * math.sqrt(0.25 / 3200)
    guided = head.draws(tokens, 4, torch.Generator().manual_seed(0), plain=0.0)["scales"]
    for values in (scales[scales > 1], guided):
        assert kstest(values.double().numpy(), "uniform", (1, 7)).pvalue > 0.01


@pytest.mark.parametrize("name", ["mean_velocity", "geodesic_mean"])
def test_a_head_that_guides_itself_learns_without_growing(name):
    """With uniform scales its loss rises above 600 and is still above 10 at the end: what it adds, it learns again."""
    head, generator = head_of(name), torch.Generator().manual_seed(0)
    tokens, conditions = project(draw("tokens", 10, 1, 4).float(), 2.0), draw("conditions", 10, 1, 8).float()
    rows, null = torch.arange(10).repeat(6), torch.zeros(60, 1, 8)
    optimizer, losses = torch.optim.Adam(head.parameters(), lr=2e-3), []
    for _ in range(200):
        dropped = torch.rand(60, 1, 1, generator=generator) < 0.1
        loss = head.loss(tokens[rows], torch.where(dropped, null, conditions[rows]), null=null, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert max(losses[20:]) < 5
    assert fmean(losses[-20:]) < 1


@pytest.mark.parametrize("name", ["geodesic", "geodesic_mean"])
def test_a_velocity_on_the_sphere_is_tangent(name):
    head = head_of(name).double()
    x, t, condition = project(draw("x", 50, 4), 2.0), torch.rand(50, dtype=F64), draw("c", 50, 8)
    assert inner(head(x, t, condition), x).abs().max() < 1e-12


def test_a_geodesic_head_learns_the_velocity_of_great_circles():
    """Its loss is the mean squared error against the derivative of the slerp, by central differences."""
    head = head_of("geodesic").double()
    tokens, condition = project(draw("z", 5, 3, 4), 2.0), draw("c", 5, 3, 8)
    noise, times = draw("n", 15, 4), torch.rand(15, dtype=F64, generator=torch.Generator().manual_seed(0))
    loss = head.loss(tokens, condition, repeats=1, times=times, noise=noise)
    a, b = project(noise), tokens.reshape(15, 4) / 2

    def slerp(t):
        theta = torch.arccos((a * b).sum(-1, keepdim=True))
        return 2 * (((1 - t) * theta).sin() * a + (t * theta).sin() * b) / theta.sin()

    t, h = times[:, None], 1e-6
    expected = (slerp(t + h) - slerp(t - h)) / (2 * h)
    found = head(slerp(t), times, condition.reshape(15, 8))
    assert_close(loss, (found - expected).square().mean(), rtol=1e-7, atol=0)


def solved(head, x, condition):
    """The flow of a geodesic head, by Runge-Kutta in the space around the sphere."""

    def slope(t, y):
        at = torch.from_numpy(y).view_as(x)
        return head(at, torch.full((len(x),), t, dtype=F64), condition).detach().flatten().numpy()

    return torch.from_numpy(solve_ivp(slope, (0, 1), x.flatten().numpy(), rtol=1e-9, atol=1e-10).y[:, -1]).view_as(x)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2), ("adams_bashforth", 2)])
def test_solvers_converge_on_the_sphere(name, order):
    """To the solution of an independent integrator, with an error that falls by 2^order when steps are halved."""
    head = head_of("geodesic").double()
    with torch.no_grad():  # a velocity that changes slowly enough in time for an order to show
        head.time_embed.mlp[0].weight.zero_()
    x, condition, errors = project(draw("x", 6, 4), 2.0), draw("c", 6, 8), []
    expected = solved(head, x, condition)
    for steps in (32, 64):
        times = torch.linspace(0, 1, steps + 1).tolist()
        with torch.no_grad():
            end = SOLVERS[name](
                lambda x, t: head(x, torch.full((6,), t, dtype=F64), condition), x[None], times, Sphere(2.0)
            )
        assert_close(end.norm(dim=-1), torch.full((6,), 2.0, dtype=F64))
        errors.append((end - expected).norm().item())
    assert errors[0] / errors[1] > 0.8 * 2**order
    assert errors[1] < (0.3 if order == 1 else 0.03)


@pytest.mark.parametrize("name", ["euler", "heun", "midpoint", "adams_bashforth"])
@pytest.mark.parametrize("steps", [1, 7, 300])
def test_the_length_stays_in_float32(name, steps):
    """|x| = R to 1e-6 at every evaluation and at the end, at guidance 20."""
    head, lengths = head_of("geodesic", latent_dim=16), []
    condition, null, noise = draw("c", 8, 8).float(), draw("null", 8, 8).float(), draw("n", 1, 8, 16).float()

    @torch.no_grad()
    def velocity(x, t):
        lengths.append(x.double().norm(dim=-1) / 4)
        v, away = (head(x, torch.full((8,), t), c) for c in (condition, null))
        return away + 20 * (v - away)

    times = torch.linspace(0, 1, steps + 1).tolist()
    end = SOLVERS[name](velocity, head.space.start(noise), times, head.space)
    worst = (torch.stack([*lengths, end.double().norm(dim=-1) / 4]) - 1).abs().max()
    assert worst < 1e-6


@pytest.mark.parametrize("name", ["mean_velocity", "geodesic_mean"])
def test_an_untrained_head_of_averages_is_its_velocity(name):
    """The embeddings of span and scale begin at zero, so that a head can begin as its teacher."""
    head = HEADS[name].make(4, 8, 32, 2, 1)
    plain = HEADS["geodesic" if head.curved else "velocity"].make(4, 8, 32, 2, 1)
    plain.load_state_dict({k: v for k, v in head.state_dict().items() if k in plain.state_dict()})
    randomise(plain.res_blocks), randomise(plain.final_linear)
    head.load_state_dict({**head.state_dict(), **plain.state_dict()})
    x, t, condition = project(draw("x", 9, 4).float(), 2.0), torch.rand(9), draw("c", 9, 8).float()
    assert_close(head(x, t, condition, torch.ones(9), torch.full((9,), 5.0)), plain(x, t, condition))


def exact_average(space):
    """A flow with a known average velocity: x' = A x with a skew A in flat space and on the sphere: rotations."""
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(4, 4, generator=generator, dtype=F64)
    a = 0.5 * (a - a.mT)

    def average(x, t, end):
        span = (end - t)[:, None]
        there = torch.einsum("bij,bj->bi", torch.matrix_exp(span[..., None] * a), x)
        return torch.where(span < 1e-9, x @ a.mT, space.step(x, there) / span.clamp(min=1e-9))

    return a, average


@pytest.mark.parametrize("loss", [shortcut_loss, mean_flow_loss])
@pytest.mark.parametrize("space", [Flat(), Sphere(2.0)])
def test_the_exact_average_has_no_loss(loss, space):
    """Both objectives are zero at the average velocity of a known flow, and not at another one."""
    a, average = exact_average(space)
    x = project(draw("x", 40, 4), 2.0)
    t = torch.rand(40, dtype=F64, generator=torch.Generator().manual_seed(0)) * 0.9
    end = t + (0.95 - t) * torch.rand(40, dtype=F64, generator=torch.Generator().manual_seed(1))
    weight = torch.ones(40, dtype=F64)
    assert loss(space, average, x, t, end, x @ a.mT, weight) < 1e-9
    if loss is mean_flow_loss:
        assert loss(space, average, x, t, end, 1.1 * x @ a.mT, weight) > 1e-4
    assert loss(space, lambda x, t, e: average(x, t, e) * (1 + (e - t)[:, None]), x, t, end, x @ a.mT, weight) > 1e-4


@pytest.mark.parametrize("family", ["gaussian", "fixed_variance", "decoder_normalized", "vq"])
@pytest.mark.parametrize("head", ["geodesic", "geodesic_mean"])
def test_a_sphere_needs_a_family_with_a_radius(family, head):
    vae = replace(TINY_VAE, bottleneck=family)
    with pytest.raises(
        ValueError, match=f"head is '{head}' and (the tokens of {family} have no fixed length|codes is)"
    ):
        check_pair(vae, replace(TINY_AR, head=head, codes=vae.alphabet))


@pytest.mark.parametrize("family", ["power_spherical", "vmf", "normalized_gaussian"])
def test_a_sphere_fits_the_families_with_one(family):
    check_pair(replace(TINY_VAE, bottleneck=family), replace(TINY_AR, head="geodesic"))


@pytest.mark.parametrize("name", [name for name in CONTINUOUS if name != "velocity"])
def test_other_heads_are_not_published(name):
    with pytest.raises(ValueError, match="expected velocity, as in the published models"):
        to_published(SphereAR(replace(TINY_AR, head=name)))
    assert to_published(SphereAR(replace(TINY_AR, head="velocity")))


@pytest.mark.slow
def test_the_law_of_a_geodesic_head_is_that_of_the_target():
    """Trained on R u, u of a von Mises-Fisher law: mean and spread of mu · u as known, and as a velocity head gives."""
    from spherear.sphere.distributions import VonMisesFisher

    mu, kappa, rows = torch.tensor([0.6, 0.0, 0.0, 0.8]), torch.tensor(5.0), 512
    law, generator = VonMisesFisher(mu, kappa), torch.Generator().manual_seed(0)
    exact = law.rsample((200_000,), generator=generator) @ mu
    cosines = {}
    for name in ("velocity", "geodesic"):
        torch.manual_seed(0)
        head = HEADS[name].make(4, 8, 64, 2, 1)
        optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
        condition = torch.ones(rows, 1, 8)
        for step in range(800):
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * (1 - step / 800)
            tokens = 2 * law.rsample((rows,), generator=generator)[:, None]
            optimizer.zero_grad()
            head.loss(tokens, condition, repeats=2, generator=generator).backward()
            optimizer.step()
        noise = torch.randn(1, 20_000, 4, generator=generator)
        with torch.no_grad():
            end = SOLVERS["heun"](
                lambda x, t, head=head: head(x, torch.full((20_000,), t), torch.ones(20_000, 8)),
                head.space.start(noise), torch.linspace(0, 1, 21).tolist(), head.space,
            )  # fmt: skip
        cosines[name] = project(end) @ mu
    for found in cosines.values():
        assert_close(found.mean(), exact.mean(), atol=0.02, rtol=0)
        assert_close(found.std(), exact.std(), atol=0.02, rtol=0)
    levels = torch.linspace(0.05, 0.95, 19)
    assert_close(cosines["geodesic"].quantile(levels), cosines["velocity"].quantile(levels), atol=0.05, rtol=0)
