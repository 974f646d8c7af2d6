"""How a VAE's tokens are constrained: one contract, one class a family, one registry line.

Knows: the law of a token given the encoder's numbers, its KL to the prior, and how a token is projected.
Does not know: images, networks, or what predicts the tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from spherear.sphere.distributions import HypersphericalUniform, PowerSpherical, VonMisesFisher
from spherear.sphere.geometry import project
from spherear.sphere.laws import gaussian


@dataclass(frozen=True)
class Latent:
    """What a bottleneck makes of the encoder's features.

    sample: (batch, tokens, dim), a reparameterised draw.
    mode: (batch, tokens, dim), the posterior's centre, on the sphere where there is one.
    kl: (batch, tokens), divergence from the prior in nats.
    spread: concentration (batch, tokens), or standard deviation (batch, tokens, dim).
    penalty: what else the family adds to the loss, per token and weighted, or None.
    """

    sample: Float[Tensor, "batch tokens dim"]
    mode: Float[Tensor, "batch tokens dim"]
    kl: Float[Tensor, "batch tokens"]
    spread: Float[Tensor, "batch tokens *dim"]
    penalty: Float[Tensor, "batch tokens"] | None = None

    def scaled(self, factor: float) -> "Latent":
        """The same latent in units of 1/factor: of a family without a radius, whose spread is a length."""
        return replace(self, sample=factor * self.sample, mode=factor * self.mode, spread=factor * self.spread)


class Bottleneck(nn.Module):
    """The contract: `channels` numbers a token come in, a `Latent` of `dim` numbers a token goes out.

    name: the family's key in `BOTTLENECKS`.  radius: the norm every token has, or None.
    options: what the constructor takes beside `dim`.
    """

    name: str
    radius: float | None = None
    options: tuple[str, ...] = ()

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

    def decoder_input(self, z: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """What the decoder sees of a token: the token."""
        return z


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
        mean, log_variance = features.chunk(2, dim=-1)  # (batch, tokens, dim) each
        log_variance = log_variance.clamp(-30.0, 20.0)
        sigma = (0.5 * log_variance).exp()
        sample = mean + sigma * gaussian(mean, mean.shape, generator)
        return Latent(sample, mean, _gaussian_kl(mean, log_variance), sigma)


class DecoderNormalizedBottleneck(GaussianBottleneck):
    """G whose decoder sees R z / |z|, while the tokens themselves keep their lengths.

    An ablation: normalisation on the decoder's side alone (paper, table of ablations).
    """

    name = "decoder_normalized"

    def decoder_input(self, z: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return project(z, math.sqrt(self.dim))


class NormalizedGaussianBottleneck(GaussianBottleneck):
    """N: z = R y / |y| with y = mean + sigma * noise; the KL is that of y, a bound for that of z.

    sigma, the spread, is y's: what it means for z depends on |mean|.
    """

    name = "normalized_gaussian"

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.radius = math.sqrt(dim)

    def constrain(self, features: Tensor, generator: torch.Generator | None) -> Latent:
        free = super().constrain(features, generator)
        return replace(free, sample=self.project(free.sample), mode=self.project(free.mode))


class FixedVarianceBottleneck(Bottleneck):
    """F: z = mean + s * noise with one s ~ N(0, noise_scale^2) an image (sigma-VAE, as in LatentLM).

    The KL is that of N(mean, noise_scale^2 I), s^2 at its expectation: 1/2 |mean|^2 plus a constant.
    """

    name = "fixed_variance"
    options = ("noise_scale",)

    def __init__(self, dim: int, noise_scale: float = 0.2) -> None:
        super().__init__(dim, channels=dim)
        self.noise_scale = noise_scale

    def constrain(self, features: Tensor, generator: torch.Generator | None) -> Latent:
        mean = features
        s = self.noise_scale * gaussian(mean, (len(mean), 1, 1), generator)  # (batch, 1, 1)
        sample = mean + s * gaussian(mean, mean.shape, generator)
        sigma = torch.full_like(mean, self.noise_scale)
        return Latent(sample, mean, _gaussian_kl(mean, 2 * sigma.log()), sigma)


class VectorQuantizedBottleneck(Bottleneck):
    """z = the code nearest to the feature; gradients pass straight through.

    The codebook follows the features it is given by moving averages (decay `DECAY`) while training; a code
    that is used less than a tenth of its even share is revived as a feature of the batch, and so is every
    code at the first step. kl: log(codes), of one code from the uniform prior. spread: root mean square of
    feature - code. penalty: the commitment, `COMMITMENT` |feature - code|^2 / dim. (van den Oord et al. 2017.)
    """

    name = "vq"
    options = ("codes",)
    DECAY = 0.99
    COMMITMENT = 0.25
    codebook: Tensor
    usage: Tensor
    sums: Tensor

    def __init__(self, dim: int, codes: int = 64) -> None:
        super().__init__(dim, channels=dim)
        self.register_buffer("codebook", torch.zeros(codes, dim))
        self.register_buffer("usage", torch.zeros(codes))  # tokens a step that took the code, averaged
        self.register_buffer("sums", torch.zeros(codes, dim))  # their features, added up and averaged

    def constrain(self, features: Tensor, generator: torch.Generator | None) -> Latent:
        flat = features.flatten(0, 1)  # (batch * tokens, dim)
        if self.training:
            with torch.no_grad():
                self._revive(flat, generator)
                self._follow(flat)
        codes = self.codebook[self.nearest(features)].to(features.dtype)  # (batch, tokens, dim)
        error = (features - codes.detach()).square().mean(dim=-1)  # (batch, tokens)
        kl = torch.full_like(error, math.log(len(self.codebook)))
        through = features + (codes - features).detach()
        return Latent(through, codes, kl, error.detach().sqrt(), self.COMMITMENT * error)

    @torch.no_grad()
    def nearest(self, z: Float[Tensor, "*batch dim"]) -> Int[Tensor, "*batch"]:
        """Index of the code nearest to z."""
        return nearest_code(z, self.codebook)

    def _revive(self, flat: Tensor, generator: torch.Generator | None) -> None:
        share = len(flat) / len(self.codebook)
        dead = self.usage < 0.1 * share
        rows = torch.randint(len(flat), self.usage.shape, generator=generator, device=flat.device)
        chosen = flat[rows].to(self.codebook.dtype)  # (codes, dim)
        self.codebook.copy_(torch.where(dead[:, None], chosen, self.codebook))
        self.usage.masked_fill_(dead, share)
        self.sums.copy_(torch.where(dead[:, None], share * chosen, self.sums))

    def _follow(self, flat: Tensor) -> None:
        index = self.nearest(flat)
        counts = torch.bincount(index, minlength=len(self.codebook)).to(self.usage.dtype)
        sums = torch.zeros_like(self.sums).index_add_(0, index, flat.to(self.sums.dtype))
        self.usage.lerp_(counts, 1 - self.DECAY)
        self.sums.lerp_(sums, 1 - self.DECAY)
        self.codebook.copy_(self.sums / self.usage[:, None])


def nearest_code(z: Float[Tensor, "*batch dim"], codebook: Float[Tensor, "codes dim"]) -> Int[Tensor, "*batch"]:
    """argmin over codes of |z - code|."""
    return torch.cdist(z.to(codebook.dtype).flatten(0, -2), codebook).argmin(dim=-1).reshape(z.shape[:-1])


def _gaussian_kl(mean: Tensor, log_variance: Tensor) -> Float[Tensor, "batch tokens"]:
    """KL(N(mean, sigma^2) || N(0, I)) = 1/2 sum(mean^2 + sigma^2 - 1 - log sigma^2)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=-1)


BOTTLENECKS: dict[str, type[Bottleneck]] = {
    family.name: family
    for family in (
        PowerSphericalBottleneck,
        VonMisesFisherBottleneck,
        GaussianBottleneck,
        FixedVarianceBottleneck,
        NormalizedGaussianBottleneck,
        VectorQuantizedBottleneck,
        DecoderNormalizedBottleneck,
    )
}


def bottleneck(name: str, dim: int, **options: Any) -> Bottleneck:
    """The family of that name for tokens of `dim` numbers, given those of the options that it takes.

    noise_scale: of `fixed_variance`.  codes: of `vq`. Unknown names: ValueError with the known.
    """
    if name not in BOTTLENECKS:
        raise ValueError(f"bottleneck is {name!r}; expected one of {', '.join(map(repr, sorted(BOTTLENECKS)))}")
    family: Callable[..., Bottleneck] = BOTTLENECKS[name]
    return family(dim, **{key: options[key] for key in BOTTLENECKS[name].options if key in options})
