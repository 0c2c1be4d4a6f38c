"""Tests of joytag.tagging.folder and joytag.tagging.outputs."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import pytest
from commands import HANG
from paths import ROOT
from PIL import Image
from requirements import IS_UNIX, needs_unix

from joytag.data import folders
from joytag.tagging import folder
from joytag.tagging.captions import CaptionStyle
from joytag.tagging.folder import Job, common_folder, find_images
from joytag.tagging.outputs import Sidecars
from joytag.tagging.table import relative_name
from joytag.tagging.tagger import Result, Tagger

TINY = ROOT / "tests" / "fixtures" / "release_tiny"
NAMES = ["b.png", "a b.jpg", "q's x.png", "日本語.webp", "[bold]x.png", "deep/c.PNG", "a.b.gif"]
NAMES += ['"x".png', "new\nline.png"] if IS_UNIX else []


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return Tagger.load(TINY, device="cpu")


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder with the good images of NAMES, one of them in a subfolder, two bad ones and a text."""
    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    (root / "deep").mkdir(parents=True)
    for name in NAMES:
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(root / name)
    (root / "text.png").write_text("hello")
    (root / "._b.png").write_bytes(b"left by macOS")
    (root / "cut.jpg").write_bytes((root / "a b.jpg").read_bytes()[:200])
    (root / "notes.md").write_text("not an image")
    return root


def tag(tagger: Tagger, root: Path, kind: str = "txt", captions: CaptionStyle | None = None, **options) -> Job:
    job = Job.plan([str(root)], True, kind, captions or CaptionStyle(), **options)
    job.run(tagger, 0.5)
    return job


def failures(root: Path) -> dict[str, str]:
    return {
        row["file_name"]: row["reason"] for row in map(json.loads, (root / "failed.jsonl").read_text().splitlines())
    }


def texts(root: Path, suffix: str = ".txt") -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob(f"*{suffix}")}


def test_good_images_get_a_sidecar_and_bad_ones_are_listed_with_the_reason(tagger, images, capsys):
    tag(tagger, images)
    assert texts(images).keys() == {str(Path(name).with_suffix(".txt")) for name in NAMES}
    for name in NAMES:
        expected = ", ".join(tagger(images / name, 0.5).tags) + "\n"
        assert (images / name).with_suffix(".txt").read_bytes() == expected.encode()
    assert failures(images).keys() == {"text.png", "cut.jpg"}
    assert "not an image" in failures(images)["text.png"]
    shown = capsys.readouterr()
    assert f"{len(NAMES)} images tagged" in shown.out
    assert "2 not tagged, listed in" in shown.out
    assert shown.err.startswith("Not tagged: ")
    assert "(and 1 more)" in shown.err
    assert not list(images.rglob("*.part"))


def test_tagged_images_are_skipped_and_failed_ones_tried_again(tagger, images):
    tag(tagger, images)
    before = texts(images)
    (images / "b.txt").write_text("mine")
    (images / "text.png").write_bytes((images / "b.png").read_bytes())
    job = tag(tagger, images)
    assert {path.name for path in job.pending} == {"text.png", "cut.jpg"}
    assert texts(images) == before | {"b.txt": b"mine", "text.txt": before["b.txt"]}
    assert failures(images).keys() == {"cut.jpg"}
    tag(tagger, images, overwrite=True)
    assert texts(images)["b.txt"] == before["b.txt"]
    (images / "cut.jpg").unlink()
    tag(tagger, images)
    assert not (images / "failed.jsonl").exists()


def test_when_no_image_can_be_used_the_error_names_the_list(tagger, tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("hello")
    with pytest.raises(ValueError, match=r"a\.png: not an image .* \(and 1 more\); all are in .*failed\.jsonl$"):
        tag(tagger, tmp_path)
    with pytest.raises(ValueError, match=r"\(and 1 more\)$"):
        tag(tagger, tmp_path, "print")


def test_failures_of_other_images_remain_listed(tagger, images):
    tag(tagger, images)
    Job.plan([str(images / "b.png")], False, "txt", CaptionStyle(), overwrite=True).run(tagger, 0.5)
    assert failures(images).keys() == {"text.png", "cut.jpg"}


def test_failures_of_images_that_an_interrupted_run_did_not_reach_remain_listed(tagger, images, monkeypatch):
    tag(tagger, images)
    before = failures(images)
    (images / "a b.txt").unlink()

    def interrupt(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(Sidecars, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tag(tagger, images)
    assert failures(images) == before


@needs_unix
def test_an_image_that_is_named_by_several_ways_is_tagged_once(images):
    (images.parent / "link").symlink_to(images, target_is_directory=True)
    ways = [images, images / ".." / images.name, images.parent / "link"]
    assert len(find_images([str(way) for way in ways]).images) == len(find_images([str(images)]).images)
    (images / "sub").mkdir(exist_ok=True)
    paths = [images / "sub" / ".." / ".." / "link" / "b.png", images / "sub" / "x.png"]
    assert common_folder(["a", "b"], paths) == images.resolve()
    assert [relative_name(path, images) for path in paths] == ["b.png", "sub/x.png"]


def test_appending_twice_changes_nothing(tagger, images):
    first = next(iter(tagger(images / "b.png", 0.5).tags))
    (images / "b.txt").write_text(f"my character, {first.upper()}", encoding="utf-8-sig")
    (images / "a b.txt").write_bytes(b"\xff\xfe\x00")
    for _ in range(2):
        tag(tagger, images, append=True)
        names = (images / "b.txt").read_text(encoding="utf-8").removesuffix("\n").split(", ")
        assert names[:2] == ["my character", first.upper()]
        assert sorted(name.lower() for name in names[1:]) == sorted(tagger(images / "b.png", 0.5).tags)
        assert (images / "a b.txt").read_bytes() == b"\xff\xfe\x00"
        assert "not UTF-8" in failures(images)["a b.jpg"]


def test_texts_in_other_encodings_are_kept_as_utf_8_and_counted(tagger, images, capsys):
    own = {"b": ("naïve art, “mine”", "cp1252"), "a b": ("黒髪, naïve art", "utf-16")}
    for name, (text, encoding) in own.items():
        (images / f"{name}.txt").write_bytes(text.encode(encoding))
    tag(tagger, images, append=True)
    for name, (text, _) in own.items():
        assert (images / f"{name}.txt").read_text(encoding="utf-8").startswith(f"{text}, ")
    assert "2 texts in UTF-16 or Windows-1252, now UTF-8\n" in capsys.readouterr().out
    before = texts(images)
    tag(tagger, images, append=True)
    assert texts(images) == before
    assert "Windows-1252" not in capsys.readouterr().out


def test_json_sidecars_hold_scores(tagger, images):
    tag(tagger, images, "json")
    expected = {name: round(score, 4) for name, score in tagger(images / "b.png", 0.5).tags.items()}
    assert json.loads((images / "b.json").read_text()) == {"tags": expected}


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_later_images_are_added_to_a_table(tagger, images, kind):
    path = images / f"tags.{kind}"

    def rows() -> dict[str, str]:
        with path.open(encoding="utf-8", newline="") as file:
            content = list(csv.DictReader(file)) if kind == "csv" else list(map(json.loads, file))
        assert len({row["file_name"] for row in content}) == len(content)
        return {row["file_name"]: row["text"] for row in content}

    tag(tagger, images, kind)
    assert rows() == {name: ", ".join(tagger(images / name, 0.5).tags) for name in NAMES}
    (images / "later.png").write_bytes((images / "b.png").read_bytes())
    job = tag(tagger, images, kind)
    assert {p.name for p in job.pending} == {"later.png", "text.png", "cut.jpg"}
    assert rows().keys() == {*NAMES, "later.png"}
    tag(tagger, images, kind, overwrite=True)
    assert rows().keys() == {*NAMES, "later.png"}
    assert not list(images.glob(".tags*"))


def test_sidecars_that_differ_in_case_are_one_file_where_the_system_ignores_case(tmp_path, request):
    for name in ("Hat.png", "hat.jpg"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    if not folders.ignores_case(tmp_path / "Hat.png"):
        Job.plan([str(tmp_path)], False, "txt", CaptionStyle())
        request.getfixturevalue("ignoring_case")
    with pytest.raises(ValueError, match=r"hat\.jpg and Hat\.png: would share one \.txt file"):
        Job.plan([str(tmp_path)], False, "txt", CaptionStyle())


def test_images_on_two_drives_are_refused_in_a_line(images, monkeypatch):
    def refuse(_):
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr(os.path, "commonpath", refuse)
    with pytest.raises(ValueError, match=r"b\.png and .*c\.PNG: have no common folder; tag them one after another$"):
        Job.plan([str(images / "b.png"), str(images / "deep/c.PNG")], False, "txt", CaptionStyle())


def test_images_that_would_share_a_sidecar_are_reported_first(tagger, images):
    (images / "b.jpg").write_bytes((images / "a b.jpg").read_bytes())
    with pytest.raises(ValueError, match=r"b\.jpg and b\.png: would share one \.txt file"):
        Job.plan([str(images)], True, "txt", CaptionStyle())
    assert not texts(images)
    tag(tagger, images, "jsonl")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("txt", {"extension": ".png"}, "^extension: "),
        ("txt", {"extension": "/../x"}, "^extension: "),
        ("txt", {"extension": "."}, "^extension: "),
        ("csv", {"extension": ".txt"}, "^extension: "),
        ("json", {"append": True}, "^append: "),
        ("txt", {"append": True, "overwrite": True}, "^append: "),
    ],
)
def test_contradicting_options_are_refused(images, kind, options, message):
    with pytest.raises(ValueError, match=message):
        Job.plan([str(images)], True, kind, CaptionStyle(), **options)


def found(*inputs: object, recursive: bool = False) -> list[Path]:
    return folder.find_images([str(name) for name in inputs], recursive).images


def test_images_are_found_by_file_folder_and_pattern(images, monkeypatch):
    assert {p.name for p in found(images)} == {*NAMES, "text.png", "cut.jpg"} - {"deep/c.PNG"}
    assert "c.PNG" in {p.name for p in found(images, recursive=True)}
    assert {p.name for p in found(f"{images}/*.jpg")} == {"a b.jpg", "cut.jpg"}
    assert {p.name for p in found(f"{images}/**/*.PNG")} == {"c.PNG"}
    assert len(found(str(images / "b.png"), f"{images}/b.*", str(images / "b.png"))) == 1
    assert [p.name for p in found(str(images / "[bold]x.png"))] == ["[bold]x.png"]
    monkeypatch.chdir(images)
    assert found("b.png") == [Path("b.png")]
    for missing in ("gone.png", "gone/*.png"):
        with pytest.raises(ValueError, match="no such file or folder"):
            found("b.png", missing)
    (images / "empty").mkdir()
    with pytest.raises(ValueError, match="no images here"):
        found(str(images / "empty"))
    (images / "empty" / "below").mkdir()
    (images / "empty" / "below" / "x.png").write_bytes(b"")
    with pytest.raises(ValueError, match="search recursively"):
        found(str(images / "empty"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_text_file_named_as_an_image_is_refused_and_kept(tmp_path, overwrite):
    notes = tmp_path / "notes.txt"
    notes.write_text("my notes")
    with pytest.raises(ValueError, match=r"notes\.txt: is a \.txt file, not an image"):
        Job.plan([str(notes)], False, "txt", CaptionStyle(), overwrite=overwrite)


def test_file_names_may_be_very_long_and_not_utf8(tagger, tmp_path):
    good = tmp_path / "x.png"
    Image.new("RGB", (8, 8), "red").save(good)
    names = [b"caf\xe9.png", b"y" * 251 + b".png"]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(good.read_bytes())
    tag(tagger, tmp_path)
    assert len(texts(tmp_path)) == 3
    tag(tagger, tmp_path, "jsonl")
    assert len((tmp_path / "tags.jsonl").read_text().splitlines()) == 3


def test_a_folder_without_usable_images_is_an_error(tagger, tmp_path):
    (tmp_path / "a.png").write_text("a")
    with pytest.raises(ValueError, match=r"a\.png: not an image"):
        tag(tagger, tmp_path)
    assert failures(tmp_path).keys() == {"a.png"}


def test_printing_writes_no_file(tagger, images, capsys):
    before = sorted(images.rglob("*"))
    tag(tagger, images, "print")
    assert sorted(images.rglob("*")) == before
    assert "b.png\n  " in capsys.readouterr().out


def test_an_interruption_keeps_results_and_lists_failures(images):
    class Interrupted:
        tags = ("a",)

        def stream(self, paths, *_):
            def results():
                for path in paths:
                    if path.name == "日本語.webp":
                        raise KeyboardInterrupt
                    yield Result(error="bad") if path.suffix == ".jpg" else Result({"a": 0.9})

            return results()

    with pytest.raises(KeyboardInterrupt):
        Job.plan([str(images)], True, "txt", CaptionStyle()).run(cast(Tagger, Interrupted()), 0.5)
    assert set(failures(images).values()) == {"bad"}
    assert set(texts(images).values()) == {b"a\n"}


@pytest.mark.faults
@needs_unix
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_a_killed_and_repeated_run_writes_the_files_of_an_uninterrupted_one(tmp_path, kind):
    """Sends SIGKILL at random moments until a run finishes; files are complete at every moment."""
    rng = np.random.default_rng(0)
    for side in ("killed", "whole"):
        (tmp_path / side).mkdir()
    for number in range(150):
        pixels = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        for side in ("killed", "whole"):
            Image.fromarray(pixels).save(tmp_path / side / f"{number}.png", compress_level=1)
    (tmp_path / "killed" / "bad.png").write_text("bad")
    (tmp_path / "whole" / "bad.png").write_text("bad")

    def start(side: str) -> subprocess.Popen:
        flags = f"--output {kind} --threshold 0.5 --device cpu --batch-size 2".split()
        command = [sys.executable, "-m", "joytag", "tag", "--model", str(TINY), *flags, str(tmp_path / side)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)

    def written(side: str) -> dict[str, bytes]:
        files = (p for p in (tmp_path / side).iterdir() if p.suffix in (".txt", ".jsonl"))
        return {p.name: p.read_bytes() for p in files if not p.name.startswith(".")}

    process = start("whole")
    assert process.wait(HANG) == 0
    expected = written("whole")
    kills, random_moment = 0, random.Random(0)
    while True:
        process = start("killed")
        assert process.stdout is not None
        assert "to tag" in process.stdout.readline()
        assert "tags, fp32 on cpu" in process.stdout.readline()
        time.sleep(random_moment.uniform(0.0, 0.25))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        assert written("killed").items() <= expected.items()
        if kills == 4:
            assert start("killed").wait(HANG) == 0
            break
    assert kills
    assert written("killed") == expected
    assert not [path for path in (tmp_path / "killed").glob(".*") if path.suffix != ".part"]  # see the test of partials


HOSTILE = ["\x1b[31mred", "\x1b]0;title\x07", "over\u202eride", "line\nbreak", "[red]markup", "c1\x9b31m", "\rreturn"]


@needs_unix
def test_no_file_name_reaches_the_terminal_unescaped(call, tmp_path):
    """Names of images, of bad images, of the folder, and in the error when nothing could be tagged."""
    root = tmp_path / "f\x1b[1mo"
    root.mkdir()
    for name in HOSTILE:
        Image.new("RGB", (8, 8), "red").save(root / f"{name}.png")
        (root / f"bad {name}.png").touch()
    good = call("tag", "--model", TINY, "--output", "print", root)
    bad = call("tag", "--model", TINY, *root.glob("bad *"))
    assert (good.returncode, bad.returncode) == (0, 2)
    for text in (good.stdout, good.stderr, bad.stdout, bad.stderr):
        assert not set(text) & set("\x1b\x07\x9b\r\u202e")
        assert "\nbreak" not in text
    assert bad.stderr.count("\n") == 1
