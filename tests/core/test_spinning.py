"""Waiting threads sleep while other programs want the cores; results stay the same."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from joytag.core import devices, spinning
from joytag.core.spinning import Usage

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or "without_unix" in os.environ.get("PYTHONPATH", ""),
    reason="only Linux has GNU's OpenMP library and /proc",
)
needs_two = pytest.mark.skipif(devices.cores() < 2, reason="threads wait for each other on several cores")


@pytest.mark.parametrize(
    ("spare", "others", "kept"),
    [
        (0, [0.0, 0.2, 0.4, 0.2, 0.05, 0.2], [False, False, True, True, False, False]),
        (2, [1.9, 2.2, 2.4, 2.2, 2.05, 2.2], [False, False, True, True, False, False]),
    ],
)
def test_a_second_team_is_kept_while_others_use_the_cores(monkeypatch, spare, others, kept):
    monkeypatch.setattr(devices, "cores", lambda: torch.get_num_threads() + spare)
    teams = []

    class Team:
        def __enter__(self):
            teams.append(self)

        def __exit__(self, *_):
            teams.remove(self)

    totals = iter([0.0, *torch.tensor(others, dtype=torch.float64).cumsum(0).tolist()])
    clock = iter(range(99))
    monkeypatch.setattr(spinning, "second_team", Team)
    monkeypatch.setattr(Usage, "now", lambda: Usage(next(clock), 0.0, next(totals)))
    seen = list[int]()

    class Ended(threading.Event):
        def wait(self, timeout=None):
            seen.append(len(teams))
            return len(seen) > len(others)

    spinning._watch(Ended())
    assert seen == [0, *map(int, kept)]
    assert not teams


def test_the_use_of_other_processes_is_seen_and_ones_own_is_not():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            before, until = Usage.now(), time.monotonic() + 1
            while time.monotonic() < until:
                pass
            now = Usage.now()
        finally:
            busy.kill()
    assert now.of_others(before) > 0.3
    assert Usage(time=2.0, own=1.5, total=5.0).of_others(Usage(time=0.0, own=0.5, total=1.0)) == 1.5


@needs_two
def test_waiting_threads_sleep_while_there_is_a_second_team():
    """Threads of a first team that wait for 20 ms between operations burn less processor time."""
    code = """
import time, torch
from contextlib import nullcontext
from joytag.core.spinning import second_team
torch.set_num_threads(2)
x = torch.zeros(1 << 17)
for context in (nullcontext, second_team, nullcontext):
    with context():
        x.add_(1)
        start = time.process_time()
        for _ in range(50):
            x.add_(1)
            time.sleep(0.02)
        print(time.process_time() - start)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    spinning_before, sleeping, spinning_after = map(float, done.stdout.split())
    assert sleeping < 0.5 * min(spinning_before, spinning_after)


@needs_two
def test_results_are_the_same_beside_a_second_team():
    a, b = torch.randn(2, 300, 300, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    expected = (a @ b).softmax(1)
    with spinning.second_team():
        assert torch.get_num_threads() == 2
        assert torch.equal((a @ b).softmax(1), expected)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("error", [OSError, ValueError])
def test_a_system_that_does_not_say_how_busy_it_is_is_left_alone(monkeypatch, error):
    def fail() -> Usage:
        raise error

    monkeypatch.setattr(Usage, "now", fail)
    spinning._watch(threading.Event())


def test_one_thread_needs_no_watcher(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    before = threading.active_count()
    with spinning.sleeping_when_busy():
        assert threading.active_count() == before


@needs_two
def test_the_watcher_ends_with_the_context(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    before = threading.active_count()
    with spinning.sleeping_when_busy():
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
