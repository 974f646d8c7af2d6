"""Which real images a set is scored against, and in whose features.

Knows: data sets, their judges, and pipelines.  Does not know: how a score is computed.
"""

import numpy as np
import torch

from spherear.evaluation.classifier import VIEWS, load_classifier
from spherear.evaluation.samples import balanced_labels
from spherear.evaluation.scores import inception_scores, offline_scores, reconstruction_frechet
from spherear.models.config import require
from spherear.sampling.pipeline import Pipeline
from spherear.training.data import load_data
from spherear.training.run import keyed_generator

REAL = 2000  # held-out images at most
BY_SIZE = {16: "digits", 32: "shapes"}


def score_samples(
    images: np.ndarray, pipeline: Pipeline, data: str, reference: str | None, seed: int
) -> dict[str, float]:
    """Scores by Inception where there is a reference, and by the offline judge of `digits` or `shapes`.

    data: one of these, or auto: by the image size, with none for other sizes. Nothing to score by: ValueError.
    """
    scores: dict[str, float] = {}
    if reference is not None:
        scores |= inception_scores(images, reference)
    size = pipeline.vae.config.image_size
    name = BY_SIZE.get(size, "") if data == "auto" else data
    require(name in VIEWS or bool(scores), f"data is {data!r}; expected digits or shapes, or a reference for Inception")
    if name in VIEWS:
        held_out = load_data(f"{name}:test", size)
        real, _ = held_out.batch(torch.arange(min(REAL, len(held_out))))
        classifier = load_classifier(name)
        scores |= offline_scores(images, balanced_labels(len(images), pipeline.ar.config.num_classes), real, classifier)
        generator = keyed_generator(seed, 0, pipeline.vae.quant_proj.weight.device)
        scores["reconstruction_frechet"] = reconstruction_frechet(pipeline.vae, real, classifier, generator)
    return scores
