"""The state of a decoder's training, that of the decoder and of the discriminator, and its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from gmtool.distributed import ALONE, World
from gmtool.reconstruction.discriminator import Discriminator
from gmtool.reconstruction.network import DecoderNetwork
from gmtool.training.checkpoint import load_optimizer, load_weights
from gmtool.training.optimizer import Optimizer, make_optimizer
from gmtool.training.settings import OptimizerSettings
from gmtool.training.state import TrainState

HEADS, HEADS_OPTIMIZER = "discriminator.safetensors", "discriminator-optimizer.safetensors"


@dataclass(frozen=True)
class DiscriminatorState:
    """The discriminator, whose heads are trained, and their optimizer."""

    network: Discriminator
    optimizer: Optimizer

    @property
    def trained(self) -> nn.Module:
        """The trained part, with the weights named as in RAE's public implementation, ``heads.0.0.0.weight_orig``."""
        return _trained(self.network)

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """The tensors (...) of a checkpoint, by file and name."""
        return {HEADS: self.trained.state_dict(), HEADS_OPTIMIZER: self.optimizer.state()}

    def load(self, folder: Path, world: World = ALONE) -> None:
        """See `TrainState.load`."""
        load_weights(self.trained, folder / HEADS, world)
        load_optimizer(self.optimizer, folder / HEADS_OPTIMIZER, world)


def _trained(network: Discriminator) -> nn.Module:
    return nn.ModuleDict({"heads": network.heads})


def make_discriminator_state(network: Discriminator, optimizer: OptimizerSettings, rate: float) -> DiscriminatorState:
    """A discriminator, set to evaluation mode, with the optimizer of its heads.

    optimizer: its settings. rate: the learning rate that it begins with.
    """
    return DiscriminatorState(network.eval(), make_optimizer(_trained(network), optimizer, rate))


@dataclass(frozen=True)
class DecoderState:
    """Both networks; None for training without a discriminator."""

    decoder: TrainState[DecoderNetwork]
    discriminator: DiscriminatorState | None = None

    def tensors(self, world: World = ALONE) -> dict[str, Mapping[str, Tensor]]:
        """The tensors (...) of a checkpoint, by file and name, for the first process; all call this together."""
        tensors = self.decoder.tensors(world)
        return tensors if self.discriminator is None else {**tensors, **self.discriminator.tensors()}

    def load(self, folder: Path, world: World = ALONE) -> None:
        """See `TrainState.load`."""
        self.decoder.load(folder, world)
        if self.discriminator is not None:
            self.discriminator.load(folder, world)
