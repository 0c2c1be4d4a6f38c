"""The state of a run: its start, its checkpoints, and what must match to resume."""

import dataclasses
from typing import Any

import pytest
import torch
from training_runs import assert_equal_weights, build_run, newest_checkpoint

from joytag.benchmarks.baselines import EagerViT
from joytag.core.errors import WeightsDiverged
from joytag.models import checkpoint, inference
from joytag.models.vit import ViT, ViTConfig
from joytag.training import trainer
from joytag.training.losses import focal
from joytag.training.state import NeedsBranch, fresh_optimizer, initial_state, load_state, save_state


def test_a_new_model_predicts_the_frequencies_of_the_tags(run_values):
    run = build_run(run_values)
    state = initial_state(run)
    frequency = torch.tensor(run.dataset.tags.counts.tolist()) / len(run.dataset.posts("train"))
    assert (state.model.head.bias.sigmoid() - frequency).abs().max() < 0.03


def without_head_bias(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name != "head.bias"}


def test_initial_weights_are_torchs_own(run_values):
    run = build_run(run_values)
    torch.manual_seed(run.config.seed)
    config = run.config.architecture(len(run.dataset.tags), 8)
    assert isinstance(config, ViTConfig)
    plain = without_head_bias(EagerViT(config).state_dict())
    assert_equal_weights(without_head_bias(initial_state(run).model.state_dict()), plain)


def test_the_first_fp16_gradients_do_not_underflow_behind_small_layer_scales(run_values):
    """As for 24 blocks on eight GPUs with 512 samples each, but with one block and half the image size."""
    run = dataclasses.replace(build_run(run_values), dtype=torch.float16)
    sizes: dict[str, Any] = dict(image_size=112, patch_size=14, num_blocks=1, d_model=1024, mlp_dim=4096, num_heads=16)
    model = ViT(ViTConfig(n_tags=5813, cnn_stem=None, layerscale_init=1e-5, **sizes))
    torch.nn.init.constant_(model.head.bias, -5.2)  # a mean of 32 tags per image
    with inference.autocast(run.device, run.dtype):
        logits = model(torch.randn(1, 3, 112, 112))
    labels = torch.arange(5813).expand(1, -1) % 182 == 0
    scaler = fresh_optimizer(model, run)[1]
    scaler.scale(focal(logits, labels) * 128 / 512).backward()
    gradient = dict(model.named_parameters())["blocks.0.qkv_proj.weight"].grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.eq(0).float().mean() < 0.1


def test_a_checkpoint_of_another_vocabulary_model_or_recipe_is_refused(run_values):
    run = build_run(run_values)
    state = trainer.train(run, None)
    path = newest_checkpoint(run)
    wider = build_run(run_values, model=run_values["model"] | {"mlp_dim": 64})
    with pytest.raises(ValueError, match=r"model\.mlp_dim: was 32 there, is 64 now"):
        load_state(path, wider)
    with pytest.raises(ValueError, match=r"optimizer\.weight_decay: was 0\.05 there, is 0\.5 now"):
        load_state(path, build_run(run_values, optimizer={"weight_decay": 0.5}))
    with pytest.raises(NeedsBranch, match=r"lr: was 0\.004 there, is 0\.002 now"):
        load_state(path, build_run(run_values, optimizer={"lr": 0.002}))
    branch = build_run(run_values, optimizer={"lr": 0.002}, output=run_values["output"] + "-slower")
    assert load_state(path, branch).samples == 184
    with pytest.raises(ValueError, match="batch_size: was 8 there, is 4 now"):
        load_state(path, build_run(run_values, batch_size=4))
    checkpoint.save(
        run.root, 999_999, state.model, list("abcdef"), "focal2", {}, {"samples": 0}, keep_last=9, keep_every=10**9
    )
    with pytest.raises(ValueError, match="another vocabulary"):
        load_state(newest_checkpoint(run), run)


def test_a_checkpoint_of_an_older_version_is_not_resumed_but_starts_a_new_run(run_values, tmp_path):
    run = build_run(run_values)
    state, tags = initial_state(run), run.dataset.tags.names
    values = {"samples": 184, "course": {"seed": 0}}  # as version 0.1.0 wrote it
    path = checkpoint.save(tmp_path / "old", 184, state.model, tags, "focal2", {}, values, 1, 10**9)
    with pytest.raises(ValueError, match=r"older version, whose runs cannot be resumed; .* init_from: ") as error:
        load_state(path, run)
    assert "\n" not in str(error.value)
    other = initial_state(build_run(run_values, seed=7, init_from=str(path)))
    assert torch.equal(other.model.head.weight, state.model.head.weight)


def test_diverged_weights_do_not_replace_a_good_checkpoint(run_values):
    run = build_run(run_values)
    state = trainer.train(run, None)
    before = checkpoint.checkpoints(run.root)
    state.model.head.bias.data[0] = float("nan")
    with pytest.raises(WeightsDiverged, match="no longer finite") as end:
        save_state(state, run, required=False)
    assert end.value.code == 3
    assert checkpoint.checkpoints(run.root) == before
