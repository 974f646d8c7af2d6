"""Sizes of the models as data: the configs of a VAE and of an AR model. Does not import torch.

The models themselves are in `vae`, `ar` and `heads`; named sizes in `presets`.
"""

import math
from dataclasses import dataclass
from typing import Literal

from spherear.models.config import LARGEST, MOST_LAYERS, Config, one_of, require
from spherear.models.heads.table import HEADS, HeadKind
from spherear.sphere.families import FAMILIES

AUTO, NO_CLASS = "auto", "none"


@dataclass(frozen=True)
class VAEConfig(Config):
    """Sizes of a VAE; the defaults are the paper's S-VAE for 256 px."""

    tables = {"bottleneck": FAMILIES}  # noqa: RUF012 (of the class; no field)

    bottleneck: "Literal[*FAMILIES]" = "power_spherical"  # type: ignore[valid-type]
    """Family of latents."""
    latent_dim: int = 16
    """Numbers per token."""
    image_size: int = 256
    """Height and width of an image, in pixels."""
    widths: tuple[int, ...] = (64, 64, 128, 256, 512)
    """Channels after the stem and after each halving of the image, so the patch of a token is 2^(how many - 1) pixels;
    the last is also the transformer's width."""
    encoder_layers: int = 6
    """Transformer layers of the encoder."""
    decoder_layers: int = 12
    """Transformer layers of the decoder."""
    head_width: int = 64
    """Width of an attention head."""
    registers: int = 4
    """Learnt tokens beside those of the image."""
    noise_scale: float = 0.2
    """Of the family fixed_variance."""
    codes: int = 64
    """Size of the codebook, of the family vq."""
    concentration_gain: float = 1.0
    """Of power_spherical and vmf; 1 in the published models, more for short training: in 5,000 steps in colour 5.0 nats
    per token at 1, 5.7 at 20 and 5.8 at 50, as N has (`python -m spherear.study.gain runs/gain.jsonl 1 20 50`)."""
    latent_scale: float = 1.0
    """token = latent_scale * latent. Training sets it for families without a fixed length, to 1 / (standard deviation
    of the latents on the training set)."""
    channels: int = 3
    """3: colour. 1: grey; images still have three channels, all equal."""

    def check(self) -> None:
        one_of("bottleneck", self.bottleneck, FAMILIES)
        require(self.latent_dim >= 2, f"latent_dim is {self.latent_dim}; expected at least 2")
        require(len(self.widths) >= 1, "widths is empty; expected the stem's width and one per halving")
        require(
            all(w >= 8 and w % 4 == 0 and w % min(32, w // 4) == 0 for w in self.widths),
            f"widths is {self.widths}; expected multiples of 4 from 8 that GroupNorm can split",
        )
        require(
            self.image_size >= self.patch and self.image_size % self.patch == 0,
            f"image_size is {self.image_size}; expected a multiple of the patch, {self.patch}",
        )
        require(
            self.head_width % 4 == 0 and self.widths[-1] % self.head_width == 0,
            f"head_width is {self.head_width}; expected a multiple of 4 that divides {self.widths[-1]}",
        )
        require(
            min(self.encoder_layers, self.decoder_layers, self.registers) >= 0,
            f"layers and registers are {self.encoder_layers}, {self.decoder_layers}, {self.registers}; "
            "expected none below 0",
        )
        most = max(self.image_size, self.latent_dim, self.codes, self.registers, *self.widths)
        require(most <= LARGEST, f"a size is {most}; expected at most {LARGEST}")
        layers = max(self.encoder_layers, self.decoder_layers)
        require(layers <= MOST_LAYERS, f"there are {layers} layers; expected at most {MOST_LAYERS}")
        for name in ("noise_scale", "concentration_gain", "latent_scale"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"{name} is {value}; expected a finite number above 0")
        require(self.channels in (1, 3), f"channels is {self.channels}; expected 1 or 3")
        options = [name for name in FAMILIES[self.bottleneck].options if not hasattr(self, name)]
        require(not options, f"{self.bottleneck} has the options {options}; expected some of noise_scale, codes, ...")
        require(self.codes >= 2, f"codes is {self.codes}; expected at least 2")

    @property
    def patch(self) -> int:
        """Side of a token's patch, in pixels."""
        return 2 ** (len(self.widths) - 1)

    @property
    def grid(self) -> int:
        """Tokens along one side of an image."""
        return self.image_size // self.patch

    @property
    def tokens(self) -> int:
        """Tokens per image."""
        return self.grid**2

    @property
    def alphabet(self) -> int:
        """Number of different tokens; 0 if they are continuous."""
        return self.codes if FAMILIES[self.bottleneck].discrete else 0


@dataclass(frozen=True)
class ARConfig(Config):
    """Sizes of an AR model; the defaults are SphereAR-B for 256 px."""

    tables = {"head": HEADS}  # noqa: RUF012 (of the class; no field)

    latent_dim: int = 16
    """Numbers per token, as the VAE's."""
    tokens: int = 256
    """Tokens per image, as the VAE's."""
    num_classes: int = 1000
    """Classes of the data."""
    class_tokens: int = 16
    """Sequence positions per label."""
    width: int = 768
    """Of the transformer."""
    layers: int = 24
    """Of the transformer."""
    heads: int = 12
    """Attention heads of the transformer."""
    head_width: int = 768
    """Width of the head, which draws a token."""
    head_depth: int = 6
    """Blocks of the head."""
    head_groups: int = 2
    """Modulations of the head's blocks; consecutive blocks share one."""
    codes: int = 0
    """Size of the codebook, as the VAE's; 0: continuous tokens."""
    classes: tuple[str, ...] = ()
    """Names of the classes, or none."""
    head: "Literal[AUTO, *HEADS]" = AUTO  # type: ignore[valid-type]
    """What draws a token. auto: velocity for continuous tokens, categorical for those of a codebook. geodesic: a flow
    on the sphere. mean_velocity, geodesic_mean: few evaluations, with guidance as an input."""

    def check(self) -> None:
        for name, value in self.to_dict().items():
            if name in ("classes", "head", "modules"):
                continue
            minimum, most = 0 if name == "codes" else 1, MOST_LAYERS if name in ("layers", "head_depth") else LARGEST
            require(value >= minimum, f"{name} is {value}; expected at least {minimum}")
            require(value <= most, f"{name} is {value}; expected at most {most}")
        require(
            len(self.classes) in (0, self.num_classes) and len(set(self.classes)) == len(self.classes),
            f"there are {len(self.classes)} names of classes; expected {self.num_classes} different ones, or none",
        )
        require(math.isqrt(self.tokens) ** 2 == self.tokens, f"tokens is {self.tokens}; expected a square")
        require(
            self.width % (4 * self.heads) == 0,
            f"width is {self.width}; expected a multiple of 4 x {self.heads} heads",
        )
        require(
            self.head_depth % self.head_groups == 0,
            f"head_depth is {self.head_depth}; expected a multiple of head_groups, {self.head_groups}",
        )

        if self.head != AUTO:
            one_of("head", self.head, HEADS)
        require(
            self.head_kind.discrete == (self.codes > 0),
            f"head is {self.head!r} and codes is {self.codes}; expected a head of codes, and some, or neither",
        )

    @property
    def head_kind(self) -> HeadKind:
        """The row of HEADS."""
        return HEADS[("categorical" if self.codes else "velocity") if self.head == AUTO else self.head]

    def label_of(self, name: str | int) -> int:
        """The label of a class, given by name or number; `#3` is always number 3, `none` the null class.

        Unknown names, and names that are also the number of another class: ValueError.
        """
        if isinstance(name, int):
            return name
        number = int(name.removeprefix("#")) if name.removeprefix("#").isdecimal() else None
        if name == NO_CLASS and name not in self.classes:
            return self.num_classes
        if number is not None and name not in self.classes:
            require(
                number < self.num_classes,
                f"label {number} is out of range; expected 0 to {self.num_classes - 1}, or {NO_CLASS!r} for no class",
            )
        if name.startswith("#") and number is not None:
            return number
        if name in self.classes:
            label = self.classes.index(name)
            other = number is not None and number <= self.num_classes and number != label
            require(not other, f"class {name!r} has number {label}; expected '#{name}' or '#{label}'")
            return label
        if number is None:
            require(bool(self.classes), f"class is {name!r}; expected a number: this model has no names of its classes")
            one_of("class", name, self.classes)
        return number or 0

    def name_of(self, label: int) -> str:
        """The name of a class, or its number where there are no names; the null class is `none`."""
        if label == self.num_classes:
            return NO_CLASS
        return self.classes[label] if self.classes else str(label)
