"""Compiling a network by torch.compile, as one graph."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

from torch import nn

from gmtool.errors import MachineError


def compile_network(network: nn.Module, backend: str | Callable = "inductor") -> None:
    """Have the network compiled in place at its first call; its weights keep their names.

    Raises MachineError where there is no C++ compiler, which PyTorch needs for it on a CPU and on a GPU.
    """
    if shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
        raise MachineError("--compile needs a C++ compiler: install g++, or leave --compile out")
    network.compile(fullgraph=True, backend=backend)
