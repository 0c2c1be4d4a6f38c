"""Shards run once, are written atomically, and run again only if they must."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from paths import ROOT
from requirements import needs_unix, require_ray

from data_prep import shards
from joytag.cli.command import missing


def square(part: int) -> pa.Table:
    return pa.table({"n": [part * part], "pid": [os.getpid()]})


def fail_on_two(part: int) -> pa.Table:
    if part == 2:
        raise OSError(28, "No space left on device")
    return square(part)


def die_on_two(part: int) -> pa.Table:
    if part == 2:
        os._exit(1)
    return square(part)


def run(folder: Path, work=square, parts=range(5), identity="a", backend="local") -> list[int]:
    files = shards.run(work, list(parts), folder, identity, backend, "Test")
    return [pq.read_table(file).column("n")[0].as_py() for file in files]


def changed(folder: Path, before: dict[str, int]) -> set[str]:
    return {path.stem[-1] for path in folder.glob("*.parquet") if before.get(path.name) != path.stat().st_mtime_ns}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}


def test_results_come_in_the_order_of_the_parts_and_from_several_processes(tmp_path):
    assert run(tmp_path) == [0, 1, 4, 9, 16]
    pids = {pq.read_table(file).column("pid")[0].as_py() for file in tmp_path.glob("*.parquet")}
    assert os.getpid() not in pids


def test_no_more_processes_start_than_windows_can_wait_for(tmp_path, monkeypatch):
    def start(workers, *_):
        raise ValueError(f"{workers} processes")

    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(shards, "ProcessPoolExecutor", start)
    with pytest.raises(ValueError, match="61 processes"):
        run(tmp_path, parts=range(200))


def test_finished_shards_are_not_run_again(tmp_path):
    run(tmp_path)
    before = times(tmp_path)
    assert run(tmp_path, fail_on_two) == [0, 1, 4, 9, 16]
    assert not changed(tmp_path, before)


def test_another_identity_runs_all_shards_again(tmp_path):
    run(tmp_path)
    before = times(tmp_path)
    assert run(tmp_path, parts=range(3), identity="b") == [0, 1, 4]
    assert changed(tmp_path, before) == {"0", "1", "2"}
    assert len(times(tmp_path)) == 3


@pytest.mark.parametrize("harm", ["truncated", "flipped", "missing", "unlisted", "torn"])
def test_a_damaged_shard_is_run_again(tmp_path, harm):
    run(tmp_path)
    before, file, manifest = times(tmp_path), tmp_path / "000003.parquet", tmp_path / shards.MANIFEST
    lines = manifest.read_text().splitlines()
    last = json.loads(lines[-1])["file"][5]
    if harm == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif harm == "flipped":
        data = file.read_bytes()
        file.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])
    elif harm == "missing":
        file.unlink()
    elif harm == "unlisted":
        manifest.write_text("".join(f"{line}\n" for line in lines if "000003" not in line))
    else:
        manifest.write_bytes("\n".join(lines).encode()[:-9] + b"\xff")
    (tmp_path / "000007.parquet.part").write_bytes(b"left over")
    assert run(tmp_path) == [0, 1, 4, 9, 16]
    assert changed(tmp_path, before) == {last if harm == "torn" else "3"}
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("parts", [range(5), [2]])  # on processes, and alone in this one
def test_an_error_is_raised_and_finished_shards_are_kept(tmp_path, parts):
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, fail_on_two, parts)
    assert run(tmp_path, parts=parts) == [part * part for part in parts]


def test_a_worker_that_dies_is_reported_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="a worker process died"):
        run(tmp_path, die_on_two)
    assert run(tmp_path) == [0, 1, 4, 9, 16]


def test_without_parts_there_are_no_files(tmp_path):
    assert run(tmp_path, parts=[]) == []


SLOW = """
import signal, sys, time
from pathlib import Path
import pyarrow as pa
from data_prep import shards
from joytag.cli.command import report_errors

def work(part):
    Path(sys.argv[1], f"started{part}").touch()
    time.sleep(60)
    return pa.table({})

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    output = Path(sys.argv[1], "out")
    report_errors("test", lambda: print(shards.run(work, [0, 1, 2], output, "a", "local", "Test")))
"""


@needs_unix
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGKILL", -9)])
def test_no_worker_outlives_its_parent(tmp_path, name, code):
    number = signal.Signals[name]
    (tmp_path / "slow.py").write_text(SLOW)
    command = [sys.executable, str(tmp_path / "slow.py"), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob("started*"))) < min(2, os.cpu_count() or 1) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert number != signal.SIGINT or errors == "test: interrupted; run the same command again\n"
    while any(_is_running(int(child)) for child in children):
        assert time.monotonic() < deadline + 10
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_missing_ray_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError) as error:
        run(tmp_path, backend="ray")
    assert missing(error.value.name or "") == "ray is not installed; run: pip install 'joytag[cluster]'"


@pytest.mark.slow
def test_ray_gives_the_results_of_processes(tmp_path, monkeypatch):
    require_ray()
    import ray

    ray.shutdown()  # an instance that an earlier test started has the old PYTHONPATH
    folders = [str(Path(__file__).parent), str(ROOT / "tests/helpers")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))  # its workers import this module, too
    assert run(tmp_path, backend="ray") == [0, 1, 4, 9, 16]
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path / "failing", fail_on_two, backend="ray")
