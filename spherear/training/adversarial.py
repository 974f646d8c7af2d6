"""Image losses of a VAE beyond the pixel error: a perceptual distance, and a critic trained alongside."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from spherear.console import import_library
from spherear.models.config import require
from spherear.models.layers import seeded
from spherear.training.recipes import VAERecipe

SLOPE = 0.2  # of the leaky ReLUs
SMALLEST = 32  # pixels; the critic's strided convolutions need as many


class Critic(nn.Module):
    """PatchGAN discriminator: images -> one number per patch, high where they look real (Isola et al. 2017).

    Three convolutions of stride 2 with `width`, 2 and 4 times as many filters, one of stride 1 with 8 times as
    many, and one to a single channel; BatchNorm between them.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, padding=1), nn.LeakyReLU(SLOPE)]
        for i, stride in enumerate((2, 2, 1)):
            fan_in, fan_out = width * 2**i, width * 2 ** (i + 1)
            layers += [nn.Conv2d(fan_in, fan_out, 4, stride, padding=1, bias=False), nn.BatchNorm2d(fan_out)]
            layers += [nn.LeakyReLU(SLOPE)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, 1, padding=1))
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, std=0.02)

    def forward(self, images: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n 1 rows columns"]:
        return self.layers(images)


def critic_loss(real: Float[Tensor, "*shape"], fake: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Hinge loss: (mean max(0, 1 - real) + mean max(0, 1 + fake)) / 2, in float32."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


class Extras:
    """Further losses of a VAE, each if the recipe gives it a weight: LPIPS, and from `gan_start` on a critic.

    network: images, images -> perceptual distance per pair, frozen; None without a weight.
    critic: trained in the same backward pass; not called before `gan_start`, so its state does not change.
    """

    def __init__(self, recipe: VAERecipe, image_size: int, device: torch.device | str) -> None:
        self.recipe = recipe
        self.network = perceptual_network().to(device).requires_grad_(False) if recipe.lpips_weight else None
        self.critic: Critic | None = None
        if recipe.gan_weight:
            require(
                image_size >= SMALLEST,
                f"images have {image_size} px; expected at least {SMALLEST} where gan_weight is not 0",
            )
            self.critic = seeded(recipe.seed, Critic).to(device)

    def add(
        self,
        losses: dict[str, Tensor],
        images: Float[Tensor, "n 3 size size"],
        reconstruction: Float[Tensor, "n 3 size size"],
        step: int,
    ) -> dict[str, Tensor]:
        """`losses` with `lpips`, and from `gan_start` on `gan` (for the VAE) and `critic`, all added to `loss`.

        Under autocast both networks run in its precision; their means are float32.
        """
        loss, terms = losses["loss"], dict(losses)
        fake = reconstruction.float()
        if self.network is not None:
            terms["lpips"] = self.network.eval()(fake, images).float().mean()
            loss = loss + self.recipe.lpips_weight * terms["lpips"]
        if self.critic is not None and step >= self.recipe.gan_start:
            terms["gan"] = self._generator_loss(fake)
            terms["critic"] = critic_loss(self.critic(images), self.critic(fake.detach()))
            loss = loss + self.recipe.gan_weight * terms["gan"] + terms["critic"]
        return terms | {"loss": loss}

    def _generator_loss(self, fake: Tensor) -> Tensor:
        """-mean critic(fake); its gradient reaches the images but not the critic's weights."""
        assert self.critic is not None
        self.critic.requires_grad_(False)
        scores = self.critic(fake)
        self.critic.requires_grad_(True)
        return -scores.float().mean()

    def trained(self) -> dict[str, tuple[nn.Module, torch.optim.Optimizer]]:
        """Modules trained beside the VAE, by name, each with its optimiser."""
        if self.critic is None:
            return {}
        recipe = self.recipe
        betas = (recipe.beta1, recipe.beta2)
        decay, rate = recipe.weight_decay, recipe.learning_rate
        optimizer = torch.optim.AdamW(self.critic.parameters(), lr=rate, betas=betas, weight_decay=decay, fused=True)
        return {"critic": (self.critic, optimizer)}


class _Lpips(nn.Module):
    """LPIPS of torchmetrics on VGG-16, as a plain module; `Extras` calls it in eval mode, without dropout."""

    def __init__(self) -> None:
        super().__init__()
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        self.net = LearnedPerceptualImagePatchSimilarity(net_type="vgg").net

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.net(a.clamp(-1, 1), b.clamp(-1, 1))


def perceptual_network() -> nn.Module:
    """LPIPS. Without a torchmetrics and a torchvision that fit: ImportError that says what to install."""
    need = "lpips_weight needs it, unless it is 0"
    import_library("torchmetrics", "train,eval", need)
    import_library("torchvision", "train,eval", need)
    return _Lpips()
