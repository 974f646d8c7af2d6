"""Operations of a model per image, and the peak of a GPU: what the utilisation in a run's log is made of."""

import torch
from torch import nn

from spherear.models.ar import SphereAR
from spherear.models.vae import VAE, Down, Mixer, Up

PEAK = {
    "B200": 2250.0, "H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0,
    "A10G": 70.0, "V100": 125.0,
}  # fmt: skip
"""10^12 operations per second of dense half-precision products, by a part of the GPU's name, as its maker says."""
BACKWARD = 3  # operations of a forward and a backward pass, over those of a forward pass
LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def training_flops(model: nn.Module, repeats: int = 1) -> int:
    """Operations of linear layers, convolutions and attention for one image, forward and backward; 0 for other models.

    Without what is not the model: recomputation, the perceptual loss and the critic, a VAE that encodes for an AR
    model. repeats: times and noises per token of an AR model.
    """
    products = _vae(model) if isinstance(model, VAE) else _ar(model, repeats) if isinstance(model, SphereAR) else 0
    return 2 * BACKWARD * products


def _ar(model: SphereAR, repeats: int) -> int:
    """Products of numbers in a forward pass."""
    c = model.config
    length = c.class_tokens + c.tokens - 1
    rows = c.tokens * (1 if c.codes else repeats)
    attention = 2 * c.layers * length**2 * c.width
    inputs = (c.tokens - 1) * model.proj_in.weight.numel()
    return length * _weights(model.layers) + attention + inputs + rows * _weights(model.head)


def _vae(model: VAE) -> int:
    """Products of numbers in a forward pass."""
    c, encoder, decoder = model.config, model.encoder, model.decoder
    size, total = c.image_size, c.image_size**2 * _weights(encoder.stem)
    for down in encoder.down:
        assert isinstance(down, Down)
        size //= 2
        total += size**2 * _weights(down)
    total += c.tokens * (_weights(encoder.output) + _weights(model.quant_proj) + _weights(model.post_quant_proj))
    total += c.tokens * _weights(decoder.stem) + _mixer(encoder.mixer, c.tokens) + _mixer(decoder.mixer, c.tokens)
    for up in decoder.up:
        assert isinstance(up, Up)
        before = _weights(up, nn.ConvTranspose2d)  # at the resolution of their input
        total += size**2 * before + (2 * size) ** 2 * (_weights(up) - before)
        size *= 2
    return total + size**2 * _weights(decoder.output)


def _mixer(mixer: Mixer, tokens: int) -> int:
    length = tokens + mixer.registers.num_embeddings
    return length * _weights(mixer) + 2 * len(mixer.layers) * length**2 * mixer.registers.embedding_dim


def _weights(part: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...] = LAYERS) -> int:
    """Numbers in the weights of all layers that multiply."""
    return sum(layer.weight.numel() for layer in part.modules() if isinstance(layer, kinds))  # type: ignore[operator,misc]


def peak_teraflops(device: torch.device, given: float = 0.0) -> float:
    """10^12 operations per second that a device can do at most: `given`, or of a GPU in `PEAK`; 0 if unknown."""
    if given or device.type != "cuda":
        return given
    name = torch.cuda.get_device_name(device)
    return next((value for part, value in PEAK.items() if part in name), 0.0)
