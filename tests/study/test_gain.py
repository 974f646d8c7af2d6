"""The study of the concentration's gain: what is trained, measured, resumed and told."""

from dataclasses import replace

import pytest

from spherear.study import gain as measuring
from spherear.study.design import GRIDS
from spherear.study.gain import METRICS, SEEDS, compare_gains, gaussian_of, main, shipped_gains, table, values_of
from spherear.study.records import read_measurements, write_records

TINY = replace(GRIDS["length64"], preset="digits", vae_steps=20, batch_size=8)


@pytest.mark.slow
def test_gains_are_trained_measured_and_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measuring, "SEEDS", (0,))
    gains = low, high = 1.0, 30.0
    first, second = blocks = list(compare_gains(gains, tmp_path, "test", set(), TINY))
    assert [block[0].gain for block in blocks] == [low, high]
    assert [r.metric for r in first] == list(METRICS)
    assert {(r.seed, r.steps, r.batch_size) for r in first} == {(0, 20, 8)}
    values = {block[0].gain: {r.metric: r.value for r in block} for block in blocks}
    assert values[high]["concentration"] > values[low]["concentration"] > 1
    assert values[high]["kl"] > values[low]["kl"] > 0
    (again,) = compare_gains(gains, tmp_path, "test", {(low, 0)}, TINY)
    assert again == second
    out = tmp_path / "gain.jsonl"
    write_records(out, [*first, *second])
    main(str(out), "1", "30")
    told = capsys.readouterr().out
    assert "| 30 |" in told
    assert "| N-02 |" in told
    assert len(read_measurements(out, measuring.GainRecord)) == 2 * len(METRICS)
    with pytest.raises(ValueError, match="there are no gains; expected some"):
        main(str(out))


def test_a_larger_gain_is_farther_in_as_many_steps():
    """As the docstring of `concentration_gain` says: in every seed, and near N from 20 on."""
    records = shipped_gains()
    kl, error = values_of(records, "kl"), values_of(records, "reconstruction_l1")
    assert list(kl) == [1.0, 20.0, 50.0]
    assert {tuple(by_seed) for by_seed in kl.values()} == {SEEDS}
    assert max(kl[1.0].values()) < min(kl[20.0].values())
    assert min(error[1.0].values()) > max(error[20.0].values())
    assert table(records, gaussian_of()).count("\n") == 2 + 3 + 1
