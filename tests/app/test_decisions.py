"""Decisions that were reported as kept stay, once each, whatever happens to the process."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from paths import ROOT

from joytag.app.decisions import Decision, Decisions
from joytag.core import jsonl

IMAGES = [f"{number:064x}" for number in range(4)]

LABELLER = """
import sys
from pathlib import Path
from joytag.app.decisions import Decision, Decisions

decisions, first = Decisions(Path(sys.argv[1])), int(sys.argv[2])
for number in range(first, first + 100_000):
    batch = [Decision(sha256=f"{number:064x}", tag=tag, decision="yes") for tag in ("a", "b", "c")]
    assert len(decisions.add(batch)) == 3
    print(number, flush=True)
"""


def row(image: str, tag: str, answer: Any) -> Decision:
    return Decision(sha256=image, tag=tag, decision=answer, score=0.25, model="abc")


def answers(decisions: Decisions, tag: str = "cat") -> dict[str, str]:
    return {image: row.decision for image, row in decisions.of_tag(tag).items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "decisions.jsonl"


def test_decisions_are_kept_with_score_model_and_time(path):
    kept = Decisions(path).add([row(IMAGES[0], "cat", "yes")])
    (kept_row,) = jsonl.read(path)
    assert Decision(**kept_row) == kept[0] == Decisions(path).of_image(IMAGES[0])["cat"]
    assert kept_row | {"sha256": IMAGES[0], "tag": "cat", "decision": "yes", "score": 0.25, "model": "abc"} == kept_row
    assert kept_row["time"].endswith("+00:00")


def test_the_last_decision_about_an_image_and_a_tag_counts(path):
    decisions = Decisions(path)
    for answer in ("yes", "no", "unsure"):
        decisions.add([row(IMAGES[0], "cat", answer), row(IMAGES[1], "dog", "no")])
    assert answers(decisions) == answers(Decisions(path)) == {IMAGES[0]: "unsure"}
    assert decisions.counts() == {"cat": {"yes": 0, "no": 0, "unsure": 1}, "dog": {"yes": 0, "no": 1, "unsure": 0}}
    assert len(jsonl.read(path)) == 4  # the decision about the dog was made once


def test_a_repeated_request_adds_nothing(path):
    decisions = Decisions(path)
    batch = [row(IMAGES[0], "cat", "yes"), row(IMAGES[0], "cat", "yes"), row(IMAGES[1], "cat", "no")]
    assert len(decisions.add(batch)) == 2
    before = path.read_bytes()
    assert decisions.add(batch) == [] == Decisions(path).add(batch)
    assert path.read_bytes() == before


def test_every_step_can_be_undone_and_the_answers_before_it_return(path):
    decisions = Decisions(path)
    states: list[dict[str, str]] = [{}]
    draw = random.Random(0)
    while len(states) < 40:
        images = draw.sample(IMAGES, 2)
        if decisions.add(row(image, "cat", draw.choice(("yes", "no", "unsure"))) for image in images):
            states.append(answers(decisions))
    for state in reversed(states[:-1]):
        assert decisions.undo()
        assert answers(decisions) == answers(Decisions(path)) == state
    assert decisions.undo() == []
    assert decisions.add([row(IMAGES[0], "cat", "yes")])[0].step == 40
    assert Decisions(path).add([row(IMAGES[1], "cat", "yes")])[0].step == 41  # no number is used twice


def test_a_browser_undoes_its_own_step(path):
    decisions = Decisions(path)
    (mine,) = decisions.add([row(IMAGES[0], "cat", "yes")])
    (theirs,) = decisions.add([row(IMAGES[0], "cat", "no")])
    assert decisions.undo(mine.step) == [mine]
    assert decisions.undo(mine.step) == []
    assert answers(decisions) == answers(Decisions(path)) == {IMAGES[0]: "no"}
    assert decisions.undo() == [theirs]
    assert answers(decisions) == {}


def test_a_cut_last_line_is_dropped_and_nothing_else(path):
    decisions = Decisions(path)
    for image in IMAGES[:3]:
        decisions.add([row(image, "cat", "yes")])
    content = path.read_bytes()
    start = content.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(content) - 1):  # without its line break the row is whole
        path.write_bytes(content[:end])
        assert answers(Decisions(path)) == dict.fromkeys(IMAGES[:2], "yes")
        Decisions(path).add([row(IMAGES[3], "cat", "no")])
        assert answers(Decisions(path)) == dict.fromkeys(IMAGES[:2], "yes") | {IMAGES[3]: "no"}
    path.write_bytes(content[:-1])
    assert answers(Decisions(path)) == dict.fromkeys(IMAGES[:3], "yes")


@pytest.mark.parametrize(
    "damaged",
    [{"sha256": "a", "tag": "cat", "decision": "maybe", "step": 1}, {"tag": "cat"}, {"undo": None}, {"undo": [1]}, {}],
)
def test_rows_that_are_no_decisions_are_ignored(path, damaged):
    Decisions(path).add([row(IMAGES[0], "cat", "yes")])
    jsonl.append(path, damaged)
    assert answers(Decisions(path)) == {IMAGES[0]: "yes"}


def test_a_decision_that_cannot_be_written_is_not_kept(path, monkeypatch):
    decisions = Decisions(path)
    decisions.add([row(IMAGES[0], "cat", "yes")])
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            decisions.add([row(IMAGES[1], "cat", "yes")])
        with pytest.raises(OSError, match="No space left"):
            decisions.undo()
    assert path.read_bytes() == before
    assert answers(decisions) == {IMAGES[0]: "yes"}
    assert len(decisions.add([row(IMAGES[1], "cat", "yes")])) == 1


def test_decisions_are_flushed_to_disk_before_they_are_reported(path, monkeypatch):
    flushed = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        flushed.append(path.read_bytes())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    decisions = Decisions(path)
    decisions.add([row(IMAGES[0], "cat", "yes")])
    decisions.undo()
    assert flushed[-1] == path.read_bytes()
    assert flushed[0].count(b"\n") == 1
    assert len(flushed) == 3  # two rows, and the folder that got a new file


def test_many_threads_lose_nothing(path):
    decisions = Decisions(path)

    def label(number: int) -> None:
        decisions.add([row(f"{number:064x}", tag, "yes") for tag in ("a", "b")])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(label, range(200)))
    rows = jsonl.read(path)
    assert len(rows) == 400
    assert all(count == 2 for count in Counter(row["step"] for row in rows).values())
    assert len(Decisions(path).of_tag("a")) == len(decisions.of_tag("b")) == 200


@pytest.mark.faults
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_twenty_kills_lose_and_double_no_decision_that_was_reported(path):
    draw, reported, start = random.Random(0), set(), 0
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for _ in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", LABELLER, str(path), str(start)], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(draw.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        lines = [line for line in (first + process.stdout.read()).splitlines(keepends=True) if line.endswith("\n")]
        process.wait()
        assert lines
        reported |= set(map(int, lines))
        start = max(reported) + 10
        for number in (max(reported), max(reported) + 1):  # what a browser that got no answer sends again
            Decisions(path).add([Decision(sha256=f"{number:064x}", tag=tag, decision="yes") for tag in ("a", "b", "c")])
            reported.add(number)
    counts = Counter((int(row["sha256"], 16), row["tag"]) for row in jsonl.read(path))
    assert {number for number, _ in counts} == reported
    assert set(counts.values()) == {1}
    assert len(counts) == 3 * len(reported)
