"""The image tokeniser: a VAE with convolutions and a transformer on both sides of a bottleneck.

Its loss is in `training.objectives`. (Paper section 3.1.)
"""

import copy
from dataclasses import replace
from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from spherear.models.config import require
from spherear.models.layers import NORM_EPS, Block, RMSNorm, Rotary, init_normal
from spherear.models.pretrained import Pretrained
from spherear.models.sizes import VAEConfig
from spherear.sphere.bottlenecks import Bottleneck, Latent, VectorQuantizedBottleneck, bottleneck, bottleneck_class


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels, eps=NORM_EPS)


def _conv(fan_in: int, fan_out: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(fan_in, fan_out, size, stride, padding=(size - 1) // 2, bias=False)


class Down(nn.Module):
    """Halve the resolution: two convolutions plus a strided 2x2 shortcut."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            _norm(fan_in), nn.SiLU(), _conv(fan_in, fan_out, stride=2),
            _norm(fan_out), nn.SiLU(), _conv(fan_out, fan_out),
        )  # fmt: skip
        self.shortcut = _conv(fan_in, fan_out, size=2, stride=2)

    def forward(self, x: Float[Tensor, "batch fan_in h w"]) -> Float[Tensor, "batch fan_out h/2 w/2"]:
        return self.shortcut(x) + self.block(x)


class Up(nn.Module):
    """Double the resolution: a transposed residual block, then a residual block at the new resolution."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            _norm(fan_in), nn.SiLU(), nn.ConvTranspose2d(fan_in, fan_out, 4, 2, padding=1, bias=False),
            _norm(fan_out), nn.SiLU(), _conv(fan_out, fan_out),
        )  # fmt: skip
        self.shortcut = nn.ConvTranspose2d(fan_in, fan_out, 2, 2, bias=False)
        self.block2 = nn.Sequential(
            _norm(fan_out), nn.SiLU(), _conv(fan_out, fan_out),
            _norm(fan_out), nn.SiLU(), _conv(fan_out, fan_out),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "batch fan_in h w"]) -> Float[Tensor, "batch fan_out 2*h 2*w"]:
        x = self.shortcut(x) + self.block(x)
        return x + self.block2(x)


class Mixer(nn.Module):
    """A non-causal transformer over the grid; learnt register tokens are prepended and removed at the end."""

    def __init__(self, config: VAEConfig, layers: int) -> None:
        super().__init__()
        width = config.widths[-1]
        self.registers = nn.Embedding(config.registers, width)
        self.rotary = Rotary(config.grid, config.registers, config.head_width)
        self.layers = nn.ModuleList(Block(width, width // config.head_width) for _ in range(layers))
        init_normal(self)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        count = self.registers.num_embeddings
        registers = self.registers.weight.to(x.dtype).expand(x.shape[0], -1, -1)
        x = torch.cat((registers, x), dim=1)  # (batch, registers + tokens, width)
        for layer in self.layers:
            x = layer(x, self.rotary.table)
        return x[:, count:]  # (batch, tokens, width)


class Encoder(nn.Module):
    """Images -> one feature vector per token."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.channels = config.channels
        self.stem = _conv(config.channels, widths[0])
        self.down = nn.Sequential(*(Down(a, b) for a, b in pairwise(widths)))
        self.mixer = Mixer(config, config.encoder_layers)
        self.norm = RMSNorm(widths[-1])
        self.output = nn.Linear(widths[-1], widths[-1], bias=False)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens channels"]:
        if self.channels == 1:
            images = images.mean(dim=1, keepdim=True)  # (batch, 1, height, width)
        x = self.down(self.stem(images))  # (batch, channels, grid, grid)
        x = rearrange(x, "batch channels y x -> batch (y x) channels")
        return self.output(self.norm(self.mixer(x)))


class Decoder(nn.Module):
    """One feature vector per token -> images."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.widths[::-1]
        self.grid = config.grid
        self.stem = _conv(widths[0], widths[0])
        self.mixer = Mixer(config, config.decoder_layers)
        self.up = nn.Sequential(*(Up(a, b) for a, b in pairwise(widths)))
        self.output = nn.Sequential(_norm(widths[-1]), nn.SiLU(), _conv(widths[-1], config.channels))

    def forward(self, x: Float[Tensor, "batch tokens channels"]) -> Float[Tensor, "batch 3 height width"]:
        x = self.stem(rearrange(x, "batch (y x) channels -> batch channels y x", y=self.grid))
        x = self.mixer(rearrange(x, "batch channels y x -> batch (y x) channels"))
        images = self.output(self.up(rearrange(x, "batch (y x) channels -> batch channels y x", y=self.grid)))
        return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images  # grey: three equal channels


class VAE(nn.Module, Pretrained[VAEConfig]):
    """Images -> constrained tokens -> images (S-VAE with the `power_spherical` bottleneck).

    `encode` and `decode` check shapes and values of their input; `forward`, for training, checks only shapes,
    so it never waits for the device.
    """

    config_class = VAEConfig

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.bottleneck = bottleneck_of(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_proj = nn.Linear(config.widths[-1], self.bottleneck.channels)
        self.post_quant_proj = nn.Linear(config.latent_dim, config.widths[-1], bias=False)

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "batch 3 height width"], Latent]:
        """Images -> (reconstruction, latent), for training. ValueError for a wrong shape, TypeError for integers."""
        self._check_images(images)
        latent = self.posterior(images, generator)
        return self._decode(latent.sample), latent

    @property
    def codebook(self) -> Float[Tensor, "codes dim"] | None:
        """All possible tokens if they are discrete, otherwise None."""
        if not isinstance(self.bottleneck, VectorQuantizedBottleneck):
            return None
        return self.config.latent_scale * self.bottleneck.codebook

    def rescale(self, latent_scale: float) -> None:
        """Set `latent_scale` in the config."""
        self.config = replace(self.config, latent_scale=latent_scale)

    def encode(self, images: Float[Tensor, "batch 3 height width"], generator: torch.Generator | None = None) -> Latent:
        """Images in [-1, 1] -> `Latent` of (batch, tokens, latent_dim). ValueError for NaN or a wrong shape."""
        self._check_images(images)
        check_finite("images", images)
        return self.posterior(images, generator)

    def decode(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch 3 height width"]:
        """(batch, tokens, latent_dim) -> images, about [-1, 1]. ValueError for NaN or a wrong shape."""
        expected = (self.config.tokens, self.config.latent_dim)
        require(
            tuple(tokens.shape[1:]) == expected,
            f"tokens have shape {tuple(tokens.shape)}; expected (batch, {expected[0]}, {expected[1]})",
        )
        check_finite("tokens", tokens)
        return self._decode(tokens)

    def project(self, tokens: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """The bottleneck's projection: onto the sphere of radius sqrt(latent_dim), or the identity."""
        return self.bottleneck.project(tokens)

    def posterior(self, images: Tensor, generator: torch.Generator | None = None) -> Latent:
        return self.constrain(self.features(images), generator)

    def draw(self, images: Tensor, generator: torch.Generator | None = None) -> Float[Tensor, "batch tokens dim"]:
        """The sample of `posterior`, and no more than it needs."""
        return self.draw_from(self.features(images), generator)

    def features(self, images: Tensor) -> Float[Tensor, "batch tokens channels"]:
        """The bottleneck's input: the expensive part of `posterior`."""
        return self.quant_proj(self.encoder(images.to(self.quant_proj.weight.dtype)))

    def constrain(
        self, features: Float[Tensor, "batch tokens channels"], generator: torch.Generator | None = None
    ) -> Latent:
        """`features` -> the posterior's `Latent`, with a new draw, on the generator's device: see `draw_from`."""
        where = features.device if generator is None else generator.device
        latent = self._bottleneck_on(where)(features.to(where), generator)
        scale = self.config.latent_scale
        return latent if scale == 1.0 else latent.scaled(scale)

    def draw_from(
        self, features: Float[Tensor, "batch tokens channels"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """The sample of `constrain`, and no more than it needs.

        It is made on the generator's device: with one of the CPU, the same numbers wherever the model is.
        """
        where = features.device if generator is None else generator.device
        sample = self._bottleneck_on(where).draw(features.to(where), generator)
        return sample if self.config.latent_scale == 1.0 else self.config.latent_scale * sample

    def _bottleneck_on(self, device: torch.device) -> Bottleneck:
        """The bottleneck, or a copy of it on a device of another type."""
        here = self.quant_proj.weight.device
        if device.type == here.type:
            return self.bottleneck
        require(not self.training, f"the generator is on {device} and the model, in training, on {here}; expected one")
        return copy.deepcopy(self.bottleneck).to(device)

    def _decode(self, tokens: Tensor) -> Tensor:
        latents = self.bottleneck.decoder_input(tokens / self.config.latent_scale)
        return self.decoder(self.post_quant_proj(latents.to(self.post_quant_proj.weight.dtype)))

    def _check_images(self, images: Tensor) -> None:
        size = self.config.image_size
        if not images.is_floating_point():
            raise TypeError(f"images have dtype {images.dtype}; expected floating point in [-1, 1]")
        require(
            images.ndim == 4 and tuple(images.shape[1:]) == (3, size, size),
            f"images have shape {tuple(images.shape)}; expected (batch, 3, {size}, {size})",
        )


def bottleneck_of(config: VAEConfig) -> Bottleneck:
    """The bottleneck of a VAE of these sizes."""
    options = {name: getattr(config, name) for name in bottleneck_class(config.bottleneck).options}
    return bottleneck(config.bottleneck, config.latent_dim, **options)


def radius_of(config: VAEConfig) -> float | None:
    """The length of every token of a VAE of these sizes; None if its family does not fix one."""
    with torch.device("meta"):
        return bottleneck_of(config).radius


def check_finite(name: str, values: Tensor) -> None:
    """ValueError for NaN or infinity, with their number and where the first one is. Not checked in compiled code."""
    if torch.compiler.is_compiling():  # a graph cannot depend on values
        return
    bad = ~torch.isfinite(values)
    if bad.any():
        first = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{name} hold {int(bad.sum())} non-finite values, the first {values[first].item()} at {first}; "
            "expected finite numbers"
        )
