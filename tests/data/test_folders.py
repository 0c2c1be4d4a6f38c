"""Tests of joytag.data.folders: which files of a folder are images, and what is passed over."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from requirements import needs_linux, needs_unix

from joytag.data import folders, images
from joytag.data.folders import find_images

PROGRAMS = [
    ".git",
    ".ipynb_checkpoints",
    ".Trash-1000",
    ".venv",
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "__MACOSX",
    "System Volume Information",
]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def reasons(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): reason for path, reason in find_images(root).passed_over.items()}


def test_images_of_a_folder_are_found_by_suffix(tmp_path):
    touch(tmp_path, "b.PNG", "a/c.jpeg", "a.txt", "a/d.webp", "e.gif.bak", "._b.png", "Thumbs.db", "c")
    assert find_images(tmp_path).images == [tmp_path / name for name in ("a/c.jpeg", "a/d.webp", "b.PNG")]
    assert find_images(tmp_path, recursive=False).images == [tmp_path / "b.PNG"]
    assert find_images(tmp_path / "b.PNG").images == [tmp_path / "b.PNG"]
    assert find_images(tmp_path / "a.txt").images == []
    assert find_images(tmp_path).passed_over == {}


def test_subfolders_that_are_not_searched_are_named(tmp_path):
    touch(tmp_path, "b.png", "a/c.jpeg", "a/d/e.jpeg", ".git/f.png", "@eaDir/g.png")
    (tmp_path / "link").symlink_to("a")
    expected = {tmp_path / "a": "subfolder (search recursively)", tmp_path / "link": "link to a folder"}
    assert find_images(tmp_path, recursive=False).passed_over == expected
    assert find_images(tmp_path).passed_over == {tmp_path / "link": "link to a folder"}


def test_images_are_listed_in_natural_order(tmp_path):
    names = ["1.png", "2.png", "10.png", "a2/1.png", "a10/1.png", "B.png", "c" + "9" * 200 + ".png"]
    touch(tmp_path, *reversed(names))
    assert find_images(tmp_path).images == [tmp_path / name for name in names]


@pytest.mark.parametrize("program", PROGRAMS)
def test_folders_of_programs_are_ignored(tmp_path, program):
    touch(tmp_path, f"{program}/a.png", f"b/{program}/c/d.png", f"{program}.png", f"e{program}/f.png")
    found = {path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path).images}
    assert found == {f"{program}.png", f"e{program}/f.png"}
    assert find_images(tmp_path).passed_over == {}
    assert find_images(tmp_path / program).images == [tmp_path / program / "a.png"], "a folder that is named is listed"


def test_image_files_that_cannot_be_read_are_named_and_others_ignored(tmp_path):
    touch(tmp_path, "a.png", "b.jxl", "c.CR2", "d.psd", "e.mp4", "f.svg", "g.txt", "h.json", "i.csv", "j.db", "k")
    assert reasons(tmp_path) == {
        f"{name}": f".{name[2:].lower()} cannot be read" for name in ("b.jxl", "c.CR2", "d.psd", "e.mp4", "f.svg")
    }


def test_no_suffix_is_both_read_and_refused():
    assert not folders.UNREADABLE & set(images.SUFFIXES)


def test_heic_is_named_with_its_remedy_where_it_cannot_be_read(tmp_path):
    touch(tmp_path, "a.heic", "b.HEIF", "c.png", "d.cr2")
    code = f"""if True:
        import sys
        sys.modules["pillow_heif"] = None  # as if it were not installed
        from pathlib import Path
        from joytag.data.folders import find_images
        found = find_images(Path({str(tmp_path)!r}))
        print(len(found.images), found.describe_passed_over())"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    heic, heif = (
        f".{kind} cannot be read without pillow-heif (pip install 'joytag[heif]'): 1" for kind in ("heic", "heif")
    )
    assert shown.startswith("1 ")
    assert set(shown[2:].strip().split("; ")) == {heic, heif, ".cr2 cannot be read: 1"}


def test_links_are_named_and_circles_are_harmless(tmp_path):
    touch(tmp_path, "inside/a/b.png", "outside/c.png")
    root = tmp_path / "inside"
    (root / "circle").symlink_to(root)
    (root / "a" / "up").symlink_to("..")
    (root / "other").symlink_to(tmp_path / "outside")
    (root / "file.png").symlink_to(tmp_path / "outside" / "c.png")
    (root / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "itself.png").symlink_to(root / "itself.png")
    (tmp_path / "link").symlink_to(root)
    assert find_images(root).images == [root / "a/b.png", root / "file.png"]
    link = "link to a folder"
    expected = {"circle": link, "a/up": link, "other": link, "gone.png": "broken link", "itself.png": "broken link"}
    assert reasons(root) == expected
    assert find_images(root).describe_passed_over() == "link to a folder: 3; broken link: 2"
    assert len(find_images(tmp_path / "link").images) == 2, "a link that is named is followed"


def test_folders_that_cannot_be_opened_are_named(tmp_path, monkeypatch):
    touch(tmp_path, "a.png", "private/b.png")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "private":  # root may read everything, so permissions prove nothing
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert find_images(tmp_path).images == [tmp_path / "a.png"]
    assert reasons(tmp_path) == {"private": "folder cannot be opened (Permission denied)"}


@needs_unix
def test_other_kinds_of_files_are_ignored(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    assert find_images(tmp_path) == ([], {})


def test_a_file_system_that_ignores_case_is_recognized(tmp_path, ignoring_case):
    (tmp_path / "a.png").touch()
    assert folders.ignores_case(tmp_path / "a.png")


@needs_linux
def test_a_file_system_with_case_is_recognized(tmp_path):
    (tmp_path / "a.png").touch()
    assert not folders.ignores_case(tmp_path / "a.png")
    (tmp_path / "a.PNG").symlink_to(tmp_path / "a.png")
    assert not folders.ignores_case(tmp_path / "a.png")
