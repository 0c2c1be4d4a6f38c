"""A folder as people have it is built with one command; every image is used as meant or named with its reason."""

import pyarrow.parquet as pq
import pytest
from commands import Call
from mixed_folder import CATEGORIES, STYLES, write_mixed_folder

from data_prep.sources.posts import path_id
from joytag.data.dataset import SPLITS


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return write_mixed_folder(tmp_path_factory.mktemp("mixed"))


def test_every_image_is_used_with_the_tags_meant_or_named_with_its_reason(mixed, tmp_path, call: Call):
    output = tmp_path / "dataset"
    done = call("build", "--config", "folder.yaml", f"sources.0.path={mixed.folder}", f"output={output}")
    assert done.returncode == 0, done.stderr
    assert len(mixed.tags) + len(mixed.broken) == 300
    tags = pq.read_table(output / "tags.parquet").to_pylist()
    found = {
        row["post_id"]: {tags[i]["name"] for i in row["tags"]}
        for split in SPLITS
        for row in pq.read_table(output / f"{split}.parquet").to_pylist()
    }
    assert found == {path_id(path): names for path, names in mixed.tags.items()}
    rejected = pq.read_table(output / "rejected.parquet").to_pylist()
    assert {row["path"] for row in rejected} == mixed.broken
    assert {row["reason"] for row in rejected} <= {"damaged", "not an image"}
    assert {tag["name"]: tag["category"] for tag in tags if tag["category"]} == CATEGORIES


def test_the_style_of_each_folder_is_printed(mixed, tmp_path, call: Call):
    arguments = [
        "--config",
        "folder.yaml",
        f"sources.0.path={mixed.folder}",
        f"output={tmp_path / 'tags'}",
        "images=false",
    ]
    done = call("build", *arguments)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("sidecars")]
    for name in (*STYLES, "mixed"):
        assert any(f"/{name}" in line or "more folder" in line for line in lines), name
