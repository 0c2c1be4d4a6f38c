"""`joytag publish`: a complete model card, and an upload that may be repeated."""

import json
import re
import shutil
import socket
from typing import NoReturn

import huggingface_hub
import pytest
import yaml
from commands import assert_one_line, succeeded
from paths import TINY

from joytag.export import card, hub, manifest
from joytag.export.card import About
from joytag.export.layouts import LAYOUTS
from joytag.models import release

FLAGS = ("--hub", "me/tagger", "--license", "cc-by-sa-4.0", "--trained-on", "192 colours | <b>made up</b>")
ABOUT = About(hub="me/tagger", license="other", trained_on="Colours.")


def parts(text: str) -> tuple[dict, dict[str, str]]:
    """The front matter of a card, and its sections by title."""
    _, front, body = re.split(r"^---$", text, maxsplit=2, flags=re.MULTILINE)
    sections = re.split(r"^## (.+)$", body, flags=re.MULTILINE)[1:]
    return yaml.safe_load(front), dict(zip(sections[::2], sections[1::2], strict=True))


def test_the_card_is_complete_and_carries_the_figures(call, exports, tmp_path):
    directory = tmp_path / "exports"
    shutil.copytree(exports, directory)
    succeeded(call("publish", directory, *FLAGS, "--card-only"))
    text = (directory / "README.md").read_text(encoding="utf-8")
    front, sections = parts(text)
    assert tuple(sections) == card.SECTIONS
    assert all(body.strip() for body in sections.values())
    for layout, row in LAYOUTS.items():
        assert f"`{layout}/`" in sections["What it is"]
        assert row.programs in sections["How to use it"]
    evaluation = manifest.read(directory / "wd").evaluation
    assert evaluation is not None
    for interval in evaluation.metrics.values():
        assert (
            f"| {interval.value:.3f} | {interval.low:.3f} to {interval.high:.3f} |" in sections["How it was measured"]
        )
    assert "always 0" in sections["Limits"]
    assert "sigmoid" in sections["How to use it"]
    assert "shader-f16" not in sections["Limits"]
    first = next(iter(hub.find_manifests(directory).values()))
    text_of_fp16 = card.render({"": first.model_copy(update={"precision": "fp16"})}, ABOUT)
    assert "shader-f16" in parts(text_of_fp16)[1]["Limits"]
    assert sections["Training data"].strip() == r"192 colours \| \<b\>made up\</b\>"
    assert "$" not in re.sub(r"\$\{", "", text)
    data = huggingface_hub.ModelCard(text).data.to_dict()
    assert (data["license"], data["pipeline_tag"]) == ("cc-by-sa-4.0", "image-classification")
    [result] = data["model-index"][0]["results"]
    assert {metric["type"] for metric in result["metrics"]} == evaluation.metrics.keys()
    assert front["tags"]


def test_a_card_without_an_evaluation_says_that_it_is_unmeasured(call, tmp_path):
    export = ("export", "--model", TINY, "--to", "wd", "--output", tmp_path / "out", "--no-verify")
    succeeded(call(*export))
    front, sections = parts(card.render(hub.find_manifests(tmp_path / "out"), ABOUT))
    assert "unmeasured" in sections["How it was measured"]
    assert "model-index" not in front
    assert "| no |" in sections["What it is"]
    assert f"tagger: {len(release.read_tags(TINY))} tags," in sections["What it is"], "not with the layout's ratings"


def test_the_python_example_of_the_card_runs(exports, tmp_path, monkeypatch, capsys):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("RGBA", (30, 20), "white").save("image.png")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda _: str(exports))
    text = card.render({"joytag/": manifest.read(exports / "joytag")}, ABOUT)
    [code] = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    exec(code, {})
    assert "light" in capsys.readouterr().out


def test_without_a_network_the_folder_is_ready(call, exports, tmp_path, monkeypatch):
    def refuse(*_: object) -> NoReturn:
        raise OSError("network unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    shutil.copytree(exports / "wd", tmp_path / "wd")
    done = call("publish", tmp_path / "wd", *FLAGS)
    assert_one_line(done, "me/tagger: not uploaded", f"{tmp_path / 'wd'} is ready")
    assert "How to use it" in (tmp_path / "wd/README.md").read_text(encoding="utf-8")


def test_an_upload_takes_the_whole_folder(call, exports, tmp_path, monkeypatch):
    shutil.copytree(exports / "wd", tmp_path / "wd")
    created, uploaded = [], []

    def upload(_: object, **options: object) -> str:
        uploaded.append(options)
        return "https://hub/commit"

    monkeypatch.setattr(
        huggingface_hub.HfApi, "create_repo", lambda _, *names, **options: created.append((names, options))
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    done = succeeded(call("publish", tmp_path / "wd", *FLAGS, "--private"))
    assert "https://hub/commit" in done.stdout
    assert created == [(("me/tagger",), {"private": True, "exist_ok": True})]
    assert [(options["repo_id"], options["folder_path"]) for options in uploaded] == [("me/tagger", tmp_path / "wd")]


@pytest.mark.parametrize(
    ("flags", "part"),
    [(("--hub", "me"), "--hub"), (("--hub", "a/../b"), "--hub"), (("--hub", "me/tagger"), "--license")],
)
def test_mistakes_end_in_one_line(call, tmp_path, flags, part):
    assert_one_line(call("publish", tmp_path, *flags), part)


def test_the_manifest_of_an_unknown_layout_is_refused(call, exports, tmp_path):
    values = json.loads((exports / "wd" / manifest.FILE).read_text())
    (tmp_path / manifest.FILE).write_text(json.dumps(values | {"layout": "new"}))
    assert_one_line(call("publish", tmp_path, *FLAGS), "manifest.json: layout: 'new' is not one of joytag, wd")


def test_nothing_of_a_manifest_reaches_the_card_unchecked(exports):
    wild = manifest.read(exports / "wd")
    assert wild.evaluation is not None
    metrics = {"<b>\x1b[31m": wild.evaluation.metrics["map"]}
    evaluation = wild.evaluation.model_copy(update={"metrics": metrics})
    text = card.render({"": wild.model_copy(update={"joytag": "1\n# \x1b[31m<b>", "evaluation": evaluation})}, ABOUT)
    assert "\x1b" not in text
    assert all("<b>" not in section for section in parts(text)[1].values())


def test_a_folder_without_an_export_is_refused(call, tmp_path):
    assert_one_line(call("publish", tmp_path, *FLAGS), "no export here")
    assert not list(tmp_path.iterdir())
