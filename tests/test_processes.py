"""Child processes end with their parent, however it ends."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.conftest import ended, until

STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN); "
CHILD = "import os, signal, time; {}print('child', os.getpid(), flush=True); time.sleep(600)"
PARENT = """
import sys
from spherear import processes
processes.GRACE = 0.5
sys.exit(processes.run([sys.executable, "-c", sys.argv[1]]))
"""


def started(child, **options):
    """A process that runs `child`, a program, by `processes.run`."""
    command = (sys.executable, "-c", PARENT, child)
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("kill", ["terminate", "kill"])
@pytest.mark.parametrize("child", [CHILD.format(""), CHILD.format(STUBBORN)], ids=["child", "stubborn child"])
def test_no_child_outlives_its_parent(kill, child):
    """`terminate` is SIGTERM, `kill` SIGKILL. A stubborn child ignores SIGTERM."""
    with started(child) as parent:
        process = psutil.Process(int(parent.stdout.readline().split()[1]))
        family = [process, *psutil.Process(parent.pid).children(recursive=True)]
        getattr(parent, kill)()
        assert parent.wait(60) == {"terminate": 128 + signal.SIGTERM, "kill": -signal.SIGKILL}[kill]
        assert until(lambda: all(map(ended, family)))


def test_the_status_and_the_input_are_the_childs():
    """Also where a child asks in the terminal whether Ctrl-C is meant."""
    with started("import sys; sys.exit(int(input()))", stdin=subprocess.PIPE) as parent:
        parent.communicate("7\n", timeout=60)
    assert parent.returncode == 7


@pytest.mark.skipif(os.name != "posix", reason="a terminal sends Ctrl-C to all processes of a group")
def test_ctrl_c_is_left_to_the_child():
    child = """
import signal, sys, time
asked = []
signal.signal(signal.SIGINT, lambda *_: asked.append(1) or print("asks", flush=True))
print("up", flush=True)
while len(asked) < 2:
    time.sleep(0.01)
"""
    with started(child, start_new_session=True) as parent:
        assert parent.stdout.readline() == "up\n"
        for _ in range(2):
            os.killpg(parent.pid, signal.SIGINT)
            assert parent.stdout.readline() == "asks\n"
        assert parent.wait(60) == 0


def test_what_the_parent_cleans_up_is_cleaned_up_when_it_is_terminated(tmp_path):
    script = f"""
import sys, tempfile
from spherear import processes
with tempfile.TemporaryDirectory(dir={str(tmp_path)!r}):
    processes.run([sys.executable, "-c", "print('up', flush=True); import time; time.sleep(600)"])
"""
    with subprocess.Popen((sys.executable, "-c", script), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "up\n"
        assert len(list(tmp_path.iterdir())) == 1
        parent.terminate()
        parent.wait(60)
    assert list(tmp_path.iterdir()) == []
