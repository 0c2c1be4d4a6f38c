"""`joytag train`: dry runs, mistakes, hostile files."""

import hashlib
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from commands import assert_one_line
from training_runs import build_run

from joytag.models import checkpoint
from joytag.training import dry_run
from joytag.training.state import initial_state, save_state

CPU, FLOAT = torch.device("cpu"), torch.float32


def test_a_dry_run_of_the_recipe_prints_the_published_numbers(call):
    done = call("train", "--config", "b16_448.yaml", "--dry-run", "data.tags=5813")
    assert done.returncode == 0, done.stderr
    assert "91,491,509" in done.stdout
    assert re.search(r"optimizer steps +53,710 ", done.stdout)
    assert re.search(r"optimizer steps +107,421 ", done.stdout)
    gflop = [float(value) for value in re.findall(r"([\d.]+) GFLOP an image", done.stdout)]
    assert gflop == [pytest.approx(109, rel=0.02), pytest.approx(487, rel=0.02)]


def test_a_dry_run_leads_with_this_machine(call, tmp_path, monkeypatch):
    arguments = ("train", "--config", "b16_448.yaml", "--dry-run", "data.tags=5813")
    assert re.match(r"Time here +unknown; .* joytag benchmark all\n", call(*arguments).stdout)
    rates = dry_run.Rates("2026-11-23", "my machine", workers=2, loading={224: 1000.0}, flop={224: 1e14})
    monkeypatch.setattr(dry_run, "read_rates", lambda: rates)
    first, *rest = call(*arguments).stdout.splitlines()
    assert re.fullmatch(r"Time here +661.0 h \(my machine, measured 2026-11-23, .*rates.json\)", first)
    assert re.fullmatch(r"  stage 0 +66.5 h, bound by .*", rest[0])
    assert re.fullmatch(r"  stage 1 +594.5 h, bound by .*", rest[1])


def test_training_without_data_names_the_directory_and_the_command_that_builds_it(call):
    done = call("train", "--config", "b16_448.yaml", "data.directory=data/nowhere")
    assert_one_line(done, "data/nowhere", "joytag build --config")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--config", "b16_44.yaml"], ["b16_44.yaml", "did you mean b16_448.yaml?"]),
        (["--config", "b16_448", "optimiser.lr=1"], ["optimiser", "did you mean optimizer?"]),
        (["--config", "b16_448", "optimizer.lr=fast"], ["optimizer.lr", "'fast'"]),
        (["--config", "b16_448", "stages.0.sample=4096"], ["stages.0.sample", "did you mean stages.0.samples?"]),
        (["--config", "b16_448", "stages.7.samples=4096"], ["stages.7.samples", "0 to 1"]),
        (["--config", "b16_448", "--dry-run", "data.directory=nowhere"], ["data.tags", "nowhere"]),
        (["--config", "openmoji", "--dry-run", "data.tags=9", "device=cud"], ["device", "'cud'"]),
        (["--config", "openmoji", "data.tags=9", "data.workers=-1"], ["data.workers", "-1"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_a_mistake_ends_in_one_line(call, arguments, parts):
    assert_one_line(call("train", *arguments), *parts)


def damaged_checkpoint(run_values: dict, damage: Callable[[Path], object]) -> Path:
    """A checkpoint with damaged files and a manifest that fits them."""
    run = build_run(run_values)
    save_state(initial_state(run), run, required=True)
    [path] = checkpoint.checkpoints(run.root)
    damage(path)
    files = [file for file in path.iterdir() if file.name != checkpoint.MANIFEST]
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(files)]
    (path / checkpoint.MANIFEST).write_text("".join(lines))
    return path


class Evil:
    """Its unpickling creates a file."""

    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


HUGE_HEADER = struct.pack("<Q", 2**40) + b"{}"
LONG_SHAPE = b'{"x":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,399999999996]}}'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train_state.safetensors", pickle.dumps(Evil())),
        ("train_state.safetensors", HUGE_HEADER),
        ("train_state.safetensors", struct.pack("<Q", len(LONG_SHAPE)) + LONG_SHAPE),
        ("model.safetensors", pickle.dumps(Evil())),
        ("model.safetensors", HUGE_HEADER),
        ("train_state.json", b"[" * 100_000),
        ("train_state.json", b'{"samples": "many"}'),
        ("train_state.json", b"[]"),
        ("config.json", b"{}"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_hostile_checkpoint_is_refused_in_one_line(call, run_values, tmp_path, name, content):
    path = damaged_checkpoint(run_values, lambda path: (path / name).write_bytes(content))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_values))
    done = call("train", "--config", tmp_path / "run.yaml", "--resume", path)
    assert_one_line(done, str(path))
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "text", ["output: !!python/object/apply:os.system [touch evil]\n", "a: &a [*a]\n", "output: [\n", "\0", "- 1\n"]
)
def test_a_hostile_config_is_refused_in_one_line(call, tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    assert_one_line(call("train", "--config", tmp_path / "run.yaml"), str(tmp_path / "run.yaml"))
    assert not (tmp_path / "evil").exists()
