"""`joytag app`: starting, mistakes, stopping."""

import signal
import socket
import subprocess
import sys
import time

import pytest
from app_server import BOUNDARY, Server, form, running
from commands import HANG, assert_one_line
from paths import ROOT, TINY
from requirements import needs_unix

from joytag.cli.app import listen

PICTURE = (ROOT / "docs" / "curves.png").read_bytes()


def is_listening(server: Server) -> bool:
    try:
        return server.get("/api/health")[0] == 200
    except OSError:
        return False


@needs_unix
@pytest.mark.faults
def test_ctrl_c_answers_what_was_asked_and_ends_well():
    with running(TINY, "--device", "cpu") as server:
        body = form([PICTURE])
        upload = server.connect()
        upload.putrequest("POST", "/api/tag")
        upload.putheader("Content-Type", f"multipart/form-data; boundary={BOUNDARY.decode()}")
        upload.putheader("Content-Length", str(len(body)))
        upload.endheaders(body[:1000])
        assert server.get("/api/health") == (200, {"status": "ok", "models": ["release_tiny"]})
        server.process.send_signal(signal.SIGINT)
        while is_listening(server):
            time.sleep(0.05)
        upload.send(body[1000:])
        assert upload.getresponse().status == 200
        assert server.process.communicate(timeout=HANG) == ("Stopped\n", None)
        assert server.process.returncode == 0


@pytest.mark.faults
def test_headers_without_end_are_refused():
    with (
        running(TINY, "--device", "cpu", "--public") as server,
        socket.create_connection((server.host, server.port), timeout=HANG) as s,
    ):
        s.sendall(b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n" + b"X: 1\r\n" * 30_000)
        assert s.recv(100).startswith(b"HTTP/1.1 400 ")


def test_an_address_for_others_has_a_token():
    with running(TINY, "--device", "cpu", "--host", "0.0.0.0") as server:
        assert len(server.token) >= 32
        assert server.get("/api/health")[0] == 401
        assert server.get("/api/health", Authorization=f"Bearer {server.token}")[0] == 200


def test_mistakes_end_in_one_line(call, tmp_path):
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert_one_line(call("app", "--model", TINY, "--port", port), f"--port {port}: ", "choose others")
    assert_one_line(call("app", "--model", tmp_path, "--port", 0), "config.json", "missing")
    assert_one_line(call("app", "--port", 0), "--model")
    assert_one_line(call("app", "--model", TINY, "--port", "70000"), "--port 70000: ", "choose others")
    assert_one_line(call("app", "--model", TINY, "--host", "no.such.host.invalid"), "--host no.such.host.invalid")
    assert_one_line(call("app", "--model", TINY, "--port", 0, "--images", tmp_path / "gone"), "gone: no such folder")
    assert not (tmp_path / "gone").exists()
    rules = tmp_path / "rules.yaml"
    rules.write_text("implied: {cat: [animal]}\n")
    done = call("app", "--model", TINY, "--port", 0, "--images", tmp_path, "--rules", rules)
    assert_one_line(done, "rules.yaml: implied: unknown key; did you mean implies?")


@needs_unix
@pytest.mark.faults
def test_a_folder_is_labelled_by_one_app_at_a_time(call, image_folder):
    with running(TINY, "--device", "cpu", "--images", image_folder) as server:
        status, state = server.get("/api/label")
        assert (status, state["folder"], state["files"]) == (200, "my images", 4)
        done = call("app", "--model", TINY, "--device", "cpu", "--port", 0, "--images", image_folder)
        assert_one_line(done, "writes there; stop it first, with Ctrl-C")
        server.process.send_signal(signal.SIGINT)
        assert server.process.communicate(timeout=HANG)[0].endswith("Stopped\n")
    assert {path.name.partition("-")[0] for path in (image_folder / ".joytag").iterdir()} == {"images.jsonl", "scores"}


def test_tagging_needs_none_of_the_packages_that_labelling_needs():
    code = "import sys; sys.modules |= dict.fromkeys(['pyarrow', 'scipy', 'msgspec']); import joytag.cli.app"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
