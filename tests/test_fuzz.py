"""Some of the bad inputs of `python -m tests.fuzz`: all refused clearly, nothing half written."""

import pytest

from tests.fuzz.cases import DOORS, run_case
from tests.fuzz.world import World


@pytest.fixture(autouse=True)
def _as_users_do(as_users_do):
    """The doors as users find them."""


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.close()


def wrong(world, count, seed):
    cases = [(number, *run_case(number, seed, world)) for number in range(count)]
    assert {door for _, door, _ in cases} == set(DOORS)
    return [case for case in cases if case[2]]


def test_bad_inputs_are_refused(world):
    assert wrong(world, 400, seed=1) == []


@pytest.mark.slow
def test_more_bad_inputs_are_refused(world):
    assert wrong(world, 1000, seed=2) == []


def test_a_fault_would_be_seen(world, monkeypatch):
    """A door that takes what is bad, one that fails in passing, and one that leaves a half-written file."""

    def left(rng, world, folder):
        def write():
            (folder / "x.png").write_bytes(b"half")
            raise ValueError("it is bad; expected better")

        return write

    doors = {
        "taken": lambda rng, world, folder: lambda: (_ for _ in ()).throw(RuntimeError("bare")),
        "left": left,
        "unclear": lambda rng, world, folder: lambda: None < 3,
    }
    for name, expected in (("taken", "RuntimeError: bare"), ("left", "left ['x.png']"), ("unclear", "unclear TypeErr")):
        monkeypatch.setattr("tests.fuzz.cases.DOORS", {name: (1, doors[name])})
        assert run_case(0, 0, world)[1].startswith(expected)
