"""A sweep's file: what it expands to, and what is refused before anything starts."""

import itertools
import shlex

import pytest
import yaml
from paths import ROOT

from joytag.cli import train
from joytag.core import settings
from joytag.core.settings import SettingsError
from joytag.sweeps.config import Sweep, text
from joytag.sweeps.ledger import Ledger
from joytag.sweeps.search import plan
from joytag.training.config import RunSettings


def points(path, *overrides):
    sweep = Sweep(path, overrides)
    return plan(sweep, Ledger(sweep.output))


def trials(path, *overrides):
    return [trial for point in points(path, *overrides) for trial in point.trials]


def test_axes_multiply_and_zip_moves_settings_together(write_sweep):
    axes = {
        "optimizer.lr": {"log": [0.001, 0.1], "points": 3},
        "head": {"base": {}, "large": {"model.mlp_dim": 64, "model.num_blocks": 3}},
    }
    moved = [{"optimizer.weight_decay": [0.0, 0.1], "loss.gamma": [1.0, 2.0]}]
    found = points(write_sweep(axes=axes, zip=moved, seeds=2))
    assert len(found) == 1 + 3 * 2 * 2
    assert found[0].changes == {}
    assert [[trial.seed for trial in point.trials] for point in found[:2]] == [[0, 1], [0, 1]]
    changes = {tuple(sorted(point.changes.items())) for point in found}
    large = {"optimizer.lr": 0.01, "model.mlp_dim": 64, "model.num_blocks": 3, "optimizer.weight_decay": 0.1}
    assert tuple(sorted((large | {"loss.gamma": 1.0}).items())) not in changes
    assert tuple(sorted(large.items())) in changes, "gamma 2.0 is the base's"


def test_a_trial_is_named_by_what_it_learns(write_sweep):
    ids = {trial.id for trial in trials(write_sweep())}
    assert len(ids) == 6
    assert {trial.id for trial in trials(write_sweep(output="elsewhere"))} == ids
    assert {trial.id for trial in trials(write_sweep(axes={"optimizer.lr": [0.02, 0.01, 0.004]}))} == ids, (
        "0.004 is the base"
    )
    assert {trial.id for trial in trials(write_sweep(seeds=3))} > ids
    path = write_sweep()
    base = yaml.safe_load((path.parent / "base.yaml").read_text())
    (path.parent / "base.yaml").write_text(yaml.safe_dump(base | {"keep_last": 9}))
    assert {trial.id for trial in trials(path)} == ids, "it may change when a run resumes"
    (path.parent / "base.yaml").write_text(yaml.safe_dump(base | {"batch_size": 4}))
    assert not {trial.id for trial in trials(path)} & ids


def test_a_sweep_may_have_the_name_of_its_base(write_sweep, monkeypatch):
    path = write_sweep(base="tiny.yaml")
    folder = path.parent / "configs"
    (folder / "sweeps").mkdir(parents=True)
    (path.parent / "base.yaml").rename(folder / "tiny.yaml")
    monkeypatch.chdir(path.parent)
    assert Sweep(path.rename(folder / "sweeps" / "tiny.yaml")).base_path.resolve() == folder / "tiny.yaml"


@pytest.mark.parametrize("points", [4, 5, 7])
def test_a_wider_grid_repeats_its_points(write_sweep, points):
    narrow = {trial.id for trial in trials(write_sweep(axes={"optimizer.lr": {"log": [0.001, 0.1], "points": 3}}))}
    ends = [0.001, 10 ** (points - 4)]
    assert narrow <= {trial.id for trial in trials(write_sweep(axes={"optimizer.lr": {"log": ends, "points": points}}))}


def test_commands_are_those_of_the_trial(write_sweep, tmp_path, monkeypatch):
    axes: dict = {"model.cnn_stem": [None, "conv:c=8;ln;relu;conv:c=16;ln;relu;conv:c=16,s=1,k=1,p=0"]}
    axes |= {"data.augment": ["none", "rand"], "optimizer.betas": [[0.9, 0.99]], "optimizer.eps": [1e-7]}
    for of_point, number in itertools.product(points(write_sweep(axes=axes)), range(2)):
        trial = of_point.trials[number]
        program, name, *arguments = shlex.split(shlex.join(trial.commands[0]))
        assert (program, name) == ("joytag", "train")
        given = train.parse(arguments)
        expected = of_point.config.model_copy(update={"seed": trial.seed, "output": str(trial.directory)})
        assert settings.load(RunSettings, settings.find(given.config), given.overrides) == expected
        assert given.resume == "auto"
        assert trial.commands[1][:4] == ["joytag", "evaluate", "--model", str(trial.directory / "release")]


def test_several_processes_are_started_by_torchrun(write_sweep):
    trial = trials(write_sweep(processes=8))[0]
    for command, name in zip(trial.commands, ("train", "evaluate"), strict=True):
        assert command[:7] == ["torchrun", "--standalone", "--nproc-per-node", "8", "-m", "joytag", name]


@pytest.mark.parametrize(
    "value", [None, True, 3, 1e-7, 0.1, "adamw", "conv:c=8;ln", "null", "3", "", "a b", [0.9, 0.99], {"a": 1}]
)
def test_a_value_survives_the_command_line(tmp_path, value):
    path = tmp_path / "x.yaml"
    path.write_text("{}")
    values = settings.read(path)
    settings._override(values, f"key={text(value)}")
    assert values == {"key": value}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"axes": {"optimizer.lrr": [0.1]}}, ["optimizer.lrr", "did you mean optimizer.lr?"]),
        ({"axes": {"optimizer.lr": [0.1, -1]}}, ["optimizer.lr=-1", "greater than 0"]),
        (
            {"axes": {"optimizer.lr": [0.1]}, "zip": [{"optimizer.lr": [1, 2]}]},
            ["optimizer.lr and optimizer.lr both set"],
        ),
        ({"axes": {"optimizer": [{"lr": 0.1}], "optimizer.lr": [0.1]}}, ["both set optimizer"]),
        ({"axes": {"keep_last": [1, 2]}}, ["keep_last", "same run"]),
        ({"axes": {"seed": [1, 2]}}, ["seed", "use seeds"]),
        ({"axes": {"optimizer.lr": {"log": [0.1, 0.01], "points": 3}}}, ["optimizer.lr", "low and a high end"]),
        ({"axes": {"optimizer.lr": {"log": [0.01, 0.1]}}}, ["optimizer.lr", "points"]),
        ({"axes": {"optimizer.lr": {"log": [0, 0.1], "points": 3}}}, ["axes.optimizer.lr", "greater than 0"]),
        ({"axes": {"optimizer.lr": 0.1}}, ["axes.optimizer.lr", "a list of values"]),
        ({"axes": {"x": {"a": {"model.mlp_dim": 64}, "b": {"model.num_headz": 2}}}}, ["did you mean model.num_heads?"]),
        ({"axes": {"model.num_heads": [2, 3], "model.d_model": [16, 24]}}, ["model.num_heads=3"]),
        ({"zip": [{"a": [1], "b": [1, 2]}]}, ["zip.0", "different lengths"]),
        ({"metric": "macro_f2"}, ["metric", "did you mean macro_f1?"]),
        ({"metric": "micro_recall", "stop_early": {"rungs": [0.5], "keep": 0.5}}, ["do not log micro_recall"]),
        ({"search": "tpee", "trials": 3}, ["search", "did you mean tpe?"]),
        ({"search": "tpe"}, ["trials: needed by search tpe"]),
        ({"trials": 3}, ["trials: a grid has them all"]),
        ({"sedes": 3}, ["sedes", "did you mean seeds?"]),
        ({"base": "bsae.yaml"}, ["bsae.yaml"]),
        ({"search": "tpe", "trials": 3, "axes": {"model.d_model": [16, 17]}}, ["model.d_model=17"]),
    ],
)
def test_mistakes_are_named_in_one_line_before_anything_is_written(call, write_sweep, tmp_path, changes, parts):
    path = write_sweep(**changes)
    before = sorted(tmp_path.rglob("*"))
    done = call("sweep", "--config", path)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    for part in (*parts, "yaml"):
        assert part in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_random_points_are_the_same_at_every_call_and_more_keep_the_first(write_sweep):
    axes = {"optimizer.lr": {"log": [0.001, 0.1]}, "optimizer.weight_decay": [0.0, 0.1]}
    few, again, more = (points(write_sweep(axes=axes, search="random", trials=n, seeds=1)) for n in (4, 4, 6))
    assert [point.id for point in few] == [point.id for point in again] == [point.id for point in more[:5]]
    assert len({point.id for point in more}) == 7
    assert all(0.001 <= point.changes.get("optimizer.lr", 0.004) <= 0.1 for point in more)


def test_a_small_space_has_no_point_twice(write_sweep):
    found = trials(write_sweep(axes={"optimizer.weight_decay": [0.0, 0.1, 0.2]}, search="random", trials=9, seeds=1))
    assert len(found) == len({trial.id for trial in found}) == 4


@pytest.mark.parametrize("path", sorted((ROOT / "configs/sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_sweeps_are_valid(path):
    with pytest.raises(SettingsError, match="seeds"):
        Sweep(path, ["seeds=0"])
    assert Sweep(path).point({}).changes == {}
