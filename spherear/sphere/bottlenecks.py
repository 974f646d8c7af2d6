"""Bottlenecks: from the encoder's features to a token's posterior, its KL to the prior and its projection.

One class per family. `BOTTLENECKS` lists those that ship; one's own are registered in `families.FAMILIES`.
The networks around a bottleneck are in `models.vae`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from spherear.registry import load_parts
from spherear.sphere.distributions import HypersphericalUniform, PowerSpherical, VonMisesFisher
from spherear.sphere.divergences import gaussian_kl
from spherear.sphere.families import FAMILIES
from spherear.sphere.geometry import project
from spherear.sphere.laws import gaussian


@dataclass(frozen=True)
class Latent:
    """The posterior of every token, as a bottleneck returns it.

    sample: (batch, tokens, dim), a reparameterised draw.
    mode: (batch, tokens, dim), the posterior's centre; on the sphere for families that have one.
    kl: (batch, tokens), divergence from the prior in nats.
    spread: concentration (batch, tokens), or standard deviation (batch, tokens, dim).
    penalty: (batch, tokens), a further loss term, already weighted, or None.
    """

    sample: Float[Tensor, "batch tokens dim"]
    mode: Float[Tensor, "batch tokens dim"]
    kl: Float[Tensor, "batch tokens"]
    spread: Float[Tensor, "batch tokens *dim"]
    penalty: Float[Tensor, "batch tokens"] | None = None

    def scaled(self, factor: float) -> "Latent":
        """The latent times `factor`; only for families without a radius, where the spread is a length."""
        return replace(self, sample=factor * self.sample, mode=factor * self.mode, spread=factor * self.spread)


class Bottleneck(nn.Module):
    """Base class: maps `channels` features per token to a `Latent` with `dim` numbers per token.

    name: the family's key in `FAMILIES`.  radius: the norm of every token, or None.
    options: the constructor's arguments besides `dim`.
    """

    name: str
    radius: float | None = None
    options: tuple[str, ...] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "constrain" in vars(cls) and "sample" not in vars(cls):  # an inherited one would draw from another law
            cls.sample = Bottleneck.sample  # type: ignore[method-assign]

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.dim = dim
        self.channels = channels

    def forward(
        self, features: Float[Tensor, "batch tokens channels"], generator: torch.Generator | None = None
    ) -> Latent:
        """Features -> `Latent`, in float32 or better under any autocast. Wrong channel count: ValueError."""
        features = self._checked(features)
        with torch.autocast(features.device.type, enabled=False):
            return self.constrain(features, generator)

    def draw(
        self, features: Float[Tensor, "batch tokens channels"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """The sample of `forward`, and no more than it needs."""
        features = self._checked(features)
        with torch.autocast(features.device.type, enabled=False):
            return self.sample(features, generator)

    def _checked(self, features: Tensor) -> Tensor:
        if features.shape[-1] != self.channels:
            raise ValueError(f"features have {features.shape[-1]} channels; expected {self.channels}")
        return features.to(torch.promote_types(features.dtype, torch.float32))

    def constrain(self, features: Tensor, generator: torch.Generator | None) -> Latent:
        """The part of `forward` that differs between families."""
        raise TypeError(f"{type(self).__name__} does not say how it constrains features")

    def sample(self, features: Tensor, generator: torch.Generator | None) -> Tensor:
        """The sample of `constrain`; for families whose KL divergence costs more than a sample."""
        return self.constrain(features, generator).sample

    def project(self, z: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """The nearest token that the family allows: R z / |z| for spherical families, z for the others."""
        return z if self.radius is None else project(z, self.radius)

    def decoder_input(self, z: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """The decoder's input for a token: here the token itself."""
        return z


class _Spherical(Bottleneck):
    """Direction and concentration on the sphere of radius sqrt(dim); concentration = softplus(gain x) + 1.

    concentration_gain: the published models have 1. It does not change what can be expressed but how fast it is
    reached: a concentration grows linearly with x, a Gaussian's precision exponentially.
    """

    law: type[PowerSpherical] | type[VonMisesFisher]
    options = ("concentration_gain",)

    def __init__(self, dim: int, concentration_gain: float = 1.0) -> None:
        super().__init__(dim, channels=dim + 1)
        self.radius = math.sqrt(dim)
        self.concentration_gain = concentration_gain

    def _posterior(self, features: Tensor) -> PowerSpherical | VonMisesFisher:
        direction = F.normalize(features[..., :-1], dim=-1, eps=1e-7)  # (batch, tokens, dim)
        concentration = F.softplus(self.concentration_gain * features[..., -1]) + 1.0  # (batch, tokens)
        return self.law(direction, concentration, validate_args=False)

    def constrain(self, features: Tensor, generator: torch.Generator | None) -> Latent:
        posterior = self._posterior(features)
        kl = torch.distributions.kl_divergence(posterior, HypersphericalUniform(self.dim, validate_args=False))
        radius, sample = math.sqrt(self.dim), posterior.rsample(generator=generator)
        return Latent(radius * sample, radius * posterior.loc, kl, posterior.concentration)

    def sample(self, features: Tensor, generator: torch.Generator | None) -> Tensor:
        return math.sqrt(self.dim) * self._posterior(features).rsample(generator=generator)


class PowerSphericalBottleneck(_Spherical):
    """S: z = R u with u of density proportional to (1 + mu.u)^kappa (paper section 3.1)."""

    name = "power_spherical"
    law = PowerSpherical


class VonMisesFisherBottleneck(_Spherical):
    """z = R u with u of density proportional to exp(kappa mu.u)."""

    name = "vmf"
    law = VonMisesFisher


class GaussianBottleneck(Bottleneck):
    """G: z = mean + sigma * noise, prior N(0, I); a token's length is free."""

    name = "gaussian"

    def __init__(self, dim: int) -> None:
        super().__init__(dim, channels=2 * dim)

    def constrain(self, features: Tensor, generator: torch.Generator | None) -> Latent:
        mean, log_variance = features.chunk(2, dim=-1)  # (batch, tokens, dim) each
        log_variance = log_variance.clamp(-30.0, 20.0)
        sigma = (0.5 * log_variance).exp()
        sample = mean + sigma * gaussian(mean, mean.shape, generator)
        return Latent(sample, mean, gaussian_kl(mean, log_variance), sigma)


class DecoderNormalizedBottleneck(GaussianBottleneck):
    """G with R z / |z| as the decoder's input; the tokens themselves are not normalised.

    An ablation: normalisation for the decoder alone (paper, table of ablations).
    """

    name = "decoder_normalized"

    def decoder_input(self, z: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return project(z, math.sqrt(self.dim))


class NormalizedGaussianBottleneck(GaussianBottleneck):
    """N: z = R y / |y| with y = mean + sigma * noise; the KL is that of y, an upper bound for that of z.

    The spread is sigma, of y; the resulting spread of z also depends on |mean|.
    """

    name = "normalized_gaussian"

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.radius = math.sqrt(dim)

    def constrain(self, features: Tensor, generator: torch.Generator | None) -> Latent:
        latent = super().constrain(features, generator)
        return replace(latent, sample=self.project(latent.sample), mode=self.project(latent.mode))


class FixedVarianceBottleneck(Bottleneck):
    """F: z = mean + s * noise with one s ~ N(0, noise_scale^2) per image (sigma-VAE, as in LatentLM).

    The KL is that of N(mean, noise_scale^2 I), with s^2 at its mean: 1/2 |mean|^2 plus a constant.
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
        return Latent(sample, mean, gaussian_kl(mean, 2 * sigma.log()), sigma)


class VectorQuantizedBottleneck(Bottleneck):
    """VQ: z = the code nearest to the feature, with straight-through gradients.

    In training a code is a moving average (decay `DECAY`) of the features assigned to it. A code used less than
    a tenth of its equal share is replaced by a feature of the batch; so is every code at the first step.
    kl: log(codes), from one code to the uniform prior. spread: root mean square of feature - code.
    penalty: commitment loss, `COMMITMENT` |feature - code|^2 / dim. (van den Oord et al. 2017.)
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
        self.register_buffer("usage", torch.zeros(codes))  # moving average of tokens per step assigned to the code
        self.register_buffer("sums", torch.zeros(codes, dim))  # moving average of the sum of their features

    def constrain(self, features: Tensor, generator: torch.Generator | None) -> Latent:
        flat = features.flatten(0, 1)  # (batch * tokens, dim)
        if self.training:
            with torch.no_grad():
                self._replace_unused(flat, generator)
                self._update_codebook(flat)
        codes = self.codebook[self.nearest(features)].to(features.dtype)  # (batch, tokens, dim)
        error = (features - codes.detach()).square().mean(dim=-1)  # (batch, tokens)
        kl = torch.full_like(error, math.log(len(self.codebook)))
        straight_through = features + (codes - features).detach()
        return Latent(straight_through, codes, kl, error.detach().sqrt(), self.COMMITMENT * error)

    @torch.no_grad()
    def nearest(self, z: Float[Tensor, "*batch dim"]) -> Int[Tensor, "*batch"]:
        """Index of the code nearest to z."""
        return nearest_code(z, self.codebook)

    def _replace_unused(self, flat: Tensor, generator: torch.Generator | None) -> None:
        share = len(flat) / len(self.codebook)
        unused = self.usage < 0.1 * share
        rows = torch.randint(len(flat), self.usage.shape, generator=generator, device=flat.device)
        replacements = flat[rows].to(self.codebook.dtype)  # (codes, dim)
        self.codebook.copy_(torch.where(unused[:, None], replacements, self.codebook))
        self.usage.masked_fill_(unused, share)
        self.sums.copy_(torch.where(unused[:, None], share * replacements, self.sums))

    def _update_codebook(self, flat: Tensor) -> None:
        index = self.nearest(flat)
        counts = torch.bincount(index, minlength=len(self.codebook)).to(self.usage.dtype)
        sums = torch.zeros_like(self.sums).index_add_(0, index, flat.to(self.sums.dtype))
        self.usage.lerp_(counts, 1 - self.DECAY)
        self.sums.lerp_(sums, 1 - self.DECAY)
        self.codebook.copy_(self.sums / self.usage[:, None])


def nearest_code(z: Float[Tensor, "*batch dim"], codebook: Float[Tensor, "codes dim"]) -> Int[Tensor, "*batch"]:
    """argmin over codes of |z - code|, as indices."""
    return torch.cdist(z.to(codebook.dtype).flatten(0, -2), codebook).argmin(dim=-1).reshape(z.shape[:-1])


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


def bottleneck_class(name: str) -> type[Bottleneck]:
    """The class of a family, shipped or of one's own. Unknown names: ValueError that lists the known ones."""
    if name not in FAMILIES:
        load_parts()
    if name not in FAMILIES:
        raise ValueError(f"bottleneck is {name!r}; expected one of {', '.join(map(repr, sorted(FAMILIES)))}")
    return FAMILIES[name].bottleneck or BOTTLENECKS[name]


def bottleneck(name: str, dim: int, **options: Any) -> Bottleneck:
    """The bottleneck of family `name` for tokens of `dim` numbers; options that the family does not take are ignored.

    noise_scale: of `fixed_variance`.  codes: of `vq`.  concentration_gain: of `power_spherical` and `vmf`.
    Unknown names: ValueError that lists the known ones.
    """
    family: Callable[..., Bottleneck] = bottleneck_class(name)
    return family(dim, **{key: options[key] for key in bottleneck_class(name).options if key in options})
