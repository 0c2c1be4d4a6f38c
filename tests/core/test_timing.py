"""Timings, their summary for JSON and their table."""

from joytag.core.timing import Comparison, Timings, side_by_side, table

COMPARISON = Comparison("work", "the plain way", 10, "images", Timings([2.0, 1.0, 2.5], [4.0, 4.0, 2.5]))


def test_a_summary_holds_rates_and_the_ratios_of_rounds():
    summary = COMPARISON.summary()
    assert summary["unit"] == "images/s"
    assert summary["ours_rate"] == {"median": 5.0, "least": 4.0, "most": 10.0}
    assert summary["reference_rate"] == {"median": 2.5, "least": 2.5, "most": 4.0}
    assert summary["ratio"] == {"median": 2.0, "least": 1.0, "most": 4.0}
    assert str(COMPARISON.timings) == "2.00 (median; 1.00 to 4.00)"


def test_a_table_has_a_line_for_each_comparison():
    head, line = table([COMPARISON]).splitlines()
    assert head.split()[:2] == ["work", "ours"]
    assert "5 (4 to 10) images/s" in line
    assert "2.00 (1.00 to 4.00)" in line
    assert line.endswith("the plain way")


def test_both_run_equally_often_after_one_warm_up_round():
    calls = []
    timings = side_by_side(lambda: calls.append("ours"), lambda: calls.append("reference"), 2)
    assert calls == ["reference", "ours"] * 3
    assert len(timings.ours) == len(timings.reference) == 2
