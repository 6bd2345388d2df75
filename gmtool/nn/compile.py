"""Compiling a network by torch.compile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Protocol

from torch import nn

from gmtool.errors import MachineError


class InBlocks(Protocol):
    """A network whose work is in blocks, all alike."""

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks."""


def compile_network(network: InBlocks, backend: str | Callable = "inductor") -> None:
    """Have the blocks compiled in place at the first call; weights keep their names.

    Blocks are where the work is, and alike: they share their code, so that a deep network compiles as fast as a shallow
    one. What wraps a block, to shard its weights or to checkpoint its activations, stays outside of the compiled code.
    Raises MachineError where there is no C++ compiler, which PyTorch needs for it on a CPU and on a GPU.
    """
    if shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
        raise MachineError("--compile needs a C++ compiler: install g++, or remove the flag")
    for block in network.blocks:
        block.compile(fullgraph=True, backend=backend)
