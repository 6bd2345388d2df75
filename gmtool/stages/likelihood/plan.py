"""The plan of a likelihood, resolved and checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gmtool.artifacts.files import check_writable
from gmtool.artifacts.outputs import kind_of
from gmtool.artifacts.run import RunFolder, open_run
from gmtool.distributed import World, join
from gmtool.errors import UserError
from gmtool.evaluation.array_reference import ArrayReference
from gmtool.evaluation.likelihood import require_torchdiffeq
from gmtool.evaluation.references import (
    ImagesReference,
    LatentsReference,
    open_reference,
    same_tokenizer,
    trained_among,
)
from gmtool.forecast import FileSize, Forecast
from gmtool.sampling.model import find_weights, model_bytes
from gmtool.stages.likelihood.config import RESULT, LikelihoodConfig
from gmtool.tokenizers.build import image_size_of

Data = ImagesReference | ArrayReference | LatentsReference


@dataclass(frozen=True, eq=False)
class LikelihoodPlan:
    """A likelihood with everything resolved.

    step, weights: the checkpoint, and the file of its weights. data: the images that count. labels: of each, -1 for
    none, by the run's classes. images: a number for the image of each, from 0; mirrored copies have that of their
    image. trained_on: how many of the data the run was trained on.
    """

    config: LikelihoodConfig
    run: RunFolder
    step: int
    weights: Path
    data: Data
    labels: np.ndarray
    images: np.ndarray
    trained_on: int
    output: Path
    world: World

    @property
    def bound(self) -> bool:
        """Whether the sum over modes is replaced by one of its terms."""
        return self.run.method.sees_modes or self.run.method.mode_mean

    @property
    def method(self) -> str:
        """The role of modes, in words."""
        if self.bound:
            return "each image given its most probable mode: an upper bound"
        return "the source is the sum over all modes" if self.run.method.method.uses_modes else "the source is N(0, I)"

    def forecast(self) -> Forecast:
        """What is read, written and computed."""
        velocity = self.run.method.method.objective.mixture
        return Forecast(
            title=f"Would compute the likelihood of {self.data.path} under {self.run.path}",
            reads=(FileSize(self.weights, self.weights.stat().st_size), FileSize(self.data.path, None)),
            writes=(FileSize(self.output, None),),
            work=(
                ("images", f"{len(self.data):,}"),
                ("density", f"dopri5, tolerance {self.config.tolerance:g}, {self.config.probes} probes; {self.method}"),
                *((("velocity", f"{self.config.times} times per image"),) if velocity else ()),
            ),
            memory=model_bytes(self.run, self.weights),
            more_memory="what the network computes of a batch",
        )


def plan_likelihood(data: Path, run: Path, config: LikelihoodConfig, output: Path = RESULT) -> LikelihoodPlan:
    """Open and check all inputs. Raises UserError for what is missing, damaged or does not fit together."""
    require_torchdiffeq()
    folder = open_run(run)
    if folder.method.student is not None:
        raise UserError(f"{run} is a student, which has no velocity at every time: give its teacher")
    checkpoint, weights = find_weights(config.weight, folder)
    _check_output(output)
    try:
        opened = open_reference(data)
    except UserError as error:
        raise UserError(str(error).replace("--reference ", "")) from error
    if not len(opened):
        raise UserError(f"{data} holds no images: give a folder or archive of images, a latents file or .npz")
    if isinstance(opened, LatentsReference) and not same_tokenizer(opened.file.tokenizer, folder.tokenizer()):
        raise UserError(
            f"{data} was encoded by another tokenizer than the run's (its name, settings or fitted arrays differ): "
            "give the images instead"
        )
    side = image_size_of(folder.tokenizer())
    if isinstance(opened, ArrayReference) and opened.images is not None and opened.images.size != (side, side):
        here = " x ".join(map(str, opened.images.size))
        raise UserError(
            f"{data} holds images of {here} px, and those of {run} have {side} x {side}: give a folder "
            "of images, which are resized"
        )
    opened = opened.thinned(-(-len(opened) // config.num))
    return LikelihoodPlan(
        config=config,
        run=folder,
        step=checkpoint.step,
        weights=weights,
        data=opened,
        labels=_labels(opened, folder),
        images=_images(opened),
        trained_on=len(trained_among(opened, folder)),
        output=output,
        world=join(config.device),
    )


def _labels(data: Data, run: RunFolder) -> np.ndarray:
    """The run's label of each image, -1 for none. Raises UserError for classes that the run does not know."""
    none = np.full(len(data), -1, np.int64)
    if run.method.condition != "class":
        return none
    if isinstance(data, ImagesReference):
        labels, classes = data.images.labels[data.rows], data.images.classes
    elif isinstance(data, LatentsReference):
        labels, classes = data.file.labels[:: data.step], data.file.classes
    else:
        return none
    unknown = [name for name in classes if name not in run.classes]
    if unknown:
        raise UserError(f"{data.path} has the class {unknown[0]}, which {run.path} does not know: remove it")
    number = np.array([*(run.classes.index(name) for name in classes), -1], np.int64)
    return number[labels]


def _images(data: Data) -> np.ndarray:
    """See `LikelihoodPlan`."""
    if isinstance(data, LatentsReference):
        return np.unique(data.file.image_numbers()[:: data.step], return_inverse=True)[1]
    return np.arange(len(data))


def _check_output(path: Path) -> None:
    """Raise UserError unless the result can be written to ``path``, where nothing but an earlier one may be."""
    check_writable(path, "output")
    if path.suffix != ".json":
        raise UserError(f"--output {path}: the result is JSON, give a name that ends in .json")
    if path.exists() and kind_of(path) != "likelihood":
        raise UserError(f"--output {path} exists, and is no earlier result: choose another name")
