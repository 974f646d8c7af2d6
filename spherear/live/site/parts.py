"""What the static page runs: five functions of a model, as modules of tensors alone, that `graphs` exports to ONNX.

start: labels (rows,) -> condition (rows, width), cache (class tokens, ...).     `SphereAR.start`
step: token (rows, dim), cache (past, ...) -> condition, cache (1, ...).         `SphereAR.step`
head: x (rows, dim), t (1,), condition -> velocity (rows, dim).                  `VelocityHead.velocity`
decoder: latents (images, tokens, dim) -> images (images, 3, size, size).        `VAE.decode`
judge: images (images, 3, size, size) -> logits (images, classes).               `Classifier`

A condition is already embedded for the head. A cache has the shape (positions, layers, 2, rows, heads, head width), so
that new positions are appended at its end. Latents are tokens divided by `VAEConfig.latent_scale`.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spherear.evaluation.classifier import Classifier, load_classifier
from spherear.models.ar import SphereAR
from spherear.models.config import require
from spherear.models.heads.velocity import VelocityHead
from spherear.models.layers import KVCache, Update
from spherear.models.vae import VAE
from spherear.sampling.pipeline import Pipeline, cached_pipeline
from spherear.sphere.bottlenecks import Bottleneck

Cache = Float[Tensor, "positions layers 2 rows heads head_width"]
Newest = Float[Tensor, "1 layers 2 rows heads head_width"]
ROWS = 6  # of the examples that are traced; any other number runs


class TracedCache(KVCache):
    """A KV cache that is an argument and a result of a graph, where `KVCache` is written in place.

    past: the positions that are filled, or None.  written: the new ones, after the model has run.
    """

    def __init__(self, layers: int, past: Cache | None = None) -> None:
        self.layers, self.past = layers, past
        self.filled = 0 if past is None else past.shape[0]
        self._written: list[Tensor] = []

    @property
    def span(self) -> int:
        """All positions are read."""
        return self.filled

    def reserve(self, count: int) -> Int[Tensor, " count"]:
        """The positions of the next `count` tokens."""
        return torch.arange(count) + self.filled

    def bias(self, index: Int[Tensor, " new"], span: int) -> Tensor:
        """0 for a position itself and earlier ones, otherwise -inf. One new position attends to all."""
        count = index.shape[0]
        if self.past is not None:
            return torch.zeros(count, self.past.shape[0] + count)
        return torch.full((count, count), -math.inf).triu(1)

    def updates(self, index: Int[Tensor, " new"], span: int) -> list[Update]:
        """One function per layer: it keeps the new keys and values, and returns all."""
        return [lambda keys, values, layer=layer: self._read(layer, keys, values) for layer in range(self.layers)]  # type: ignore[misc]

    def _read(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self._written.append(torch.stack((keys, values)))
        if self.past is None:
            return keys, values
        past = self.past[:, layer].permute(1, 2, 3, 0, 4)  # (2, rows, heads, positions, head width)
        return torch.cat((past[0], keys), dim=2), torch.cat((past[1], values), dim=2)

    @property
    def written(self) -> Cache:
        """The new positions of all layers."""
        return torch.stack(self._written).permute(4, 0, 1, 2, 3, 5)


class Start(nn.Module):
    """Labels -> the embedded condition of the first token, and the cache of the class tokens."""

    def __init__(self, ar: SphereAR) -> None:
        super().__init__()
        self.ar = ar

    def forward(self, labels: Int[Tensor, " rows"]) -> tuple[Float[Tensor, "rows width"], Cache]:
        cache = TracedCache(self.ar.config.layers)
        condition = _velocity_head(self.ar).embed_condition(self.ar.start(labels, cache))
        return condition, cache.written


class Step(nn.Module):
    """The newest token and the cache -> the embedded condition of the next one, and the new position of the cache."""

    def __init__(self, ar: SphereAR) -> None:
        super().__init__()
        self.ar = ar

    def forward(self, token: Float[Tensor, "rows dim"], past: Cache) -> tuple[Float[Tensor, "rows width"], Newest]:
        cache = TracedCache(self.ar.config.layers, past)
        condition = _velocity_head(self.ar).embed_condition(self.ar.step(token, cache))
        return condition, cache.written


class Head(nn.Module):
    """The velocity at x, at one time for all rows, given embedded conditions."""

    def __init__(self, ar: SphereAR) -> None:
        super().__init__()
        self.ar = ar

    def forward(
        self, x: Float[Tensor, "rows dim"], t: Float[Tensor, " 1"], condition: Float[Tensor, "rows width"]
    ) -> Float[Tensor, "rows dim"]:
        head = _velocity_head(self.ar)
        return head.velocity(x, head.embed_time(t), condition)


class Decoder(nn.Module):
    """Latents -> images. ValueError for a bottleneck that changes latents before they are decoded."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        same = type(vae.bottleneck).decoder_input is Bottleneck.decoder_input
        require(same, f"the bottleneck is {vae.bottleneck.name!r}; expected one that hands latents on as they are")
        self.vae = vae

    def forward(self, latents: Float[Tensor, "images tokens dim"]) -> Float[Tensor, "images 3 size size"]:
        return self.vae.decoder(self.vae.post_quant_proj(latents))


class Judge(nn.Module):
    """Images -> logits."""

    def __init__(self, judge: Classifier) -> None:
        super().__init__()
        self.judge = judge

    def forward(self, images: Float[Tensor, "images 3 size size"]) -> Float[Tensor, "images classes"]:
        return self.judge(images)


def _velocity_head(ar: SphereAR) -> VelocityHead:
    require(
        type(ar.head) is VelocityHead,
        f"the head is {ar.config.head_kind.title!r}; expected a velocity, as the page draws",
    )
    assert isinstance(ar.head, VelocityHead)
    return ar.head


@dataclass(frozen=True)
class Part:
    """A module with an example of its inputs. dynamic: by input, the names of the axes of any length.

    file: whose weights it has.
    """

    module: nn.Module
    example: tuple[Tensor, ...]
    dynamic: tuple[dict[int, str], ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    file: str = "model"


@torch.no_grad()
def parts_of(preset: str, family: str) -> dict[str, Part]:
    """The five parts of a shipped model and of its data set's judge. Errors as in `Decoder`."""
    return model_parts(cached_pipeline(f"{preset}-{family}")) | {"judge": judge_part(preset)}


@torch.no_grad()
def model_parts(pipeline: Pipeline) -> dict[str, Part]:
    """The four parts of a model."""
    ar, config = pipeline.ar, pipeline.ar.config
    labels = torch.arange(ROWS) % config.num_classes
    token = torch.linspace(-1, 1, ROWS * config.latent_dim).view(ROWS, -1)
    latents = token[:, None].expand(-1, config.tokens, -1).contiguous()
    condition, cache = Start(ar)(labels)
    rows, state, images = {0: "rows"}, ("condition", "cache"), {0: "images"}
    return {
        "start": Part(Start(ar), (labels,), (rows,), ("labels",), state),
        "step": Part(Step(ar), (token, cache), (rows, {0: "past", 3: "rows"}), ("token", "past"), state),
        "head": Part(
            Head(ar), (token, torch.tensor([0.5]), condition), (rows, {}, rows), ("x", "t", "condition"), ("velocity",)
        ),
        "decoder": Part(Decoder(pipeline.vae), (latents,), (images,), ("latents",), ("images",)),
    }  # fmt: skip


def judge_part(data: str) -> Part:
    """The judge of a data set, at the size of its images."""
    judge = load_classifier(data)
    size = judge.view.size
    example = torch.linspace(-1, 1, ROWS * 3 * size * size).view(ROWS, 3, size, size)
    return Part(Judge(judge), (example,), ({0: "images"},), ("images",), ("logits",), "judge")
