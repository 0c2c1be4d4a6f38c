"""The routes of the Tag tab."""

import hashlib
import io
import re
import struct
import zlib

import numpy as np
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient
from paths import TINY
from PIL import Image

from joytag.app import served
from joytag.app.security import Access, Limits
from joytag.app.service import create_app
from joytag.models import release
from joytag.models.timm_backbone import TimmConfig
from joytag.tagging.tagger import Tagger


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return Tagger.load(TINY, device="cpu")


def post(client: TestClient, contents: list[bytes], **fields):
    return client.post(
        "/api/tag", files=[("files", (f"{n}.png", data)) for n, data in enumerate(contents)], data=fields
    )


def bomb(width: int, height: int) -> bytes:
    """A small PNG that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_scores_are_those_of_the_tagger(client, tagger, pictures):
    answer = post(client, pictures, scores="true", threshold="0.3")
    assert answer.status_code == 200
    for number, (file, data) in enumerate(zip(answer.json()["files"], pictures, strict=True)):
        expected = tagger(data, 0.3)
        np.testing.assert_allclose(file["scores"], expected.scores, atol=2e-6)
        assert file["tags"] == pytest.approx(expected.tags, abs=2e-6)
        assert list(file["tags"]) == list(expected.tags)
        assert file["name"] == f"{number}.png"
        assert file["sha256"] == hashlib.sha256(data).hexdigest()
        assert (file["width"], file["height"]) == (40, 20 + number)
        assert file["error"] == ""


def test_scores_come_only_if_asked_for(client, pictures):
    [file] = post(client, pictures[:1]).json()["files"]
    assert file["scores"] is None


def test_orientation_is_applied_once(client, tagger):
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", exif=exif)
    [file] = post(client, [buffer.getvalue()], scores="true").json()["files"]
    assert (file["width"], file["height"]) == (20, 30)
    np.testing.assert_allclose(file["scores"], tagger(buffer.getvalue()).scores, atol=2e-6)


def test_tags_come_with_their_thresholds_and_how_reliable_they_are(measured):
    with TestClient(create_app(served.load([str(measured), str(TINY)], "cpu")), "http://localhost:1") as client:
        first, second = client.get("/api/models").json()
        assert (first["name"], first["tags"], first["has_reliability"]) == (measured.parent.name, 5, True)
        assert (second["name"], second["tags"], second["has_reliability"]) == ("release_tiny", 23, False)
        assert second["calibration"] is None
        assert all(0 <= share <= 1 for share in first["calibration"]["shares"])
        assert first["calibration"]["scores"] == sorted(first["calibration"]["scores"])
        rows = client.get("/api/tags?model=0").json()
        evaluated = (measured / "per_tag.csv").read_text().splitlines()
        assert [row["name"] for row in rows] == release.read_tags(measured)
        for row, line in zip(rows, evaluated[1:], strict=True):
            values = dict(zip(evaluated[0].replace('"', "").split(","), line.replace('"', "").split(","), strict=False))
            assert row["f1"] == pytest.approx(float(values["f1"]))
            assert row["images"] == int(values["positives"])
            assert row["category"] == values["category"]
        suggested = [float(line.split(",")[1]) for line in (measured / "thresholds.csv").read_text().splitlines()[1:]]
        assert [row["threshold"] for row in rows] == pytest.approx(suggested, abs=1e-6)
        assert {row["threshold"] for row in client.get("/api/tags?model=1").json()} == {0.4}
        image = [Image.new("RGB", (20, 20), "red").tobytes()]
        buffer = io.BytesIO()
        Image.new("RGB", (20, 20), "red").save(buffer, "PNG")
        image = [buffer.getvalue()]
        [file] = post(client, image, model="0", scores="true").json()["files"]
        assert file["tags"].keys() == {
            row["name"] for row, score in zip(rows, file["scores"], strict=True) if score > row["threshold"]
        }


def test_damaged_reports_of_an_evaluation_are_left_out(measured, tmp_path):
    for name in (*release.FILES, "thresholds.csv"):
        (tmp_path / name).write_bytes((measured / name).read_bytes())
    (tmp_path / "per_tag.csv").write_text("name,f1\nred,high\n")
    (tmp_path / "metrics.json").write_text("{")
    with pytest.warns(UserWarning, match="it is left out"):
        [model] = served.load([str(tmp_path)], "cpu")
    assert not model.row.has_reliability
    assert model.row.calibration is None


def test_models_of_the_same_name_are_told_apart():
    assert [m.name for m in served.load([str(TINY)] * 3, "cpu")] == [
        "release_tiny",
        "release_tiny (2)",
        "release_tiny (3)",
    ]


def test_the_evidence_sums_to_the_logit(client, tagger, pictures):
    for number in (0, 5):
        answer = client.post("/api/evidence", files={"file": pictures[number]}, data={"tag": "Tag 3"}).json()
        values = np.array(answer["values"])
        np.testing.assert_allclose(values, tagger.evidence(pictures[number], "tag_3"), atol=1e-6)
        assert values.shape == (answer["rows"], answer["columns"]) == (4, 4)
        assert values.sum() == pytest.approx(answer["logit"], abs=1e-6)
        assert answer["score"] == pytest.approx(float(tagger(pictures[number]).scores[3]), abs=1e-6)


def test_a_model_without_evidence_says_so(tmp_path, pictures):
    release.save(tmp_path, TimmConfig(3, "test_convnext", 64).build(), ["a", "b", "c"], "focal2")
    with TestClient(create_app(served.load([str(tmp_path)], "cpu")), "http://localhost") as client:
        assert client.get("/api/models").json()[0]["has_evidence"] is False
        answer = client.post("/api/evidence", files={"file": pictures[0]}, data={"tag": "a"})
        assert answer.status_code == 422
        assert "not for a backbone of timm" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("content", "status", "part"),
    [
        (b"#!/bin/sh", 415, "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "not an image"),
        (b"", 415, "not an image"),
        (bomb(50_000, 50_000), 413, "larger than"),
        (bomb(1_000, 1_000), 422, "cannot be decoded"),
    ],
    ids=["script", "svg", "empty", "bomb", "truncated"],
)
def test_unusable_files_are_refused_with_the_reason(client, pictures, content, status, part):
    answer = post(client, [content])
    assert answer.status_code == status
    assert part in answer.json()["detail"]
    assert part in answer.json()["files"][0]["error"]
    assert "Traceback" not in answer.text
    evidence = client.post("/api/evidence", files={"file": content}, data={"tag": "tag_1"})
    assert (evidence.status_code, part in evidence.json()["detail"]) == (status, True)
    mixed = post(client, [content, pictures[0]])
    assert mixed.status_code == 200
    bad, good = mixed.json()["files"]
    assert bad["error"]
    assert not bad["tags"]
    assert not good["error"]


NAMES = ["../../etc/passwd", "/etc/passwd", "C:\\windows\\x.png", "a\x00b.png", "<script>.png", "-"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_only_returned(client, pictures, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    answer = client.post("/api/tag", files=[("files", (name, pictures[0]))])
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("/api/tag", {"model": "1"}, 404),
        ("/api/tag", {"model": "-1"}, 422),
        ("/api/tag", {"model": "none"}, 422),
        ("/api/tag", {"threshold": "2"}, 422),
        ("/api/evidence", {"tag": "tag_99"}, 404),
        ("/api/evidence", {}, 422),
    ],
)
def test_wrong_fields_are_refused(client, pictures, path, fields, status):
    files = {"files" if path == "/api/tag" else "file": pictures[0]}
    assert client.post(path, files=files, data=fields).status_code == status


def test_what_is_no_form_is_refused(client, pictures):
    assert client.post("/api/tag", json={"files": ["a"]}).status_code == 422
    assert client.post("/api/tag").status_code == 422
    cut_short = b"--x\r\nContent-Disposition: form-data; name=files; filename=a.png\r\n\r\nabc"
    kind = {"content-type": "multipart/form-data; boundary=x"}
    assert client.post("/api/tag", content=cut_short, headers=kind).status_code in (400, 422)
    assert client.post("/api/tag", content=b"abc", headers={"content-type": "multipart/form-data"}).status_code == 400
    assert post(client, pictures[:1]).status_code == 200


def test_requests_are_bounded_in_bytes_and_files(open_app, pictures):
    client = open_app(limits=Limits(form_bytes=10_000, files=3))
    assert post(client, pictures[:2]).status_code == 200
    assert post(client, pictures[:4]).status_code in (400, 413)
    assert post(client, [bytes(10_001)]).status_code == 413

    def chunks():
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        for _ in range(100):
            yield bytes(1_000)

    kind = {"content-type": "multipart/form-data; boundary=x"}  # and no content-length
    assert client.post("/api/tag", content=chunks(), headers=kind).status_code == 413


def test_more_files_than_allowed_are_not_read(open_app, pictures):
    answer = post(open_app(limits=Limits(files=3)), pictures[:4])
    assert answer.status_code == 400
    assert "Too many files" in answer.json()["detail"]


def test_what_waits_too_long_is_refused(open_app, pictures, monkeypatch):
    monkeypatch.setattr("joytag.app.batching.MOST_WAITING", 0)
    answer = post(open_app(), pictures[:1])
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0


def test_the_api_is_described_by_a_page_without_scripts(client):
    schema = client.get("/api/openapi.json").json()
    text = client.get("/api/docs").text
    assert "<script" not in text
    assert not re.findall(r"(?:src|href)=.?(?:https?:)?//", text)
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            assert f"{method.upper()} {path}" in text
            assert operation["description"].split("\n")[0] in text
    for field in ("files.sha256", "has_evidence", "threshold", "columns", "calibration.shares"):
        assert f"<code>{field}</code>" in text
    assert client.get("/docs").status_code == 404
    assert client.get("/redoc").status_code == 404


def test_nothing_outside_the_page_is_served(client):
    assert client.get("/").status_code == 200
    outside = ("/../service.py", "/%2e%2e/service.py", "/..%2fservice.py", "//etc/passwd")
    for path in (*outside, "/page/index.html", "/api/x"):
        assert client.get(path).status_code in (404, 421), path


def test_labelling_is_a_router_for_private_apps_only(open_app):
    router = APIRouter()
    router.add_api_route("/decisions", lambda: {"ok": True})
    assert open_app(labelling=router).get("/api/decisions").json() == {"ok": True}
    with pytest.raises(ValueError, match="public"):
        create_app([], Access(public=True), labelling=router)
    assert isinstance(create_app([], Access(public=True)), FastAPI)
