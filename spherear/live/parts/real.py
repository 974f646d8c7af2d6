"""The real images that a panel compares with, and what judges drawn ones; read when they are first needed."""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from spherear.analysis.sight import RealTokens, real_tokens
from spherear.evaluation.classifier import JudgeNetwork, load_classifier
from spherear.evaluation.judge_inputs import JUDGE_INPUTS
from spherear.live.parts.models import Models
from spherear.training.data.catalog import held_out_spec, load_data

IMAGES = 100


class Reality:
    """Real tokens and the judge of every model of a panel whose data set is known; each is read once."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self._tokens: dict[str, RealTokens] = {}

    def classes(self, name: str) -> tuple[str, ...]:
        """Names of the classes of the data set; empty if it is not known."""
        data = self.models.data(name)
        return _classes(data, self.models.outline(name).vae.image_size) if data else ()

    def tokens(self, name: str) -> RealTokens | None:
        """Lengths of real tokens as the model's VAE encodes them; None if its data set is not known."""
        data = self.models.data(name)
        if data and name not in self._tokens:
            images = _images(data, self.models.outline(name).vae.image_size)
            self._tokens[name] = real_tokens(self.models.pipeline(name).vae, images)
        return self._tokens.get(name)

    def judge(self, name: str) -> JudgeNetwork | None:
        """The judge of the data set; None if there is none."""
        return _judge(self.models.data(name)) if self.judged(name) else None

    def judged(self, name: str) -> bool:
        """Whether there is one."""
        return self.models.data(name) in JUDGE_INPUTS


@cache
def _classes(data: str, size: int) -> tuple[str, ...]:
    return load_data(data, size).classes


@cache
def _images(data: str, size: int) -> Float[Tensor, "n 3 size size"]:
    """Held-out images."""
    rows = load_data(held_out_spec(data), size)
    return rows.batch(torch.arange(min(IMAGES, len(rows))))[0]


@cache
def _judge(data: str) -> JudgeNetwork:
    return load_classifier(data)
