"""The plan of an import, resolved before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gmtool.artifacts.files import check_space
from gmtool.artifacts.gmm import gmm_bytes
from gmtool.artifacts.outputs import output_of
from gmtool.artifacts.run import CHECKPOINTS, MIXTURE
from gmtool.errors import UserError
from gmtool.forecast import FileSize, Forecast
from gmtool.foreign.gmflow import INDEX, SCHEDULER, SPECTRUM, TRANSFORMER, VAE, is_gmflow
from gmtool.huggingface import hub_folder, local_or_hub_file
from gmtool.stages.import_run.config import ImportConfig
from gmtool.stages.import_run.published import (
    STATISTICS,
    Published,
    read_published_ditdh,
    read_published_gmflow,
)


@dataclass(frozen=True, eq=False)
class ImportPlan:
    """path: of the run. source, config: as asked.

    network: what is imported, whose weights are read when they are used.
    """

    path: Path
    source: str
    config: ImportConfig
    network: Published

    @property
    def words(self) -> str:
        """The network, human-readable."""
        network, architecture = self.network, self.network.architecture
        shape = " x ".join(map(str, architecture.shape))
        known = {
            "class": f"{architecture.classes} classes",
            "mode": f"{architecture.modes} modes",
            "none": "no condition",
        }[network.condition]
        source = "a Gaussian source" if network.mixture is None else f"a source of {len(network.mixture.weights)} modes"
        return f"{network.family} on latents of {shape}, {known}, {source}"

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of the weights, float32."""
        return 4 * self.network.parameters * (1 if self.network.model is None else 2)

    @property
    def mixture_bytes(self) -> int:
        """Bytes of the mixture's file, 0 without one."""
        network = self.network
        if network.mixture is None:
            return 0
        size = 0 if network.descriptors is None else network.descriptors.means.shape[1]
        return gmm_bytes(len(network.mixture.weights), size, 0, 1, network.architecture.shape)

    def forecast(self) -> Forecast:
        """What the import would read and write."""
        network = self.network
        writes = [FileSize(self.path / CHECKPOINTS, self.checkpoint_bytes)]
        if network.mixture is not None:
            writes.append(FileSize(self.path / MIXTURE, self.mixture_bytes))
        return Forecast(
            title=f"import {self.words}",
            reads=tuple(FileSize(file, file.stat().st_size) for file in network.files.values()),
            writes=tuple(writes),
            work=(
                ("parameters", f"{network.parameters:,}"),
                ("steps of training", f"{network.step:,}" if network.step else "not known"),
            ),
            choices=network.choices,
            memory=self.checkpoint_bytes + self.mixture_bytes,
        )


def prepare(source: str, path: Path, config: ImportConfig) -> ImportPlan:
    """The plan of importing the network in ``source`` as the run ``path``.

    Raises UserError, naming the file or flag, for what cannot be read or does not fit together; MachineError when the
    tokenizer cannot be fetched or the run does not fit on the disk.
    """
    output = output_of(path, "run")
    place = _place(source)
    if is_gmflow(place):
        network = read_published_gmflow(place, config)
    else:
        network = read_published_ditdh(_checkpoint_in(place), config)
    plan = ImportPlan(output.target, source, config, network)
    check_space(output.target, plan.checkpoint_bytes + plan.mixture_bytes, "the run")
    return plan


def _place(source: str) -> Path:
    """The file or folder of SOURCE, fetched where it is on the hub."""
    place = local_or_hub_file(source, "SOURCE")
    if place.exists():
        return place
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UserError(f"{source} does not exist, and is no hub id (owner/name, owner/name/file) either")
    files = (INDEX, *(f"{folder}/*" for folder in (TRANSFORMER, SPECTRUM, SCHEDULER, VAE)))
    folder = hub_folder(source, "SOURCE", files)
    if not is_gmflow(folder):
        raise UserError(f"{source} is not laid out as GMFlow's on the hub: name a file in it, {source}/FILE")
    return folder


def _checkpoint_in(place: Path) -> Path:
    """The checkpoint that SOURCE names, or the one in the folder that it names."""
    if not place.is_dir():
        return place
    checkpoints = sorted(
        file for suffix in ("pt", "pth", "safetensors") for file in place.glob(f"*.{suffix}") if file.name != STATISTICS
    )
    if len(checkpoints) != 1:
        what = (
            f"{len(checkpoints)} checkpoints ({checkpoints[0].name}, ...)"
            if checkpoints
            else "neither transformer/ nor a checkpoint"
        )
        raise UserError(f"{place} holds {what}: name the .pt file, or give GMFlow's folder")
    return checkpoints[0]
