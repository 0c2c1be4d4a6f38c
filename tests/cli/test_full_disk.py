"""Commands on a disk that is full: one line that names the file and the remedy, and nothing half-written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import HANG, Done, assert_one_line
from paths import ROOT, TINY
from PIL import Image

pytestmark = pytest.mark.faults

# Runs steps, each [bytes to leave free on the disk at argv[1] or null, a command's words], in forks that save the
# imports. Prints the exit code and stderr of each as JSON, and at last the files on the disk.
PROGRAM = """
import json, os, sys, tempfile
from pathlib import Path
from joytag.cli import command
import joytag.cli.train, joytag.cli.build, joytag.cli.evaluate, joytag.cli.tag

disk = Path(sys.argv[1])
for left, arguments in json.loads(sys.argv[3]):
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    if left is not None:
        usage = os.statvfs(disk)
        filler.write_bytes(b"\\0" * (usage.f_bavail * usage.f_frsize - left))
    with tempfile.TemporaryFile() as errors:
        if not (child := os.fork()):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(errors.fileno(), 2)
            command.run(arguments[0], arguments[1:])
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        errors.seek(0)
        print(json.dumps([code, errors.read().decode()]), flush=True)
filler.unlink(missing_ok=True)
left = [str(path.relative_to(disk)) for path in sorted(disk.rglob("*")) if path.is_file()]
print(json.dumps(left))
"""


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder of twenty images with sidecars."""
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for number in range(20):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("noise, grainy texture")
    return folder


def test_a_full_disk_ends_every_command_in_one_line_that_names_the_file_and_the_remedy(
    tmp_path, images, dataset_directory, run_values
):
    disk, config = tmp_path / "disk", tmp_path / "run.yaml"
    disk.mkdir()
    config.write_text(yaml.safe_dump(run_values | {"output": str(disk / "run")}))
    train = ["train", "--config", str(config)]
    build = ["build", "--config", "folder", f"sources.0.path={images}", f"output={disk / 'dataset'}"]
    evaluate = ["evaluate", "--model", str(disk / "run"), "--data", str(dataset_directory), "--output", str(disk / "e")]
    tag = ["tag", "--model", str(TINY), "--device", "cpu", str(disk / "tagged")]
    csv = [*tag, "--output", "csv"]
    full = [(20_000, train), (20_000, build), (60_000, build), (None, train), (8_000, evaluate), (40_000, evaluate)]
    full += [(0, tag), (8_000, tag), (8_000, csv)]
    swept = {"base": "run.yaml", "output": str(disk / "sweep"), "seeds": 1}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(swept))
    sweep = ["sweep", "--config", str(tmp_path / "sweep.yaml")]
    full += [(0, sweep), (60_000, sweep)]
    steps = [*full, *((None, command) for command in (build, evaluate, tag, csv, sweep))]
    mount = 'mount -t tmpfs -o size=4m tmpfs "$1" && mkdir "$1/tagged" && cp "$2"/*.png "$1/tagged"'
    run = 'exec "$0" -c "$4" "$1" "$2" "$3"'
    line = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f"{mount} && {run}"]
    if shutil.which("unshare") is None or subprocess.run([*line[:4], "true"], capture_output=True).returncode:
        pytest.skip("needs Linux' unshare, to mount a small disk")
    done = subprocess.run(
        [*line, sys.executable, str(disk), str(images), json.dumps(steps), PROGRAM],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr
    *results, left = map(json.loads, done.stdout.splitlines())
    for (space, command), (code, errors) in zip(steps, results, strict=True):
        if space is None:
            assert (code, errors) == (0, ""), command
        else:
            assert_one_line(Done(code, "", errors), str(disk), "free some space")
    assert not [name for name in left if Path(name).name.startswith(".")], left
    for name in (
        "run/release/model.safetensors",
        "dataset/dataset.json",
        "e/report.html",
        "tagged/9.txt",
        "tagged/tags.csv",
        "sweep/ledger.jsonl",
    ):
        assert name in left
