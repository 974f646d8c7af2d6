"""How an image is drawn: solvers, settings, the token loop and the pipeline around it."""

from spherear.sampling.decode import Step, decode
from spherear.sampling.pipeline import Frame, Pipeline, load_published
from spherear.sampling.pixels import save_png, tile, to_uint8
from spherear.sampling.settings import SCHEDULES, SamplingSettings, seeded_noise
from spherear.sampling.solvers import SOLVERS, euler, euler_maruyama, heun

__all__ = [
    "SCHEDULES",
    "SOLVERS",
    "Frame",
    "Pipeline",
    "SamplingSettings",
    "Step",
    "decode",
    "euler",
    "euler_maruyama",
    "heun",
    "load_published",
    "save_png",
    "seeded_noise",
    "tile",
    "to_uint8",
]
