"""The token loop: condition, draw, project, feed back. (Paper section 3.2.)

How one token is drawn is in `draw`. The loop does not know the VAE: the projection is an argument.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.models.ar import SphereAR, check_labels
from spherear.models.config import require
from spherear.sampling.engines import DecodeState, Engine, own_precision
from spherear.sampling.noise import Noise
from spherear.sampling.settings import SamplingSettings

Projection = Callable[[Tensor], Tensor]
"""raw tokens (batch, dim), one row per image -> tokens of the same shape."""
EAGER = Engine()


@dataclass(frozen=True)
class Step:
    """One drawn token. raw: the solver's result.  token: after projection, as it is fed back; both (batch, dim)."""

    index: int
    raw: Float[Tensor, "batch dim"]
    token: Float[Tensor, "batch dim"]
    guidance_scale: float


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
    null_labels: labels of the unconditional branch; the null class by default. Without guidance (scale 1)
        this branch is not computed.
    engine: how the repeated computations are run (see `sampling.engines`); the tokens are the same.

    A token at scale 1 (the first, with the linear schedule) is not guided: each branch then draws its own token
    from the same noise and feeds it back, as in the published model. Every other token is fed back to both
    branches. Tokens are float32 or better whatever the model's dtype. ValueError for labels out of range, and for
    noise or a projection of the wrong shape.
    """
    device = ar.proj_in.weight.device
    labels = labels.to(device)
    check_labels(labels, ar.config.num_classes + 1)
    branches = 1 if settings.guidance_scale == 1.0 else 2
    rows = labels if branches == 1 else torch.cat((labels, _null_rows(ar, labels, null_labels)))
    with engine.state(ar, settings, len(rows)) as state:
        with own_precision(device):
            condition = ar.start(rows, state.cache)  # (rows, width)
        shape = (state.draws, len(labels), ar.config.latent_dim)
        for index in range(ar.config.tokens):
            scale = settings.scale_at(index, ar.config.tokens)
            token_noise = _move(noise(index, shape), device, ar.head.state_dtype)
            require(tuple(token_noise.shape) == shape, f"noise has shape {tuple(token_noise.shape)}; expected {shape}")
            with own_precision(device):
                raw = _sample_token(state, condition, token_noise, scale, branches)  # (batch or rows, dim)
                token = _projected(raw, project, len(labels)) if settings.project else raw
            yield Step(index, raw[: len(labels)], token[: len(labels)], scale)
            if index + 1 < ar.config.tokens:
                with own_precision(device):
                    condition = state.step(token if len(token) == len(rows) else token.repeat(branches, 1))


def _sample_token(state: DecodeState, condition: Tensor, noise: Tensor, scale: float, branches: int) -> Tensor:
    """One token; at scale 1, one per branch, from the same noise."""
    if scale == 1.0:
        return state.sample_token(condition, noise.repeat(1, branches, 1), None)
    return state.sample_token(condition, noise, torch.full((), scale, dtype=noise.dtype, device=noise.device))


def branches_at(settings: SamplingSettings, index: int, tokens: int) -> int:
    """How many tokens of one image are drawn at `index`: 2 if each guidance branch draws its own, otherwise 1."""
    return 2 if settings.guidance_scale != 1.0 and settings.scale_at(index, tokens) == 1.0 else 1


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
