"""A dataset has the tags, copies and split that a slow and simple recount expects."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from mirror import encode, md5, random_image, relation, write_mirror
from paths import ROOT
from PIL import Image

import data_prep.build
from data_prep import scan
from data_prep.build import build
from data_prep.config import BuildSettings
from data_prep.sources import posts
from joytag.core.settings import load
from joytag.data.dataset import CONFIG, SPLITS, Dataset, DatasetError, DatasetMissing

ALIASES = {"feline": "cat"}
IMPLICATIONS = {"cat": "animal", "animal": "living"}
WORDS = ["feline", "cat", "animal", "house", "red", "blue", "rare", "commentary", "hero"]


def final_tags(raw: list[str]) -> set[str]:
    result = {ALIASES.get(name, name) for name in raw} - {"commentary"}
    for _ in IMPLICATIONS:
        result |= {IMPLICATIONS[name] for name in result if name in IMPLICATIONS}
    return result


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[BuildSettings, dict[tuple[int, int], set[str]]]:
    """A config that was built, and the expected tags of each (source, post).

    It is long because it lists every kind of source and fault, one after the other.
    """
    root = tmp_path_factory.mktemp("build")
    rng = np.random.default_rng(0)
    expected: dict[tuple[int, int], set[str]] = {}
    lines: list[dict | str] = []

    def draw() -> list[str]:
        return [str(name) for name in rng.choice(WORDS[:6] + WORDS[7:], rng.integers(3, 6), replace=False)]

    def post(number: int, data: bytes, raw: list[str], **changes: str) -> None:
        path = root / "mirror" / "original" / f"{number % 1000:04d}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        lines.append({"id": str(number), "md5": md5(data), "file_ext": "png", "tag_string": " ".join(raw)} | changes)

    def with_sidecar(name: str, data: bytes, raw: list[str]) -> int:
        path = root / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.with_suffix(".txt").write_text(", ".join(raw))
        return posts.path_id(name)

    for number in range(1, 41):
        raw = draw()
        post(1000 * number + number, encode(random_image(number)), raw)
        expected[0, 1000 * number + number] = final_tags(raw)
    for number in range(41, 56):
        raw = draw()
        expected[1, with_sidecar(f"{number}.png", encode(random_image(number)), raw)] = final_tags(raw)

    # A larger copy in the other source is kept, with the tags of the smaller one.
    large = with_sidecar("large.png", encode(random_image(1, 240, 192)), ["house", "red", "rare"])
    expected[1, large] = final_tags(["house", "red", "rare"]) | expected.pop((0, 1001))
    # The same file again gives its tags to the first.
    post(50_002, encode(random_image(2)), ["hero", "blue"])
    expected[0, 2002] |= {"hero", "blue"}
    # Look-alikes in other colours are both kept, on one side of the split.
    darker = encode(random_image(3).point(lambda value: value * 0.7))
    post(50_003, darker, ["red", "house"])
    expected[0, 50_003] = {"red", "house"}
    # All of these are rejected.
    post(60_001, encode(random_image(61)), ["red", "house"], md5="0" * 32)
    post(60_002, encode(random_image(62), save_all=True, append_images=[random_image(63)]), ["red", "house"])
    post(60_003, b"hello", ["red", "house"])
    post(60_004, encode(random_image(64)), ["commentary", "red"])
    lines.append({"id": "60005", "md5": "x", "file_ext": "png", "tag_string": "red house"})

    write_mirror(
        root / "mirror",
        posts=lines,
        tags=[{"name": name, "category": "4" if name == "hero" else "0"} for name in WORDS],
        tag_aliases=[relation(*pair) for pair in ALIASES.items()],
        tag_implications=[relation(*pair) for pair in IMPLICATIONS.items()],
    )
    config = BuildSettings.model_validate(
        {
            "output": str(root / "dataset"),
            "sources": [
                {"name": "mirror", "kind": "danbooru2021", "path": str(root / "mirror")},
                {"name": "folder", "kind": "sidecar", "path": str(root / "folder")},
            ],
            "longest_side": 64,
            "tags": {"min_count": 3, "min_tags": 2, "blacklist": ["commentary"]},
            "validation": {"images": 12, "min_per_tag": 2},
        }
    )
    assert build(config) == root / "dataset"
    return config, {post: names for post, names in expected.items() if len(names) >= 2}


def small_build(output: Path, *sources: dict[str, str], held_out: int) -> BuildSettings:
    """Return the config of a dataset of all tags that occur twice, with `held_out` validation images."""
    values = {
        "output": str(output),
        "sources": list(sources),
        "tags": {"min_count": 2, "min_tags": 1},
        "validation": {"images": held_out, "min_per_tag": 1},
    }
    return BuildSettings.model_validate(values)


def rejected(config: BuildSettings) -> list[dict]:
    return pq.read_table(Path(config.output) / "rejected.parquet").to_pylist()


def contents(config: BuildSettings) -> dict[str, list[dict]]:
    return {split: pq.read_table(Path(config.output) / f"{split}.parquet").to_pylist() for split in SPLITS}


def test_a_dataset_has_the_expected_images_and_tags(built):
    config, expected = built
    names = Dataset.open(Path(config.output)).tags.names
    result = {
        (row["source"], row["post_id"]): {names[i] for i in row["tags"]}
        for split in contents(config).values()
        for row in split
    }
    assert {post: tags_ - {"rare"} for post, tags_ in expected.items()} == result
    for split in contents(config).values():
        assert all(row["tags"] == sorted(set(row["tags"])) for row in split)


def test_each_image_has_the_path_of_its_original(built):
    config, _ = built
    folders = [Path(source.path) for source in config.sources]
    dataset = Dataset.open(Path(config.output))
    for split, rows in contents(config).items():
        for row in rows:
            data = (folders[row["source"]] / row["path"]).read_bytes()
            assert hashlib.sha256(data).digest() == row["hash"]
        hashes = dataset.posts(split).hashes
        assert dataset.original_paths(split, hashes[::-2]) == [row["path"] for row in rows[::-2]]
        assert dataset.original_paths(split, hashes[:1] * 0) == [""]
        originals = dataset.originals(split)
        assert originals is not None
        assert originals.to_pylist() == [row["path"] for row in rows]
    copies = [row for row in rejected(config) if row["reason"] == "copy"]
    assert copies
    kept = [row for rows in contents(config).values() for row in rows]
    names = {f"{config.sources[row['source']].name}/{row['path']}" for row in kept}
    assert {row["detail"].removeprefix("of ") for row in copies} <= names


def test_the_table_of_tags_equals_a_recount(built):
    config, _ = built
    splits = contents(config)
    table = pq.read_table(Path(config.output) / "tags.parquet").to_pylist()
    counts = {split: Counter(i for row in splits[split] for i in row["tags"]) for split in SPLITS}
    sources = Counter((row["source"], i) for split in splits.values() for row in split for i in row["tags"])
    for row in table:
        i = row["index"]
        assert row["count_train"] == counts["train"][i]
        assert row["count_validation"] == counts["validation"][i] >= config.validation.min_per_tag
        assert row["count"] == row["count_train"] + row["count_validation"] >= config.tags.min_count
        assert row["count_by_source"] == [sources[0, i], sources[1, i]]
        assert row["category"] == (4 if row["name"] == "hero" else 0)
    assert {row["name"] for row in table} == {"cat", "animal", "living", "house", "red", "blue", "hero"}
    assert table == sorted(table, key=lambda row: (-row["count"], row["name"]))
    assert table != sorted(table, key=lambda row: (-row["count_train"], row["name"])), "the two orders differ here"


def test_a_folder_keeps_the_vocabulary_of_a_release_and_holds_out_a_fraction(tmp_path):
    """The shipped config on 30 images with a tag of 10 images, one of 4, and a release's three tags."""
    (folder := tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(30):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        names = ["known"] + ["new_(thing)"] * (number < 10) + ["rare"] * (number < 4)
        text = ", ".join(names).replace("(", r"\(").replace(")", r"\)")
        (folder / f"{number}.txt").write_text(text)
    (tmp_path / "top_tags.txt").write_text("known\nunused\nrare")
    config = ROOT / "configs" / "data" / "folder.yaml"
    base = load(BuildSettings, config, [f"output={tmp_path / 'dataset'}"])
    source = base.sources[0].model_copy(update={"path": str(folder)})
    kept = base.tags.model_copy(update={"keep": str(tmp_path / "top_tags.txt")})
    dataset = Dataset.open(build(base.model_copy(update={"sources": [source], "tags": kept})))
    assert sorted(dataset.tags.names) == ["known", "new_(thing)", "rare", "unused"]
    totals = dict(zip(dataset.tags.names, dataset.tags.totals.tolist(), strict=True))
    assert totals == {"known": 30, "new_(thing)": 10, "rare": 4, "unused": 0}
    validation = dataset.posts("validation")
    assert len(validation) == 3
    assert len(dataset.posts("train")) == 27
    assert validation.labels(np.arange(3), 4)[:, dataset.tags.names.index("new_(thing)")].any()


def test_a_missing_list_of_tags_to_keep_is_named(tmp_path):
    (folder := tmp_path / "images").mkdir()
    Image.new("RGB", (40, 40), "red").save(folder / "a.png")
    (folder / "a.txt").write_text("a")
    values = {"output": str(tmp_path / "out"), "sources": [{"name": "a", "kind": "sidecar", "path": str(folder)}]}
    with pytest.raises(ValueError, match=r"tags\.keep: .*gone\.txt"):
        build(BuildSettings.model_validate(values | {"tags": {"keep": str(tmp_path / "gone.txt")}}))


def test_no_validation_image_looks_like_a_training_image(built):
    config, expected = built
    splits = contents(config)
    phashes = {split: {row["phash"] for row in splits[split]} for split in SPLITS}
    assert len(splits["validation"]) >= config.validation.images
    assert not phashes["train"] & phashes["validation"]
    assert sum(map(len, phashes.values())) == len(expected) - 1, "the two look-alikes should share a pHash"


def test_every_image_of_a_dataset_exists_and_is_small(built):
    config, _ = built
    dataset = Dataset.open(Path(config.output))
    assert dataset.sources == ["mirror", "folder"]
    for split in SPLITS:
        for row in dataset.posts(split).hashes:
            with Image.open(dataset.image_path(row.tobytes())) as image:
                assert max(image.size) <= config.longest_side


def test_a_dataset_that_another_process_has_just_built_is_never_built_again(tmp_path, monkeypatch):
    (source := tmp_path / "source").mkdir()
    for number in range(6):
        (source / f"{number}.png").write_bytes(encode(random_image(number)))
        (source / f"{number}.txt").write_text("cat")
    values = {
        "output": str(tmp_path / "out"),
        "sources": [{"name": "a", "kind": "sidecar", "path": str(source)}],
        "tags": {"min_count": 1, "min_tags": 1},
        "validation": {"images": 1},
    }
    sole_writer = data_prep.build.sole_writer

    def sole_writer_later(directory: Path):
        monkeypatch.undo()
        build(BuildSettings.model_validate(values | {"format": "webp"}))
        return sole_writer(directory)

    monkeypatch.setattr(data_prep.build, "sole_writer", sole_writer_later)
    with pytest.raises(ValueError, match="holds a dataset of another config"):
        build(BuildSettings.model_validate(values))


def test_a_second_build_changes_nothing(built, capsys):
    config, _ = built
    state = {path: path.stat().st_mtime_ns for path in Path(config.output).rglob("*")}
    assert build(config) == Path(config.output)
    assert "up to date" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path(config.output).rglob("*")} == state


def test_a_dataset_that_was_split_by_older_rules_is_not_up_to_date(built, monkeypatch):
    config, _ = built
    monkeypatch.setattr(data_prep.build, "RULES", data_prep.build.RULES + 1)
    with pytest.raises(ValueError, match="dataset: another version has chosen its validation images"):
        build(config)


def test_a_dataset_of_another_config_is_not_overwritten(built):
    config, _ = built
    state = {path: path.stat().st_mtime_ns for path in Path(config.output).rglob("*")}
    with pytest.raises(ValueError, match="dataset: holds a dataset of another config"):
        build(config.model_copy(update={"longest_side": 48}))
    assert {path: path.stat().st_mtime_ns for path in Path(config.output).rglob("*")} == state


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("tags", {"min_count": 1000}, r"used fewer than 1000 times \(tags\.min_count\): animal"),
        ("validation", {"images": 500}, r"validation\.images: 500 cannot be held out of 56 images in 55 families"),
    ],
)
def test_a_build_that_cannot_succeed_leaves_no_dataset(built, tmp_path, section, changes, message):
    config, _ = built
    values = config.model_dump() | {"output": str(tmp_path), section: config.model_dump()[section] | changes}
    with pytest.raises(ValueError, match=message):
        build(BuildSettings.model_validate(values))
    assert not (tmp_path / "dataset.json").exists()


def test_two_sources_with_the_same_name_are_refused(built):
    config, _ = built
    values = config.model_dump()
    with pytest.raises(ValueError, match="two have the same name"):
        BuildSettings.model_validate(values | {"sources": [values["sources"][1]] * 2})


@pytest.mark.parametrize("name", ["con", "aux", "lpt1"])
def test_a_source_whose_folder_windows_could_not_create_is_refused(built, name):
    config, _ = built
    values = config.model_dump()
    with pytest.raises(ValueError, match=f"none may be called {name}, a name that Windows reserves"):
        BuildSettings.model_validate(values | {"sources": [values["sources"][1] | {"name": name}]})


def test_a_dataset_whose_sources_have_changed_is_refused(tmp_path):
    (folder := tmp_path / "images").mkdir()
    for number in range(4):
        random_image(number).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("cat, dog")
    config = small_build(tmp_path / "out", {"name": "a", "kind": "sidecar", "path": str(folder)}, held_out=1)
    build(config)
    (folder / "4.txt").write_text("cat")
    random_image(4).save(folder / "4.png")
    with pytest.raises(ValueError, match=r"its sources or lists of tags have changed since it was built"):
        build(config)
    (tmp_path / "out" / "dataset.json").unlink()
    build(config)
    assert sum(len(rows) for rows in contents(config).values()) == 5


def test_files_that_no_build_wrote_are_never_overwritten(tmp_path):
    (folder := tmp_path / "images").mkdir()
    random_image(0).save(folder / "0.png")
    (folder / "0.txt").write_text("cat")
    (release := tmp_path / "release").mkdir()
    (release / "top_tags.txt").write_text("1girl")
    config = small_build(release, {"name": "a", "kind": "sidecar", "path": str(folder)}, held_out=1)
    with pytest.raises(ValueError, match=r"^output: .*top_tags\.txt: not of a build here; choose another folder"):
        build(config)
    assert [path.name for path in release.iterdir()] == ["top_tags.txt"]


def test_names_of_the_blacklist_that_mean_no_tag_are_listed(tmp_path, capsys):
    (folder := tmp_path / "images").mkdir()
    for number in range(4):
        random_image(number).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("cat, dog, some request")
    config = small_build(tmp_path / "out", {"name": "a", "kind": "sidecar", "path": str(folder)}, held_out=1)
    (tmp_path / "list.txt").write_text("# comment\nDog\ncatt\n")
    changes = {"blacklist": ["*_request", "*_x"], "blacklist_files": [str(tmp_path / "list.txt")]}
    build(config.model_copy(update={"tags": config.tags.model_copy(update=changes)}))
    assert "on the blacklist, but no tag here: *_x, catt (did you mean cat?)\n" in capsys.readouterr().out
    assert Dataset.open(tmp_path / "out").tags.names == ["cat"]


@pytest.mark.parametrize("setting", ["blacklist_files", "keep"])
def test_a_dataset_whose_lists_of_tags_have_changed_is_refused(tmp_path, setting):
    (folder := tmp_path / "images").mkdir()
    for number in range(4):
        random_image(number).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("cat, dog, bird")
    (names := tmp_path / "names.txt").write_text("bird")
    config = small_build(tmp_path / "out", {"name": "a", "kind": "sidecar", "path": str(folder)}, held_out=1)
    tags = config.tags.model_copy(update={setting: [str(names)] if setting == "blacklist_files" else str(names)})
    config = config.model_copy(update={"tags": tags})
    build(config)
    build(config)
    names.write_text("dog")
    with pytest.raises(ValueError, match=r"its sources or lists of tags have changed since it was built"):
        build(config)


def test_only_shards_with_new_images_are_scanned_again(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "SHARD", 4)
    lines = []
    for number in range(1, 11):
        path = tmp_path / "original" / f"{number:04d}" / f"{number}.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(data := encode(random_image(number)))
        lines.append({"id": str(number), "md5": md5(data), "file_ext": "png", "tag_string": "a b"})
    write_mirror(tmp_path, posts=lines)
    late = tmp_path / "original" / "0006" / "6.png"
    late.rename(tmp_path / "late.png")
    config = small_build(tmp_path / "out", {"name": "m", "kind": "danbooru2021", "path": str(tmp_path)}, held_out=2)
    build(config)
    assert sum(len(rows) for rows in contents(config).values()) == 9
    files = sorted((tmp_path / "out" / "work" / "m" / "scan").glob("*.parquet"))
    times = [path.stat().st_mtime_ns for path in files]
    (tmp_path / "late.png").rename(late)
    (tmp_path / "out" / "dataset.json").unlink()
    build(config)
    assert sum(len(rows) for rows in contents(config).values()) == 10
    assert [path.stat().st_mtime_ns == time for path, time in zip(files, times, strict=True)] == [True, False, True]


def test_a_build_without_images_has_tags_but_cannot_be_trained_on(built, tmp_path):
    config, _ = built
    values = config.model_dump() | {"output": str(tmp_path / "tags"), "images": False}
    dataset = Dataset.open(build(BuildSettings.model_validate(values)))
    assert "cat" in dataset.tags.names
    assert not (tmp_path / "tags" / "images").exists()
    with pytest.raises(DatasetError, match="built with `images: false`"):
        dataset.image_path(bytes(32))
    assert (tmp_path / "tags" / "top_tags.txt").read_text().split("\n") == dataset.tags.names


def test_a_dataset_can_be_built_from_its_own_config(built):
    config, _ = built
    assert load(BuildSettings, Path(config.output) / CONFIG) == config


def test_a_dataset_of_another_version_must_be_built_again(built, tmp_path):
    config, _ = built
    (tmp_path / "dataset.json").write_text('{"version": 0}')
    (tmp_path / CONFIG).write_text((Path(config.output) / CONFIG).read_text())
    for refused in (
        lambda: Dataset.open(tmp_path),
        lambda: build(config.model_copy(update={"output": str(tmp_path)})),
    ):
        with pytest.raises(DatasetMissing, match=r"version: not 1, .* remove the file and build the dataset again"):
            refused()


def test_a_dataset_can_be_a_source_of_another(built, tmp_path):
    config, expected = built
    values = config.model_dump() | {
        "output": str(tmp_path / "again"),
        "sources": [{"name": "again", "kind": "parquet", "path": config.output}],
        "format": "webp",
        "validation": {"images": 5, "min_per_tag": 1},
    }
    dataset = Dataset.open(build(BuildSettings.model_validate(values)))
    posts_ = [dataset.posts(split) for split in SPLITS]
    assert sum(map(len, posts_)) == sum(len(names - {"rare"}) >= 2 for names in expected.values())
    assert dataset.image_path(posts_[0].hashes[0].tobytes()).suffix == ".webp"


def test_min_count_counts_validation_images_too(built, tmp_path):
    config, _ = built
    table = pq.read_table(Path(config.output) / "tags.parquet").to_pylist()
    rarest = min(row["count"] for row in table)
    assert rarest > min(row["count_train"] for row in table)
    values = config.model_dump() | {
        "output": str(tmp_path / "again"),
        "sources": [{"name": "again", "kind": "parquet", "path": config.output}],
        "images": False,
        "tags": {"min_count": rarest, "min_tags": 1},
    }
    dataset = Dataset.open(build(BuildSettings.model_validate(values)))
    assert dataset.tags.names == [row["name"] for row in table]


def test_hostile_rows_are_listed_and_write_no_file_outside_the_output(tmp_path):
    mirror, output = tmp_path / "mirror", tmp_path / "out"
    digest = "0123456789abcdef0123456789abcdef"
    strange = ["a,b", '"quoted"', "🦊", "ערבית", "x" * 10_000_000, "n\0l", "../../x", "tab\tbed"]
    lines: list[dict | str] = [
        {"id": "../../../1", "md5": digest, "file_ext": "png", "tag_string": "a"},
        {"id": "2", "md5": "../../etc/passwd", "file_ext": "png", "tag_string": "a"},
        {"id": "3", "md5": digest, "file_ext": "/../../x", "tag_string": "a"},
        '{"id": "4", "x": "' + "y" * 100_000_000 + '"}',
        {"id": "5", "md5": digest, "file_ext": "png", "tag_string": "z" * 10_000_000},
    ]
    for number in range(10, 20):
        data = encode(random_image(number))
        path = mirror / "original" / f"{number:04d}" / f"{number}.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        names = [name for name in strange if len(name) < 1000]
        lines.append({"id": str(number), "md5": md5(data), "file_ext": "png", "tag_string": " ".join(names)})
    write_mirror(mirror, posts=lines)
    (tmp_path / "side").mkdir()
    for number in range(20, 24):
        random_image(number).save(tmp_path / "side" / f"{number}.png")
        (tmp_path / "side" / f"{number}.txt").write_text("🦊, " + ("w" * 500_000 if number > 21 else "a b"), "utf-8")
    before = set(tmp_path.rglob("*"))
    sources = [
        {"name": "mirror", "kind": "danbooru2021", "path": str(mirror)},
        {"name": "side", "kind": "sidecar", "path": str(tmp_path / "side")},
    ]
    config = small_build(output, *sources, held_out=2)
    dataset = Dataset.open(build(config.model_copy(update={"longest_side": 32})))
    assert not {p for p in tmp_path.rglob("*") if not p.is_relative_to(output)} - before
    assert set(dataset.tags.names) == {"a,b", '"quoted"', "🦊", "ערבית", "../../x", "tab", "bed", "a_b"}
    rejected = pq.read_table(output / "rejected.parquet").to_pylist()
    lines_rejected = sorted((row["file"], row["line"], row["reason"]) for row in rejected)
    assert lines_rejected == [("metadata/posts000000000000.json", line, "bad row") for line in range(1, 6)]
