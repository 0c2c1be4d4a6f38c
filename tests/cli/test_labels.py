"""`joytag labels apply` writes decisions into files of tags; applying them again changes nothing."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from commands import assert_one_line, succeeded
from PIL import Image

from data_prep.sources import sidecar
from joytag.app.decisions import Answer, Decision, Decisions
from joytag.core import files

STYLES = {  # the text before; after yes for new_tag and no for old_one; and after these with negatives
    "1girl, old_one, hat\n": ("1girl, hat, new_tag\n", "1girl, hat, new_tag, -old_one\n"),
    "1girl, long hair, old one": ("1girl, long hair, new tag\n", "1girl, long hair, new tag, -old one\n"),
    "1girl\nold_one\nlong_hair\n": ("1girl\nlong_hair\nnew_tag\n", "1girl\nlong_hair\nnew_tag\n-old_one\n"),
    "1girl old_one long_hair": ("1girl long_hair new_tag\n", "1girl long_hair new_tag -old_one\n"),
    "1girl; old one; long hair": ("1girl; long hair; new tag\n", "1girl; long hair; new tag; -old one\n"),
    "old_one": ("new_tag\n", "new_tag, -old_one\n"),
    "long hair, old_one, blue_eyes": ("long hair, blue_eyes, new_tag\n", "long hair, blue_eyes, new_tag, -old_one\n"),
    "1girl | old one | long hair": ("1girl | long hair | new tag\n", "1girl | long hair | new tag | -old one\n"),
    "-new_tag, hat": ("hat, new_tag\n", "hat, new_tag, -old_one\n"),
    "new_tag, hat": (None, "new_tag, hat, -old_one\n"),
    "": ("new_tag\n", "new_tag, -old_one\n"),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "images"
    (root / ".joytag").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / f"{number}.png")
    return root


def decide(folder: Path, answers: dict[str, Answer], *names: str) -> None:
    images = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]
    Decisions(folder / ".joytag" / "decisions.jsonl").add(
        Decision(sha256=image, tag=tag, decision=answer) for image in images for tag, answer in answers.items()
    )


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.txt")}


@pytest.mark.parametrize("negatives", [False, True])
@pytest.mark.parametrize("before", STYLES)
def test_answers_go_into_the_text_as_it_is_written(call, folder, before, negatives):
    (folder / "0.txt").write_text(before)
    decide(folder, {"new_tag": "yes", "old_one": "no", "other": "unsure"}, "0.png")
    flags = ["--negatives"] if negatives else []
    done = succeeded(call("labels", "apply", folder, *flags))
    expected = STYLES[before][negatives]
    assert texts(folder) == {"0.txt": before if expected is None else expected}
    assert "1 of 1 images with decisions are in" in done.stdout
    content = (folder / "0.txt").stat().st_mtime_ns
    assert "0 files changed (0 tags), 1 right already" in succeeded(call("labels", "apply", folder, *flags)).stdout
    assert (folder / "0.txt").stat().st_mtime_ns == content


def test_what_training_reads_has_the_answers(call, folder):
    (folder / "0.txt").write_text("1girl, old one, long hair")
    decide(folder, {"new_tag_(x)": "yes", "old_one": "no"}, "0.png", "1.png")
    succeeded(call("labels", "apply", folder, "--negatives"))
    rows = sidecar.read(sidecar.parts(folder, "auto", None, True)[0]).to_pylist()
    assert {row["path"]: (row["tags"], row["negatives"]) for row in rows if not row["reason"]} == {
        "0.png": (["1girl", "long_hair", "new_tag_(x)"], ["old_one"]),
        "1.png": (["new_tag_(x)"], ["old_one"]),
    }


def test_parentheses_are_escaped_where_the_text_escapes_them(call, folder):
    (folder / "0.txt").write_text(r"1girl, tree \(plant\)")
    decide(folder, {"cat_(animal)": "yes"}, "0.png")
    succeeded(call("labels", "apply", folder))
    assert texts(folder) == {"0.txt": "1girl, tree \\(plant\\), cat \\(animal\\)\n"}


def test_a_tag_that_the_text_could_not_hold_is_refused(call, folder):
    (folder / "0.txt").write_text("1girl, hat")
    decide(folder, {"a,b": "yes"}, "0.png")
    done = call("labels", "apply", folder)
    assert "Not changed: 0.png: a,b contains what separates tags there; write JSON lines instead" in done.stderr
    assert texts(folder) == {"0.txt": "1girl, hat"}


def test_an_undone_answer_is_not_written(call, folder):
    decide(folder, {"cat": "yes"}, "0.png")
    Decisions(folder / ".joytag" / "decisions.jsonl").undo()
    assert "0 of 0 images" in succeeded(call("labels", "apply", folder)).stdout
    assert texts(folder) == {}


def test_a_file_that_cannot_be_changed_is_named_and_the_others_are_written(call, folder, monkeypatch):
    (folder / "0.txt").write_text("A girl is standing in the rain. She has a red umbrella, and looks at the sea.")
    Image.new("RGB", (8, 8), "white").save(folder / "1.jpg")
    (folder / "2.txt").write_text("hat, cat")
    decide(folder, {"new": "yes", "cat": "no"}, "0.png", "1.png", "2.png")
    done = succeeded(call("labels", "apply", folder))
    assert "Not changed: 0.png: its text holds sentences instead of tags" in done.stderr
    assert "Not changed: 1.png: shares its file of tags with another image; rename one" in done.stderr
    assert texts(folder)["2.txt"] == "hat, new\n"
    assert not (folder / "1.txt").exists()
    decide(folder, {"more": "yes"}, "2.png")

    write = files.write_text

    def fail(path: Path, text: str) -> None:
        if path.suffix != ".txt":
            return write(path, text)
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(files, "write_text", fail)
    assert "2.txt: No space left on device" in call("labels", "apply", folder).stderr
    assert texts(folder)["2.txt"] == "hat, new\n"


def test_a_moved_image_keeps_its_answers_and_a_changed_one_loses_them(call, folder):
    decide(folder, {"cat": "yes"}, "0.png", "1.png")
    (folder / "sub").mkdir()
    (folder / "0.png").rename(folder / "sub" / "moved.png")
    Image.new("RGB", (8, 8), "white").save(folder / "1.png")
    assert "1 of 2 images" in succeeded(call("labels", "apply", folder)).stdout
    assert [path.name for path in folder.rglob("*.txt")] == ["moved.txt"]


def test_json_lines_have_tags_and_negatives(call, folder, tmp_path):
    decide(folder, {"cat": "yes", "dog": "no", "bird": "unsure"}, "0.png")
    decide(folder, {"bird": "unsure"}, "1.png")
    target = tmp_path / "labels.jsonl"
    succeeded(call("labels", "apply", folder, "--jsonl", target))
    assert json.loads(target.read_text()) == {"path": "images/0.png", "tags": ["cat"], "negatives": ["dog"]}
    assert "0 files changed" in succeeded(call("labels", "apply", folder, "--jsonl", target)).stdout
    assert texts(folder) == {}
    decide(folder, {"cat": "no"}, "0.png")
    succeeded(call("labels", "apply", folder, "--jsonl", target))
    assert json.loads(target.read_text())["negatives"] == ["cat", "dog"]


def test_another_programs_file_is_not_replaced(call, folder):
    decide(folder, {"cat": "yes"}, "0.png")
    (folder / "tags.jsonl").write_text('{"path": "0.png", "tags": ["mine"]}\n')
    assert_one_line(call("labels", "apply", folder, "--jsonl", folder / "tags.jsonl"), "not a file of decisions")
    (folder / "below").mkdir()
    assert_one_line(
        call("labels", "apply", folder, "--jsonl", folder / "below" / "a.jsonl"), "must lie in", str(folder)
    )


def test_mistakes_are_one_line(call, folder, dataset_directory, tmp_path):
    assert_one_line(call("labels", "apply", folder), "decisions.jsonl: no such file; label first: joytag app --images")
    assert not (tmp_path / "gone").exists()
    assert_one_line(call("labels", "apply", "gone"), "no such file")
    assert not (tmp_path / "gone").exists()
    data = tmp_path / "data"
    shutil.copytree(dataset_directory, data)
    decide(folder, {"cat": "yes"}, "0.png")
    source = folder / ".joytag" / "decisions.jsonl"
    assert_one_line(call("labels", "apply", data, "--decisions", source), "is a dataset", "use --jsonl")


def test_decisions_about_a_dataset_apply_to_the_folder_that_it_was_built_from(call, folder, tmp_path):
    decide(folder, {"cat": "yes"}, "0.png")
    source = (folder / ".joytag" / "decisions.jsonl").rename(tmp_path / "decisions.jsonl")
    succeeded(call("labels", "apply", folder, "--decisions", source))
    assert texts(folder) == {"0.txt": "cat\n"}
