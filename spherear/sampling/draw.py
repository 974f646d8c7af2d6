"""How one token is drawn from its condition: along a velocity, or from a table of codes.

Knows: both kinds of head, guidance between two of their answers, and noise as an argument.
Does not know: the transformer, the token loop, or projection (paper section 3.2).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spherear.models.categorical import CategoricalHead
from spherear.models.head import VelocityHead
from spherear.sampling.settings import SamplingSettings
from spherear.sampling.solvers import Velocity


@dataclass(frozen=True)
class Drawing:
    """draw(condition, noise, scale) -> raw tokens, from noise of (draws, batch, dim).

    At scale 1 every condition has its noise and its token; at any other, conditional rows are followed by
    null rows, and the tokens are those of the guided answer.
    """

    draws: int
    draw: Callable[[Tensor, Tensor, float], Tensor]


def guide(answers: Float[Tensor, "rows dim"], scale: float) -> Float[Tensor, "batch dim"]:
    """null + scale (cond - null), from conditional rows followed by as many null rows."""
    conditional, null = answers.chunk(2)
    return null + scale * (conditional - null)


def drawing(head: VelocityHead | CategoricalHead, settings: SamplingSettings) -> Drawing:
    """The way of drawing that a head has."""
    return by_code(head, settings) if isinstance(head, CategoricalHead) else by_velocity(head, settings)


def by_velocity(head: VelocityHead, settings: SamplingSettings) -> Drawing:
    """Integrate the (guided) velocity from temperature * noise at t = 0 to a token at t = 1.

    The times of the grid are embedded here, once; a condition, once a token.
    """
    times = settings.times()
    clock = _clock(head, times)

    def draw(condition: Tensor, noise: Tensor, scale: float) -> Tensor:
        velocity = _velocity(head, condition, clock, scale)
        return settings.method.integrate(velocity, noise * settings.temperature, times)  # (batch, dim)

    return Drawing(settings.draws, draw)


def _clock(head: VelocityHead, times: list[float]) -> dict[float, Tensor]:
    """Every time of the grid, embedded: (width,) each."""
    moments = torch.tensor(times, dtype=head.state_dtype, device=head.input_proj.weight.device)
    return dict(zip(times, head.embed_time(moments), strict=True))


def _velocity(head: VelocityHead, condition: Tensor, clock: dict[float, Tensor], scale: float) -> Velocity:
    """One token's velocity(x, t): its condition is embedded here, once, its times were before."""
    embedded = head.embed_condition(condition)  # (rows, width)

    def own(x: Tensor, t: float) -> Tensor:
        return head.velocity(x, clock[t], embedded)

    def guided(x: Tensor, t: float) -> Tensor:
        return guide(own(x.repeat(2, 1), t), scale)

    return own if scale == 1.0 else guided


def by_code(head: CategoricalHead, settings: SamplingSettings) -> Drawing:
    """The code at which the distribution of (guided) logits / temperature passes a uniform number.

    That number is the normal distribution function of the first number of the noise, so seeds mean what they
    mean everywhere. Temperature 0 takes the most likely code. Solvers have no part in it.
    """

    def draw(condition: Tensor, noise: Tensor, scale: float) -> Tensor:
        logits = head(condition)
        logits = logits if scale == 1.0 else guide(logits, scale)  # (batch, codes)
        return head.codebook[pick(logits, noise[0, :, 0], settings.temperature)].to(head.state_dtype)

    return Drawing(1, draw)


def pick(logits: Float[Tensor, "batch codes"], noise: Float[Tensor, " batch"], temperature: float) -> Tensor:
    """Inverse of the distribution function of softmax(logits / temperature), at Phi(noise); (batch,) indices."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    upto = torch.softmax(logits / temperature, dim=-1).cumsum(dim=-1)  # (batch, codes)
    level = torch.special.ndtr(noise)[:, None] * upto[:, -1:]
    return torch.searchsorted(upto, level).squeeze(-1).clamp(max=logits.shape[-1] - 1)
