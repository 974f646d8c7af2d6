"""Scores on images that a model was not trained on: the loss of an AR model, and the reconstructions of a VAE.

Processes share the batches, and all of them return the same numbers. The random numbers of a batch depend on its
place alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from spherear.evaluation.metrics import Moments, frechet_distance
from spherear.models.ar import SphereAR
from spherear.models.config import require
from spherear.models.vae import VAE
from spherear.sampling.pixels import to_uint8
from spherear.world import World

Batch = tuple[Float[Tensor, "n 3 size size"], Int[Tensor, " n"]]
Read = Callable[[Int[Tensor, " n"]], Batch]
"""read(indices) -> images in [-1, 1] and their labels."""
Features = Callable[[np.ndarray], Float[Tensor, "n f"]]
"""features(images as bytes, (n, height, width, 3)) -> one vector per image."""
Perceptual = Callable[[Tensor, Tensor], Tensor]
"""perceptual(a, b) -> the perceptual distance of every pair of images in [-1, 1]."""
BATCH = 32  # images per forward pass
HIGHEST = 100.0  # dB, of images that are equal


@dataclass(frozen=True)
class HeldOut:
    """Images that are held out. read: by index.  count: of the images."""

    read: Read
    count: int

    def share(self, world: World) -> Iterator[tuple[int, Batch]]:
        """This process's batches, each with its place among all."""
        for place, indices in enumerate(torch.arange(self.count).split(BATCH)):
            if place % world.size == world.rank:
                yield place, self.read(indices)


def psnr(images: Float[Tensor, "n 3 h w"], others: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """10 log10(255^2 / mean squared difference) of every pair, as bytes, in dB; at most `HIGHEST`."""
    difference = to_uint8(images).double() - to_uint8(others).double()
    error = difference.square().flatten(1).mean(dim=1)
    return (20 * np.log10(255) - 10 * error.log10()).clamp(max=HIGHEST)


@torch.no_grad()
def held_out_loss(vae: VAE, ar: SphereAR, held_out: HeldOut, repeats: int, world: World | None = None) -> float:
    """Mean loss per image of an AR model in eval mode, on posterior samples and without label dropout.

    repeats: of the head's draws per token.
    """
    world, device, total, count = world or World(), ar.proj_in.weight.device, 0.0, 0
    vae_device = vae.quant_proj.weight.device
    for place, (images, labels) in held_out.share(world):
        generator = torch.Generator().manual_seed(place)  # of the CPU: the same number on any machine
        tokens = vae.encode(images.to(vae_device), generator).sample
        drawn: dict[str, Any] = ar.head.draws(tokens, repeats, generator.manual_seed(place))
        draws, tokens = {name: value.to(device) for name, value in drawn.items()}, tokens.to(device)
        loss = ar.loss(tokens, labels.to(device), repeats=repeats, label_dropout=0.0, **draws)
        total, count = total + float(loss) * len(images), count + len(images)
    total, images_seen = world.total([total, float(count)])
    return total / images_seen


@torch.no_grad()
def reconstruction_scores(
    vae: VAE,
    held_out: HeldOut,
    features: Features | None = None,
    perceptual: Perceptual | None = None,
    world: World | None = None,
) -> dict[str, float]:
    """`psnr` (dB, mean over images), `lpips` if `perceptual` is given, and `frechet` if `features` are given: the
    Frechet distance between the held-out images and their reconstructions. ValueError for fewer than two images.
    """
    require(held_out.count >= 2, f"there are {held_out.count} held-out images; expected at least 2")
    world, device = world or World(), vae.quant_proj.weight.device
    sums, count = {"psnr": 0.0, "lpips": 0.0}, 0.0
    collected: tuple[list[Tensor], list[Tensor]] = ([], [])  # features of real and of reconstructed images
    for place, (batch, _) in held_out.share(world):
        images = batch.to(device)
        latent = vae.encode(images, torch.Generator().manual_seed(place))
        reconstruction = vae.decode(latent.sample.to(device)).float()
        count, sums["psnr"] = count + len(images), sums["psnr"] + float(psnr(images, reconstruction).sum())
        if perceptual is not None:
            sums["lpips"] += float(perceptual(reconstruction, images).sum())
        for found, pictures in zip(collected, (images, reconstruction), strict=True):
            if features is not None:
                found.append(features(as_bytes(pictures)).double().cpu())
    psnr_sum, lpips_sum, total = world.total([*sums.values(), count])
    scores = {"psnr": psnr_sum / total} | ({"lpips": lpips_sum / total} if perceptual is not None else {})
    if features is not None:
        gathered = zip(*world.gather([torch.cat(found) if found else None for found in collected]), strict=True)
        real, made = (Moments.of(torch.cat([x for x in found if x is not None])) for found in gathered)
        scores["frechet"] = frechet_distance(real, made)
    return scores


def as_bytes(images: Float[Tensor, "n 3 size size"]) -> UInt8[np.ndarray, "n size size 3"]:
    """Images in [-1, 1] as they are saved."""
    return to_uint8(images).cpu().numpy()
