"""Flags of sd-scripts' tagger, compared with a restatement of what its tag_images_by_wd14_tagger.py does with them.

The restatement takes all tags as general ones. The commands sort by vocabulary and overwrite, as sd-scripts does.
"""

from pathlib import Path
from typing import Any

import pytest
from commands import Call, assert_one_line
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import TINY
from PIL import Image

from joytag.cli import tag
from joytag.tagging.captions import Captions
from joytag.tagging.outputs import Sidecars

VOCABULARY = ["1girl", "blue_hair", "^_^", "saber_(fate)", "commentary_request", "solo", "long_hair", "a;b", "smile"]
TARGETS = ["new_name", "x", "with; both, signs", "two words"]
SEPARATORS = [", ", ",", "; ", " | ", "/"]


def expected(found: list[str], separator: str, options: dict[str, Any], existing: str | None = None) -> str:
    names = list(VOCABULARY)
    if options.get("remove_underscore"):
        names = [name.replace("_", " ") if len(name) > 3 else name for name in names]
    written = dict(zip(VOCABULARY, names, strict=True))
    for part in filter(None, options.get("tag_replacement", "").replace(r"\;", "\1").replace(r"\,", "\2").split(";")):
        old, new = (text.replace("\1", ";").replace("\2", ",") for text in part.split(","))
        if old in written.values():
            written[next(tag for tag, name in written.items() if name == old)] = new
    sign = separator.strip()
    undesired = {name.strip() for name in options.get("undesired_tags", "").split(sign)}
    tags = [written[tag] for tag in VOCABULARY if tag in found and written[tag] not in undesired]
    for name in options.get("always_first_tags", "").split(sign):
        if name in tags:
            tags.remove(name)
            tags.insert(0, name)
    if existing is not None:
        there = [name.strip() for name in existing.strip("\n").split(sign) if name.strip()]
        tags = there + [name for name in tags if name not in there]
    return separator.join(tags) + "\n"


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("images") / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    return path


def written(image: Path, found: list[str], *flags: str) -> str:
    """Return the sidecar's text for an image that has some tags, with scores in another order than the vocabulary."""
    command = ["--model", "unused", str(image), "--sort", "vocabulary", *flags]
    job = tag.plan(tag.parse(command if "--append_tags" in flags else [*command, "--overwrite"]))
    captions = Captions(job.style, VOCABULARY)
    scores = {name: 0.99 - position / 100 for position, name in enumerate(sorted(found, reverse=True))}
    assert job.output.write(image, captions.choose(scores), captions) == ""
    return image.with_suffix(".txt").read_text()


@st.composite
def commands(draw: st.DrawFn) -> tuple[list[str], str, dict[str, Any]]:
    found = draw(st.lists(st.sampled_from(VOCABULARY), unique=True))
    separator = draw(st.sampled_from(SEPARATORS))
    options: dict[str, Any] = {"remove_underscore": draw(st.booleans())}
    names = [name.replace("_", " ") if options["remove_underscore"] and len(name) > 3 else name for name in VOCABULARY]
    sources = draw(st.lists(st.sampled_from(names), unique=True, max_size=len(TARGETS)))
    pairs = [
        (old.replace(";", r"\;"), new.replace(",", r"\,").replace(";", r"\;"))
        for old, new in zip(sources, TARGETS, strict=False)
    ]
    options["tag_replacement"] = ";".join(",".join(pair) for pair in pairs)
    safe = [name for name in [*names, *TARGETS] if separator.strip() not in name]
    for flag in ("undesired_tags", "always_first_tags"):
        options[flag] = separator.strip().join(draw(st.lists(st.sampled_from(safe), max_size=4)))
    return found, separator, options


def flags(separator: str, options: dict[str, Any]) -> list[str]:
    given = [f"--{name}={value}" for name, value in options.items() if value and value is not True]
    return [
        f"--caption_separator={separator}",
        *given,
        *(["--remove_underscore"] if options["remove_underscore"] else []),
    ]


@settings(max_examples=150)
@given(commands())
def test_flags_mean_what_they_mean_in_sd_scripts(image, command):
    found, separator, options = command
    assert written(image, found, *flags(separator, options)) == expected(found, separator, options)


@settings(max_examples=50)
@given(commands(), st.lists(st.sampled_from(["mine", "solo", "x y"]), unique=True))
def test_appending_means_what_it_means_in_sd_scripts(image, command, existing):
    found, separator, options = command
    options |= {"always_first_tags": ""}
    image.with_suffix(".txt").write_text(separator.join(existing) + "\n")
    text = expected(found, separator, options, separator.join(existing))
    assert written(image, found, "--append_tags", *flags(separator, options)) == text


def test_the_last_of_the_first_tags_comes_first_as_in_sd_scripts(image):
    found = ["1girl", "smile", "solo"]
    assert written(image, found, "--always_first_tags", "solo, smile") == "smile, solo, 1girl\n"
    assert written(image, found, "--always-first", "solo, smile") == "solo, smile, 1girl\n"


def test_lists_of_tags_are_split_by_the_separator(image):
    found = ["1girl", "smile", "a;b"]
    assert written(image, found, "--undesired_tags", "1girl|a;b", "--caption_separator", "|") == "smile\n"
    assert written(image, found, "--undesired_tags", "1girl,smile", "--caption_separator", " ") == "a;b\n"


def test_differences_on_purpose(image):
    """The table in docs/tagging.md."""
    assert written(image, ["blue_hair", "^_^"], "--remove_underscore") == "blue hair, ^_^\n"
    assert written(image, ["1girl", "solo"], "--undesired_tags", "SOLO") == "1girl\n"
    assert written(image, ["1girl", "solo"], "--undesired_tags", "s*") == "1girl\n"
    assert written(image, ["1girl", "solo"], "--caption_separator", r"\n") == "1girl\nsolo\n"
    assert written(image, ["1girl", "solo"], "--tag_replacement", "solo,1girl") == "1girl\n"
    image.with_suffix(".txt").write_text("mine\n")
    assert written(image, ["1girl"], "--append_tags", "--always_first_tags", "1girl") == "1girl, mine\n"
    job = tag.plan(tag.parse(["--model", "unused", str(image), "--caption_extension", "caption"]))
    assert isinstance(job.output, Sidecars)
    assert job.output.path(image).name == "a.caption"


@pytest.mark.parametrize("text", ["flag", "flag=", "=a", "a=b=c", "a,b;c,d", "a,b", "", r"a\=b"])
def test_a_replacement_that_is_not_old_equals_new_is_refused(call: Call, image, text):
    assert_one_line(call("tag", "--model", TINY, image, "--replace", text), "--replace", "old=new")


@pytest.mark.parametrize("text", ["flag", "a=b", "a,b,c", "a,b;", ";d,wink", "a,", "", r"a\,b", "a,b;c=d"])
def test_a_tag_replacement_that_is_not_pairs_is_refused(call: Call, image, text):
    assert_one_line(call("tag", "--model", TINY, image, "--tag_replacement", text), "--tag_replacement", "old,new")


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("flag=a,b", ("flag", "a,b")),
        (" blue hair = x;y ", ("blue hair", "x;y")),
        (";d=wink", (";d", "wink")),
        (r"\=_\==sleepy", ("=_=", "sleepy")),
        (r"a=b\=c", ("a", "b=c")),
    ],
)
def test_a_replacement_has_one_grammar(image, text, pair):
    options = tag.parse(["--model", "unused", str(image), "--replace", text])
    assert options.replace == [pair]


def test_flags_in_the_spelling_of_sd_scripts_that_cannot_be_followed_are_refused_with_a_reason(call: Call, image):
    for flag in tag.REFUSED:
        assert_one_line(call("tag", "--model", TINY, image, flag), flag, tag.REFUSED[flag])
        assert_one_line(call("tag", "--model", TINY, image, flag, "0.3"), flag, tag.REFUSED[flag])


def test_zero_workers_and_the_misspelt_extension_are_accepted(call: Call, image):
    flags = ["--max_data_loader_n_workers", "0", "--caption_extention", ".caption", "--batch_size", "1"]
    done = call("tag", "--model", TINY, image, *flags)
    assert done.returncode == 0, done.stderr
    assert image.with_suffix(".caption").exists()
