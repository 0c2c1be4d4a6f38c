"""Starting from a release: rows by tag name, rates by depth, frozen parts unchanged."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import assert_equal_weights, open_run, weights

from joytag.core import settings
from joytag.data import augment, loader
from joytag.data.preprocessing import normalize
from joytag.models import release
from joytag.models.timm_backbone import TimmConfig
from joytag.models.vit import ViT, ViTConfig
from joytag.training import optimizers, step, transfer
from joytag.training.config import RunSettings
from joytag.training.state import initial_state
from joytag.training.trainer import train

STEM = "conv:c=8;bn;relu;conv:c=16;ln;relu;conv:c=16,s=1,k=1,p=0"


def vit(n_tags: int, **changes) -> ViT:
    values: dict[str, Any] = dict(
        image_size=16, num_blocks=2, patch_size=4, d_model=16, mlp_dim=32, num_heads=2, cnn_stem=STEM
    )
    return ViT(ViTConfig(n_tags=n_tags, **(values | changes)))


@pytest.fixture
def source(tmp_path) -> tuple[Path, ViT, list[str]]:
    """A release with two of the dataset's tags, and one that the dataset lacks."""
    torch.manual_seed(1)
    model, tags = vit(3), ["tag_4", "old", "tag_0"]
    release.save(tmp_path / "source", model, tags, "focal2")
    return tmp_path / "source", model.eval(), tags


@pytest.fixture
def fine_tuned(run_values, source):
    """Build the settings of a run that starts from `source`, with changes."""

    def build(**changes) -> RunSettings:
        values = {key: value for key, value in run_values.items() if key != "model"}
        values |= {"stages": [{"samples": 64}], "init_from": str(source[0])} | changes
        return RunSettings.model_validate(values).fitted_to(release.read_config(source[0]))

    return build


def test_rows_are_carried_over_by_name():
    source, tags = vit(3), ["a", "b", "c"]
    model = vit(4)
    bias = model.head.bias.detach().clone().normal_()
    model.head.bias.data.copy_(bias)
    carried = transfer.carry_over(model, ["c", "new", "a", "other"], source, tags)
    assert carried == (["c", "a"], ["new", "other"], ["b"])
    assert carried.summary() == "2 tags kept, 2 tags new, 1 tag dropped\n  new: new, other\n  dropped: b"
    assert torch.equal(model.head.weight[[0, 2]], source.head.weight[[2, 0]])
    assert torch.equal(model.head.bias[[0, 2]], source.head.bias[[2, 0]])
    assert not model.head.weight[[1, 3]].any()
    assert torch.equal(model.head.bias[[1, 3]], bias[[1, 3]])
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model.eval()(images)[:, [0, 2]], source.eval()(images)[:, [2, 0]])


def test_another_architecture_is_refused_with_the_tensor():
    with pytest.raises(ValueError, match=r"tensor blocks\.2"):
        transfer.carry_over(vit(3), ["a"] * 3, vit(3, num_blocks=3), ["a", "b", "c"])
    with pytest.raises(ValueError, match="tensor pos_embedding"):
        transfer.carry_over(vit(3), ["a"] * 3, vit(3, use_sine=False), ["a", "b", "c"])


def test_rates_fall_from_the_head_to_the_stem():
    model = vit(3, use_sine=False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales: dict[str, float] = {}
    for group in model.layer_groups(0.5):
        scales |= {names[id(parameter)]: group["lr_scale"] for parameter in group["params"]}
    assert scales.keys() == set(names.values())
    expected = {"head": 1, "norm": 1, "blocks.1": 0.5, "blocks.0": 0.25}
    expected |= {"patch_embeddings": 0.125, "pos_embedding": 0.125}
    for name, scale in scales.items():
        assert scale == next(value for prefix, value in expected.items() if name.startswith(prefix + ".")), name


def test_rates_of_a_timm_backbone_fall_by_its_own_layers():
    model = TimmConfig(3, "test_convnext", 64).build()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales: dict[str, float] = {}
    for group in model.layer_groups(0.5):
        scales |= {names[id(parameter)]: group["lr_scale"] for parameter in group["params"]}
    assert scales.keys() == set(names.values()), "each parameter is in one group"
    assert scales["head.weight"] == scales["head.bias"] == 1
    order = [
        scales[f"backbone.{name}"] for name in ("stem.0.weight", "stages.0.blocks.0.gamma", "stages.3.blocks.0.gamma")
    ]
    assert order == sorted(set(order))
    assert order[-1] <= 0.5


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_optimizers_use_the_rates_of_the_groups(name):
    """Compared with one optimizer per group, each built with the group's rate."""
    model = vit(3)
    twin = copy.deepcopy(model)
    settings: dict[str, Any] = dict(betas=(0.9, 0.999), eps=1e-6, weight_decay=0.05)
    together = optimizers.build(model.layer_groups(0.5), name, lr=0.01, **settings)
    groups = twin.layer_groups(0.5)
    apart = [optimizers.build(group["params"], name, lr=0.01 * group["lr_scale"], **settings) for group in groups]
    for group in together.param_groups:
        group["lr"] = 0.01 * group["lr_scale"]
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        ours.grad = torch.randn_like(ours)
        theirs.grad = ours.grad.clone()
    for optimizer in (together, *apart):
        optimizer.step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_run_starts_with_the_outputs_of_its_release(fine_tuned, source, capsys):
    _, model, _ = source
    state = initial_state(open_run(fine_tuned()))
    assert "2 tags kept, 4 tags new, 1 tag dropped" in capsys.readouterr().out
    images = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        logits = state.model.eval()(images)
        torch.testing.assert_close(logits[:, [4, 0]], model(images)[:, [0, 2]], rtol=1e-5, atol=1e-5)
    counts = open_run(fine_tuned()).dataset.tags.counts
    frequency = (counts[[1, 2, 3, 5]] + 1) / (50 + 2)
    torch.testing.assert_close(logits[0, [1, 2, 3, 5]].sigmoid(), torch.from_numpy(frequency).float())


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": {"layer_decay": 0.7}}, {"model": {"freeze": 1}}, {"distill": True}], ids=str
)
def test_a_resumed_fine_tuning_is_bit_identical(fine_tuned, tmp_path, changes):
    whole = train(open_run(fine_tuned(**changes)), None)
    again = fine_tuned(**changes, output=str(tmp_path / "again"))
    first = tmp_path / "run" / "checkpoints" / f"{48:012d}"
    resumed = train(open_run(again), first)
    assert_equal_weights(weights(resumed), weights(whole))


def test_frozen_parts_keep_weights_and_statistics(fine_tuned, source):
    _, before, _ = source
    after = train(open_run(fine_tuned(model={"freeze": 1})), None).model.state_dict()
    for name, value in before.state_dict().items():
        if not name.startswith("head"):
            frozen = name.startswith(("patch_embeddings", "blocks.0"))
            assert torch.equal(value, after[name]) == frozen or "num_batches" in name, name


def test_freezing_more_blocks_than_there_are_is_refused(fine_tuned):
    with pytest.raises(ValueError, match=r"model\.freeze: 3 blocks, but the model has 2"):
        initial_state(open_run(fine_tuned(model={"freeze": 3})))


def test_architecture_and_size_come_from_the_release_unless_given(fine_tuned):
    config = fine_tuned(model={"stochdepth_rate": 0.3}, stages=[{"samples": 64}, {"samples": 64, "image_size": 32}])
    assert config.model.d_model == 16
    assert config.model.stochdepth_rate == 0.3
    assert [stage.image_size for stage in config.plan()] == [16, 32]
    with pytest.raises(settings.SettingsError, match=r"init_from .*stages\.0\.image_size"):
        fine_tuned(stages=[{"samples": 64, "image_size": 18}])


def test_without_a_release_an_image_size_is_required(run_values):
    with pytest.raises(ValueError, match=r"stages\.0\.image_size"):
        RunSettings.model_validate(run_values | {"stages": [{"samples": 64}]})


def test_retain_interpolates_between_the_release_and_the_run(fine_tuned, source, tmp_path):
    _, before, _ = source
    tuned, mixed = (
        train(open_run(fine_tuned(retain=share, output=str(tmp_path / f"{share}"))), None).model.state_dict()
        for share in (0.0, 0.25)
    )
    start = before.state_dict()
    for name, value in mixed.items():
        if name.startswith("head"):  # the dataset's tags 0 and 4 are the release's rows 2 and 0, the others are new
            torch.testing.assert_close(value[[0, 4]], 0.75 * tuned[name][[0, 4]] + 0.25 * start[name][[2, 0]])
            assert torch.equal(value[[1, 2, 3, 5]], tuned[name][[1, 2, 3, 5]])
        elif value.is_floating_point():
            torch.testing.assert_close(value, 0.75 * tuned[name] + 0.25 * start[name])
    released, _ = release.load(tmp_path / "0.25" / "release")
    assert torch.equal(released.head.weight, mixed["head.weight"])


def test_retain_without_a_release_is_refused(run_values):
    with pytest.raises(ValueError, match="retain: needs init_from"):
        RunSettings.model_validate(run_values | {"retain": 0.5})


def test_the_teachers_scores_are_targets_unless_labels_contradict_them():
    torch.manual_seed(2)
    model, images = vit(3).eval(), torch.randn(4, 3, 16, 16)
    model.head.weight.data.normal_()
    scores = model(images).sigmoid().detach()
    #                        c      new    a      other, while b is not a tag of the dataset
    labels = torch.tensor([[False, True, False, False], [True, False, False, True], [False, False, True, True]])
    labels = torch.cat([labels, torch.tensor([[True, True, True, False]])])
    targets = transfer.Teacher.of(model, ["a", "b", "c"], ["c", "new", "a", "other"]).targets(images, labels)
    assert torch.equal(targets[:, [1, 3]], labels[:, [1, 3]].float()), "new tags keep their labels"
    for image, column, row in itertools.product(range(4), (0, 2), (0, 2)):
        if (column, row) in ((0, 2), (2, 0)):
            expected = float(scores[image, row])
            if image > 0:  # labelled with an old tag: the labels are right about all of them
                expected = max(expected, 0.5) if labels[image, column] else min(expected, 0.3)
            assert float(targets[image, column]) == pytest.approx(expected, abs=1e-6)
    assert len({round(float(value), 5) for value in targets[1:, [0, 2]].flatten()} - {0.5, 0.3}) > 0
    assert labels.dtype == torch.bool


@pytest.mark.parametrize("mixup", [0.0, 0.2])
def test_distilled_targets_are_what_a_step_learns(fine_tuned, monkeypatch, mixup):
    run = open_run(fine_tuned(distill=True, data=fine_tuned().data.model_dump() | {"mixup": mixup}))
    state = initial_state(run)
    keys = [[(0, row) for row in range(run.micro_batch)]]
    batch = next(loader.batches(loader.ImageDataset(run.dataset, "train", 16), keys, 0, pin=False))
    noise = next(step.micro_batch_noise(state, run))
    learned = []

    def criterion(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        learned.append(targets)
        return logits.sum()

    monkeypatch.setitem(vars(run), "criterion", criterion)
    step.batch_loss(state.model, batch, noise, run)
    images, labels = normalize(batch.images), batch.labels.float()
    if noise.mixup is not None:
        images, labels = augment.mixup(images, labels, noise.mixup)
    teacher, tags = release.load(Path(run.config.init_from or ""))
    expected = transfer.Teacher.of(teacher, tags, run.dataset.tags.names).targets(images, labels)
    torch.testing.assert_close(learned[0], expected)


def test_a_release_without_tags_of_the_dataset_teaches_nothing(fine_tuned, tmp_path):
    release.save(tmp_path / "stranger", vit(2), ["x", "y"], "focal2")
    run = open_run(fine_tuned(distill=True, init_from=str(tmp_path / "stranger")))
    assert run.teacher is None
    assert train(run, None).samples == 64


def test_a_distilled_timm_backbone_trains(run_values, tmp_path):
    torch.manual_seed(1)
    release.save(tmp_path / "timm", TimmConfig(3, "test_convnext", 32).build(), ["tag_4", "old", "tag_0"], "focal2")
    values = {key: value for key, value in run_values.items() if key != "model"}
    values |= {"stages": [{"samples": 16}], "init_from": str(tmp_path / "timm"), "distill": True}
    config = RunSettings.model_validate(values).fitted_to(release.read_config(tmp_path / "timm"))
    run = open_run(config)
    assert train(run, None).samples == 16
    assert run.teacher is not None
    assert not run.teacher.model.training, "BatchNorm keeps its statistics"


def test_distilling_without_a_release_is_refused(run_values):
    with pytest.raises(ValueError, match="distill: needs init_from"):
        RunSettings.model_validate(run_values | {"distill": True})


def test_settings_follow_from_the_number_of_images_and_the_width():
    released = ViTConfig(n_tags=3, d_model=192, num_heads=3, cnn_stem=None)
    settings_of = {n: transfer.chosen_settings(n, released) for n in (8, 54, 270, 1_000)}
    samples = [values[0] for values in settings_of.values()]
    assert samples == [f"stages.0.samples={n}" for n in (1_200, 1_500, 3_300, 10_000)]
    assert {values[1] for values in settings_of.values()} == {"optimizer.lr=0.003"}
    wide = ViTConfig(n_tags=3, d_model=768, num_heads=12, cnn_stem=None)
    assert transfer.chosen_settings(8, wide)[1] == "optimizer.lr=0.00075"
    assert transfer.chosen_settings(8, TimmConfig(3, "test_convnext", 64))[1].startswith("optimizer.lr=0.0")
