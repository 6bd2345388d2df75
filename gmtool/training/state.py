"""The state of a training run, and its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic

from torch import Tensor

from gmtool.distributed import ALONE, World, holding_shards, replicate, shard
from gmtool.training.checkpoint import MODEL, OPTIMIZER, load_optimizer, load_weights
from gmtool.training.ema import Average, N, average_file, make_averages
from gmtool.training.focal import ModeLosses
from gmtool.training.optimizer import Optimizer, make_optimizer
from gmtool.training.settings import AverageSettings, OptimizerSettings

FOCAL = "focal.safetensors"


@dataclass(frozen=True)
class TrainState(Generic[N]):
    """A network that is trained, its moving averages, the optimizer.

    forward: how the network is called: itself, or wrapped for several processes, or compiled. hold: makes a context in
    which a backward pass keeps its gradients to this process: that of a micro-batch which is not the last of a step.
    focal: the losses of the modes, which weigh the data; None without re-weighting.
    """

    network: N
    averages: tuple[Average[N], ...]
    optimizer: Optimizer
    forward: Callable[..., Any]
    hold: Callable[[], AbstractContextManager[object]] = nullcontext
    focal: ModeLosses | None = None

    def tensors(self, world: World = ALONE) -> dict[str, Mapping[str, Tensor]]:
        """The files of a checkpoint: named tensors by file name.

        Every process calls this; only the first receives the tensors, the others files without any.
        """
        averages = {average_file(average.name, self._names): average.network.state_dict() for average in self.averages}
        focal = {} if self.focal is None else {FOCAL: self.focal.state_dict()}
        files = {MODEL: self.network.state_dict(), **averages, OPTIMIZER: self.optimizer.state(), **focal}
        return {name: world.assemble(tensors) for name, tensors in files.items()}

    def load(self, folder: Path, world: World = ALONE) -> None:
        """Take over a checkpoint's files in place, in all processes together.

        Raises UserError, in all of them, when one is damaged or of another network.
        """
        load_weights(self.network, folder / MODEL, world)
        for average in self.averages:
            load_weights(average.network, folder / average_file(average.name, self._names), world)
        load_optimizer(self.optimizer, folder / OPTIMIZER, world)
        if self.focal is not None:
            load_weights(self.focal, folder / FOCAL, world)

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(average.name for average in self.averages)


def make_state(
    network: N,
    optimizer: OptimizerSettings,
    averages: AverageSettings,
    rate: float,
    batch_size: int,
    *,
    focal: ModeLosses | None = None,
    sharded: bool = False,
    world: World = ALONE,
) -> TrainState[N]:
    """The state of a run that trains a network from its present weights.

    rate: initial learning rate. batch_size: images per step, over all processes. focal: see `TrainState`. sharded:
    whether each of several processes holds a part of the weights, not all of them.
    Raises UserError and ImportError as `make_optimizer` does.
    """
    kept = make_averages(network, averages, batch_size)
    forward: Callable[..., Any] = network
    hold: Callable[[], AbstractContextManager[object]] = nullcontext
    if sharded:
        for module in (network, *(average.network for average in kept)):
            shard(module, world)
        hold = partial(holding_shards, network)
    elif world.size > 1:
        forward = replicated = replicate(network)
        hold = replicated.no_sync
    return TrainState(network, kept, make_optimizer(network, optimizer, rate), forward, hold, focal)
