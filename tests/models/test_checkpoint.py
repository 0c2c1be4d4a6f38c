"""Checkpoints: atomic, verified, rotated, and read back to the bit."""

import contextlib
import errno
import json
import os
import pathlib
import shutil
import subprocess
import warnings

import numpy as np
import pytest
import torch

from joytag.models import checkpoint, release
from joytag.models.vit import ViT, ViTConfig
from joytag.training import optimizers

TAGS = ["a", "b", "c"]


def trained(name: str = "lamb"):
    model = ViT(
        ViTConfig(n_tags=3, image_size=8, num_blocks=1, patch_size=4, d_model=8, mlp_dim=8, num_heads=1, cnn_stem=None)
    )
    optimizer = optimizers.build(model.parameters(), name, lr=0.01, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1)
    for _ in range(3):
        model(torch.randn(2, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def save(root, samples, keep_last=3, keep_every=10**9):
    model, optimizer = trained()
    tensors, values = checkpoint.pack_optimizer(optimizer)
    checkpoint.save(
        root, samples, model, TAGS, "focal2", tensors, {"samples": samples, "optimizer": values}, keep_last, keep_every
    )
    return model, tensors


def test_a_checkpoint_is_read_back_bit_identical(tmp_path):
    model, tensors = save(tmp_path, 64)
    loaded, tags, found_tensors, values = checkpoint.load(tmp_path / "000000000064")
    assert tags == TAGS
    assert values["samples"] == 64
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert found_tensors.keys() == tensors.keys()
    assert all(torch.equal(found_tensors[name], value) for name, value in tensors.items())


@pytest.mark.parametrize("name", ["lamb", "torch_optimizer_lamb", "adamw"])
def test_an_unpacked_optimizer_takes_the_same_next_step(name):
    model, optimizer = trained(name)
    other, fresh = trained(name)
    other.load_state_dict(model.state_dict())
    tensors, values = checkpoint.pack_optimizer(optimizer)
    tensors = {name: value.clone() for name, value in tensors.items()}
    checkpoint.unpack_optimizer(fresh, tensors, json.loads(json.dumps(values)))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    optimizer.step()
    fresh.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_the_manifest_satisfies_sha256sum(tmp_path):
    save(tmp_path, 8)
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", checkpoint.MANIFEST], cwd=tmp_path / f"{8:012d}", capture_output=True
    )
    assert done.returncode == 0


def test_only_the_newest_are_kept(tmp_path):
    for samples in (8, 16, 24, 32):
        save(tmp_path, samples, keep_last=2)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == [f"{24:012d}", f"{32:012d}"]


@pytest.mark.parametrize("reason", [errno.EACCES, errno.ENOTEMPTY], ids=["Windows", "NFS"])
def test_an_old_checkpoint_that_another_program_reads_is_removed_later(tmp_path, monkeypatch, reason):
    for samples in (1, 2):
        save(tmp_path, samples, keep_last=1)

    def refuse(source, target):
        if target.name.endswith(".old"):
            raise OSError(reason, os.strerror(reason))
        source.replace(target)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "rename", refuse)
        with pytest.warns(UserWarning, match="000000000002: cannot be removed now"):
            save(tmp_path, 3, keep_last=1)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["000000000002", "000000000003"]
    save(tmp_path, 4, keep_last=1)
    assert [path.name for path in tmp_path.iterdir()] == ["000000000004"]


def test_the_first_of_each_interval_is_kept(tmp_path):
    for samples in range(8, 100, 8):
        save(tmp_path, samples, keep_last=1, keep_every=30)
    assert [int(path.name) for path in checkpoint.checkpoints(tmp_path)] == [32, 64, 96]


def test_only_a_damaged_checkpoint_is_written_again(tmp_path):
    save(tmp_path, 8)
    state = tmp_path / f"{8:012d}" / "train_state.json"
    before = state.stat().st_mtime_ns
    save(tmp_path, 8)
    assert state.stat().st_mtime_ns == before
    state.write_text("{}")
    save(tmp_path, 8)
    assert checkpoint.newest(tmp_path) == tmp_path / f"{8:012d}"


class Killed(BaseException):
    """Simulates the end of the process."""


STEPS = [
    (os, "replace"),
    (os, "rename"),
    (os, "fsync"),
    (os, "unlink"),
    (shutil, "rmtree"),
    (release, "save_file"),
    (pathlib.Path, "write_text"),
    (pathlib.Path, "mkdir"),
    (pathlib.Path, "replace"),
    (pathlib.Path, "rename"),
]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("fault", [Killed(), OSError(28, "No space left on device")], ids=["killed", "disk full"])
def test_a_save_interrupted_at_any_step_leaves_the_old_or_the_new_checkpoint(tmp_path, monkeypatch, when, fault):
    """Interrupt the save at its first step, then at its second, and so on until it completes."""
    save(tmp_path, 8)
    calls = cut = 0

    def cutting(function):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls - 1 == cut and when == "before":
                raise fault
            result = function(*arguments, **options)
            if calls - 1 == cut:
                raise fault
            return result

        return call

    for cut in range(1000):
        calls = 0
        whole = [path for path in checkpoint.checkpoints(tmp_path) if checkpoint.is_intact(path)]
        samples = 16 + 8 * cut
        with monkeypatch.context() as patch:
            for owner, name in STEPS:
                patch.setattr(owner, name, cutting(getattr(owner, name)))
            with contextlib.suppress(Killed, checkpoint.CheckpointError, OSError):
                save(tmp_path, samples, keep_last=2)
        checkpoints = checkpoint.checkpoints(tmp_path)
        assert all(checkpoint.is_intact(path) for path in checkpoints)
        assert checkpoints[-1] in (whole[-1], tmp_path / f"{samples:012d}")
        assert len(checkpoints) >= min(2, len(whole))
        if calls <= cut:
            break
    assert cut > 20
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in checkpoints}


def test_every_flipped_bit_is_noticed(tmp_path):
    save(tmp_path, 8)
    rng = np.random.default_rng(0)
    files = sorted((tmp_path / f"{8:012d}").iterdir())
    for path in files:
        data = path.read_bytes()
        for bit in rng.choice(8 * len(data), 20):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            assert not checkpoint.is_intact(path.parent), (path, bit)
        for length in (0, 1, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:length])
            newline_alone = path.name == checkpoint.MANIFEST and length == len(data) - 1
            assert checkpoint.is_intact(path.parent) == newline_alone, (path, length)
        path.write_bytes(data)
    assert checkpoint.is_intact(tmp_path / f"{8:012d}")


@pytest.mark.parametrize("name", ["model.safetensors", "train_state.json", "MANIFEST.sha256"])
@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_a_damaged_checkpoint_is_named_and_an_older_one_used(tmp_path, name, damage):
    save(tmp_path, 8)
    save(tmp_path, 16)
    path = tmp_path / f"{16:012d}" / name
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(checkpoint.CheckpointError):
        checkpoint.verify(tmp_path / f"{16:012d}")
    with pytest.warns(UserWarning, match=f"{16:012d}"):
        assert checkpoint.newest(tmp_path) == tmp_path / f"{8:012d}"


def test_damaged_checkpoints_are_not_overwritten_by_a_new_start(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    save(tmp_path, 8)
    (tmp_path / f"{8:012d}" / "top_tags.txt").unlink()
    with (
        pytest.warns(UserWarning, match="trying an older"),
        pytest.raises(checkpoint.CheckpointError, match="every checkpoint is damaged"),
    ):
        checkpoint.newest(tmp_path)


def test_a_model_is_found_in_a_release_a_checkpoint_and_a_run(tmp_path):
    assert checkpoint.locate(tmp_path) == tmp_path, "an error about its missing files follows"
    model, _ = save(tmp_path / "checkpoints", 8)
    newest = tmp_path / "checkpoints" / f"{8:012d}"
    assert checkpoint.locate(newest) == newest
    assert checkpoint.locate(str(tmp_path)) == newest
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / release.CONFIG).touch()
    assert checkpoint.locate(tmp_path) == newest, "the release is not written to its end"
    assert release.locate(tmp_path) == tmp_path, "a run's newest checkpoint is another one later"
    release.save(tmp_path / "release", model, TAGS, "focal2")
    assert checkpoint.locate(tmp_path) == release.locate(tmp_path) == tmp_path / "release"
    assert checkpoint.locate(tmp_path / "release") == tmp_path / "release"


def test_an_unfinished_write_is_not_a_checkpoint(tmp_path):
    save(tmp_path, 8)
    (tmp_path / f".{16:012d}.part").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoint.newest(tmp_path) == tmp_path / f"{8:012d}"


def test_a_manifest_cannot_point_outside(tmp_path):
    save(tmp_path, 8)
    manifest = tmp_path / f"{8:012d}" / checkpoint.MANIFEST
    manifest.write_text(manifest.read_text() + "00  ../../etc/passwd\n")
    with pytest.raises(checkpoint.CheckpointError):
        checkpoint.verify(manifest.parent)
