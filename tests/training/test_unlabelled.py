"""Tags that nobody looked at are absent or left out of the loss; rejected ones are a no."""

import json
import math
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import N_TAGS, make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from training_runs import assert_equal_weights, build_run, newest_checkpoint, weights

from joytag.core.settings import flatten
from joytag.data import loader
from joytag.data.dataset import NEGATIVES, POSTS_SCHEMA, Dataset
from joytag.data.preprocessing import normalize
from joytag.data.tables import write_table
from joytag.models import release
from joytag.training import losses, step, trainer, transfer
from joytag.training.config import RunSettings
from joytag.training.run import Run
from joytag.training.state import initial_state, load_state, save_state

CRITERIA = {
    "focal": losses.focal,
    "focal below 1": lambda logits, targets: losses.focal(logits, targets, gamma=0.5),
    "bce": losses.binary_cross_entropy,
    "weighted bce": lambda logits, targets: losses.binary_cross_entropy(logits, targets, torch.tensor([3.0, 0.5, 9.0])),
    "asymmetric": losses.asymmetric,
}


@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_loss_is_a_sum_over_known_entries_alone(criterion, data):
    """Compared with a loop over single entries, in value and gradient."""
    states = data.draw(st.lists(st.sampled_from([0.0, 1.0, 0.25, math.nan]), min_size=12, max_size=12))
    targets = torch.tensor(states, dtype=torch.float64).view(4, 3)
    values = data.draw(st.lists(st.floats(-30, 30), min_size=12, max_size=12))
    logits = torch.tensor(values, dtype=torch.float64).view(4, 3).requires_grad_()
    criterion(*losses.without_unknown(logits, targets)).backward()
    alone = logits.detach().clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for row in range(4):
        for column in range(3):
            if not math.isnan(targets[row, column]):
                # The others of its row are known and certain, so that weights by column can be used.
                one = torch.full((1, 3), losses.CERTAIN_NO, dtype=torch.float64)
                one[0, column] = alone[row, column]
                answer = torch.zeros(1, 3, dtype=torch.float64)
                answer[0, column] = targets[row, column]
                total = total + criterion(one, answer) * 3 / 12
    if total.requires_grad:
        total.backward()
    value = criterion(*losses.without_unknown(logits.detach(), targets))
    torch.testing.assert_close(value, total.detach(), rtol=1e-9, atol=1e-12)
    assert logits.grad is not None
    expected = torch.zeros_like(logits) if alone.grad is None else alone.grad
    torch.testing.assert_close(logits.grad, expected, rtol=1e-9, atol=1e-12)
    assert not logits.grad[targets.isnan()].any()


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_unknown_entries_cost_nothing_in_any_format(name, dtype):
    logits = torch.tensor([[3.0, -4.0, 0.0]], dtype=dtype, requires_grad=True)
    options = dict.fromkeys(losses.LOSSES[name].options, 2.0)
    criterion = losses.LOSSES[name].build(torch.full((3,), 0.3).double(), torch.device("cpu"), **options)
    value = criterion(*losses.without_unknown(logits, torch.full((1, 3), math.nan)))
    value.backward()
    assert float(value.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_known_entries_alone_give_the_same_bits():
    logits, targets = torch.randn(8, 50) * 6, (torch.rand(8, 50) < 0.1).float()
    for criterion in (losses.focal, losses.binary_cross_entropy, losses.asymmetric):
        assert torch.equal(criterion(*losses.without_unknown(logits, targets)), criterion(logits, targets))


@pytest.fixture
def labelled(tmp_path) -> Path:
    """A dataset whose second source is not exhaustive, with rejected tags in both; 50 training images."""
    directory = make_dataset(tmp_path / "labelled", {"train": 50, "validation": 12})
    rng = np.random.default_rng(1)
    for split in ("train", "validation"):
        table = pq.read_table(directory / f"{split}.parquet")
        rejected = [
            [t for t in range(N_TAGS) if t not in tags and rng.random() < 0.4] for tags in table["tags"].to_pylist()
        ]
        table = table.append_column(NEGATIVES, pa.array(rejected, NEGATIVES.type))
        write_table(table, POSTS_SCHEMA.append(NEGATIVES), directory / f"{split}.parquet")
    describe(directory, exhaustive=[True, False])
    return directory


def describe(directory: Path, **changes: object) -> None:
    path = directory / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def with_data(run_values: dict, directory: Path, **changes: object) -> dict:
    return run_values | {"data": run_values["data"] | {"directory": str(directory)} | changes}


def first_batch(run: Run) -> tuple[loader.Batch, step.MicroBatchNoise]:
    state = initial_state(run)
    batch = next(trainer.begin_stage(state, run)[0])
    return batch, next(step.micro_batch_noise(state, run))


def learned(run: Run, monkeypatch) -> tuple[torch.Tensor, torch.Tensor, loader.Batch, step.MicroBatchNoise]:
    """The logits and the targets that the loss gets in a run's first micro-batch."""
    batch, noise = first_batch(run)
    seen: list[torch.Tensor] = []

    def criterion(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.extend((logits, targets))
        return logits.sum()

    monkeypatch.setitem(vars(run), "criterion", criterion)
    step.batch_loss(initial_state(run).model, batch, noise, run)
    return seen[0], seen[1], batch, noise


def test_unknown_tags_of_a_source_that_is_not_exhaustive_are_left_out(run_values, labelled, monkeypatch):
    run = build_run(with_data(run_values, labelled, unlabelled="ignore"), micro_batch=8)
    logits, targets, batch, _ = learned(run, monkeypatch)
    posts = run.images
    assert posts.negatives is not None
    assert {int(source) for source in batch.sources} == {0, 1}
    for i, row in enumerate(batch.rows.tolist()):
        tags = set(posts.tags[posts.offsets[row] : posts.offsets[row + 1]].tolist())
        rejected = set(posts.negatives.tags[slice(*posts.negatives.offsets[row : row + 2])].tolist())
        for tag in range(N_TAGS):
            is_unknown = posts.sources[row] == 1 and tag not in tags | rejected
            assert (float(logits[i, tag]) == losses.CERTAIN_NO) == is_unknown
            assert float(targets[i, tag]) == (tag in tags)


def test_the_batch_is_not_larger_than_without_rejected_tags(run_values, labelled):
    batch, _ = first_batch(build_run(with_data(run_values, labelled, unlabelled="ignore")))
    plain, _ = first_batch(build_run(with_data(run_values, labelled)))
    assert (batch.labels.dtype, plain.labels.dtype) == (torch.int8, torch.bool)
    assert batch.labels.nbytes == plain.labels.nbytes
    assert torch.equal(batch.labels > 0, plain.labels)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_what_is_unknown_in_one_of_two_mixed_images_is_unknown(run_values, labelled, monkeypatch, smoothing):
    changes = {"micro_batch": 8, "loss": {"label_smoothing": smoothing}}
    run = build_run(with_data(run_values, labelled, unlabelled="ignore", mixup=0.4), **changes)
    logits, targets, batch, noise = learned(run, monkeypatch)
    labels, shares = batch.labels.double(), noise.mixup
    assert shares is not None
    for i in range(8):
        j = i ^ 1
        for tag in range(N_TAGS):
            unknown = any(labels[k, tag] == 0 and batch.sources[k] == 1 for k in (i, j))
            assert (float(logits[i, tag]) == losses.CERTAIN_NO) == unknown
            if not unknown:
                its, other = (float(labels[k, tag] > 0) * (1 - smoothing) + smoothing / 2 for k in (i, j))
                assert float(targets[i, tag]) == pytest.approx(float(shares[i]) * its + (1 - float(shares[i])) * other)


def test_absent_is_the_default_and_changes_no_bit(run_values, labelled, tmp_path):
    """Neither do rejected tags, nor does `ignore` where all sources are exhaustive."""
    runs = {
        "plain": make_dataset(tmp_path / "plain", {"train": 50, "validation": 12}),
        "labelled": labelled,
        "ignored": labelled,
        "exhaustive": make_dataset(tmp_path / "exhaustive", {"train": 50, "validation": 12}),
    }
    trained = {}
    for name, directory in runs.items():
        unlabelled = {"unlabelled": "ignore"} if name in ("exhaustive", "ignored") else {}
        values = with_data(run_values, directory, **unlabelled) | {"output": str(tmp_path / name)}
        values |= {"stages": [{"image_size": 8, "samples": 24}]}
        trained[name] = weights(trainer.train(build_run(values), None))
    assert_equal_weights(trained["labelled"], trained["plain"])
    assert_equal_weights(trained["exhaustive"], trained["plain"])
    assert not torch.equal(trained["ignored"]["head.weight"], trained["plain"]["head.weight"])


def test_the_gradient_does_not_depend_on_how_known_entries_are_divided(run_values, labelled, tmp_path):
    values = with_data(run_values, labelled, unlabelled="ignore") | {"stages": [{"image_size": 8, "samples": 24}]}
    states = [
        trainer.train(build_run(values, output=str(tmp_path / str(micro)), micro_batch=micro), None)
        for micro in (8, 2, 1)
    ]
    for other in states[1:]:
        torch.testing.assert_close(weights(other), weights(states[0]), rtol=1e-4, atol=1e-5)


def test_a_step_follows_the_gradient_of_the_known_entries(run_values, labelled):
    model = run_values["model"] | {"stochdepth_rate": 0.0}
    run = build_run(with_data(run_values, labelled, unlabelled="ignore", augment="none"), model=model, micro_batch=2)
    state = initial_state(run)
    batches = list(islice(trainer.begin_stage(state, run)[0], 4))
    images, labels, sources = (
        torch.cat([getattr(b, name) for b in batches]) for name in ("images", "labels", "sources")
    )
    known = (labels != 0) | (sources == 0)[:, None]
    assert 0 < int(known.sum()) < known.numel()
    logits = state.model(normalize(images))
    value = torch.zeros(())
    for i, tag in known.nonzero().tolist():
        value = value + losses.focal(logits[i, tag], (labels[i, tag] > 0).float())
    norm = torch.cat(
        [g.flatten() for g in torch.autograd.grad(128 * value / known.numel(), [*state.model.parameters()])]
    )
    result = step.train_step(state, state.model, iter(batches), run)
    assert result.loss == pytest.approx(128 * float(value.detach()) / known.numel(), rel=1e-5)
    assert result.norm == pytest.approx(float(norm.norm()), rel=1e-4)


@pytest.mark.parametrize("unlabelled", ["absent", "ignore"])
@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_a_teacher_is_corrected_by_what_is_known(run_values, labelled, tmp_path, monkeypatch, unlabelled, mixup):
    """Compared with the rules, entry by entry."""
    values, old = with_data(run_values, labelled, unlabelled=unlabelled, mixup=mixup), ["tag_4", "tag_0", "tag_1"]
    model = build_run(values).config.architecture(len(old), 8).build()
    model.head.weight.data.normal_(generator=torch.Generator().manual_seed(3))
    release.save(tmp_path / "source", model, old, "focal2")
    changes = {"batch_size": 48, "micro_batch": 48, "stages": [{"image_size": 8, "samples": 96}]}
    run = build_run(values, init_from=str(tmp_path / "source"), distill=True, **changes)
    logits, targets, batch, noise = learned(run, monkeypatch)
    assert batch.labels.dtype == torch.int8
    state = {-1: 0.0, 0: 0.0, 1: 1.0}
    for i in range(48):
        share = 1.0 if noise.mixup is None else float(noise.mixup[i])
        pair = [(share, i), (1 - share, i ^ 1)] if mixup else [(1.0, i)]

        def mixed(tag: int, pair=pair) -> tuple[float, bool]:
            """The label, NaN if unknown, and whether it was rejected."""
            value, rejected = 0.0, 0.0
            for weight, k in pair:
                label = int(batch.labels[k, tag])
                is_unknown = unlabelled == "ignore" and label == 0 and batch.sources[k] == 1
                value += weight * (math.nan if is_unknown else state[label])
                rejected += weight * (label < 0)
            return value, rejected > 0.5

        is_labelled = any(mixed(tag)[0] > 0.5 for tag in (0, 1, 4))
        for tag in range(N_TAGS):
            value, rejected = mixed(tag)
            target = float(targets[i, tag])
            if tag not in (0, 1, 4):
                assert (float(logits[i, tag]) == losses.CERTAIN_NO) == math.isnan(value)
                assert math.isnan(value) or target == pytest.approx(value, abs=1e-6)
            elif value > 0.5:
                assert target >= transfer.YES - 1e-6
            elif rejected or (is_labelled and not math.isnan(value)):
                assert target <= transfer.NO + 1e-6
            else:
                assert 0 < target < 1
                assert target not in (transfer.YES, transfer.NO)


def test_a_checkpoint_of_a_version_without_the_setting_resumes(run_values):
    """Its fingerprint, and a sweep's names of trials, have no key for it."""
    config = RunSettings.model_validate(run_values)
    assert "data.unlabelled" not in flatten(config)
    assert "unlabelled" not in config.model_dump()["data"]
    ignoring = RunSettings.model_validate(with_data(run_values, Path("x"), unlabelled="ignore"))
    assert flatten(ignoring)["data.unlabelled"] == "ignore"


def test_a_run_does_not_resume_when_what_is_known_has_changed(run_values, labelled):
    values = with_data(run_values, labelled)
    run = build_run(values)
    save_state(initial_state(run), run, required=True)
    with pytest.raises(ValueError, match=r"data\.unlabelled: was absent there, is ignore now"):
        load_state(newest_checkpoint(run), build_run(with_data(run_values, labelled, unlabelled="ignore")))
    describe(labelled, exhaustive=[True, True])
    with pytest.raises(ValueError, match=r"data\.directory: its content was another"):
        load_state(newest_checkpoint(run), build_run(values))


def test_a_dataset_without_rejected_tags_is_labelled_as_before(run_values):
    run = build_run(run_values)
    assert Dataset.open(Path(run_values["data"]["directory"])).exhaustive == [True, True]
    assert run.partial is None
    assert not run.has_signed_labels
