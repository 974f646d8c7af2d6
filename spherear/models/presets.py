"""Presets: named sizes of a VAE and the AR model of its tokens. How they are trained: `training.recipes`.
Does not import torch.

`shapes16`, `shapes` and `shapes256` differ in the length of the sequence alone: 16, 64 and 256 tokens of the same
patch, from images of 16, 32 and 64 pixels.
"""

import math
from dataclasses import dataclass, replace

from spherear.models.config import one_of, require
from spherear.models.sizes import ARConfig, VAEConfig


@dataclass(frozen=True)
class Preset:
    """A VAE and its AR model. guidance_scale: the default for sampling."""

    vae: VAEConfig
    ar: ARConfig
    guidance_scale: float


_IMAGENET_VAE = VAEConfig()
_SMALL_AR = ARConfig(
    latent_dim=4, tokens=64, num_classes=10, class_tokens=4,
    width=96, layers=4, heads=2, head_width=96, head_depth=3, head_groups=1,
)  # fmt: skip


def _small_vae(image_size: int, latent_dim: int) -> VAEConfig:
    """Patches of 4 x 4 pixels: 48 values in colour, 16 in grey; the paper has 48 values per latent number."""
    return VAEConfig(
        latent_dim=latent_dim, image_size=image_size, widths=(16, 32, 64), encoder_layers=1, decoder_layers=1,
        concentration_gain=20.0,
    )  # fmt: skip


# fmt: off
PRESETS: dict[str, Preset] = {
    "digits": Preset(  # 5 values per number
        _small_vae(16, 3), replace(_SMALL_AR, latent_dim=3, tokens=16), guidance_scale=2.0,
    ),
    "digits3": Preset(  # tokens of three numbers, for 3-D plots
        VAEConfig(latent_dim=3, image_size=16, widths=(16, 32, 64), encoder_layers=1, decoder_layers=1),
        ARConfig(latent_dim=3, tokens=16, num_classes=10, class_tokens=4,
                 width=64, layers=2, heads=2, head_width=64, head_depth=2, head_groups=1),
        guidance_scale=2.0,
    ),
    "mnist": Preset(_small_vae(32, 3), replace(_SMALL_AR, latent_dim=3), guidance_scale=4.5),  # 5 values per number
    "shapes": Preset(_small_vae(32, 4), _SMALL_AR, guidance_scale=4.5),  # 12 values per number
    "shapes16": Preset(_small_vae(16, 4), replace(_SMALL_AR, tokens=16), guidance_scale=4.5),
    "shapes256": Preset(_small_vae(64, 4), replace(_SMALL_AR, tokens=256), guidance_scale=4.5),
    "imagenet256-B": Preset(_IMAGENET_VAE, ARConfig(), guidance_scale=4.5),
    "imagenet256-L": Preset(
        _IMAGENET_VAE,
        ARConfig(width=1024, layers=32, heads=16, head_width=1024, head_depth=8, head_groups=2),
        guidance_scale=4.6,
    ),
    "imagenet256-H": Preset(
        _IMAGENET_VAE,
        ARConfig(width=1280, layers=40, heads=20, head_width=1280, head_depth=12, head_groups=3),
        guidance_scale=4.5,
    ),
}
# fmt: on


def preset(name: str, bottleneck: str = "power_spherical") -> Preset:
    """The preset of that name with that bottleneck. Unknown names: ValueError that lists the known ones."""
    one_of("preset", name, PRESETS)
    row = PRESETS[name]
    return with_vae(row, replace(row.vae, bottleneck=bottleneck))


def with_vae(row: Preset, vae: VAEConfig) -> Preset:
    """The preset with this VAE, its AR model adapted to the VAE's tokens."""
    ar = replace(row.ar, latent_dim=vae.latent_dim, tokens=vae.tokens, codes=vae.alphabet)
    return replace(row, vae=vae, ar=ar)


def check_pair(vae: VAEConfig, ar: ARConfig) -> None:
    """ValueError if the AR model expects other tokens than the VAE's, or a sphere that the VAE does not have."""
    made, expected = (vae.tokens, vae.latent_dim, vae.alphabet), (ar.tokens, ar.latent_dim, ar.codes)
    require(made == expected, f"the VAE makes {made} (tokens, dim, codes); expected {expected}, as the AR model's")
    if ar.head_kind.curved:
        from spherear.models.vae import radius_of

        radius, head = radius_of(vae), math.sqrt(ar.latent_dim)
        require(
            radius is not None and math.isclose(radius, head, rel_tol=1e-6),
            f"head is {ar.head!r} and the tokens of {vae.bottleneck} have "
            f"{'no fixed length' if radius is None else f'length {radius:g}'}; expected length {head:g}, or a head in "
            "flat space, such as velocity",
        )
