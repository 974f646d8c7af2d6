"""Sample one token from its condition: by integrating a velocity, or from a codebook. (Paper section 3.2.)

Guidance is applied here. The token loop and projection are in `decode`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spherear.models.config import require
from spherear.models.heads.categorical import CategoricalHead
from spherear.models.heads.contract import Head
from spherear.models.heads.mean_velocity import MeanVelocityHead
from spherear.models.heads.velocity import VelocityHead
from spherear.sampling.solvers import Solver, evaluation_times

NO_SCALE = "expected the same times for every token where the guidance scale depends on them"


@dataclass(frozen=True)
class Times:
    """The times of one token. solver: integrates over `grid`.  points: the times at which it evaluates the velocity.

    embedded: the head's embeddings of `points`, (points, width); they do not depend on the token. Of a head of average
    velocities, the embeddings of the steps that begin there.
    """

    solver: Solver
    grid: tuple[float, ...]
    points: tuple[float, ...]
    embedded: Tensor

    @classmethod
    def of(cls, head: Head, solver: Solver, grid: tuple[float, ...]) -> "Times":
        """The times of a grid. A categorical head uses none."""
        if isinstance(head, MeanVelocityHead):
            return cls(solver, grid, grid[:-1], embed_spans(head, grid))
        points = () if isinstance(head, CategoricalHead) else tuple(dict.fromkeys(evaluation_times(solver, grid)))
        return cls(solver, grid, points, embed_times(head, points))

    def rows_of_noise(self, head: Head) -> int:
        """Rows of noise that one token takes."""
        return 1 if isinstance(head, CategoricalHead) else self.solver.draws_for(self.grid)


def embed_times(head: Head, points: tuple[float, ...]) -> Float[Tensor, "points width"]:
    """The head's embeddings of times; (0, 0) for a categorical head."""
    if isinstance(head, CategoricalHead):
        return torch.empty(0, 0, device=head.codebook.device)
    assert isinstance(head, VelocityHead)
    return head.embed_time(torch.tensor(points, dtype=head.state_dtype, device=head.input_proj.weight.device))


def embed_spans(head: MeanVelocityHead, grid: tuple[float, ...]) -> Float[Tensor, "steps width"]:
    """The head's embeddings of the steps of a grid."""
    times = torch.tensor(grid, dtype=head.state_dtype, device=head.input_proj.weight.device)
    return head.embed_span(times[:-1], times[1:])


def guide(outputs: Float[Tensor, "rows dim"], scale: float | Tensor) -> Float[Tensor, "batch dim"]:
    """Guidance: null + scale (cond - null), from conditional rows followed by as many null rows."""
    conditional, null = outputs.chunk(2)
    return null + scale * (conditional - null)


def evaluate(head: VelocityHead, x: Tensor, scale: Tensor | None, *modulation: Tensor) -> Tensor:
    """The (guided) velocity at x: what a solver computes again and again."""
    velocity = head.modulated_velocity(x, list(modulation))
    return velocity if scale is None else guide(velocity, scale)


def sample_token(
    head: Head,
    condition: Float[Tensor, "rows width"],
    noise: Float[Tensor, "draws batch dim"],
    times: Times,
    scale: Float[Tensor, " scales"] | None,
    temperature: float | int = 1.0,
    evaluate: Callable[..., Tensor] = evaluate,
) -> Float[Tensor, "batch dim"]:
    """Raw tokens: the velocity integrated from temperature * noise at t = 0 to t = 1, or codes drawn from a codebook.

    Between, the state is in the head's space: on the sphere for a geodesic head.

    scale: the guidance scale at each of `times.points`, or one for all of them. Then conditional rows are followed by
        as many null rows, and there is one token per pair; a head that takes the scale has conditional rows alone.
        None: one token per row, without guidance.
    evaluate: computes a velocity; an engine may give a compiled one.
    """
    if isinstance(head, CategoricalHead):
        return sample_code(head, condition, noise, scale, temperature)
    assert isinstance(head, VelocityHead)
    embedded = head.embed_condition(condition)
    if isinstance(head, MeanVelocityHead):
        embedded, scale = embedded + head.embed_scale(noise.new_ones(1) if scale is None else scale), None
    modulations = Modulations(head, times.embedded, embedded)
    scales = None if scale is None else scale.expand(max(len(scale), len(times.points))).unbind()
    index_of = {t: index for index, t in enumerate(times.points)}

    def velocity(x: Tensor, t: float) -> Tensor:
        index = index_of.get(t)
        if index is None:
            require(
                scale is None or len(scale) == 1,
                f"the solver evaluates at t = {t:g} for some tokens; {NO_SCALE}",
            )
        modulation = modulations.of(embed_times(head, (t,))) if index is None else modulations.at(index)
        return evaluate(head, x, None if scales is None else scales[index or 0], *modulation)

    return times.solver(velocity, head.space.start(noise * temperature), times.grid, head.space)  # (batch, dim)


class Modulations:
    """A head's modulations for one token's condition and all times of a solver, about ROWS rows at a time.

    Modulations depend on time and condition, not on x. Batching reads the weights once for many evaluations; limiting
    the batch keeps memory independent of steps.
    """

    ROWS = 512

    def __init__(self, head: VelocityHead, time_embeddings: Tensor, condition: Tensor) -> None:
        self.head, self.time_embeddings, self.condition = head, time_embeddings, condition
        self.each = max(1, self.ROWS // len(condition))  # times per piece
        self.piece, self.modulations = -1, list[tuple[Tensor, ...]]()

    def at(self, index: int) -> tuple[Tensor, ...]:
        """The modulation at time number `index`."""
        piece, offset = divmod(index, self.each)
        if piece != self.piece:
            values = self._values(self.time_embeddings[piece * self.each : (piece + 1) * self.each])
            self.piece, self.modulations = piece, list(zip(*(x.unbind() for x in values), strict=True))
        return self.modulations[offset]

    def of(self, embedding: Float[Tensor, "1 width"]) -> tuple[Tensor, ...]:
        """The modulation at the time with this embedding."""
        return tuple(x[0] for x in self._values(embedding))

    def _values(self, embeddings: Tensor) -> list[Tensor]:
        return self.head.modulate(embeddings[:, None] + self.condition)  # (times, rows, width) each


def sample_code(
    head: CategoricalHead, condition: Tensor, noise: Tensor, scale: Tensor | None, temperature: float
) -> Float[Tensor, "batch dim"]:
    """Draw a code from softmax((guided) logits / temperature), by inverting its distribution function.

    The uniform number is Phi(first number of the noise), Phi the normal distribution function, so the same seeded
    noise serves both heads. Temperature 0 gives the most likely code. The solver is not used.
    """
    logits = head(condition)
    logits = logits if scale is None else guide(logits, scale)  # (batch, codes)
    return head.codebook[pick(logits, noise[0, :, 0], temperature)].to(head.state_dtype)


def pick(logits: Float[Tensor, "batch codes"], noise: Float[Tensor, " batch"], temperature: float) -> Tensor:
    """Inverse of the distribution function of softmax(logits / temperature), at Phi(noise); (batch,) indices."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = torch.softmax(logits / temperature, dim=-1).cumsum(dim=-1)  # (batch, codes)
    level = torch.special.ndtr(noise)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, level).squeeze(-1).clamp(max=logits.shape[-1] - 1)
