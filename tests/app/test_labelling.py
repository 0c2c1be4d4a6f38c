"""The routes of labelling: questions, answers, undoing, learning; nothing is asked twice."""

import csv
import hashlib
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import HANG
from fastapi.testclient import TestClient
from paths import ROOT, TINY
from PIL import Image
from requirements import needs_linux

from joytag.app.label_routes import create_router
from joytag.app.labelling import Labelling
from joytag.app.served import ServedModel
from joytag.app.service import create_app
from joytag.app.suggestions import Rules
from joytag.core import child_process
from joytag.core.jsonl import read
from joytag.core.lock import InUse
from joytag.tagging.tagger import Tagger

RULES = Rules(implies={"tag_1": ["tag_2"]}, exclusive={"tone": ["tag_1", "tag_3", "other"]})
COUNT = 40


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return Tagger.load(TINY, device="cpu")


@pytest.fixture
def model(tmp_path, tagger) -> ServedModel:
    directory = tmp_path / "model"
    shutil.copytree(TINY, directory)
    directory.joinpath("thresholds.csv").write_text("tag,threshold\ntag_0,0.55\n")
    return ServedModel("tiny", directory, tagger)


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "images"
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = (rng.integers(0, 255, 3) + rng.normal(0, 40, (24, 32, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
    return root


@pytest.fixture
def labelling(folder, model) -> Iterator[Labelling]:
    with Labelling.opened(folder, model, RULES) as opened:
        opened.collection._thread.join()
        yield opened


@pytest.fixture
def client(labelling, model) -> Iterator[TestClient]:
    with TestClient(create_app([model], labelling=create_router(labelling)), base_url="http://127.0.0.1") as opened:
        yield opened


def get(client: TestClient, path: str, **parameters: Any) -> Any:
    answer = client.get(f"/api/label{path}", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def decide(client: TestClient, answer: str, tag: str, *images: str) -> list[dict[str, Any]]:
    rows = [{"sha256": image, "tag": tag, "decision": answer} for image in images]
    answered = client.post("/api/label/decisions", json=rows)
    assert answered.status_code == 200, answered.text
    return answered.json()


def undo(client: TestClient, **parameters: int) -> list[dict[str, Any]]:
    return client.post("/api/label/undo", params=parameters).json()


def shown(grid: dict[str, Any]) -> list[str]:
    return [image["sha256"] for image in grid["images"]]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_state_says_how_far_everything_is(client, folder):
    state = get(client, "")
    assert state | {"folder": "images", "model": "tiny", "files": COUNT, "scored": COUNT} == state
    assert (state["broken"], state["decided"], state["failure"], state["is_scoring"]) == ({}, 0, "", False)
    assert state["learning"]["state"] == "idle"
    decide(client, "unsure", "tag_0", hashlib.sha256((folder / "0.png").read_bytes()).hexdigest())
    assert get(client, "")["decided"] == 1


def test_a_tag_is_asked_about_until_every_image_is_decided(client, labelling):
    asked: list[str] = []
    while images := shown(grid := get(client, "/grid", tag="tag 0", count=15)):
        assert grid["left"] == COUNT - len(asked)
        assert grid["threshold"] == pytest.approx(0.55)
        decide(client, "no", "tag_0", *images[1:])
        decide(client, "unsure", "tag_0", images[0])
        asked += images
    assert len(asked) == len(set(asked)) == COUNT
    assert grid["stop"] == "Every image is decided."
    assert grid["is_known"]
    rows = read(labelling.collection.state / "decisions.jsonl")
    scores, column = labelling.scored(), labelling.current.tags.index("tag_0")
    for row in rows:
        expected = scores.table[scores.rows[scores.images.index(row["sha256"])], column]
        assert row["score"] == pytest.approx(expected)
        assert row["model"] == labelling.current.name
    assert get(client, "/grid", tag="tag_4")["left"] == COUNT


def test_decisions_are_kept_on_another_day(client, labelling, folder, model):
    images = shown(get(client, "/grid", tag="tag_0"))
    decide(client, "yes", "tag_0", *images)
    labelling.collection.stop()
    again = Labelling(labelling.collection, model, RULES)
    again.collection._thread.join()
    left = again.queue("tag_0", scored := again.scored()).page(200, scored.vectors)
    assert {scored.images[i] for i in left} == set(scored.images) - set(images)


def test_two_apps_do_not_label_one_folder(labelling, folder, model):
    with pytest.raises(InUse), Labelling.opened(folder, model):
        pass


def test_a_missing_folder_is_not_created(tmp_path, model):
    with pytest.raises(ValueError, match="gone: no such folder"), Labelling.opened(tmp_path / "gone", model):
        pass
    assert not (tmp_path / "gone").exists()


def test_a_request_that_is_sent_again_adds_nothing_and_undo_has_no_limit(client):
    image, other = shown(get(client, "/grid", tag="tag_0"))[:2]
    first = decide(client, "yes", "tag_0", image)
    assert decide(client, "yes", "tag_0", image) == []
    second = decide(client, "no", "tag_0", image, other)
    assert len(second) == 2
    assert second[0]["step"] == second[1]["step"] > first[0]["step"]
    assert undo(client, step=first[0]["step"]) == first
    assert undo(client, step=first[0]["step"]) == []
    assert undo(client) == second
    assert undo(client) == []
    assert image in shown(get(client, "/grid", tag="tag_0"))


def test_what_follows_from_a_decision_is_one_step_with_it(client, labelling):
    image, other = shown(get(client, "/grid", tag="tag_1"))[:2]
    decide(client, "no", "tag_3", other)
    decide(client, "yes", "tag_3", image)
    assert {row["tag"]: row["decision"] for row in decide(client, "yes", "tag_1", other)} == {
        "tag_1": "yes",
        "tag_2": "yes",
        "other": "no",
    }
    rows = decide(client, "yes", "tag_1", image)
    assert {row["tag"] for row in rows} == {"tag_1", "tag_2"}  # what a person said of tag_3 and what followed stay
    undo(client, step=rows[0]["step"])
    assert {tag: row.decision for tag, row in labelling.decisions.of_image(image).items()} == {
        "tag_3": "yes",
        "tag_1": "no",
        "other": "no",
    }


def test_a_new_word_is_asked_about_by_example(client, labelling):
    images = labelling.scored().images
    assert images == sorted(images)  # in random order, while they all score the same
    grid = get(client, "/grid", tag="Brand New")
    assert (grid["tag"], grid["is_known"], grid["left"]) == ("brand_new", False, COUNT)
    yes, no = shown(grid)[:2]
    decide(client, "yes", "brand new", yes)
    decide(client, "no", "brand_new", no)
    grid = get(client, "/grid", tag="brand_new", count=38)
    assert grid["left"] == COUNT - 2
    assert not {yes, no} & set(shown(grid))
    assert get(client, "/words", text="new") == [
        {"tag": "brand_new", "is_known": False, "yes": 1, "no": 1, "unsure": 0}
    ]


def test_words_that_begin_with_the_text_come_first(client):
    image = shown(get(client, "/grid", tag="tag_0"))[0]
    decide(client, "no", "my_tag_2", image)
    words = get(client, "/words", text="Tag 2", limit=30)
    assert [word["tag"] for word in words] == ["tag_2", "tag_20", "tag_21", "tag_22", "my_tag_2"]
    assert words[0] == {"tag": "tag_2", "is_known": True, "yes": 0, "no": 0, "unsure": 0}


def test_one_images_tags_leave_its_list_when_they_are_decided(client, labelling):
    order = get(client, "/images", limit=1000)
    near = {image: len(get(client, f"/images/{image}/tags")["near"]) for image in order}
    assert list(near.values()) == sorted(near.values(), reverse=True)
    image = order[0]
    for row in get(client, f"/images/{image}/tags")["near"]:
        decide(client, "unsure", row["tag"], image)
    assert not get(client, f"/images/{image}/tags")["near"]
    assert image not in get(client, "/images", limit=1000)
    assert set(get(client, "/images", limit=1000)) | {image} == set(order)


def test_pictures_are_small_and_named_by_hash_alone(client):
    image = shown(get(client, "/grid", tag="tag_0", count=COUNT))[0]
    answer = client.get(f"/api/label/images/{image}/picture", params={"side": 16})
    assert answer.headers["content-type"] == "image/jpeg"
    assert "immutable" in answer.headers["cache-control"]
    assert Image.open(io.BytesIO(answer.content)).size == (16, 12)
    for name in ("0" * 64, "A" * 64, "..%2f..%2fetc%2fpasswd", "0.png"):
        assert client.get(f"/api/label/images/{name}/picture").status_code in (404, 422)


def test_evidence_of_an_image_in_the_folder(client):
    image = shown(get(client, "/grid", tag="tag_0"))[0]
    found = get(client, f"/images/{image}/evidence", tag="tag_0")
    assert np.sum(found["values"]) == pytest.approx(found["logit"], abs=1e-4)
    assert found["rows"] == 4
    assert client.get(f"/api/label/images/{image}/evidence", params={"tag": "gone"}).status_code == 404


@pytest.mark.parametrize(
    ("row", "status"),
    [
        ({"sha256": "0" * 64, "tag": "tag_0", "decision": "yes"}, 404),
        ({"sha256": "../a", "tag": "tag_0", "decision": "yes"}, 422),
        ({"sha256": "0" * 64, "tag": "tag_0", "decision": "maybe"}, 422),
        ({"sha256": "0" * 64, "tag": " ", "decision": "yes"}, 422),
        ({"sha256": "0" * 64, "tag": "a\x1bb", "decision": "yes"}, 422),
        ({"sha256": "0" * 64, "tag": "a" * 201, "decision": "yes"}, 422),
        ({"sha256": "0" * 64, "tag": "-cat", "decision": "yes"}, 422),  # which in a file of tags says: no cat
    ],
)
def test_wrong_decisions_are_refused(client, labelling, row, status):
    assert client.post("/api/label/decisions", json=[row]).status_code == status
    assert not (labelling.collection.state / "decisions.jsonl").exists()
    assert client.post("/api/label/decisions", json=[]).status_code == 422


DAMAGED = [b"\xff\xfa\n", b"sha256,tag\nHASH\n", b'sha256,path\nHASH,"a', b"sha256,path\nHASH," + b"a" * 200_000]


@pytest.mark.parametrize("content", DAMAGED, ids=["encoding", "columns", "quote", "field"])
@pytest.mark.filterwarnings("ignore:.*label_errors.csv. cannot be read:UserWarning")
def test_damaged_label_errors_are_no_doubts(client, folder, model, content):
    image = hashlib.sha256((folder / "3.png").read_bytes()).hexdigest().encode()
    (model.directory / "label_errors.csv").write_bytes(content.replace(b"HASH", image))
    assert get(client, "/doubts") == []


@pytest.mark.parametrize(
    "body", ["[1e999]", r'[{"sha256": "\ud800"}]', r'[{"\ud800": 1}]', "[" + '{"sha256": "x"},' * 9 + "1]"]
)
def test_wrong_fields_are_named_without_what_they_hold(client, body):
    answer = client.post("/api/label/decisions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert all(row.keys() == {"type", "loc", "msg"} for row in answer.json()["detail"])


@needs_linux
def test_names_that_are_not_text_are_shown_with_escapes(model, folder):
    (folder / "0.png").rename(folder / os.fsdecode(b"\xff\n.png"))
    (folder / os.fsdecode(b"\xfe.png")).write_text("no image")
    with Labelling.opened(folder, model) as opened:
        client = TestClient(create_app([model], labelling=create_router(opened)), base_url="http://127.0.0.1")
        wait_for(lambda: not opened.collection.is_working)
        assert set(get(client, "")["broken"]) == {r"\udcfe.png"}
        names = [image["names"] for image in get(client, "/grid", tag="tag_0", count=200)["images"]]
        assert [r"\udcff\n.png"] in names


def test_an_image_that_vanished_after_it_was_shown_can_be_answered(client, folder):
    images = shown(get(client, "/grid", tag="tag_0", count=10))
    for path in folder.glob("*.png"):
        path.unlink()
    assert client.get(f"/api/label/images/{images[0]}/picture").status_code == 404
    assert len(decide(client, "yes", "tag_0", *images)) == 10


def test_what_cannot_be_written_is_named(client, folder):
    images = shown(get(client, "/grid", tag="tag_0", count=10))
    (folder / ".joytag" / "decisions.jsonl").mkdir()
    answer = client.post("/api/label/decisions", json=[{"sha256": images[0], "tag": "tag_0", "decision": "yes"}])
    assert (answer.status_code, "decisions.jsonl: Is a directory" in answer.json()["detail"]) == (500, True)


def test_doubts_are_the_label_errors_of_the_evaluation(client, folder, model):
    names = ("path", "source", "id", "sha256", "tag", "labelled", "score", "confidence")
    hashes = [hashlib.sha256((folder / f"{number}.png").read_bytes()).hexdigest() for number in (3, 5)]
    with (model.directory / "label_errors.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                names,
                ("moved.png", "mine", "7", hashes[0], "tag_1", "true", "0.01", "0.9"),
                ("gone.png", "mine", "8", "0" * 64, "tag_1", "false", "0.99", "0.8"),
                ("5.png", "mine", "9", hashes[1], "tag_4", "false", "0.97", "0.7"),
            ]
        )
    first, second = get(client, "/doubts")
    assert [first["sha256"], second["sha256"]] == hashes
    assert (first["tag"], first["labelled"], first["score"], first["confidence"]) == ("tag_1", True, 0.01, 0.9)
    assert second["labelled"] is False
    decide(client, "yes", "tag_1", first["sha256"])
    assert get(client, "/doubts") == [second]


@pytest.fixture
def cheap(monkeypatch, labelling) -> Path:
    """Let a cheap command be what fine-tunes; returns the folder of the attempts."""
    monkeypatch.setitem(child_process.MODULES, "joytag", "cheap_finetune")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")]))
    runs = labelling.collection.state / "runs"
    runs.mkdir()
    return runs


def state_of_learning(client: TestClient) -> str:
    return get(client, "")["learning"]["state"]


def test_it_learns_what_is_decided_and_the_new_model_orders_the_questions(client, labelling, cheap):
    images = shown(get(client, "/grid", tag="tag_0"))
    decide(client, "yes", "brand_new", *images[:6])
    decide(client, "no", "tag_5", *images[4:8])
    decide(client, "unsure", "tag_6", images[9])
    (cheap / "wait").touch()
    assert client.post("/api/label/learn").status_code == 202
    assert client.post("/api/label/learn").status_code == 409
    wait_for(lambda: get(client, "")["learning"]["samples"] == 640)
    assert get(client, "")["learning"] == {"state": "running", "samples": 640, "total": 1200, "message": ""}
    first = labelling.current.name
    (cheap / "wait").unlink()
    wait_for(lambda: state_of_learning(client) == "done")
    assert get(client, "")["learning"]["samples"] == 1200
    labelling.collection._thread.join()
    assert labelling.current.name != first
    assert get(client, "")["scored"] == COUNT
    assert labelling.current.served.directory == cheap / "001" / "run" / "release"
    seen = cheap / "001" / "run" / "seen"
    texts = {path.stem: path.read_text() for path in seen.glob("*.txt")}
    others = [image for image, text in texts.items() if text == "-brand_new\n"]  # assumed
    assert set(texts) == {*images[:8], *others}
    assert not set(images[:8]) & set(others)
    assert len(others) + sum("-brand_new" in texts[image] for image in images[6:8]) == 6
    assert not (cheap / "001" / "images").exists()
    for number, image in enumerate(images[:8]):
        expected = {"brand_new"} if number < 6 else set()
        expected |= {"-tag_5"} if number >= 4 else set()
        assert set(texts[image].split()) - {"-brand_new"} == expected


def test_undecided_images_least_like_those_with_a_new_tag_are_assumed_not_to_have_it(client, labelling):
    images = shown(get(client, "/grid", tag="brand_new", count=COUNT))
    decide(client, "yes", "brand_new", *images[:3])
    decide(client, "no", "brand_new", *images[3:10])
    decide(client, "unsure", "brand_new", images[10])
    decide(client, "yes", "tag_0", images[11])
    queue = labelling.queue("brand_new", labelling.scored())
    score = dict(zip(queue.images, queue.scores, strict=True))
    given = {sha256: tags for _, sha256, tags in labelling.examples()}
    assumed = {image for image, tags in given.items() if "-brand_new" in tags} - set(images[3:10])
    assert len(assumed) == 11
    assert not assumed & set(images[:11])
    assert max(score[image] for image in assumed) < np.median(queue.scores)
    assert "tag_0" in given[images[11]]
    assert all(tags == ["-brand_new"] for image, tags in given.items() if image in assumed - {images[11]})


def test_learning_that_fails_says_why_and_can_begin_again(client, cheap):
    decide(client, "yes", "tag_0", *shown(get(client, "/grid", tag="tag_0"))[:3])
    (cheap / "fail").touch()
    client.post("/api/label/learn")
    wait_for(lambda: state_of_learning(client) == "failed")
    assert get(client, "")["learning"]["message"] == "joytag finetune: the new tag needs 5 images"
    (cheap / "fail").unlink()
    client.post("/api/label/learn")
    wait_for(lambda: state_of_learning(client) == "done")
    assert (cheap / "002" / "run" / "release").is_dir()


def test_learning_can_be_stopped(client, labelling, cheap):
    decide(client, "yes", "tag_0", *shown(get(client, "/grid", tag="tag_0"))[:3])
    (cheap / "wait").touch()
    client.post("/api/label/learn")
    wait_for(lambda: get(client, "")["learning"]["samples"] == 640)
    before = labelling.current
    assert client.delete("/api/label/learn").json()["state"] == "stopped"
    assert state_of_learning(client) == "stopped"
    assert labelling.current is before


@pytest.mark.faults
def test_a_fine_tuned_model_knows_the_new_word(client, labelling):
    images = [image["sha256"] for image in get(client, "/grid", tag="tag_0", count=COUNT)["images"]]
    decide(client, "yes", "brand_new", *images[:20])
    client.post("/api/label/learn")
    wait_for(lambda: state_of_learning(client) in ("done", "failed"))
    assert state_of_learning(client) == "done", get(client, "")
    assert "brand_new" in labelling.current.tags
    assert get(client, "/grid", tag="brand_new")["is_known"]
