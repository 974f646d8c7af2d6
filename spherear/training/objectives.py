"""Training objectives of the VAE and the AR model.

The AR objective is a module because compilers and distributed wrappers work on a module's call. Its random numbers are
drawn outside the compiled part, because compiled code cannot draw from a generator passed as an argument.
"""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from spherear.models.ar import SphereAR
from spherear.sphere.bottlenecks import Latent
from spherear.training.recipes import ARRecipe, VAERecipe


def vae_losses(
    images: Float[Tensor, "batch 3 height width"],
    reconstruction: Float[Tensor, "batch 3 height width"],
    latent: Latent,
    recipe: VAERecipe,
) -> dict[str, Tensor]:
    """loss = l1_weight |x - y| + kl_weight KL + penalty: scalars `loss`, `l1` (mean per pixel), `kl` (nats per token).

    penalty: of the bottleneck, if it has one.
    """
    l1 = F.l1_loss(reconstruction.float(), images)
    kl = latent.kl.mean()
    loss = recipe.l1_weight * l1 + recipe.kl_weight * kl
    if latent.penalty is not None:
        loss = loss + latent.penalty.mean()
    return {"loss": loss, "l1": l1, "kl": kl}


class ARObjective(nn.Module):
    """Numerically equal to `model.loss` with the recipe's repeats and label dropout (none in eval mode)."""

    def __init__(self, model: SphereAR, recipe: ARRecipe) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.pure: Callable[..., Tensor] = model.loss

    def compile(self, *args: object, **kwargs: object) -> None:
        """Compile the model's part of the loss. Without a C++ compiler, the first step raises the error."""
        self.pure = cast(Callable[..., Tensor], torch.compile(self.model.loss, *args, **kwargs))  # type: ignore[call-overload]

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], labels: Int[Tensor, " batch"], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """Mean loss per token; all randomness from `generator`."""
        labels = self.drop(labels, generator)
        draws = self.model.head.draws(tokens, self.recipe.repeats, generator)
        return self.pure(tokens, labels, repeats=self.recipe.repeats, label_dropout=0.0, **draws)

    def drop(self, labels: Int[Tensor, " batch"], generator: torch.Generator) -> Int[Tensor, " batch"]:
        """Labels, in training mode with a random share of them replaced by the null class."""
        share = self.recipe.label_dropout if self.training else 0.0
        if share == 0:
            return labels
        dropped = torch.rand(labels.shape, generator=generator, device=labels.device) < share
        return torch.where(dropped, self.model.null_label, labels)
