"""What goes wrong with one file concerns that file alone; what other programs wrote stays."""

import errno
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Call, assert_one_line
from paths import TINY
from PIL import Image

from joytag.cli import command
from joytag.core import errors, files
from joytag.tagging import tagger as tagger_module
from joytag.tagging.captions import CaptionStyle
from joytag.tagging.folder import Job, find_images
from joytag.tagging.tagger import Tagger

pytest.importorskip("fcntl")  # Unix has it
CONTEXT = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return Tagger.load(TINY, device="cpu")


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder of four images: a.png, b.png, c.png and sub/d.png."""
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in ("a.png", "b.png", "c.png", "sub/d.png"):
        Image.new("RGB", (12, 16), "red").save(tmp_path / "images" / name)
    return tmp_path / "images"


def plan(root: Path, kind: str = "txt", **options: Any) -> Job:
    return Job.plan([str(root)], True, kind, CaptionStyle(), **options)


def failures(root: Path) -> dict[str, str]:
    lines = (root / "failed.jsonl").read_text().splitlines()
    return {row["file_name"]: row["reason"] for row in map(json.loads, lines)}


def tagged(root: Path, suffix: str = ".txt") -> set[str]:
    return {path.relative_to(root).with_suffix("").as_posix() for path in root.rglob(f"*{suffix}") if path.is_file()}


def block(path: Path) -> None:
    """A pipe without a writer blocks whoever reads it."""
    os.mkfifo(path)


FAULTS: dict[str, Callable[[Path], object]] = {
    "directory": lambda root: (root / "b.txt").mkdir(),
    "pipe": lambda root: block(root / "b.txt"),
    "undecodable": lambda root: (root / "b.txt").write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_sidecar_that_cannot_be_used_concerns_its_image_alone(tagger, root, fault, append):
    FAULTS[fault](root)
    if fault == "undecodable" and not append:
        return  # it is a sidecar, whatever it holds
    job = plan(root, append=append)
    job.run(tagger, 0.5)
    assert failures(root).keys() == {"b.png"}
    assert tagged(root) - {"b"} == {"a", "c", "sub/d"}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("append", [False, True])
def test_a_subfolder_that_cannot_be_written_concerns_its_images_alone(tagger, root, monkeypatch, number, append):
    write = files.write_text

    def refuse(path: Path, text: str) -> None:
        if path.parent.name == "sub":
            raise OSError(number, os.strerror(number), path)
        write(path, text)

    monkeypatch.setattr(files, "write_text", refuse)
    plan(root, append=append).run(tagger, 0.5)
    reason = f"{os.strerror(number)}; {errors.REMEDIES[number]}"
    assert failures(root) == {"sub/d.png": f"{root / 'sub' / 'd.txt'}: {reason}"}
    assert tagged(root) == {"a", "b", "c"}


def test_an_unreadable_sidecar_concerns_its_image_alone(tagger, root, monkeypatch):
    (root / "b.txt").write_text("mine")
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "b.txt":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        plan(root, append=True).run(tagger, 0.5)
    assert failures(root) == {"b.png": f"{root / 'b.txt'}: Permission denied; check its owner and permissions"}
    assert (root / "b.txt").read_text() == "mine"


def test_a_name_that_is_too_long_for_a_sidecar_concerns_its_image_alone(tagger, root):
    (root / "b.png").rename(root / f"{'b' * 251}.png")
    plan(root, extension="caption").run(tagger, 0.5)
    assert list(failures(root).values()) == [f"{root / ('b' * 251)}.caption: File name too long"]
    assert tagged(root, ".caption") == {"a", "c", "sub/d"}


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_images_that_vanish_or_change_while_others_are_tagged_are_listed(tagger, root, kind):
    job = plan(root, kind)
    (root / "b.png").unlink()
    (root / "b.png").mkdir()
    (root / "c.png").unlink()
    job.run(tagger, 0.5)
    assert failures(root).keys() == {"b.png", "c.png"}


@pytest.mark.parametrize("kind", ["txt", "csv"])
def test_incomplete_files_of_killed_processes_are_removed_when_no_process_can_still_write_them(tagger, root, kind):
    old, new = root / f".{'0' * 16}.part", root / f".{'1' * 16}.part"
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - 4000,) * 2)
    plan(root, kind).run(tagger, 0.5)
    assert list(root.glob(".*")) == [new]


def test_a_sidecar_that_somebody_wrote_meanwhile_stays(tagger, root):
    job = plan(root)
    (root / "b.txt").write_text("mine")
    job.run(tagger, 0.5)
    assert (root / "b.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", ["txt", "csv"])
def test_a_full_disk_ends_the_run_and_leaves_whole_files(tagger, root, monkeypatch, kind):
    def fill(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("joytag.core.files.write_text" if kind == "txt" else "joytag.core.jsonl.append", fill)
    with pytest.raises(OSError, match="No space"):
        plan(root, kind).run(tagger, 0.5)
    assert not tagged(root)


FOREIGN = [
    '{"url": "https://example.org/a", "status": 404}\n',
    '{"file_name": "a.png", "reason": "x", "url": "y"}\n',
    '{"file_name": "a.png", "reason": "x"}\n{"file',
    "[1, 2]\n",
    "a text\n",
    "",
]


@pytest.mark.parametrize("content", FOREIGN)
@pytest.mark.parametrize("bad", [False, True])
def test_another_programs_list_of_failures_stays(tagger, root, capsys, content, bad):
    (root / "failed.jsonl").write_text(content)
    if bad:
        (root / "a.png").write_text("no image")
        (root / "b.png").write_text("no image")
    plan(root).run(tagger, 0.5)
    assert (root / "failed.jsonl").read_text() == content
    shown = capsys.readouterr()
    assert "listed in" not in shown.out
    assert [line.split(": ")[1] for line in shown.err.splitlines() if line.startswith("Not tagged: ")] == (
        [str(root / "a.png"), str(root / "b.png")] if bad else []
    )
    assert not list(root.glob(".failed*"))


def test_a_list_of_failures_that_is_a_folder_stays(tagger, root):
    (root / "failed.jsonl").mkdir()
    (root / "a.png").write_text("no image")
    plan(root).run(tagger, 0.5)
    assert tagged(root) == {"b", "c", "sub/d"}


def test_images_without_tags_get_a_line_break_and_are_counted(tagger, root, capsys):
    """Sd-scripts' trainer refuses an empty file."""
    plan(root).run(tagger, 0.999_999)
    assert (root / "a.txt").read_bytes() == b"\n"
    assert "4 images tagged" in capsys.readouterr().out
    (root / "e.png").write_bytes((root / "a.png").read_bytes())
    plan(root).run(tagger, 0.999_999)
    shown = capsys.readouterr().out
    assert "1 image tagged" in shown
    assert "1 image without a tag above the threshold" in shown


def closed() -> Image.Image:
    image = Image.new("RGB", (4, 4))
    image.close()
    return image


def test_bad_items_of_a_stream_are_errors_of_their_own(tagger, tmp_path):
    Image.effect_noise((80, 60), 50).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-500])
    (tmp_path / "cut.png").write_bytes(b"")
    whole = tmp_path / "whole.jpg"
    bad: list[Any] = [
        Image.open(tmp_path / "cut.jpg"),
        closed(),
        None,
        3,
        [whole],
        np.zeros(3),
        b"x",
        "",
        "\0",
        "a" * 999,
    ]
    items = [item for wrong in bad for item in (wrong, whole)]
    results = list(tagger.stream(items, batch_size=3))
    assert len(results) == len(items)
    assert all(result.error and "\n" not in result.error for result in results[::2])
    expected = tagger(whole).scores
    for result in results[1::2]:
        np.testing.assert_allclose(result.scores, expected, atol=1e-6)


def test_batches_and_threads_are_bounded_by_what_there_is(tagger, tmp_path, monkeypatch):
    Image.new("RGB", (12, 16)).save(tmp_path / "a.png")
    sizes, threads = set(), set()
    predict = Tagger.predict

    def record(self: Tagger, batch: np.ndarray) -> np.ndarray:
        sizes.add(len(batch))
        threads.add(threading.active_count())
        return predict(self, batch)

    monkeypatch.setattr(Tagger, "predict", record)
    assert len(list(tagger.stream([tmp_path / "a.png"] * 5, batch_size=100_000, workers=100_000))) == 5
    assert sizes == {5}
    many = (tmp_path / "a.png" for _ in range(600))
    assert len(list(tagger.stream(many, batch_size=100_000, workers=100_000))) == 600
    assert sizes == {5, tagger_module.LARGEST * tagger.batch_size}
    assert max(threads) < tagger_module.MOST_WORKERS + 10


@pytest.fixture
def folder_of_companions(root) -> Path:
    for name in ("a.txt", "a.caption", "notes.md", "tags.csv", "Thumbs.db", "list.json"):
        (root / name).write_text("mine")
    return root


def test_files_beside_images_are_passed_over_when_a_pattern_names_them(call: Call, folder_of_companions):
    root = folder_of_companions
    for inputs in ([f"{root}/*.*"], sorted(path for path in root.iterdir() if path.is_file())):
        done = call("tag", "--model", TINY, "--dry-run", *inputs)
        assert (done.returncode, done.stderr) == (0, "")
        assert "3 images, 1 of them already tagged; 2 to tag" in done.stdout
        assert "; passed over: not an image: 6" in done.stdout
    for _ in range(2):
        files = [path for path in root.iterdir() if path.is_file()]
        assert call("tag", "--model", TINY, *files).returncode == 0
    assert tagged(root) == {"a", "b", "c"}
    assert (root / "a.txt").read_text() == "mine"


def test_folders_of_programs_are_passed_over_when_a_pattern_names_them(root):
    for name in ("@eaDir", "#recycle"):
        (root / name).mkdir()
        (root / name / "e.png").write_bytes((root / "a.png").read_bytes())
    for inputs in ([f"{root}/*"], [str(path) for path in root.iterdir()]):
        assert {path.name for path in find_images(inputs).images} == {"a.png", "b.png", "c.png", "d.png"}
    assert [path.name for path in find_images([str(root / "@eaDir")]).images] == ["e.png"]


def test_a_single_file_that_is_no_image_is_named(call: Call, folder_of_companions):
    root = folder_of_companions
    assert_one_line(call("tag", "--model", TINY, root / "notes.md"), "notes.md", "not an image")
    assert_one_line(call("tag", "--model", TINY, root / "notes.md", root / "a.txt"), "no images here")
    (root / "a.png").rename(root / "without_suffix")
    assert call("tag", "--model", TINY, root / "without_suffix").returncode == 0


def test_unknown_names_are_warned_of_once(call: Call, root):
    flags = ["--exclude", "tag_99, tag_1, *_x", "--replace", "tga_2=x", "--always-first", "tag_0"]
    done = call("tag", "--model", TINY, root, *flags)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "joytag tag: warning: exclude: the model has no tag tag_99 (did you mean tag_9?), *_x",
        "joytag tag: warning: replace: the model has no tag tga_2 (did you mean tag_2?)",
    ]


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("flags", [[], ["--append"], ["--overwrite"], ["--output", "csv"]], ids=str)
def test_several_processes_at_one_folder_write_nothing_twice_and_lose_nothing(tmp_path, processes, flags):
    rng = np.random.default_rng(0)
    for number in range(60):
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_text("bad")
    if "--append" in flags:
        (tmp_path / "0.txt").write_text("my own")
    started = CONTEXT.Barrier(processes)

    def work() -> None:
        torch.set_num_threads(1)
        started.wait()
        command.run("tag", ["--model", str(TINY), str(tmp_path), "--batch-size", "2", "--workers", "1", *flags])

    jobs = [CONTEXT.Process(target=work) for _ in range(processes)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    codes = sorted(job.exitcode or 0 for job in jobs)
    assert failures(tmp_path).keys() == {"bad.png"}
    assert not list(tmp_path.glob(".*"))
    if "csv" in flags:
        assert codes in ([0] + [2] * (processes - 1), [0, 0, 2], [0] * processes)
        names = [line.split(",")[0] for line in (tmp_path / "tags.csv").read_text().splitlines()]
        assert sorted(names) == sorted(["file_name", *(f"{number}.png" for number in range(60))])
        return
    assert codes == [0] * processes
    tagger = Tagger.load(TINY, device="cpu")
    for number in range(60):
        names = (tmp_path / f"{number}.txt").read_text().removesuffix("\n").split(", ")
        assert len(set(names)) == len(names)
        assert sorted(set(names) - {"my own"}) == sorted(tagger(tmp_path / f"{number}.png").tags)
        assert ("my own" in names) == ("--append" in flags and number == 0)
