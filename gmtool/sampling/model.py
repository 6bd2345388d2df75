"""A trained network, ready to draw from: weights, method, conditions, and the statistics of latents and modes."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gmtool.artifacts.gmm import GmmFile, open_gmm
from gmtool.artifacts.method_record import MethodRecord
from gmtool.artifacts.run import MIXTURE, LatentStatistics, RunFolder
from gmtool.data.mode_statistics import ModeInputs, ModeTable, mode_bytes, mode_table_of
from gmtool.errors import UserError
from gmtool.flow.method import Method
from gmtool.flow.model import Predict
from gmtool.flow.spectral import Spectrum
from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.architecture import Architecture, Conditions
from gmtool.nn.build import build_network
from gmtool.nn.compile import compile_network
from gmtool.nn.conditioning import Conditioning
from gmtool.nn.network import Network
from gmtool.runtime import autocast
from gmtool.sampling.settings import WeightSettings
from gmtool.training.checkpoint import MODEL, Checkpoint, find_checkpoint, load_weights
from gmtool.training.ema import average_file


@dataclass(frozen=True)
class TrainedModel:
    """A network ready to draw from.

    statistics: of the latents. modes: statistics of the modes, None where neither the method nor the network uses them.
    precision: of the network's arithmetic, float32 or that of autocast. weaker: what autoguidance leads away from, in
    the same coordinates.
    """

    network: Network
    method: Method
    conditioning: Conditioning
    statistics: LatentStatistics
    modes: ModeTable | None
    device: torch.device
    precision: torch.dtype
    weaker: TrainedModel | None = None

    @classmethod
    def of(
        cls,
        record: MethodRecord,
        network: Network,
        statistics: LatentStatistics,
        modes: ModeTable | None,
        device: torch.device,
        precision: torch.dtype,
        weaker: TrainedModel | None = None,
    ) -> TrainedModel:
        """The network, on its device, of a run with this record. statistics: on any device."""
        conditioning = record.conditioning(network.architecture)
        return cls(network, record.method, conditioning, statistics.to(device), modes, device, precision, weaker)

    def autocast(self) -> AbstractContextManager[object]:
        """The context of arithmetic in which the network is called."""
        return autocast(self.device, self.precision)

    def predict(self, conditions: Conditions) -> Predict:
        """The network given the samples' conditions: x_t (B, C, H, W), t (B,) -> its prediction of the velocity."""

        def predict(x_t: Tensor, t: Tensor) -> Tensor | GaussianMixture:
            with self.autocast():
                return self.network(x_t, t, conditions)

        return predict

    def conditions(self, classes: Tensor, modes: Tensor | None, mean: Tensor | None) -> Conditions:
        """The network's conditions, on its device, of labels and modes (B,) int64 and the means of these modes."""
        labels = None if modes is None else modes.to(self.device)
        return self.conditioning.given(classes.to(self.device), labels, mean)

    @property
    def mode_inputs(self) -> ModeInputs:
        """What samples take of their modes, for the weaker network too."""
        networks = (self,) if self.weaker is None else (self, self.weaker)
        return ModeInputs(self.method, self.modes, any(known.conditioning.mode_mean for known in networks))

    @property
    def spectrum(self) -> Spectrum | None:
        """The learned spectrum of the noise; None where none was learned."""
        network = self.network
        return None if network.spectrum is None else Spectrum(network.spectrum, network.architecture.spectral)


def find_weights(settings: WeightSettings, run: RunFolder) -> tuple[Checkpoint, Path]:
    """The checkpoint that the settings choose, and the file of its weights.

    Raises UserError when the run has no such checkpoint, or no such average.
    """
    checkpoint = find_checkpoint(run.checkpoints, settings.checkpoint)
    name = average_file(settings.ema, run.averages) if settings.weights == "ema" else MODEL
    return checkpoint, checkpoint.path / name


def load_network(architecture: Architecture, weights: Path, device: torch.device, compiled: bool = False) -> Network:
    """The network of an architecture with the weights of a file, on a device, for inference.

    Raises UserError when the file is missing, damaged or of another network, MachineError when the network is to be
    ``compiled`` and there is no compiler.
    """
    network = build_network(architecture, seed=0)
    load_weights(network, weights)
    if compiled:
        compile_network(network)
    return network.to(device).eval()


def load_model(
    run: RunFolder, network: Network, device: torch.device, precision: torch.dtype, gmm: Path | None, stack: ExitStack
) -> TrainedModel:
    """A run's network, ready to draw; ``stack`` closes its mixture, which stays open.

    precision: of the network's arithmetic. gmm: the file of its mixture; None: where it was in training. Raises
    UserError when the run's statistics are damaged, and as `run_mixture` does.
    """
    statistics = run.statistics()
    mixture = run_mixture(run, gmm, stack) if run.method.uses_mode_statistics else None
    modes = mode_table_of(run.method, mixture, statistics, device)
    return TrainedModel.of(run.method, network, statistics, modes, device, precision)


def model_bytes(run: RunFolder, weights: Path) -> int:
    """About the memory of a run's network, by its file of float32 weights, and of the statistics of its modes.

    Raises UserError when the run's statistics are damaged.
    """
    drawn = run.statistics().mode_weights if run.method.uses_mode_statistics else None
    return weights.stat().st_size + mode_bytes(0 if drawn is None else drawn.shape[1], run.architecture.shape)


def run_mixture(run: RunFolder, path: Path | None, stack: ExitStack) -> GmmFile:
    """A run's mixture, which ``stack`` closes; path: where it is, None: where it was in training.

    Where the run does not say which it was, ``path`` is needed, and must have the run's number of modes. Raises
    UserError when the mixture is gone, damaged or another one.
    """
    known = run.manifest.input("gmm")
    beside = run.path / MIXTURE  # an imported run brings its own, and may have been moved since
    path = path or (beside if beside.exists() else None if known is None else Path(known.path))
    if path is None:
        raise UserError(f"{run.path} does not say which mixture it was trained with: give it by --gmm")
    gmm = stack.enter_context(open_gmm(path))
    if not (_may_be_of(run, gmm) if known is None else gmm.manifest.fingerprint == known.fingerprint):
        raise UserError(f"{run.path} was trained with another mixture than {path}: give its own by --gmm")
    return gmm


def _may_be_of(run: RunFolder, gmm: GmmFile) -> bool:
    """Whether a mixture has the shape of the run's latents and, where the run knows modes, as many."""
    weights = run.statistics().mode_weights
    return gmm.shape == run.architecture.shape and (weights is None or weights.shape[1] == len(gmm))
