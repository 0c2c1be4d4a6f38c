"""The `joytag` command: help, version, unknown commands, scripts, and how errors end it."""

import ast
import os
import runpy
import subprocess
import sys
import warnings

import pytest
from paths import ROOT
from requirements import needs_unix

import joytag
from joytag.cli import command, finetune, train
from joytag.core.errors import Exit, ExitCode, GradientsDiverged, ProcessLost, Stopped, WeightsDiverged
from joytag.training import launch

SCRIPTS = {path.stem: path for path in sorted((ROOT / "scripts").glob("*.py"))}


def main(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["joytag", *arguments])
    try:
        command.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_help_lists_every_command_in_one_line(monkeypatch, capsys):
    assert main(monkeypatch, "--help") == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(command.COMMANDS)
    assert all(len(line.split()) > 4 and len(line) <= 120 for line in lines)
    assert main(monkeypatch) == 0
    assert capsys.readouterr().out.splitlines()[2:] == lines


def test_a_reader_that_stops_early_ends_the_help_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "joytag", "--help"], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (ExitCode.FAILED, b"")


WRITE = """
import os, sys
from joytag.cli import command
from joytag.core.terminal import print

def write():
    with open(sys.argv[1], "wb", buffering=0) as file:
        for stream in (sys.stdout, sys.stderr):
            print("a line", file=stream, flush=True)
            os.write(file.fileno(), b"kept ")
        for number in (1, 2):
            os.write(number, b"what a library prints")

command.report_errors("joytag write", write)
"""


@needs_unix
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_nothing_is_printed_to_a_file_that_takes_the_place_of_a_closed_stream(closed, tmp_path):
    command = [sys.executable, "-c", WRITE, tmp_path / "a.txt"]
    subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *command], cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "a.txt").read_text() == "kept kept "


def test_every_module_of_a_command_is_listed():
    modules = {
        path.stem
        for path in (ROOT / "joytag" / "cli").glob("*.py")
        if "\ndef parse(" in path.read_text(encoding="utf-8")
    }
    assert set(command.COMMANDS) == modules


def test_version_is_printed(monkeypatch, capsys):
    assert main(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"joytag {joytag.__version__}\n"


def test_the_error_for_an_unknown_command_lists_the_known_ones(monkeypatch, capsys):
    assert main(monkeypatch, "tga", "x.png") == ExitCode.USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith("joytag: 'tga' is not a command; did you mean tag?")
    assert main(monkeypatch, "xyzzy") == ExitCode.USER_ERROR
    assert "known: tag, app, labels, finetune" in capsys.readouterr().err


@pytest.mark.parametrize("name", command.COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as end:
        command.run(name, ["--help"])
    assert end.value.code == 0
    source = (ROOT / "joytag" / "cli" / f"{name}.py").read_text(encoding="utf-8")
    description = " ".join((ast.get_docstring(ast.parse(source)) or "").split())
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(f"usage: joytag {name} ")
    assert description in text


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_its_command(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPTS[name]), "--no-such-flag"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPTS[name]), run_name="__main__")
    assert end.value.code == ExitCode.USER_ERROR
    assert capsys.readouterr().err.startswith(f"joytag {'tag' if name == 'predict' else name}: ")


def test_a_script_runs_in_a_process_of_its_own(tmp_path):
    line = [sys.executable, str(ROOT / "scripts/train.py"), "--settings"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "optimizer.lr" in done.stdout


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("a.yaml: key:\nwrong"), ExitCode.USER_ERROR, "a.yaml: key: wrong"),
        (FileNotFoundError(2, "No such file", "x.png"), ExitCode.USER_ERROR, "x.png: No such file"),
        (ValueError("a\x1b[31m\u202e.png: wrong"), ExitCode.USER_ERROR, r"a\x1b[31m\u202e.png: wrong"),
        (OSError("disk gone"), ExitCode.USER_ERROR, "disk gone"),
        (
            OSError(28, "No space", "x"),
            ExitCode.USER_ERROR,
            "x: No space; free some space there, or choose another disk",
        ),
        (OSError(13, "Denied", "x"), ExitCode.USER_ERROR, "x: Denied; check its owner and permissions"),
        (OSError(30, "Read-only", "x"), ExitCode.USER_ERROR, "x: Read-only; choose a directory that can be written"),
        (Exit("loss is NaN", ExitCode.DIVERGED), ExitCode.DIVERGED, "loss is NaN"),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, "interrupted; run the same command again"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_ends_in_one_line_and_its_exit_code(error, code, line, monkeypatch, capsys):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # restores it afterwards

    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        command.report_errors("joytag x", fail)
    assert end.value.code == code
    assert capsys.readouterr().err == f"joytag x: {line}\n"


def test_ctrl_c_while_a_command_is_imported_ends_in_one_line_even_if_the_import_swallows_it():
    program = """
import importlib, os, signal
from joytag.cli import command
def load(name):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        raise ImportError("swallowed")
importlib.import_module = load
command.run("tag", [])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == ExitCode.INTERRUPTED
    assert done.stderr == "joytag tag: interrupted; run the same command again\n"


def test_other_errors_keep_their_traceback():
    program = """
from joytag.cli import command
def fail(): raise RuntimeError("a\\x1b[31m\\u202eb")
command.report_errors("joytag x", fail)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == ExitCode.FAILED
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("RuntimeError: a\\x1b[31m\\u202eb\n")


@pytest.mark.parametrize(
    ("remedies", "error", "line"),
    [
        (train.REMEDIES, Stopped("stopped", ExitCode.REQUEUE), "stopped; continue with --resume auto"),
        (train.REMEDIES, ProcessLost("rank 1 is gone"), "rank 1 is gone; continue with --resume auto"),
        (train.REMEDIES, WeightsDiverged("not finite"), "not finite; branch off one with --resume PATH output=DIR"),
        (train.REMEDIES, GradientsDiverged("3 steps"), "3 steps; --resume auto continues after them, --resume PATH"),
        (
            train.REMEDIES,
            launch.HasCheckpoints("runs/x: holds"),
            "runs/x: holds; continue it with --resume auto",
        ),
        (train.REMEDIES, ValueError("seed: wrong"), "seed: wrong"),
        (finetune.REMEDIES, Stopped("stopped", ExitCode.REQUEUE), "stopped; run the same command again to continue"),
        (finetune.REMEDIES, ProcessLost("rank 1 is gone"), "rank 1 is gone; run the same command again to continue"),
        (finetune.REMEDIES, GradientsDiverged("3 steps"), "3 steps; start again with another --output"),
    ],
)
def test_a_command_adds_its_remedy_in_the_line_of_the_error(remedies, error, line, capsys):
    def fail():
        with command.add_remedies(remedies):
            raise error

    with pytest.raises(SystemExit) as end:
        command.report_errors("joytag", fail)
    assert end.value.code == getattr(error, "code", ExitCode.USER_ERROR)
    printed = capsys.readouterr().err
    assert printed.startswith(f"joytag: {line}")
    assert printed.count("\n") == 1
