"""The velocity head: the rectified-flow velocity v(x, t | condition) of one token, and its loss.

Guidance and solvers are in `sampling`, not here. (Paper section 3.2.)
"""

import math

import torch
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from spherear.models.config import require
from spherear.models.heads.contract import Head
from spherear.models.layers import NORM_EPS, init_normal, init_xavier
from spherear.sphere.spaces import Flat, Space

FREQUENCIES = 256

Modulation = list[Tensor]
"""1 + scale, shift, gate of every group, then 1 + scale, shift of the final layer; (..., width) each."""


def time_features(t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape features"]:
    """cos and sin of 1000 t * 10000^(-k / 128): 256 features of a time in [0, 1], cosines first."""
    half = FREQUENCIES // 2
    wide = t.to(torch.promote_types(t.dtype, torch.float32))
    k = torch.arange(half, dtype=wide.dtype, device=t.device)
    angle = 1000.0 * wide[..., None] * torch.exp(-math.log(10000.0) * k / half)
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


class TimeEmbedding(nn.Module):
    """linear(SiLU(linear(time_features(t))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(self.mlp.parameters()).dtype

    def forward(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        return self.mlp(time_features(t).to(self.dtype))


class HeadBlock(nn.Module):
    """x + gate * w2(SiLU(a) * b) with (a, b) = w1(norm(x) * scale + shift)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(1.5 * width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.w1 = nn.Linear(width, 2 * hidden)
        self.w2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor, gate: Tensor) -> Tensor:
        a, b = self.w1(torch.addcmul(shift, self.norm(x), scale)).chunk(2, dim=-1)
        return torch.addcmul(x, gate, self.w2(F.silu(a) * b))


class VelocityHead(Head):
    """v(x, t | condition): an MLP in which time + condition modulates every block.

    latent_dim: of x and v.  condition_width: of the condition.  width, depth: of the MLP.
    groups: number of modulations; consecutive blocks share one.
    space: what states live in; here flat space.

    `forward` computes everything. A solver calls the parts: `embed_time` once per time grid, `embed_condition`
    once per token, `modulate` once for many times, and `modulated_velocity` once per evaluation.
    """

    def __init__(self, latent_dim: int, condition_width: int, width: int, depth: int, groups: int) -> None:
        super().__init__()
        self.space: Space = Flat()
        self.time_embed = TimeEmbedding(width)
        self.cond_embed = nn.Linear(condition_width, width)
        self.input_proj = nn.Linear(latent_dim, width)
        self.res_blocks = nn.ModuleList(HeadBlock(width) for _ in range(depth))
        self.ada_ln_blocks = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(groups))
        self.final_norm = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.final_linear = nn.Linear(width, latent_dim)
        init_xavier(self)
        init_normal(self.time_embed)
        for part in (*self.ada_ln_blocks, self.final_modulation, self.final_linear):
            nn.init.zeros_(part.weight)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights and of the computation."""
        return self.input_proj.weight.dtype

    @property
    def state_dtype(self) -> torch.dtype:
        """Dtype of x, t and v: float32 or better."""
        return torch.promote_types(self.dtype, torch.float32)

    def forward(
        self,
        x: Float[Tensor, "*batch dim"],
        t: Float[Tensor, "*batch"],
        condition: Float[Tensor, "*batch condition_width"],
    ) -> Float[Tensor, "*batch dim"]:
        """Velocity at x (..., dim), times t (...), conditions (..., width); float32 or better."""
        return self.velocity(x, self.embed_time(t), self.embed_condition(condition))

    def embed_time(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        """The part that depends only on time."""
        return self.time_embed(t)

    def embed_condition(self, condition: Float[Tensor, "*shape condition_width"]) -> Float[Tensor, "*shape width"]:
        """The part that depends only on the condition."""
        return self.cond_embed(condition.to(self.dtype))

    def velocity(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Velocity at x, given `embed_time` and `embed_condition` (broadcast against each other)."""
        return self.modulated_velocity(x, self.modulate(time + condition))

    def modulate(self, embedded: Float[Tensor, "*shape width"]) -> Modulation:
        """The modulation by time + condition: 1 + scale, shift and gate per group, then 1 + scale and shift at the end.

        It does not depend on x, so a solver computes it for many times at once.
        """
        y = F.silu(embedded)
        out: Modulation = []
        for modulate in (*self.ada_ln_blocks, self.final_modulation):
            scale, *rest = modulate(y).split(y.shape[-1], dim=-1)
            out += (1 + scale, *rest)
        return out

    def modulated_velocity(self, x: Float[Tensor, "*batch dim"], modulation: Modulation) -> Float[Tensor, "*rows dim"]:
        """Velocity at x. The modulation has as many rows as x, or twice as many (two branches that share x)."""
        h = self.input_proj(x.to(self.dtype))  # (..., width)
        if modulation[0].shape[0] == 2 * h.shape[0]:  # no `len`: it fixes the batch of an export
            h = h.repeat(2, 1)
        group_size = len(self.res_blocks) // len(self.ada_ln_blocks)
        for index, block in enumerate(self.res_blocks):
            group = index // group_size
            h = block(h, *modulation[3 * group : 3 * group + 3])
        scale, shift = modulation[-2:]
        out = self.final_linear(torch.addcmul(shift, self.final_norm(h), scale))  # (..., dim)
        return out.to(self.state_dtype)

    def loss(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        condition: Float[Tensor, "batch tokens width"],
        *,
        repeats: int = 4,
        times: Float[Tensor, " rows"] | None = None,
        noise: Float[Tensor, "rows dim"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """`flow_matching_loss` averaged over all tokens, each with `repeats` independent times and noises.

        Times default to sigmoid(N(0, 1)), noise to N(0, I). If given, they have (repeats * batch * tokens)
        rows, ordered (repeat, batch, token); any other shape: ValueError.
        """
        condition, target = repeated(condition, repeats), repeated(tokens, repeats)
        check_shape("times have", times, target.shape[:1])
        check_shape("noise has", noise, target.shape)
        times = random_times(target, generator) if times is None else times
        noise = random_noise(target, generator) if noise is None else noise
        return flow_matching_loss(self, target, condition, times, noise)

    def draws(
        self, tokens: Float[Tensor, "batch tokens dim"], repeats: int, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """`times` sigmoid(N(0, 1)) and `noise` N(0, I) of one `loss`, `repeats` draws per token."""
        rows = repeated(tokens, repeats)
        return {"times": random_times(rows, generator), "noise": random_noise(rows, generator)}


def repeated(tokens: Float[Tensor, "batch tokens width"], repeats: int) -> Float[Tensor, "rows width"]:
    """(repeats * batch * tokens) rows, ordered (repeat, batch, token). ValueError for fewer than one repeat."""
    require(repeats >= 1, f"repeats is {repeats}; expected at least 1")
    return repeat(tokens, "batch tokens width -> (r batch tokens) width", r=repeats)


def random_times(rows: Float[Tensor, "rows dim"], generator: torch.Generator | None) -> Float[Tensor, " rows"]:
    """sigmoid(N(0, 1)), one per row."""
    return torch.sigmoid(torch.randn(rows.shape[0], generator=generator, device=rows.device))


def random_noise(rows: Float[Tensor, "rows dim"], generator: torch.Generator | None) -> Float[Tensor, "rows dim"]:
    """N(0, I) in the shape of the rows."""
    return torch.randn(rows.shape, generator=generator, device=rows.device, dtype=rows.dtype)


def check_shape(name: str, given: Tensor | None, expected: torch.Size) -> None:
    """ValueError for a tensor of another shape than expected; None fits."""
    shape = expected if given is None else given.shape
    require(shape == expected, f"{name} shape {tuple(shape)}; expected {tuple(expected)}")


def flow_matching_loss(
    head: VelocityHead,
    target: Float[Tensor, "*batch dim"],
    condition: Float[Tensor, "*batch width"],
    times: Float[Tensor, "*batch"],
    noise: Float[Tensor, "*batch dim"],
) -> Float[Tensor, ""]:
    """mean (v(x_t, t) - dx_t/dt)^2 over all entries, on the head's path from noise to target; float32 or better.

    In flat space x_t = (1 - t) noise + t target and dx_t/dt = target - noise; on the sphere see `Sphere.path`.
    """
    x, velocity = head.space.path(noise, target, times[..., None])
    found = head(x, times, condition)
    return F.mse_loss(found, velocity.to(found.dtype))
