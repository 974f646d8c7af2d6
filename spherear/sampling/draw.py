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


@dataclass(frozen=True)
class Drawing:
    """draw(condition, noise, scale) -> raw tokens, from noise of (draws, batch, dim).

    Without a scale every condition has its noise and its token; with one (a scalar tensor), conditional rows
    are followed by null rows, and the tokens are those of the guided answer.
    """

    draws: int
    draw: Callable[[Tensor, Tensor, Tensor | None], Tensor]


Transform = Callable[[Callable[..., Tensor]], Callable[..., Tensor]]
"""What an engine makes of a function of tensors: itself, or a compiled one."""


def as_written(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """No transform."""
    return function


def guide(answers: Float[Tensor, "rows dim"], scale: float | Tensor) -> Float[Tensor, "batch dim"]:
    """null + scale (cond - null), from conditional rows followed by as many null rows."""
    conditional, null = answers.chunk(2)
    return null + scale * (conditional - null)


def drawing(
    head: VelocityHead | CategoricalHead, settings: SamplingSettings, transform: Transform = as_written
) -> Drawing:
    """The way of drawing that a head has; `transform` is applied to what is evaluated again and again."""
    if isinstance(head, CategoricalHead):
        return by_code(head, settings)
    return by_velocity(head, settings, transform)


def by_velocity(head: VelocityHead, settings: SamplingSettings, transform: Transform) -> Drawing:
    """Integrate the (guided) velocity from temperature * noise at t = 0 to a token at t = 1.

    What depends on time is computed here, once; what depends on a condition, once a token, for many times
    at once; what is left for an evaluation is what depends on x.
    """
    times = settings.times()
    place = {t: index for index, t in enumerate(times)}
    device = head.input_proj.weight.device
    time_embeddings = head.embed_time(torch.tensor(times, dtype=head.state_dtype, device=device))  # (times, width)

    def evaluate(x: Tensor, scale: Tensor | None, *modulation: Tensor) -> Tensor:
        velocity = head.answer(x, list(modulation))
        return velocity if scale is None else guide(velocity, scale)

    evaluation = transform(evaluate)

    def draw(condition: Tensor, noise: Tensor, scale: Tensor | None) -> Tensor:
        modulation = Modulations(head, time_embeddings, head.embed_condition(condition))

        def velocity(x: Tensor, t: float) -> Tensor:
            return evaluation(x, scale, *modulation.at(place[t]))

        return settings.method.integrate(velocity, noise * settings.temperature, times)  # (batch, dim)

    return Drawing(settings.draws, draw)


class Modulations:
    """What a head is told of every time of a grid and of one token's condition, some ROWS at a time.

    Computed together, weights are read once for many evaluations; in pieces, memory does not grow with steps.
    """

    ROWS = 512

    def __init__(self, head: VelocityHead, time_embeddings: Tensor, condition: Tensor) -> None:
        self.head, self.time_embeddings, self.condition = head, time_embeddings, condition
        self.each = max(1, self.ROWS // len(condition))  # times a piece
        self.piece, self.modulations = -1, list[tuple[Tensor, ...]]()

    def at(self, index: int) -> tuple[Tensor, ...]:
        """Of time number `index` of the grid."""
        piece, place = divmod(index, self.each)
        if piece != self.piece:
            some = self.time_embeddings[piece * self.each : (piece + 1) * self.each]
            values = self.head.modulate(some[:, None] + self.condition)  # (times, rows, width) each
            self.piece, self.modulations = piece, list(zip(*(x.unbind() for x in values), strict=True))
        return self.modulations[place]


def by_code(head: CategoricalHead, settings: SamplingSettings) -> Drawing:
    """The code at which the distribution of (guided) logits / temperature passes a uniform number.

    That number is the normal distribution function of the first number of the noise, so seeds mean what they
    mean everywhere. Temperature 0 takes the most likely code. Solvers have no part in it.
    """

    def draw(condition: Tensor, noise: Tensor, scale: Tensor | None) -> Tensor:
        logits = head(condition)
        logits = logits if scale is None else guide(logits, scale)  # (batch, codes)
        return head.codebook[pick(logits, noise[0, :, 0], settings.temperature)].to(head.state_dtype)

    return Drawing(1, draw)


def pick(logits: Float[Tensor, "batch codes"], noise: Float[Tensor, " batch"], temperature: float) -> Tensor:
    """Inverse of the distribution function of softmax(logits / temperature), at Phi(noise); (batch,) indices."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    upto = torch.softmax(logits / temperature, dim=-1).cumsum(dim=-1)  # (batch, codes)
    level = torch.special.ndtr(noise)[:, None] * upto[:, -1:]
    return torch.searchsorted(upto, level).squeeze(-1).clamp(max=logits.shape[-1] - 1)
