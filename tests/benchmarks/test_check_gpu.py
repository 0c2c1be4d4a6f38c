"""`make check-gpu` without a GPU: on a CPU, on a simulated GPU, and its table of synthetic results."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from typing import Any

import gpu as simulation
import pytest
import torch
from commands import HANG, Done, assert_one_line
from paths import ROOT
from requirements import needs_linux
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from joytag.benchmarks import gpu, gpu_parts, gpu_report, training
from joytag.core import devices
from joytag.data import loader
from joytag.training import optimizers, state, trainer

NEED_A_GPU = {name for name, lever in gpu_parts.LEVERS.items() if lever.only_on_gpu}
PARTS_OF_A_SIZE = [name for name in gpu.PARTS if "224" not in name and name != "tests"]


def synthetic(machine: str, factor: float) -> dict:
    """Results of all parts on a machine that is `factor` times as fast as another."""
    parts: dict = {"tests": {"test_a": {"outcome": "passed"}, "test_b": {"outcome": "skipped"}, "seconds": 60.0}}
    for number, name in enumerate(list(gpu.PARTS)[1:]):
        parts[name] = {"images_per_s": factor * (800 + number), "ms": 2.5 / factor, "mfu": 0.42 * factor}
    for size in gpu_parts.BATCHES:
        parts[f"step {size}: {gpu_parts.REFERENCE}"]["images_per_s"] = 400 * factor
        parts[f"augmentation {size}"]["images_per_s"] = 20_000 * factor
        parts[f"loading {size}"] = {"images_per_s": 5000, "processes": 16}
    parts["tagging"] = {"images_per_s": 1600, "example_images_per_s": 100, "same_decisions": 0.99975}
    about = {"date": "2026-12-01", "machine": f"NVIDIA {machine}, 16 CPU cores (x86_64)", "torch": "2.11.0"}
    return about | {"tiny": False, "parts": parts}


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict:
    """The results of a tiny model on the CPU, at one image size."""
    file = tmp_path_factory.mktemp("gpu") / "gpu.json"
    file.write_text('{"parts": {}}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "PARTS", {name: gpu.PARTS[name] for name in gpu.PARTS if name != "tests"})
        gpu.measure(gpu_parts.Setup("cpu", file, tiny=True))
    torch._dynamo.config.disable = False
    return json.loads(file.read_text())["parts"]


@pytest.mark.benchmarks
def test_every_part_runs_on_a_cpu(measured):
    assert list(measured) == PARTS_OF_A_SIZE
    errors = {name.partition(": ")[2]: part["error"] for name, part in measured.items() if "error" in part}
    assert errors == dict.fromkeys(NEED_A_GPU, "needs a GPU")
    first = measured["step 448: ours"]
    for name in ("compile", "channels_last", "fused loss", gpu_parts.REFERENCE):
        assert measured[f"step 448: {name}"]["loss"] == pytest.approx(first["loss"], rel=0.01), name
    for name in ("bf16", "padded head", "twice the micro-batch"):
        assert measured[f"step 448: {name}"]["loss"] != first["loss"], name
    assert measured["step 448: twice the micro-batch"]["batch"] == 2 * first["batch"]
    assert first["images_per_s"] == pytest.approx(8e3 / first["ms"])
    assert measured["tagging"]["same_decisions"] == 1


def test_a_lever_changes_what_it_names(tmp_path, monkeypatch):
    setup = gpu_parts.Setup("cpu", tmp_path, tiny=True)
    compiled = []
    monkeypatch.setattr(
        nn.Module, "compile", lambda module, **options: compiled.append((type(module).__name__, options))
    )

    def prepared(name: str) -> tuple[gpu_parts.TrainState, gpu_parts.Run]:
        lever = gpu_parts.LEVERS[name]
        run = training.recipe(setup.case(448, lever.settings, lever.batch, lever.tags))
        current = state.initial_state(run)
        trainer.compile_parts(current.model, run)
        if lever.change is not None:
            lever.change(current, run)
        return current, run

    for name in ("ours", "together"):
        current, run = prepared(name)
        [convolution, *_] = [p for p in current.model.parameters() if p.dim() == 4]
        changed = name == "together"
        assert convolution.is_contiguous(memory_format=torch.channels_last) == changed
        assert ("fused" in str(run.criterion)) == changed
        assert len(run.dataset.tags) == (gpu_parts.PADDED if changed else gpu_parts.TAGS)
        assert run.config.compile == changed
        assert [part for part, _ in compiled] == [type(part).__name__ for part in current.model.parts] * changed
    assert {options.get("mode") for _, options in compiled} == {None}
    compiled.clear()
    prepared("max-autotune")
    assert {options["mode"] for _, options in compiled} == {"max-autotune-no-cudagraphs"}
    assert gpu_parts.PADDED % 128 == 0
    assert gpu_parts.TAGS <= gpu_parts.PADDED < gpu_parts.TAGS + 128


def test_the_reference_and_the_optimizers_are_those_that_the_parts_name(tmp_path, monkeypatch):
    setup = gpu_parts.Setup("cpu", tmp_path, tiny=True)
    monkeypatch.setattr(training, "reference_steps", lambda case: iter([7.0] * 9))
    monkeypatch.setattr(training, "our_steps", lambda case, change: iter([8.0] * 9))
    losses = {name: gpu.PARTS[f"step 448: {name}"](setup)["loss"] for name in (gpu_parts.REFERENCE, "ours")}
    assert losses == {gpu_parts.REFERENCE: 7, "ours": 8}
    model = nn.Linear(2, 2)
    for name in optimizers.OPTIMIZERS:
        step: Any = gpu_parts.UPDATES[name](model)
        expected = optimizers.build(model.parameters(), **training.OPTIMIZER | {"name": name})
        assert type(step.__self__) is type(expected)
        assert step.__self__.param_groups[0]["weight_decay"] == training.OPTIMIZER["weight_decay"]


def fake_scalar(func, value):
    """Read 1 from a simulated GPU, whose tensors have no values."""
    return lambda tensor, *rest: value if isinstance(tensor, FakeTensor) else func(tensor, *rest)


def backward(loss: Tensor, *_: object) -> None:
    """Give each parameter that a loss depends on a gradient: a simulated GPU has no backward pass."""
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            node.variable.grad = torch.zeros_like(node.variable)
        nodes += [following for following, _ in node.next_functions]


@pytest.mark.benchmarks
def test_the_parts_run_on_a_simulated_gpu_as_far_as_it_goes(tmp_path, monkeypatch):
    """Devices are not mixed in steps, augmentation and updates. cuDNN needs a real GPU."""
    captured = []
    for module, name, value in (
        (devices, "pick_device", lambda name: simulation.DEVICE),
        (torch.cuda, "get_device_name", lambda *_: "NVIDIA H100 80GB HBM3"),
        (torch.cuda, "synchronize", lambda *_: None),
        (torch.cuda, "make_graphed_callables", lambda *arguments: captured.append(arguments)),
        (loader.Batch, "pin_memory", lambda batch: batch),
        (Tensor, "backward", backward),
        (Tensor, "item", fake_scalar(Tensor.item, 1.0)),
        (Tensor, "__float__", fake_scalar(Tensor.__float__, 1.0)),
        (training, "WARMUP", 0),
    ):
        monkeypatch.setattr(module, name, value)
    setup = gpu_parts.Setup("cuda", tmp_path / "gpu.json", tiny=True)
    steps = [f"step 448: {name}" for name in ("together", "CUDA graphs")]
    others = ["augmentation 448", "update: lamb", "update: adamw", "update: clipping"]
    with simulation.simulated() as device:
        for name in steps + others:
            device.launched.clear()
            result = gpu.PARTS[name](setup)
            assert "error" not in result, name
            assert device.launched, f"{name} does nothing on the GPU"
            if name in steps:
                flop = training.step_flop(setup.case(448))  # of the tags of the dataset, not of a padded head
                assert result["mfu"] == pytest.approx(result["images_per_s"] * flop / 989e12)
    torch._dynamo.config.disable = False
    ((model, (images, noise)),) = captured
    assert images.device == noise.device == next(model.parameters()).device == simulation.DEVICE


@pytest.fixture
def copies(monkeypatch):
    """Have the parts run in copies of this process, which start at once and have what a test changed."""
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: context)
    return context


@pytest.fixture
def supervised(copies, monkeypatch, tmp_path):
    """Run these parts; returns the results."""

    def run(parts: dict, **limits: float) -> dict:
        monkeypatch.setattr(gpu, "PARTS", parts)
        monkeypatch.setattr(gpu, "LIMITS", limits)
        return gpu.run(gpu_parts.Setup("cpu", tmp_path / "gpu.json"))["parts"]

    return run


def test_a_part_that_fails_hangs_or_dies_does_not_keep_the_next_from_being_measured(supervised, capfd):
    spoilt: list[bool] = []

    def fail(setup: gpu_parts.Setup) -> gpu_parts.Result:
        spoilt.append(True)
        raise RuntimeError("CUDA error\nmore")

    def die(setup: gpu_parts.Setup) -> gpu_parts.Result:
        gpu_parts.store(setup.file, "dies", {"half": len(spoilt), "unfinished": True})
        os._exit(7)

    def look(setup: gpu_parts.Setup) -> gpu_parts.Result:
        return {"before": list(json.loads(setup.file.read_text())["parts"])}

    parts = {"fails": fail, "dies": die, "hangs": lambda setup: time.sleep(1000), "looks": look}
    results = supervised(parts, hangs=0.5)
    assert list(results) == list(parts)
    assert results["fails"]["error"] == "RuntimeError: CUDA error"
    assert results["dies"]["half"] == 0, "in the process in which another had failed"
    assert "code 7" in results["dies"]["error"]
    assert "may take 0.5 s" in results["hangs"]["error"]
    assert results["looks"]["before"] == ["fails", "dies", "hangs"], "written when each ended"
    assert [line.partition(":")[0] for line in capfd.readouterr().out.splitlines()] == list(parts)


@needs_linux
@pytest.mark.parametrize(
    ("name", "code", "hanging"),
    [("SIGKILL", -9, "tests"), ("SIGTERM", -15, "step 448: ours"), ("SIGINT", 130, "update: lamb")],
)
def test_what_was_measured_before_a_signal_is_in_the_table_and_nothing_goes_on(
    copies, monkeypatch, tmp_path, capfd, name, code, hanging
):
    file = tmp_path / "gpu.json"
    reader, writer = copies.Pipe(duplex=False)

    def hang(setup: gpu_parts.Setup) -> gpu_parts.Result:
        if hanging == "tests":
            gpu_parts.store(setup.file, "tests", {"test_a": {"outcome": "failed"}, "unfinished": True})
        writer.send("hangs")
        time.sleep(10 * HANG)
        raise AssertionError

    known = synthetic("H100", 1.0)["parts"]
    parts = {name: lambda setup, name=name: known[name] for name in gpu.PARTS} | {hanging: hang}
    monkeypatch.setattr(gpu, "PARTS", parts)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which processes in the background do not have
    process = copies.Process(target=gpu.main, args=(["--device", "cpu", "--json", str(file)],))
    process.start()
    writer.close()
    assert reader.poll(HANG)
    assert reader.recv() == "hangs"
    assert process.pid is not None
    os.kill(process.pid, signal.Signals[name])
    process.join(HANG)
    assert process.exitcode == code
    assert reader.poll(HANG), "the part still hangs"
    with pytest.raises(EOFError):
        reader.recv()
    results = gpu_parts.read(file)
    done = list(parts)[: list(parts).index(hanging)]
    assert [name for name in results["parts"] if name != hanging] == done
    table = gpu_report.report([results])
    assert "Failed tests: test_a, not finished." in table or hanging != "tests"
    assert f"{hanging} (not reached)" in table or hanging == "tests"
    assert ("448 px: ours |  | 800 images/s" in table) == ("step 448: ours" in done)
    assert capfd.readouterr().err.count("\n") == (name == "SIGINT")


def test_no_part_begins_after_the_last_minute(tmp_path):
    file = tmp_path / "gpu.json"
    file.write_text('{"parts": {}}')
    gpu.measure(gpu_parts.Setup("cpu", file, ends=0.0))
    results = json.loads(file.read_text())["parts"]
    assert results.keys() == gpu.PARTS.keys()
    assert {part["error"] for part in results.values()} == {"no time was left"}


def test_the_outcome_of_each_test_is_stored_with_what_it_recorded(tmp_path, monkeypatch):
    file, tests = tmp_path / "gpu.json", tmp_path / "test_some.py"
    file.write_text('{"parts": {}}')
    tests.write_text(
        "import pytest\n"
        "def test_good(record_property):\n    record_property('difference', 0.5)\n"
        "def test_bad():\n    assert 1 == 2\n"
        "def test_absent():\n    pytest.skip('refused')\n"
        "def test_unprepared(absent):\n    pass\n"
    )
    monkeypatch.setattr(gpu_parts, "TESTS", tests)
    outcomes = gpu_parts.tests(gpu_parts.Setup("cpu", file))
    assert {name: outcome["outcome"] for name, outcome in outcomes.items()} == {
        "test_good": "passed",
        "test_bad": "failed",
        "test_absent": "skipped",
        "test_unprepared": "failed",
    }
    assert outcomes["test_good"]["difference"] == 0.5
    assert "1 == 2" in outcomes["test_bad"]["reason"]
    assert "refused" in outcomes["test_absent"]["reason"]
    assert "fixture 'absent' not found" in outcomes["test_unprepared"]["reason"]
    assert json.loads(file.read_text())["parts"]["tests"]["test_bad"] == outcomes["test_bad"]


def test_a_file_without_tests_is_no_result(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_parts, "TESTS", tmp_path / "test_absent.py")
    with pytest.raises(ValueError, match="ran no test"):
        gpu_parts.tests(gpu_parts.Setup("cpu", tmp_path / "gpu.json"))


def test_without_a_gpu_one_line_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(SystemExit) as end:
        gpu.main([])
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "no CUDA device here" in captured.err
    assert not captured.out


@pytest.mark.parametrize("package", ["torch", "pytest"])
def test_a_missing_package_is_named_in_one_line(package):
    program = f"""
import runpy, sys, types
for name in ("torch", "joytag.benchmarks.training"):  # whose import would take seconds
    sys.modules[name] = types.ModuleType(name)
sys.modules[{package!r}] = None
runpy.run_module("joytag.benchmarks.gpu", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert_one_line(Done(done.returncode, done.stdout, done.stderr), "check-gpu: ", package, "make gpu-wheels")


def test_the_results_of_two_machines_become_one_table():
    table = gpu_report.report([synthetic("H100 80GB HBM3", 1.0), synthetic("H200", 0.9)]).splitlines()
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for line in table if (cells := line.split("|"))[1:]
    }
    assert rows[""] == ["goal", "NVIDIA H100 80GB HBM3", "NVIDIA H200"]
    assert rows["448 px: fastest training"] == ["", "826 images/s", "743 images/s"]  # the last lever's
    assert rows["448 px: its share of the peak (MFU)"] == ["≥ 40.0%", "42.0%, reached", "37.8%, missed"]
    assert rows["448 px: its speed beside the eager reference"][1:] == ["2.06, reached"] * 2  # 826 / 400
    assert rows["448 px: augmentation beside it"] == ["≤ 5.0%", "4.1%, reached", "4.1%, reached"]  # 826 / 20,000
    assert rows["448 px: LAMB's share of 4,096 images"][1:] == ["0.05%"] * 2  # 2.5 ms * 826 / 4,096 s
    assert rows["448 px: loading beside it"] == ["≥ 1.00", "6.05, reached", "6.73, reached"]  # 5,000 / 826
    assert rows["tagging beside the published example"] == ["≥ 8.0", "16.0, reached", "16.0, reached"]
    assert rows["update: lamb"] == ["≤ 3.00 ms", "2.50 ms, reached", "2.78 ms, reached"]
    assert [line for line in table if "issing" in line] == ["Missing: nothing."] * 2
    assert sum("Failed tests: none." in line for line in table) == 2


def test_fields_that_are_missing_are_named():
    results = synthetic("H100", 1.0)
    del results["parts"]["step 448: compile"]
    results["parts"]["step 448: bf16"] = {"error": "OutOfMemoryError: too little"}
    del results["parts"]["tagging"]["same_decisions"]
    results["parts"]["tests"]["test_a"]["outcome"] = "failed"
    table = gpu_report.report([results])
    [missing] = [line for line in table.splitlines() if line.startswith("Missing")]
    assert missing == (
        "Missing: tagging (same_decisions); step 448: compile (not reached); "
        "step 448: bf16 (OutOfMemoryError: too little)."
    )
    assert "Failed tests: test_a." in table


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), ('{"machine": ', "Expecting value"), ('{"machine": "H200"}', "tiny is missing")],
)
def test_a_file_that_is_none_of_results_is_named_in_one_line(tmp_path, monkeypatch, capsys, content, reason):
    file = tmp_path / "gpu.json"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(sys, "argv", ["gpu_report", str(file)])
    with pytest.raises(SystemExit) as end:
        gpu_report.main()
    captured = capsys.readouterr()
    assert not captured.out
    assert_one_line(Done(int(end.value.code or 0), "", captured.err), str(file), reason, "make check-gpu writes it")


@pytest.mark.benchmarks
def test_a_table_can_be_drawn_whenever_the_script_is_stopped(measured):
    results = synthetic("H100", 1.0)
    for number in range(len(gpu.PARTS) + 1):
        some = {name: results["parts"][name] for name in list(gpu.PARTS)[:number]}
        table = gpu_report.report([results | {"parts": some}])
        assert ("Missing: nothing" in table) == (number == len(gpu.PARTS))
        assert ("Failed tests: not reached" in table) == (number == 0)
    assert "needs a GPU" in gpu_report.report([results | {"parts": measured, "tiny": True}])


def test_docs_have_the_rows_and_goals_of_the_table():
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    for row in gpu_report.ROWS:
        if row.goal:
            assert f"| {row.label} | {row.goal} |" in page
