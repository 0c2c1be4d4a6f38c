"""The shipped configs, trained in miniature."""

import math
from typing import Any

import pytest
import torch
from paths import ROOT
from training_runs import build_run, read_losses

from joytag.core import settings
from joytag.models.vit import Block, ViTConfig
from joytag.training import micro_batch, trainer
from joytag.training.config import RunSettings

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("name", ["b16_448", "l14_224", "h14_224"])
def test_models_of_all_sizes_start_at_the_originals_layer_scale(name):
    model = settings.load(RunSettings, ROOT / "configs" / f"{name}.yaml").model
    block = Block(ViTConfig(n_tags=1, num_blocks=model.num_blocks, layerscale_init=model.layerscale_init))
    for scale in (block.skip_init1, block.skip_init2):
        torch.testing.assert_close(scale.skip, torch.full((768,), 0.1))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_trains_in_miniature(path, dataset_directory, tmp_path):
    """With a smaller model, smaller images and fewer samples."""
    overrides = {
        "output": tmp_path,
        "data.directory": dataset_directory,
        "data.workers": 0,
        "batch_size": 8,
        "device": "cpu",
        "micro_batch": "auto",
        "tracking.wandb": "disabled",
        "every": "{log: 8, evaluate: 80, checkpoint: 80}",
    }
    config = settings.load(RunSettings, path, [f"{key}={value}" for key, value in overrides.items()])
    model, stages = config.model, config.stages
    sizes = {stage.image_size: 32 * (1 + number) for number, stage in enumerate(stages)}
    small: dict[str, Any] = {"num_blocks": 2, "d_model": 32, "mlp_dim": 64, "num_heads": 2, "patch_size": 16}
    stem = model.cnn_stem and "conv:c=8,s=4;ln;relu;conv:c=32,s=4"
    small |= {"stochdepth_rate": model.stochdepth_rate, "cnn_stem": stem}
    changed = config.model_dump() | {
        "model": {"timm": "test_convnext", "stochdepth_rate": 0.1} if model.timm else small,
        "stages": [
            {"image_size": sizes[stage.image_size], "samples": 24, "restart": stage.restart} for stage in stages
        ],
        "init_from": None,
        "retain": 0.0,
        "distill": False,
    }
    run = micro_batch.resolve(build_run(changed))
    state = trainer.train(run, None)
    assert state.samples == 24 * len(stages)
    losses = read_losses(run)
    assert len(losses) == 3 * len(stages)
    assert all(map(math.isfinite, losses))
    assert run.config.micro_batch == 8
