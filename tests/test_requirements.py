"""Tests that lack a tool are skipped on a developer's machine and fail in CI."""

import pytest
from requirements import require


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_missing_tools_skip_a_test_but_fail_it_in_ci(monkeypatch, ci, outcome):
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="needs Chromium"):
        require(False, "Chromium")


@pytest.mark.parametrize("ci", ["", "true"])
def test_available_tools_change_nothing(monkeypatch, ci):
    monkeypatch.setenv("CI", ci)
    require(True, "Chromium")
