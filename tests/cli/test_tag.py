"""`joytag tag`: folders, flags, mistakes."""

import re
import shlex
import subprocess
import sys

import pytest
from commands import assert_one_line
from paths import ROOT, TINY

OURS = """--threshold 0.3 --underscores space --exclude tag_0 --always-first tag_5 --replace tag_3=other
    --separator '; ' --extension .caption --batch-size 2 --workers 1"""
THEIRS = """--thresh 0.3 --remove_underscore --undesired_tags tag_0 --always_first_tags tag_5
    --tag_replacement tag_3,other --caption_separator "; " --caption_extension .caption
    --batch_size 2 --max_data_loader_n_workers 1 --frequency_tags"""


def test_a_folder_is_tagged_once(call, image_folder):
    done = call("tag", "--model", TINY, image_folder, "--dry-run", "--threshold", "0.3")
    assert done.returncode == 0
    assert "4 images; 4 to tag, into a .txt file beside each" in done.stdout
    assert not list(image_folder.glob("*.txt"))
    done = call("tag", "--model", TINY, image_folder, "--threshold", "0.3")
    assert done.returncode == 0, done.stderr
    assert len(list(image_folder.glob("*.txt"))) == 4
    assert "4 images tagged" in done.stdout
    assert "fp32 on" in done.stdout
    counts = [int(count) for count in re.findall(r"^ +(\d+)  \w+", done.stdout, re.MULTILINE)]
    assert counts
    assert counts == sorted(counts, reverse=True)
    assert max(counts) <= 4
    done = call("tag", "--model", TINY, image_folder)
    assert done.returncode == 0
    assert "4 of them already tagged; 0 to tag, into a .txt file beside each (--overwrite tags all)" in done.stdout


def test_flags_are_accepted_in_the_spelling_of_sd_scripts(call, image_folder):
    """Both spellings give the same sidecars."""
    sidecars = []
    for flags in (OURS, THEIRS):
        done = call("tag", "--model", TINY, image_folder, "--overwrite", *shlex.split(flags))
        assert done.returncode == 0, done.stderr
        sidecars.append({path.name: path.read_text() for path in image_folder.glob("*.caption")})
    assert len(sidecars[0]) == 4
    assert sidecars[0] == sidecars[1]
    done = call("tag", "--model", TINY, image_folder, "--append_tags", "--caption_extension", ".caption")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--max-tags", "0"], "--max-tags"),
        (["--replace", "solo"], "--replace"),
        (["--output", "xml"], "--output"),
        (["--batch-size", "many"], "--batch-size"),
        (["--separator", ""], "--separator"),
        (["--extension", ".png"], "--extension"),
        (["--append", "--overwrite"], "--append"),
        (["--thresholds", "gone.json"], "gone.json"),
        (["--device", "cuda:77"], "cuda:77"),
        (["--precision", "int8", "--device", "mps"], "mps"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_mistake_ends_in_one_line_and_writes_nothing(call, image_folder, flags, part):
    before = sorted(image_folder.iterdir())
    assert_one_line(call("tag", "--model", TINY, image_folder, *flags), part)
    assert sorted(image_folder.iterdir()) == before


def test_the_reader_of_the_output_may_stop_early(image_folder):
    command = (
        f"{sys.executable} -m joytag tag --model {TINY} --threshold 0.01 --output print '{image_folder}' | head -1"
    )
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith(".png\n")
    assert done.stderr == ""


def test_unusable_images_and_models_are_named(call, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "text.png").write_text("no image")
    assert_one_line(call("tag", "--model", TINY, tmp_path / "text.png"), "text.png", "not an image")
    assert_one_line(call("tag", "--model", TINY, tmp_path / "gone.png"), "gone.png", "no such file")
    assert_one_line(call("tag", "--model", tmp_path, tmp_path / "text.png"), "config.json", "missing")
    assert_one_line(call("tag", "--model", TINY, tmp_path / "texts"), "no images here")


def test_evidence_is_drawn_instead_of_tagging(call, image_folder, tmp_path):
    arguments = ["tag", "--model", TINY, image_folder, "--evidence", "Tag 3, tag_1*"]
    done = call(*arguments)
    assert done.returncode == 0, done.stderr
    drawings = [tmp_path / "evidence" / f"{colour}.png.png" for colour in ("blue", "green", "red", "white")]
    assert sorted((tmp_path / "evidence").iterdir()) == drawings
    assert not list(image_folder.glob("*.txt"))
    assert "red.png.png: tag_" in done.stdout
    inside = ["--evidence-folder", image_folder / "maps", "--recursive"]
    for _ in range(2):  # the second time its own drawings are there
        assert call(*arguments, *inside).returncode == 0
    assert len(list((image_folder / "maps").iterdir())) == 4


def test_evidence_for_unknown_tags_or_unusable_images_is_an_error_in_one_line(call, image_folder, tmp_path):
    done = call("tag", "--model", TINY, image_folder, "--evidence", "tag_99")
    assert_one_line(done, "--evidence: the model has no tag tag_99 (did you mean tag_")
    (image_folder / "red.png").write_bytes(b"no image")
    (image_folder / "blue.png").rename(image_folder / f"{'b' * 250}.png")  # to which .png is added
    done = call("tag", "--model", TINY, image_folder, "--evidence", "tag_1")
    assert done.returncode == 0
    assert "File name too long" in done.stderr
    assert done.stderr.count("Not drawn") == 2
    assert_one_line(call("tag", "--model", TINY, image_folder / "red.png", "--evidence", "tag_1"), "red.png")
