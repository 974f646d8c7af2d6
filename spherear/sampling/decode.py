"""The token loop: condition, draw, project, feed back. (Paper section 3.2.)

How one token is drawn is in `head_sampling`. The loop does not know the VAE: the projection is an argument.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.models.ar import SphereAR, check_labels
from spherear.models.config import require
from spherear.models.heads.mean_velocity import MeanVelocityHead
from spherear.sampling.engines import Engine, own_precision
from spherear.sampling.head_sampling import Times
from spherear.sampling.noise import Noise
from spherear.sampling.settings import SamplingSettings, check_settings

Projection = Callable[[Tensor], Tensor]
"""raw tokens (batch, dim), one row per image -> tokens of the same shape."""
EAGER = Engine()


@dataclass(frozen=True)
class Step:
    """One drawn token. raw: the solver's result.  token: after projection, as it is fed back; both (batch, dim).

    guidance_scale: of this token; where it depends on the solver's time, the mean over it.
    """

    index: int
    raw: Float[Tensor, "batch dim"]
    token: Float[Tensor, "batch dim"]
    guidance_scale: float


@dataclass(frozen=True)
class TokenPlan:
    """How one token is drawn. grid: the solver's times.  scales: one guidance scale, or one per evaluation time.

    scale: the mean one.
    """

    grid: tuple[float, ...]
    scales: tuple[float, ...]
    scale: float

    @property
    def own(self) -> bool:
        """Whether the token is not guided: each branch then draws its own."""
        return all(scale == 1.0 for scale in self.scales)


def plan_tokens(ar: SphereAR, settings: SamplingSettings) -> list[TokenPlan]:
    """How every token is drawn. ValueError for times or scales that cannot be, and for what the head cannot honour."""
    tokens, head = ar.config.tokens, ar.head
    check_settings(ar.config.head_kind, settings)
    continuous = not head.discrete
    grids = [tuple(settings.times(0, tokens))] * tokens
    if continuous and not settings.same_times:
        grids = [tuple(settings.times(index, tokens)) for index in range(tokens)]
    plans = [
        TokenPlan(grid, settings.scales_at(index, tokens), settings.scale_at(index, tokens))
        for index, grid in enumerate(grids)
    ]
    if isinstance(head, MeanVelocityHead):
        low, high = (float(scale) for scale in head.scales)
        found = [plan.scale for plan in plans if not low <= plan.scale <= high]
        require(not found, f"a guidance scale is {found[-1:]}; expected {low:g} to {high:g}, which the head has learnt")
    return plans


def decode(
    ar: SphereAR,
    labels: Int[Tensor, " batch"],
    settings: SamplingSettings,
    noise: Noise,
    project: Projection,
    null_labels: Int[Tensor, " batch"] | None = None,
    engine: Engine = EAGER,
) -> Iterator[Step]:
    """Draw `ar.config.tokens` tokens per label, one `Step` at a time; leave the loop to stop early.

    noise: called once per token, in order, as noise(index, (draws, batch, dim)); both guidance
        branches share it.
    project: applied to every token before it is fed back (ignored if `settings.project` is False). It sees one row
        per image. It is called once per token, in order, and once more where each branch draws its own token.
    null_labels: labels of the unconditional branch; the null class by default. Without guidance (scale 1 at every
        token), and with a head that takes the scale as an input, this branch is not computed.
    engine: how the repeated computations are run (see `sampling.engines`); the tokens are the same.

    A token at scale 1 (the first, with the linear schedule) is not guided: each branch then draws its own token
    from the same noise and feeds it back, as in the published model. Every other token is fed back to both
    branches. Tokens are float32 or better whatever the model's dtype. ValueError when called, for labels out of range,
    for settings that the head cannot use and for a model that the engine cannot run; while it draws, for noise or a
    projection of the wrong shape.
    """
    device = ar.proj_in.weight.device
    labels = labels.to(device)
    check_labels(labels, ar.config.num_classes + 1)
    nulls = _null_rows(ar, labels, null_labels)
    engine.check(ar)
    plans = plan_tokens(ar, settings)
    inside = ar.head.takes_scale
    require(not inside or null_labels is None, "null_labels are given; expected none: the head has guidance inside")
    branches = 1 if inside or all(plan.own for plan in plans) else 2
    rows = labels if branches == 1 else torch.cat((labels, nulls))
    return _decode(ar, rows, branches, settings, plans, noise, project if settings.project else None, engine)


def _decode(
    ar: SphereAR,
    rows: Tensor,
    branches: int,
    settings: SamplingSettings,
    plans: list[TokenPlan],
    noise: Noise,
    project: Projection | None,
    engine: Engine,
) -> Iterator[Step]:
    device, batch, head = ar.proj_in.weight.device, len(rows) // branches, ar.head
    with ExitStack() as stack:
        with own_precision(device):
            session = stack.enter_context(engine.session(ar, len(rows)))
            condition = session.start(session.ar, rows, session.cache)  # (rows, width)
            times = {grid: Times.of(head, settings.method, grid) for grid in dict.fromkeys(p.grid for p in plans)}
        for index, plan in enumerate(plans):
            shape = (times[plan.grid].rows_of_noise(head), batch, ar.config.latent_dim)
            drawn = _move(noise(index, shape), device, head.state_dtype)
            require(tuple(drawn.shape) == shape, f"noise has shape {tuple(drawn.shape)}; expected {shape}")
            with own_precision(device):
                scale = None if plan.own else _on_device(plan.scales, drawn)
                drawn = drawn.repeat(1, branches, 1) if plan.own else drawn
                raw = session.sample_token(
                    session.ar.head, condition, drawn, times[plan.grid], scale, settings.temperature
                )  # (batch or rows, dim)
                token = raw if project is None else _projected(raw, project, batch)
            yield Step(index, raw[:batch], token[:batch], plan.scale)
            if index + 1 < len(plans):
                with own_precision(device):
                    condition = session.step(token if len(token) == len(rows) else token.repeat(branches, 1))


def _on_device(scales: tuple[float, ...], like: Tensor) -> Tensor:
    """The scales in the dtype and on the device of `like`; a single one without waiting for a GPU."""
    if len(scales) == 1:
        return like.new_full((1,), scales[0])
    return like.new_tensor(scales)


def branches_at(ar: SphereAR, settings: SamplingSettings, index: int) -> int:
    """How many tokens of one image are drawn at `index`: 2 if each guidance branch draws its own, otherwise 1."""
    tokens = ar.config.tokens
    if ar.head.takes_scale or settings.guided_at(index, tokens):
        return 1
    return 2 if any(settings.guided_at(other, tokens) for other in range(tokens)) else 1


def _projected(raw: Tensor, project: Projection, batch: int) -> Tensor:
    """Each branch's tokens projected by themselves, so that a projection can differ from image to image."""
    tokens = [project(rows) for rows in raw.split(batch)]
    for token in tokens:
        expected = (batch, raw.shape[1])
        require(
            tuple(token.shape) == expected,
            f"the projection returns shape {tuple(token.shape)}; expected {expected}",
        )
    return torch.cat(tokens)


def _move(noise: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Noise on `device` in `dtype`; the copy to a GPU is asynchronous."""
    if device.type == "cuda" and noise.device.type == "cpu":
        noise = noise.pin_memory()
    return noise.to(device, dtype, non_blocking=True)


def _null_rows(ar: SphereAR, labels: Tensor, null_labels: Tensor | None) -> Tensor:
    if null_labels is None:
        return torch.full_like(labels, ar.null_label)
    require(
        null_labels.shape == labels.shape,
        f"null_labels have shape {tuple(null_labels.shape)}; expected {tuple(labels.shape)}",
    )
    check_labels(null_labels, ar.config.num_classes + 1)
    return null_labels.to(labels.device)


@dataclass(frozen=True)
class Trace:
    """All steps of one decode. raw: the solver's results.  tokens: after projection, as they were fed back.

    scales: guidance scale per token.
    """

    raw: Float[Tensor, "batch tokens dim"]
    tokens: Float[Tensor, "batch tokens dim"]
    scales: Float[Tensor, " tokens"]


def trace(steps: Iterable[Step]) -> Trace:
    """Run a decode to its end and stack its steps. ValueError if there are none."""
    steps = list(steps)
    require(len(steps) > 0, "there are no steps; expected at least one")
    raw, tokens = (torch.stack([getattr(step, name) for step in steps], dim=1) for name in ("raw", "token"))
    return Trace(raw, tokens, torch.tensor([step.guidance_scale for step in steps], dtype=torch.float64))
