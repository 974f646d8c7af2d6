"""TokenSampler one token from its condition: by integrating a velocity, or from a codebook. (Paper section 3.2.)

Guidance is applied here. The token loop and projection are in `decode`.
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
class TokenSampler:
    """sample(condition, noise, scale) -> raw tokens, from noise of (draws, batch, dim).

    Without a scale there is one token per row of the condition. With a scale (a scalar tensor), conditional rows
    are followed by as many null rows, and there is one guided token per pair.
    """

    draws: int
    sample: Callable[[Tensor, Tensor, Tensor | None], Tensor]


Transform = Callable[[Callable[..., Tensor]], Callable[..., Tensor]]
"""An engine's transform of a function of tensors: it returns the function itself or a compiled one."""


def identity(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, unchanged."""
    return function


def guide(outputs: Float[Tensor, "rows dim"], scale: float | Tensor) -> Float[Tensor, "batch dim"]:
    """Guidance: null + scale (cond - null), from conditional rows followed by as many null rows."""
    conditional, null = outputs.chunk(2)
    return null + scale * (conditional - null)


def token_sampler(
    head: VelocityHead | CategoricalHead, settings: SamplingSettings, transform: Transform = identity
) -> TokenSampler:
    """The `TokenSampler` for the head's type. transform: applied to the function that a solver evaluates repeatedly."""
    if isinstance(head, CategoricalHead):
        return code_sampler(head, settings)
    return velocity_sampler(head, settings, transform)


def velocity_sampler(head: VelocityHead, settings: SamplingSettings, transform: Transform) -> TokenSampler:
    """Integrate the (guided) velocity from temperature * noise at t = 0 to a token at t = 1.

    The time embeddings are computed here, once. Modulations depend on time and condition: they are computed once
    per token, for many times together. An evaluation computes only what depends on x.
    """
    times = settings.times()
    index_of = {t: index for index, t in enumerate(times)}
    device = head.input_proj.weight.device
    time_embeddings = head.embed_time(torch.tensor(times, dtype=head.state_dtype, device=device))  # (times, width)

    def evaluate(x: Tensor, scale: Tensor | None, *modulation: Tensor) -> Tensor:
        velocity = head.modulated_velocity(x, list(modulation))
        return velocity if scale is None else guide(velocity, scale)

    evaluation = transform(evaluate)

    def sample(condition: Tensor, noise: Tensor, scale: Tensor | None) -> Tensor:
        modulation = Modulations(head, time_embeddings, head.embed_condition(condition))

        def velocity(x: Tensor, t: float) -> Tensor:
            return evaluation(x, scale, *modulation.at(index_of[t]))

        return settings.method.integrate(velocity, noise * settings.temperature, times)  # (batch, dim)

    return TokenSampler(settings.draws, sample)


class Modulations:
    """A head's modulations for one token's condition and all times of a grid, about ROWS rows at a time.

    Batching reads the weights once for many evaluations; limiting the batch keeps memory independent of steps.
    """

    ROWS = 512

    def __init__(self, head: VelocityHead, time_embeddings: Tensor, condition: Tensor) -> None:
        self.head, self.time_embeddings, self.condition = head, time_embeddings, condition
        self.each = max(1, self.ROWS // len(condition))  # times per piece
        self.piece, self.modulations = -1, list[tuple[Tensor, ...]]()

    def at(self, index: int) -> tuple[Tensor, ...]:
        """The modulation at time number `index` of the grid."""
        piece, offset = divmod(index, self.each)
        if piece != self.piece:
            embeddings = self.time_embeddings[piece * self.each : (piece + 1) * self.each]
            values = self.head.modulate(embeddings[:, None] + self.condition)  # (times, rows, width) each
            self.piece, self.modulations = piece, list(zip(*(x.unbind() for x in values), strict=True))
        return self.modulations[offset]


def code_sampler(head: CategoricalHead, settings: SamplingSettings) -> TokenSampler:
    """Draw a code from softmax((guided) logits / temperature), by inverting its distribution function.

    The uniform number is Phi(first number of the noise), Phi the normal distribution function, so the same seeded
    noise serves both heads. Temperature 0 gives the most likely code. The solver is not used.
    """

    def sample(condition: Tensor, noise: Tensor, scale: Tensor | None) -> Tensor:
        logits = head(condition)
        logits = logits if scale is None else guide(logits, scale)  # (batch, codes)
        return head.codebook[pick(logits, noise[0, :, 0], settings.temperature)].to(head.state_dtype)

    return TokenSampler(1, sample)


def pick(logits: Float[Tensor, "batch codes"], noise: Float[Tensor, " batch"], temperature: float) -> Tensor:
    """Inverse of the distribution function of softmax(logits / temperature), at Phi(noise); (batch,) indices."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = torch.softmax(logits / temperature, dim=-1).cumsum(dim=-1)  # (batch, codes)
    level = torch.special.ndtr(noise)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, level).squeeze(-1).clamp(max=logits.shape[-1] - 1)
