"""The report of a sweep: its verdict, files and page, of a half-finished sweep too."""

import json
import re

import pyarrow.csv
import pytest
import yaml
from browser import BROKEN_NAMES, CUT_OFF
from sweeps import finish, finish_all, open_sweep, trials

from joytag.core import jsonl, settings
from joytag.sweeps import report, results
from joytag.sweeps.ledger import Ledger
from joytag.sweeps.search import plan
from joytag.training.config import RunSettings


@pytest.fixture
def quick(monkeypatch) -> None:
    """Leave out the importance of axes, which takes seconds."""
    monkeypatch.setattr(report, "importance", lambda *arguments: {})


@pytest.fixture
def sweep(tmp_path, run_values):
    return open_sweep(tmp_path / "sweep", run_values, confirm={"best": 1, "seeds": 3})


def test_files_contain_all_findings(sweep):
    points, ledger = finish_all(sweep)
    sentence = report.write(sweep, points, ledger)
    content = json.loads((sweep.output / "sweep.json").read_text())
    assert content["verdict"] == sentence
    assert [row["point"]["changes"] for row in content["points"][:1]] == [{}]
    assert content["points"][1]["point"]["config"]["optimizer"]["lr"] == 0.1
    assert content["points"][1]["confirmed"]["difference"]["low"] > 0
    assert content["comparisons"] == 5
    table = pyarrow.csv.read_csv(sweep.output / "sweep.csv")
    assert table.num_rows == len(trials(points)) == 6 * 3 + 2 * 3
    assert {"trial", "seed", "state", "macro_f1", "flop", "optimizer.lr", "stem", "directory"} <= {*table.column_names}
    assert set(content["importance"]) == {"optimizer.lr", "stem", "seed"}
    assert sum(share["value"] for share in content["importance"].values()) == pytest.approx(1)
    assert content["importance"]["optimizer.lr"]["value"] > content["importance"]["seed"]["value"]


@pytest.mark.usefixtures("quick")
def test_the_verdict_names_the_confirmed_winner_and_its_optimism(sweep):
    sentence = report.write(sweep, *finish_all(sweep))
    assert sentence.startswith("optimizer.lr=0.1 beats the base by 0.")
    assert "on fresh seeds and images" in sentence
    assert "an optimism of" in sentence


@pytest.mark.usefixtures("quick")
def test_no_winner_is_a_verdict(sweep):
    sentence = report.write(sweep, *finish_all(sweep, gain=0))
    assert sentence.startswith(report.NO_WINNER.capitalize())
    assert yaml.safe_load((sweep.output / "best.yaml").read_text()) == {"base": "../base.yaml"}


@pytest.mark.usefixtures("quick")
def test_the_best_config_is_the_smallest_over_the_base(sweep):
    points, ledger = finish_all(sweep)
    report.write(sweep, points, ledger)
    path = sweep.output / "best.yaml"
    assert yaml.safe_load(path.read_text()) == {"base": "../base.yaml", "optimizer": {"lr": 0.1}}
    winner = results.read(sweep, points, ledger).winner
    loaded = settings.load(RunSettings, path)
    assert winner
    expected = winner.point.config
    assert loaded.model_copy(update={"output": expected.output, "seed": expected.seed}) == expected


@pytest.mark.usefixtures("quick")
def test_settings_within_lists_are_written_as_whole_lists(tmp_path, run_values):
    sweep = open_sweep(
        tmp_path / "sweep", run_values, axes={"stages.0.image_size": [4, 8], "optimizer.lr": [0.1, 0.01]}
    )
    report.write(sweep, *finish_all(sweep))
    values = yaml.safe_load((sweep.output / "best.yaml").read_text())
    assert values.keys() <= {"base", "stages", "optimizer"}
    assert settings.load(RunSettings, sweep.output / "best.yaml").optimizer.lr == 0.1


@pytest.mark.usefixtures("quick")
def test_a_best_value_at_an_end_of_its_axis_is_warned_of(tmp_path, run_values):
    sweep = open_sweep(tmp_path / "sweep", run_values)
    found = results.read(sweep, *finish_all(sweep))
    assert [warning.split(",")[0] for warning in report.at_the_end(found, sweep)] == ["The best value of optimizer.lr"]
    inside = open_sweep(tmp_path / "inside", run_values, axes={"optimizer.lr": [0.001, 0.1, 0.05], "stem": {"a": {}}})
    warned = report.at_the_end(results.read(inside, *finish_all(inside)), inside)
    assert [warning.split(",")[0] for warning in warned] == ["The best value of optimizer.lr"]


@pytest.mark.usefixtures("quick")
def test_one_seed_shows_no_noise(tmp_path, run_values):
    sweep = open_sweep(tmp_path / "sweep", run_values, seeds=1)
    assert "nothing can be said" in report.write(sweep, *finish_all(sweep))


@pytest.mark.usefixtures("quick")
def test_a_point_measured_on_other_images_is_named(sweep):
    points, ledger = finish_all(sweep)
    for trial in points[1].trials:
        path = trial.results / "predictions/provenance.json"
        path.write_text(path.read_text().replace("of these images", "of others"))
    report.write(sweep, points, ledger)
    warnings = json.loads((sweep.output / "sweep.json").read_text(encoding="utf-8"))["warnings"]
    assert f"{points[1].name} has other validation images than the base, so the two are not compared." in warnings


@pytest.mark.usefixtures("quick")
def test_a_report_of_a_half_finished_sweep_says_so(sweep):
    sweep.output.mkdir()
    ledger = Ledger(sweep.output)
    points = plan(sweep, ledger)
    assert report.write(sweep, points, ledger).startswith("So far, with 0 of 18 trials over: the base has not finished")
    for trial in trials(points)[:8]:
        finish(sweep, trial, ledger)
    assert report.write(sweep, points, ledger).startswith("So far, with 8 of 18 trials over: ")
    assert "2 done, 1 pending" in (sweep.output / "sweep.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("quick")
def test_a_report_can_be_made_while_the_metric_is_still_zero(sweep):
    sweep.output.mkdir()
    ledger = Ledger(sweep.output)
    points = plan(sweep, ledger)
    for trial in points[0].trials:
        trial.directory.mkdir(parents=True)
        jsonl.append(trial.directory / "log.jsonl", {"samples": 48, "val_macro_f1": 0.0})
    assert "nothing can be said" in report.write(sweep, points, ledger)


@pytest.mark.usefixtures("quick")
def test_a_metric_that_is_undefined_is_left_out(tmp_path, run_values):
    sweep = open_sweep(tmp_path / "sweep", run_values, metric="map")
    sweep.output.mkdir()
    ledger = Ledger(sweep.output)
    points = plan(sweep, ledger)
    for trial in trials(points):
        finish(sweep, trial, ledger, positives=0.0 if trial in points[2].trials else 0.3)
    found = results.read(sweep, points, ledger)
    assert [row.complete for row in found.points] == [True] * 5 + [False]
    report.write(sweep, points, ledger)
    assert not re.search(r"\bnan\b", (sweep.output / "sweep.html").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("quick")
def test_the_noise_floor_is_printed(sweep, capsys):
    points, ledger = finish_all(sweep)
    report.write(sweep, points, ledger)
    found = results.read(sweep, points, ledger).noise_floor
    assert f"a standard deviation of {found.value:.4f} over seeds" in capsys.readouterr().out


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("finished", [True, False])
def test_in_a_browser_the_page_is_complete_and_requests_nothing(browser, sweep, width, finished):
    if finished:
        report.write(sweep, *finish_all(sweep))
    else:
        sweep.output.mkdir()
        ledger = Ledger(sweep.output)
        report.write(sweep, plan(sweep, ledger), ledger)
    html = (sweep.output / "sweep.html").read_text(encoding="utf-8")
    assert "<b>patch" not in html
    page = browser.open(sweep.output / "sweep.html", width=width)
    assert page.problems == []
    assert page.requests == []
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value("document.querySelectorAll('#points tbody tr').length") == 6
    assert page.value("document.querySelectorAll('#trials tbody tr').length") == (24 if finished else 18)
    assert page.value("document.querySelectorAll('.chart').length") == (2 if finished else 1)
    assert page.value(CUT_OFF) == []
    assert page.value(BROKEN_NAMES) == []
