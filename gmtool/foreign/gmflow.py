"""GMFlow's released folder, in the layout of diffusers: transformer/, spectrum_net/, scheduler/, vae/.

The times of its network, its names and its table of positions are those of `gmtool.foreign.gmdit`. Its latents are
those of Stable Diffusion's autoencoder times the scale, with no other normalisation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from gmtool.artifacts.safetensors_io import read_tensors
from gmtool.errors import UserError
from gmtool.foreign.gmdit import gmdit_architecture, gmdit_weights
from gmtool.nn.dit import DiTArchitecture

TRANSFORMER, SPECTRUM, SCHEDULER, VAE, INDEX = "transformer", "spectrum_net", "scheduler", "vae", "model_index.json"


@dataclass(frozen=True, eq=False)
class GmflowFolder:
    """architecture, weights: under our names, float32. classes: names. shift: of times. files: that the weights are in.

    vae: the folder of the autoencoder, None where it is not beside the network.
    """

    architecture: DiTArchitecture
    weights: Mapping[str, Tensor]
    classes: tuple[str, ...]
    shift: float
    files: tuple[Path, ...]
    vae: Path | None


def is_gmflow(folder: Path) -> bool:
    """Whether a folder is laid out as GMFlow's."""
    return (folder / TRANSFORMER / "config.json").is_file()


def read_gmflow(folder: Path) -> GmflowFolder:
    """Read GMFlow's folder. Raises UserError when it is damaged, or holds another network."""
    config = _json(folder / TRANSFORMER / "config.json")
    files = weights_files(folder / TRANSFORMER)
    state = _read(files)
    try:
        architecture = gmdit_architecture(config)
        weights = gmdit_weights(state, architecture)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        missing = " ".join(str(error).split())
        raise UserError(f"{folder / TRANSFORMER} holds no GM-DiT of GMFlow: {missing} is missing or unfit") from error
    if (folder / SPECTRUM).is_dir():
        spectrum = weights_files(folder / SPECTRUM)
        weights |= {f"spectrum.{name}": each for name, each in _read(spectrum).items()}
        architecture = replace(architecture, spectral=architecture.shape[0])
        files = (*files, *spectrum)
    index, scheduler = (_json(path) if path.is_file() else {} for path in _optional(folder))
    vae = folder / VAE
    return GmflowFolder(
        architecture=architecture,
        weights=weights,
        classes=_class_names(index.get("id2label"), architecture.classes),
        shift=float(scheduler.get("shift", 1.0)),
        files=files,
        vae=vae if (vae / "config.json").is_file() else None,
    )


def weights_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors of one set of weights, in parts or whole: of the variant without a name, or else of the first.

    Raises UserError when there are none.
    """
    variants: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        name = re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)
        variants.setdefault(name.partition(".")[2], []).append(path)
    if not variants:
        raise UserError(f"{folder} holds no .safetensors weights")
    return tuple(variants[min(variants)])


def _optional(folder: Path) -> tuple[Path, Path]:
    return folder / INDEX, folder / SCHEDULER / "scheduler_config.json"


def _read(files: tuple[Path, ...]) -> dict[str, Tensor]:
    return {name: each for file in files for name, each in read_tensors(file).items()}


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error})") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no settings")
    return content


def _class_names(named: Mapping[str, str] | None, count: int) -> tuple[str, ...]:
    """The first of each class's names, with its number where two classes share it; numbers where there are none."""
    if not isinstance(named, Mapping) or any(str(index) not in named for index in range(count)):
        return tuple(map(str, range(count)))
    first = [str(named[str(index)]).partition(",")[0].strip() for index in range(count)]
    return tuple(f"{name} {index}" if first.count(name) > 1 else name for index, name in enumerate(first))
