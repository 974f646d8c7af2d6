"""The Power Spherical distribution: the posterior of the S-VAE, with closed forms for everything training needs.

Its KL divergences are in `distributions.py`.
"""

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from spherear.sphere.geometry import inner, to_tangent
from spherear.sphere.laws import AxialLaw, double, gaussian, renormalise, unit_double, without_autocast


class PowerSpherical(AxialLaw):
    """p(u) = C(kappa) (1 + mu · u)^kappa on the unit sphere in R^dim.

    loc (..., dim): unit vectors mu; concentration (...): kappa >= 0. (1 + t)/2 follows Beta(alpha, beta) with
    alpha = (dim - 1)/2 + kappa and beta = (dim - 1)/2, so draws, entropy and the KL to the uniform
    distribution are exact and cheap. (Paper section 3 and figure 5; De Cao & Aziz, arXiv 2006.04437.)
    """

    @without_autocast
    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """log p(u) = log C + kappa log(1 + mu · u), in nats, with 1 + mu · u taken as |mu + u|^2/2.

        The density is 0 at u = -mu (for kappa > 0). Points have a precision of eps, so 1 + mu · u is clamped
        to at least eps^2/2: log p and its gradients stay finite. ValueError for a value off the sphere.
        """
        total = unit_double(self.loc) + self._checked(value)
        eps = torch.finfo(torch.promote_types(self.dtype, value.dtype)).eps
        one_plus_t = (inner(total, total) / 2).clamp(min=eps**2 / 2)
        return self._result(self._log_normalizer() + self._kappa * one_plus_t.log(), value)

    def _draw(self, shape: torch.Size, generator: Generator | None) -> Float[Tensor, "..."]:
        """u = ((X - Y) mu + sqrt(2X) T(mu) g)/(X + Y), X ~ Gamma(alpha), g ~ N(0, I_{dim-1}), Y = |g|^2/2.

        Y follows Gamma(beta) and is independent of the direction of g, so this is t mu + sqrt(1 - t^2) v with
        t = (X - Y)/(X + Y) and 1 - t^2 = 4XY/(X + Y)^2, without cancellation. The gradient in kappa is that of
        X in alpha, by implicit reparameterisation; the rest is pathwise.
        """
        g = gaussian(self.loc, (*shape, self.dim - 1), generator)
        alpha = ((self.dim - 1) / 2 + self._kappa).expand(shape)
        x = torch._standard_gamma(alpha, generator=generator)
        x = torch.where(alpha.isnan(), alpha, x)  # torch's sampler does not propagate NaN
        y = double(g).square().sum(-1) / 2
        along = ((x - y) / (x + y)).to(self.dtype).unsqueeze(-1)
        across = ((2 * x).sqrt() / (x + y)).to(self.dtype).unsqueeze(-1)
        return renormalise(along * self.loc + across * to_tangent(g, self.loc))

    def _mean_length(self) -> Float[Tensor, "*batch"]:
        """m = E[mu · u] = kappa/(kappa + dim - 1)."""
        return self._kappa / (self._kappa + self.dim - 1)

    def _log_normalizer(self) -> Float[Tensor, "*batch"]:
        """log C(kappa) = log Γ(alpha + beta) - log Γ(alpha) - (alpha + beta) log 2 - beta log π."""
        beta = (self.dim - 1) / 2
        alpha = beta + self._kappa
        constant = beta * (2 * math.log(2) + math.log(math.pi))
        return torch.lgamma(alpha + beta) - torch.lgamma(alpha) - self._kappa * math.log(2) - constant

    def _entropy(self) -> Float[Tensor, "*batch"]:
        """H = -log C - kappa (log 2 + ψ(alpha) - ψ(alpha + beta)), in nats."""
        return -self._log_normalizer() - self._kappa * self._mean_log()

    def _mean_log(self) -> Float[Tensor, "*batch"]:
        """E[log(1 + t)] = log 2 + ψ(alpha) - ψ(alpha + beta)."""
        alpha = (self.dim - 1) / 2 + self._kappa
        return math.log(2) + torch.digamma(alpha) - torch.digamma(alpha + (self.dim - 1) / 2)

    def _axial_variance(self) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        beta = (self.dim - 1) / 2
        alpha = beta + self._kappa
        across = 2 * alpha / ((alpha + beta) * (alpha + beta + 1))
        return across * 2 * beta / (alpha + beta), across
