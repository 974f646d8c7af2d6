"""The decoder written straight down: the version to read, and the one that the fast one is tested against.

Keys and values grow by concatenation, the condition's projection and the time's embedding are computed anew in every
evaluation, and guidance concatenates its two halves each time. Nothing is shared with the other modules of `sampling`
but the settings; of the models, only their layers' weights. (Paper section 3.2.)
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from spherear.models.ar import SphereAR
from spherear.models.config import require
from spherear.models.layers import Attention
from spherear.sampling.noise import Noise
from spherear.sampling.settings import SamplingSettings

Solve = Callable[[Callable[[Tensor, float], Tensor], Tensor, SamplingSettings], Tensor]
"""solve(velocity, noise, settings): from all noise of a token to the token."""


def attention(layer: Attention, x: Tensor, table: Tensor, past: list[Tensor]) -> Tensor:
    """One attention layer over all that came before; `past` is a list [keys, values], which gets longer ones."""
    batch, count, width = x.shape
    q, k, v = layer.wqkv(x).view(batch, count, 3, layer.heads, -1).permute(2, 0, 3, 1, 4)
    q, k = rotated(q, table), rotated(k, table)
    if past:
        k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
    past[:] = [k, v]
    out = F.scaled_dot_product_attention(q, k, v, is_causal=count > 1)
    return layer.wo(out.transpose(1, 2).reshape(batch, count, width))


def rotated(x: Tensor, table: Tensor) -> Tensor:
    """Pairs of numbers, as complex numbers, rotated by the table's angles."""
    pairs = torch.view_as_complex(x.to(table.dtype).reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.view_as_complex(table.contiguous())).flatten(-2).to(x.dtype)


def transformed(ar: SphereAR, x: Tensor, start: int, pasts: list[list[Tensor]]) -> Tensor:
    """The transformer's output at the newest position."""
    table = ar.rotary.table[start : start + x.shape[1]].to(torch.promote_types(x.dtype, torch.float32))
    x = ar.emb_norm(x)
    for block, past in zip(ar.layers, pasts, strict=True):
        x = x + attention(block.attention, block.attention_norm(x), table, past)  # type: ignore[operator, arg-type]
        x = x + block.feed_forward(block.ffn_norm(x))  # type: ignore[operator]
    return ar.norm(x[:, -1])


def velocity(ar: SphereAR, x: Tensor, t: float, condition: Tensor, scale: float, guided: bool) -> Tensor:
    """The head, whole, at one time for all rows; guided where there are two halves."""
    rows = torch.cat((x, x)) if guided else x
    v = ar.head(rows, torch.full((len(rows),), t, dtype=x.dtype, device=x.device), condition)
    if not guided:
        return v
    conditional, null = v.chunk(2)
    return null + scale * (conditional - null)


def published_solve(velocity: Callable[[Tensor, float], Tensor], noise: Tensor, settings: SamplingSettings) -> Tensor:
    """Euler-Maruyama with the score (t v - x) / (1 - t), and one Euler step at the end."""
    times = torch.linspace(0.0, 1.0 - settings.last_step, settings.steps + 1).tolist()  # in float32, as published
    x = noise[0]
    for i, (t, end) in enumerate(pairwise(times)):
        v, dt = velocity(x, t), end - t
        score = (t * v - x) / (1 - t)
        x = x + (v + (1 - t) * score) * dt + math.sqrt(2 * (1 - t) * dt) * noise[i + 1]
    return x + velocity(x, times[-1]) * (1 - times[-1])


def reference_steps(
    ar: SphereAR,
    labels: Int[Tensor, " batch"],
    settings: SamplingSettings,
    noise: Noise,
    radius: float,
    transform: Callable[[Any], Any] = lambda function: function,
    solve: Solve = published_solve,
) -> Iterator[Float[Tensor, "batch dim"]]:
    """One token of all images after another: guided, with the linear schedule, and projected to length `radius`.

    transform: applied to the evaluation of the head and to the transformer (a compiler, say).
    solve: how a token is drawn; by default as published. The temperature scales all noise. ValueError for a head that
    is no velocity in flat space.
    """
    kind = ar.config.head_kind
    require(
        not (kind.discrete or kind.curved or kind.takes_scale),
        f"head is {ar.config.head!r}; expected a velocity in flat space, as published",
    )
    evaluation, transformer = transform(velocity), transform(transformed)
    count, dim = ar.config.tokens, ar.config.latent_dim
    rows = torch.cat((labels, torch.full_like(labels, ar.config.num_classes)))
    pasts: list[list[Tensor]] = [[] for _ in ar.layers]
    x = ar.cls_embedding(rows).view(len(rows), ar.config.class_tokens, -1)
    start = 0
    for index in range(count):
        condition = transformer(ar, x, start, pasts) + ar.pos_for_diff.weight[index]
        start += x.shape[1]
        scale = 1.0 + (settings.guidance_scale - 1.0) * index / count
        draws = settings.steps + 1 if solve is published_solve else settings.draws
        drawn = settings.temperature * noise(index, (draws, len(labels), dim)).to(rows.device, ar.head.state_dtype)
        if scale == 1.0:
            drawn = torch.cat((drawn, drawn), dim=1)
        raw = solve(lambda x, t, c=condition, s=scale: evaluation(ar, x, t, c, s, s != 1.0), drawn, settings)  # type: ignore[misc]
        token = radius * raw / raw.norm(dim=-1, keepdim=True)
        both = token if len(token) == len(rows) else torch.cat((token, token))
        yield both[: len(labels)]
        x = ar.proj_in(both.to(ar.proj_in.weight.dtype))[:, None]


@torch.no_grad()
def reference_decode(
    ar: SphereAR,
    labels: Int[Tensor, " batch"],
    settings: SamplingSettings,
    noise: Noise,
    radius: float,
    solve: Solve = published_solve,
) -> Float[Tensor, "batch tokens dim"]:
    """All tokens of all images."""
    return torch.stack(list(reference_steps(ar, labels, settings, noise, radius, solve=solve)), dim=1)
