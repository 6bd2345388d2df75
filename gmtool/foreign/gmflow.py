"""GMFlow's released folder, in the layout of diffusers: transformer/, spectrum_net/, scheduler/, vae/.

The times of its network, its names and its table of positions are those of `gmtool.foreign.gmdit`. Its latents are
those of Stable Diffusion's autoencoder times the scale, with no other normalisation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from gmtool.errors import UserError
from gmtool.foreign.gmdit import gmdit_architecture, gmdit_weights
from gmtool.foreign.reading import read_settings, reading
from gmtool.foreign.torch_files import read_weights
from gmtool.foreign.weights import check_weights
from gmtool.nn.dit import DiTArchitecture

TRANSFORMER, SPECTRUM, SCHEDULER, VAE, INDEX = "transformer", "spectrum_net", "scheduler", "vae", "model_index.json"
CONFIG, TIMES = "config.json", "scheduler_config.json"
LARGEST_SHIFT = 10**6
"""Largest time shift; the published ones are below 10."""


@dataclass(frozen=True, eq=False)
class GmflowFolder:
    """GMFlow's network in our terms.

    architecture, weights: under our names. parameters: their number. classes: their names. shift: s of the shift of
    times. files: all that were read. vae: the folder of the autoencoder, None where it is not beside the network.
    """

    architecture: DiTArchitecture
    weights: Mapping[str, Tensor]
    parameters: int
    classes: tuple[str, ...]
    shift: float
    files: tuple[Path, ...]
    vae: Path | None


def is_gmflow(folder: Path) -> bool:
    """Whether a folder is laid out as GMFlow's."""
    return (folder / TRANSFORMER / CONFIG).is_file()


def read_gmflow(folder: Path) -> GmflowFolder:
    """Read GMFlow's folder. Raises UserError when it is damaged, or holds another network."""
    config = folder / TRANSFORMER / CONFIG
    settings, files = read_settings(config), weights_files(folder / TRANSFORMER)
    spectrum = weights_files(folder / SPECTRUM) if (folder / SPECTRUM).is_dir() else ()
    with reading(folder / TRANSFORMER, "a GM-DiT of GMFlow"):
        architecture = gmdit_architecture(settings)
        weights = gmdit_weights(read_weights(files), architecture)
        if spectrum:
            weights |= {f"spectrum.{name}": tensor for name, tensor in read_weights(spectrum).items()}
            architecture = replace(architecture, spectral=architecture.shape[0])
        parameters = check_weights(weights, architecture)
    index, times = folder / INDEX, folder / SCHEDULER / TIMES
    optional = tuple(path for path in (index, times) if path.is_file())
    return GmflowFolder(
        architecture=architecture,
        weights=weights,
        parameters=parameters,
        classes=_class_names(index, architecture.classes),
        shift=_shift(times),
        files=(*files, *spectrum, config, *optional),
        vae=folder / VAE if (folder / VAE / CONFIG).is_file() else None,
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


def _shift(path: Path) -> float:
    """s of the shift of times in the scheduler's settings; 1, which is none, without."""
    if not path.is_file():
        return 1.0
    shift = read_settings(path).get("shift", 1.0)
    if type(shift) not in (int, float) or not 1e-3 <= shift <= LARGEST_SHIFT:
        raise UserError(f"{path}: shift must be a number from 0.001 to {LARGEST_SHIFT}")
    return float(shift)


def _class_names(path: Path, count: int) -> tuple[str, ...]:
    """The first of each class's names, with its number where two classes share it; numbers where there are none."""
    named = read_settings(path).get("id2label") if path.is_file() else None
    if not isinstance(named, Mapping) or any(str(index) not in named for index in range(count)):
        return tuple(map(str, range(count)))
    first = [str(named[str(index)]).partition(",")[0].strip() for index in range(count)]
    return tuple(f"{name} {index}" if first.count(name) > 1 else name for index, name in enumerate(first))
