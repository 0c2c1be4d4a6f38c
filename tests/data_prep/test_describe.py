"""A dataset is described in a table, in plots and in a sheet of copies."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from mirror import encode, random_image
from paths import ROOT
from PIL import Image

from data_prep.build import build
from data_prep.config import BuildSettings
from data_prep.tools import copies_sheet, describe
from joytag.data import fonts
from joytag.data.dataset import DatasetError, read_description


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Twelve images, a copy and a recoloured version of two of them, and a file that is not an image."""
    root = tmp_path_factory.mktemp("described")
    (folder := root / "images").mkdir()
    files = {f"{number}.png": encode(random_image(number)) for number in range(12)}
    files["copy.jpg"] = encode(random_image(3), "JPEG", quality=97, subsampling=0)
    files["dark.png"] = encode(random_image(4).point(lambda value: value * 0.7))
    files["none.png"] = b"hello"
    for name, data in files.items():
        (folder / name).write_bytes(data)
        (folder / name).with_suffix(".txt").write_text("cat, dog")
    values = {
        "output": str(root / "out"),
        "sources": [{"name": "mine", "kind": "sidecar", "path": str(folder)}],
        "tags": {"min_count": 2, "min_tags": 1},
        "validation": {"images": 2, "min_per_tag": 1},
    }
    return build(BuildSettings.model_validate(values))


def test_the_command_prints_the_counts_and_draws_plots(dataset):
    command = [sys.executable, "-m", "joytag", "describe", str(dataset)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={"COLUMNS": "80", "PATH": ""})
    assert done.returncode == 0, done.stderr
    assert "12 families: 1 of several images (2), at most 2\n" in done.stdout
    assert "would have a relative in training: 14.1% of mine\n" in done.stdout
    cells = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in done.stdout.splitlines() if "│" in line}
    assert cells == {"in the sources": "15", "copy": "1", "not an image": "1", "train": "11", "validation": "2"}
    with Image.open(dataset / "dataset.png") as drawn:
        assert drawn.width > 800
        assert np.asarray(drawn.convert("L")).std() > 20


def test_labels_of_the_plots_do_not_overlap_and_shares_end_at_1(dataset, tmp_path):
    for path in dataset.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    posts = pq.read_table(dataset / "validation.parquet")
    pq.write_table(posts.slice(0, 0), tmp_path / "validation.parquet")  # no image
    for directory in (dataset, tmp_path):
        figure = describe.plot(directory)
        figure.draw_without_rendering()
        assert figure.axes[1].get_xlim() == (0, 1)
        for axes in figure.axes:
            labels = list(axes.texts)
            for axis in (axes.xaxis, axes.yaxis):
                low, high = axis.get_view_interval()
                ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
                labels += [tick.label1 for tick in ticks if low <= tick.get_loc() <= high]
            boxes = [label.get_window_extent() for label in labels if label.get_text()]
            assert boxes
            for i, box in enumerate(boxes):
                assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
                assert not any(box.overlaps(other) for other in boxes[:i])


def test_the_sheet_names_the_original_files(dataset, monkeypatch):
    written = []

    def wrap(text, *_):
        written.append(text)
        return [text]

    monkeypatch.setattr(fonts, "wrap", wrap)
    copies_sheet.draw(dataset, 9)
    assert sorted(written) == ["3.png", "4.png", "copy.jpg", "dark.png"]


def test_a_dataset_without_its_work_directory_can_be_described(dataset, tmp_path):
    for path in dataset.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert describe.draw(tmp_path).exists()


def test_a_dataset_of_an_old_build_is_refused_in_one_line(dataset_directory):
    with pytest.raises(DatasetError, match="counts: missing"):
        describe.table(read_description(dataset_directory))


def test_the_sheet_shows_copies_and_images_that_are_kept(dataset):
    with Image.open(copies_sheet.draw(dataset, 9)) as drawn:
        assert drawn.width == 2 * (2 * copies_sheet.CELL + 12)
        colours = {colour for _, colour in drawn.getcolors(1 << 24) or []}
    assert {(178, 34, 34), (70, 130, 180)} <= colours  # one pair that counts as copies, one that does not
    command = [sys.executable, "-m", "joytag", "dedup", "--report", str(dataset)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(dataset / "copies.png")


def test_families_are_described_if_they_were_counted():
    assert describe.families({}) == []
    counts = {"families": 9, "several": 2, "images": 4100, "largest": 4000, "relatives": {"a": 0.5, "b": 0.0}}
    giants = {"too_large": 2, "training_images": 4100, "giants": {"a/b.png": 4000, "a/c.png": 100}}
    text = describe.families({"families": counts | giants})
    assert text == [
        "9 families: 2 of several images (4,100), at most 4,000",
        "without families these validation images would have a relative in training: 50.0% of a, 0.0% of b",
        "families too large for validation: 2 (4,100 images), the largest that of a/b.png (4,000)",
    ]


def test_a_sheet_of_a_dataset_without_its_config_is_refused(dataset_directory, tmp_path):
    with pytest.raises(ValueError, match=r"dataset\.json: config: "):
        copies_sheet.draw(dataset_directory, 9)
