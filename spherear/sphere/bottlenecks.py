"""How a VAE's tokens are constrained: one contract, one class a family, one registry line.

Knows: the law of a token given the encoder's numbers, its KL to the prior, and how a token is projected.
Does not know: images, networks, or what predicts the tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from spherear.sphere.distributions import HypersphericalUniform, PowerSpherical, VonMisesFisher
from spherear.sphere.geometry import project


@dataclass(frozen=True)
class Latent:
    """What a bottleneck makes of the encoder's features.

    sample: (batch, tokens, dim), a reparameterised draw.
    mode: (batch, tokens, dim), the posterior's centre, on the sphere where there is one.
    kl: (batch, tokens), divergence from the prior in nats.
    spread: concentration (batch, tokens), or standard deviation (batch, tokens, dim).
    """

    sample: Float[Tensor, "batch tokens dim"]
    mode: Float[Tensor, "batch tokens dim"]
    kl: Float[Tensor, "batch tokens"]
    spread: Float[Tensor, "batch tokens *dim"]


class Bottleneck(nn.Module):
    """The contract: `channels` numbers a token come in, a `Latent` of `dim` numbers a token goes out.

    name: the family's key in `BOTTLENECKS`.  radius: the norm every token has, or None.
    """

    name: str
    radius: float | None = None

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.dim = dim
        self.channels = channels

    def forward(
        self, features: Float[Tensor, "batch tokens channels"], generator: torch.Generator | None = None
    ) -> Latent:
        """Features -> `Latent`, computed in float32 or better under any autocast."""
        if features.shape[-1] != self.channels:
            raise ValueError(f"features have {features.shape[-1]} channels; expected {self.channels}")
        with torch.autocast(features.device.type, enabled=False):
            return self.constrain(features.to(torch.promote_types(features.dtype, torch.float32)), generator)

    def constrain(self, features: Tensor, generator: torch.Generator | None) -> Latent:
        """The family's own part of `forward`."""
        raise TypeError(f"{type(self).__name__} does not say how it constrains features")

    def project(self, z: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """The nearest token the family allows: R z / |z| on the sphere, z itself elsewhere."""
        return z if self.radius is None else project(z, self.radius)


class _Spherical(Bottleneck):
    """Direction and concentration on the sphere of radius sqrt(dim); concentration = softplus + 1."""

    law: type[PowerSpherical] | type[VonMisesFisher]

    def __init__(self, dim: int) -> None:
        super().__init__(dim, channels=dim + 1)
        self.radius = math.sqrt(dim)

    def constrain(self, features: Tensor, generator: torch.Generator | None) -> Latent:
        direction = F.normalize(features[..., :-1], dim=-1, eps=1e-7)  # (batch, tokens, dim)
        concentration = F.softplus(features[..., -1]) + 1.0  # (batch, tokens)
        law = self.law(direction, concentration, validate_args=False)
        kl = torch.distributions.kl_divergence(law, HypersphericalUniform(self.dim, validate_args=False))
        radius = math.sqrt(self.dim)
        return Latent(radius * law.rsample(generator=generator), radius * direction, kl, concentration)


class PowerSphericalBottleneck(_Spherical):
    """S: z = R u with u of density proportional to (1 + mu.u)^kappa (paper section 3.1)."""

    name = "power_spherical"
    law = PowerSpherical


class VonMisesFisherBottleneck(_Spherical):
    """z = R u with u of density proportional to exp(kappa mu.u)."""

    name = "vmf"
    law = VonMisesFisher


class GaussianBottleneck(Bottleneck):
    """G: z = mean + sigma * noise, prior N(0, I); nothing fixes a token's length."""

    name = "gaussian"

    def __init__(self, dim: int) -> None:
        super().__init__(dim, channels=2 * dim)

    def constrain(self, features: Tensor, generator: torch.Generator | None) -> Latent:
        mean, log_variance = features.chunk(2, dim=-1)
        log_variance = log_variance.clamp(-30.0, 20.0)
        sigma = (0.5 * log_variance).exp()
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        kl = 0.5 * (mean.square() + sigma.square() - 1.0 - log_variance).sum(dim=-1)
        return Latent(mean + sigma * noise, mean, kl, sigma)


BOTTLENECKS: dict[str, Callable[[int], Bottleneck]] = {
    family.name: family for family in (PowerSphericalBottleneck, VonMisesFisherBottleneck, GaussianBottleneck)
}


def bottleneck(name: str, dim: int) -> Bottleneck:
    """The family of that name for tokens of `dim` numbers. Unknown names: ValueError with the known."""
    if name not in BOTTLENECKS:
        raise ValueError(f"bottleneck is {name!r}; expected one of {', '.join(map(repr, sorted(BOTTLENECKS)))}")
    return BOTTLENECKS[name](dim)
