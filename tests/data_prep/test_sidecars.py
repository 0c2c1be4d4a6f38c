"""Sidecars are read in the styles that people and programs write."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import inputs
from data_prep.config import Source
from data_prep.sources.posts import unique
from data_prep.sources.sidecar_style import Evidence, Style
from data_prep.tags import Policy
from joytag.data.encodings import decode
from joytag.data.folders import ignores_case
from joytag.data.tag_names import canonical
from joytag.tagging.captions import Captions, CaptionStyle


def read(folder: Path, separator: str = "auto") -> dict[str, list[str] | str]:
    """The tags or the reason of each image."""
    source = Source(name="x", kind="sidecar", path=str(folder), separator=separator)
    rows = [row for part in inputs.parts(source) for row in inputs.read(part).to_pylist()]
    return {row["path"]: row["reason"] or row["tags"] for row in rows}


def write(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write sidecars, each with its image."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        stem = path.name.rsplit(".", 1)[0]
        (path.parent / (stem if stem.endswith(".png") else f"{stem}.png")).touch()
    return folder


def recognized(*texts: str | bytes) -> list[list[str] | None]:
    """The tags of each text of a folder."""
    decoded = [decode(text if isinstance(text, bytes) else text.encode()) for text in texts]
    evidence = Evidence()
    for text, encoding in decoded:
        evidence.add(text, encoding)
    tags = [evidence.style().tags(text) for text, _ in decoded]
    return [None if names is None else unique(names) for names in tags]


# Encodings


@pytest.mark.parametrize(
    ("data", "text", "encoding"),
    [
        ("été, 猫".encode(), "été, 猫", "UTF-8"),
        ("été, 猫".encode("utf-8-sig"), "été, 猫", "UTF-8"),
        ("été, 猫".encode("utf-16"), "été, 猫", "UTF-16"),
        ("été, cat".encode("utf-16-le"), "été, cat", "UTF-16"),
        ("été, cat".encode("utf-16-be"), "été, cat", "UTF-16"),
        ("猫, 犬, 木, 花".encode("utf-16-le"), "猫, 犬, 木, 花", "UTF-16"),
        ("café, pokémon, it’s".encode("cp1252"), "café, pokémon, it’s", "Windows-1252"),
        (b"", "", "UTF-8"),
        (b"d\0g, ", "d\0g, ", "UTF-8"),
    ],
)
def test_encodings_are_recognized(data, text, encoding):
    assert decode(data) == (text, encoding)


@pytest.mark.parametrize(
    "data",
    [
        "黒い猫, 少女".encode("cp932"),
        "черная кошка".encode("cp1251"),
        "黑猫".encode("gbk"),
        b"\x81\xff",
        b"\xff\xfea",
        b"\xff\0",
    ],
)
def test_other_encodings_are_refused(data):
    with pytest.raises(ValueError, match="save it as UTF-8"):
        decode(data)


# Styles of a folder

TAGS = ["1girl", "blue_hair", "saber_(fate)", "^_^", "looking_at_viewer"]


@pytest.mark.parametrize(
    "text",
    [
        "1girl, blue hair, saber (fate), ^_^, looking at viewer",
        "1girl,blue hair,saber (fate),^_^,looking at viewer,",
        "1girl, blue_hair, saber_\\(fate\\), ^_^, looking_at_viewer\r\n",
        "1girl，blue hair，saber (fate)，^_^，looking at viewer",
        "1girl、blue hair、saber (fate)、^_^、looking at viewer",
        "1girl; blue hair; saber (fate); ^_^; looking at viewer",
        "1girl;blue hair;saber (fate);^_^;looking at viewer;",
        "1girl\nblue hair\nsaber (fate)\n^_^\nlooking at viewer\n",
        "1girl\r\nblue_hair\r\nsaber_(fate)\r\n^_^\r\nlooking_at_viewer\r\n",
        "1girl,\nblue hair,\nsaber (fate),\n^_^,\nlooking at viewer",
        "1girl | blue hair | saber (fate) | ^_^ | looking at viewer",
        "1girl | blue_hair | saber_(fate) | ^_^ | looking_at_viewer",
        "1girl blue_hair saber_(fate) ^_^ looking_at_viewer",
        "1girl blue_hair\nsaber_(fate) ^_^ looking_at_viewer",
        "1girl, (blue hair:1.2), ((saber \\(fate\\))), ^_^, [looking at viewer]",
        "(1girl, blue hair:1.2), {saber (fate)}, ^_^, (((looking at viewer:0.9)))",
        "1girl, blue hair,\nsaber (fate), ^_^,\n\nlooking at viewer",
        "  1girl ,\u3000Blue\u3000Hair , Saber (Fate) , ^_^ , looking  at\u200b viewer , ",
    ],
)
def test_one_file_shows_its_style(text):
    assert recognized(text) == [TAGS]


@pytest.mark.parametrize(
    "tag", ["(o)_(o)", "(9)", ":(", ":)", ";)", ">:(", "\\o/", "saber (fate)", "[x]", "(^_^)", "x (y) (z)"]
)
def test_brackets_of_faces_and_of_names_stay(tag):
    assert recognized(f"{tag}, cat, dog") == [[canonical(tag), "cat", "dog"]]


def test_brackets_around_short_words_are_weights():
    assert recognized("(cat:1.2), [dog], ((hat))") == [["cat", "dog", "hat"]]


@pytest.mark.parametrize(
    "text",
    ["(" * 9**5 + ")" * 9**5, "(a," * 9**5, "()" * 9**5, "\\" * 9**5 + "x", "a" + " " * 9**5 + "b", "a_b " * 9**5],
)
def test_hostile_texts_take_linear_time(text):
    assert recognized(text)


def test_lines_of_a_booru_without_underscores_follow_the_others():
    assert recognized(*["1girl long_hair", "blue_hair hat solo"] * 5, "1girl solo") == [
        *[["1girl", "long_hair"], ["blue_hair", "hat", "solo"]] * 5,
        ["1girl", "solo"],
    ]
    assert recognized("1girl hat solo smile", "cat dog house tree") == [
        ["1girl", "hat", "solo", "smile"],
        ["cat", "dog", "house", "tree"],
    ]
    assert recognized("cat", "dog", "girl with red hat") == [["cat"], ["dog"], ["girl_with_red_hat"]]


def test_words_are_one_tag_where_other_files_have_commas_or_no_file_shows_more():
    assert recognized("my cat", "my cat") == [["my_cat"]] * 2
    assert recognized("1girl, hat", "long hair", "cat, dog") == [["1girl", "hat"], ["long_hair"], ["cat", "dog"]]
    assert recognized("hat\nlong hair", "long hair", "cat\ndog") == [
        ["hat", "long_hair"],
        ["long_hair"],
        ["cat", "dog"],
    ]


def test_a_comma_is_part_of_a_tag_where_others_are_separated_by_lines_or_spaces():
    assert recognized(*["cat\ndog"] * 9, "eat, pray\ndog", "eat, pray")[-2:] == [["eat,_pray", "dog"], ["eat,_pray"]]
    assert recognized("1girl hello,_world long_hair") == [["1girl", "hello,_world", "long_hair"]]


def test_semicolons_of_faces_do_not_separate():
    assert recognized("1girl; ;d; ;_;; solo") == [["1girl", ";d", ";_;", "solo"]]
    assert recognized("1girl ;d blue_hair ;_;") == [["1girl", ";d", "blue_hair", ";_;"]]


@pytest.mark.parametrize(
    "text",
    [
        "A photo of a cat sitting on a mat.",
        "a photo of a cat sitting on a mat",
        "A woman, standing in a park, holding a red balloon.",
        "The image shows two dogs. They are playing in the snow, and one of them holds a stick.",
        "猫がマットの上に座っています。",
        "Eine schwarze Katze sitzt auf der Matte.",
    ],
)
def test_sentences_are_refused(text):
    assert recognized(text, "1girl, hat", "cat, dog") == [None, ["1girl", "hat"], ["cat", "dog"]]
    assert recognized(text, "a cat") == [None, ["a_cat"]]
    assert recognized(text, text, "a cat") == [None] * 3


@pytest.mark.parametrize(
    "text",
    [
        "the legend of zelda",
        "1girl, hair over one eye, looking at viewer, hand on own hip",
        "series:the legend of zelda\ncharacter:princess zelda\ncreator:someone",
        "1girl, solo, dr. stone, mr. x",
        "the_idolmaster a_hat 1girl the_legend_of_zelda",
        "girl.",
        "モーニング娘。, 1girl",
    ],
)
def test_tags_are_not_taken_for_sentences(text):
    assert None not in recognized(text)


def test_a_caption_after_tags_is_kept_and_listed(capsys):
    assert recognized("1girl, solo, a girl stands in the park with her dog, hat") == [
        ["1girl", "solo", "a_girl_stands_in_the_park_with_her_dog", "hat"]
    ]


# Folders


def test_each_folder_has_its_style(tmp_path, capsys):
    booru = {f"booru/{i}.txt": f"1girl long_hair {'solo,cat' if i == 7 else 'solo'}" for i in range(8)}
    hydrus = {f"hydrus/{i}.png.txt": "long hair\ncharacter:hatsune miku" for i in range(4)}
    captions = {f"single/{i}.CAPTION": "my cat" for i in range(3)}
    tags: dict[str, str | bytes] = {f"tags/{i}.tags": "été, hat".encode("cp1252") for i in range(2)}
    found = read(write(tmp_path, {**booru, **hydrus, **captions, **tags}))
    assert found["booru/0.png"] == ["1girl", "long_hair", "solo"]
    assert found["booru/7.png"] == ["1girl", "long_hair", "solo,cat"]
    assert found["hydrus/0.png"] == ["long_hair", "character:hatsune_miku"]
    assert found["single/0.png"] == ["my_cat"]
    assert found["tags/0.png"] == ["été", "hat"]
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"sidecars *.txt of {tmp_path}/booru: 8 files: tags separated by spaces in 8, underscores and no commas in 8",
        f"sidecars *.*.txt of {tmp_path}/hydrus: 4 files: one tag a line in 4",
        f"sidecars *.caption of {tmp_path}/single: 3 files: one tag of several words in 3; if that is wrong, set "
        "`separator` of the source",
        f"sidecars *.tags of {tmp_path}/tags: 2 files: tags separated by commas in 2, Windows-1252 in 2",
    ]


def test_folders_of_one_style_share_a_line(tmp_path, capsys):
    read(write(tmp_path, {f"{i}/a.txt": "cat, dog" for i in range(30)}))
    assert capsys.readouterr().out == (
        f"sidecars *.txt of {tmp_path}/0 and 29 more folders: 30 files: tags separated by commas in 30\n"
    )


def test_of_several_sidecars_the_first_that_holds_tags_counts(tmp_path, capsys):
    write(
        tmp_path,
        {"a.txt": "cat, dog", "a.caption": "A photo of a cat and a dog.", "b.png.txt": "hat\nsun", "b.txt": "x, y"},
    )
    write(tmp_path / "prose", {"c.txt": "A photo of a cat and a dog.", "c.tags": "cat, dog"})
    assert read(tmp_path) == {"a.png": ["cat", "dog"], "b.png": ["hat", "sun"], "prose/c.png": ["cat", "dog"]}
    assert (
        "3 images: several sidecars, such as a.png; the first of a.png.txt, a.txt, a.tags, a.caption"
        in capsys.readouterr().out
    )


def test_sidecars_are_found_as_the_file_system_finds_them(tmp_path, request):
    """Where it ignores case, `HAT.txt` is the sidecar of `hat.png`."""
    write(tmp_path, {"hat.txt": "hat, solo", "dog.txt": "dog, solo"})
    (tmp_path / "hat.txt").rename(tmp_path / "HAT.txt")
    if not ignores_case(tmp_path / "hat.png"):
        assert read(tmp_path) == {"hat.png": "without sidecar", "dog.png": ["dog", "solo"]}
        request.getfixturevalue("ignoring_case")
    assert read(tmp_path) == {"hat.png": ["hat", "solo"], "dog.png": ["dog", "solo"]}


def test_an_output_inside_the_source_is_refused_in_any_case(tmp_path, ignoring_case):
    source = Source(name="x", kind="sidecar", path=str(write(tmp_path / "Art", {"a.txt": "hat, solo"})))
    for output in ("Art", "art", "art/dataset", "ART/new/dataset"):
        with pytest.raises(ValueError, match=r"output: .* inside the source"):
            inputs.check([source], tmp_path / output)
    inputs.check([source], tmp_path / "art2")


def test_a_folder_of_sentences_is_refused_in_a_line(tmp_path, capsys):
    captions = {f"{i}.caption": f"A photo of a cat with {i} kittens." for i in range(3)}
    write(tmp_path, captions)
    with pytest.raises(ValueError, match=r"hold sentences instead of tags; use tags, or set `separator`$"):
        read(tmp_path)
    assert "(.A photo of a cat with 0 kittens..)" in capsys.readouterr().out.replace("'", ".")
    assert read(tmp_path, "comma")["0.png"] == ["a_photo_of_a_cat_with_0_kittens."]
    write(tmp_path / "good", {"a.txt": "cat, dog"})
    assert read(tmp_path) == {f"{i}.png": "sentences instead of tags" for i in range(3)} | {
        "good/a.png": ["cat", "dog"]
    }


# What tagging writes

VOCABULARY = [
    "1girl",
    "blue_hair",
    "saber_(fate)",
    "^_^",
    ">_<",
    "o_o",
    ":3",
    ";d",
    ";_;",
    "(o)_(o)",
    "(9)",
    "\\o/",
    "|_|",
    "||_||",
    "re:zero",
    "fate/stay_night",
    "k-on!",
    "d'artagnan",
    "looking_at_viewer",
    "name_(series)_(alter)",
    "r&d",
    "?",
    "+_+",
    "12:30",
    "été",
    "猫耳",
    "dr._stone",
    "a.i._voice",
]
STYLES = [
    CaptionStyle(separator=separator, escape=escape)
    for separator, escape in itertools.product([", ", ",", "; ", ";", "\n", " ", " | ", "/ "], [False, True])
]
STYLES += [replace(style, underscores="space") for style in STYLES if style.separator != " "]
TAG_LISTS = st.lists(st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=6, unique=True), min_size=1, max_size=6)


@given(TAG_LISTS, st.sampled_from(STYLES))
def test_what_tagging_writes_is_read_with_the_same_separator(lists, style):
    if style.separator in (",", ";"):  # no tag with that character can be written so
        lists = [[tag for tag in tags if style.separator not in tag] for tags in lists]
    names = {" ": "space", "\n": "newline"}
    read_style = Style(names.get(style.separator, style.separator))
    captions = Captions(style, VOCABULARY)
    for tags in lists:
        text = captions.join(captions.choose(dict.fromkeys(tags, 0.9)))
        assert unique(read_style.tags(text) or []) == tags


@given(TAG_LISTS, st.sampled_from([style for style in STYLES if style.separator in (", ", "; ", "\n", " ", " | ")]))
def test_what_tagging_writes_is_recognized(lists, style):
    """Ten more files show the style, as in a folder that was tagged."""
    captions = Captions(style, VOCABULARY)
    usual = [["1girl", "blue_hair", "saber_(fate)", "looking_at_viewer"]] * 10
    texts = [captions.join(captions.choose(dict.fromkeys(tags, 0.9))) for tags in [*usual, *lists]]
    assert recognized(*texts) == [*usual, *lists]


def test_namespaces_reach_the_policy(tmp_path):
    found = read(write(tmp_path, {"a.png.txt": "character:hatsune miku\nseries:vocaloid\nre:zero\n:3\nrating:safe"}))[
        "a.png"
    ]
    assert isinstance(found, list)
    rows, names = Policy.of([], [], []).final(found)
    assert [names[i] for i in rows.tags] == ["hatsune_miku", "vocaloid", "re:zero", ":3", "rating:safe"]
