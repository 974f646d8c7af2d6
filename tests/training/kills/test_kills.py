"""A few rounds of `python -m tests.training.kills`, one for each signal."""

import os

import pytest

from tests.training.kills.__main__ import SIGNALS, Round, good, play, rounds


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_was_stopped_is_the_run_that_never_was(tmp_path, processes):
    from tests.training.kills.__main__ import finish

    finish(tmp_path / "whole", processes, 0)
    for number, name in enumerate(SIGNALS if processes == 1 else SIGNALS[:1]):
        plan = Round(name, processes, workers=2, step=7 + number, delay=0.3 * number)
        row = play(plan, tmp_path / "whole", tmp_path / name)
        assert good(row), row


def test_rounds_cover_all_combinations_at_random_moments():
    found = rounds(50, seed=0)
    assert {(r.signal, r.processes, r.workers) for r in found} == {
        (s, p, w) for s in SIGNALS for p in (1, 2) for w in (0, 2, 8)
    }
    assert len({(r.step, r.delay) for r in found}) == 50
    assert found == rounds(50, seed=0)
