"""Aliases are read from all formats; mistakes are named."""

import json

import pytest
from mirror import relation

from data_prep.aliases import read_aliases

EXPECTED = {"old": "newest", "new": "newest", "grey_hair_(x)": "gray_hair"}


def test_all_formats_give_the_same_aliases(tmp_path):
    rows = [
        relation("old", "new"),
        relation("new", "newest"),
        relation("Gre\u200by hair (x)", "gray_hair"),
        relation("dead", "gone", "deleted"),
        {"status": "active"},
    ]
    (tmp_path / "tag_aliases000000000000.json").write_text("\ufeff" + "".join(json.dumps(row) + "\r\n" for row in rows))
    (tmp_path / "a.csv").write_text(
        "\ufeffid,antecedent_name,consequent_name\n1,old,new\n2,new,newest\n3,grey hair \\(x\\),gray_hair\n"
    )
    (tmp_path / "a.yaml").write_text('\ufeffold: new\nnew: newest\n"grey hair (x)": gray hair\n')
    for name in ("tag_aliases000000000000.json", "a.csv", "a.yaml"):
        assert read_aliases(tmp_path / name) == EXPECTED, name


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "old new", "not a .json, .csv"),
        ("a.json", '{"antecedent_name": "a", "consequent_name": "b", "status": "active"}\n[]\n', "line 2: not a valid"),
        ("a.json", "", "holds no aliases"),
        ("a.csv", "old,new\na,b\n", "must name the columns antecedent_name and consequent_name"),
        ("a.csv", "antecedent_name,consequent_name\na,b\nc\n", "row 2: lacks one"),
        ("a.csv", 'antecedent_name,consequent_name\n"a,b\n', "not valid CSV"),
        ("a.yaml", "- a\n- b\n", "not a mapping"),
        ("a.yaml", "a: no\n", "'a': False are not two names"),
        ("a.yaml", "a: [", "not valid YAML"),
        ("a.yml", b"\xff\xfe\x00", "not UTF-8 text"),
        ("gone.yaml", None, "no such file"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as error:
        read_aliases(path)
    assert str(error.value).startswith(f"{path}: ")
