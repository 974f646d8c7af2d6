"""Sizes and recipes proposed for a data set, from what its pictures are. All of them can be changed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch
from PIL import Image

from spherear.models.config import require
from spherear.models.presets import Preset, preset, with_vae
from spherear.models.sizes import ARConfig, VAEConfig
from spherear.training.data.catalog import load_data
from spherear.training.data.images import Photographs
from spherear.training.data.pixels import decode_image
from spherear.training.recipes import Recipes, recipes

SAMPLED = 64  # pictures that are looked at
LARGEST_START = 64  # pixels; larger pictures are a matter of hours, and are asked for
DRAWN = 32  # pixels of a data set that has no size of its own
MOST_TOKENS = 64
PATCHES = (4, 8, 16, 32)
VALUES = 12  # per latent number, as in the presets in colour; the paper has 48 at 256 px
LATENT_DIMS = (3, 16)  # smallest and largest
CHANNELS = (16, 32, 64, 64, 128, 128)  # of the stem, and after each halving
STEPS, BATCH = 3000, 16


@dataclass(frozen=True)
class Look:
    """What a data set holds. side: median of the shorter sides in pixels.  grey: whether all pictures are."""

    spec: str
    images: int
    classes: int
    side: int
    grey: bool

    def __str__(self) -> str:
        colour = "grey" if self.grey else "colour"
        return f"{self.spec}: {self.images} images, {self.classes} classes, {colour}, {self.side} px"


def look_at(spec: str) -> Look:
    """Look at up to 64 pictures of a data set. Errors: as `load_data`, and ValueError if none can be read."""
    data = load_data(spec, DRAWN)
    count = min(SAMPLED, len(data))
    rows = [i * len(data) // count for i in range(count)]
    if not isinstance(data, Photographs):
        images, _ = data.batch(torch.tensor(rows))
        return Look(spec, len(data), data.num_classes, DRAWN, bool((images.amax(1) - images.amin(1)).max() < 1e-3))
    pictures = list(_readable(data, rows))
    require(bool(pictures), f"none of {count} images of {spec} can be read; expected pictures")
    side = int(median(min(picture.size) for picture in pictures))
    return Look(spec, len(data), data.num_classes, side, all(map(_is_grey, pictures)))


def _readable(data: Photographs, rows: list[int]) -> Iterator[Image.Image]:
    for row in rows:
        try:
            yield decode_image(data.content(row))
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
            continue  # training counts these, and says so


def _is_grey(picture: Image.Image) -> bool:
    """Whether the three channels are equal, up to the rounding of a JPEG."""
    pixels = np.asarray(picture, dtype=np.int16)
    return int((pixels.max(axis=-1) - pixels.min(axis=-1)).max()) <= 2


def propose_sizes(look: Look, image_size: int = 0, patch: int = 0, latent_dim: int = 0, width: int = 0) -> Preset:
    """A VAE and an AR model for these pictures; what is given (not 0) is kept, and the rest follows from it.

    The image size is that of the pictures, at most 64, as a multiple of the patch; the patch the smallest one with at
    most 64 tokens; the latent dimension 1/12 of a patch's values. ValueError for what does not fit together.
    """
    side = image_size or min(look.side, LARGEST_START)
    patch = patch or patch_for(side)
    image_size = image_size or max(patch, side // patch * patch)
    channels = 1 if look.grey else 3
    dim = latent_dim or min(max(round(patch**2 * channels / VALUES), LATENT_DIMS[0]), LATENT_DIMS[1])
    vae = VAEConfig(
        latent_dim=dim, image_size=image_size, widths=widths_for(patch), encoder_layers=1, decoder_layers=1,
        concentration_gain=20.0, channels=channels,
    )  # fmt: skip
    row = replace(preset("shapes"), guidance_scale=2.0)
    return with_vae(replace(row, ar=sized(replace(row.ar, num_classes=look.classes), width)), vae)


def sized(config: ARConfig, width: int) -> ARConfig:
    """An AR model of that width, head included; 0: unchanged. ValueError for a width that no head can have."""
    if not width:
        return config
    require(width > 0 and width % 4 == 0, f"width is {width}; expected a multiple of 4")
    heads = next(n for n in range(max(1, width // 48), 0, -1) if width % (4 * n) == 0)
    return replace(config, width=width, heads=heads, head_width=width)


def patch_for(side: int) -> int:
    """The smallest patch with which an image has at most 64 tokens."""
    return next((patch for patch in PATCHES if (side // patch) ** 2 <= MOST_TOKENS), PATCHES[-1])


def widths_for(patch: int) -> tuple[int, ...]:
    """Channels of a small VAE with that patch. ValueError unless it is a power of two, from 1 to 32."""
    known = [2**halvings for halvings in range(len(CHANNELS))]
    require(patch in known, f"patch is {patch}; expected one of {', '.join(map(str, known))}")
    widths = CHANNELS[: known.index(patch) + 1]
    return widths if widths[-1] >= 64 else (*widths[:-1], 64)


def propose_recipes(spec: str, images: int) -> Recipes:
    """Recipes for a small model of that many images: batches of 16, or all if there are fewer; 3,000 steps each."""
    plan, batch = recipes("shapes"), min(BATCH, images)
    return Recipes(
        spec,
        replace(plan.vae, steps=STEPS, batch_size=batch),
        replace(plan.ar, steps=STEPS, batch_size=batch, cached_copies=1),
    )


def explained(look: Look, sizes: Preset) -> str:
    """The proposal in words."""
    vae = sizes.vae
    changed = "" if vae.image_size == look.side else f" (the pictures' {look.side} px become {vae.image_size})"
    colour = "grey" if vae.channels == 1 else "colour"
    return (
        f"{look}\nproposed: {vae.image_size} px{changed}, {colour}; {vae.tokens} tokens of "
        f"{vae.patch}x{vae.patch} pixels, {vae.latent_dim} numbers each; {values_per_number(vae)}"
    )


def values_per_number(vae: VAEConfig) -> str:
    """How much a latent number stands for, in words."""
    values = vae.patch**2 * vae.channels / vae.latent_dim
    best = max(2, round(vae.patch**2 * vae.channels / VALUES))
    hint = "" if 4 <= values <= 48 else f"; --latent-dim {best} gives about {VALUES}"
    return f"{values:.3g} pixel values per latent number (the paper: 48){hint}"
