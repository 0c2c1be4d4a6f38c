"""Checkpoints: whole or absent, verified, rotated, and read back to the bit."""

import json
import subprocess
import warnings

import pytest
import torch

from joytag import checkpoint, optim
from joytag.model import ViT, ViTConfig

TAGS = ["a", "b", "c"]


def trained(name: str = "lamb"):
    model = ViT(
        ViTConfig(n_tags=3, image_size=8, num_blocks=1, patch_size=4, d_model=8, mlp_dim=8, num_heads=1, cnn_stem=None)
    )
    optimizer = optim.build(model.parameters(), name, lr=0.01, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1)
    for _ in range(3):
        model(torch.randn(2, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def save(root, samples, keep_last=3):
    model, optimizer = trained()
    tensors, facts = checkpoint.pack_optimizer(optimizer)
    checkpoint.save(root, samples, model, TAGS, "focal2", tensors, {"samples": samples, "optimizer": facts}, keep_last)
    return model, tensors


def test_what_was_saved_is_read_back_to_the_bit(tmp_path):
    model, tensors = save(tmp_path, 64)
    found, tags, found_tensors, facts = checkpoint.load(tmp_path / "000000000064")
    assert tags == TAGS and facts["samples"] == 64
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)
    assert found_tensors.keys() == tensors.keys()
    assert all(torch.equal(found_tensors[name], value) for name, value in tensors.items())


@pytest.mark.parametrize("name", ["lamb", "torch_optimizer_lamb", "adamw"])
def test_an_unpacked_optimizer_takes_the_same_next_step(name):
    model, optimizer = trained(name)
    other, fresh = trained(name)
    other.load_state_dict(model.state_dict())
    tensors, facts = checkpoint.pack_optimizer(optimizer)
    tensors = {name: value.clone() for name, value in tensors.items()}
    checkpoint.unpack_optimizer(fresh, tensors, json.loads(json.dumps(facts)))
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


@pytest.mark.parametrize("name", ["model.safetensors", "train_state.json", "MANIFEST.sha256"])
@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, name, damage):
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


def test_starting_over_on_damaged_checkpoints_alone_is_refused(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    save(tmp_path, 8)
    (tmp_path / f"{8:012d}" / "top_tags.txt").unlink()
    with pytest.warns(UserWarning), pytest.raises(checkpoint.CheckpointError, match="every checkpoint is damaged"):
        checkpoint.newest(tmp_path)


def test_an_unfinished_write_is_no_checkpoint(tmp_path):
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
