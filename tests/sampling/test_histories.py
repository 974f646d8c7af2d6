"""Random histories of an engine: whatever happened before, a decode gives what the plain reference gives.

    python -m tests.sampling.test_histories 1000        # or 500 500: seeds from 500

runs as many histories and prints what was in them; the suite runs some.
"""

import copy
import math
import random
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

import pytest
import torch

from spherear import SamplingSettings, SphereAR, decode, seeded_noise
from spherear.sampling import packed as packing
from spherear.sampling.engines import engine_named
from spherear.sampling.reference import published_solve, reference_decode
from spherear.sphere.geometry import project
from tests.conftest import TINY_AR, randomise
from tests.sampling.replayed import Replayed
from tests.sampling.test_engines import rounded

SMALL = replace(TINY_AR, tokens=4, width=16, head_width=16)
ENGINES = {
    "packed": lambda: engine_named("packed"),
    "replayed": Replayed,
    "eager": lambda: engine_named("eager"),
    **({"half": lambda: engine_named("half")} if packing.can_halve() else {}),
}


def on_sphere(z):
    return project(z, 2.0)


def by_its_solver(velocity, noise, settings):
    return settings.method(velocity, noise, settings.times())


class History:
    """One engine and two models; what happens to them is drawn from a seed."""

    def __init__(self, seed):
        self.random, self.seen = random.Random(seed), Counter()
        self.name = self.random.choice(sorted(ENGINES))
        self.engine = ENGINES[self.name]()
        self.models = [randomise(SphereAR(SMALL), seed=s) for s in range(2)]
        self.left = []

    def decode(self, ar, settings, batch, first, projection=on_sphere):
        labels = torch.arange(first, first + batch) % 10
        return decode(ar, labels, settings, seeded_noise(range(batch)), projection, engine=self.engine)

    def request(self):
        r = self.random
        settings = SamplingSettings(
            guidance_scale=r.choice([0.5, 2.0, 3.0]), temperature=r.choice([1.0, 0.5]), steps=r.choice([1, 2]),
            solver=r.choice(["euler_maruyama", "euler", "heun"]), last_step=r.choice([0.04, 0.3]),
        )  # fmt: skip
        return r.choice(self.models), settings, r.choice([1, 2, 3]), r.randrange(10)

    def check(self, surroundings=None):
        """One decode against the reference, in float64 arithmetic where the model has it."""
        ar, settings, batch, first = self.request()
        with surroundings or torch.inference_mode(False):
            found = torch.stack([step.token for step in self.decode(ar, settings, batch, first)], dim=1)
        solve = published_solve if settings.solver == "euler_maruyama" else by_its_solver
        labels, noise = torch.arange(first, first + batch) % 10, seeded_noise(range(batch))
        same = rounded(ar) if self.name == "half" else copy.deepcopy(ar)
        expected = reference_decode(same, labels, settings, noise, 2.0, solve=solve)
        torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)

    def nan(self):
        *_, last = self.decode(*self.request(), projection=lambda z: z * math.nan)
        assert last.raw.isnan().all()

    def leave(self):
        list(islice(self.decode(*self.request()), 2))

    def suspend(self):
        steps = self.decode(*self.request())
        next(steps)
        self.left.append(steps)

    def change(self):
        ar = self.random.choice(self.models)
        weight = self.random.choice([p for p in ar.parameters() if p.ndim == 2])
        with torch.no_grad():
            target = weight.data if self.random.random() < 0.5 else weight
            target.mul_(self.random.choice([0.9, 1.1]))

    def reallocate(self):
        self.random.choice(self.models).double().float()

    def replace_model(self):
        self.models[self.random.randrange(2)] = randomise(SphereAR(SMALL), seed=self.random.randrange(100))

    def half(self):
        """A decode in half precision, or a refusal; then back."""
        ar = self.random.choice(self.models)
        ar.bfloat16()
        try:
            next(self.decode(ar, SamplingSettings(steps=1), 1, 0))
        except ValueError:
            assert self.name == "half" or not packing.can_pack_bfloat16()
        ar.float()

    def autocast(self):
        self.check(torch.autocast("cpu", torch.bfloat16))

    def inference(self):
        self.check(torch.inference_mode())

    def threads(self):
        """Two decodes of one model at once, and a third from it afterwards."""
        ar, settings, batch, first = self.request()

        def draw(_):
            return torch.stack([step.token for step in self.decode(ar, settings, batch, first)])

        if self.name == "replayed":  # the stand-in for graphs shares the model's Python objects between threads
            return
        with ThreadPoolExecutor(2) as pool:
            a, b = pool.map(draw, range(2))
        torch.testing.assert_close(a, b, atol=0, rtol=0)
        self.check()

    def run(self, events):
        kinds = (self.check, self.check, self.nan, self.leave, self.suspend, self.change, self.reallocate,
                 self.replace_model, self.half, self.autocast, self.inference, self.threads)  # fmt: skip
        for _ in range(events):
            event = self.random.choice(kinds)
            self.seen[event.__name__] += 1
            event()
        self.check()
        return self.seen


@pytest.mark.parametrize("seed", range(6))
def test_a_history_leaves_no_trace(seed, monkeypatch):
    monkeypatch.setattr(packing, "MIN_NUMBERS", 1)
    assert sum(History(seed).run(5).values()) == 5  # each compared with the reference, or checked, as it came


@pytest.mark.slow
@pytest.mark.parametrize("tens", range(10))
def test_a_hundred_histories_leave_no_trace(tens, monkeypatch):
    monkeypatch.setattr(packing, "MIN_NUMBERS", 1)
    for seed in range(1000 + 10 * tens, 1010 + 10 * tens):
        assert sum(History(seed).run(8).values()) == 8


def main(count, first=0):
    packing.MIN_NUMBERS, seen, engines = 1, Counter(), Counter()
    for seed in range(first, first + count):
        history = History(seed)
        try:
            seen.update(history.run(8))
        except BaseException:
            print("seed", seed, history.name, dict(history.seen))
            raise
        engines[history.name] += 1
    print(f"{count} histories equal the reference: {dict(engines)}; events: {dict(seen)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
