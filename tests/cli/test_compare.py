"""`joytag compare`: winners, noise, resuming, and user errors."""

import json
import os
import runpy
import shutil
import signal
import sys
import warnings

import pytest
import wd
from paths import ROOT
from taggers import IMAGES, write_wd

from joytag.data.dataset import Dataset
from joytag.evaluation import contenders
from joytag.models.wd_onnx import OnnxTagger


@pytest.fixture
def call(monkeypatch, capsys):
    """Run scripts/compare.py in this process; returns exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["scripts/compare.py", *map(str, arguments)])
            patch.setattr(warnings, "showwarning", warnings.showwarning)
            try:
                runpy.run_path(str(ROOT / "scripts" / "compare.py"), run_name="__main__")
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
        return code, *capsys.readouterr()

    return run


def test_a_better_tagger_wins_and_noise_is_called_noise(call, taggers, tmp_path):
    aliases = tmp_path / "aliases.yaml"
    aliases.write_text("scarlet: red\n")
    paths = [taggers / name for name in ("early", "late", "copy", "wd")]
    code, out, err = call(*paths, "--data", taggers / "data", "--output", tmp_path / "out", "--aliases", aliases)
    assert code == 0, err
    out = " ".join(out.split())  # as wide as the table below it
    assert "At break-even thresholds: B is better than A in macro F1, micro F1 and mAP." in out
    assert "D is better than A in macro F1, micro F1 and mAP." in out
    assert "No difference between B and C beyond noise." in out
    report = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert report["facts"]["images"] == IMAGES
    assert report["facts"]["tags"] == 4
    assert report["facts"]["tags_by_aliases"] == 1
    thresholds = {letter: tagger["threshold"] for letter, tagger in report["taggers"].items()}
    assert thresholds == {"A": 0.4, "B": 0.4, "C": 0.4, "D": 0.35}
    assert [tagger["name"] for tagger in report["taggers"].values()] == ["early", "late", "copy", "wd"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "predictions",
        "compare.json",
        "compare.html",
        "per_tag.csv",
        "per_tag.parquet",
    }


def test_another_comparison_does_not_replace_the_default_one(call, taggers, predicted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = (predicted["early"], predicted["late"])
    assert call(*command)[0] == 0
    assert call(*command)[0] == 0
    report = tmp_path / "runs" / "comparison" / "compare.json"
    before = report.read_bytes()
    first, second = sorted(directory.name for directory in command)
    for other in ((predicted["early"], predicted["wd"]), (*command, "--threshold", "0.3")):
        code, _, err = call(*other)
        assert code == 2
        assert f"compare.json: is about {first} at 0.4 and {second} at 0.4, on " in err
        assert err.endswith("; set another --output\n")
    assert report.read_bytes() == before
    assert call(*command, "--threshold", "0.3", "--output", "runs/comparison")[0] == 0


@pytest.mark.parametrize("content", ["{}", "[]", '{"facts": {"labels": "x"}, "taggers": {"A": {}}}', "{"])
def test_a_file_that_is_no_comparison_is_not_replaced(call, predicted, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    report = tmp_path / "runs" / "comparison" / "compare.json"
    report.parent.mkdir(parents=True)
    report.write_text(content)
    code, _, err = call(predicted["early"], predicted["late"])
    assert code == 2
    assert err == (
        f"joytag compare: {report.relative_to(tmp_path)}: not the report of a comparison; set another --output, or "
        "move the file\n"
    )
    assert report.read_text() == content


def test_finished_predictions_are_reused(call, taggers, tmp_path, monkeypatch):
    command = (taggers / "early", taggers / "wd", "--data", taggers / "data", "--output", tmp_path)
    assert call(*command)[0] == 0
    files = sorted(tmp_path.rglob("*.npy"))
    before, report = [path.stat().st_mtime_ns for path in files], (tmp_path / "compare.json").read_text()
    monkeypatch.setattr(OnnxTagger, "__call__", None)
    monkeypatch.setattr("joytag.models.inference.predict", None)
    assert call(*command)[0] == 0
    assert [path.stat().st_mtime_ns for path in files] == before
    assert (tmp_path / "compare.json").read_text() == report
    assert call(taggers / "wd", taggers / "early", *command[2:])[0] == 0  # in any order


def test_a_stopped_comparison_resumes(call, taggers, tmp_path, monkeypatch):
    monkeypatch.setattr(contenders, "BATCH", 32)
    compute = OnnxTagger.__call__
    seen: list[int] = []

    def interrupted(self, squares):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(len(squares))
        return compute(self, squares)

    def counted(self, squares):
        seen.append(len(squares))
        return compute(self, squares)

    command = (taggers / "wd", taggers / "late", "--data", taggers / "data", "--output")
    with monkeypatch.context() as patch:
        patch.setattr(OnnxTagger, "__call__", interrupted)
        assert call(*command, tmp_path / "stopped")[0] == 130
        assert not (tmp_path / "stopped" / "compare.json").exists()
        seen.clear()
        patch.setattr(OnnxTagger, "__call__", counted)
        assert call(*command, tmp_path / "stopped")[0] == 0
    assert seen == [32] * 3
    assert call(*command, tmp_path / "fresh")[0] == 0
    stopped, fresh = (tmp_path / name / "per_tag.csv" for name in ("stopped", "fresh"))
    assert stopped.read_bytes() == fresh.read_bytes()


def test_a_signal_stops_a_comparison_after_a_block(call, taggers, tmp_path, monkeypatch):
    monkeypatch.setattr(contenders, "BATCH", 32)
    compute = OnnxTagger.__call__

    def signalled(self, squares):
        os.kill(os.getpid(), signal.SIGTERM)
        return compute(self, squares)

    with monkeypatch.context() as patch:
        patch.setattr(OnnxTagger, "__call__", signalled)
        code, _, err = call(taggers / "wd", taggers / "late", "--data", taggers / "data", "--output", tmp_path)
    assert code == 75
    assert "stopped after 32 of 192 images, as requested; run the same command again to continue" in err


def test_predictions_need_no_dataset(call, taggers, tmp_path):
    dataset, paths = Dataset.open(taggers / "data"), [taggers / name for name in ("early", "late")]
    predicted = [contenders.predict(t, dataset, tmp_path, "cpu") for t in contenders.open_taggers(paths, device="cpu")]
    code, out, err = call(*(predictions.directory for predictions in predicted), "--output", tmp_path / "out")
    assert code == 0, err
    assert "B is better than A in macro F1, micro F1 and mAP." in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["early"], "1 taggers: give 2"),
        (["early", "gone", "--data", "data"], "gone: no such directory"),
        (["early", "data", "--data", "data"], "data: holds neither predictions"),
        (["early", "late"], "early: has no predictions yet; they need a dataset; add --data"),
        (["early", "late", "--data", "early"], "early: no dataset here"),
        (["early", "late", "--data", "data", "--threshold", "0.1,0.2,0.3"], "3 thresholds: give one"),
        (["early", "late", "--data", "data", "--threshold", "0.1,2"], "'2' is not a number between 0 and 1"),
        (["early", "late", "--data", "data", "--aliases", "gone.yaml"], "gone.yaml: no such file"),
        (["early", "nchw", "--data", "data"], "only taggers of the WD layout can be used"),
        (["early", "strange", "--data", "data"], "no common tag; do the names need aliases?"),
        (["early", "broken", "--data", "data"], "top_tags.txt: missing"),
    ],
)
def test_user_errors_are_one_line_and_leave_no_report(call, taggers, tmp_path, arguments, message, monkeypatch):
    monkeypatch.chdir(taggers)
    if not (taggers / "broken").exists():
        for name in ("strange", "nchw"):
            write_wd(taggers / name, [f"strange_{i}" for i in range(5)])
        wd.write_flattener(taggers / "nchw", [1, 3, 8, 8], [1, 192])
        shutil.copytree(taggers / "late", taggers / "broken")
        (taggers / "broken" / "top_tags.txt").unlink()
    code, out, err = call(*arguments, "--output", tmp_path / "out")
    assert (code, out) == (2, ""), err
    assert message in err
    assert err.count("\n") == 1, err
    assert not list(tmp_path.rglob("compare.*"))
