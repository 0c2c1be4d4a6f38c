"""The choice of a device."""

import warnings

import pytest
import torch

from joytag.core import devices


@pytest.fixture
def with_driver(monkeypatch, tmp_path) -> None:
    """An NVIDIA GPU that torch cannot use."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(devices, "NVIDIA_DRIVERS", ("/absent", str(tmp_path)))


@pytest.mark.parametrize(("cuda", "reason"), [(None, r"has no CUDA; install one"), ("13.2", r"CUDA 13\.2, .*too old")])
def test_a_gpu_that_torch_cannot_use_is_named(with_driver, monkeypatch, cuda, reason):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.warns(UserWarning, match=rf"^computing on the CPU: there is an NVIDIA GPU, but torch .* {reason}"):
        assert devices.pick_device() == torch.device("cpu")
    with pytest.raises(ValueError, match=rf"^device cuda: there is an NVIDIA GPU, but .*{reason}.*; use cpu$"):
        devices.pick_device("cuda")


@pytest.mark.parametrize("hidden", [True, False])
def test_without_a_gpu_or_with_a_hidden_one_the_cpu_is_used_silently(with_driver, monkeypatch, hidden):
    if hidden:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    else:
        monkeypatch.setattr(devices, "NVIDIA_DRIVERS", ("/absent",))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert devices.pick_device() == torch.device("cpu")
        with pytest.raises(ValueError, match=r"^device cuda: no CUDA device here; use cpu$"):
            devices.pick_device("cuda")


def test_a_chosen_cpu_is_used_silently(with_driver):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert devices.pick_device("cpu") == torch.device("cpu")
