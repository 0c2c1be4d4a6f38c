"""Run work in numbered shards: each runs once, on any backend, and is written atomically."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from joytag.core import cluster, jsonl, progress
from joytag.core.files import file_hash, naming, write_text
from joytag.core.signals import starting_processes
from joytag.data import tables

Backend = Literal["local", "ray"]
Work = Callable[[Any], pa.Table]  # a module's function, and a part that can be pickled

MANIFEST = "manifest.jsonl"
MAX_WORKERS = 61  # that Windows can wait for


def run(work: Work, parts: Sequence[Any], directory: Path, identity: str, backend: Backend, title: str) -> list[Path]:
    """Call `work` on every part, with a progress bar; the n-th returned parquet file holds part n's table.

    Shards that an earlier run finished are reused if its `identity`, a hash of everything that the tables depend on,
    was the same, and removed otherwise. A file is listed in the directory's manifest when it is complete, so a killed
    process loses only the shards in progress. Raises what `work` raises, ValueError when a worker dies, and
    ModuleNotFoundError when the backend is not installed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / f"{number:06d}.parquet" for number in range(len(parts))]
    done = _finished(directory, identity)
    jobs = [(part, file) for part, file in zip(parts, files, strict=True) if file.name not in done]
    finished = (_ray if backend == "ray" else _local)(partial(_publish, work), jobs)
    with (directory / MANIFEST).open("a", encoding="utf-8", newline="\n") as manifest:
        for name, digest in progress.track(finished, title, len(jobs), "shards"):
            with naming(directory / MANIFEST):
                manifest.write(json.dumps({"file": name, "sha256": digest}) + "\n")
                manifest.flush()
                os.fsync(manifest.fileno())
    return files


def _finished(directory: Path, identity: str) -> set[str]:
    """Return the names of the undamaged files that the manifest lists; remove all other files."""
    manifest = directory / MANIFEST
    entries = jsonl.read(manifest)
    listed = {entry["file"]: entry for entry in entries[1:]} if entries[:1] == [{"identity": identity}] else {}
    files = {path.name: path for path in directory.iterdir() if path.name != MANIFEST}
    present = sorted(listed.keys() & files.keys())
    with ThreadPoolExecutor() as pool:
        digests = pool.map(file_hash, [files[name] for name in present])
        done = {name for name, digest in zip(present, digests, strict=True) if digest == listed[name]["sha256"]}
    for name in files.keys() - done:
        files[name].unlink()
    lines = [{"identity": identity}, *(listed[name] for name in sorted(done))]
    write_text(manifest, "".join(json.dumps(line) + "\n" for line in lines))
    return done


def _publish(work: Work, job: tuple[Any, Path]) -> tuple[str, str]:
    """Write one shard; return its file's name and hash."""
    part, file = job
    table = work(part)
    tables.write_table(table, table.schema, file)
    return file.name, file_hash(file)


def _local(task: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
    """Yield results in the order in which processes on this machine finish them."""
    workers = min(os.cpu_count() or 1, len(jobs), MAX_WORKERS)
    if workers <= 1:
        yield from map(task, jobs)
        return
    # Spawned: forking a process that runs threads, as DuckDB and Arrow do, may hang.
    with ProcessPoolExecutor(workers, get_context("spawn"), _end_with_parent) as pool:
        try:
            with starting_processes():
                futures = [pool.submit(task, job) for job in jobs]
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise ValueError("a worker process died, perhaps out of memory; run the build again to continue") from None
        except BaseException:  # Ctrl-C, a full disk: do not wait for shards that may take a minute
            for worker in active_children():
                worker.terminate()
            raise


def _end_with_parent() -> None:
    """Ignore Ctrl-C in a worker, since its parent handles it, and end when the parent is killed."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _ray(task: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
    """Yield results in the order in which a Ray cluster finishes them; see `cluster.connect`."""
    import ray  # here, since it is an optional package

    if not jobs:
        return
    slots = 2 * int(cluster.connect()["CPU"])
    remote: Any = ray.remote(lambda job: task(job))
    waiting = iter(jobs)
    running = {remote.remote(job) for job in islice(waiting, slots)}
    try:
        while running:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            running.remove(ready)
            running |= {remote.remote(job) for job in islice(waiting, 1)}
            yield ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    finally:
        for task_id in running:
            ray.cancel(task_id)
