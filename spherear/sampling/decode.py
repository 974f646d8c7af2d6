"""The token loop: condition, draw, project, feed back.

Knows: one AR model, its two branches under guidance, and the order in which tokens are drawn.
Does not know: how a token is drawn (`draw`), the VAE (a projection is handed in), pixels, or who is watching
(paper section 3.2).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.models.ar import SphereAR, check_labels
from spherear.models.config import require
from spherear.sampling.draw import drawing
from spherear.sampling.settings import Noise, SamplingSettings

Projection = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Step:
    """One token, drawn. raw: as the solver left it.  token: as it is handed on; both (batch, dim)."""

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
) -> Iterator[Step]:
    """Draw `ar.config.tokens` tokens for each label, one `Step` at a time; leave the loop to stop.

    noise: called once a token, in order, as noise(index, (draws, batch, dim)); both guidance
        branches share it.
    project: applied to every token before it is fed back (and ignored if `settings.project` is False).
    null_labels: what guidance leads away from; the null class by default. Without guidance (scale 1)
        these rows are not computed.

    A token at scale 1 (the first, under the linear schedule) is not guided: the null branch then draws one
    of its own from the same noise, and that is what its past holds, as in the published model. Every other
    token is handed to both branches. Tokens are float32 or better whatever the model's dtype.
    Labels out of range: ValueError.
    """
    device = ar.proj_in.weight.device
    labels = labels.to(device)
    check_labels(labels, ar.config.num_classes + 1)
    branches = 1 if settings.guidance_scale == 1.0 else 2
    rows = labels if branches == 1 else torch.cat((labels, _null_rows(ar, labels, null_labels)))
    cache = ar.kv_cache(len(rows))
    with torch.no_grad():  # never around a yield: what the caller does in between is the caller's
        way = drawing(ar.head, settings)
        condition = ar.start(rows, cache)  # (rows, width)
    shape = (way.draws, len(labels), ar.config.latent_dim)
    for index in range(ar.config.tokens):
        scale = settings.scale_at(index, ar.config.tokens)
        drawn = noise(index, shape).to(device, ar.head.state_dtype)
        require(tuple(drawn.shape) == shape, f"noise has shape {tuple(drawn.shape)}; expected {shape}")
        if scale == 1.0:  # every branch for itself
            drawn = drawn.repeat(1, branches, 1)
        with torch.no_grad():
            raw = way.draw(condition, drawn, scale)  # (batch or rows, dim)
            token = project(raw) if settings.project else raw
        yield Step(index, raw[: len(labels)], token[: len(labels)], scale)
        if index + 1 < ar.config.tokens:
            with torch.no_grad():
                condition = ar.step(token if len(token) == len(rows) else token.repeat(branches, 1), cache)


def _null_rows(ar: SphereAR, labels: Tensor, null_labels: Tensor | None) -> Tensor:
    if null_labels is None:
        return torch.full_like(labels, ar.null_label)
    require(
        null_labels.shape == labels.shape,
        f"null_labels have shape {tuple(null_labels.shape)}; expected {tuple(labels.shape)}",
    )
    check_labels(null_labels, ar.config.num_classes + 1)
    return null_labels.to(labels.device)
