"""Operations on points of a sphere: project, split, measure, and move into a tangent space.

Points lie on the last axis. Half precision (float16, bfloat16) is computed in float32. `project` returns the dtype of
its input; the results of the other functions stay in float32, because they can exceed float16.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def widen(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x in float32 if it is in half precision (float16, bfloat16), otherwise x itself."""
    return x.float() if torch.finfo(x.dtype).bits < 32 else x


def inner(x: Float[Tensor, "*#shape dim"], y: Float[Tensor, "*#shape dim"]) -> Float[Tensor, "*shape"]:
    """x · y over the last axis, by elementwise products, which autocast does not change.

    Half precision gives float32.
    """
    return (widen(x) * widen(y)).sum(-1)


def project(z: Float[Tensor, "*shape dim"], radius: float = 1.0) -> Float[Tensor, "*shape dim"]:
    """N_R(z) = R z/|z|, the nearest point on the sphere of radius R.

    Its Jacobian is R (I - u u^T)/|z| with u = z/|z|: the radial part of a small error in z is removed.
    Neither large nor tiny entries overflow. z = 0 has no direction: there (and where |z| is so small that
    1/|z| overflows) the result is R z with gradient R, both finite. ValueError for a radius that is not
    positive. (Paper section 3.)
    """
    if not radius > 0:
        raise ValueError(f"radius must be positive, got {radius}")
    wide = widen(z)
    largest = wide.detach().abs().amax(-1, keepdim=True)
    has_direction = largest > 1e3 * torch.finfo(wide.dtype).tiny
    scaled = wide / torch.where(has_direction, largest, 1.0)
    length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return (radius * (scaled / torch.where(has_direction, length, 1.0))).to(z.dtype)


def split(
    error: Float[Tensor, "*#shape dim"], at: Float[Tensor, "*#shape dim"]
) -> tuple[Float[Tensor, "*shape dim"], Float[Tensor, "*shape dim"]]:
    """error = radial + tangential, with radial = (error · u) u and u = at/|at|.

    Returns both parts as vectors; their squared lengths sum to that of the error. Where `at` is 0 the radial
    part is 0. Half precision gives float32. (Paper section 3.)
    """
    direction = project(widen(at))
    radial = inner(error, direction).unsqueeze(-1) * direction
    return radial, widen(error) - radial


def angle(x: Float[Tensor, "*#shape dim"], y: Float[Tensor, "*#shape dim"]) -> Float[Tensor, "*shape"]:
    """angle(x, y) = 2 atan2(|x - y|, |x + y|) for unit vectors, in radians, in [0, pi].

    Accurate at both ends, where the arc cosine loses half of its digits. The angle is not differentiable at
    x = y and x = -y; the gradient there is 0, a subgradient. Half precision gives float32.
    """
    x, y = widen(x), widen(y)
    difference = torch.linalg.vector_norm(x - y, dim=-1)
    total = torch.linalg.vector_norm(x + y, dim=-1)
    return 2 * torch.atan2(difference, total)


def log_sphere_area(dim: int) -> float:
    """log |S^{dim-1}| = log 2 + (dim/2) log π - log Γ(dim/2): surface of the unit sphere in `dim` dimensions.

    The circle (dim = 2) gives log 2π. ValueError for dim < 1.
    """
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


def to_tangent(v: Float[Tensor, "*#shape less"], mu: Float[Tensor, "*#shape dim"]) -> Float[Tensor, "*shape dim"]:
    """T(mu) v = H (0, v): maps v (dim - 1 numbers) isometrically into the tangent space at the unit vector mu.

    H reflects in the plane orthogonal to mu + s e1, with s the sign of mu's first coordinate: it exchanges mu
    and -s e1, the farther of the poles e1 and -e1. |mu + s e1|^2 >= 2, so there is no cancellation near a
    pole, and value and gradient are exact at mu = e1 and mu = -e1. Half precision gives float32.
    """
    v, mu = widen(v), widen(mu)
    first, rest = mu[..., :1], mu[..., 1:]
    sign = torch.where(first < 0, -1.0, 1.0).to(mu.dtype)
    along = inner(rest, v).unsqueeze(-1)
    parts = (-sign * along, v - along / (1 + sign * first) * rest)
    return torch.cat(parts, dim=-1)
