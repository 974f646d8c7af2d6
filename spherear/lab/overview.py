"""One picture's way through the models: image, tokens, condition, noise to token, projection, image.

Knows: one image, one token of it, and what a pipeline does to both.  Does not know: how it is drawn.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spherear.lab.diagnostics import trace
from spherear.models.config import require
from spherear.models.head import VelocityHead
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.settings import SamplingSettings, seeded_noise


@dataclass(frozen=True)
class Overview:
    """Numbers of one real run.

    image: the real one, (3, size, size).  reconstruction: its tokens decoded.  tokens: its tokens, (tokens, dim).
    condition: (width,), of token `position` when an image of the same label is drawn.
    times, path: the solver's way from noise to that token, (points,) and (points, dim).
    raw, token: where it ends, and after projection.  radius: of the sphere, or None.
    drawn: the image drawn, (3, size, size).
    """

    image: Float[Tensor, "3 size size"]
    reconstruction: Float[Tensor, "3 size size"]
    tokens: Float[Tensor, "tokens dim"]
    position: int
    condition: Float[Tensor, " width"]
    times: Float[Tensor, " points"]
    path: Float[Tensor, "points dim"]
    raw: Float[Tensor, " dim"]
    token: Float[Tensor, " dim"]
    radius: float | None
    drawn: Float[Tensor, "3 size size"]


@torch.no_grad()
def overview(
    pipeline: Pipeline,
    image: Float[Tensor, "3 size size"],
    label: int,
    position: int,
    steps: int = 40,
    seed: int = 0,
) -> Overview:
    """Encode and decode `image`; draw one of the same label, unguided, by Euler steps; keep token `position`'s way.

    A head without a velocity: TypeError. A position beyond the last: ValueError.
    """
    ar, vae = pipeline.ar, pipeline.vae
    if not isinstance(ar.head, VelocityHead):
        raise TypeError(f"the head is a {type(ar.head).__name__}; expected a VelocityHead")
    require(0 <= position < ar.config.tokens, f"position is {position}; expected 0 to {ar.config.tokens - 1}")
    tokens = vae.encode(image[None]).mode
    settings = SamplingSettings(guidance_scale=1.0, solver="euler", steps=steps)
    drawn = trace(pipeline.steps([label], settings, seed))
    condition = ar(drawn.tokens, torch.tensor([label]))[:, position]  # (1, width), as in the decode
    path = _path(ar.head, condition, seeded_noise([seed])(position, (1, 1, ar.config.latent_dim)), settings)
    return Overview(
        image, vae.decode(tokens)[0], tokens[0], position, condition[0], torch.tensor(settings.times()), path,
        drawn.raw[0, position], drawn.tokens[0, position], vae.bottleneck.radius, pipeline.images(drawn.tokens)[0],
    )  # fmt: skip


def _path(head: VelocityHead, condition: Tensor, noise: Tensor, settings: SamplingSettings) -> Tensor:
    """Where the solver passes from noise to token: (points, dim)."""
    times, points = settings.times(), list[Tensor]()
    clock = dict(zip(times, head.embed_time(torch.tensor(times, dtype=head.state_dtype)), strict=True))
    embedded = head.embed_condition(condition)

    def watched(x: Tensor, t: float) -> Tensor:
        points.append(x)
        return head.velocity(x, clock[t], embedded)

    end = settings.method.integrate(watched, noise, times)
    return torch.cat([*points, end])
