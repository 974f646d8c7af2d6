"""The models that a panel offers: by name, whatever they were given as. Weights are read when first drawn with.

Panels in one process share the weights of equal models for as long as one of them exists.
"""

import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from spherear.models.config import require
from spherear.models.heads.table import HEADS, HeadKind
from spherear.models.pretrained import shipped_families, shipped_name
from spherear.models.sources import Outline, Source, heads_beside, source_of
from spherear.registry import load_parts
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.placement import AS_WRITTEN, AUTO, SMALL, Placement, Plan, describe
from spherear.sphere.families import family_label
from spherear.training.recipes import recipes

PRESETS = "shapes", "digits"
"""Presets with shipped families for the panels, the default one first."""
Model = str | Path | Pipeline
"""A family that ships, a shipped name, a folder, a hub repository, a published file, or a pipeline."""
_LOCK = threading.RLock()
_opened: "weakref.WeakValueDictionary[tuple[Source, Placement], Pipeline]" = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class Offered:
    """A model of a panel. name: as in the panel's pictures.  plan: None for a pipeline that was given."""

    name: str
    title: str
    outline: Outline
    sentence: str
    plan: Plan | None


class Models:
    """A first model, and what can stand beside it: given ones, and the shipped families of `preset` that fit it.

    Each with the heads that were distilled from it and lie beside it (see `spherear distill`), as models of their own.
    preset: auto is the one that suits the first model, see `fitting_preset`.
    place: how they are run; a pipeline that is given is used as it is.
    watched: whether people wait for drawings of several models: small ones are then run by the engine numpy, where the
    placement leaves that open, and those of one shape drawn as one (see `sampling.small`).
    Only configs are read here: FileNotFoundError or ValueError for a model that is not there or cannot be run so,
    TypeError for what is no model.
    """

    def __init__(
        self, first: Model, place: Placement, preset: str, vae: str | Path | None = None, *, watched: bool = False
    ) -> None:
        load_parts()
        self.watched = watched
        self.place, self.preset = place, fitting_preset(first, vae) if preset == "auto" else preset
        self.offered: dict[str, Offered] = {}
        self.pipelines: dict[str, Pipeline] = {}
        self.first = self.add(first, vae)
        for family in shipped_families(self.preset):
            offered = self._offer(shipped_name(family, self.preset), None)
            if _misfit(offered.outline, self.outline(self.first)) is None and offered.name not in self.offered:
                self.offered[offered.name] = offered
                self._offer_heads(offered)

    @property
    def ships(self) -> bool:
        """Whether the first model is a shipped family of the preset."""
        return self.first in [shipped_name(family, self.preset) for family in shipped_families(self.preset)]

    @property
    def light(self) -> bool:
        """Whether the first model draws sixteen images at once in an instant: it is small, or not on the CPU."""
        device = self._device(self.first)
        return self.outline(self.first).parameters()[1] <= SMALL or not device.startswith("cpu")

    @property
    def options(self) -> list[tuple[str, str]]:
        """(title, name) of every model: the shipped families in their order, then the given ones."""
        shipped = [shipped_name(family, self.preset) for family in shipped_families(self.preset)]
        names = [name for name in shipped if name in self.offered]
        names += [name for name in self.offered if name not in names]
        return [(self.offered[name].title, name) for name in names]

    def add(self, model: Model, vae: str | Path | None = None) -> str:
        """Offer a model; returns its name. It must have the classes and tokens of the first one (ValueError)."""
        offered = self._given(model) if isinstance(model, Pipeline) else self._offer(model, vae)
        if offered.name in self.offered:
            return offered.name
        if self.offered:
            misfit = _misfit(offered.outline, self.outline(self.first))
            require(misfit is None, f"{offered.name} has {misfit}, as {self.first}, to stand beside it")
        self.offered[offered.name] = offered
        if isinstance(model, Pipeline):
            self.pipelines[offered.name] = model
        else:
            self._offer_heads(offered)
        return offered.name

    def _offer_heads(self, parent: Offered) -> None:
        """Offer the models that were distilled from one and lie beside it: the same transformer with another head."""
        for folder, head in heads_beside(parent.name).items():
            offered = self._offer(folder, None)
            self.offered[folder] = replace(offered, title=f"{parent.title}, head: {HEADS[head].title}")

    def outline(self, name: str) -> Outline:
        """The configs of a model."""
        return self.offered[name].outline

    def head(self, name: str) -> HeadKind:
        """The kind of head of a model."""
        return self.outline(name).ar.head_kind

    def title(self, name: str) -> str:
        """What people read above its images."""
        return self.offered[name].title

    def data(self, name: str) -> str:
        """The data set that a shipped model of the preset learnt; empty for any other model."""
        shipped = [shipped_name(family, self.preset) for family in shipped_families(self.preset)]
        return recipes(self.preset).data if name in shipped else ""

    def sentences(self, names: tuple[str, ...]) -> str:
        """One line per model: its size, its memory, and how it is run."""
        return "<br>".join(self.offered[name].sentence for name in names)

    def is_open(self, name: str) -> bool:
        """Whether the weights are in memory."""
        return name in self.pipelines

    def pipeline(self, name: str) -> Pipeline:
        """The model, read when it is first asked for. Errors as in `Pipeline.from_pretrained`."""
        if name not in self.pipelines:
            plan = self.offered[name].plan
            assert plan is not None
            with _LOCK:
                key = plan.source, plan.placement
                pipeline = _opened.get(key) or Pipeline.from_plan(plan)
                _opened[key] = self.pipelines[name] = pipeline
        return self.pipelines[name]

    def code(self, name: str) -> str:
        """A line of Python that makes `pipeline`; for a pipeline that was given, a comment."""
        plan = self.offered[name].plan
        if plan is None:
            return f"# pipeline: as it was given to the panel ({name})"
        arguments = [repr(plan.source.name), *([f"vae={plan.source.vae!r}"] if plan.source.vae else [])]
        numpy = {"engine": "numpy"} if plan.placement.engine == "numpy" else {}
        arguments += [f"{key}={value!r}" for key, value in (self.place.to_dict() | numpy).items() if value != AUTO]
        return f"pipeline = Pipeline.from_pretrained({', '.join(arguments)})"

    def _offer(self, model: str | Path, vae: str | Path | None) -> Offered:
        if not isinstance(model, str | Path):
            raise TypeError(f"the model is {model!r}; expected a name, a path or a Pipeline")
        source = source_of(shipped_name(str(model), self.preset), vae)
        plan = self._plan(source)
        title = family_label(source.name.removeprefix(f"{self.preset}-"))
        short = Path(title).name if Path(title).is_absolute() else title
        taken = short in [other.title for other in self.offered.values() if other.name != str(source)]
        title = title if taken else short
        return Offered(str(source), title, plan.outline, plan.sentence, plan)

    def _plan(self, source: Source) -> Plan:
        plan = Plan.of(source, self.place)
        small = plan.outline.parameters()[1] <= SMALL
        if self.watched and small and self.place.engine == AUTO and plan.placement == AS_WRITTEN:
            return replace(plan, placement=replace(AS_WRITTEN, engine="numpy"))
        return plan

    def _given(self, pipeline: Pipeline) -> Offered:
        require(
            self.place == Placement(),
            f"a Pipeline is used as it is, and {self.place.sentence} is given; expected device, dtype, engine 'auto'",
        )
        name = f"pipeline {len(self.pipelines) + 1}"
        title = f"{family_label(pipeline.vae.config.bottleneck)} ({name})"
        outline = Outline(pipeline.vae.config, pipeline.ar.config)
        sentence = describe(name, outline, pipeline.placement)
        return Offered(name, title, outline, sentence, None)

    def _device(self, name: str) -> str:
        plan = self.offered[name].plan
        return plan.placement.device if plan is not None else self.pipelines[name].placement.device


def named_model(default: str, family: Model, ar: str | Path | None) -> Model:
    """The model of a panel's arguments: `ar` where it is given. ValueError for both."""
    both = ar is not None and family != default
    require(not both, f"family and ar are both given ({family!r}, {str(ar)!r}); expected one")
    return family if ar is None else ar


def fitting_preset(model: Model, vae: str | Path | None = None) -> str:
    """The preset whose shipped families stand beside a model: it is one of them, or has their classes and tokens."""
    for preset in PRESETS:
        if model in shipped_families(preset) or str(model).startswith(f"{preset}-"):
            return preset
    if isinstance(model, str | Path | Pipeline):
        outline = _outline(model, vae)
        for preset in PRESETS:
            if _misfit(_outline(f"{preset}-{shipped_families(preset)[0]}", None), outline) is None:
                return preset
    return PRESETS[0]


def _outline(model: Model, vae: str | Path | None) -> Outline:
    if isinstance(model, Pipeline):
        return Outline(model.vae.config, model.ar.config)
    return Plan.of(source_of(str(model), vae), Placement()).outline


def _misfit(outline: Outline, other: Outline) -> str | None:
    """How the classes or tokens of a model differ from another's; None if they do not."""
    for word, found, wanted in _counts(outline, other):
        if found != wanted:
            return f"{found} {word}; expected {wanted}"
    return None


def _counts(outline: Outline, other: Outline) -> Iterator[tuple[str, int, int]]:
    yield "classes", outline.ar.num_classes, other.ar.num_classes
    yield "tokens", outline.ar.tokens, other.ar.tokens
