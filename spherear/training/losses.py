"""What a VAE is asked to minimise.

Knows: images, reconstructions and a bottleneck's KL.  Does not know: networks, optimisers or schedules.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from spherear.sphere.bottlenecks import Latent
from spherear.training.recipes import VAERecipe


def vae_losses(
    images: Float[Tensor, "batch 3 height width"],
    reconstruction: Float[Tensor, "batch 3 height width"],
    latent: Latent,
    recipe: VAERecipe,
) -> dict[str, Tensor]:
    """loss = l1_weight |x - y| + kl_weight KL + penalty: scalars `loss`, `l1` (a pixel's mean), `kl` (nats a token).

    penalty: the bottleneck's own, where it has one.
    """
    l1 = F.l1_loss(reconstruction.float(), images)
    kl = latent.kl.mean()
    loss = recipe.l1_weight * l1 + recipe.kl_weight * kl
    if latent.penalty is not None:
        loss = loss + latent.penalty.mean()
    return {"loss": loss, "l1": l1, "kl": kl}
