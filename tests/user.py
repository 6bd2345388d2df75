"""What a user does: starts the command, stops it, runs an example."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
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
