"""`joytag export`: complete and verified, or nothing."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import assert_one_line, succeeded
from paths import ROOT, TINY

import joytag
from joytag.core.settings import SettingsError
from joytag.export import manifest, verification
from joytag.export.exporter import Exporter
from joytag.export.layouts import LAYOUTS, NO_CHARACTER, limits_of_wd, rows_of_wd
from joytag.export.manifest import Manifest
from joytag.export.precisions import PRECISIONS
from joytag.export.samples import drawn
from joytag.export.source import Source, Tag
from joytag.export.verification import compare
from joytag.models import release as releases

FILES = {
    "joytag": {"config.json", "model.safetensors", "top_tags.txt", "model.onnx"},
    "wd": {"config.json", "selected_tags.csv", "model.onnx"},
    "imgutils": {"selected_tags.csv", "preprocess.json", "categories.json", "thresholds.csv", "model.onnx"},
    "transformers": {"config.json", "preprocessor_config.json", "onnx/model.onnx"},
}
ALONE = """
import socket, sys
sys.modules.update(wandb=None, matplotlib=None)
def refuse(self, address):
    raise OSError("no network in this test")
socket.socket.connect = refuse
from joytag.cli.command import main
main()
"""


def names(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_complete_and_described_twice(layout, exports, measured):
    directory = exports / layout
    assert names(directory) == FILES[layout] | {manifest.FILE}
    described = manifest.read(directory)
    model = onnx.load(directory / described.model)
    assert {prop.key: prop.value for prop in model.metadata_props} == described.properties()
    assert [output.name for output in described.outputs] == [output.name for output in model.graph.output]
    assert described.release == releases.hashes(measured)
    assert described.joytag == joytag.__version__
    assert described.verification is not None
    assert described.verification.agreement == 1
    assert described.verification.images == 192
    report = json.loads((measured / "metrics.json").read_text())
    assert described.evaluation is not None
    assert described.evaluation.metrics["macro_f1"].model_dump() == report["headline"]["fixed"]["macro_f1"]
    assert described.thresholds.suggested


def test_a_manifest_lacks_nothing_and_holds_nothing_else(exports, tmp_path):
    values = json.loads((exports / "wd" / manifest.FILE).read_text())
    assert values.keys() == Manifest.model_fields.keys()
    for wrong in ({"opset": "17"}, {"colour": "red"}):
        (tmp_path / manifest.FILE).write_text(json.dumps(values | wrong))
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            manifest.read(tmp_path)
    (tmp_path / manifest.FILE).write_text("[]")
    with pytest.raises(SettingsError, match="not the manifest"):
        manifest.read(tmp_path)


def test_an_unmeasured_release_says_so(call, tmp_path):
    done = succeeded(call("export", "--model", TINY, "--to", "wd", "--output", tmp_path / "x"))
    assert "unmeasured" in done.stdout
    assert "no tag is known as a character" in done.stderr
    assert "sd-scripts cannot use it: it takes models of 448 pixels, and this one is of" in done.stderr
    assert manifest.read(tmp_path / "x").evaluation is None


def test_an_evaluation_of_other_weights_is_not_carried(measured, tmp_path):
    model, tags = releases.load(measured)
    for name in ("metrics.json", "thresholds.csv"):
        (tmp_path / name).write_bytes((measured / name).read_bytes())
    releases.save(tmp_path, model, tags, "bce")
    assert Source.open(tmp_path, {}).evaluation is None
    (tmp_path / "config.json").write_bytes((measured / "config.json").read_bytes())
    assert Source.open(tmp_path, {}).evaluation is not None


def test_wd_tags_are_ordered_as_programs_slice_them():
    described = [("b", 4), ("a", 0), ("c", 3), ("rating:explicit", 5), ("d", 1), ("e", 4)]
    rows, notes = rows_of_wd([Tag(name, category, 7, 0.4) for name, category in described])
    assert [(row.tag.name, row.tag.category, row.output) for row in rows] == [
        ("general", 9, None),
        ("sensitive", 9, None),
        ("questionable", 9, None),
        ("explicit", 9, 3),
        ("a", 0, 1),
        ("c", 0, 2),
        ("d", 0, 4),
        ("b", 4, 0),
        ("e", 4, 5),
    ]
    assert [row.tag_id for row in rows[:4]] == [9999999, 9999998, 9999997, 9999996]
    assert len(notes) == 2
    assert "2 tags (artist, copyright)" in notes[1]
    rows, notes = rows_of_wd([Tag("a", 0, 7, 0.4)])
    assert rows[-1].tag.name == NO_CHARACTER
    assert NO_CHARACTER in notes[1]
    rows, notes = rows_of_wd([Tag(name, 4, 7, 0.4) for name in ("null", "a", "NaN")])
    assert notes[1] == "programs that read selected_tags.csv by pandas have no name for null, NaN"
    assert limits_of_wd(448) == []


def test_categories_come_from_a_mirrors_file_of_tags(call, measured, tmp_path):
    lines = [{"id": "1", "name": "red", "category": "4"}, {"id": "2", "name": "blue", "category": 3}]
    (tmp_path / "tags.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ("--to", "imgutils", "--output", tmp_path / "out", "--tags", tmp_path / "tags.json")
    succeeded(call("export", "--model", measured, *flags))
    with (tmp_path / "out/selected_tags.csv").open() as file:
        assert [row["category"] for row in csv.DictReader(file)] == ["4", "0", "3", "0", "0"]
    (tmp_path / "tags.json").write_text("{}\n")
    assert_one_line(call("export", "--model", measured, *flags[:2], "--output", tmp_path / "b", *flags[4:]), "names no")


def test_a_difference_is_refused_and_nothing_is_written(call, measured, tmp_path, monkeypatch):
    scores = verification.exported_scores
    monkeypatch.setattr(verification, "exported_scores", lambda *arguments: scores(*arguments)[:, ::-1])
    flags = ("export", "--model", measured, "--to", "wd", "--output", tmp_path / "out")
    assert_one_line(
        call(*flags, "--data", measured.with_name("data")), "decisions on 192 images", "nothing is exported"
    )
    assert not list(tmp_path.iterdir())
    done = succeeded(call(*flags, "--no-verify"))
    assert "not verified" in done.stdout
    assert manifest.read(tmp_path / "out").verification is None


def test_decisions_and_tags_are_counted():
    expected = np.array([[0.9, 0.1, 0.5, 0.399999]], dtype=np.float32)
    found = np.array([[0.8, 0.1, 0.3, 0.400001]], dtype=np.float32)
    result = compare(expected, found, "here")
    assert (result.decisions, result.agreement) == (4, 0.75), "rounding is no difference"
    assert result.common_tags == pytest.approx(1 / 3)
    assert result.largest_difference == pytest.approx(0.2)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions_are_smaller_and_verified(call, precision, measured, exports, tmp_path):
    flags = (
        "--to",
        "joytag",
        "--precision",
        precision,
        "--data",
        measured.with_name("data"),
        "--output",
        tmp_path / "out",
    )
    done = succeeded(call("export", "--model", measured, *flags))
    assert done.stderr == ""
    path = tmp_path / "out/model.onnx"
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} == {""}
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    assert path.stat().st_size < (exports / "joytag/model.onnx").stat().st_size
    operators = [node.op_type for node in model.graph.node]
    if precision == "int8":
        assert operators.count("MatMulInteger") == 4, "qkv, out, and two of the MLP"
        assert operators.count("Conv") == 1, "the stem is float"
        assert operators[-3:-1] == ["MatMul", "Add"], "the head is float"
    found = manifest.read(tmp_path / "out").verification
    assert found is not None
    assert found.agreement >= PRECISIONS[precision].agreement


def test_an_embedding_is_an_optional_output(call, measured, tmp_path):
    succeeded(call("export", "--model", measured, "--to", "wd", "--embedding", "--output", tmp_path / "out"))
    model = onnx.load(tmp_path / "out/model.onnx")
    assert [output.name for output in model.graph.output] == ["output", "embedding"]


def test_mistakes_end_in_one_line_and_write_nothing(call, measured, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note.txt").write_text("mine")
    export = ("export", "--model", measured, "--to", "wd", "--output")
    before = names(tmp_path)
    assert_one_line(call(*export, tmp_path / "full"), str(tmp_path / "full"), "exists already", "--output")
    assert_one_line(call(*export, tmp_path / "x", "--precision", "int8"), "--precision int8", "--data")
    assert_one_line(call("export", "--model", tmp_path / "no", "--to", "wd", "--output", tmp_path / "x"), "no such")
    assert_one_line(call("export", "--model", measured, "--to", "tf", "--output", tmp_path / "x"), "--to")
    assert names(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_an_empty_directory_becomes_the_export(measured, tmp_path):
    (tmp_path / "out").mkdir()
    Exporter(Source.open(measured, {}), "fp32", False, drawn(16), "1").export(["joytag"], tmp_path / "out")
    assert names(tmp_path / "out") == FILES["joytag"] | {manifest.FILE}


def test_an_error_in_the_middle_leaves_nothing(measured, tmp_path, monkeypatch):
    monkeypatch.setitem(LAYOUTS, "wd", LAYOUTS["wd"].__class__(**vars(LAYOUTS["wd"]) | {"write": fail}))
    with pytest.raises(OSError, match="disk"):
        Exporter(Source.open(measured, {}), "fp32", False, None, "1").export(["joytag", "wd"], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def fail(*_: object) -> None:
    raise OSError(28, "disk full")


def test_it_needs_neither_a_network_nor_the_packages_for_plots(measured, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    words = ["export", "--model", measured, "--to", "transformers", "--output", tmp_path / "out"]
    line = [sys.executable, "-c", ALONE, *map(str, words)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "out") == FILES["transformers"] | {manifest.FILE}
