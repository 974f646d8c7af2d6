"""The sampling pipeline, from labels to images: a VAE and the AR model of its tokens."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import index
from pathlib import Path
from typing import Any, SupportsIndex, TypedDict, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.models.ar import SphereAR, check_labels
from spherear.models.config import require
from spherear.models.presets import check_pair
from spherear.models.published_weights import load_parts
from spherear.models.sources import source_of
from spherear.models.vae import VAE
from spherear.sampling.decode import EAGER, Projection, Step, decode, trace
from spherear.sampling.engines import Engine, engine_named
from spherear.sampling.noise import Noise, seeded_noise
from spherear.sampling.placement import AS_WRITTEN, AUTO, Placement, Plan, choose, placement_of
from spherear.sampling.settings import SamplingSettings


class Options(TypedDict):
    """What `Pipeline.sample` passes on to its token loop."""

    noise: Noise | None
    null_labels: Sequence[int | str] | Tensor | None
    project: Projection | None


@dataclass(frozen=True)
class Frame:
    """A partial image. images: (batch, 3, height, width), grey where no token is drawn yet.  step: the newest one."""

    images: Float[Tensor, "batch 3 height width"]
    step: Step


class Pipeline:
    """A VAE and an AR model with the same tokens (otherwise ValueError): images from labels, streamed or at once.

    engine: how decoding is run (see `sampling.engines`); it can be changed at any time.
    """

    def __init__(self, vae: VAE, ar: SphereAR, engine: Engine = EAGER) -> None:
        check_pair(vae.config, ar.config)
        self.vae = vae.eval()
        self.ar = ar.eval()
        self.engine = engine

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        vae: str | Path | None = None,
        revision: str | None = None,
        device: torch.device | str = AUTO,
        dtype: torch.dtype | str = AUTO,
        engine: str = AUTO,
    ) -> "Pipeline":
        """Load a folder that `save_pretrained` or a run wrote, a hub repository 'owner/name', a shipped model by name,
        or the published file of an AR model, with its VAE in the same file or in the file `vae`.

        device, dtype (of the AR model), engine: `auto` is what suits the model's size and the hardware, see
        `sampling.placement.choose`; `placement` says what was chosen. FileNotFoundError if nothing is there; ValueError
        for what cannot be run so, for models that do not fit each other, and for a VAE that was trained again since the
        AR model of its run learnt its tokens.
        """
        return cls.from_plan(Plan.of(source_of(name_or_path, vae, revision), placement_of(device, dtype, engine)))

    @classmethod
    def from_plan(cls, plan: Plan) -> "Pipeline":
        """Read the weights of a plan. Errors as in `from_pretrained`."""
        return cls(*plan.source.load()).place(plan.placement)

    @property
    def placement(self) -> Placement:
        """The device, the AR model's dtype and the engine as they are now."""
        weight = self.ar.proj_in.weight
        return placement_of(weight.device, weight.dtype, self.engine.name)

    def place(self, wish: Placement | None = None) -> "Pipeline":
        """Move both models to the device, the dtype and the engine of `wish`, where `auto` is what suits them best.

        Returns the pipeline. ValueError for what cannot be run so; then nothing has changed.
        """
        stored = str(self.ar.proj_in.weight.dtype).removeprefix("torch.")
        chosen = choose(sum(p.numel() for p in self.ar.parameters()), wish, stored)
        self.engine = engine_named(chosen.engine)
        return self.to(chosen.device, getattr(torch, chosen.dtype))

    def save_pretrained(self, path: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write both models below `path`, with weights in `dtype` or unchanged."""
        self.vae.save_pretrained(Path(path) / "vae", dtype)
        self.ar.save_pretrained(Path(path) / "ar", dtype)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Pipeline":
        """Move both models to `device` and the AR model to `dtype`; returns the pipeline.

        Tokens, velocities and the VAE stay float32: the AR model takes most of the time.
        """
        self.vae.to(device)
        self.ar.to(device, dtype)
        return self

    def sample(
        self,
        labels: Sequence[int | str] | Int[Tensor, " batch"],
        settings: SamplingSettings | None = None,
        seeds: SupportsIndex | Iterable[SupportsIndex] | None = None,
        *,
        noise: Noise | None = None,
        null_labels: Sequence[int | str] | Int[Tensor, " batch"] | None = None,
        project: Projection | None = None,
    ) -> Float[Tensor, "batch 3 height width"]:
        """Images of the labels, about [-1, 1]; image i depends only on label i, seed i and the settings.

        settings: the published ones by default, with the solver that the head takes.

        seeds: one per image, or the first of consecutive ones; 0 by default.
        noise: instead of seeds, a function noise(index, (draws, batch, dim)) of the noise of one token.
        null_labels: one per image, of the unconditional branch; the null class by default.
        project: instead of the VAE's projection, a function of raw tokens, (batch, dim).
        ValueError for labels out of range, a wrong number of seeds or null labels, and seeds beside noise.
        """
        options: Options = {"noise": noise, "null_labels": null_labels, "project": project}
        return self.images(trace(self.steps(labels, settings, seeds, **options)).tokens)

    def stream(
        self,
        labels: Sequence[int | str] | Int[Tensor, " batch"],
        settings: SamplingSettings | None = None,
        seeds: SupportsIndex | Iterable[SupportsIndex] | None = None,
        every: int = 1,
        *,
        noise: Noise | None = None,
        null_labels: Sequence[int | str] | Int[Tensor, " batch"] | None = None,
        project: Projection | None = None,
    ) -> Iterator[Frame]:
        """Like `sample`, with a `Frame` after every `every` tokens; the last frame holds the images of `sample`.

        Arguments and errors as in `sample`, raised when this is called.
        """
        require(every >= 1, f"every is {every}; expected at least 1")
        options: Options = {"noise": noise, "null_labels": null_labels, "project": project}
        return self._frames(self.steps(labels, settings, seeds, **options), every)

    def _frames(self, steps: Iterator[Step], every: int) -> Iterator[Frame]:
        grid, count = self.vae.config.grid, self.vae.config.tokens
        tokens: Tensor | None = None
        for step in steps:
            if tokens is None:
                tokens = step.token.new_zeros(len(step.token), count, step.token.shape[-1])
            tokens[:, step.index] = step.token
            drawn = step.index + 1
            if drawn == count:
                yield Frame(self.images(tokens), step)
            elif drawn % every == 0:
                mask = drawn_mask(drawn, grid, self.vae.config.patch, tokens.device)
                yield Frame(self.images(tokens) * mask, step)

    def steps(
        self,
        labels: Sequence[int | str] | Int[Tensor, " batch"],
        settings: SamplingSettings | None = None,
        seeds: SupportsIndex | Iterable[SupportsIndex] | None = None,
        *,
        noise: Noise | None = None,
        null_labels: Sequence[int | str] | Int[Tensor, " batch"] | None = None,
        project: Projection | None = None,
    ) -> Iterator[Step]:
        """The token loop of `sample` and `stream`: one `Step` per token. Arguments and errors as in `sample`."""
        rows = self._labels("labels", labels)
        nulls = None if null_labels is None else self._labels("null_labels", null_labels)
        require(noise is None or seeds is None, "noise and seeds are both given; expected one of them")
        if noise is None:
            numbers = _seed_numbers(0 if seeds is None else seeds, len(rows))
            require(len(numbers) == len(rows), f"there are {len(numbers)} seeds; expected {len(rows)}, one per label")
            noise = seeded_noise(numbers)
        settings = settings or SamplingSettings().fitting(self.ar.config.head_kind)
        project = project or self.vae.project
        return decode(self.ar, rows, settings, noise, project, nulls, self.engine)

    def _labels(self, name: str, labels: Sequence[int | str] | Tensor) -> Int[Tensor, " batch"]:
        """Classes by name or number, as a tensor."""
        config = self.ar.config
        if not isinstance(labels, Tensor) and any(isinstance(label, str) for label in labels):
            labels = [config.label_of(label) for label in labels]
        rows = torch.as_tensor(labels)
        require(
            rows.ndim == 1 and len(rows) > 0 and not rows.is_floating_point(),
            f"{name} are {labels!r}; expected at least one integer or name of a class",
        )
        check_labels(rows, config.num_classes + 1)
        return rows.long()

    @torch.no_grad()
    def images(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch 3 height width"]:
        """Tokens -> images, about [-1, 1], float32, in the VAE's dtype whatever autocast surrounds it."""
        with torch.autocast(tokens.device.type, enabled=False):
            return self.vae.decode(tokens).float()


def _seed_numbers(seeds: SupportsIndex | Iterable[SupportsIndex], count: int) -> list[int]:
    """Seeds as Python integers, whatever library they come from. Fractions: TypeError."""
    if isinstance(seeds, Iterable) and getattr(seeds, "ndim", True):
        return [index(seed) for seed in seeds]
    first = index(cast(SupportsIndex, seeds))
    return list(range(first, first + count))


def drawn_mask(drawn: int, grid: int, patch: int, device: torch.device) -> Float[Tensor, "height width"]:
    """1 on the patches of the first `drawn` tokens in raster order, 0 on the others."""
    mask = (torch.arange(grid * grid, device=device) < drawn).float().view(grid, grid)
    return mask.repeat_interleave(patch, 0).repeat_interleave(patch, 1)


@cache
def cached_pipeline(name: str) -> Pipeline:
    """A pipeline on the CPU, in float32, run as written. Loaded once per process and shared: do not change it."""
    return Pipeline.from_plan(Plan.of(source_of(name), AS_WRITTEN))


def load_published(
    source: str | Path | Mapping[str, Any],
    *,
    revision: str | None = None,
    device: torch.device | str = "cpu",
) -> VAE | SphereAR | Pipeline:
    """Load a published file as a VAE, an AR model or a pipeline of both; arguments and errors as in `load_parts`.

    The models and the default settings are the published ones. Every known deviation from the published implementation:

    - Noise of the null branch at token 0: the published code draws its own; here both branches share all noise.
    - Times: the published code adds up its steps; here every time of the grid is rounded once. In float32 they differ
      by less than 1e-6.
    - Pixels: the published code decodes them in bfloat16; here the VAE decodes in float32, also where the AR
      model is in bfloat16.
    - Seeds: every image has its own stream of noise, so a seed does not draw the image that it draws there. In
      training, random numbers depend on (seed, step).
    - Rotary tables in the files are recomputed, not read.

    And from the text of the paper, where the published code agrees with us: tokens are drawn with 100 Euler-Maruyama
    steps and one Euler step, not with 100 Euler steps; the models have 204.5, 476.4 and 943.9 million parameters, not
    208, 479 and 943.
    """
    vae, ar = load_parts(source, revision=revision, device=device)
    if vae is not None and ar is not None:
        return Pipeline(vae, ar)
    part = vae or ar
    assert part is not None
    return part
