"""What a user does: starts the command, stops it, runs an example."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import gmtool
from gmtool.progress import Progress


class Stop(Progress):
    """Interrupts a stage after so many units, as Ctrl-C would."""

    def __init__(self, units: int) -> None:
        self._left = units

    def advance(self, count: int = 1, figures: object = None) -> None:
        self._left -= count
        if self._left <= 0:
            raise KeyboardInterrupt


def start_gmtool(
    arguments: Sequence[str], folder: Path, stderr: int = subprocess.PIPE, own_group: bool = False
) -> subprocess.Popen[str]:
    """The gmtool that is tested, as a process of its own that runs in ``folder``.

    stderr: a pipe, or a file descriptor. own_group: in a process group of its own, as a shell starts it.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "gmtool", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(gmtool.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=own_group,
    )


HOLD = """
import sys
from pathlib import Path
from gmtool.artifacts.outputs import kept_to_this_process
with kept_to_this_process(Path(sys.argv[1]), Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another(path: Path) -> Iterator[int]:
    """An output that another process, whose number is yielded, has in use."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], text=True, **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield other.pid
        other.communicate()


def torchrun(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """What ``torchrun --nproc-per-node 2`` does with a script or module and its arguments, in ``folder``."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(gmtool.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*launcher, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def load_example(name: str) -> ModuleType:
    """The module ``examples/<name>.py``, which others may import by its name from then on."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module
