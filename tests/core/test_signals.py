"""Signals are recorded and never lost."""

import os
import signal
import subprocess
import sys

import pytest
from paths import ROOT
from requirements import needs_unix

from joytag.core.signals import Interrupts, starting_processes

pytestmark = needs_unix  # on Windows a signal sent to a process ends it


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 75), ("SIGUSR1", 75)])
def test_a_signal_is_recorded_as_its_exit_code(name, code):
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        assert interrupts.code == 0
        os.kill(os.getpid(), number)
        assert interrupts.code == code
    assert signal.getsignal(number) is before


def test_ctrl_c_interrupts_what_has_nothing_to_save():
    interrupts = Interrupts(idle=lambda: True)
    with pytest.raises(KeyboardInterrupt), interrupts:
        os.kill(os.getpid(), signal.SIGINT)
    assert interrupts.code == 130
    with Interrupts(idle=lambda: True) as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
    assert interrupts.code == 75


def test_a_second_ctrl_c_ends_the_process_at_once():
    program = """
import os, signal
from joytag.core.signals import Interrupts, starting_processes
with Interrupts():
    os.kill(os.getpid(), signal.SIGINT)
    print("still there", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("too late", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == -signal.SIGINT
    assert done.stdout == "still there\n"


def test_a_signal_ends_the_process_at_once_when_no_step_can_finish():
    program = """
import os, signal
from joytag.core.signals import Interrupts, starting_processes
with Interrupts(hopeless=lambda: True):
    os.kill(os.getpid(), signal.SIGTERM)
    print("too late", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 75
    assert not done.stdout


def test_a_process_ignores_ctrl_c_from_its_start():
    program = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('still there')"
    with starting_processes():
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.communicate()[0] == "still there\n"
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
