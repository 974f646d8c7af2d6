"""The published SphereAR checkpoints: configs are inferred from shapes, weights renamed, only tensors unpickled.

This project's own format is in `pretrained`; `sampling.pipeline.load_published` loads whole pipelines.
"""

import argparse
import errno
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor

from spherear.models.ar import ARConfig, SphereAR
from spherear.models.config import require
from spherear.models.heads.table import HEADS
from spherear.models.pretrained import unwrapped
from spherear.models.vae import VAE, VAEConfig

HUB_REPOSITORY = "guolinke/SphereAR"
HUB_FILES = ("vae.pt", "SphereAR_B.pt", "SphereAR_L.pt", "SphereAR_H.pt")
HEAD_WIDTH = 64  # of the attention heads of every published model

# (published, here): parts of parameter names, replaced in this order.
_VAE_NAMES = (
    ("encoder.conv_in.", "encoder.stem."),
    ("encoder.patchify.0.net.", "encoder.down."),
    ("encoder.register_token.", "encoder.mixer.registers."),
    ("encoder.layers.", "encoder.mixer.layers."),
    ("decoder.conv_in.1.", "decoder.stem."),
    ("decoder.unpatchify.1.net.", "decoder.up."),
    ("decoder.register_token.", "decoder.mixer.registers."),
    ("decoder.layers.", "decoder.mixer.layers."),
    ("decoder.conv_out.", "decoder.output."),
)
_AR_NAMES = (
    ("head.net.", "head."),
    ("final_layer.ada_ln_modulation.", "final_modulation."),
    ("final_layer.linear.", "final_linear."),
)


def _rename(name: str, table: tuple[tuple[str, str], ...], inverse: bool = False) -> str:
    for published, local in table:
        name = name.replace(local, published) if inverse else name.replace(published, local)
    return name


def to_published(model: VAE | SphereAR) -> dict[str, Tensor]:
    """A model's weights under their published names (a VAE's without the prefix `vae.`).

    ValueError for an AR model with another head than a velocity in flat space, which no published model has.
    The published models have no gain of the concentration: it becomes part of the weights that give the concentration.
    """
    kind = model.config.head_kind if isinstance(model, SphereAR) else HEADS["velocity"]
    require(kind == HEADS["velocity"], f"the head is {kind.title}; expected velocity, as in the published models")
    weights = model.state_dict()
    if isinstance(model, VAE) and "concentration_gain" in model.bottleneck.options:
        for name in ("quant_proj.weight", "quant_proj.bias"):
            *direction, concentration = weights[name]
            weights[name] = torch.stack((*direction, model.config.concentration_gain * concentration))
    table = _VAE_NAMES if isinstance(model, VAE) else _AR_NAMES
    return {_rename(name, table, inverse=True): tensor for name, tensor in weights.items()}


def load_parts(
    source: str | Path | Mapping[str, Any],
    vae: str | Path | None = None,
    *,
    revision: str | None = None,
    device: torch.device | str = "cpu",
) -> tuple[VAE | None, SphereAR | None]:
    """A published file, its name on the hub, or its state dict -> (VAE, AR model), None for one that is absent.

    vae: the file of the VAE, instead of one in `source`.
    FileNotFoundError if there is no such file; ValueError if it is truncated, has another format, or holds neither.
    """
    vae_weights, ar_weights, name = _halves(source, vae, revision)
    autoencoder = ar = None
    if vae_weights:
        learnt = {k: v for k, v in vae_weights.items() if not k.endswith("freqs_cis")}
        renamed = {_rename(k, _VAE_NAMES): v for k, v in learnt.items()}
        autoencoder = VAE.from_weights(vae_config(vae_weights, ar_weights), renamed, str(vae or name), device)
    if ar_weights:
        renamed = {_rename(k, _AR_NAMES): v for k, v in ar_weights.items()}
        ar = SphereAR.from_weights(ar_config(ar_weights), renamed, name, device)
    return autoencoder, ar


def published_configs(
    source: str | Path | Mapping[str, Any], vae: str | Path | None = None, *, revision: str | None = None
) -> tuple[VAEConfig | None, ARConfig | None]:
    """The configs in a published file, from the shapes alone; arguments and errors as in `load_parts`."""
    vae_weights, ar_weights, _ = _halves(source, vae, revision)
    config = vae_config(vae_weights, ar_weights) if vae_weights else None
    return config, ar_config(ar_weights) if ar_weights else None


def _halves(
    source: str | Path | Mapping[str, Any], vae: str | Path | None, revision: str | None
) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """The weights of the VAE and of the AR model, and a name for messages."""
    weights = _unwrap(source if isinstance(source, Mapping) else _read(source, revision))
    name = "the state dict" if isinstance(source, Mapping) else str(source)
    vae_weights, ar_weights = _split(weights)
    require(
        bool(vae_weights or ar_weights),
        f"{name} holds {sorted(weights)[:4]}; expected a published S-VAE, SphereAR, or both",
    )
    if vae is not None:
        vae_weights, _ = _split(_unwrap(_read(vae, revision)))
    return vae_weights, ar_weights, name


def _read(source: str | Path, revision: str | None) -> Any:
    path = Path(source)
    if not path.is_file():
        if str(source) not in HUB_FILES:
            known = ", ".join(HUB_FILES)
            raise FileNotFoundError(f"{str(source)!r} is not a file; expected one, or one of {known} on the hub")
        path = Path(hf_hub_download(HUB_REPOSITORY, str(source), revision=revision))
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            # mapped: a tensor takes memory when it is copied into a model, and not before
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # bytes that are no checkpoint fail in any way while they are unpickled
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which is a seek before the start of a cut file
            raise
        raise ValueError(f"{path} is not a complete checkpoint of plain tensors ({error})") from error


def _unwrap(content: Any) -> dict[str, Tensor]:
    for key in ("ema", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    named = isinstance(content, Mapping) and all(isinstance(key, str) for key in content)
    if not named or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"the checkpoint holds a {type(content).__name__}; expected a dict of tensors")
    return unwrapped(content)


def _split(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """-> (VAE weights without their prefix, AR weights); a VAE-only file has no prefix."""
    if "encoder.conv_in.weight" in weights:
        return weights, {}
    vae = {k.removeprefix("vae."): v for k, v in weights.items() if k.startswith("vae.")}
    ar = {k: v for k, v in weights.items() if not k.startswith("vae.")}
    return vae, ar if "cls_embedding.weight" in ar else {}


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    """Number of distinct name parts that follow `prefix`."""
    return len({k[len(prefix) :].split(".")[0] for k in weights if k.startswith(prefix)})


def _shape(weights: Mapping[str, Tensor], name: str, axes: int) -> torch.Size:
    require(name in weights, f"{name} is not in the checkpoint; expected it in a published model")
    shape = weights[name].shape
    require(
        len(shape) == axes and min(shape) > 0,
        f"{name} has shape {tuple(shape)}; expected {axes} axes, none of them empty",
    )
    return shape


def vae_config(weights: Mapping[str, Tensor], ar_weights: Mapping[str, Tensor] | None = None) -> VAEConfig:
    """Infer a VAE's config from its shapes, and the number of tokens from its RoPE table or its AR model."""
    blocks = _count(weights, "encoder.patchify.0.net.")
    stem = _shape(weights, "encoder.conv_in.weight", 4)[0]
    downs = [_shape(weights, f"encoder.patchify.0.net.{i}.block.2.weight", 4)[0] for i in range(blocks)]
    channels = _shape(weights, "quant_proj.weight", 2)[0]
    registers = _shape(weights, "encoder.register_token.weight", 2)[0]
    if "encoder.freqs_cis" in weights:
        tokens = _shape(weights, "encoder.freqs_cis", 3)[0] - registers
    elif ar_weights:
        tokens = _shape(ar_weights, "pos_for_diff.weight", 2)[0]
    else:
        raise ValueError("encoder.freqs_cis is not in the checkpoint; expected it, to read the number of tokens")
    latent_dim = _shape(weights, "post_quant_proj.weight", 2)[1]
    return VAEConfig(
        bottleneck="power_spherical" if channels == latent_dim + 1 else "gaussian",
        latent_dim=latent_dim,
        image_size=round(tokens**0.5) * 2**blocks,
        widths=(stem, *downs),
        encoder_layers=_count(weights, "encoder.layers."),
        decoder_layers=_count(weights, "decoder.layers."),
        head_width=HEAD_WIDTH,
        registers=registers,
    )


def ar_config(weights: Mapping[str, Tensor]) -> ARConfig:
    """Infer an AR model's config from its shapes."""
    width, latent_dim = _shape(weights, "proj_in.weight", 2)
    classes, embedded = _shape(weights, "cls_embedding.weight", 2)
    return ARConfig(
        latent_dim=latent_dim,
        tokens=_shape(weights, "pos_for_diff.weight", 2)[0],
        num_classes=classes - 1,
        class_tokens=embedded // width,
        width=width,
        layers=_count(weights, "layers."),
        heads=width // HEAD_WIDTH,
        head_width=_shape(weights, "head.net.input_proj.weight", 2)[0],
        head_depth=_count(weights, "head.net.res_blocks."),
        head_groups=_count(weights, "head.net.ada_ln_blocks."),
    )
