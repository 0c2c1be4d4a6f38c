"""The cost of a run, computed from its settings and measured rates."""

import pytest

from joytag.training import dry_run

RATES = dry_run.Rates("2026-11-23", "it", workers=2, loading={224: 100.0, 448: 50.0}, flop={224: 1e9})


@pytest.mark.parametrize(
    ("samples", "size", "flop", "workers", "expected"),
    [
        (360_000, 224, 10_000_000, 0, "2.0 h: steps 1.0 h, and loading 1.0 h in the same process"),
        (360_000, 224, 20_000_000, 1, "2.0 h, bound by the steps: steps 2.0 h, loading 1.0 h"),
        (360_000, 448, 10_000_000, 1, "2.0 h, bound by loading; 2 workers would do: steps 1.0 h, loading 2.0 h"),
        (360_000, 112, 40_000_000, 1, "4.0 h, bound by the steps: steps 4.0 h, loading 15.0 min"),
    ],
)
def test_the_time_of_a_stage_names_its_bottleneck(samples, size, flop, workers, expected):
    assert dry_run.stage_time(samples, size, flop, workers, RATES) == expected


def test_rates_survive_writing_and_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "RATES", tmp_path / "rates.json")
    assert dry_run.read_rates() is None
    dry_run.write_rates(RATES)
    assert dry_run.read_rates() == RATES
    for damaged in ("", "[]", "{}", '{"loading": 1}'):
        dry_run.RATES.write_text(damaged)
        with pytest.raises(ValueError, match=r"rates\.json: cannot be read"):
            dry_run.read_rates()
