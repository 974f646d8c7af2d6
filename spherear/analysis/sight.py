"""What a few drawn images show: how many a judge recognises, and how far lengths and colours are from real ones."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.analysis.canvas import Canvas, expected_length
from spherear.evaluation.classifier import JudgeNetwork, accuracy
from spherear.evaluation.judge import as_saved
from spherear.evaluation.metrics import contrast
from spherear.models.vae import VAE
from spherear.training.run import keyed_generator

LATE = 4  # the last quarter of the tokens is late


@dataclass(frozen=True)
class RealTokens:
    """Real images as a VAE encodes them: lengths of their tokens by position (mean, and 5 to 95 % of the images).

    contrast: standard deviation of the pixel values of an image, averaged over images.
    """

    mean: Float[Tensor, " tokens"]
    low: Float[Tensor, " tokens"]
    high: Float[Tensor, " tokens"]
    contrast: float


@torch.no_grad()
def real_tokens(vae: VAE, images: Float[Tensor, "n 3 size size"], seed: int = 0) -> RealTokens:
    """Lengths of posterior samples of real images, and the contrast of these images."""
    sample = vae.draw(images.to(vae.quant_proj.weight.device), keyed_generator(seed, 1))
    lengths = torch.linalg.vector_norm(sample, dim=-1).float()
    low, high = torch.quantile(lengths, torch.tensor([0.05, 0.95]), dim=0)
    return RealTokens(lengths.mean(0), low, high, contrast(images))


@dataclass(frozen=True)
class Sight:
    """What the images of one model show.

    raw, handed_on: mean length of late tokens before and after the projection, relative to real ones; 0 is equal.
    recognised: how many of `images` a judge takes for their class.  colour: contrast relative to real images; 0 is
    equal. Both are None where no data set and judge of the model are known.
    """

    images: int
    raw: float
    handed_on: float
    recognised: int | None = None
    colour: float | None = None


def sight(
    canvas: Canvas, labels: Int[Tensor, " batch"], real: RealTokens | None = None, judge: JudgeNetwork | None = None
) -> Sight:
    """Measure a finished canvas. Without real tokens, lengths are compared with the expected length R or sqrt(d)."""
    count = max(1, canvas.tokens.shape[1] // LATE)
    usual = real.mean[-count:] if real is not None else torch.tensor(expected_length(canvas.pipeline))
    raw, handed_on = (float((lengths[:, -count:] / usual).mean()) - 1 for lengths in canvas.lengths())
    images = as_saved(canvas.images())
    colour = contrast(images) / real.contrast - 1 if real is not None else None
    recognised = None if judge is None else round(accuracy(judge, images, labels) * len(images))
    return Sight(len(images), raw, handed_on, recognised, colour)
