"""Many clients at once, good and hostile, against the app in a process of its own."""

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from app_server import BOUNDARY, Server, form, post, running
from paths import ROOT, TINY

from joytag.data import folders
from joytag.models import release
from joytag.models.vit import ViT, ViTConfig
from joytag.tagging.tagger import Tagger

QUICKSTART, DRAWINGS = ROOT / "runs" / "openmoji" / "release", ROOT / "data" / "openmoji" / "images"
CLIENTS = 8


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(TINY, "--device", "cpu", OMP_NUM_THREADS="2") as server:
        yield server


def send_all(server: Server, images: list[bytes], per_request: int = 1) -> list[list[float]]:
    """Send images by CLIENTS clients at once and return their scores, in order."""
    starts = range(0, len(images), per_request)

    def client(number: int) -> list[tuple[int, list[list[float]]]]:
        connection, answers = server.connect(), []
        for start in starts[number::CLIENTS]:
            status, answer = post(connection, "/api/tag", form(images[start : start + per_request], scores="true"))
            assert status == 200, answer
            answers.append((start, [file["scores"] for file in answer["files"]]))
        connection.close()
        return answers

    with ThreadPoolExecutor(CLIENTS) as pool:
        by_start = dict(answer for answers in pool.map(client, range(CLIENTS)) for answer in answers)
    return [scores for start in starts for scores in by_start[start]]


def test_each_client_gets_the_scores_of_its_own_images(server, pictures):
    tagger = Tagger.load(TINY, "cpu")
    expected = [tagger(data).scores for data in pictures]
    scores = send_all(server, pictures * 25)
    np.testing.assert_allclose(scores, np.array(expected * 25), atol=2e-6)


def test_hostile_uploads_among_good_ones_do_no_harm(server, pictures):
    """Each kind of request is sent by several clients at the same time; the good ones are all answered."""
    large = 100 * 2**20
    wrong_type = {"Content-Type": "text/plain"}
    hostile = [
        (form([b"no image"]), {}, {415}),
        (form([pictures[0][:-100]]), {}, {422}),
        (form([pictures[0]] * 65), {}, {400}),
        (bytes(large), {}, {413}),
        (chain([form([b""])[:-20]], (bytes(2**20) for _ in range(100))), {}, {413}),
        (form([pictures[0]]), wrong_type, {422}),
        (form([pictures[0]])[:-40], {}, {400, 422}),
        (form([pictures[0]]), {"Host": "evil.example"}, {421}),
        (form([pictures[0]]), {"Origin": "http://evil.example"}, {403}),
        (b"--%s\r\n" % BOUNDARY * 1000, {}, {400, 422}),
        (b"--%s\r\n%s" % (BOUNDARY, b"a: b\r\n" * 50_000), {}, {400, 422}),
    ]

    def attack(number: int) -> tuple[int, int, object]:
        body, headers, _ = hostile[number]
        status, answer = post(server.connect(), "/api/tag", body, **headers)
        return number, status, answer

    with ThreadPoolExecutor(CLIENTS) as pool:
        attacks = [pool.submit(attack, number) for number in range(len(hostile))]
        send_all(server, pictures * 5)
        for done in attacks:
            number, status, answer = done.result()
            assert status in hostile[number][2], (number, answer)
            assert "Traceback" not in str(answer)
    assert server.get("/api/health")[0] == 200


def test_clients_that_leave_early_cost_nothing(server, pictures):
    for _ in range(20):
        connection = server.connect()
        kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}
        connection.request("POST", "/api/tag", form(pictures), kind)
        connection.close()
        connection = server.connect()
        connection.putrequest("POST", "/api/tag")
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b"--")
        connection.close()
    assert post(server.connect(), "/api/tag", form(pictures))[0] == 200


@pytest.fixture
def large(tmp_path) -> Path:
    """A release of the published model's architecture for images of 224 pixels, with random weights."""
    torch.manual_seed(0)
    names = [f"tag_{number}" for number in range(5_813)]
    release.save(tmp_path / "large", ViT(ViTConfig(n_tags=len(names), image_size=224)), names, "focal2")
    return tmp_path / "large"


def measure(model: Path, count: int, per_request: int) -> list[int]:
    """Send drawings of the quickstart in four rounds, print the rates, and return the memory after each round, MiB."""
    images = [path.read_bytes() for path in folders.find_images(DRAWINGS).images[:count]]
    assert len(images) == count
    scores, memory, seconds = [], [], 0.0
    with running(model, "--device", "cpu") as server:
        process = psutil.Process(server.process.pid)
        send_all(server, images[: count // 10], per_request)
        for start in range(0, count, count // 4):
            begin = time.perf_counter()
            scores += send_all(server, images[start : start + count // 4], per_request)
            seconds += time.perf_counter() - begin
            memory.append(round(process.memory_info().rss / 2**20))
    tagger, threads = Tagger.load(model, "cpu"), torch.get_num_threads()
    torch.set_num_threads(psutil.cpu_count(logical=False) or 1)  # as the app has
    begin = time.perf_counter()
    expected = [result.scores for result in tagger.stream(images)]
    alone = time.perf_counter() - begin
    torch.set_num_threads(threads)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    rates = f"{count / seconds:.1f} images/s, Tagger.stream alone {count / alone:.1f}"
    print(f"\n{per_request} in a request: {rates}, ratio {alone / seconds:.2f}; memory after each round, MiB: {memory}")
    return memory


@pytest.mark.slow
@pytest.mark.parametrize("per_request", [1, 8])
def test_two_thousand_images_by_eight_clients(per_request):
    memory = measure(QUICKSTART, 2_000, per_request)
    assert memory[-1] - memory[0] < 96  # of large batches it grows for 7,000 images, by 50 MiB, and then no more


@pytest.mark.slow
def test_requests_cost_little_beside_a_model_of_the_published_size(large):
    memory = measure(large, 2_000, 1)
    assert memory[-1] - memory[0] < 32
